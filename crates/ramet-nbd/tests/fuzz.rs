//! Conversations that went wrong: those of the corpus, changed at random, sent to a server.
//!
//! Whatever arrives, nothing panics, every connection ends, nothing stays attached, and a snapshot
//! keeps its bytes. A program of its own, because it watches for panics. `RAMET_SEED` makes it
//! another run, `RAMET_FUZZ_CASES` a longer one; `make soak` sets both.

#![allow(clippy::unwrap_used, reason = "the lint spares test functions, not their helpers")]

#[allow(dead_code, reason = "the other test program uses the rest")]
mod common;

use common::Served;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use ramet_nbd::codec::{
    ClientFlags, ContextRequest, InfoRequest, OptionHeader, Request, SimpleReply, StatusPayload,
    decode_name,
};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// About a minute.
const CASES: u32 = 150_000;
const SEED: u64 = 8812;
/// What a client can send before it listens; the corpus is smaller.
const SENT_BYTES_MAX: usize = 16 << 10;
/// Numbers at which lengths and offsets go wrong.
const NUMBERS: [u64; 12] = [
    0,
    1,
    511,
    4095,
    4097,
    (32 << 20) + 1,
    1 << 31,
    0xffff_ffff,
    1 << 32,
    1 << 63,
    u64::MAX - 4095,
    u64::MAX,
];

/// One change of a conversation; places are taken modulo its length.
#[derive(Clone, Debug)]
enum Change {
    Flip { at: usize, bits: u8 },
    Number { at: usize, index: usize, wide: bool },
    Cut { from: usize, length: usize },
    Repeat { from: usize, length: usize, to: usize },
    Splice { other: usize, from: usize, to: usize },
    End { at: usize },
}

fn change() -> impl Strategy<Value = Change> {
    let place = || 0..4096_usize;
    prop_oneof![
        4 => (place(), 1..=u8::MAX).prop_map(|(at, bits)| Change::Flip { at, bits }),
        4 => (place(), 0..NUMBERS.len(), any::<bool>())
            .prop_map(|(at, index, wide)| Change::Number { at, index, wide }),
        2 => (place(), 1..64_usize).prop_map(|(from, length)| Change::Cut { from, length }),
        2 => (place(), 1..256_usize, place())
            .prop_map(|(from, length, to)| Change::Repeat { from, length, to }),
        1 => (0..64_usize, place(), place())
            .prop_map(|(other, from, to)| Change::Splice { other, from, to }),
        1 => place().prop_map(|at| Change::End { at }),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change, corpus: &[Vec<u8>]) {
    let length = bytes.len();
    if length == 0 {
        return;
    }
    match *change {
        Change::Flip { at, bits } => bytes[at % length] ^= bits,
        Change::Number { at, index, wide } => {
            let number = NUMBERS[index].to_be_bytes();
            let number = if wide { &number[..] } else { &number[4..] };
            // Fields lie at multiples of four, mostly.
            let at = at % length / 4 * 4;
            for (byte, new) in bytes[at..].iter_mut().zip(number) {
                *byte = *new;
            }
        }
        Change::Cut { from, length: cut } => {
            let from = from % length;
            bytes.drain(from..(from + cut).min(length));
        }
        Change::Repeat { from, length: count, to } => {
            let from = from % length;
            let part = bytes[from..(from + count).min(length)].to_vec();
            let to = to % length;
            bytes.splice(to..to, part);
        }
        Change::Splice { other, from, to } => {
            let other = &corpus[other % corpus.len()];
            bytes.truncate(to % length);
            bytes.extend(&other[from % other.len()..]);
        }
        Change::End { at } => bytes.truncate(at % length),
    }
}

/// Every decoder takes any bytes.
fn decode_all(bytes: &[u8]) {
    let _ = InfoRequest::decode(bytes);
    let _ = ContextRequest::decode(bytes);
    let _ = StatusPayload::decode(bytes);
    let _ = decode_name(bytes);
    let _ = bytes.first_chunk().map(|bytes| ClientFlags::decode(*bytes));
    let _ = bytes.first_chunk().map(OptionHeader::decode);
    let _ = bytes.first_chunk().map(Request::decode);
    let _ = bytes.first_chunk().map(Request::decode_extended);
    let _ = bytes.first_chunk().map(SimpleReply::decode);
}

/// Send all of it, say that nothing follows, and take whatever is answered.
fn converse(served: &Served, bytes: &[u8]) {
    let mut client = served.connect();
    std::thread::scope(|scope| {
        let mut sender = client.stream.try_clone().unwrap();
        scope.spawn(move || {
            // The server may have hung up.
            let _ = sender.write_all(bytes);
            let _ = sender.shutdown(Shutdown::Write);
        });
        let mut buffer = vec![0; 256 << 10];
        while client.stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
    });
    drop(client);
    served.exports.wait_until_attached(0);
}

fn corpus() -> Vec<Vec<u8>> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
    let mut paths: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 9, "the corpus is not where it was");
    paths.into_iter().map(|path| std::fs::read(path).unwrap()).collect()
}

static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, SeqCst);
        before(info);
    }));
}

#[test]
fn no_conversation_makes_the_server_panic_or_leave_anything_behind() {
    count_panics();
    let served = Served::new();
    let corpus = corpus();
    for bytes in &corpus {
        converse(&served, bytes);
    }
    let calls_count = served.volume.calls_count.load(SeqCst);
    assert!(calls_count > 10, "the corpus gets through: {calls_count} calls of the device");
    assert_eq!(PANICS.load(SeqCst), 0);
    let cases = std::env::var("RAMET_FUZZ_CASES").map_or(CASES, |cases| cases.parse().unwrap());
    let seed = std::env::var("RAMET_SEED").map_or(SEED, |seed| seed.parse().unwrap());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut seed_bytes = [0; 32];
    seed_bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let randomness = TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes);
    let mut runner = TestRunner::new_with_rng(config, randomness);
    let changes = (0..corpus.len(), proptest::collection::vec(change(), 1..6));
    let ran = runner.run(&changes, |(start, changes)| {
        let mut bytes = corpus[start].clone();
        for change in &changes {
            apply(&mut bytes, change, &corpus);
        }
        bytes.truncate(SENT_BYTES_MAX);
        decode_all(&bytes);
        converse(&served, &bytes);
        prop_assert_eq!(PANICS.load(SeqCst), 0);
        Ok(())
    });
    if let Err(failure) = ran {
        panic!("{failure}; rerun with RAMET_SEED={seed}");
    }
    assert!(served.snapshot.bytes().iter().all(|byte| *byte == 0x5a));
    assert_eq!(served.attach("volume").read(0, 0), b"");
}
