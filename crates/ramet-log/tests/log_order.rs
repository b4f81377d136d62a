//! The order in which a log gets to the medium: one test for each sync, which fails where that sync
//! is taken out, because something is lost. See docs/internals/format.md, "Order", and
//! docs/internals/testing.md.

mod crash;

use crash::{Random, Run, Said, Step, open};
use ramet_log::{BLOCK_BYTES, Log, LogError, SEGMENT_BYTES_MIN, SegmentId};
use ramet_store::{Fault, FaultStore, Kept, Operation, Store, When};
use std::sync::Arc;

/// Fates of what a failed sync did not make durable.
const FATES: u64 = 20;

fn write(count: usize) -> Step {
    Step::Write { object: 1, first: 0, count }
}

fn steps(run: &mut Run, steps: &[Step]) {
    run.play(steps).unwrap_or_else(|error| panic!("{}: {error:?}", run.context));
}

/// O10: all syncs of a pool's creation.
#[test]
fn a_new_pool_survives_a_power_loss() {
    let store = FaultStore::new(0);
    Log::create(&store, SEGMENT_BYTES_MIN, 512, 0).expect("created");
    let (_, said) = open(&Arc::new(store.crash(Kept::Nothing))).expect("opened");
    assert_eq!(said, []);
}

/// O2, the sync of files in `sync_all`.
#[test]
fn what_was_flushed_survives_a_power_loss() {
    let mut run = Run::new(0);
    // In one segment, and in several.
    for count in [10, 100, 200, 200] {
        steps(&mut run, &[write(count), Step::Record { length: 5000 }, Step::Flush]);
        run.lose_power();
    }
}

/// O2: a commit syncs the files of all segments with fresh bytes, not only the newest.
#[test]
fn a_flush_covers_every_segment_that_was_written_to() {
    let mut run = Run::new(0);
    steps(&mut run, &[write(200), write(200), write(200), Step::Flush]);
    assert!(run.store.list("segments").expect("a list").len() > 2);
    run.lose_power();
}

/// O1, the sync of the directory in `write_header`: nothing else makes a segment's name durable.
#[test]
fn the_name_of_a_segment_is_durable_before_a_batch_in_it_is_acknowledged() {
    let mut run = Run::new(0);
    steps(&mut run, &[write(200), Step::Flush, write(200), Step::Flush]);
    assert!(run.store.list("segments").expect("a list").len() > 1);
    run.lose_power();
}

/// O1, the sync of the file in `write_header`. A flush covers the header too, where it succeeds;
/// where it fails, the header may be in the cache only, clean, and opening writes only batches
/// again.
#[test]
fn a_header_is_durable_before_the_first_flush_of_its_segment() {
    for fate in 0..FATES {
        let mut run = Run::new(fate);
        run.step(&write(10)).expect("written");
        run.store.plan(When::Nth(Operation::Sync, run.store.count(Operation::Sync)), Fault::Error);
        run.step(&Step::Flush).expect_err("its sync fails");
        run.reopen().expect("reopened");
        run.lose_power();
    }
}

/// O3, the sync in `make_durable` of recovery.rs: a tail that was shown to somebody is not lost.
#[test]
fn what_opening_read_survives_a_power_loss() {
    let mut run = Run::new(0);
    steps(&mut run, &[write(10), Step::Flush, write(20), write(200), write(200)]);
    steps(&mut run, &[Step::Record { length: 9000 }]);
    // Written out, by a flush whose sync fails or by nobody: the process ends.
    run.store.plan(When::Nth(Operation::Sync, run.store.count(Operation::Sync)), Fault::Error);
    run.step(&Step::Flush).expect_err("its sync fails");
    run.reopen().expect("reopened");
    assert!(!run.said.is_empty());
    run.lose_power();
}

/// O3, the write in `make_durable`: what a failed sync left clean in the cache is not written by
/// another sync.
#[test]
fn what_a_failed_sync_left_in_the_cache_is_written_again() {
    for fate in 0..FATES {
        let mut run = Run::new(fate);
        steps(&mut run, &[write(10), Step::Flush, write(20), Step::Record { length: 9000 }]);
        run.store.plan(When::Nth(Operation::Sync, run.store.count(Operation::Sync)), Fault::Error);
        run.step(&Step::Flush).expect_err("its sync fails");
        run.reopen().expect("reopened");
        run.lose_power();
    }
}

/// `Log::seal` syncs: what a closed log holds is there, footers too.
#[test]
fn what_was_sealed_survives_a_power_loss() {
    let mut run = Run::new(0);
    run.step(&write(30)).expect("written");
    let log = run.log.take().expect("open");
    log.seal().expect("sealed");
    log.close().expect("closed");
    run.durable = run.said.len();
    drop(log);
    run.lose_power();
    assert_eq!(run.durable, 30);
}

/// `Log::step`: what nobody flushes is durable after a second.
#[test]
fn an_idle_log_commits_by_itself() {
    let mut run = Run::new(0);
    steps(&mut run, &[write(30), Step::Idle]);
    run.durable = run.said.len();
    run.lose_power();
}

/// Damage one bit in the first segment.
fn flip(store: &FaultStore, slot: u64, bit: u64) {
    let name = &store.list("segments").expect("a list")[0];
    let (at, bit) = (slot * BLOCK_BYTES as u64 + bit / 8, u32::try_from(bit % 8).expect("below 8"));
    store.flip_bit(&format!("segments/{name}"), at, bit).expect("flipped");
}

/// `Log::mark`: the last batch that was flushed has nothing behind it that says so. An idle log
/// says it, durably, so that damage there is not taken for a write that was cut off.
#[test]
fn an_idle_log_says_what_is_durable_and_damage_to_it_is_damage() {
    let mut run = Run::new(0);
    steps(&mut run, &[write(3), Step::Flush]);
    let torn = Arc::new(run.store.crash(Kept::Nothing));
    flip(&torn, 1, 99);
    let (_, said) = open(&torn).expect("a torn tail");
    assert_eq!(said, [], "it cannot be told from a torn write");
    let mut run = Run::new(0);
    steps(&mut run, &[write(3), Step::Flush, Step::Idle]);
    run.log = None;
    let damaged = Arc::new(run.store.crash(Kept::Nothing));
    flip(&damaged, 1, 99);
    let opened = open(&damaged).map(drop);
    assert!(matches!(opened, Err(LogError::Damaged { .. })), "{opened:?}");
}

/// O8, the commit of an epoch in `next_file`, and its sync: an id is never given twice, though the
/// file that had it is gone and so is its name.
#[test]
fn an_epoch_is_durable_before_an_id_of_it_is_used() {
    let path = |id: SegmentId| format!("nodes/{:012x}.map", id.0);
    let mut run = Run::new(0);
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(run.log().create_file(&path).expect("created").0);
        run.lose_power();
        assert_eq!(run.store.list("nodes").expect("a list"), [] as [String; 0]);
    }
    assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
}

/// The commit's number in a slot: docs/internals/format.md, "The superblock".
fn number(store: &FaultStore, slot: u64) -> u64 {
    let mut bytes = [0; 8];
    let file = store.open("superblock", false).expect("opened");
    file.read_at(&mut bytes, slot * 4096 + 24).expect("read");
    u64::from_le_bytes(bytes)
}

/// O4, the second sync of `Slots::make_durable`: a slot that was damaged is a copy of the other one
/// afterwards, and the pool bears another damage.
#[test]
fn a_damaged_slot_is_repaired_for_good() {
    let mut run = Run::new(0);
    steps(&mut run, &[write(30), Step::Flush, Step::Close]);
    let older = u64::from(number(&run.store, 1) < number(&run.store, 0));
    run.log = None;
    run.store.flip_bit("superblock", older * 4096 + 50, 1).expect("flipped");
    run.reopen().expect("opened from the newer");
    run.log = None;
    let store = run.store.crash(Kept::Nothing);
    store.flip_bit("superblock", (1 - older) * 4096 + 50, 1).expect("flipped");
    run.check_survivor(store, "both slots damaged, one after the other");
}

/// Nothing of the first stretch was durable, and its segments were removed. When the power went the
/// first one was gone and the second was not, and opening said that segments were missing before
/// it.
#[test]
fn segments_that_were_discarded_may_go_in_any_order() {
    let mut run = Run::new(0);
    steps(&mut run, &[write(200), write(200), write(200)]);
    run.log = None;
    let mut left = Vec::new();
    for fate in 0..40 {
        let store = Arc::new(run.store.crash(Kept::Nothing));
        assert!(store.list("segments").expect("a list").len() > 2);
        drop(open(&store).expect("opened, and the segments removed"));
        let store = store.crash(Kept::Random(fate));
        left.push(store.list("segments").expect("a list").len());
        run.check_survivor(store, &format!("fate {fate}"));
    }
    assert!(left.contains(&2), "{left:?}");
}

/// Where every byte of the log's first batches is: header, 10 blocks, header, record, header.
const BLOCKS: std::ops::Range<u64> = 2..12;
const SLOTS: std::ops::Range<u64> = 1..15;

/// P5: after the batch there are others that say it was durable, so it is never taken for a tail.
#[test]
fn a_flipped_bit_in_a_flushed_batch_with_later_batches_is_damage_and_never_a_tail() {
    let mut run = Run::new(0);
    steps(&mut run, &[write(10), Step::Flush, Step::Record { length: 100 }, Step::Flush]);
    steps(&mut run, &[Step::Clear { object: 1, first: 500, count: 9 }, Step::Flush]);
    steps(&mut run, &[write(10), Step::Flush]);
    let (mut random, mut refused) = (Random(0), 0);
    for _ in 0..2000 {
        let slot = SLOTS.start + random.below(SLOTS.end - SLOTS.start);
        let bit = random.below(8 * BLOCK_BYTES as u64);
        let store = Arc::new(run.store.crash(Kept::Nothing));
        flip(&store, slot, bit);
        let context = format!("bit {bit} of slot {slot}");
        match open(&store) {
            Err(LogError::Damaged { slot: named, .. }) => {
                assert!(!BLOCKS.contains(&slot), "{context}: blocks are only read when asked for");
                // A record by its header.
                assert_eq!(u64::from(named), slot - u64::from(slot == 13), "{context}");
                assert_eq!(store.changes_count(), 0, "{context}: something was written");
                refused += 1;
            }
            Ok((log, said)) => {
                assert!(BLOCKS.contains(&slot), "{context}: it was not noticed");
                assert_eq!(said, run.said, "{context}");
                check_one_is_damaged(&log, &said, slot, &context);
            }
            Err(error) => panic!("{context}: {error}"),
        }
    }
    assert!(refused > 300, "{refused} times");
}

fn check_one_is_damaged(log: &Log, said: &[Said], slot: u64, context: &str) {
    for entry in said {
        let Said::Block(_, block, locator) = entry else { continue };
        let read = log.read(*locator, *block, &mut vec![0; BLOCK_BYTES]);
        match read {
            Ok(()) => assert_ne!(u64::from(locator.slot()), slot, "{context}"),
            Err(LogError::Checksum { locator: named, .. }) => {
                assert_eq!((named, u64::from(named.slot())), (*locator, slot), "{context}");
            }
            Err(error) => panic!("{context}: {error}"),
        }
    }
}
