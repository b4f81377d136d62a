//! The pure decision what happens to a request, against a plain restatement of the rules.

use proptest::prelude::*;
use ramet_nbd::codec::Request;
use ramet_nbd::{Action, Errno, ExportShape, judge};

const SIZE_BYTES: u64 = 100 << 20;
const LARGEST_BYTES: u64 = 32 << 20;

fn request(command: u16, flags: u16, offset_bytes: u64, length_bytes: u64) -> Request {
    Request { flags, command, cookie: 1, offset_bytes, length_bytes }
}

fn judged(command: u16, flags: u16, offset: u64, length: u64) -> Result<Action, Errno> {
    let shape = ExportShape { size_bytes: SIZE_BYTES, read_only: false };
    judge(&request(command, flags, offset, length), &shape)
}

proptest! {
    #[test]
    fn nothing_that_reaches_the_device_lies_past_its_end(
        command in 0_u16..8,
        flags in 0_u16..32,
        offset_bytes in prop_oneof![any::<u64>(), 0..2 * SIZE_BYTES],
        length_bytes in prop_oneof![any::<u64>(), 0..2 * SIZE_BYTES],
        read_only in any::<bool>(),
    ) {
        let shape = ExportShape { size_bytes: SIZE_BYTES, read_only };
        let judged = judge(&request(command, flags, offset_bytes, length_bytes), &shape);
        let end = u128::from(offset_bytes) + u128::from(length_bytes);
        match judged {
            Ok(Action::Read) => prop_assert!(end <= u128::from(SIZE_BYTES)),
            Ok(Action::Write { .. } | Action::Trim { .. } | Action::WriteZeroes { .. }) => {
                prop_assert!(end <= u128::from(SIZE_BYTES) && !read_only);
            }
            Ok(Action::Flush | Action::Disconnect) | Err(_) => {}
        }
    }
}

#[test]
fn the_last_byte_is_served_and_the_one_after_is_not() {
    for (command, past_end) in
        [(0, Errno::Invalid), (1, Errno::NoSpace), (4, Errno::Invalid), (6, Errno::NoSpace)]
    {
        assert!(judged(command, 0, SIZE_BYTES - 1, 1).is_ok());
        assert!(judged(command, 0, SIZE_BYTES, 0).is_ok());
        assert_eq!(judged(command, 0, SIZE_BYTES, 1), Err(past_end));
        assert_eq!(judged(command, 0, u64::MAX, 1), Err(past_end));
    }
}

#[test]
fn a_payload_of_32_mib_is_the_largest() {
    for command in [0, 1] {
        assert!(judged(command, 0, 0, LARGEST_BYTES).is_ok());
        assert_eq!(judged(command, 0, 0, LARGEST_BYTES + 1), Err(Errno::Invalid));
    }
    for command in [4, 6] {
        assert!(judged(command, 0, 0, SIZE_BYTES).is_ok(), "no payload, no limit");
    }
}

#[test]
fn a_snapshot_refuses_every_change_with_eperm() {
    let shape = ExportShape { size_bytes: SIZE_BYTES, read_only: true };
    for command in [1, 4, 6] {
        for length_bytes in [0, 512, SIZE_BYTES + 1] {
            let judged = judge(&request(command, 0, 0, length_bytes), &shape);
            assert_eq!(judged, Err(Errno::NotPermitted));
        }
    }
}

#[test]
fn only_documented_flags_pass() {
    let (fua, no_hole, fragment, one, fast) = (1, 2, 4, 8, 16);
    assert_eq!(judged(1, fua, 0, 1), Ok(Action::Write { fua: true }));
    assert_eq!(judged(4, fua, 0, 1), Ok(Action::Trim { fua: true }));
    assert_eq!(judged(6, fua | no_hole, 0, 1), Ok(Action::WriteZeroes { fua: true }));
    assert_eq!(judged(0, fua, 0, 1), Ok(Action::Read), "known clients set FUA on reads");
    for command in [0, 1, 3, 4] {
        assert_eq!(judged(command, no_hole, 0, 0), Err(Errno::Invalid));
    }
    for command in [0, 1, 3, 4, 6] {
        for flag in [fragment, one, fast, 32, 1 << 15] {
            assert_eq!(judged(command, flag, 0, 0), Err(Errno::Invalid));
        }
    }
}

#[test]
fn a_flush_takes_no_range_and_an_unknown_command_is_invalid() {
    assert_eq!(judged(3, 0, 0, 0), Ok(Action::Flush));
    assert_eq!(judged(3, 0, 1, 0), Err(Errno::Invalid));
    assert_eq!(judged(3, 0, 0, 1), Err(Errno::Invalid));
    for command in [5, 7, 8, u16::MAX] {
        assert_eq!(judged(command, 0, 0, 0), Err(Errno::Invalid));
    }
}
