//! Memory that holds log slots from the moment they are appended until they are in the file.
//!
//! Invariants: a slot is filled once, inside the gate, before anybody is told its locator; after
//! that its bytes never change. A batch never straddles two chunks, so one chunk's range is
//! handed to its file at once.

use crate::types::BLOCK_BYTES;
use parking_lot::Mutex;
use std::cell::UnsafeCell;
use std::sync::Arc;

/// Slots of an ordinary chunk: a write of 1 MiB and its header.
pub(crate) const CHUNK_SLOTS: u32 = 257;
/// Chunks kept for use again, so that a steady flow of writes does not fault in fresh memory.
const SPARE_CHUNKS_MAX: usize = 40;

/// Memory of one slot, page by page like the file: from 16 bytes into a page, where the allocator
/// would begin, the kernel takes a seventh longer to copy into the pages of the file.
#[repr(C, align(4096))]
pub(crate) struct Slot(UnsafeCell<[u8; BLOCK_BYTES]>);

// The bytes of consecutive slots are one piece.
const _: () = assert!(size_of::<Slot>() == BLOCK_BYTES);

impl Slot {
    fn new(bytes: [u8; BLOCK_BYTES]) -> Self {
        Slot(UnsafeCell::new(bytes))
    }
}

/// Consecutive slots of one segment.
pub(crate) struct Chunk {
    first_slot: u32,
    slots: Box<[Slot]>,
}

// SAFETY: slots are written only through `fill`, whose callers hold the gate and fill a slot before
// its number is published (through a map's lock or the write-out queue's lock); readers touch only
// published slots.
unsafe impl Sync for Chunk {}

impl Chunk {
    pub(crate) fn first_slot(&self) -> u32 {
        self.first_slot
    }

    pub(crate) fn slots_count(&self) -> u32 {
        u32::try_from(self.slots.len()).expect("a chunk is small")
    }

    pub(crate) fn end_slot(&self) -> u32 {
        self.first_slot + self.slots_count()
    }

    /// Put `bytes` (whole slots) at `slot`.
    ///
    /// # Safety
    /// The caller holds the gate, and no slot of the range has been published or filled before (a
    /// header slot is filled when its batch closes, and published then).
    pub(crate) unsafe fn fill(&self, slot: u32, bytes: &[u8]) {
        let at = (slot - self.first_slot) as usize;
        let count = bytes.len() / BLOCK_BYTES;
        assert!(
            bytes.len().is_multiple_of(BLOCK_BYTES) && at + count <= self.slots.len(),
            "fill leaves the chunk"
        );
        let target = self.slots[at..at + count].as_ptr().cast::<u8>().cast_mut();
        // SAFETY: the range lies in the chunk (asserted), nobody else writes (the gate) and nobody
        // reads it yet (not published). The cells make writing through a shared reference legal.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
    }

    /// The bytes of published slots.
    ///
    /// # Safety
    /// All slots of the range have been published.
    pub(crate) unsafe fn bytes(&self, slot: u32, count: u32) -> &[u8] {
        let at = (slot - self.first_slot) as usize;
        let part = &self.slots[at..at + count as usize];
        // SAFETY: published slots never change again, and the range was bounds-checked by the slice
        // above.
        unsafe { std::slice::from_raw_parts(part.as_ptr().cast(), part.len() * BLOCK_BYTES) }
    }
}

/// Chunks in and out of use.
#[derive(Default)]
pub(crate) struct ChunkPool {
    spare: Mutex<Vec<Box<[Slot]>>>,
}

impl ChunkPool {
    /// An ordinary chunk, used before if one is spare (its old bytes are still in it), for slots
    /// from `first_slot`.
    pub(crate) fn take(&self, first_slot: u32) -> Arc<Chunk> {
        let slots = self.spare.lock().pop().unwrap_or_else(|| blank(CHUNK_SLOTS as usize));
        Arc::new(Chunk { first_slot, slots })
    }

    /// A chunk of memory that was filled before, for a record.
    pub(crate) fn adopt(first_slot: u32, slots: Box<[Slot]>) -> Arc<Chunk> {
        Arc::new(Chunk { first_slot, slots })
    }

    /// Keep a chunk that is in its file, unless somebody still reads it or enough are spare.
    pub(crate) fn put_back(&self, chunk: Arc<Chunk>) {
        if let Ok(chunk) = Arc::try_unwrap(chunk) {
            let mut spare = self.spare.lock();
            if chunk.slots.len() == CHUNK_SLOTS as usize && spare.len() < SPARE_CHUNKS_MAX {
                spare.push(chunk.slots);
            }
        }
    }
}

fn blank(count: usize) -> Box<[Slot]> {
    std::iter::repeat_with(|| Slot::new([0; BLOCK_BYTES])).take(count).collect()
}

/// Slots that hold `payload` (whole slots) after one blank slot for a batch's header.
pub(crate) fn behind_header(payload: &[u8]) -> Box<[Slot]> {
    let blocks = payload
        .chunks_exact(BLOCK_BYTES)
        .map(|block| Slot::new(block.try_into().expect("chunks are exact")));
    std::iter::once(Slot::new([0; BLOCK_BYTES])).chain(blocks).collect()
}
