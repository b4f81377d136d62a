//! The end of the log: the open segment, the open batch, what was prepared to follow. Lives inside
//! the gate.
//!
//! Invariants: batches are numbered without gaps in the order they are opened; a batch lies in one
//! chunk of one segment; no call here waits for a file. The header of a batch and the journal of a
//! segment have their memory from before the gate: where they grew in it all would wait for the
//! allocator.

use crate::checksum::fold;
use crate::format::batch::{BatchHeader, Entry, Kind};
use crate::format::footer::JournalBatch;
use crate::format::segment::LogEnd;
use crate::gate::{Payload, PreparedRecord};
use crate::journal::Journal;
use crate::log::Log;
use crate::room::AHEAD_SLOTS_MIN;
use crate::segment::Segment;
use crate::staging::{Chunk, ChunkPool};
use crate::types::{BLOCK_BYTES, Locator, ObjectId, Position, SegmentId, Sequence};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Work that the gate leaves for the write-out, in log order.
pub(crate) enum Job {
    /// Slots of a chunk are complete.
    Range { segment: Arc<Segment>, chunk: Arc<Chunk>, first_slot: u32, end_slot: u32 },
    /// A segment is complete up to `slots_count`.
    Seal { segment: Arc<Segment>, slots_count: u32, journal: Journal },
}

/// A segment whose name and header are durable.
pub(crate) struct PreparedSegment {
    segment: Arc<Segment>,
    journal: Journal,
}

impl PreparedSegment {
    /// To be called before the gate is entered.
    pub(crate) fn new(segment: Arc<Segment>) -> Self {
        let journal = Journal::with_room(segment.slots_count);
        PreparedSegment { segment, journal }
    }
}

/// What is appended to.
struct Open {
    segment: Arc<Segment>,
    table: Arc<[AtomicU32]>,
    chunk: Option<Arc<Chunk>>,
    next_slot: u32,
    /// Slots that hold blocks.
    blocks: u32,
    journal: Journal,
}

/// Slots that hold blocks.
pub(crate) fn blocks_of<'a>(batches: impl IntoIterator<Item = &'a JournalBatch>) -> u32 {
    let entries = batches.into_iter().flat_map(|batch| &batch.entries);
    let blocks: u64 =
        entries.filter(|entry| entry.kind == Kind::Write).map(|entry| entry.count).sum();
    u32::try_from(blocks).unwrap_or(u32::MAX)
}

/// See the head of this file.
pub(crate) struct Tail {
    open: Option<Open>,
    /// The slot of the open batch's header.
    batch: Option<u32>,
    /// The open batch's header so far; its memory serves one batch after another.
    header: BatchHeader,
    next_sequence: Sequence,
    /// In log order.
    prepared: VecDeque<PreparedSegment>,
    /// The last slot assigned.
    position: Position,
    /// The last batch that was ended.
    end: LogEnd,
}

impl Tail {
    /// To go on after the batch `end`, whose last slot is `position`.
    pub(crate) fn new(end: LogEnd, position: Position) -> Self {
        let next_sequence = Sequence(end.sequence.0 + 1);
        Tail {
            open: None,
            batch: None,
            header: BatchHeader::with_room(),
            next_sequence,
            prepared: VecDeque::new(),
            position,
            end,
        }
    }

    /// The last batch that was ended, and the segment that is appended to.
    pub(crate) fn end(&self) -> (LogEnd, Option<SegmentId>) {
        (self.end, self.open.as_ref().map(|open| open.segment.id))
    }

    /// The segment that is appended to, and how many of its slots hold blocks.
    pub(crate) fn open_segment(&self) -> Option<(SegmentId, u32)> {
        self.open.as_ref().map(|open| (open.segment.id, open.blocks))
    }

    /// The last slot assigned: everything in the log is at or before it.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    pub(crate) fn last_sequence(&self) -> Sequence {
        Sequence(self.next_sequence.0 - 1)
    }

    pub(crate) fn has_open_segment(&self) -> bool {
        self.open.is_some() || !self.prepared.is_empty()
    }

    pub(crate) fn prepared_count(&self) -> usize {
        self.prepared.len()
    }

    /// Leave nothing to append to.
    pub(crate) fn take_prepared(&mut self) -> Vec<Arc<Segment>> {
        self.prepared.drain(..).map(|prepared| prepared.segment).collect()
    }

    pub(crate) fn push_prepared(&mut self, prepared: PreparedSegment) {
        self.prepared.push_back(prepared);
    }

    fn prepared(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.prepared.iter().map(|prepared| &prepared.segment)
    }

    /// Forget room that is allocated and not used, to be called while nobody else makes room: of
    /// the open segment, and of prepared ones all but the header. Result: each segment, and the
    /// slots that are left of it.
    pub(crate) fn forget_room(&mut self) -> Vec<(Arc<Segment>, u32)> {
        let open = self.open.iter().map(|open| (open.segment.clone(), open.next_slot));
        let prepared = self.prepared().map(|segment| (segment.clone(), 1));
        let mut cut: Vec<_> = open.chain(prepared).collect();
        cut.retain(|(segment, slots)| {
            segment.filled.fetch_min(*slots, Ordering::AcqRel);
            segment.allocated.fetch_min(*slots, Ordering::AcqRel) > *slots
        });
        cut
    }

    /// The open segment, where more of it could be allocated.
    pub(crate) fn growable(&self) -> Option<Arc<Segment>> {
        let segment = &self.open.as_ref()?.segment;
        let allocated = segment.allocated.load(Ordering::Acquire);
        (allocated < segment.slots_count).then(|| segment.clone())
    }

    /// The next slot of the open segment, where little room is left in what is allocated of it.
    pub(crate) fn next_slot_of_short(&self) -> Option<u32> {
        let open = self.open.as_ref()?;
        (self.room_in_open() < AHEAD_SLOTS_MIN).then_some(open.next_slot)
    }

    /// Whether there is something to be made ready: little room is left in what is allocated of the
    /// open segment, and more could be, or no segment waits behind it.
    pub(crate) fn wants_room(&self) -> bool {
        let is_short = self.next_slot_of_short().is_some();
        is_short && (self.prepared.is_empty() || self.growable().is_some())
    }

    fn room_in_open(&self) -> u32 {
        self.open.as_ref().map_or(0, |open| {
            open.segment.allocated.load(Ordering::Acquire).saturating_sub(open.next_slot)
        })
    }

    pub(crate) fn room_for_blocks(&self, slots: u32) -> bool {
        let mut room = self.room_in_open();
        if room >= slots || self.growable().is_some() {
            return room >= slots;
        }
        for segment in self.prepared() {
            // Each change of segment may waste what a header and a block would need.
            room += segment.allocated.load(Ordering::Acquire).saturating_sub(4);
            if room >= slots {
                return true;
            }
            if segment.allocated.load(Ordering::Acquire) < segment.slots_count {
                return false;
            }
        }
        false
    }

    /// A prepared segment may be passed over where it is too small: it is then left empty.
    pub(crate) fn room_for_record(&self, slots: u32) -> bool {
        let holds = |segment: &Arc<Segment>| {
            segment.allocated.load(Ordering::Acquire).saturating_sub(1) > slots
        };
        self.room_in_open() > slots || self.prepared().any(holds)
    }

    /// The first prepared segment of which more could be allocated: blocks are not counted on
    /// beyond it.
    pub(crate) fn growable_for_blocks(&self) -> Option<Arc<Segment>> {
        let is_short = |segment: &&Arc<Segment>| {
            segment.allocated.load(Ordering::Acquire) < segment.slots_count
        };
        self.prepared().find(is_short).cloned()
    }

    /// A prepared segment that could hold a record if more of it were allocated.
    pub(crate) fn growable_for_record(&self, slots: u32) -> Option<Arc<Segment>> {
        self.prepared().find(|segment| segment.slots_count - 1 > slots).cloned()
    }

    /// End the open batch: its header goes into its slot, its slots to the write-out.
    pub(crate) fn close_batch(&mut self, log: &Log) {
        let Some(slot) = self.batch.take() else {
            return;
        };
        let header = &mut self.header;
        let open = self.open.as_mut().expect("a batch lies in the open segment");
        let chunk = open.chunk.clone().expect("a batch lies in a chunk");
        header.durable = log.durable();
        header.slots_count = open.next_slot - slot;
        let mut page = [0; BLOCK_BYTES];
        header.encode_into(&mut page, open.segment.nonce, open.segment.id.slot(slot));
        // SAFETY: the gate is held (this is the gate's inside), and header slots are published only
        // by the job below.
        unsafe { chunk.fill(slot, &page) };
        log.push_job(Job::Range {
            segment: open.segment.clone(),
            chunk,
            first_slot: slot,
            end_slot: open.next_slot,
        });
        self.end =
            LogEnd { position: open.segment.id.slot(slot).position(), sequence: header.sequence };
        open.journal.push(slot, header);
    }

    /// End the open segment; it is sealed by the write-out.
    pub(crate) fn close_segment(&mut self, log: &Log) {
        self.close_batch(log);
        if let Some(Open { segment, next_slot, blocks, journal, chunk, .. }) = self.open.take() {
            drop(chunk);
            segment.set_blocks(blocks);
            log.push_job(Job::Seal { segment, slots_count: next_slot, journal });
        }
    }

    fn next_segment(&mut self, log: &Log) {
        self.close_segment(log);
        let PreparedSegment { segment, journal } =
            self.prepared.pop_front().expect("the gate was entered with room");
        log.insert_segment(segment.clone());
        log.counters.begun.fetch_add(1, Ordering::Relaxed);
        let table = segment.table();
        self.open = Some(Open { segment, table, chunk: None, next_slot: 1, blocks: 0, journal });
    }

    /// Open a batch with room for at least one slot of payload beside its header.
    fn open_batch(&mut self, log: &Log) {
        if self.room_in_open() < 2 {
            self.next_segment(log);
        }
        let open = self.open.as_mut().expect("opened above");
        if open.chunk.as_ref().is_none_or(|chunk| open.next_slot + 2 > chunk.end_slot()) {
            let chunk = log.chunks.take(open.next_slot);
            open.segment.stage(chunk.clone());
            open.chunk = Some(chunk);
        }
        self.begin(log);
    }

    /// Take the header's slot and the number.
    fn begin(&mut self, log: &Log) {
        let open = self.open.as_mut().expect("a segment is open");
        let slot = open.next_slot;
        open.next_slot += 1;
        open.table[slot as usize].store(0, Ordering::Relaxed);
        self.position = open.segment.id.slot(slot).position();
        let sequence = self.next_sequence;
        self.next_sequence = Sequence(sequence.0 + 1);
        self.header.begin(sequence);
        self.batch = Some(slot);
        log.set_appended(sequence);
    }

    /// Blocks that fit into the open batch, as a new entry.
    fn blocks_room(&self) -> u64 {
        let (Some(_), Some(open)) = (self.batch, &self.open) else {
            return 0;
        };
        let header = &self.header;
        let chunk_end = open.chunk.as_ref().map_or(0, |chunk| chunk.end_slot());
        let end = chunk_end.min(open.segment.allocated.load(Ordering::Acquire));
        let slots = end.saturating_sub(open.next_slot);
        let checksums =
            BatchHeader::checksums_room(header.entries.len() + 1, header.checksums.len());
        u64::from(slots).min(checksums as u64)
    }

    pub(crate) fn write(
        &mut self,
        log: &Log,
        object: ObjectId,
        first: u64,
        data: &[u8],
        crcs: &[u32],
        mut placed: impl FnMut(u64, u64, Locator),
    ) {
        assert_eq!(data.len(), crcs.len() * BLOCK_BYTES, "one checksum for each block");
        let mut done = 0;
        while done < crcs.len() {
            if self.blocks_room() == 0 {
                self.close_batch(log);
                self.open_batch(log);
            }
            let count = usize::try_from(self.blocks_room())
                .expect("bounded by a chunk")
                .min(crcs.len() - done);
            let part = &data[done * BLOCK_BYTES..(done + count) * BLOCK_BYTES];
            let block = first + done as u64;
            let locator = self.append(log.seed(), object, block, part, &crcs[done..done + count]);
            placed(block, count as u64, locator);
            done += count;
        }
    }

    /// Append blocks that fit into the open batch.
    fn append(
        &mut self,
        seed: u64,
        object: ObjectId,
        first: u64,
        data: &[u8],
        crcs: &[u32],
    ) -> Locator {
        assert!(self.batch.is_some(), "a batch is open");
        let header = &mut self.header;
        let open = self.open.as_mut().expect("a segment is open");
        let slot = open.next_slot;
        let locator = open.segment.id.slot(slot);
        let chunk = open.chunk.as_ref().expect("a batch lies in a chunk");
        // SAFETY: the gate is held, and these slots were assigned just now: nobody knows them yet.
        unsafe { chunk.fill(slot, data) };
        for (index, crc) in (0u32..).zip(crcs) {
            let crc = fold(*crc, seed, locator.offset(u64::from(index)), first + u64::from(index));
            open.table[(slot + index) as usize].store(crc, Ordering::Relaxed);
            header.checksums.push(crc);
        }
        let count = crcs.len() as u64;
        match header.entries.last_mut() {
            Some(last)
                if last.kind == Kind::Write
                    && last.object == object
                    && last.first + last.count == first =>
            {
                last.count += count
            }
            _ => header.entries.push(Entry { kind: Kind::Write, object, first, count }),
        }
        let slots = u32::try_from(crcs.len()).expect("bounded by a chunk");
        open.next_slot += slots;
        open.blocks += slots;
        self.position = locator.offset(count - 1).position();
        locator
    }

    pub(crate) fn clear(
        &mut self,
        log: &Log,
        trim: bool,
        object: ObjectId,
        first: u64,
        count: u64,
    ) -> Position {
        let kind = if trim { Kind::Trim } else { Kind::Zero };
        self.push_entry(log, Entry { kind, object, first, count });
        self.position
    }

    /// Say in the log what is durable, while nothing else happens.
    pub(crate) fn mark(&mut self, log: &Log) {
        self.close_batch(log);
        self.push_entry(log, Entry { kind: Kind::Mark, object: ObjectId(0), first: 0, count: 0 });
        self.close_batch(log);
    }

    fn push_entry(&mut self, log: &Log, entry: Entry) {
        let header = &self.header;
        let fits = BatchHeader::fits(header.entries.len() + 1, header.checksums.len());
        if self.batch.is_none() || !fits {
            self.close_batch(log);
            self.open_batch(log);
        }
        self.header.entries.push(entry);
    }

    pub(crate) fn record(&mut self, log: &Log, record: PreparedRecord) -> Position {
        self.close_batch(log);
        let PreparedRecord { payload, slots_count, length_bytes, crc } = record;
        while self.room_in_open() <= slots_count {
            self.next_segment(log);
        }
        let small = self.chunk_for_record(log, payload, slots_count);
        self.begin(log);
        let position = self.position;
        let header = &mut self.header;
        let open = self.open.as_mut().expect("a segment is open");
        let first_slot = open.next_slot;
        let (first, count) = (length_bytes as u64, u64::from(slots_count));
        header.entries.push(Entry { kind: Kind::Record, object: ObjectId(0), first, count });
        header.checksums.push(fold(crc, log.seed(), open.segment.id.slot(first_slot), 0));
        if let Some(bytes) = small {
            let chunk = open.chunk.as_ref().expect("made above");
            // SAFETY: the gate is held, and these slots were assigned just now.
            unsafe { chunk.fill(first_slot, &bytes) };
        }
        open.next_slot += slots_count;
        self.position = open.segment.id.slot(open.next_slot - 1).position();
        self.close_batch(log);
        position
    }

    /// See to a chunk for a record; result: the bytes that still have to be copied into it.
    fn chunk_for_record(
        &mut self,
        log: &Log,
        payload: Payload,
        slots_count: u32,
    ) -> Option<Vec<u8>> {
        let open = self.open.as_mut().expect("a segment is open");
        let (chunk, rest) = match payload {
            Payload::Large(slots) => (ChunkPool::adopt(open.next_slot, slots), None),
            Payload::Small(bytes) => {
                let end = open.next_slot + slots_count;
                if open.chunk.as_ref().is_some_and(|chunk| end < chunk.end_slot()) {
                    return Some(bytes);
                }
                (log.chunks.take(open.next_slot), Some(bytes))
            }
        };
        open.segment.stage(chunk.clone());
        open.chunk = Some(chunk);
        rest
    }
}
