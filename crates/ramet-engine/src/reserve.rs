//! Room that is kept for the day when the disk is full: for deletes, for releasing locks, and for
//! giving back what is dead.
//!
//! Called by commands, writers and checkpoints. Invariant: whoever only wants to store something
//! gets no room while the reserve is not whole; it is a hint to the file system, and nothing reads
//! it. See docs/internals/reclaim.md, "A full pool".

use crate::EngineError;
use crate::engine::Engine;
use parking_lot::Mutex;
use ramet_log::LogError;
use ramet_store::{Store, StoreError};
use std::sync::atomic::{AtomicBool, Ordering};

const PATH: &str = "spare/reserve";
const BYTES_MIN: u64 = 1 << 20;
const BYTES_MAX: u64 = 8 << 20;
/// Of a segment's bytes, as large as this part of it.
const SEGMENT_PART: u64 = 8;

/// Where a command's record may find room.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// Not before the reserve is whole.
    Usual,
    /// In the reserve too.
    Reserve,
}

/// See the head of this file.
pub(crate) struct Reserve {
    bytes: u64,
    is_whole: AtomicBool,
    /// Held while the file is made or removed.
    changing: Mutex<()>,
}

impl Reserve {
    pub(crate) fn new(segment_bytes: u64) -> Self {
        let bytes = (segment_bytes / SEGMENT_PART).clamp(BYTES_MIN, BYTES_MAX);
        Reserve { bytes, is_whole: AtomicBool::new(false), changing: Mutex::new(()) }
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole.load(Ordering::Acquire)
    }

    fn allocate(&self, store: &dyn Store) -> Result<(), StoreError> {
        let file = match store.open(PATH, true) {
            Err(StoreError::NotFound { .. }) => store.create(PATH)?,
            file => file?,
        };
        file.allocate(0, self.bytes)
    }
}

impl Engine {
    /// Make the reserve whole, where it is not.
    ///
    /// # Errors
    /// `Full` where there is no room for it.
    pub(crate) fn fill_reserve(&self) -> Result<(), EngineError> {
        let reserve = &self.reserve;
        if reserve.is_whole() || self.log.check_writable().is_err() {
            return Ok(());
        }
        let _changing = reserve.changing.lock();
        let mut allocated = reserve.allocate(self.log.store());
        if matches!(allocated, Err(StoreError::Full { .. })) && self.release_spares() {
            allocated = reserve.allocate(self.log.store());
        }
        if let Err(error) = allocated {
            // What was allocated of it is better left to others.
            let _ = self.log.store().remove(PATH);
            return Err(LogError::from(error).into());
        }
        reserve.is_whole.store(true, Ordering::Release);
        Ok(())
    }

    /// Give the reserve up to whoever asks for room next. Result: whether there was one.
    pub(crate) fn release_reserve(&self) -> bool {
        let reserve = &self.reserve;
        let _changing = reserve.changing.lock();
        reserve.is_whole.store(false, Ordering::Release);
        // Whether or not it is known to be whole: it may be that of an earlier opening.
        self.log.store().remove(PATH).is_ok()
    }

    /// Do what must be possible on a full disk.
    ///
    /// # Errors
    /// What `work` fails with; `Full` where the reserve was not enough.
    pub(crate) fn with_reserve<T>(
        &self,
        mut work: impl FnMut() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let is_full = |done: &Result<T, EngineError>| {
            done.as_ref().is_err_and(|error| error.kind == crate::Kind::Full)
        };
        let mut done = work();
        // What is kept for speed goes first.
        for release in [Self::release_spares, Self::release_reserve] {
            if is_full(&done) && release(self) {
                done = work();
            }
        }
        done
    }
}
