//! A segment while the pool is open: its file, its checksums, what of it is still staged; the one
//! place that reads blocks.
//!
//! Invariant: `read` is the only way from a locator to bytes, and it returns none that were not
//! verified.

use crate::checksum;
use crate::error::{LogError, Result};
use crate::format::footer::{CHECKSUMS_PER_PAGE, Column, decode_page};
use crate::lending::{Lending, Lent};
use crate::pages::{Page, PageCache, Pages};
use crate::staging::Chunk;
use crate::types::{BLOCK_BYTES, BLOCK_BYTES_U64, SegmentId};
use parking_lot::{Mutex, RwLock};
use ramet_store::{File, Store};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

/// One segment.
pub(crate) struct Segment {
    pub(crate) id: SegmentId,
    pub(crate) path: String,
    pub(crate) nonce: u64,
    /// Slots the segment may use.
    pub(crate) slots_count: u32,
    /// Slots whose bytes are allocated in the file.
    pub(crate) allocated: AtomicU32,
    /// Slots below this are in the file; above it they are staged.
    written: AtomicU32,
    /// Slots that count; zero while that is not known yet.
    used: AtomicU32,
    file: RwLock<Option<Arc<dyn File>>>,
    /// Whether another file took the place of the first, see `Log::renew`.
    exchanged: AtomicBool,
    /// Slots below this hold bytes of an earlier segment, or of this one.
    pub(crate) filled: AtomicU32,
    /// The checksums of all slots, while the segment is not sealed.
    checksums: RwLock<Option<Arc<[AtomicU32]>>>,
    /// Slots of an unsealed segment whose batches' headers do not verify.
    unknown: OnceLock<Vec<Range<u32>>>,
    /// The checksum column of a sealed segment, as far as it was needed.
    pages: Pages,
    sealed: AtomicBool,
    /// Slots that hold blocks, once the segment has ended.
    blocks: AtomicU32,
    /// Whether what is dead in it may be given back, and how many slots were. See `Log::thin`.
    thinned: AtomicBool,
    given_back: AtomicU32,
    /// Which, as far as this opening knows.
    pub(crate) punched: Mutex<Option<Vec<u64>>>,
    staged: RwLock<VecDeque<Arc<Chunk>>>,
    pub(crate) lending: Lending,
    /// Whether the next checkpoint has to write what is known of the segment.
    pub(crate) changed: AtomicBool,
}

/// What a checkpoint keeps of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentEntry {
    /// The segment.
    pub id: SegmentId,
    /// Whether its footer is there, behind the slots in use.
    pub sealed: bool,
    /// Slots in use, or that count; zero while it is appended to.
    pub used: u32,
    /// Slots of its header.
    pub slots_count: u32,
    /// The nonce of its file.
    pub nonce: u64,
    /// Slots that hold blocks; zero while it is appended to.
    pub blocks: u32,
    /// Whether slots that are dead, or hold no block, may be gone.
    pub thinned: bool,
    /// How many are.
    pub given_back: u32,
}

impl SegmentEntry {
    /// Blocks where nobody could count them: nothing of it can be told to be empty.
    pub const NOT_COUNTED: u32 = u32::MAX;

    /// What is known of a segment that is appended to.
    #[must_use]
    pub fn begun(id: SegmentId, slots_count: u32, nonce: u64) -> Self {
        let (sealed, thinned) = (false, false);
        SegmentEntry { id, sealed, used: 0, slots_count, nonce, blocks: 0, thinned, given_back: 0 }
    }

    /// Slots that could be given back if so many blocks are dead: those of a sealed segment that
    /// hold no living block, the dead ones of any other.
    #[must_use]
    pub fn waste(&self, dead: u32) -> u32 {
        let all = if self.sealed { self.used.saturating_sub(1 + self.living(dead)) } else { dead };
        if self.used == 0 { 0 } else { all.saturating_sub(self.given_back) }
    }

    /// Slots that hold living blocks.
    #[must_use]
    pub fn living(&self, dead: u32) -> u32 {
        self.blocks.saturating_sub(dead)
    }
}

/// Path of a segment's first file.
pub(crate) fn segment_path(id: SegmentId) -> String {
    format!("segments/{id}.seg")
}

/// The id in a file name, if it is one of ours.
pub(crate) fn segment_of_name(name: &str) -> Option<SegmentId> {
    let hex = name.strip_suffix(".seg")?;
    crate::format::segment::id_of_hex(hex)
}

impl Segment {
    /// A segment to append to.
    pub(crate) fn open_for_append(
        id: SegmentId,
        nonce: u64,
        slots_count: u32,
        allocated: u32,
        file: Arc<dyn File>,
    ) -> Self {
        let this = Self::known(&SegmentEntry::begun(id, slots_count, nonce));
        *this.file.write() = Some(file);
        *this.checksums.write() = Some(zeroed(slots_count));
        this.changed.store(true, Ordering::Release);
        this.allocated.store(allocated, Ordering::Release);
        this.written.store(0, Ordering::Release);
        this
    }

    /// A segment that is read only: sealed, or left unsealed by a crash.
    pub(crate) fn known(entry: &SegmentEntry) -> Self {
        Segment {
            id: entry.id,
            path: segment_path(entry.id),
            nonce: entry.nonce,
            slots_count: entry.slots_count,
            allocated: AtomicU32::new(entry.slots_count),
            written: AtomicU32::new(u32::MAX),
            used: AtomicU32::new(entry.used),
            file: RwLock::new(None),
            exchanged: AtomicBool::new(false),
            filled: AtomicU32::new(0),
            checksums: RwLock::new(None),
            unknown: OnceLock::new(),
            pages: Pages::default(),
            sealed: AtomicBool::new(entry.sealed),
            blocks: AtomicU32::new(entry.blocks),
            thinned: AtomicBool::new(entry.thinned),
            given_back: AtomicU32::new(entry.given_back),
            punched: Mutex::new(None),
            staged: RwLock::new(VecDeque::new()),
            lending: Lending::default(),
            changed: AtomicBool::new(false),
        }
    }

    pub(crate) fn entry(&self) -> SegmentEntry {
        let sealed = self.sealed.load(Ordering::Acquire);
        let used = self.used.load(Ordering::Acquire);
        if used == 0 {
            return SegmentEntry::begun(self.id, self.slots_count, self.nonce);
        }
        SegmentEntry {
            id: self.id,
            sealed,
            used,
            slots_count: self.slots_count,
            nonce: self.nonce,
            blocks: self.blocks(),
            thinned: self.thinned.load(Ordering::Acquire),
            given_back: self.given_back.load(Ordering::Acquire),
        }
    }

    /// From the next checkpoint on, what is dead may be gone.
    pub(crate) fn set_thinned(&self) {
        self.thinned.store(true, Ordering::Release);
    }

    pub(crate) fn set_given_back(&self, slots: u32) {
        self.given_back.store(slots, Ordering::Release);
        self.changed.store(true, Ordering::Release);
    }

    /// To be told before `set_ended`.
    pub(crate) fn set_blocks(&self, blocks: u32) {
        self.blocks.store(blocks, Ordering::Release);
    }

    /// Slots that hold blocks; zero while it is appended to.
    pub(crate) fn blocks(&self) -> u32 {
        self.blocks.load(Ordering::Acquire)
    }

    pub(crate) fn file(&self, store: &dyn Store) -> Result<Arc<dyn File>> {
        if let Some(file) = &*self.file.read() {
            return Ok(file.clone());
        }
        // Opened under the lock, so that nobody keeps a file that was exchanged meanwhile.
        let mut held = self.file.write();
        if let Some(file) = &*held {
            return Ok(file.clone());
        }
        Ok(held.insert(store.open(&self.path, false)?).clone())
    }

    /// Put another file with the same living blocks in the place of this one's: `exchange` swaps
    /// the names, and says whether it did. Result: what reads go through that have begun; `None`
    /// where nothing was swapped.
    pub(crate) fn exchange_file(
        &self,
        exchange: impl FnOnce() -> Result<bool>,
    ) -> Result<Option<Option<Arc<dyn File>>>> {
        let mut held = self.file.write();
        if !exchange()? {
            return Ok(None);
        }
        self.exchanged.store(true, Ordering::Release);
        Ok(Some(held.take()))
    }

    /// The file, where it is open and holds this slot.
    pub(crate) fn file_of_written(&self, slot: u32) -> Option<Arc<dyn File>> {
        let file = self.file.read().clone()?;
        (slot < self.written.load(Ordering::Acquire)).then_some(file)
    }

    /// Give the descriptor back; whoever reads through it goes on.
    pub(crate) fn close_file(&self) {
        *self.file.write() = None;
    }

    pub(crate) fn has_file(&self) -> bool {
        self.file.read().is_some()
    }

    /// No more slots will come. A sealed segment's checksums are read from its footer from here on.
    pub(crate) fn set_ended(&self, used: u32, sealed: bool) {
        self.used.store(used, Ordering::Release);
        self.changed.store(true, Ordering::Release);
        if sealed {
            self.sealed.store(true, Ordering::Release);
            *self.checksums.write() = None;
        }
    }

    /// The checksums of a segment that is appended to, or was read batch by batch.
    pub(crate) fn table(&self) -> Arc<[AtomicU32]> {
        self.checksums.write().get_or_insert_with(|| zeroed(self.slots_count)).clone()
    }

    /// Checksums of the slots below `slots_count`.
    pub(crate) fn checksums(&self, slots_count: u32) -> Vec<u32> {
        let table = self.table();
        table[..slots_count as usize].iter().map(|crc| crc.load(Ordering::Relaxed)).collect()
    }

    pub(crate) fn stage(&self, chunk: Arc<Chunk>) {
        self.staged.write().push_back(chunk);
    }

    /// Slots below `slot` are in the file now; `last`: no more will follow. Result: chunks that are
    /// not needed any more.
    pub(crate) fn set_written(&self, slot: u32, last: bool) -> Vec<Arc<Chunk>> {
        self.written.store(slot, Ordering::Release);
        let mut staged = self.staged.write();
        let mut done = Vec::new();
        while let Some(front) = staged.front() {
            // The newest chunk may still be appended to; an older one ends where the next one
            // begins.
            let end = staged.get(1).map_or(front.end_slot(), |next| next.first_slot());
            if end > slot && !(last && staged.len() == 1) {
                break;
            }
            done.extend(staged.pop_front());
        }
        done
    }

    /// Read `buffer.len() / 4096` consecutive slots from `slot`, the first of which holds block
    /// `block_index`, and verify each.
    ///
    /// # Errors
    /// `Checksum` names the first slot that fails; `Lost` where the file or the slot is not there;
    /// `Store` where the medium fails.
    pub(crate) fn read(
        &self,
        store: &dyn Store,
        cache: &PageCache,
        seed: u64,
        slot: u32,
        block_index: u64,
        buffer: &mut [u8],
    ) -> Result<()> {
        let exchanged = self.exchanged.load(Ordering::Acquire);
        let read = self.read_now(store, cache, seed, slot, block_index, buffer);
        if read.is_err() && exchanged != self.exchanged.load(Ordering::Acquire) {
            // It went through the file that was there before, which may be written over by now.
            return self.read_now(store, cache, seed, slot, block_index, buffer);
        }
        read
    }

    fn read_now(
        &self,
        store: &dyn Store,
        cache: &PageCache,
        seed: u64,
        slot: u32,
        block_index: u64,
        buffer: &mut [u8],
    ) -> Result<()> {
        let lost = |reason: String| LogError::Lost { locator: self.id.slot(slot), reason };
        let end = self.end_of(slot, buffer.len())?;
        let staged = end > self.written.load(Ordering::Acquire) && self.read_staged(slot, buffer);
        if !staged {
            let offset = u64::from(slot) * BLOCK_BYTES_U64;
            self.file(store)?.read_at(buffer, offset).map_err(|error| match error {
                ramet_store::StoreError::ShortRead { .. }
                | ramet_store::StoreError::NotFound { .. } => lost(error.to_string()),
                other => LogError::Store(other),
            })?;
        }
        self.verify(&mut Stored::new(self, store, cache), seed, slot, block_index, buffer)
    }

    /// Lend what `read` would fill `length_bytes` with; nothing where that is not in the file, or
    /// `read` has something to say. `may_map`: whether one more file may be mapped.
    pub(crate) fn lend(
        &self,
        (store, cache, seed): (&dyn Store, &PageCache, u64),
        (slot, block_index): (u32, u64),
        (place, length_bytes): (usize, usize),
        may_map: impl FnOnce() -> bool,
    ) -> Option<Lent> {
        let end = self.end_of(slot, length_bytes).ok()?;
        if end > self.written.load(Ordering::Acquire) {
            return None;
        }
        let mapped_bytes = u64::from(self.slots_count) * BLOCK_BYTES_U64;
        let view = self.lending.view(may_map, || self.file(store).ok()?.map(mapped_bytes))?;
        let at_bytes = slot as usize * BLOCK_BYTES;
        let bytes = view.bytes(at_bytes, length_bytes);
        let mut stored = Stored::new(self, store, cache);
        let verified = self.verify(&mut stored, seed, slot, block_index, bytes);
        if view.has_failed() {
            self.lending.stop();
            return None;
        }
        verified.ok()?;
        Some(view.lend(at_bytes, length_bytes, place))
    }

    /// The slot behind so many bytes of blocks.
    fn end_of(&self, slot: u32, length_bytes: usize) -> Result<u32> {
        let lost = |reason| LogError::Lost { locator: self.id.slot(slot), reason };
        let count =
            u32::try_from(length_bytes / BLOCK_BYTES).expect("a read is smaller than a segment");
        let end = slot.checked_add(count).filter(|end| *end <= self.slots_count);
        let end = end.ok_or_else(|| lost("the slot is beyond the segment's end".into()))?;
        let used = self.used.load(Ordering::Acquire);
        if used != 0 && end > used {
            return Err(lost(format!("the segment has only {used} slots")));
        }
        Ok(end)
    }

    fn verify(
        &self,
        stored: &mut Stored<'_>,
        seed: u64,
        slot: u32,
        block_index: u64,
        bytes: &[u8],
    ) -> Result<()> {
        for (index, block) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
            let slot = slot + u32::try_from(index).expect("bounded before");
            let stored = stored.checksum(slot)?;
            let locator = self.id.slot(slot);
            let computed =
                checksum::fold(checksum::crc(block), seed, locator, block_index + index as u64);
            if computed != stored {
                let offset_bytes = u64::from(slot) * BLOCK_BYTES_U64;
                let file = self.path.clone();
                return Err(LogError::Checksum { locator, offset_bytes, file, stored, computed });
            }
        }
        Ok(())
    }

    /// Copy what is staged; false where any slot is not (then all of it is in the file: written
    /// before it was unstaged).
    fn read_staged(&self, slot: u32, buffer: &mut [u8]) -> bool {
        let chunks = self.staged.read();
        let mut slot = slot;
        let written = self.written.load(Ordering::Acquire);
        for block in buffer.chunks_exact_mut(BLOCK_BYTES) {
            // The newest that begins before the slot: an older one may have been left before it was
            // full.
            let Some(chunk) = chunks.iter().rev().find(|chunk| chunk.first_slot() <= slot) else {
                if slot < written {
                    // The front of the range is in the file already: read it all from there or from
                    // staging, block by block.
                    let Some(file) = self.file.read().clone() else {
                        return false;
                    };
                    if file.read_at(block, u64::from(slot) * BLOCK_BYTES_U64).is_err() {
                        return false;
                    }
                    slot += 1;
                    continue;
                }
                return false;
            };
            // SAFETY: the caller has the slot from a map or a record, so it was published.
            block.copy_from_slice(unsafe { chunk.bytes(slot, 1) });
            slot += 1;
        }
        true
    }
}

/// Where the checksums of a read come from: found once for each page or table.
struct Stored<'a> {
    segment: &'a Segment,
    store: &'a dyn Store,
    cache: &'a PageCache,
    table: Option<Arc<[AtomicU32]>>,
    page: Option<(u32, Arc<Page>)>,
}

impl<'a> Stored<'a> {
    fn new(segment: &'a Segment, store: &'a dyn Store, cache: &'a PageCache) -> Self {
        let table = segment.checksums.read().clone();
        Stored { segment, store, cache, table, page: None }
    }

    fn checksum(&mut self, slot: u32) -> Result<u32> {
        if self.table.is_none() && !self.segment.sealed.load(Ordering::Acquire) {
            self.table = Some(self.segment.scanned(self.store)?);
        }
        if let Some(table) = &self.table {
            let unknown = self.segment.unknown.get().map_or(&[][..], Vec::as_slice);
            if unknown.iter().any(|slots| slots.contains(&slot)) {
                return Err(LogError::Lost {
                    locator: self.segment.id.slot(slot),
                    reason: "the header of its batch does not verify".into(),
                });
            }
            return Ok(table[slot as usize].load(Ordering::Relaxed));
        }
        let index = slot / CHECKSUMS_PER_PAGE;
        if self.page.as_ref().is_none_or(|(own, _)| *own != index) {
            let page = self.segment.pages.get(index);
            let page = match page {
                Some(page) => page,
                None => self.segment.load_page(self.store, self.cache, index)?,
            };
            self.page = Some((index, page));
        }
        let (_, page) = self.page.as_ref().expect("found above");
        Ok(page.checksums[(slot % CHECKSUMS_PER_PAGE) as usize])
    }
}

impl Segment {
    fn load_page(&self, store: &dyn Store, cache: &PageCache, index: u32) -> Result<Arc<Page>> {
        // The column begins right behind the slots in use.
        let at = u64::from(self.used.load(Ordering::Acquire)) + u64::from(index);
        let mut bytes = vec![0; BLOCK_BYTES];
        let lost = |reason: String| LogError::Lost {
            locator: self.id.slot(index * CHECKSUMS_PER_PAGE),
            reason,
        };
        self.file(store)?.read_at(&mut bytes, at * BLOCK_BYTES_U64).map_err(
            |error| match error {
                ramet_store::StoreError::ShortRead { .. }
                | ramet_store::StoreError::NotFound { .. } => lost(error.to_string()),
                other => LogError::Store(other),
            },
        )?;
        let body = decode_page(&bytes, self.nonce, self.id, Column::Checksums, u64::from(index));
        let body = body.ok_or_else(|| {
            lost(format!("page {index} of the slot table in '{}' does not verify", self.path))
        })?;
        let checksums = body.chunks_exact(4);
        let checksums = checksums.map(|crc| u32::from_le_bytes([crc[0], crc[1], crc[2], crc[3]]));
        let page = Arc::new(Page::new(self.id, index, checksums.collect()));
        Ok(cache.keep(&self.pages, page))
    }

    /// The checksums of a segment that a crash left unsealed, out of its batches' headers.
    fn scanned(&self, store: &dyn Store) -> Result<Arc<[AtomicU32]>> {
        let used = self.used.load(Ordering::Acquire);
        let table = zeroed(self.slots_count);
        let file = self.file(store)?;
        let (found, unknown) =
            crate::chain::checksums_of_batches(&*file, self.id, self.nonce, used)?;
        for (slot, crc) in found {
            table[slot as usize].store(crc, Ordering::Relaxed);
        }
        // Before the table is there, so that nobody takes what is not in it for a checksum.
        let _ = self.unknown.set(unknown);
        Ok(self.checksums.write().get_or_insert(table).clone())
    }
}

fn zeroed(count: u32) -> Arc<[AtomicU32]> {
    std::iter::repeat_with(|| AtomicU32::new(0)).take(count as usize).collect()
}
