//! Lineage against counting all references: random families, background work that runs late and in
//! pieces.
//!
//! No block that somebody holds is ever dead (safe); when the queue is empty every block that
//! nobody holds is (exact); a dry run says exactly what a delete frees; the tree keeps no more than
//! it needs.

use ramet_engine::lineage::{Lineage, PlaceId, Shed};
use ramet_engine::map::{LetGo, Map, Missing, Node};
use ramet_log::{Locator, Position};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

const FAMILIES: u64 = 1500;
const INDEXES: u64 = 6;
const STEPS: usize = 400;
const OBJECTS_MAX: usize = 14;
/// Far enough apart that some blocks share a leaf and some do not.
const STRIDE: u64 = 300;

/// A small generator, so that a seed says everything.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("below the limit")
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

struct Object {
    place: PlaceId,
    map: Map,
    snapshot: bool,
    /// The place and position of its parent, as a volume's head knows it.
    parent: (PlaceId, Position),
    /// Its own instant.
    position: Position,
}

#[derive(Default)]
struct World {
    lineage: Lineage,
    objects: BTreeMap<u64, Object>,
    position: u64,
    names: u64,
    living: HashSet<PlaceId>,
    born: HashSet<Locator>,
    dead: HashSet<Locator>,
}

/// What a change let go of.
#[derive(Default)]
struct Dropped {
    runs: Vec<(u64, u64, Locator)>,
    pieces: Vec<(u64, Arc<Node>)>,
}

impl LetGo for Dropped {
    fn run(&mut self, first: u64, count: u64, locator: Locator) {
        self.runs.push((first, count, locator));
    }

    fn subtree(&mut self, first: u64, node: Arc<Node>) {
        self.pieces.push((first, node));
    }
}

impl World {
    /// Positions of slots that are never neighbors, so that each block is a run of its own.
    fn next_position(&mut self) -> Position {
        self.position += 2;
        Position((1 << 28) + self.position)
    }

    fn next_name(&mut self) -> u64 {
        self.names += 1;
        self.names
    }

    fn create(&mut self) {
        let name = self.next_name();
        self.lineage.born(name, 0);
        self.living.insert(name);
        let object = Object {
            place: name,
            map: Map::default(),
            snapshot: false,
            parent: (0, Position::ZERO),
            position: Position::ZERO,
        };
        self.objects.insert(name, object);
    }

    fn let_go(&mut self, name: u64, dropped: Dropped, position: Position) {
        let Object { place, parent, .. } = self.objects[&name];
        for (first, count, locator) in dropped.runs {
            if parent.0 == 0 || locator.position() >= parent.1 {
                self.dead.extend((0..count).map(|index| locator.offset(index)));
            } else if !self.living.contains(&parent.0) {
                let shed = Shed { place, parent: parent.0, first, count, locator };
                if let Some((locator, count)) = self.lineage.shed(&shed).expect("in memory") {
                    self.dead.extend((0..count).map(|index| locator.offset(index)));
                }
            }
        }
        if !dropped.pieces.is_empty() {
            self.lineage.detached(place, parent.0, position, dropped.pieces);
        }
    }

    fn write(&mut self, name: u64, index: u64) {
        let position = self.next_position();
        let locator = position.locator();
        self.born.insert(locator);
        let mut dropped = Dropped::default();
        let object = self.objects.get_mut(&name).expect("named by the test");
        object
            .map
            .write(index * STRIDE, 1, locator, position, &mut |first, count, old| {
                dropped.run(first, count, old)
            })
            .expect("in memory");
        self.let_go(name, dropped, position);
    }

    fn trim(&mut self, name: u64, index: u64, wide: bool) {
        let position = self.next_position();
        let mut dropped = Dropped::default();
        let object = self.objects.get_mut(&name).expect("named by the test");
        let count = if wide { 3 * STRIDE } else { 1 };
        object.map.remove(index * STRIDE, count, position, &mut dropped).expect("in memory");
        self.let_go(name, dropped, position);
    }

    fn snapshot(&mut self, name: u64) {
        let (position, id) = (self.next_position(), self.next_name());
        let volume = self.objects.get_mut(&name).expect("named by the test");
        self.lineage.instant(volume.place, id, position, true);
        self.living.insert(id);
        volume.parent = (id, position);
        let map = volume.map.clone();
        self.objects.insert(
            id,
            Object { place: id, map, snapshot: true, parent: (0, Position::ZERO), position },
        );
    }

    fn clone_object(&mut self, name: u64) {
        let id = self.next_name();
        if !self.objects[&name].snapshot {
            let (position, instant) = (self.next_position(), self.next_name());
            let volume = self.objects.get_mut(&name).expect("named by the test");
            self.lineage.instant(volume.place, instant, position, false);
            volume.parent = (instant, position);
        }
        let source = &self.objects[&name];
        let parent = if source.snapshot { (source.place, source.position) } else { source.parent };
        let map = source.map.clone();
        self.lineage.born(id, parent.0);
        self.living.insert(id);
        self.objects.insert(
            id,
            Object { place: id, map, snapshot: false, parent, position: Position::ZERO },
        );
    }

    fn revert(&mut self, name: u64, target: u64) {
        let (position, id) = (self.next_position(), self.next_name());
        let (map, parent) = (
            self.objects[&target].map.clone(),
            (self.objects[&target].place, self.objects[&target].position),
        );
        let volume = self.objects.get_mut(&name).expect("named by the test");
        let old = std::mem::replace(&mut volume.map, map);
        self.lineage.reverted(volume.place, id, parent.0, position, old);
        self.living.remove(&volume.place);
        self.living.insert(id);
        (volume.place, volume.parent) = (id, parent);
    }

    fn freeze(&mut self, name: u64) {
        let position = self.next_position();
        let volume = self.objects.get_mut(&name).expect("named by the test");
        self.lineage.frozen(volume.place, position);
        (volume.snapshot, volume.position) = (true, position);
    }

    fn delete(&mut self, name: u64) {
        let position = self.next_position();
        let object = self.objects.remove(&name).expect("named by the test");
        self.living.remove(&object.place);
        self.lineage.ended(object.place, position, object.map);
    }

    fn maps(&self) -> HashMap<PlaceId, Map> {
        self.objects.values().map(|object| (object.place, object.map.clone())).collect()
    }

    fn step(&mut self, budget: u64) -> bool {
        let maps = self.maps();
        let dead = &mut self.dead;
        let cost = self
            .lineage
            .step(&|place| maps.get(&place).cloned(), budget, &mut |_, count, locator| {
                dead.extend((0..count).map(|index| locator.offset(index)));
            })
            .expect("in memory");
        cost > 0
    }

    fn held(&self, without: &HashSet<u64>) -> HashSet<Locator> {
        let living = self.objects.iter().filter(|(name, _)| !without.contains(name));
        living.flat_map(|(_, object)| blocks(&object.map)).collect()
    }

    fn check_dry_run(&self, names: &HashSet<u64>, seed: u64) {
        let maps = self.maps();
        let set: HashSet<PlaceId> = names.iter().map(|name| self.objects[name].place).collect();
        let mut freed = HashSet::new();
        let mut load = |_: &Missing| -> Result<(), String> { Err("all is in memory".into()) };
        let living = |place| maps.get(&place).cloned();
        let mut tell = |_, count, locator: Locator| {
            freed.extend((0..count).map(|index| locator.offset(index)));
        };
        self.lineage.frees(&set, &living, &mut load, &mut tell).expect("in memory");
        let all = self.held(&HashSet::new());
        let kept = self.held(names);
        assert_eq!(
            freed,
            all.difference(&kept).copied().collect::<HashSet<_>>(),
            "dry run; rerun with seed {seed}"
        );
    }
}

fn blocks(map: &Map) -> Vec<Locator> {
    (0..INDEXES + 3).filter_map(|index| map.get(index * STRIDE).expect("in memory")).collect()
}

fn play(seed: u64) {
    let mut random = Random(seed);
    let mut world = World::default();
    let lazy = [5, 30, 90][random.below(3)];
    for _ in 0..STEPS {
        turn(&mut world, &mut random, seed);
        while random.chance(lazy) && world.step(1) {}
        let held = world.held(&HashSet::new());
        assert!(world.dead.is_disjoint(&held), "a held block is dead; rerun with seed {seed}");
    }
    while world.step(2) {}
    let held = world.held(&HashSet::new());
    let left: HashSet<Locator> = world.born.difference(&world.dead).copied().collect();
    assert_eq!(left, held, "blocks leaked; rerun with seed {seed}");
    let (places, dying) = world.lineage.counts();
    assert_eq!(dying, 0);
    assert!(
        places <= 2 * world.objects.len(),
        "the tree keeps {places} places for {} objects; rerun with seed {seed}",
        world.objects.len()
    );
}

fn turn(world: &mut World, random: &mut Random, seed: u64) {
    let named = |snapshot: bool| -> Vec<u64> {
        world
            .objects
            .iter()
            .filter(|(_, object)| object.snapshot == snapshot)
            .map(|(name, _)| *name)
            .collect()
    };
    let (volumes, snapshots) = (named(false), named(true));
    if volumes.is_empty() {
        return world.create();
    }
    let all: Vec<u64> = volumes.iter().chain(&snapshots).copied().collect();
    let volume = volumes[random.below(volumes.len())];
    let any = all[random.below(all.len())];
    let index = random.next() % INDEXES;
    let delete = if world.objects.len() < OBJECTS_MAX { 9 } else { 30 };
    match random.below(55 + delete) {
        0 => world.create(),
        1..=30 => world.write(volume, index),
        31..=33 => world.trim(volume, index, false),
        34..=36 => world.trim(volume, index, true),
        37..=42 => world.snapshot(volume),
        43..=50 => world.clone_object(any),
        51..=52 if !snapshots.is_empty() => {
            world.revert(volume, snapshots[random.below(snapshots.len())])
        }
        53 => world.freeze(volume),
        54 => {
            let some = (0..=random.below(4)).map(|_| all[random.below(all.len())]).collect();
            world.check_dry_run(&some, seed);
        }
        _ => world.delete(any),
    }
}

#[test]
fn no_held_block_is_dead_and_no_other_is_left() {
    // RAMET_SEED asks for others.
    let first = std::env::var("RAMET_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in first..first + FAMILIES {
        play(seed);
    }
}
