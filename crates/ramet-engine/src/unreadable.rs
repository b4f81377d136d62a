//! Which objects hold blocks in slots that cannot be read any more: for a loss that is accepted.
//!
//! Calls maps and nodes; reads only. Invariants: a node is looked into once, whichever maps share
//! it; one that cannot be read counts as all that it spans.

use crate::map::fresh::{children_of, runs_of};
use crate::map::{LEAF_BLOCKS, Node};
use crate::nodes::Nodes;
use crate::object::Table;
use ramet_log::{BLOCK_BYTES_U64, Locator, ObjectId, Position, SegmentId};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// Ranges of blocks: first and count, in order.
type Blocks = Vec<(u64, u64)>;
/// The blocks of each object that cannot be read.
pub(crate) type Unreadable = BTreeMap<ObjectId, Blocks>;

/// Find what each object has in these slots.
pub(crate) fn find(table: &Table, nodes: &Nodes, slots: &[(SegmentId, Range<u32>)]) -> Unreadable {
    let Some(oldest) = slots.iter().map(|(segment, _)| *segment).min() else {
        return Unreadable::new();
    };
    let mut search = Search {
        nodes,
        slots: HashMap::new(),
        oldest: oldest.slot(0).position(),
        found: HashMap::new(),
        nothing: Rc::default(),
    };
    for (segment, range) in slots {
        search.slots.entry(*segment).or_default().push(range.clone());
    }
    let mut found = Unreadable::new();
    for object in table.all() {
        let map = object.head.map().clone();
        let Some(root) = map.root() else { continue };
        let end = object.size_bytes().div_ceil(BLOCK_BYTES_U64);
        let inside = |(first, count): &(u64, u64)| {
            (*first < end).then(|| (*first, (*count).min(end - *first)))
        };
        let blocks: Blocks = search.below(root, 0).iter().filter_map(inside).collect();
        if !blocks.is_empty() {
            found.insert(object.id(), blocks);
        }
    }
    found
}

struct Search<'a> {
    nodes: &'a Nodes,
    slots: HashMap<SegmentId, Vec<Range<u32>>>,
    /// What did not change since then has nothing in them.
    oldest: Position,
    /// What nodes on disk have in them, by address.
    found: HashMap<u64, Rc<Blocks>>,
    nothing: Rc<Blocks>,
}

impl Search<'_> {
    fn below(&mut self, node: &Arc<Node>, base: u64) -> Rc<Blocks> {
        if node.newest() < self.oldest {
            return self.nothing.clone();
        }
        let address = node.reference().map(|reference| reference.address);
        if let Some(known) = address.and_then(|address| self.found.get(&address)) {
            return known.clone();
        }
        let blocks = if node.span() == LEAF_BLOCKS {
            self.in_leaf(node, base)
        } else {
            self.in_children(node, base)
        };
        let blocks = if blocks.is_empty() { self.nothing.clone() } else { Rc::new(blocks) };
        if let Some(address) = address {
            self.found.insert(address, blocks.clone());
        }
        blocks
    }

    fn in_children(&mut self, node: &Arc<Node>, base: u64) -> Blocks {
        let Ok(children) = self.nodes.with(|| children_of(node, base)) else {
            return vec![(base, node.span())];
        };
        let mut blocks = Blocks::new();
        for (base, child) in children {
            blocks.extend(self.below(&child, base).iter());
        }
        blocks
    }

    fn in_leaf(&self, leaf: &Arc<Node>, base: u64) -> Blocks {
        let Ok(runs) = self.nodes.with(|| runs_of(leaf, base)) else {
            return vec![(base, leaf.span())];
        };
        let mut blocks = Blocks::new();
        for (first, count, locator) in runs {
            let parts = self.parts_of(count, locator);
            blocks.extend(parts.map(|part| (first + part.start, part.end - part.start)));
        }
        blocks
    }

    /// The parts of a run that lie in the slots, counted from its first block.
    fn parts_of(&self, count: u64, locator: Locator) -> impl Iterator<Item = Range<u64>> + '_ {
        let slots = self.slots.get(&locator.segment()).map_or(&[][..], Vec::as_slice);
        let start = u64::from(locator.slot());
        slots.iter().filter_map(move |range| {
            let from = u64::from(range.start).saturating_sub(start);
            let to = u64::from(range.end).saturating_sub(start).min(count);
            (from < to).then_some(from..to)
        })
    }
}
