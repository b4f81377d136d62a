//! A node of a map: what it says about everything below it, and its body, a leaf or up to 64
//! children.
//!
//! Pure. Invariants: a node maps at least one block; `mapped` and `newest` speak for the whole
//! subtree; a child is one lower; a node that is stored never changes, and all below it is stored.

use super::leaf::Leaf;
use super::{BLOCKS_PER_LEAF, LEAF_BLOCKS};
use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard};
use ramet_log::format::superblock::NodeReference;
use ramet_log::{Locator, Position};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Children of an inner node: one bit each of a 64-bit word.
const FAN_OUT_BITS: u32 = 6;
/// Bytes an allocation costs beside what was asked for, and what it is rounded up to.
const ALLOCATION_BYTES: usize = 16;

/// A piece of a map, shared by every map that has not changed it.
///
/// What it says of everything below it is always here; its body is loaded when it is looked into,
/// and may be taken out of memory again once the node is stored.
pub struct Node {
    pub(super) newest: Position,
    pub(super) mapped: u64,
    pub(super) height: u8,
    /// Looked into since somebody last asked.
    used: AtomicBool,
    stored: Stored,
    body: RwLock<Option<Body>>,
}

/// Where a node is on disk. The address is zero until it is.
#[derive(Default)]
struct Stored {
    address: AtomicU64,
    length: AtomicU32,
    checksum: AtomicU32,
}

/// A node had to be looked into, and its body is not in memory: load it and try again.
#[derive(Clone)]
pub struct Missing(pub Arc<Node>);

impl Missing {
    /// Whether both speak of one node.
    pub(crate) fn is(&self, other: &Missing) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::fmt::Debug for Missing {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Missing({:?})", self.0.reference())
    }
}

/// What a node consists of, as copies: runs of a leaf's blocks, or children by their numbers.
pub(crate) enum Parts {
    Leaf(Vec<(Range<usize>, Locator)>),
    Inner(Vec<(usize, Arc<Node>)>),
}

/// How a look through a tree goes on: stopped because that was enough, or by what is missing.
pub(super) type Seen = ControlFlow<Option<Missing>>;

/// A body that is being looked into.
pub(super) type Look<'a> = MappedRwLockReadGuard<'a, Body>;

/// What a node consists of.
#[derive(Clone)]
pub(crate) enum Body {
    Leaf(Leaf),
    Inner(Inner),
}

/// The children there are, packed; bit i of `bitmap` says whether child i is among them.
#[derive(Clone, Default)]
pub(crate) struct Inner {
    bitmap: u64,
    children: Vec<Arc<Node>>,
}

impl Clone for Node {
    /// A copy to be changed: not stored yet.
    fn clone(&self) -> Self {
        Self::with_body(self.newest, self.mapped, self.height, self.body.read().clone())
    }
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
        Self::with_body(Position::ZERO, 0, height, Some(body))
    }

    fn with_body(newest: Position, mapped: u64, height: u8, body: Option<Body>) -> Self {
        let (used, stored) = (AtomicBool::new(true), Stored::default());
        Node { newest, mapped, height, used, stored, body: RwLock::new(body) }
    }

    /// A node on disk, its body not loaded.
    pub(crate) fn stub(reference: &NodeReference, height: u8) -> Self {
        let node = Self::with_body(reference.newest, reference.mapped, height, None);
        node.set_stored(reference.address, reference.stored_bytes, reference.checksum);
        node
    }

    /// Say where the node is now. It never changes from here on: whoever wants to makes a copy.
    pub(crate) fn set_stored(&self, address: u64, length: u32, checksum: u32) {
        self.stored.length.store(length, Ordering::Relaxed);
        self.stored.checksum.store(checksum, Ordering::Relaxed);
        self.stored.address.store(address, Ordering::Release);
    }

    pub(crate) fn is_stored(&self) -> bool {
        self.stored.address.load(Ordering::Acquire) != 0
    }

    /// What a parent on disk says of the node; `None` while it is not stored.
    pub(crate) fn reference(&self) -> Option<NodeReference> {
        let address = self.stored.address.load(Ordering::Acquire);
        (address != 0).then(|| NodeReference {
            address,
            second_address: 0,
            stored_bytes: self.stored.length.load(Ordering::Relaxed),
            checksum: self.stored.checksum.load(Ordering::Relaxed),
            newest: self.newest,
            mapped: self.mapped,
        })
    }

    /// Look into the node.
    pub(super) fn look(self: &Arc<Self>) -> Result<Look<'_>, Missing> {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        RwLockReadGuard::try_map(self.body.read(), Option::as_ref)
            .map_err(|_none| Missing(self.clone()))
    }

    /// Whether the body is in memory.
    pub(crate) fn is_loaded(&self) -> bool {
        self.body.read().is_some()
    }

    /// Whether it was looked into since this was last asked.
    pub(crate) fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// Give a stored node its body back; false where it has one.
    pub(crate) fn set_body(&self, body: Body) -> bool {
        let mut own = self.body.write();
        let fresh = own.is_none();
        if fresh {
            *own = Some(body);
        }
        fresh
    }

    /// Take the body out of memory; `None` where somebody looks into it, or it is nowhere else.
    pub(crate) fn take_body(&self) -> Option<Body> {
        let mut own = self.body.try_write()?;
        if self.is_stored() { own.take() } else { None }
    }

    /// Bytes in memory, with `stub_bytes` for each child.
    pub(crate) fn memory_bytes(&self, stub_bytes: u64) -> u64 {
        let children = match &*self.body.read() {
            Some(Body::Inner(inner)) => inner.children.len() as u64,
            Some(Body::Leaf(_)) | None => 0,
        };
        self.own_bytes() + children * stub_bytes
    }

    /// The children that are not stored yet, with their first blocks.
    pub(crate) fn children_to_store(
        self: &Arc<Self>,
        first: u64,
    ) -> Result<Vec<(u64, Arc<Node>)>, Missing> {
        let body = self.look()?;
        let Body::Inner(inner) = &*body else { return Ok(Vec::new()) };
        let children = inner.indexes(u64::MAX).zip(inner.children());
        Ok(children
            .filter(|(_, child)| !child.is_stored())
            .map(|(index, child)| (self.child_base(first, index), child.clone()))
            .collect())
    }

    /// Look at all of the node.
    pub(crate) fn parts(self: &Arc<Self>) -> Result<Parts, Missing> {
        Ok(match &*self.look()? {
            Body::Leaf(leaf) => {
                let runs = leaf.runs(0, BLOCKS_PER_LEAF);
                Parts::Leaf(runs.map(|run| (run.start()..run.end(), run.locator)).collect())
            }
            Body::Inner(inner) => {
                let indexes = inner.indexes(u64::MAX).map(|index| index as usize);
                Parts::Inner(indexes.zip(inner.children().iter().cloned()).collect())
            }
        })
    }

    /// The body, to change it: a node that is shared, or stored, is replaced by a copy that is
    /// neither. Its body is loaded: that was looked at before the change began.
    pub(super) fn own(node: &mut Arc<Node>) -> (&mut Node, u64) {
        let is_own = !node.is_stored() && Arc::strong_count(node) == 1;
        let own = Arc::make_mut(node);
        *own.stored.address.get_mut() = 0;
        let before = if is_own { own.own_bytes_mut() } else { 0 };
        (own, before)
    }

    /// The body of a node that is this thread's own.
    pub(super) fn body_mut(&mut self) -> &mut Body {
        self.body.get_mut().as_mut().expect("looked at before the change began")
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
    ///
    /// # Errors
    /// `Missing`; what lies before it was shown.
    pub fn for_each_run(
        self: &Arc<Self>,
        base: u64,
        see: &mut dyn FnMut(u64, u64, Locator),
    ) -> Result<(), Missing> {
        let mut see_all = |first, count, locator| {
            see(first, count, locator);
            ControlFlow::Continue(())
        };
        finish(self.visit(base, base, base + self.span(), &mut see_all))
    }

    /// The runs in `from..to`, in order, until told to stop.
    pub(super) fn visit(
        self: &Arc<Self>,
        base: u64,
        from: u64,
        to: u64,
        see: &mut dyn FnMut(u64, u64, Locator) -> Seen,
    ) -> Seen {
        let body = match self.look() {
            Ok(body) => body,
            Err(missing) => return ControlFlow::Break(Some(missing)),
        };
        match &*body {
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
    pub(super) fn maps_any(
        self: &Arc<Self>,
        base: u64,
        from: u64,
        to: u64,
    ) -> Result<bool, Missing> {
        if from <= base && base + self.span() <= to {
            return Ok(self.mapped > 0);
        }
        let body = self.look()?;
        match &*body {
            Body::Leaf(leaf) => {
                let slots = slots(base, from, to);
                Ok(leaf.runs(slots.0, slots.1).next().is_some())
            }
            Body::Inner(inner) => {
                for index in inner.indexes(self.indexes_mask(base, from, to)) {
                    let child = inner.child(index).expect("its bit is set");
                    if child.maps_any(self.child_base(base, index), from, to)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    /// Whether a change of `from..to` finds every body it needs. A subtree that lies wholly inside
    /// need not be loaded where it is only to be detached.
    pub(super) fn ready(
        self: &Arc<Self>,
        base: u64,
        from: u64,
        to: u64,
        detaches: bool,
    ) -> Result<(), Missing> {
        if detaches && from <= base && base + self.span() <= to {
            return Ok(());
        }
        let body = self.look()?;
        match &*body {
            Body::Leaf(leaf) => leaf.touch(slots(base, from, to).0),
            Body::Inner(inner) => {
                for index in inner.indexes(self.indexes_mask(base, from, to)) {
                    let child = inner.child(index).expect("its bit is set");
                    child.ready(self.child_base(base, index), from, to, detaches)?;
                }
            }
        }
        Ok(())
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

    /// The node of `height` at `base` below this one, which stands at block 0; `None` where there
    /// is none.
    pub(super) fn find(
        self: &Arc<Self>,
        base: u64,
        height: u8,
    ) -> Result<Option<Arc<Node>>, Missing> {
        if self.height < height || base >= self.span() {
            return Ok(None);
        }
        let (mut node, mut node_base) = (self.clone(), 0);
        while node.height > height {
            let index = node.index_of(node_base, base);
            node_base = node.child_base(node_base, index);
            let child = match &*node.look()? {
                Body::Inner(inner) => inner.child(index).cloned(),
                Body::Leaf(_) => unreachable!("only a leaf has height 0"),
            };
            match child {
                Some(child) => node = child,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    /// What the node itself takes in memory, its body included, its children not.
    pub(super) fn own_bytes(&self) -> u64 {
        bytes_with(self.body.read().as_ref())
    }

    /// The same of a node that is this thread's own: no lock is taken.
    pub(super) fn own_bytes_mut(&mut self) -> u64 {
        bytes_with(self.body.get_mut().as_ref())
    }

    /// Hold the subtree, as far as it is in memory, against its invariants.
    pub(super) fn check(&self) {
        assert!(self.mapped > 0, "a node of height {} without blocks", self.height);
        let body = self.body.read();
        let mapped = match &*body {
            None => self.mapped,
            Some(Body::Leaf(leaf)) => leaf.check(),
            Some(Body::Inner(inner)) => {
                let count = inner.bitmap.count_ones() as usize;
                assert_eq!(inner.children.len(), count, "children and bits");
                for child in &inner.children {
                    assert_eq!(child.height + 1, self.height, "a child is one lower");
                    assert!(child.newest <= self.newest, "a child newer than its parent");
                    assert!(!self.is_stored() || child.is_stored(), "stored before its child");
                    child.check();
                }
                inner.children.iter().map(|child| child.mapped).sum()
            }
        };
        assert_eq!(mapped, self.mapped, "mapped at height {}", self.height);
    }
}

/// What a look through a tree ended with.
pub(super) fn finish(seen: Seen) -> Result<(), Missing> {
    match seen {
        ControlFlow::Break(Some(missing)) => Err(missing),
        ControlFlow::Break(None) | ControlFlow::Continue(()) => Ok(()),
    }
}

/// Bytes in memory of a node with this body.
fn bytes_with(body: Option<&Body>) -> u64 {
    // A node lies behind two counters.
    let node_bytes = size_of::<Node>() + 2 * size_of::<usize>() + ALLOCATION_BYTES;
    (node_bytes + body.map_or(0, Body::heap_bytes)) as u64
}

impl Body {
    /// Bytes on the heap beside the node itself.
    pub(crate) fn heap_bytes(&self) -> usize {
        let (bytes, allocations) = match self {
            Body::Leaf(leaf) => leaf.heap_bytes(),
            Body::Inner(inner) => (inner.children.capacity() * size_of::<Arc<Node>>(), 1),
        };
        bytes + ALLOCATION_BYTES * allocations
    }
}

impl Inner {
    /// Put together from what is on disk; `None` where the bits do not fit.
    pub(crate) fn of(bitmap: u64, children: Vec<Arc<Node>>) -> Option<Self> {
        let fits = bitmap.count_ones() as usize == children.len() && bitmap != 0;
        fits.then_some(Inner { bitmap, children })
    }

    pub(crate) fn bitmap(&self) -> u64 {
        self.bitmap
    }

    fn rank(&self, index: u32) -> usize {
        (self.bitmap & ((1 << index) - 1)).count_ones() as usize
    }

    pub(crate) fn children(&self) -> &[Arc<Node>] {
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

/// One tree beside another, seen from a place where the other has a node of some height: a node of
/// that height, whose body is looked into, or a lower root, which stands where everything begins.
pub(super) struct Beside<'a> {
    node: Option<&'a Arc<Node>>,
    body: Option<Look<'a>>,
}

impl<'a> Beside<'a> {
    pub(super) fn look(node: Option<&'a Arc<Node>>, height: u8) -> Result<Self, Missing> {
        let body = match node {
            Some(node) if node.height == height => Some(node.look()?),
            Some(_) | None => None,
        };
        Ok(Beside { node, body })
    }

    /// What is beside the other's child `index`.
    pub(super) fn child(&self, index: u32) -> Option<&Arc<Node>> {
        match self.body.as_deref() {
            Some(Body::Inner(inner)) => inner.child(index),
            Some(Body::Leaf(_)) => None,
            None => self.node.filter(|_| index == 0),
        }
    }

    /// The bits of the children beside the other's.
    pub(super) fn bitmap(&self) -> u64 {
        match self.body.as_deref() {
            Some(Body::Inner(inner)) => inner.bitmap,
            Some(Body::Leaf(_)) => 0,
            None => u64::from(self.node.is_some()),
        }
    }

    /// The leaf, where the node is one of the height looked for.
    pub(super) fn leaf(&self) -> Option<&Leaf> {
        match self.body.as_deref()? {
            Body::Leaf(leaf) => Some(leaf),
            Body::Inner(_) => unreachable!("height 0 is a leaf"),
        }
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
