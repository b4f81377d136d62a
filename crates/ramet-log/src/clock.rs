//! The clock that locks run by: it begins at 0 with the pool, and never runs faster than real time.
//!
//! docs/internals/locks.md says why. Invariants: within one boot of the machine it goes on while
//! the pool is closed; another boot, or one that nobody knows, adds nothing; it never goes back
//! within an opening.

use crate::format::superblock::ClockReading;
use crate::log::Log;
use ramet_store::Moment;
use std::sync::atomic::{AtomicU64, Ordering};

/// See the head of this file.
pub(crate) struct LockClock {
    opened: Moment,
    /// What it said when the pool was opened.
    opened_ns: AtomicU64,
}

impl LockClock {
    /// The clock of a pool that is opened at `now`, and whose newest commit has `last`.
    pub(crate) fn new(last: ClockReading, now: Moment) -> Self {
        let same_boot = last.boot == now.boot && now.boot != [0; 16];
        let passed = if same_boot { now.running_ns.saturating_sub(last.running_ns) } else { 0 };
        LockClock { opened: now, opened_ns: AtomicU64::new(last.ns.saturating_add(passed)) }
    }

    /// What a commit at `now` says.
    pub(crate) fn reading(&self, now: Moment) -> ClockReading {
        let passed = now.running_ns.saturating_sub(self.opened.running_ns);
        let ns = self.opened_ns.load(Ordering::Acquire).saturating_add(passed);
        ClockReading { ns, boot: now.boot, running_ns: now.running_ns }
    }
}

impl Log {
    /// The lock clock now, in nanoseconds.
    pub fn lock_clock_ns(&self) -> u64 {
        self.lock_clock.reading(self.store().moment()).ns
    }

    /// At opening: a record that was read says that the clock had come this far.
    pub fn lock_clock_was(&self, ns: u64) {
        self.lock_clock.opened_ns.fetch_max(ns, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: ClockReading = ClockReading { ns: 100, boot: [1; 16], running_ns: 50 };

    fn at(boot: u8, running_ns: u64) -> Moment {
        Moment { boot: [boot; 16], running_ns, day_ns: 0 }
    }

    #[test]
    fn it_goes_on_within_a_boot_and_stands_still_over_another() {
        for (boot, running_ns, expected) in [(1, 50, 100), (1, 70, 120), (2, 70, 100), (0, 70, 100)]
        {
            let clock = LockClock::new(LAST, at(boot, running_ns));
            assert_eq!(clock.reading(at(boot, running_ns)).ns, expected, "boot {boot}");
            assert_eq!(clock.reading(at(boot, running_ns + 7)).ns, expected + 7, "boot {boot}");
        }
    }

    #[test]
    fn a_boot_that_nobody_knows_is_never_the_same() {
        let last = ClockReading { boot: [0; 16], ..LAST };
        assert_eq!(LockClock::new(last, at(0, 70)).reading(at(0, 70)).ns, 100);
    }

    #[test]
    fn a_running_time_that_went_back_adds_nothing() {
        let clock = LockClock::new(LAST, at(1, 20));
        assert_eq!(clock.reading(at(1, 20)).ns, 100);
        assert_eq!(clock.reading(at(1, 10)).ns, 100);
    }
}
