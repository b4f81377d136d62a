//! The block device contract that front ends (NBD today) serve.
//!
//! Owns the two traits only. Invariant: every call is complete when it returns; a front end may
//! call from many threads at once.

use crate::{EngineError, Lent};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Is told the extents of a range one after the other, without gaps: length in bytes, and whether
/// the extent is marked. Two that touch are never marked alike. `Break` ends the walk.
pub type ExtentSink<'a> = dyn FnMut(u64, bool) -> ControlFlow<()> + 'a;

/// A volume or a snapshot as a block device. Offsets and lengths are bytes and need no alignment.
///
/// A read sees every write completed before it; overlapping writes of two threads land in either
/// order, each 4 KiB block whole. After `flush` returns, everything completed before the call, on
/// any handle of the same volume, is durable.
pub trait BlockDevice: Send + Sync {
    /// Size in bytes at the time of the call.
    fn size_bytes(&self) -> u64;

    /// True for snapshots; writes, trims and zeroes then fail with kind `Forbidden`.
    fn read_only(&self) -> bool;

    /// Fill `buffer` from `offset_bytes`; never-written blocks are zeros.
    ///
    /// # Errors
    /// `Invalid` past the end; `Corrupt` where a checksum fails; `Unavailable` after close.
    fn read(&self, offset_bytes: u64, buffer: &mut [u8]) -> Result<(), EngineError>;

    /// As `read`, for who sends the bytes on at once: what can be lent is not copied. `lent` gets
    /// it, in order, each with its place in `buffer`, where these bytes are missing.
    ///
    /// # Errors
    /// As `read`; `lent` is then as it was.
    fn read_lent(
        &self,
        offset_bytes: u64,
        buffer: &mut [u8],
        _lent: &mut Vec<Lent>,
    ) -> Result<(), EngineError> {
        self.read(offset_bytes, buffer)
    }

    /// Say that a range will be read soon: a hint, and returns before anything was read. The range
    /// need not be inside the object.
    fn will_read(&self, _offset_bytes: u64, _length_bytes: u64) {}

    /// Tell `sink` from `offset_bytes` on what is mapped; what is not is a hole and reads as zeros.
    ///
    /// Reads no data. Ends early where `sink` says so, or where the bound on the work of one call
    /// is met; of a range that is not empty at least one extent is told.
    ///
    /// # Errors
    /// As `read`; what was told before is then of no use.
    fn extents(
        &self,
        offset_bytes: u64,
        length_bytes: u64,
        sink: &mut ExtentSink<'_>,
    ) -> Result<(), EngineError>;

    /// Write `bytes` at `offset_bytes`; durable on return where `fua`.
    ///
    /// # Errors
    /// `Invalid` past the end; `Forbidden` on a snapshot; `Full`; `Unavailable` when poisoned or
    /// closed.
    fn write(&self, offset_bytes: u64, bytes: &[u8], fua: bool) -> Result<(), EngineError>;

    /// Make a range read as zeros and take no space; durable on return where `fua`. Cost follows
    /// the map, not the length.
    ///
    /// # Errors
    /// As `write`.
    fn trim(&self, offset_bytes: u64, length_bytes: u64, fua: bool) -> Result<(), EngineError>;

    /// As `trim`; the range is certain to read as zeros, partial blocks at the edges included.
    ///
    /// # Errors
    /// As `write`.
    fn write_zeroes(
        &self,
        offset_bytes: u64,
        length_bytes: u64,
        fua: bool,
    ) -> Result<(), EngineError>;

    /// Make everything completed before this call durable.
    ///
    /// # Errors
    /// As `flush_up_to`.
    fn flush(&self) -> Result<(), EngineError> {
        self.flush_up_to(self.completed())
    }

    /// A mark of everything completed before this call, for `flush_up_to`.
    fn completed(&self) -> u64;

    /// Make durable what was completed when this mark was taken; what came later is not waited for.
    /// Where a call fails, so does every later one that has as much left to do.
    ///
    /// # Errors
    /// `Unavailable` when the pool is poisoned or closed.
    fn flush_up_to(&self, completed: u64) -> Result<(), EngineError>;

    /// Say that a flush comes soon: a hint, and returns before anything is durable.
    fn will_flush(&self) {}

    /// Whether a flush would find nothing to do: everything completed before this call is durable.
    fn is_durable(&self) -> bool;
}

/// What changed in an object since a snapshot of its family. The snapshot counts as attached until
/// this is dropped.
pub trait Changes: Send + Sync {
    /// Tell `sink` from `offset_bytes` on what changed: was written, zeroed or trimmed.
    ///
    /// Bounded, and of use after success only, as `BlockDevice::extents`.
    ///
    /// # Errors
    /// As `BlockDevice::extents`.
    fn extents(
        &self,
        offset_bytes: u64,
        length_bytes: u64,
        sink: &mut ExtentSink<'_>,
    ) -> Result<(), EngineError>;
}

/// One export as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Current name.
    pub name: String,
    /// Object id, to match connections against objects that are about to go.
    pub object: u64,
}

/// The namespace that a front end serves.
pub trait Exports: Send + Sync {
    /// All exports, sorted by name.
    fn list(&self) -> Vec<Export>;

    /// Open by name or UUID. The object counts as attached until the returned device is dropped.
    ///
    /// # Errors
    /// `NotFound`; `Busy` while the object is being detached by force.
    fn open(&self, name: &str) -> Result<(Export, Arc<dyn BlockDevice>), EngineError>;

    /// The snapshots that `open_changes` takes for an object: those of its family but itself,
    /// sorted by name.
    fn bases(&self, object: u64) -> Vec<Export>;

    /// Open what tells the changes of an object since the snapshot `base`, by name or UUID.
    ///
    /// # Errors
    /// `NotFound` where there is no such object, or no such snapshot in its family.
    fn open_changes(
        &self,
        object: u64,
        base: &str,
    ) -> Result<(Export, Arc<dyn Changes>), EngineError>;
}
