//! Giving bytes of segments back: whole files, and the room of dead slots inside one.
//!
//! Called by the engine, outside of the gate, for what the checkpoints in both slots call dead.
//! Invariants: a living block and its checksum are never touched; what is given back needs no
//! replay. See docs/internals/reclaim.md.

use crate::chain::{load_sealed, read_whole};
use crate::error::{LogError, Result};
use crate::format::batch::Kind;
use crate::format::footer::{CHECKSUMS_PER_PAGE, JournalBatch, Trailer};
use crate::format::segment::SegmentHeader;
use crate::lending::is_last;
use crate::log::Log;
use crate::portions::Removal;
use crate::segment::{Segment, segment_path};
use crate::spare::{Readers, spare_path, whole_file};
use crate::types::{BLOCK_BYTES, BLOCK_BYTES_U64, SegmentId};
use ramet_store::{File, Store, StoreError};

/// Bytes copied with one call, and handed to the medium with one: a call of many milliseconds keeps
/// others from its processor.
const COPIED_AT_ONCE: usize = 128 << 10;

/// What came of giving dead slots back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thinned {
    /// So many bytes came back.
    Bytes(u64),
    /// Somebody is sending blocks of the segment: nothing happened.
    Busy,
    /// The medium keeps no holes.
    NoHoles,
}

type Footer = Option<(Trailer, Option<Vec<JournalBatch>>)>;

/// A set of slots: slot i is bit `i % 64` of word `i / 64`.
pub type SlotSet = Vec<u64>;

impl Log {
    /// What is known of every segment.
    pub fn all_segments(&self) -> Vec<crate::SegmentEntry> {
        self.segments.read().values().map(|segment| segment.entry()).collect()
    }

    /// From the next checkpoint on, what is dead in these segments may be gone.
    pub fn set_thinned(&self, ids: impl Iterator<Item = SegmentId>) {
        let segments = self.segments.read();
        ids.filter_map(|id| segments.get(&id)).for_each(|segment| segment.set_thinned());
    }

    /// Forget segments in which nothing lives. Whoever reads in one finds out that the block is not
    /// where it was.
    pub fn forget_segments(&self, ids: &[SegmentId]) {
        let forgotten: Vec<_> = {
            let mut segments = self.segments.write();
            ids.iter().filter_map(|id| segments.remove(id)).collect()
        };
        // To close and unmap many files takes a while: nobody waits for it.
        for segment in forgotten {
            segment.close_file();
            self.lent.lock().insert(segment.id, segment.lending.stop());
        }
    }

    /// Remove the files of segments that were forgotten; no checkpoint of either slot names them.
    /// Result: how many bytes came back.
    ///
    /// # Errors
    /// `Store` where a file cannot be removed: it is left to the next opening.
    pub fn remove_segments(&self, ids: &[SegmentId]) -> Result<u64> {
        let mut removals = Vec::new();
        for id in ids {
            if !self.keep_file(*id)? {
                let lent = self.lent.lock().remove(id);
                let is_lent = lent.is_some_and(|pin| !is_last(&pin));
                removals.push(Removal { path: segment_path(*id), is_lent });
            }
        }
        self.remove_files("segments", removals)
    }

    /// Give back the room of dead slots of a segment that has ended, and of all that holds no block
    /// where it is sealed. `dead` says which are dead by both slots' checkpoints.
    ///
    /// # Errors
    /// `Store` where the medium fails; nothing that lives was touched.
    ///
    /// # Durability
    /// Durable on return.
    pub fn thin(&self, id: SegmentId, dead: &SlotSet) -> Result<Thinned> {
        let segment = self.segments.read().get(&id).cloned();
        let Some(segment) = segment else { return Ok(Thinned::Bytes(0)) };
        let entry = segment.entry();
        assert!(entry.used != 0 && entry.thinned, "only what has ended, and is flagged");
        let file = self.store().open(&segment.path, true)?;
        let bytes_before = file.allocated_bytes()?;
        let mut gone = clipped(dead, entry.used);
        let footer = if entry.sealed { self.footer(&*file, &segment)? } else { None };
        if let Some((_, Some(journal))) = &footer {
            add_what_holds_no_block(&mut gone, journal, entry.used);
        }
        // What is lent must not become zeros before it is sent.
        let Some(_pause) = segment.lending.pause(true) else { return Ok(Thinned::Busy) };
        let mut punched = segment.punched.lock();
        let before = punched.as_deref().unwrap_or_default();
        let todo: SlotSet =
            (0..).zip(&gone).map(|(i, word)| word & !before.get(i).unwrap_or(&0)).collect();
        for (first, count) in runs(&todo) {
            self.rest();
            if !file.punch(first * BLOCK_BYTES_U64, count * BLOCK_BYTES_U64)? {
                return Ok(Thinned::NoHoles);
            }
            self.note_freed(&*file, 1)?;
        }
        // The journal says what holds no block: it goes after that.
        file.sync()?;
        for (word, old) in gone.iter_mut().zip(before) {
            *word |= old;
        }
        if let Some((trailer, _)) = &footer {
            punch_footer(&*file, trailer, &gone)?;
            file.sync()?;
        }
        let slots = count(&gone);
        // A journal that is gone went after everything it said holds no block.
        let all = entry.used.saturating_sub(1 + entry.living(count(dead)));
        segment.set_given_back(if entry.sealed { all } else { slots });
        *punched = Some(gone);
        Ok(Thinned::Bytes(bytes_before.saturating_sub(file.allocated_bytes()?)))
    }

    /// As `thin`, for a segment that is whole and nearly dead: what lives is copied into a file of
    /// its own, which takes the segment's name, and the old file is kept for a segment to come.
    /// Result: whether that was done; where it cannot be, nothing happened.
    ///
    /// # Errors
    /// `Store` where the medium fails; nothing that lives was touched.
    ///
    /// # Durability
    /// Durable on return.
    pub fn renew(&self, id: SegmentId, dead: &SlotSet) -> Result<bool> {
        let segment = self.segments.read().get(&id).cloned();
        let Some(segment) = segment else { return Ok(false) };
        let entry = segment.entry();
        let path = spare_path(id);
        let segment_bytes = self.descriptor().segment_bytes;
        let untouched = entry.sealed && entry.thinned && segment.punched.lock().is_none();
        if !untouched || entry.given_back != 0 || !self.wants_spares() {
            return Ok(false);
        }
        let Some((header, slots)) = whole_file(self.store(), &segment.path, segment_bytes)? else {
            return Ok(false);
        };
        let file = self.store().open(&segment.path, false)?;
        let Some((trailer, Some(journal))) = self.footer(&*file, &segment)? else {
            return Ok(false);
        };
        let mut gone = clipped(dead, entry.used);
        add_what_holds_no_block(&mut gone, &journal, entry.used);
        let copied = copy_living(self.store(), &*file, &path, &trailer, &gone);
        match copied {
            Ok(true) => {}
            // What is there stays: it may be somebody's.
            Ok(false) => return Ok(false),
            Err(error) => {
                let _ = self.store().remove(&path);
                return if matches!(error, LogError::Store(StoreError::Full { .. })) {
                    Ok(false)
                } else {
                    Err(error)
                };
            }
        }
        drop(file);
        let Some(pause) = segment.lending.pause(false) else {
            self.store().remove(&path)?;
            return Ok(false);
        };
        let exchanged =
            segment.exchange_file(|| Ok(self.store().exchange(&path, &segment.path)?))?;
        drop(pause);
        let Some(readers) = exchanged else {
            self.store().remove(&path)?;
            return Ok(false);
        };
        // Durable before the old file is written over: its bytes are living ones until then.
        self.store().sync_directory("segments")?;
        segment.set_given_back(entry.used.saturating_sub(1 + entry.living(count(dead))));
        *segment.punched.lock() = Some(gone);
        self.add_spare(id, header.nonce, Readers { file: readers, lent: None }, slots);
        Ok(true)
    }

    /// The footer of a sealed segment, without its journal where that is gone already.
    fn footer(&self, file: &dyn File, segment: &Segment) -> Result<Footer> {
        let mut page = vec![0; BLOCK_BYTES];
        let lost = |reason: String| LogError::Lost { locator: segment.id.slot(0), reason };
        if !read_whole(file, &mut page, 0)? {
            return Err(lost("the file has no header".into()));
        }
        let header = SegmentHeader::decode(&page).map_err(lost)?;
        let length = file.length_bytes()?;
        if let Some((trailer, journal)) = load_sealed(file, length, &header)? {
            return Ok(Some((trailer, Some(journal))));
        }
        let last_page = length.saturating_sub(BLOCK_BYTES_U64);
        let found = read_whole(file, &mut page, last_page)?;
        let trailer = found.then(|| Trailer::decode(&page, header.nonce, header.segment)).flatten();
        Ok(trailer.map(|trailer| (trailer, None)))
    }
}

/// Make a file that is what thinning would leave of `file`: header, living blocks, their checksums
/// and the trailer. False where something has its name.
fn copy_living(
    store: &dyn Store,
    file: &dyn File,
    path: &str,
    trailer: &Trailer,
    gone: &SlotSet,
) -> Result<bool> {
    let copy = match store.create(path) {
        Err(StoreError::Exists { .. }) => return Ok(false),
        copy => copy?,
    };
    let length = file.length_bytes()?;
    copy.set_length(length)?;
    let mut buffer = vec![0; COPIED_AT_ONCE];
    let (mut begun, mut waiting) = (0, 0);
    let mut put = |first: u64, count: u64| -> Result<()> {
        let (mut at, end) = (first * BLOCK_BYTES_U64, (first + count) * BLOCK_BYTES_U64);
        while at < end {
            let length = usize::try_from(end - at).unwrap_or(usize::MAX).min(COPIED_AT_ONCE);
            file.read_at(&mut buffer[..length], at)?;
            copy.write_at(&buffer[..length], at)?;
            at += length as u64;
            waiting += length;
            if waiting >= COPIED_AT_ONCE {
                // In the sync below it would be all of it, in thousands of places, in one call.
                copy.start_writeback(begun, at - begun);
                (begun, waiting) = (at, 0);
            }
        }
        Ok(())
    };
    let mut living: SlotSet = gone.iter().map(|word| !word).collect();
    let used = trailer.slots_count;
    if let Some(last) = living.last_mut().filter(|_| !used.is_multiple_of(64)) {
        *last &= (1 << (used % 64)) - 1;
    }
    for (first, count) in runs(&living) {
        put(first, count)?;
    }
    for page in pages_in_use(trailer, gone) {
        put(trailer.checksums_at / BLOCK_BYTES_U64 + u64::from(page), 1)?;
    }
    put(length / BLOCK_BYTES_U64 - 1, 1)?;
    copy.sync()?;
    Ok(true)
}

/// Pages of checksums that speak for a block that is there.
fn pages_in_use(trailer: &Trailer, gone: &SlotSet) -> Vec<u32> {
    let is_gone = |slot: u32| gone[slot as usize / 64] & (1 << (slot % 64)) != 0;
    let in_use = |page: &u32| {
        let slots = page * CHECKSUMS_PER_PAGE..((page + 1) * CHECKSUMS_PER_PAGE);
        let mut slots = slots.start.max(1)..slots.end.min(trailer.slots_count);
        !slots.all(is_gone)
    };
    (0..trailer.slots_count.div_ceil(CHECKSUMS_PER_PAGE)).filter(in_use).collect()
}

fn clipped(dead: &SlotSet, used: u32) -> SlotSet {
    let mut set = vec![0; (used as usize).div_ceil(64)];
    for (word, dead) in set.iter_mut().zip(dead) {
        *word = *dead;
    }
    set
}

fn count(set: &SlotSet) -> u32 {
    set.iter().map(|word| word.count_ones()).sum()
}

/// The header stays; batches' headers and records go.
fn add_what_holds_no_block(gone: &mut SlotSet, journal: &[JournalBatch], used: u32) {
    for batch in journal {
        let mut slot = u64::from(batch.header_slot);
        set(gone, slot, 1, used);
        slot += 1;
        for entry in &batch.entries {
            if entry.kind != Kind::Write {
                set(gone, slot, entry.slots_count(), used);
            }
            slot += entry.slots_count();
        }
    }
}

fn set(slots: &mut SlotSet, first: u64, count: u64, used: u32) {
    for slot in first..(first + count).min(u64::from(used)) {
        let word = usize::try_from(slot / 64).expect("few slots");
        slots[word] |= 1 << (slot % 64);
    }
}

/// Runs of set bits: the first, and how many.
fn runs(slots: &SlotSet) -> Vec<(u64, u64)> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    for (base, word) in (0..).step_by(64).zip(slots) {
        let mut rest = *word;
        while rest != 0 {
            let start = u64::from(rest.trailing_zeros());
            let length = u64::from((rest >> start).trailing_ones());
            match found.last_mut() {
                Some((first, count)) if *first + *count == base + start => *count += length,
                _ => found.push((base + start, length)),
            }
            rest =
                if start + length == 64 { 0 } else { rest >> (start + length) << (start + length) };
        }
    }
    found
}

/// Pages of checksums that speak for no block that is there, all owners, and the journal.
fn punch_footer(file: &dyn File, trailer: &Trailer, gone: &SlotSet) -> Result<()> {
    let in_use = pages_in_use(trailer, gone);
    for page in 0..trailer.slots_count.div_ceil(CHECKSUMS_PER_PAGE) {
        if !in_use.contains(&page) {
            let at = trailer.checksums_at + u64::from(page) * BLOCK_BYTES_U64;
            file.punch(at, BLOCK_BYTES_U64)?;
        }
    }
    let end = trailer.journal_at + trailer.journal_bytes.next_multiple_of(BLOCK_BYTES_U64);
    file.punch(trailer.owners_at, end - trailer.owners_at)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_over_words_and_miss_none() {
        let set: SlotSet = vec![1 | 1 << 63, u64::MAX, 0b0110];
        assert_eq!(runs(&set), [(0, 1), (63, 65), (129, 2)]);
        assert!(runs(&vec![0, 0]).is_empty());
    }
}
