//! The log on a store that fails on purpose: the power goes at every operation, any operation
//! fails, reads fail, space runs out. Whatever happens, what was flushed is there, what is there is
//! a beginning of what was appended, and nothing is called damaged that is not.

mod crash;

use crash::{Random, Run, Said, Step, block_of, open, script};
use ramet_log::{BLOCK_BYTES, Log, LogError, PreparedRecord, SEGMENT_BYTES_MIN};
use ramet_store::{Fault, FaultStore, Kept, Operation, Store, StoreError, When};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Scripts that are played, from seed 0; RAMET_SEED and RAMET_SCRIPTS ask for others.
const SCRIPTS: u64 = 3;
/// Operations of a script at which something happens: all, or about this many of them.
const MOMENTS_MAX: u64 = 70;
/// Reads of an opening that fail, about; and power losses of a script whose opening is cut off.
const READS_MAX: u64 = 40;
const OPENINGS_MAX: u64 = 8;
/// Fates of what was not synced, for each power loss, beside losing all of it.
const FATES: u64 = 3;

fn seeds() -> Range<u64> {
    let asked = |name| std::env::var(name).ok()?.parse().ok();
    let (first, count) = (asked("RAMET_SEED").unwrap_or(0), asked("RAMET_SCRIPTS"));
    first..first + count.unwrap_or(SCRIPTS)
}

/// About `count` of the numbers of a range, all where they are few.
fn sampled(range: Range<u64>, count: u64, seed: u64) -> Vec<u64> {
    let (mut random, all) = (Random(seed), range.end - range.start);
    range.filter(|_| all <= count || random.below(all) < count).collect()
}

/// The changes of the store that a script makes, without the pool's creation.
fn changes(seed: u64) -> Range<u64> {
    let mut run = Run::new(seed);
    let first = run.store.changes_count();
    run.play(&script(seed)).expect("without a fault nothing fails");
    assert!(run.store.list("segments").expect("a list").len() > 3, "script {seed} is too short");
    first..run.store.changes_count()
}

/// What may have become of the moment at which the power went.
fn fates(moment: u64) -> impl Iterator<Item = Kept> {
    let drawn = move |fate| Kept::Random(moment * FATES + fate);
    std::iter::once(Kept::Nothing).chain((0..FATES).map(drawn))
}

/// A script, up to a change at which the power goes.
fn cut_off(seed: u64, change: u64) -> Run {
    let mut run = Run::new(seed);
    run.store.plan(When::Change(change), Fault::PowerOff);
    assert!(run.play(&script(seed)).is_err(), "script {seed}, change {change}");
    run.log = None;
    run.context = format!("script {seed}, change {change}");
    run
}

#[test]
fn a_power_loss_at_any_operation_keeps_what_was_flushed() {
    for seed in seeds() {
        for change in sampled(changes(seed), MOMENTS_MAX, seed) {
            let run = cut_off(seed, change);
            for kept in fates(change) {
                run.check_survivor(run.store.crash(kept), &format!("{kept:?}"));
            }
        }
    }
}

#[test]
fn a_power_loss_at_any_operation_of_opening_changes_nothing() {
    for seed in seeds() {
        for change in sampled(changes(seed), OPENINGS_MAX, seed) {
            let run = cut_off(seed, change);
            let kept = Kept::Random(change);
            let whole = Arc::new(run.store.crash(kept));
            drop(open(&whole).expect("opened"));
            for recovering in 0..whole.changes_count() {
                let again = Arc::new(run.store.crash(kept));
                again.plan(When::Change(recovering), Fault::PowerOff);
                assert!(open(&again).is_err(), "{}: no change {recovering}", run.context);
                let fate = Kept::Random(recovering);
                run.check_survivor(again.crash(fate), &format!("{kept:?}, change {recovering}"));
                run.check_survivor(again.crash(Kept::Nothing), &format!("{kept:?}, {recovering}"));
            }
        }
    }
}

#[test]
fn any_subset_of_a_tail_over_several_segments_opens() {
    let mut run = Run::new(1);
    run.step(&Step::Write { object: 1, first: 0, count: 10 }).expect("written");
    run.step(&Step::Flush).expect("flushed");
    for first in 0..16 {
        run.step(&Step::Write { object: 2, first: first * 60, count: 60 }).expect("written");
        run.step(&Step::Record { length: 1000 }).expect("written");
    }
    assert!(run.store.list("segments").expect("a list").len() > 3, "the tail is too short");
    run.log = None;
    for seed in 0..300 {
        run.check_survivor(run.store.crash(Kept::Random(seed)), &format!("fate {seed}"));
    }
}

#[test]
fn a_pool_whose_creation_was_cut_short_is_none_or_whole() {
    let whole = FaultStore::new(0);
    Log::create(&whole, SEGMENT_BYTES_MIN, 512, 0).expect("created");
    for (change, seed) in
        (0..whole.changes_count()).flat_map(|at| (0..40).map(move |seed| (at, seed)))
    {
        let store = FaultStore::new(0);
        store.plan(When::Change(change), Fault::PowerOff);
        assert!(Log::create(&store, SEGMENT_BYTES_MIN, 512, 0).is_err());
        let after = Arc::new(store.crash(Kept::Random(seed)));
        match open(&after) {
            Ok((log, said)) => drop((log, said)),
            Err(LogError::NotAPool { .. }) => {
                Log::create(&*after, SEGMENT_BYTES_MIN, 512, 0).expect("taken up again");
            }
            Err(error) => panic!("change {change}, fate {seed}: {error}"),
        }
        open(&Arc::new(after.crash(Kept::Nothing))).expect("durable");
    }
}

/// Play with one fault; where it poisons the log, nothing is taken or acknowledged any more.
fn play_with(run: &mut Run, script: &[Step]) {
    let mut from = 0;
    while let Err((failed, error)) = run.play(&script[from..]) {
        from += failed;
        let context = run.context.clone();
        let Some(log) = &run.log else {
            // Opening failed, and the next one begins with what that left behind.
            assert!(matches!(error, LogError::Store(_) | LogError::Poisoned { .. }), "{error}");
            continue;
        };
        if log.poisoned().is_some() {
            assert!(matches!(error, LogError::Poisoned { .. }), "{context}: {error}");
            run.check_poisoned();
            run.reopen().unwrap_or_else(|error| panic!("{context}, reopened: {error}"));
            // Anything may have been lost that was not flushed: the rest of the script would tell
            // the same as it did so far.
            return;
        }
        assert!(matches!(error, LogError::Store(_)), "{context}: {error}");
        if log.check_open().is_err() {
            run.reopen().unwrap_or_else(|error| panic!("{context}, reopened: {error}"));
        }
    }
}

impl Run {
    fn check_poisoned(&mut self) {
        let poisoned = |result: Result<(), LogError>, what: &str| {
            let refused = matches!(result, Err(LogError::Poisoned { .. }));
            assert!(refused, "{}: {what} after a failure: {result:?}", self.context);
        };
        let log = self.log();
        let record = PreparedRecord::new(vec![1]).expect("small");
        poisoned(log.enter_write(1).map(drop), "a write");
        poisoned(log.enter_command(&record).map(drop), "a record");
        if log.durable() < log.appended() {
            poisoned(log.flush(), "a flush");
        }
        let durable = log.durable();
        let _ = log.step(Instant::now() + Duration::from_secs(9));
        let _ = log.close();
        assert_eq!(log.durable(), durable, "{}: more is durable after a failure", self.context);
    }
}

/// Let every operation fail that a script does, one after the other.
fn every_operation_fails(fault: Fault) {
    for seed in seeds() {
        for change in sampled(changes(seed), MOMENTS_MAX, seed) {
            let mut run = Run::new(seed);
            run.context = format!("script {seed}, change {change} fails with {fault:?}");
            run.store.plan(When::Change(change), fault);
            play_with(&mut run, &script(seed));
            run.step(&Step::Flush).expect("the fault is over");
            run.log = None;
            run.lose_power();
        }
    }
}

#[test]
fn after_any_failed_operation_the_log_goes_on_or_is_reopened_without_loss() {
    every_operation_fails(Fault::Error);
}

#[test]
fn after_no_space_at_any_operation_the_log_goes_on_or_is_reopened_without_loss() {
    every_operation_fails(Fault::Full);
}

#[test]
fn a_failed_write_or_sync_of_the_log_poisons_it() {
    for operation in [Operation::Write, Operation::Sync] {
        let mut run = Run::new(1);
        run.step(&Step::Write { object: 1, first: 0, count: 10 }).expect("written");
        run.store.plan(When::Nth(operation, run.store.count(operation)), Fault::Error);
        let failed = run.step(&Step::Flush);
        assert!(matches!(failed, Err(LogError::Poisoned { .. })), "{operation:?}: {failed:?}");
        run.check_poisoned();
        let beyond = run.log().flush();
        assert!(matches!(beyond, Err(LogError::Poisoned { .. } | LogError::Closed)));
        run.reopen().expect("reopened");
        run.lose_power();
    }
}

#[test]
fn a_failed_read_while_opening_loses_nothing() {
    for seed in seeds() {
        let mut run = Run::new(seed);
        run.play(&script(seed)).expect("without a fault nothing fails");
        run.step(&Step::Write { object: 1, first: 0, count: 30 }).expect("written");
        run.step(&Step::Flush).expect("flushed");
        run.log = None;
        let whole = Arc::new(run.store.crash(Kept::Nothing));
        drop(open(&whole).expect("opened"));
        for read in sampled(0..whole.count(Operation::Read), READS_MAX, seed) {
            let store = Arc::new(run.store.crash(Kept::Nothing));
            store.plan(When::Nth(Operation::Read, read), Fault::Error);
            let first = open(&store).map(|(log, said)| drop((log, said)));
            run.check_survivor(
                store.crash(Kept::Nothing),
                &format!("read {read} fails: {first:?}"),
            );
        }
    }
}

#[test]
fn a_flipped_bit_is_an_error_or_a_shorter_log_and_never_wrong_data() {
    for seed in seeds() {
        let mut whole = Run::new(seed);
        whole.play(&script(seed)).expect("without a fault nothing fails");
        let first = Run::new(seed).store.count(Operation::Write);
        for write in sampled(first..whole.store.count(Operation::Write), MOMENTS_MAX, seed) {
            let mut run = Run::new(seed);
            run.context = format!("script {seed}, a bit of write {write} flips");
            run.store.plan(When::Nth(Operation::Write, write), Fault::FlipBit);
            let script: Vec<Step> = without_reopening(script(seed));
            run.play(&script).expect("nothing fails");
            run.log = None;
            run.check_damaged();
        }
    }
}

fn without_reopening(script: Vec<Step>) -> Vec<Step> {
    script.into_iter().filter(|step| !matches!(step, Step::Close | Step::Kill)).collect()
}

impl Run {
    /// Damage may make opening or a read fail, and may look like a torn tail where nothing says
    /// that the batch was durable.
    fn check_damaged(&self) {
        let (log, said) = match open(&self.store) {
            Ok(found) => found,
            Err(LogError::Damaged { .. } | LogError::Foundation { .. }) => return,
            Err(error) => panic!("{}: {error}", self.context),
        };
        let context = &self.context;
        let differs = said.iter().zip(&self.said).position(|(found, told)| found != told);
        assert_eq!(differs, None, "{context}: it is not what was appended");
        for entry in &said {
            if let Said::Block(_, block, locator) = entry {
                let mut buffer = vec![0; BLOCK_BYTES];
                match log.read(*locator, *block, &mut buffer) {
                    Ok(()) => assert!(buffer == block_of(self.stamps[locator]), "{context}"),
                    Err(LogError::Checksum { .. } | LogError::Lost { .. }) => {}
                    Err(error) => panic!("{context}: {error}"),
                }
            }
        }
    }
}

#[test]
fn a_full_store_refuses_writes_and_keeps_what_it_has() {
    for pages in (600..1400).step_by(40) {
        let mut run = Run::new(1);
        run.context = format!("full at {pages} pages");
        run.store.set_capacity(Some(pages * BLOCK_BYTES as u64));
        let mut written = 0;
        let refused = loop {
            match run.step(&Step::Write { object: 1, first: written, count: 50 }) {
                Ok(()) => written += 50,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, LogError::Store(StoreError::Full { .. })), "{refused}");
        assert_eq!(run.log().poisoned(), None, "{}", run.context);
        run.step(&Step::Flush).expect("what was taken can be made durable");
        run.log = None;
        run.lose_power();
        run.store.set_capacity(None);
        run.step(&Step::Write { object: 1, first: 0, count: 50 }).expect("room again");
        run.step(&Step::Close).expect("closed");
    }
}
