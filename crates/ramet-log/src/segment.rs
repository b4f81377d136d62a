//! A segment while the pool is open: its file, its checksums, what of it is still staged; the one
//! place that reads blocks.
//!
//! Invariant: `read` is the only way from a locator to bytes, and it returns none that were not
//! verified.

use crate::checksum;
use crate::error::{LogError, Result};
use crate::format::footer::{CHECKSUMS_PER_PAGE, Column, Trailer, decode_page};
use crate::staging::Chunk;
use crate::types::{BLOCK_BYTES, BLOCK_BYTES_U64, SegmentId};
use parking_lot::{Mutex, RwLock};
use ramet_store::{File, Store};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
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
    file: OnceLock<Arc<dyn File>>,
    checksums: OnceLock<Box<[AtomicU32]>>,
    trailer: Mutex<Option<Trailer>>,
    staged: RwLock<VecDeque<Arc<Chunk>>>,
}

/// Path of a segment's first file.
pub(crate) fn segment_path(id: SegmentId) -> String {
    format!("segments/{id}.seg")
}

/// The id in a file name, if it is one of ours.
pub(crate) fn segment_of_name(name: &str) -> Option<SegmentId> {
    let hex = name.strip_suffix(".seg")?;
    let id = (hex.len() == 12).then(|| u64::from_str_radix(hex, 16).ok())??;
    crate::format::segment::segment_id(id)
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
        let this = Self::known(id, nonce, slots_count, None);
        let _ = this.file.set(file);
        let _ = this.checksums.set(zeroed(slots_count));
        this.allocated.store(allocated, Ordering::Release);
        this.written.store(0, Ordering::Release);
        this
    }

    /// A segment that is read only: sealed, or left unsealed by a crash.
    pub(crate) fn known(
        id: SegmentId,
        nonce: u64,
        slots_count: u32,
        trailer: Option<Trailer>,
    ) -> Self {
        Segment {
            id,
            path: segment_path(id),
            nonce,
            slots_count,
            allocated: AtomicU32::new(slots_count),
            written: AtomicU32::new(u32::MAX),
            file: OnceLock::new(),
            checksums: OnceLock::new(),
            trailer: Mutex::new(trailer),
            staged: RwLock::new(VecDeque::new()),
        }
    }

    pub(crate) fn file(&self, store: &dyn Store) -> Result<&Arc<dyn File>> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = store.open(&self.path, false)?;
        Ok(self.file.get_or_init(|| file))
    }

    pub(crate) fn set_sealed(&self, trailer: Trailer) {
        *self.trailer.lock() = Some(trailer);
    }

    /// Note the checksum of a slot that is about to be published.
    pub(crate) fn set_checksum(&self, slot: u32, crc: u32) {
        let table = self.checksums.get_or_init(|| zeroed(self.slots_count));
        table[slot as usize].store(crc, Ordering::Relaxed);
    }

    /// Checksums of the slots below `slots_count`.
    pub(crate) fn checksums(&self, slots_count: u32) -> Vec<u32> {
        let table = self.checksums.get_or_init(|| zeroed(self.slots_count));
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
        seed: u64,
        slot: u32,
        block_index: u64,
        buffer: &mut [u8],
    ) -> Result<()> {
        let locator = self.id.slot(slot);
        let lost = |reason: String| LogError::Lost { locator, reason };
        let count =
            u32::try_from(buffer.len() / BLOCK_BYTES).expect("a read is smaller than a segment");
        let end = slot.checked_add(count).filter(|end| *end <= self.slots_count);
        let end = end.ok_or_else(|| lost("the slot is beyond the segment's end".into()))?;
        let table = self.table(store)?;
        if table.len() < end as usize {
            return Err(lost(format!("the segment has only {} slots", table.len())));
        }
        let staged = end > self.written.load(Ordering::Acquire) && self.read_staged(slot, buffer);
        if !staged {
            let offset = u64::from(slot) * BLOCK_BYTES_U64;
            self.file(store)?.read_at(buffer, offset).map_err(|error| match error {
                ramet_store::StoreError::ShortRead { .. }
                | ramet_store::StoreError::NotFound { .. } => lost(error.to_string()),
                other => LogError::Store(other),
            })?;
        }
        for (index, block) in buffer.chunks_exact(BLOCK_BYTES).enumerate() {
            let stored = table[slot as usize + index].load(Ordering::Relaxed);
            let locator = locator.offset(index as u64);
            let computed =
                checksum::fold(checksum::crc(block), seed, locator, block_index + index as u64);
            if computed != stored {
                let offset_bytes = u64::from(locator.slot()) * BLOCK_BYTES_U64;
                return Err(LogError::Checksum {
                    locator,
                    offset_bytes,
                    file: self.path.clone(),
                    stored,
                    computed,
                });
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
                    let Some(file) = self.file.get() else {
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

    fn table(&self, store: &dyn Store) -> Result<&[AtomicU32]> {
        if let Some(table) = self.checksums.get() {
            return Ok(table);
        }
        let trailer = *self.trailer.lock();
        let Some(trailer) = trailer else {
            let reason =
                "the segment has neither a footer nor batches that name its checksums".to_string();
            return Err(LogError::Lost { locator: self.id.slot(0), reason });
        };
        let table = self.load_table(store, &trailer)?;
        Ok(self.checksums.get_or_init(|| table))
    }

    fn load_table(&self, store: &dyn Store, trailer: &Trailer) -> Result<Box<[AtomicU32]>> {
        let pages = trailer.slots_count.div_ceil(CHECKSUMS_PER_PAGE) as usize;
        let mut bytes = vec![0; pages * BLOCK_BYTES];
        let file = self.file(store)?;
        file.read_at(&mut bytes, trailer.checksums_at)?;
        let mut table = Vec::with_capacity(pages * CHECKSUMS_PER_PAGE as usize);
        for (index, page) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
            let body = decode_page(page, self.nonce, self.id, Column::Checksums, index as u64)
                .ok_or_else(|| LogError::Lost {
                    locator: self.id.slot(0),
                    reason: format!(
                        "page {index} of the slot table in '{}' does not verify",
                        self.path
                    ),
                })?;
            table.extend(
                body.chunks_exact(4).map(|crc| {
                    AtomicU32::new(u32::from_le_bytes([crc[0], crc[1], crc[2], crc[3]]))
                }),
            );
        }
        table.truncate(trailer.slots_count as usize);
        Ok(table.into_boxed_slice())
    }
}

fn zeroed(count: u32) -> Box<[AtomicU32]> {
    std::iter::repeat_with(|| AtomicU32::new(0)).take(count as usize).collect()
}
