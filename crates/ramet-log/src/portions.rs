//! Room is given back to the file system in portions.
//!
//! A file system with a journal frees room for good when its journal is written, all of it in one
//! go, and on a kernel that does not preempt itself nobody else gets that processor meanwhile. So
//! the journal is made to be written after each portion, and a file with holes is emptied before it
//! ends. Invariants: the name of a file is durably gone before its bytes are; whoever still sends
//! them keeps them. See docs/internals/latency.md, "Portions".

use crate::error::Result;
use crate::log::Log;
use crate::types::BLOCK_BYTES_U64;
use ramet_store::{File, StoreError};
use std::sync::atomic::Ordering;

/// Runs of blocks that the journal frees at once,
const FREED_AT_ONCE: u64 = 512;
/// and bytes of a file that is emptied by one call.
const EMPTIED_AT_ONCE: u64 = 512 << 10;

/// A file to remove.
pub struct Removal {
    /// Its path in the store.
    pub path: String,
    /// Whether somebody may be sending its bytes.
    pub is_lent: bool,
}

impl Log {
    /// Called after room of `file` was given back, in at most so many runs of blocks: have the file
    /// system's journal written where enough came together, in whatever files.
    ///
    /// # Errors
    /// `Store` where the sync fails.
    pub fn note_freed(&self, file: &dyn File, runs_count: u64) -> Result<()> {
        let before = self.freed_runs.fetch_add(runs_count, Ordering::Relaxed);
        if before + runs_count >= FREED_AT_ONCE {
            self.freed_runs.store(0, Ordering::Relaxed);
            file.sync()?;
        }
        Ok(())
    }

    /// Remove files of a directory in which nobody finds anything any more; one that is not there
    /// is none. Result: how many bytes came back.
    ///
    /// # Errors
    /// `Store` where a file cannot be removed, or its directory not be synced: it is left to the
    /// next opening.
    pub fn remove_files(&self, directory: &str, removals: Vec<Removal>) -> Result<u64> {
        let (mut bytes, mut holey) = (0, Vec::new());
        for removal in removals {
            let file = match self.store().open(&removal.path, true) {
                Err(StoreError::NotFound { .. }) => continue,
                file => file?,
            };
            let (allocated, length) = (file.allocated_bytes()?, file.length_bytes()?);
            self.store().remove(&removal.path)?;
            bytes += allocated;
            // One without holes ends in a moment.
            if allocated < length && !removal.is_lent {
                holey.push((file, length));
            }
        }
        if !holey.is_empty() {
            // Or a name might come back without its bytes.
            self.store().sync_directory(directory)?;
        }
        for (file, length) in holey {
            // On a full medium even that may fail. The system frees what is left with the file.
            let _ = self.empty(&*file, length);
        }
        Ok(bytes)
    }

    fn empty(&self, file: &dyn File, length_bytes: u64) -> Result<()> {
        for index in 0..length_bytes.div_ceil(EMPTIED_AT_ONCE) {
            self.rest();
            let at = index * EMPTIED_AT_ONCE;
            let piece = EMPTIED_AT_ONCE.min(length_bytes - at);
            if !file.punch(at, piece)? {
                break;
            }
            // At worst every second block was there.
            self.note_freed(file, piece.div_ceil(2 * BLOCK_BYTES_U64))?;
        }
        Ok(())
    }
}
