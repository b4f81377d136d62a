//! Structured and extended replies: holes, errors with an offset, 64-bit lengths, by raw bytes.

use crate::common::raw::{
    ACK, BLOCK_STATUS, CACHE, Chunk, Client, DATA, ERR_EXT_HEADER_REQD, ERR_INVALID, ERROR,
    ERROR_OFFSET, EXTENDED_HEADERS, FLUSH, HOLE, READ, STRUCTURED_REPLY, TRIM, WRITE, WRITE_ZEROES,
    be_u32, be_u64, error_of, request,
};
use crate::common::{ENGINE_ERRORS, Served, VOLUME_BYTES};
use ramet_engine::Kind;
use std::sync::atomic::Ordering::SeqCst;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;
const FUA: u16 = 1;
const DF: u16 = 4;
const FAST_ZERO: u16 = 16;
const PAYLOAD_LEN: u16 = 32;
const BLOCK: u64 = 4096;

/// A content chunk: its offset and its bytes, or the length of a hole.
fn content(chunk: &Chunk) -> (u64, Result<&[u8], u32>) {
    match chunk.kind {
        DATA => (be_u64(&chunk.payload), Ok(&chunk.payload[8..])),
        HOLE => {
            assert_eq!(chunk.payload.len(), 12);
            (be_u64(&chunk.payload), Err(be_u32(&chunk.payload[8..])))
        }
        other => panic!("a chunk of type {other}"),
    }
}

/// The parts of an error chunk: value, text, and offset if it has one.
fn error(chunk: &Chunk) -> (u32, String, Option<u64>) {
    let text_bytes = usize::from(u16::from_be_bytes([chunk.payload[4], chunk.payload[5]]));
    let text = String::from_utf8(chunk.payload[6..6 + text_bytes].to_vec()).unwrap();
    let rest = &chunk.payload[6 + text_bytes..];
    let at = match chunk.kind {
        ERROR => None,
        ERROR_OFFSET => Some(be_u64(rest)),
        other => panic!("a chunk of type {other}"),
    };
    assert_eq!(rest.len(), if at.is_some() { 8 } else { 0 });
    (be_u32(&chunk.payload), text, at)
}

fn read(client: &mut Client, flags: u16, range: (u64, u32)) -> Vec<Chunk> {
    client.send_request(flags, READ, 9, range);
    let chunks = client.chunks();
    assert!(chunks.iter().all(|chunk| chunk.cookie == 9));
    chunks
}

#[test]
fn holes_come_as_holes_and_are_not_read() {
    let served = Served::new();
    let mut client = served.attach_structured("volume", &[]);
    client.write(0, BLOCK, &[7; 100]);
    let calls_count = served.volume.calls_count.load(SeqCst);
    let chunks = read(&mut client, 0, (10 * BLOCK, 4 << 20));
    assert_eq!(chunks.len(), 1);
    assert_eq!(content(&chunks[0]), (10 * BLOCK, Err(4 << 20)));
    assert_eq!(served.volume.calls_count.load(SeqCst), calls_count, "no data was read");
}

#[test]
fn data_and_holes_cover_the_request_in_order_at_any_alignment() {
    let served = Served::new();
    let mut client = served.attach_structured("volume", &[]);
    client.write(0, BLOCK, &[7; 4096]);
    client.write(0, 3 * BLOCK + 1, &[8; 1]);
    let chunks = read(&mut client, 0, (1, 20_000));
    let mut block = vec![0; 4096];
    block[1] = 8;
    let contents: Vec<_> = chunks.iter().map(content).collect();
    let expected = [
        (1, Err(4095)),
        (BLOCK, Ok(&[7; 4096][..])),
        (2 * BLOCK, Err(4096)),
        (3 * BLOCK, Ok(&block[..])),
        (4 * BLOCK, Err(20_001 - 4 * 4096)),
    ];
    assert_eq!(contents, expected);
}

#[test]
fn a_read_that_must_not_be_fragmented_is_one_chunk() {
    let served = Served::new();
    let mut client = served.attach_structured("volume", &[]);
    client.write(0, BLOCK, &[7; 4096]);
    let chunks = read(&mut client, DF, (0, 3 * 4096));
    let mut expected = vec![0; 3 * 4096];
    expected[4096..8192].fill(7);
    assert_eq!(chunks.len(), 1);
    assert_eq!(content(&chunks[0]), (0, Ok(&expected[..])));
    let chunks = read(&mut client, DF, (1 << 20, 1 << 20));
    assert_eq!(content(&chunks[0]), (1 << 20, Err(1 << 20)), "a hole alone is one chunk too");
}

#[test]
fn very_fragmented_ranges_are_covered_with_a_bounded_number_of_chunks() {
    let served = Served::new();
    let mut client = served.attach_structured("volume", &[]);
    for index in 0..300 {
        client.write(0, index * 2 * BLOCK, &[1; 4096]);
    }
    let chunks = read(&mut client, 0, (0, 600 * 4096));
    assert!(chunks.len() <= 129, "{} chunks", chunks.len());
    let mut at = 0;
    for chunk in &chunks {
        let (offset, bytes) = content(chunk);
        assert_eq!(offset, at);
        match bytes {
            Err(length) => at += u64::from(length),
            Ok(bytes) => {
                for (index, block) in bytes.chunks(4096).enumerate() {
                    let number = (offset / BLOCK) + u64::try_from(index).unwrap();
                    let expected = u8::from(number.is_multiple_of(2));
                    assert!(block.iter().all(|byte| *byte == expected), "block {number}");
                }
                at += u64::try_from(bytes.len()).unwrap();
            }
        }
    }
    assert_eq!(at, 600 * BLOCK);
}

#[test]
fn what_lies_before_a_damaged_block_is_sent_and_the_error_has_its_offset() {
    let served = Served::new();
    let mut client = served.attach_structured("volume", &[]);
    client.write(0, 0, &[7; 65_536]);
    *served.volume.damaged_offset_bytes.lock() = Some(5 * BLOCK + 17);
    for flags in [0, DF] {
        let chunks = read(&mut client, flags, (100, 65_000));
        assert_eq!(chunks.len(), 2);
        assert_eq!(content(&chunks[0]), (100, Ok(&[7; 5 * 4096 - 100][..])));
        let told = (EIO, "segment 7 at slot 3".to_owned(), Some(5 * BLOCK));
        assert_eq!(error(&chunks[1]), told);
    }
    let chunks = read(&mut client, 0, (5 * BLOCK + 1, 10));
    assert_eq!(chunks.len(), 1);
    assert_eq!(error(&chunks[0]).2, Some(5 * BLOCK + 1), "inside of what was asked for");
    let chunks = read(&mut client, 0, (6 * BLOCK, 4096));
    assert_eq!(content(&chunks[0]), (6 * BLOCK, Ok(&[7; 4096][..])));
}

#[test]
fn errors_come_with_a_text_and_the_connection_goes_on() {
    let served = Served::new();
    let mut client = served.attach_structured("volume", &[]);
    let end = u64::try_from(VOLUME_BYTES).unwrap();
    for (flags, command, range, errno) in [
        (0, READ, (end, 1), EINVAL),
        (0, READ, (0, (32 << 20) + 1), EOVERFLOW),
        (8, READ, (0, 1), EINVAL),
        (0, WRITE_ZEROES, (end, 1), ENOSPC),
        (FAST_ZERO, WRITE_ZEROES, (1, 100), ENOTSUP),
        (0, BLOCK_STATUS, (0, 512), EINVAL),
        (0, 99, (0, 512), EINVAL),
    ] {
        client.send_request(flags, command, 3, range);
        let chunk = client.chunk();
        let (found, text, at) = error(&chunk);
        assert_eq!((found, at, chunk.done, chunk.cookie), (errno, None, true, 3), "{command}");
        assert!(!text.is_empty());
    }
    assert_eq!(client.write(FUA, 0, b"alive"), 0, "done without data is a simple reply");
    assert_eq!(content(&read(&mut client, 0, (0, 5))[0]), (0, Ok(&b"alive"[..])));
}

#[test]
fn every_kind_of_engine_error_has_its_errno_and_its_text_on_every_command() {
    let served = Served::new();
    let mut structured = served.attach_structured("volume", &[]);
    let mut extended = served.attach_extended("volume", &[]);
    for (kind, errno) in ENGINE_ERRORS {
        served.volume.fail_with(Some(kind));
        let told = (errno, "the test ordered it".to_owned(), None);
        for command in [READ, WRITE, TRIM, CACHE, WRITE_ZEROES, FLUSH] {
            let (flags, payload) =
                if command == WRITE { (PAYLOAD_LEN, &[1; 4096][..]) } else { (0, &[][..]) };
            let length_bytes = if command == FLUSH { 0 } else { 4096 };
            structured.send_request(0, command, 4, (0, length_bytes));
            structured.send(payload);
            assert_eq!(error(&structured.chunk()), told, "{kind:?} of {command}");
            extended.send_extended(flags, command, 4, (0, u64::from(length_bytes)));
            extended.send(payload);
            assert_eq!(error(&extended.extended_chunk(0)), told, "{kind:?} of {command}");
        }
    }
    served.volume.fail_with(None);
    assert_eq!(structured.write(FUA, 0, b"alive"), 0);
    assert_eq!(extended.ask_extended(0, FLUSH, (0, 0)), 0);
}

/// Where its chunks were planned already, an error takes the place of the first with data.
#[test]
fn a_read_that_fails_after_its_map_was_looked_at_is_an_error_of_its_kind() {
    let served = Served::new();
    let mut structured = served.attach_structured("volume", &[]);
    let mut extended = served.attach_extended("volume", &[]);
    assert_eq!(structured.write(0, 4096, &[7; 4096]), 0);
    for (kind, errno) in ENGINE_ERRORS {
        let damaged_at = (kind == Kind::Corrupt).then_some(BLOCK);
        let told = (errno, "the test ordered it".to_owned(), damaged_at);
        let fail = || {
            served.volume.read_gate.wait_for_caller();
            served.volume.fail_with(Some(kind));
            served.volume.read_gate.open();
        };
        served.volume.fail_with(None);
        served.volume.read_gate.close();
        structured.send_request(0, READ, 5, (0, 8192));
        fail();
        let chunks = structured.chunks();
        assert_eq!((chunks.len(), content(&chunks[0])), (2, (0, Err(4096))), "{kind:?}");
        assert_eq!(error(&chunks[1]), told, "{kind:?}");
        served.volume.fail_with(None);
        served.volume.read_gate.close();
        extended.send_extended(0, READ, 5, (0, 8192));
        fail();
        assert_eq!(content(&extended.extended_chunk(0)), (0, Err(4096)), "{kind:?}");
        assert_eq!(error(&extended.extended_chunk(0)), told, "{kind:?}");
    }
}

#[test]
fn a_read_of_no_bytes_is_done_without_a_chunk_of_content() {
    let served = Served::new();
    let mut client = served.attach_structured("volume", &[]);
    client.send_request(0, READ, 3, (0, 0));
    assert_eq!(client.reply(), (0, 3));
    let mut client = served.attach_extended("volume", &[]);
    assert_eq!(client.ask_extended(0, READ, (0, 0)), 0);
}

#[test]
fn extended_headers_carry_every_command() {
    let served = Served::new();
    let mut client = served.attach_extended("volume", &[]);
    client.send_extended(PAYLOAD_LEN | FUA, WRITE, 5, (4095, 3));
    client.send(b"abc");
    assert_eq!(error_of(&client.extended_chunk(4095)), 0);
    assert_eq!(served.volume.syncs_count.load(SeqCst), 1);
    client.send_extended(0, READ, 6, (4000, 200));
    let chunk = client.extended_chunk(4000);
    let mut expected = [0; 200];
    expected[95..98].copy_from_slice(b"abc");
    assert_eq!((chunk.done, chunk.cookie), (true, 6));
    assert_eq!(content(&chunk), (4000, Ok(&expected[..])));
    client.send_extended(0, READ, 7, (2 * BLOCK, BLOCK));
    assert_eq!(content(&client.extended_chunk(2 * BLOCK)), (2 * BLOCK, Err(4096)));
    let all = (0, u64::try_from(VOLUME_BYTES).unwrap());
    for (flags, command, range) in [
        (0, FLUSH, (0, 0)),
        (0, CACHE, all),
        (FUA, TRIM, (1, 5000)),
        (FAST_ZERO, WRITE_ZEROES, all),
    ] {
        assert_eq!(client.ask_extended(flags, command, range), 0, "{command}");
    }
    assert!(served.volume.bytes().iter().all(|byte| *byte == 0));
}

#[test]
fn extended_requests_that_make_no_sense_are_refused_and_the_connection_goes_on() {
    let served = Served::new();
    let mut client = served.attach_extended("volume", &[]);
    let end = u64::try_from(VOLUME_BYTES).unwrap();
    assert_eq!(client.ask_extended(0, TRIM, (0, u64::MAX)), EINVAL);
    assert_eq!(client.ask_extended(0, WRITE_ZEROES, (1, u64::MAX)), ENOSPC);
    assert_eq!(client.ask_extended(0, READ, (0, 1 << 40)), EINVAL);
    assert_eq!(client.ask_extended(0, READ, (0, end)), EOVERFLOW);
    assert_eq!(client.ask_extended(0, WRITE, (0, 512)), EINVAL, "the payload is not announced");
    assert_eq!(client.ask_extended(0, BLOCK_STATUS, (0, 512)), EINVAL);
    for command in [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, 99] {
        client.send_extended(PAYLOAD_LEN, command, 77, (0, 1000));
        client.send(&[9; 1000]);
        assert_eq!(error_of(&client.extended_chunk(0)), EINVAL, "command {command}");
    }
    client.send_extended(PAYLOAD_LEN, WRITE, 77, (end - 1, 3));
    client.send(b"abc");
    assert_eq!(error_of(&client.extended_chunk(end - 1)), ENOSPC);
    assert_eq!(served.volume.calls_count.load(SeqCst), 0);
    let mut client = served.attach_extended("snapshot", &[]);
    assert_eq!(client.ask_extended(0, TRIM, (0, 512)), EPERM);
}

#[test]
fn a_payload_beyond_the_limit_or_the_other_header_ends_an_extended_connection() {
    let served = Served::new();
    let mut client = served.attach_extended("volume", &[]);
    client.send_extended(PAYLOAD_LEN, WRITE, 1, (0, (32 << 20) + 1));
    client.expect_end();
    let mut client = served.attach_extended("volume", &[]);
    client.send(&request(0, FLUSH, 1, (0, 0)));
    client.send(&[0; 4]);
    client.expect_end();
    let mut client = served.attach_structured("volume", &[]);
    client.send_extended(0, FLUSH, 1, (0, 0));
    client.expect_end();
}

#[test]
fn the_style_of_replies_is_agreed_on_once_and_extended_headers_come_last() {
    let served = Served::new();
    let mut client = served.connect();
    client.greet(3);
    for option in [STRUCTURED_REPLY, EXTENDED_HEADERS] {
        assert_eq!(client.option(option, b"data"), ERR_INVALID);
    }
    assert_eq!(client.option(STRUCTURED_REPLY, b""), ACK);
    assert_eq!(client.option(STRUCTURED_REPLY, b""), ERR_INVALID);
    assert_eq!(client.option(EXTENDED_HEADERS, b""), ACK);
    assert_eq!(client.option(EXTENDED_HEADERS, b""), ERR_INVALID);
    assert_eq!(client.option(STRUCTURED_REPLY, b""), ERR_EXT_HEADER_REQD);
    client.go("volume");
    assert_eq!(client.ask_extended(0, FLUSH, (0, 0)), 0);
}

#[test]
fn export_name_is_forbidden_with_extended_headers_and_fine_with_structured_replies() {
    let served = Served::new();
    let mut client = served.connect();
    client.greet(3);
    client.option(EXTENDED_HEADERS, b"");
    client.send_option(1, b"volume");
    client.expect_end();
    let mut client = served.connect();
    client.greet(3);
    client.option(STRUCTURED_REPLY, b"");
    client.send_option(1, b"volume");
    assert_eq!(client.receive(10)[8..], (0b1101_1110_1101_u16).to_be_bytes(), "SEND_DF too");
    assert_eq!(content(&read(&mut client, 0, (0, 4096))[0]), (0, Err(4096)));
}
