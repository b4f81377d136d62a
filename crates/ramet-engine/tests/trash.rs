//! What is in the trash comes back as it was, or ends at its time and no sooner, whatever happens
//! to pools and machines meanwhile. Power losses: the scripts of engine_crash.rs, which trash too.

mod crash;

use ramet_engine::{Engine, EngineError, LockMode, Settings};
use ramet_store::{FaultStore, Kept, Moment, Store};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECOND_NS: u64 = 1_000_000_000;
const DAY_SECONDS: u64 = 24 * 3600;
const MIB: u64 = 1 << 20;

fn names(all: &[&str]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

fn code<T>(result: Result<T, EngineError>) -> &'static str {
    result.err().map_or("none", |error| error.code)
}

/// A machine with a pool whose volume `v` has one block of ones.
struct Scene {
    store: Arc<FaultStore>,
    engine: Arc<Engine>,
    moment: Moment,
    clock: Instant,
}

impl Scene {
    fn new() -> Self {
        let store = Arc::new(FaultStore::new(1));
        let moment = Moment { boot: [1; 16], running_ns: 0, day_ns: DAY_SECONDS * SECOND_NS };
        store.set_moment(moment);
        Engine::create_in(&*store, 1 << 20).expect("created");
        let engine = open(&store);
        engine.create_volumes(&names(&["v"]), MIB, &[]).expect("created");
        engine.device("v").expect("there").write(0, &[1; 4096], true).expect("written");
        engine.set_trash_seconds(7 * DAY_SECONDS).expect("set");
        Scene { store, engine, moment, clock: Instant::now() }
    }

    /// Time goes by, and background work is done.
    fn pass(&mut self, days: u64) {
        self.moment.running_ns += days * DAY_SECONDS * SECOND_NS;
        self.moment.day_ns += days * DAY_SECONDS * SECOND_NS;
        self.store.set_moment(self.moment);
        self.clock += Duration::from_secs(2);
        self.engine.step(self.clock).expect("stepped");
        self.engine.step_checkpoint(self.clock).expect("stepped");
    }

    fn reboot(&mut self) {
        self.engine = {
            let store = self.store.crash(Kept::Random(3));
            self.store = Arc::new(store);
            (self.moment.boot[0], self.moment.running_ns) = (self.moment.boot[0] + 1, 0);
            self.store.set_moment(self.moment);
            open(&self.store)
        };
    }

    fn trashed(&self) -> Vec<(String, u64)> {
        let days = |ns: u64| ns.div_ceil(DAY_SECONDS * SECOND_NS);
        let all = self.engine.trashed().into_iter();
        all.map(|it| (it.object.name, days(it.remaining_ns))).collect()
    }

    fn living_blocks(&self) -> u64 {
        while self.engine.stats().expect("told").dying_count > 0 {
            self.engine.step(self.clock).expect("stepped");
        }
        self.engine.stats().expect("told").living_bytes / 4096
    }
}

fn open(store: &Arc<FaultStore>) -> Arc<Engine> {
    Engine::open_in(store.clone(), false, Settings::default()).expect("opened")
}

fn first_byte(engine: &Arc<Engine>, name: &str) -> u8 {
    let mut bytes = [0; 4096];
    engine.device(name).expect("there").read(0, &mut bytes).expect("read");
    bytes[0]
}

#[test]
fn what_was_deleted_comes_back_as_it_was() {
    let scene = Scene::new();
    let engine = &scene.engine;
    engine.set_attributes(&names(&["v"]), &[b"{}".to_vec()]).expect("set");
    let was = engine.find("v").expect("there");
    engine.trash(&names(&["v"])).expect("deleted");
    assert_eq!((code(engine.find("v")), code(engine.find(&was.uuid.to_string()))), {
        ("object_not_found", "object_not_found")
    });
    assert_eq!((scene.trashed(), scene.living_blocks()), (vec![("v".into(), 7)], 1));
    engine.create_volumes(&names(&["v"]), MIB, &[]).expect("its name is free");
    assert_eq!(code(engine.restore(&names(&["v"]), None)), "name_taken");
    let new = names(&["old"]);
    let back = engine.restore(&[was.uuid.to_string()], Some(&new)).expect("restored");
    assert_eq!((back[0].uuid, &*back[0].name, &*back[0].attributes), (was.uuid, "old", &b"{}"[..]));
    assert_eq!((first_byte(engine, "old"), first_byte(engine, "v")), (1, 0));
    assert_eq!(scene.trashed(), vec![]);
    engine.device("old").expect("there").write(0, &[2; 4096], true).expect("it takes writes again");
}

#[test]
fn who_has_it_open_in_this_process_reads_and_writes_no_more() {
    let scene = Scene::new();
    let device = scene.engine.device("v").expect("there");
    scene.engine.trash(&names(&["v"])).expect("deleted");
    assert_eq!(code(device.write(0, &[2; 4096], true)), "object_deleted");
    assert_eq!(code(device.read(0, &mut [0; 4096])), "object_deleted");
    // A checkpoint keeps it, and what is opened after it can restore it.
    assert!(scene.engine.checkpoint().expect("written"));
    drop(device);
    drop(scene.engine);
    let engine = open(&scene.store);
    assert_eq!(engine.restore(&names(&["v"]), None).expect("restored").len(), 1);
    assert_eq!(first_byte(&engine, "v"), 1);
}

#[test]
fn a_pool_opens_in_which_an_older_object_has_a_name_of_the_trash() {
    // It was refused once: `w` was read later, and its name taken for another's.
    let scene = Scene::new();
    scene.engine.create_volumes(&names(&["w"]), MIB, &[]).expect("created");
    scene.engine.trash(&names(&["w"])).expect("deleted");
    scene.engine.rename("v", "w").expect("its name is free");
    assert!(scene.engine.checkpoint().expect("written"));
    drop(scene.engine);
    let engine = open(&scene.store);
    assert_eq!((first_byte(&engine, "w"), engine.trashed().len()), (1, 1));
    engine.rename("w", "v").expect("its name is its own");
    engine.restore(&names(&["w"]), None).expect("restored");
    assert_eq!((first_byte(&engine, "w"), first_byte(&engine, "v")), (0, 1));
}

#[test]
fn its_time_is_that_of_the_lock_clock() {
    let mut scene = Scene::new();
    scene.engine.trash(&names(&["v"])).expect("deleted");
    scene.pass(3);
    assert_eq!(scene.trashed(), vec![("v".into(), 4)]);
    // A clock that jumps ahead by years empties nothing, and time that the machine was off does
    // not count; what it ran for does, to within the hour that may not have been saved.
    scene.moment.day_ns += 4000 * DAY_SECONDS * SECOND_NS;
    scene.reboot();
    scene.pass(0);
    assert_eq!(scene.trashed(), vec![("v".into(), 4)]);
    scene.pass(3);
    assert_eq!((scene.trashed(), scene.living_blocks()), (vec![("v".into(), 1)], 1));
    scene.pass(1);
    assert_eq!((scene.trashed(), scene.living_blocks()), (vec![], 0));
}

#[test]
fn another_window_is_for_what_is_deleted_later() {
    let mut scene = Scene::new();
    scene.engine.snapshot(&names(&["v"]), &names(&["v@1"]), &[]).expect("taken");
    scene.engine.trash(&names(&["v@1"])).expect("deleted");
    scene.engine.set_trash_seconds(0).expect("set");
    scene.engine.trash(&names(&["v"])).expect("deleted");
    assert_eq!(scene.trashed(), vec![("v@1".into(), 7)]);
    scene.pass(6);
    assert_eq!((scene.trashed(), scene.living_blocks()), (vec![("v@1".into(), 1)], 1));
    assert_eq!(code(scene.engine.set_trash_seconds(101 * 366 * DAY_SECONDS)), "trash_window");
}

#[test]
fn a_clone_of_what_is_in_the_trash_shows_who_is_left_above_it() {
    let scene = Scene::new();
    let engine = &scene.engine;
    engine.snapshot(&names(&["v"]), &names(&["v@1"]), &[]).expect("taken");
    engine.clone_object("v@1", &names(&["middle"]), None, &[]).expect("cloned");
    engine.snapshot(&names(&["middle"]), &names(&["middle@1"]), &[]).expect("taken");
    engine.clone_object("middle@1", &names(&["low"]), None, &[]).expect("cloned");
    let uuid = |name| engine.find(name).expect("there").uuid;
    engine.trash(&names(&["middle@1"])).expect("deleted");
    assert_eq!(engine.find("low").expect("there").parent, Some(uuid("v@1")));
    engine.trash(&names(&["v@1"])).expect("deleted");
    assert_eq!(engine.find("low").expect("there").parent, None);
    engine.restore(&names(&["middle@1"]), None).expect("restored");
    assert_eq!(engine.find("low").expect("there").parent, Some(uuid("middle@1")));
    assert_eq!(scene.living_blocks(), 1);
}

#[test]
fn names_that_say_too_little_are_refused_and_nothing_happens() {
    let scene = Scene::new();
    let engine = &scene.engine;
    let first = engine.trash(&names(&["v"])).expect("deleted")[0].uuid;
    engine.create_volumes(&names(&["v", "w"]), MIB, &[]).expect("created");
    engine.trash(&names(&["v", "w"])).expect("deleted");
    let both = names(&["w", "v"]);
    assert_eq!(code(engine.restore(&both, None)), "trash_ambiguous");
    assert_eq!(code(engine.empty_trash(Some(&both))), "trash_ambiguous");
    assert_eq!(code(engine.restore(&names(&["w", "x"]), None)), "not_in_trash");
    assert_eq!(code(engine.restore(&names(&["w"]), Some(&names(&["a", "b"])))), "counts_differ");
    assert_eq!(scene.trashed().len(), 3);
    let keys = [first.to_string(), "w".into(), first.to_string()];
    assert_eq!(engine.restore(&keys, None).expect("restored").len(), 2);
    assert_eq!(engine.empty_trash(Some(&names(&["v"]))).expect("emptied").len(), 1);
    assert_eq!((first_byte(engine, "v"), scene.trashed()), (1, vec![]));
}

#[test]
fn what_the_trash_frees_is_said_before() {
    let scene = Scene::new();
    let engine = &scene.engine;
    engine.snapshot(&names(&["v"]), &names(&["v@1"]), &[]).expect("taken");
    engine.device("v").expect("there").write(0, &[2; 8192], true).expect("written");
    engine.trash(&names(&["v@1"])).expect("deleted");
    // The trash holds: what only a snapshot in it shares does not come back.
    assert_eq!((engine.frees(&names(&["v"])).expect("told"), scene.living_blocks()), (8192, 3));
    engine.trash(&names(&["v"])).expect("deleted");
    assert_eq!(engine.trash_frees(Some(&names(&["v"]))).expect("told"), 8192);
    assert_eq!(engine.trash_frees(None).expect("told"), 3 * 4096);
    assert_eq!(engine.empty_trash(None).expect("emptied").len(), 2);
    assert_eq!((scene.living_blocks(), scene.trashed()), (0, vec![]));
}

#[test]
fn locks_and_front_ends_keep_things_out_of_the_trash() {
    let mut scene = Scene::new();
    let engine = scene.engine.clone();
    engine.snapshot(&names(&["v"]), &names(&["v@1"]), &[]).expect("taken");
    let day = Duration::from_secs(DAY_SECONDS);
    engine.lock(&names(&["v@1"]), day, LockMode::Compliance).expect("locked");
    assert_eq!(code(engine.trash(&names(&["v", "v@1"]))), "object_locked");
    let attached = engine.attach("v").expect("attached");
    assert_eq!(code(engine.trash(&names(&["v"]))), "object_attached");
    drop(attached);
    drop(engine);
    scene.pass(2);
    scene.engine.trash(&names(&["v", "v@1"])).expect("its lock is over");
    assert_eq!(scene.trashed().len(), 2);
}

/// Damage one of the log's batches, counted from its end.
fn damage_batch(store: &FaultStore, from_end: usize) {
    let mut found = Vec::new();
    let mut names = store.list("segments").expect("listed");
    names.sort();
    for path in names.iter().map(|name| format!("segments/{name}")) {
        let file = store.open(&path, false).expect("there");
        for slot in 0..file.length_bytes().expect("known") / 4096 {
            let mut magic = [0; 4];
            file.read_at(&mut magic, slot * 4096).expect("read");
            if &magic == b"RBAT" {
                found.push((path.clone(), slot));
            }
        }
    }
    let (path, slot) = &found[found.len() - 1 - from_end];
    store.flip_bit(path, slot * 4096 + 20, 0).expect("flipped");
}

/// What somebody restored is in the trash again where the log's end is lost: its time may be over
/// long since, and a step after the next opening would end it.
#[test]
fn after_a_loss_the_trash_is_not_emptied_before_somebody_looked() {
    let mut scene = Scene::new();
    scene.engine.trash(&names(&["v"])).expect("deleted");
    scene.pass(6);
    scene.engine.restore(&names(&["v"]), None).expect("restored");
    // What follows tells that the restore was durable.
    for _ in 0..2 {
        scene.engine.device("v").expect("there").write(0, &[1; 4096], true).expect("written");
    }
    scene.pass(30);
    scene.store = Arc::new(scene.store.crash(Kept::Everything));
    scene.store.set_moment(scene.moment);
    damage_batch(&scene.store, 2);
    let opened = Engine::open_in(scene.store.clone(), false, Settings::default());
    assert_eq!(code(opened), "log_damaged");
    let lost = Engine::accept_loss_in(scene.store.clone(), Settings::default(), None);
    assert_eq!(lost.expect("accepted").expect("lost").unread_count, 1);
    scene.engine = open(&scene.store);
    scene.pass(6);
    assert_eq!((scene.trashed(), scene.living_blocks()), (vec![("v".into(), 1)], 1));
    scene.engine.restore(&names(&["v"]), None).expect("restored");
}
