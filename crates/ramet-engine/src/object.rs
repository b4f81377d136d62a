//! Objects: volumes and snapshots, and the table of their names.
//!
//! Invariants: a name belongs to one object that all see; ids and UUIDs are never used twice; an
//! object that is not in the table takes no I/O.

use crate::head::{HeadRef, Heads};
use crate::ids::IdMap;
use crate::locks::{Ends, LockInfo, ObjectLock};
use parking_lot::{Mutex, RwLock};
use ramet_log::{ObjectId, Position};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use uuid::Uuid;

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ObjectKind {
    /// Writable.
    Volume = 1,
    /// Never changes.
    Snapshot = 2,
}

impl ObjectKind {
    pub(crate) fn from_raw(raw: &[u8]) -> Result<Self, String> {
        match raw {
            [1] => Ok(ObjectKind::Volume),
            [2] => Ok(ObjectKind::Snapshot),
            other => Err(format!("an object of unknown kind {other:?}")),
        }
    }
}

/// Who sees an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Everybody.
    #[default]
    Live = 1,
    /// Nobody: a stream is written into it. It has no name; only `receive.rs` finds it.
    Receiving = 2,
    /// Nobody: it was deleted, and can be restored. Its name may be another's; only `trash.rs`
    /// finds it.
    Trashed = 3,
}

impl State {
    pub(crate) fn from_raw(raw: &[u8]) -> Result<Self, String> {
        match raw {
            [1] => Ok(State::Live),
            [2] => Ok(State::Receiving),
            [3] => Ok(State::Trashed),
            other => Err(format!("an object in unknown state {other:?}")),
        }
    }
}

/// What the log stores of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectFields {
    /// Opaque, unique for ever.
    pub id: ObjectId,
    /// Stays with a snapshot when it is replicated.
    pub uuid: Uuid,
    /// Unique among those that all see; in the trash: the name it had.
    pub name: String,
    /// `None` in records that do not make the object.
    pub kind: Option<ObjectKind>,
    /// Who sees it.
    pub state: State,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Shared by all objects of one command.
    pub batch: Uuid,
    /// Nanoseconds since 1970.
    pub created_ns: u64,
    /// The place it was hung under when it was made.
    pub parent: ObjectId,
    /// The object it was taken from: UUID, that one's log, the position there.
    pub origin_object: Uuid,
    /// See `origin_object`.
    pub origin_log: Uuid,
    /// See `origin_object`.
    pub origin_position: Position,
    /// Number shown to guests; zero: none.
    pub serial: u64,
    /// 0: not locked; else see `LockMode`.
    pub lock_mode: u8,
    /// Lock clock at which the lock ends, if not before.
    pub lock_until_ns: u64,
    /// Lock clock up to which the lock can be taken back.
    pub lock_firm_ns: u64,
    /// Lock clock when the lock was set. In a record that ends a lock: the clock then.
    pub lock_clock_ns: u64,
    /// Time of day when a governance lock was set, in nanoseconds since 1970.
    pub lock_day_ns: u64,
    /// Lock clock from which on what is in the trash may go.
    pub delete_after_ns: u64,
    /// JSON, owned by the layer above.
    pub attributes: Vec<u8>,
    /// Fields of later versions, as they are.
    pub unknown: Vec<u8>,
}

/// What of an object's fields never changes. Small: there may be a million of them.
pub(crate) struct Fixed {
    pub(crate) id: ObjectId,
    pub(crate) uuid: Uuid,
    pub(crate) batch: Uuid,
    pub(crate) created_ns: u64,
    pub(crate) origin_object: Uuid,
    parent: ObjectId,
    origin_log: Uuid,
    origin_position: Position,
    rare: Option<Box<Rare>>,
}

/// Fields that few objects have.
struct Rare {
    serial: u64,
    unknown: Vec<u8>,
}

impl Fixed {
    fn new(fields: &mut ObjectFields) -> Self {
        let serial = fields.serial;
        let unknown = std::mem::take(&mut fields.unknown);
        let common = serial == 0 && unknown.is_empty();
        let rare = (!common).then(|| Box::new(Rare { serial, unknown }));
        Fixed {
            id: fields.id,
            uuid: fields.uuid,
            batch: fields.batch,
            created_ns: fields.created_ns,
            origin_object: fields.origin_object,
            parent: fields.parent,
            origin_log: fields.origin_log,
            origin_position: fields.origin_position,
            rare,
        }
    }

    /// All that is here, as fields.
    fn fields(&self) -> ObjectFields {
        let mut fields = ObjectFields {
            id: self.id,
            uuid: self.uuid,
            batch: self.batch,
            created_ns: self.created_ns,
            origin_object: self.origin_object,
            parent: self.parent,
            origin_log: self.origin_log,
            origin_position: self.origin_position,
            ..ObjectFields::default()
        };
        if let Some(rare) = &self.rare {
            fields.serial = rare.serial;
            fields.unknown.clone_from(&rare.unknown);
        }
        fields
    }
}

/// A living volume or snapshot.
pub(crate) struct Object {
    pub(crate) fixed: Fixed,
    frozen: AtomicBool,
    state: AtomicU8,
    /// See `ObjectFields`.
    delete_after_ns: AtomicU64,
    name: RwLock<Arc<str>>,
    attributes: RwLock<Box<[u8]>>,
    /// Its lock, over or not. Boxed: few objects have one.
    lock: RwLock<Option<Box<ObjectLock>>>,
    size_bytes: AtomicU64,
    pub(crate) head: HeadRef,
    heads: Arc<Heads>,
    /// Its place in the tree of lineage; a revert gives it another.
    place: AtomicU64,
    /// Whether that place is living; shared with its children's heads.
    pub(crate) living: Arc<AtomicBool>,
    /// Front ends that have it open.
    pub(crate) attached: AtomicU32,
    deleted: AtomicBool,
    /// Whether the next checkpoint has to write it.
    changed: AtomicBool,
}

/// Objects that are looked at under the lock of their list.
const WARMED_AT_ONCE: usize = 256;

/// What the next checkpoint has to write or forget.
#[derive(Default)]
pub(crate) struct Changed {
    objects: Mutex<Vec<Arc<Object>>>,
    gone: Mutex<Vec<ObjectId>>,
}

impl Changed {
    /// Note that an object, or its map, changed. Cheap where that is known.
    pub(crate) fn note(&self, object: &Arc<Object>) {
        if !object.changed.load(Ordering::Relaxed) && !object.changed.swap(true, Ordering::AcqRel) {
            self.objects.lock().push(object.clone());
        }
    }

    pub(crate) fn note_gone(&self, id: ObjectId) {
        self.gone.lock().push(id);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.objects.lock().is_empty() && self.gone.lock().is_empty()
    }

    /// Bring what `take` and a look at the maps will touch into the processor's caches, so that the
    /// gate is closed for less.
    pub(crate) fn warm(&self) {
        let mut at = 0;
        loop {
            // Few at a time: writers note what they change under this lock.
            let some: Vec<Arc<Object>> =
                self.objects.lock().iter().skip(at).take(WARMED_AT_ONCE).cloned().collect();
            if some.is_empty() {
                return;
            }
            some.iter().for_each(|object| object.head.map().touch());
            at += some.len();
        }
    }

    /// Inside the gate: what changed; it counts as unchanged from here on.
    pub(crate) fn take(&self) -> (Vec<Arc<Object>>, Vec<ObjectId>) {
        let objects = std::mem::take(&mut *self.objects.lock());
        objects.iter().for_each(|object| object.changed.store(false, Ordering::Release));
        (objects, std::mem::take(&mut *self.gone.lock()))
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // Only now can nobody read through the head any more.
        self.heads.put_back(self.head.clone());
    }
}

impl Object {
    pub(crate) fn new(
        mut fields: ObjectFields,
        kind: ObjectKind,
        head: HeadRef,
        heads: Arc<Heads>,
    ) -> Self {
        Object {
            frozen: AtomicBool::new(kind == ObjectKind::Snapshot),
            state: AtomicU8::new(fields.state as u8),
            delete_after_ns: AtomicU64::new(fields.delete_after_ns),
            name: RwLock::new(fields.name.as_str().into()),
            attributes: RwLock::new(std::mem::take(&mut fields.attributes).into()),
            lock: RwLock::new(ObjectLock::of(&fields).map(Box::new)),
            size_bytes: AtomicU64::new(fields.size_bytes),
            place: AtomicU64::new(fields.id.0),
            head,
            heads,
            living: Arc::new(AtomicBool::new(true)),
            attached: AtomicU32::new(0),
            deleted: AtomicBool::new(fields.state == State::Trashed),
            changed: AtomicBool::new(false),
            fixed: Fixed::new(&mut fields),
        }
    }

    /// What a checkpoint keeps: the fields as they are now.
    pub(crate) fn fields_now(&self) -> ObjectFields {
        let lock = self.lock().unwrap_or_default();
        ObjectFields {
            lock_mode: lock.mode,
            lock_until_ns: lock.until_ns,
            lock_firm_ns: lock.firm_ns,
            lock_clock_ns: lock.clock_ns,
            lock_day_ns: lock.day_ns,
            name: self.name(),
            kind: Some(self.kind()),
            state: self.state(),
            delete_after_ns: self.delete_after_ns(),
            size_bytes: self.size_bytes(),
            attributes: self.attributes(),
            ..self.fixed.fields()
        }
    }

    /// The moment a snapshot shows; of a volume, the moment it was made.
    pub(crate) fn place(&self) -> u64 {
        self.place.load(Ordering::Acquire)
    }

    pub(crate) fn set_place(&self, place: u64) {
        self.place.store(place, Ordering::Release);
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.fixed.id
    }

    pub(crate) fn kind(&self) -> ObjectKind {
        match self.frozen.load(Ordering::Acquire) {
            true => ObjectKind::Snapshot,
            false => ObjectKind::Volume,
        }
    }

    /// Set inside the gate: a volume becomes a snapshot, and no write is taken afterwards.
    pub(crate) fn set_frozen(&self) {
        self.frozen.store(true, Ordering::Release);
    }

    pub(crate) fn state(&self) -> State {
        let raw = self.state.load(Ordering::Acquire);
        State::from_raw(&[raw]).expect("a state was stored")
    }

    pub(crate) fn is_live(&self) -> bool {
        self.state() == State::Live
    }

    /// In the trash: the lock clock from which on it may go.
    pub(crate) fn delete_after_ns(&self) -> u64 {
        self.delete_after_ns.load(Ordering::Acquire)
    }

    pub(crate) fn attributes(&self) -> Vec<u8> {
        self.attributes.read().to_vec()
    }

    pub(crate) fn set_attributes(&self, attributes: &[u8]) {
        *self.attributes.write() = attributes.into();
    }

    pub(crate) fn lock(&self) -> Option<ObjectLock> {
        self.lock.read().as_deref().copied()
    }

    fn set_lock(&self, lock: Option<ObjectLock>) {
        *self.lock.write() = lock.map(Box::new);
    }

    pub(crate) fn name(&self) -> String {
        self.name.read().to_string()
    }

    /// The name, shared with whoever keeps it.
    fn shared_name(&self) -> Arc<str> {
        self.name.read().clone()
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    pub(crate) fn set_size_bytes(&self, size_bytes: u64) {
        self.size_bytes.store(size_bytes, Ordering::Release);
    }

    /// Set inside the gate: no write is taken afterwards.
    pub(crate) fn set_deleted(&self) {
        self.deleted.store(true, Ordering::Release);
    }

    /// Whether it takes no I/O any more: it was deleted, with or without the trash.
    pub(crate) fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    /// While no command is under way: whether it ended.
    pub(crate) fn is_gone(&self) -> bool {
        self.is_deleted() && self.state() != State::Trashed
    }
}

/// What commands show of an object.
#[derive(Clone, Debug)]
pub struct ObjectInfo {
    /// Opaque, unique for ever.
    pub id: ObjectId,
    /// For the user; also accepted as a name.
    pub uuid: Uuid,
    /// Current name.
    pub name: String,
    /// Volume or snapshot.
    pub kind: ObjectKind,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Bytes of blocks that are mapped.
    pub mapped_bytes: u64,
    /// Nanoseconds since 1970.
    pub created_ns: u64,
    /// Nearest living ancestor.
    pub parent: Option<Uuid>,
    /// What it was taken or cloned from, deleted or not.
    pub source: Option<Uuid>,
    /// Shared by all objects of one command.
    pub batch: Uuid,
    /// Front ends that have it open.
    pub attached_count: u32,
    /// The lock that runs.
    pub lock: Option<LockInfo>,
    /// JSON, owned by the layer above; empty: none.
    pub attributes: Vec<u8>,
}

/// The living objects and their names.
#[derive(Default)]
pub(crate) struct Table {
    objects: IdMap<ObjectId, Arc<Object>>,
    names: HashMap<Arc<str>, ObjectId>,
    uuids: HashMap<Uuid, ObjectId>,
    /// What is in the trash, by when it may go.
    trashed: BTreeSet<(u64, ObjectId)>,
    locks: Ends,
}

impl Table {
    /// Make room for so many more, at once.
    pub(crate) fn reserve(&mut self, count: usize) {
        self.objects.reserve(count);
        self.names.reserve(count);
        self.uuids.reserve(count);
    }

    pub(crate) fn insert(&mut self, object: Arc<Object>) {
        let id = object.id();
        match object.state() {
            State::Live => self.give_name(&object),
            State::Receiving => {}
            State::Trashed => drop(self.trashed.insert((object.delete_after_ns(), id))),
        }
        self.uuids.insert(object.fixed.uuid, id);
        object.lock().inspect(|lock| self.locks.add(id, lock));
        self.objects.insert(id, object);
    }

    pub(crate) fn remove(&mut self, id: ObjectId) -> Option<Arc<Object>> {
        let object = self.objects.remove(&id)?;
        self.uuids.remove(&object.fixed.uuid);
        object.lock().inspect(|lock| self.locks.remove(id, lock));
        match object.state() {
            State::Live => drop(self.names.remove(&*object.name.read())),
            State::Receiving => {}
            State::Trashed => drop(self.trashed.remove(&(object.delete_after_ns(), id))),
        }
        Some(object)
    }

    pub(crate) fn rename(&mut self, id: ObjectId, name: &str) {
        let Some(object) = self.objects.get(&id) else {
            return;
        };
        let name: Arc<str> = name.into();
        let before = std::mem::replace(&mut *object.name.write(), name.clone());
        self.names.remove(&before);
        self.names.insert(name, id);
    }

    /// What was being received, or in the trash, is there for all, under this name.
    pub(crate) fn show(&mut self, object: &Object, name: &str) {
        self.trashed.remove(&(object.delete_after_ns(), object.id()));
        object.delete_after_ns.store(0, Ordering::Release);
        *object.name.write() = name.into();
        object.state.store(State::Live as u8, Ordering::Release);
        object.deleted.store(false, Ordering::Release);
        self.give_name(object);
    }

    fn give_name(&mut self, object: &Object) {
        let taken = self.names.insert(object.shared_name(), object.id());
        assert!(taken.is_none(), "a name is checked before it is given");
    }

    /// It is in the trash from here on; what is there already stays longer.
    pub(crate) fn trash(&mut self, object: &Object, delete_after_ns: u64) {
        match object.state() {
            State::Live => drop(self.names.remove(&*object.name.read())),
            State::Receiving | State::Trashed => {
                self.trashed.remove(&(object.delete_after_ns(), object.id()));
            }
        }
        object.delete_after_ns.store(delete_after_ns, Ordering::Release);
        object.state.store(State::Trashed as u8, Ordering::Release);
        self.trashed.insert((delete_after_ns, object.id()));
    }

    /// What is in the trash, what goes first at the front.
    pub(crate) fn trashed(&self) -> impl DoubleEndedIterator<Item = &Arc<Object>> {
        self.trashed.iter().filter_map(|(_, id)| self.objects.get(id))
    }

    pub(crate) fn set_lock(&mut self, object: &Object, lock: Option<ObjectLock>) {
        object.lock().inspect(|before| self.locks.remove(object.id(), before));
        lock.inspect(|lock| self.locks.add(object.id(), lock));
        object.set_lock(lock);
    }

    /// When the locks of its objects end.
    pub(crate) fn locks(&self) -> &Ends {
        &self.locks
    }

    pub(crate) fn get(&self, id: ObjectId) -> Option<&Arc<Object>> {
        self.objects.get(&id)
    }

    /// By name, or by UUID; what not all see is not found.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<Object>> {
        let id = self.names.get(name).or_else(|| self.uuids.get(&Uuid::try_parse(name).ok()?))?;
        self.objects.get(id).filter(|object| object.is_live())
    }

    /// Whoever has this UUID.
    pub(crate) fn with_uuid(&self, uuid: Uuid) -> Option<&Arc<Object>> {
        self.objects.get(self.uuids.get(&uuid)?)
    }

    pub(crate) fn is_taken(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// All objects, in any order.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values()
    }

    /// All objects, sorted by name.
    pub(crate) fn by_name(&self) -> Vec<&Arc<Object>> {
        let mut names: Vec<(&str, ObjectId)> =
            self.names.iter().map(|(name, id)| (&**name, *id)).collect();
        names.sort_unstable();
        names.into_iter().filter_map(|(_, id)| self.objects.get(&id)).collect()
    }
}
