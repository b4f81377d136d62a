//! What a loss that was accepted leaves to be done: locks that the log says behind its new end are
//! set again, and the times of what is in the trash begin anew.
//!
//! It is kept in a file beside what is set aside, durable before the log looks as if it ended
//! earlier, and done by whoever opens the pool next: the command that accepts, or who comes after
//! it was cut short. Calls the log and its store. Invariants: the file goes once the log says it
//! all; done twice it makes no lock shorter.

use crate::command::Prepared;
use crate::engine::{Commands, Engine};
use crate::locks::{Now, ObjectLock};
use crate::object::{Object, ObjectFields, ObjectKind, Table};
use crate::record::{Item, OBJECTS_MAX, Record, Verb};
use crate::reserve::Room;
use crate::verbs::item_of;
use crate::{EngineError, Kind};
use parking_lot::MutexGuard;
use ramet_log::{LOST_DIRECTORY, LogError, ObjectId, UNFINISHED};
use ramet_store::{Store, StoreError};
use std::sync::Arc;

type Result<T> = std::result::Result<T, EngineError>;
type Locks = Vec<(ObjectId, ObjectLock)>;

/// Locks that a damaged log says behind its end, as it leaves them.
#[derive(Default)]
pub(crate) struct LostLocks(Locks);

impl LostLocks {
    /// Take in the next record.
    pub(crate) fn note(&mut self, record: &Record) {
        match record.verb {
            Verb::Lock => {
                for item in &record.items {
                    let id = item.object.id;
                    self.0.retain(|(known, _)| *known != id);
                    self.0.extend(ObjectLock::of(&item.object).map(|lock| (id, lock)));
                }
            }
            Verb::Unlock | Verb::Delete => {
                let ended = |id| record.items.iter().any(|item| item.object.id == id);
                self.0.retain(|(id, _)| !ended(*id));
            }
            Verb::Create
            | Verb::Snapshot
            | Verb::Clone
            | Verb::Revert
            | Verb::Rename
            | Verb::Freeze
            | Verb::Resize
            | Verb::Attributes
            | Verb::Admit
            | Verb::Trash
            | Verb::Restore => {}
        }
    }

    /// Locks that ran, of snapshots that are lost with the end of the log.
    pub(crate) fn gone(&self, table: &Table, now: &Now) -> Vec<ObjectId> {
        let runs = |(id, lock): &&(ObjectId, ObjectLock)| {
            lock.remaining_ns(now) > 0 && table.get(*id).is_none()
        };
        self.0.iter().filter(runs).map(|(id, _)| *id).collect()
    }

    /// The bytes of the file: the checksum of what follows, and a record that locks.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let item = |(id, lock): &(ObjectId, ObjectLock)| {
            let mut object = ObjectFields { id: *id, ..ObjectFields::default() };
            lock.fill(&mut object);
            Item { object, ..Item::default() }
        };
        let items = self.0.iter().map(item).collect();
        let record = Record { verb: Verb::Lock, items }.encode();
        [&ramet_log::crc(&record).to_le_bytes()[..], &record].concat()
    }
}

/// The locks of such a file. `None`: writing it was cut short, so nothing was set aside yet.
fn decode(bytes: &[u8]) -> Option<Locks> {
    let (crc, record) = bytes.split_first_chunk()?;
    if u32::from_le_bytes(*crc) != ramet_log::crc(record) {
        return None;
    }
    let items = Record::decode(record).ok()?.items;
    let locks = items.iter().map(|item| Some((item.object.id, ObjectLock::of(&item.object)?)));
    locks.collect()
}

impl Engine {
    /// Do what losses that were accepted leave to be done: at opening, before anybody has the pool.
    /// Where nothing can be written the pool is shown as if it had been, and the next opening does
    /// it.
    ///
    /// # Errors
    /// `Unavailable` where a read, a write or a sync fails.
    pub(crate) fn finish_losses(&self) -> Result<()> {
        let store = self.log.store();
        let found = read_all(store).map_err(LogError::from)?;
        if found.is_empty() {
            return Ok(());
        }
        let mut is_written = !self.read_only();
        for locks in found.iter().filter_map(|(_, locks)| locks.as_ref()) {
            is_written &= self.set_locks_again(locks)?;
            is_written &= self.begin_trash_anew()?;
        }
        if is_written {
            let removed = found.iter().try_for_each(|(path, _)| store.remove(path));
            let removed = removed.and_then(|()| store.sync_directory(LOST_DIRECTORY));
            removed.map_err(LogError::from)?;
        }
        Ok(())
    }

    /// Set locks again that were lost with the end of the log, where their snapshots are still
    /// there. Result: whether the log says so.
    fn set_locks_again(&self, lost: &Locks) -> Result<bool> {
        // What says that the clock had come so far verifies.
        let clock_ns = lost.iter().map(|(_, lock)| lock.clock_ns).max();
        self.log.lock_clock_was(clock_ns.unwrap_or(0));
        let mut commands = self.begin(0)?;
        let now = &self.lock_now();
        let table = self.table.read();
        let mut items = Vec::new();
        for (id, lock) in lost {
            let Some(object) = table.get(*id) else { continue };
            if object.kind() == ObjectKind::Snapshot {
                let lock = object.lock().map_or(*lock, |own| own.joined(lock, now));
                items.push(item_of(object, |fields| lock.fill(fields)));
            }
        }
        drop(table);
        self.say(&mut commands, Verb::Lock, items)
    }

    /// The log ends earlier than it did: what was restored behind that is in the trash again, and
    /// is not to go before somebody could look. Result: as `set_locks_again`.
    fn begin_trash_anew(&self) -> Result<bool> {
        let mut commands = self.begin(0)?;
        let until_ns = self.trash_anew_ns();
        let anew = |object: &Arc<Object>| {
            let until_ns = until_ns.max(object.delete_after_ns());
            item_of(object, |it| it.delete_after_ns = until_ns)
        };
        let items = self.table.read().trashed().map(anew).collect();
        self.say(&mut commands, Verb::Trash, items)
    }

    /// Write records, from the reserve too; on a full pool, or one that is only read, show what
    /// they say nonetheless. Result: whether they were written.
    fn say(
        &self,
        commands: &mut MutexGuard<'_, Commands>,
        verb: Verb,
        items: Vec<Item>,
    ) -> Result<bool> {
        let mut is_written = true;
        for some in items.chunks(OBJECTS_MAX) {
            let record = Record { verb, items: some.to_vec() };
            if !self.read_only() {
                match self.run_from(Room::Reserve, commands, record.clone()) {
                    Err(error) if error.kind == Kind::Full => {}
                    done => {
                        done?;
                        continue;
                    }
                }
            }
            let prepared = Prepared::new(&record, &self.table.read(), &self.heads);
            let prepared = prepared.expect("its objects are there");
            prepared.publish(&mut self.table.write(), &self.changed);
            is_written = false;
        }
        Ok(is_written)
    }
}

/// The files, and the locks in them; see `decode`.
fn read_all(store: &dyn Store) -> std::result::Result<Vec<(String, Option<Locks>)>, StoreError> {
    if !store.exists(LOST_DIRECTORY)? {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for name in store.list(LOST_DIRECTORY)?.into_iter().filter(|name| name.ends_with(UNFINISHED)) {
        let path = format!("{LOST_DIRECTORY}/{name}");
        let file = store.open(&path, false)?;
        let mut bytes = vec![0; usize::try_from(file.length_bytes()?).unwrap_or(usize::MAX)];
        file.read_at(&mut bytes, 0)?;
        found.push((path, decode(&bytes)));
    }
    Ok(found)
}
