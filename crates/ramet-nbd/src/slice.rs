//! How long the time slices of a thread that serves a client are.
//!
//! Who serves a client wakes up, answers and sleeps, in microseconds. Where something else has the
//! processor meanwhile, the scheduler lets that one catch up on what it is owed, which is in the
//! order of its slice: milliseconds. With shorter slices of its own a session goes first when it
//! wakes up, and less comes to be owed; its share of the processors stays what it was. A client
//! with many requests in flight is better off without: it would be interrupted while it sends them.
//! Linux 6.12 and newer know this (`sched_runtime` of sched_setattr(2)); elsewhere nothing happens.

use std::cell::Cell;

/// Of one slice: usual are 0.7 to 2.8 ms, by the number of processors.
const SHORT_NS: u64 = 300_000;
/// So many requests that were received together are many.
const MANY: usize = 4;
/// So many more times than few they have to be, until slices are as usual; and as many back.
const TIMES: u32 = 32;

/// What is known of this thread's clients. `usual_ns` 0: its slices are not to be touched.
#[derive(Clone, Copy)]
struct State {
    usual_ns: u64,
    is_short: bool,
    many_count: u32,
}

thread_local! {
    static STATE: Cell<State> =
        const { Cell::new(State { usual_ns: 0, is_short: false, many_count: 0 }) };
}

/// This thread serves clients from now on: its slices are short, unless they were shorter before.
pub(crate) fn begin() {
    let is_long = |it: &Attributes| {
        matches!(it.policy.cast_signed(), libc::SCHED_OTHER | libc::SCHED_BATCH)
            && it.runtime_ns > SHORT_NS
    };
    if let Some(found) = Attributes::of_this_thread().filter(is_long) {
        STATE.set(State { usual_ns: found.runtime_ns, is_short: true, many_count: 0 });
        Attributes::set_slice(SHORT_NS);
    }
}

/// So many requests were answered that were received together.
pub(crate) fn answered(count: usize) {
    let state = STATE.get();
    if state.usual_ns != 0 {
        let after = state.after(count);
        if after.is_short != state.is_short {
            Attributes::set_slice(if after.is_short { SHORT_NS } else { state.usual_ns });
        }
        STATE.set(after);
    }
}

impl State {
    fn after(self, count: usize) -> State {
        let many_count = if count >= MANY {
            (self.many_count + 1).min(TIMES)
        } else {
            self.many_count.saturating_sub(1)
        };
        let is_short = if self.is_short { many_count < TIMES } else { many_count == 0 };
        State { many_count, is_short, ..self }
    }
}

/// `struct sched_attr`, as the first kernel that had it knew it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

const SIZE: u32 = 48;
const _: () = assert!(std::mem::size_of::<Attributes>() == SIZE as usize);

impl Attributes {
    fn of_this_thread() -> Option<Self> {
        let mut found = Attributes::default();
        // SAFETY: the kernel writes at most `SIZE` bytes, which are there.
        let done = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut found, SIZE, 0) };
        (done == 0).then_some(found)
    }

    /// Where the kernel refuses, slices stay as they are, with which all works as well.
    fn set_slice(runtime_ns: u64) {
        if let Some(found) = Attributes::of_this_thread() {
            let wanted = Attributes { runtime_ns, ..found };
            // SAFETY: the kernel reads `SIZE` bytes, which are there.
            unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice_ns() -> u64 {
        Attributes::of_this_thread().expect("known").runtime_ns
    }

    #[test]
    fn slices_are_short_but_for_who_has_many_requests_in_flight() {
        let usual = slice_ns();
        // A kernel that does not know slices says 0 and keeps them as they are.
        let short = usual.min(SHORT_NS);
        begin();
        assert_eq!(slice_ns(), short);
        (1..TIMES).for_each(|_| answered(MANY));
        assert_eq!(slice_ns(), short, "a client that caught up");
        answered(MANY);
        assert_eq!(slice_ns(), usual);
        (1..TIMES).for_each(|_| answered(MANY - 1));
        assert_eq!(slice_ns(), usual, "one that pauses");
        answered(1);
        assert_eq!(slice_ns(), short);
    }

    #[test]
    fn slices_that_are_shorter_already_are_left_alone() {
        Attributes::set_slice(SHORT_NS / 2);
        let before = slice_ns();
        begin();
        (0..=TIMES).for_each(|_| answered(MANY));
        assert_eq!(slice_ns(), before);
    }
}
