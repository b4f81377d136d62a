//! What sealing adds to a segment: the slot table in columns, the journal, and the trailer in the
//! file's last page.

use super::batch::Entry;
use super::{Reader, VERSION, Writer};
use crate::checksum::page_crc;
use crate::types::{BLOCK_BYTES, BLOCK_BYTES_U32, ObjectId, SegmentId, Sequence};

const TRAILER_MAGIC: &[u8; 8] = b"RAMETFTR";
const PAGE_MAGIC: u32 = u32::from_le_bytes(*b"RPAG");
const JOURNAL_MAGIC: u32 = u32::from_le_bytes(*b"RJRN");
const CHECKSUM_AT: usize = 12;
const TRAILER_CHECKSUM_AT: usize = 16;
const PAGE_HEADER_BYTES: usize = 32;
const PAGE_HEADER_BYTES_U32: u32 = 32;
const BATCH_BYTES: usize = 32;
const ENTRY_BYTES: usize = 32;
/// Checksums in a page of the checksum column.
pub const CHECKSUMS_PER_PAGE: u32 = (BLOCK_BYTES_U32 - PAGE_HEADER_BYTES_U32) / 4;
/// Owners in a page of the owner column.
pub const OWNERS_PER_PAGE: u32 = (BLOCK_BYTES_U32 - PAGE_HEADER_BYTES_U32) / 16;

/// Which column a page belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Column {
    /// One u32 for each slot.
    Checksums = 1,
    /// Object and block index for each slot.
    Owners = 2,
}

/// A batch as the journal tells it: everything of its header but the checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalBatch {
    /// Its number in the log.
    pub sequence: Sequence,
    /// What was known to be durable when it was closed.
    pub durable: Sequence,
    /// The slot of its header.
    pub header_slot: u32,
    /// Its slots, the header's included.
    pub slots_count: u32,
    /// What it does.
    pub entries: Vec<Entry>,
}

/// Where the parts of a sealed segment's footer lie, in its last page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// The segment.
    pub segment: SegmentId,
    /// Slots in use.
    pub slots_count: u32,
    /// Number of its first batch; zero if it has none.
    pub first: Sequence,
    /// Number of its last batch; zero if it has none.
    pub last: Sequence,
    /// The highest number known to be durable when it was sealed.
    pub durable: Sequence,
    /// Byte offset of the checksum column.
    pub checksums_at: u64,
    /// Byte offset of the owner column.
    pub owners_at: u64,
    /// Byte offset of the journal.
    pub journal_at: u64,
    /// Bytes of the journal, its header included and its padding not.
    pub journal_bytes: u64,
}

/// What a slot holds, for the owner column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Zero: the log itself (headers and records).
    pub object: ObjectId,
    /// Block of the object.
    pub block_index: u64,
}

/// Encode the whole footer of a segment: what follows its last slot, up to and with the trailer.
#[must_use]
pub fn encode(
    nonce: u64,
    segment: SegmentId,
    checksums: &[u32],
    journal: &[JournalBatch],
    durable: Sequence,
) -> Vec<u8> {
    let slots_count = u32::try_from(checksums.len()).expect("slots are counted in u32");
    let mut out = Vec::new();
    let start = u64::from(slots_count) * BLOCK_BYTES as u64;
    for (index, part) in checksums.chunks(CHECKSUMS_PER_PAGE as usize).enumerate() {
        let body = part.iter().flat_map(|crc| crc.to_le_bytes());
        push_page(&mut out, nonce, segment, Column::Checksums, index, body);
    }
    let owners_at = start + out.len() as u64;
    for (index, part) in owners(journal, slots_count).chunks(OWNERS_PER_PAGE as usize).enumerate() {
        let body = part
            .iter()
            .flat_map(|owner| [owner.object.0, owner.block_index])
            .flat_map(u64::to_le_bytes);
        push_page(&mut out, nonce, segment, Column::Owners, index, body);
    }
    let journal_at = start + out.len() as u64;
    let journal_page = encode_journal(nonce, segment, journal);
    let journal_bytes = journal_page.len() as u64;
    out.extend(journal_page);
    out.resize(out.len().next_multiple_of(BLOCK_BYTES), 0);
    let trailer = Trailer {
        segment,
        slots_count,
        first: journal.first().map_or(Sequence(0), |batch| batch.sequence),
        last: journal.last().map_or(Sequence(0), |batch| batch.sequence),
        durable,
        checksums_at: start,
        owners_at,
        journal_at,
        journal_bytes,
    };
    out.extend(trailer.encode(nonce));
    out
}

/// The owner column, from the batches.
#[must_use]
pub fn owners(journal: &[JournalBatch], slots_count: u32) -> Vec<Owner> {
    let mut owners = vec![Owner::default(); slots_count as usize];
    for batch in journal {
        let mut slot = batch.header_slot as usize + 1;
        for entry in &batch.entries {
            let count = usize::try_from(entry.slots_count()).unwrap_or(usize::MAX);
            let end = slot.saturating_add(count).min(owners.len());
            if entry.object != ObjectId(0) {
                for (index, owner) in (entry.first..).zip(&mut owners[slot..end]) {
                    *owner = Owner { object: entry.object, block_index: index };
                }
            }
            slot = end;
        }
    }
    owners
}

fn push_page(
    out: &mut Vec<u8>,
    nonce: u64,
    segment: SegmentId,
    column: Column,
    index: usize,
    body: impl Iterator<Item = u8>,
) {
    let at = out.len();
    out.extend(PAGE_MAGIC.to_le_bytes());
    out.extend(VERSION.to_le_bytes());
    out.extend((column as u32).to_le_bytes());
    out.extend([0; 4]);
    out.extend(segment.0.to_le_bytes());
    out.extend((index as u64).to_le_bytes());
    out.extend(body);
    out.resize(at + BLOCK_BYTES, 0);
    let crc = page_crc(&out[at..], CHECKSUM_AT, nonce, index as u64);
    out[at + CHECKSUM_AT..at + CHECKSUM_AT + 4].copy_from_slice(&crc.to_le_bytes());
}

/// The body of a page of `column`, if the page is whole and the one asked for.
#[must_use]
pub fn decode_page(
    page: &[u8],
    nonce: u64,
    segment: SegmentId,
    column: Column,
    index: u64,
) -> Option<&[u8]> {
    let mut from = Reader::new(page, 0);
    if page.len() != BLOCK_BYTES || from.u32()? != PAGE_MAGIC || from.u32()? != VERSION {
        return None;
    }
    let (kind, stored) = (from.u32()?, from.u32()?);
    let identity = (kind, from.u64()?, from.u64()?);
    let valid = identity == (column as u32, segment.0, index)
        && stored == page_crc(page, CHECKSUM_AT, nonce, index);
    valid.then(|| &page[PAGE_HEADER_BYTES..])
}

fn encode_journal(nonce: u64, segment: SegmentId, journal: &[JournalBatch]) -> Vec<u8> {
    let entries: usize = journal.iter().map(|batch| batch.entries.len()).sum();
    let mut bytes =
        vec![0; PAGE_HEADER_BYTES + journal.len() * BATCH_BYTES + entries * ENTRY_BYTES];
    let mut out = Writer::new(&mut bytes, 0);
    out.u32(JOURNAL_MAGIC);
    out.u32(VERSION);
    out.u32(u32::try_from(journal.len()).expect("batches are fewer than slots"));
    out.u32(0);
    out.u64(segment.0);
    out.skip(8);
    for batch in journal {
        out.u64(batch.sequence.0);
        out.u64(batch.durable.0);
        out.u32(batch.header_slot);
        out.u32(batch.slots_count);
        out.u32(u32::try_from(batch.entries.len()).expect("fits a slot"));
        out.skip(4);
        for entry in &batch.entries {
            entry.encode(&mut out);
        }
    }
    let crc = page_crc(&bytes, CHECKSUM_AT, nonce, segment.0);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Read and check a journal; `None` where anything is wrong with it.
#[must_use]
pub fn decode_journal(bytes: &[u8], nonce: u64, segment: SegmentId) -> Option<Vec<JournalBatch>> {
    let mut from = Reader::new(bytes, 0);
    if from.u32()? != JOURNAL_MAGIC || from.u32()? != VERSION {
        return None;
    }
    let (batches, stored) = (from.u32()?, from.u32()?);
    let whole = stored == page_crc(bytes, CHECKSUM_AT, nonce, segment.0);
    if !whole || from.u64()? != segment.0 {
        return None;
    }
    from.skip(8)?;
    let mut journal = Vec::new();
    for _ in 0..batches {
        let (sequence, durable) = (Sequence(from.u64()?), Sequence(from.u64()?));
        let (header_slot, slots_count, entries_count) = (from.u32()?, from.u32()?, from.u32()?);
        from.skip(4)?;
        let mut entries = Vec::new();
        for _ in 0..entries_count {
            entries.extend(Entry::decode(&mut from)?);
        }
        journal.push(JournalBatch { sequence, durable, header_slot, slots_count, entries });
    }
    Some(journal)
}

impl Trailer {
    fn encode(&self, nonce: u64) -> Vec<u8> {
        let mut page = vec![0; BLOCK_BYTES];
        let mut out = Writer::new(&mut page, 0);
        out.put(TRAILER_MAGIC);
        out.u32(VERSION);
        out.u32(BLOCK_BYTES_U32);
        out.u32(0);
        out.u32(self.slots_count);
        out.u64(self.segment.0);
        out.u64(self.first.0);
        out.u64(self.last.0);
        out.u64(self.durable.0);
        out.u64(self.checksums_at);
        out.u64(self.owners_at);
        out.u64(self.journal_at);
        out.u64(self.journal_bytes);
        let crc = page_crc(&page, TRAILER_CHECKSUM_AT, nonce, self.segment.0);
        page[TRAILER_CHECKSUM_AT..TRAILER_CHECKSUM_AT + 4].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// Read and check a file's last page; `None` where the segment is not sealed.
    #[must_use]
    pub fn decode(page: &[u8], nonce: u64, segment: SegmentId) -> Option<Self> {
        if page.len() != BLOCK_BYTES || page[..8] != TRAILER_MAGIC[..] {
            return None;
        }
        let mut from = Reader::new(page, 8);
        if from.u32()? != VERSION || from.u32()? != BLOCK_BYTES_U32 {
            return None;
        }
        let (stored, slots_count) = (from.u32()?, from.u32()?);
        if stored != page_crc(page, TRAILER_CHECKSUM_AT, nonce, segment.0)
            || from.u64()? != segment.0
        {
            return None;
        }
        let (first, last, durable) =
            (Sequence(from.u64()?), Sequence(from.u64()?), Sequence(from.u64()?));
        Some(Trailer {
            segment,
            slots_count,
            first,
            last,
            durable,
            checksums_at: from.u64()?,
            owners_at: from.u64()?,
            journal_at: from.u64()?,
            journal_bytes: from.u64()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::Kind;
    use super::*;

    #[test]
    fn footer_reads_back() {
        let segment = SegmentId::new(1, 3);
        let entry = Entry { kind: Kind::Write, object: ObjectId(9), first: 100, count: 3 };
        let batch = JournalBatch {
            sequence: Sequence(4),
            durable: Sequence(1),
            header_slot: 1,
            slots_count: 4,
            entries: vec![entry],
        };
        let checksums: Vec<u32> = (0..3000).collect();
        let bytes = encode(5, segment, &checksums, std::slice::from_ref(&batch), Sequence(4));
        let trailer =
            Trailer::decode(&bytes[bytes.len() - BLOCK_BYTES..], 5, segment).expect("sealed");
        let at = |offset: u64| usize::try_from(offset - trailer.checksums_at).expect("small");
        let page = &bytes[at(trailer.checksums_at) + BLOCK_BYTES..][..BLOCK_BYTES];
        let body = decode_page(page, 5, segment, Column::Checksums, 1).expect("page 1");
        assert_eq!(body[..4], CHECKSUMS_PER_PAGE.to_le_bytes());
        assert!(decode_page(page, 5, segment, Column::Checksums, 0).is_none());
        let journal = &bytes[at(trailer.journal_at)..]
            [..usize::try_from(trailer.journal_bytes).expect("small")];
        assert_eq!(decode_journal(journal, 5, segment), Some(vec![batch.clone()]));
        assert_eq!(owners(&[batch], 6)[4], Owner { object: ObjectId(9), block_index: 102 });
    }
}
