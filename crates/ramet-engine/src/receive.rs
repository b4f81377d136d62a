//! Snapshots that are being received: hidden volumes that a stream is written into, until all of
//! them become snapshots at once.
//!
//! docs/internals/stream.md says how they are used. Invariants: what is being received has the UUID
//! that its snapshot will have, and no name; nobody finds, attaches, lists, clones or deletes it
//! but by the calls here; several are admitted in one commit, or none.

use crate::engine::{Commands, Engine};
use crate::object::{Object, ObjectFields, ObjectInfo, ObjectKind, State};
use crate::record::{Item, Record, Verb};
use crate::verbs::{check_attributes, check_counts, check_name_length, check_size, item_of};
use crate::volume::VolumeDevice;
use crate::{BlockDevice, EngineError, Kind};
use parking_lot::MutexGuard;
use ramet_log::ObjectId;
use std::sync::Arc;
use uuid::Uuid;

type Result<T> = std::result::Result<T, EngineError>;

/// What a snapshot that is to be received brings with it.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// Of the snapshot, where it was taken and here.
    pub uuid: Uuid,
    /// Of the command that took it.
    pub batch: Uuid,
    /// Of the volume it was taken from; nil: none.
    pub source: Uuid,
    /// When it was taken: nanoseconds since 1970.
    pub created_ns: u64,
    /// Its size.
    pub size_bytes: u64,
    /// How far it is: see `note_receiving`.
    pub attributes: Vec<u8>,
}

impl Engine {
    /// Make a hidden volume for a snapshot that is to be received. It starts with the content of
    /// the snapshot `base`, if one is given, as far as the size goes. One without
    /// attributes, where some were given, does not have the right size yet: a crash came between.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for the base; `Invalid` for attributes over `ATTRIBUTES_BYTES_MAX`;
    /// `Conflict` where the UUID is somebody's; `Full`.
    ///
    /// # Durability
    /// Durable on return, as for every verb here.
    pub fn begin_receiving(
        self: &Arc<Self>,
        incoming: &Incoming,
        base: Option<&str>,
    ) -> Result<ObjectInfo> {
        check_size(incoming.size_bytes)?;
        check_attributes(&incoming.attributes)?;
        let mut commands = self.begin(1)?;
        self.check_uuid_free(incoming.uuid)?;
        let base = base.map(|name| self.find_object(name)).transpose()?;
        if let Some(volume) = base.as_ref().filter(|base| base.kind() == ObjectKind::Volume) {
            let text = format!("'{}' is a volume; hint: a snapshot is a base", volume.name());
            return Err(EngineError::new(Kind::Invalid, "not_a_snapshot", text));
        }
        let base_bytes = base.as_ref().map_or(0, |base| base.size_bytes());
        let shrinks = incoming.size_bytes < base_bytes;
        let object = ObjectFields {
            id: self.next_id(&mut commands)?,
            uuid: incoming.uuid,
            kind: Some(ObjectKind::Volume),
            state: State::Receiving,
            size_bytes: incoming.size_bytes.max(base_bytes),
            batch: incoming.batch,
            created_ns: incoming.created_ns,
            attributes: if shrinks { Vec::new() } else { incoming.attributes.clone() },
            parent: ObjectId(base.as_ref().map_or(0, |base| base.place())),
            origin_object: incoming.source,
            ..ObjectFields::default()
        };
        let verb = if base.is_some() { Verb::Clone } else { Verb::Create };
        let source = base.map_or(ObjectId(0), |base| base.id());
        let items = vec![Item { object, source, ..Item::default() }];
        self.run(&mut commands, Record { verb, items })?;
        let made = self.find_receiving(incoming.uuid)?;
        if shrinks {
            self.resize_object(&mut commands, &made, incoming.size_bytes)?;
            self.set_receiving(&mut commands, &made, &incoming.attributes)?;
        }
        Ok(self.info(&made))
    }

    /// Give what is being received other attributes: how far it is.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` over `ATTRIBUTES_BYTES_MAX`; `Full`.
    pub fn note_receiving(&self, uuid: Uuid, attributes: &[u8]) -> Result<()> {
        check_attributes(attributes)?;
        let mut commands = self.begin(1)?;
        let object = self.find_receiving(uuid)?;
        self.set_receiving(&mut commands, &object, attributes)
    }

    fn set_receiving(
        &self,
        commands: &mut MutexGuard<'_, Commands>,
        object: &Arc<Object>,
        attributes: &[u8],
    ) -> Result<()> {
        let items = vec![item_of(object, |it| it.attributes = attributes.to_vec())];
        self.run(commands, Record { verb: Verb::Attributes, items })?;
        Ok(())
    }

    /// Make snapshots of what was received, all in one commit: `uuids[i]` is `names[i]` and has
    /// `attributes[i]`.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` where a name is taken or given twice; `Invalid`; `Full`.
    pub fn admit(
        &self,
        uuids: &[Uuid],
        names: &[String],
        attributes: &[Vec<u8>],
    ) -> Result<Vec<ObjectInfo>> {
        check_counts(names, uuids, "UUIDs")?;
        check_counts(names, attributes, "attributes")?;
        let mut commands = self.begin(names.len())?;
        self.check_free(names)?;
        let mut objects = Vec::with_capacity(uuids.len());
        let mut items = Vec::with_capacity(uuids.len());
        for ((uuid, name), bytes) in uuids.iter().zip(names).zip(attributes) {
            check_name_length(name)?;
            check_attributes(bytes)?;
            let object = self.find_receiving(*uuid)?;
            items.push(item_of(&object, |it| {
                it.name.clone_from(name);
                it.attributes.clone_from(bytes);
            }));
            objects.push(object);
        }
        self.run(&mut commands, Record { verb: Verb::Admit, items })?;
        Ok(objects.iter().map(|object| self.info(object)).collect())
    }

    /// Give up what is being received, all or none.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn abandon(&self, uuids: &[Uuid]) -> Result<()> {
        let mut commands = self.begin(uuids.len())?;
        let objects: Vec<Arc<Object>> =
            uuids.iter().map(|uuid| self.find_receiving(*uuid)).collect::<Result<_>>()?;
        let items = objects.iter().map(|object| item_of(object, |_| {})).collect();
        self.run(&mut commands, Record { verb: Verb::Delete, items })?;
        Ok(())
    }

    /// What is being received, in any order.
    pub fn receiving(&self) -> Vec<ObjectInfo> {
        let is_received = |object: &&Arc<Object>| object.state() == State::Receiving;
        let table = self.table.read();
        let objects: Vec<_> = table.all().filter(is_received).cloned().collect();
        drop(table);
        objects.iter().map(|object| self.info(object)).collect()
    }

    /// Open what is being received for I/O.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn receiving_device(self: &Arc<Self>, uuid: Uuid) -> Result<Arc<dyn BlockDevice>> {
        let object = self.find_receiving(uuid)?;
        Ok(Arc::new(VolumeDevice::new(self.clone(), object, false)))
    }

    pub(crate) fn find_receiving(&self, uuid: Uuid) -> Result<Arc<Object>> {
        let found = self.table.read().with_uuid(uuid).cloned();
        found.filter(|object| object.state() == State::Receiving).ok_or_else(|| {
            let text = format!("{uuid} is not being received; hint: `ramet receive --list`");
            EngineError::new(Kind::NotFound, "not_receiving", text)
        })
    }

    fn check_uuid_free(&self, uuid: Uuid) -> Result<()> {
        let table = self.table.read();
        let Some(other) = table.with_uuid(uuid) else {
            return Ok(());
        };
        let text = match other.state() {
            State::Live => format!("{uuid} is here: '{}'; hint: it need not come", other.name()),
            State::Receiving => {
                format!("{uuid} is being received already; hint: `ramet receive --list`")
            }
            State::Trashed => format!(
                "{uuid} is in the trash, as '{}'; hint: `ramet trash restore` or `empty`",
                other.name()
            ),
        };
        Err(EngineError::new(Kind::Conflict, "uuid_taken", text))
    }
}
