//! What is remembered of an open segment's batches until its footer tells it.
//!
//! Invariants: the entries of all batches lie in one piece of memory, in log order; a batch's are
//! those behind the one's before it, up to its `entries_end`.

use crate::format::batch::{BatchHeader, Entry};
use crate::format::footer::JournalBatch;
use crate::types::Sequence;

/// A batch without its entries.
struct Batch {
    sequence: Sequence,
    durable: Sequence,
    header_slot: u32,
    slots_count: u32,
    entries_end: usize,
}

/// See the head of this file.
pub(crate) struct Journal {
    entries: Vec<Entry>,
    batches: Vec<Batch>,
}

impl Journal {
    /// With room for as many blocks as a segment of `slots_count` slots holds, each alone in its
    /// batch or its entry. It grows where trims, zeroes and marks, which take no block's slot, need
    /// more.
    pub(crate) fn with_room(slots_count: u32) -> Self {
        let slots = slots_count as usize;
        Journal { entries: Vec::with_capacity(slots), batches: Vec::with_capacity(slots / 2) }
    }

    /// The batch whose header is in `header_slot` ended.
    pub(crate) fn push(&mut self, header_slot: u32, header: &BatchHeader) {
        self.entries.extend_from_slice(&header.entries);
        self.batches.push(Batch {
            sequence: header.sequence,
            durable: header.durable,
            header_slot,
            slots_count: header.slots_count,
            entries_end: self.entries.len(),
        });
    }

    /// As a footer has it.
    pub(crate) fn batches(&self) -> Vec<JournalBatch> {
        let mut begin = 0;
        let told = |batch: &Batch| {
            let entries = self.entries[begin..batch.entries_end].to_vec();
            begin = batch.entries_end;
            let Batch { sequence, durable, header_slot, slots_count, .. } = *batch;
            JournalBatch { sequence, durable, header_slot, slots_count, entries }
        };
        self.batches.iter().map(told).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::batch::Kind;
    use crate::types::ObjectId;
    use proptest::prelude::*;

    fn write(first: u64, count: u64) -> Entry {
        Entry { kind: Kind::Write, object: ObjectId(7), first, count }
    }

    proptest! {
        #[test]
        fn batches_come_back_as_they_ended(
            told in prop::collection::vec(prop::collection::vec((0..99u64, 1..9u64), 0..9), 0..20),
        ) {
            let mut journal = Journal::with_room(2);
            let (mut header, mut expected) = (BatchHeader::with_room(), Vec::new());
            for (number, writes) in (1..).zip(told) {
                header.begin(Sequence(u64::from(number)));
                header.entries.extend(writes.iter().map(|(first, count)| write(*first, *count)));
                header.durable = Sequence(u64::from(number) / 2);
                header.slots_count = number + 1;
                journal.push(number * 3, &header);
                expected.push(JournalBatch {
                    sequence: header.sequence,
                    durable: header.durable,
                    header_slot: number * 3,
                    slots_count: number + 1,
                    entries: header.entries.clone(),
                });
            }
            prop_assert_eq!(journal.batches(), expected);
        }
    }

    /// A writer is inside the gate when he adds to it.
    #[test]
    fn blocks_of_a_whole_segment_find_memory_that_is_there() {
        for blocks_each in [1, 112] {
            let slots = 16_384;
            let (mut journal, mut header) = (Journal::with_room(slots), BatchHeader::with_room());
            let room = |journal: &Journal, header: &BatchHeader| {
                let of_header = (header.entries.capacity(), header.checksums.capacity());
                (journal.entries.capacity(), journal.batches.capacity(), of_header)
            };
            let before = room(&journal, &header);
            for slot in (1..slots - blocks_each).step_by(blocks_each as usize + 1) {
                header.begin(Sequence(1));
                // Far apart, so that each has an entry of its own.
                header.entries.extend((0..u64::from(blocks_each)).map(|at| write(at * 2, 1)));
                header.checksums.resize(header.entries.len(), 0);
                journal.push(slot, &header);
            }
            assert_eq!(room(&journal, &header), before, "{blocks_each} blocks in a batch");
        }
    }
}
