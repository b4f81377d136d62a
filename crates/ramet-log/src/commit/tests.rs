//! A commit whose bytes somebody else took to write.

use crate::checksum::crc_blocks;
use crate::create::SEGMENT_BYTES_MIN;
use crate::error::LogError;
use crate::log::Log;
use crate::types::{BLOCK_BYTES, ObjectId};
use ramet_store::{Fault, FaultStore, Operation, When};
use std::sync::Arc;

/// Somebody writes out beside a flush, and fails: the bytes are gone with him, nothing is left to
/// write, and the flush that waited for him must not take that for done.
#[test]
fn a_flush_fails_with_the_write_that_another_did_for_it() {
    let store = Arc::new(FaultStore::new(0));
    Log::create(&*store, SEGMENT_BYTES_MIN, 512, 0).expect("created");
    let log = Log::open(store.clone(), false, &mut |_| Ok(())).expect("opened");
    let (data, mut crcs) = (vec![7; BLOCK_BYTES], Vec::new());
    crc_blocks(&data, &mut crcs);
    log.enter_write(1).expect("room").write(ObjectId(1), 0, &data, &crcs, |_, _, _| {});
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
    Log::create(&*store, SEGMENT_BYTES_MIN, 512, 0).expect("created");
    let log = Log::open(store, false, &mut |_| Ok(())).expect("opened");
    let (data, mut crcs) = (vec![7; BLOCK_BYTES], Vec::new());
    crc_blocks(&data, &mut crcs);
    let bell = log.bell();
    let rings = || {
        // Whoever listens has heard what was rung before.
        bell.wait(std::time::Duration::ZERO);
        log.enter_write(1).expect("room").write(ObjectId(1), 0, &data, &crcs, |_, _, _| {});
        log.flush().expect("durable");
        bell.is_rung()
    };
    assert!(rings(), "no segment is prepared");
    assert!(rings(), "and none was since");
    log.make_room_ahead().expect("made");
    assert!(!rings() && !rings(), "all is allocated, and the next one is prepared");
}
