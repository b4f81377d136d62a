//! The trash: deleted objects that can be restored for a time.
//!
//! docs/internals/trash.md is the design. Invariants: what is in the trash holds its blocks, and
//! is found by the calls here alone; it ends when its time is over by the lock clock, or when that
//! is asked for, and never while it is locked.

use crate::engine::Engine;
use crate::locks::{LOCK_NS_MAX, SECOND_NS};
use crate::object::{Object, ObjectInfo};
use crate::record::{Record, Verb};
use crate::verbs::{check_counts, check_name_length, item_of};
use crate::{EngineError, Kind};
use ramet_log::BLOCK_BYTES_U64;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Objects whose time is over that one step ends.
const ENDED_AT_ONCE: usize = 1000;
/// After a loss what is in the trash stays so long at least.
const ANEW_SECONDS_MIN: u64 = 24 * 3600;
/// UUIDs that are named where a name is not enough.
const SHOWN_MAX: usize = 4;

type Result<T> = std::result::Result<T, EngineError>;

/// A deleted object that can be restored.
#[derive(Clone, Debug)]
pub struct Trashed {
    /// As it was; its name may be another's by now.
    pub object: ObjectInfo,
    /// Nanoseconds that it stays from now on.
    pub remaining_ns: u64,
}

impl Engine {
    /// Seconds for which what is deleted from now on can be restored; 0: not at all.
    pub fn trash_seconds(&self) -> u64 {
        self.log.newest_commit().trash_seconds
    }

    /// Set `trash_seconds`; what is in the trash stays as long as it would have.
    ///
    /// # Errors
    /// `Invalid` over 100 years.
    ///
    /// # Durability
    /// Durable on return.
    pub fn set_trash_seconds(&self, seconds: u64) -> Result<()> {
        if seconds > LOCK_NS_MAX / SECOND_NS {
            let text = format!("a window of {seconds} s; hint: at most 100 years");
            return Err(EngineError::new(Kind::Invalid, "trash_window", text));
        }
        let _commands = self.begin(0)?;
        self.log.check_writable()?;
        Ok(self.log.commit_trash(seconds)?)
    }

    /// Put objects into the trash, all or none; their names are free on return. Without a window
    /// this is `delete`. Result: what they were.
    ///
    /// # Errors
    /// As `delete`; `Full`, for nothing comes back.
    ///
    /// # Durability
    /// Durable on return, as for every verb.
    pub fn trash(&self, names: &[String]) -> Result<Vec<ObjectInfo>> {
        let window_ns = self.trash_seconds().saturating_mul(SECOND_NS);
        if window_ns == 0 {
            return self.delete(names);
        }
        let until_ns = self.log.lock_clock_ns().saturating_add(window_ns);
        self.delete_as(Verb::Trash, names, until_ns).map_err(|error| match error.kind {
            Kind::Full => {
                let what = error.text.split("; hint: ").next().unwrap_or_default();
                let text = format!("{what}; hint: delete without the trash, or empty it");
                EngineError { text, ..error }
            }
            _ => error,
        })
    }

    /// What is in the trash, what goes first at the front.
    pub fn trashed(&self) -> Vec<Trashed> {
        let (table, now) = (self.table.read(), &self.lock_now());
        let told = |object: &Arc<Object>| Trashed {
            remaining_ns: object.delete_after_ns().saturating_sub(now.ns),
            object: self.info_in(&table, object, now),
        };
        table.trashed().map(told).collect()
    }

    /// Bring back what is in the trash, all or none: by UUID, or by the name it had; under
    /// `names`, or under the names that they had.
    ///
    /// # Errors
    /// `NotFound` where one is not in the trash; `Conflict` where a name is taken, or several in
    /// the trash had it; `Full`.
    ///
    /// # Durability
    /// Durable on return, as for every verb.
    pub fn restore(&self, keys: &[String], names: Option<&[String]>) -> Result<Vec<ObjectInfo>> {
        names.map_or(Ok(()), |names| check_counts(keys, names, "names"))?;
        let mut commands = self.begin(keys.len())?;
        let objects = self.find_trashed(keys)?;
        let names = names.map_or_else(
            || objects.iter().map(|object| object.name()).collect(),
            <[String]>::to_vec,
        );
        names.iter().try_for_each(|name| check_name_length(name))?;
        self.check_free(&names)?;
        let items = objects.iter().zip(names);
        let items = items.map(|(object, name)| item_of(object, |it| it.name = name)).collect();
        self.run(&mut commands, Record { verb: Verb::Restore, items })?;
        Ok(objects.iter().map(|object| self.info(object)).collect())
    }

    /// End what is in the trash, as `restore` finds it; `None`: all of it. Result: what it was.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` where several in the trash had a name, or one is locked; none of
    /// `keys` ended then.
    ///
    /// # Durability
    /// As `restore`.
    pub fn empty_trash(&self, keys: Option<&[String]>) -> Result<Vec<ObjectInfo>> {
        let mut commands = self.begin(keys.map_or(0, <[String]>::len))?;
        let objects = self.chosen(keys)?;
        let was = objects.iter().map(|object| self.info(object)).collect();
        // Locks of all are looked at first: some of what is asked for is not done.
        let items = self.items_of_unlocked(&objects)?;
        for some in items.chunks(crate::OBJECTS_MAX) {
            let record = Record { verb: Verb::Delete, items: some.to_vec() };
            self.run(&mut commands, record)?;
        }
        Ok(was)
    }

    /// Bytes that `empty_trash` would free.
    ///
    /// # Errors
    /// As `frees` and `empty_trash`.
    pub fn trash_frees(&self, keys: Option<&[String]>) -> Result<u64> {
        let _commands = self.commands.lock();
        let _pin = self.reclaim.pin();
        let places = self.chosen(keys)?.iter().map(|object| object.place()).collect();
        Ok(self.space.frees(&places)? * BLOCK_BYTES_U64)
    }

    /// End what has been in the trash for its time.
    ///
    /// # Errors
    /// `Unavailable` where a write or sync fails.
    pub(crate) fn step_trash(&self) -> Result<()> {
        let now = &self.lock_now();
        let is_due = |object: &&Arc<Object>| object.delete_after_ns() <= now.ns;
        if !self.table.read().trashed().next().as_ref().is_some_and(is_due) {
            return Ok(());
        }
        let mut commands = self.begin(0)?;
        // A lock that is found again after a loss holds here too.
        let may_end =
            |object: &&Arc<Object>| object.lock().is_none_or(|lock| lock.info(now).is_none());
        let table = self.table.read();
        let due = table.trashed().take_while(is_due).filter(may_end).take(ENDED_AT_ONCE);
        let due: Vec<Arc<Object>> = due.cloned().collect();
        drop(table);
        let items = self.items_of_unlocked(&due)?;
        self.run(&mut commands, Record { verb: Verb::Delete, items })?;
        Ok(())
    }

    /// Until when what is in the trash stays at least after a loss.
    pub(crate) fn trash_anew_ns(&self) -> u64 {
        let seconds = self.trash_seconds().max(ANEW_SECONDS_MIN);
        self.log.lock_clock_ns().saturating_add(seconds.saturating_mul(SECOND_NS))
    }

    fn chosen(&self, keys: Option<&[String]>) -> Result<Vec<Arc<Object>>> {
        match keys {
            Some(keys) => self.find_trashed(keys),
            None => Ok(self.table.read().trashed().cloned().collect()),
        }
    }

    /// Objects in the trash, each once: by UUID, or by the name it had.
    fn find_trashed(&self, keys: &[String]) -> Result<Vec<Arc<Object>>> {
        let table = self.table.read();
        let mut known: HashMap<String, Vec<&Arc<Object>>> = HashMap::new();
        for object in table.trashed() {
            known.entry(object.name()).or_default().push(object);
            known.insert(object.fixed.uuid.to_string(), vec![object]);
        }
        let mut seen = HashSet::new();
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let meant = known.get(key).map_or(&[][..], |meant| meant);
            let [object] = meant else {
                return Err(not_one(key, meant));
            };
            if seen.insert(object.id()) {
                found.push(Arc::clone(object));
            }
        }
        Ok(found)
    }
}

fn not_one(key: &str, all: &[&Arc<Object>]) -> EngineError {
    if all.is_empty() {
        let text = format!("nothing in the trash was '{key}'; hint: `ramet trash list`");
        return EngineError::new(Kind::NotFound, "not_in_trash", text);
    }
    let shown = all.iter().take(SHOWN_MAX).map(|object| object.fixed.uuid.to_string());
    let text = format!(
        "{} in the trash were '{key}'; hint: say which, by UUID: {}",
        all.len(),
        shown.collect::<Vec<_>>().join(", ")
    );
    EngineError::new(Kind::Conflict, "trash_ambiguous", text)
}
