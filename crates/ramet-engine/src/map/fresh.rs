//! Looking for nodes that nobody looked at yet, in one map after the other: for a scrub.
//!
//! Pure. Invariants: what is on disk under an address never changes, so that a node is dealt with
//! once, whichever maps share it; an inner node is done once all below it is; nothing below a node
//! is shown before the node itself was.

use super::node::{Body, Node};
use super::{Map, Missing};
use ramet_log::Locator;
use std::collections::HashMap;
use std::sync::Arc;

/// What is known of a node on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// Its own bytes were read.
    Read,
    /// It, and all below it.
    Done,
    /// It cannot be read: the number of the finding that says so.
    Bad(usize),
}

/// Nodes that were looked at, by address: about 40 bytes each.
#[derive(Default)]
pub(crate) struct Marks(HashMap<u64, Mark>);

/// What comes next in a map.
pub(crate) enum Fresh {
    /// A node on disk whose own bytes were not read yet.
    Unread(Arc<Node>),
    /// A leaf, at this block, that is not done.
    Leaf(u64, Arc<Node>),
    /// A node at this block that cannot be read, and the number of the finding.
    Bad(u64, Arc<Node>, usize),
}

impl Marks {
    fn of(&self, node: &Node) -> Option<Mark> {
        node.reference().and_then(|reference| self.0.get(&reference.address).copied())
    }

    fn set(&mut self, node: &Node, mark: Mark) {
        if let Some(reference) = node.reference() {
            self.0.insert(reference.address, mark);
        }
    }

    pub(crate) fn set_read(&mut self, node: &Node) {
        self.set(node, Mark::Read);
    }

    pub(crate) fn set_bad(&mut self, node: &Node, finding: usize) {
        self.set(node, Mark::Bad(finding));
    }

    pub(crate) fn set_done(&mut self, address: u64) {
        self.0.insert(address, Mark::Done);
    }
}

impl Map {
    /// The first node from block `at` on that is not done; `None` behind the last one. `looked`
    /// counts nodes that were looked into.
    ///
    /// # Errors
    /// `Missing`.
    pub(crate) fn next_fresh(
        &self,
        at: u64,
        marks: &mut Marks,
        looked: &mut u64,
    ) -> Result<Option<Fresh>, Missing> {
        self.root.as_ref().map_or(Ok(None), |root| next_fresh(root, 0, at, marks, looked))
    }
}

fn next_fresh(
    node: &Arc<Node>,
    base: u64,
    at: u64,
    marks: &mut Marks,
    looked: &mut u64,
) -> Result<Option<Fresh>, Missing> {
    if base + node.span() <= at {
        return Ok(None);
    }
    match marks.of(node) {
        Some(Mark::Done) => return Ok(None),
        Some(Mark::Bad(finding)) => return Ok(Some(Fresh::Bad(base, node.clone(), finding))),
        None if node.is_stored() => return Ok(Some(Fresh::Unread(node.clone()))),
        Some(Mark::Read) | None => {}
    }
    if node.height == 0 {
        return Ok(Some(Fresh::Leaf(base, node.clone())));
    }
    *looked += 1;
    let body = node.look()?;
    let Body::Inner(inner) = &*body else { unreachable!("only a leaf has height 0") };
    for (index, child) in inner.indexes(u64::MAX).zip(inner.children()) {
        let found = next_fresh(child, node.child_base(base, index), at, marks, looked)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    // What lies before `at` may not be done: then the next map that has the node looks again.
    if node.is_stored() && inner.children().iter().all(|child| marks.of(child) == Some(Mark::Done))
    {
        marks.set(node, Mark::Done);
    }
    Ok(None)
}

/// The children of an inner node at block `base`, and the first block of each.
///
/// # Errors
/// `Missing`.
pub(crate) fn children_of(node: &Arc<Node>, base: u64) -> Result<Vec<(u64, Arc<Node>)>, Missing> {
    let body = node.look()?;
    let Body::Inner(inner) = &*body else { unreachable!("only a leaf has height 0") };
    let children = inner.indexes(u64::MAX).zip(inner.children());
    Ok(children.map(|(index, child)| (node.child_base(base, index), child.clone())).collect())
}

/// The runs of a leaf at block `base`: first block, count, locator.
///
/// # Errors
/// `Missing`.
pub(crate) fn runs_of(leaf: &Arc<Node>, base: u64) -> Result<Vec<(u64, u64, Locator)>, Missing> {
    let mut runs = Vec::new();
    leaf.for_each_run(base, &mut |first, count, locator| runs.push((first, count, locator)))?;
    Ok(runs)
}
