//! The log: segments, batches, the gate, group commit, verified reads, recovery.
//!
//! Owns the bytes of a pool directory and their order. Calls the store only; knows objects by
//! number and records as bytes.
//! Invariants: what `commit` acknowledged survives; `read` gives verified bytes or an error; see
//! docs/internals/format.md.

mod chain;
mod checksum;
mod clock;
mod commit;
mod create;
mod error;
pub mod format;
mod gate;
mod helper;
mod journal;
mod lending;
mod log;
mod loss;
mod pages;
mod portions;
mod recovery;
mod replay;
mod reread;
mod room;
mod segment;
mod spare;
mod staging;
mod superblock;
mod tail;
mod thin;
mod types;

pub use checksum::{crc, crc_blocks};
pub use create::{DIRECTORIES, SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
pub use error::{LogError, Result};
pub use gate::{GateGuard, PreparedRecord, RECORD_BYTES_MAX};
pub use helper::Bell;
pub use lending::Lent;
pub use log::{Counters, Log};
pub use loss::{Accept, Beside, Describe, LOST_DIRECTORY, Loss, LostBatch, UNFINISHED};
pub use portions::Removal;
pub use recovery::{Known, Start, read_descriptor};
pub use replay::{Apply, Replay};
pub use segment::SegmentEntry;
pub use thin::{SlotSet, Thinned};
pub use types::*;
