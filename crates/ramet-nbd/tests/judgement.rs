//! The pure decision what happens to a request, against a plain restatement of the rules.

use proptest::prelude::*;
use ramet_nbd::codec::{ChunkStyle, ReplyStyle, Request};
use ramet_nbd::{Action, Agreed, Errno, ExportShape, judge};

const SIZE_BYTES: u64 = 100 << 20;
const LARGEST_BYTES: u64 = 32 << 20;

fn request(command: u16, flags: u16, offset_bytes: u64, length_bytes: u64) -> Request {
    let payload_bytes = if command == 1 { length_bytes } else { 0 };
    Request { flags, command, cookie: 1, offset_bytes, length_bytes, payload_bytes }
}

fn chunks(style: ChunkStyle) -> Agreed {
    Agreed { replies: ReplyStyle::Chunks(style), status: true }
}

fn judged(command: u16, flags: u16, offset: u64, length: u64) -> Result<Action, Errno> {
    let shape = ExportShape { size_bytes: SIZE_BYTES, read_only: false };
    judge(&request(command, flags, offset, length), &shape, Agreed::default())
}

proptest! {
    #[test]
    fn nothing_that_reaches_the_device_lies_past_its_end(
        command in 0_u16..9,
        flags in 0_u16..64,
        offset_bytes in prop_oneof![any::<u64>(), 0..2 * SIZE_BYTES],
        length_bytes in prop_oneof![any::<u64>(), 0..2 * SIZE_BYTES],
        read_only in any::<bool>(),
        style in 0..3,
    ) {
        let agreed = match style {
            0 => Agreed::default(),
            1 => chunks(ChunkStyle::Structured),
            _ => chunks(ChunkStyle::Extended),
        };
        let shape = ExportShape { size_bytes: SIZE_BYTES, read_only };
        let judged = judge(&request(command, flags, offset_bytes, length_bytes), &shape, agreed);
        let end = u128::from(offset_bytes) + u128::from(length_bytes);
        match judged {
            Ok(Action::Read { .. } | Action::Cache | Action::Status { .. }) => {
                prop_assert!(end <= u128::from(SIZE_BYTES));
            }
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
            let judged = judge(&request(command, 0, 0, length_bytes), &shape, Agreed::default());
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
    assert_eq!(judged(6, fua | fast, 0, 4096), Ok(Action::WriteZeroes { fua: true }));
    let read = Ok(Action::Read { whole: false });
    assert_eq!(judged(0, fua, 0, 1), read, "known clients set FUA on reads");
    assert_eq!(judged(5, fua, 0, 1), Ok(Action::Cache));
    for command in [0, 1, 3, 4] {
        assert_eq!(judged(command, no_hole, 0, 0), Err(Errno::Invalid));
    }
    for command in [0, 1, 3, 4, 5, 6] {
        for flag in [fragment, one, fast, 32, 1 << 15] {
            if (command, flag) != (6, fast) {
                assert_eq!(judged(command, flag, 0, 0), Err(Errno::Invalid));
            }
        }
    }
}

#[test]
fn fast_zeroes_are_promised_where_a_whole_block_is_covered_and_nowhere_else() {
    let (fast, block) = (16, 4096);
    let zeroes = Ok(Action::WriteZeroes { fua: false });
    for (offset, length, expected) in [
        (0, 0, zeroes),
        (0, block, zeroes),
        (1, 2 * block - 1, zeroes),
        (0, SIZE_BYTES, zeroes),
        (0, block - 1, Err(Errno::NotSupported)),
        (1, block, Err(Errno::NotSupported)),
        (1, 2 * block - 2, Err(Errno::NotSupported)),
    ] {
        assert_eq!(judged(6, fast, offset, length), expected, "{length} at {offset}");
        assert_eq!(judged(6, 0, offset, length), zeroes, "without the flag it never fails so");
    }
    let odd = ExportShape { size_bytes: block + 512, read_only: false };
    let judged = judge(&request(6, fast, block, 512), &odd, Agreed::default());
    assert_eq!(judged, zeroes, "nothing lies behind the partial block at the end");
}

#[test]
fn what_chunks_are_needed_for_is_refused_without_them() {
    let shape = ExportShape { size_bytes: SIZE_BYTES, read_only: true };
    let (fragment, one, payload) = (4, 8, 32);
    let too_long = request(0, 0, 0, LARGEST_BYTES + 1);
    assert_eq!(judge(&too_long, &shape, Agreed::default()), Err(Errno::Invalid));
    assert_eq!(judged(7, 0, 0, 512), Err(Errno::Invalid));
    for style in [ChunkStyle::Structured, ChunkStyle::Extended] {
        let agreed = chunks(style);
        let judged =
            |command, flags, length| judge(&request(command, flags, 0, length), &shape, agreed);
        assert_eq!(judged(0, fragment, 512), Ok(Action::Read { whole: true }));
        assert_eq!(judged(0, 0, LARGEST_BYTES + 1), Err(Errno::Overflow));
        assert_eq!(judged(7, one, SIZE_BYTES), Ok(Action::Status { one: true }));
        assert_eq!(judged(7, 0, SIZE_BYTES + 1), Err(Errno::Invalid));
        assert_eq!(judged(7, 0, 0), Err(Errno::Invalid), "no bytes, no extent");
        assert_eq!(judged(7, fragment, 512), Err(Errno::Invalid));
        assert_eq!(judged(0, payload, 512), Err(Errno::Invalid));
        let unchosen = Agreed { status: false, ..agreed };
        assert_eq!(judge(&request(7, 0, 0, 512), &shape, unchosen), Err(Errno::Invalid));
    }
}

#[test]
fn an_extended_write_says_that_it_has_a_payload() {
    let shape = ExportShape { size_bytes: SIZE_BYTES, read_only: false };
    let agreed = chunks(ChunkStyle::Extended);
    let write = Ok(Action::Write { fua: false });
    assert_eq!(judge(&request(1, 32, 0, 512), &shape, agreed), write);
    assert_eq!(judge(&request(1, 0, 0, 512), &shape, agreed), Err(Errno::Invalid));
    let structured = chunks(ChunkStyle::Structured);
    assert_eq!(judge(&request(1, 32, 0, 512), &shape, structured), Err(Errno::Invalid));
}

#[test]
fn a_flush_takes_no_range_and_an_unknown_command_is_invalid() {
    assert_eq!(judged(3, 0, 0, 0), Ok(Action::Flush));
    assert_eq!(judged(3, 0, 1, 0), Err(Errno::Invalid));
    assert_eq!(judged(3, 0, 0, 1), Err(Errno::Invalid));
    for command in [7, 8, u16::MAX] {
        assert_eq!(judged(command, 0, 0, 0), Err(Errno::Invalid));
    }
}
