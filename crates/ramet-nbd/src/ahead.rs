//! When to tell the device of reads that wait behind the one that is served.
//!
//! Reads are served one after the other; where one has to wait for a medium, all behind it would
//! wait in turn. So while reads are slow the device is told of all that were received, and fetches
//! them side by side. Where nothing is waited for, to tell it would only cost.

use std::time::Duration;

/// A read that took longer waited for a medium, or the processor was taken away;
const SLOW: Duration = Duration::from_micros(50);
/// and a block may take so long by itself: each may lie in another place.
const SLOW_BLOCK: Duration = Duration::from_micros(4);
const BLOCK_BYTES: u64 = 4096;
/// So many reads after a slow one the device is still told: a batch or a few.
const READS_AFTER: u32 = 128;
/// Of these, from one question whether a medium was read to the next.
const READS_ASKED: u32 = 32;
/// Requests that are looked at, behind one.
pub(crate) const REQUESTS_MAX: usize = 64;

/// How the reads of a connection went lately.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    reads_left: u32,
    /// What the medium was read, when that was last asked.
    medium_blocks: i64,
    /// So many of the requests that wait were looked at.
    told_count: usize,
}

impl Ahead {
    /// Whether the device is to be told of what was received.
    pub(crate) fn is_wanted(&self) -> bool {
        self.reads_left > 0
    }

    /// Of the requests that wait, how many the device was told of.
    pub(crate) fn told_count(&self) -> usize {
        self.told_count
    }

    /// The device was told of the reads among so many requests that wait.
    pub(crate) fn tell(&mut self, count: usize) {
        self.told_count = count;
    }

    /// The first request that waited is being served.
    pub(crate) fn begin(&mut self) {
        self.told_count = self.told_count.saturating_sub(1);
    }

    /// A read of so many bytes took so long. `medium_blocks`: what this thread had a medium read so
    /// far, asked now and then. Result: whether the device was not told of those behind it, and
    /// should be.
    pub(crate) fn note(
        &mut self,
        took: Duration,
        length_bytes: u64,
        medium_blocks: impl FnOnce() -> i64,
    ) -> bool {
        let was_wanted = self.is_wanted();
        // A request is bounded by its payload.
        let blocks_count = u32::try_from(length_bytes / BLOCK_BYTES).unwrap_or(u32::MAX);
        let slow = took >= SLOW.saturating_add(SLOW_BLOCK.saturating_mul(blocks_count));
        self.reads_left = if slow { READS_AFTER } else { self.reads_left.saturating_sub(1) };
        if was_wanted && !slow && self.reads_left.is_multiple_of(READS_ASKED) {
            // What was fetched in time is not slow, and would be if nobody had fetched it.
            let blocks = medium_blocks();
            if blocks != self.medium_blocks {
                self.medium_blocks = blocks;
                self.reads_left = READS_AFTER;
            }
        }
        self.is_wanted() && !was_wanted
    }
}

/// What this thread had a medium read, in units of the system; 0 where it does not count that.
pub(crate) fn medium_blocks() -> i64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the system fills in the memory, which is of that type, or fails.
    let told = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    // SAFETY: it was filled in.
    if told == 0 { unsafe { usage.assume_init() }.ru_inblock } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn never() -> i64 {
        0
    }

    #[test]
    fn the_device_is_told_from_a_slow_read_on_and_for_a_while() {
        let mut ahead = Ahead::default();
        assert!(!ahead.note(Duration::from_micros(2), 512, never) && !ahead.is_wanted());
        assert!(ahead.note(SLOW, 512, never), "those behind it wait");
        assert!(!ahead.note(SLOW, 512, never), "of these it was told when they came");
        (1..READS_AFTER).for_each(|_| assert!(!ahead.note(Duration::ZERO, 512, never)));
        assert!(ahead.is_wanted());
        assert!(!ahead.note(Duration::ZERO, 512, never) && !ahead.is_wanted());
    }

    /// The story: a long read of blocks that lay here and there in memory counted as slow, and to
    /// announce each of its blocks cost as much as to read them.
    #[test]
    fn a_long_read_may_take_longer_before_it_counts_as_slow() {
        let mut ahead = Ahead::default();
        assert!(!ahead.note(2 * SLOW, 32 * BLOCK_BYTES, never));
        assert!(ahead.note(SLOW + 32 * SLOW_BLOCK, 32 * BLOCK_BYTES, never));
    }

    /// The story: all was fetched in time, so nothing was slow, so nothing more was fetched, and
    /// the next read waited.
    #[test]
    fn the_device_is_told_for_as_long_as_a_medium_is_read() {
        let mut ahead = Ahead::default();
        assert!(ahead.note(SLOW, 512, never));
        for read in 0..10_000 {
            ahead.note(Duration::ZERO, 512, || read);
            assert!(ahead.is_wanted());
        }
        (0..2 * READS_AFTER).for_each(|_| _ = ahead.note(Duration::ZERO, 512, || 10_000));
        assert!(!ahead.is_wanted());
    }

    #[test]
    fn each_request_that_waits_is_looked_at_once() {
        let mut ahead = Ahead::default();
        ahead.tell(2);
        ahead.begin();
        assert_eq!(ahead.told_count(), 1);
        (0..2).for_each(|_| ahead.begin());
        assert_eq!(ahead.told_count(), 0);
    }
}
