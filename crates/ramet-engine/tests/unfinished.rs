//! What an accepted loss leaves to be done, and whoever accepts it may never get to: locks behind
//! the damage are set again, and what was restored there is not ended. Locks were lost when the
//! command was cut short, or found the disk full, behind its commit: nothing knew of them any more.

use ramet_engine::{Engine, EngineError, Kind, LockMode, Settings};
use ramet_store::{Fault, FaultStore, Kept, Moment, Store, When};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SLOT: usize = 4096;
const SECRET: [u8; 32] = [7; 32];
const SECOND_NS: u64 = 1_000_000_000;
const DAY_SECONDS: u64 = 24 * 3600;
const DAYS: u64 = 9;

fn names(name: &str) -> Vec<String> {
    vec![name.to_string()]
}

fn open(store: &Arc<FaultStore>) -> Result<Arc<Engine>, EngineError> {
    Engine::open_in(store.clone(), false, Settings::default())
}

/// The clocks an hour after the locks were set: what is in the trash is over.
fn later() -> Moment {
    Moment { boot: [1; 16], running_ns: 3600 * SECOND_NS, day_ns: DAY_SECONDS * SECOND_NS }
}

/// Segments, and the slots of their batches' headers.
fn batches(store: &FaultStore) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for name in store.list("segments").expect("listed") {
        let path = format!("segments/{name}");
        let file = store.open(&path, false).expect("opened");
        let length = usize::try_from(file.length_bytes().expect("known")).expect("small");
        let mut bytes = vec![0; length];
        file.read_at(&mut bytes, 0).expect("read");
        let slots = bytes.chunks(SLOT).zip(0u64..);
        let headers = slots.filter(|(slot, _)| slot.starts_with(b"RBAT"));
        found.extend(headers.map(|(_, slot)| (path.clone(), slot)));
    }
    found
}

/// A pool that ended without a word. Damaged is a write; the locks of a snapshot, and of one taken
/// `behind`, and what brings a volume back from the trash come after it.
fn damaged(behind: bool) -> Arc<FaultStore> {
    let store = Arc::new(FaultStore::new(1));
    store.set_moment(Moment { running_ns: 0, ..later() });
    Engine::create_in(&*store, 1 << 20).expect("created");
    let engine = open(&store).expect("opened");
    engine.create_volumes(&["a".into(), "b".into()], 1 << 20, &[]).expect("created");
    engine.snapshot(&names("a"), &names("s"), &[]).expect("taken");
    engine.set_lock_secret(SECRET, None).expect("set");
    engine.set_trash_seconds(60).expect("set");
    engine.trash(&names("b")).expect("deleted");
    engine.device("a").expect("there").write(0, &[1; SLOT], true).expect("written");
    let time = Duration::from_secs(DAYS * DAY_SECONDS);
    engine.lock(&names("s"), time, LockMode::Compliance).expect("locked");
    if behind {
        engine.snapshot(&names("a"), &names("t"), &[]).expect("taken");
        engine.lock(&names("t"), time, LockMode::Compliance).expect("locked");
    }
    engine.restore(&names("b"), None).expect("restored");
    drop(engine);
    let store = store.crash(Kept::Everything);
    store.set_moment(later());
    let (path, slot) = &batches(&store)[batches(&store).len() - if behind { 5 } else { 3 }];
    store.flip_bit(path, slot * SLOT as u64 + 20, 0).expect("flipped");
    Arc::new(store)
}

/// As many as there are after a crash.
fn copy(store: &FaultStore, kept: Kept) -> Arc<FaultStore> {
    let store = store.crash(kept);
    store.set_moment(later());
    Arc::new(store)
}

fn is_unfinished(store: &FaultStore) -> bool {
    let there = |number| store.exists(&format!("lost/{number}.unfinished")).expect("looked for");
    (1..4).any(there)
}

fn accept(store: &Arc<FaultStore>) -> Result<bool, EngineError> {
    Ok(Engine::accept_loss_in(store.clone(), Settings::default(), None)?.is_some())
}

/// Open the pool, accept the loss where it is refused as before; the snapshot is locked for its
/// time, and the volume is in the trash for a day. Result: whether it was opened at once.
fn hold(store: &Arc<FaultStore>, context: &str) -> bool {
    let mut at_once = true;
    let engine = open(store).unwrap_or_else(|error| {
        assert_eq!(error.code, "log_damaged", "{context}: {error}");
        assert!(accept(store).unwrap_or_else(|error| panic!("{context}: {error}")), "{context}");
        at_once = false;
        open(store).unwrap_or_else(|error| panic!("{context}: {error}"))
    });
    hold_shown(&engine, context);
    engine.step_checkpoint(Instant::now()).unwrap_or_else(|error| panic!("{context}: {error}"));
    hold_shown(&engine, context);
    let refused = engine.delete(&names("s")).expect_err(context);
    assert_eq!(refused.code, "object_locked", "{context}");
    at_once
}

fn hold_shown(engine: &Engine, context: &str) {
    let lock = engine.find("s").expect("there").lock;
    let left = lock.map(|lock| lock.remaining_ns.div_ceil(3600 * SECOND_NS));
    assert!(left.is_some_and(|hours| hours >= DAYS * 24 - 1), "{context}: locked for {left:?}");
    let trashed = engine.trashed();
    assert_eq!(trashed.len(), 1, "{context}");
    assert!(trashed[0].remaining_ns >= (DAY_SECONDS - 3600) * SECOND_NS, "{context}: {trashed:?}");
}

fn fates() -> impl Iterator<Item = Kept> {
    [Kept::Nothing, Kept::Everything].into_iter().chain((0..4).map(Kept::Random))
}

/// Pools that were left unfinished by a power loss, and open.
fn unfinished() -> Vec<Arc<FaultStore>> {
    let whole = damaged(false);
    let rehearsal = copy(&whole, Kept::Everything);
    accept(&rehearsal).expect("accepted");
    let mut found = Vec::new();
    for moment in 0..rehearsal.changes_count() {
        let store = copy(&whole, Kept::Everything);
        store.plan(When::Change(moment), Fault::PowerOff);
        let _ = accept(&store);
        let left = copy(&store, Kept::Everything);
        if is_unfinished(&left) && open(&copy(&left, Kept::Everything)).is_ok() {
            found.push(left);
        }
    }
    assert!(!found.is_empty(), "no power loss leaves anything to be done");
    found
}

#[test]
fn locks_survive_a_power_loss_at_any_operation_of_accepting_a_loss() {
    let whole = damaged(false);
    let rehearsal = copy(&whole, Kept::Everything);
    assert!(accept(&rehearsal).expect("accepted"));
    assert!(!is_unfinished(&rehearsal));
    hold(&rehearsal, "rehearsal");
    let (mut refused, mut opened) = (0, 0);
    for moment in 0..rehearsal.changes_count() {
        for fate in fates() {
            let store = copy(&whole, Kept::Everything);
            store.plan(When::Change(moment), Fault::PowerOff);
            let _ = accept(&store);
            let store = copy(&store, fate);
            let at_once = hold(&store, &format!("change {moment}, {fate:?}"));
            *(if at_once { &mut opened } else { &mut refused }) += 1;
            // And once more: what was done is durable, and nothing is left to be done.
            let store = copy(&store, Kept::Nothing);
            assert!(!is_unfinished(&store), "change {moment}, {fate:?}");
            assert!(hold(&store, &format!("change {moment}, {fate:?}, again")));
        }
    }
    assert!(refused > 0 && opened > 0, "{refused} refused, {opened} opened");
}

#[test]
fn locks_survive_a_power_loss_at_any_operation_of_the_opening_after() {
    for (left, number) in unfinished().iter().zip(0..) {
        let rehearsal = copy(left, Kept::Everything);
        hold(&rehearsal, "rehearsal");
        for moment in 0..rehearsal.changes_count() {
            for fate in fates() {
                let store = copy(left, Kept::Everything);
                store.plan(When::Change(moment), Fault::PowerOff);
                let opened = open(&store);
                let _ = opened.map(|engine| engine.step_checkpoint(Instant::now()));
                let context = format!("state {number}, change {moment}, {fate:?}");
                assert!(hold(&copy(&store, fate), &context), "{context}");
            }
        }
    }
}

#[test]
fn locks_survive_failures_and_a_full_disk_at_any_operation_of_accepting_a_loss() {
    let whole = damaged(false);
    let rehearsal = copy(&whole, Kept::Everything);
    accept(&rehearsal).expect("accepted");
    for fault in [Fault::Error, Fault::Full] {
        for moment in 0..rehearsal.changes_count() {
            let store = copy(&whole, Kept::Everything);
            store.plan(When::Change(moment), fault);
            let _ = accept(&store);
            let store = copy(&store, Kept::Everything);
            hold(&store, &format!("{fault:?} at change {moment}"));
        }
    }
}

/// Where there is no room for a record, not even in the reserve, the pool opens and holds the
/// locks; so does one that is only read. The first opening with room writes them.
#[test]
fn locks_hold_where_nothing_can_be_written() {
    for left in unfinished() {
        let store = copy(&left, Kept::Everything);
        let engine = Engine::open_in(store.clone(), true, Settings::default()).expect("opened");
        hold_shown(&engine, "read only");
        drop(engine);
        let _ = store.remove("spare/reserve");
        let (free, all) = store.space_bytes().expect("told");
        store.set_capacity(Some(all - free));
        let engine = open(&store).expect("a full pool opens");
        hold_shown(&engine, "full");
        assert!(is_unfinished(&store));
        assert_eq!(engine.delete(&names("s")).expect_err("locked").code, "object_locked");
        drop(engine);
        let store = copy(&store, Kept::Nothing);
        store.set_capacity(None);
        assert!(hold(&store, "with room again"));
        assert!(!is_unfinished(&store));
    }
}

#[test]
fn a_locked_snapshot_is_lost_with_the_log_only_where_the_secret_says_so() {
    let store = damaged(true);
    let accept = |secret| {
        let accepted = Engine::accept_loss_in(store.clone(), Settings::default(), secret);
        accepted.map(|report| report.expect("lost"))
    };
    for secret in [None, Some([1; 32])] {
        let error = accept(secret).expect_err("refused");
        assert_eq!((error.kind, error.code), (Kind::Forbidden, "loss_of_locked"));
        assert!(error.text.contains("1 locked snapshots") && error.text.contains("'t'"), "{error}");
        assert_eq!(open(&store).map(drop).expect_err("as before").code, "log_damaged");
    }
    accept(Some(SECRET)).expect("accepted");
    assert!(hold(&store, "accepted"));
    assert!(open(&copy(&store, Kept::Everything)).expect("opened").find("t").is_err());
}
