//! Locks: snapshots that nobody deletes before a time, by a clock that nobody sets.
//!
//! docs/internals/locks.md is the design. Calls the log for its clock and the superblock.
//! Invariants: a lock never ends before its time; no call here makes one shorter or milder, but an
//! unlock with the secret, or within the cooling-off of the lock; a group is locked in one commit.

use crate::engine::Engine;
use crate::object::{Object, ObjectFields, ObjectInfo, ObjectKind};
use crate::record::{Item, Record, Verb};
use crate::verbs::item_of;
use crate::{EngineError, Kind};
use ramet_log::ObjectId;
use ramet_log::format::superblock::LockTerms;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The longest lock, in nanoseconds: 100 years. A typing error should not be for ever.
pub const LOCK_NS_MAX: u64 = 100 * 366 * 24 * HOUR_NS;
/// The longest cooling-off.
const COOLING_OFF_SECONDS_MAX: u64 = 24 * 3600;
/// While a lock runs its clock is saved as often as this: a reboot costs no more of it.
const SAVE_EVERY_NS: u64 = HOUR_NS;
/// At a clean close it is saved where so much of it would be lost.
const SAVE_AT_CLOSE_NS: u64 = 60 * SECOND_NS;
pub(crate) const SECOND_NS: u64 = 1_000_000_000;
const HOUR_NS: u64 = 3600 * SECOND_NS;

type Result<T> = std::result::Result<T, EngineError>;

/// How firm a lock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum LockMode {
    /// Who has the pool's lock secret may release it.
    Governance = 1,
    /// Nobody may.
    Compliance = 2,
}

/// An object's lock, as it is kept. It may be over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ObjectLock {
    pub(crate) mode: u8,
    /// The lock clock at its end, if nobody confirms more.
    pub(crate) until_ns: u64,
    /// Up to here it can be taken back.
    pub(crate) firm_ns: u64,
    /// Lock clock and time of day when it was set.
    pub(crate) clock_ns: u64,
    pub(crate) day_ns: u64,
}

/// What commands show of a lock that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockInfo {
    /// Its mode; `None`: one of a later version.
    pub mode: Option<LockMode>,
    /// Nanoseconds that it runs at least from now on.
    pub remaining_ns: u64,
    /// Nanoseconds from now for which it can be taken back.
    pub cooling_off_ns: u64,
}

/// The lock clock, and what holds for locks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockClock {
    /// Nanoseconds that have passed since the pool was made, as far as the clock knows.
    pub ns: u64,
    /// The time of day, in nanoseconds since 1970: what a confirmation confirms.
    pub day_ns: u64,
    /// The time of day that was confirmed last; zero: none was.
    pub confirmed_day_ns: u64,
    /// By how much governance locks would end earlier at most, if the time of day were confirmed
    /// now.
    pub behind_ns: u64,
    /// How many locks run.
    pub locked_count: u64,
    /// Whether there is a secret.
    pub has_secret: bool,
    /// Seconds for which a lock that is set now can be taken back.
    pub cooling_off_seconds: u64,
    /// Wrong secrets that were given since the pool was opened.
    pub wrong_secrets_count: u64,
}

/// What decides whether a lock runs.
#[derive(Clone, Copy)]
pub(crate) struct Now {
    pub(crate) ns: u64,
    pub(crate) terms: LockTerms,
}

/// Of all locks: when each ends at the latest, and when it can be taken back no more.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    until: BTreeSet<(u64, ObjectId)>,
    firm: BTreeSet<(u64, ObjectId)>,
}

impl ObjectLock {
    pub(crate) fn of(fields: &ObjectFields) -> Option<Self> {
        (fields.lock_mode != 0).then_some(ObjectLock {
            mode: fields.lock_mode,
            until_ns: fields.lock_until_ns,
            firm_ns: fields.lock_firm_ns,
            clock_ns: fields.lock_clock_ns,
            day_ns: fields.lock_day_ns,
        })
    }

    pub(crate) fn fill(&self, fields: &mut ObjectFields) {
        fields.lock_mode = self.mode;
        (fields.lock_until_ns, fields.lock_firm_ns) = (self.until_ns, self.firm_ns);
        (fields.lock_clock_ns, fields.lock_day_ns) = (self.clock_ns, self.day_ns);
    }

    fn mode(&self) -> Option<LockMode> {
        [LockMode::Governance, LockMode::Compliance]
            .into_iter()
            .find(|mode| *mode as u8 == self.mode)
    }

    /// How long it runs on. One of a mode that is not known here never ends.
    pub(crate) fn remaining_ns(&self, now: &Now) -> u64 {
        let left_ns = self.until_ns.saturating_sub(now.ns);
        match self.mode() {
            Some(LockMode::Governance) => left_ns.saturating_sub(self.confirmed_ns(&now.terms)),
            Some(LockMode::Compliance) => left_ns,
            None => u64::MAX,
        }
    }

    /// How much more time than the clock knows has passed since the lock was set, as the secret
    /// confirmed.
    fn confirmed_ns(&self, terms: &LockTerms) -> u64 {
        // What was confirmed before says nothing of the time since.
        if terms.confirmed_clock_ns < self.clock_ns {
            return 0;
        }
        let by_day_ns = terms.confirmed_day_ns.saturating_sub(self.day_ns);
        by_day_ns.saturating_sub(terms.confirmed_clock_ns - self.clock_ns)
    }

    pub(crate) fn info(&self, now: &Now) -> Option<LockInfo> {
        let remaining_ns = self.remaining_ns(now);
        (remaining_ns > 0).then(|| LockInfo {
            mode: self.mode(),
            remaining_ns,
            cooling_off_ns: self.firm_ns.saturating_sub(now.ns).min(remaining_ns),
        })
    }

    /// The longer and firmer of both.
    pub(crate) fn joined(&self, other: &Self, now: &Now) -> Self {
        let later = self.remaining_ns(now) > other.remaining_ns(now);
        let (longer, shorter) = if later { (self, other) } else { (other, self) };
        let mode = self.mode.max(other.mode);
        // Only governance locks have a time of day.
        let day_ns = if mode == LockMode::Governance as u8 { longer.day_ns } else { 0 };
        ObjectLock { mode, firm_ns: longer.firm_ns.min(shorter.firm_ns), day_ns, ..*longer }
    }
}

impl Ends {
    pub(crate) fn add(&mut self, id: ObjectId, lock: &ObjectLock) {
        self.until.insert((lock.until_ns, id));
        self.firm.insert((lock.firm_ns, id));
    }

    pub(crate) fn remove(&mut self, id: ObjectId, lock: &ObjectLock) {
        self.until.remove(&(lock.until_ns, id));
        self.firm.remove(&(lock.firm_ns, id));
    }

    fn last_ns(&self) -> u64 {
        self.until.last().map_or(0, |(until_ns, _)| *until_ns)
    }

    /// The latest moment up to `now_ns` from which on one can be taken back no more.
    fn firm_since_ns(&self, now_ns: u64) -> u64 {
        let before = self.firm.range(..=(now_ns, ObjectId(u64::MAX)));
        before.last().map_or(0, |(firm_ns, _)| *firm_ns)
    }
}

impl Engine {
    /// Lock snapshots for a time from now on, all or none. A lock that runs is made longer, or
    /// firmer.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a volume or a time of 0 or over `LOCK_NS_MAX`; `Conflict` where a
    /// lock that runs is longer or firmer; `Full`.
    ///
    /// # Durability
    /// Durable on return, as for every verb here.
    pub fn lock(
        &self,
        names: &[String],
        time: Duration,
        mode: LockMode,
    ) -> Result<Vec<ObjectInfo>> {
        let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if time_ns == 0 || time_ns > LOCK_NS_MAX {
            let text = format!("a lock of {} s; hint: at most 100 years", time.as_secs());
            return Err(invalid("lock_time", text));
        }
        let mut commands = self.begin(names.len())?;
        let snapshots = self.find_to_lock(names)?;
        let now = &self.lock_now();
        for snapshot in &snapshots {
            check_longer(snapshot, time_ns, mode, now)?;
        }
        let cooling_off_ns = now.terms.cooling_off_seconds.saturating_mul(SECOND_NS);
        let day_ns = match mode {
            LockMode::Governance => self.log.store().moment().day_ns,
            LockMode::Compliance => 0,
        };
        let items = snapshots.iter().map(|snapshot| {
            // What can be taken back is the first lock, not the time that was added later: else
            // whoever makes a lock longer could end it.
            let running = snapshot.lock().filter(|lock| lock.remaining_ns(now) > 0);
            let firm_ns = match running {
                Some(lock) => lock.firm_ns,
                None if cooling_off_ns == 0 => 0,
                None => now.ns.saturating_add(cooling_off_ns),
            };
            let until_ns = now.ns.saturating_add(time_ns);
            let mode = mode as u8;
            let lock = ObjectLock { mode, until_ns, firm_ns, clock_ns: now.ns, day_ns };
            item_of(snapshot, |fields| lock.fill(fields))
        });
        let items = items.collect();
        self.run(&mut commands, Record { verb: Verb::Lock, items })?;
        Ok(snapshots.iter().map(|snapshot| self.info(snapshot)).collect())
    }

    /// Release locks, all or none: with the hash of the pool's secret, or without one while they
    /// can be taken back. One that is over, or none, is none afterwards.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a volume; `Forbidden` for a compliance lock, for a secret that is
    /// missing or wrong; `Full`.
    ///
    /// # Durability
    /// As `lock`.
    pub fn unlock(&self, names: &[String], secret: Option<[u8; 32]>) -> Result<Vec<ObjectInfo>> {
        let mut commands = self.begin(names.len())?;
        let snapshots = self.find_to_lock(names)?;
        let now = &self.lock_now();
        let mut asks_for_secret = None;
        for snapshot in &snapshots {
            let Some(lock) = snapshot.lock().and_then(|lock| lock.info(now)) else { continue };
            if lock.cooling_off_ns > 0 {
                continue;
            }
            if lock.mode != Some(LockMode::Governance) {
                let text = format!(
                    "'{}' is locked for compliance, for another {}: nobody releases it",
                    snapshot.name(),
                    in_words(lock.remaining_ns)
                );
                return Err(EngineError::new(Kind::Forbidden, "lock_is_compliance", text));
            }
            asks_for_secret.get_or_insert(snapshot);
        }
        if asks_for_secret.is_some() || secret.is_some() {
            self.check_secret(secret)?;
        }
        let locked = snapshots.iter().filter(|snapshot| snapshot.lock().is_some());
        let items =
            locked.map(|snapshot| item_of(snapshot, |it| it.lock_clock_ns = now.ns)).collect();
        self.run(&mut commands, Record { verb: Verb::Unlock, items })?;
        Ok(snapshots.iter().map(|snapshot| self.info(snapshot)).collect())
    }

    /// The clock that locks run by, and what holds for them.
    pub fn lock_clock(&self) -> LockClock {
        let Now { ns, terms } = self.lock_now();
        let mut clock = LockClock {
            ns,
            day_ns: self.log.store().moment().day_ns,
            confirmed_day_ns: terms.confirmed_day_ns,
            has_secret: terms.secret_hash != [0; 32],
            cooling_off_seconds: terms.cooling_off_seconds,
            wrong_secrets_count: self.counters.wrong_secrets.load(Ordering::Relaxed),
            ..LockClock::default()
        };
        let confirmed_day_ns = clock.day_ns;
        let confirmed = LockTerms { confirmed_clock_ns: ns, confirmed_day_ns, ..terms };
        for object in self.table.read().all() {
            let Some(lock) = object.lock() else { continue };
            let left_ns = lock.remaining_ns(&Now { ns, terms });
            let then_ns = lock.remaining_ns(&Now { ns, terms: confirmed });
            clock.locked_count += u64::from(left_ns > 0);
            clock.behind_ns = clock.behind_ns.max(left_ns.saturating_sub(then_ns));
        }
        clock
    }

    /// Take the time of day for right: governance locks count by it what the clock did not see
    /// since they were set. Result: by how much they end earlier at most.
    ///
    /// # Errors
    /// `Forbidden` for a secret that is wrong, or where there is none.
    ///
    /// # Durability
    /// As `lock`.
    pub fn confirm_lock_clock(&self, secret: [u8; 32]) -> Result<u64> {
        let _commands = self.begin(0)?;
        self.log.check_writable()?;
        self.check_secret(Some(secret))?;
        let LockClock { ns, day_ns, behind_ns, .. } = self.lock_clock();
        let terms = self.lock_terms();
        let confirmed = LockTerms { confirmed_clock_ns: ns, confirmed_day_ns: day_ns, ..terms };
        self.log.commit_lock_terms(&confirmed)?;
        Ok(behind_ns)
    }

    /// Set the secret that releases governance locks, as its hash; `old`: the one before.
    ///
    /// # Errors
    /// `Forbidden` where there is one and `old` is not it; `Conflict` where there is none and a
    /// governance lock runs.
    ///
    /// # Durability
    /// As `lock`.
    pub fn set_lock_secret(&self, secret: [u8; 32], old: Option<[u8; 32]>) -> Result<()> {
        assert!(secret != [0; 32], "zeros stand for no secret");
        let _commands = self.begin(0)?;
        self.log.check_writable()?;
        let terms = self.lock_terms();
        if terms.secret_hash != [0; 32] {
            self.check_secret(old)?;
        } else if self.governance_runs(&self.lock_now()) {
            let text = "a governance lock runs that was set without a secret: whoever sets one now \
                        could release it; hint: wait until it ends";
            return Err(EngineError::new(Kind::Conflict, "lock_runs", text));
        }
        Ok(self.log.commit_lock_terms(&LockTerms { secret_hash: secret, ..terms })?)
    }

    /// Say for how many seconds a lock that is set from now on can be taken back; 0: not at all.
    ///
    /// # Errors
    /// `Invalid` over a day; `Forbidden` where there is a secret, and it is not given.
    ///
    /// # Durability
    /// As `lock`.
    pub fn set_cooling_off(&self, seconds: u64, secret: Option<[u8; 32]>) -> Result<()> {
        if seconds > COOLING_OFF_SECONDS_MAX {
            let text = format!("a cooling-off of {seconds} s; hint: at most a day");
            return Err(invalid("cooling_off_too_long", text));
        }
        let _commands = self.begin(0)?;
        self.log.check_writable()?;
        let terms = self.lock_terms();
        if terms.secret_hash != [0; 32] {
            self.check_secret(secret)?;
        }
        Ok(self.log.commit_lock_terms(&LockTerms { cooling_off_seconds: seconds, ..terms })?)
    }

    /// Items of a record that deletes: refused where a lock runs.
    pub(crate) fn items_of_unlocked(&self, objects: &[Arc<Object>]) -> Result<Vec<Item>> {
        let now = &self.lock_now();
        let item = |object: &Arc<Object>| {
            let lock = object.lock();
            if let Some(running) = lock.and_then(|lock| lock.info(now)) {
                let text = format!(
                    "'{}' is locked for another {}; hint: wait until its lock ends",
                    object.name(),
                    in_words(running.remaining_ns)
                );
                return Err(EngineError::new(Kind::Conflict, "object_locked", text));
            }
            Ok(item_of(object, |it| it.lock_clock_ns = lock.map_or(0, |_| now.ns)))
        };
        objects.iter().map(item).collect()
    }

    /// Save the clock while a lock runs, or something is in the trash: a reboot would cost what is
    /// not saved.
    pub(crate) fn save_lock_clock(&self, at_close: bool) -> Result<()> {
        let table = self.table.read();
        let trashed_ns = table.trashed().next_back().map_or(0, |last| last.delete_after_ns());
        let until_ns = table.locks().last_ns().max(trashed_ns);
        let now_ns = if until_ns == 0 { 0 } else { self.log.lock_clock_ns() };
        let firm_ns = table.locks().firm_since_ns(now_ns);
        drop(table);
        if until_ns <= now_ns {
            return Ok(());
        }
        let saved_ns = self.log.newest_commit().lock_clock.ns;
        // What cannot be taken back any more should stay so.
        let became_firm = saved_ns < firm_ns;
        let most_ns = if at_close { SAVE_AT_CLOSE_NS } else { SAVE_EVERY_NS };
        let is_due = became_firm || now_ns.saturating_sub(saved_ns) >= most_ns;
        if is_due { Ok(self.log.commit_again()?) } else { Ok(()) }
    }

    pub(crate) fn lock_now(&self) -> Now {
        Now { ns: self.log.lock_clock_ns(), terms: self.lock_terms() }
    }

    fn lock_terms(&self) -> LockTerms {
        self.log.lock_terms()
    }

    /// The snapshots of these names, each once.
    fn find_to_lock(&self, names: &[String]) -> Result<Vec<Arc<Object>>> {
        let mut seen = HashSet::new();
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            let object = self.find_object(name)?;
            if object.kind() != ObjectKind::Snapshot {
                let text = format!("'{name}' is a volume; hint: lock a snapshot of it");
                return Err(invalid("not_a_snapshot", text));
            }
            if seen.insert(object.id()) {
                found.push(object);
            }
        }
        Ok(found)
    }

    fn governance_runs(&self, now: &Now) -> bool {
        let is_governance = |lock: &ObjectLock| lock.mode == LockMode::Governance as u8;
        let table = self.table.read();
        let mut locks = table.all().filter_map(|object| object.lock()).filter(is_governance);
        locks.any(|lock| lock.remaining_ns(now) > 0)
    }

    fn check_secret(&self, given: Option<[u8; 32]>) -> Result<()> {
        let secret = self.lock_terms().secret_hash;
        let Some(given) = given else {
            let text = "this asks for the pool's lock secret; hint: --secret-file";
            return Err(EngineError::new(Kind::Forbidden, "lock_secret_missing", text));
        };
        if secret == [0; 32] {
            let text = "the pool has no lock secret: nobody releases a lock before its time";
            return Err(EngineError::new(Kind::Forbidden, "lock_secret_unset", text));
        }
        if is_equal(&secret, &given) {
            return Ok(());
        }
        let count = self.counters.wrong_secrets.fetch_add(1, Ordering::Relaxed) + 1;
        let text = format!("this is not the pool's lock secret (wrong {count} times)");
        Err(EngineError::new(Kind::Forbidden, "lock_secret_wrong", text))
    }
}

/// Whether two hashes are the same; takes as long wherever they differ.
pub(crate) fn is_equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

fn check_longer(snapshot: &Object, time_ns: u64, mode: LockMode, now: &Now) -> Result<()> {
    let Some(running) = snapshot.lock().and_then(|lock| lock.info(now)) else { return Ok(()) };
    let name = snapshot.name();
    if running.mode.is_none_or(|running| running > mode) {
        let text = format!("'{name}' is locked for compliance; hint: ask for the same mode");
        return Err(EngineError::new(Kind::Conflict, "lock_is_firmer", text));
    }
    if running.remaining_ns > time_ns {
        let left = in_words(running.remaining_ns);
        let text = format!("'{name}' is locked for another {left}; hint: ask for a longer time");
        return Err(EngineError::new(Kind::Conflict, "lock_is_longer", text));
    }
    Ok(())
}

/// A time for people, rounded up.
fn in_words(ns: u64) -> String {
    let seconds = ns.div_ceil(SECOND_NS);
    let units = [(86_400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds")];
    let (unit, name) = units.into_iter().find(|(unit, _)| seconds >= 2 * unit).unwrap_or(units[3]);
    format!("{} {name}", seconds.div_ceil(unit))
}

fn invalid(code: &'static str, text: String) -> EngineError {
    EngineError::new(Kind::Invalid, code, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ramet check` called such a lock malformed.
    #[test]
    fn a_governance_lock_that_becomes_firmer_has_no_time_of_day() {
        let lock = |mode, until_ns, day_ns| ObjectLock {
            mode: mode as u8,
            until_ns,
            day_ns,
            ..ObjectLock::default()
        };
        let longer = lock(LockMode::Governance, 90, 7);
        let firmer = lock(LockMode::Compliance, 50, 0);
        let now = &Now { ns: 1, terms: LockTerms::default() };
        let expected = lock(LockMode::Compliance, 90, 0);
        assert_eq!(
            (longer.joined(&firmer, now), firmer.joined(&longer, now)),
            (expected, expected)
        );
        assert_eq!(longer.joined(&longer, now).day_ns, 7);
    }
}
