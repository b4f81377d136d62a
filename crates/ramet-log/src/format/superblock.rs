//! The file `superblock`: two slots, each one commit record.

use super::segment::LogEnd;
use super::{Reader, VERSION, Writer};
use crate::checksum::page_crc;
use crate::types::{BLOCK_BYTES, BLOCK_BYTES_U32, Position, Sequence};

const MAGIC: &[u8; 8] = b"RAMETSUP";
const CHECKSUM_AT: usize = 16;
const ROOTS_AT: usize = 256;
const ROOT_BYTES: usize = 56;
/// Roots that a commit record has room for.
pub const ROOTS_MAX: usize = (BLOCK_BYTES - ROOTS_AT) / ROOT_BYTES;

/// A reference to a node on disk, as parents and the superblock hold it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeReference {
    /// Where the node is.
    pub address: u64,
    /// A second place of the same node; zero if there is none.
    pub second_address: u64,
    /// Bytes stored.
    pub stored_bytes: u32,
    /// CRC-32C of what is stored.
    pub checksum: u32,
    /// The newest write, zero or trim at or below it.
    pub newest: Position,
    /// Mapped blocks below it.
    pub mapped: u64,
}

/// The root of one of the pool's trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// Which tree.
    pub kind: u16,
    /// Its root node.
    pub node: NodeReference,
}

/// The lock clock as it was when a commit was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockReading {
    /// Nanoseconds of the clock.
    pub ns: u64,
    /// The machine's start then; zeros: not known.
    pub boot: [u8; 16],
    /// Nanoseconds that the machine had run since.
    pub running_ns: u64,
}

/// What holds for all locks of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockTerms {
    /// Seconds a lock can be taken back after it was set.
    pub cooling_off_seconds: u64,
    /// Hash of the secret that governance locks ask for; zeros while none is set.
    pub secret_hash: [u8; 32],
    /// When the secret last confirmed the time of day: the lock clock then,
    pub confirmed_clock_ns: u64,
    /// and that time of day, in nanoseconds since 1970; zero: never.
    pub confirmed_day_ns: u64,
}

/// One slot of the superblock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// Counted up with each commit; the newer slot is the one with the higher number.
    pub number: u64,
    /// The number of the commit that the other slot held when this was written.
    pub number_before: u64,
    /// The log's identity.
    pub log: [u8; 16],
    /// New at each opening for writing.
    pub incarnation: [u8; 16],
    /// The highest epoch taken.
    pub epoch: u64,
    /// What the roots show; zero while there are none.
    pub cut: LogEnd,
    /// The highest sequence known to be durable.
    pub durable: Sequence,
    /// The newest table file; zero while there is none.
    pub table_file: u64,
    /// The clock that locks run by.
    pub lock_clock: ClockReading,
    /// Bytes the pool may take; zero: no limit.
    pub limit_bytes: u64,
    /// What holds for locks.
    pub lock_terms: LockTerms,
    /// Seconds for which deleted objects can be restored; zero: not at all.
    pub trash_seconds: u64,
    /// The pool's trees.
    pub roots: Vec<Root>,
}

impl Commit {
    /// The slot's page.
    #[must_use]
    pub fn encode(&self, seed: u64) -> Vec<u8> {
        assert!(self.roots.len() <= ROOTS_MAX, "too many roots for a commit record");
        let mut page = vec![0; BLOCK_BYTES];
        let mut out = Writer::new(&mut page, 0);
        out.put(MAGIC);
        out.u32(VERSION);
        out.u32(BLOCK_BYTES_U32);
        out.u32(0);
        out.u32(u32::try_from(self.roots.len()).expect("checked above"));
        out.u64(self.number);
        out.u64(self.number_before);
        out.put(&self.log);
        out.put(&self.incarnation);
        out.u64(self.epoch);
        out.u64(self.cut.position.0);
        out.u64(self.cut.sequence.0);
        out.u64(self.durable.0);
        out.u64(self.table_file);
        out.u64(self.lock_clock.ns);
        out.u64(self.lock_terms.cooling_off_seconds);
        out.u64(self.limit_bytes);
        out.put(&self.lock_terms.secret_hash);
        out.put(&self.lock_clock.boot);
        out.u64(self.lock_clock.running_ns);
        out.u64(self.lock_terms.confirmed_clock_ns);
        out.u64(self.lock_terms.confirmed_day_ns);
        out.u64(self.trash_seconds);
        let mut out = Writer::new(&mut page, ROOTS_AT);
        for root in &self.roots {
            out.u16(root.kind);
            out.skip(6);
            out.u64(root.node.address);
            out.u64(root.node.second_address);
            out.u32(root.node.stored_bytes);
            out.u32(root.node.checksum);
            out.u64(root.node.newest.0);
            out.u64(root.node.mapped);
            out.skip(8);
        }
        let crc = page_crc(&page, CHECKSUM_AT, seed, 0);
        page[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// Read and check a slot; `None` where it is not a whole commit record of this pool.
    #[must_use]
    pub fn decode(page: &[u8], seed: u64) -> Option<Self> {
        if page.len() != BLOCK_BYTES || page[..8] != MAGIC[..] {
            return None;
        }
        let mut from = Reader::new(page, 8);
        if from.u32()? != VERSION || from.u32()? != BLOCK_BYTES_U32 {
            return None;
        }
        let (stored, roots_count) = (from.u32()?, usize::try_from(from.u32()?).ok()?);
        if stored != page_crc(page, CHECKSUM_AT, seed, 0) || roots_count > ROOTS_MAX {
            return None;
        }
        let mut commit = Commit {
            number: from.u64()?,
            number_before: from.u64()?,
            log: from.array()?,
            incarnation: from.array()?,
            epoch: from.u64()?,
            cut: LogEnd { position: Position(from.u64()?), sequence: Sequence(from.u64()?) },
            durable: Sequence(from.u64()?),
            table_file: from.u64()?,
            roots: Self::roots(page, roots_count)?,
            ..Commit::default()
        };
        let (clock, terms) = (&mut commit.lock_clock, &mut commit.lock_terms);
        (clock.ns, terms.cooling_off_seconds) = (from.u64()?, from.u64()?);
        commit.limit_bytes = from.u64()?;
        (terms.secret_hash, clock.boot) = (from.array()?, from.array()?);
        clock.running_ns = from.u64()?;
        (terms.confirmed_clock_ns, terms.confirmed_day_ns) = (from.u64()?, from.u64()?);
        commit.trash_seconds = from.u64()?;
        Some(commit)
    }

    fn roots(page: &[u8], count: usize) -> Option<Vec<Root>> {
        let mut from = Reader::new(page, ROOTS_AT);
        let mut roots = Vec::with_capacity(count);
        for _ in 0..count {
            let kind = from.u16()?;
            from.skip(6)?;
            let node = NodeReference {
                address: from.u64()?,
                second_address: from.u64()?,
                stored_bytes: from.u32()?,
                checksum: from.u32()?,
                newest: Position(from.u64()?),
                mapped: from.u64()?,
            };
            from.skip(8)?;
            roots.push(Root { kind, node });
        }
        Some(roots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commit_reads_back_and_every_flipped_bit_is_noticed() {
        let node = NodeReference {
            address: 1,
            second_address: 2,
            stored_bytes: 3,
            checksum: 4,
            newest: Position(5),
            mapped: 6,
        };
        let commit = Commit {
            number: 9,
            epoch: 3,
            limit_bytes: 7,
            lock_clock: ClockReading { ns: 12, boot: [13; 16], running_ns: 14 },
            lock_terms: LockTerms {
                cooling_off_seconds: 15,
                secret_hash: [16; 32],
                confirmed_clock_ns: 17,
                confirmed_day_ns: 18,
            },
            trash_seconds: 19,
            roots: vec![Root { kind: 2, node }],
            ..Commit::default()
        };
        let mut page = commit.encode(11);
        assert_eq!(Commit::decode(&page, 11), Some(commit));
        for bit in 0..BLOCK_BYTES * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Commit::decode(&page, 11), None, "bit {bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
