//! What the log can fail with. Wraps the store's errors; the engine decides what a caller is told.

use crate::types::{Locator, SegmentId};
use ramet_store::StoreError;
use thiserror::Error;

/// A failure of the log.
#[derive(Debug, Error)]
pub enum LogError {
    /// The store failed; nothing was lost by it and the log goes on.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A write or sync failed earlier: what is durable is unknown, so nothing more is written.
    #[error("{reason}")]
    Poisoned {
        /// The first failure.
        reason: String,
    },
    /// The log was closed.
    #[error("the pool is closed")]
    Closed,
    /// The log was opened for reading only.
    #[error("the pool is open for reading only")]
    ReadOnly,
    /// A block's bytes do not match its checksum.
    #[error(
        "{locator} at byte {offset_bytes} of '{file}': \
         stored {stored:#010x}, computed {computed:#010x}"
    )]
    Checksum {
        /// Segment and slot.
        locator: Locator,
        /// Where in the file.
        offset_bytes: u64,
        /// The file's path in the store.
        file: String,
        /// The checksum kept away from the data.
        stored: u32,
        /// The checksum of what was read.
        computed: u32,
    },
    /// A block's segment is not there, or ends before the block.
    #[error("{locator}: {reason}")]
    Lost {
        /// Segment and slot.
        locator: Locator,
        /// What is missing.
        reason: String,
    },
    /// A part of the log that was durable cannot be read: opening would lose data.
    #[error("log damaged in segment {segment} at slot {slot}: {reason}")]
    Damaged {
        /// The segment.
        segment: SegmentId,
        /// The slot of the batch.
        slot: u32,
        /// What is wrong.
        reason: String,
    },
    /// No pool here.
    #[error("'{path}' is not a pool: {reason}")]
    NotAPool {
        /// The directory.
        path: String,
        /// What is missing.
        reason: String,
    },
    /// There is something here already.
    #[error("'{path}' holds files already: '{example}'")]
    NotEmpty {
        /// The directory.
        path: String,
        /// One of the files.
        example: String,
    },
    /// A file that belongs to the pool's foundation does not verify.
    #[error("'{file}' is damaged: {reason}")]
    Foundation {
        /// Name in the store.
        file: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Written by a newer version, or with features that this one does not know.
    #[error("{reason}")]
    Unsupported {
        /// What is not known here.
        reason: String,
    },
    /// A record or a write is larger than the format allows.
    #[error("{what}: {size} is more than {limit}")]
    TooLarge {
        /// What was too large.
        what: &'static str,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, LogError>;
