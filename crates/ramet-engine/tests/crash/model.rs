//! What a pool should hold: names, sizes and blocks, and what every step does to them.
//!
//! Pure. A step is a list of atoms, each of which is in the log whole or not at all; a crash may
//! fall between any two. Invariant: a block that was written has a version that no other has, so
//! that what nobody holds any more can be counted.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

pub const SECTOR_BYTES: u64 = 512;
pub const BLOCK_BYTES: u64 = 4096;
pub const SECTORS_PER_BLOCK: u64 = 8;

/// The number that fills each sector of a block; 0: zeros.
pub type Sectors = [u64; 8];

/// What the name of something begins with that is being received: no object has such a name.
pub const HIDDEN: &str = "~";
/// And of something in the trash, before the name that it had.
pub const TRASHED: &str = "!";

pub fn is_hidden(name: &str) -> bool {
    name.starts_with(HIDDEN)
}

pub fn is_trashed(name: &str) -> bool {
    name.starts_with(TRASHED)
}

/// A mapped block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    pub version: u64,
    pub sectors: Sectors,
}

/// A volume or snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Thing {
    pub is_volume: bool,
    pub size_bytes: u64,
    pub blocks: BTreeMap<u64, Block>,
    /// Of a snapshot: days that its lock runs on. The clock stands still here.
    pub locked_days: u64,
    /// All blocks in one number.
    mark: u64,
}

/// All there is.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    pub things: BTreeMap<String, Arc<Thing>>,
}

/// What happens at once.
#[derive(Clone, Debug)]
pub enum Atom {
    Write { name: String, index: u64, block: Block },
    Clear { name: String, first: u64, end: u64 },
    Command(Pool),
}

/// The end of splitmix64.
pub fn mix(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn mark(index: u64, sectors: &Sectors) -> u64 {
    sectors.iter().fold(mix(index + 1), |mark, sector| mix(mark.wrapping_add(*sector)))
}

impl Thing {
    pub fn new(is_volume: bool, size_bytes: u64) -> Self {
        Thing { is_volume, size_bytes, ..Thing::default() }
    }

    pub fn set(&mut self, index: u64, block: Block) {
        if let Some(before) = self.blocks.insert(index, block) {
            self.mark ^= mark(index, &before.sectors);
        }
        self.mark ^= mark(index, &block.sectors);
    }

    fn clear(&mut self, first: u64, end: u64) {
        let gone: Vec<u64> = self.blocks.range(first..end).map(|(index, _)| *index).collect();
        for index in gone {
            let block = self.blocks.remove(&index).expect("seen just now");
            self.mark ^= mark(index, &block.sectors);
        }
    }

    pub fn sectors(&self, index: u64) -> Sectors {
        self.blocks.get(&index).map_or([0; 8], |block| block.sectors)
    }

    fn is_hole(&self, index: u64) -> bool {
        !self.blocks.contains_key(&index)
    }
}

impl Pool {
    /// Equal for pools that look the same from outside.
    pub fn fingerprint(&self) -> u64 {
        let one = |(name, thing): (&String, &Arc<Thing>)| {
            // What is in the trash cannot be read, only restored.
            let content = if is_trashed(name) { thing.blocks.len() as u64 } else { thing.mark };
            let name = name.bytes().fold(0, |mark, byte| mix(mark + u64::from(byte)));
            let kind = u64::from(thing.is_volume);
            [name, kind, thing.size_bytes, thing.locked_days, content]
                .iter()
                .fold(0, |mark: u64, next| mix(mark.wrapping_add(*next).wrapping_add(1)))
        };
        self.things.iter().map(one).fold(0, |mark, next| mark ^ next)
    }

    /// Blocks that somebody holds, each once.
    pub fn living_count(&self) -> u64 {
        let blocks = self.things.values().flat_map(|thing| thing.blocks.values());
        let held: HashSet<u64> = blocks.map(|block| block.version).collect();
        held.len() as u64
    }

    pub fn apply(&mut self, atom: &Atom) {
        match atom {
            Atom::Write { name, index, block } => {
                self.thing_mut(name).set(*index, *block);
            }
            Atom::Clear { name, first, end } => self.thing_mut(name).clear(*first, *end),
            Atom::Command(after) => *self = after.clone(),
        }
    }

    pub fn thing_mut(&mut self, name: &str) -> &mut Thing {
        Arc::make_mut(self.things.get_mut(name).expect("the script knows what there is"))
    }

    pub fn rename(&mut self, name: &str, new: String) {
        let thing = self.things.remove(name).expect("the script knows what there is");
        self.things.insert(new, thing);
    }

    pub fn thing(&self, name: &str) -> &Arc<Thing> {
        &self.things[name]
    }

    /// Names of volumes, or of snapshots, as everybody sees them.
    pub fn names(&self, volumes: bool) -> Vec<String> {
        let wanted = self.visible().filter(|name| self.thing(name).is_volume == volumes);
        wanted.cloned().collect()
    }

    /// What everybody sees.
    pub fn visible(&self) -> impl Iterator<Item = &String> {
        self.things.keys().filter(|name| !is_hidden(name) && !is_trashed(name))
    }

    /// What is being received.
    pub fn hidden(&self) -> Vec<String> {
        self.things.keys().filter(|name| is_hidden(name)).cloned().collect()
    }

    /// What is in the trash.
    pub fn trashed(&self) -> Vec<String> {
        self.things.keys().filter(|name| is_trashed(name)).cloned().collect()
    }

    /// What differs between two pools, for a person.
    pub fn differences(&self, other: &Pool) -> String {
        let mut told = Vec::new();
        let names: std::collections::BTreeSet<&String> =
            self.things.keys().chain(other.things.keys()).collect();
        for name in names {
            match (self.things.get(name), other.things.get(name)) {
                (Some(own), Some(other)) => {
                    if (own.is_volume, own.size_bytes) != (other.is_volume, other.size_bytes) {
                        told.push(format!("{name}: another kind or size"));
                    }
                    if own.locked_days != other.locked_days {
                        let days = (own.locked_days, other.locked_days);
                        told.push(format!("{name}: locked for {days:?} days"));
                    }
                    let indexes: std::collections::BTreeSet<&u64> =
                        own.blocks.keys().chain(other.blocks.keys()).collect();
                    let differ = |index: &&&u64| {
                        own.sectors(***index) != other.sectors(***index)
                            || own.is_hole(***index) != other.is_hole(***index)
                    };
                    let blocks: Vec<&&u64> = indexes.iter().filter(differ).take(4).collect();
                    if let Some(first) = blocks.first() {
                        let sectors = (own.sectors(***first), other.sectors(***first));
                        told.push(format!("{name}: blocks {blocks:?}, the first: {sectors:?}"));
                    }
                }
                (own, _) => told.push(format!(
                    "{name}: only in the {}",
                    match own {
                        Some(_) => "first",
                        None => "second",
                    }
                )),
            }
        }
        told.join("; ")
    }
}

/// A range of sectors of a thing.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub first: u64,
    pub count: u64,
}

impl Range {
    pub fn end(self) -> u64 {
        self.first + self.count
    }
}

/// A write whose sectors are filled with `stamp` and the numbers after it.
pub fn write_atoms(pool: &Pool, name: &str, range: Range, stamp: u64) -> Vec<Atom> {
    let thing = pool.thing(name);
    let blocks = range.first / SECTORS_PER_BLOCK..range.end().div_ceil(SECTORS_PER_BLOCK);
    let atom = |index: u64| {
        let mut sectors = thing.sectors(index);
        let mut version = None;
        for (sector, at) in (index * SECTORS_PER_BLOCK..).zip(&mut sectors) {
            if (range.first..range.end()).contains(&sector) {
                *at = stamp + sector - range.first;
                version.get_or_insert(*at);
            }
        }
        let version = version.expect("a sector of it is written");
        Atom::Write { name: name.to_string(), index, block: Block { version, sectors } }
    };
    blocks.map(atom).collect()
}

/// A trim or zero: whole blocks become holes, parts of mapped blocks are written as zeros.
pub fn clear_atoms(pool: &Pool, name: &str, range: Range, stamp: u64) -> Vec<Atom> {
    let thing = pool.thing(name);
    let first = range.first.div_ceil(SECTORS_PER_BLOCK);
    let at_end = range.end() * SECTOR_BYTES == thing.size_bytes;
    let end = match at_end {
        true => range.end().div_ceil(SECTORS_PER_BLOCK),
        false => range.end() / SECTORS_PER_BLOCK,
    };
    if first >= end {
        return zeroed_parts(thing, name, range, stamp);
    }
    let mut atoms = Vec::new();
    let before = Range { first: range.first, count: first * SECTORS_PER_BLOCK - range.first };
    let after_first = (end * SECTORS_PER_BLOCK).min(range.end());
    let after = Range { first: after_first, count: range.end() - after_first };
    atoms.extend(zeroed_parts(thing, name, before, stamp));
    atoms.extend(zeroed_parts(thing, name, after, stamp + 1));
    atoms.push(Atom::Clear { name: name.to_string(), first, end });
    atoms
}

/// Parts of one block, or of two neighbors: a hole stays one, unless the other is none.
fn zeroed_parts(thing: &Thing, name: &str, range: Range, stamp: u64) -> Vec<Atom> {
    if range.count == 0 {
        return Vec::new();
    }
    let blocks = range.first / SECTORS_PER_BLOCK..range.end().div_ceil(SECTORS_PER_BLOCK);
    if blocks.clone().all(|index| thing.is_hole(index)) {
        return Vec::new();
    }
    let atom = |(index, version): (u64, u64)| {
        let mut sectors = thing.sectors(index);
        for (sector, at) in (index * SECTORS_PER_BLOCK..).zip(&mut sectors) {
            if (range.first..range.end()).contains(&sector) {
                *at = 0;
            }
        }
        Atom::Write { name: name.to_string(), index, block: Block { version, sectors } }
    };
    blocks.zip(stamp..).map(atom).collect()
}

/// Another size. What is cut off of the last block that stays is zeroed by a write before.
pub fn resize_atoms(pool: &Pool, name: &str, size_bytes: u64, stamp: u64) -> Vec<Atom> {
    let thing = pool.thing(name);
    let mut atoms = Vec::new();
    if size_bytes < thing.size_bytes {
        let first = size_bytes / SECTOR_BYTES;
        let end = first.next_multiple_of(SECTORS_PER_BLOCK).min(thing.size_bytes / SECTOR_BYTES);
        atoms = zeroed_parts(thing, name, Range { first, count: end - first }, stamp);
    }
    let mut after = pool.clone();
    atoms.iter().for_each(|atom| after.apply(atom));
    let thing = after.thing_mut(name);
    thing.size_bytes = size_bytes;
    thing.clear(size_bytes.div_ceil(BLOCK_BYTES), u64::MAX);
    atoms.push(Atom::Command(after));
    atoms
}
