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
pub(crate) const VIEWS_MAX: usize = if cfg!(test) { 16 } else { 1024 };
/// Who borrows gives back at once, or within tenths of a second; more is not waited for.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 2000 });
/// So long later it is tried again to map what could not be.
const REFUSED: Duration = Duration::from_secs(10);
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
    /// Something happens to the file that a reader must not see; the view that is kept for later.
    Paused(Option<Arc<View>>),
    /// It could not be mapped then.
    Refused(Instant),
    /// The medium failed, or the segment is dead.
    Stopped,
}

struct Held {
    state: State,
    /// Whether it counts among what is mapped; see `Log::note_view`.
    counted: bool,
}

/// What a segment lends from.
pub(crate) struct Lending {
    held: RwLock<Held>,
    pin: Pin,
    used: AtomicBool,
}

impl Default for Lending {
    fn default() -> Self {
        let held = Held { state: State::Unmapped, counted: false };
        Lending { held: RwLock::new(held), pin: Pin::default(), used: AtomicBool::new(false) }
    }
}

impl Lending {
    /// The view, which `map` makes where there is none and `may_count` lets it be one more.
    pub(crate) fn view(
        &self,
        may_count: impl FnOnce() -> bool,
        map: impl FnOnce() -> Option<Mapping>,
    ) -> Option<Arc<View>> {
        match &self.held.read().state {
            State::Mapped(view) => {
                if !self.used.load(Ordering::Relaxed) {
                    self.used.store(true, Ordering::Relaxed);
                }
                return Some(view.clone());
            }
            State::Paused(_) | State::Stopped => return None,
            State::Refused(since) if since.elapsed() < REFUSED => return None,
            State::Refused(_) | State::Unmapped => {}
        }
        let held = &mut *self.held.write();
        match &held.state {
            State::Mapped(view) => return Some(view.clone()),
            State::Paused(_) | State::Stopped => return None,
            State::Refused(_) | State::Unmapped => {}
        }
        held.counted = held.counted || may_count();
        if !held.counted {
            return None;
        }
        let Some(mapping) = map() else {
            held.state = State::Refused(Instant::now());
            return None;
        };
        let view = Arc::new(View { mapping, _pin: self.pin.clone() });
        held.state = State::Mapped(view.clone());
        Some(view)
    }

    /// Lend nothing more, ever. Result: what is the only one left once nothing is lent, and nobody
    /// has the segment.
    pub(crate) fn stop(&self) -> Pin {
        let before = std::mem::replace(&mut self.held.write().state, State::Stopped);
        // It may take a while to unmap it.
        drop(before);
        self.pin.clone()
    }

    /// Lend nothing more, ever, and wait until nothing is lent, or somebody keeps it for too long.
    pub(crate) fn end(&self) {
        self.stop();
        drop(self.pause(false));
    }

    /// Unmap it where nobody asked since this was last called. Result: whether it is unmapped, and
    /// counts no more.
    pub(crate) fn end_if_unused(&self) -> bool {
        let held = &mut *self.held.write();
        let unused = !self.used.swap(false, Ordering::Relaxed);
        if unused && matches!(held.state, State::Mapped(_)) {
            held.state = State::Unmapped;
        }
        held.counted = matches!(held.state, State::Mapped(_) | State::Paused(Some(_)));
        !held.counted
    }

    /// Lend nothing until the result is dropped, and wait until nothing is lent. Nothing where
    /// somebody keeps it for too long. `same_file`: what is mapped will be of use afterwards.
    pub(crate) fn pause(&self, same_file: bool) -> Option<Pause<'_>> {
        let (kept, dropped) = {
            let state = &mut self.held.write().state;
            let view = match std::mem::replace(state, State::Stopped) {
                State::Stopped => None,
                State::Mapped(view) | State::Paused(Some(view)) => {
                    *state = State::Paused(same_file.then(|| view.clone()));
                    Some(view)
                }
                State::Unmapped | State::Refused(_) | State::Paused(None) => {
                    *state = State::Paused(None);
                    None
                }
            };
            if same_file { (view, None) } else { (None, view) }
        };
        drop(dropped);
        let pause = Pause(self);
        let begun = Instant::now();
        // Of one that is kept there is the lending's own, and ours; and its pin.
        let is_lent = || match &kept {
            Some(view) => Arc::strong_count(view) > 2 || Arc::strong_count(&self.pin) > 2,
            None => Arc::strong_count(&self.pin) > 1,
        };
        while is_lent() {
            if begun.elapsed() >= PATIENCE {
                return None;
            }
            std::thread::sleep(LOOK);
        }
        // The counts are read without an order; whoever gave back did so with one.
        fence(Ordering::Acquire);
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
        let state = &mut self.0.held.write().state;
        *state = match std::mem::replace(state, State::Stopped) {
            State::Paused(Some(view)) => State::Mapped(view),
            State::Paused(None) => State::Unmapped,
            other => other,
        };
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
