//! A pool whose log is damaged is refused; with loss accepted it goes back to the last batch that
//! can be followed, says what was lost, and keeps every byte of the rest.

mod crash;

use crash::damage_newer_slot;
use crash::model::Pool;
use crash::run::{Run, look_at_what_is_readable};
use crash::script::{Step, create, delete, snapshot_of, write};
use ramet_engine::{Engine, Kind, LossReport, LostObject};
use ramet_store::{Fault, FaultStore, Kept, Operation, Store, When};
use std::collections::BTreeSet;
use std::sync::Arc;

const SLOT: u64 = 4096;
/// The batch that is damaged in stories, counted from the end: the large write after the last
/// opening, in a segment that is followed by others.
const DAMAGED: usize = 8;

/// A pool that ended without a word, and what it held after each batch.
struct Scene {
    run: Run,
    states: Vec<(u64, Pool)>,
}

impl Scene {
    /// Everything is durable, over several segments and two stretches.
    fn new(checkpoint: bool) -> Self {
        let run = Run::quiet(0);
        let mut scene = Scene { run, states: vec![(0, Pool::default())] };
        scene.note();
        let large = |first, stamp| write("a", first, 120, stamp);
        scene.steps(&[create("a", 4096), create("b", 512), write("a", 0, 10, 1000)]);
        scene.steps(&[large(100, 2000), write("b", 7, 3, 3000)]);
        scene.steps(&[snapshot_of("a", "s"), large(300, 4000), Step::Kill]);
        if checkpoint {
            scene.steps(&[write("b", 20, 2, 4500), Step::Checkpoint]);
        }
        scene.steps(&[write("b", 0, 4, 5000), large(300, 6000), create("c", 64)]);
        scene.steps(&[write("c", 1, 2, 7000), delete("s"), large(600, 8000)]);
        scene.steps(&[Step::Rename { name: "b".into(), new: "d".into() }, write("d", 5, 1, 9000)]);
        scene.run.kill();
        scene
    }

    /// A pool that ended behind its second checkpoint, of which the older slot shows the first.
    fn of_two_checkpoints() -> Self {
        let run = Run::quiet(0);
        let mut scene = Scene { run, states: vec![(0, Pool::default())] };
        scene.note();
        scene.steps(&[create("a", 4096), create("b", 512), write("a", 0, 200, 1000)]);
        scene.steps(&[Step::Checkpoint, snapshot_of("a", "s"), write("a", 100, 120, 2000)]);
        scene.steps(&[
            write("b", 7, 3, 3000),
            create("c", 64),
            delete("s"),
            write("a", 9, 5, 4000),
        ]);
        scene.steps(&[Step::Checkpoint, write("c", 1, 2, 5000), write("a", 300, 120, 6000)]);
        scene.run.kill();
        scene
    }

    /// The pool with each piece of its trees damaged that lets nobody open it, and where that is.
    fn without_newest_checkpoint(&self) -> Vec<(Arc<FaultStore>, String)> {
        let mut found = Vec::new();
        for directory in ["nodes", "tables"] {
            for name in self.store().list(directory).expect("listed") {
                let path = format!("{directory}/{name}");
                for at in (SLOT..content(&self.store(), &path).len() as u64).step_by(64) {
                    let store = self.store();
                    store.flip_bit(&path, at + 9, 2).expect("flipped");
                    let opened = self.open(&store).map(drop);
                    if opened.is_err_and(|error| error.code == "checkpoint_damaged") {
                        // As it was before somebody tried.
                        let store = self.store();
                        store.flip_bit(&path, at + 9, 2).expect("flipped");
                        found.push((store, format!("{path} at {at}")));
                    }
                }
            }
        }
        found
    }

    /// Steps, each in a batch of its own.
    fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            self.run.steps(&[step.clone(), Step::Flush]);
            self.note();
        }
    }

    fn note(&mut self) {
        let stats = self.run.engine().stats().expect("looked at");
        self.states.push((stats.appended_sequence, self.run.history.now.clone()));
    }

    fn store(&self) -> Arc<FaultStore> {
        Arc::new(self.run.store.crash(Kept::Everything))
    }

    fn open(&self, store: &Arc<FaultStore>) -> Result<Arc<Engine>, ramet_engine::EngineError> {
        Engine::open_in(store.clone(), false, self.run.settings.clone())
    }

    fn accept(&self, store: &Arc<FaultStore>) -> Result<LossReport, ramet_engine::EngineError> {
        let report = Engine::accept_loss_in(store.clone(), self.run.settings.clone(), None)?;
        Ok(report.expect("something was lost"))
    }

    /// What the pool held after a batch.
    fn state(&self, sequence: u64) -> &Pool {
        let before = self.states.iter().rfind(|(last, _)| *last <= sequence);
        &before.unwrap_or(&self.states[0]).1
    }

    /// What is there is what was there after the last batch that was kept, and the pool goes on.
    /// Result: blocks that cannot be read.
    fn check(&self, store: &Arc<FaultStore>, kept: u64, context: &str) -> BTreeSet<(String, u64)> {
        let engine = self.open(store).unwrap_or_else(|error| panic!("{context}: {error}"));
        let damaged = look_at_what_is_readable(&engine, self.state(kept), context);
        engine.create_volumes(&["new".into()], 1 << 20, &[]).expect("made");
        let bytes = vec![7; 8192];
        engine.device("new").expect("there").write(4096, &bytes, true).expect("written");
        drop(engine);
        let store = Arc::new(store.crash(Kept::Nothing));
        let engine = self.open(&store).unwrap_or_else(|error| panic!("{context}: {error}"));
        let mut found = vec![0; 8192];
        engine.device("new").expect("there").read(4096, &mut found).expect("read");
        assert_eq!(found, bytes, "{context}");
        engine.delete(&["new".into()]).expect("deleted");
        assert_eq!(look_at_what_is_readable(&engine, self.state(kept), context), damaged);
        damaged
    }
}

fn content(store: &FaultStore, path: &str) -> Vec<u8> {
    let file = store.open(path, false).expect("it is there");
    let mut bytes = vec![0; usize::try_from(file.length_bytes().expect("known")).expect("small")];
    file.read_at(&mut bytes, 0).expect("read");
    bytes
}

fn segments(store: &FaultStore) -> Vec<String> {
    store.list("segments").expect("listed")
}

/// Segments, and the slots of their batches' headers.
fn batches(store: &FaultStore) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for name in segments(store) {
        let path = format!("segments/{name}");
        let slots = content(store, &path);
        let slots = slots.chunks(4096).zip(0u64..);
        let headers = slots.filter(|(slot, _)| slot.starts_with(b"RBAT"));
        found.extend(headers.map(|(_, slot)| (path.clone(), slot)));
    }
    found
}

/// Damage a batch so that it cannot be followed: its header, and the journal that repeats it.
fn damage(store: &FaultStore, path: &str, slot: u64) {
    store.flip_bit(path, slot * SLOT + 20, 0).expect("flipped");
    let trailer = content(store, path).len() as u64 - SLOT;
    store.flip_bit(path, trailer + 20, 0).expect("flipped");
}

/// Blocks of objects that the report says cannot be read any more.
fn unreadable_in(report: &LossReport) -> BTreeSet<(String, u64)> {
    let blocks = |(first, length): &(u64, u64)| first / SLOT..(first + length).div_ceil(SLOT);
    let of_one = |object: &LostObject| {
        let name = object.name.clone();
        object.unreadable.iter().flat_map(blocks).map(move |block| (name.clone(), block)).collect()
    };
    report.objects.iter().flat_map::<Vec<_>, _>(of_one).collect()
}

/// Every damage of a header, of a record, of a whole file: refused by a plain open; accepted, the
/// pool is what it was after some batch, and it says which; and who needs what cannot be read: a
/// segment that was missing was named, and nobody who had blocks in it.
#[test]
fn after_any_damage_to_the_log_the_pool_opens_at_an_earlier_moment() {
    let (mut accepted, mut unreadable) = (0, 0);
    for scene in [Scene::new(false), Scene::new(true)] {
        let whole = scene.store();
        let mut damages: Vec<(String, Option<u64>)> = Vec::new();
        for (path, slot) in batches(&whole) {
            damages
                .extend([slot * SLOT + 20, (slot + 1) * SLOT].map(|at| (path.clone(), Some(at))));
        }
        for name in segments(&whole) {
            let path = format!("segments/{name}");
            damages.extend([(path.clone(), Some(64)), (path, None)]);
        }
        for (path, at) in damages {
            let store = scene.store();
            let context = &format!("{path}, {at:?}");
            match at {
                Some(at) => store.flip_bit(&path, at, 3).expect("flipped"),
                None => store.remove(&path).expect("removed"),
            }
            let error = match scene.open(&store) {
                // A block, what is before the cut, or a segment prepared and not used yet.
                Ok(_) => continue,
                Err(error) => error,
            };
            assert_eq!((error.kind, error.code), (Kind::Corrupt, "log_damaged"), "{context}");
            let report = scene.accept(&store).unwrap_or_else(|error| panic!("{context}: {error}"));
            accepted += 1;
            let damaged = scene.check(&store, report.kept_sequence, context);
            assert_eq!(unreadable_in(&report), damaged, "{context}");
            unreadable += damaged.len();
        }
    }
    assert!(accepted > 30, "{accepted}");
    // Blocks of the batch at the cut, whose header was damaged.
    assert!(unreadable > 0, "{unreadable}");
}

/// The log after the last checkpoint writes into the range of a leaf that is damaged: the write has
/// no map to go to, and there was no way to open the pool but a copy.
#[test]
fn a_log_that_cannot_be_applied_ends_before_the_batch_that_fails() {
    let scene = Scene::new(true);
    let mut accepted = 0;
    for name in scene.store().list("nodes").expect("listed") {
        let path = format!("nodes/{name}");
        for at in (SLOT..content(&scene.store(), &path).len() as u64).step_by(64) {
            let store = scene.store();
            store.flip_bit(&path, at + 9, 2).expect("flipped");
            let Err(error) = scene.open(&store).map(drop) else { continue };
            if error.code != "node_damaged" {
                assert_eq!(error.code, "checkpoint_damaged", "{error}");
                continue;
            }
            let context = &format!("{path} at {at}");
            let report = scene.accept(&store).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert!(report.damage.contains(&format!("replaying the log: node at byte {at} of")));
            assert!(report.kept_sequence < report.durable_sequence, "{context}");
            assert!(!scene.check(&store, report.kept_sequence, context).is_empty(), "{context}");
            accepted += 1;
        }
    }
    assert!(accepted > 0, "no leaf is written to");
}

/// A damaged node of the newest checkpoint's trees made a pool useless, though the checkpoint
/// before it was whole and the log had all that came after it. Nothing is lost.
#[test]
fn the_checkpoint_before_a_damaged_one_and_the_log_have_everything() {
    let (mut accepted, mut refused) = (0, 0);
    for scene in [Scene::new(true), Scene::of_two_checkpoints()] {
        let last = scene.states.last().expect("noted").0;
        for (store, context) in scene.without_newest_checkpoint() {
            let report = match scene.accept(&store) {
                Ok(report) => report,
                // Both checkpoints have the node.
                Err(error) => {
                    assert_eq!(error.code, "checkpoint_damaged", "{context}: {error}");
                    refused += 1;
                    continue;
                }
            };
            assert!(report.damage.contains("the checkpoint before it was taken"), "{context}");
            assert_eq!((report.kept_sequence, &report.objects[..]), (last, &[][..]), "{context}");
            assert!(scene.check(&store, last, &context).is_empty(), "{context}");
            accepted += 1;
        }
    }
    assert!(accepted > 10, "{accepted} accepted, {refused} refused");
}

/// Crashes on the way back to the older checkpoint, whose slot is the only one that can be used: it
/// is not written before the other one holds the same.
#[test]
fn a_power_loss_on_the_way_back_to_the_older_checkpoint_loses_nothing() {
    let scene = Scene::of_two_checkpoints();
    let last = scene.states.last().expect("noted").0;
    let copy = |store: &FaultStore| Arc::new(store.crash(Kept::Everything));
    let damaged = scene.without_newest_checkpoint();
    let mut damaged = damaged.iter().filter(|(store, _)| scene.accept(&copy(store)).is_ok());
    let (damaged, _) = damaged.next().expect("one can be accepted");
    let rehearsal = copy(damaged);
    scene.accept(&rehearsal).expect("accepted");
    let (mut refused, mut opened) = (0, 0);
    for moment in 0..rehearsal.changes_count() {
        // And where the slot that was written last is spoiled by the crash.
        let fates = (0..4).map(|seed| (Kept::Random(seed), false));
        let always = [(Kept::Nothing, false), (Kept::Everything, false), (Kept::Everything, true)];
        for (fate, spoils) in always.into_iter().chain(fates) {
            let store = copy(damaged);
            store.plan(When::Change(moment), Fault::PowerOff);
            let context = &format!("change {moment}, {fate:?}, spoiled {spoils}");
            let _ = Engine::accept_loss_in(store.clone(), scene.run.settings.clone(), None);
            let store = Arc::new(store.crash(fate));
            if spoils {
                damage_newer_slot(&store);
            }
            match scene.open(&store).map(drop) {
                Ok(()) => opened += 1,
                // The older one is whole, so the pool opens from it.
                Err(error) if spoils => panic!("{context}: {error}"),
                Err(error) => {
                    assert_eq!(error.code, "checkpoint_damaged", "{context}: {error}");
                    let report = scene.accept(&store);
                    let report = report.unwrap_or_else(|error| panic!("{context}: {error}"));
                    assert_eq!(report.kept_sequence, last, "{context}");
                    refused += 1;
                }
            }
            assert!(scene.check(&store, last, context).is_empty(), "{context}");
        }
    }
    assert!(refused > 0 && opened > 0, "{refused} refused, {opened} opened");
}

/// A node that is read wrong once, and right the next time, is no loss to accept.
#[test]
fn what_was_read_wrong_once_is_no_loss() {
    let scene = Scene::new(true);
    let rehearsal = scene.store();
    drop(scene.open(&rehearsal).expect("nothing is damaged"));
    let mut once = 0;
    for read in 0..rehearsal.count(Operation::Read) {
        let planned = || {
            let store = scene.store();
            store.plan(When::Nth(Operation::Read, read), Fault::FlipBit);
            store
        };
        match scene.open(&planned()).map(drop) {
            Err(error) if error.code == "node_damaged" => {}
            Ok(()) | Err(_) => continue,
        }
        let told = Engine::accept_loss_in(planned(), scene.run.settings.clone(), None);
        assert_eq!(told.expect("opened"), None, "read {read}");
        once += 1;
    }
    assert!(once > 0, "no node is read in replay");
}

/// The story a person is told: what each object lost, which commands did not happen, and where the
/// rest is.
#[test]
fn a_loss_is_told_by_object_and_the_rest_is_set_aside() {
    let scene = Scene::new(true);
    let store = scene.store();
    let all = batches(&store);
    let (path, slot) = &all[all.len() - DAMAGED];
    damage(&store, path, *slot);
    let before: Vec<(String, Vec<u8>)> = segments(&store)
        .into_iter()
        .map(|name| (name.clone(), content(&store, &format!("segments/{name}"))))
        .collect();
    scene.open(&store).map(drop).expect_err("refused");
    let report = scene.accept(&store).expect("accepted");
    assert!(report.damage.contains(&format!("at slot {slot}")), "{}", report.damage);
    assert_eq!(report.unread_count, 1, "the batch that was damaged");
    let told: Vec<String> = report
        .commands
        .iter()
        .map(|command| format!("{} {}", command.verb, command.names.join(" ")))
        .collect();
    assert_eq!(told, ["create c", "delete s", "rename b to d"]);
    let object = |name: &str| report.objects.iter().find(|object| object.name == name);
    let (a, b, c) = (object("a").expect("a"), object("b").expect("b"), object("c").expect("c"));
    assert_eq!((a.is_gone, &a.ranges[..]), (false, &[(600 * SLOT, 120 * SLOT)][..]));
    assert_eq!((b.is_gone, &b.ranges[..]), (false, &[(5 * SLOT, SLOT)][..]));
    assert_eq!((c.is_gone, &c.ranges[..]), (true, &[(SLOT, 2 * SLOT)][..]));
    let text = String::from_utf8(content(&store, &format!("{}/report.txt", report.directory)));
    let text = text.expect("a text");
    assert!(text.contains("'c' is gone: it was made later lost writes to 8192 bytes: 4096+8192"));
    assert_eq!(report.directory, "lost/1");
    assert_nothing_is_gone(&store, &before, "");
    // A second time there is nothing to accept.
    let again = Engine::accept_loss_in(store, scene.run.settings.clone(), None).expect("opened");
    assert_eq!(again, None);
}

/// Every byte of the segments as they were is in the pool or beside it.
fn assert_nothing_is_gone(store: &FaultStore, before: &[(String, Vec<u8>)], context: &str) {
    let places: Vec<String> = (1..=3).map(|number| format!("lost/{number}")).collect();
    for (name, bytes) in before {
        let mut there = Vec::new();
        for place in std::iter::once("segments").chain(places.iter().map(String::as_str)) {
            let path = format!("{place}/{name}");
            if store.exists(&path).expect("looked for") {
                there.push(content(store, &path));
            }
        }
        assert!(there.contains(bytes), "{context}: {name} is gone");
    }
}

/// Crashes while a loss is accepted: the pool is refused as before, or opens at the same place, and
/// every byte of the log is still there.
#[test]
fn a_power_loss_at_any_operation_of_accepting_makes_nothing_worse() {
    for checkpoint in [false, true] {
        let scene = Scene::new(checkpoint);
        let damaged = scene.store();
        let all = batches(&damaged);
        let (path, slot) = &all[all.len() - DAMAGED];
        damage(&damaged, path, *slot);
        let before: Vec<(String, Vec<u8>)> = segments(&damaged)
            .into_iter()
            .map(|name| (name.clone(), content(&damaged, &format!("segments/{name}"))))
            .collect();
        let rehearsal = Arc::new(damaged.crash(Kept::Everything));
        let kept = scene.accept(&rehearsal).expect("accepted").kept_sequence;
        let (mut refused, mut opened) = (0, 0);
        for moment in 0..rehearsal.changes_count() {
            for fate in
                [Kept::Nothing, Kept::Everything].into_iter().chain((0..4).map(Kept::Random))
            {
                let store = Arc::new(damaged.crash(Kept::Everything));
                store.plan(When::Change(moment), Fault::PowerOff);
                let context = &format!("checkpoint {checkpoint}, change {moment}, {fate:?}");
                // Giving the lock back at the end may be all that failed.
                let _ = Engine::accept_loss_in(store.clone(), scene.run.settings.clone(), None);
                let store = Arc::new(store.crash(fate));
                match scene.open(&store) {
                    Ok(engine) => {
                        drop(engine);
                        opened += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.code, "log_damaged", "{context}: {error}");
                        let report = scene.accept(&store);
                        let report = report.unwrap_or_else(|error| panic!("{context}: {error}"));
                        assert_eq!(report.kept_sequence, kept, "{context}");
                        refused += 1;
                    }
                }
                assert_nothing_is_gone(&store, &before, context);
                assert!(scene.check(&store, kept, context).is_empty(), "{context}");
            }
        }
        assert!(refused > 0 && opened > 0, "{refused} refused, {opened} opened");
    }
}

/// The second commit of `begin_after_loss`: once a batch follows the end, neither slot calls the
/// log damaged because of what was durable behind it.
#[test]
fn both_slots_show_the_end_before_a_batch_follows_it() {
    let scene = Scene::new(false);
    let damaged = scene.store();
    // The opening that followed noted several batches as durable, this one and those behind it.
    let all = batches(&damaged);
    let mut before_opening = all.iter().filter(|(path, _)| path.contains("/000000001"));
    let (path, slot) = before_opening.nth(4).expect("there are two stretches");
    damage(&damaged, path, *slot);
    let before = segments(&damaged);
    let rehearsal = Arc::new(damaged.crash(Kept::Everything));
    let kept = scene.accept(&rehearsal).expect("accepted").kept_sequence;
    let mut followed = 0;
    for moment in 0..rehearsal.changes_count() {
        let store = Arc::new(damaged.crash(Kept::Everything));
        store.plan(When::Change(moment), Fault::PowerOff);
        let _ = Engine::accept_loss_in(store.clone(), scene.run.settings.clone(), None);
        let store = Arc::new(store.crash(Kept::Everything));
        let is_new = |path: &String| !before.iter().any(|name| path.ends_with(name.as_str()));
        if batches(&store).iter().any(|(path, _)| is_new(path)) {
            damage_newer_slot(&store);
            let context = &format!("change {moment}, newer slot damaged");
            assert!(scene.check(&store, kept, context).is_empty(), "{context}");
            followed += 1;
        }
    }
    assert!(followed > 0);
}

/// All files of the pool, and what is in them, but for the lock.
fn everything(store: &FaultStore) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for directory in ["", "segments", "nodes", "tables", "lost", "lost/1"] {
        for name in store.list(directory).expect("a list") {
            let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
            found.push((path.clone(), content(store, &path)));
        }
    }
    found.retain(|(path, _)| path != "lock");
    found
}

/// All syncs of `begin_after_loss` and `set_aside`: what is beside the pool afterwards stays there,
/// and either slot of the superblock shows the pool as it is.
#[test]
fn what_was_set_aside_survives_a_power_loss() {
    let scene = Scene::new(true);
    let damaged = scene.store();
    let all = batches(&damaged);
    let (path, slot) = &all[all.len() - DAMAGED];
    damage(&damaged, path, *slot);
    let store = Arc::new(damaged.crash(Kept::Everything));
    let kept = scene.accept(&store).expect("accepted").kept_sequence;
    let seen = everything(&store);
    let older = store.crash(Kept::Nothing);
    let store = store.crash(Kept::Nothing);
    for (path, bytes) in &seen {
        assert!(store.exists(path).expect("looked for"), "{path} is gone");
        assert!(content(&store, path) == *bytes, "{path} is not what it was");
    }
    assert_eq!(everything(&store).len(), seen.len(), "a name is back");
    damage_newer_slot(&older);
    for (store, context) in [(store, "as it is"), (older, "newer slot damaged")] {
        assert!(scene.check(&Arc::new(store), kept, context).is_empty(), "{context}");
    }
}

/// The same for operations that fail, and for a full disk: an error, and nothing is worse.
#[test]
fn a_failure_at_any_operation_of_accepting_makes_nothing_worse() {
    let scene = Scene::new(true);
    let damaged = scene.store();
    let all = batches(&damaged);
    let (path, slot) = &all[all.len() - DAMAGED];
    damage(&damaged, path, *slot);
    let rehearsal = Arc::new(damaged.crash(Kept::Everything));
    let kept = scene.accept(&rehearsal).expect("accepted").kept_sequence;
    for fault in [Fault::Error, Fault::Full] {
        for moment in 0..rehearsal.changes_count() {
            let store = Arc::new(damaged.crash(Kept::Everything));
            store.plan(When::Change(moment), fault);
            let context = &format!("{fault:?} at change {moment}");
            let _ = Engine::accept_loss_in(store.clone(), scene.run.settings.clone(), None);
            let store = Arc::new(store.crash(Kept::Everything));
            if let Err(error) = scene.open(&store).map(drop) {
                assert_eq!(error.code, "log_damaged", "{context}: {error}");
                let report = scene.accept(&store);
                let report = report.unwrap_or_else(|error| panic!("{context}: {error}"));
                assert_eq!(report.kept_sequence, kept, "{context}");
            }
            assert!(scene.check(&store, kept, context).is_empty(), "{context}");
        }
    }
    // A medium that cannot be read says nothing about what is lost.
    for read in (0..rehearsal.count(Operation::Read)).step_by(3) {
        let store = Arc::new(damaged.crash(Kept::Everything));
        store.plan(When::Nth(Operation::Read, read), Fault::Error);
        if let Err(error) = Engine::accept_loss_in(store.clone(), scene.run.settings.clone(), None)
        {
            assert_ne!(error.kind, Kind::Internal, "read {read}: {error}");
            let store = Arc::new(store.crash(Kept::Everything));
            if scene.open(&store).is_err() {
                assert_eq!(scene.accept(&store).expect("accepted").kept_sequence, kept);
            }
        }
    }
}
