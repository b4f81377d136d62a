//! A store in memory, and what stores in memory are made of: sparse bytes, names, the lock.
//!
//! Calls nothing. Invariants: what one handle wrote every other one reads at once; a file that was
//! removed can be read on by those that have it open. What survives a power loss is not asked here:
//! that is `FaultStore`.

use crate::{File, Lock, LockMode, Moment, Result, Store, StoreError};
use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The unit in which contents are kept and space is counted.
pub(crate) const PAGE_BYTES: usize = 4096;
const PAGE_BYTES_U64: u64 = 4096;
/// What a store in memory says it has room for; nothing holds it to that.
pub(crate) const SPACE_BYTES: u64 = 1 << 40;

/// A pool's directory in memory.
pub struct MemoryStore {
    names: Mutex<Names<Shared>>,
    locks: Locks,
}

type Shared = Arc<RwLock<Contents>>;

struct MemoryFile {
    path: String,
    contents: Shared,
    writable: bool,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        MemoryStore { names: Mutex::new(Names::new("memory:")), locks: Locks::default() }
    }

    fn file(names: &Names<Shared>, path: &str, contents: Shared, writable: bool) -> Arc<dyn File> {
        Arc::new(MemoryFile { path: names.full(path), contents, writable })
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for MemoryStore {
    fn describe(&self) -> String {
        self.names.lock().full("")
    }

    fn create(&self, path: &str) -> Result<Arc<dyn File>> {
        let mut names = self.names.lock();
        names.check_new(path)?;
        let contents = Shared::default();
        names.insert(path, Entry::File(contents.clone()));
        Ok(Self::file(&names, path, contents, true))
    }

    fn open(&self, path: &str, writable: bool) -> Result<Arc<dyn File>> {
        let names = self.names.lock();
        let contents = names.find_file(path, "open")?;
        Ok(Self::file(&names, path, contents, writable))
    }

    fn exists(&self, path: &str) -> Result<bool> {
        Ok(self.names.lock().exists(path))
    }

    fn list(&self, directory: &str) -> Result<Vec<String>> {
        self.names.lock().list(directory)
    }

    fn create_directory(&self, directory: &str) -> Result<()> {
        let mut names = self.names.lock();
        for missing in names.missing_directories(directory)? {
            names.insert(&missing, Entry::Directory);
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let mut names = self.names.lock();
        let contents = names.check_rename(from, to)?;
        names.remove(from);
        names.insert(to, Entry::File(contents));
        Ok(())
    }

    fn exchange(&self, one: &str, other: &str) -> Result<bool> {
        let mut names = self.names.lock();
        let (first, second) = names.check_exchange(one, other)?;
        names.insert(one, Entry::File(second));
        names.insert(other, Entry::File(first));
        Ok(true)
    }

    fn remove(&self, path: &str) -> Result<()> {
        let mut names = self.names.lock();
        names.find_file(path, "remove")?;
        names.remove(path);
        Ok(())
    }

    fn sync_directory(&self, directory: &str) -> Result<()> {
        self.names.lock().check_directory(directory)
    }

    fn lock(&self, mode: LockMode) -> Result<Box<dyn Lock>> {
        let mut names = self.names.lock();
        if !names.exists("lock") {
            if mode == LockMode::Shared {
                return Err(StoreError::NotFound { path: names.full("lock") });
            }
            names.insert("lock", Entry::File(Shared::default()));
        }
        self.locks.take(mode, names.full(""))
    }

    fn space_bytes(&self) -> Result<(u64, u64)> {
        let used = self.names.lock().files().map(|contents| contents.read().room_bytes()).sum();
        Ok((SPACE_BYTES.saturating_sub(used), SPACE_BYTES))
    }

    /// Time stands still here.
    fn moment(&self) -> Moment {
        Moment::default()
    }
}

impl MemoryFile {
    fn writable(
        &self,
        action: &'static str,
    ) -> Result<parking_lot::RwLockWriteGuard<'_, Contents>> {
        if self.writable {
            return Ok(self.contents.write());
        }
        Err(failed(action, &self.path, Errno::BADF))
    }
}

impl File for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> Result<()> {
        let end_bytes = offset_bytes + buffer.len() as u64;
        if self.contents.read().read(buffer, offset_bytes) {
            return Ok(());
        }
        Err(StoreError::ShortRead { path: self.path.clone(), end_bytes })
    }

    fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<()> {
        self.writable("write")?.write(bytes, offset_bytes);
        Ok(())
    }

    fn allocate(&self, offset_bytes: u64, length_bytes: u64) -> Result<()> {
        if length_bytes > 0 {
            self.writable("allocate")?.allocate(offset_bytes, length_bytes);
        }
        Ok(())
    }

    fn punch(&self, offset_bytes: u64, length_bytes: u64) -> Result<bool> {
        self.writable("give back room of")?.punch(offset_bytes, length_bytes);
        Ok(true)
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn start_writeback(&self, _offset_bytes: u64, _length_bytes: u64) {}

    fn set_length(&self, length_bytes: u64) -> Result<()> {
        self.writable("cut")?.set_length(length_bytes);
        Ok(())
    }

    fn length_bytes(&self) -> Result<u64> {
        Ok(self.contents.read().length_bytes())
    }

    fn allocated_bytes(&self) -> Result<u64> {
        Ok(self.contents.read().room_bytes())
    }
}

/// An error of the medium, as the system would say it.
pub(crate) fn failed(action: &'static str, path: &str, errno: Errno) -> StoreError {
    StoreError::Io { action, path: path.to_string(), source: errno.into() }
}

/// The bytes of a file. Pages are shared between copies until one of them writes, so that an image
/// of a whole store is cheap; a page that was never written takes no memory.
#[derive(Clone, Default)]
pub(crate) struct Contents {
    length_bytes: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE_BYTES]>>,
    /// Pages whose room was given back, and not taken again.
    punched: BTreeSet<u64>,
}

impl Contents {
    pub(crate) fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    /// What the file takes on a medium that keeps whole pages, and holes only where they were made,
    /// or where it was made longer.
    pub(crate) fn room_bytes(&self) -> u64 {
        self.length_bytes.next_multiple_of(PAGE_BYTES_U64)
            - self.punched.len() as u64 * PAGE_BYTES_U64
    }

    /// What a change of a range would add to `room_bytes`.
    pub(crate) fn room_wanted(&self, offset_bytes: u64, length_bytes: u64) -> u64 {
        let end_bytes = offset_bytes + length_bytes;
        let grown = end_bytes.next_multiple_of(PAGE_BYTES_U64);
        let grown = grown.saturating_sub(self.length_bytes.next_multiple_of(PAGE_BYTES_U64));
        grown
            + self.punched.range(pages(offset_bytes, length_bytes)).count() as u64 * PAGE_BYTES_U64
    }

    /// Fill `buffer`; false where the contents end first.
    pub(crate) fn read(&self, buffer: &mut [u8], offset_bytes: u64) -> bool {
        if !buffer.is_empty() && offset_bytes + buffer.len() as u64 > self.length_bytes {
            return false;
        }
        let mut rest = buffer;
        let mut at = offset_bytes;
        while !rest.is_empty() {
            let (page, inside, length) = place(at, rest.len());
            let (part, after) = rest.split_at_mut(length);
            match self.pages.get(&page) {
                Some(bytes) => part.copy_from_slice(&bytes[inside..inside + length]),
                None => part.fill(0),
            }
            at += length as u64;
            rest = after;
        }
        true
    }

    pub(crate) fn write(&mut self, bytes: &[u8], offset_bytes: u64) {
        if bytes.is_empty() {
            return;
        }
        self.allocate(offset_bytes, bytes.len() as u64);
        let mut rest = bytes;
        let mut at = offset_bytes;
        while !rest.is_empty() {
            let (page, inside, length) = place(at, rest.len());
            let (part, after) = rest.split_at(length);
            let target = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE_BYTES]));
            Arc::make_mut(target)[inside..inside + length].copy_from_slice(part);
            at += length as u64;
            rest = after;
        }
    }

    /// Have room for a range, growing where needed.
    pub(crate) fn allocate(&mut self, offset_bytes: u64, length_bytes: u64) {
        self.length_bytes = self.length_bytes.max(offset_bytes + length_bytes);
        if !self.punched.is_empty() {
            let range = pages(offset_bytes, length_bytes);
            self.punched.retain(|page| !range.contains(page));
        }
    }

    /// Whole pages in a range read as zeros, and take no room.
    pub(crate) fn punch(&mut self, offset_bytes: u64, length_bytes: u64) {
        let (start, end) = whole_pages(offset_bytes, length_bytes);
        let end = end.min(self.length_bytes.next_multiple_of(PAGE_BYTES_U64));
        for page in start / PAGE_BYTES_U64..end / PAGE_BYTES_U64 {
            self.pages.remove(&page);
            self.punched.insert(page);
        }
    }

    pub(crate) fn set_length(&mut self, length_bytes: u64) {
        if length_bytes < self.length_bytes {
            let (page, inside, _) = place(length_bytes, 1);
            self.pages.retain(|index, _| *index <= page);
            // What is cut off reads as zeros, should the file grow again.
            if let Some(last) = self.pages.get_mut(&page) {
                Arc::make_mut(last)[inside..].fill(0);
            }
        }
        let before = self.length_bytes.div_ceil(PAGE_BYTES_U64);
        let end = length_bytes.div_ceil(PAGE_BYTES_U64);
        self.length_bytes = length_bytes;
        self.punched.retain(|page| *page < end);
        self.punched.extend(before..end);
    }
}

/// The pages a range touches.
fn pages(offset_bytes: u64, length_bytes: u64) -> std::ops::Range<u64> {
    offset_bytes / PAGE_BYTES_U64..(offset_bytes + length_bytes).div_ceil(PAGE_BYTES_U64)
}

/// The whole pages in a range: where they begin and end.
pub(crate) fn whole_pages(offset_bytes: u64, length_bytes: u64) -> (u64, u64) {
    let end = (offset_bytes + length_bytes) / PAGE_BYTES_U64 * PAGE_BYTES_U64;
    (offset_bytes.next_multiple_of(PAGE_BYTES_U64), end)
}

/// Page of a byte, its place inside, and how much of `length` lies in that page.
fn place(at: u64, length: usize) -> (u64, usize, usize) {
    let inside = usize::try_from(at % PAGE_BYTES_U64).expect("below a page");
    (at / PAGE_BYTES_U64, inside, length.min(PAGE_BYTES - inside))
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry<T> {
    Directory,
    File(T),
}

/// The names of a store, with files as `T`. The root is always there.
#[derive(Clone)]
pub(crate) struct Names<T> {
    root: String,
    entries: BTreeMap<String, Entry<T>>,
}

impl<T: Clone> Names<T> {
    pub(crate) fn new(root: impl Into<String>) -> Self {
        Names { root: root.into(), entries: BTreeMap::new() }
    }

    /// A path as messages show it.
    pub(crate) fn full(&self, path: &str) -> String {
        if path.is_empty() { self.root.clone() } else { format!("{}/{path}", self.root) }
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        path.is_empty() || self.entries.contains_key(path)
    }

    pub(crate) fn is_directory(&self, path: &str) -> bool {
        path.is_empty() || matches!(self.entries.get(path), Some(Entry::Directory))
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &T> {
        self.entries.values().filter_map(|entry| match entry {
            Entry::Directory => None,
            Entry::File(file) => Some(file),
        })
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (&String, &Entry<T>)> {
        self.entries.iter()
    }

    pub(crate) fn insert(&mut self, path: &str, entry: Entry<T>) {
        self.entries.insert(path.to_string(), entry);
    }

    pub(crate) fn remove(&mut self, path: &str) {
        self.entries.remove(path);
    }

    pub(crate) fn retain(&mut self, keep: impl FnMut(&String, &mut Entry<T>) -> bool) {
        self.entries.retain(keep);
    }

    pub(crate) fn check_directory(&self, path: &str) -> Result<()> {
        if self.is_directory(path) {
            return Ok(());
        }
        Err(StoreError::NotFound { path: self.full(path) })
    }

    pub(crate) fn check_new(&self, path: &str) -> Result<()> {
        if self.exists(path) {
            return Err(StoreError::Exists { path: self.full(path) });
        }
        self.check_directory(parent(path))
    }

    pub(crate) fn find_file(&self, path: &str, action: &'static str) -> Result<T> {
        match self.entries.get(path) {
            Some(Entry::File(file)) => Ok(file.clone()),
            Some(Entry::Directory) => Err(failed(action, &self.full(path), Errno::ISDIR)),
            None => Err(StoreError::NotFound { path: self.full(path) }),
        }
    }

    /// The file that a rename moves.
    pub(crate) fn check_rename(&self, from: &str, to: &str) -> Result<T> {
        let file = self.find_file(from, "rename")?;
        self.check_directory(parent(to))?;
        if self.is_directory(to) {
            return Err(failed("rename", &self.full(to), Errno::ISDIR));
        }
        Ok(file)
    }

    /// The files that an exchange moves.
    pub(crate) fn check_exchange(&self, one: &str, other: &str) -> Result<(T, T)> {
        Ok((self.find_file(one, "exchange")?, self.find_file(other, "exchange")?))
    }

    /// Names of the files right in a directory, sorted as the map is.
    pub(crate) fn list(&self, directory: &str) -> Result<Vec<String>> {
        self.check_directory(directory)?;
        let is_file = |entry: &Entry<T>| matches!(entry, Entry::File(_));
        let inside = self.entries.iter().filter(|(path, _)| parent(path) == directory);
        let files = inside.filter(|(_, entry)| is_file(entry));
        Ok(files.map(|(path, _)| path.rsplit('/').next().unwrap_or(path).to_string()).collect())
    }

    /// The directories that are missing for `directory` to be there, outermost first.
    pub(crate) fn missing_directories(&self, directory: &str) -> Result<Vec<String>> {
        let mut missing = Vec::new();
        let mut path = directory;
        while !self.is_directory(path) {
            if self.exists(path) {
                return Err(StoreError::Exists { path: self.full(path) });
            }
            missing.push(path.to_string());
            path = parent(path);
        }
        missing.reverse();
        Ok(missing)
    }
}

/// The directory a path lies in.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// Who holds the lock of a store in memory.
#[derive(Clone, Default)]
pub(crate) struct Locks(Arc<Mutex<Holders>>);

#[derive(Default)]
struct Holders {
    shared: usize,
    exclusive: bool,
}

struct HeldLock {
    locks: Locks,
    mode: LockMode,
}

impl Locks {
    pub(crate) fn take(&self, mode: LockMode, path: String) -> Result<Box<dyn Lock>> {
        let mut holders = self.0.lock();
        let free = !holders.exclusive && (mode == LockMode::Shared || holders.shared == 0);
        if !free {
            let holder = format!("process {}", std::process::id());
            return Err(StoreError::Locked { path, holder });
        }
        match mode {
            LockMode::Shared => holders.shared += 1,
            LockMode::Exclusive => holders.exclusive = true,
        }
        drop(holders);
        Ok(Box::new(HeldLock { locks: self.clone(), mode }))
    }
}

impl Lock for HeldLock {}

impl Drop for HeldLock {
    fn drop(&mut self) {
        let mut holders = self.locks.0.lock();
        match self.mode {
            LockMode::Shared => holders.shared -= 1,
            LockMode::Exclusive => holders.exclusive = false,
        }
    }
}
