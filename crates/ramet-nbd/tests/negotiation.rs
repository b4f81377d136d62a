//! Each option and each malformed message of the handshake, by raw bytes.

use crate::common::raw::{
    ACK, ERR_INVALID, ERR_TOO_BIG, ERR_UNKNOWN, ERR_UNSUP, OptionReply, info_data,
};
use crate::common::{Served, VOLUME_BYTES};
use std::io::Write;

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const INFO: u32 = 6;
const GO: u32 = 7;
/// HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN, SEND_CACHE,
/// SEND_FAST_ZERO.
const VOLUME_FLAGS: u16 = 0b1101_0110_1101;
/// HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, CAN_MULTI_CONN, SEND_CACHE.
const SNAPSHOT_FLAGS: u16 = 0b101_0000_1111;

fn export_info(size_bytes: usize, flags: u16) -> Vec<u8> {
    let mut data = vec![0, 0];
    data.extend(u64::try_from(size_bytes).unwrap().to_be_bytes());
    data.extend(flags.to_be_bytes());
    data
}

fn reply(option: u32, reply: u32, data: &[u8]) -> OptionReply {
    OptionReply { option, reply, data: data.to_vec() }
}

#[test]
fn export_name_answers_size_flags_and_zeroes() {
    let served = Served::new();
    let mut client = served.connect();
    client.greet(1);
    client.send_option(EXPORT_NAME, b"volume");
    let mut expected = export_info(VOLUME_BYTES, VOLUME_FLAGS)[2..].to_vec();
    expected.extend([0; 124]);
    assert_eq!(client.receive(134), expected);
    assert_eq!(client.read(0, 1), [0]);
}

#[test]
fn export_name_leaves_the_zeroes_out_when_asked() {
    let served = Served::new();
    let mut client = served.connect();
    client.greet(3);
    client.send_option(EXPORT_NAME, b"snapshot");
    assert_eq!(client.receive(10), export_info(1 << 20, SNAPSHOT_FLAGS)[2..]);
    assert_eq!(client.read(0, 1), [0x5a]);
}

/// A client that knows no fixed newstyle has this option only, and may do without the zeroes too.
#[test]
fn a_client_without_fixed_newstyle_is_served() {
    let served = Served::new();
    for (flags, zeroes_count) in [(0, 124), (2, 0)] {
        let mut client = served.connect();
        client.greet(flags);
        client.send_option(EXPORT_NAME, b"volume");
        let mut expected = export_info(VOLUME_BYTES, VOLUME_FLAGS)[2..].to_vec();
        expected.resize(10 + zeroes_count, 0);
        assert_eq!(client.receive(10 + zeroes_count), expected);
        assert_eq!(client.write(0, 0, b"plain"), 0);
        assert_eq!(client.read(0, 5), b"plain");
    }
}

#[test]
fn export_name_of_an_unknown_or_malformed_name_ends_the_connection() {
    let served = Served::new();
    for name in [&b"nobody"[..], b"", b"\xff\xfe", b"vol\0ume", &[b'a'; 5000]] {
        let mut client = served.connect();
        client.greet(3);
        client.send_option(EXPORT_NAME, name);
        client.expect_end();
    }
}

#[test]
fn abort_is_acknowledged_and_ends_the_connection() {
    let served = Served::new();
    for data in [&b""[..], b"ignored"] {
        let mut client = served.connect();
        client.greet(3);
        assert_eq!(client.option(ABORT, data), ACK);
        client.expect_end();
    }
}

#[test]
fn list_names_every_export_in_order() {
    let served = Served::new();
    let mut client = served.connect();
    client.greet(3);
    client.send_option(LIST, b"");
    assert_eq!(client.option_reply(), reply(LIST, 2, b"\0\0\0\x08snapshot"));
    assert_eq!(client.option_reply(), reply(LIST, 2, b"\0\0\0\x06volume"));
    assert_eq!(client.option_reply(), reply(LIST, ACK, b""));
}

#[test]
fn list_of_thousands_is_complete() {
    let served = Served::new();
    for number in 0..5_000_u64 {
        let device = crate::common::memory::MemoryDevice::new(512);
        served.exports.add(&format!("a-volume-with-a-longer-name-{number:05}"), number, device);
    }
    let mut client = served.connect();
    client.greet(3);
    client.send_option(LIST, b"");
    for number in 0..5_000 {
        let data = client.option_reply().data;
        assert_eq!(data[4..], *format!("a-volume-with-a-longer-name-{number:05}").as_bytes());
    }
}

#[test]
fn list_with_data_is_invalid_and_the_connection_goes_on() {
    let served = Served::new();
    let mut client = served.connect();
    client.greet(3);
    assert_eq!(client.option(LIST, b"data"), ERR_INVALID);
    client.go("volume");
}

#[test]
fn info_and_go_answer_what_was_asked_for_and_ignore_the_unknown() {
    let served = Served::new();
    let mut client = served.connect();
    client.greet(3);
    for option in [INFO, GO] {
        client.send_option(option, &info_data("volume", &[1, 2, 3, 999]));
        let export = export_info(VOLUME_BYTES, VOLUME_FLAGS);
        assert_eq!(client.option_reply(), reply(option, 3, &export));
        assert_eq!(client.option_reply(), reply(option, 3, b"\0\x01volume"));
        assert_eq!(client.option_reply(), reply(option, 3, b"\0\x02volume"));
        let sizes = b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0";
        assert_eq!(client.option_reply(), reply(option, 3, sizes));
        assert_eq!(client.option_reply(), reply(option, ACK, b""));
    }
    assert_eq!(client.read(0, 1), [0]);
}

#[test]
fn info_without_requests_answers_the_export_alone_and_attaches_nothing() {
    let served = Served::new();
    let mut client = served.connect();
    client.greet(3);
    client.send_option(INFO, &info_data("snapshot", &[]));
    assert_eq!(client.option_reply(), reply(INFO, 3, &export_info(1 << 20, SNAPSHOT_FLAGS)));
    assert_eq!(client.option_reply().reply, ACK);
    assert_eq!(served.exports.attached_count(), 0);
}

#[test]
fn an_unknown_export_is_said_so_and_the_connection_goes_on() {
    let served = Served::new();
    let mut client = served.connect();
    client.greet(3);
    for option in [INFO, GO] {
        assert_eq!(client.option(option, &info_data("nobody", &[])), ERR_UNKNOWN);
        assert_eq!(client.option(option, &info_data("", &[3])), ERR_UNKNOWN);
    }
    client.go("volume");
}

#[test]
fn malformed_info_is_invalid_and_the_connection_goes_on() {
    let served = Served::new();
    let mut client = served.connect();
    client.greet(3);
    let good = info_data("volume", &[3]);
    let mut long_name = info_data("volume", &[]);
    long_name[..4].copy_from_slice(&[0xff; 4]);
    let mut many = good.clone();
    many[11] = 2;
    let mut trailing = good.clone();
    trailing.push(0);
    let malformed = [
        Vec::new(),
        vec![0, 0, 0],
        vec![0, 0, 0, 0],
        good[..good.len() - 1].to_vec(),
        long_name,
        many,
        trailing,
        info_data("vol\0ume", &[]),
        info_data(&"a".repeat(4097), &[]),
        b"\0\0\0\x02\xff\xfe\0\0".to_vec(),
    ];
    for data in &malformed {
        for option in [INFO, GO] {
            assert_eq!(client.option(option, data), ERR_INVALID, "{data:?}");
        }
    }
    client.go("volume");
}

#[test]
fn options_that_are_not_served_are_unsupported_and_their_data_consumed() {
    let served = Served::new();
    let mut client = served.connect();
    client.greet(3);
    for option in [0, 4, 5, 12, u32::MAX] {
        for data in [&b""[..], b"some data", &[7; 60_000]] {
            assert_eq!(client.option(option, data), ERR_UNSUP, "option {option}");
        }
    }
    client.go("volume");
}

#[test]
fn an_option_that_is_too_long_is_dropped_and_said_so() {
    let served = Served::new();
    let mut client = served.connect();
    client.greet(3);
    for option in [LIST, GO, 10, 77] {
        assert_eq!(client.option(option, &vec![0; 1 << 20]), ERR_TOO_BIG);
    }
    client.go("volume");
}

#[test]
fn an_absurd_option_length_ends_the_connection() {
    let served = Served::new();
    for (option, length_bytes) in [(GO, u32::MAX), (77, (32 << 20) + 1), (EXPORT_NAME, 1 << 20)] {
        let mut client = served.connect();
        client.greet(3);
        client.send_option_header(option, length_bytes);
        client.expect_end();
    }
}

#[test]
fn unknown_client_flags_end_the_connection() {
    let served = Served::new();
    for flags in [4, 1 << 31, u32::MAX] {
        let mut client = served.connect();
        client.greet(flags);
        client.expect_end();
    }
}

#[test]
fn a_bad_option_magic_ends_the_connection() {
    let served = Served::new();
    let mut client = served.connect();
    client.greet(3);
    client.send(b"IHAVEOPS\0\0\0\x03\0\0\0\0");
    client.expect_end();
}

#[test]
fn a_connection_that_ends_anywhere_in_the_handshake_leaves_nothing_behind() {
    let served = Served::new();
    let mut whole = 3_u32.to_be_bytes().to_vec();
    whole.extend(b"IHAVEOPT\0\0\0\x07");
    let data = info_data("volume", &[3]);
    whole.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    whole.extend(data);
    for length_bytes in 0..whole.len() {
        let mut client = served.connect();
        client.stream.write_all(&whole[..length_bytes]).unwrap();
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        client.receive(18);
        client.expect_end();
    }
    assert_eq!((served.server.connections_count(), served.exports.attached_count()), (0, 0));
}
