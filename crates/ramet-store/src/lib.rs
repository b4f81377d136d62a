//! Files of a pool: create, read, write, allocate, punch, sync, list, rename, remove, lock.
//!
//! Owns every call that touches a medium; nothing above this crate opens a file. Calls nothing of
//! Ramet.
//! Invariant: a `File` never hides a failed write or sync, and a short read is an error, never
//! zeros.
//!
//! Paths are relative to the store's root, with `/` between names (`segments/000000001000.seg`).

mod error;
mod fault;
mod file;
mod heap;
mod limit;
pub mod locks;
mod mapping;
mod memory;
mod moment;
mod rest;

pub use error::StoreError;
pub use fault::{Fault, FaultStore, Kept, Operation, When};
pub use file::FileStore;
pub use heap::Heap;
pub use limit::LimitStore;
pub use mapping::Mapping;
pub use memory::MemoryStore;
pub use moment::Moment;
pub use rest::rest_where_due;

use std::sync::Arc;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, StoreError>;

/// How a pool's lock is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Many readers, no writer.
    Shared,
    /// One writer, nobody else.
    Exclusive,
}

/// Held while a pool is open; dropping it gives the lock back.
pub trait Lock: Send + Sync {}

/// An open file. All calls may be made from several threads at once.
pub trait File: Send + Sync {
    /// Fill `buffer` with the bytes at `offset_bytes`.
    ///
    /// # Errors
    /// `ShortRead` where the file ends first; `Io` where the medium fails.
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> Result<()>;

    /// The first bytes of the file as memory, those that are there yet and those that will be;
    /// `None` where the medium has no such thing.
    fn map(&self, _length_bytes: u64) -> Option<Mapping> {
        None
    }

    /// Write all of `bytes` at `offset_bytes`, growing the file where needed.
    ///
    /// # Errors
    /// `Full` where there is no room, `Io` otherwise; either way any part may have been written.
    ///
    /// # Durability
    /// None before `sync`.
    fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<()>;

    /// Make sure that `offset_bytes .. offset_bytes + length_bytes` can be written without running
    /// out of space. The file grows to at least that length; what was not written reads as zeros.
    ///
    /// # Errors
    /// `Full` where there is no room (nothing that was written before is lost).
    fn allocate(&self, offset_bytes: u64, length_bytes: u64) -> Result<()>;

    /// Give the room of whole pages in a range back to the medium: they read as zeros from then on,
    /// and the file keeps its length. Result: whether the medium can; where it cannot, nothing
    /// happens.
    ///
    /// # Errors
    /// `Io`.
    ///
    /// # Durability
    /// None before `sync`: until then the old bytes may come back.
    fn punch(&self, offset_bytes: u64, length_bytes: u64) -> Result<bool>;

    /// Make the file's bytes and length durable (not its name: see `Store::sync_directory`).
    ///
    /// # Errors
    /// `Io`. After an error nothing may be assumed about what is durable, and it must not be
    /// retried.
    fn sync(&self) -> Result<()>;

    /// Ask the medium to begin writing a range, without waiting and without a promise.
    fn start_writeback(&self, offset_bytes: u64, length_bytes: u64);

    /// Say that all of the file will be read soon: a hint, which a medium may use to read ahead.
    fn will_be_read(&self) {}

    /// Say that a range will be read soon: a hint; returns before anything was read.
    fn read_ahead(&self, _offset_bytes: u64, _length_bytes: u64) {}

    /// Cut the file off, or extend it with zeros, at `length_bytes`.
    ///
    /// # Errors
    /// `Io` or `Full`.
    fn set_length(&self, length_bytes: u64) -> Result<()>;

    /// The file's length in bytes.
    ///
    /// # Errors
    /// `Io`.
    fn length_bytes(&self) -> Result<u64>;

    /// Bytes that the file takes of the medium: less than its length where it has holes, more where
    /// room is allocated behind its end.
    ///
    /// # Errors
    /// `Io`.
    fn allocated_bytes(&self) -> Result<u64>;
}

/// A pool's directory.
pub trait Store: Send + Sync {
    /// What a person would call this place (a path), for messages.
    fn describe(&self) -> String;

    /// Create a file that must not exist, for reading and writing.
    ///
    /// # Errors
    /// `Exists`, `Full`, `ReadOnly`, `Io`.
    ///
    /// # Durability
    /// The name is durable after `sync_directory` of its directory.
    fn create(&self, path: &str) -> Result<Arc<dyn File>>;

    /// Open an existing file; for reading only where `writable` is false.
    ///
    /// # Errors
    /// `NotFound`, `ReadOnly`, `Io`.
    fn open(&self, path: &str, writable: bool) -> Result<Arc<dyn File>>;

    /// Whether a file or directory of this name exists.
    ///
    /// # Errors
    /// `Io`.
    fn exists(&self, path: &str) -> Result<bool>;

    /// Names (without the directory) of the files in `directory`, sorted. Sub-directories are left
    /// out.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    fn list(&self, directory: &str) -> Result<Vec<String>>;

    /// Create a directory, and those above it, where missing. `""` is the root itself.
    ///
    /// # Errors
    /// `Full`, `ReadOnly`, `Io`.
    ///
    /// # Durability
    /// As `create`; the root's own name is durable on return.
    fn create_directory(&self, directory: &str) -> Result<()>;

    /// Rename a file over whatever has the new name, atomically.
    ///
    /// # Errors
    /// `NotFound`, `Full`, `ReadOnly`, `Io`.
    fn rename(&self, from: &str, to: &str) -> Result<()>;

    /// Give two files each other's name, at once. Result: whether the medium can; where it cannot,
    /// nothing happens.
    ///
    /// # Errors
    /// `NotFound`, `Full`, `ReadOnly`, `Io`.
    ///
    /// # Durability
    /// As a rename from `one` to `other`: after `sync_directory` of the directory of `other` both
    /// names are durable.
    fn exchange(&self, one: &str, other: &str) -> Result<bool>;

    /// Remove a file. Those that have it open may go on reading it.
    ///
    /// # Errors
    /// `NotFound`, `ReadOnly`, `Io`.
    fn remove(&self, path: &str) -> Result<()>;

    /// Make the names in `directory` durable. `""` is the root itself.
    ///
    /// # Errors
    /// `Io`.
    fn sync_directory(&self, directory: &str) -> Result<()>;

    /// Take the lock of this store, at once or not at all. The lock is a file `lock` in the root.
    ///
    /// # Errors
    /// `Locked` where somebody else (of this process, too) holds it in a way that excludes `mode`.
    fn lock(&self, mode: LockMode) -> Result<Box<dyn Lock>>;

    /// Bytes that ordinary writers can still allocate, and bytes in all, of the place the store is
    /// in.
    ///
    /// # Errors
    /// `Io`.
    fn space_bytes(&self) -> Result<(u64, u64)>;

    /// Now, by the clocks of the machine that the store is on.
    fn moment(&self) -> Moment;
}
