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
/// Requests that are looked at, behind one.
pub(crate) const REQUESTS_MAX: usize = 64;

/// How the reads of a connection went lately.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    reads_left: u32,
}

impl Ahead {
    /// Whether the device is to be told of what was received.
    pub(crate) fn is_wanted(&self) -> bool {
        self.reads_left > 0
    }

    /// A read of so many bytes took so long. Result: whether the device was not told of those
    /// behind it, and should be.
    pub(crate) fn note(&mut self, took: Duration, length_bytes: u64) -> bool {
        let was_wanted = self.is_wanted();
        // A request is bounded by its payload.
        let blocks_count = u32::try_from(length_bytes / BLOCK_BYTES).unwrap_or(u32::MAX);
        let slow = took >= SLOW.saturating_add(SLOW_BLOCK.saturating_mul(blocks_count));
        self.reads_left = if slow { READS_AFTER } else { self.reads_left.saturating_sub(1) };
        self.is_wanted() && !was_wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_told_from_a_slow_read_on_and_for_a_while() {
        let mut ahead = Ahead::default();
        assert!(!ahead.note(Duration::from_micros(2), 512) && !ahead.is_wanted());
        assert!(ahead.note(SLOW, 512), "those behind it wait");
        assert!(!ahead.note(SLOW, 512), "of these it was told when they came");
        (1..READS_AFTER).for_each(|_| assert!(!ahead.note(Duration::ZERO, 512)));
        assert!(ahead.is_wanted());
        assert!(!ahead.note(Duration::ZERO, 512) && !ahead.is_wanted());
    }

    /// The story: a long read of blocks that lay here and there in memory counted as slow, and to
    /// announce each of its blocks cost as much as to read them.
    #[test]
    fn a_long_read_may_take_longer_before_it_counts_as_slow() {
        let mut ahead = Ahead::default();
        assert!(!ahead.note(2 * SLOW, 32 * BLOCK_BYTES));
        assert!(ahead.note(SLOW + 32 * SLOW_BLOCK, 32 * BLOCK_BYTES));
    }
}
