//! The verbs: check, make the record, pass the gate, wait until durable, publish.
//!
//! Invariants: one command at a time; a command that is refused has changed nothing; new names
//! appear once durable.

use crate::command::Prepared;
use crate::engine::{Commands, Engine};
use crate::head::InGate;
use crate::object::{Object, ObjectFields, ObjectInfo, ObjectKind};
use crate::record::{Item, OBJECTS_MAX, Record, Verb};
use crate::{EngineError, Kind};
use parking_lot::MutexGuard;
use ramet_log::{ObjectId, PreparedRecord};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// The largest volume: 256 TiB.
pub const SIZE_BYTES_MAX: u64 = 256 << 40;
/// Sizes are multiples of this.
pub const SECTOR_BYTES: u64 = 512;
/// Names of snapshots at most, in bytes.
const NAME_BYTES_MAX: usize = 255;

type Result<T> = std::result::Result<T, EngineError>;

impl Engine {
    /// Make empty volumes, all or none.
    ///
    /// # Errors
    /// `Conflict` where a name is taken or given twice; `Invalid` for a size; `Full`;
    /// `Unavailable`.
    ///
    /// # Durability
    /// Durable on return, as for every verb here.
    pub fn create_volumes(&self, names: &[String], size_bytes: u64) -> Result<Vec<ObjectInfo>> {
        check_size(size_bytes)?;
        let mut commands = self.begin(names.len())?;
        self.check_free(names)?;
        let batch = Batch::new();
        let items = names
            .iter()
            .map(|name| {
                Ok(Item {
                    object: self.fields(
                        &mut commands,
                        &batch,
                        name,
                        ObjectKind::Volume,
                        size_bytes,
                    )?,
                    ..Item::default()
                })
            })
            .collect::<Result<_>>()?;
        self.run(&mut commands, Record { verb: Verb::Create, items })
    }

    /// Take one instant of several volumes: `names[i]` is the snapshot of `volumes[i]`.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a snapshot among `volumes` or a volume given twice; and as
    /// `create_volumes`.
    pub fn snapshot(&self, volumes: &[String], names: &[String]) -> Result<Vec<ObjectInfo>> {
        if volumes.len() != names.len() {
            return Err(invalid(
                "names_count",
                format!(
                    "{} names for {} volumes; hint: give one name for each",
                    names.len(),
                    volumes.len()
                ),
            ));
        }
        let mut commands = self.begin(names.len())?;
        let sources = self.find_volumes(volumes)?;
        self.check_free(names)?;
        let batch = Batch::new();
        let mut items = Vec::with_capacity(names.len());
        for (volume, name) in sources.iter().zip(names) {
            items.push(self.snapshot_item(&mut commands, &batch, volume, name)?);
        }
        self.run(&mut commands, Record { verb: Verb::Snapshot, items })
    }

    /// Make volumes that start as `source`, a snapshot or a volume; `size_bytes` may be larger than
    /// its size.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a size below the source's; and as `create_volumes`.
    pub fn clone_object(
        &self,
        source: &str,
        names: &[String],
        size_bytes: Option<u64>,
    ) -> Result<Vec<ObjectInfo>> {
        let mut commands = self.begin(names.len())?;
        let source = self.find_object(source)?;
        let size_bytes = size_bytes.unwrap_or(source.size_bytes());
        check_size(size_bytes)?;
        if size_bytes < source.size_bytes() {
            let text = format!(
                "a clone of '{}' with {size_bytes} bytes would cut off its {} bytes; \
                 hint: leave the size out",
                source.name(),
                source.size_bytes()
            );
            return Err(invalid("clone_too_small", text));
        }
        self.check_free(names)?;
        let batch = Batch::new();
        let instant = match source.kind {
            ObjectKind::Volume => self.next_id(&mut commands)?,
            ObjectKind::Snapshot => ObjectId(0),
        };
        let mut items = Vec::with_capacity(names.len());
        for name in names {
            let mut object =
                self.fields(&mut commands, &batch, name, ObjectKind::Volume, size_bytes)?;
            self.set_origin(&mut object, &source);
            items.push(Item { object, source: source.id(), instant });
        }
        self.run(&mut commands, Record { verb: Verb::Clone, items })
    }

    /// Give `volume` the content of `snapshot`, and its size where `take_size`; first a snapshot
    /// `keep_name` of what is discarded, if asked. Result: the volume, then the kept snapshot.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` where the kinds do not fit or a larger snapshot would be cut; `Busy`
    /// where the volume is attached; `Conflict` for a taken `keep_name`.
    pub fn revert(
        &self,
        volume: &str,
        snapshot: &str,
        keep_name: Option<&str>,
        take_size: bool,
    ) -> Result<Vec<ObjectInfo>> {
        let mut commands = self.begin(1)?;
        let volume = self.find_volumes(std::slice::from_ref(&volume.to_string()))?.remove(0);
        let snapshot = self.find_object(snapshot)?;
        if snapshot.kind != ObjectKind::Snapshot {
            return Err(invalid(
                "not_a_snapshot",
                format!("'{}' is a volume; hint: revert to a snapshot", snapshot.name()),
            ));
        }
        if snapshot.size_bytes() > volume.size_bytes() && !take_size {
            let text = format!(
                "snapshot '{}' has {} bytes, volume '{}' only {}; \
                 hint: ask for the snapshot's size too",
                snapshot.name(),
                snapshot.size_bytes(),
                volume.name(),
                volume.size_bytes()
            );
            return Err(invalid("revert_too_small", text));
        }
        check_detached(std::slice::from_ref(&volume))?;
        let batch = Batch::new();
        let mut items = Vec::new();
        if let Some(name) = keep_name {
            self.check_free(std::slice::from_ref(&name.to_string()))?;
            items.push(self.snapshot_item(&mut commands, &batch, &volume, name)?);
        }
        let size_bytes = if take_size { snapshot.size_bytes() } else { 0 };
        let object = ObjectFields { id: volume.id(), size_bytes, ..ObjectFields::default() };
        let instant = self.next_id(&mut commands)?;
        items.push(Item { object, source: snapshot.id(), instant });
        let made = self.run(&mut commands, Record { verb: Verb::Revert, items })?;
        Ok(std::iter::once(self.info(&volume)).chain(made).collect())
    }

    /// Give an object another name.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` where the name is taken.
    pub fn rename(&self, name: &str, new_name: &str) -> Result<ObjectInfo> {
        let mut commands = self.begin(1)?;
        let object = self.find_object(name)?;
        if object.name() != new_name {
            self.check_free(std::slice::from_ref(&new_name.to_string()))?;
            let changed = ObjectFields {
                id: object.id(),
                name: new_name.to_string(),
                ..ObjectFields::default()
            };
            let items = vec![Item { object: changed, ..Item::default() }];
            self.run(&mut commands, Record { verb: Verb::Rename, items })?;
        }
        Ok(self.info(&object))
    }

    /// End objects, all or none; their names are free on return. Result: what they were.
    ///
    /// # Errors
    /// `NotFound`; `Busy` where one is attached; `Conflict` where one is locked; nothing is deleted
    /// then.
    pub fn delete(&self, names: &[String]) -> Result<Vec<ObjectInfo>> {
        let mut commands = self.begin(names.len())?;
        let mut seen = HashSet::new();
        let mut objects = Vec::with_capacity(names.len());
        for name in names {
            let object = self.find_object(name)?;
            if seen.insert(object.id()) {
                objects.push(object);
            }
        }
        check_detached(&objects)?;
        if let Some(locked) = objects.iter().find(|object| object.fields.lock_mode != 0) {
            return Err(EngineError::new(
                Kind::Conflict,
                "object_locked",
                format!("'{}' is locked; hint: wait until its lock ends", locked.name()),
            ));
        }
        let was = objects.iter().map(|object| self.info(object)).collect();
        let item = |object: &Arc<Object>| Item {
            object: ObjectFields { id: object.id(), ..ObjectFields::default() },
            ..Item::default()
        };
        let items = objects.iter().map(item).collect();
        self.run(&mut commands, Record { verb: Verb::Delete, items })?;
        Ok(was)
    }

    fn begin(&self, objects_count: usize) -> Result<MutexGuard<'_, Commands>> {
        if objects_count > OBJECTS_MAX {
            let text = format!(
                "{objects_count} objects in one command are more than {OBJECTS_MAX}; \
                 hint: use several commands"
            );
            return Err(invalid("too_many_objects", text));
        }
        Ok(self.commands.lock())
    }

    /// Write the record, and make true what it says. Result: the objects it made.
    fn run(
        &self,
        commands: &mut MutexGuard<'_, Commands>,
        record: Record,
    ) -> Result<Vec<ObjectInfo>> {
        if record.items.is_empty() {
            return Ok(Vec::new());
        }
        let mut prepared =
            Prepared::new(&record, &self.table.read(), &self.heads).expect("checked before");
        let bytes = PreparedRecord::new(record.encode())?;
        // Attaching takes the same lock: from here on what was found detached stays so until the
        // gate is passed.
        let attaching = self.attaching.write();
        check_detached(prepared.ending())?;
        self.space.reserve(prepared.places());
        prepared.warm();
        let mut gate = self
            .log
            .enter_command(&bytes)
            .inspect_err(|_| self.space.unreserve(prepared.places()))?;
        let position = gate.record(bytes);
        prepared.enact(InGate::closed(&gate), position);
        let sequence = gate.sequence();
        drop(gate);
        drop(attaching);
        prepared.settle(&self.space, position);
        commands.note(position);
        self.log.commit(sequence)?;
        prepared.publish(&mut self.table.write());
        Ok(prepared.made.iter().map(|object| self.info(object)).collect())
    }

    fn next_id(&self, commands: &mut Commands) -> Result<ObjectId> {
        Ok(commands.next_id(self.log.ensure_epoch()?))
    }

    fn fields(
        &self,
        commands: &mut Commands,
        batch: &Batch,
        name: &str,
        kind: ObjectKind,
        size_bytes: u64,
    ) -> Result<ObjectFields> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(invalid(
                "name_length",
                format!("a name of {} bytes; hint: 1 to {NAME_BYTES_MAX}", name.len()),
            ));
        }
        Ok(ObjectFields {
            id: self.next_id(commands)?,
            uuid: Uuid::now_v7(),
            name: name.to_string(),
            kind: Some(kind),
            size_bytes,
            batch: batch.uuid,
            created_ns: batch.created_ns,
            ..ObjectFields::default()
        })
    }

    fn snapshot_item(
        &self,
        commands: &mut Commands,
        batch: &Batch,
        volume: &Arc<Object>,
        name: &str,
    ) -> Result<Item> {
        let mut object =
            self.fields(commands, batch, name, ObjectKind::Snapshot, volume.size_bytes())?;
        self.set_origin(&mut object, volume);
        Ok(Item { object, source: volume.id(), instant: ObjectId(0) })
    }

    fn set_origin(&self, object: &mut ObjectFields, source: &Arc<Object>) {
        object.parent = ObjectId(source.place());
        object.origin_object = source.fields.uuid;
        object.origin_log = self.log_uuid;
    }

    fn check_free(&self, names: &[String]) -> Result<()> {
        let table = self.table.read();
        let mut seen = HashSet::with_capacity(names.len());
        for name in names {
            if table.is_taken(name) {
                return Err(EngineError::new(
                    Kind::Conflict,
                    "name_taken",
                    format!("'{name}' exists already; hint: choose another name"),
                ));
            }
            if !seen.insert(name) {
                return Err(EngineError::new(
                    Kind::Conflict,
                    "name_given_twice",
                    format!("'{name}' is given twice; hint: give each name once"),
                ));
            }
        }
        Ok(())
    }

    fn find_volumes(&self, names: &[String]) -> Result<Vec<Arc<Object>>> {
        let mut seen = HashSet::with_capacity(names.len());
        let mut volumes = Vec::with_capacity(names.len());
        for name in names {
            let object = self.find_object(name)?;
            if object.kind != ObjectKind::Volume {
                return Err(invalid(
                    "not_a_volume",
                    format!("'{name}' is a snapshot and never changes; hint: clone it"),
                ));
            }
            if !seen.insert(object.id()) {
                return Err(invalid(
                    "volume_given_twice",
                    format!("'{name}' is given twice; hint: give each volume once"),
                ));
            }
            volumes.push(object);
        }
        Ok(volumes)
    }
}

/// What all objects of one command share.
struct Batch {
    uuid: Uuid,
    created_ns: u64,
}

impl Batch {
    fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Batch {
            uuid: Uuid::now_v7(),
            created_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
        }
    }
}

fn invalid(code: &'static str, text: String) -> EngineError {
    EngineError::new(Kind::Invalid, code, text)
}

fn check_size(size_bytes: u64) -> Result<()> {
    if size_bytes == 0 || size_bytes > SIZE_BYTES_MAX || !size_bytes.is_multiple_of(SECTOR_BYTES) {
        let text = format!(
            "a size of {size_bytes} bytes; \
             hint: a multiple of {SECTOR_BYTES}, from {SECTOR_BYTES} to {SIZE_BYTES_MAX} (256 TiB)"
        );
        return Err(invalid("size_out_of_range", text));
    }
    Ok(())
}

fn check_detached(objects: &[Arc<Object>]) -> Result<()> {
    match objects.iter().find(|object| object.attached.load(Ordering::Acquire) > 0) {
        None => Ok(()),
        Some(object) => {
            let text = format!(
                "'{}' is attached ({} connections); hint: detach it, or use --force",
                object.name(),
                object.attached.load(Ordering::Acquire)
            );
            Err(EngineError::new(Kind::Busy, "object_attached", text))
        }
    }
}
