//! Requests of every kind, in order and out of it, by raw bytes.

use crate::common::raw::{
    CACHE, Client, DISC, FLUSH, READ, TRIM, WRITE, WRITE_ZEROES, info_data, request,
};
use crate::common::{ENGINE_ERRORS, Served, VOLUME_BYTES};
use std::net::Shutdown;
use std::sync::atomic::Ordering::SeqCst;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const LARGEST_BYTES: usize = 32 << 20;

fn pattern(length_bytes: usize, seed: usize) -> Vec<u8> {
    (0..length_bytes).map(|index| u8::try_from((index * 31 + seed) % 251).unwrap()).collect()
}

fn volume_end() -> u64 {
    u64::try_from(VOLUME_BYTES).unwrap()
}

fn assert_alive(client: &mut Client) {
    assert_eq!(client.write(0, 5, b"alive"), 0);
    assert_eq!(client.read(5, 5), b"alive");
}

#[test]
fn what_is_written_is_read_at_any_alignment_and_length() {
    let served = Served::new();
    let mut client = served.attach("volume");
    let mut expected = vec![0; VOLUME_BYTES];
    let lengths = [1, 511, 512, 4095, 4096, 4097, 100_000, 262_144, 300_001, 5 << 20];
    for (index, length_bytes) in lengths.into_iter().enumerate() {
        let offset = index * (6 << 20) + index * 13 + 1;
        let payload = pattern(length_bytes, index);
        expected[offset..offset + length_bytes].copy_from_slice(&payload);
        assert_eq!(client.write(0, u64::try_from(offset).unwrap(), &payload), 0);
        let length_bytes = u32::try_from(length_bytes).unwrap();
        assert_eq!(client.read(u64::try_from(offset).unwrap(), length_bytes), payload);
    }
    assert!(served.volume.bytes() == expected, "bytes beside the writes changed");
}

#[test]
fn a_payload_of_32_mib_goes_both_ways() {
    let served = Served::new();
    let mut client = served.attach("volume");
    let payload = pattern(LARGEST_BYTES, 3);
    assert_eq!(client.write(0, 77, &payload), 0);
    assert!(client.read(77, 32 << 20) == payload);
    assert_alive(&mut client);
}

#[test]
fn flush_and_fua_reach_the_device() {
    let served = Served::new();
    let mut client = served.attach("volume");
    let syncs_count = || served.volume.syncs_count.load(SeqCst);
    assert_eq!(client.write(0, 0, b"x"), 0);
    assert_eq!(syncs_count(), 0);
    assert_eq!(client.ask(0, FLUSH, (0, 0)), 0);
    assert_eq!(syncs_count(), 1);
    assert_eq!(client.write(FUA, 0, b"x"), 0);
    assert_eq!(client.ask(FUA, TRIM, (0, 1)), 0);
    assert_eq!(client.ask(FUA, WRITE_ZEROES, (0, 1)), 0);
    assert_eq!(syncs_count(), 4);
    assert_eq!(client.ask(FUA, READ, (0, 0)), 0, "FUA on a read is legal and means nothing");
}

#[test]
fn trim_and_write_zeroes_make_zeros_of_exactly_their_range() {
    let served = Served::new();
    let mut client = served.attach("volume");
    for (command, flags) in [(TRIM, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, NO_HOLE)] {
        assert_eq!(client.write(0, 0, &[9; 10_000]), 0);
        assert_eq!(client.ask(flags, command, (4001, 2000)), 0);
        let mut expected = vec![9; 10_000];
        expected[4001..6001].fill(0);
        assert_eq!(client.read(0, 10_000), expected);
    }
    assert_eq!(client.ask(0, TRIM, (0, u32::try_from(VOLUME_BYTES).unwrap())), 0);
    assert!(served.volume.bytes().iter().all(|byte| *byte == 0));
}

#[test]
fn zero_lengths_succeed_without_touching_the_device() {
    let served = Served::new();
    let mut client = served.attach("volume");
    for offset in [0, 1, volume_end()] {
        assert_eq!(client.read(offset, 0), b"");
        assert_eq!(client.write(FUA, offset, b""), 0);
        assert_eq!(client.ask(0, TRIM, (offset, 0)), 0);
        assert_eq!(client.ask(0, WRITE_ZEROES, (offset, 0)), 0);
    }
    assert_eq!(served.volume.calls_count.load(SeqCst), 0);
}

#[test]
fn requests_past_the_end_get_their_own_errors_and_the_connection_goes_on() {
    let served = Served::new();
    let mut client = served.attach("volume");
    for offset in [volume_end(), volume_end() - 1, u64::MAX, u64::MAX - 1, 1 << 63] {
        assert_eq!(client.ask(0, READ, (offset, 2)), EINVAL);
        assert_eq!(client.write(0, offset, b"xy"), ENOSPC);
        assert_eq!(client.ask(0, TRIM, (offset, 2)), EINVAL);
        assert_eq!(client.ask(0, WRITE_ZEROES, (offset, 2)), ENOSPC);
    }
    assert_eq!(served.volume.calls_count.load(SeqCst), 0);
    assert_alive(&mut client);
}

#[test]
fn oversized_payloads_are_refused_and_the_connection_goes_on() {
    let served = Served::new();
    let mut client = served.attach("volume");
    assert_eq!(client.ask(0, READ, (0, (32 << 20) + 1)), EINVAL);
    assert_eq!(client.ask(0, READ, (0, u32::MAX)), EINVAL);
    assert_eq!(client.write(0, 0, &vec![1; LARGEST_BYTES + 1]), EINVAL);
    assert_eq!(client.write(0, 0, &vec![1; 64 << 20]), EINVAL);
    assert_eq!(served.volume.calls_count.load(SeqCst), 0);
    assert_alive(&mut client);
}

#[test]
fn an_absurd_payload_ends_the_connection() {
    let served = Served::new();
    let mut client = served.attach("volume");
    client.send_request(0, WRITE, 1, (0, u32::MAX));
    client.expect_end();
}

#[test]
fn unknown_commands_and_flags_are_invalid_and_the_connection_goes_on() {
    let served = Served::new();
    let mut client = served.attach("volume");
    for command in [7, 8, 100, u16::MAX] {
        assert_eq!(client.ask(0, command, (0, 4096)), EINVAL);
    }
    for flag in [4, 8, 32, 1 << 15] {
        assert_eq!(client.ask(flag, READ, (0, 512)), EINVAL);
        assert_eq!(client.ask(flag, CACHE, (0, 512)), EINVAL);
        assert_eq!(client.write(flag, 0, b"payload that must be dropped"), EINVAL);
        assert_eq!(client.ask(flag, WRITE_ZEROES, (0, 512)), EINVAL);
    }
    assert_eq!(client.ask(0, FLUSH, (0, 1)), EINVAL);
    assert_alive(&mut client);
}

#[test]
fn a_bad_request_magic_ends_the_connection_after_earlier_answers() {
    let served = Served::new();
    let mut client = served.attach("volume");
    let mut bytes = request(0, FLUSH, 1, (0, 0));
    bytes.extend([0x26, 0x60, 0x95, 0x13]);
    bytes.extend([0; 24]);
    client.send(&bytes);
    assert_eq!(client.reply(), (0, 1));
    client.expect_end();
}

#[test]
fn a_snapshot_is_read_and_never_written() {
    let served = Served::new();
    let mut client = served.attach("snapshot");
    assert_eq!(client.read(4000, 200), [0x5a; 200]);
    assert_eq!(client.write(0, 0, b"xy"), EPERM);
    assert_eq!(client.write(FUA, u64::MAX, &vec![1; 300_000]), EPERM);
    assert_eq!(client.ask(0, TRIM, (0, 512)), EPERM);
    assert_eq!(client.ask(0, WRITE_ZEROES, (0, 512)), EPERM);
    assert_eq!(client.ask(0, FLUSH, (0, 0)), 0);
    assert_eq!(served.snapshot.changes_count.load(SeqCst), 0);
    assert_eq!(client.read(0, 3), [0x5a; 3]);
}

#[test]
fn every_kind_of_engine_error_has_its_errno_on_every_command() {
    let served = Served::new();
    let mut client = served.attach("volume");
    for (kind, errno) in ENGINE_ERRORS {
        served.volume.fail_with(Some(kind));
        assert_eq!(client.ask(0, READ, (0, 4096)), errno, "{kind:?}");
        assert_eq!(client.write(0, 0, b"x"), errno, "{kind:?}");
        assert_eq!(client.ask(0, TRIM, (0, 512)), errno, "{kind:?}");
        assert_eq!(client.ask(0, WRITE_ZEROES, (0, 512)), errno, "{kind:?}");
        assert_eq!(client.ask(0, CACHE, (0, 512)), errno, "{kind:?}");
        assert_eq!(client.ask(0, FLUSH, (0, 0)), errno, "{kind:?}");
    }
    served.volume.fail_with(None);
    assert_alive(&mut client);
}

/// A damaged block is an error for who comes upon it, and so tells what was read.
#[test]
fn a_cache_request_reads_what_is_mapped_of_its_first_32_mib() {
    let served = Served::new();
    let mut client = served.attach("volume");
    let cut = 4096 + (32 << 20);
    for offset in [4096, cut - 4096, cut] {
        assert_eq!(client.write(0, offset, &[7; 4096]), 0);
    }
    let all = (4096, u32::try_from(VOLUME_BYTES).unwrap() - 4096);
    assert_eq!(client.ask(0, CACHE, all), 0);
    let read: Vec<u64> = served.volume.reads.lock().iter().map(|it| it.0).collect();
    assert_eq!(read, [4096, cut - 4096]);
    for (damaged, errno) in [(4096, EIO), (cut - 1, EIO), (cut, 0)] {
        *served.volume.damaged_offset_bytes.lock() = Some(damaged);
        assert_eq!(client.ask(0, CACHE, all), errno, "block of byte {damaged}");
    }
}

#[test]
fn a_pipeline_of_mixed_requests_is_answered_in_order() {
    let served = Served::new();
    let mut client = served.attach("volume");
    let mut bytes = Vec::new();
    for index in 0..2000_u64 {
        let payload = pattern(3000, usize::try_from(index).unwrap());
        bytes.extend(request(0, WRITE, index, (index * 3000, 3000)));
        bytes.extend(&payload);
        bytes.extend(request(0, READ, 10_000 + index, (index * 3000, 3000)));
        bytes.extend(request(0, READ, 20_000 + index, (u64::MAX, 1)));
    }
    let mut sender = client.stream.try_clone().unwrap();
    let sending =
        std::thread::spawn(move || std::io::Write::write_all(&mut sender, &bytes).unwrap());
    for index in 0..2000_u64 {
        assert_eq!(client.reply(), (0, index));
        assert_eq!(client.reply(), (0, 10_000 + index));
        assert!(client.receive(3000) == pattern(3000, usize::try_from(index).unwrap()));
        assert_eq!(client.reply(), (EINVAL, 20_000 + index));
    }
    sending.join().unwrap();
}

/// Reads were served one after the other, and each waited for the disk in turn: a third of what
/// another server read of a cold volume.
#[test]
fn reads_behind_one_that_waits_for_a_medium_are_announced_to_the_device() {
    let served = Served::new();
    let (mut client, mut other) = (served.attach("volume"), served.attach("volume"));
    let announced = || std::mem::take(&mut *served.volume.announced.lock());
    served.volume.read_gate.close();
    let mut together = request(0, READ, 1, (4096, 4096));
    together.extend(request(0, WRITE, 2, (0, 512)));
    together.extend([7; 512]);
    together.extend(request(0, READ, 3, (8192, 512)));
    together.extend(request(0, FLUSH, 4, (0, 0)));
    together.extend(request(0, READ, 5, (20_480, 1024)));
    client.send(&together);
    served.volume.read_gate.wait_for_caller();
    // So many round trips take longer than what counts as quick.
    (0..100).for_each(|_| assert_eq!(other.ask(0, FLUSH, (0, 0)), 0));
    assert_eq!(announced(), [], "nothing was slow yet");
    served.volume.read_gate.open();
    for (cookie, length_bytes) in [(1, 4096), (2, 0), (3, 512), (4, 0), (5, 1024)] {
        assert_eq!(client.reply(), (0, cookie));
        client.receive(length_bytes);
    }
    assert_eq!(announced(), [(8192, 512), (20_480, 1024)]);
    assert_eq!(client.read(0, 512), [7; 512]);
    assert_eq!(announced(), [(0, 512)], "for a while each is announced when it comes");
}

/// The story: what a client sent while it was answered waited until all before it was served, and
/// the disk ran out of work.
#[test]
fn reads_that_come_while_others_are_answered_are_announced_before_those_are_through() {
    let served = Served::new();
    let (mut client, mut other) = (served.attach("volume"), served.attach("volume"));
    let some = |places: std::ops::Range<u64>| -> Vec<u8> {
        places.flat_map(|place| request(0, READ, place, (place * 2048, 2048))).collect()
    };
    // More than are answered at once.
    served.volume.read_gate.close();
    client.send(&some(0..10));
    served.volume.read_gate.wait_for_caller();
    // So many round trips take longer than what counts as quick.
    (0..100).for_each(|_| assert_eq!(other.ask(0, FLUSH, (0, 0)), 0));
    client.send(&some(10..11));
    served.volume.read_gate.open();
    for place in 0..11 {
        assert_eq!(client.reply(), (0, place));
        client.receive(2048);
    }
    let announced: Vec<u64> = served.volume.announced.lock().iter().map(|it| it.0 / 2048).collect();
    assert_eq!(announced, (1..11).collect::<Vec<_>>(), "each once");
    assert_eq!(served.volume.reads.lock()[9], (9 * 2048, 10), "the last before was not read yet");
}

#[test]
fn requests_that_arrive_byte_by_byte_are_served() {
    let served = Served::new();
    let mut client = served.attach("volume");
    let mut bytes = request(0, WRITE, 1, (10, 5));
    bytes.extend(b"hello");
    bytes.extend(request(0, READ, 2, (10, 5)));
    for byte in bytes {
        client.send(&[byte]);
    }
    assert_eq!(client.reply(), (0, 1));
    assert_eq!(client.reply(), (0, 2));
    assert_eq!(client.receive(5), b"hello");
}

#[test]
fn requests_sent_together_with_the_handshake_are_served() {
    let served = Served::new();
    let mut client = served.connect();
    let data = info_data("volume", &[]);
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    bytes.extend(b"IHAVEOPT\0\0\0\x07");
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes.extend(request(0, FLUSH, 3, (0, 0)));
    client.send(&bytes);
    client.receive(18);
    client.option_reply();
    client.option_reply();
    assert_eq!(client.reply(), (0, 3));
}

#[test]
fn disconnect_answers_what_came_before_and_ends() {
    let served = Served::new();
    let mut client = served.attach("volume");
    let mut bytes = request(0, READ, 1, (0, 3));
    bytes.extend(request(0, DISC, 2, (0, 0)));
    client.send(&bytes);
    assert_eq!(client.reply(), (0, 1));
    assert_eq!(client.receive(3), [0; 3]);
    client.expect_end();
    assert_eq!(served.exports.attached_count(), 0, "detached before the client sees the end");
}

/// A connection that dies within a write must not leave half of the payload behind.
#[test]
fn a_write_received_in_part_is_never_applied() {
    let served = Served::new();
    for (announced_bytes, sent_bytes) in [(4096, 4095), (4096, 0), (1 << 20, 700_000)] {
        let mut client = served.attach("volume");
        client.send_request(0, WRITE, 1, (0, announced_bytes));
        client.send(&vec![1; sent_bytes]);
        client.stream.shutdown(Shutdown::Write).unwrap();
        client.expect_end();
        served.exports.wait_until_attached(0);
    }
    assert_eq!(served.volume.calls_count.load(SeqCst), 0);
}

#[test]
fn a_panic_in_the_device_ends_its_connection_only() {
    let served = Served::new();
    let mut bystander = served.attach("volume");
    let mut client = served.attach("volume");
    *served.volume.panic_offset_bytes.lock() = Some(666);
    client.send_request(0, READ, 1, (666, 1));
    client.expect_end();
    assert_eq!(served.exports.attached_count(), 1);
    assert_alive(&mut bystander);
    assert_alive(&mut served.attach("volume"));
}
