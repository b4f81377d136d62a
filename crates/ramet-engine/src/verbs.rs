//! The verbs: check, make the record, pass the gate, wait until durable, publish.
//!
//! Invariants: one command at a time; a command that is refused has changed nothing; new names
//! appear once durable.

use crate::command::Prepared;
use crate::engine::{Commands, Engine};
use crate::head::InGate;
use crate::object::{Object, ObjectFields, ObjectInfo, ObjectKind};
use crate::record::{Item, OBJECTS_MAX, Record, Verb};
use crate::reserve::Room;
use crate::volume::VolumeDevice;
use crate::{BlockDevice, EngineError, Kind};
use parking_lot::MutexGuard;
use ramet_log::{BLOCK_BYTES_U64, GateGuard, ObjectId, PreparedRecord};
use ramet_store::locks::RwLockReadGuard;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// The largest volume: 256 TiB.
pub const SIZE_BYTES_MAX: u64 = 256 << 40;
/// Sizes are multiples of this.
pub const SECTOR_BYTES: u64 = 512;
/// Attributes of one object at most.
pub const ATTRIBUTES_BYTES_MAX: usize = 64 << 10;
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
    pub fn create_volumes(
        &self,
        names: &[String],
        size_bytes: u64,
        attributes: &[u8],
    ) -> Result<Vec<ObjectInfo>> {
        check_size(size_bytes)?;
        let mut commands = self.begin(names.len())?;
        self.check_free(names)?;
        let batch = Batch::new(attributes)?;
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
    pub fn snapshot(
        &self,
        volumes: &[String],
        names: &[String],
        attributes: &[u8],
    ) -> Result<Vec<ObjectInfo>> {
        check_counts(volumes, names, "names")?;
        let mut commands = self.begin(names.len())?;
        let sources = self.find_volumes(volumes)?;
        self.check_free(names)?;
        let batch = Batch::new(attributes)?;
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
        attributes: &[u8],
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
        let batch = Batch::new(attributes)?;
        let instant = match source.kind() {
            ObjectKind::Volume => self.next_id(&mut commands)?,
            ObjectKind::Snapshot => ObjectId(0),
        };
        let mut items = Vec::with_capacity(names.len());
        for name in names {
            let mut object =
                self.fields(&mut commands, &batch, name, ObjectKind::Volume, size_bytes)?;
            self.set_origin(&mut object, &source);
            items.push(Item { object, source: source.id(), instant, ..Item::default() });
        }
        self.run(&mut commands, Record { verb: Verb::Clone, items })
    }

    /// Give each volume the content of its snapshot, and its size where `take_size`; first take
    /// snapshots `keep_names` of what is discarded, one for each, if asked. Result: the kept
    /// snapshots.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` where the kinds do not fit or a larger snapshot would be cut; `Busy`
    /// where a volume is attached; `Conflict` for a taken name.
    pub fn revert(
        &self,
        volumes: &[String],
        snapshots: &[String],
        keep_names: Option<&[String]>,
        take_size: bool,
    ) -> Result<Vec<ObjectInfo>> {
        check_counts(volumes, snapshots, "snapshots")?;
        let mut commands = self.begin(2 * volumes.len())?;
        let volumes = self.find_volumes(volumes)?;
        let mut items = Vec::with_capacity(2 * volumes.len());
        if let Some(names) = keep_names {
            self.check_free(names)?;
            let batch = Batch::new(&[])?;
            for (volume, name) in volumes.iter().zip(names) {
                items.push(self.snapshot_item(&mut commands, &batch, volume, name)?);
            }
        }
        for (volume, name) in volumes.iter().zip(snapshots) {
            let snapshot = self.find_object(name)?;
            check_revert(volume, &snapshot, take_size)?;
            let size_bytes = if take_size { snapshot.size_bytes() } else { 0 };
            let object = ObjectFields { id: volume.id(), size_bytes, ..ObjectFields::default() };
            let instant = self.next_id(&mut commands)?;
            items.push(Item { object, source: snapshot.id(), instant, ..Item::default() });
        }
        self.run(&mut commands, Record { verb: Verb::Revert, items })
    }

    /// Make snapshots of volumes: they keep their names and never change again.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for what is a snapshot already; `Busy` where one is attached.
    pub fn freeze(&self, names: &[String]) -> Result<Vec<ObjectInfo>> {
        let mut commands = self.begin(names.len())?;
        let volumes = self.find_volumes(names)?;
        let items = volumes.iter().map(|volume| item_of(volume, |_| {})).collect();
        self.run(&mut commands, Record { verb: Verb::Freeze, items })?;
        Ok(volumes.iter().map(|volume| self.info(volume)).collect())
    }

    /// Give a volume another size; what lies beyond a smaller one is discarded.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a size, for a smaller one without `may_shrink`, for a snapshot;
    /// `Busy` where it shrinks and is attached.
    pub fn resize(
        self: &Arc<Self>,
        name: &str,
        size_bytes: u64,
        may_shrink: bool,
    ) -> Result<ObjectInfo> {
        check_size(size_bytes)?;
        let mut commands = self.begin(1)?;
        let volume = self.find_volumes(std::slice::from_ref(&name.to_string()))?.remove(0);
        let before = volume.size_bytes();
        if size_bytes < before && !may_shrink {
            let text = format!(
                "'{name}' has {before} bytes, {size_bytes} would cut it off; \
                 hint: allow shrinking, if what lies behind may go"
            );
            return Err(invalid("resize_would_shrink", text));
        }
        self.resize_object(&mut commands, &volume, size_bytes)?;
        Ok(self.info(&volume))
    }

    pub(crate) fn resize_object(
        self: &Arc<Self>,
        commands: &mut MutexGuard<'_, Commands>,
        volume: &Arc<Object>,
        size_bytes: u64,
    ) -> Result<()> {
        let before = volume.size_bytes();
        if size_bytes < before {
            check_detached(std::slice::from_ref(volume))?;
            // The rest of the last block must read as zeros, should the volume grow again.
            let block_end = size_bytes.next_multiple_of(BLOCK_BYTES_U64).min(before);
            let device = VolumeDevice::in_command(self.clone(), volume.clone());
            device.write_zeroes(size_bytes, block_end - size_bytes, false)?;
        }
        let items = vec![item_of(volume, |object| object.size_bytes = size_bytes)];
        self.run(commands, Record { verb: Verb::Resize, items })?;
        Ok(())
    }

    /// Give objects other attributes, JSON of the layer above: `attributes[i]` of `names[i]`.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` over `ATTRIBUTES_BYTES_MAX`.
    pub fn set_attributes(&self, names: &[String], attributes: &[Vec<u8>]) -> Result<()> {
        check_counts(names, attributes, "attributes")?;
        let mut commands = self.begin(names.len())?;
        let mut items = Vec::with_capacity(names.len());
        for (name, bytes) in names.iter().zip(attributes) {
            check_attributes(bytes)?;
            let object = self.find_object(name)?;
            items.push(item_of(&object, |object| object.attributes.clone_from(bytes)));
        }
        self.run(&mut commands, Record { verb: Verb::Attributes, items })?;
        Ok(())
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
            let items = vec![item_of(&object, |object| object.name = new_name.to_string())];
            self.run(&mut commands, Record { verb: Verb::Rename, items })?;
        }
        Ok(self.info(&object))
    }

    /// End objects, all or none; their names are free on return, and nothing brings them back: see
    /// `trash`. Result: what they were.
    ///
    /// # Errors
    /// `NotFound`; `Busy` where one is attached; `Conflict` where one is locked; nothing is deleted
    /// then.
    pub fn delete(&self, names: &[String]) -> Result<Vec<ObjectInfo>> {
        self.delete_as(Verb::Delete, names, 0)
    }

    /// `Verb::Delete`, or `Verb::Trash` until the lock clock shows `until_ns`.
    pub(crate) fn delete_as(
        &self,
        verb: Verb,
        names: &[String],
        until_ns: u64,
    ) -> Result<Vec<ObjectInfo>> {
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
        let mut items = self.items_of_unlocked(&objects)?;
        items.iter_mut().for_each(|item| item.object.delete_after_ns = until_ns);
        let was = objects.iter().map(|object| self.info(object)).collect();
        self.run(&mut commands, Record { verb, items })?;
        Ok(was)
    }

    pub(crate) fn begin(&self, objects_count: usize) -> Result<MutexGuard<'_, Commands>> {
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
    pub(crate) fn run(
        &self,
        commands: &mut MutexGuard<'_, Commands>,
        record: Record,
    ) -> Result<Vec<ObjectInfo>> {
        let room = match record.verb {
            // What was locked is to be deleted next.
            Verb::Delete | Verb::Unlock => Room::Reserve,
            Verb::Create
            | Verb::Snapshot
            | Verb::Clone
            | Verb::Revert
            | Verb::Rename
            | Verb::Freeze
            | Verb::Resize
            | Verb::Attributes
            | Verb::Admit
            | Verb::Lock
            | Verb::Trash
            | Verb::Restore => Room::Usual,
        };
        self.run_from(room, commands, record)
    }

    /// As `run`.
    pub(crate) fn run_from(
        &self,
        room: Room,
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
        check_detached(&prepared.ending())?;
        self.space.reserve(prepared.places());
        prepared.warm();
        let filled = if room == Room::Reserve { Ok(()) } else { self.fill_reserve() };
        let entered = filled.and_then(|()| self.enter_ready(&prepared, &bytes, room));
        let (mut gate, hold) = entered.inspect_err(|_| self.space.unreserve(prepared.places()))?;
        let position = gate.record(bytes);
        prepared.enact(InGate::closed(&gate), &self.space, &self.nodes, position);
        drop(hold);
        let sequence = gate.sequence();
        drop(gate);
        drop(attaching);
        prepared.settle(&self.space, position);
        commands.note(position);
        self.log.commit(sequence)?;
        prepared.publish(&mut self.table.write(), &self.changed);
        Ok(prepared.made.iter().map(|object| self.info(object)).collect())
    }

    /// Close the gate with everything in memory that the command needs of the maps.
    fn enter_ready(
        &self,
        prepared: &Prepared,
        bytes: &PreparedRecord,
        room: Room,
    ) -> Result<(GateGuard<'_>, RwLockReadGuard<'_, ()>)> {
        self.nodes.with(|| prepared.ready())?;
        loop {
            let enter = || {
                let entered = self.log.enter_command(bytes);
                entered.map_err(|error| self.note_full(error))
            };
            let gate = match room {
                Room::Usual => enter()?,
                Room::Reserve => self.with_reserve(enter)?,
            };
            let hold = self.nodes.hold();
            match prepared.ready() {
                Ok(()) => return Ok((gate, hold)),
                Err(missing) => {
                    drop((hold, gate));
                    self.nodes.load(&missing)?;
                }
            }
        }
    }

    pub(crate) fn next_id(&self, commands: &mut Commands) -> Result<ObjectId> {
        Ok(commands.next_id(self.log.ensure_epoch()?))
    }

    fn fields(
        &self,
        commands: &mut Commands,
        batch: &Batch<'_>,
        name: &str,
        kind: ObjectKind,
        size_bytes: u64,
    ) -> Result<ObjectFields> {
        check_name_length(name)?;
        Ok(ObjectFields {
            id: self.next_id(commands)?,
            uuid: Uuid::now_v7(),
            name: name.to_string(),
            kind: Some(kind),
            size_bytes,
            batch: batch.uuid,
            created_ns: batch.created_ns,
            attributes: batch.attributes.to_vec(),
            ..ObjectFields::default()
        })
    }

    fn snapshot_item(
        &self,
        commands: &mut Commands,
        batch: &Batch<'_>,
        volume: &Arc<Object>,
        name: &str,
    ) -> Result<Item> {
        let mut object =
            self.fields(commands, batch, name, ObjectKind::Snapshot, volume.size_bytes())?;
        self.set_origin(&mut object, volume);
        Ok(Item { object, source: volume.id(), ..Item::default() })
    }

    fn set_origin(&self, object: &mut ObjectFields, source: &Arc<Object>) {
        object.parent = ObjectId(source.place());
        object.origin_object = source.fixed.uuid;
        object.origin_log = self.log_uuid;
    }

    pub(crate) fn check_free(&self, names: &[String]) -> Result<()> {
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
            if object.kind() != ObjectKind::Volume {
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

pub(crate) fn check_name_length(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(invalid(
            "name_length",
            format!("a name of {} bytes; hint: 1 to {NAME_BYTES_MAX}", name.len()),
        ));
    }
    Ok(())
}

/// A record's item that changes an object.
pub(crate) fn item_of(object: &Object, change: impl FnOnce(&mut ObjectFields)) -> Item {
    let mut changed = ObjectFields { id: object.id(), ..ObjectFields::default() };
    change(&mut changed);
    Item { object: changed, ..Item::default() }
}

pub(crate) fn check_counts<T>(volumes: &[String], others: &[T], what: &str) -> Result<()> {
    if volumes.len() == others.len() {
        return Ok(());
    }
    let text = format!("{} {what} for {} volumes; hint: one for each", others.len(), volumes.len());
    Err(invalid("counts_differ", text))
}

fn check_revert(volume: &Object, snapshot: &Object, take_size: bool) -> Result<()> {
    if snapshot.kind() != ObjectKind::Snapshot {
        let text = format!("'{}' is a volume; hint: revert to a snapshot", snapshot.name());
        return Err(invalid("not_a_snapshot", text));
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
    Ok(())
}

/// What all objects of one command share.
struct Batch<'a> {
    uuid: Uuid,
    created_ns: u64,
    attributes: &'a [u8],
}

impl<'a> Batch<'a> {
    fn new(attributes: &'a [u8]) -> Result<Self> {
        check_attributes(attributes)?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let created_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        Ok(Batch { uuid: Uuid::now_v7(), created_ns, attributes })
    }
}

pub(crate) fn check_attributes(attributes: &[u8]) -> Result<()> {
    if attributes.len() <= ATTRIBUTES_BYTES_MAX {
        return Ok(());
    }
    let text = format!(
        "attributes of {} bytes; hint: at most {ATTRIBUTES_BYTES_MAX} for each object",
        attributes.len()
    );
    Err(invalid("attributes_too_large", text))
}

fn invalid(code: &'static str, text: String) -> EngineError {
    EngineError::new(Kind::Invalid, code, text)
}

pub(crate) fn check_size(size_bytes: u64) -> Result<()> {
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
