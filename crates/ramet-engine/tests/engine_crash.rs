//! A pool with checkpoints on a store that fails on purpose: the power goes at every operation, any
//! operation fails, reads fail, space runs out, bits flip. Whatever happens, the whole pool is at
//! one moment, at or after the last that was flushed, and nothing is called damaged that is not.

mod crash;

use crash::model::BLOCK_BYTES;
use crash::process::Life;
use crash::run::{Run, Totals, is_unavailable, look_at_what_is_readable};
use crash::script::Step;
use crash::{damage_newer_slot, sampled};
use ramet_engine::{Engine, EngineError, Kind};
use ramet_store::{Fault, FaultStore, Kept, Operation, Store, When};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Scripts that are played, from seed 0; RAMET_SEED and RAMET_SCRIPTS ask for others.
const SCRIPTS: u64 = 6;
/// Steps of a script: enough for several segments, checkpoints and openings.
const STEPS: usize = 70;
/// Steps of a script on a pool whose nodes do not fit into its budget, how many are played, and at
/// how many operations of each the power goes.
const STEPS_LONG: usize = 400;
const LONG_SCRIPTS: usize = 2;
const LONG_MOMENTS_MAX: u64 = 8;
/// Scripts of which every operation is a moment, and their steps.
const SHORT_SCRIPTS: usize = 2;
const STEPS_SHORT: usize = 14;
/// Operations of a script at which something happens: all, or about this many of them.
const MOMENTS_MAX: u64 = 60;
/// Reads of an opening that fail, about; and power losses of a script whose opening is cut off.
const READS_MAX: u64 = 40;
const OPENINGS_MAX: u64 = 6;
/// Fates of what was not synced, for each power loss, beside losing all of it.
const FATES: u64 = 2;
/// Steps after a fault, before the power goes once more.
const STEPS_AFTER: usize = 12;
/// Bits that flip in each file of nodes.
const FLIPS: u64 = 24;

fn seeds() -> Range<u64> {
    let asked = |name| std::env::var(name).ok()?.parse().ok();
    let (first, count) = (asked("RAMET_SEED").unwrap_or(0), asked("RAMET_SCRIPTS"));
    first..first + count.unwrap_or(SCRIPTS)
}

/// A script, played to its end without a fault.
fn played(seed: u64) -> Run {
    let mut run = Run::new(seed);
    run.play(STEPS).unwrap_or_else(|error| panic!("script {seed}: {error}"));
    run
}

/// The changes of the store that a script makes, without the pool's creation.
fn changes(seed: u64) -> Range<u64> {
    let first = Run::new(seed).store.changes_count();
    first..played(seed).store.changes_count()
}

fn fates(moment: u64) -> impl Iterator<Item = Kept> {
    let drawn = move |fate| Kept::Random(moment * FATES + fate);
    std::iter::once(Kept::Nothing).chain((0..FATES).map(drawn))
}

/// A script, up to a change at which the power goes.
fn cut_off(seed: u64, change: u64) -> Run {
    let mut run = Run::new(seed);
    run.context = format!("script {seed}, change {change}");
    run.store.plan(When::Change(change), Fault::PowerOff);
    assert!(run.play(STEPS).is_err(), "{}: the power did not go", run.context);
    run.kill();
    run
}

/// What opening found stays, and the pool can be used and lose its power again.
fn check_survivor(run: &Run, store: FaultStore, context: &str, seed: u64) {
    let mut survivor = run.survivor(store, context);
    let opened = |result: Result<(), EngineError>, survivor: &Run| {
        result.unwrap_or_else(|error| panic!("{}: {error}", survivor.context));
    };
    let result = survivor.reopen();
    opened(result, &survivor);
    let result = survivor.lose_power(Kept::Nothing);
    opened(result, &survivor);
    survivor.script = survivor.script.fork(seed);
    survivor.context += ", and used";
    let result = survivor.play(STEPS_AFTER);
    opened(result, &survivor);
    let result = survivor.lose_power(Kept::Random(seed));
    opened(result, &survivor);
}

#[test]
fn scripts_seal_and_replay_and_checkpoint_and_evict() {
    let mut totals = Totals::default();
    for seed in seeds() {
        let mut run = played(seed);
        run.steps(&[Step::Close]);
        run.kill();
        println!("script {seed}: {} changes, {:?}", run.store.changes_count(), run.totals);
        totals.merge(&run.totals);
    }
    assert!(totals.checkpoints > 0 && totals.loaded > 0 && totals.evicted > 0, "{totals:?}");
    assert!(totals.sealed > 0 && totals.replayed > 0, "{totals:?}");
}

/// A pool with more nodes than the budget of 64 KiB, and a checkpoint every 100 batches.
#[test]
fn a_long_script_that_evicts_all_the_time_keeps_what_was_flushed() {
    for seed in seeds().take(LONG_SCRIPTS) {
        let first = Run::long(seed).store.changes_count();
        let mut whole = Run::long(seed);
        whole.play(STEPS_LONG).expect("without a fault nothing fails");
        let end = whole.store.changes_count();
        whole.steps(&[Step::Close]);
        whole.kill();
        let Totals { checkpoints, evicted, loaded, sealed, replayed, .. } = whole.totals;
        let happened = [checkpoints, evicted, loaded, sealed, replayed];
        assert!(happened.iter().all(|count| *count > 0), "{:?}", whole.totals);
        for change in sampled(first..end, LONG_MOMENTS_MAX, seed) {
            let mut run = Run::long(seed);
            run.context = format!("long script {seed}, change {change}");
            run.store.plan(When::Change(change), Fault::PowerOff);
            assert!(run.play(STEPS_LONG).is_err(), "{}: the power did not go", run.context);
            run.kill();
            for kept in fates(change) {
                check_survivor(&run, run.store.crash(kept), &format!("{kept:?}"), change);
            }
        }
    }
}

#[test]
fn a_power_loss_at_any_operation_keeps_what_was_flushed() {
    for seed in seeds() {
        for change in sampled(changes(seed), MOMENTS_MAX, seed) {
            let run = cut_off(seed, change);
            for kept in fates(change) {
                check_survivor(&run, run.store.crash(kept), &format!("{kept:?}"), change);
            }
        }
    }
}

/// Short scripts, and not one operation left out: those of the opening afterwards neither.
#[test]
fn a_power_loss_at_every_operation_of_a_short_script_keeps_what_was_flushed() {
    for seed in seeds().take(SHORT_SCRIPTS) {
        let first = Run::new(seed).store.changes_count();
        let mut whole = Run::new(seed);
        whole.play(STEPS_SHORT).expect("without a fault nothing fails");
        for change in first..whole.store.changes_count() {
            let mut run = Run::new(seed);
            run.context = format!("short script {seed}, change {change}");
            run.store.plan(When::Change(change), Fault::PowerOff);
            assert!(run.play(STEPS_SHORT).is_err(), "{}: the power did not go", run.context);
            run.kill();
            for kept in fates(change) {
                check_survivor(&run, run.store.crash(kept), &format!("{kept:?}"), change);
            }
            lose_power_while_opening(&run, change);
        }
    }
}

/// A script, up to a change before which its process is killed, and opened again.
fn killed(seed: u64, changes: u64) -> Run {
    let mut run = Run::new(seed);
    run.context = format!("script {seed}, killed after {changes} changes");
    run.life.end_after(changes);
    assert!(run.play(STEPS).is_err(), "{}: it was not", run.context);
    run.life = Life::new();
    run.reopen().unwrap_or_else(|error| panic!("{}: {error}", run.context));
    run
}

#[test]
fn a_kill_at_any_operation_and_a_power_loss_later_keep_what_was_flushed() {
    for seed in seeds() {
        let all = changes(seed);
        for change in sampled(0..all.end - all.start, MOMENTS_MAX, seed) {
            for (kept, steps) in [(Kept::Nothing, 0), (Kept::Random(change), STEPS_AFTER)] {
                let mut run = killed(seed, change);
                run.script = run.script.fork(change);
                let played = run.play(steps).and_then(|()| run.lose_power(kept));
                played.unwrap_or_else(|error| panic!("{}, then {kept:?}: {error}", run.context));
            }
        }
    }
}

/// Open what a power loss left, and lose the power again at each operation of that.
fn lose_power_while_opening(run: &Run, change: u64) {
    let kept = Kept::Random(change);
    let whole = Arc::new(run.store.crash(kept));
    let opened = Engine::open_in(whole.clone(), false, run.settings.clone());
    drop(opened.unwrap_or_else(|error| panic!("{}: {error}", run.context)));
    for at in 0..whole.changes_count() {
        let again = Arc::new(run.store.crash(kept));
        again.plan(When::Change(at), Fault::PowerOff);
        let opened = Engine::open_in(again.clone(), false, run.settings.clone());
        // What cannot be removed is left to the next opening.
        drop(opened);
        for fate in [Kept::Nothing, Kept::Random(at)] {
            let context = format!("{kept:?}, change {at} of opening, {fate:?}");
            check_survivor(run, again.crash(fate), &context, change + at);
        }
    }
}

#[test]
fn a_power_loss_at_any_operation_of_opening_changes_nothing() {
    for seed in seeds() {
        for change in sampled(changes(seed), OPENINGS_MAX, seed) {
            let run = cut_off(seed, change);
            lose_power_while_opening(&run, change);
        }
    }
}

/// Go on after a fault: a pool that is poisoned takes nothing until it is opened again; else what
/// failed was not done, or in part.
fn recover(run: &mut Run, error: &EngineError) {
    let context = run.context.clone();
    assert!(is_unavailable(error), "{context}: {error}");
    let reopened = match &run.engine {
        Some(engine) if engine.check_open().is_ok() => {
            if engine.stats().expect("looked at").poisoned.is_empty() {
                let resynced = run.resync();
                return resynced.unwrap_or_else(|error| panic!("{context}, looked at: {error}"));
            }
            check_poisoned(engine, &context);
            run.reopen()
        }
        Some(_) | None => run.reopen(),
    };
    reopened.unwrap_or_else(|error| panic!("{context}, reopened: {error}"));
}

fn check_poisoned(engine: &Arc<Engine>, context: &str) {
    let refused = |result: Result<(), EngineError>, what: &str| {
        let unavailable = matches!(&result, Err(error) if error.kind == Kind::Unavailable);
        assert!(unavailable, "{context}: {what} after a failure: {result:?}");
    };
    let name = &["more".to_string()];
    refused(engine.create_volumes(name, 4096, &[]).map(drop), "a command");
    refused(engine.checkpoint().map(drop), "a checkpoint");
    let durable = engine.stats().expect("looked at").durable_sequence;
    let _ = engine.close();
    let after = engine.stats().expect("looked at").durable_sequence;
    assert_eq!(after, durable, "{context}: more is durable after a failure");
}

/// Play a script with one fault, and lose the power in the end.
fn play_with(seed: u64, when: When, fault: Fault) {
    let mut run = Run::new(seed);
    run.context = format!("script {seed}, {when:?} fails with {fault:?}");
    run.store.plan(when, fault);
    for _ in 0..STEPS {
        let step = run.script.next(&run.history.now);
        if let Err(error) = run.step(&step) {
            run.context = format!("{}, in {step:?}", run.context);
            recover(&mut run, &error);
        }
    }
    let lost = run.lose_power(Kept::Random(seed));
    lost.unwrap_or_else(|error| panic!("{}, power lost: {error}", run.context));
    run.steps(&[Step::Close]);
}

#[test]
fn after_any_failed_operation_the_pool_goes_on_or_is_reopened_without_loss() {
    for seed in seeds() {
        for change in sampled(changes(seed), MOMENTS_MAX, seed) {
            play_with(seed, When::Change(change), Fault::Error);
        }
    }
}

#[test]
fn after_no_space_at_any_operation_the_pool_goes_on_or_is_reopened_without_loss() {
    for seed in seeds() {
        for change in sampled(changes(seed), MOMENTS_MAX, seed + 1) {
            play_with(seed, When::Change(change), Fault::Full);
        }
    }
}

#[test]
fn a_failed_read_loses_nothing() {
    for seed in seeds() {
        let first = Run::new(seed).store.count(Operation::Read);
        let end = played(seed).store.count(Operation::Read);
        for read in sampled(first..end, READS_MAX, seed) {
            play_with(seed, When::Nth(Operation::Read, read), Fault::Error);
        }
    }
}

#[test]
fn a_failed_read_while_opening_loses_nothing() {
    for seed in seeds() {
        let mut run = played(seed);
        run.kill();
        let whole = Arc::new(run.store.crash(Kept::Everything));
        let opened = Engine::open_in(whole.clone(), false, run.settings.clone());
        drop(opened.unwrap_or_else(|error| panic!("{}: {error}", run.context)));
        for read in sampled(0..whole.count(Operation::Read), READS_MAX, seed) {
            let store = Arc::new(run.store.crash(Kept::Everything));
            store.plan(When::Nth(Operation::Read, read), Fault::Error);
            let opened = Engine::open_in(store.clone(), false, run.settings.clone()).map(drop);
            if let Err(error) = &opened {
                assert_eq!(error.kind, Kind::Unavailable, "{}: {error}", run.context);
            }
            let context = format!("read {read} fails: {:?}", opened.err());
            check_survivor(&run, store.crash(Kept::Nothing), &context, read);
        }
    }
}

#[test]
fn a_full_store_refuses_writes_and_keeps_what_it_has() {
    let mut full = 0;
    for seed in seeds() {
        let pages = played(seed).store.space_bytes().expect("looked at");
        let used = (pages.1 - pages.0) / BLOCK_BYTES;
        for part in [2, 3, 4, 5, 6] {
            let mut run = Run::new(seed);
            run.context = format!("script {seed}, full at {part} tenths");
            run.store.set_capacity(Some(used * part / 10 * BLOCK_BYTES));
            for _ in 0..STEPS {
                let step = run.script.next(&run.history.now);
                if let Err(error) = run.step(&step) {
                    assert_eq!(error.kind, Kind::Full, "{}: {step:?}: {error}", run.context);
                    full += 1;
                    recover(&mut run, &error);
                }
            }
            let lost = run.lose_power(Kept::Random(part));
            lost.unwrap_or_else(|error| panic!("{}, power lost: {error}", run.context));
            run.store.set_capacity(None);
            run.steps(&[Step::Checkpoint, Step::Close, Step::Kill]);
        }
    }
    assert!(full > 0, "there was always room");
}

#[test]
fn a_damaged_newer_slot_opens_from_the_older_with_everything_flushed() {
    for seed in seeds() {
        for steps in 1..STEPS {
            let mut run = Run::new(seed);
            run.play(steps).expect("without a fault nothing fails");
            run.kill();
            let store = run.store.crash(Kept::Everything);
            damage_newer_slot(&store);
            check_survivor(&run, store, &format!("{steps} steps, newer slot damaged"), seed);
        }
    }
}

/// Files with nodes, and their lengths in bytes.
fn files_of_nodes(store: &FaultStore) -> Vec<(String, u64)> {
    let directories = ["nodes", "tables"].into_iter();
    let paths = directories.flat_map(|directory| {
        let names = store.list(directory).expect("a list");
        names.into_iter().map(move |name| format!("{directory}/{name}"))
    });
    let bytes = |path: &String| {
        let file = store.open(path, false).expect("opened");
        file.length_bytes().expect("a length")
    };
    paths.map(|path| (path.clone(), bytes(&path))).collect()
}

/// A pool with a damaged node goes on: nothing that waits is freed by mistake, checkpoints are
/// written or say what is damaged, and closing it loses nothing.
fn use_damaged(engine: &Arc<Engine>, context: &str) {
    let fine = |result: Result<(), EngineError>, what: &str| {
        let fine = result.as_ref().map_or_else(|error| error.kind == Kind::Corrupt, |()| true);
        assert!(fine, "{context}: {what}: {result:?}");
    };
    fine(engine.create_volumes(&["more".into()], 1 << 20, &[]).map(drop), "a command");
    fine(engine.device("more").and_then(|device| device.write(0, &[1; 4096], false)), "a write");
    for _ in 0..100 {
        fine(engine.step(Instant::now()).map(drop), "a step");
    }
    fine(engine.checkpoint().map(drop), "a checkpoint");
    fine(engine.delete(&["more".into()]).map(drop), "a command");
    fine(engine.checkpoint().map(drop), "a checkpoint");
}

#[test]
fn a_flipped_bit_in_a_file_of_nodes_is_an_error_and_never_wrong_data() {
    for seed in seeds() {
        let mut run = played(seed);
        run.steps(&[Step::Close]);
        run.kill();
        let (mut refused, mut damaged) = (0, 0);
        for (path, bytes) in files_of_nodes(&run.store) {
            for at in sampled(0..8 * bytes, FLIPS, seed) {
                let store = Arc::new(run.store.crash(Kept::Everything));
                let bit = u32::try_from(at % 8).expect("below 8");
                store.flip_bit(&path, at / 8, bit).expect("flipped");
                let context = format!("{}, bit {at} of {path}", run.context);
                match Engine::open_in(store, false, run.settings.clone()) {
                    Ok(engine) => {
                        let wanted = &run.history.now;
                        damaged += look_at_what_is_readable(&engine, wanted, &context).len();
                        use_damaged(&engine, &context);
                        look_at_what_is_readable(&engine, wanted, &context);
                    }
                    Err(error) if error.kind == Kind::Corrupt => refused += 1,
                    Err(error) => panic!("{context}: {error}"),
                }
            }
        }
        println!("script {seed}: {refused} times not opened, {damaged} reads refused");
    }
}
