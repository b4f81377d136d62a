//! Giving space back on a store that fails on purpose: the power goes, an operation fails or a
//! process ends at every operation of reclaim. What is held stays readable, what is not comes back.

mod crash;

use crash::model::BLOCK_BYTES;
use crash::run::{Run, Totals};
use crash::script::{Step, create, delete, snapshot_of, write};
use crash::{Random, damage_newer_slot, sampled};
use ramet_engine::{Engine, Kind, Reclaimed};
use ramet_store::{Fault, FaultStore, Kept, Store, When};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

/// Fates of what was not synced, for each moment.
const FATES: u64 = 3;
/// Moments of a story at which something happens, about.
const MOMENTS_MAX: u64 = 150;
/// Random scripts, and their steps.
const SCRIPTS: u64 = 12;
const STEPS: usize = 60;

/// What the files of the log and of maps take.
fn taken_bytes(run: &Run) -> u64 {
    let mut bytes = 0;
    for directory in ["segments", "nodes"] {
        for name in run.store.list(directory).expect("listed") {
            let file = run.store.open(&format!("{directory}/{name}"), false).expect("opened");
            bytes += file.allocated_bytes().expect("looked");
        }
    }
    bytes
}

/// Three generations of a volume in several segments of 1 MiB; the older ones are deleted, and half
/// of the volume is overwritten.
fn story() -> Run {
    let mut run = Run::quiet(7);
    run.steps(&[create("a", 4096), create("b", 4096)]);
    for generation in 0..3u64 {
        for piece in 0..6 {
            let stamp = 100_000 * (generation + 1) + 1000 * piece;
            run.steps(&[
                write("a", 100 * piece, 90, stamp),
                write("b", 10 * piece, 3, stamp + 900),
            ]);
        }
        run.steps(&[snapshot_of("a", &format!("a-{generation}"))]);
        if generation == 1 {
            run.steps(&[Step::Checkpoint]);
        }
    }
    run.steps(&[delete("a-0"), delete("a-1"), write("a", 0, 300, 900_000)]);
    run
}

#[test]
fn what_nobody_holds_comes_back() {
    let mut run = story();
    let before = taken_bytes(&run);
    run.steps(&[Step::Reclaim { all: true }]);
    let living = run.engine().stats().expect("figures").living_bytes;
    let after = taken_bytes(&run);
    assert!(before > 2 * living, "there is much to give back");
    // Two segments have a header and the page of a footer each, and nodes take a little.
    assert!(after < living + (300 << 10), "{after} bytes for {living} that live");
    let stats = run.engine().stats().expect("figures");
    assert_eq!((stats.dying_count, stats.waiting_bytes), (0, 0));
    run.steps(&[Step::Close]);
    assert!(taken_bytes(&run) <= after + (64 << 10), "an opening takes nothing back");
    run.steps(&[delete("a"), delete("a-2"), delete("b"), Step::Reclaim { all: true }]);
    assert!(taken_bytes(&run) < 200 << 10, "{} bytes of nothing", taken_bytes(&run));
}

/// A pool that is written to again and again after it gave all room back that was allocated ahead:
/// what was flushed survives, and the room comes back each time.
#[test]
fn room_ahead_comes_back_and_is_there_again_for_who_writes_next() {
    let mut run = Run::quiet(8);
    run.steps(&[create("a", 4096), write("a", 0, 10, 1000)]);
    for round in 1..20u64 {
        let before = taken_bytes(&run);
        run.steps(&[Step::Idle { times: 3 }, Step::Reclaim { all: true }]);
        let (taken, living) =
            (taken_bytes(&run), run.engine().stats().expect("figures").living_bytes);
        assert!(taken <= before, "round {round}");
        assert!(taken <= living + living / 50 + (200 << 10), "round {round}: {taken} for {living}");
        // Less than what was ahead, much more, and nothing before the power goes.
        let count = [1, 300, 40][usize::try_from(round % 3).expect("small")];
        run.steps(&[write("a", 50 * round, count, 10_000 * round), Step::Flush]);
        if round % 4 == 0 {
            run.lose_power(Kept::Nothing).unwrap_or_else(|error| panic!("{round}: {error}"));
        }
    }
}

#[test]
fn a_power_loss_at_any_operation_of_reclaim_loses_nothing() {
    let first = story().store.changes_count();
    let mut whole = story();
    whole.steps(&[Step::Reclaim { all: true }]);
    let last = whole.store.changes_count();
    for change in sampled(first..last, MOMENTS_MAX, 1) {
        let mut run = story();
        run.store.plan(When::Change(change), Fault::PowerOff);
        assert!(run.step(&Step::Reclaim { all: true }).is_err(), "the power did not go");
        run.kill();
        for kept in std::iter::once(Kept::Nothing).chain((0..FATES).map(Kept::Random)) {
            let store = run.store.crash(kept);
            let mut survivor = run.survivor(store, &format!("change {change}, {kept:?}"));
            survivor.reopen().unwrap_or_else(|error| panic!("{}: {error}", survivor.context));
            survivor.steps(&[write("b", 5, 10, 77_000), Step::Reclaim { all: true }]);
            let living = survivor.engine().stats().expect("figures").living_bytes;
            let taken = taken_bytes(&survivor);
            // The segment that is appended to is allocated ahead, and one was not sealed.
            assert!(taken < living + (2 << 20), "{}: {taken} for {living}", survivor.context);
            survivor.steps(&[Step::Close]);
        }
    }
}

#[test]
fn a_newer_slot_that_is_torn_finds_all_that_the_older_one_needs() {
    let first = story().store.changes_count();
    let mut whole = story();
    whole.steps(&[Step::Reclaim { all: true }]);
    let last = whole.store.changes_count();
    for change in sampled(first..last, MOMENTS_MAX, 2) {
        let mut run = story();
        run.store.plan(When::Change(change), Fault::PowerOff);
        assert!(run.step(&Step::Reclaim { all: true }).is_err(), "the power did not go");
        run.kill();
        let store = run.store.crash(Kept::Everything);
        damage_newer_slot(&store);
        let mut survivor = run.survivor(store, &format!("change {change}, slot damaged"));
        survivor.reopen().unwrap_or_else(|error| panic!("{}: {error}", survivor.context));
        survivor.steps(&[Step::Reclaim { all: true }, Step::Close]);
    }
}

#[test]
fn an_operation_of_reclaim_that_fails_loses_nothing() {
    let first = story().store.changes_count();
    let mut whole = story();
    whole.steps(&[Step::Reclaim { all: true }]);
    let last = whole.store.changes_count();
    for fault in [Fault::Error, Fault::Full] {
        for change in sampled(first..last, MOMENTS_MAX / 2, 3) {
            let mut run = story();
            run.context = format!("change {change}, {fault:?}");
            run.store.plan(When::Change(change), fault);
            let _ = run.step(&Step::Reclaim { all: true });
            run.kill();
            run.reopen().unwrap_or_else(|error| panic!("{}: {error}", run.context));
            run.steps(&[Step::Reclaim { all: true }, Step::Close]);
        }
    }
}

#[test]
fn random_scripts_keep_what_is_held_and_give_back_the_rest() {
    let mut totals = Totals::default();
    for seed in 0..SCRIPTS {
        let mut run = Run::new(1000 + seed);
        run.play(STEPS).unwrap_or_else(|error| panic!("{}: {error}", run.context));
        run.steps(&[Step::Reclaim { all: true }]);
        run.resync().unwrap_or_else(|error| panic!("{}: {error}", run.context));
        let living = run.engine().stats().expect("figures").living_bytes;
        let held = run.history.now.living_count() * BLOCK_BYTES;
        assert_eq!(living, held, "{}: bytes that live", run.context);
        let most = living + living / 50 + (1 << 20);
        assert!(taken_bytes(&run) <= most, "{}: {}", run.context, taken_bytes(&run));
        delete_all_as_foretold(&mut run, &mut Random(seed));
        totals.merge(&run.totals);
        run.kill();
    }
    assert!(totals.given_back_bytes > 4 << 20, "{totals:?}");
}

/// Delete everything, some objects at a time: what a dry run of them says is what lives less then.
fn delete_all_as_foretold(run: &mut Run, random: &mut Random) {
    let now = &run.history.now;
    let locked = now.visible().filter(|name| now.thing(name).locked_days > 0);
    let names: Vec<String> = locked.cloned().collect();
    if !names.is_empty() {
        run.steps(&[Step::Unlock { names }]);
    }
    loop {
        let mut left: Vec<String> = run.history.now.visible().cloned().collect();
        let count = (1 + random.small(4)).min(left.len());
        let names: Vec<String> =
            (0..count).map(|_| left.swap_remove(random.small(left.len()))).collect();
        if names.is_empty() {
            return;
        }
        let before = run.history.now.living_count();
        let foretold = run.engine().frees(&names).expect("told");
        run.steps(&[Step::Delete { names: names.clone() }]);
        let freed = (before - run.history.now.living_count()) * BLOCK_BYTES;
        assert_eq!(foretold, freed, "{}: a dry run of {names:?}", run.context);
        run.steps(&[Step::Reclaim { all: random.below(2) == 0 }]);
        let living = run.engine().stats().expect("figures").living_bytes;
        let held = run.history.now.living_count() * BLOCK_BYTES;
        assert_eq!(living, held, "{}: bytes that live without {names:?}", run.context);
    }
}

/// Who reads beside the engine gives way where somebody finds no space, and what is dead comes
/// back.
#[test]
fn a_hold_ends_where_there_is_no_space_and_what_is_dead_comes_back() {
    let mut run = story();
    let hold = run.engine().hold_space();
    run.steps(&[Step::Reclaim { all: true }, write("b", 0, 3, 1)]);
    assert!(run.engine().still_holds(hold));
    assert_eq!(run.totals.given_back_bytes, 0, "it was held");
    let used = run.store.space_bytes().expect("told").1 - run.store.space_bytes().expect("told").0;
    run.store.set_capacity(Some(used));
    let full = |run: &mut Run| {
        (0..10).any(|piece| run.step(&write("b", 200, 200, 5_000 + 10_000 * piece)).is_err())
    };
    assert!(full(&mut run), "there was room");
    assert!(!run.engine().still_holds(hold), "it holds on to what is needed");
    run.resync().expect("looked at");
    run.steps(&[Step::Reclaim { all: true }, write("b", 200, 100, 500_000), Step::Flush]);
    assert!(run.totals.given_back_bytes > 3 << 20, "{:?}", run.totals);
}

/// Who is told extents walks a map that is history by then, where others go on: what it may still
/// have to read stays until it is done.
#[test]
fn nothing_is_given_back_while_a_map_is_walked() {
    let run = story();
    let engine = run.engine();
    let device = engine.device("a").expect("there");
    let reclaim = || engine.reclaim(true, &mut |_| true).expect("done").given_back_bytes;
    let mut meanwhile = None;
    let mut tell = |_, _| {
        meanwhile.get_or_insert_with(reclaim);
        ControlFlow::Continue(())
    };
    device.extents(0, device.size_bytes(), &mut tell).expect("told");
    assert_eq!(meanwhile, Some(0));
    assert!(reclaim() > 3 << 20, "there was nothing to give back");
}

/// The story: under load `reclaim --all` ended with the room that was allocated ahead cut off, and
/// the next writer had to allocate it again.
#[test]
fn who_writes_meanwhile_keeps_the_room_that_was_made_for_him() {
    let run = story();
    let engine = run.engine();
    engine.bell().wait(Duration::ZERO);
    let device = engine.device("a").expect("there");
    let room_bytes = || {
        let names = run.store.list("segments").expect("listed");
        let newest = format!("segments/{}", names.last().expect("some"));
        run.store.open(&newest, false).and_then(|file| file.allocated_bytes()).expect("looked")
    };
    let mut told = 0;
    let mut tell = |_: &Reclaimed| {
        // Something dies in several segments, so that there is more to tell of.
        for piece in 0..6 {
            device.write(100 * piece * BLOCK_BYTES, &[7; 4096], false).expect("written");
        }
        told += 1;
        true
    };
    let done = engine.reclaim(true, &mut tell).expect("given back");
    assert!(done.is_done && done.given_back_bytes > 3 << 20 && told > 2, "{done:?}, {told}");
    assert_eq!(room_bytes(), 1 << 20, "all of a segment is allocated");
    engine.reclaim(true, &mut |_| true).expect("given back");
    assert!(room_bytes() < 1 << 18, "nobody writes: all comes back");
}

/// A delete comes while space is given back, and nodes are counted before it was looked at: its
/// map is read still, to find what nobody else holds.
#[test]
fn nodes_of_what_is_deleted_meanwhile_stay_until_it_was_looked_at() {
    let mut run = Run::quiet(11);
    run.settings.node_budget_bytes = 2 << 10;
    run.steps(&[create("a", 64 * 512), create("z", 4096), create("b", 4096)]);
    for leaf in 0..64u64 {
        run.steps(&[write("a", 512 * leaf, 2, 1000 * (leaf + 1))]);
    }
    run.steps(&[snapshot_of("a", "s"), write("z", 0, 300, 200_000), write("b", 0, 200, 300_000)]);
    run.steps(&[write("a", 3, 1, 400_000), Step::Close, delete("z"), write("b", 0, 90, 500_000)]);
    let engine = run.engine().clone();
    let mut deleted = 0;
    let mut tell = |_: &Reclaimed| {
        if deleted == 0 {
            engine.delete(&["a".into(), "s".into()]).expect("deleted");
            engine.checkpoint().expect("written");
            deleted = 1;
        }
        true
    };
    engine.reclaim(true, &mut tell).expect("given back");
    assert_eq!(deleted, 1, "nothing came between");
    engine.reclaim(true, &mut |_| true).expect("given back");
    let stats = engine.stats().expect("figures");
    assert_eq!((stats.dying_count, stats.living_bytes), (0, 200 * BLOCK_BYTES));
}

/// Blocks die in a segment that is about to be thinned, and the power goes with all that was not
/// flushed: what both slots' checkpoints still hold was not given back with the rest.
#[test]
fn what_dies_after_the_checkpoint_is_not_given_back_with_it() {
    let mut run = Run::quiet(12);
    run.steps(&[create("a", 4096)]);
    for piece in 0..5u64 {
        run.steps(&[write("a", 200 * piece, 200, 10_000 * (piece + 1))]);
    }
    // Half of each of the segments is dead.
    for piece in 0..5u64 {
        run.steps(&[write("a", 200 * piece, 100, 100_000 + 10_000 * piece)]);
    }
    run.steps(&[Step::Close]);
    let engine = run.engine().clone();
    let mut told = 0;
    let mut tell = |_: &Reclaimed| {
        told += 1;
        if told == 1 {
            let device = engine.device("a").expect("there");
            device.write(0, &vec![7; 1000 * 4096], false).expect("written");
        }
        told < 3
    };
    let done = engine.reclaim(true, &mut tell).expect("given back");
    assert!(!done.is_done && done.given_back_bytes > 0, "it was ended in between");
    drop(engine);
    run.lose_power(Kept::Nothing).unwrap_or_else(|error| panic!("{error}"));
}

/// All objects were deleted, so no tree is left, and nothing is reached in any file of nodes: the
/// one that nodes are appended to is not a file that can go.
#[test]
fn the_file_that_nodes_are_appended_to_stays_when_nothing_in_it_is_reached() {
    let store = Arc::new(FaultStore::new(14));
    Engine::create_in(&*store, 1 << 20).expect("created");
    let settings = crash::run::settings(14);
    let open = || Engine::open_in(store.clone(), false, settings.clone()).expect("opened");
    let engine = open();
    for (round, name) in ["a", "b", "c"].into_iter().enumerate() {
        engine.create_volumes(&[name.into()], 4096 * BLOCK_BYTES, &[]).expect("created");
        let device = engine.device(name).expect("there");
        device.write(700 * BLOCK_BYTES, &[7; 8192], false).expect("written");
        drop(device);
        engine.checkpoint().expect("written");
        if round < 2 {
            engine.delete(&[name.into()]).expect("deleted");
            engine.reclaim(true, &mut |_| true).expect("given back");
        }
    }
    engine.close().expect("closed");
    drop(engine);
    let mut found = vec![0; 8192];
    open().device("c").expect("there").read(700 * BLOCK_BYTES, &mut found).expect("read");
    assert_eq!(found, [7; 8192]);
}

/// The first thing that is done to a full pool after a kill is a delete: the reserve of before was
/// on the disk, and nobody knew of it, so the delete found no room.
#[test]
fn a_full_pool_that_was_killed_takes_a_delete_before_anything_else() {
    let mut run = story();
    run.steps(&[Step::Flush]);
    run.kill();
    let (free, all) = run.store.space_bytes().expect("told");
    run.store.set_capacity(Some(all - free));
    run.reopen().unwrap_or_else(|error| panic!("{error}"));
    run.steps(&[delete("a"), Step::Reclaim { all: true }, write("b", 200, 100, 500_000)]);
    run.steps(&[Step::Flush]);
    run.lose_power(Kept::Nothing).unwrap_or_else(|error| panic!("{error}"));
}

/// P7: writes are refused, deletes are not, and what they free can be used at once; again and
/// again, and over openings.
#[test]
fn a_full_pool_takes_deletes_and_has_room_afterwards() {
    let mut run = Run::quiet(3);
    run.steps(&[create("a", 4096), create("b", 4096), write("b", 0, 10, 1)]);
    run.store.set_capacity(Some(8 << 20));
    for round in 0..6u64 {
        let mut written = 0;
        let full = (0..64).any(|piece| {
            let done = run.step(&write("a", 60 * piece, 60, 100_000 * (round + 1) + 1000 * piece));
            written += u64::from(done.is_ok());
            done.is_err_and(|error| error.kind == Kind::Full)
        });
        assert!(full && written > 10, "round {round}: {written} writes had room");
        run.resync().expect("looked at");
        match round % 3 {
            0 => run.steps(&[Step::Kill]),
            1 => run.steps(&[Step::Close]),
            _ => {}
        }
        run.steps(&[delete("a"), Step::Reclaim { all: true }, create("a", 4096)]);
    }
}

/// What the files of the log take once nothing is left to give back and the pool was closed.
fn taken_in_the_end(run: &mut Run) -> u64 {
    run.steps(&[Step::Reclaim { all: true }, Step::Close, Step::Reclaim { all: true }]);
    run.steps(&[Step::Close]);
    let mut bytes = 0;
    for name in run.store.list("segments").expect("listed") {
        let file = run.store.open(&format!("segments/{name}"), false).expect("opened");
        bytes += file.allocated_bytes().expect("looked");
    }
    bytes
}

/// The second sync of `Log::thin`: a checkpoint may say that the room is back from then on.
#[test]
fn room_that_is_said_to_be_back_stays_back_over_a_power_loss() {
    let mut run = story();
    let wanted = taken_in_the_end(&mut run);
    run.lose_power(Kept::Nothing).expect("opened");
    assert_eq!(taken_in_the_end(&mut run), wanted);
}

/// The first sync of `Log::thin`: the journal, which says what holds no block, goes after that.
#[test]
fn a_power_loss_while_a_segment_is_thinned_wastes_no_room() {
    let sealed = || {
        let mut run = story();
        run.steps(&[Step::Close, Step::Flush]);
        run
    };
    let mut whole = sealed();
    let first = whole.store.changes_count();
    whole.steps(&[Step::Reclaim { all: true }]);
    let last = whole.store.changes_count();
    let most = taken_in_the_end(&mut whole);
    for change in first..last {
        let mut run = sealed();
        run.store.plan(When::Change(change), Fault::PowerOff);
        assert!(run.step(&Step::Reclaim { all: true }).is_err(), "the power did not go");
        run.kill();
        for kept in (0..8 * FATES).map(Kept::Random) {
            let mut survivor = run.survivor(run.store.crash(kept), &format!("{change}, {kept:?}"));
            survivor.reopen().unwrap_or_else(|error| panic!("{}: {error}", survivor.context));
            let taken = taken_in_the_end(&mut survivor);
            assert!(taken <= most, "{}: {taken} bytes, not {most}", survivor.context);
        }
    }
}

/// Nodes that only the older slot's checkpoint reaches are given back once the newer one is in both
/// slots: no block is dead here, so nothing else had it written twice.
#[test]
fn nodes_that_the_older_slot_reaches_stay_until_it_does_not() {
    const LEAVES: u64 = 300;
    let mut run = Run::quiet(5);
    run.steps(&[create("a", 512 * LEAVES)]);
    let fill = |run: &mut Run, round: u64| {
        for leaf in 0..LEAVES {
            let stamp = 1_000_000 * (round + 1) + 1000 * leaf;
            run.steps(&[write("a", 512 * leaf + 2 * round, 1, stamp)]);
        }
        run.steps(&[Step::Checkpoint]);
    };
    fill(&mut run, 0);
    fill(&mut run, 1);
    run.steps(&[Step::Reclaim { all: false }]);
    assert!(run.totals.given_back_bytes >= 8 << 10, "no page of nodes came back");
    let store = run.store.crash(Kept::Everything);
    damage_newer_slot(&store);
    let mut survivor = run.survivor(store, "the newer slot is damaged");
    survivor.reopen().unwrap_or_else(|error| panic!("{}: {error}", survivor.context));
}
