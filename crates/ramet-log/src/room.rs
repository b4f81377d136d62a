//! Room for the log, made outside the gate: bytes are allocated before they are written, so a full
//! medium is met here.
//!
//! Invariants: a segment's name and header are durable before it is handed to the gate; ids are
//! never used twice, because a file is created exclusively and an epoch is one higher than any seen
//! before.

use crate::error::{LogError, Result};
use crate::format::segment::{LogEnd, SegmentHeader};
use crate::log::Log;
use crate::segment::{Segment, SegmentEntry, segment_path};
use crate::spare::{Spare, fresh_nonce};
use crate::tail::PreparedSegment;
use crate::types::{BLOCK_BYTES, BLOCK_BYTES_U64, COUNTERS_MAX, EPOCH_MAX, SLOTS_MAX, SegmentId};
use ramet_store::StoreError;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Slots allocated ahead at a time, and at most: 8 MiB.
const STEP_SLOTS: u32 = 2048;
/// Where fewer are left, more are allocated before a writer has to wait for that.
pub(crate) const AHEAD_SLOTS_MIN: u32 = STEP_SLOTS / 2;

/// Which ids come next. Locked while room is made.
pub(crate) struct RoomState {
    /// The highest epoch ever seen or taken.
    pub(crate) epoch: u64,
    /// The next counter in it; `None` until this opening has taken an epoch of its own.
    pub(crate) counter: Option<u32>,
    /// The segment made last, and the end of the log before this opening.
    pub(crate) previous: Option<SegmentId>,
    /// Where the log ended when it was opened.
    pub(crate) end: LogEnd,
    /// Whether a segment of this opening says so already.
    pub(crate) opened: bool,
}

impl Log {
    /// Allocate more of the open segment or prepare the next one, so that `slots` fit.
    pub(crate) fn make_room(&self, slots: u32, contiguous: bool) -> Result<()> {
        match self.try_make_room(slots, contiguous) {
            // What is kept for later is wanted now.
            Err(LogError::Store(StoreError::Full { .. })) if self.drop_spares()? > 0 => {
                self.try_make_room(slots, contiguous)
            }
            made => made,
        }
    }

    fn try_make_room(&self, slots: u32, contiguous: bool) -> Result<()> {
        let mut state = self.room.lock();
        self.check_writable()?;
        let (enough, growable) = {
            let held = self.gate.lock();
            let enough =
                if contiguous { held.room_for_record(slots) } else { held.room_for_blocks(slots) };
            let grown = held.growable();
            let prepared = if contiguous {
                held.growable_for_record(slots)
            } else {
                held.growable_for_blocks()
            };
            (enough, grown.or(prepared))
        };
        if enough {
            return Ok(());
        }
        if let Some(segment) = growable {
            let from = segment.allocated.load(Ordering::Acquire);
            // A record's segment holds its header and the batch's too.
            let step = slots.saturating_add(2).max(STEP_SLOTS);
            let to = from.saturating_add(step).min(segment.slots_count);
            let least = from.saturating_add(slots.saturating_add(2)).min(to);
            let to = allocate_some(&segment, self.store(), from, least, to)?;
            segment.allocated.store(to, Ordering::Release);
            return Ok(());
        }
        let usual =
            u32::try_from(self.descriptor().segment_bytes / BLOCK_BYTES_U64).unwrap_or(SLOTS_MAX);
        let needed = slots.saturating_add(8).min(if contiguous { SLOTS_MAX } else { usual });
        let segment = self.prepare_segment(&mut state, usual.max(needed), needed)?;
        self.push_prepared(segment);
        Ok(())
    }

    /// Two statements: in one the gate would be taken first, and the segment's memory inside it.
    fn push_prepared(&self, segment: Arc<Segment>) {
        let prepared = PreparedSegment::new(segment);
        self.gate.lock().push_prepared(prepared);
    }

    /// The epoch that new ids are made from; taken now if this opening has none yet.
    ///
    /// # Errors
    /// As `enter_write`.
    pub fn ensure_epoch(&self) -> Result<u64> {
        loop {
            let state = self.room.lock();
            if state.counter.is_some() {
                return Ok(state.epoch);
            }
            drop(state);
            self.make_room(2, false)?;
        }
    }

    /// Prepare one segment ahead, so that no writer has to. Result: whether there was anything to
    /// do.
    ///
    /// # Errors
    /// As `enter_write`; a full medium is not one, the writer who needs the room will meet it.
    pub(crate) fn prepare_ahead(&self) -> Result<bool> {
        let mut state = self.room.lock();
        self.check_writable()?;
        match self.prepare_next(&mut state) {
            Err(LogError::Store(StoreError::Full { .. })) => Ok(false),
            done => done,
        }
    }

    /// Allocate more of the open segment, where a writer will soon need it.
    pub(crate) fn grow_ahead(&self) -> Result<()> {
        let (next_slot, segment) = {
            let held = self.gate.lock();
            match (held.next_slot_of_short(), held.growable()) {
                (Some(next_slot), Some(segment)) => (next_slot, segment),
                (_, None) | (None, Some(_)) => return Ok(()),
            }
        };
        let from = segment.allocated.load(Ordering::Acquire);
        let to = next_slot.saturating_add(STEP_SLOTS).min(segment.slots_count);
        if to > from {
            allocate(&segment, self.store(), from, to)?;
            segment.allocated.store(to, Ordering::Release);
        }
        Ok(())
    }

    /// Prepare the next segment, where the open one is allocated as a whole. Result: whether there
    /// was anything to do.
    pub(crate) fn prepare_next(&self, state: &mut RoomState) -> Result<bool> {
        let wanted = {
            let held = self.gate.lock();
            held.has_open_segment() && held.prepared_count() == 0 && held.growable().is_none()
        };
        if wanted {
            self.prepare_one(state)?;
        }
        Ok(wanted)
    }

    /// Prepare the segment that writers go on with where `seal` ends the open one now, so that none
    /// of them has to.
    ///
    /// # Errors
    /// As `enter_write`; a full medium is not one, the writer who needs the room will meet it.
    pub fn prepare_to_seal(&self) -> Result<()> {
        let mut state = self.room.lock();
        self.check_writable()?;
        let wanted = {
            let held = self.gate.lock();
            held.has_open_segment() && held.prepared_count() == 0
        };
        match if wanted { self.prepare_one(&mut state) } else { Ok(()) } {
            Err(LogError::Store(StoreError::Full { .. })) => Ok(()),
            done => done,
        }
    }

    fn prepare_one(&self, state: &mut RoomState) -> Result<()> {
        let usual =
            u32::try_from(self.descriptor().segment_bytes / BLOCK_BYTES_U64).unwrap_or(SLOTS_MAX);
        let segment = self.prepare_segment(state, usual, 0)?;
        self.push_prepared(segment);
        Ok(())
    }

    /// Give back what is allocated ahead: whoever writes next allocates again. Result: how many
    /// bytes came back.
    ///
    /// # Errors
    /// `Store` where the medium fails: the room is not used then, and stays with the file.
    pub fn give_room_back(&self) -> Result<u64> {
        // Held to the end: nobody allocates what is cut off, and no footer is written there.
        let _state = self.room.lock();
        self.check_writable()?;
        let _out = self.write_out.lock();
        let cut = self.gate.lock().forget_room();
        cut.into_iter().map(|(segment, slots)| self.cut_file(&segment, slots)).sum()
    }

    /// Give back what a crash left behind the last batch of segments: room that was allocated
    /// ahead, and batches that do not count. Opening finds the same end without them. Result: how
    /// many bytes came back.
    ///
    /// # Errors
    /// `Store` where the medium fails.
    pub fn cut_tails(&self) -> Result<u64> {
        self.check_writable()?;
        let segments = self.segments.read();
        let all = segments.values().map(|segment| (segment.entry(), segment.clone()));
        let left = |entry: &SegmentEntry| entry.used != 0 && !entry.sealed;
        let torn: Vec<_> = all.filter(|(entry, _)| left(entry)).collect();
        drop(segments);
        torn.into_iter().map(|(entry, segment)| self.cut_file(&segment, entry.used)).sum()
    }

    /// Leave so many slots of a segment's file. Result: how many bytes came back.
    fn cut_file(&self, segment: &Segment, slots: u32) -> Result<u64> {
        // Not the one that reads share: that one need not be writable.
        let file = self.store().open(&segment.path, true)?;
        let length = u64::from(slots) * BLOCK_BYTES_U64;
        if file.length_bytes()? <= length {
            return Ok(0);
        }
        let before = file.allocated_bytes()?;
        file.set_length(length)?;
        Ok(before.saturating_sub(file.allocated_bytes()?))
    }

    /// Create a segment with everything about it durable, `allocated_min` of its slots allocated at
    /// least.
    fn prepare_segment(
        &self,
        state: &mut RoomState,
        slots_count: u32,
        allocated_min: u32,
    ) -> Result<Arc<Segment>> {
        assert!(slots_count <= SLOTS_MAX, "records are bounded below a segment's size");
        let opens = (!state.opened).then_some(state.end);
        let usual = u64::from(slots_count) * BLOCK_BYTES_U64 == self.descriptor().segment_bytes;
        let spare = if usual { self.open_spare()? } else { None };
        let made = self.next_file(state, &segment_path).and_then(|(id, file)| {
            let made = match spare {
                Some((spare, old)) => {
                    self.reuse(id, (spare, &*old), state.previous, opens, slots_count)
                }
                None => {
                    self.write_header(id, file, state.previous, opens, slots_count, allocated_min)
                }
            };
            if made.is_err() {
                // Nothing refers to the file yet; its id stays used.
                let _ = self.store().remove(&segment_path(id));
            }
            made
        });
        if let Ok(segment) = &made {
            (state.previous, state.opened) = (Some(segment.id), true);
        }
        made
    }

    /// Create a file of any kind under an id that was never used; `path` names it.
    ///
    /// # Errors
    /// `Store(Full)`; `Poisoned`; `Closed`; `ReadOnly`.
    pub fn create_file(
        &self,
        path: &dyn Fn(SegmentId) -> String,
    ) -> Result<(SegmentId, Arc<dyn ramet_store::File>)> {
        let mut state = self.room.lock();
        self.check_writable()?;
        self.next_file(&mut state, path)
    }

    fn next_file(
        &self,
        state: &mut RoomState,
        path: &dyn Fn(SegmentId) -> String,
    ) -> Result<(SegmentId, Arc<dyn ramet_store::File>)> {
        loop {
            let counter = match state.counter {
                Some(counter) if counter < COUNTERS_MAX => counter,
                _ => {
                    assert!(state.epoch < EPOCH_MAX, "epochs are used up");
                    state.epoch += 1;
                    self.commit_superblock(state.epoch)?;
                    0
                }
            };
            state.counter = Some(counter + 1);
            let id = SegmentId::new(state.epoch, counter);
            match self.store().create(&path(id)) {
                Ok(file) => return Ok((id, file)),
                Err(StoreError::Exists { .. }) => {}
                Err(other) => return Err(other.into()),
            }
        }
    }

    fn header(
        &self,
        id: SegmentId,
        before: Option<(SegmentId, u64)>,
        previous: Option<SegmentId>,
        opens: Option<LogEnd>,
        slots_count: u32,
    ) -> SegmentHeader {
        let (log, incarnation) = self.identity();
        SegmentHeader {
            seed: self.seed(),
            log,
            incarnation,
            nonce: fresh_nonce(id, before),
            file: id,
            segment: id,
            reused: before.is_some(),
            slots_count,
            previous,
            opens,
        }
    }

    /// Make a segment of a file that was one, in the place of the empty one under its id.
    fn reuse(
        &self,
        id: SegmentId,
        (spare, old): (Spare, &dyn ramet_store::File),
        previous: Option<SegmentId>,
        opens: Option<LogEnd>,
        slots_count: u32,
    ) -> Result<Arc<Segment>> {
        let header = self.header(id, Some(spare.before), previous, opens, slots_count);
        let (nonce, page) = (header.nonce, header.encode());
        let path = segment_path(id);
        // The header is durable before the name is, which so never leads to the old one.
        let written = old
            .write_at(&page, 0)
            .and_then(|()| old.sync())
            .and_then(|()| self.store().rename(&spare.path, &path))
            .and_then(|()| self.store().sync_directory("segments"))
            .and_then(|()| self.store().open(&path, true));
        let file = written.map_err(|error| self.poison(&error.to_string()))?;
        let slots = spare.slots.min(slots_count);
        let segment = Segment::open_for_append(id, nonce, slots_count, slots, file);
        segment.filled.store(slots, Ordering::Release);
        self.counters.reused.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(segment))
    }

    fn write_header(
        &self,
        id: SegmentId,
        file: Arc<dyn ramet_store::File>,
        previous: Option<SegmentId>,
        opens: Option<LogEnd>,
        slots_count: u32,
        allocated_min: u32,
    ) -> Result<Arc<Segment>> {
        let header = self.header(id, None, previous, opens, slots_count);
        let nonce = header.nonce;
        let allocated = STEP_SLOTS.max(allocated_min).min(slots_count);
        let segment = Segment::open_for_append(id, nonce, slots_count, allocated, file.clone());
        let least = if allocated_min == 0 { allocated } else { allocated_min };
        let allocated = allocate_some(&segment, self.store(), 0, least, allocated)?;
        segment.allocated.store(allocated, Ordering::Release);
        let page = header.encode();
        debug_assert_eq!(page.len(), BLOCK_BYTES);
        // Header and name are durable before anything in the segment can be acknowledged: a batch
        // whose segment may vanish would be lost without a trace.
        let written = file
            .write_at(&page, 0)
            .and_then(|()| file.sync())
            .and_then(|()| self.store().sync_directory("segments"));
        match written {
            Ok(()) => Ok(Arc::new(segment)),
            Err(error @ StoreError::Full { .. }) => Err(error.into()),
            Err(error) => Err(self.poison(&error.to_string())),
        }
    }
}

/// Allocate up to slot `to`, or where there is no room for that up to `least`. Result: up to which.
fn allocate_some(
    segment: &Segment,
    store: &dyn ramet_store::Store,
    from: u32,
    least: u32,
    to: u32,
) -> Result<u32> {
    match allocate(segment, store, from, to) {
        Err(LogError::Store(StoreError::Full { .. })) if least < to => {
            allocate(segment, store, from, least).map(|()| least)
        }
        done => done.map(|()| to),
    }
}

fn allocate(segment: &Segment, store: &dyn ramet_store::Store, from: u32, to: u32) -> Result<()> {
    let file = segment.file(store)?;
    let (start, length) =
        (u64::from(from) * BLOCK_BYTES_U64, u64::from(to - from) * BLOCK_BYTES_U64);
    Ok(file.allocate(start, length)?)
}
