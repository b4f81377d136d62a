//! CRC-32C of blocks, pages and headers.
//!
//! Pure. A block's checksum covers its bytes and then its identity, so that bytes in the wrong
//! place fail too. See docs/internals/format.md, "Checksums".

use crate::types::{BLOCK_BYTES, Locator};
use crc_fast::{CrcAlgorithm, Digest};

/// CRC-32C of `bytes`.
#[must_use]
pub fn crc(bytes: &[u8]) -> u32 {
    extend(0, bytes)
}

/// CRC-32C of what gave `crc`, followed by `bytes`.
#[must_use]
pub fn extend(crc: u32, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!crc));
    digest.update(bytes);
    u32::try_from(digest.finalize() & 0xffff_ffff).expect("masked to 32 bits")
}

/// Fold a block's identity into the checksum of its bytes.
#[must_use]
pub fn fold(bytes_crc: u32, seed: u64, locator: Locator, block_index: u64) -> u32 {
    let mut identity = [0u8; 32];
    identity[..8].copy_from_slice(&seed.to_le_bytes());
    identity[8..16].copy_from_slice(&locator.segment().0.to_le_bytes());
    identity[16..24].copy_from_slice(&u64::from(locator.slot()).to_le_bytes());
    identity[24..].copy_from_slice(&block_index.to_le_bytes());
    extend(bytes_crc, &identity)
}

/// Checksums of the bytes of each block in `data`, appended to `out`; the last block may be short
/// only in memory, never here.
pub fn crc_blocks(data: &[u8], out: &mut Vec<u32>) {
    debug_assert!(data.len().is_multiple_of(BLOCK_BYTES));
    out.extend(data.chunks_exact(BLOCK_BYTES).map(crc));
}

/// Checksum of a page whose four bytes at `at` hold the checksum, taken as zeros; seeded with the
/// file's nonce and a place in it.
#[must_use]
pub fn page_crc(page: &[u8], at: usize, nonce: u64, place: u64) -> u32 {
    let mut seed = [0u8; 16];
    seed[..8].copy_from_slice(&nonce.to_le_bytes());
    seed[8..].copy_from_slice(&place.to_le_bytes());
    let start = extend(crc(&seed), &page[..at]);
    extend(extend(start, &[0; 4]), &page[at + 4..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_crc_32c() {
        assert_eq!(crc(b"123456789"), 0xe306_9283);
        assert_eq!(extend(crc(b"1234"), b"56789"), 0xe306_9283);
    }

    #[test]
    fn fold_tells_places_and_indexes_apart() {
        let folded = fold(7, 1, Locator(5 << 16 | 9), 3);
        for (seed, locator, index) in
            [(2, 5 << 16 | 9, 3), (1, 6 << 16 | 9, 3), (1, 5 << 16 | 8, 3), (1, 5 << 16 | 9, 2)]
        {
            assert_ne!(folded, fold(7, seed, Locator(locator), index));
        }
    }
}
