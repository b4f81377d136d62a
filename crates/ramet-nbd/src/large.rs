//! Memory for large messages, which all connections of a server share.
//!
//! Invariants: what connections hold beyond their own share is at most `bytes_max`, or one message
//! where that is larger; who has to wait does so for others that go on, and one that does not, or
//! hardly, is ended. Connections with small messages never come here.

use crate::channel::Ended;
use crate::registry::Control;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Looks at who goes on, within the time that somebody may do nothing.
const LOOKS: u32 = 5;
/// Who others wait for moves this part of what is held in that time: 512 KiB a second, for the
/// longest message. Less would be a way to hold memory for hours with a few bytes.
const PART_MIN: u64 = 13;

/// The memory of one server.
pub(crate) struct LargeMemory {
    holders: Mutex<HashMap<u64, Holder>>,
    released: Condvar,
    bytes_max: usize,
    patience: Duration,
}

struct Holder {
    bytes: usize,
    progress: Arc<Progress>,
    control: Arc<Control>,
}

/// How a connection with a large message gets on.
#[derive(Default)]
struct Progress {
    /// Its turn is the client's, or another's with memory; for the device it is not to blame.
    is_waiting: AtomicBool,
    /// What the client sent and took.
    moved_bytes: AtomicU64,
}

/// A holder as it was when it was first seen to wait, and how often it was since.
#[derive(Default)]
struct Seen {
    moved_bytes: u64,
    looks: u32,
}

impl LargeMemory {
    /// Who holds some and sends and receives next to nothing for `patience` is ended when others
    /// wait.
    pub(crate) fn new(bytes_max: usize, patience: Duration) -> Self {
        LargeMemory { holders: Mutex::default(), released: Condvar::new(), bytes_max, patience }
    }
}

/// What one connection holds of it.
pub(crate) struct LargeShare {
    memory: Arc<LargeMemory>,
    id: u64,
    control: Arc<Control>,
    progress: Arc<Progress>,
    held_bytes: usize,
}

impl LargeShare {
    /// `id`: the connection's, different from all others.
    pub(crate) fn new(memory: Arc<LargeMemory>, id: u64, control: Arc<Control>) -> Self {
        LargeShare { memory, id, control, progress: Arc::default(), held_bytes: 0 }
    }

    /// Whether anything is held.
    pub(crate) fn is_held(&self) -> bool {
        self.held_bytes > 0
    }

    /// From here on the connection waits for its client.
    pub(crate) fn begin_waiting(&self) {
        self.progress.is_waiting.store(true, Ordering::Relaxed);
    }

    /// The client sent or took so much; now it is the server's turn.
    pub(crate) fn end_waiting(&self, moved_bytes: usize) {
        self.progress.moved_bytes.fetch_add(moved_bytes as u64, Ordering::Relaxed);
        self.progress.is_waiting.store(false, Ordering::Relaxed);
    }

    /// Hold so much from now on; more than before may have to be waited for.
    ///
    /// # Errors
    /// `Ended` where the connection is ended meanwhile.
    pub(crate) fn hold(&mut self, bytes: usize) -> Result<(), Ended> {
        if bytes == self.held_bytes {
            return Ok(());
        }
        let mut holders = self.memory.holders.lock();
        if bytes > self.held_bytes {
            // Who holds some and waits for more is in the way like one whose client is idle.
            self.begin_waiting();
            let waited = self.wait_for_room(&mut holders, bytes);
            self.end_waiting(0);
            waited?;
        }
        if bytes == 0 {
            holders.remove(&self.id);
        } else {
            let (progress, control) = (self.progress.clone(), self.control.clone());
            holders.insert(self.id, Holder { bytes, progress, control });
        }
        if bytes < self.held_bytes {
            self.memory.released.notify_all();
        }
        self.held_bytes = bytes;
        Ok(())
    }

    fn wait_for_room(
        &self,
        holders: &mut MutexGuard<'_, HashMap<u64, Holder>>,
        bytes: usize,
    ) -> Result<(), Ended> {
        let mut seen = HashMap::new();
        loop {
            let others: usize =
                holders.iter().filter(|(id, _)| **id != self.id).map(|(_, it)| it.bytes).sum();
            if others == 0 || others + bytes <= self.memory.bytes_max {
                return Ok(());
            }
            if self.control.is_stopped() {
                return Err(Ended);
            }
            let look = self.memory.patience / LOOKS;
            if self.memory.released.wait_for(holders, look).timed_out() {
                self.end_the_idle(holders, &mut seen);
            }
        }
    }

    /// Called after each look: end those that had `LOOKS` of them and hardly moved.
    fn end_the_idle(&self, holders: &HashMap<u64, Holder>, seen: &mut HashMap<u64, Seen>) {
        for (id, holder) in holders.iter().filter(|(id, _)| **id != self.id) {
            let seen = seen.entry(*id).or_default();
            let moved_bytes = holder.progress.moved_bytes.load(Ordering::Relaxed);
            if !holder.progress.is_waiting.load(Ordering::Relaxed) {
                *seen = Seen::default();
            } else if seen.looks == 0 {
                *seen = Seen { moved_bytes, looks: 1 };
            } else if seen.looks < LOOKS {
                seen.looks += 1;
            } else if (moved_bytes - seen.moved_bytes) * PART_MIN < holder.bytes as u64 {
                holder.control.stop();
            } else {
                *seen = Seen { moved_bytes, looks: 1 };
            }
        }
    }
}

impl Drop for LargeShare {
    fn drop(&mut self) {
        // Holding less never waits.
        let _ = self.hold(0);
    }
}
