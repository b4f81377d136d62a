//! Nodes in memory and on disk: loaded when they are looked into, kept under one budget for the
//! pool, one in memory for one on disk.
//!
//! Calls the store for reading; nothing in here waits for the gate. Invariants: an address is in
//! memory once (so that "the same node" is one comparison); only what is stored is taken out of
//! memory; while somebody holds `hold`, nothing is.

pub(crate) mod count;
mod files;
pub(crate) mod tree;
mod writer;

pub(crate) use files::NodeFiles;
pub(crate) use writer::{NodeWriter, WriterState};

use crate::EngineError;
use crate::ids::IdMap;
use crate::map::{Map, Missing, Node, disk};
use parking_lot::Mutex;
use ramet_log::format::superblock::NodeReference;
use ramet_store::locks::{RwLock, RwLockReadGuard};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Nodes that stay whatever the budget says: the paths of a few operations under way.
const RESIDENT_MIN: usize = 16;
/// Nodes taken out in one go, so that nobody waits long for the lock.
const EVICTED_AT_ONCE: usize = 64;
/// Bytes a child that is not loaded takes: the node itself, and its place among the interned.
const STUB_BYTES: u64 = 160;

/// Nodes that may be taken out of memory, oldest first.
#[derive(Default)]
struct Clock {
    entries: VecDeque<(Weak<Node>, u64)>,
    bytes: u64,
}

/// Nodes by address. Weak: who needs a node holds it.
#[derive(Default)]
struct Interned {
    nodes: IdMap<u64, Weak<Node>>,
    purge_at: usize,
}

/// How the cache has worked.
#[derive(Default)]
pub(crate) struct NodeCounters {
    pub(crate) loaded: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) written: AtomicU64,
}

/// All nodes of a pool's maps.
pub(crate) struct Nodes {
    pub(crate) files: NodeFiles,
    budget_bytes: u64,
    interned: Mutex<Interned>,
    clock: Mutex<Clock>,
    /// Bytes of nodes that are nowhere but in memory, about.
    dirty_bytes: AtomicU64,
    evicting: RwLock<()>,
    pub(crate) counters: NodeCounters,
}

impl Nodes {
    pub(crate) fn new(files: NodeFiles, budget_bytes: u64) -> Self {
        Nodes {
            files,
            budget_bytes,
            interned: Mutex::new(Interned::default()),
            clock: Mutex::new(Clock::default()),
            dirty_bytes: AtomicU64::new(0),
            evicting: RwLock::new(()),
            counters: NodeCounters::default(),
        }
    }

    /// While this is held no node leaves memory: what was found ready stays so.
    pub(crate) fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.evicting.read()
    }

    /// The map with this root.
    pub(crate) fn map(&self, root: &NodeReference, height: u8) -> Map {
        Map::from_root(self.stub(root, height))
    }

    fn stub(&self, reference: &NodeReference, height: u8) -> Arc<Node> {
        let mut interned = self.interned.lock();
        if let Some(node) = interned.nodes.get(&reference.address).and_then(Weak::upgrade) {
            return node;
        }
        let node = Arc::new(Node::stub(reference, height));
        interned.insert(reference.address, &node);
        node
    }

    /// The children of a map's inner node, as it is on disk.
    ///
    /// # Errors
    /// As `load`.
    pub(crate) fn children(
        &self,
        reference: &NodeReference,
        height: u8,
    ) -> Result<Vec<NodeReference>, EngineError> {
        let bytes = self.files.read(reference)?;
        let damaged = || self.files.damaged(reference, "its content contradicts its parent");
        disk::children(&bytes, height).ok_or_else(damaged)
    }

    /// Get a node's body into memory.
    ///
    /// # Errors
    /// `Corrupt` where the node is damaged or its file is missing; `Unavailable` where the medium
    /// fails.
    pub(crate) fn load(&self, missing: &Missing) -> Result<(), EngineError> {
        let node = &missing.0;
        if node.is_loaded() {
            return Ok(());
        }
        let reference = node.reference().expect("what is not in memory is stored");
        let bytes = self.files.read(&reference)?;
        let mut stub = |child: &NodeReference, height| self.stub(child, height);
        let body = disk::decode(&bytes, &reference, node.height(), &mut stub)
            .ok_or_else(|| self.files.damaged(&reference, "its content contradicts its parent"))?;
        if node.set_body(body) {
            self.counters.loaded.fetch_add(1, Ordering::Relaxed);
            self.settle(node);
        }
        self.evict();
        Ok(())
    }

    /// Do something with a map, loading what it misses.
    ///
    /// # Errors
    /// As `load`.
    pub(crate) fn with<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, Missing>,
    ) -> Result<T, EngineError> {
        let mut unread: Option<(Missing, EngineError)> = None;
        loop {
            let missing = match attempt() {
                Ok(done) => return Ok(done),
                Err(missing) => missing,
            };
            match unread.take() {
                Some((node, error)) if node.is(&missing) => return Err(error),
                Some(_) | None => {}
            }
            // A node that was replaced after it was looked at may be given back: then another one
            // is missing the next time, or none.
            if let Err(error) = self.load(&missing) {
                unread = Some((missing, error));
            }
        }
    }

    /// A node is stored, its bytes in the file: from here on it may be taken out of memory.
    pub(crate) fn settle(&self, node: &Arc<Node>) {
        let bytes = node.memory_bytes(STUB_BYTES);
        let mut clock = self.clock.lock();
        clock.bytes += bytes;
        clock.entries.push_back((Arc::downgrade(node), bytes));
    }

    /// A node got its address.
    pub(crate) fn intern(&self, address: u64, node: &Arc<Node>) {
        self.interned.lock().insert(address, node);
    }

    /// Take nodes out of memory until the budget holds.
    pub(crate) fn evict(&self) {
        let budget = self.budget_bytes.saturating_sub(self.dirty_bytes());
        let mut freed = Vec::new();
        loop {
            let evicting = self.evicting.write();
            let mut clock = self.clock.lock();
            let mut chances = clock.entries.len();
            while freed.len() < EVICTED_AT_ONCE
                && chances > 0
                && clock.bytes > budget
                && clock.entries.len() > RESIDENT_MIN
            {
                chances -= 1;
                let Some((weak, bytes)) = clock.entries.pop_front() else { break };
                let node = weak.upgrade();
                let keep = node.as_ref().is_some_and(|node| node.take_used());
                let body =
                    if keep { None } else { node.as_ref().and_then(|node| node.take_body()) };
                match (body, node) {
                    (Some(body), _) => {
                        clock.bytes -= bytes;
                        freed.push(body);
                    }
                    // Looked into lately, or just now.
                    (None, Some(node)) if node.is_loaded() => {
                        clock.entries.push_back((weak, bytes))
                    }
                    (None, _) => clock.bytes -= bytes,
                }
            }
            let again = freed.len() == EVICTED_AT_ONCE;
            drop(clock);
            drop(evicting);
            self.counters.evicted.fetch_add(freed.len() as u64, Ordering::Relaxed);
            // Subtrees end here, outside of the locks.
            freed.clear();
            if !again {
                return;
            }
        }
    }

    /// Note memory that is nowhere else.
    pub(crate) fn dirtied(&self, bytes: u64) {
        self.dirty_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So much of it was written.
    pub(crate) fn cleaned(&self, bytes: u64) {
        self.dirty_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn dirty_bytes(&self) -> u64 {
        self.dirty_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// Bytes of nodes that are in memory and on disk.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.clock.lock().bytes
    }
}

impl Interned {
    fn insert(&mut self, address: u64, node: &Arc<Node>) {
        if self.nodes.len() >= self.purge_at {
            self.nodes.retain(|_, node| node.strong_count() > 0);
            self.purge_at = 2 * self.nodes.len() + 1024;
        }
        self.nodes.insert(address, Arc::downgrade(node));
    }
}
