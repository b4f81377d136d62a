//! The limit of a pool: how many bytes it may take, whatever its file system has.
//!
//! Called by opening and by the binding. Invariant: a limit is never below what is taken when it is
//! set; from then on the store holds to it. See docs/internals/reclaim.md, "A limit".

use crate::engine::Engine;
use crate::{EngineError, Kind};
use ramet_log::format::hashes::HASHES_DIRECTORY;
use ramet_log::format::superblock::Commit;
use ramet_log::{DIRECTORIES, LogError};
use ramet_store::LimitStore;

/// Count what a pool takes, where that was not done yet, and hold it to its limit.
pub(crate) fn begin(limited: &LimitStore, newest: &Commit, holds: bool) -> Result<(), EngineError> {
    if limited.taken_bytes() == 0 {
        limited.count(&[""]).map_err(LogError::from)?;
        limited.count(&DIRECTORIES).map_err(LogError::from)?;
        limited.count(&[HASHES_DIRECTORY]).map_err(LogError::from)?;
    }
    if holds {
        limited.set_limit((newest.limit_bytes != 0).then_some(newest.limit_bytes));
    }
    Ok(())
}

impl Engine {
    /// Have the pool take no more than so many bytes; `None`: as many as there are.
    ///
    /// # Errors
    /// `Invalid` where it takes more already; `Forbidden` where it is open for reading;
    /// `Unavailable` when poisoned or closed.
    ///
    /// # Durability
    /// Durable on return.
    pub fn set_limit(&self, limit_bytes: Option<u64>) -> Result<(), EngineError> {
        let _commands = self.commands.lock();
        self.log.check_writable()?;
        self.release_spares();
        let before = self.limited.try_set_limit(limit_bytes).map_err(|taken_bytes| {
            let limit_bytes = limit_bytes.unwrap_or_default();
            let text = format!(
                "the pool takes {taken_bytes} bytes, more than {limit_bytes}; hint: delete what \
                 is not needed and `ramet reclaim --all` first, or give a higher limit"
            );
            EngineError::new(Kind::Invalid, "limit_below_use", text)
        })?;
        let written = self.log.commit_limit(limit_bytes.unwrap_or(0));
        Ok(written.inspect_err(|_| self.limited.set_limit(before))?)
    }
}
