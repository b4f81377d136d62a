//! Hash files: what blocks and nodes hash to, kept beside the file that they are in.
//!
//! Pure. Invariant: a page that does not verify holds no hash.

use super::{Reader, VERSION, Writer};
use crate::checksum::page_crc;
use crate::types::{BLOCK_BYTES, SegmentId};

/// The directory they are in; absent while there are none.
pub const HASHES_DIRECTORY: &str = "hashes";
/// Bytes of a hash.
pub const HASH_BYTES: usize = 32;
/// Hashes in a page.
pub const HASHES_PER_PAGE: usize = (BLOCK_BYTES - HEADER_BYTES) / HASH_BYTES;
/// Stands for a hash that is not kept.
pub const NO_HASH: Hash = [0; HASH_BYTES];
const HEADER_BYTES: usize = 32;
const MAGIC: &[u8; 4] = b"RHSH";
const CHECKSUM_AT: usize = 12;

/// A hash.
pub type Hash = [u8; HASH_BYTES];

/// The path of the file that stands beside another.
#[must_use]
pub fn path(id: SegmentId) -> String {
    format!("{HASHES_DIRECTORY}/{id}.hsh")
}

/// The id in a file's name, if it is one of ours.
#[must_use]
pub fn id_of_name(name: &str) -> Option<SegmentId> {
    super::segment::id_of_hex(name.strip_suffix(".hsh")?)
}

/// A page, of a file that stands beside one with `nonce`.
///
/// # Panics
/// For another number of hashes than a page has.
#[must_use]
pub fn encode(hashes: &[Hash], nonce: u64, index: u64) -> Vec<u8> {
    assert_eq!(hashes.len(), HASHES_PER_PAGE, "hashes of a page");
    let mut page = vec![0; BLOCK_BYTES];
    let mut out = Writer::new(&mut page, 0);
    out.put(MAGIC);
    out.u32(VERSION);
    out.skip(HEADER_BYTES - 8);
    out.put(hashes.as_flattened());
    let crc = page_crc(&page, CHECKSUM_AT, nonce, index);
    page[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&crc.to_le_bytes());
    page
}

/// The hashes of a page that verifies.
#[must_use]
pub fn decode(page: &[u8], nonce: u64, index: u64) -> Option<Vec<Hash>> {
    let mut from = Reader::new(page, 0);
    let (magic, version) = (from.array::<4>()?, from.u32()?);
    from.skip(4)?;
    let stored = from.u32()?;
    let whole = page.len() == BLOCK_BYTES && magic == *MAGIC && version == VERSION;
    let verifies = whole && stored == page_crc(page, CHECKSUM_AT, nonce, index);
    verifies.then(|| page[HEADER_BYTES..].as_chunks::<HASH_BYTES>().0.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_what_was_put_and_verifies_in_its_place_only() {
        let hashes: Vec<Hash> = (0..=126).map(|byte| [byte; HASH_BYTES]).collect();
        let mut page = encode(&hashes, 7, 3);
        assert_eq!(page.len(), BLOCK_BYTES);
        assert_eq!(decode(&page, 7, 3).as_ref(), Some(&hashes));
        assert!(decode(&page, 8, 3).is_none() && decode(&page, 7, 2).is_none());
        assert!(decode(&page[1..], 7, 3).is_none() && decode(&[], 7, 3).is_none());
        for at in (0..BLOCK_BYTES).step_by(61) {
            page[at] ^= 16;
            assert!(decode(&page, 7, 3).is_none(), "byte {at}");
            page[at] ^= 16;
        }
        assert!(decode(&[0; BLOCK_BYTES], 7, 3).is_none());
    }
}
