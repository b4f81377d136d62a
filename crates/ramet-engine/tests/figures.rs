//! Figures about objects against a plain model: what is its own, who shares most, how scattered.

mod crash;

use crash::model::{BLOCK_BYTES, HIDDEN, Pool, TRASHED, Thing};
use crash::run::Run;
use crash::script::{Step, create, snapshot_of, write};
use ramet_engine::{ObjectSpace, Scatter, Sharer};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SCRIPTS: u64 = 30;
const STEPS: usize = 80;

/// Blocks that two objects of the model have in common.
fn common(one: &Thing, other: &Thing) -> u64 {
    let same = |(index, block): &(&u64, &crash::model::Block)| {
        other.blocks.get(index).is_some_and(|found| found.version == block.version)
    };
    one.blocks.iter().filter(same).count() as u64
}

/// Objects but for those that are still being received: those hold blocks, and have no name.
fn shown(pool: &Pool) -> impl Iterator<Item = (&String, &Arc<Thing>)> {
    pool.things.iter().filter(|(name, _)| ![HIDDEN, TRASHED].iter().any(|it| name.starts_with(it)))
}

/// Blocks that nobody else has.
fn own(pool: &Pool, name: &str) -> u64 {
    let mut holders: HashMap<(u64, u64), u64> = HashMap::new();
    for thing in pool.things.values() {
        for (index, block) in &thing.blocks {
            *holders.entry((*index, block.version)).or_default() += 1;
        }
    }
    let blocks = pool.thing(name).blocks.iter();
    blocks.filter(|(index, block)| holders[&(**index, block.version)] == 1).count() as u64
}

/// Figures of a list, by name.
fn listed(run: &Run, now: Instant) -> BTreeMap<String, ObjectSpace> {
    let engine = run.engine();
    let names: HashMap<_, _> =
        engine.list().into_iter().map(|object| (object.uuid, object.name)).collect();
    let told = engine.list_space(now).expect("told").into_iter();
    told.map(|(uuid, space)| (names[&uuid].clone(), space)).collect()
}

#[test]
fn a_list_says_of_each_what_is_its_own() {
    let mut shared = 0;
    for seed in 0..SCRIPTS {
        let mut run = Run::new(2000 + seed);
        run.play(STEPS).expect("nothing fails");
        run.resync().expect("looked at");
        let pool = run.history.now.clone();
        let sequence = run.engine().stats().expect("figures").appended_sequence;
        let told = listed(&run, Instant::now());
        assert_eq!(told.len(), shown(&pool).count());
        for (name, space) in told {
            let mapped_bytes = pool.thing(&name).blocks.len() as u64 * BLOCK_BYTES;
            let exclusive_bytes = own(&pool, &name) * BLOCK_BYTES;
            let wanted = ObjectSpace { mapped_bytes, exclusive_bytes, sequence };
            assert_eq!(space, wanted, "seed {seed}, {name}");
            shared += mapped_bytes - exclusive_bytes;
        }
        run.kill();
    }
    assert!(shared > 0);
}

/// Blocks of a segment that is full, and waits in memory for its footer, were counted neither as
/// blocks of the segment that is appended to nor as those of one that has ended.
#[test]
fn what_lives_is_counted_while_a_full_segment_waits_to_be_sealed() {
    let mut run = Run::quiet(6);
    run.steps(&[create("a", 4096), write("a", 0, 200, 1000), Step::Flush]);
    let living = |run: &Run| run.engine().stats().expect("figures").living_bytes;
    for round in 1..=10 {
        run.steps(&[write("a", 200 * round, 20, 10_000 * round)]);
        assert_eq!(living(&run), (200 + 20 * round) * BLOCK_BYTES, "after {round}");
    }
    let stats = run.engine().stats().expect("figures");
    assert_eq!((stats.segments_count, stats.sealed_count), (2, 0), "it waits no more");
}

#[test]
fn a_list_may_be_a_minute_old_and_not_older() {
    let mut run = Run::quiet(1);
    run.steps(&[create("a", 512), write("a", 0, 10, 1000)]);
    let (began, minute) = (Instant::now(), Duration::from_secs(60));
    let first = listed(&run, began);
    assert_eq!(first["a"].exclusive_bytes, 10 * BLOCK_BYTES);
    run.steps(&[create("b", 512), snapshot_of("a", "s")]);
    let soon = listed(&run, began + minute - Duration::from_millis(1));
    assert_eq!(soon["a"], first["a"], "it is not a minute old");
    assert_eq!(soon["s"].exclusive_bytes, 0, "what is new has a figure");
    assert!(soon.contains_key("b"));
    let late = listed(&run, began + minute);
    assert_eq!(late["a"].exclusive_bytes, 0);
    assert!(late["a"].sequence > first["a"].sequence);
    run.steps(&[crash::script::delete("a")]);
    assert!(!listed(&run, began + minute).contains_key("a"));
}

#[test]
fn who_shares_most_is_named_first() {
    let mut named = 0;
    for seed in 0..SCRIPTS {
        let mut run = Run::new(3000 + seed);
        run.play(STEPS).expect("nothing fails");
        run.resync().expect("looked at");
        let pool = run.history.now.clone();
        for (name, thing) in shown(&pool) {
            let mut wanted: Vec<Sharer> = shown(&pool)
                .filter(|(other, _)| *other != name)
                .map(|(other, it)| (other.clone(), common(thing, it) * BLOCK_BYTES))
                .filter(|(_, shared_bytes)| *shared_bytes > 0)
                .map(|(name, shared_bytes)| Sharer { name, shared_bytes })
                .collect();
            wanted.sort_by(|a, b| {
                b.shared_bytes.cmp(&a.shared_bytes).then_with(|| a.name.cmp(&b.name))
            });
            wanted.truncate(3);
            let (found, compared) = run.engine().sharers(name, 3).expect("told");
            assert_eq!(found, wanted, "seed {seed}, {name}");
            assert!(compared < pool.things.len() as u64);
            named += found.len();
        }
        run.kill();
    }
    assert!(named > 0);
}

#[test]
fn a_volume_is_as_scattered_as_its_blocks_lie() {
    let mut run = Run::quiet(2);
    run.steps(&[create("a", 4096)]);
    let scatter = |run: &Run| run.engine().scatter("a").expect("told");
    assert_eq!(scatter(&run), Scatter { fragments_count: 0, looked_at_bytes: 0 });
    // Across leaves, in one segment: one fragment, in as many parts as it has batches.
    run.steps(&[write("a", 500, 100, 1000)]);
    assert_eq!(scatter(&run), Scatter { fragments_count: 1, looked_at_bytes: 100 * BLOCK_BYTES });
    run.steps(&[write("a", 520, 1, 50_000), write("a", 530, 2, 60_000)]);
    assert_eq!(scatter(&run), Scatter { fragments_count: 5, looked_at_bytes: 100 * BLOCK_BYTES });
    // A hole between is an end too.
    run.steps(&[write("a", 3000, 7, 70_000)]);
    assert_eq!(scatter(&run), Scatter { fragments_count: 6, looked_at_bytes: 107 * BLOCK_BYTES });
    assert_eq!(run.engine().scatter("absent").expect_err("no such").code, "object_not_found");
}

#[test]
fn all_volumes_together_are_as_scattered_as_each_of_them() {
    let mut run = Run::quiet(3);
    let (began, minute) = (Instant::now(), Duration::from_secs(60));
    let all = |run: &Run, now| run.engine().pool_scatter(now);
    assert_eq!(all(&run, began), Scatter::default());
    run.steps(&[create("a", 4096), write("a", 500, 100, 1000), snapshot_of("a", "s")]);
    run.steps(&[write("a", 520, 1, 50_000), create("b", 4096), write("b", 0, 7, 60_000)]);
    assert_eq!(all(&run, began + minute / 2), Scatter::default(), "it is not a minute old");
    // Three of `a`, one of `b`; what the snapshot has there does not count.
    let wanted = Scatter { fragments_count: 4, looked_at_bytes: 107 * BLOCK_BYTES };
    assert_eq!(all(&run, began + minute), wanted);
    // Maps that are not in memory are not read for it.
    run.steps(&[Step::Close]);
    let loaded = run.engine().stats().expect("figures").nodes_loaded_count;
    let found = all(&run, began + minute);
    assert!(found.looked_at_bytes <= wanted.looked_at_bytes, "{found:?}");
    assert_eq!(run.engine().stats().expect("figures").nodes_loaded_count, loaded);
}

/// A volume of 64 TiB is looked at in places.
#[test]
fn a_large_volume_is_looked_at_in_places() {
    let mut run = Run::quiet(4);
    let sectors = 64 << 31;
    run.steps(&[Step::Create { name: "a".into(), sectors }, write("a", 0, 20, 1000)]);
    let found = run.engine().scatter("a").expect("told");
    assert_eq!(found, Scatter { fragments_count: 1, looked_at_bytes: 20 * BLOCK_BYTES });
}
