//! Whether to look for the next request for a moment before sleeping until it comes.
//!
//! A client with one request in flight sends the next one microseconds after its answer. To sleep
//! in between and to be woken on another processor takes longer than all the work. So where the
//! last requests came one by one and soon, the next one is looked for first.
//!
//! Invariants: a silent connection sleeps; one that looks in vain does so ever more rarely; half of
//! the processors at most are used to look.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// So long at most it is looked for a request.
pub(crate) const LOOK: Duration = Duration::from_micros(50);
/// One that came within this time, waking up included, could have been found.
const SOON: Duration = Duration::from_micros(100);
/// So many more of those than of others, each of which counts as several, before the next is
/// looked for.
const SOON_MIN: u32 = 32;
const LATE_COUNTS: u32 = 4;
/// As many at most, for a client that comes and goes.
const SOON_MAX: u32 = 1 << 16;
/// So many that were found are worth one that was not,
const FOUND_MIN: u32 = 16;
/// and so many are remembered at most.
const FOUND_MAX: u32 = 4 * FOUND_MIN;

/// How the last requests of one connection came.
pub(crate) struct Spin {
    soon_count: u32,
    wanted_count: u32,
    found_count: u32,
}

impl Default for Spin {
    fn default() -> Self {
        Spin { soon_count: 0, wanted_count: SOON_MIN, found_count: FOUND_MIN }
    }
}

impl Spin {
    /// Whether the next request is to be looked for.
    pub(crate) fn is_worth_it(&self) -> bool {
        self.soon_count >= self.wanted_count
    }

    /// The next request took so long, and was not looked for.
    pub(crate) fn waited(&mut self, time: Duration) {
        self.soon_count = if time < SOON {
            self.soon_count.saturating_add(1)
        } else {
            self.soon_count.saturating_sub(LATE_COUNTS)
        };
    }

    /// It was looked for; `in_time`: and came.
    pub(crate) fn looked(&mut self, in_time: bool) {
        if in_time {
            self.found_count = (self.found_count + 1).min(FOUND_MAX);
            if self.found_count == FOUND_MAX {
                self.wanted_count = SOON_MIN;
            }
        } else if self.found_count >= FOUND_MIN {
            self.found_count -= FOUND_MIN;
        } else {
            // The first one of the next time is forgiven.
            self.found_count = FOUND_MIN;
            self.wanted_count = (self.wanted_count * 2).min(SOON_MAX);
            self.soon_count = 0;
        }
    }

    /// There were several requests at once: then nothing is gained.
    pub(crate) fn break_off(&mut self) {
        self.soon_count = 0;
    }
}

/// One that looks, counted until this is dropped.
pub(crate) struct Looking(&'static AtomicUsize);

impl Looking {
    /// Begin to look, unless enough others do.
    pub(crate) fn begin() -> Option<Self> {
        static PLACES: OnceLock<usize> = OnceLock::new();
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let places = *PLACES
            .get_or_init(|| std::thread::available_parallelism().map_or(0, |all| all.get() / 2));
        Self::begin_of(places, &COUNT)
    }

    fn begin_of(places: usize, count: &'static AtomicUsize) -> Option<Self> {
        let before = count.fetch_add(1, Ordering::Relaxed);
        // Where it is one too many, it is dropped at once.
        let looking = Looking(count);
        (before < places).then_some(looking)
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(soon: u32) -> Spin {
        let mut spin = Spin::default();
        (0..soon).for_each(|_| spin.waited(LOOK));
        spin
    }

    #[test]
    fn requests_that_come_soon_and_alone_are_looked_for() {
        assert!(!after(SOON_MIN - 1).is_worth_it());
        let mut spin = after(SOON_MIN);
        assert!(spin.is_worth_it());
        spin.break_off();
        assert!(!spin.is_worth_it());
        let mut spin = after(SOON_MIN);
        spin.waited(SOON);
        assert!(!spin.is_worth_it(), "the client had something else to do");
    }

    /// The story: where one request in twenty was late, on a busy machine, none was looked for in
    /// the end, and each took twice as long as with a server that always sleeps.
    #[test]
    fn who_is_late_now_and_then_is_looked_for_all_the_same() {
        let (mut spin, mut found) = (Spin::default(), 0);
        for index in 0..10_000 {
            let is_late = index % 20 == 19;
            if spin.is_worth_it() {
                spin.looked(!is_late);
                found += u32::from(!is_late);
            } else {
                spin.waited(if is_late { SOON } else { LOOK });
            }
        }
        assert!(found > 9_000, "{found}");
    }

    #[test]
    fn one_that_is_not_found_is_forgiven_where_many_were() {
        for (found, forgiven) in [(0, 1), (FOUND_MIN, 2), (10 * FOUND_MAX, 4)] {
            let mut spin = after(SOON_MIN);
            (0..found).for_each(|_| spin.looked(true));
            (0..forgiven).for_each(|_| spin.looked(false));
            assert!(spin.is_worth_it(), "{found}");
            spin.looked(false);
            assert!(!spin.is_worth_it(), "{found}, and one too many that were not");
        }
    }

    #[test]
    fn who_looks_in_vain_does_so_ever_more_rarely() {
        let (mut spin, mut looks) = (Spin::default(), 0);
        for _ in 0..100_000 {
            if spin.is_worth_it() {
                spin.looked(false);
                looks += 1;
            }
            spin.waited(LOOK);
        }
        assert!((1..=24).contains(&looks), "{looks}");
    }

    #[test]
    fn only_so_many_look_at_once() {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        assert!(Looking::begin_of(0, &COUNT).is_none());
        let first = Looking::begin_of(1, &COUNT);
        assert!(first.is_some() && Looking::begin_of(1, &COUNT).is_none());
        drop(first);
        assert!(Looking::begin_of(1, &COUNT).is_some(), "those that may not do not count");
    }
}
