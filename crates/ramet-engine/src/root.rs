//! The root hash of a snapshot: a function of its size and bytes only.
//!
//! docs/internals/root-hash.md says what it is. Invariant: blocks come in ascending order; what was
//! not given is zeros, and costs nothing.

use crate::verbs::SIZE_BYTES_MAX;
use crate::{BlockDevice, EngineError};
use ramet_log::format::hashes::{HASH_BYTES, Hash};
use ramet_log::{BLOCK_BYTES, BLOCK_BYTES_U64};
use std::ops::ControlFlow;
use std::sync::LazyLock;

/// A BLAKE3 hash that is fed piece by piece, for what is neither block nor node: a stream.
#[derive(Clone, Default)]
pub struct ContentHash(blake3::Hasher);

impl ContentHash {
    /// Add bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all bytes so far; more may follow.
    #[must_use]
    pub fn digest(&self) -> [u8; HASH_BYTES] {
        *self.0.finalize().as_bytes()
    }
}

pub(crate) const CHILDREN: usize = 8;
/// Bits of a block's index that say which child it is in, at each level.
const CHILD_BITS: u32 = 3;
/// Levels above the blocks: 8^12 blocks are `SIZE_BYTES_MAX`.
pub(crate) const HEIGHT: usize = 12;
const MAGIC: &[u8; 8] = b"RAMETRT1";
/// Bytes read at once: what one read of the log takes in any case.
const READ_BYTES: usize = 1 << 20;

const _: () = assert!(SIZE_BYTES_MAX == BLOCK_BYTES_U64 << (CHILD_BITS * 12));

/// What a subtree of zeros hashes to, by its level.
pub(crate) static ZEROS: LazyLock<[Hash; HEIGHT + 1]> = LazyLock::new(|| {
    let mut hashes = [hash(&[0; BLOCK_BYTES]); HEIGHT + 1];
    for level in 1..=HEIGHT {
        hashes[level] = hash_node(&[hashes[level - 1]; CHILDREN]);
    }
    hashes
});

pub(crate) fn hash(bytes: &[u8]) -> Hash {
    *blake3::hash(bytes).as_bytes()
}

pub(crate) fn hash_node(children: &[Hash; CHILDREN]) -> Hash {
    hash(children.as_flattened())
}

/// A node that is being filled: its index at its level, and its children's hashes.
type Open = Option<(u64, [Hash; CHILDREN])>;

/// Computes a root from blocks.
pub struct RootHasher {
    size_bytes: u64,
    /// The first block that may still be given.
    next: u64,
    /// By level, from the nodes over blocks on.
    open: [Open; HEIGHT],
}

impl RootHasher {
    /// Of a snapshot of so many bytes, at most `SIZE_BYTES_MAX`.
    ///
    /// # Panics
    /// Over that.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        assert!(size_bytes <= SIZE_BYTES_MAX, "sizes are checked where they come in");
        RootHasher { size_bytes, next: 0, open: [None; HEIGHT] }
    }

    /// Whether blocks may follow from here on, and end inside the size.
    #[must_use]
    pub fn takes(&self, first: u64, bytes: usize) -> bool {
        let count = (bytes as u64).div_ceil(BLOCK_BYTES_U64);
        let end = first.checked_add(count);
        first >= self.next
            && end.is_some_and(|end| end <= self.size_bytes.div_ceil(BLOCK_BYTES_U64))
    }

    /// Add blocks from `first` on; a last one that is not whole is filled up with zeros.
    ///
    /// # Panics
    /// Where `takes` says no.
    pub fn add(&mut self, first: u64, bytes: &[u8]) {
        assert!(self.takes(first, bytes.len()), "blocks come in order, inside the size");
        self.next = first;
        let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
        blocks.iter().for_each(|block| self.add_block(block));
        if !rest.is_empty() {
            let mut block = [0; BLOCK_BYTES];
            block[..rest.len()].copy_from_slice(rest);
            self.add_block(&block);
        }
    }

    fn add_block(&mut self, block: &[u8; BLOCK_BYTES]) {
        self.push(0, self.next, hash(block));
        self.next += 1;
    }

    /// Put a hash into its parent; a parent that is left goes into its own.
    fn push(&mut self, level: usize, index: u64, hash: Hash) {
        let Some(open) = self.open.get(level) else { return };
        let parent = index >> CHILD_BITS;
        if let Some((left, children)) = *open
            && left != parent
        {
            self.push(level + 1, left, hash_node(&children));
            self.open[level] = None;
        }
        let (_, children) = self.open[level].get_or_insert((parent, [ZEROS[level]; CHILDREN]));
        let child = usize::try_from(index % CHILDREN as u64).expect("below the count of children");
        children[child] = hash;
    }

    /// The root.
    #[must_use]
    pub fn finish(mut self) -> Hash {
        let mut top = ZEROS[HEIGHT];
        for level in 0..HEIGHT {
            if let Some((index, children)) = self.open[level].take() {
                top = hash_node(&children);
                self.push(level + 1, index, top);
            }
        }
        finish(self.size_bytes, top, HEIGHT)
    }
}

/// The root, from the hash of the first node of a level beyond which all is zeros.
pub(crate) fn finish(size_bytes: u64, mut top: Hash, level: usize) -> Hash {
    for level in level..HEIGHT {
        let mut children = [ZEROS[level]; CHILDREN];
        children[0] = top;
        top = hash_node(&children);
    }
    let mut root = ContentHash::default();
    root.update(MAGIC);
    root.update(&size_bytes.to_le_bytes());
    root.update(&top);
    root.digest()
}

/// Add what `device` has from block `first` on, at most about `blocks_max` blocks that are mapped:
/// read from the medium, and verified. Result: the block to go on from; the size in blocks at the
/// end.
///
/// # Errors
/// As `BlockDevice::read`.
pub fn hash_stored(
    device: &dyn BlockDevice,
    hasher: &mut RootHasher,
    first: u64,
    blocks_max: u64,
) -> Result<u64, EngineError> {
    let size_bytes = device.size_bytes();
    let offset = first.saturating_mul(BLOCK_BYTES_U64).min(size_bytes);
    let bytes_max = blocks_max.max(1).saturating_mul(BLOCK_BYTES_U64);
    let (mut at, mut left) = (offset, bytes_max);
    let mut ranges = Vec::new();
    device.extents(offset, size_bytes - offset, &mut |length, mapped| {
        let take = if mapped { length.min(left) } else { length };
        if mapped {
            ranges.push((at, take));
            left -= take;
        }
        at += take;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    let mut buffer = vec![0; READ_BYTES];
    for (mut from, length) in ranges {
        let end = from + length;
        while from < end {
            let take = usize::try_from(end - from).map_or(READ_BYTES, |it| it.min(READ_BYTES));
            let piece = &mut buffer[..take];
            device.read(from, piece)?;
            hasher.add(from / BLOCK_BYTES_U64, piece);
            from += take as u64;
        }
    }
    Ok(at.div_ceil(BLOCK_BYTES_U64))
}
