//! Files of segments that died, kept as room for the next ones: their bytes were written before, so
//! neither pages nor extents are made anew.
//!
//! Called by reclaim, which puts files in, and by `room.rs`, which takes them out. Invariants: a
//! file is here only after no name in `segments/` leads to it, durably, and is written over only
//! when nobody has it open for reading; all old bytes in it are of one segment, and no header among
//! them verifies in the next. See docs/internals/reclaim.md, "Files that are used again".

use crate::chain::{HeaderFault, check_header, read_whole};
use crate::checksum::page_crc;
use crate::error::Result;
use crate::format::footer::Trailer;
use crate::format::segment::SegmentHeader;
use crate::lending::{Pin, is_last};
use crate::log::{Log, random_u64};
use crate::segment::{segment_of_name, segment_path};
use crate::types::{BLOCK_BYTES, BLOCK_BYTES_U64, SegmentId};
use parking_lot::Mutex;
use ramet_store::{File, Store, StoreError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Files kept at most,
const SPARES_MAX: u64 = 4;
/// and their bytes, but one file whatever it has.
const SPARES_BYTES_MAX: u64 = 256 << 20;
/// The log is being filled as long as it begins a segment this often,
const FILLING: Duration = Duration::from_secs(10);
/// and nothing was appended for less than this: only then files are kept.
const FILLING_IDLE: Duration = Duration::from_secs(3);
/// Free room, in segments, below which no file is kept.
const FREE_SEGMENTS_MIN: u64 = 8;

/// A file that may become a segment.
pub(crate) struct Spare {
    pub(crate) path: String,
    /// The segment that it was, and its nonce: what its old bytes were checksummed with.
    pub(crate) before: (SegmentId, u64),
    readers: Readers,
    /// Slots whose bytes it has.
    pub(crate) slots: u32,
}

/// What reads of a segment go through: nobody else has it when they are over.
#[derive(Default)]
pub(crate) struct Readers {
    pub(crate) file: Option<Arc<dyn File>>,
    pub(crate) lent: Option<Pin>,
}

impl Readers {
    fn are_gone(&self) -> bool {
        self.file.as_ref().is_none_or(|it| Arc::strong_count(it) == 1)
            && self.lent.as_ref().is_none_or(is_last)
    }
}

/// What is spare. Its lock is held while files are added or taken.
#[derive(Default)]
pub(crate) struct Spares {
    kept: Mutex<Vec<Spare>>,
    filling: AtomicBool,
    pace: Mutex<Pace>,
}

/// Segments begun when somebody looked, and when there was one more.
#[derive(Default)]
struct Pace {
    begun_count: u64,
    at: Option<Instant>,
}

/// Path of a spare file that was segment `id`, or is to take its place.
pub(crate) fn spare_path(id: SegmentId) -> String {
    format!("spare/{id}.seg")
}

impl Spares {
    /// Look at how fast the log is filled.
    pub(crate) fn note_pace(&self, now: Instant, begun_count: u64, idle: Duration) {
        let mut pace = self.pace.lock();
        if pace.begun_count != begun_count {
            *pace = Pace { begun_count, at: Some(now) };
        }
        let lately = |at| now.saturating_duration_since(at) < FILLING;
        let filling = idle < FILLING_IDLE && pace.at.is_some_and(lately);
        self.filling.store(filling, Ordering::Relaxed);
    }

    /// A file that nobody reads any more.
    pub(crate) fn take(&self) -> Option<Spare> {
        let mut kept = self.kept.lock();
        let index = kept.iter().position(|spare| spare.readers.are_gone())?;
        Some(kept.remove(index))
    }
}

impl Log {
    /// Whether the log is being filled, and there is room: then files of dead segments are worth
    /// keeping.
    pub fn keeps_spares(&self) -> bool {
        let least = FREE_SEGMENTS_MIN * self.descriptor().segment_bytes;
        self.spares.filling.load(Ordering::Relaxed)
            && self.store().space_bytes().is_ok_and(|(free_bytes, _)| free_bytes >= least)
    }

    /// Whether one more file would be kept.
    pub fn wants_spares(&self) -> bool {
        let segment_bytes = self.descriptor().segment_bytes;
        let most = SPARES_MAX.min(SPARES_BYTES_MAX / segment_bytes).max(1);
        (self.spares.kept.lock().len() as u64) < most && self.keeps_spares()
    }

    /// A file that may become a segment, open for writing.
    pub(crate) fn open_spare(&self) -> Result<Option<(Spare, Arc<dyn File>)>> {
        while let Some(spare) = self.spares.take() {
            match self.store().open(&spare.path, true) {
                Ok(file) => return Ok(Some((spare, file))),
                // Nobody is told not to remove it.
                Err(StoreError::NotFound { .. }) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Ok(None)
    }

    /// Give the room of files that are spare back. Result: how many bytes came back.
    ///
    /// # Errors
    /// `Store` where a file cannot be removed: it is left to the next opening.
    pub fn drop_spares(&self) -> Result<u64> {
        let mut bytes = 0;
        // Locked all along: whoever waits for room waits for it.
        let mut kept = self.spares.kept.lock();
        for spare in kept.drain(..) {
            let file = match self.store().open(&spare.path, false) {
                Err(StoreError::NotFound { .. }) => continue,
                file => file?,
            };
            bytes += file.allocated_bytes()?;
            self.store().remove(&spare.path)?;
        }
        Ok(bytes)
    }

    /// Bytes of files that are spare.
    pub fn spare_bytes(&self) -> u64 {
        let kept = self.spares.kept.lock();
        kept.iter().map(|spare| u64::from(spare.slots) * BLOCK_BYTES_U64).sum()
    }

    /// Keep the file of a segment that was forgotten and is in neither slot's checkpoint. Result:
    /// whether it is worth it; nothing happens to it otherwise.
    pub(crate) fn keep_file(&self, id: SegmentId) -> Result<bool> {
        if !self.wants_spares() {
            return Ok(false);
        }
        let path = segment_path(id);
        let found = whole_file(self.store(), &path, self.descriptor().segment_bytes)?;
        let Some((header, slots)) = found.filter(|(header, _)| header.segment == id) else {
            return Ok(false);
        };
        let spare = spare_path(id);
        if self.store().exists(&spare)? {
            return Ok(false);
        }
        self.store().rename(&path, &spare)?;
        // Durable before it is written over: the name must not come back with other bytes.
        self.store().sync_directory("spare")?;
        let readers = Readers { file: None, lent: self.lent.lock().remove(&id) };
        self.add_spare(id, header.nonce, readers, slots);
        Ok(true)
    }

    pub(crate) fn add_spare(&self, id: SegmentId, nonce: u64, readers: Readers, slots: u32) {
        let (path, before) = (spare_path(id), (id, nonce));
        self.spares.kept.lock().push(Spare { path, before, readers, slots });
    }
}

/// The header of a segment file that is sealed and without holes, and the slots it has room for;
/// `None` where it is not, or much smaller than an ordinary segment.
pub(crate) fn whole_file(
    store: &dyn Store,
    path: &str,
    segment_bytes: u64,
) -> Result<Option<(SegmentHeader, u32)>> {
    let file = store.open(path, false)?;
    let length = file.length_bytes()?;
    let whole = file.allocated_bytes()? >= length && length >= segment_bytes / 4 * 3;
    let mut page = vec![0; BLOCK_BYTES];
    if !whole || !read_whole(&*file, &mut page, 0)? {
        return Ok(None);
    }
    let Ok(header) = SegmentHeader::decode(&page) else { return Ok(None) };
    // Sealed: no byte in it is of an earlier use of the file.
    let last = length - BLOCK_BYTES_U64;
    let sealed = read_whole(&*file, &mut page, last)?
        && Trailer::decode(&page, header.nonce, header.segment).is_some();
    let slots = u32::try_from(length / BLOCK_BYTES_U64).unwrap_or(0);
    Ok(sealed.then_some((header, slots)))
}

/// A nonce for segment `id`; `before`: segment and nonce of the old bytes in its file.
pub(crate) fn fresh_nonce(id: SegmentId, before: Option<(SegmentId, u64)>) -> u64 {
    loop {
        let nonce = random_u64();
        if before.is_none_or(|before| !old_headers_verify((id, nonce), before)) {
            return nonce;
        }
    }
}

/// Whether batch headers that verified in the segment and under the nonce of `before` would verify
/// in those of `now`, in the same slots: all of them or none, because checksums are linear. By how
/// much two of them differ does not depend on the page, nor on the slot.
fn old_headers_verify(now: (SegmentId, u64), before: (SegmentId, u64)) -> bool {
    let seeded = |(id, nonce): (SegmentId, u64)| page_crc(&[0; 16], 12, nonce, id.slot(0).0);
    seeded(now) == seeded(before)
}

/// Remove what an earlier opening left spare; files of others stay. What cannot be read or removed
/// stays too: nothing needs it, and an opening does not fail for it.
pub(crate) fn remove_left(store: &dyn Store, seed: u64, log: [u8; 16]) {
    let is_ours = |id: SegmentId| -> Result<bool> {
        let mut page = vec![0; BLOCK_BYTES];
        if !read_whole(&*store.open(&spare_path(id), false)?, &mut page, 0)? {
            return Ok(true);
        }
        Ok(match check_header(&page, id, seed, log) {
            Ok(_) | Err(HeaderFault::Blank) => true,
            // The next segment's header may be in it already.
            Err(HeaderFault::Damaged(_)) => SegmentHeader::decode(&page).is_ok(),
            Err(HeaderFault::Foreign) => false,
        })
    };
    let names = store.list("spare").unwrap_or_default();
    for id in names.iter().filter_map(|name| segment_of_name(name)) {
        if is_ours(id).unwrap_or(false) {
            let _ = store.remove(&spare_path(id));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
