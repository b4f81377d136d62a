//! What blocks and nodes of maps hash to, kept under their locators and addresses in files beside
//! those that they are in: a cache.
//!
//! Calls the log and the store. Invariants: a hash is kept under a number that never stands for
//! anything else; nothing in here fails, poisons or syncs anything: what is not kept is computed
//! anew. See docs/internals/root-hash.md, "Kept hashes".

use crate::engine::Engine;
use crate::ids::IdMap;
use parking_lot::Mutex;
use ramet_log::format::hashes::{
    HASHES_DIRECTORY, HASHES_PER_PAGE, Hash, NO_HASH, decode, encode, id_of_name, path,
};
use ramet_log::{BLOCK_BYTES, BLOCK_BYTES_U64, Locator, SegmentId, SlotSet};
use ramet_store::{File, Store, StoreError};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Pages in memory: 32 MiB, which speak for 4 GiB.
const PAGES_MAX: usize = 8192;
/// Files kept open.
const FILES_MAX: usize = 256;
/// What is new is written this long after the last time.
const WRITE_EVERY: Duration = Duration::from_secs(10);
/// Nothing is written where less is free.
const FREE_BYTES_MIN: u64 = 64 << 20;

/// See the head of this file.
#[derive(Default)]
pub(crate) struct Hashes {
    state: Mutex<State>,
    /// Bytes that the files take.
    stored_bytes: AtomicU64,
    /// Somebody found no space.
    unwanted: AtomicBool,
}

#[derive(Default)]
struct State {
    /// By file and page.
    pages: IdMap<(u64, usize), Page>,
    files: IdMap<SegmentId, Beside>,
    /// Whether pages differ from what the files hold.
    changed: bool,
    /// When they were last written; `None`: the files were not looked at yet.
    written_at: Option<Instant>,
    /// The medium failed, or the pool was closed.
    ended: bool,
}

struct Page {
    hashes: Vec<Hash>,
    changed: bool,
}

/// A file beside another one.
struct Beside {
    /// Of the other one.
    nonce: u64,
    file: Option<Arc<dyn File>>,
}

impl Beside {
    fn page(&self, index: usize) -> Option<Vec<Hash>> {
        let mut page = vec![0; BLOCK_BYTES];
        let offset_bytes = index as u64 * BLOCK_BYTES_U64;
        self.file.as_ref()?.read_at(&mut page, offset_bytes).ok()?;
        decode(&page, self.nonce, index as u64)
    }
}

/// The pages that consecutive numbers of one file lie in: page, its first place of interest, and
/// which of the numbers.
fn pages_of(first: u64, count: usize) -> impl Iterator<Item = (usize, usize, Range<usize>)> {
    let place = Locator(first).slot() as usize;
    let mut at = 0;
    std::iter::from_fn(move || {
        let (index, from) = ((place + at) / HASHES_PER_PAGE, (place + at) % HASHES_PER_PAGE);
        let take = (count - at).min(HASHES_PER_PAGE - from);
        at += take;
        (take > 0).then_some((index, from, at - take..at))
    })
}

impl Engine {
    /// Find the hashes kept under consecutive numbers from `first` on, all of one file. Result:
    /// which are not there; those of `found` are as they were.
    pub(crate) fn kept_hashes(&self, first: u64, found: &mut [Hash]) -> Vec<Range<usize>> {
        let state = &mut *self.hashes.state.lock();
        let mut missing: Vec<Range<usize>> = Vec::new();
        let mut miss = |at: Range<usize>| match missing.last_mut() {
            Some(last) if last.end == at.start => last.end = at.end,
            Some(_) | None => missing.push(at),
        };
        for (index, from, part) in pages_of(first, found.len()) {
            match state.page(self, Locator(first).segment(), index) {
                None => miss(part),
                Some(page) => {
                    for (at, hash) in part.clone().zip(&page.hashes[from..from + part.len()]) {
                        if *hash == NO_HASH { miss(at..at + 1) } else { found[at] = *hash }
                    }
                }
            }
        }
        missing
    }

    /// Keep hashes under consecutive numbers from `first` on, all of one file.
    pub(crate) fn keep_hashes(&self, first: u64, hashes: &[Hash]) {
        let state = &mut *self.hashes.state.lock();
        for (index, from, part) in pages_of(first, hashes.len()) {
            if let Some(page) = state.page(self, Locator(first).segment(), index) {
                page.hashes[from..from + part.len()].copy_from_slice(&hashes[part]);
                page.changed = true;
                state.changed = true;
            }
        }
    }

    /// Background work: write what is new, now and then; remove what nobody needs.
    pub(crate) fn step_hashes(&self, now: Instant) {
        let state = &mut *self.hashes.state.lock();
        if self.hashes.unwanted.swap(false, Ordering::Relaxed) {
            state.remove_all(self);
        }
        match state.written_at {
            None => state.look_at_files(self),
            Some(at) if now.saturating_duration_since(at) < WRITE_EVERY => return,
            Some(_) => state.write(self),
        }
        state.written_at = Some(now);
    }

    /// Remove all hashes.
    pub fn forget_hashes(&self) {
        self.hashes.state.lock().remove_all(self);
    }

    /// There was no space for somebody.
    pub(crate) fn want_no_hashes(&self) {
        self.hashes.unwanted.store(true, Ordering::Relaxed);
    }

    /// Write what is new; from here on nothing is kept.
    pub(crate) fn close_hashes(&self) {
        let state = &mut *self.hashes.state.lock();
        state.write(self);
        *state = State { ended: true, ..State::default() };
    }

    /// Files are gone: so are the hashes of what was in them.
    pub(crate) fn drop_hashes(&self, ids: &[SegmentId]) {
        let state = &mut *self.hashes.state.lock();
        state.pages.retain(|(id, _), _| !ids.contains(&SegmentId(*id)));
        for id in ids {
            state.files.remove(id);
            // What was not looked at since opening is removed when it is.
            if self.hashes_bytes() > 0 {
                self.remove_hash_file(&path(*id));
            }
        }
    }

    /// Give back pages that speak for dead slots only.
    pub(crate) fn thin_hashes(&self, id: SegmentId, dead: &SlotSet) {
        let state = &mut *self.hashes.state.lock();
        let pages = &mut state.pages;
        pages.retain(|(file, _), page| *file != id.0 || page.changed);
        let in_memory: Vec<usize> =
            pages.keys().filter(|(file, _)| *file == id.0).map(|(_, index)| *index).collect();
        let Some(beside) = state.beside(self, id) else { return };
        let Some(file) = beside.file.clone() else { return };
        let is_dead = |slot: usize| dead.get(slot / 64).is_some_and(|it| it >> (slot % 64) & 1 > 0);
        let before = allocated(&*file);
        let pages = file.length_bytes().unwrap_or(0) / BLOCK_BYTES_U64;
        for index in 0..usize::try_from(pages).unwrap_or(0) {
            let hashes = beside.page(index).unwrap_or_default();
            let mut slots = (index * HASHES_PER_PAGE..).zip(&hashes);
            let none_lives = slots.all(|(slot, hash)| *hash == NO_HASH || is_dead(slot));
            if !hashes.is_empty() && none_lives && !in_memory.contains(&index) {
                let _ = file.punch(index as u64 * BLOCK_BYTES_U64, BLOCK_BYTES_U64);
            }
        }
        self.note_hash_bytes(before, allocated(&*file));
    }

    /// Bytes that the files take.
    pub(crate) fn hashes_bytes(&self) -> u64 {
        self.hashes.stored_bytes.load(Ordering::Relaxed)
    }

    fn note_hash_bytes(&self, before: u64, after: u64) {
        let stored_bytes = &self.hashes.stored_bytes;
        let now = stored_bytes.load(Ordering::Relaxed) + after;
        stored_bytes.store(now.saturating_sub(before), Ordering::Relaxed);
    }

    fn remove_hash_file(&self, path: &str) {
        let store = self.log.store();
        if let Ok(file) = store.open(path, false) {
            let bytes = allocated(&*file);
            // What cannot be removed is looked at again when the pool is opened.
            if store.remove(path).is_ok() {
                self.note_hash_bytes(bytes, 0);
            }
        }
    }

    /// The nonce of a file of the pool; `None` where there is none.
    fn nonce_of(&self, id: SegmentId) -> Option<u64> {
        self.log.nonce(id).or_else(|| self.nodes.files.nonce(id))
    }
}

fn allocated(file: &dyn File) -> u64 {
    file.allocated_bytes().unwrap_or(0)
}

impl State {
    /// A page, whatever the files have of it; `None` where nothing can be kept.
    fn page(&mut self, engine: &Engine, id: SegmentId, index: usize) -> Option<&mut Page> {
        let key = (id.0, index);
        if !self.pages.contains_key(&key) {
            if self.ended {
                return None;
            }
            if self.pages.len() >= PAGES_MAX {
                self.write(engine);
            }
            let found = self.beside(engine, id)?.page(index);
            let hashes = found.unwrap_or_else(|| vec![NO_HASH; HASHES_PER_PAGE]);
            self.pages.insert(key, Page { hashes, changed: false });
        }
        self.pages.get_mut(&key)
    }

    fn beside(&mut self, engine: &Engine, id: SegmentId) -> Option<&mut Beside> {
        if !self.files.contains_key(&id) {
            let nonce = engine.nonce_of(id)?;
            let writable = engine.log.check_writable().is_ok();
            let file = engine.log.store().open(&path(id), writable).ok();
            if self.files.len() >= FILES_MAX {
                self.files.clear();
            }
            self.files.insert(id, Beside { nonce, file });
        }
        self.files.get_mut(&id)
    }

    /// Write what is new, as far as there is room, and begin with empty memory.
    fn write(&mut self, engine: &Engine) {
        let pages = std::mem::take(&mut self.pages);
        if !std::mem::take(&mut self.changed) || engine.log.check_writable().is_err() {
            return;
        }
        let mut changed: Vec<_> = pages.into_iter().filter(|(_, page)| page.changed).collect();
        changed.sort_unstable_by_key(|(key, _)| *key);
        let wanted_bytes = FREE_BYTES_MIN + changed.len() as u64 * BLOCK_BYTES_U64;
        if engine.log.store().space_bytes().is_ok_and(|(free, _)| free < wanted_bytes) {
            return;
        }
        for ((id, index), page) in changed {
            match self.write_page(engine, SegmentId(id), index, &page.hashes) {
                Ok(()) => {}
                // Others need what room there is.
                Err(StoreError::Full { .. }) => break,
                Err(_) => {
                    *self = State { ended: true, written_at: self.written_at, ..State::default() };
                    break;
                }
            }
        }
    }

    fn write_page(
        &mut self,
        engine: &Engine,
        id: SegmentId,
        index: usize,
        hashes: &[Hash],
    ) -> Result<(), StoreError> {
        // What it stands beside is gone where there is none.
        let Some(beside) = self.beside(engine, id) else { return Ok(()) };
        let file = match &beside.file {
            Some(file) => file.clone(),
            None => beside.file.insert(create(engine.log.store(), id)?).clone(),
        };
        let page = encode(hashes, beside.nonce, index as u64);
        let before = allocated(&*file);
        file.write_at(&page, index as u64 * BLOCK_BYTES_U64)?;
        engine.note_hash_bytes(before, allocated(&*file));
        Ok(())
    }

    /// Once after opening: how much there is, and what stands beside nothing.
    fn look_at_files(&mut self, engine: &Engine) {
        let store = engine.log.store();
        let mut stored_bytes = 0;
        for id in ids(store) {
            match store.open(&path(id), false) {
                Ok(file) if engine.nonce_of(id).is_some() => stored_bytes += allocated(&*file),
                Ok(_) if engine.log.check_writable().is_ok() => {
                    let _ = store.remove(&path(id));
                }
                Ok(_) | Err(_) => {}
            }
        }
        engine.hashes.stored_bytes.store(stored_bytes, Ordering::Relaxed);
    }

    fn remove_all(&mut self, engine: &Engine) {
        self.pages.clear();
        self.files.clear();
        self.changed = false;
        if engine.log.check_writable().is_ok() {
            ids(engine.log.store()).iter().for_each(|id| engine.remove_hash_file(&path(*id)));
        }
    }
}

/// The ids in the names of all files.
fn ids(store: &dyn Store) -> Vec<SegmentId> {
    let names = store.list(HASHES_DIRECTORY).unwrap_or_default();
    names.iter().filter_map(|name| id_of_name(name)).collect()
}

fn create(store: &dyn Store, id: SegmentId) -> Result<Arc<dyn File>, StoreError> {
    store.create_directory(HASHES_DIRECTORY)?;
    match store.create(&path(id)) {
        Err(StoreError::Exists { .. }) => store.open(&path(id), true),
        made => made,
    }
}
