//! Stories of checkpoints: each of a fault that lost something once, or that would without one line
//! of the engine.

mod crash;

use crash::damage_newer_slot;
use crash::run::Run;
use crash::script::{Step, create, delete, snapshot_of, write};
use ramet_engine::{Engine, Kind};
use ramet_store::{Fault, Kept, Operation, Store, When};
use std::sync::Arc;

/// A pool with a volume of 4096 blocks, some of them written.
fn run() -> Run {
    seeded(0)
}

/// The same, where something is left to chance.
fn seeded(seed: u64) -> Run {
    let mut run = Run::quiet(seed);
    run.steps(&[create("a", 4096), write("a", 0, 20, 1000), write("a", 600, 20, 2000)]);
    run
}

/// Replay begins after the cut. Opening took in only the segments from which something was
/// replayed, and removed the one that holds the cut, with all that had been written to it, where
/// the log ended there.
#[test]
fn a_kill_right_after_a_checkpoint_keeps_the_segment_of_the_cut() {
    let mut run = run();
    run.steps(&[Step::Checkpoint, Step::Kill, Step::Kill]);
    run.lose_power(Kept::Nothing).expect("opened");
    run.steps(&[write("a", 10, 20, 3000), Step::Flush, Step::Kill]);
    run.lose_power(Kept::Nothing).expect("opened");
}

/// The same, where the segment belongs to a stretch that has ended.
#[test]
fn a_segment_of_the_cut_is_kept_though_the_log_went_on_elsewhere() {
    let mut run = run();
    run.steps(&[Step::Checkpoint, Step::Kill, write("a", 10, 20, 3000), Step::Flush, Step::Kill]);
    run.lose_power(Kept::Nothing).expect("opened");
    run.steps(&[Step::Checkpoint, Step::Kill, Step::Close]);
    run.lose_power(Kept::Nothing).expect("opened");
}

/// A segment's entry in the file table says all of it. Where a segment changed otherwise (it was
/// sealed), and no more of its slots had died since the last checkpoint, the entry was written
/// without its dead slots, and they were never given back.
#[test]
fn dead_slots_stay_in_the_file_table_when_their_segment_is_sealed() {
    let mut run = run();
    run.steps(&[write("a", 0, 10, 3000), Step::Checkpoint]);
    assert_eq!(run.walk().expect("counted"), Some(40));
    run.steps(&[write("a", 1000, 240, 4000), write("a", 2000, 100, 8000), Step::Close]);
    assert!(run.totals.sealed > 0);
    run.steps(&[snapshot_of("a", "s"), delete("s"), Step::Close]);
}

/// A checkpoint keeps of a volume the number of the place that takes what it sheds. When that place
/// was answered and its seat free, the volume's entry went on naming it: the pool could not be
/// opened any more, or the volume would have shed into whatever place had got the seat.
#[test]
fn what_took_shed_blocks_is_forgotten_when_it_is_gone() {
    let mut run = run();
    let clone = |name: &str| Step::Clone {
        source: "s".into(),
        names: vec![name.into()],
        sectors: 8 * 4096,
    };
    run.steps(&[snapshot_of("a", "s"), clone("c"), delete("s")]);
    assert_eq!(run.walk().expect("counted"), Some(40));
    run.steps(&[write("a", 0, 5, 3000), Step::Checkpoint]);
    assert_eq!(run.engine().stats().expect("looked at").dying_count, 1, "nothing is shed");
    assert_eq!(run.walk().expect("counted"), Some(45));
    run.steps(&[Step::Checkpoint, Step::Kill]);
    run.steps(&[write("a", 5, 5, 4000), write("c", 0, 20, 5000), Step::Close]);
    assert_eq!(run.walk().expect("counted"), Some(60));
}

/// A footer was written and its sync failed; the pool was opened again, and read the footer out of
/// the cache. All of the segment's batches were known to be durable, so nothing of it was written
/// again; but the next checkpoint said that it was sealed, and after a power loss none of its
/// blocks could be read.
#[test]
fn a_footer_that_was_only_read_from_a_cache_is_written_again() {
    for seed in 0..10 {
        let mut run = seeded(seed);
        run.steps(&[Step::Flush]);
        run.store.plan(When::Nth(Operation::Sync, run.store.count(Operation::Sync)), Fault::Error);
        run.step(&Step::Close).expect_err("the footer's sync fails");
        run.reopen().expect("opened");
        run.steps(&[Step::Close]);
        run.lose_power(Kept::Nothing).expect("opened");
    }
}

/// A read of a node failed while the log was replayed, and opening said that the log was damaged,
/// which a restore is the remedy for. The disk is to be looked at, or the node to be restored.
#[test]
fn a_node_that_cannot_be_read_in_replay_is_not_a_damaged_log() {
    let mut run = run();
    run.steps(&[Step::Close, write("a", 10, 5, 3000), Step::Flush]);
    run.kill();
    let whole = Arc::new(run.store.crash(Kept::Everything));
    drop(Engine::open_in(whole.clone(), false, run.settings.clone()).expect("opened"));
    for read in 0..whole.count(Operation::Read) {
        let store = Arc::new(run.store.crash(Kept::Everything));
        store.plan(When::Nth(Operation::Read, read), Fault::Error);
        let opened = Engine::open_in(store, false, run.settings.clone());
        // The older slot's files are looked at to know which are nobody's: without them none is.
        let Err(error) = opened.map(drop) else { continue };
        assert_eq!((error.kind, error.code), (Kind::Unavailable, "pool_io_failed"), "read {read}");
    }
}

/// The pool of `run`, after a checkpoint and with something for the next one in every tree.
fn between_checkpoints() -> Run {
    let mut run = run();
    let clone = |name: &str| {
        let names = vec![name.to_string()];
        Step::Clone { source: "s".into(), names, sectors: 8 * 4096 }
    };
    run.steps(&[snapshot_of("a", "s"), clone("c"), clone("d"), Step::Checkpoint]);
    run.steps(&[write("a", 0, 30, 3000), write("c", 2000, 30, 5000), delete("d"), delete("s")]);
    run.steps(&[create("e", 100), write("e", 0, 9, 7000)]);
    // Leaves of many runs, so that their nodes take several pages.
    for block in (0..4096).step_by(4) {
        run.steps(&[write("c", block, 1, 20_000 + 16 * block)]);
    }
    run.steps(&[Step::Flush]);
    run
}

/// What is there, and after the next checkpoint, and when only the older slot is well.
fn check_next_checkpoint(run: &mut Run) {
    let context = run.context.clone();
    assert_eq!(run.engine().stats().expect("looked at").poisoned, "", "{context}");
    run.resync().unwrap_or_else(|error| panic!("{context}: {error}"));
    run.steps(&[write("a", 100, 3, 8000), Step::Checkpoint, Step::Kill]);
    let lost = run.lose_power(Kept::Nothing);
    lost.unwrap_or_else(|error| panic!("{context}, power lost: {error}"));
    run.steps(&[write("a", 200, 3, 9000), Step::Flush]);
    let store = run.store.crash(Kept::Nothing);
    damage_newer_slot(&store);
    let mut older = run.survivor(store, "newer slot damaged");
    older.reopen().unwrap_or_else(|error| panic!("{}: {error}", older.context));
    older.steps(&[Step::Checkpoint, Step::Close, Step::Close]);
}

/// A checkpoint that finds no room leaves everything to the next one: nodes that have no place are
/// not taken for stored, node files that were begun get into the file table, and the pool is not
/// poisoned.
#[test]
fn a_checkpoint_without_room_leaves_everything_to_the_next() {
    // With the files of the checkpoint before, and with fresh ones.
    for steps in [&[][..], &[Step::Kill]] {
        let mut failed = 0;
        for room in 0.. {
            let mut run = between_checkpoints();
            run.context = format!("{steps:?}, {room} pages of room");
            run.steps(steps);
            // The room that is kept for a full disk would be enough.
            let _ = run.store.remove("spare/reserve");
            let (free, all) = run.store.space_bytes().expect("looked at");
            run.store.set_capacity(Some(all - free + room * 4096));
            match run.step(&Step::Checkpoint) {
                Err(error) => assert_eq!(error.kind, Kind::Full, "{}: {error}", run.context),
                Ok(()) => break,
            }
            failed += 1;
            run.store.set_capacity(None);
            check_next_checkpoint(&mut run);
        }
        assert!(failed > 2, "{failed}, {steps:?}: there was room at once");
    }
}

/// A checkpoint that cannot read what it wants to change leaves everything to the next one.
#[test]
fn a_checkpoint_that_cannot_read_leaves_everything_to_the_next() {
    let mut failed = 0;
    for read in 0.. {
        let mut run = between_checkpoints();
        run.context = format!("read {read} fails");
        // So that nothing is in memory but what was replayed.
        run.steps(&[Step::Kill]);
        let first = run.store.count(Operation::Read);
        run.store.plan(When::Nth(Operation::Read, first + read), Fault::Error);
        match run.step(&Step::Checkpoint) {
            Err(error) => assert_eq!(error.kind, Kind::Unavailable, "{}: {error}", run.context),
            Ok(()) => break,
        }
        failed += 1;
        check_next_checkpoint(&mut run);
    }
    assert!(failed > 2, "nothing was read");
}

/// Opening removes files that neither slot reaches. Where it cannot read what the older one
/// reaches, it has to leave them all: the newer one may be damaged by the next time.
#[test]
fn files_that_the_older_slot_may_reach_are_kept_when_it_cannot_be_read() {
    let mut run = between_checkpoints();
    run.steps(&[Step::Close, write("a", 100, 3, 8000), Step::Checkpoint]);
    run.kill();
    let whole = Arc::new(run.store.crash(Kept::Everything));
    drop(Engine::open_in(whole.clone(), false, run.settings.clone()).expect("opened"));
    for read in 0..whole.count(Operation::Read) {
        let store = Arc::new(run.store.crash(Kept::Everything));
        store.plan(When::Nth(Operation::Read, read), Fault::Error);
        drop(Engine::open_in(store.clone(), false, run.settings.clone()));
        let store = store.crash(Kept::Everything);
        damage_newer_slot(&store);
        let mut older = run.survivor(store, &format!("read {read} fails, newer slot damaged"));
        older.reopen().unwrap_or_else(|error| panic!("{}: {error}", older.context));
    }
}
