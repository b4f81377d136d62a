//! A batch: one header slot, followed by its blocks or its record.

use super::{Reader, VERSION, Writer};
use crate::checksum::page_crc;
use crate::types::{BLOCK_BYTES, Locator, ObjectId, SLOTS_MAX, Sequence};

const MAGIC: u32 = u32::from_le_bytes(*b"RBAT");
const CHECKSUM_AT: usize = 12;
const ENTRIES_AT: usize = 64;
const ENTRY_BYTES: usize = 32;
/// A kind with this bit may be skipped by a reader that does not know it.
pub const KIND_SKIPPABLE: u8 = 0x80;

/// What an entry does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Blocks of an object; their bytes follow in the batch.
    Write = 1,
    /// A range reads as zeros.
    Zero = 2,
    /// A range was discarded; reads as zeros.
    Trim = 3,
    /// A command over objects; `first` is its length in bytes, `count` its slots.
    Record = 4,
    /// Says only what is durable.
    Mark = 0x85,
}

impl Kind {
    fn from_raw(raw: u8) -> Option<Self> {
        [Kind::Write, Kind::Zero, Kind::Trim, Kind::Record, Kind::Mark]
            .into_iter()
            .find(|kind| *kind as u8 == raw)
    }
}

/// One entry of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it does.
    pub kind: Kind,
    /// The volume; zero for records and marks.
    pub object: ObjectId,
    /// First block; for a record its length in bytes.
    pub first: u64,
    /// Blocks; for a record the slots it takes.
    pub count: u64,
}

impl Entry {
    /// Slots of payload that belong to the entry.
    #[must_use]
    pub fn slots_count(&self) -> u64 {
        match self.kind {
            Kind::Write | Kind::Record => self.count,
            Kind::Zero | Kind::Trim | Kind::Mark => 0,
        }
    }

    /// Checksums in the header that belong to the entry.
    #[must_use]
    pub fn checksums_count(&self) -> u64 {
        match self.kind {
            Kind::Write => self.count,
            Kind::Record => 1,
            Kind::Zero | Kind::Trim | Kind::Mark => 0,
        }
    }

    pub(crate) fn encode(&self, out: &mut Writer<'_>) {
        out.u8(self.kind as u8);
        out.skip(7);
        out.u64(self.object.0);
        out.u64(self.first);
        out.u64(self.count);
    }

    /// `Some(None)`: a kind that is not known and may be skipped.
    pub(crate) fn decode(from: &mut Reader<'_>) -> Option<Option<Self>> {
        let raw = from.u8()?;
        from.skip(7)?;
        let (object, first, count) = (ObjectId(from.u64()?), from.u64()?, from.u64()?);
        match Kind::from_raw(raw) {
            Some(kind) => Some(Some(Entry { kind, object, first, count })),
            None if raw & KIND_SKIPPABLE != 0 => Some(None),
            None => None,
        }
    }
}

/// A batch's header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchHeader {
    /// Its number in the log.
    pub sequence: Sequence,
    /// The highest number known to be durable when it was closed.
    pub durable: Sequence,
    /// Slots of the batch, the header's included.
    pub slots_count: u32,
    /// What it does, in order.
    pub entries: Vec<Entry>,
    /// For each block of a write, and for each record, in order.
    pub checksums: Vec<u32>,
}

impl BatchHeader {
    /// Empty, with room for all that a header slot holds.
    #[must_use]
    pub fn with_room() -> Self {
        let room = BLOCK_BYTES - ENTRIES_AT;
        let (entries, checksums) =
            (Vec::with_capacity(room / ENTRY_BYTES), Vec::with_capacity(room / 4));
        BatchHeader { entries, checksums, ..BatchHeader::default() }
    }

    /// Turn it into that of a new batch, in the same memory.
    pub fn begin(&mut self, sequence: Sequence) {
        self.entries.clear();
        self.checksums.clear();
        (self.sequence, self.durable, self.slots_count) = (sequence, Sequence(0), 0);
    }

    /// Whether a header slot holds this many entries and checksums.
    #[must_use]
    pub fn fits(entries_count: usize, checksums_count: usize) -> bool {
        ENTRIES_AT + entries_count * ENTRY_BYTES + checksums_count * 4 <= BLOCK_BYTES
    }

    /// Checksums that still fit beside `entries_count` entries and `checksums_count` checksums.
    #[must_use]
    pub fn checksums_room(entries_count: usize, checksums_count: usize) -> usize {
        let used = ENTRIES_AT + entries_count * ENTRY_BYTES + checksums_count * 4;
        BLOCK_BYTES.saturating_sub(used) / 4
    }

    /// Fill the header's slot.
    pub fn encode_into(&self, page: &mut [u8], nonce: u64, place: Locator) {
        assert!(
            Self::fits(self.entries.len(), self.checksums.len()),
            "batch header overflows its slot"
        );
        page.fill(0);
        let used = ENTRIES_AT + self.entries.len() * ENTRY_BYTES + self.checksums.len() * 4;
        let mut out = Writer::new(page, 0);
        out.u32(MAGIC);
        out.u32(VERSION);
        out.u32(u32::try_from(used).expect("fits a slot"));
        out.u32(0);
        out.u64(self.sequence.0);
        out.u64(self.durable.0);
        out.u32(self.slots_count);
        out.u16(u16::try_from(self.entries.len()).expect("fits a slot"));
        out.u16(u16::try_from(self.checksums.len()).expect("fits a slot"));
        out.skip(ENTRIES_AT - 40);
        for entry in &self.entries {
            entry.encode(&mut out);
        }
        for checksum in &self.checksums {
            out.u32(*checksum);
        }
        let crc = page_crc(page, CHECKSUM_AT, nonce, place.0);
        page[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Read and check a header slot; `None` where it is not a whole, valid header of this file and
    /// place.
    #[must_use]
    pub fn decode(page: &[u8], nonce: u64, place: Locator) -> Option<Self> {
        let mut from = Reader::new(page, 0);
        if page.len() != BLOCK_BYTES || from.u32()? != MAGIC || from.u32()? != VERSION {
            return None;
        }
        let (used, stored) = (usize::try_from(from.u32()?).ok()?, from.u32()?);
        if stored != page_crc(page, CHECKSUM_AT, nonce, place.0) {
            return None;
        }
        let (sequence, durable) = (Sequence(from.u64()?), Sequence(from.u64()?));
        let slots_count = from.u32()?;
        let (entries_count, checksums_count) = (usize::from(from.u16()?), usize::from(from.u16()?));
        from.skip(ENTRIES_AT - 40)?;
        if used != ENTRIES_AT + entries_count * ENTRY_BYTES + checksums_count * 4 {
            return None;
        }
        let mut entries = Vec::with_capacity(entries_count);
        for _ in 0..entries_count {
            if let Some(entry) = Entry::decode(&mut from)? {
                entries.push(entry);
            }
        }
        let checksums = (0..checksums_count).map(|_| from.u32()).collect::<Option<Vec<_>>>()?;
        let header = BatchHeader { sequence, durable, slots_count, entries, checksums };
        header.consistent(place).then_some(header)
    }

    fn consistent(&self, place: Locator) -> bool {
        let sum = |count: fn(&Entry) -> u64| {
            self.entries.iter().try_fold(0u64, |total, entry| total.checked_add(count(entry)))
        };
        let slots = sum(Entry::slots_count).and_then(|payload| payload.checked_add(1));
        let end = u64::from(place.slot()) + u64::from(self.slots_count);
        slots == Some(u64::from(self.slots_count))
            && sum(Entry::checksums_count) == u64::try_from(self.checksums.len()).ok()
            && end <= u64::from(SLOTS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> BatchHeader {
        let write = Entry { kind: Kind::Write, object: ObjectId(7), first: 40, count: 2 };
        let trim = Entry { kind: Kind::Trim, object: ObjectId(7), first: 0, count: 9 };
        BatchHeader {
            sequence: Sequence(3),
            durable: Sequence(2),
            slots_count: 3,
            entries: vec![write, trim],
            checksums: vec![1, 2],
        }
    }

    #[test]
    fn header_reads_back_and_only_in_its_place() {
        let mut page = vec![0; BLOCK_BYTES];
        let place = Locator(1 << 28 | 5);
        sample().encode_into(&mut page, 99, place);
        assert_eq!(BatchHeader::decode(&page, 99, place), Some(sample()));
        assert_eq!(BatchHeader::decode(&page, 98, place), None);
        assert_eq!(BatchHeader::decode(&page, 99, Locator(1 << 28 | 6)), None);
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let mut page = vec![0; BLOCK_BYTES];
        let place = Locator(1 << 28 | 5);
        sample().encode_into(&mut page, 99, place);
        for bit in 0..BLOCK_BYTES * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(BatchHeader::decode(&page, 99, place), None, "bit {bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
