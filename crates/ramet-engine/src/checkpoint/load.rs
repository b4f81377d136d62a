//! A checkpoint read back: objects, lineage, dead slots, files. Maps come with their first look.

use super::image::{FileEntry, decode_file, decode_place};
use super::{ROOT_FILES, ROOT_LINEAGE, ROOT_OBJECTS, Result, Roots};
use crate::head::{Heads, InGate, Parent};
use crate::lineage::Lineage;
use crate::nodes::{NodeFiles, Nodes, tree};
use crate::object::{Object, ObjectKind, Table};
use crate::record::Item;
use crate::space::Space;
use crate::{EngineError, Kind};
use ramet_log::format::node::{NodeFileKind, place};
use ramet_log::format::superblock::{Commit, NodeReference};
use ramet_log::{Known, SegmentId};
use ramet_store::Store;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The dead slots of a segment.
type DeadSlots = (SegmentId, Vec<u64>);

/// What a checkpoint refers to.
#[derive(Default)]
pub(crate) struct Reached {
    pub(crate) roots: Roots,
    pub(crate) node_files: BTreeSet<SegmentId>,
    pub(crate) table_files: BTreeSet<SegmentId>,
}

fn contradiction(what: &str, key: u64) -> EngineError {
    let text = format!(
        "the checkpoint's entry {key:#x} of {what} cannot be; \
         hint: nothing was changed; `ramet check` names what is wrong"
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
    let read = |reference: &NodeReference| table_nodes.read(reference);
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
            FileEntry::Nodes(id) => {
                reached.node_files.insert(id);
            }
        }
        Ok(())
    })?;
    Ok((reached, known, dead))
}

/// Put objects and lineage back as they were at the cut.
pub(crate) fn objects(
    nodes: &Arc<Nodes>,
    commit: &Commit,
    dead: Vec<DeadSlots>,
    table: &mut Table,
    heads: &Arc<Heads>,
    space: &Space,
) -> Result<()> {
    let roots = roots_of(commit);
    let read = |reference: &NodeReference| nodes.files.read(reference);
    let mut places = Vec::new();
    if let Some(root) = &roots.lineage {
        tree::scan(&read, root, &mut |_| {}, &mut |key, value| {
            let place = decode_place(nodes, key, value);
            places.push(place.ok_or_else(|| contradiction("lineage", key))?);
            Ok(())
        })?;
    }
    let lineage = Lineage::restore(places).ok_or_else(|| contradiction("lineage", 0))?;
    let mut loader = Loader { nodes, lineage: &lineage, heads, table, by_place: HashMap::new() };
    if let Some(root) = &roots.objects {
        tree::scan(&read, root, &mut |_| {}, &mut |key, value| {
            let item = Item::decode(value).ok().filter(|item| item.object.id.0 == key);
            let item = item.ok_or_else(|| contradiction("objects", key))?;
            loader.object(item).ok_or_else(|| contradiction("objects", key))
        })?;
    }
    let by_place = loader.hang();
    let heads = by_place.into_iter().map(|(place, object)| (place, object.head.clone())).collect();
    space.restore(lineage, heads, dead.into_iter());
    Ok(())
}

struct Loader<'a> {
    nodes: &'a Nodes,
    lineage: &'a Lineage,
    heads: &'a Arc<Heads>,
    table: &'a mut Table,
    by_place: HashMap<u64, Arc<Object>>,
}

impl Loader<'_> {
    fn object(&mut self, item: Item) -> Option<()> {
        let Item { object: fields, root, place, .. } = item;
        let kind = fields.kind?;
        if !self.lineage.is_living(place) || self.table.is_taken(&fields.name) {
            return None;
        }
        let head = self.heads.take(1).pop().expect("one was asked for");
        let object = Arc::new(Object::new(fields, kind, head, self.heads.clone()));
        object.set_place(place);
        if let Some((root, height)) = root {
            *object.head.map_mut(InGate::replaying()) = self.nodes.map(&root, height);
        }
        self.table.insert(object.clone());
        self.by_place.insert(place, object).is_none().then_some(())
    }

    /// Tell every head its parent. Result: objects by place.
    fn hang(self) -> HashMap<u64, Arc<Object>> {
        // Parents that are not living are one flag for each, shared by their children.
        let mut gone: HashMap<u64, Arc<AtomicBool>> = HashMap::new();
        for (place, object) in &self.by_place {
            let own = self.lineage.position_of(*place);
            let parent = match (object.kind(), own, self.lineage.parent_of(*place)) {
                (ObjectKind::Snapshot, position, _) => {
                    Parent { position: position.unwrap_or_default(), ..Parent::default() }
                }
                (ObjectKind::Volume, _, Some((id, position, living))) => {
                    let flag = match self.by_place.get(&id) {
                        Some(parent) if living => parent.living.clone(),
                        Some(_) | None => gone.entry(id).or_default().clone(),
                    };
                    Parent { position, place: id, living: Some(flag) }
                }
                (ObjectKind::Volume, _, None) => Parent::default(),
            };
            object.head.replace_parent(InGate::replaying(), parent);
        }
        self.by_place
    }
}

/// Remove node and table files that neither checkpoint reaches: what a crash left behind.
pub(crate) fn remove_orphans(store: &dyn Store, reached: &[&Reached]) {
    for kind in [NodeFileKind::Nodes, NodeFileKind::Tables] {
        let in_use: BTreeSet<SegmentId> = reached
            .iter()
            .flat_map(|reached| match kind {
                NodeFileKind::Nodes => &reached.node_files,
                NodeFileKind::Tables => &reached.table_files,
            })
            .copied()
            .collect();
        for name in store.list(kind.directory()).unwrap_or_default() {
            if let Some(id) = kind.id_of_name(&name).filter(|id| !in_use.contains(id)) {
                // Harmless where it stays: ids are never used twice.
                let _ = store.remove(&kind.path(id));
            }
        }
    }
}
