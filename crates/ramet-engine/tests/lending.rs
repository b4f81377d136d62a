//! Reads that are lent give what reads that are copied give, and keep it while writes, deletes and
//! reclaim go on around them.

use ramet_engine::{BlockDevice, Engine, Lent, Settings};
use ramet_store::FileStore;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 1024;
const HELD_READS: usize = 64;

/// A directory that goes when the test is through.
struct Scratch(PathBuf);

impl Scratch {
    fn engine(name: &str) -> (Self, Arc<Engine>) {
        let path = std::env::temp_dir().join(format!("ramet-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a scratch directory");
        let store = Arc::new(FileStore::new(&path));
        Engine::create_in(&*store, 1 << 20).expect("created");
        let engine = Engine::open_in(store, false, Settings::default()).expect("opened");
        engine.create_volumes(&["v".into()], BLOCKS * BLOCK as u64, &[]).expect("created");
        (Scratch(path), engine)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// A block that says which it is and from which round.
fn block(index: u64, round: u64) -> Vec<u8> {
    [index, round].map(u64::to_le_bytes).concat().repeat(BLOCK / 16)
}

fn check(index: u64, bytes: &[u8]) {
    // A hole is not lent, so there are no zeros.
    let round = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
    assert!(bytes == block(index, round), "block {index} is not one write's");
}

/// Read and fill in what was lent. Result: the bytes, and how many of them were lent.
fn read_lent(device: &dyn BlockDevice, at: u64, length: usize) -> (Vec<u8>, usize) {
    let (mut bytes, mut lent) = (vec![0xee; length], Vec::new());
    device.read_lent(at, &mut bytes, &mut lent).expect("it can be read");
    let mut lent_bytes = 0;
    for it in &lent {
        let part = it.bytes();
        bytes[it.place..it.place + part.len()].copy_from_slice(part);
        lent_bytes += part.len();
    }
    (bytes, lent_bytes)
}

#[test]
fn what_is_lent_and_what_is_copied_are_the_same() {
    let (_scratch, engine) = Scratch::engine("lending-same");
    let device = engine.device("v").expect("there");
    let (mut random, mut lent_bytes) = (Random(7), 0);
    for round in 1..400 {
        let (first, count) = (random.below(BLOCKS - 32), 1 + random.below(32));
        let at = first * BLOCK as u64;
        match random.below(8) {
            0 => device.trim(at, count * BLOCK as u64, false).expect("trimmed"),
            1 => device.flush().expect("flushed"),
            // Part of a block.
            2 => device.write(at + 100, &[7; 700], false).expect("written"),
            _ => {
                let bytes: Vec<u8> =
                    (first..first + count).flat_map(|index| block(index, round)).collect();
                device.write(at, &bytes, false).expect("written");
            }
        }
        let from = random.below(BLOCKS - 256) * BLOCK as u64;
        let odd = [0, 512, 13][usize::try_from(random.below(3)).expect("small")];
        let length = usize::try_from(random.below(256 * BLOCK as u64)).expect("small");
        let length = if odd == 0 { length / BLOCK * BLOCK } else { length };
        let (bytes, lent) = read_lent(&*device, from + odd, length);
        let mut copied = vec![0; length];
        device.read(from + odd, &mut copied).expect("it can be read");
        assert_eq!(bytes, copied, "round {round}");
        lent_bytes += lent;
    }
    assert!(lent_bytes > 1 << 20, "something was lent");
}

#[test]
fn what_is_beyond_the_end_or_deleted_is_not_lent() {
    let (_scratch, engine) = Scratch::engine("lending-ends");
    let device = engine.device("v").expect("there");
    device.write(0, &block(0, 1), true).expect("written");
    let (mut bytes, mut lent) = (vec![0; 2 * BLOCK], Vec::<Lent>::new());
    assert!(device.read_lent((BLOCKS - 1) * BLOCK as u64, &mut bytes, &mut lent).is_err());
    device.read_lent(0, &mut bytes, &mut lent).expect("it can be read");
    assert_eq!(lent.len(), 1, "and a hole");
    engine.close().expect("closed");
    assert!(device.read_lent(0, &mut bytes, &mut lent).is_err());
    assert_eq!((lent.len(), lent[0].bytes()), (1, &block(0, 1)[..]), "who has it keeps it");
}

/// Without the pins one of these readers sends zeros, or another segment's blocks.
#[test]
fn a_lent_block_stays_what_it_was_while_its_segment_is_given_back() {
    let (_scratch, engine) = Scratch::engine("lending-stays");
    let ended = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for seed in 1..3 {
            let device = engine.device("v").expect("there");
            let ended = &ended;
            scope.spawn(move || {
                let (mut random, mut buffer) = (Random(seed), vec![0; 64 * BLOCK]);
                let mut held = VecDeque::new();
                while !ended.load(Ordering::Relaxed) {
                    let (first, mut lent) = (random.below(BLOCKS - 64), Vec::new());
                    let read = device.read_lent(first * BLOCK as u64, &mut buffer, &mut lent);
                    read.expect("it can be read");
                    held.push_back((first, lent));
                    // Kept for a while, so that others have time to take it away.
                    if held.len() > HELD_READS {
                        let (first, lent): (u64, Vec<Lent>) = held.pop_front().expect("many");
                        for it in &lent {
                            let base = first + (it.place / BLOCK) as u64;
                            let blocks = it.bytes().chunks_exact(BLOCK);
                            (base..).zip(blocks).for_each(|(index, bytes)| check(index, bytes));
                        }
                    }
                }
            });
        }
        let device = engine.device("v").expect("there");
        let mut random = Random(99);
        for round in 1..=15 {
            for _ in 0..300 {
                let index = random.below(BLOCKS);
                let written = device.write(index * BLOCK as u64, &block(index, round), false);
                written.expect("written");
            }
            device.trim(random.below(BLOCKS) * BLOCK as u64, BLOCK as u64, false).expect("trimmed");
            engine.reclaim(round % 4 == 0, &mut |_| true).expect("given back");
            rounds.fetch_add(1, Ordering::Relaxed);
        }
        ended.store(true, Ordering::Relaxed);
    });
    assert_eq!(rounds.load(Ordering::Relaxed), 15);
    assert!(engine.stats().expect("told").given_back_bytes > 1 << 20, "something was given back");
}

/// The story: it counted as done, and came back when something else died there, if ever.
#[test]
fn what_was_being_sent_is_given_back_the_next_time() {
    let (_scratch, engine) = Scratch::engine("lending-busy");
    let device = engine.device("v").expect("there");
    (0..BLOCKS).for_each(|it| device.write(it * BLOCK as u64, &block(it, 1), false).expect("done"));
    device.flush().expect("flushed");
    let (mut bytes, mut lent) = (vec![0; 2 * BLOCK], Vec::new());
    device.read_lent(0, &mut bytes, &mut lent).expect("it can be read");
    // Every second block of its segment, so that holes are all that can be made.
    for index in (1..200).step_by(2) {
        device.write(index * BLOCK as u64, &block(index, 2), false).expect("written");
    }
    let given_back = || engine.stats().expect("told").given_back_bytes;
    engine.reclaim(true, &mut |_| true).expect("no fault");
    let (before, dead_bytes) = (given_back(), 100 * BLOCK as u64);
    assert_eq!(lent[0].bytes(), [block(0, 1), block(1, 1)].concat());
    drop(lent);
    for _ in 0..4 {
        engine.step_reclaim(std::time::Instant::now()).expect("no fault");
    }
    assert!(given_back() >= before + dead_bytes, "{before} bytes, then {}", given_back());
}
