//! Memory for large messages, which all connections of a server share.
//!
//! Invariants: what connections hold beyond their own share is at most `bytes_max`, or one message
//! where that is larger; who has to wait does so for others that go on, for one that does not is
//! ended. Connections with small messages never come here.

use crate::channel::Ended;
use crate::registry::Control;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Looks at who goes on, within the time that somebody may do nothing.
const LOOKS: u32 = 5;

/// The memory of one server.
pub(crate) struct LargeMemory {
    holders: Mutex<HashMap<u64, Holder>>,
    released: Condvar,
    bytes_max: usize,
    patience: Duration,
}

struct Holder {
    bytes: usize,
    progress: Arc<AtomicU64>,
    control: Arc<Control>,
}

impl LargeMemory {
    /// Who holds some and neither sends nor receives for `patience` is ended when others wait.
    pub(crate) fn new(bytes_max: usize, patience: Duration) -> Self {
        LargeMemory { holders: Mutex::default(), released: Condvar::new(), bytes_max, patience }
    }
}

/// What one connection holds of it.
pub(crate) struct LargeShare {
    memory: Arc<LargeMemory>,
    id: u64,
    control: Arc<Control>,
    progress: Arc<AtomicU64>,
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
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    /// The client sent or took something; now it is the server's turn.
    pub(crate) fn end_waiting(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
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
            self.end_waiting();
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

    fn end_the_idle(&self, holders: &HashMap<u64, Holder>, seen: &mut HashMap<u64, (u64, u32)>) {
        for (id, holder) in holders.iter().filter(|(id, _)| **id != self.id) {
            let progress = holder.progress.load(Ordering::Relaxed);
            let (before, looks) = seen.entry(*id).or_insert((progress, 0));
            // Odd while it waits for its client; who waits for the device is not to blame.
            let idle = *before == progress && !progress.is_multiple_of(2);
            *looks = if idle { *looks + 1 } else { 0 };
            *before = progress;
            if *looks >= LOOKS {
                holder.control.stop();
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
