//! A store that takes no more than it may, as if its medium were smaller.
//!
//! Calls the store below it. Invariants: what was allocated can be written, whatever the limit is;
//! nothing but growing a file is ever refused; what is removed or punched counts no more at once.
//! See docs/internals/reclaim.md, "A limit".

use crate::{File, Lock, LockMode, Mapping, Moment, Result, Store, StoreError};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

const PAGE_BYTES: u64 = 4096;

/// See the head of this file.
pub struct LimitStore {
    inner: Arc<dyn Store>,
    account: Arc<Account>,
    files: Mutex<HashMap<String, Arc<Mutex<Known>>>>,
}

#[derive(Default)]
struct Account(Mutex<Sums>);

#[derive(Default)]
struct Sums {
    limit_bytes: Option<u64>,
    taken_bytes: u64,
    /// What calls that are under way may take.
    promised_bytes: u64,
}

/// What is known of a file, by all that have it open.
#[derive(Default)]
struct Known {
    /// What of it is in the sum.
    taken_bytes: u64,
    /// Up to here it has no holes that are known of: writing there takes nothing.
    covered_bytes: u64,
    is_removed: bool,
}

struct LimitFile {
    inner: Arc<dyn File>,
    account: Arc<Account>,
    known: Arc<Mutex<Known>>,
    path: String,
}

impl Account {
    fn promise(&self, wanted_bytes: u64) -> bool {
        let mut sums = self.0.lock();
        let after = sums.taken_bytes + sums.promised_bytes + wanted_bytes;
        let fits = wanted_bytes == 0 || sums.limit_bytes.is_none_or(|limit| after <= limit);
        sums.promised_bytes += if fits { wanted_bytes } else { 0 };
        fits
    }

    /// Count a file as it is now, and end a promise.
    fn settle(&self, known: &mut Known, now_bytes: u64, promised_bytes: u64) {
        let now_bytes = if known.is_removed { 0 } else { now_bytes };
        let mut sums = self.0.lock();
        sums.taken_bytes = sums.taken_bytes + now_bytes - known.taken_bytes;
        sums.promised_bytes -= promised_bytes;
        known.taken_bytes = now_bytes;
    }
}

impl LimitStore {
    /// A store without a limit; what is there already counts once `count` has looked at it.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>) -> Self {
        LimitStore { inner, account: Arc::default(), files: Mutex::default() }
    }

    /// Count the files right in `directories`. One that cannot be looked at counts nothing.
    ///
    /// # Errors
    /// `Io` where a directory cannot be listed; a missing one is empty.
    pub fn count(&self, directories: &[&str]) -> Result<()> {
        for directory in directories {
            let names = match self.inner.list(directory) {
                Err(StoreError::NotFound { .. }) => continue,
                names => names?,
            };
            for name in names {
                let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
                if let Ok(file) = self.inner.open(&path, false) {
                    let _ = self.know(&path, &*file);
                }
            }
        }
        Ok(())
    }

    /// Bytes that the files take.
    #[must_use]
    pub fn taken_bytes(&self) -> u64 {
        self.account.0.lock().taken_bytes
    }

    /// Bytes that the files right in a directory take, of those that were counted or opened.
    #[must_use]
    pub fn taken_in(&self, directory: &str) -> u64 {
        let is_in = |path: &str| path.rsplit_once('/').is_some_and(|(first, _)| first == directory);
        let files = self.files.lock();
        let inside = files.iter().filter(|(path, _)| is_in(path));
        inside.map(|(_, known)| known.lock().taken_bytes).sum()
    }

    /// Free bytes of the medium, whatever the limit is, and all of them.
    ///
    /// # Errors
    /// As `Store::space_bytes`.
    pub fn medium_bytes(&self) -> Result<(u64, u64)> {
        self.inner.space_bytes()
    }

    /// Bytes that they may take; `None`: as many as there are.
    #[must_use]
    pub fn limit_bytes(&self) -> Option<u64> {
        self.account.0.lock().limit_bytes
    }

    /// Set the limit, whatever is taken. What is above it already stays.
    pub fn set_limit(&self, limit_bytes: Option<u64>) {
        self.account.0.lock().limit_bytes = limit_bytes;
    }

    /// Set the limit, unless more is taken already. Result: the limit before, or as an error what
    /// is taken.
    ///
    /// # Errors
    /// Bytes taken, or promised to calls that are under way.
    pub fn try_set_limit(&self, limit_bytes: Option<u64>) -> std::result::Result<Option<u64>, u64> {
        let mut sums = self.account.0.lock();
        let taken_bytes = sums.taken_bytes + sums.promised_bytes;
        if limit_bytes.is_some_and(|limit| limit < taken_bytes) {
            return Err(taken_bytes);
        }
        Ok(std::mem::replace(&mut sums.limit_bytes, limit_bytes))
    }

    /// What is known of a file; it begins to count here where it did not yet.
    fn know(&self, path: &str, file: &dyn File) -> Result<Arc<Mutex<Known>>> {
        let mut files = self.files.lock();
        if let Some(known) = files.get(path) {
            return Ok(known.clone());
        }
        let (length_bytes, allocated_bytes) = (file.length_bytes()?, file.allocated_bytes()?);
        let covered_bytes = if allocated_bytes < length_bytes { 0 } else { length_bytes };
        let mut known = Known { covered_bytes, ..Known::default() };
        self.account.settle(&mut known, allocated_bytes, 0);
        let known = Arc::new(Mutex::new(known));
        files.insert(path.into(), known.clone());
        Ok(known)
    }

    fn forget(&self, known: Option<Arc<Mutex<Known>>>) {
        if let Some(known) = known {
            let known = &mut *known.lock();
            known.is_removed = true;
            self.account.settle(known, 0, 0);
        }
    }

    fn wrap(&self, path: &str, inner: Arc<dyn File>) -> Result<Arc<dyn File>> {
        let known = self.know(path, &*inner)?;
        let path = format!("{}/{path}", self.inner.describe());
        Ok(Arc::new(LimitFile { inner, account: self.account.clone(), known, path }))
    }
}

impl LimitFile {
    /// Do what fills a range.
    fn fill(
        &self,
        action: &'static str,
        (offset_bytes, length_bytes): (u64, u64),
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let end_bytes = offset_bytes + length_bytes;
        let covered_bytes = self.known.lock().covered_bytes;
        if length_bytes == 0 || end_bytes <= covered_bytes {
            return work();
        }
        let from =
            covered_bytes.next_multiple_of(PAGE_BYTES).max(offset_bytes / PAGE_BYTES * PAGE_BYTES);
        let wanted_bytes = end_bytes.next_multiple_of(PAGE_BYTES).saturating_sub(from);
        if !self.account.promise(wanted_bytes) {
            return Err(StoreError::Full { action, path: self.path.clone() });
        }
        let done = work();
        let known = &mut *self.known.lock();
        if done.is_ok() && offset_bytes <= known.covered_bytes {
            known.covered_bytes = known.covered_bytes.max(end_bytes);
        }
        self.settle(known, wanted_bytes);
        done
    }

    fn settle(&self, known: &mut Known, promised_bytes: u64) {
        // Where the medium does not say, what was promised is what was taken.
        let guess = known.taken_bytes + promised_bytes;
        let now_bytes = self.inner.allocated_bytes().unwrap_or(guess);
        self.account.settle(known, now_bytes, promised_bytes);
    }
}

impl File for LimitFile {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> Result<()> {
        self.inner.read_at(buffer, offset_bytes)
    }

    fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<()> {
        let range = (offset_bytes, bytes.len() as u64);
        self.fill("write", range, || self.inner.write_at(bytes, offset_bytes))
    }

    fn allocate(&self, offset_bytes: u64, length_bytes: u64) -> Result<()> {
        let range = (offset_bytes, length_bytes);
        self.fill("allocate", range, || self.inner.allocate(offset_bytes, length_bytes))
    }

    fn punch(&self, offset_bytes: u64, length_bytes: u64) -> Result<bool> {
        let punched = self.inner.punch(offset_bytes, length_bytes)?;
        let known = &mut *self.known.lock();
        if punched {
            known.covered_bytes = known.covered_bytes.min(offset_bytes);
        }
        self.settle(known, 0);
        Ok(punched)
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }

    fn map(&self, length_bytes: u64) -> Option<Mapping> {
        self.inner.map(length_bytes)
    }

    fn will_be_read(&self) {
        self.inner.will_be_read();
    }

    fn read_ahead(&self, offset_bytes: u64, length_bytes: u64) {
        self.inner.read_ahead(offset_bytes, length_bytes);
    }

    fn start_writeback(&self, offset_bytes: u64, length_bytes: u64) {
        self.inner.start_writeback(offset_bytes, length_bytes);
    }

    fn set_length(&self, length_bytes: u64) -> Result<()> {
        self.inner.set_length(length_bytes)?;
        let known = &mut *self.known.lock();
        known.covered_bytes = known.covered_bytes.min(length_bytes);
        self.settle(known, 0);
        Ok(())
    }

    fn length_bytes(&self) -> Result<u64> {
        self.inner.length_bytes()
    }

    fn allocated_bytes(&self) -> Result<u64> {
        self.inner.allocated_bytes()
    }
}

impl Store for LimitStore {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn create(&self, path: &str) -> Result<Arc<dyn File>> {
        let file = self.inner.create(path)?;
        self.wrap(path, file)
    }

    fn open(&self, path: &str, writable: bool) -> Result<Arc<dyn File>> {
        let file = self.inner.open(path, writable)?;
        if writable { self.wrap(path, file) } else { Ok(file) }
    }

    fn exists(&self, path: &str) -> Result<bool> {
        self.inner.exists(path)
    }

    fn list(&self, directory: &str) -> Result<Vec<String>> {
        self.inner.list(directory)
    }

    fn create_directory(&self, directory: &str) -> Result<()> {
        self.inner.create_directory(directory)
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.inner.rename(from, to)?;
        if from != to {
            let files = &mut *self.files.lock();
            let replaced = match files.remove(from) {
                Some(known) => files.insert(to.into(), known),
                None => files.remove(to),
            };
            self.forget(replaced);
        }
        Ok(())
    }

    fn exchange(&self, one: &str, other: &str) -> Result<bool> {
        let exchanged = self.inner.exchange(one, other)?;
        if exchanged {
            let files = &mut *self.files.lock();
            let (before, after) = (files.remove(one), files.remove(other));
            files.extend(before.map(|known| (other.to_string(), known)));
            files.extend(after.map(|known| (one.to_string(), known)));
        }
        Ok(exchanged)
    }

    fn remove(&self, path: &str) -> Result<()> {
        self.inner.remove(path)?;
        let known = self.files.lock().remove(path);
        self.forget(known);
        Ok(())
    }

    fn sync_directory(&self, directory: &str) -> Result<()> {
        self.inner.sync_directory(directory)
    }

    fn lock(&self, mode: LockMode) -> Result<Box<dyn Lock>> {
        self.inner.lock(mode)
    }

    /// Of the medium, or below the limit where that is less.
    fn space_bytes(&self) -> Result<(u64, u64)> {
        let (free, all) = self.inner.space_bytes()?;
        let sums = self.account.0.lock();
        let limit_bytes = sums.limit_bytes.unwrap_or(u64::MAX);
        let left = limit_bytes.saturating_sub(sums.taken_bytes + sums.promised_bytes);
        Ok((free.min(left), all.min(limit_bytes)))
    }

    fn moment(&self) -> Moment {
        self.inner.moment()
    }
}
