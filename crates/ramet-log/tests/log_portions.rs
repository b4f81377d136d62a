//! Room is given back in portions, each of which the file system's journal frees by itself, and a
//! file's name is durably gone before its bytes are. See docs/internals/latency.md, "Portions".

mod crash;

use crash::block_of;
use ramet_log::{BLOCK_BYTES, Log, ObjectId, SegmentId, Thinned, crc_blocks};
use ramet_store::{Fault, FaultStore, Kept, Operation, Store, When};
use std::sync::Arc;

const SEGMENT_BYTES: u64 = 32 << 20;
const BLOCKS_COUNT: usize = 24 * 256;
const PORTION: usize = 512;

/// A sealed segment, of which every second slot was given back.
fn with_holes() -> (Arc<FaultStore>, Log, SegmentId) {
    let store = Arc::new(FaultStore::new(1));
    Log::create(&*store, SEGMENT_BYTES, 512, 0).expect("created");
    let log = Log::open(store.clone(), false, &mut |_| Ok(())).expect("opened");
    let data = block_of(7).repeat(256);
    let mut crcs = Vec::new();
    crc_blocks(&data, &mut crcs);
    let mut first = None;
    for _ in 0..BLOCKS_COUNT / 256 {
        let mut gate = log.enter_write(crcs.len() as u64).expect("room");
        gate.write(ObjectId(1), 0, &data, &crcs, |_, _, at| first = first.or(Some(at)));
    }
    log.seal().expect("sealed");
    let id = first.expect("written").segment();
    log.set_thinned(std::iter::once(id));
    let before = (store.count(Operation::Punch), store.count(Operation::Sync));
    let thinned = log.thin(id, &vec![0xaaaa_aaaa_aaaa_aaaa; BLOCKS_COUNT / 64]);
    assert!(matches!(thinned, Ok(Thinned::Bytes(1..))), "{thinned:?}");
    let holes = store.count(Operation::Punch) - before.0;
    assert!(holes >= 5 * PORTION as u64, "{holes}");
    let syncs = store.count(Operation::Sync) - before.1;
    assert!(syncs >= holes / PORTION as u64, "{syncs} for {holes} holes");
    log.forget_segments(&[id]);
    (store, log, id)
}

#[test]
fn a_file_with_holes_is_emptied_in_portions_after_its_name_is_durably_gone() {
    let (store, log, id) = with_holes();
    let before = (store.count(Operation::Punch), store.count(Operation::Sync));
    let bytes = log.remove_segments(&[id]).expect("no fault");
    let living = (BLOCKS_COUNT / 2 * BLOCK_BYTES) as u64;
    assert!((living..living + (1 << 20)).contains(&bytes), "{bytes}");
    let pieces = store.count(Operation::Punch) - before.0;
    assert!(pieces >= (BLOCKS_COUNT * BLOCK_BYTES / (512 << 10)) as u64, "{pieces}");
    let syncs = store.count(Operation::Sync) - before.1;
    assert!(syncs >= BLOCKS_COUNT as u64 / 2 / PORTION as u64, "{syncs}");
    assert_eq!(log.remove_segments(&[id]).expect("it is gone already"), 0);
}

#[test]
fn whenever_the_power_goes_a_file_comes_back_as_it_was_or_not_at_all() {
    let changes = |until: Option<u64>| {
        let (store, log, id) = with_holes();
        let path = format!("segments/{id}.seg");
        let room = |store: &FaultStore| match store.open(&path, false) {
            Ok(file) => Some(file.allocated_bytes().expect("it is there")),
            Err(_) => None,
        };
        let (begun, whole) = (store.changes_count(), room(&store));
        if let Some(nth) = until {
            store.plan(When::Change(begun + nth), Fault::PowerOff);
        }
        let removed = log.remove_segments(&[id]);
        assert!(removed.is_ok() || until.is_some());
        let ended = store.changes_count() - begun;
        for kept in [Kept::Nothing, Kept::Everything, Kept::Random(3), Kept::Random(4)] {
            let found = room(&store.crash(kept));
            assert!(found.is_none() || found == whole, "{found:?} of {whole:?} at {until:?}");
        }
        ended
    };
    let all = changes(None);
    assert!(all > 2);
    for nth in 0..all {
        changes(Some(nth));
    }
}

#[test]
fn a_file_that_cannot_be_emptied_is_removed_all_the_same() {
    for (operation, fault) in [(Operation::Punch, Fault::Full), (Operation::Sync, Fault::Error)] {
        let (store, log, id) = with_holes();
        store.plan(When::Nth(operation, store.count(operation)), fault);
        assert!(log.remove_segments(&[id]).expect("it has no name any more") > 0);
        assert!(!store.exists(&format!("segments/{id}.seg")).expect("no fault"));
    }
}

#[test]
fn a_file_without_holes_is_removed_and_nothing_more() {
    let store = Arc::new(FaultStore::new(1));
    Log::create(&*store, SEGMENT_BYTES, 512, 0).expect("created");
    let log = Log::open(store.clone(), false, &mut |_| Ok(())).expect("opened");
    let (block, mut crcs) = (block_of(7), Vec::new());
    crc_blocks(&block, &mut crcs);
    let mut place = None;
    let mut gate = log.enter_write(1).expect("room");
    gate.write(ObjectId(1), 0, &block, &crcs, |_, _, at| place = Some(at));
    drop(gate);
    log.seal().expect("sealed");
    let id = place.expect("written").segment();
    log.forget_segments(&[id]);
    let before = store.changes_count();
    assert!(log.remove_segments(&[id]).expect("no fault") > 0);
    assert_eq!(store.changes_count(), before + 1);
}
