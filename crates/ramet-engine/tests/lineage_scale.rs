//! Lineage with ten thousand places: commands and steps cost what they touch, not what there is.

use ramet_engine::lineage::{Lineage, PlaceId, Shed};
use ramet_engine::map::{LetGo, Map, Missing, Node, diff};
use ramet_log::{Locator, Position, SegmentId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

const PLACES: u64 = 10_000;
const BLOCKS: u64 = 100_000;

fn at(number: u64) -> Position {
    SegmentId::new(2, u32::try_from(number / 60_000).expect("few"))
        .slot(u32::try_from(number % 60_000).expect("few"))
        .position()
}

fn write(map: &mut Map, first: u64, locator: Locator) -> Vec<(u64, u64, Locator)> {
    let mut old = Vec::new();
    map.write(first, 1, locator, locator.position(), &mut |first, count, locator| {
        old.push((first, count, locator));
    })
    .expect("in memory");
    old
}

fn golden() -> Map {
    let mut map = Map::default();
    let mut locator = SegmentId::new(1, 0).slot(1);
    for first in (0..BLOCKS).step_by(250) {
        if locator.slot() > 60_000 {
            locator = SegmentId::new(1, locator.segment().counter() + 1).slot(1);
        }
        map.write(first, 250, locator, locator.offset(249).position(), &mut |_, _, _| {})
            .expect("in memory");
        locator = locator.offset(251);
    }
    map
}

/// Step until nothing is dying. Result: nodes visited, blocks told dead.
fn finish(lineage: &mut Lineage, maps: &HashMap<PlaceId, Map>) -> (u64, u64) {
    let (before, mut dead) = (lineage.nodes_visited, 0);
    while lineage.counts().1 > 0 {
        lineage
            .step(&|place| maps.get(&place).cloned(), 4096, &mut |_, count, _| dead += count)
            .expect("in memory");
    }
    (lineage.nodes_visited - before, dead)
}

/// A golden snapshot with 10,000 clones, each with ten blocks of its own.
fn fleet() -> (Lineage, HashMap<PlaceId, Map>) {
    let (mut lineage, mut maps) = (Lineage::default(), HashMap::new());
    let golden = golden();
    lineage.born(1, 0);
    lineage.frozen(1, at(0));
    maps.insert(1, golden.clone());
    for clone in 0..PLACES {
        lineage.born(clone + 2, 1);
        let mut map = golden.clone();
        for number in 0..10 {
            write(
                &mut map,
                (clone * 7919 + number * 9973) % BLOCKS,
                at(1 + clone * 10 + number).locator(),
            );
        }
        maps.insert(clone + 2, map);
    }
    (lineage, maps)
}

#[test]
fn one_delete_among_10_000_clones_visits_at_most_twice_what_differs() {
    let (mut lineage, mut maps) = fleet();
    lineage.ended(17, at(500_000), maps.remove(&17).expect("it lives"));
    let (visited, dead) = finish(&mut lineage, &maps);
    assert_eq!(dead, 10);
    // Root, inner nodes, ten leaves.
    assert!(visited <= 2 * 16, "{visited} nodes");
}

#[test]
fn clones_of_a_deleted_golden_image_die_and_shed_without_asking_all_of_each_other() {
    let (mut lineage, mut maps) = fleet();
    lineage.ended(1, at(500_000), maps.remove(&1).expect("it lives"));
    let (visited, dead) = finish(&mut lineage, &maps);
    assert_eq!(dead, 0);
    assert!(visited < 100, "{visited} nodes for what all share");
    // What a clone wrote itself nobody is asked about; what it shares the neighbor that says yes
    // has.
    lineage.ended(17, at(500_001), maps.remove(&17).expect("it lives"));
    let (visited, dead) = finish(&mut lineage, &maps);
    assert_eq!(dead, 10);
    assert!(visited < 100, "{visited} nodes for a clone of what is gone");
    // Every clone lets go of a block: each is asked about at the others, and held.
    let mut visited_all = 0;
    for clone in (20..PLACES).step_by(10) {
        let map = maps.get_mut(&clone).expect("it lives");
        for (first, count, locator) in write(map, 55_555, at(400_000 + clone).locator()) {
            if locator.position() < at(0) {
                let shed = Shed { place: clone, parent: 1, first, count, locator };
                lineage.shed(&shed).expect("in memory");
            }
        }
        let (visited, dead) = finish(&mut lineage, &maps);
        assert_eq!(dead, 0);
        visited_all += visited;
    }
    assert!(visited_all < 10 * PLACES, "{visited_all} nodes");
    // All go: every block is told once.
    let all: HashSet<PlaceId> = maps.keys().copied().collect();
    // So few overwrote any block of the image that every one is held still.
    let (image, mut mapped) = (golden(), BLOCKS);
    for map in maps.values() {
        diff(&image, map, 0, BLOCKS, &mut |extent| mapped += extent.count).expect("in memory");
    }
    let mut freed = 0;
    let mut load = |_: &Missing| -> Result<(), String> { Err("all is in memory".into()) };
    let living = |place| maps.get(&place).cloned();
    lineage.frees(&all, &living, &mut load, &mut |_, count, _| freed += count).expect("in memory");
    assert_eq!(freed, mapped, "the dry run tells each block once");
    for (place, map) in std::mem::take(&mut maps) {
        lineage.ended(place, at(550_000), map);
    }
    let (_, dead) = finish(&mut lineage, &maps);
    assert_eq!(dead, freed);
    assert_eq!(lineage.counts(), (0, 0));
}

#[test]
fn of_10_000_snapshots_deleted_together_each_is_compared_with_the_next() {
    let (mut lineage, mut maps) = (Lineage::default(), HashMap::new());
    let mut map = golden();
    lineage.born(1, 0);
    for number in 0..PLACES {
        write(&mut map, (number * 7919) % BLOCKS, at(2 * number).locator());
        lineage.instant(1, number + 2, at(2 * number + 1), true);
        maps.insert(number + 2, map.clone());
    }
    maps.insert(1, map);
    assert_eq!(lineage.living_ancestor(1), Some(PLACES + 1));
    for number in 0..PLACES {
        lineage.ended(number + 2, at(100_000), maps.remove(&(number + 2)).expect("it lives"));
    }
    let (visited, dead) = finish(&mut lineage, &maps);
    assert_eq!(
        dead,
        PLACES - 1,
        "each overwrote a block of the one before, the first after the snapshot"
    );
    assert!(visited <= 8 * PLACES, "{visited} nodes");
    assert_eq!(lineage.counts(), (1, 0));
}

#[test]
fn families_take_turns() {
    let mut lineage = Lineage::default();
    let maps: HashMap<PlaceId, Map> = HashMap::new();
    for (place, base) in [(1, 0), (2, 10)] {
        lineage.born(place, 0);
        let mut map = Map::default();
        for number in 0..4 {
            write(&mut map, base + 4096 * number, at(base + number).locator());
        }
        lineage.ended(place, at(100), map);
    }
    let mut told = Vec::new();
    while lineage.counts().1 > 0 {
        lineage
            .step(&|place: PlaceId| maps.get(&place).cloned(), 1, &mut |_, _, locator| {
                told.push(locator.slot() >= 10)
            })
            .expect("in memory");
    }
    assert_eq!(told, [false, true, false, true, false, true, false, true]);
}

#[test]
fn nothing_is_answered_while_a_command_is_under_way() {
    let mut lineage = Lineage::default();
    lineage.born(1, 0);
    let mut map = Map::default();
    write(&mut map, 0, at(1).locator());
    lineage.ended(1, at(2), map);
    lineage.reserve([7].into_iter());
    let step = lineage
        .step(&|_| None, 10, &mut |_, _, _| panic!("answered too early"))
        .expect("in memory");
    assert_eq!(step, 0);
    lineage.unreserve([7].into_iter());
    assert_eq!(finish(&mut lineage, &HashMap::new()).1, 1);
}

#[derive(Default)]
struct Pieces(Vec<(u64, Arc<Node>)>);

impl LetGo for Pieces {
    fn run(&mut self, first: u64, _: u64, _: Locator) {
        panic!("block {first} is let go of alone");
    }

    fn subtree(&mut self, first: u64, node: Arc<Node>) {
        self.0.push((first, node));
    }
}

/// Two trims with no write between them are at one position, and were put into one tree: the second
/// had detached the node above what the first had taken out of it, and there was no room for it.
#[test]
fn a_trim_of_what_is_left_around_an_earlier_trim_is_answered_too() {
    let (mut lineage, mut map) = (Lineage::default(), Map::default());
    lineage.born(1, 0);
    for leaf in 0..40 {
        write(&mut map, leaf * 512, at(1 + leaf).locator());
    }
    write(&mut map, 1 << 20, at(100).locator());
    let mut pieces = Pieces::default();
    map.remove(512, 512, at(101), &mut pieces).expect("in memory");
    map.remove(0, 64 * 512, at(101), &mut pieces).expect("in memory");
    assert_eq!(pieces.0.len(), 2);
    lineage.detached(1, 0, at(101), pieces.0);
    let maps = HashMap::from([(1, map)]);
    assert_eq!(finish(&mut lineage, &maps).1, 40);
}
