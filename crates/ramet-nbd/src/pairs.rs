//! Whether a client flushes each of its writes, so that the next flush can be expected.
//!
//! Pure counting; what comes of it is done in `transmission`.

/// Writes in a row, each with a flush behind it, before a flush is expected.
const PAIRS_MIN: u32 = 8;
/// As many at most, for a client that comes and goes.
const PAIRS_MAX: u32 = 4096;
/// So many flushes that came as expected are worth one that did not.
const RIGHT_MIN: u32 = 64;

/// How the last writes and flushes of one connection followed each other.
pub(crate) struct Pairs {
    count: u32,
    wanted_count: u32,
    last: Last,
    /// Flushes that came as expected, since one did not.
    right_count: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    /// A write with nothing behind it.
    Write,
    /// Such a write, and its flush is expected.
    Expected,
    Other,
}

impl Default for Pairs {
    fn default() -> Self {
        Pairs { count: 0, wanted_count: PAIRS_MIN, last: Last::Other, right_count: 0 }
    }
}

impl Pairs {
    /// A write was done, with nothing received behind it. Result: whether its flush is expected.
    pub(crate) fn write(&mut self) -> bool {
        if self.last != Last::Other {
            self.break_off();
        }
        let expected = self.count >= self.wanted_count;
        self.last = if expected { Last::Expected } else { Last::Write };
        expected
    }

    /// A flush was asked for; `nothing_left`: all that it covers is durable already. Result:
    /// whether it was expected, and rightly.
    pub(crate) fn flush(&mut self, nothing_left: bool) -> bool {
        match self.last {
            Last::Expected if nothing_left => {
                self.right_count = self.right_count.saturating_add(1);
                self.last = Last::Other;
                return true;
            }
            Last::Write => {
                self.count += 1;
                self.last = Last::Other;
            }
            // Where others write to the same volume there would be two syncs for each flush.
            Last::Expected | Last::Other => self.break_off(),
        }
        false
    }

    /// The client asked for something else, or sends more than one request at a time.
    pub(crate) fn break_off(&mut self) {
        if self.last == Last::Expected {
            let was_worth_it = self.right_count >= RIGHT_MIN;
            let wanted_count = if was_worth_it { PAIRS_MIN } else { self.wanted_count * 2 };
            self.wanted_count = wanted_count.min(PAIRS_MAX);
            self.right_count = 0;
        }
        self.forget();
    }

    /// What comes now has nothing to do with what was before.
    pub(crate) fn forget(&mut self) {
        self.count = 0;
        self.last = Last::Other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs until a flush is expected; it is, from then on.
    fn pairs_until_expected(pairs: &mut Pairs) -> u32 {
        let mut count = 0;
        while !pairs.write() {
            assert!(!pairs.flush(false));
            count += 1;
        }
        count
    }

    #[test]
    fn a_flush_is_expected_after_some_pairs_and_as_long_as_it_comes() {
        let mut pairs = Pairs::default();
        assert_eq!(pairs_until_expected(&mut pairs), PAIRS_MIN);
        for _ in 0..3 {
            assert!(pairs.flush(true));
            assert!(pairs.write());
        }
    }

    #[test]
    fn a_pair_that_is_none_begins_the_count_anew() {
        let almost = || {
            let mut pairs = Pairs::default();
            for _ in 1..PAIRS_MIN {
                assert!(!(pairs.write() || pairs.flush(true)));
            }
            pairs
        };
        let mut pairs = almost();
        pairs.break_off();
        assert_eq!(pairs_until_expected(&mut pairs), PAIRS_MIN);
        pairs = almost();
        assert!(!pairs.flush(true), "nothing was written");
        assert_eq!(pairs_until_expected(&mut pairs), PAIRS_MIN);
        pairs = almost();
        assert!(!(pairs.write() || pairs.write() || pairs.flush(true)), "two writes and a pair");
        assert_eq!(pairs_until_expected(&mut pairs), PAIRS_MIN - 1);
    }

    #[test]
    fn each_flush_that_does_not_come_takes_twice_the_pairs_to_be_expected_again() {
        let mut pairs = Pairs::default();
        let mut wanted_count = PAIRS_MIN;
        for _ in 0..12 {
            assert_eq!(pairs_until_expected(&mut pairs), wanted_count);
            pairs.break_off();
            wanted_count = (wanted_count * 2).min(PAIRS_MAX);
        }
    }

    #[test]
    fn one_that_finds_something_left_to_do_counts_as_one_that_did_not_come() {
        let mut pairs = Pairs::default();
        pairs_until_expected(&mut pairs);
        assert!(!pairs.flush(false));
        assert_eq!(pairs_until_expected(&mut pairs), 2 * PAIRS_MIN);
    }

    #[test]
    fn a_long_time_in_which_they_came_is_worth_one_that_does_not() {
        let mut pairs = Pairs::default();
        for _ in 0..100 {
            assert_eq!(pairs_until_expected(&mut pairs), PAIRS_MIN);
            for _ in 0..RIGHT_MIN {
                assert!(pairs.flush(true));
                assert!(pairs.write());
            }
            pairs.break_off();
        }
    }
}
