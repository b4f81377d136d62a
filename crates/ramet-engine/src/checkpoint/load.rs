//! A checkpoint read back: objects, lineage, dead slots, files. Maps come with their first look.

use super::image::{FileEntry, decode_file, decode_place, root_of_place};
use super::{ROOT_FILES, ROOT_LINEAGE, ROOT_OBJECTS, Result, Roots};
use crate::head::{HeadRef, Heads, InGate, Parent};
use crate::ids::IdMap;
use crate::lineage::{Lineage, LivingPlace, PlaceId};
use crate::nodes::{NodeFiles, Nodes, tree};
use crate::object::{Object, ObjectKind, State, Table};
use crate::record::Item;
use crate::space::Space;
use crate::{EngineError, Kind};
use ramet_log::format::node::{NodeFileHeader, NodeFileKind, UNIT_BYTES, place};
use ramet_log::format::superblock::{Commit, NodeReference};
use ramet_log::{BLOCK_BYTES, Known, Log, Position, SegmentId};
use ramet_store::StoreError;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;

/// What a medium writes whole.
const SECTOR_BYTES: usize = 512;

/// The dead slots of a segment.
type DeadSlots = (SegmentId, Vec<u64>);

/// What a checkpoint refers to.
#[derive(Default)]
pub(crate) struct Reached {
    pub(crate) roots: Roots,
    /// And units of each that are in use.
    pub(crate) node_files: BTreeMap<SegmentId, u32>,
    pub(crate) table_files: BTreeSet<SegmentId>,
}

/// Bytes that an object takes in its tree and in lineage, about.
const OBJECT_BYTES: u64 = 256;
/// Objects that are few are read as they come.
const OBJECTS_MANY: u64 = 10_000;

impl Reached {
    /// Whether opening, which reads all objects, will read a good part of all node files.
    pub(crate) fn objects_fill_nodes(&self) -> bool {
        let objects = self.roots.objects.map_or(0, |root| root.mapped);
        let units: u64 = self.node_files.values().map(|units| u64::from(*units)).sum();
        objects >= OBJECTS_MANY && 4 * objects * OBJECT_BYTES >= units * UNIT_BYTES
    }
}

fn contradiction(what: &str, key: u64) -> EngineError {
    let text = format!(
        "the checkpoint's entry {key:#x} of {what} cannot be; \
         hint: nothing was changed; `ramet check` names what is wrong, and with --accept-loss \
         goes back to the checkpoint before it, if that can be read"
    );
    EngineError::new(Kind::Corrupt, "checkpoint_damaged", text)
}

/// A node of the pool's own trees is more than its range: nothing can be opened without it.
fn of_a_tree(error: EngineError) -> EngineError {
    if error.kind != Kind::Corrupt {
        return error;
    }
    let what = error.text.split("; hint: ").next().unwrap_or_default();
    let text = format!(
        "the checkpoint cannot be read: {what}; \
         hint: nothing was changed; restore the file, or the pool from a copy, or see whether the \
         checkpoint before it can be read: `ramet check --accept-loss`"
    );
    EngineError::new(Kind::Corrupt, "checkpoint_damaged", text)
}

pub(crate) fn roots_of(commit: &Commit) -> Roots {
    let root = |kind| commit.roots.iter().find(|root| root.kind == kind).map(|root| root.node);
    Roots { objects: root(ROOT_OBJECTS), lineage: root(ROOT_LINEAGE), files: root(ROOT_FILES) }
}

/// Read the file table. Result: what is reached, and the segments with their dead slots.
pub(crate) fn files(
    table_nodes: &NodeFiles,
    commit: &Commit,
) -> Result<(Reached, Known, Vec<DeadSlots>)> {
    let mut reached = Reached { roots: roots_of(commit), ..Reached::default() };
    let (mut known, mut dead) = (Known::default(), Vec::new());
    let Some(root) = &reached.roots.files else { return Ok((reached, known, dead)) };
    let read = |reference: &NodeReference| table_nodes.read(reference).map_err(of_a_tree);
    let mut visit = |node: &NodeReference| {
        reached.table_files.extend(place(node.address).map(|(file, _)| file));
    };
    tree::scan(&read, root, &mut visit, &mut |key, value| {
        match decode_file(key, value).ok_or_else(|| contradiction("the file table", key))? {
            FileEntry::Segment(entry, bits) => {
                known.segments.push(entry);
                if !bits.is_empty() {
                    dead.push((entry.id, bits));
                }
            }
            FileEntry::Nodes(id, units) => {
                reached.node_files.insert(id, units);
            }
        }
        Ok(())
    })?;
    Ok((reached, known, dead))
}

/// Put objects and lineage back as they were at the cut.
///
/// Many are put back by two threads: one makes the objects, the other one lineage, and hands each
/// object its place.
pub(crate) fn objects(
    nodes: &Arc<Nodes>,
    commit: &Commit,
    dead: Vec<DeadSlots>,
    table: &mut Table,
    heads: &Arc<Heads>,
    space: &Space,
) -> Result<()> {
    let roots = roots_of(commit);
    let count = roots.objects.map_or(0, |root| root.mapped);
    let (made, seated) = mpsc::channel();
    let (lineage, heads) = if count < OBJECTS_MANY {
        let lineage = lineage(nodes, roots.lineage.as_ref())?;
        make(nodes, roots.objects.as_ref(), Loader::new(nodes, heads, table, count), &made)?;
        drop(made);
        seat(lineage, count, seated)?
    } else {
        std::thread::scope(|threads| {
            let root = roots.lineage.as_ref();
            let seats = threads.spawn(move || seat(lineage(nodes, root)?, count, seated));
            let loader = Loader::new(nodes, heads, table, count);
            let done = make(nodes, roots.objects.as_ref(), loader, &made);
            drop(made);
            let seats = seats.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            done.and(seats)
        })?
    };
    space.restore(lineage, heads, dead.into_iter());
    Ok(())
}

fn lineage(nodes: &Arc<Nodes>, root: Option<&NodeReference>) -> Result<Lineage> {
    let read = |reference: &NodeReference| nodes.files.read(reference).map_err(of_a_tree);
    let mut places = Vec::new();
    if let Some(root) = root {
        tree::scan(&read, root, &mut |_| {}, &mut |key, value| {
            let place = decode_place(nodes, key, value);
            places.push(place.ok_or_else(|| contradiction("lineage", key))?);
            Ok(())
        })?;
    }
    Lineage::restore(places).ok_or_else(|| contradiction("lineage", 0))
}

/// Objects that are handed on at a time.
const HANDED_COUNT: usize = 1024;

/// Make all objects, and hand them on.
fn make(
    nodes: &Arc<Nodes>,
    root: Option<&NodeReference>,
    mut loader: Loader<'_>,
    made: &mpsc::Sender<Vec<Arc<Object>>>,
) -> Result<()> {
    let read = |reference: &NodeReference| nodes.files.read(reference).map_err(of_a_tree);
    // Where nobody takes them, whoever did has failed, and says so.
    let hand_on = |objects| drop(made.send(objects));
    let mut objects = Vec::with_capacity(HANDED_COUNT);
    if let Some(root) = root {
        tree::scan(&read, root, &mut |_| {}, &mut |key, value| {
            let item = Item::decode(value).ok().filter(|item| item.object.id.0 == key);
            let item = item.ok_or_else(|| contradiction("objects", key))?;
            objects.push(loader.object(item).ok_or_else(|| contradiction("objects", key))?);
            if objects.len() == HANDED_COUNT {
                hand_on(std::mem::replace(&mut objects, Vec::with_capacity(HANDED_COUNT)));
            }
            Ok(())
        })?;
    }
    hand_on(objects);
    Ok(())
}

/// Give every object its place, and every head its parent. Result: also heads by place.
fn seat(
    lineage: Lineage,
    count: u64,
    made: mpsc::Receiver<Vec<Arc<Object>>>,
) -> Result<(Lineage, IdMap<PlaceId, HeadRef>)> {
    let mut seats = Seats::new(&lineage, usize::try_from(count).unwrap_or(0));
    for object in made.into_iter().flatten() {
        seats.seat(&object).ok_or_else(|| contradiction("objects", object.id().0))?;
    }
    let by_place = seats.hang();
    Ok((lineage, by_place))
}

/// Makes objects out of their entries.
struct Loader<'a> {
    nodes: &'a Nodes,
    heads: &'a Arc<Heads>,
    table: &'a mut Table,
    fresh: Vec<HeadRef>,
}

impl<'a> Loader<'a> {
    fn new(nodes: &'a Nodes, heads: &'a Arc<Heads>, table: &'a mut Table, count: u64) -> Self {
        let count = usize::try_from(count).unwrap_or(0);
        table.reserve(count);
        Loader { nodes, heads, table, fresh: heads.take(count) }
    }

    fn object(&mut self, item: Item) -> Option<Arc<Object>> {
        let Item { object: fields, root, place, .. } = item;
        let kind = fields.kind?;
        // In the trash the name it had may be another's.
        let is_taken = fields.state == State::Live && self.table.is_taken(&fields.name);
        if is_taken || self.table.get(fields.id).is_some() {
            return None;
        }
        let head = self.fresh.pop()?;
        if let Some((root, height)) = root {
            *head.map_mut(InGate::replaying()) = self.nodes.map(&root, height);
        }
        let object = Arc::new(Object::new(fields, kind, head, self.heads.clone()));
        object.set_place(place);
        self.table.insert(object.clone());
        Some(object)
    }
}

/// Gives objects their places.
struct Seats<'a> {
    lineage: &'a Lineage,
    /// Heads by place, for the tree of lineage.
    by_place: IdMap<PlaceId, HeadRef>,
    /// Volumes whose parents are not told yet: the parent's number, id and position.
    waiting: Vec<(HeadRef, u32, PlaceId, Position)>,
    /// Whether a place is living, by its number; for those that have children.
    flags: Vec<Option<Arc<AtomicBool>>>,
}

impl<'a> Seats<'a> {
    fn new(lineage: &'a Lineage, count: usize) -> Self {
        let mut by_place = IdMap::default();
        by_place.reserve(count);
        let flags = vec![None; lineage.numbers_end()];
        Seats { lineage, by_place, waiting: Vec::new(), flags }
    }

    fn seat(&mut self, object: &Object) -> Option<()> {
        let (id, head) = (object.place(), object.head.clone());
        let LivingPlace { number, position, parent, has_children } = self.lineage.living(id)?;
        match (object.kind(), parent) {
            (ObjectKind::Snapshot, _) => {
                let own = Parent { position: position?, ..Parent::default() };
                head.replace_parent(InGate::replaying(), own);
            }
            (ObjectKind::Volume, Some((number, id, position))) => {
                self.waiting.push((head.clone(), number, id, position));
            }
            (ObjectKind::Volume, None) => {}
        }
        if has_children {
            self.flags[number as usize] = Some(object.living.clone());
        }
        self.by_place.insert(id, head).is_none().then_some(())
    }

    /// Tell every head its parent. Result: heads by place.
    fn hang(mut self) -> IdMap<PlaceId, HeadRef> {
        for (head, number, place, position) in self.waiting {
            // A parent that is not living has one flag for all its children.
            let living = self.flags[number as usize].get_or_insert_default().clone();
            let parent = Parent { position, place, living: Some(living) };
            head.replace_parent(InGate::replaying(), parent);
        }
        self.by_place
    }
}

/// The root of an object's map, out of its entry, and the root's height.
pub(crate) fn object_root(key: u64, value: &[u8]) -> Result<Option<(NodeReference, u8)>> {
    let item = Item::decode(value).ok().filter(|item| item.object.id.0 == key);
    Ok(item.ok_or_else(|| contradiction("objects", key))?.root)
}

/// The root of a dying place's map, out of its entry, and the root's height.
pub(crate) fn dying_root(key: u64, value: &[u8]) -> Result<Option<(NodeReference, u8)>> {
    root_of_place(value).ok_or_else(|| contradiction("lineage", key))
}

/// Remove node and table files that neither checkpoint reaches: what a crash left behind. Files of
/// other pools, and those of which nobody can say whose they are, stay.
pub(crate) fn remove_orphans(log: &Log, reached: &[&Reached]) {
    let store = log.store();
    for kind in [NodeFileKind::Nodes, NodeFileKind::Tables] {
        let in_use: BTreeSet<SegmentId> = reached
            .iter()
            .flat_map(|reached| match kind {
                NodeFileKind::Nodes => reached.node_files.keys().copied().collect(),
                NodeFileKind::Tables => reached.table_files.clone(),
            })
            .collect();
        for name in store.list(kind.directory()).unwrap_or_default() {
            let id = kind.id_of_name(&name).filter(|id| !in_use.contains(id));
            if let Some(id) = id.filter(|id| is_own_or_blank(log, kind, *id)) {
                // Harmless where it stays: ids are never used twice.
                let _ = store.remove(&kind.path(id));
            }
        }
    }
}

fn is_own_or_blank(log: &Log, kind: NodeFileKind, id: SegmentId) -> bool {
    let mut page = vec![0; BLOCK_BYTES];
    let read = log.store().open(&kind.path(id), false);
    match read.and_then(|file| file.read_at(&mut page, 0)) {
        // All fields of a header lie in its first sector: it was never written.
        Ok(()) if page[..SECTOR_BYTES].iter().all(|byte| *byte == 0) => true,
        Ok(()) => NodeFileHeader::is_of(&page, kind, log.descriptor().seed, log.uuid()),
        Err(StoreError::ShortRead { .. }) => true,
        Err(_) => false,
    }
}
