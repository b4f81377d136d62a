//! What a record does to the pool, in three moments: prepared before the gate, enacted inside it,
//! settled after it.
//!
//! The same code runs live and in replay, so a pool after a crash is what it was. Invariant:
//! `enact` touches heads only, and allocates nothing; whatever can fail has failed in `prepare`.

use crate::head::{HeadRef, Heads, InGate, Parent};
use crate::map::Map;
use crate::object::{Object, ObjectFields, ObjectKind, Table};
use crate::record::{Item, Record, Verb};
use crate::space::{Birth, Death, Space};
use ramet_log::{ObjectId, Position};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A command with everything it needs.
pub(crate) struct Prepared {
    verb: Verb,
    /// The objects it acts on: for snapshots their volumes, for a revert the volume, for deletes
    /// what ends.
    targets: Vec<Arc<Object>>,
    /// The objects it makes, in order.
    pub(crate) made: Vec<Arc<Object>>,
    /// Whose content is taken: of a clone or a revert.
    source: Option<Arc<Object>>,
    /// The place of the nameless instant, or the volume's new place.
    instant: ObjectId,
    instant_living: Arc<AtomicBool>,
    /// What a rename or a revert changes.
    changed: ObjectFields,
    /// Filled inside the gate: the parents and maps that were replaced.
    parents_before: Vec<Parent>,
    maps_before: Vec<Map>,
}

impl Prepared {
    /// Find the objects of a record and make the new ones. The error is for replay: live commands
    /// were checked before.
    pub(crate) fn new(record: &Record, table: &Table, heads: &Arc<Heads>) -> Result<Self, String> {
        let find =
            |id: ObjectId| table.get(id).cloned().ok_or_else(|| format!("no object {:#x}", id.0));
        let made_count = record.items.iter().filter(|item| item.object.kind.is_some()).count();
        let mut fresh = heads.take(made_count).into_iter();
        let mut made = Vec::with_capacity(made_count);
        let mut targets = Vec::new();
        for item in &record.items {
            if let Some(kind) = item.object.kind {
                let head: HeadRef = fresh.next().expect("one head for each");
                made.push(Arc::new(Object::new(item.object.clone(), kind, head, heads.clone())));
            }
            match (record.verb, item.object.kind) {
                (Verb::Snapshot, _) => targets.push(find(item.source)?),
                (Verb::Revert | Verb::Rename | Verb::Delete, None) => {
                    targets.push(find(item.object.id)?)
                }
                (Verb::Revert | Verb::Rename | Verb::Delete | Verb::Create | Verb::Clone, _) => {}
            }
        }
        let first = record.items.last().cloned().unwrap_or_default();
        let source = match record.verb {
            Verb::Clone | Verb::Revert => Some(find(first.source)?),
            Verb::Create | Verb::Snapshot | Verb::Rename | Verb::Delete => None,
        };
        let Item { object: changed, instant, .. } = first;
        let room = targets.len().max(1);
        let (parents_before, maps_before) = (Vec::with_capacity(room), Vec::with_capacity(room));
        let instant_living = Arc::new(AtomicBool::new(false));
        Ok(Prepared {
            verb: record.verb,
            targets,
            made,
            source,
            instant,
            instant_living,
            changed,
            parents_before,
            maps_before,
        })
    }

    /// Places that the command will make.
    pub(crate) fn places(&self) -> impl Iterator<Item = u64> + '_ {
        let instant = Some(self.instant.0).filter(|id| *id != 0);
        self.made.iter().map(|object| object.place()).chain(instant)
    }

    /// What loses its content.
    pub(crate) fn ending(&self) -> &[Arc<Object>] {
        match self.verb {
            Verb::Delete | Verb::Revert => &self.targets,
            Verb::Create | Verb::Snapshot | Verb::Clone | Verb::Rename => &[],
        }
    }

    /// Bring what `enact` will touch into the processor's caches, so that the gate is closed for
    /// less.
    pub(crate) fn warm(&self) {
        for object in &self.targets {
            object.head.map().touch();
        }
    }

    /// Inside the gate.
    pub(crate) fn enact(&mut self, gate: InGate<'_>, position: Position) {
        match self.verb {
            Verb::Create | Verb::Rename => {}
            Verb::Snapshot => self.enact_snapshots(gate, position),
            Verb::Clone => self.enact_clones(gate, position),
            Verb::Revert => {
                self.enact_snapshots(gate, position);
                self.enact_revert(gate);
            }
            Verb::Delete => self.enact_deletes(gate),
        }
    }

    /// The new objects take their volumes' maps and become their parents. (A revert that keeps
    /// nothing makes none.)
    fn enact_snapshots(&mut self, gate: InGate<'_>, position: Position) {
        for (volume, snapshot) in self.targets.iter().zip(&self.made) {
            *snapshot.head.map_mut(gate) = volume.head.share_map(gate);
            let parent = Parent {
                position,
                place: snapshot.fields.id.0,
                living: Some(snapshot.living.clone()),
            };
            self.parents_before.push(volume.head.replace_parent(gate, parent));
            snapshot.head.replace_parent(gate, Parent { position, ..Parent::default() });
        }
    }

    fn enact_clones(&mut self, gate: InGate<'_>, position: Position) {
        let source = self.source.as_ref().expect("a clone has a source");
        let map = source.head.share_map(gate);
        let parent = match source.kind {
            ObjectKind::Snapshot => {
                let position = source.head.with_parent(gate, |own| own.position);
                Parent { position, place: source.place(), living: Some(source.living.clone()) }
            }
            ObjectKind::Volume => {
                let instant = Parent {
                    position,
                    place: self.instant.0,
                    living: Some(self.instant_living.clone()),
                };
                self.parents_before.push(source.head.replace_parent(gate, instant.clone()));
                instant
            }
        };
        for volume in &self.made {
            *volume.head.map_mut(gate) = map.clone();
            volume.head.replace_parent(gate, parent.clone());
        }
    }

    fn enact_revert(&mut self, gate: InGate<'_>) {
        let (volume, snapshot) =
            (&self.targets[0], self.source.as_ref().expect("a revert has a source"));
        let map = snapshot.head.share_map(gate);
        self.maps_before.push(std::mem::replace(&mut *volume.head.map_mut(gate), map));
        let position = snapshot.head.with_parent(gate, |own| own.position);
        let parent =
            Parent { position, place: snapshot.place(), living: Some(snapshot.living.clone()) };
        self.parents_before.push(volume.head.replace_parent(gate, parent));
        if self.changed.size_bytes != 0 {
            volume.set_size_bytes(self.changed.size_bytes);
        }
    }

    fn enact_deletes(&mut self, gate: InGate<'_>) {
        for object in &self.targets {
            object.set_deleted();
            object.living.store(false, Ordering::Release);
            self.maps_before.push(std::mem::take(&mut *object.head.map_mut(gate)));
            self.parents_before.push(object.head.replace_parent(gate, Parent::default()));
        }
    }

    /// After the gate: the tree of lineage follows. Commands settle in the order they were enacted.
    pub(crate) fn settle(&mut self, space: &Space, position: Position) {
        match self.verb {
            Verb::Rename => {}
            Verb::Create => space.born(self.made.iter().map(|object| Birth { object, parent: 0 })),
            Verb::Snapshot => self.settle_snapshots(space, position),
            Verb::Clone => self.settle_clones(space, position),
            Verb::Revert => {
                self.settle_snapshots(space, position);
                let (volume, snapshot) =
                    (&self.targets[0], self.source.as_ref().expect("a revert has a source"));
                let map = self.maps_before.pop().expect("taken inside the gate");
                space.reverted(volume, self.instant.0, snapshot.place(), position, map);
                volume.set_place(self.instant.0);
            }
            Verb::Delete => {
                let maps = self.maps_before.drain(..);
                space.ended(self.targets.iter().zip(maps).map(|(object, map)| Death {
                    place: object.place(),
                    map,
                    position,
                }));
            }
        }
        space.settled();
    }

    fn settle_snapshots(&self, space: &Space, position: Position) {
        let pairs = self.targets.iter().zip(&self.made);
        space.snapped(pairs.map(|(volume, snapshot)| (volume.place(), snapshot)), position);
    }

    fn settle_clones(&self, space: &Space, position: Position) {
        let source = self.source.as_ref().expect("a clone has a source");
        let parent = match source.kind {
            ObjectKind::Snapshot => source.place(),
            ObjectKind::Volume => {
                space.passed(source.place(), self.instant.0, position);
                self.instant.0
            }
        };
        space.born(self.made.iter().map(|object| Birth { object, parent }));
    }

    /// Once durable: names and objects appear, change or go.
    pub(crate) fn publish(&self, table: &mut Table) {
        for object in &self.made {
            table.insert(object.clone());
        }
        match self.verb {
            Verb::Delete => {
                for object in &self.targets {
                    table.remove(object.id());
                }
            }
            Verb::Rename => table.rename(self.changed.id, &self.changed.name),
            Verb::Create | Verb::Snapshot | Verb::Clone | Verb::Revert => {}
        }
    }
}
