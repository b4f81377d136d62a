//! A thread beside the writers: what it does they need not, and without it they do it themselves.
//! See docs/internals/latency.md.

mod crash;

use crash::{Run, Step, block_of};
use ramet_log::{Log, ObjectId, Thinned, crc_blocks};
use ramet_store::{Fault, FaultStore, FileStore, Kept, Operation, Store, When};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const BLOCKS_PER_MIB: usize = 256;

fn written_bytes(run: &Run) -> u64 {
    run.log().counters.written_bytes.load(Ordering::Relaxed)
}

fn write_mib(run: &mut Run, count: usize) {
    for _ in 0..count * 2 {
        run.write(1, 0, BLOCKS_PER_MIB / 2).expect("without a fault nothing fails");
    }
}

#[test]
fn writers_leave_the_files_to_whoever_listens() {
    let mut run = Run::new(0);
    run.log().bell().wait(Duration::ZERO);
    write_mib(&mut run, 4);
    assert_eq!(written_bytes(&run), 0);
    run.log().write_out().expect("written");
    assert!(written_bytes(&run) >= 3 << 20);
    run.log().flush().expect("durable");
    run.durable = run.said.len();
    run.lose_power();
}

#[test]
fn writers_see_to_the_files_where_nobody_listens() {
    let mut run = Run::new(0);
    write_mib(&mut run, 4);
    assert!(written_bytes(&run) >= 2 << 20);
    let bell = run.log().bell();
    bell.wait(Duration::ZERO);
    bell.leave();
    let before = written_bytes(&run);
    write_mib(&mut run, 4);
    assert!(written_bytes(&run) >= before + (2 << 20));
}

/// Whoever listens may be stuck in a file system: memory stays bounded all the same.
#[test]
fn writers_do_not_rely_on_being_heard_for_ever() {
    let mut run = Run::new(0);
    run.log().bell().wait(Duration::ZERO);
    write_mib(&mut run, 20);
    let (_, staged_bytes) = run.log().sizes();
    assert!(staged_bytes <= 9 << 20, "{staged_bytes} bytes wait");
}

#[test]
fn room_is_there_before_a_writer_has_to_make_it() {
    let store = Arc::new(FaultStore::new(0));
    Log::create(&*store, 32 << 20, 512, 0).expect("created");
    let (log, _) = crash::open(&store).expect("opened");
    let data = block_of(7).repeat(BLOCKS_PER_MIB);
    let mut crcs = Vec::new();
    crc_blocks(&data, &mut crcs);
    // By those of the writer alone: what it is measured by.
    let mut allocated_by_writers = 0;
    for index in 0..60 {
        let before = store.count(Operation::Allocate);
        let mut gate = log.enter_write(crcs.len() as u64).expect("room");
        gate.write(ObjectId(1), 0, &data, &crcs, |_, _, _| {});
        drop(gate);
        if index > 0 {
            allocated_by_writers += store.count(Operation::Allocate) - before;
        }
        log.write_out().expect("written");
        log.make_room_ahead().expect("room is made");
    }
    assert_eq!(allocated_by_writers, 0);
    log.flush().expect("durable");
}

/// What a writer does of its own where the open segment was ended: it finds the next one.
#[test]
fn who_writes_after_a_seal_needs_to_make_nothing_where_that_was_prepared() {
    for prepares in [false, true] {
        let mut run = Run::new(0);
        run.write(1, 0, 10).expect("written");
        if prepares {
            run.log().prepare_to_seal().expect("prepared");
        }
        run.log().seal().expect("sealed");
        let made = |run: &Run| {
            [Operation::Create, Operation::Allocate].map(|operation| run.store.count(operation))
        };
        let before = made(&run);
        run.write(1, 0, 10).expect("written");
        assert_eq!(made(&run) == before, prepares);
        run.log().flush().expect("durable");
        run.durable = run.said.len();
        run.lose_power();
    }
}

/// Something happens at every change from there to a flush behind it.
#[test]
fn a_power_loss_around_a_prepared_seal_loses_nothing() {
    let write = |count| Step::Write { object: 1, first: 0, count };
    let story = [write(10), Step::Seal, write(5), Step::Seal, Step::Seal, write(200), Step::Flush];
    let mut whole = Run::new(0);
    let first = whole.store.changes_count();
    whole.play(&story).expect("without a fault nothing fails");
    let changes = first..whole.store.changes_count();
    assert!(changes.clone().count() > 20, "{changes:?}");
    for (change, fault) in changes.flat_map(|at| [(at, Fault::PowerOff), (at, Fault::Error)]) {
        let mut run = Run::new(0);
        run.store.plan(When::Change(change), fault);
        run.context = format!("{fault:?} at change {change}");
        // What is only a hint may fail unnoticed.
        let _ = run.play(&story);
        run.log = None;
        for kept in [Kept::Nothing, Kept::Random(change), Kept::Random(change + 1000)] {
            run.check_survivor(run.store.crash(kept), &format!("{kept:?}"));
        }
    }
}

#[test]
fn a_full_medium_is_no_error_of_preparing_to_seal() {
    let mut run = Run::new(0);
    run.write(1, 0, 10).expect("written");
    let (free_bytes, all_bytes) = run.store.space_bytes().expect("looked");
    run.store.set_capacity(Some(all_bytes - free_bytes));
    run.log().prepare_to_seal().expect("it is not there, and that is all");
    run.log().seal().expect("sealed");
    run.store.set_capacity(None);
    run.write(1, 0, 10).expect("written");
    run.log().flush().expect("durable");
}

#[test]
fn a_full_medium_is_met_by_the_writer_who_needs_the_room() {
    let store = Arc::new(FaultStore::new(0));
    Log::create(&*store, 32 << 20, 512, 0).expect("created");
    store.set_capacity(Some(12 << 20));
    let (log, _) = crash::open(&store).expect("opened");
    let data = block_of(7).repeat(BLOCKS_PER_MIB);
    let mut crcs = Vec::new();
    crc_blocks(&data, &mut crcs);
    let full = loop {
        match log.enter_write(crcs.len() as u64) {
            Ok(mut gate) => gate.write(ObjectId(1), 0, &data, &crcs, |_, _, _| {}),
            Err(error) => break error,
        }
        log.make_room_ahead().expect("a full medium is no error here");
    };
    assert!(full.to_string().contains("space"), "{full}");
    log.flush().expect("what was written is durable all the same");
}

/// Times that giving back every second block of a segment rested, beside a writer or not.
fn rests(is_written: bool) -> u64 {
    let path =
        std::env::temp_dir().join(format!("ramet-rests-{}-{is_written}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a scratch directory");
    let store: Arc<dyn Store> = Arc::new(FileStore::new(&path));
    Log::create(&*store, 32 << 20, 512, 0).expect("created");
    let log = Log::open(store, false, &mut |_| Ok(())).expect("opened");
    let data = block_of(7).repeat(BLOCKS_PER_MIB);
    let mut crcs = Vec::new();
    crc_blocks(&data, &mut crcs);
    let mut first = None;
    for _ in 0..24 {
        let mut gate = log.enter_write(crcs.len() as u64).expect("room");
        gate.write(ObjectId(1), 0, &data, &crcs, |_, _, at| first = first.or(Some(at)));
    }
    log.seal().expect("sealed");
    let id = first.expect("written").segment();
    log.set_thinned(std::iter::once(id));
    if is_written {
        log.bell().wait(Duration::ZERO);
    }
    let every_second = vec![0xaaaa_aaaa_aaaa_aaaa; 100];
    let thinned = log.thin(id, &every_second);
    std::fs::remove_dir_all(&path).expect("removed");
    assert!(matches!(thinned, Ok(Thinned::Bytes(bytes)) if bytes > 8 << 20), "{thinned:?}");
    log.counters.rests.load(Ordering::Relaxed)
}

#[test]
fn giving_back_rests_now_and_then_while_somebody_writes_and_goes_on_where_nobody_does() {
    assert!(rests(true) > 0);
    assert_eq!(rests(false), 0);
}
