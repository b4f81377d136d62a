//! What a thread beside the writers does so that they need not: hand the log's bytes to its files,
//! allocate room before it is needed.
//!
//! Both can take tens of milliseconds in a file system that is busy with something else. Invariant:
//! where nobody listens to the bell writers do it all themselves, so tests own the time.

use crate::error::{LogError, Result};
use crate::log::Log;
use parking_lot::{Condvar, Mutex};
use ramet_store::{StoreError, rest_where_due};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Rung by writers when there is something to do for the thread beside them.
#[derive(Default)]
pub struct Bell {
    /// Whether anybody ever listened.
    is_heard: AtomicBool,
    is_rung: AtomicBool,
    /// Held while somebody begins to wait, so that no ringing is missed.
    waiting: Mutex<()>,
    changed: Condvar,
}

impl Bell {
    /// Wait until it rings, at most so long; from the first call on writers rely on being heard.
    pub fn wait(&self, time: Duration) {
        self.is_heard.store(true, Ordering::Release);
        let mut waiting = self.waiting.lock();
        if !self.is_rung.load(Ordering::Acquire) {
            self.changed.wait_for(&mut waiting, time);
        }
        self.is_rung.store(false, Ordering::Release);
    }

    /// Call whoever listens. Result: whether somebody does.
    pub fn ring(&self) -> bool {
        if !self.is_heard() {
            return false;
        }
        if !self.is_rung.load(Ordering::Acquire) && !self.is_rung.swap(true, Ordering::AcqRel) {
            drop(self.waiting.lock());
            self.changed.notify_one();
        }
        true
    }

    /// Whether somebody rang and was not heard yet.
    #[cfg(test)]
    pub(crate) fn is_rung(&self) -> bool {
        self.is_rung.load(Ordering::Acquire)
    }

    pub(crate) fn is_heard(&self) -> bool {
        self.is_heard.load(Ordering::Acquire)
    }

    /// Nobody listens any more.
    pub fn leave(&self) {
        self.is_heard.store(false, Ordering::Release);
    }
}

impl Log {
    /// Rung when `help` finds something to do.
    pub fn bell(&self) -> Arc<Bell> {
        self.bell.clone()
    }

    /// Called between two pieces of work that go on for long, holding nothing that clients wait
    /// for: rest now and then, while somebody writes. See docs/internals/latency.md.
    pub fn rest(&self) {
        if rest_where_due(|| self.is_filled(Instant::now())) {
            self.counters.rests.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Hand to the files what is complete.
    ///
    /// # Errors
    /// `Poisoned` where a write fails.
    pub fn write_out(&self) -> Result<()> {
        if self.check_writable().is_err() {
            return Ok(());
        }
        let mut out = self.write_out.lock();
        self.write_jobs(&mut out)
    }

    /// Allocate more of the segment that is appended to, or prepare the next one, before a writer
    /// has to. Waits for nobody.
    ///
    /// # Errors
    /// As `enter_write`; a full medium is not one, the writer who needs the room will meet it.
    pub fn make_room_ahead(&self) -> Result<()> {
        let Some(mut state) = self.room.try_lock() else { return Ok(()) };
        if self.check_writable().is_err() {
            return Ok(());
        }
        match self.grow_ahead().and_then(|()| self.prepare_next(&mut state)) {
            Ok(_) | Err(LogError::Store(StoreError::Full { .. })) => Ok(()),
            Err(other) => Err(other),
        }
    }
}
