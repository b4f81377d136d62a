//! What blocks and nodes of maps hash to, kept under their locators and addresses in files beside
//! those that they are in: a cache.
//!
//! Calls the log and the store. Invariants: a hash is kept under a number that never stands for
//! anything else; nothing in here fails, poisons or syncs anything: what is not kept is computed
//! anew. See docs/internals/root-hash.md, "Kept hashes".

use crate::engine::Engine;
use crate::ids::IdMap;
use parking_lot::{Mutex, MutexGuard};
use ramet_log::format::hashes::{
    HASHES_DIRECTORY, HASHES_PER_PAGE, Hash, NO_HASH, decode, encode, id_of_name, path,
};
use ramet_log::{BLOCK_BYTES, BLOCK_BYTES_U64, Locator, SegmentId, SlotSet};
use ramet_store::{File, Store, StoreError};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Pages in memory take an eighth of what maps may take, beside it: 32 MiB, which speak for 4 GiB.
const BUDGET_PART: u64 = 8;
const PAGES_MIN: usize = 16;
const PAGES_MAX: usize = 8192;
/// Of these, so many make way at once.
const LEAVING_PART: usize = 16;
/// Written in one hold of the lock: who looks hashes up waits for that.
const WRITE_PAGES_MAX: usize = 32;
/// Written in one step; what is left, in the next.
const STEP_PAGES_MAX: usize = 2048;
/// Files kept open.
const FILES_MAX: usize = 256;
/// What is new is written this long after the last time.
const WRITE_EVERY: Duration = Duration::from_secs(10);
/// Nothing is written where less is free.
const FREE_BYTES_MIN: u64 = 64 << 20;

type Result<T> = std::result::Result<T, StoreError>;

/// See the head of this file.
pub(crate) struct Hashes {
    state: Mutex<State>,
    pages_max: usize,
    /// Somebody found no space.
    unwanted: AtomicBool,
}

/// File and page, in the order in which they are written.
type Key = (u64, usize);

#[derive(Default)]
struct State {
    pages: IdMap<Key, Page>,
    files: IdMap<SegmentId, Beside>,
    /// Which files there are; `None`: nobody looked yet.
    present: Option<BTreeSet<SegmentId>>,
    /// When pages were last written; `None`: what stands beside nothing was not looked for yet.
    written_at: Option<Instant>,
    /// The medium failed, or the pool was closed.
    ended: bool,
}

struct Page {
    hashes: Vec<Hash>,
    /// It differs from what the file holds.
    changed: bool,
    /// Since the last look at what can go.
    used: bool,
}

/// A file beside another one.
struct Beside {
    /// Of the other one.
    nonce: u64,
    file: Option<Arc<dyn File>>,
}

impl Beside {
    fn page(&self, index: usize) -> Result<Option<Vec<Hash>>> {
        let Some(file) = &self.file else { return Ok(None) };
        let mut page = vec![0; BLOCK_BYTES];
        match file.read_at(&mut page, index as u64 * BLOCK_BYTES_U64) {
            // Nothing was written that far.
            Err(StoreError::ShortRead { .. }) => Ok(None),
            Err(error) => Err(error),
            Ok(()) => Ok(decode(&page, self.nonce, index as u64)),
        }
    }
}

impl Hashes {
    /// None yet; `budget_bytes`: what maps may take.
    pub(crate) fn new(budget_bytes: u64) -> Self {
        let pages = usize::try_from(budget_bytes / BUDGET_PART / BLOCK_BYTES_U64);
        Hashes {
            state: Mutex::default(),
            pages_max: pages.unwrap_or(PAGES_MAX).clamp(PAGES_MIN, PAGES_MAX),
            unwanted: AtomicBool::new(false),
        }
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
        let can_be_written = self.log.check_writable().is_ok();
        let state = &mut *self.hashes.state.lock();
        for (index, from, part) in pages_of(first, hashes.len()) {
            if let Some(page) = state.page(self, Locator(first).segment(), index) {
                let (kept, new) = (&mut page.hashes[from..from + part.len()], &hashes[part]);
                if kept != new {
                    kept.copy_from_slice(new);
                    page.changed = can_be_written;
                }
            }
        }
    }

    /// Background work: write what is new, now and then; remove what nobody needs.
    pub(crate) fn step_hashes(&self, now: Instant) {
        let due = self.hashes.state.lock().due(self, now);
        for keys in due.chunks(WRITE_PAGES_MAX) {
            let mut state = self.hashes.state.lock();
            let goes_on = state.write(self, keys);
            if !goes_on {
                state.written_at = Some(now);
                return;
            }
            // Who waits for it comes first.
            MutexGuard::unlock_fair(state);
        }
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
        let keys = state.changed_keys();
        state.write(self, &keys);
        state.end();
    }

    /// Files are gone: so are the hashes of what was in them.
    pub(crate) fn drop_hashes(&self, ids: &[SegmentId]) {
        let state = &mut *self.hashes.state.lock();
        state.pages.retain(|(id, _), _| !ids.contains(&SegmentId(*id)));
        for id in ids {
            state.remove(self, *id);
        }
    }

    /// Give back pages that speak for dead slots only.
    pub(crate) fn thin_hashes(&self, id: SegmentId, dead: &SlotSet) {
        let state = &mut *self.hashes.state.lock();
        if state.thin(self, id, dead).is_err() {
            state.end();
        }
    }

    /// Bytes that the files take.
    pub(crate) fn hashes_bytes(&self) -> u64 {
        self.limited.taken_in(HASHES_DIRECTORY)
    }

    /// The nonce of a file of the pool; `None` where there is none.
    fn nonce_of(&self, id: SegmentId) -> Option<u64> {
        self.log.nonce(id).or_else(|| self.nodes.files.nonce(id))
    }
}

impl State {
    /// Keep and use nothing until the pool is opened again.
    fn end(&mut self) {
        *self = State { ended: true, written_at: self.written_at, ..State::default() };
    }

    /// A page, whatever the files have of it; `None` where nothing can be kept.
    fn page(&mut self, engine: &Engine, id: SegmentId, index: usize) -> Option<&mut Page> {
        let key = (id.0, index);
        if !self.pages.contains_key(&key) {
            self.make_room(engine);
            if self.ended {
                return None;
            }
            let Ok(loaded) = self.load(engine, id, index) else {
                // What it holds is not known, so nothing may be written over it.
                self.end();
                return None;
            };
            self.pages.insert(key, Page { hashes: loaded?, changed: false, used: true });
        }
        let page = self.pages.get_mut(&key)?;
        page.used = true;
        Some(page)
    }

    /// What a file says; `None`: what it would stand beside is gone.
    fn load(&mut self, engine: &Engine, id: SegmentId, index: usize) -> Result<Option<Vec<Hash>>> {
        let Some(beside) = self.beside(engine, id)? else { return Ok(None) };
        let found = beside.page(index)?;
        Ok(Some(found.unwrap_or_else(|| vec![NO_HASH; HASHES_PER_PAGE])))
    }

    /// The file beside another one, which may not be there yet; `None`: the other one is gone.
    fn beside(&mut self, engine: &Engine, id: SegmentId) -> Result<Option<&mut Beside>> {
        if !self.files.contains_key(&id) {
            let Some(nonce) = engine.nonce_of(id) else { return Ok(None) };
            let mut file = None;
            if self.present(engine)?.contains(&id) {
                let writable = engine.log.check_writable().is_ok();
                file = match engine.log.store().open(&path(id), writable) {
                    // Somebody removed it, as they may.
                    Err(StoreError::NotFound { .. }) => None,
                    opened => Some(opened?),
                };
            }
            if self.files.len() >= FILES_MAX {
                self.files.clear();
            }
            self.files.insert(id, Beside { nonce, file });
        }
        Ok(self.files.get_mut(&id))
    }

    fn present(&mut self, engine: &Engine) -> Result<&mut BTreeSet<SegmentId>> {
        if self.present.is_none() {
            let names = match engine.log.store().list(HASHES_DIRECTORY) {
                Err(StoreError::NotFound { .. }) => Vec::new(),
                names => names?,
            };
            self.present = Some(names.iter().filter_map(|name| id_of_name(name)).collect());
        }
        Ok(self.present.get_or_insert_default())
    }

    /// Have fewer pages than there may be.
    fn make_room(&mut self, engine: &Engine) {
        let pages_max = engine.hashes.pages_max;
        let leaving = pages_max / LEAVING_PART;
        if self.pages.len() < pages_max {
            return;
        }
        self.drop_unused();
        if self.pages.len() > pages_max - leaving {
            self.pages.retain(|_, page| page.changed);
        }
        if self.pages.len() > pages_max - leaving {
            let mut keys = self.changed_keys();
            keys.truncate(leaving);
            self.write(engine, &keys);
            // Where they cannot be written they are computed anew.
            self.pages.retain(|key, _| keys.binary_search(key).is_err());
        }
    }

    /// Drop what nobody looked at since the last time, and the files hold.
    fn drop_unused(&mut self) {
        self.pages.retain(|_, page| std::mem::take(&mut page.used) || page.changed);
    }

    fn changed_keys(&self) -> Vec<Key> {
        let changed = self.pages.iter().filter(|(_, page)| page.changed);
        let mut keys: Vec<Key> = changed.map(|(key, _)| *key).collect();
        keys.sort_unstable();
        keys
    }

    /// What is to be written now.
    fn due(&mut self, engine: &Engine, now: Instant) -> Vec<Key> {
        if engine.hashes.unwanted.swap(false, Ordering::Relaxed) {
            self.remove_all(engine);
        }
        match self.written_at {
            None => self.remove_what_stands_alone(engine),
            Some(at) if now.saturating_duration_since(at) < WRITE_EVERY => return Vec::new(),
            Some(_) => {
                let mut keys = self.changed_keys();
                if keys.len() > STEP_PAGES_MAX {
                    keys.truncate(STEP_PAGES_MAX);
                    return keys;
                }
                self.written_at = Some(now);
                self.drop_unused();
                self.pages.shrink_to_fit();
                return keys;
            }
        }
        self.written_at = Some(now);
        Vec::new()
    }

    /// Write those of the pages that are changed still, as far as there is room. Result: whether
    /// there was.
    fn write(&mut self, engine: &Engine, keys: &[Key]) -> bool {
        let is_changed = |key: &Key| self.pages.get(key).is_some_and(|page| page.changed);
        let keys: Vec<Key> = keys.iter().copied().filter(is_changed).collect();
        let wanted_bytes = FREE_BYTES_MIN + keys.len() as u64 * BLOCK_BYTES_U64;
        let has_no_room =
            || engine.log.store().space_bytes().is_ok_and(|(free, _)| free < wanted_bytes);
        if engine.log.check_writable().is_err() || has_no_room() {
            return false;
        }
        for run in keys.chunk_by(|one, next| (one.0, one.1 + 1) == *next) {
            match self.write_run(engine, run) {
                Ok(()) => {}
                // Others need what room there is.
                Err(StoreError::Full { .. }) => return false,
                Err(_) => {
                    self.end();
                    return false;
                }
            }
        }
        true
    }

    /// Write pages that lie side by side in one file.
    fn write_run(&mut self, engine: &Engine, run: &[Key]) -> Result<()> {
        let Some((id, first)) = run.first().copied() else { return Ok(()) };
        let Some(beside) = self.beside(engine, SegmentId(id))? else {
            // What it stands beside is gone.
            self.pages.retain(|key, _| key.0 != id);
            return Ok(());
        };
        let nonce = beside.nonce;
        let file = match &beside.file {
            Some(file) => file.clone(),
            None => beside.file.insert(create(engine.log.store(), SegmentId(id))?).clone(),
        };
        self.present(engine)?.insert(SegmentId(id));
        let mut bytes = Vec::with_capacity(run.len() * BLOCK_BYTES);
        for key in run {
            bytes.extend(encode(&self.pages[key].hashes, nonce, key.1 as u64));
        }
        file.write_at(&bytes, first as u64 * BLOCK_BYTES_U64)?;
        for key in run {
            self.pages.entry(*key).and_modify(|page| page.changed = false);
        }
        Ok(())
    }

    fn thin(&mut self, engine: &Engine, id: SegmentId, dead: &SlotSet) -> Result<()> {
        self.pages.retain(|(file, _), page| *file != id.0 || page.changed);
        let in_memory: Vec<usize> =
            self.pages.keys().filter(|(file, _)| *file == id.0).map(|(_, index)| *index).collect();
        let Some(beside) = self.beside(engine, id)? else { return Ok(()) };
        let Some(file) = beside.file.clone() else { return Ok(()) };
        let is_dead = |slot: usize| dead.get(slot / 64).is_some_and(|it| it >> (slot % 64) & 1 > 0);
        let pages = file.length_bytes()? / BLOCK_BYTES_U64;
        for index in 0..usize::try_from(pages).unwrap_or(0) {
            let hashes = beside.page(index)?.unwrap_or_default();
            let mut slots = (index * HASHES_PER_PAGE..).zip(&hashes);
            let none_lives = slots.all(|(slot, hash)| *hash == NO_HASH || is_dead(slot));
            if !hashes.is_empty() && none_lives && !in_memory.contains(&index) {
                file.punch(index as u64 * BLOCK_BYTES_U64, BLOCK_BYTES_U64)?;
            }
        }
        Ok(())
    }

    /// Once after opening: a crash may have come between the end of a file and of what stood
    /// beside it.
    fn remove_what_stands_alone(&mut self, engine: &Engine) {
        let Ok(present) = self.present(engine) else { return self.end() };
        let alone: Vec<SegmentId> =
            present.iter().copied().filter(|id| engine.nonce_of(*id).is_none()).collect();
        alone.iter().for_each(|id| self.remove(engine, *id));
    }

    fn remove_all(&mut self, engine: &Engine) {
        self.pages.clear();
        let Ok(present) = self.present(engine) else { return self.end() };
        let all: Vec<SegmentId> = present.iter().copied().collect();
        all.iter().for_each(|id| self.remove(engine, *id));
    }

    /// Remove a file, if it is there; what cannot be removed is looked at again after opening.
    fn remove(&mut self, engine: &Engine, id: SegmentId) {
        self.files.remove(&id);
        if engine.log.check_writable().is_ok()
            && let Ok(present) = self.present(engine)
            && present.remove(&id)
        {
            let _ = engine.log.store().remove(&path(id));
        }
    }
}

fn create(store: &dyn Store, id: SegmentId) -> Result<Arc<dyn File>> {
    store.create_directory(HASHES_DIRECTORY)?;
    match store.create(&path(id)) {
        Err(StoreError::Exists { .. }) => store.open(&path(id), true),
        made => made,
    }
}
