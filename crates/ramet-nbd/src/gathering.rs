//! When a crowd's flushes are enough for a sync: a sync costs the same for one as for all.
//!
//! Pure counting; what comes of it is done in `crowd`.

use std::time::Duration;

/// Where less than half of the guests wait for a sync, so long for one more to come: a part of
/// what a sync takes.
pub(crate) const PAUSE: Duration = Duration::from_micros(30);
/// So often at most, for those who ask for other things meanwhile.
const PAUSES_MAX: u32 = 8;

/// How long those who wait have waited for others.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    pauses_count: u32,
}

impl Gathering {
    /// Whether `waiting_count` of `guests_count` are enough, after a pause in which something came,
    /// or `nothing_came`. Where they are, the next ones begin anew.
    pub(crate) fn is_over(
        &mut self,
        waiting_count: usize,
        guests_count: usize,
        nothing_came: bool,
    ) -> bool {
        self.pauses_count += 1;
        let is_over =
            nothing_came || 2 * waiting_count >= guests_count || self.pauses_count > PAUSES_MAX;
        if is_over {
            self.pauses_count = 0;
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_guests_are_enough() {
        let mut gathering = Gathering::default();
        assert!(!gathering.is_over(3, 8, false));
        assert!(gathering.is_over(4, 8, false));
        assert!(gathering.is_over(1, 1, false));
    }

    #[test]
    fn whoever_waits_is_enough_where_nobody_else_comes() {
        let mut gathering = Gathering::default();
        assert!(!gathering.is_over(1, 64, false));
        assert!(gathering.is_over(1, 64, true));
    }

    #[test]
    fn those_who_ask_for_other_things_put_no_sync_off_for_long() {
        let mut gathering = Gathering::default();
        for _ in 0..3 {
            (0..PAUSES_MAX).for_each(|_| assert!(!gathering.is_over(1, 64, false)));
            assert!(gathering.is_over(1, 64, false));
        }
    }
}
