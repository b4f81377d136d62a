//! A node of a map: what it says about everything below it, and its body, a leaf or up to 64
//! children.
//!
//! Pure. Invariants: a node maps at least one block; `mapped` and `newest` speak for the whole
//! subtree; a child is one lower.

use super::leaf::Leaf;
use super::{BLOCKS_PER_LEAF, LEAF_BLOCKS};
use ramet_log::{Locator, Position};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Children of an inner node: one bit each of a 64-bit word.
const FAN_OUT_BITS: u32 = 6;
/// Bytes an allocation costs beside what was asked for, and what it is rounded up to.
const ALLOCATION_BYTES: usize = 16;

/// A piece of a map, shared by every map that has not changed it.
///
/// The place for its address on disk, and for a body that is not loaded, is here, beside `newest`
/// and `mapped`.
#[derive(Clone)]
pub struct Node {
    pub(super) newest: Position,
    pub(super) mapped: u64,
    pub(super) height: u8,
    pub(super) body: Body,
}

/// What a node consists of.
#[derive(Clone)]
pub(super) enum Body {
    Leaf(Leaf),
    Inner(Inner),
}

/// The children there are, packed; bit i of `bitmap` says whether child i is among them.
#[derive(Clone, Default)]
pub(super) struct Inner {
    bitmap: u64,
    children: Vec<Arc<Node>>,
}

/// Blocks below a node of this height; a leaf has height 0.
pub(super) fn span(height: u8) -> u64 {
    LEAF_BLOCKS << (FAN_OUT_BITS * u32::from(height))
}

impl Node {
    /// A node without blocks: to be filled at once.
    pub(super) fn empty(height: u8) -> Self {
        let body = match height {
            0 => Body::Leaf(Leaf::default()),
            _ => Body::Inner(Inner::default()),
        };
        Node { newest: Position::ZERO, mapped: 0, height, body }
    }

    /// The position of the newest change (write, zero or trim) at or below the node.
    pub fn newest(&self) -> Position {
        self.newest
    }

    /// Blocks mapped below the node.
    pub fn mapped(&self) -> u64 {
        self.mapped
    }

    /// 0 for a leaf.
    pub fn height(&self) -> u8 {
        self.height
    }

    /// Blocks the node stands for, mapped or not.
    pub fn span(&self) -> u64 {
        span(self.height)
    }

    /// Show every run below the node, whose first block is `base`, in order: (first block, count,
    /// locator). Runs end where a leaf ends.
    pub fn for_each_run(&self, base: u64, see: &mut dyn FnMut(u64, u64, Locator)) {
        let mut see_all = |first, count, locator| {
            see(first, count, locator);
            ControlFlow::Continue(())
        };
        let _all = self.visit(base, base, base + self.span(), &mut see_all);
    }

    /// The runs in `from..to`, in order, until told to stop.
    pub(super) fn visit(
        &self,
        base: u64,
        from: u64,
        to: u64,
        see: &mut dyn FnMut(u64, u64, Locator) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        match &self.body {
            Body::Leaf(leaf) => {
                let slots = slots(base, from, to);
                for run in leaf.runs(slots.0, slots.1) {
                    see(base + run.start() as u64, run.length() as u64, run.locator)?;
                }
            }
            Body::Inner(inner) => {
                for index in inner.indexes(self.indexes_mask(base, from, to)) {
                    let child = inner.child(index).expect("its bit is set");
                    child.visit(self.child_base(base, index), from, to, see)?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Whether anything in `from..to` is mapped.
    pub(super) fn maps_any(&self, base: u64, from: u64, to: u64) -> bool {
        if from <= base && base + self.span() <= to {
            return self.mapped > 0;
        }
        self.visit(base, from, to, &mut |_, _, _| ControlFlow::Break(())).is_break()
    }

    /// The child that holds block `index`.
    pub(super) fn index_of(&self, base: u64, index: u64) -> u32 {
        u32::try_from((index - base) / span(self.height - 1)).expect("below 64")
    }

    pub(super) fn child_base(&self, base: u64, index: u32) -> u64 {
        base + u64::from(index) * span(self.height - 1)
    }

    /// The bits of the children that have blocks in `from..to`.
    pub(super) fn indexes_mask(&self, base: u64, from: u64, to: u64) -> u64 {
        let (from, to) = (from.max(base), to.min(base + self.span()));
        if from >= to {
            return 0;
        }
        let (low, high) = (self.index_of(base, from), self.index_of(base, to - 1));
        (u64::MAX << low) & (u64::MAX >> (u64::BITS - 1 - high))
    }

    /// The node of `height` at `base` below this one, which stands at `own_base`; `None` where
    /// there is none.
    pub(super) fn find(self: &Arc<Self>, base: u64, height: u8) -> Option<&Arc<Node>> {
        let (mut node, mut node_base) = (self, 0);
        if node.height < height || base >= node.span() {
            return None;
        }
        while node.height > height {
            let Body::Inner(inner) = &node.body else { unreachable!("only a leaf has height 0") };
            let index = node.index_of(node_base, base);
            node_base = node.child_base(node_base, index);
            node = inner.child(index)?;
        }
        Some(node)
    }

    /// What the node itself takes in memory, its body included, its children not.
    pub(super) fn own_bytes(&self) -> u64 {
        let (heap_bytes, allocations) = match &self.body {
            Body::Leaf(leaf) => leaf.heap_bytes(),
            Body::Inner(inner) => (inner.children.capacity() * size_of::<Arc<Node>>(), 1),
        };
        // A node lies behind two counters.
        let node_bytes = size_of::<Self>() + 2 * size_of::<usize>();
        (node_bytes + heap_bytes + ALLOCATION_BYTES * (1 + allocations)) as u64
    }

    /// Hold the subtree against its invariants.
    pub(super) fn check(&self) {
        assert!(self.mapped > 0, "a node of height {} without blocks", self.height);
        let mapped = match &self.body {
            Body::Leaf(leaf) => leaf.check(),
            Body::Inner(inner) => {
                let count = inner.bitmap.count_ones() as usize;
                assert_eq!(inner.children.len(), count, "children and bits");
                for child in &inner.children {
                    assert_eq!(child.height + 1, self.height, "a child is one lower");
                    assert!(child.newest <= self.newest, "a child newer than its parent");
                    child.check();
                }
                inner.children.iter().map(|child| child.mapped).sum()
            }
        };
        assert_eq!(mapped, self.mapped, "mapped at height {}", self.height);
    }
}

impl Inner {
    fn rank(&self, index: u32) -> usize {
        (self.bitmap & ((1 << index) - 1)).count_ones() as usize
    }

    pub(super) fn children(&self) -> &[Arc<Node>] {
        &self.children
    }

    pub(super) fn child(&self, index: u32) -> Option<&Arc<Node>> {
        (self.bitmap & (1 << index) != 0).then(|| &self.children[self.rank(index)])
    }

    pub(super) fn child_mut(&mut self, index: u32) -> Option<&mut Arc<Node>> {
        let rank = self.rank(index);
        (self.bitmap & (1 << index) != 0).then(|| &mut self.children[rank])
    }

    pub(super) fn insert(&mut self, index: u32, child: Arc<Node>) -> &mut Arc<Node> {
        assert!(self.bitmap & (1 << index) == 0, "child {index} is there already");
        let rank = self.rank(index);
        self.bitmap |= 1 << index;
        self.children.insert(rank, child);
        &mut self.children[rank]
    }

    pub(super) fn remove(&mut self, index: u32) -> Arc<Node> {
        assert!(self.bitmap & (1 << index) != 0, "child {index} is not there");
        let child = self.children.remove(self.rank(index));
        self.bitmap &= !(1 << index);
        child
    }

    /// The children among `mask`, in order.
    pub(super) fn indexes(&self, mask: u64) -> Bits {
        Bits(self.bitmap & mask)
    }
}

/// One tree beside another, seen from a place where the other has a node of `height`: a node of
/// that height, or a lower root, which then stands where everything begins. Result: what is beside
/// the other's child `index`.
pub(super) fn child_beside(
    beside: Option<&Arc<Node>>,
    height: u8,
    index: u32,
) -> Option<&Arc<Node>> {
    let node = beside?;
    match &node.body {
        Body::Inner(inner) if node.height == height => inner.child(index),
        Body::Inner(_) | Body::Leaf(_) => (index == 0).then_some(node),
    }
}

/// The bits of the children beside those of a node of `height`.
pub(super) fn bitmap_beside(beside: Option<&Arc<Node>>, height: u8) -> u64 {
    match beside.map(|node| (&node.body, node.height)) {
        Some((Body::Inner(inner), own_height)) if own_height == height => inner.bitmap,
        Some((Body::Inner(_) | Body::Leaf(_), _)) => 1,
        None => 0,
    }
}

/// Whether both are one node, or both are nothing.
pub(super) fn same(one: Option<&Arc<Node>>, other: Option<&Arc<Node>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// The set bits of a word, from the lowest.
pub(super) struct Bits(pub(super) u64);

impl Iterator for Bits {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let index = self.0.trailing_zeros();
        (index < u64::BITS).then(|| {
            self.0 &= self.0 - 1;
            index
        })
    }
}

/// The part of `from..to` that lies in the leaf at `base`, counted from there; empty where there is
/// none.
pub(super) fn slots(base: u64, from: u64, to: u64) -> (usize, usize) {
    let slot = |index: u64| {
        usize::try_from(index.saturating_sub(base))
            .map_or(BLOCKS_PER_LEAF, |slot| slot.min(BLOCKS_PER_LEAF))
    };
    (slot(from), slot(to))
}
