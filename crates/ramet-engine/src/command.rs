//! What a record does to the pool, in three moments: prepared before the gate, enacted inside it,
//! settled after it.
//!
//! The same code runs live and in replay, so a pool after a crash is what it was. Invariant:
//! `enact` touches heads only, and allocates next to nothing; whatever can fail has failed in
//! `prepare`.

use crate::head::{HeadRef, Heads, InGate, Parent};
use crate::locks::ObjectLock;
use crate::map::{Map, Missing};
use crate::nodes::Nodes;
use crate::object::{Changed, Object, ObjectFields, ObjectKind, Table};
use crate::record::{Record, Verb};
use crate::space::{Birth, Death, LetGo, Space};
use ramet_log::{BLOCK_BYTES_U64, ObjectId, Position};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A command with everything it needs.
pub(crate) struct Prepared {
    verb: Verb,
    /// The objects it makes, in order.
    pub(crate) made: Vec<Arc<Object>>,
    /// Volumes, and the new snapshots of them.
    snaps: Vec<(Arc<Object>, Arc<Object>)>,
    /// The objects it changes or ends.
    targets: Vec<Target>,
    /// Whose content clones take.
    source: Option<Arc<Object>>,
    /// The place of the nameless instant of a clone straight from a volume.
    instant: ObjectId,
    instant_living: Arc<AtomicBool>,
    /// Filled inside the gate: parents that were replaced, dropped after it.
    parents_before: Vec<Parent>,
}

/// An object that is changed or ends.
struct Target {
    object: Arc<Object>,
    /// What it becomes; only what its verb changes is looked at.
    changed: ObjectFields,
    /// The snapshot that a revert takes.
    source: Option<Arc<Object>>,
    /// The place in which a reverted volume goes on.
    place: u64,
    /// Filled inside the gate: the content that ends.
    map_before: Map,
}

impl Prepared {
    /// Find the objects of a record and make the new ones. The error is for replay: live commands
    /// were checked before.
    pub(crate) fn new(record: &Record, table: &Table, heads: &Arc<Heads>) -> Result<Self, String> {
        let find =
            |id: ObjectId| table.get(id).cloned().ok_or_else(|| format!("no object {:#x}", id.0));
        let verb = record.verb;
        let made_count = record.items.iter().filter(|item| item.object.kind.is_some()).count();
        let mut fresh = heads.take(made_count).into_iter();
        let mut this = Prepared {
            verb,
            made: Vec::with_capacity(made_count),
            snaps: Vec::new(),
            targets: Vec::new(),
            source: None,
            instant: ObjectId(0),
            instant_living: Arc::new(AtomicBool::new(false)),
            parents_before: Vec::with_capacity(record.items.len() + 1),
        };
        for item in &record.items {
            let Some(kind) = item.object.kind else {
                let source = (verb == Verb::Revert).then(|| find(item.source)).transpose()?;
                let (object, changed) = (find(item.object.id)?, item.object.clone());
                let (place, map_before) = (item.instant.0, Map::default());
                this.targets.push(Target { object, changed, source, place, map_before });
                continue;
            };
            let head: HeadRef = fresh.next().expect("one head for each");
            let object = Arc::new(Object::new(item.object.clone(), kind, head, heads.clone()));
            if kind == ObjectKind::Snapshot {
                this.snaps.push((find(item.source)?, object.clone()));
            } else if verb == Verb::Clone && this.source.is_none() {
                (this.source, this.instant) = (Some(find(item.source)?), item.instant);
            }
            this.made.push(object);
        }
        Ok(this)
    }

    /// Places that the command will make.
    pub(crate) fn places(&self) -> impl Iterator<Item = u64> + '_ {
        let instants = self.targets.iter().map(|target| target.place).chain([self.instant.0]);
        self.made.iter().map(|object| object.place()).chain(instants.filter(|id| *id != 0))
    }

    /// What must not be attached.
    pub(crate) fn ending(&self) -> Vec<Arc<Object>> {
        let shrinks = |target: &&Target| {
            self.verb != Verb::Resize || target.changed.size_bytes < target.object.size_bytes()
        };
        match self.verb {
            Verb::Delete | Verb::Trash | Verb::Revert | Verb::Freeze | Verb::Resize => {
                self.targets.iter().filter(shrinks).map(|target| target.object.clone()).collect()
            }
            // What is hidden cannot be attached.
            Verb::Create
            | Verb::Snapshot
            | Verb::Clone
            | Verb::Rename
            | Verb::Attributes
            | Verb::Admit
            | Verb::Restore
            | Verb::Lock
            | Verb::Unlock => Vec::new(),
        }
    }

    /// Bring what `enact` will touch into the processor's caches, so that the gate is closed for
    /// less.
    pub(crate) fn warm(&self) {
        for (volume, _) in &self.snaps {
            volume.head.map().touch();
        }
    }

    /// Whether `enact` finds in memory what it needs of the maps.
    ///
    /// # Errors
    /// `Missing`.
    pub(crate) fn ready(&self) -> Result<(), Missing> {
        if self.verb != Verb::Resize {
            return Ok(());
        }
        self.targets.iter().try_for_each(|Target { object, changed, .. }| {
            let (first, end) = cut_off(object, changed);
            object.head.map().ready(first, end.saturating_sub(first), true)
        })
    }

    /// Inside the gate, after `ready`.
    pub(crate) fn enact(
        &mut self,
        gate: InGate<'_>,
        space: &Space,
        nodes: &Nodes,
        position: Position,
    ) {
        // A revert that keeps what it discards makes its snapshots first.
        self.enact_snapshots(gate, position);
        match self.verb {
            Verb::Create
            | Verb::Snapshot
            | Verb::Rename
            | Verb::Attributes
            | Verb::Restore
            | Verb::Lock
            | Verb::Unlock => {}
            Verb::Trash => self.targets.iter().for_each(|target| target.object.set_deleted()),
            Verb::Clone => self.enact_clones(gate, position),
            Verb::Revert => self.enact_reverts(gate),
            Verb::Delete => self.enact_deletes(gate),
            Verb::Freeze | Verb::Admit => self.enact_freezes(gate, position),
            Verb::Resize => self.enact_resizes(gate, space, nodes, position),
        }
    }

    /// The new objects take their volumes' maps and become their parents.
    fn enact_snapshots(&mut self, gate: InGate<'_>, position: Position) {
        for (volume, snapshot) in &self.snaps {
            *snapshot.head.map_mut(gate) = volume.head.share_map(gate);
            let (place, living) = (snapshot.fixed.id.0, Some(snapshot.living.clone()));
            let parent = Parent { position, place, living };
            self.parents_before.push(volume.head.replace_parent(gate, parent));
            snapshot.head.replace_parent(gate, Parent { position, ..Parent::default() });
        }
    }

    fn enact_clones(&mut self, gate: InGate<'_>, position: Position) {
        let source = self.source.as_ref().expect("a clone has a source");
        let map = source.head.share_map(gate);
        let parent = match source.kind() {
            ObjectKind::Snapshot => snapshot_as_parent(gate, source),
            ObjectKind::Volume => {
                let living = Some(self.instant_living.clone());
                let instant = Parent { position, place: self.instant.0, living };
                self.parents_before.push(source.head.replace_parent(gate, instant.clone()));
                instant
            }
        };
        for volume in &self.made {
            *volume.head.map_mut(gate) = map.clone();
            volume.head.replace_parent(gate, parent.clone());
        }
    }

    fn enact_reverts(&mut self, gate: InGate<'_>) {
        for Target { object, changed, source, map_before, .. } in &mut self.targets {
            let snapshot = source.as_ref().expect("a revert has a source");
            let map = snapshot.head.share_map(gate);
            *map_before = std::mem::replace(&mut *object.head.map_mut(gate), map);
            let parent = snapshot_as_parent(gate, snapshot);
            self.parents_before.push(object.head.replace_parent(gate, parent));
            if changed.size_bytes != 0 {
                object.set_size_bytes(changed.size_bytes);
            }
        }
    }

    fn enact_deletes(&mut self, gate: InGate<'_>) {
        for Target { object, map_before, .. } in &mut self.targets {
            object.set_deleted();
            object.living.store(false, Ordering::Release);
            *map_before = std::mem::take(&mut *object.head.map_mut(gate));
            self.parents_before.push(object.head.replace_parent(gate, Parent::default()));
        }
    }

    fn enact_freezes(&mut self, gate: InGate<'_>, position: Position) {
        for Target { object, .. } in &self.targets {
            object.set_frozen();
            let own = Parent { position, ..Parent::default() };
            self.parents_before.push(object.head.replace_parent(gate, own));
        }
    }

    /// A smaller size is a trim of what lies beyond it.
    fn enact_resizes(
        &mut self,
        gate: InGate<'_>,
        space: &Space,
        nodes: &Nodes,
        position: Position,
    ) {
        for Target { object, changed, .. } in &self.targets {
            let (first, end) = cut_off(object, changed);
            object.set_size_bytes(changed.size_bytes);
            if first < end {
                let place = object.place();
                let removed = object.head.with_parent(gate, |parent| {
                    let mut let_go = LetGo::new(space, place, parent, position);
                    let mut map = object.head.map_mut(gate);
                    map.remove(first, end - first, position, &mut let_go)
                });
                nodes.dirtied(removed.expect("was found ready, and held"));
            }
        }
    }

    /// After the gate: the tree of lineage follows. Commands settle in the order they were enacted.
    pub(crate) fn settle(&mut self, space: &Space, position: Position) {
        let pairs = self.snaps.iter().map(|(volume, snapshot)| (volume.place(), snapshot));
        space.snapped(pairs, position);
        match self.verb {
            Verb::Snapshot
            | Verb::Rename
            | Verb::Resize
            | Verb::Attributes
            | Verb::Trash
            | Verb::Restore
            | Verb::Lock
            | Verb::Unlock => {}
            Verb::Create => space.born(self.made.iter().map(|object| Birth { object, parent: 0 })),
            Verb::Clone => self.settle_clones(space, position),
            Verb::Revert => {
                for Target { object, source, place, map_before, .. } in &mut self.targets {
                    let parent = source.as_ref().expect("a revert has a source").place();
                    space.reverted(object, *place, parent, position, std::mem::take(map_before));
                    object.set_place(*place);
                }
            }
            Verb::Delete => {
                space.ended(self.targets.iter_mut().map(|target| Death {
                    place: target.object.place(),
                    map: std::mem::take(&mut target.map_before),
                    position,
                }));
            }
            Verb::Freeze | Verb::Admit => {
                for target in &self.targets {
                    space.frozen(target.object.place(), position);
                }
            }
        }
        space.settled();
    }

    fn settle_clones(&self, space: &Space, position: Position) {
        let source = self.source.as_ref().expect("a clone has a source");
        let parent = if self.instant == ObjectId(0) {
            source.place()
        } else {
            space.passed(source.place(), self.instant.0, position);
            self.instant.0
        };
        space.born(self.made.iter().map(|object| Birth { object, parent }));
    }

    /// Once durable: names and objects appear, change or go.
    pub(crate) fn publish(&self, table: &mut Table, noted: &Changed) {
        for object in &self.made {
            table.insert(object.clone());
            noted.note(object);
        }
        for Target { object, changed, .. } in &self.targets {
            match self.verb {
                Verb::Delete => noted.note_gone(object.id()),
                _ => noted.note(object),
            }
            match self.verb {
                Verb::Delete => drop(table.remove(object.id())),
                Verb::Rename => table.rename(object.id(), &changed.name),
                Verb::Attributes => object.set_attributes(&changed.attributes),
                Verb::Lock => table.set_lock(object, ObjectLock::of(changed)),
                Verb::Unlock => table.set_lock(object, None),
                Verb::Admit => {
                    object.set_attributes(&changed.attributes);
                    table.show(object, &changed.name);
                }
                Verb::Trash => table.trash(object, changed.delete_after_ns),
                Verb::Restore => table.show(object, &changed.name),
                Verb::Create
                | Verb::Snapshot
                | Verb::Clone
                | Verb::Revert
                | Verb::Freeze
                | Verb::Resize => {}
            }
        }
    }
}

/// The blocks that another size cuts off: from the first, to before the last.
fn cut_off(object: &Object, changed: &ObjectFields) -> (u64, u64) {
    let (before, after) = (object.size_bytes(), changed.size_bytes);
    (after.div_ceil(BLOCK_BYTES_U64), before.div_ceil(BLOCK_BYTES_U64))
}

fn snapshot_as_parent(gate: InGate<'_>, snapshot: &Object) -> Parent {
    let position = snapshot.head.with_parent(gate, |own| own.position);
    Parent { position, place: snapshot.place(), living: Some(snapshot.living.clone()) }
}
