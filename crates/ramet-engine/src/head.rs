//! Heads: the map and the parent of every object, side by side in memory, so that a group snapshot
//! reads and writes one array.
//!
//! Invariants: a head's map and parent are changed inside the gate only; readers take the map's
//! lock, never the gate.

use crate::map::Map;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use ramet_log::{GateGuard, Position};
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const HEADS_PER_CHUNK: usize = 1024;

/// Proof that the gate is closed, or that nobody else has the pool yet.
#[derive(Clone, Copy)]
pub(crate) struct InGate<'a>(PhantomData<&'a ()>);

impl<'a> InGate<'a> {
    pub(crate) fn closed(_gate: &'a GateGuard<'_>) -> Self {
        InGate(PhantomData)
    }

    /// While the log is replayed, by one thread, before the pool is handed to anybody.
    pub(crate) fn replaying() -> Self {
        InGate(PhantomData)
    }
}

/// What a volume has to know of its place's parent to let go of a block.
#[derive(Clone, Default)]
pub(crate) struct Parent {
    /// The parent's position: what was born earlier may be shared.
    pub(crate) position: Position,
    /// The parent's place; 0 where there is no parent.
    pub(crate) place: u64,
    /// Whether the parent's place is living. Shared by all its children.
    pub(crate) living: Option<Arc<AtomicBool>>,
}

impl Parent {
    pub(crate) fn is_living(&self) -> bool {
        self.living.as_ref().is_some_and(|living| living.load(Ordering::Acquire))
    }
}

#[derive(Default)]
struct Head {
    map: RwLock<Map>,
    parent: UnsafeCell<Parent>,
}

struct Chunk {
    heads: Box<[Head]>,
}

// SAFETY: `parent` is reached only through `HeadRef::parent` and `set_parent`, which ask for the
// closed gate: one thread at a time.
unsafe impl Sync for Chunk {}

/// All heads of a pool.
#[derive(Default)]
pub(crate) struct Heads {
    free: Mutex<Vec<HeadRef>>,
}

/// One object's head. Clones are the same head.
#[derive(Clone)]
pub(crate) struct HeadRef {
    chunk: Arc<Chunk>,
    index: usize,
}

impl Heads {
    /// `count` heads without a map and a parent, neighbors in memory where possible.
    pub(crate) fn take(&self, count: usize) -> Vec<HeadRef> {
        let mut free = self.free.lock();
        while free.len() < count {
            let heads = std::iter::repeat_with(Head::default).take(HEADS_PER_CHUNK).collect();
            let chunk = Arc::new(Chunk { heads });
            free.extend(
                (0..HEADS_PER_CHUNK).rev().map(|index| HeadRef { chunk: chunk.clone(), index }),
            );
        }
        let from = free.len() - count;
        let mut taken = free.split_off(from);
        taken.reverse();
        taken
    }

    /// Take back the head of an object that is gone.
    pub(crate) fn put_back(&self, head: HeadRef) {
        self.free.lock().push(head);
    }
}

impl HeadRef {
    fn head(&self) -> &Head {
        &self.chunk.heads[self.index]
    }

    /// The map, to look something up: short.
    pub(crate) fn map(&self) -> RwLockReadGuard<'_, Map> {
        self.head().map.read()
    }

    /// The map, to change it.
    pub(crate) fn map_mut(&self, _gate: InGate<'_>) -> RwLockWriteGuard<'_, Map> {
        self.head().map.write()
    }

    /// The map as of now: one reference is counted up, no lock is taken.
    pub(crate) fn share_map(&self, _gate: InGate<'_>) -> Map {
        // SAFETY: only `map_mut` changes the map, and that needs the gate, which the caller holds;
        // readers only read.
        unsafe { (*self.head().map.data_ptr()).clone() }
    }

    /// Look at the parent.
    pub(crate) fn with_parent<T>(&self, _gate: InGate<'_>, look: impl FnOnce(&Parent) -> T) -> T {
        // SAFETY: the gate is held, so this thread is the only one here; `look` gets no token to
        // change the parent with.
        look(unsafe { &*self.head().parent.get() })
    }

    /// Put another parent in; result: the one before.
    pub(crate) fn replace_parent(&self, _gate: InGate<'_>, parent: Parent) -> Parent {
        // SAFETY: as above, and the reference ends within this call.
        unsafe { std::mem::replace(&mut *self.head().parent.get(), parent) }
    }
}
