//! How long a thread's turns on a processor are.
//!
//! A thread that is woken while another runs waits until that one's turn is over: some milliseconds
//! on a busy machine. It need not where its own turns are the shorter ones. So work that nobody
//! waits for by the millisecond takes long turns: as much of the processors as before, but it gives
//! way at once. Linux 6.12 and newer know this (`sched_runtime` of sched_setattr(2)); elsewhere
//! nothing happens.

use std::marker::PhantomData;

/// Nanoseconds of a long turn: a few times the usual.
const LONG_NS: u64 = 10_000_000;

/// This thread's turns are long while it lives.
pub struct LongTurns {
    before: Option<Attributes>,
    /// It is of the thread that made it.
    _thread: PhantomData<*const ()>,
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

impl LongTurns {
    /// Begin; ends with the value.
    pub fn begin() -> Self {
        let is_usual = |it: &Attributes| {
            matches!(it.policy.cast_signed(), libc::SCHED_OTHER | libc::SCHED_BATCH)
                && (1..LONG_NS).contains(&it.runtime_ns)
        };
        let before = Attributes::of_this_thread().filter(is_usual);
        let before = before.filter(|it| Attributes { runtime_ns: LONG_NS, ..*it }.set());
        LongTurns { before, _thread: PhantomData }
    }
}

impl Drop for LongTurns {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            before.set();
        }
    }
}

impl Attributes {
    fn of_this_thread() -> Option<Self> {
        let mut found = Attributes::default();
        // SAFETY: the kernel writes at most `SIZE` bytes, which are there.
        let done = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut found, SIZE, 0) };
        (done == 0).then_some(found)
    }

    /// Make them this thread's. Result: whether they are.
    fn set(&self) -> bool {
        // SAFETY: the kernel reads `SIZE` bytes, which are there.
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, self, 0) == 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn_ns() -> u64 {
        Attributes::of_this_thread().expect("known").runtime_ns
    }

    #[test]
    fn turns_are_long_while_it_lives_and_then_as_before() {
        let before = turn_ns();
        let outer = LongTurns::begin();
        let long = turn_ns();
        // A kernel that does not know them says 0 and keeps them as they are.
        assert_eq!(long, if before == 0 { 0 } else { LONG_NS });
        drop(LongTurns::begin());
        assert_eq!(turn_ns(), long, "an inner one ends nothing");
        drop(outer);
        assert_eq!(turn_ns(), before);
    }
}
