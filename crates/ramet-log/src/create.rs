//! A new pool: directories, superblock, and last the descriptor, whose presence says that the pool
//! is whole.

use crate::clock::LockClock;
use crate::error::{LogError, Result};
use crate::format::descriptor::Descriptor;
use crate::format::superblock::{ClockReading, Commit};
use crate::log::{Log, random_u64, random_uuid};
use crate::types::{BLOCK_BYTES_U64, SLOTS_MAX};
use ramet_store::{LockMode, Store};

/// Segments of this size unless asked otherwise: 64 MiB.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;
/// The smallest segments: 1 MiB.
pub const SEGMENT_BYTES_MIN: u64 = 1 << 20;
/// The largest segments: 256 MiB.
pub const SEGMENT_BYTES_MAX: u64 = SLOTS_MAX as u64 * BLOCK_BYTES_U64;
/// Where the files of a pool lie, beside its root.
pub const DIRECTORIES: [&str; 4] = ["segments", "nodes", "tables", "spare"];
/// Files that a creation cut short may have left.
const UNFINISHED: [&str; 3] = ["lock", "superblock", "pool.new"];

impl Log {
    /// Make an empty pool in `store`; open it with `Log::open`.
    ///
    /// # Errors
    /// `NotEmpty` where files of somebody else (or a pool) are there; `TooLarge` for a segment size
    /// out of range; `Store`.
    ///
    /// # Durability
    /// Durable on return. A crash before leaves something that `create` takes up again.
    pub fn create(
        store: &dyn Store,
        segment_bytes: u64,
        leaf_blocks: u32,
        created_ns: u64,
    ) -> Result<()> {
        let in_range = (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes);
        if !in_range || !segment_bytes.is_multiple_of(BLOCK_BYTES_U64) {
            return Err(LogError::TooLarge {
                what: "segment size in bytes (1 MiB to 256 MiB, in 4 KiB)",
                size: segment_bytes,
                limit: SEGMENT_BYTES_MAX,
            });
        }
        store.create_directory("")?;
        let foreign = store.list("")?.into_iter().find(|name| !UNFINISHED.contains(&name.as_str()));
        if let Some(example) = foreign {
            return Err(LogError::NotEmpty { path: store.describe(), example });
        }
        let _lock = store.lock(LockMode::Exclusive)?;
        for directory in DIRECTORIES {
            store.create_directory(directory)?;
        }
        let descriptor = Descriptor {
            pool: random_uuid(),
            seed: random_u64(),
            segment_bytes,
            leaf_blocks,
            created_ns,
            features: [0; 3],
        };
        let now = store.moment();
        let commit = Commit {
            number: 1,
            log: random_uuid(),
            incarnation: random_uuid(),
            lock_clock: LockClock::new(ClockReading::default(), now).reading(now),
            ..Commit::default()
        };
        crate::superblock::create(store, &commit, descriptor.seed)?;
        if store.exists("pool.new")? {
            store.remove("pool.new")?;
        }
        let file = store.create("pool.new")?;
        file.write_at(&descriptor.encode(), 0)?;
        file.sync()?;
        store.sync_directory("")?;
        store.rename("pool.new", "pool")?;
        store.sync_directory("")?;
        Ok(())
    }
}
