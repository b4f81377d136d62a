//! What one batch says: its entries told in order, its record read and verified.
//!
//! Invariant: a record is told only after its bytes matched the checksum in its batch's header.

use crate::chain::read_whole;
use crate::checksum;
use crate::error::{LogError, Result};
use crate::format::batch::{BatchHeader, Entry, Kind};
use crate::format::footer::JournalBatch;
use crate::segment::segment_path;
use crate::types::{BLOCK_BYTES, BLOCK_BYTES_U64, Locator, ObjectId, Position, SegmentId};
use ramet_store::Store;

/// One thing the log says, in order.
#[derive(Debug)]
pub enum Replay<'a> {
    /// Blocks of a volume, in consecutive slots.
    Write {
        /// The volume.
        object: ObjectId,
        /// Its first block.
        first: u64,
        /// How many.
        count: u64,
        /// Where the first one is.
        locator: Locator,
    },
    /// A range that reads as zeros.
    Clear {
        /// The volume.
        object: ObjectId,
        /// Its first block.
        first: u64,
        /// How many.
        count: u64,
        /// When.
        position: Position,
    },
    /// A command over objects.
    Record {
        /// As it was appended.
        payload: &'a [u8],
        /// When.
        position: Position,
    },
}

/// Takes what the log says. An error text means that the log holds what cannot be.
pub type Apply<'a> = dyn FnMut(Replay<'_>) -> std::result::Result<(), String> + 'a;

/// A segment to replay from.
pub(crate) struct Source<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) seed: u64,
    pub(crate) segment: SegmentId,
    pub(crate) nonce: u64,
}

impl Source<'_> {
    /// Tell `apply` a batch's entries.
    pub(crate) fn replay(&self, batch: &JournalBatch, apply: &mut Apply<'_>) -> Result<()> {
        let id = self.segment;
        let mut slot = batch.header_slot;
        for entry in &batch.entries {
            let Entry { kind, object, first, count } = *entry;
            let next = || id.slot(slot + 1);
            let applied = match kind {
                Kind::Write => apply(Replay::Write { object, first, count, locator: next() }),
                Kind::Zero | Kind::Trim => apply(Replay::Clear {
                    object,
                    first,
                    count,
                    position: id.slot(slot).position(),
                }),
                Kind::Record => {
                    let payload = self.read_record(batch.header_slot, first, count)?;
                    apply(Replay::Record {
                        payload: &payload,
                        position: id.slot(batch.header_slot).position(),
                    })
                }
                Kind::Mark => Ok(()),
            };
            applied.map_err(|reason| LogError::Damaged {
                segment: id,
                slot: batch.header_slot,
                reason,
            })?;
            slot += u32::try_from(entry.slots_count()).expect("checked against the header");
        }
        Ok(())
    }

    pub(crate) fn read_record(&self, header_slot: u32, length: u64, slots: u64) -> Result<Vec<u8>> {
        let id = self.segment;
        let damaged = |reason: String| LogError::Damaged { segment: id, slot: header_slot, reason };
        let slots = usize::try_from(slots).map_err(|_| damaged("a record is too long".into()))?;
        let length = usize::try_from(length).ok().filter(|length| *length <= slots * BLOCK_BYTES);
        let length = length.ok_or_else(|| damaged("a record is longer than its slots".into()))?;
        let mut bytes = vec![0; (slots + 1) * BLOCK_BYTES];
        let file = self.store.open(&segment_path(id), false)?;
        if !read_whole(&*file, &mut bytes, u64::from(header_slot) * BLOCK_BYTES_U64)? {
            return Err(damaged("the file ends before the record does".into()));
        }
        let header = BatchHeader::decode(&bytes[..BLOCK_BYTES], self.nonce, id.slot(header_slot));
        let header = header.ok_or_else(|| damaged("a record's header does not verify".into()))?;
        if !verify_payload(&header, id.slot(header_slot), &bytes[BLOCK_BYTES..], self.seed) {
            return Err(damaged("a record does not match its checksum".into()));
        }
        bytes.drain(..BLOCK_BYTES);
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Whether a batch's blocks and its record match the checksums in its header.
    pub(crate) fn payload_verifies(&self, batch: &JournalBatch) -> Result<bool> {
        let file = self.store.open(&segment_path(self.segment), false)?;
        let mut bytes = vec![0; batch.slots_count as usize * BLOCK_BYTES];
        if !read_whole(&*file, &mut bytes, u64::from(batch.header_slot) * BLOCK_BYTES_U64)? {
            return Ok(false);
        }
        let place = self.segment.slot(batch.header_slot);
        let header = BatchHeader::decode(&bytes[..BLOCK_BYTES], self.nonce, place);
        Ok(header
            .is_some_and(|header| verify_payload(&header, place, &bytes[BLOCK_BYTES..], self.seed)))
    }
}

/// Hold a batch's payload against its header.
fn verify_payload(header: &BatchHeader, place: Locator, payload: &[u8], seed: u64) -> bool {
    let mut slot = 0;
    let mut stored = header.checksums.iter();
    for entry in &header.entries {
        let slots = usize::try_from(entry.slots_count()).unwrap_or(usize::MAX);
        let Some(part) = payload.get(slot * BLOCK_BYTES..(slot + slots) * BLOCK_BYTES) else {
            return false;
        };
        let first = place.offset(slot as u64 + 1);
        let matches = match entry.kind {
            Kind::Record => {
                stored.next() == Some(&checksum::fold(checksum::crc(part), seed, first, 0))
            }
            Kind::Write => part.chunks_exact(BLOCK_BYTES).zip(0u64..).all(|(block, index)| {
                stored.next()
                    == Some(&checksum::fold(
                        checksum::crc(block),
                        seed,
                        first.offset(index),
                        entry.first + index,
                    ))
            }),
            Kind::Zero | Kind::Trim | Kind::Mark => true,
        };
        if !matches {
            return false;
        }
        slot += slots;
    }
    true
}
