//! The file `pool`: what never changes about a pool.

use super::{Reader, VERSION, Writer};
use crate::checksum::page_crc;
use crate::types::{BLOCK_BYTES, BLOCK_BYTES_U32};

const MAGIC: &[u8; 8] = b"RAMETPOL";
const CHECKSUM_AT: usize = 16;
/// Features whose absence in a reader forbids opening at all. None exist yet.
const INCOMPATIBLE_KNOWN: u64 = 0;
/// Features whose absence in a reader forbids writing. None exist yet.
const READ_ONLY_COMPATIBLE_KNOWN: u64 = 0;

/// What never changes about a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The pool's identity.
    pub pool: [u8; 16],
    /// Folded into every block's checksum; stays when a copied pool gets a new identity.
    pub seed: u64,
    /// Bytes of an ordinary segment.
    pub segment_bytes: u64,
    /// Blocks that a map's leaf covers.
    pub leaf_blocks: u32,
    /// Nanoseconds since 1970.
    pub created_ns: u64,
    /// Features an older program may ignore; one that it may read past; one that it must refuse.
    pub features: [u64; 3],
}

/// Why a descriptor was not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Not one, or damaged.
    Damaged(String),
    /// A later version, or a feature unknown here.
    Unsupported(String),
}

impl Descriptor {
    /// The file's only page.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; BLOCK_BYTES];
        let mut out = Writer::new(&mut page, 0);
        out.put(MAGIC);
        out.u32(VERSION);
        out.u32(BLOCK_BYTES_U32);
        out.u32(0);
        out.u32(self.leaf_blocks);
        out.put(&self.pool);
        out.u64(self.seed);
        out.u64(self.segment_bytes);
        out.u64(self.created_ns);
        for features in self.features {
            out.u64(features);
        }
        let crc = page_crc(&page, CHECKSUM_AT, 0, 0);
        page[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// Read and check the page.
    ///
    /// # Errors
    /// `Damaged`, or `Unsupported` where a later program wrote it; the version is looked at before
    /// the checksum.
    pub fn decode(page: &[u8]) -> Result<Self, Refused> {
        if page.len() < BLOCK_BYTES || page[..8] != MAGIC[..] {
            return Err(Refused::Damaged("it does not start with a pool's magic".into()));
        }
        let page = &page[..BLOCK_BYTES];
        let version = Reader::new(page, 8).u32().unwrap_or(u32::MAX);
        if version != VERSION {
            return Err(Refused::Unsupported(match version {
                0 => "format version 0 is from before the first release".into(),
                _ => format!("format version {version} is newer than {VERSION}, the newest here"),
            }));
        }
        let this = Self::fields(page)
            .ok_or_else(|| Refused::Damaged("its checksum does not match".into()))?;
        let block_bytes = Reader::new(page, 12).u32().unwrap_or(0);
        if block_bytes != BLOCK_BYTES_U32 {
            let text = format!("blocks of {block_bytes} bytes are not known here");
            return Err(Refused::Unsupported(text));
        }
        let unknown = this.features[2] & !INCOMPATIBLE_KNOWN;
        if unknown != 0 {
            return Err(Refused::Unsupported(format!(
                "incompatible feature bits {unknown:#x} are not known here"
            )));
        }
        Ok(this)
    }

    /// Feature bits that forbid writing here.
    #[must_use]
    pub fn read_only_features(&self) -> u64 {
        self.features[1] & !READ_ONLY_COMPATIBLE_KNOWN
    }

    fn fields(page: &[u8]) -> Option<Self> {
        let mut from = Reader::new(page, 12);
        from.skip(4)?;
        let stored = from.u32()?;
        let this = Descriptor {
            leaf_blocks: from.u32()?,
            pool: from.array()?,
            seed: from.u64()?,
            segment_bytes: from.u64()?,
            created_ns: from.u64()?,
            features: [from.u64()?, from.u64()?, from.u64()?],
        };
        (stored == page_crc(page, CHECKSUM_AT, 0, 0)).then_some(this)
    }
}
