//! Reading nodes from their files: verified bytes or an error that names the node.
//!
//! Invariant: no byte of a node is used before the checksum in its reference matched.

use crate::{EngineError, Kind};
use parking_lot::Mutex;
use ramet_log::format::node::{
    NodeFileHeader, NodeFileKind, UNIT_BYTES, UNITS_MAX, node_crc, place,
};
use ramet_log::format::superblock::NodeReference;
use ramet_log::{BLOCK_BYTES, LogError, SegmentId};
use ramet_store::{File, Store, StoreError};
use std::collections::HashMap;
use std::sync::Arc;

/// Node files kept open.
const OPEN_FILES_MAX: usize = 256;

/// The files that nodes of one kind are in.
pub(crate) struct NodeFiles {
    store: Arc<dyn Store>,
    seed: u64,
    kind: NodeFileKind,
    open: Mutex<HashMap<SegmentId, Arc<dyn File>>>,
}

impl NodeFiles {
    pub(crate) fn new(store: Arc<dyn Store>, seed: u64, kind: NodeFileKind) -> Self {
        NodeFiles { store, seed, kind, open: Mutex::new(HashMap::new()) }
    }

    /// The verified bytes of a node.
    ///
    /// # Errors
    /// `Corrupt` where it is damaged or its file is missing; `Unavailable` where the medium fails.
    pub(crate) fn read(&self, reference: &NodeReference) -> Result<Vec<u8>, EngineError> {
        let length = reference.stored_bytes as usize;
        let Some((id, unit)) = place(reference.address) else {
            return Err(self.damaged(reference, "it has no such address"));
        };
        if length as u64 > u64::from(UNITS_MAX) * UNIT_BYTES {
            return Err(self.damaged(reference, "it cannot be so long"));
        }
        let mut bytes = vec![0; length];
        let read =
            self.file(id).and_then(|file| file.read_at(&mut bytes, u64::from(unit) * UNIT_BYTES));
        match read {
            Ok(()) => {}
            Err(StoreError::NotFound { .. }) => {
                return Err(self.damaged(reference, "its file is missing"));
            }
            Err(StoreError::ShortRead { .. }) => {
                return Err(self.damaged(reference, "its file ends before it"));
            }
            Err(other) => return Err(LogError::from(other).into()),
        }
        let computed = node_crc(self.seed, reference.address, &bytes);
        if computed != reference.checksum {
            let reason = format!("stored {:#010x}, computed {computed:#010x}", reference.checksum);
            return Err(self.damaged(reference, &reason));
        }
        Ok(bytes)
    }

    /// The nonce of a file; `None` where it is missing or its header does not verify.
    pub(crate) fn nonce(&self, id: SegmentId) -> Option<u64> {
        let mut page = vec![0; BLOCK_BYTES];
        self.file(id).ok()?.read_at(&mut page, 0).ok()?;
        NodeFileHeader::nonce_of(&page, self.kind, self.seed, id)
    }

    /// Have the files read ahead, of which much will be needed.
    pub(crate) fn read_ahead(&self, files: impl Iterator<Item = SegmentId>) {
        for id in files {
            // What is missing or damaged is found by whoever reads it.
            if let Ok(file) = self.store.open(&self.kind.path(id), false) {
                file.will_be_read();
            }
        }
    }

    fn file(&self, id: SegmentId) -> Result<Arc<dyn File>, StoreError> {
        if let Some(file) = self.open.lock().get(&id) {
            return Ok(file.clone());
        }
        let file = self.store.open(&self.kind.path(id), false)?;
        let mut open = self.open.lock();
        if open.len() >= OPEN_FILES_MAX {
            open.clear();
        }
        open.insert(id, file.clone());
        Ok(file)
    }

    /// Have a file open no more, which is to be removed.
    pub(crate) fn close(&self, id: SegmentId) {
        self.open.lock().remove(&id);
    }

    pub(crate) fn damaged(&self, reference: &NodeReference, reason: &str) -> EngineError {
        let at = place(reference.address);
        let (file, unit) =
            at.map_or(("no file".into(), 0), |(id, unit)| (self.kind.path(id), unit));
        let offset_bytes = u64::from(unit) * UNIT_BYTES;
        let text = format!(
            "node at byte {offset_bytes} of '{file}': {reason}; \
             hint: what it maps cannot be read, the rest can; `ramet check` names it"
        );
        EngineError::new(Kind::Corrupt, "node_damaged", text)
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }
}
