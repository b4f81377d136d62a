//! Writing nodes: appended to the newest file of their kind, each once, children before parents.
//!
//! Invariants: bytes are allocated before they are written; what was appended and not written, for
//! want of space, has no address afterwards; a failed write or sync poisons the log.

use super::Nodes;
use crate::EngineError;
use crate::map::{Map, Missing, Node, disk};
use ramet_log::format::node::{
    FIRST_UNIT, NodeFileHeader, NodeFileKind, UNIT_BYTES, UNITS_MAX, address, node_crc,
};
use ramet_log::format::superblock::NodeReference;
use ramet_log::{BLOCK_BYTES_U64, Log, LogError, Position, SegmentId};
use ramet_store::{File, StoreError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// `UNIT_BYTES` for lengths in memory.
const UNIT: usize = 64;
/// Bytes handed to a file at once.
const BUFFER_BYTES: usize = 1 << 20;

/// A file that is appended to.
struct Target {
    id: SegmentId,
    file: Arc<dyn File>,
    nonce: u64,
    next_unit: u32,
}

/// What a writer remembers from one checkpoint to the next.
pub(crate) struct WriterState {
    kind: NodeFileKind,
    target: Option<Target>,
    /// Files with bytes that no sync has covered, and whether their names need one too.
    unsynced: BTreeMap<SegmentId, (Arc<dyn File>, bool)>,
    /// Files that grew: nonce and units in use.
    grown: BTreeMap<SegmentId, (u64, u32)>,
    /// Bytes appended since the pool was opened.
    pub(crate) written_bytes: u64,
}

/// Appends nodes during one checkpoint.
pub(crate) struct NodeWriter<'a> {
    log: &'a Log,
    state: &'a mut WriterState,
    /// Bytes for the target from `buffer_unit` on.
    buffer: Vec<u8>,
    buffer_unit: u32,
    /// Nodes in the buffer.
    pending: Vec<Arc<Node>>,
}

impl WriterState {
    pub(crate) fn new(kind: NodeFileKind) -> Self {
        WriterState {
            kind,
            target: None,
            unsynced: BTreeMap::new(),
            grown: BTreeMap::new(),
            written_bytes: 0,
        }
    }

    /// Files that grew since this was last asked: id, nonce, units in use.
    pub(crate) fn take_grown(&mut self) -> BTreeMap<SegmentId, (u64, u32)> {
        std::mem::take(&mut self.grown)
    }

    /// Files that grew since the last checkpoint.
    pub(crate) fn grown(&self) -> &BTreeMap<SegmentId, (u64, u32)> {
        &self.grown
    }

    /// They are in the file table now.
    pub(crate) fn forget_grown(&mut self) {
        self.grown.clear();
    }

    /// Append to a fresh file from here on.
    pub(crate) fn leave_file(&mut self) {
        self.target = None;
    }

    /// The file that is appended to.
    pub(crate) fn newest(&self) -> Option<SegmentId> {
        self.target.as_ref().map(|target| target.id)
    }

    /// Make everything written durable, names too.
    ///
    /// # Errors
    /// `Unavailable`: the log is poisoned then.
    pub(crate) fn sync(&mut self, log: &Log) -> Result<(), EngineError> {
        let names = self.unsynced.values().any(|(_, new)| *new);
        let synced = self.unsynced.values().try_for_each(|(file, _)| file.sync()).and_then(|()| {
            if names { log.store().sync_directory(self.kind.directory()) } else { Ok(()) }
        });
        if let Err(error) = synced {
            return Err(log.poison(&error.to_string()).into());
        }
        self.unsynced.clear();
        Ok(())
    }
}

impl<'a> NodeWriter<'a> {
    pub(crate) fn new(log: &'a Log, state: &'a mut WriterState) -> Self {
        NodeWriter { log, state, buffer: Vec::new(), buffer_unit: 0, pending: Vec::new() }
    }

    /// Write every node of a map that is not stored yet. Result: the root and its height.
    ///
    /// # Errors
    /// `Full`; `Unavailable` where a write fails.
    pub(crate) fn write_map(
        &mut self,
        nodes: &Nodes,
        map: &Map,
    ) -> Result<Option<(NodeReference, u8)>, EngineError> {
        let Some(root) = map.root() else { return Ok(None) };
        let reference = self.write_node(nodes, root, 0)?;
        Ok(Some((reference, root.height())))
    }

    fn write_node(
        &mut self,
        nodes: &Nodes,
        node: &Arc<Node>,
        first: u64,
    ) -> Result<NodeReference, EngineError> {
        if let Some(reference) = node.reference() {
            return Ok(reference);
        }
        let in_memory =
            |_: Missing| -> EngineError { unreachable!("what is not stored is in memory") };
        for (child_first, child) in node.children_to_store(first).map_err(in_memory)? {
            self.write_node(nodes, &child, child_first)?;
        }
        let bytes = disk::encode(node, first).map_err(in_memory)?;
        let (address, checksum) = self.append(nodes, &bytes)?;
        let length = u32::try_from(bytes.len()).expect("a node is small");
        nodes.intern(address, node);
        node.set_stored(address, length, checksum);
        self.pending.push(node.clone());
        nodes.counters.written.fetch_add(1, Ordering::Relaxed);
        Ok(node.reference().expect("stored just now"))
    }

    /// Append a tree's node; result: its reference.
    ///
    /// # Errors
    /// As `write_map`.
    pub(crate) fn write_tree_node(
        &mut self,
        nodes: &Nodes,
        bytes: &[u8],
        entries: u64,
    ) -> Result<NodeReference, EngineError> {
        let (address, checksum) = self.append(nodes, bytes)?;
        Ok(NodeReference {
            address,
            second_address: 0,
            stored_bytes: u32::try_from(bytes.len()).expect("a node is small"),
            checksum,
            newest: Position::ZERO,
            mapped: entries,
        })
    }

    fn append(&mut self, nodes: &Nodes, bytes: &[u8]) -> Result<(u64, u32), EngineError> {
        let units = u32::try_from(bytes.len().div_ceil(UNIT)).expect("small");
        assert!(units <= UNITS_MAX - FIRST_UNIT, "a node is smaller than a file");
        let fits = |target: &Target| target.next_unit + units <= UNITS_MAX;
        if !self.state.target.as_ref().is_some_and(fits) {
            self.flush(nodes)?;
            self.state.target = Some(self.open_file()?);
        }
        let target = self.state.target.as_mut().expect("opened above");
        if self.buffer.is_empty() {
            self.buffer_unit = target.next_unit;
        }
        let address = address(target.id, target.next_unit);
        target.next_unit += units;
        self.buffer.extend(bytes);
        self.buffer.resize(self.buffer.len().next_multiple_of(UNIT), 0);
        if self.buffer.len() >= BUFFER_BYTES {
            // The node itself is pending only when its caller knows the address.
            self.write_buffer().inspect_err(|_| self.forget())?;
        }
        Ok((address, node_crc(nodes.files.seed(), address, bytes)))
    }

    /// Write out what is buffered.
    ///
    /// # Errors
    /// `Full`: nodes that were not written have no address any more; `Unavailable`.
    pub(crate) fn flush(&mut self, nodes: &Nodes) -> Result<(), EngineError> {
        self.write_buffer().inspect_err(|_| self.forget())?;
        for node in std::mem::take(&mut self.pending) {
            nodes.settle(&node);
        }
        Ok(())
    }

    fn write_buffer(&mut self) -> Result<(), EngineError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let target = self.state.target.as_ref().expect("the buffer is for a file");
        let (offset, length) = (u64::from(self.buffer_unit) * UNIT_BYTES, self.buffer.len() as u64);
        match target.file.allocate(offset, length) {
            Ok(()) => {}
            Err(full @ StoreError::Full { .. }) => return Err(LogError::from(full).into()),
            Err(error) => return Err(self.log.poison(&error.to_string()).into()),
        }
        if let Err(error) = target.file.write_at(&self.buffer, offset) {
            return Err(self.log.poison(&error.to_string()).into());
        }
        self.state.unsynced.entry(target.id).or_insert((target.file.clone(), false));
        self.state.grown.insert(target.id, (target.nonce, target.next_unit));
        self.state.written_bytes += length;
        self.buffer.clear();
        Ok(())
    }

    /// What was appended and not written is not stored.
    fn forget(&mut self) {
        for node in self.pending.drain(..) {
            node.set_stored(0, 0, 0);
        }
        self.buffer.clear();
        // Its units are skipped: their bytes may be anything.
        self.state.target = None;
    }

    fn open_file(&mut self) -> Result<Target, EngineError> {
        let kind = self.state.kind;
        let (id, file) = self.log.create_file(&|id| kind.path(id))?;
        let nonce = self.log.random();
        let (log, incarnation) = self.log.identity();
        let header = NodeFileHeader {
            kind,
            seed: self.log.descriptor().seed,
            log,
            incarnation,
            nonce,
            file: id,
        };
        let written =
            file.allocate(0, BLOCK_BYTES_U64).and_then(|()| file.write_at(&header.encode(), 0));
        match written {
            Ok(()) => {}
            Err(full @ StoreError::Full { .. }) => {
                // Nothing refers to the file; its id stays used.
                let _ = self.log.store().remove(&kind.path(id));
                return Err(LogError::from(full).into());
            }
            Err(error) => return Err(self.log.poison(&error.to_string()).into()),
        }
        self.state.unsynced.insert(id, (file.clone(), true));
        Ok(Target { id, file, nonce, next_unit: FIRST_UNIT })
    }
}
