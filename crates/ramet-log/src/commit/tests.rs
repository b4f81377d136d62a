//! A commit whose bytes somebody else took to write.

use crate::checksum::crc_blocks;
use crate::create::SEGMENT_BYTES_MIN;
use crate::error::LogError;
use crate::log::Log;
use crate::types::{BLOCK_BYTES, ObjectId};
use ramet_store::{Fault, FaultStore, Operation, When};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn opened(store: &Arc<FaultStore>) -> Log {
    Log::create(&**store, SEGMENT_BYTES_MIN, 512, 0).expect("created");
    Log::open(store.clone(), false, &mut |_| Ok(())).expect("opened")
}

fn write_block(log: &Log) {
    let (data, mut crcs) = (vec![7; BLOCK_BYTES], Vec::new());
    crc_blocks(&data, &mut crcs);
    log.enter_write(1).expect("room").write(ObjectId(1), 0, &data, &crcs, |_, _, _| {});
}

/// Somebody writes out beside a flush, and fails: the bytes are gone with him, nothing is left to
/// write, and the flush that waited for him must not take that for done.
#[test]
fn a_flush_fails_with_the_write_that_another_did_for_it() {
    let store = Arc::new(FaultStore::new(0));
    let log = opened(&store);
    write_block(&log);
    let durable = log.durable();
    std::thread::scope(|scope| {
        let mut out = log.write_out.lock();
        let flush = scope.spawn(|| log.flush());
        // It has closed the batch, and waits for who writes.
        while log.jobs.lock().is_empty() {
            std::thread::yield_now();
        }
        store.plan(When::Nth(Operation::Write, store.count(Operation::Write)), Fault::Error);
        let wrote = log.write_jobs(&mut out);
        assert!(matches!(wrote, Err(LogError::Poisoned { .. })), "{wrote:?}");
        drop(out);
        let flushed = flush.join().expect("it ends");
        assert!(matches!(flushed, Err(LogError::Poisoned { .. })), "{flushed:?}");
    });
    assert_eq!(log.durable(), durable);
}

/// The story: while the last room of a segment was written to, every flush woke the thread beside
/// the writers, which had nothing to do.
#[test]
fn a_flush_rings_for_room_until_it_is_made_and_not_again() {
    let store = Arc::new(FaultStore::new(0));
    let log = opened(&store);
    let bell = log.bell();
    let rings = || {
        // Whoever listens has heard what was rung before.
        bell.wait(Duration::ZERO);
        write_block(&log);
        log.flush().expect("durable");
        bell.is_rung()
    };
    assert!(rings(), "no segment is prepared");
    assert!(rings(), "and none was since");
    log.make_room_ahead().expect("made");
    assert!(!rings() && !rings(), "all is allocated, and the next one is prepared");
}

#[test]
fn a_commit_that_was_begun_is_written_and_durable_only_when_it_ends() {
    let store = Arc::new(FaultStore::new(0));
    let log = opened(&store);
    write_block(&log);
    let (durable, syncs) = (log.durable(), log.counters.syncs.load(Ordering::Relaxed));
    log.begin_commit().expect("written");
    let written_bytes = log.counters.written_bytes.load(Ordering::Relaxed);
    assert_eq!(written_bytes, 2 * BLOCK_BYTES as u64, "a header and the block");
    assert_eq!((log.durable(), log.counters.syncs.load(Ordering::Relaxed)), (durable, syncs));
    log.flush().expect("durable");
    assert_eq!(log.durable(), log.appended());
    assert_eq!(log.counters.written_bytes.load(Ordering::Relaxed), written_bytes, "once");
}

#[test]
fn a_commit_that_could_not_be_begun_fails() {
    let store = Arc::new(FaultStore::new(0));
    let log = opened(&store);
    write_block(&log);
    store.plan(When::Nth(Operation::Write, store.count(Operation::Write)), Fault::Error);
    let begun = log.begin_commit();
    assert!(matches!(begun, Err(LogError::Poisoned { .. })), "{begun:?}");
    let flushed = log.flush();
    assert!(matches!(flushed, Err(LogError::Poisoned { .. })), "{flushed:?}");
}
