//! The order of a checkpoint's steps: one test for each sync, which fails where that sync is taken
//! out, and what a crash between two of them leaves. See docs/internals/format.md, "Order".

mod crash;

use crash::damage_newer_slot;
use crash::process::Life;
use crash::run::{Run, settings};
use crash::script::{Step, create, delete, snapshot_of, write};
use ramet_engine::{Engine, EngineError};
use ramet_store::{Fault, FaultStore, Kept, Operation, Store, When};
use std::sync::Arc;

/// Fates of what was not synced, where it is left to chance.
const FATES: u64 = 12;

/// A pool with a volume and a snapshot, some blocks written.
fn run() -> Run {
    let mut run = Run::quiet(0);
    run.steps(&[create("a", 4096), write("a", 0, 20, 1000), write("a", 600, 20, 2000)]);
    run.steps(&[snapshot_of("a", "s"), write("a", 10, 5, 3000)]);
    run
}

fn lose_power(run: &mut Run, kept: Kept) {
    run.lose_power(kept).unwrap_or_else(|error| panic!("{}: {error}", run.context));
}

/// O5, `log.commit` in `write_capture`: maps would show blocks that are not there. (The log itself
/// asserts that it was synced, and this test fails by that.)
#[test]
fn the_log_is_synced_up_to_the_cut_before_a_slot_shows_it() {
    let mut run = run();
    run.steps(&[Step::Checkpoint]);
    lose_power(&mut run, Kept::Nothing);
    run.steps(&[write("a", 12, 20, 4000), Step::Checkpoint]);
    lose_power(&mut run, Kept::Nothing);
}

/// O6, the sync of files in `WriterState::sync` for nodes, and the call of it: objects and maps
/// could not be read. The second checkpoint appends to a file whose name is durable.
#[test]
fn nodes_are_synced_before_a_slot_names_their_roots() {
    let mut run = run();
    run.steps(&[Step::Checkpoint, write("a", 12, 20, 4000), Step::Checkpoint]);
    lose_power(&mut run, Kept::Nothing);
}

/// O6, the sync of the directory in `WriterState::sync` for nodes: the file would be gone.
#[test]
fn the_name_of_a_node_file_is_synced_before_a_slot_names_what_is_in_it() {
    let mut run = run();
    run.steps(&[Step::Checkpoint]);
    assert_eq!(run.store.list("nodes").expect("a list").len(), 1);
    lose_power(&mut run, Kept::Nothing);
}

/// O6, the same for the file table: without it no segment is known. The second checkpoint appends
/// to a file whose name is durable.
#[test]
fn the_file_table_is_synced_before_a_slot_names_its_root() {
    let mut run = run();
    run.steps(&[Step::Checkpoint, write("a", 12, 20, 4000), Step::Checkpoint]);
    assert_eq!(run.store.list("tables").expect("a list").len(), 1);
    lose_power(&mut run, Kept::Nothing);
}

/// O6, the sync of the directory for table files.
#[test]
fn the_name_of_a_table_file_is_synced_before_a_slot_names_what_is_in_it() {
    let mut run = run();
    run.steps(&[Step::Checkpoint]);
    assert_eq!(run.store.list("tables").expect("a list").len(), 1);
    lose_power(&mut run, Kept::Nothing);
}

/// O7, `file.sync` in `write_commit`: files that only an older checkpoint needs would be removed
/// while that is the one that counts.
#[test]
fn a_slot_is_synced_before_what_only_older_ones_need_is_removed() {
    for fate in 0..FATES {
        let mut run = run();
        // The first checkpoint of every opening writes the file table anew, to another file.
        run.steps(&[Step::Close, write("a", 12, 20, 4000), Step::Checkpoint]);
        let removed = run.store.count(Operation::Remove);
        run.steps(&[write("a", 40, 20, 5000), Step::Checkpoint]);
        assert!(run.store.count(Operation::Remove) > removed, "nothing was removed");
        lose_power(&mut run, Kept::Random(fate));
    }
}

/// A pool with nothing in the cache that is not on the medium, and one engine without a model.
fn opened() -> (Arc<FaultStore>, Arc<Engine>) {
    let store = Arc::new(FaultStore::new(0));
    Engine::create_in(&*store, 1 << 20).expect("created");
    let engine = Engine::open_in(store.clone(), false, settings(0)).expect("opened");
    (store, engine)
}

fn after_power_loss(store: &FaultStore) -> Arc<Engine> {
    let store = Arc::new(store.crash(Kept::Nothing));
    Engine::open_in(store, false, settings(0)).expect("opened after the power loss")
}

/// P1 and P3, `log.commit` in verbs.rs: the command would be gone, or what it took away be back.
#[test]
fn a_command_that_returned_survives_a_power_loss() {
    let (store, engine) = opened();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_string()).collect::<Vec<_>>();
    engine.create_volumes(&names(&["a", "b"]), 1 << 20, &[]).expect("created");
    let there = |store: &FaultStore| {
        let list = after_power_loss(store).list();
        list.into_iter().map(|info| info.name).collect::<Vec<_>>()
    };
    assert_eq!(there(&store), ["a", "b"]);
    let (store, engine) = opened();
    engine.create_volumes(&names(&["a", "b"]), 1 << 20, &[]).expect("created");
    engine.snapshot(&names(&["a", "b"]), &names(&["a1", "b1"]), &[]).expect("taken");
    engine.delete(&names(&["b"])).expect("deleted");
    assert_eq!(there(&store), ["a", "a1", "b1"]);
}

/// P1, `log.commit` in volume.rs: a write, a zeroing and a trim with FUA are durable by themselves,
/// and with them what came before.
#[test]
fn a_write_with_fua_survives_a_power_loss() {
    for last in 0..3 {
        let (store, engine) = opened();
        engine.create_volumes(&["a".to_string()], 1 << 20, &[]).expect("created");
        let device = engine.device("a").expect("it is there");
        device.write(0, &[1; 8192], false).expect("written");
        match last {
            0 => device.write(8192, &[2; 4096], true),
            1 => device.write_zeroes(4096, 4096, true),
            _ => device.trim(4096, 4096, true),
        }
        .expect("written");
        drop(device);
        let mut found = vec![9; 12288];
        let engine = after_power_loss(&store);
        engine.device("a").expect("it is there").read(0, &mut found).expect("read");
        let wanted = match last {
            0 => [1, 1, 2],
            _ => [1, 0, 0],
        };
        let wanted: Vec<u8> = wanted.into_iter().flat_map(|byte| [byte; 4096]).collect();
        assert!(found == wanted, "the {last}th kind of write");
    }
}

/// O5 for footers, `sync_footers` in `Log::seal`: everything is durable, and closing adds a footer
/// behind it. The table calls its segment sealed, so that nothing could be read without it.
#[test]
fn a_footer_is_durable_before_the_table_calls_its_segment_sealed() {
    let mut run = run();
    run.steps(&[Step::Flush]);
    run.engine().close().expect("closed");
    assert!(run.engine().stats().expect("looked at").sealed_count > 0);
    lose_power(&mut run, Kept::Nothing);
}

/// What is done after a kill; the power may go at any moment of it.
fn go_on(run: &mut Run) -> Result<(), EngineError> {
    run.reopen()?;
    run.step(&write("a", 300, 20, 5000))?;
    run.step(&Step::Checkpoint)
}

/// Killed after so many changes of its second checkpoint. Result: whether that was at its end.
fn killed_in_checkpoint(changes: u64) -> (Run, bool) {
    let mut run = run();
    run.context = format!("killed after {changes} changes");
    run.steps(&[Step::Checkpoint, write("a", 12, 20, 4000), Step::Flush]);
    run.life.end_after(changes);
    let done = run.step(&Step::Checkpoint).is_ok();
    run.kill();
    run.life = Life::new();
    (run, done)
}

/// O4 and O7. A slot that was written and never synced is the newest for whoever opens the pool
/// next. Opening makes it durable, so that it outlives a commit that is torn; and what the older
/// slot needs has to be there as long.
#[test]
fn a_kill_anywhere_in_a_checkpoint_and_a_power_loss_in_the_next_lose_nothing() {
    for killed_after in 0.. {
        let (mut whole, done) = killed_in_checkpoint(killed_after);
        let first = whole.store.changes_count();
        go_on(&mut whole).expect("without a fault nothing fails");
        for change in first..whole.store.changes_count() {
            let (mut run, _) = killed_in_checkpoint(killed_after);
            run.store.plan(When::Change(change), Fault::PowerOff);
            // The last change may be the removal of a file, which can fail.
            let _ = go_on(&mut run);
            for kept in [Kept::Nothing].into_iter().chain((0..3).map(Kept::Random)) {
                let store = run.store.crash(kept);
                let mut survivor = run.survivor(store, &format!("change {change}, {kept:?}"));
                survivor.reopen().unwrap_or_else(|error| panic!("{}: {error}", survivor.context));
            }
        }
        if done {
            assert!(killed_after > 5, "a checkpoint makes more changes");
            return;
        }
    }
}

/// The same in a checkpoint after others, where the one before the last has a file table of its
/// own. Result: whether the kill was at its end.
fn killed_among_tables(changes: u64) -> (Run, bool) {
    let mut run = run();
    run.context = format!("killed after {changes} changes");
    run.steps(&[Step::Close, write("a", 12, 20, 4000), Step::Checkpoint]);
    run.steps(&[write("a", 40, 20, 5000), Step::Flush]);
    run.life.end_after(changes);
    let removed = run.store.count(Operation::Remove);
    let _ = run.step(&Step::Checkpoint);
    let done = run.store.count(Operation::Remove) > removed;
    run.kill();
    run.life = Life::new();
    (run, done)
}

fn check_older(run: &Run, kept: Kept) {
    let store = run.store.crash(kept);
    damage_newer_slot(&store);
    let mut older = run.survivor(store, &format!("{kept:?}, newer slot damaged"));
    older.reopen().unwrap_or_else(|error| panic!("{}: {error}", older.context));
}

/// O4, the first sync of `Slots::make_durable`, and O7: whoever opens the pool after a kill removes
/// what neither slot reaches, as they are read. When the power goes then, and the newer slot is
/// damaged, the other one has to be what was read.
#[test]
fn both_slots_open_after_a_kill_anywhere_in_a_checkpoint() {
    for killed_after in 0.. {
        let (run, _) = killed_among_tables(killed_after);
        check_older(&run, Kept::Everything);
        let (mut run, done) = killed_among_tables(killed_after);
        run.reopen().expect("opened");
        run.kill();
        for kept in std::iter::once(Kept::Nothing).chain((0..2 * FATES).map(Kept::Random)) {
            check_older(&run, kept);
        }
        if done {
            return;
        }
    }
}

/// O4, the write itself: a slot whose sync failed is in the cache only, where no later sync finds
/// it.
#[test]
fn a_slot_whose_sync_failed_is_written_again() {
    for (seed, nth) in (0..8).flat_map(|seed| (0..).map(move |nth| (seed, nth)).take(8)) {
        let mut run = Run::quiet(seed);
        run.context = format!("seed {seed}, sync {nth} of the checkpoint fails");
        run.steps(&[create("a", 4096), write("a", 0, 20, 1000), Step::Close]);
        run.steps(&[write("a", 12, 20, 4000), Step::Checkpoint, write("a", 40, 20, 5000)]);
        let syncs = run.store.count(Operation::Sync);
        run.store.plan(When::Nth(Operation::Sync, syncs + nth), Fault::Error);
        if run.step(&Step::Checkpoint).is_ok() {
            assert!(nth > 2, "a checkpoint has more syncs");
            continue;
        }
        run.reopen().unwrap_or_else(|error| panic!("{}: {error}", run.context));
        run.kill();
        for kept in std::iter::once(Kept::Nothing).chain((0..FATES).map(Kept::Random)) {
            check_older(&run, kept);
        }
    }
}

/// After a crash an opening begins an epoch: it commits its number, makes the segment that says
/// where the log ended, and removes what lies beyond.
#[test]
fn a_power_loss_while_an_epoch_begins_changes_nothing() {
    let mut before = run();
    before.steps(&[Step::Checkpoint, write("a", 300, 200, 4000), Step::Flush]);
    before.steps(&[write("a", 900, 300, 9000)]);
    before.kill();
    for fate in 0..FATES {
        let crashed = |context| before.survivor(before.store.crash(Kept::Random(fate)), context);
        let mut whole = crashed("opened");
        whole.reopen().expect("opened");
        for change in 0..whole.store.changes_count() {
            let mut run = crashed("opened in vain");
            run.context = format!("fate {fate}, change {change} of opening");
            run.store.plan(When::Change(change), Fault::PowerOff);
            let _ = run.reopen();
            for kept in [Kept::Nothing, Kept::Random(change)] {
                let mut again = run.survivor(run.store.crash(kept), &format!("{kept:?}"));
                again.reopen().unwrap_or_else(|error| panic!("{}: {error}", again.context));
                again.steps(&[write("a", 20, 3, 9500), Step::Checkpoint]);
                lose_power(&mut again, Kept::Nothing);
            }
        }
    }
}

/// The log is never removed, so the older slot is as good as the newer: table files that it reaches
/// have to be there, however many checkpoints removed others.
#[test]
fn table_files_stay_until_neither_slot_reaches_them() {
    let steps = [
        Step::Checkpoint,
        write("a", 12, 20, 4000),
        Step::Checkpoint,
        Step::Close,
        write("a", 40, 20, 5000),
        Step::Checkpoint,
        delete("s"),
        Step::Checkpoint,
        write("a", 80, 20, 6000),
        Step::Flush,
        Step::Kill,
        write("a", 90, 20, 7000),
        Step::Checkpoint,
        Step::Close,
        Step::Close,
        write("a", 95, 20, 8000),
        Step::Close,
    ];
    for count in 1..=steps.len() {
        let mut run = run();
        run.steps(&steps[..count]);
        run.kill();
        let store = run.store.crash(Kept::Everything);
        damage_newer_slot(&store);
        let mut older = run.survivor(store, &format!("{count} steps, the newer slot is damaged"));
        older.reopen().unwrap_or_else(|error| panic!("{}: {error}", older.context));
        older.steps(&[write("a", 500, 5, 9000), Step::Checkpoint, Step::Kill, Step::Close]);
        lose_power(&mut older, Kept::Nothing);
        if count == steps.len() {
            assert!(run.store.count(Operation::Remove) > 1, "no table file was removed");
        }
    }
}

/// A table file is appended to until it holds little but old nodes; then the table is written as a
/// whole, to another one.
#[test]
fn the_file_table_moves_on_when_its_file_holds_little_of_it() {
    let mut run = run();
    run.steps(&[create("b", 30 * 240)]);
    for first in 0..30 {
        run.steps(&[write("b", 240 * first, 240, 20_000 * (first + 1))]);
    }
    let (mut files, mut checkpoints) = (std::collections::BTreeSet::new(), 0);
    while files.len() < 3 {
        assert!(checkpoints < 2000, "it does not");
        checkpoints += 1;
        // A block of every segment dies in turn, so that bitmaps are long.
        let block = 240 * (checkpoints % 30) + 200;
        run.steps(&[write("b", block, 1, 1_000_000 + 16 * checkpoints), Step::Checkpoint]);
        files.extend(run.store.list("tables").expect("a list"));
    }
    assert!(run.store.list("tables").expect("a list").len() < 3, "nothing was removed");
    run.kill();
    let store = run.store.crash(Kept::Nothing);
    damage_newer_slot(&store);
    let mut older = run.survivor(store, "the newer slot is damaged");
    older.reopen().unwrap_or_else(|error| panic!("{}: {error}", older.context));
}
