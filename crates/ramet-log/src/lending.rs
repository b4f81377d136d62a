//! Blocks that are lent where they lie, in the system's own memory of a file, instead of copied.
//!
//! Invariants: what is lent was verified, and its bytes stay as they are until the last that was
//! lent is dropped: who would make holes in a file, or write it over, waits for that. A medium that
//! fails is never lent from again. See docs/internals/lending.md.

use parking_lot::RwLock;
use ramet_store::Mapping;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::{Duration, Instant};

/// Files that are mapped by one log.
pub(crate) const VIEWS_MAX: usize = 1024;
/// Who borrows gives back at once, or within tenths of a second; more is not waited for.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 2000 });
const LOOK: Duration = Duration::from_millis(1);

/// A file as memory. The mapping is gone before the pin is.
pub(crate) struct View {
    mapping: Mapping,
    _pin: Pin,
}

/// As long as there are two, something is mapped.
pub(crate) type Pin = Arc<()>;

/// Verified bytes of consecutive blocks, where they lie. To be dropped soon: a file may wait for
/// it.
pub struct Lent {
    /// Where in the buffer of the read they belong.
    pub place: usize,
    view: Arc<View>,
    at_bytes: usize,
    length_bytes: usize,
}

impl Lent {
    /// The bytes. To give them to the system may fail as a read of the medium does.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.view.mapping.bytes(self.at_bytes, self.length_bytes)
    }

    /// Whether what `bytes` gave was not the file's, because the medium failed: to be asked after
    /// they were used.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.view.has_failed()
    }
}

enum State {
    /// Nobody asked yet, or not lately.
    Unmapped,
    Mapped(Arc<View>),
    /// Something happens to the file that a reader must not see.
    Paused,
    /// The medium failed, or has no such thing; or the segment is dead.
    Stopped,
}

/// What a segment lends from.
pub(crate) struct Lending {
    state: RwLock<State>,
    pin: Pin,
    used: AtomicBool,
}

impl Default for Lending {
    fn default() -> Self {
        Lending {
            state: RwLock::new(State::Unmapped),
            pin: Pin::default(),
            used: AtomicBool::new(false),
        }
    }
}

impl Lending {
    /// The view, which `map` makes where there is none and `may_map` allows one more.
    pub(crate) fn view(
        &self,
        may_map: impl FnOnce() -> bool,
        map: impl FnOnce() -> Option<Mapping>,
    ) -> Option<Arc<View>> {
        match &*self.state.read() {
            State::Mapped(view) => {
                if !self.used.load(Ordering::Relaxed) {
                    self.used.store(true, Ordering::Relaxed);
                }
                return Some(view.clone());
            }
            State::Paused | State::Stopped => return None,
            State::Unmapped => {}
        }
        let mut state = self.state.write();
        match &*state {
            State::Mapped(view) => return Some(view.clone()),
            State::Paused | State::Stopped => return None,
            State::Unmapped => {}
        }
        if !may_map() {
            return None;
        }
        let Some(mapping) = map() else {
            *state = State::Stopped;
            return None;
        };
        let view = Arc::new(View { mapping, _pin: self.pin.clone() });
        *state = State::Mapped(view.clone());
        Some(view)
    }

    /// Lend nothing more, ever. Result: what is the only one left once nothing is lent, and nobody
    /// has the segment.
    pub(crate) fn stop(&self) -> Pin {
        *self.state.write() = State::Stopped;
        self.pin.clone()
    }

    /// Unmap it where nobody asked since this was last called. Result: whether it is unmapped.
    pub(crate) fn end_if_unused(&self) -> bool {
        let mut state = self.state.write();
        if matches!(*state, State::Mapped(_)) && !self.used.swap(false, Ordering::Relaxed) {
            *state = State::Unmapped;
        }
        !matches!(*state, State::Mapped(_))
    }

    /// Lend nothing until the result is dropped, and wait until nothing is lent. Nothing where
    /// somebody keeps it for too long.
    pub(crate) fn pause(&self) -> Option<Pause<'_>> {
        {
            let mut state = self.state.write();
            if !matches!(*state, State::Stopped) {
                *state = State::Paused;
            }
        }
        let pause = Pause(self);
        let begun = Instant::now();
        while !is_last(&self.pin) {
            if begun.elapsed() >= PATIENCE {
                return None;
            }
            std::thread::sleep(LOOK);
        }
        Some(pause)
    }
}

/// Whether nobody else has this one, and all that they did with it is done.
pub(crate) fn is_last(pin: &Pin) -> bool {
    let last = Arc::strong_count(pin) == 1;
    // The count is read without an order; whoever gave it back did so with one.
    fence(Ordering::Acquire);
    last
}

/// Nothing is lent until this is dropped.
pub(crate) struct Pause<'a>(&'a Lending);

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.write();
        if matches!(*state, State::Paused) {
            *state = State::Unmapped;
        }
    }
}

impl View {
    /// Blocks as bytes, to be verified.
    pub(crate) fn bytes(&self, at_bytes: usize, length_bytes: usize) -> &[u8] {
        self.mapping.bytes(at_bytes, length_bytes)
    }

    /// Whether what `bytes` gave was not the file's.
    pub(crate) fn has_failed(&self) -> bool {
        self.mapping.has_failed()
    }

    pub(crate) fn lend(
        self: Arc<Self>,
        at_bytes: usize,
        length_bytes: usize,
        place: usize,
    ) -> Lent {
        Lent { place, view: self, at_bytes, length_bytes }
    }
}

#[cfg(test)]
mod tests;
