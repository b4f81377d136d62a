//! The log: segments, batches, group commit, verified reads, recovery.

mod types;

pub use types::*;
