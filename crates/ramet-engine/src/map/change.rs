//! Changes of a map: nodes that are shared are copied on the way down, others are changed in place.
//!
//! Invariant: `newest` and `mapped` are right at every node again when a change returns; what
//! changes nothing copies nothing.

use super::node::{Body, Node, slots, span};
use super::{BLOCKS_MAX, Map, Missing};
use ramet_log::{Locator, Position};
use std::sync::Arc;

/// Who is told what a map lets go of.
pub trait LetGo {
    /// `count` blocks from `first` on were in consecutive slots from `locator` on.
    fn run(&mut self, first: u64, count: u64, locator: Locator);

    /// A whole subtree, a leaf at least, whose first block is `first`. Other maps may share it.
    fn subtree(&mut self, first: u64, node: Arc<Node>);
}

/// A write on its way down.
struct Put<'a> {
    first: u64,
    end: u64,
    locator: Locator,
    position: Position,
    overwritten: &'a mut dyn FnMut(u64, u64, Locator),
    dirtied: u64,
}

/// A removal on its way down.
struct Take<'a> {
    first: u64,
    end: u64,
    position: Position,
    let_go: &'a mut dyn LetGo,
    dirtied: u64,
}

impl Map {
    /// Map `count` blocks from `first` on to consecutive slots of one segment from `locator` on;
    /// `overwritten` is told the runs (first block, count, locator) that were there. `position` is
    /// the change's, for `newest`. Result: bytes of memory that are now nowhere else.
    ///
    /// # Errors
    /// `Missing`; nothing was changed then.
    ///
    /// # Panics
    /// Past block 2^36, or where the slots leave the segment.
    pub fn write(
        &mut self,
        first: u64,
        count: u64,
        locator: Locator,
        position: Position,
        overwritten: &mut impl FnMut(u64, u64, Locator),
    ) -> Result<u64, Missing> {
        self.ready(first, count, false)?;
        Ok(self.write_ready(first, count, locator, position, overwritten))
    }

    /// As `write`, of a range that was found `ready` since the last node was taken out of memory.
    ///
    /// # Panics
    /// As `write`, and where a node is missing.
    pub fn write_ready(
        &mut self,
        first: u64,
        count: u64,
        locator: Locator,
        position: Position,
        overwritten: &mut impl FnMut(u64, u64, Locator),
    ) -> u64 {
        if count == 0 {
            return 0;
        }
        let end = end_of(first, count);
        assert!(locator != Locator::NONE, "a write of nothing");
        assert!(
            locator.segment() == Locator(locator.0 + count - 1).segment(),
            "{count} blocks at {locator} leave the segment"
        );
        let root = self.cover(end, 0);
        let root = root.get_or_insert_with(|| Arc::new(Node::empty(height_for(end))));
        let mut put = Put { first, end, locator, position, overwritten, dirtied: 0 };
        put.put(root, 0);
        put.dirtied
    }

    /// Whether a write of the range, or its removal where `detaches`, finds every node it needs.
    ///
    /// # Errors
    /// `Missing`.
    pub fn ready(&self, first: u64, count: u64, detaches: bool) -> Result<(), Missing> {
        let Some(root) = &self.root else { return Ok(()) };
        root.ready(0, first, first.saturating_add(count), detaches)
    }

    /// Make `count` blocks from `first` on holes: whole subtrees are detached as they are, parts of
    /// leaves are told as runs. The count may reach beyond every block. Where nothing was mapped
    /// nothing changes, `newest` neither. Result: bytes of memory that are now nowhere else.
    ///
    /// # Errors
    /// `Missing`; nothing was changed then.
    pub fn remove(
        &mut self,
        first: u64,
        count: u64,
        position: Position,
        let_go: &mut impl LetGo,
    ) -> Result<u64, Missing> {
        let end = first.saturating_add(count);
        self.ready(first, count, true)?;
        let Some(root) = &mut self.root else { return Ok(0) };
        if !root.maps_any(0, first, end)? {
            return Ok(0);
        }
        if first == 0 && end >= root.span() {
            let_go.subtree(0, self.root.take().expect("looked at above"));
            return Ok(0);
        }
        let mut take = Take { first, end, position, let_go, dirtied: 0 };
        take.take(root, 0);
        let dirtied = take.dirtied;
        if root.mapped == 0 {
            self.root = None;
        }
        Ok(dirtied)
    }

    /// Forget every block before `end`: what a walk has answered. `newest` stays, since nobody
    /// changed anything.
    ///
    /// # Errors
    /// As `remove`.
    pub fn cut(&mut self, end: u64) -> Result<u64, Missing> {
        self.remove(0, end, Position::ZERO, &mut Forget)
    }

    /// Put a subtree that was detached from another map at `first` where this map has nothing at
    /// all.
    ///
    /// # Panics
    /// Where this map has something there, or a node of that height cannot start at `first`.
    pub fn graft(&mut self, first: u64, node: Arc<Node>) {
        assert!(
            first.is_multiple_of(node.span()),
            "a subtree of height {} at block {first}",
            node.height
        );
        let end = end_of(first, node.span().min(BLOCKS_MAX - first));
        if self.root.is_none() && first == 0 {
            self.root = Some(node);
            return;
        }
        let height = node.height;
        let root = self.cover(end, height + 1);
        let top = height_for(end).max(height + 1);
        let root = root.get_or_insert_with(|| Arc::new(Node::empty(top)));
        attach(root, 0, first, node);
    }

    /// Whether nothing stands where a subtree of this height would be grafted at `first`.
    pub fn is_free(&self, first: u64, height: u8) -> bool {
        let Some(root) = &self.root else { return true };
        if root.height <= height {
            return first >= root.span();
        }
        let (mut node, mut base) = (root.clone(), 0);
        while first < base + node.span() {
            let index = node.index_of(base, first);
            base = node.child_base(base, index);
            let child = match node.look().as_deref() {
                Ok(Body::Inner(inner)) => inner.child(index).cloned(),
                // What was grafted before, and is not in memory.
                Ok(Body::Leaf(_)) | Err(_) => return false,
            };
            match child {
                Some(child) if child.height > height => node = child,
                Some(_) => return false,
                None => return true,
            }
        }
        true
    }

    /// Make the root high enough for the blocks before `end`, and at least `height`.
    fn cover(&mut self, end: u64, height: u8) -> &mut Option<Arc<Node>> {
        while let Some(root) = &self.root
            && (root.span() < end || root.height < height)
        {
            let mut above = Node::empty(root.height + 1);
            (above.newest, above.mapped) = (root.newest, root.mapped);
            let Body::Inner(inner) = above.body_mut() else {
                unreachable!("only a leaf has height 0")
            };
            inner.insert(0, self.root.take().expect("looked at above"));
            self.root = Some(Arc::new(above));
        }
        &mut self.root
    }
}

impl Put<'_> {
    /// Result: how many blocks were overwritten below `node`.
    fn put(&mut self, node: &mut Arc<Node>, base: u64) -> u64 {
        let (node, bytes_before) = Node::own(node);
        let (from, to) = (self.first.max(base), self.end.min(base + node.span()));
        let mask = if node.height > 0 { node.indexes_mask(base, from, to) } else { 0 };
        let below = node.height.saturating_sub(1);
        let replaced = match node.body_mut() {
            Body::Leaf(leaf) => {
                let slots = slots(base, from, to);
                let overwritten = &mut *self.overwritten;
                leaf.replace(
                    slots.0,
                    slots.1,
                    Some(self.locator.offset(from - self.first)),
                    &mut |run| {
                        overwritten(base + run.start() as u64, run.length() as u64, run.locator);
                    },
                )
            }
            Body::Inner(inner) => super::node::Bits(mask)
                .map(|index| {
                    let child_base = base + u64::from(index) * span(below);
                    if inner.child(index).is_none() {
                        inner.insert(index, Arc::new(Node::empty(below)));
                    }
                    self.put(inner.child_mut(index).expect("just made"), child_base)
                })
                .sum(),
        };
        node.mapped = node.mapped + (to - from) - replaced;
        node.newest = node.newest.max(self.position);
        self.dirtied += node.own_bytes_mut().saturating_sub(bytes_before);
        replaced
    }
}

impl Take<'_> {
    /// Result: how many blocks were let go of below `node`, which has some in the range, and is not
    /// wholly in it unless a leaf.
    fn take(&mut self, node: &mut Arc<Node>, base: u64) -> u64 {
        let (node, bytes_before) = Node::own(node);
        let mask = if node.height > 0 { node.indexes_mask(base, self.first, self.end) } else { 0 };
        let below = node.height.saturating_sub(1);
        let removed = match node.body_mut() {
            Body::Leaf(leaf) => {
                let slots = slots(base, self.first, self.end);
                leaf.replace(slots.0, slots.1, None, &mut |run| {
                    self.let_go.run(base + run.start() as u64, run.length() as u64, run.locator);
                })
            }
            Body::Inner(inner) => {
                let mut removed = 0;
                for index in inner.indexes(mask) {
                    let child_base = base + u64::from(index) * span(below);
                    let child = inner.child_mut(index).expect("its bit is set");
                    if self.first <= child_base && child_base + span(below) <= self.end {
                        removed += child.mapped;
                        self.let_go.subtree(child_base, inner.remove(index));
                    } else if child
                        .maps_any(child_base, self.first, self.end)
                        .expect("looked at before the change began")
                    {
                        removed += self.take(child, child_base);
                        if child.mapped == 0 {
                            inner.remove(index);
                        }
                    }
                }
                removed
            }
        };
        node.mapped -= removed;
        node.newest = node.newest.max(self.position);
        self.dirtied += node.own_bytes_mut().saturating_sub(bytes_before);
        removed
    }
}

/// Lets everything go and tells nobody.
struct Forget;

impl LetGo for Forget {
    fn run(&mut self, _first: u64, _count: u64, _locator: Locator) {}

    fn subtree(&mut self, _first: u64, _node: Arc<Node>) {}
}

fn attach(node: &mut Arc<Node>, base: u64, first: u64, grafted: Arc<Node>) {
    let (node, _) = Node::own(node);
    node.mapped += grafted.mapped;
    node.newest = node.newest.max(grafted.newest);
    let index = node.index_of(base, first);
    let child_base = node.child_base(base, index);
    let below = node.height - 1;
    let Body::Inner(inner) = node.body_mut() else { unreachable!("only a leaf has height 0") };
    if below == grafted.height {
        inner.insert(index, grafted);
        return;
    }
    if inner.child(index).is_none() {
        inner.insert(index, Arc::new(Node::empty(below)));
    }
    attach(inner.child_mut(index).expect("just made"), child_base, first, grafted);
}

fn end_of(first: u64, count: u64) -> u64 {
    let end = first.checked_add(count).filter(|end| *end <= BLOCKS_MAX);
    end.unwrap_or_else(|| panic!("{count} blocks from {first} on go past {BLOCKS_MAX}"))
}

fn height_for(end: u64) -> u8 {
    (0..).find(|height| span(*height) >= end).expect("bounded by the number of blocks")
}
