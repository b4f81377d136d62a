//! Rests of a thread that has much to do.
//!
//! A thread that computes for a second has a processor to itself for as long: the scheduler puts
//! who wakes up where he was before, or where a processor is idle, and looks at the others only
//! now and then. Everybody else then crowds on what is left. So it rests after each piece of work,
//! by its own processor time: where it waits for a device, or for its turn, that is rest enough.

use rustix::time::{ClockId, clock_gettime};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// After so much processor time a rest is due,
const WORK: Duration = Duration::from_millis(1);
/// which takes so long.
const REST: Duration = Duration::from_micros(500);

thread_local! {
    /// When this thread rested last, and its processor time then.
    static RESTED: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
}

/// Between two pieces of work, holding nothing that clients wait for: rest where that is due, and
/// `is_wanted`. Result: whether this thread rested.
pub fn rest_where_due(is_wanted: impl FnOnce() -> bool) -> bool {
    let last = RESTED.get();
    // To ask for processor time is a call of the system, for the time of day it is none.
    if last.is_some_and(|(at, worked)| at.elapsed() < WORK || processor_time() - worked < WORK) {
        return false;
    }
    let rests = last.is_some() && is_wanted();
    if rests {
        std::thread::sleep(REST);
    }
    RESTED.set(Some((Instant::now(), processor_time())));
    rests
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(time: Duration) {
        let begun = processor_time();
        while processor_time() - begun < time {}
    }

    #[test]
    fn a_rest_is_due_by_the_time_that_was_computed() {
        assert!(!rest_where_due(|| true), "work begins here");
        work(WORK);
        assert!(rest_where_due(|| true));
        assert!(!rest_where_due(|| unreachable!("nothing was done since")));
        work(WORK);
        assert!(!rest_where_due(|| false), "nobody wants it");
        assert!(!rest_where_due(|| unreachable!("that counts as a rest")));
    }
}
