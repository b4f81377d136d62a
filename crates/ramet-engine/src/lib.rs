//! Maps, objects, names and lineage: everything between a block device call and the log.
//!
//! Owns what a volume means. Calls the log; called by front ends (through `BlockDevice` and
//! `Exports`) and by the binding.
//! Invariants: log order is the order in which writes become visible; a map is changed inside the
//! gate only.

mod changes;
mod checkpoint;
mod command;
mod device;
mod engine;
mod error;
mod exports;
mod extents;
mod failure;
mod figures;
mod hashes;
mod head;
mod ids;
mod kept_root;
mod limit;
pub mod lineage;
mod locks;
mod loss;
pub mod map;
mod nodes;
mod object;
mod receive;
mod reclaim;
mod record;
mod reserve;
mod reuse;
mod root;
mod scrub;
mod space;
mod stats;
mod trash;
mod unfinished;
mod unreadable;
mod verbs;
mod volume;

pub use device::{BlockDevice, Changes, Export, Exports, ExtentSink};
pub use engine::{Engine, Settings};
pub use error::{EngineError, Kind};
pub use exports::PoolExports;
pub use extents::ChangedRun;
pub use figures::{Scatter, Sharer};
pub use kept_root::HashedReader;
pub use locks::{LOCK_NS_MAX, LockClock, LockInfo, LockMode};
pub use loss::{LossReport, LostCommand, LostObject};
pub use object::{ObjectFields, ObjectInfo, ObjectKind, State};
pub use ramet_log::{Bell, Lent};
pub use receive::Incoming;
pub use reclaim::{ObjectSpace, Reclaimed};
pub use record::{Item, OBJECTS_MAX, Record, Verb};
pub use root::{ContentHash, RootHasher, hash_stored};
pub use scrub::{Damage, DamageHolder, Scrub};
pub use stats::{Fullness, Stats};
pub use trash::Trashed;
pub use verbs::{SECTOR_BYTES, SIZE_BYTES_MAX};
