//! No lock ends before its time: whatever is done to clocks, pools and machines, and by whatever
//! call. A model of real time is played beside the pool.

mod crash;

use crash::Random;
use ramet_engine::{Engine, EngineError, Kind, LockMode, Settings};
use ramet_store::{FaultStore, Kept, Moment, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Plays, from seed 0; RAMET_SEED and RAMET_SCRIPTS ask for others.
const PLAYS: u64 = 60;
const STEPS: usize = 120;
const SECRET: [u8; 32] = [7; 32];
const SECOND_NS: u64 = 1_000_000_000;
const HOUR_NS: u64 = 3600 * SECOND_NS;
/// A time of day that is right where nobody sets it: real time since the beginning is added.
const DAY_ZERO_NS: u64 = 1_700_000_000 * SECOND_NS;

/// A machine with a pool, and what really happens to them.
struct Play {
    random: Random,
    store: Arc<FaultStore>,
    engine: Option<Arc<Engine>>,
    clock: Instant,
    real_ns: u64,
    boot: u8,
    running_ns: u64,
    /// What somebody set the time of day ahead by; `None`: nobody does, and the secret may confirm.
    day_ahead_ns: Option<u64>,
    /// Whether processes are started in a time namespace, which counts from anywhere.
    namespace_ns: Option<u64>,
    /// Snapshots, and the real time before which nobody may delete them.
    snapshots: BTreeMap<String, u64>,
    /// Those whose locks were seen to be firm in a step: nobody takes one of them back any more.
    firm: BTreeSet<String>,
    taken_back_count: u64,
    names_count: u64,
    ended_count: u64,
    context: String,
}

fn names(name: &str) -> Vec<String> {
    vec![name.to_string()]
}

impl Play {
    fn new(seed: u64) -> Self {
        let store = Arc::new(FaultStore::new(seed));
        let honest = seed.is_multiple_of(2);
        let mut play = Play {
            random: Random(seed),
            store,
            engine: None,
            clock: Instant::now(),
            real_ns: 0,
            boot: 1,
            running_ns: 0,
            day_ahead_ns: (!honest).then_some(0),
            namespace_ns: None,
            snapshots: BTreeMap::new(),
            firm: BTreeSet::new(),
            taken_back_count: 0,
            names_count: 0,
            ended_count: 0,
            context: format!("play {seed}"),
        };
        play.tell_time();
        Engine::create_in(&*play.store, 1 << 20).expect("created");
        play.open();
        play.engine().create_volumes(&names("v"), 1 << 20, &[]).expect("created");
        play.engine().set_lock_secret(SECRET, None).expect("set");
        play
    }

    fn engine(&self) -> &Arc<Engine> {
        self.engine.as_ref().expect("the pool is open")
    }

    fn open(&mut self) {
        let opened = Engine::open_in(self.store.clone(), false, Settings::default());
        self.engine = Some(opened.unwrap_or_else(|error| panic!("{}: {error}", self.context)));
    }

    fn tell_time(&self) {
        let day_ns = DAY_ZERO_NS + self.real_ns + self.day_ahead_ns.unwrap_or(0);
        let (boot, ahead_ns) = match self.namespace_ns {
            Some(ahead_ns) => (0, ahead_ns),
            None => (self.boot, 0),
        };
        let running_ns = self.running_ns + ahead_ns;
        self.store.set_moment(Moment { boot: [boot; 16], running_ns, day_ns });
    }

    fn time(&mut self) -> u64 {
        let unit = self.random.pick(&[SECOND_NS, 60 * SECOND_NS, HOUR_NS, 24 * HOUR_NS]);
        unit * (1 + self.random.below(40))
    }

    /// Time goes by, and background work is done.
    fn run(&mut self) {
        let time_ns = self.time();
        (self.real_ns, self.running_ns) = (self.real_ns + time_ns, self.running_ns + time_ns);
        self.tell_time();
        self.clock += Duration::from_secs(2);
        self.engine().step(self.clock).expect("stepped");
        for name in self.snapshots.keys() {
            let lock = self.engine().find(name).expect("it is there").lock;
            if lock.is_some_and(|lock| lock.cooling_off_ns == 0) {
                self.firm.insert(name.clone());
            }
        }
    }

    fn reboot(&mut self) {
        self.real_ns += self.random.pick(&[0, HOUR_NS, 100 * 24 * HOUR_NS]);
        self.boot += 1;
        // It may have run for long when the pool is opened.
        self.running_ns = self.random.pick(&[0, HOUR_NS, 400 * 24 * HOUR_NS]);
        self.real_ns += self.running_ns;
        let kept = Kept::Random(self.random.below(u64::MAX));
        self.engine = None;
        self.store = Arc::new(self.store.crash(kept));
        self.tell_time();
        self.open();
    }

    /// Another process opens the pool, in the same boot.
    fn reopen(&mut self) {
        if self.random.below(2) == 0 {
            self.engine().close().expect("closed");
        }
        self.engine = None;
        let time_ns = self.time();
        (self.real_ns, self.running_ns) = (self.real_ns + time_ns, self.running_ns + time_ns);
        self.namespace_ns = match self.random.below(4) {
            0 => Some(self.random.below(1 << 60)),
            _ => None,
        };
        self.tell_time();
        self.open();
    }

    fn take(&mut self) {
        self.names_count += 1;
        let name = format!("s-{}", self.names_count);
        self.engine().snapshot(&names("v"), &names(&name), &[]).expect("taken");
        self.snapshots.insert(name, 0);
    }

    fn lock(&mut self, name: &str) {
        let time_ns = self.time();
        let mode = self.random.pick(&[LockMode::Governance, LockMode::Compliance]);
        let is_new = self.engine().find(name).expect("it is there").lock.is_none();
        let locked = self.engine().lock(&names(name), Duration::from_nanos(time_ns), mode);
        match locked {
            Ok(_) => {
                let until_ns = self.snapshots.get_mut(name).expect("it is there");
                *until_ns = self.real_ns + time_ns;
                if is_new {
                    self.firm.remove(name);
                }
            }
            Err(error) => assert_eq!(error.kind, Kind::Conflict, "{}: {error}", self.context),
        }
    }

    /// What somebody does who wants a snapshot gone, and has no secret.
    fn attack(&mut self, name: &str) {
        let engine = self.engine().clone();
        let wrong = self.random.pick(&[None, Some([8; 32])]);
        let refused = |result: Result<(), EngineError>| result.is_err();
        assert!(refused(engine.set_lock_secret([9; 32], wrong)), "{}", self.context);
        assert!(refused(engine.set_cooling_off(86_400, wrong)), "{}", self.context);
        assert!(refused(engine.confirm_lock_clock([8; 32]).map(drop)), "{}", self.context);
        let all: Vec<String> = self.snapshots.keys().cloned().collect();
        let locked = self.snapshots.values().any(|until_ns| *until_ns > self.real_ns);
        if locked {
            assert!(refused(engine.delete(&all).map(drop)), "{}: all at once", self.context);
        }
        let lock = engine.find(name).expect("it is there").lock;
        let cools_off = wrong.is_none() && lock.is_some_and(|lock| lock.cooling_off_ns > 0);
        let released = engine.unlock(&names(name), wrong);
        let until_ns = self.snapshots[name];
        let mut early = until_ns > self.real_ns;
        if let (Ok(infos), true) = (released, early) {
            let firm = self.firm.contains(name);
            assert!(cools_off && !firm, "{}: '{name}' was released: {infos:?}", self.context);
            self.taken_back_count += 1;
            early = false;
        }
        match engine.delete(&names(name)) {
            Ok(_) => {
                assert!(!early, "{}: '{name}' was deleted early", self.context);
                self.ended_count += u64::from(until_ns > 0);
                self.snapshots.remove(name);
                self.firm.remove(name);
            }
            Err(error) => assert_eq!(error.code, "object_locked", "{}: {error}", self.context),
        }
    }

    fn step(&mut self) {
        let all: Vec<String> = self.snapshots.keys().cloned().collect();
        if all.is_empty() {
            return self.take();
        }
        let name = self.random.pick(&all);
        match self.random.below(20) {
            0..=1 if all.len() < 8 => self.take(),
            0..=4 => self.lock(&name),
            5..=8 => self.run(),
            9 => {
                // Suspended.
                self.real_ns += self.time();
                self.tell_time();
            }
            10..=11 => self.reboot(),
            12..=13 => self.reopen(),
            14 => drop(self.engine().checkpoint().expect("written")),
            15..=16 if self.day_ahead_ns.is_some() => {
                self.day_ahead_ns = Some(self.random.below(1 << 60));
                self.tell_time();
            }
            15 => drop(self.engine().confirm_lock_clock(SECRET).expect("confirmed")),
            17 => {
                let seconds = self.random.pick(&[0, 60, 600, 7200]);
                self.engine().set_cooling_off(seconds, Some(SECRET)).expect("set");
            }
            _ => self.attack(&name),
        }
    }
}

#[test]
fn no_lock_ends_before_its_time_whatever_is_done_to_clocks_and_machines() {
    let asked = |name| std::env::var(name).ok()?.parse().ok();
    let (first, count) = (asked("RAMET_SEED").unwrap_or(0), asked("RAMET_SCRIPTS"));
    let (mut ended_count, mut taken_back_count) = (0, 0);
    for seed in first..first + count.unwrap_or(PLAYS) {
        let mut play = Play::new(seed);
        (0..STEPS).for_each(|_| play.step());
        // What is left does end: its time, and then nobody is needed.
        play.namespace_ns = None;
        play.reboot();
        let longest_ns = 2 * 40 * 24 * HOUR_NS;
        play.running_ns += longest_ns;
        play.tell_time();
        let left: Vec<String> = play.snapshots.keys().cloned().collect();
        let deleted = play.engine().delete(&left);
        deleted.unwrap_or_else(|error| panic!("{}: {error}", play.context));
        ended_count += play.ended_count;
        taken_back_count += play.taken_back_count;
    }
    assert!(count.is_some() || ended_count > 20, "only {ended_count} locks ended in plays");
    assert!(count.is_some() || taken_back_count > 20, "only {taken_back_count} were taken back");
}

/// A pool with a volume and two snapshots, on a machine whose clocks are set by hand.
struct Scene {
    store: Arc<FaultStore>,
    engine: Arc<Engine>,
    moment: Moment,
    clock: Instant,
}

impl Scene {
    fn new() -> Self {
        let store = Arc::new(FaultStore::new(1));
        let moment = Moment { boot: [1; 16], running_ns: 5 * HOUR_NS, day_ns: DAY_ZERO_NS };
        store.set_moment(moment);
        Engine::create_in(&*store, 1 << 20).expect("created");
        let engine = Engine::open_in(store.clone(), false, Settings::default()).expect("opened");
        engine.create_volumes(&names("v"), 1 << 20, &[]).expect("created");
        for name in ["a", "b"] {
            engine.snapshot(&names("v"), &names(name), &[]).expect("taken");
        }
        Scene { store, engine, moment, clock: Instant::now() }
    }

    /// Hours go by; then background work is done.
    fn pass(&mut self, hours: u64) {
        self.moment.running_ns += hours * HOUR_NS;
        self.moment.day_ns += hours * HOUR_NS;
        self.store.set_moment(self.moment);
        self.clock += Duration::from_secs(2);
        self.engine.step(self.clock).expect("stepped");
    }

    /// The power goes for so many hours.
    fn reboot(&mut self, hours: u64) {
        let store = Arc::new(self.store.crash(Kept::Nothing));
        self.moment.boot[0] += 1;
        self.moment.running_ns = 0;
        self.moment.day_ns += hours * HOUR_NS;
        store.set_moment(self.moment);
        self.engine = Engine::open_in(store.clone(), false, Settings::default()).expect("opened");
        self.store = store;
    }

    fn lock(&self, name: &str, hours: u64, mode: LockMode) -> Result<(), EngineError> {
        self.engine.lock(&names(name), Duration::from_secs(3600 * hours), mode).map(drop)
    }

    /// Hours that a lock runs on, rounded up.
    fn left(&self, name: &str) -> u64 {
        let lock = self.engine.find(name).expect("it is there").lock;
        lock.map_or(0, |lock| lock.remaining_ns.div_ceil(HOUR_NS))
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, EngineError>) -> &'static str {
    result.expect_err("it is refused").code
}

const GOVERNANCE: LockMode = LockMode::Governance;
const COMPLIANCE: LockMode = LockMode::Compliance;

#[test]
fn a_locked_snapshot_is_deleted_by_nobody_and_one_that_is_over_by_anybody() {
    let mut scene = Scene::new();
    scene.lock("a", 10, COMPLIANCE).expect("locked");
    assert_eq!(code(scene.engine.delete(&names("a"))), "object_locked");
    let both = ["b".to_string(), "a".to_string()];
    assert_eq!(code(scene.engine.delete(&both)), "object_locked");
    assert!(scene.engine.find("b").is_ok(), "all or nothing");
    scene.engine.rename("a", "c").expect("renamed");
    scene.pass(9);
    assert_eq!((scene.left("c"), code(scene.engine.delete(&names("c")))), (1, "object_locked"));
    scene.pass(1);
    assert_eq!(scene.left("c"), 0);
    scene.engine.delete(&names("c")).expect("its lock is over");
}

#[test]
fn a_group_is_locked_as_a_whole_or_not_at_all() {
    let scene = Scene::new();
    let hour = Duration::from_secs(3600);
    let group = |last: &str| ["a".to_string(), last.to_string()];
    assert_eq!(code(scene.engine.lock(&group("v"), hour, GOVERNANCE)), "not_a_snapshot");
    assert_eq!(code(scene.engine.lock(&group("x"), hour, GOVERNANCE)), "object_not_found");
    assert_eq!(scene.left("a"), 0);
    let infos = scene.engine.lock(&group("b"), hour, GOVERNANCE).expect("locked");
    assert!(infos.iter().all(|info| info.lock.is_some_and(|it| it.mode == Some(GOVERNANCE))));
    assert_eq!((scene.left("a"), scene.left("b")), (1, 1));
}

#[test]
fn a_lock_is_only_made_longer_and_firmer() {
    let mut scene = Scene::new();
    scene.lock("a", 10, GOVERNANCE).expect("locked");
    assert_eq!(code(scene.lock("a", 9, GOVERNANCE)), "lock_is_longer");
    assert_eq!(code(scene.lock("a", 9, COMPLIANCE)), "lock_is_longer");
    scene.lock("a", 10, COMPLIANCE).expect("as long, and firmer");
    assert_eq!(code(scene.lock("a", 100, GOVERNANCE)), "lock_is_firmer");
    scene.pass(10);
    scene.lock("a", 1, GOVERNANCE).expect("the one before is over");
    assert_eq!(code(scene.lock("b", 0, GOVERNANCE)), "lock_time");
    assert_eq!(code(scene.lock("b", 101 * 366 * 24, GOVERNANCE)), "lock_time");
}

#[test]
fn governance_is_released_by_the_secret_and_compliance_by_nobody() {
    let scene = Scene::new();
    scene.lock("a", 10, GOVERNANCE).expect("locked");
    assert_eq!(code(scene.engine.unlock(&names("a"), None)), "lock_secret_missing");
    assert_eq!(code(scene.engine.unlock(&names("a"), Some(SECRET))), "lock_secret_unset");
    assert_eq!(code(scene.engine.set_lock_secret(SECRET, None)), "lock_runs");

    let scene = Scene::new();
    scene.engine.set_lock_secret(SECRET, None).expect("set");
    scene.lock("a", 10, GOVERNANCE).expect("locked");
    scene.lock("b", 10, COMPLIANCE).expect("locked");
    assert_eq!(code(scene.engine.unlock(&names("a"), Some([1; 32]))), "lock_secret_wrong");
    assert_eq!(scene.engine.lock_clock().wrong_secrets_count, 1);
    let both = ["a".to_string(), "b".to_string()];
    assert_eq!(code(scene.engine.unlock(&both, Some(SECRET))), "lock_is_compliance");
    assert_eq!(scene.left("a"), 10, "all or nothing");
    scene.engine.unlock(&names("a"), Some(SECRET)).expect("released");
    scene.engine.delete(&names("a")).expect("it is not locked any more");
    assert_eq!(code(scene.engine.set_lock_secret([9; 32], None)), "lock_secret_missing");
    scene.engine.set_lock_secret([9; 32], Some(SECRET)).expect("changed");
    assert_eq!(code(scene.engine.set_cooling_off(1, Some(SECRET))), "lock_secret_wrong");
}

/// What was locked could not be deleted where the disk was full: releasing it found no room.
#[test]
fn a_lock_is_released_on_a_full_pool() {
    let scene = Scene::new();
    scene.engine.set_lock_secret(SECRET, None).expect("set");
    scene.lock("a", 10, GOVERNANCE).expect("locked");
    scene.engine.flush().expect("flushed");
    scene.store.set_capacity(Some(6 << 20));
    let device = scene.engine.device("v").expect("there");
    let writes = (0..64u8).any(|stamp| device.write(0, &vec![stamp; 1 << 18], true).is_err());
    let is_full = |error: EngineError| error.kind == Kind::Full;
    let locks = (10..500).any(|hours| scene.lock("b", hours, GOVERNANCE).is_err_and(is_full));
    assert!(writes && locks, "it is not full");
    scene.engine.unlock(&names("a"), Some(SECRET)).expect("released");
    scene.engine.delete(&names("a")).expect("it is not locked any more");
}

#[test]
fn a_lock_can_be_taken_back_within_its_cooling_off_and_not_later() {
    let mut scene = Scene::new();
    scene.lock("b", 100, COMPLIANCE).expect("locked before there was a cooling-off");
    scene.engine.set_cooling_off(2 * 3600, None).expect("set");
    assert_eq!(code(scene.engine.set_cooling_off(86_401, None)), "cooling_off_too_long");
    assert_eq!(code(scene.engine.unlock(&names("b"), None)), "lock_is_compliance");
    scene.lock("a", 100, COMPLIANCE).expect("locked");
    scene.pass(1);
    scene.engine.unlock(&names("a"), None).expect("taken back");
    scene.lock("a", 100, COMPLIANCE).expect("locked again");
    scene.pass(1);
    // Who makes a lock longer could else end it.
    scene.lock("a", 200, COMPLIANCE).expect("longer");
    scene.pass(1);
    assert_eq!(code(scene.engine.unlock(&names("a"), None)), "lock_is_compliance");
}

/// The clock goes back over a reboot to where it was saved: what had become firm must not be
/// milder afterwards.
#[test]
fn what_became_firm_stays_so_over_a_power_loss() {
    let mut scene = Scene::new();
    scene.engine.set_cooling_off(600, None).expect("set");
    scene.lock("a", 100, COMPLIANCE).expect("locked");
    scene.moment.running_ns += 601 * SECOND_NS;
    scene.pass(0);
    scene.reboot(0);
    assert_eq!(code(scene.engine.unlock(&names("a"), None)), "lock_is_compliance");
}

/// Only the latest of those moments was known: what became firm before it was not saved.
#[test]
fn each_of_several_that_become_firm_stays_so() {
    let mut scene = Scene::new();
    scene.engine.set_cooling_off(600, None).expect("set");
    scene.lock("a", 100, COMPLIANCE).expect("locked");
    scene.moment.running_ns += 300 * SECOND_NS;
    scene.pass(0);
    scene.lock("b", 100, COMPLIANCE).expect("locked");
    scene.moment.running_ns += 301 * SECOND_NS;
    scene.pass(0);
    scene.reboot(0);
    assert_eq!(code(scene.engine.unlock(&names("a"), None)), "lock_is_compliance");
    scene.engine.unlock(&names("b"), None).expect("taken back");
}

/// A lock of 100 years that was taken back had the clock saved each hour from then on.
#[test]
fn a_lock_that_is_no_more_has_nothing_saved() {
    let mut scene = Scene::new();
    scene.engine.set_cooling_off(600, None).expect("set");
    scene.lock("a", 24 * 365 * 90, COMPLIANCE).expect("locked");
    scene.lock("b", 24 * 365 * 90, COMPLIANCE).expect("locked");
    scene.engine.unlock(&["a".to_string(), "b".to_string()], None).expect("taken back");
    let store = scene.store.clone();
    let commits = || {
        let mut pages = [0; 8192];
        let file = store.open("superblock", false).expect("it is there");
        file.read_at(&mut pages, 0).expect("read");
        pages
    };
    let before = commits();
    (0..5).for_each(|_| scene.pass(2));
    assert!(commits() == before, "the clock was saved");
}

#[test]
fn a_power_loss_costs_an_hour_of_the_lock_clock_at_most_and_the_time_that_was_off() {
    let mut scene = Scene::new();
    scene.lock("a", 100, COMPLIANCE).expect("locked");
    (0..40).for_each(|_| scene.pass(1));
    scene.moment.running_ns += HOUR_NS - 1;
    scene.store.set_moment(scene.moment);
    assert_eq!(scene.left("a"), 60);
    scene.reboot(1000);
    assert_eq!(scene.left("a"), 60);
    // A clean close saves it.
    scene.pass(0);
    scene.moment.running_ns += HOUR_NS / 2;
    scene.store.set_moment(scene.moment);
    scene.engine.close().expect("closed");
    scene.reboot(1000);
    scene.moment.running_ns += HOUR_NS / 2;
    scene.store.set_moment(scene.moment);
    assert_eq!(scene.left("a"), 59);
}

#[test]
fn the_secret_confirms_time_that_was_lost_for_governance_and_not_for_compliance() {
    let mut scene = Scene::new();
    scene.engine.set_lock_secret(SECRET, None).expect("set");
    scene.lock("a", 100, GOVERNANCE).expect("locked");
    scene.lock("b", 100, COMPLIANCE).expect("locked");
    scene.reboot(30);
    assert_eq!((scene.left("a"), scene.left("b")), (100, 100));
    assert_eq!(scene.engine.lock_clock().behind_ns, 30 * HOUR_NS);
    assert_eq!(code(scene.engine.confirm_lock_clock([1; 32])), "lock_secret_wrong");
    assert_eq!(scene.engine.confirm_lock_clock(SECRET).ok(), Some(30 * HOUR_NS));
    assert_eq!((scene.left("a"), scene.left("b")), (70, 100));
    assert_eq!(scene.engine.confirm_lock_clock(SECRET).ok(), Some(0), "once");
    // A lock that is set now does not count what was lost before, whenever that is confirmed.
    scene.reboot(20);
    scene.engine.snapshot(&names("v"), &names("c"), &[]).expect("taken");
    scene.lock("c", 100, GOVERNANCE).expect("locked");
    scene.reboot(7);
    assert_eq!(scene.engine.confirm_lock_clock(SECRET).ok(), Some(27 * HOUR_NS));
    assert_eq!((scene.left("a"), scene.left("b"), scene.left("c")), (43, 100, 93));
    scene.lock("a", 43, COMPLIANCE).expect("by the other clock");
    scene.reboot(9);
    assert_eq!(scene.engine.confirm_lock_clock(SECRET).ok(), Some(9 * HOUR_NS));
    assert_eq!(scene.left("a"), 43);
}

#[test]
fn the_time_of_day_moves_nothing_unless_it_is_confirmed() {
    let mut scene = Scene::new();
    scene.engine.set_lock_secret(SECRET, None).expect("set");
    scene.moment.day_ns += 9000 * HOUR_NS;
    scene.pass(0);
    scene.lock("a", 100, GOVERNANCE).expect("locked");
    assert_eq!(scene.engine.confirm_lock_clock(SECRET).ok(), Some(0), "set by that time of day");
    scene.moment.day_ns += 90 * HOUR_NS;
    scene.pass(0);
    assert_eq!((scene.left("a"), scene.engine.lock_clock().behind_ns), (100, 90 * HOUR_NS));
    assert_eq!(scene.engine.confirm_lock_clock(SECRET).ok(), Some(90 * HOUR_NS));
    assert_eq!(scene.left("a"), 10);
    // One that is confirmed later counts in its place.
    scene.moment.day_ns -= 80 * HOUR_NS;
    scene.pass(0);
    scene.engine.confirm_lock_clock(SECRET).expect("confirmed");
    assert_eq!(scene.left("a"), 90);
}
