//! A damaged node of a map is an error for its range only: everything else is read and written,
//! snapshots, clones, deletes and checkpoints go on, and nothing of what it maps is taken for dead.

mod crash;

use crash::model::Pool;
use crash::run::{Run, look_at_what_is_readable};
use crash::script::{EMPTY, Step, create, snapshot_of, write};
use ramet_engine::{Engine, EngineError, Kind};
use ramet_store::{FaultStore, Kept, Store};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

const BLOCK: u64 = 4096;
const UNIT: u64 = 64;
/// Background steps until nothing changes any more.
const STEPS_MAX: usize = 1000;

/// A pool that was closed: a volume of three leaves, its snapshot, and a clone that differs in two,
/// in one of which the volume does too: all three have nodes of their own for blocks they share.
fn scene() -> Run {
    let mut run = Run::quiet(0);
    run.steps(&[create("a", 4096), create("other", 512), write("other", 3, 9, 100)]);
    run.steps(&[write("a", 0, 40, 1000), write("a", 700, 40, 2000), write("a", 2000, 40, 3000)]);
    run.steps(&[snapshot_of("a", "s"), write("a", 705, 10, 4000)]);
    run.steps(&[Step::Clone { source: "s".into(), names: vec!["c".into()], sectors: 8 * 4096 }]);
    run.steps(&[write("c", 2010, 5, 5000), write("c", 702, 2, 6000), Step::Close]);
    // The objects and their lineage move into another file, most of the maps stay.
    run.steps(&[snapshot_of("other", "t"), Step::Close]);
    run.engine().close().expect("closed");
    run.kill();
    run
}

fn open(store: &Arc<FaultStore>, run: &Run) -> Result<Arc<Engine>, EngineError> {
    Engine::open_in(store.clone(), false, run.settings.clone())
}

/// Files of nodes, and the places of nodes in them.
fn places(store: &FaultStore) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for name in store.list("nodes").expect("listed") {
        let path = format!("nodes/{name}");
        let file = store.open(&path, false).expect("there");
        let length = file.length_bytes().expect("known");
        found.extend((64..length / UNIT).map(|unit| (path.clone(), unit * UNIT)));
    }
    found
}

/// Blocks of one object that cannot be read.
fn unreadable(engine: &Arc<Engine>, name: &str) -> BTreeSet<u64> {
    let device = engine.device(name).expect("there");
    let mut block = vec![0; 4096];
    let blocks = 0..device.size_bytes() / BLOCK;
    blocks
        .filter(|index| match device.read(index * BLOCK, &mut block) {
            Ok(()) => false,
            Err(error) => {
                assert_eq!((error.kind, error.code), (Kind::Corrupt, "node_damaged"), "{error}");
                assert!(error.text.contains("nodes/"), "it does not say where: {error}");
                true
            }
        })
        .collect()
}

/// Everything that does not need the node goes on; what needs it is a clear error.
fn go_on(store: &Arc<FaultStore>, run: &Run, engine: &Arc<Engine>, context: &str) {
    let before: Pool = run.history.now.clone();
    let damaged: Vec<(String, BTreeSet<u64>)> =
        before.things.keys().map(|name| (name.clone(), unreadable(engine, name))).collect();
    for (name, blocks) in damaged.iter().filter(|(name, _)| !["s", "t"].contains(&&**name)) {
        let device = engine.device(name).expect("there");
        for index in blocks.iter().step_by(301) {
            let error = device.write(index * BLOCK, &[1; 4096], false).expect_err(context);
            assert_eq!((error.kind, error.code), (Kind::Corrupt, "node_damaged"), "{context}");
        }
        let whole = (0..device.size_bytes() / BLOCK).find(|index| !blocks.contains(index));
        if let Some(index) = whole {
            let mut found = vec![0; 4096];
            device.read(index * BLOCK, &mut found).expect("read");
            device.write(index * BLOCK, &found, false).expect("what is well can be written");
        }
    }
    engine.snapshot(&["a".into()], &["a@2".into()], &[]).expect("snapshots go on");
    engine.clone_object("c", &["d".into()], None, &[]).expect("clones go on");
    engine.checkpoint().expect("checkpoints go on");
    let same = |name: &str| damaged.iter().find(|(own, _)| own == name).expect("known").1.clone();
    assert_eq!(unreadable(engine, "a@2"), same("a"), "{context}");
    assert_eq!(unreadable(engine, "d"), same("c"), "{context}");
    engine.delete(&["a".into(), "a@2".into()]).expect("deletes go on");
    engine.delete(&["d".into()]).expect("deletes go on");
    for _ in 0..STEPS_MAX {
        if !engine.step(Instant::now()).expect("background work goes on") {
            break;
        }
    }
    // What waits for the node keeps all that it may hold. The count of nodes, which comes after the
    // blocks, ends where it needs the node.
    if let Err(error) = engine.reclaim(true, &mut |_| true) {
        assert_eq!((error.kind, error.code), (Kind::Corrupt, "node_damaged"), "{context}");
    }
    let mut after = before;
    after.things.remove("a");
    look_at_what_is_readable(engine, &after, context);
    engine.close().expect("closed");
    let engine = open(store, run).unwrap_or_else(|error| panic!("{context}: {error}"));
    look_at_what_is_readable(&engine, &after, context);
    for name in ["c", "s"] {
        assert_eq!(unreadable(&engine, name), same(name), "{context}");
    }
}

#[test]
fn a_flipped_bit_of_a_node_is_an_error_for_its_range_only() {
    let run = scene();
    let (mut ranges, mut refused, mut unseen) = (BTreeSet::new(), 0, 0);
    let mut seen = BTreeSet::new();
    for (path, at) in places(&run.store) {
        let store = Arc::new(run.store.crash(Kept::Everything));
        store.flip_bit(&path, at + 9, 2).expect("flipped");
        let context = &format!("{path} at {at}");
        let engine = match open(&store, &run) {
            Ok(engine) => engine,
            Err(error) => {
                // A node of the objects or of the lineage tree.
                assert_eq!(error.code, "checkpoint_damaged", "{context}: {error}");
                assert!(error.text.contains(&path), "{context}: {error}");
                refused += 1;
                continue;
            }
        };
        let damaged: Vec<(String, BTreeSet<u64>)> = ["a", "c", "other", "s", EMPTY]
            .map(|name| (name.into(), unreadable(&engine, name)))
            .into();
        if damaged.iter().all(|(_, blocks)| blocks.is_empty()) {
            unseen += 1;
            continue;
        }
        ranges.extend(damaged.iter().map(|(_, blocks)| blocks.len()));
        // What a bit further on damages is the same.
        if !seen.insert(damaged) {
            continue;
        }
        go_on(&store, &run, &engine, context);
    }
    assert!(refused > 0 && unseen > 0, "{refused} refused, {unseen} unseen");
    // Nothing, a leaf, an inner node or root.
    assert_eq!(ranges.into_iter().collect::<Vec<_>>(), [0, 512, 4096]);
    assert!(seen.len() > 5, "{}", seen.len());
}

#[test]
fn a_missing_node_file_is_an_error_for_what_it_maps() {
    let run = scene();
    let mut opened = 0;
    for name in run.store.list("nodes").expect("listed") {
        let store = Arc::new(run.store.crash(Kept::Everything));
        store.remove(&format!("nodes/{name}")).expect("removed");
        match open(&store, &run) {
            Ok(engine) => {
                opened += 1;
                go_on(&store, &run, &engine, &name);
            }
            Err(error) => assert_eq!(error.code, "checkpoint_damaged", "{error}"),
        }
    }
    assert!(opened > 0, "no file holds maps only");
}

/// A range that is trimmed as a whole needs nothing of the leaf that maps it: it heals. The leaf
/// was loaded all the same, and the range stayed an error whatever was done to it.
#[test]
fn a_trim_of_all_that_a_damaged_leaf_maps_heals_the_range() {
    let run = scene();
    let mut healed = 0;
    for (path, at) in places(&run.store) {
        let store = Arc::new(run.store.crash(Kept::Everything));
        store.flip_bit(&path, at + 9, 2).expect("flipped");
        let Ok(engine) = open(&store, &run) else { continue };
        let blocks = unreadable(&engine, "a");
        let Some(first) = blocks.first().copied().filter(|_| blocks.len() == 512) else { continue };
        let device = engine.device("a").expect("there");
        device.trim(first * BLOCK, 512 * BLOCK, false).expect("trimmed");
        assert!(unreadable(&engine, "a").is_empty(), "{path} at {at}");
        device.write(first * BLOCK, &[5; 8192], true).expect("written");
        for _ in 0..STEPS_MAX {
            engine.step(Instant::now()).expect("background work goes on");
        }
        drop(device);
        engine.close().expect("closed");
        let engine = open(&store, &run).expect("opened");
        let mut found = vec![0; 3 * 4096];
        engine.device("a").expect("there").read(first * BLOCK, &mut found).expect("read");
        assert_eq!(found, [vec![5; 8192], vec![0; 4096]].concat());
        healed += 1;
    }
    assert!(healed > 0);
}
