//! What the machine's clocks say.
//!
//! Invariant: two moments name the same boot only where `running_ns` of both counts from the same
//! point, and nobody could set or bend it in between.

use rustix::time::ClockId;
use std::sync::OnceLock;

/// A moment, by the machine's clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Which start of the machine `running_ns` counts from; zeros: it is not known which.
    pub boot: [u8; 16],
    /// Nanoseconds that the machine has run since then: not while it was suspended.
    pub running_ns: u64,
    /// Nanoseconds since 1970, as somebody set them.
    pub day_ns: u64,
}

/// What the link to the time namespace says outside of containers that have one of their own.
const TIME_NAMESPACE_FIRST: &str = "time:[4026531834]";

impl Moment {
    pub(crate) fn now() -> Self {
        static BOOT: OnceLock<[u8; 16]> = OnceLock::new();
        Moment {
            boot: *BOOT.get_or_init(boot),
            // The raw one: a root user can have the other run a tenth too fast.
            running_ns: clock_ns(ClockId::MonotonicRaw),
            day_ns: clock_ns(ClockId::Realtime),
        }
    }
}

fn clock_ns(clock: ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    let (seconds, ns) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    seconds.unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(ns.unwrap_or(0))
}

/// The machine's start, where its running time means the same for everybody.
fn boot() -> [u8; 16] {
    // In a time namespace of its own a process sees whatever running time it was given.
    let namespace = std::fs::read_link("/proc/self/ns/time");
    if namespace.is_ok_and(|link| link.as_os_str() != TIME_NAMESPACE_FIRST) {
        return [0; 16];
    }
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    parse(text.trim()).unwrap_or_default()
}

/// A UUID's bytes.
fn parse(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|digit| *digit != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32)?;
    Some(number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_a_uuid_or_none() {
        let bytes = parse("00112233-4455-6677-8899-aabbccddeeff").expect("a UUID");
        assert_eq!((bytes[0], bytes[1], bytes[15]), (0, 0x11, 0xff));
        assert_eq!(parse(""), None);
        assert_eq!(parse("0011"), None);
        assert_eq!(parse("g0112233-4455-6677-8899-aabbccddeeff"), None);
    }

    #[test]
    fn running_time_never_goes_back_and_the_boot_stays() {
        let (first, second) = (Moment::now(), Moment::now());
        assert!(second.running_ns >= first.running_ns && first.running_ns > 0);
        assert_eq!(first.boot, second.boot);
    }
}
