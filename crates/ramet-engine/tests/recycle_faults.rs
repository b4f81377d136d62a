//! Files of dead segments that become segments again, on a store that fails on purpose: old bytes
//! lie behind the end of the log at every moment, and nothing is ever taken for what it is not.

mod crash;

use crash::process::Life;
use crash::run::{Run, is_unavailable};
use crash::sampled;
use crash::script::{Step, create, snapshot_of, write};
use ramet_log::format::segment::SegmentHeader;
use ramet_store::{Fault, FaultStore, Kept, Operation, Store, When};
use std::ops::Range;

/// Fates of what was not synced, for each moment.
const FATES: u64 = 3;
/// Moments of a story at which something happens, about.
const MOMENTS_MAX: u64 = 40;
/// Rounds of a story: each fills two segments of 1 MiB and a bit. No file is used again before the
/// third.
const ROUNDS: u64 = 5;
const ROUNDS_BEFORE: u64 = 2;

/// One volume is overwritten again and again; of another a few blocks stay in some segments. So
/// some of them die as a whole and others nearly.
fn story(rounds: Range<u64>) -> Run {
    let mut run = Run::filling(7);
    run.steps(&[create("a", 4096), create("b", 4096)]);
    rounds.for_each(|round| run.steps(&one_round(round)));
    run
}

fn one_round(round: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    for piece in 0..6 {
        let stamp = 100_000 * (round + 1) + 10_000 * piece;
        steps.push(write("a", 100 * piece, 90, stamp));
        if (round + piece).is_multiple_of(3) {
            steps.push(write("b", 20 * round + piece, 2, stamp + 9_000));
        }
    }
    steps.extend([Step::Flush, Step::Idle { times: 1 }]);
    steps
}

fn play(run: &mut Run, rounds: Range<u64>) -> Result<(), ramet_engine::EngineError> {
    rounds.flat_map(one_round).try_for_each(|step| run.step(&step))
}

/// The changes of the store that the later rounds make.
fn changes() -> Range<u64> {
    let first = story(0..ROUNDS_BEFORE).store.changes_count();
    first..story(0..ROUNDS).store.changes_count()
}

fn reused(run: &Run) -> u64 {
    run.engine().stats().expect("figures").reused_count
}

fn spare_files(run: &Run) -> Vec<String> {
    run.store.list("spare").expect("listed")
}

#[test]
fn files_of_dead_and_of_nearly_dead_segments_are_used_again() {
    let run = story(0..ROUNDS);
    assert!(reused(&run) >= 4, "{} segments in used files", reused(&run));
    assert!(run.store.count(Operation::Exchange) > 0, "what lived in some was moved");
    let renamed = run.store.count(Operation::Rename);
    assert!(renamed > reused(&run), "others died as a whole: {renamed}");
}

/// Every header names the file that it is in: what was written over had lost its old name for good.
fn check_headers(store: &FaultStore, context: &str) {
    for name in store.list("segments").expect("listed") {
        let file = store.open(&format!("segments/{name}"), false).expect("opened");
        let mut page = vec![0; 4096];
        if file.read_at(&mut page, 0).is_ok()
            && let Ok(header) = SegmentHeader::decode(&page)
        {
            assert_eq!(format!("{}.seg", header.segment), name, "{context}");
        }
    }
}

/// The power goes in the later rounds; what the medium kept is opened, used, and loses power again.
fn lose_power(when: When, context: &str, seed: u64) {
    let mut run = story(0..ROUNDS_BEFORE);
    run.store.plan(when, Fault::PowerOff);
    assert!(play(&mut run, ROUNDS_BEFORE..ROUNDS).is_err(), "{context}: the power did not go");
    run.kill();
    for kept in std::iter::once(Kept::Nothing).chain((0..FATES).map(Kept::Random)) {
        let store = run.store.crash(kept);
        check_headers(&store, &format!("{context}, {kept:?}"));
        let mut survivor = run.survivor(store, &format!("{context}, {kept:?}"));
        let opened = survivor.reopen();
        opened.unwrap_or_else(|error| panic!("{}: {error}", survivor.context));
        assert!(spare_files(&survivor).len() <= 1, "{}: what was spare", survivor.context);
        survivor.steps(&one_round(9));
        let lost = survivor.lose_power(Kept::Random(seed));
        lost.unwrap_or_else(|error| panic!("{}, again: {error}", survivor.context));
    }
}

#[test]
fn a_power_loss_at_any_change_of_names_finds_every_file_where_it_belongs() {
    for kind in [Operation::Rename, Operation::Exchange, Operation::SyncDirectory] {
        let first = story(0..ROUNDS_BEFORE).store.count(kind);
        for nth in first..story(0..ROUNDS).store.count(kind) {
            lose_power(When::Nth(kind, nth), &format!("{kind:?} {nth}"), nth);
        }
    }
}

#[test]
fn a_power_loss_at_any_operation_finds_no_old_bytes_in_a_used_file() {
    for change in sampled(changes(), MOMENTS_MAX, 1) {
        lose_power(When::Change(change), &format!("change {change}"), change);
    }
}

#[test]
fn a_kill_at_any_operation_and_a_power_loss_later_find_no_old_bytes_in_a_used_file() {
    let all = changes();
    for change in sampled(0..all.end - all.start, MOMENTS_MAX, 2) {
        let mut run = story(0..ROUNDS_BEFORE);
        run.context = format!("killed after {change} changes");
        run.life.end_after(change);
        assert!(play(&mut run, ROUNDS_BEFORE..ROUNDS).is_err(), "{}: it was not", run.context);
        run.life = Life::new();
        let opened = run.reopen();
        opened.unwrap_or_else(|error| panic!("{}: {error}", run.context));
        run.steps(&one_round(9));
        let lost = run.lose_power(Kept::Random(change));
        lost.unwrap_or_else(|error| panic!("{}, then power: {error}", run.context));
    }
}

#[test]
fn an_operation_that_fails_loses_nothing() {
    for fault in [Fault::Error, Fault::Full] {
        for change in sampled(changes(), MOMENTS_MAX, 3) {
            let mut run = story(0..ROUNDS_BEFORE);
            run.context = format!("change {change} fails with {fault:?}");
            run.store.plan(When::Change(change), fault);
            for step in (ROUNDS_BEFORE..ROUNDS).flat_map(one_round) {
                if let Err(error) = run.step(&step) {
                    assert!(is_unavailable(&error), "{}: {error}", run.context);
                    let poisoned = !run.engine().stats().expect("figures").poisoned.is_empty();
                    let found = if poisoned { run.reopen() } else { run.resync() };
                    found.unwrap_or_else(|error| panic!("{}: {error}", run.context));
                }
            }
            let lost = run.lose_power(Kept::Nothing);
            lost.unwrap_or_else(|error| panic!("{}, then power: {error}", run.context));
        }
    }
}

/// What a snapshot holds is moved with the rest that lives, and is not written over.
#[test]
fn what_a_snapshot_holds_stays_while_files_are_used_again_around_it() {
    let mut run = story(0..ROUNDS_BEFORE);
    run.steps(&[snapshot_of("a", "a-0"), snapshot_of("b", "b-0")]);
    run.steps(&(ROUNDS_BEFORE..3 * ROUNDS).flat_map(one_round).collect::<Vec<_>>());
    assert!(reused(&run) >= 4, "{} segments in used files", reused(&run));
    run.resync().expect("everything is where it was");
    run.lose_power(Kept::Nothing).expect("and is after a power loss");
}

#[test]
fn an_idle_pool_keeps_no_file_spare_and_no_dead_bytes() {
    let mut run = story(0..ROUNDS);
    let stats = run.engine().stats().expect("figures");
    assert!(stats.spare_bytes > 0 && spare_files(&run).len() > 1, "{stats:?}");
    run.steps(&[Step::Idle { times: 20 }]);
    let stats = run.engine().stats().expect("figures");
    assert_eq!((stats.spare_bytes, spare_files(&run)), (0, vec!["reserve".to_string()]));
    assert!(stats.waiting_bytes <= stats.living_bytes / 4, "{stats:?}");
}

#[test]
fn reclaim_gives_back_what_was_spare_or_put_off() {
    for all in [false, true] {
        let mut run = story(0..ROUNDS);
        run.steps(&[Step::Reclaim { all }]);
        let stats = run.engine().stats().expect("figures");
        assert_eq!((stats.spare_bytes, spare_files(&run)), (0, vec!["reserve".to_string()]));
        assert!(!all || stats.waiting_bytes == 0, "{stats:?}");
    }
}

#[test]
fn a_pool_that_was_closed_has_no_file_spare() {
    let mut run = story(0..ROUNDS);
    assert!(spare_files(&run).len() > 1);
    run.steps(&[Step::Close]);
    assert_eq!(spare_files(&run), ["reserve"]);
}

/// Room that is kept for speed is given to whoever has none.
#[test]
fn a_full_pool_uses_up_what_is_spare_before_it_refuses_a_write() {
    let mut run = story(0..ROUNDS);
    let spare_bytes = run.engine().stats().expect("figures").spare_bytes;
    let (free_bytes, all_bytes) = run.store.space_bytes().expect("looked");
    run.store.set_capacity(Some(all_bytes - free_bytes));
    let mut written = 0;
    while run.step(&write("b", 1000 + 40 * written, 40, 7_000_000 + 1000 * written)).is_ok() {
        written += 1;
        assert!(written < 1000, "the store is full");
    }
    let most = spare_bytes / (40 * 4096);
    assert!(written + 7 >= most, "{written} writes, where {most} have room");
    run.resync().expect("nothing is lost");
    assert_eq!(run.engine().stats().expect("figures").spare_bytes, 0);
}
