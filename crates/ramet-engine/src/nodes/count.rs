//! Counting which nodes a checkpoint reaches, so that the room of all others can be given back.
//!
//! Reads nodes; changes nothing. Invariants: what is reached is marked before anything is said to
//! be free; a node that cannot be read ends the count, and nothing is free then. Leaves are never
//! read: their parents say where they are. See docs/internals/reclaim.md.

use super::{Nodes, tree};
use crate::EngineError;
use crate::checkpoint::Roots;
use crate::checkpoint::load::{dying_root, object_root};
use ramet_log::format::node::{FIRST_UNIT, UNIT_BYTES, UNITS_MAX, place};
use ramet_log::format::superblock::NodeReference;
use ramet_log::{BLOCK_BYTES_U64, SegmentId};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Units of a page: what can be given back.
const PAGE_UNITS: u32 = FIRST_UNIT;

type Result<T> = std::result::Result<T, EngineError>;

/// Pages of a file: the first, and how many.
pub(crate) type PageRuns = Vec<(u64, u64)>;

/// What a count found.
#[derive(Default)]
pub(crate) struct Counted {
    /// Bytes of nodes that are reached.
    pub(crate) reached_bytes: u64,
    /// Whole pages in which nothing is reached, of files in which something is.
    pub(crate) pages: BTreeMap<SegmentId, PageRuns>,
    /// Files in which nothing is reached.
    pub(crate) whole: BTreeSet<SegmentId>,
}

/// Units that are reached: one bit each.
#[derive(Default)]
struct Marks {
    files: HashMap<SegmentId, Vec<u64>>,
    reached_units: u64,
}

impl Marks {
    /// Result: whether the node was not reached before.
    fn mark(&mut self, node: &NodeReference) -> bool {
        let Some((file, unit)) = place(node.address) else { return false };
        let bits = self.files.entry(file).or_insert_with(|| vec![0; UNITS_MAX as usize / 64]);
        let units = u64::from(node.stored_bytes).div_ceil(UNIT_BYTES);
        let units = u32::try_from(units).unwrap_or(UNITS_MAX);
        let end = unit.saturating_add(units).min(UNITS_MAX);
        let bit = |unit: u32| (unit as usize / 64, 1u64 << (unit % 64));
        let (word, first) = bit(unit);
        if bits[word] & first != 0 {
            return false;
        }
        for unit in unit..end {
            let (word, bit) = bit(unit);
            bits[word] |= bit;
        }
        self.reached_units += u64::from(end - unit);
        true
    }
}

/// Mark all that `roots` reach. `files` are those that there are, with units that were in use when
/// the roots were written; what lies behind is not looked at, and `target`, which is appended to,
/// is never said to be free as a whole.
///
/// # Errors
/// `Corrupt` and `Unavailable` where a node cannot be read.
pub(crate) fn count(
    nodes: &Nodes,
    roots: &Roots,
    files: &BTreeMap<SegmentId, u32>,
    target: Option<SegmentId>,
    rest: &dyn Fn(),
) -> Result<Counted> {
    let marks = RefCell::new(Marks::default());
    let read = |reference: &NodeReference| nodes.files.read(reference);
    let mut visit = |node: &NodeReference| {
        marks.borrow_mut().mark(node);
    };
    let mut object = |key: u64, value: &[u8]| match object_root(key, value)? {
        Some((root, height)) => mark_map(nodes, &marks, root, height, rest),
        None => Ok(()),
    };
    if let Some(root) = &roots.objects {
        tree::scan(&read, root, &mut visit, &mut object)?;
    }
    let mut dying = |key: u64, value: &[u8]| match dying_root(key, value)? {
        Some((root, height)) => mark_map(nodes, &marks, root, height, rest),
        None => Ok(()),
    };
    if let Some(root) = &roots.lineage {
        tree::scan(&read, root, &mut visit, &mut dying)?;
    }
    Ok(free(&marks.into_inner(), files, target))
}

/// Mark a map, each node once however many maps share it.
fn mark_map(
    nodes: &Nodes,
    marks: &RefCell<Marks>,
    root: NodeReference,
    height: u8,
    rest: &dyn Fn(),
) -> Result<()> {
    let mut todo = vec![(root, height)];
    while let Some((node, height)) = todo.pop() {
        rest();
        if marks.borrow_mut().mark(&node) && height > 0 {
            todo.extend(
                nodes.children(&node, height)?.into_iter().map(|child| (child, height - 1)),
            );
        }
    }
    Ok(())
}

fn free(marks: &Marks, files: &BTreeMap<SegmentId, u32>, target: Option<SegmentId>) -> Counted {
    let mut counted =
        Counted { reached_bytes: marks.reached_units * UNIT_BYTES, ..Counted::default() };
    for (id, units) in files {
        let Some(bits) = marks.files.get(id) else {
            if Some(*id) == target {
                let pages = u64::from(units / PAGE_UNITS);
                counted.pages.insert(*id, vec![(1, pages.saturating_sub(1))]);
            } else {
                counted.whole.insert(*id);
            }
            continue;
        };
        // A word of bits is a page.
        let mut runs = PageRuns::new();
        for page in 1..u64::from(units / PAGE_UNITS) {
            if bits[usize::try_from(page).expect("few pages")] != 0 {
                continue;
            }
            match runs.last_mut() {
                Some((first, count)) if *first + *count == page => *count += 1,
                _ => runs.push((page, 1)),
            }
        }
        if !runs.is_empty() {
            counted.pages.insert(*id, runs);
        }
    }
    counted
}

/// Bytes of these pages.
pub(crate) fn bytes_of(pages: &PageRuns) -> u64 {
    pages.iter().map(|(_, count)| count * BLOCK_BYTES_U64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(file: SegmentId, unit: u32, bytes: u32) -> NodeReference {
        let address = ramet_log::format::node::address(file, unit);
        NodeReference { address, stored_bytes: bytes, ..NodeReference::default() }
    }

    #[test]
    fn only_whole_pages_below_what_was_in_use_are_free() {
        let (file, other) = (SegmentId::new(1, 1), SegmentId::new(1, 2));
        let mut marks = Marks::default();
        // The last unit of page 1 and the first of page 2; and one in page 5.
        assert!(marks.mark(&node(file, 2 * 64 - 1, 65)));
        assert!(!marks.mark(&node(file, 2 * 64 - 1, 65)), "it was reached before");
        assert!(marks.mark(&node(file, 5 * 64 + 7, 10)));
        let files = BTreeMap::from([(file, 8 * 64 + 3), (other, 300)]);
        let counted = free(&marks, &files, None);
        assert_eq!(counted.pages[&file], [(3, 2), (6, 2)]);
        assert_eq!(counted.whole, BTreeSet::from([other]));
        assert_eq!(counted.reached_bytes, 3 * 64);
        let counted = free(&marks, &files, Some(other));
        assert_eq!(counted.pages[&other], [(1, 3)], "what is appended to stays");
        assert!(counted.whole.is_empty());
    }
}
