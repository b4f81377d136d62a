//! A scrub reads what is held, each stored byte once; it finds what a reader would find, names
//! everybody who needs it, and takes nothing for damage that only moved on meanwhile.

mod crash;

use crash::run::Run;
use crash::script::{Step, create, delete, snapshot_of, write};
use crash::{Random, sampled};
use ramet_engine::{Damage, DamageHolder, Engine, EngineError, Scrub};
use ramet_store::{FaultStore, Kept, Store};
use std::collections::BTreeSet;
use std::sync::Arc;

const BLOCK: u64 = 4096;
/// A step of a few blocks.
const STEP_BYTES: u64 = 16 << 10;
/// Places at which something is damaged.
const PLACES_MAX: u64 = 60;
const SCRIPTS: u64 = 30;
const STEPS: usize = 60;

/// A pool that was closed: volumes of several leaves and segments, snapshots and clones of them,
/// one object deleted.
fn scene() -> Run {
    let mut run = Run::quiet(3);
    run.steps(&[create("a", 4096), create("b", 1024), write("b", 3, 60, 10_000)]);
    run.steps(&[write("a", 0, 200, 20_000), write("a", 700, 90, 30_000), snapshot_of("a", "s")]);
    run.steps(&[write("a", 20, 15, 40_000), write("b", 500, 80, 50_000), snapshot_of("b", "t")]);
    let names = vec!["c".into(), "d".into()];
    run.steps(&[Step::Clone { source: "s".into(), names, sectors: 8 * 4096 }]);
    run.steps(&[write("c", 710, 5, 60_000), delete("b"), Step::Reclaim { all: true }, Step::Close]);
    run.engine().close().expect("closed");
    run.kill();
    run
}

fn open(store: &Arc<FaultStore>, run: &Run) -> Result<Arc<Engine>, EngineError> {
    Engine::open_in(store.clone(), false, run.settings.clone())
}

fn scrubbed(engine: &Arc<Engine>) -> Scrub {
    let mut scrub = Scrub::new(engine.clone());
    while scrub.step(STEP_BYTES).expect("the pool is open") > 0 {}
    scrub
}

fn living_bytes(engine: &Engine) -> u64 {
    engine.stats().expect("figures").living_bytes
}

/// Files of a directory, and how long they are.
fn files(store: &FaultStore, directory: &str) -> Vec<(String, u64)> {
    let paths = store.list(directory).expect("listed").into_iter();
    let paths = paths.map(|name| format!("{directory}/{name}"));
    let length = |path: &str| store.open(path, false).expect("there").length_bytes();
    paths.map(|path| (path.clone(), length(&path).expect("known"))).collect()
}

/// Every block that cannot be read, by the name of its object.
fn unreadable(engine: &Arc<Engine>) -> BTreeSet<(String, u64)> {
    let mut found = BTreeSet::new();
    for object in engine.list() {
        let device = engine.device(&object.name).expect("there");
        let mut block = vec![0; 4096];
        for index in 0..object.size_bytes / BLOCK {
            if device.read(index * BLOCK, &mut block).is_err() {
                found.insert((object.name.clone(), index));
            }
        }
    }
    found
}

/// Every block that findings name.
fn named(findings: &[Damage]) -> BTreeSet<(String, u64)> {
    let mut found = BTreeSet::new();
    for finding in findings {
        assert_eq!(finding.holders_count, finding.holders.len() as u64, "{finding:?}");
        assert!(finding.holders_count > 0, "nobody needs it: {finding:?}");
        for DamageHolder { name, offset_bytes, length_bytes } in &finding.holders {
            let blocks = offset_bytes / BLOCK..(offset_bytes + length_bytes) / BLOCK;
            found.extend(blocks.map(|index| (name.clone(), index)));
        }
    }
    found
}

#[test]
fn each_stored_byte_is_read_once_however_many_hold_it() {
    let run = scene();
    let engine = open(&run.store, &run).expect("opened");
    let scrub = scrubbed(&engine);
    assert!(scrub.findings().is_empty());
    let living = living_bytes(&engine);
    assert_eq!(scrub.progress_bytes(), (living, living));
    assert_eq!(living, (200 + 90 + 15 + 60 + 80 + 5) * BLOCK);
}

/// A scrub in steps ends, whatever was asked for at a time.
#[test]
fn a_step_reads_little_more_than_it_was_told_to() {
    let run = scene();
    let engine = open(&run.store, &run).expect("opened");
    for step_bytes in [1, 4096, 100_000, u64::MAX] {
        let (mut scrub, mut before) = (Scrub::new(engine.clone()), 0);
        while scrub.step(step_bytes).expect("the pool is open") > 0 {
            let now = scrub.progress_bytes().0;
            assert!(now - before < step_bytes.saturating_add(256 << 10), "{now} after {before}");
            before = now;
        }
        assert_eq!(scrub.progress_bytes().0, living_bytes(&engine), "steps of {step_bytes}");
    }
}

#[test]
fn a_flipped_bit_of_a_block_is_found_and_all_who_hold_it_are_named() {
    let run = scene();
    let (mut holders, mut unseen) = (BTreeSet::new(), 0);
    for (path, length) in files(&run.store, "segments") {
        for slot in sampled(1..length / BLOCK, PLACES_MAX, 4) {
            let store = Arc::new(run.store.crash(Kept::Everything));
            store.flip_bit(&path, slot * BLOCK + 77, 5).expect("flipped");
            let Ok(engine) = open(&store, &run) else { continue };
            let scrub = scrubbed(&engine);
            let found = named(scrub.findings());
            assert_eq!(found, unreadable(&engine), "slot {slot} of {path}");
            unseen += u64::from(found.is_empty());
            if let [finding] = scrub.findings() {
                // A page of checksums speaks for many blocks.
                if finding.code == "block_checksum" {
                    let place = format!("byte {} of '{path}'", slot * BLOCK);
                    assert!(finding.text.contains(&place), "{}", finding.text);
                }
                holders.insert(finding.holders_count);
            }
        }
    }
    // One object, a snapshot with two clones and without, and the volume it was taken of too.
    assert!(holders.is_superset(&BTreeSet::from([1, 3, 4])), "{holders:?}");
    assert!(unseen > 0, "what nobody holds is no damage");
}

#[test]
fn a_segment_that_is_missing_is_found_block_by_block() {
    let run = scene();
    let mut lost = 0;
    for (path, _) in files(&run.store, "segments") {
        let store = Arc::new(run.store.crash(Kept::Everything));
        let engine = open(&store, &run).expect("opened");
        store.remove(&path).expect("removed");
        let scrub = scrubbed(&engine);
        let found = named(scrub.findings());
        assert_eq!(found, unreadable(&engine), "{path}");
        lost = lost.max(found.len());
    }
    assert!(lost > 100, "{lost}");
}

#[test]
fn a_damaged_node_is_found_and_all_who_hold_it_are_named() {
    let run = scene();
    let (mut holders, mut all_read) = (BTreeSet::new(), BTreeSet::new());
    for (path, length) in files(&run.store, "nodes") {
        for at in sampled(64..length / 64, 10 * PLACES_MAX, 5) {
            let store = Arc::new(run.store.crash(Kept::Everything));
            store.flip_bit(&path, at * 64 + 9, 2).expect("flipped");
            let Ok(engine) = open(&store, &run) else { continue };
            let scrub = scrubbed(&engine);
            let found: BTreeSet<String> =
                named(scrub.findings()).into_iter().map(|(name, _)| name).collect();
            let wanted: BTreeSet<String> =
                unreadable(&engine).into_iter().map(|(name, _)| name).collect();
            assert_eq!(found, wanted, "{path} at {at}");
            for finding in scrub.findings() {
                assert_eq!(finding.code, "node_damaged");
                assert!(finding.text.contains(&path), "{}", finding.text);
                holders.insert(finding.holders_count);
            }
            // What is below it is read where another node leads there.
            if !found.is_empty() {
                all_read.insert(scrub.progress_bytes().0 == living_bytes(&engine));
            }
        }
    }
    assert!(holders.len() > 1, "{holders:?}");
    assert_eq!(all_read.len(), 2, "{all_read:?}");
}

/// Clients write, take, delete and revert while a scrub is under way, and what they let go of is
/// given back behind its back.
#[test]
fn what_moves_on_under_a_scrub_is_no_damage() {
    let mut rounds = 0;
    for seed in 0..SCRIPTS {
        let mut run = Run::new(seed);
        run.play(STEPS).expect("nothing fails");
        let mut random = Random(seed + 900);
        let mut scrub = Scrub::new(run.engine().clone());
        for _ in 0..STEPS {
            let step = run.script.next(&run.history.now.clone());
            if matches!(step, Step::Close | Step::Kill) {
                continue;
            }
            run.steps(&[step]);
            if random.below(3) == 0 {
                run.steps(&[Step::Reclaim { all: true }]);
            }
            if scrub.step(1 << random.below(17)).expect("the pool is open") == 0 {
                rounds += 1;
                assert!(scrub.findings().is_empty(), "seed {seed}: {:?}", scrub.findings());
                scrub = Scrub::new(run.engine().clone());
            }
        }
        while scrub.step(STEP_BYTES).expect("the pool is open") > 0 {}
        assert!(scrub.findings().is_empty(), "seed {seed}: {:?}", scrub.findings());
        run.engine().close().expect("closed");
    }
    assert!(rounds > SCRIPTS / 4, "{rounds}");
}

/// Without writes nothing new is stored: what is there at the end was there at the beginning, and
/// all of it was read, whoever handed it on to whom meanwhile.
#[test]
fn what_is_handed_on_under_a_scrub_is_read() {
    for seed in 0..SCRIPTS {
        let mut run = Run::new(seed);
        run.play(STEPS).expect("nothing fails");
        let most = living_bytes(run.engine());
        let mut random = Random(seed + 1900);
        let mut scrub = Scrub::new(run.engine().clone());
        loop {
            let step = run.script.next(&run.history.now.clone());
            let hands_on = matches!(
                step,
                Step::Snapshot { .. }
                    | Step::Clone { .. }
                    | Step::Revert { .. }
                    | Step::Delete { .. }
                    | Step::Freeze { .. }
                    | Step::Checkpoint
            );
            if hands_on {
                run.steps(&[step]);
            }
            if scrub.step(1 << random.below(18)).expect("the pool is open") == 0 {
                break;
            }
        }
        run.steps(&[Step::Reclaim { all: true }]);
        let (read_bytes, living) = (scrub.progress_bytes().0, living_bytes(run.engine()));
        assert!(scrub.findings().is_empty(), "seed {seed}: {:?}", scrub.findings());
        assert!(living <= read_bytes, "seed {seed}: {read_bytes} of {living} were read");
        assert!(read_bytes <= most, "seed {seed}: {read_bytes} were read, {most} there");
        run.engine().close().expect("closed");
    }
}

/// Step until the first block was read.
fn begun(engine: &Arc<Engine>) -> Scrub {
    let mut scrub = Scrub::new(engine.clone());
    while scrub.progress_bytes().0 == 0 {
        assert!(scrub.step(1).expect("the pool is open") > 0);
    }
    scrub
}

/// What a volume was reverted to lies before the block that the scrub has come to, and the snapshot
/// that had it is gone.
#[test]
fn what_a_volume_is_reverted_to_under_a_scrub_is_read() {
    let mut run = Run::quiet(5);
    run.steps(&[create("a", 4096), write("a", 0, 100, 10_000), snapshot_of("a", "s")]);
    run.steps(&[write("a", 0, 100, 20_000), write("a", 600, 100, 30_000), Step::Checkpoint]);
    let mut scrub = begun(run.engine());
    let (name, snapshot) = ("a".into(), "s".into());
    run.steps(&[Step::Revert { name, snapshot, keep: None, take_size: true }, delete("s")]);
    while scrub.step(STEP_BYTES).expect("the pool is open") > 0 {}
    assert_eq!(scrub.progress_bytes().0, 200 * BLOCK, "what was begun, and what is there now");
}

/// The same where the scrub is through with the volume, and was not at the snapshot yet.
#[test]
fn what_a_volume_is_reverted_to_behind_a_scrub_is_read() {
    let mut run = Run::quiet(7);
    run.steps(&[create("a", 512), create("b", 512), write("b", 0, 100, 10_000)]);
    run.steps(&[write("a", 0, 100, 20_000), snapshot_of("a", "s"), write("a", 0, 100, 30_000)]);
    let mut scrub = Scrub::new(run.engine().clone());
    while scrub.progress_bytes().0 <= 100 * BLOCK {
        assert!(scrub.step(1).expect("the pool is open") > 0);
    }
    let (name, snapshot) = ("a".into(), "s".into());
    run.steps(&[Step::Revert { name, snapshot, keep: None, take_size: true }, delete("s")]);
    while scrub.step(STEP_BYTES).expect("the pool is open") > 0 {}
    assert_eq!(scrub.progress_bytes().0, 300 * BLOCK, "both, and what 'a' has now");
}

/// The volume in whose map a damaged block was looked up overwrites it before it is read: its clone
/// has it still, in the very same leaf.
#[test]
fn damage_that_one_holder_overwrites_is_found_at_the_other() {
    let mut run = Run::quiet(6);
    run.steps(&[create("a", 512), write("a", 0, 100, 10_000)]);
    let names = vec!["c".into()];
    run.steps(&[Step::Clone { source: "a".into(), names, sectors: 8 * 512 }, Step::Close]);
    let store = run.store.clone();
    let mut block = vec![0; 4096];
    run.engine().device("a").expect("there").read(99 * BLOCK, &mut block).expect("read");
    let (path, at) = files(&store, "segments")
        .into_iter()
        .find_map(|(path, length)| {
            let file = store.open(&path, false).expect("there");
            let mut found = vec![0; 4096];
            let holds = |slot: &u64| {
                file.read_at(&mut found, slot * BLOCK).expect("read");
                found == block
            };
            (0..length / BLOCK).find(holds).map(|slot| (path, slot * BLOCK))
        })
        .expect("it is stored");
    store.flip_bit(&path, at, 0).expect("flipped");
    let mut scrub = begun(run.engine());
    run.engine().device("a").expect("there").write(99 * BLOCK, &[7; 4096], true).expect("written");
    while scrub.step(STEP_BYTES).expect("the pool is open") > 0 {}
    assert_eq!(named(scrub.findings()), BTreeSet::from([("c".into(), 99)]));
}

#[test]
fn a_scrub_of_a_pool_that_is_closed_meanwhile_is_an_ordinary_error() {
    let run = scene();
    let engine = open(&run.store, &run).expect("opened");
    let mut scrub = Scrub::new(engine.clone());
    assert!(scrub.step(STEP_BYTES).expect("the pool is open") > 0);
    engine.close().expect("closed");
    assert_eq!(scrub.step(STEP_BYTES).expect_err("closed").code, "pool_closed");
}
