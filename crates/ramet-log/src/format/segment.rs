//! The header of a segment file: slot 0.

use super::{Reader, VERSION, Writer};
use crate::checksum::page_crc;
use crate::types::{
    BLOCK_BYTES, BLOCK_BYTES_U32, EPOCH_MAX, Position, SLOTS_MAX, SegmentId, Sequence,
};

const MAGIC: &[u8; 8] = b"RAMETSEG";
const CHECKSUM_AT: usize = 16;
/// The segment begins a stretch: it says where the log before it ended.
const FLAG_OPENS: u32 = 1;
/// The file was another segment's before: what is behind the log's end may be of that.
const FLAG_REUSED: u32 = 2;

/// What a segment file says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The pool's checksum seed, as its identity.
    pub seed: u64,
    /// The log it belongs to.
    pub log: [u8; 16],
    /// The opening of the log that made it.
    pub incarnation: [u8; 16],
    /// Random; seeds every checksum of a header, page or batch in this file.
    pub nonce: u64,
    /// The file's id.
    pub file: SegmentId,
    /// The segment in it.
    pub segment: SegmentId,
    /// Whether the file was another segment's before.
    pub reused: bool,
    /// Slots the segment may use, this header's included.
    pub slots_count: u32,
    /// The segment before it in the log.
    pub previous: Option<SegmentId>,
    /// Where the log before it ended, if it is the first after an opening.
    pub opens: Option<LogEnd>,
}

/// The last batch of a stretch of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogEnd {
    /// The slot of its header; zero for an empty log.
    pub position: Position,
    /// Its number; zero for an empty log.
    pub sequence: Sequence,
}

impl SegmentHeader {
    /// The page for slot 0.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; BLOCK_BYTES];
        let mut out = Writer::new(&mut page, 0);
        out.put(MAGIC);
        out.u32(VERSION);
        out.u32(BLOCK_BYTES_U32);
        out.u32(0);
        let opens = if self.opens.is_some() { FLAG_OPENS } else { 0 };
        out.u32(opens | if self.reused { FLAG_REUSED } else { 0 });
        out.u64(self.seed);
        out.put(&self.log);
        out.put(&self.incarnation);
        out.u64(self.nonce);
        out.u64(self.file.0);
        out.u64(self.previous.map_or(0, |id| id.0));
        let end = self.opens.unwrap_or_default();
        out.u64(end.position.0);
        out.u64(end.sequence.0);
        // One section; a rewritten file may hold several.
        out.u32(1);
        out.u32(0);
        out.u64(self.segment.0);
        out.u64(0);
        out.u64(u64::from(self.slots_count));
        let crc = page_crc(&page, CHECKSUM_AT, self.nonce, self.file.0);
        page[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// Read and check slot 0. `Err` says what is wrong.
    ///
    /// # Errors
    /// A text for people: magic, version, checksum or bounds.
    pub fn decode(page: &[u8]) -> Result<Self, String> {
        if page.len() != BLOCK_BYTES || page[..8] != MAGIC[..] {
            return Err("no segment header".into());
        }
        Self::fields(page).ok_or_else(|| "segment header checksum or fields wrong".into())
    }

    fn fields(page: &[u8]) -> Option<Self> {
        let mut from = Reader::new(page, 8);
        if from.u32()? != VERSION || from.u32()? != BLOCK_BYTES_U32 {
            return None;
        }
        let stored = from.u32()?;
        let flags = from.u32()?;
        let seed = from.u64()?;
        let (log, incarnation, nonce) = (from.array()?, from.array()?, from.u64()?);
        let file = segment_id(from.u64()?)?;
        let previous = match from.u64()? {
            0 => None,
            id => Some(segment_id(id)?),
        };
        let end = LogEnd { position: Position(from.u64()?), sequence: Sequence(from.u64()?) };
        let (sections, _) = (from.u32()?, from.u32()?);
        let segment = segment_id(from.u64()?)?;
        let (first, slots) = (from.u64()?, u32::try_from(from.u64()?).ok()?);
        let sane = sections == 1 && first == 0 && (2..=SLOTS_MAX).contains(&slots);
        if !sane || stored != page_crc(page, CHECKSUM_AT, nonce, file.0) {
            return None;
        }
        let opens = (flags & FLAG_OPENS != 0).then_some(end);
        Some(SegmentHeader {
            seed,
            log,
            incarnation,
            nonce,
            file,
            segment,
            reused: flags & FLAG_REUSED != 0,
            slots_count: slots,
            previous,
            opens,
        })
    }
}

/// An id as file names hold it; `None` for any other way to write it, which names no file of ours.
pub(crate) fn id_of_hex(hex: &str) -> Option<SegmentId> {
    let id = segment_id(u64::from_str_radix(hex, 16).ok()?)?;
    (id.to_string() == hex).then_some(id)
}

/// An id from a medium, in range.
pub(crate) fn segment_id(raw: u64) -> Option<SegmentId> {
    let epoch = SegmentId(raw).epoch();
    (1..=EPOCH_MAX).contains(&epoch).then_some(SegmentId(raw))
}
