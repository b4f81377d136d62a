//! Figures about objects: what is its own of each in a list of all, who shares most with one, what
//! differs between two, how scattered one is.
//!
//! Reads maps, changes nothing. Invariants: a figure is exact for a moment between the call that
//! made it and its answer, and names it; commands wait for one object's walk at most, reads and
//! writes for none.

use crate::engine::Engine;
use crate::ids::IdMap;
use crate::map::{Extent, LEAF_BLOCKS, Missing, diff};
use crate::object::{Object, ObjectKind};
use crate::reclaim::ObjectSpace;
use crate::{EngineError, Kind};
use parking_lot::Mutex;
use ramet_log::{BLOCK_BYTES_U64, ObjectId};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A list shows figures that are not older.
const AGE_MAX: Duration = Duration::from_secs(60);
/// Objects that are compared to find who shares most.
const COMPARED_MAX: usize = 1000;
/// Nodes that all these comparisons look at.
const NODES_MAX: u64 = 1 << 20;
/// Leaves that are looked at to say how scattered an object is.
const LEAVES_MAX: u64 = 4096;

type Result<T> = std::result::Result<T, EngineError>;

/// Figures that were made a while ago, and when.
#[derive(Default)]
pub(crate) struct Figures {
    listed: Mutex<IdMap<ObjectId, (Instant, ObjectSpace)>>,
    scatter: Mutex<Option<(Instant, Scatter)>>,
}

/// An object that shares blocks with another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharer {
    /// Its name.
    pub name: String,
    /// Bytes of blocks that both hold.
    pub shared_bytes: u64,
}

/// How scattered the blocks of an object are, or of all volumes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scatter {
    /// Runs of blocks that lie one behind the other, in what was looked at,
    pub fragments_count: u64,
    /// and the bytes of these blocks.
    pub looked_at_bytes: u64,
}

impl Engine {
    /// What each object takes, by UUID, in any order; without those whose maps are damaged. A
    /// figure may be a minute old.
    ///
    /// # Errors
    /// `Unavailable` where a map cannot be read now.
    pub fn list_space(&self, now: Instant) -> Result<Vec<(Uuid, ObjectSpace)>> {
        let objects = self.shown_objects();
        let mut known = std::mem::take(&mut *self.figures.listed.lock());
        let mut listed = Vec::with_capacity(objects.len());
        let mut fresh = IdMap::default();
        for object in objects {
            let id = object.id();
            let young = |made: &Instant| now.saturating_duration_since(*made) < AGE_MAX;
            let space = match known.remove(&id) {
                Some((made, space)) if young(&made) => Some((made, space)),
                Some(_) | None => self.space_of(&object)?.map(|space| (now, space)),
            };
            if let Some((made, space)) = space {
                listed.push((object.fixed.uuid, space));
                fresh.insert(id, (made, space));
            }
        }
        *self.figures.listed.lock() = fresh;
        Ok(listed)
    }

    /// Those that a list shows.
    fn shown_objects(&self) -> Vec<Arc<Object>> {
        let table = self.table.read();
        table.all().filter(|object| object.is_live()).cloned().collect()
    }

    /// `None` where it was deleted meanwhile, or its map is damaged.
    fn space_of(&self, object: &Object) -> Result<Option<ObjectSpace>> {
        let _commands = self.commands.lock();
        if object.is_deleted() {
            return Ok(None);
        }
        match self.space_of_held(object) {
            Err(error) if error.kind == Kind::Corrupt => Ok(None),
            told => told.map(Some),
        }
    }

    /// While no command can change the tree.
    pub(crate) fn space_of_held(&self, object: &Object) -> Result<ObjectSpace> {
        let _pin = self.reclaim.pin();
        let sequence = self.log.appended().0;
        let (mapped, exclusive) = self.space.of_one(object.place())?;
        let (mapped_bytes, exclusive_bytes) =
            (mapped * BLOCK_BYTES_U64, exclusive * BLOCK_BYTES_U64);
        Ok(ObjectSpace { mapped_bytes, exclusive_bytes, sequence })
    }

    /// The objects that share most with one, `count` at most, most first; and how many were
    /// compared: not all, where there are very many, but its nearest relatives.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` and `Unavailable` where its own map cannot be read.
    pub fn sharers(&self, name: &str, count: usize) -> Result<(Vec<Sharer>, u64)> {
        let object = self.find_object(name)?;
        let _pin = self.reclaim.pin();
        let own = object.head.map().clone();
        let mut found: Vec<Sharer> = Vec::new();
        let (mut compared, mut nodes) = (0, 0);
        for other in self.relatives(&object) {
            if nodes > NODES_MAX {
                break;
            }
            let map = other.head.map().clone();
            let (mut differ, mut from) = (0, 0);
            let mut tell = |extent: Extent| {
                differ += if extent.locator.is_some() { extent.count } else { 0 };
            };
            let told = loop {
                match diff(&map, &own, from, u64::MAX - from, &mut tell) {
                    Ok(visited) => break Ok(visited),
                    Err((told, missing)) => match self.nodes.load(&missing) {
                        Ok(()) => from = told,
                        Err(error) => break Err(error),
                    },
                }
            };
            // Who cannot be read shares nothing that is known.
            let Ok(visited) = told else { continue };
            nodes += visited;
            compared += 1;
            let shared_bytes = (own.mapped() - differ) * BLOCK_BYTES_U64;
            if shared_bytes > 0 && !other.is_deleted() {
                found.push(Sharer { name: other.name(), shared_bytes });
            }
        }
        found.sort_by(|a, b| b.shared_bytes.cmp(&a.shared_bytes).then_with(|| a.name.cmp(&b.name)));
        found.truncate(count);
        Ok((found, compared))
    }

    /// Objects of the same family: ancestor and descendants first, then by when they were made.
    fn relatives(&self, object: &Object) -> Vec<Arc<Object>> {
        let own = object.place();
        let all = self.shown_objects();
        let same = self.space.in_family(own, all.iter().map(|other| other.place()));
        let mut found: Vec<(bool, u64, Arc<Object>)> = Vec::new();
        let above = self.space.living_ancestor(own);
        for (other, same) in all.into_iter().zip(same) {
            if same && other.id() != object.id() {
                let near = Some(other.place()) == above
                    || self.space.living_ancestor(other.place()) == Some(own);
                found.push((!near, other.id().0.abs_diff(object.id().0), other));
            }
        }
        found.sort_by_key(|(far, apart, other)| (*far, *apart, other.id()));
        found.into_iter().take(COMPARED_MAX).map(|(_, _, other)| other).collect()
    }

    /// What differs between two objects, as extents in bytes of the second, up to the larger size:
    /// first byte, length, whether anything is mapped there.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn diff(&self, before: &str, after: &str) -> Result<Vec<(u64, u64, bool)>> {
        let (before, after) = (self.find_object(before)?, self.find_object(after)?);
        let _pin = self.reclaim.pin();
        let maps = (before.head.map().clone(), after.head.map().clone());
        let end_bytes = before.size_bytes().max(after.size_bytes());
        let mut extents: Vec<(u64, u64, bool)> = Vec::new();
        let blocks = end_bytes.div_ceil(BLOCK_BYTES_U64);
        let mut tell = |extent: Extent| {
            let (first, mapped) = (extent.first * BLOCK_BYTES_U64, extent.locator.is_some());
            let length = (extent.count * BLOCK_BYTES_U64).min(end_bytes - first);
            match extents.last_mut() {
                Some(last) if last.0 + last.1 == first && last.2 == mapped => last.1 += length,
                _ => extents.push((first, length, mapped)),
            }
        };
        let mut from = 0;
        while let Err((told, missing)) = diff(&maps.0, &maps.1, from, blocks - from, &mut tell) {
            self.nodes.load(&missing)?;
            from = told;
        }
        Ok(extents)
    }

    /// How scattered an object's blocks are: of a large one some thousand leaves are looked at.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` and `Unavailable` where its map cannot be read.
    pub fn scatter(&self, name: &str) -> Result<Scatter> {
        let object = self.find_object(name)?;
        let _pin = self.reclaim.pin();
        let mut fragments = Fragments::default();
        for leaf in some_leaves(&object, LEAVES_MAX) {
            fragments.count(self.nodes.with(|| look_up(&object, leaf))?);
        }
        Ok(fragments.scatter)
    }

    /// How scattered the blocks of volumes are, as far as their maps are in memory: nothing is
    /// read. Some thousand leaves are looked at, and the answer may be a minute old.
    pub fn pool_scatter(&self, now: Instant) -> Scatter {
        let mut known = self.figures.scatter.lock();
        if let Some((made, scatter)) = *known
            && now.saturating_duration_since(made) < AGE_MAX
        {
            return scatter;
        }
        let mut volumes = self.shown_objects();
        volumes.retain(|object| object.kind() == ObjectKind::Volume);
        let count = volumes.len() as u64;
        let stride = usize::try_from(count.div_ceil(LEAVES_MAX).max(1)).unwrap_or(usize::MAX);
        let mut sum = Scatter::default();
        for object in volumes.iter().step_by(stride) {
            let mut fragments = Fragments::default();
            let leaves = some_leaves(object, (LEAVES_MAX / count).max(1));
            // What is not in memory is left out.
            leaves.filter_map(|leaf| look_up(object, leaf).ok()).for_each(|it| fragments.count(it));
            sum.fragments_count += fragments.scatter.fragments_count;
            sum.looked_at_bytes += fragments.scatter.looked_at_bytes;
        }
        *known = Some((now, sum));
        sum
    }
}

/// Leaves of an object, `count` at most, as far apart as each other.
fn some_leaves(object: &Object, count: u64) -> impl Iterator<Item = u64> {
    let leaves = object.size_bytes().div_ceil(LEAF_BLOCKS * BLOCK_BYTES_U64);
    let stride = leaves.div_ceil(count).max(1);
    (0..leaves).step_by(usize::try_from(stride).unwrap_or(usize::MAX))
}

fn look_up(object: &Object, leaf: u64) -> std::result::Result<Vec<Extent>, Missing> {
    let mut extents = Vec::new();
    object.head.map().lookup(leaf * LEAF_BLOCKS, LEAF_BLOCKS, &mut extents)?;
    Ok(extents)
}

/// Counts runs, leaf after leaf of one object.
#[derive(Default)]
struct Fragments {
    scatter: Scatter,
    last: Option<Extent>,
}

impl Fragments {
    fn count(&mut self, extents: Vec<Extent>) {
        for extent in extents.into_iter().filter(|extent| extent.locator.is_some()) {
            self.scatter.looked_at_bytes += extent.count * BLOCK_BYTES_U64;
            let goes_on = self.last.as_mut().is_some_and(|last| last.merge(&extent));
            if !goes_on {
                self.scatter.fragments_count += 1;
                self.last = Some(extent);
            }
        }
    }
}
