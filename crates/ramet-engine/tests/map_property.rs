//! Maps against plain ordered arrays: whatever is written, removed, cut, cloned and grafted is what
//! every look at them tells.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use ramet_engine::map::{Extent, LetGo, Listed, Map, Node, diff, walk_unheld};
use ramet_log::{Locator, Position, SegmentId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Maps that live side by side.
const MAPS: usize = 4;
/// Places where blocks are written: within a leaf, across leaves, across subtrees of every height,
/// at the very end.
const BASES: [u64; 7] =
    [0, 300, 512 * 63, 512 * 64 - 20, 512 * 64 * 64 - 300, 1 << 30, (1 << 36) - 1500];
/// Histories are drawn from this; RAMET_SEED is added to it.
const SEED: u64 = 0x72616d6574;

type Blocks = BTreeMap<u64, Locator>;

/// One step of a history. `base` and `offset` say a block; `of` and `to` are maps.
#[derive(Clone, Debug)]
enum Step {
    Write { of: usize, base: usize, offset: u64, count: u64, goes_on: bool },
    Halves { of: usize, base: usize, offset: u64, count: u64 },
    Scatter { of: usize, base: usize, stride: u64, count: u64 },
    Remove { of: usize, base: usize, offset: u64, count: u64 },
    Cut { of: usize, base: usize, offset: u64 },
    Clone { of: usize, to: usize },
    Graft { of: usize, to: usize, base: usize, offset: u64, count: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (map, base) = (0..MAPS, 0..BASES.len());
    let count = prop_oneof![4 => 1..4u64, 3 => 1..700u64];
    let spans = prop_oneof![2 => Just(512u64), 1 => Just(1 << 22), 1 => Just(1 << 40)];
    let range = prop_oneof![2 => 1..40u64, 2 => 1..1200u64, 4 => spans];
    let start = prop_oneof![3 => 0..700u64, 1 => Just(0)];
    let write = (map.clone(), base.clone(), 0..700u64, count, any::<bool>()).prop_map(
        |(of, base, offset, count, goes_on)| Step::Write { of, base, offset, count, goes_on },
    );
    let halves = (map.clone(), base.clone(), 0..700u64, 1..300u64)
        .prop_map(|(of, base, offset, count)| Step::Halves { of, base, offset, count });
    let scatter = (map.clone(), base.clone(), 1..4u64, 200..500u64)
        .prop_map(|(of, base, stride, count)| Step::Scatter { of, base, stride, count });
    let remove = (map.clone(), base.clone(), start.clone(), range.clone())
        .prop_map(|(of, base, offset, count)| Step::Remove { of, base, offset, count });
    let cut = (map.clone(), base.clone(), 0..700u64).prop_map(|(of, base, offset)| Step::Cut {
        of,
        base,
        offset,
    });
    let clone = (map.clone(), map.clone()).prop_map(|(of, to)| Step::Clone { of, to });
    let graft = (map.clone(), map, base, start, range)
        .prop_map(|(of, to, base, offset, count)| Step::Graft { of, to, base, offset, count });
    let writes = prop_oneof![12 => write, 2 => halves, 1 => scatter];
    let step = prop_oneof![15 => writes, 5 => remove, 1 => cut, 4 => clone, 2 => graft];
    prop::collection::vec(step, 1..60)
}

/// A map, and what it must be.
#[derive(Clone, Default)]
struct Pair {
    map: Map,
    blocks: Blocks,
    newest: Position,
}

struct World {
    pairs: Vec<Pair>,
    next: Locator,
    /// The block behind the last one written.
    end: u64,
}

/// Collects what was let go of.
#[derive(Default)]
struct Collected {
    blocks: Blocks,
    subtrees: Vec<(u64, Arc<Node>)>,
    runs: Vec<(u64, u64, Locator)>,
}

impl LetGo for Collected {
    fn run(&mut self, first: u64, count: u64, locator: Locator) {
        self.runs.push((first, count, locator));
        collect(&mut self.blocks, first, count, locator);
    }

    fn subtree(&mut self, first: u64, node: Arc<Node>) {
        assert!(first.is_multiple_of(node.span()), "a subtree starts where its span does");
        node.for_each_run(first, &mut |first, count, locator| {
            collect(&mut self.blocks, first, count, locator)
        })
        .expect("in memory");
        self.subtrees.push((first, node));
    }
}

fn collect(blocks: &mut Blocks, first: u64, count: u64, locator: Locator) {
    for offset in 0..count {
        let before = blocks.insert(first + offset, locator.offset(offset));
        assert_eq!(before, None, "block {} is told twice", first + offset);
    }
}

impl World {
    fn new() -> Self {
        World { pairs: vec![Pair::default(); MAPS], next: SegmentId::new(1, 0).slot(1), end: 0 }
    }

    /// `count` fresh slots; where not `goes_on` they follow on no others, and every 5th time lie in
    /// another segment.
    fn fresh(&mut self, count: u64, goes_on: bool) -> Locator {
        let gap = u64::from(!goes_on);
        if u64::from(self.next.slot()) + gap + count >= 3000 {
            let segment = self.next.segment();
            self.next = SegmentId::new(segment.epoch(), segment.counter() + 1).slot(1);
        }
        let locator = self.next.offset(gap);
        self.next = locator.offset(count);
        locator
    }

    /// Where it `goes_on` it does so where the last write ended, in blocks as in slots.
    fn write(&mut self, of: usize, first: u64, count: u64, goes_on: bool) {
        let goes_on = goes_on && self.end + count < 1 << 36;
        let locator = self.fresh(count, goes_on);
        self.write_at(of, if goes_on { self.end } else { first }, count, locator);
    }

    /// The second half first: what is shed comes in any order.
    fn write_halves(&mut self, of: usize, first: u64, count: u64) {
        let locator = self.fresh(2 * count, false);
        self.write_at(of, first + count, count, locator.offset(count));
        self.write_at(of, first, count, locator);
    }

    fn write_at(&mut self, of: usize, first: u64, count: u64, locator: Locator) {
        self.end = first + count;
        let position = locator.offset(count - 1).position();
        let pair = &mut self.pairs[of];
        let mut overwritten = Blocks::new();
        pair.map
            .write(first, count, locator, position, &mut |first, count, locator| {
                collect(&mut overwritten, first, count, locator);
            })
            .expect("in memory");
        let mut expected = Blocks::new();
        for offset in 0..count {
            let before = pair.blocks.insert(first + offset, locator.offset(offset));
            expected.extend(before.map(|before| (first + offset, before)));
        }
        assert_eq!(overwritten, expected, "overwritten");
        pair.newest = pair.newest.max(position);
        pair.check();
    }

    fn remove(&mut self, of: usize, first: u64, count: u64) -> Collected {
        let position = self.fresh(1, false).position();
        let pair = &mut self.pairs[of];
        let mut collected = Collected::default();
        pair.map.remove(first, count, position, &mut collected).expect("in memory");
        let mut removed = pair.blocks.split_off(&first);
        pair.blocks.append(&mut removed.split_off(&(first + count)));
        assert_eq!(collected.blocks, removed, "let go of");
        match (removed.is_empty(), pair.blocks.is_empty()) {
            (_, true) => pair.newest = Position::ZERO,
            (false, false) => pair.newest = position,
            (true, false) => {}
        }
        pair.check();
        collected
    }

    /// What a range of one map holds goes, as it was detached, into an emptied range of another
    /// one.
    fn graft(&mut self, of: usize, to: usize, first: u64, count: u64) {
        self.remove(to, 0, 1 << 40);
        let before = self.pairs[of].clone();
        let collected = self.remove(of, first, count);
        self.pairs[of] = before;
        let pair = &mut self.pairs[to];
        for (first, node) in collected.subtrees {
            pair.newest = pair.newest.max(node.newest());
            pair.map.graft(first, node);
        }
        for (first, count, locator) in collected.runs {
            let newest = locator.offset(count - 1).position();
            pair.newest = pair.newest.max(newest);
            pair.map
                .write(first, count, locator, newest, &mut |_, _, _| panic!("nothing was there"))
                .expect("in memory");
        }
        pair.blocks = collected.blocks;
        pair.check();
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Write { of, base, offset, count, goes_on } => {
                self.write(of, BASES[base] + offset, count, goes_on)
            }
            Step::Halves { of, base, offset, count } => {
                self.write_halves(of, BASES[base] + offset, count);
            }
            Step::Scatter { of, base, stride, count } => {
                for number in 0..count {
                    self.write(of, BASES[base] + number * stride, 1, false);
                }
            }
            Step::Remove { of, base, offset, count } => {
                drop(self.remove(of, BASES[base] + offset, count))
            }
            Step::Cut { of, base, offset } => {
                let pair = &mut self.pairs[of];
                pair.map.cut(BASES[base] + offset).expect("in memory");
                pair.blocks = pair.blocks.split_off(&(BASES[base] + offset));
                if pair.blocks.is_empty() {
                    pair.newest = Position::ZERO;
                }
                pair.check();
            }
            Step::Clone { of, to } => self.pairs[to] = self.pairs[of].clone(),
            Step::Graft { of, to, base, offset, count } => {
                self.graft(of, to, BASES[base] + offset, count)
            }
        }
    }
}

impl Pair {
    fn check(&self) {
        assert_eq!(self.map.mapped(), self.blocks.len() as u64, "mapped");
        assert_eq!(self.map.newest(), self.newest, "newest");
        assert_eq!(self.map.is_empty(), self.blocks.is_empty(), "empty");
    }

    fn check_all(&self) {
        self.check();
        self.map.check();
        let extents: Vec<Extent> =
            self.map.extents(0).map(|extent| extent.expect("in memory")).collect();
        assert_eq!(extents, maximal(&self.blocks), "extents");
        for base in BASES {
            for (first, count) in
                [(base, 1), (base + 37, 100), (base, 1400), (base.saturating_sub(600), 900)]
            {
                let expected: Vec<Extent> = covering(&self.blocks, first, count);
                // What was in the vector before is left alone.
                let mut found =
                    vec![Extent { first: first.saturating_sub(1), count: 1, locator: None }];
                self.map.lookup(first, count, &mut found).expect("in memory");
                assert_eq!(found[1..], expected, "looked up {count} from {first}");
                let empty = self.blocks.range(first..first + count).next().is_none();
                assert_eq!(
                    self.map.is_empty_between(first, count).expect("in memory"),
                    empty,
                    "empty between"
                );
                assert_eq!(
                    self.map.get(first).expect("in memory"),
                    self.blocks.get(&first).copied(),
                    "block {first}"
                );
            }
            let from: Vec<Extent> =
                self.map.extents(base).map(|extent| extent.expect("in memory")).collect();
            let later =
                self.blocks.range(base..).map(|(index, locator)| (*index, *locator)).collect();
            assert_eq!(from, maximal(&later), "extents from {base}");
        }
    }
}

fn joins(last: &Extent, next: &Extent) -> bool {
    let slots = match (last.locator, next.locator) {
        (Some(own), Some(next)) => own.segment() == next.segment() && own.0 + last.count == next.0,
        (own, next) => own == next,
    };
    slots && last.end() == next.first
}

fn merged(singles: impl Iterator<Item = (u64, Option<Locator>)>) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for (first, locator) in singles {
        let next = Extent { first, count: 1, locator };
        match extents.last_mut() {
            Some(last) if joins(last, &next) => last.count += 1,
            _ => extents.push(next),
        }
    }
    extents
}

fn maximal(blocks: &Blocks) -> Vec<Extent> {
    merged(blocks.iter().map(|(index, locator)| (*index, Some(*locator))))
}

fn covering(blocks: &Blocks, first: u64, count: u64) -> Vec<Extent> {
    merged((first..first + count).map(|index| (index, blocks.get(&index).copied())))
}

fn check_diff(before: &Pair, after: &Pair, first: u64, count: u64) {
    let mut indexes: Vec<u64> = before.blocks.keys().chain(after.blocks.keys()).copied().collect();
    indexes.retain(|index| (first..first.saturating_add(count)).contains(index));
    indexes.retain(|index| before.blocks.get(index) != after.blocks.get(index));
    indexes.sort_unstable();
    indexes.dedup();
    let expected =
        merged(indexes.into_iter().map(|index| (index, after.blocks.get(&index).copied())));
    let mut found = Vec::new();
    diff(&before.map, &after.map, first, count, &mut |extent| found.push(extent))
        .expect("in memory");
    assert_eq!(found, expected, "differs in {count} from {first}");
}

/// The walk of `pairs[0]` beside the others, in steps of `budget` nodes, cutting what is answered
/// where `cuts`.
fn check_walk(pairs: &[Pair], budget: u64, cuts: bool) {
    let (dying, neighbors) = pairs.split_first().expect("there are some");
    let mut expected = dying.blocks.clone();
    expected.retain(|index, locator| {
        neighbors.iter().all(|pair| pair.blocks.get(index) != Some(locator))
    });
    let maps: Vec<&Map> = neighbors.iter().map(|pair| &pair.map).collect();
    let (mut map, mut from, mut found) = (dying.map.clone(), 0, Blocks::new());
    loop {
        let mut dead = |first, count, locator| collect(&mut found, first, count, locator);
        let walked = walk_unheld(&map, from, budget, &mut Listed(&maps), &mut dead);
        let Some(answered) = walked.answered else {
            break;
        };
        assert!(
            answered > from || (cuts && answered > 0),
            "a walk that stands still at {answered}"
        );
        if cuts {
            map.cut(answered).expect("in memory");
            assert!(dying.blocks.range(answered..).count() as u64 == map.mapped(), "cut too much");
        } else {
            from = answered;
        }
    }
    assert_eq!(found, expected, "held by nobody");
}

fn config(cases: u32) -> ProptestConfig {
    let asked = std::env::var("RAMET_SEED").ok().and_then(|seed| seed.parse().ok());
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(SEED.wrapping_add(asked.unwrap_or(0))),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn maps_are_what_plain_arrays_are(history in steps(), budget in 1..12u64, cuts: bool) {
        let mut world = World::new();
        for step in &history {
            world.apply(step);
        }
        for (number, base) in BASES.iter().enumerate().take(MAPS) {
            world.pairs[number].check_all();
            for other in 0..MAPS {
                check_diff(&world.pairs[number], &world.pairs[other], 0, 1 << 40);
                check_diff(&world.pairs[number], &world.pairs[other], base + 100, 600);
            }
            for count in 1..=MAPS {
                check_walk(&world.pairs[..count], budget, cuts);
            }
            world.pairs.rotate_left(1);
        }
    }
}

#[test]
fn slots_that_follow_each_other_in_two_segments_are_two_extents() {
    let mut map = Map::default();
    let last = SegmentId::new(1, 0).slot(65_535);
    map.write(10, 1, last, last.position(), &mut |_, _, _| panic!("nothing was there"))
        .expect("in memory");
    let next = SegmentId::new(1, 1).slot(0);
    map.write(11, 1, next, next.position(), &mut |_, _, _| panic!("nothing was there"))
        .expect("in memory");
    map.check();
    assert_eq!(map.extents(0).count(), 2);
}

/// A map of `blocks` blocks as a sequential import in requests of 1 MiB leaves it: one slot in 257
/// is a batch's header.
fn golden(blocks: u64) -> Map {
    let (mut map, mut at) = (Map::default(), 0);
    let mut locator = SegmentId::new(1, 0).slot(2);
    while at < blocks {
        let count = 256.min(blocks - at);
        if locator.slot() + 300 > 16_384 {
            locator = SegmentId::new(1, locator.segment().counter() + 1).slot(2);
        }
        map.write(at, count, locator, locator.offset(count - 1).position(), &mut |_, _, _| {
            panic!("nothing was there")
        })
        .expect("in memory");
        locator = locator.offset(count + 1);
        at += count;
    }
    map
}

/// Numbers that look random, the same every time.
fn scrambled(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |below| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    }
}

/// A clone of `golden` with `count` blocks of `blocks` overwritten, at random.
fn overwritten(golden: &Map, blocks: u64, count: u64, seed: u64) -> Map {
    let (mut clone, mut random) = (golden.clone(), scrambled(seed));
    for number in 0..count {
        let locator = SegmentId::new(9, u32::try_from(seed % 4096).expect("masked"))
            .slot(u32::try_from(2 * number).expect("few"));
        clone
            .write(random(blocks), 1, locator, locator.position(), &mut |_, _, _| {})
            .expect("in memory");
    }
    clone
}

const GIB_BLOCKS: u64 = 1 << 18;

#[test]
fn a_thousand_random_overwrites_of_a_10_gib_clone_take_less_than_256_kib() {
    let golden = golden(10 * GIB_BLOCKS);
    let clone = overwritten(&golden, 10 * GIB_BLOCKS, 1000, 1);
    clone.check();
    let own_bytes = clone.node_bytes_beside(&golden);
    println!("golden {} bytes, clone {own_bytes} bytes of its own", golden.node_bytes());
    assert!(own_bytes <= 256 << 10, "{own_bytes} bytes");
}

#[test]
fn an_untouched_clone_takes_no_node() {
    let golden = golden(GIB_BLOCKS);
    let mut clone = golden.clone();
    clone
        .remove(GIB_BLOCKS, 1 << 30, Position(u64::MAX), &mut Collected::default())
        .expect("in memory");
    assert!(clone.is_same(&golden), "removing nothing copies nothing");
    assert_eq!(clone.node_bytes_beside(&golden), 0);
    assert!(size_of::<Map>() <= 16);
}

#[test]
fn trimming_a_whole_volume_hands_over_its_subtrees_and_visits_no_leaf() {
    let golden = golden(10 * GIB_BLOCKS);
    let mut clone = golden.clone();
    let mut collected = Collected::default();
    clone.remove(0, 10 * GIB_BLOCKS, Position(u64::MAX), &mut collected).expect("in memory");
    assert!(clone.is_empty());
    assert!(collected.runs.is_empty());
    // 10 GiB are 2.5 subtrees of height 2 below the root: two whole, and the third's 32 children.
    assert!(collected.subtrees.len() <= 34, "{} pieces", collected.subtrees.len());
    assert_eq!(collected.blocks.len() as u64, golden.mapped());
}

#[test]
fn a_diff_visits_what_differs() {
    let golden = golden(1000 * GIB_BLOCKS / 10);
    let clone = overwritten(&golden, 100 * GIB_BLOCKS, 1, 3);
    let mut extents = 0;
    let visited = diff(&golden, &clone, 0, 1 << 36, &mut |_| extents += 1).expect("in memory");
    assert_eq!(extents, 1);
    assert!(visited <= 5, "{visited} nodes for one block");
}

#[test]
fn a_walk_visits_at_most_twice_the_nodes_that_differ_among_10_000_neighbors() {
    let golden = golden(10 * GIB_BLOCKS);
    let clones: Vec<Map> =
        (0..10_000).map(|seed| overwritten(&golden, 10 * GIB_BLOCKS, 1, seed)).collect();
    let dying = overwritten(&golden, 10 * GIB_BLOCKS, 100, 77_777);
    let differ = {
        let mut leaves: Vec<u64> = Vec::new();
        let nodes =
            diff(&golden, &dying, 0, 1 << 36, &mut |extent| leaves.push(extent.first / 512))
                .expect("in memory");
        assert!(nodes >= 90, "{nodes}");
        nodes
    };
    let mut dead = 0;
    let walked =
        walk_unheld(&dying, 0, u64::MAX, &mut Listed(&[&golden]), &mut |_, count, _| dead += count);
    assert_eq!(dead, 100);
    assert!(walked.visited <= 2 * differ, "{} visited, {differ} differ", walked.visited);
    // Without the golden image whatever none holds is asked of all; what is shared is found with
    // the first.
    let maps: Vec<&Map> = clones.iter().collect();
    let (mut dead, golden_walk) =
        (0, walk_unheld(&golden, 0, u64::MAX, &mut Listed(&maps), &mut |_, _, _| panic!("held")));
    assert!(golden_walk.visited <= 10, "{} visited", golden_walk.visited);
    walk_unheld(&dying, 0, u64::MAX, &mut Listed(&maps), &mut |_, count, _| dead += count);
    assert_eq!(dead, 100);
}
