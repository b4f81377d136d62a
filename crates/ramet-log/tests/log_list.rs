//! The log against a plain list: whatever is appended, committed, closed or cut off is what replay
//! tells.

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use ramet_log::{
    BLOCK_BYTES, Locator, Log, ObjectId, PreparedRecord, Replay, SEGMENT_BYTES_MIN, crc_blocks,
};
use ramet_store::{FileStore, Store};
use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A directory that goes when the test is through.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name =
            format!("ramet-log-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a scratch directory");
        Scratch(path)
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::new(FileStore::new(&self.0))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What the list remembers of one entry.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Write(u64, u64, u64, Vec<Locator>),
    Clear(u64, u64, u64, u64),
    Record(Vec<u8>, u64),
}

#[derive(Clone, Debug)]
enum Step {
    Write { object: u64, first: u64, blocks: usize, byte: u8 },
    Clear { object: u64, first: u64, count: u64 },
    Record { length: usize, byte: u8 },
    Commit,
    Close,
    CutOff,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..4u64, 0..1000u64, 1..300usize, any::<u8>())
            .prop_map(|(object, first, blocks, byte)| Step::Write { object, first, blocks, byte }),
        2 => (1..4u64, 0..1000u64, 1..100u64)
            .prop_map(|(object, first, count)| Step::Clear { object, first, count }),
        2 => (1..400_000usize, any::<u8>())
            .prop_map(|(length, byte)| Step::Record { length, byte }),
        2 => Just(Step::Commit),
        1 => Just(Step::Close),
        1 => Just(Step::CutOff),
    ]
}

/// One block as one entry, so that the ways entries were merged do not show.
fn split(said: &[Said]) -> Vec<Said> {
    let mut out = Vec::new();
    for entry in said {
        match entry {
            Said::Write(object, first, _, locators) => {
                out.extend(
                    locators
                        .iter()
                        .zip(*first..)
                        .map(|(locator, block)| Said::Write(*object, block, 1, vec![*locator])),
                );
            }
            other => out.push(other.clone()),
        }
    }
    out
}

fn split_all(list: &[(Step, Said)]) -> Vec<Said> {
    split(&list.iter().map(|(_, said)| said.clone()).collect::<Vec<_>>())
}

fn open(store: Arc<dyn Store>) -> (Log, Vec<Said>) {
    let mut said = Vec::new();
    let log = Log::open(store, false, &mut |entry| {
        said.push(match entry {
            Replay::Write { object, first, count, locator } => Said::Write(
                object.0,
                first,
                count,
                (0..count).map(|index| locator.offset(index)).collect(),
            ),
            Replay::Clear { object, first, count, position } => {
                Said::Clear(object.0, first, count, position.0)
            }
            Replay::Record { payload, position } => Said::Record(payload.to_vec(), position.0),
        });
        Ok(())
    });
    (log.expect("the log opens"), said)
}

fn blocks(count: usize, byte: u8) -> Vec<u8> {
    (0..count * BLOCK_BYTES)
        .map(|at| byte ^ u8::try_from(at / BLOCK_BYTES % 256).expect("a byte"))
        .collect()
}

fn write(log: &Log, object: u64, first: u64, data: &[u8]) -> Said {
    let mut crcs = Vec::new();
    crc_blocks(data, &mut crcs);
    let mut locators = Vec::new();
    let mut gate = log.enter_write(crcs.len() as u64).expect("room");
    gate.write(ObjectId(object), first, data, &crcs, |_, count, locator| {
        locators.extend((0..count).map(|index| locator.offset(index)));
    });
    drop(gate);
    log.relieve().expect("written out");
    Said::Write(object, first, crcs.len() as u64, locators)
}

fn perform(log: &Log, step: &Step) -> Option<Said> {
    match step {
        Step::Write { object, first, blocks: count, byte } => {
            Some(write(log, *object, *first, &blocks(*count, *byte)))
        }
        Step::Clear { object, first, count } => {
            let position =
                log.enter_write(0).expect("room").clear(true, ObjectId(*object), *first, *count);
            Some(Said::Clear(*object, *first, *count, position.0))
        }
        Step::Record { length, byte } => {
            let payload = vec![*byte; *length];
            let record = PreparedRecord::new(payload.clone()).expect("small");
            let position = log.enter_command(&record).expect("room").record(record);
            Some(Said::Record(payload, position.0))
        }
        Step::Commit => {
            log.flush().expect("durable");
            None
        }
        Step::Close | Step::CutOff => None,
    }
}

fn check_reads(log: &Log, steps: &[(Step, Said)]) {
    for (step, said) in steps {
        let (Step::Write { blocks: count, byte, .. }, Said::Write(_, first, _, locators)) =
            (step, said)
        else {
            continue;
        };
        let expected = blocks(*count, *byte);
        for (index, locator) in locators.iter().enumerate() {
            let mut block = vec![0; BLOCK_BYTES];
            log.read(*locator, first + index as u64, &mut block).expect("verified");
            assert_eq!(block[..], expected[index * BLOCK_BYTES..][..BLOCK_BYTES], "{locator}");
        }
    }
}

/// Segments sealed, and batches replayed: over all lists.
#[derive(Default)]
struct Totals {
    sealed: Cell<u64>,
    replayed: Cell<u64>,
}

impl Totals {
    fn add(&self, log: &Log) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.sealed.set(self.sealed.get() + count(&log.counters.sealed));
        self.replayed.set(self.replayed.get() + count(&log.counters.replayed));
    }
}

/// RAMET_SEED asks for other lists.
fn config() -> ProptestConfig {
    let asked = std::env::var("RAMET_SEED").ok().and_then(|seed| seed.parse().ok());
    ProptestConfig {
        cases: 32,
        rng_seed: RngSeed::Fixed(asked.unwrap_or(0)),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

#[test]
fn log_says_what_was_appended() {
    let totals = Totals::default();
    let lists = prop::collection::vec(step(), 1..40);
    let played = TestRunner::new(config()).run(&lists, |steps| play(&steps, &totals));
    played.unwrap_or_else(|error| panic!("{error}"));
    assert!(totals.sealed.get() > 0 && totals.replayed.get() > 0, "nothing was sealed or replayed");
}

/// What this test found in its time.
#[test]
fn lists_that_failed_once_do_not_any_more() {
    let write = |blocks, byte| Step::Write { object: 1, first: 0, blocks, byte };
    let record = Step::Record { length: 65_537, byte: 0 };
    let long = [write(9, 0), write(290, 0), write(210, 0), record, write(1, 1), Step::CutOff];
    for steps in [&long[..], &[write(1, 0), Step::Close]] {
        play(steps, &Totals::default()).expect("what the list says");
    }
}

fn play(steps: &[Step], totals: &Totals) -> Result<(), TestCaseError> {
    let scratch = Scratch::new();
    Log::create(&*scratch.store(), SEGMENT_BYTES_MIN, 512, 0).expect("created");
    let (mut log, _) = open(scratch.store());
    let mut list: Vec<(Step, Said)> = Vec::new();
    let mut durable = 0;
    for step in steps {
        match step {
            Step::Close => {
                log.seal().expect("sealed");
                log.close().expect("closed");
            }
            Step::CutOff => {}
            other => {
                list.extend(perform(&log, other).map(|said| (other.clone(), said)));
                if matches!(other, Step::Commit) {
                    durable = list.len();
                }
                continue;
            }
        }
        check_reads(&log, &list);
        let closed = matches!(step, Step::Close);
        totals.add(&log);
        drop(log);
        let (reopened, said) = open(scratch.store());
        log = reopened;
        let all: Vec<Said> = split_all(&list);
        let said = split(&said);
        // A prefix that ends at or after the last commit; everything after a close.
        prop_assert!(said.len() <= all.len());
        prop_assert_eq!(&said[..], &all[..said.len()]);
        let durable_now = split_all(&list[..durable]).len();
        let at_least = if closed { all.len() } else { durable_now };
        prop_assert!(said.len() >= at_least);
        let mut kept = 0;
        list.retain(|(_, entry)| {
            kept += split(std::slice::from_ref(entry)).len();
            kept <= said.len()
        });
        // A write cut in its middle leaves blocks that the list does not want to know any more:
        // begin afresh then.
        if split_all(&list).len() != said.len() {
            return Ok(());
        }
        durable = list.len();
        check_reads(&log, &list);
    }
    totals.add(&log);
    Ok(())
}
