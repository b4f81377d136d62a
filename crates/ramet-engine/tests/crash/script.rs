//! What is done to a pool, drawn from a seed and from what is there.
//!
//! Pure. A step says everything, so that the engine and the model do the same.

use super::Random;
use super::model::{
    Atom, HIDDEN, Pool, Range, SECTOR_BYTES, TRASHED, Thing, clear_atoms, resize_atoms, write_atoms,
};
use std::sync::Arc;

/// Things a pool has before more are deleted than made.
const THINGS_MAX: usize = 12;
/// Sectors of a mebibyte.
const MIB: u64 = 2048;

/// A volume that is never written to: what others map is seen by comparing them with it.
pub const EMPTY: &str = "empty";

#[derive(Clone, Debug)]
pub enum Step {
    Create {
        name: String,
        sectors: u64,
    },
    Write {
        name: String,
        range: Range,
        stamp: u64,
        fua: bool,
    },
    Clear {
        name: String,
        range: Range,
        stamp: u64,
        trim: bool,
        fua: bool,
    },
    Flush,
    /// Volumes, and the names of their snapshots.
    Snapshot {
        names: Vec<(String, String)>,
    },
    Clone {
        source: String,
        names: Vec<String>,
        sectors: u64,
    },
    Revert {
        name: String,
        snapshot: String,
        keep: Option<String>,
        take_size: bool,
    },
    Freeze {
        name: String,
    },
    Resize {
        name: String,
        sectors: u64,
        stamp: u64,
    },
    Rename {
        name: String,
        new: String,
    },
    /// Begin to receive, on top of a snapshot or from nothing.
    Receive {
        name: String,
        base: Option<String>,
        sectors: u64,
        stamp: u64,
    },
    /// What was received becomes snapshots, under new names.
    Admit {
        names: Vec<(String, String)>,
    },
    /// What was received is given up.
    Abandon {
        name: String,
    },
    Delete {
        names: Vec<String>,
    },
    /// Delete with the undo window: they can be restored.
    Trash {
        names: Vec<String>,
    },
    /// Bring back from the trash, under new names.
    Restore {
        names: Vec<(String, String)>,
    },
    /// End what is in the trash; no names: all of it.
    Empty {
        names: Vec<String>,
    },
    /// Lock snapshots, or make their locks longer.
    Lock {
        names: Vec<String>,
        days: u64,
    },
    /// Release locks with the secret.
    Unlock {
        names: Vec<String>,
    },
    Checkpoint,
    /// Give back what is dead, all of it or what pays.
    Reclaim {
        all: bool,
    },
    /// Time goes by, and background work is done.
    Idle {
        times: u64,
    },
    Close,
    /// The process ends without a word, the machine goes on.
    Kill,
}

impl Step {
    /// What it does to the model, in the order in which the log says it.
    pub fn atoms(&self, pool: &Pool) -> Vec<Atom> {
        let mut after = pool.clone();
        match self {
            Step::Write { name, range, stamp, .. } => {
                return write_atoms(pool, name, *range, *stamp);
            }
            Step::Clear { name, range, stamp, .. } => {
                return clear_atoms(pool, name, *range, *stamp);
            }
            Step::Resize { name, sectors, stamp } => {
                return resize_atoms(pool, name, sectors * SECTOR_BYTES, *stamp);
            }
            Step::Flush | Step::Checkpoint | Step::Reclaim { .. } => return Vec::new(),
            Step::Idle { .. } | Step::Close | Step::Kill => return Vec::new(),
            Step::Create { name, sectors } => {
                let thing = Thing::new(true, sectors * SECTOR_BYTES);
                after.things.insert(name.clone(), Arc::new(thing));
            }
            Step::Snapshot { names } => {
                names.iter().for_each(|(volume, name)| snapshot(&mut after, volume, name));
            }
            Step::Clone { source, names, sectors } => {
                let mut clone = Thing::clone(pool.thing(source));
                (clone.is_volume, clone.size_bytes) = (true, sectors * SECTOR_BYTES);
                clone.locked_days = 0;
                for name in names {
                    after.things.insert(name.clone(), Arc::new(clone.clone()));
                }
            }
            Step::Revert { name, snapshot: source, keep, take_size } => {
                keep.iter().for_each(|keep| snapshot(&mut after, name, keep));
                let mut content = Thing::clone(pool.thing(source));
                (content.is_volume, content.locked_days) = (true, 0);
                if !take_size {
                    content.size_bytes = pool.thing(name).size_bytes;
                }
                after.things.insert(name.clone(), Arc::new(content));
            }
            Step::Freeze { name } => after.thing_mut(name).is_volume = false,
            Step::Rename { name, new } => after.rename(name, new.clone()),
            Step::Delete { names } => names.iter().for_each(|name| {
                after.things.remove(name);
            }),
            Step::Trash { names } => {
                names.iter().for_each(|name| after.rename(name, format!("{TRASHED}{name}")));
            }
            Step::Restore { names } => {
                names.iter().for_each(|(name, new)| after.rename(name, new.clone()));
            }
            Step::Empty { names } => {
                let all = if names.is_empty() { after.trashed() } else { names.clone() };
                all.iter().for_each(|name| drop(after.things.remove(name)));
            }
            Step::Lock { names, days } => {
                names.iter().for_each(|name| after.thing_mut(name).locked_days = *days);
            }
            Step::Unlock { names } => {
                names.iter().for_each(|name| after.thing_mut(name).locked_days = 0);
            }
            Step::Receive { name, base, sectors, stamp } => {
                return receive_atoms(after, name, base.as_deref(), *sectors, *stamp);
            }
            Step::Admit { names } => names.iter().for_each(|(name, new)| {
                after.thing_mut(name).is_volume = false;
                after.rename(name, new.clone());
            }),
            Step::Abandon { name } => drop(after.things.remove(name)),
        }
        vec![Atom::Command(after)]
    }

    /// Whether everything done so far is durable once it succeeded: P1 and P3.
    pub fn promises(&self) -> bool {
        match self {
            Step::Write { fua, .. } => *fua,
            // Where nothing is locked, or in the trash, nothing is written.
            Step::Unlock { .. } | Step::Empty { .. } => false,
            // A range that is empty already is not written to the log.
            Step::Clear { .. } | Step::Idle { .. } | Step::Kill => false,
            Step::Checkpoint | Step::Reclaim { .. } => false,
            Step::Create { .. }
            | Step::Flush
            | Step::Snapshot { .. }
            | Step::Clone { .. }
            | Step::Revert { .. }
            | Step::Freeze { .. }
            | Step::Resize { .. }
            | Step::Rename { .. }
            | Step::Delete { .. }
            | Step::Trash { .. }
            | Step::Restore { .. }
            | Step::Lock { .. }
            | Step::Receive { .. }
            | Step::Admit { .. }
            | Step::Abandon { .. }
            | Step::Close => true,
        }
    }
}

/// A clone of the base, hidden; where that is larger, it gets its own size after it was made.
fn receive_atoms(
    mut after: Pool,
    name: &str,
    base: Option<&str>,
    sectors: u64,
    stamp: u64,
) -> Vec<Atom> {
    let size_bytes = sectors * SECTOR_BYTES;
    let mut thing = base.map_or_else(Thing::default, |base| Thing::clone(after.thing(base)));
    let base_bytes = thing.size_bytes;
    (thing.is_volume, thing.size_bytes) = (true, size_bytes.max(base_bytes));
    thing.locked_days = 0;
    after.things.insert(name.to_string(), Arc::new(thing));
    let mut atoms = vec![Atom::Command(after.clone())];
    if size_bytes < base_bytes {
        atoms.extend(resize_atoms(&after, name, size_bytes, stamp));
    }
    atoms
}

fn snapshot(pool: &mut Pool, volume: &str, name: &str) {
    let mut taken = Thing::clone(pool.thing(volume));
    taken.is_volume = false;
    pool.things.insert(name.to_string(), Arc::new(taken));
}

/// Steps to tell a story with. Counts are of blocks; the stamp makes blocks different.
pub fn create(name: &str, blocks: u64) -> Step {
    Step::Create { name: name.into(), sectors: 8 * blocks }
}

pub fn write(name: &str, first: u64, count: u64, stamp: u64) -> Step {
    let range = Range { first: 8 * first, count: 8 * count };
    Step::Write { name: name.into(), range, stamp, fua: false }
}

pub fn snapshot_of(volume: &str, name: &str) -> Step {
    Step::Snapshot { names: vec![(volume.into(), name.into())] }
}

pub fn delete(name: &str) -> Step {
    Step::Delete { names: vec![name.into()] }
}

/// Draws steps.
pub struct Script {
    random: Random,
    names_count: u64,
    stamps_count: u64,
}

impl Script {
    pub fn new(seed: u64) -> Self {
        Script { random: Random(seed), names_count: 0, stamps_count: 0 }
    }

    /// Go on otherwise, with names and stamps that nobody has.
    pub fn fork(&self, seed: u64) -> Self {
        Script { random: Random(seed), ..*self }
    }

    fn name(&mut self) -> String {
        self.names_count += 1;
        format!("it-{}", self.names_count)
    }

    fn names(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.name()).collect()
    }

    fn stamp(&mut self, sectors: u64) -> u64 {
        let first = self.stamps_count + 1;
        self.stamps_count += sectors + 8;
        first
    }

    pub fn next(&mut self, pool: &Pool) -> Step {
        let mut volumes = pool.names(true);
        volumes.retain(|name| name != EMPTY);
        if volumes.len() < 2 {
            return self.create();
        }
        let volume = self.random.pick(&volumes);
        let hidden = pool.hidden();
        let target = match hidden.is_empty() || self.random.below(4) > 0 {
            true => volume.clone(),
            false => self.random.pick(&hidden),
        };
        let snapshots = pool.names(false);
        let crowded = pool.things.len() > THINGS_MAX;
        match self.random.below(100) {
            0..=39 => self.write(pool, target),
            40..=49 => self.clear(pool, target),
            50..=51 if hidden.len() < 3 => self.receive(pool, &snapshots),
            50..=53 if !hidden.is_empty() => self.end_receiving(hidden),
            50..=55 => Step::Flush,
            56..=71 if crowded => self.delete(pool),
            56..=57 => self.create(),
            58..=62 => {
                let count = 1 + self.random.small(volumes.len().min(3));
                let names = self.names(count);
                Step::Snapshot { names: volumes.into_iter().zip(names).collect() }
            }
            63..=67 => self.clone_of(pool),
            68..=71 if !snapshots.is_empty() => self.revert(pool, volume, &snapshots),
            72 if volumes.len() > 2 => Step::Freeze { name: volume },
            73..=75 => {
                let stamp = self.stamp(8);
                Step::Resize { name: volume, sectors: self.sectors(), stamp }
            }
            76..=77 => Step::Rename { name: volume, new: self.name() },
            78..=81 => self.delete(pool),
            82..=83 => Step::Checkpoint,
            87 if !pool.trashed().is_empty() => self.end_trashed(pool.trashed()),
            84 | 88 if !snapshots.is_empty() => self.lock(pool, snapshots),
            85..=86 => Step::Reclaim { all: self.random.below(2) == 0 },
            87..=93 => Step::Idle { times: 1 + self.random.below(4) },
            94..=96 => Step::Close,
            97..=99 => Step::Kill,
            _ => self.write(pool, volume),
        }
    }

    /// A size: some of a single leaf, some of several levels, some that end within a block.
    fn sectors(&mut self) -> u64 {
        let odd = self.random.pick(&[0, 0, 1, 3]);
        odd + self.random.pick(&[MIB, 7 * MIB, 40 * MIB, 100 * MIB, 300 * MIB])
    }

    fn create(&mut self) -> Step {
        Step::Create { name: self.name(), sectors: self.sectors() }
    }

    /// Somewhere in a volume, mostly near the beginning of a leaf, so that ranges meet.
    fn place(&mut self, sectors: u64) -> u64 {
        let leaf = self.random.below(sectors.div_ceil(4 * 1024)) * 4096;
        let at = match self.random.below(8) {
            0 => sectors - 1,
            1 => self.random.below(sectors),
            2 => leaf.saturating_sub(16),
            _ => leaf + 8 * self.random.below(40),
        };
        at.min(sectors - 1)
    }

    fn range(&mut self, pool: &Pool, name: &str, count: u64) -> Range {
        let sectors = pool.thing(name).size_bytes / SECTOR_BYTES;
        let mut first = self.place(sectors);
        if self.random.below(4) == 0 {
            return Range { first, count: count.min(sectors - first) };
        }
        first -= first % 8;
        Range { first, count: count.next_multiple_of(8).min(sectors - first) }
    }

    fn write(&mut self, pool: &Pool, name: String) -> Step {
        let count = match self.random.below(40) {
            0 => 8 * (200 + self.random.below(150)),
            1..=6 => 8 * self.random.below(60),
            7..=12 => self.random.below(16),
            _ => 8 * self.random.below(8),
        };
        let range = self.range(pool, &name, 1 + count);
        let stamp = self.stamp(range.count);
        Step::Write { name, range, stamp, fua: self.random.below(12) == 0 }
    }

    fn clear(&mut self, pool: &Pool, name: String) -> Step {
        let count = match self.random.below(10) {
            0 => u64::MAX / 2,
            1..=3 => self.random.below(20 * MIB),
            4..=6 => self.random.below(16),
            _ => self.random.below(400),
        };
        let range = self.range(pool, &name, 1 + count);
        let stamp = self.stamp(8);
        let (trim, fua) = (self.random.below(2) == 0, self.random.below(12) == 0);
        Step::Clear { name, range, stamp, trim, fua }
    }

    fn clone_of(&mut self, pool: &Pool) -> Step {
        let all: Vec<&String> = pool.visible().collect();
        let source = self.random.pick(&all).clone();
        let sectors = pool.thing(&source).size_bytes / SECTOR_BYTES;
        let sectors = sectors + self.random.pick(&[0, 0, 0, MIB]);
        let count = 1 + self.random.small(2);
        Step::Clone { source, names: self.names(count), sectors }
    }

    fn receive(&mut self, pool: &Pool, snapshots: &[String]) -> Step {
        let name = format!("{HIDDEN}{}", self.name());
        let (sectors, stamp) = (self.sectors(), self.stamp(8));
        if snapshots.is_empty() || self.random.below(4) == 0 {
            return Step::Receive { name, base: None, sectors, stamp };
        }
        let base = self.random.pick(snapshots);
        let same = pool.thing(&base).size_bytes / SECTOR_BYTES;
        let sectors = self.random.pick(&[same, sectors]);
        Step::Receive { name, base: Some(base), sectors, stamp }
    }

    fn end_receiving(&mut self, mut hidden: Vec<String>) -> Step {
        if self.random.below(4) == 0 {
            return Step::Abandon { name: self.random.pick(&hidden) };
        }
        hidden.truncate(1 + self.random.small(hidden.len()));
        let names = self.names(hidden.len());
        Step::Admit { names: hidden.into_iter().zip(names).collect() }
    }

    fn revert(&mut self, pool: &Pool, name: String, snapshots: &[String]) -> Step {
        let snapshot = self.random.pick(snapshots);
        let keep = (self.random.below(2) == 0).then(|| self.name());
        let smaller = pool.thing(&name).size_bytes < pool.thing(&snapshot).size_bytes;
        Step::Revert { name, snapshot, keep, take_size: smaller || self.random.below(3) == 0 }
    }

    fn lock(&mut self, pool: &Pool, mut names: Vec<String>) -> Step {
        let first = self.random.small(names.len());
        names.rotate_left(first);
        names.truncate(1 + self.random.small(3));
        if self.random.below(2) == 0 {
            return Step::Unlock { names };
        }
        let longest = names.iter().map(|name| pool.thing(name).locked_days).max();
        Step::Lock { days: longest.unwrap_or(0) + self.random.below(3) + 1, names }
    }

    fn delete(&mut self, pool: &Pool) -> Step {
        let is_free = |name: &&String| *name != EMPTY && pool.thing(name).locked_days == 0;
        let mut all: Vec<String> = pool.visible().filter(is_free).cloned().collect();
        let mut names = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            if !all.is_empty() {
                names.push(all.swap_remove(self.random.small(all.len())));
            }
        }
        match self.random.below(3) {
            0 => Step::Delete { names },
            _ => Step::Trash { names },
        }
    }

    fn end_trashed(&mut self, mut trashed: Vec<String>) -> Step {
        if self.random.below(4) == 0 {
            return Step::Empty { names: Vec::new() };
        }
        let first = self.random.small(trashed.len());
        trashed.rotate_left(first);
        trashed.truncate(1 + self.random.small(3));
        if self.random.below(3) == 0 {
            return Step::Empty { names: trashed };
        }
        let names = self.names(trashed.len());
        Step::Restore { names: trashed.into_iter().zip(names).collect() }
    }
}
