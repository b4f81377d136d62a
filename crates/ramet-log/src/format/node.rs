//! Node and table files: their header, how a node is addressed, and references to nodes.

use super::superblock::NodeReference;
use super::{Reader, VERSION, Writer};
use crate::checksum::{extend, page_crc};
use crate::types::{BLOCK_BYTES, BLOCK_BYTES_U32, Position, SegmentId};

/// Nodes begin at multiples of this.
pub const UNIT_BYTES: u64 = 64;
/// Units a file may have: an address has 16 bits for them.
pub const UNITS_MAX: u32 = 1 << 16;
/// The first node's unit: behind the header's page.
pub const FIRST_UNIT: u32 = BLOCK_BYTES_U32 / 64;
/// Bytes of a reference, as parents hold it.
pub const REFERENCE_BYTES: usize = 40;
/// Bytes before a node's body.
pub const NODE_HEADER_BYTES: usize = 16;
const CHECKSUM_AT: usize = 16;

/// What a file of nodes is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeFileKind {
    /// Maps, objects, lineage.
    Nodes,
    /// The file table.
    Tables,
}

impl NodeFileKind {
    fn magic(self) -> &'static [u8; 8] {
        match self {
            NodeFileKind::Nodes => b"RAMETMAP",
            NodeFileKind::Tables => b"RAMETTAB",
        }
    }

    /// The directory its files are in.
    #[must_use]
    pub fn directory(self) -> &'static str {
        match self {
            NodeFileKind::Nodes => "nodes",
            NodeFileKind::Tables => "tables",
        }
    }

    /// The path of a file.
    #[must_use]
    pub fn path(self, id: SegmentId) -> String {
        match self {
            NodeFileKind::Nodes => format!("nodes/{id}.map"),
            NodeFileKind::Tables => format!("tables/{id}.tab"),
        }
    }

    /// The id in a file's name, if it is one of ours.
    #[must_use]
    pub fn id_of_name(self, name: &str) -> Option<SegmentId> {
        let suffix = match self {
            NodeFileKind::Nodes => ".map",
            NodeFileKind::Tables => ".tab",
        };
        let hex = name.strip_suffix(suffix)?;
        super::segment::id_of_hex(hex)
    }
}

/// What a node or table file says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFileHeader {
    /// What it is for.
    pub kind: NodeFileKind,
    /// The pool's checksum seed, as its identity.
    pub seed: u64,
    /// The log it belongs to.
    pub log: [u8; 16],
    /// The opening of the log that made it.
    pub incarnation: [u8; 16],
    /// Random.
    pub nonce: u64,
    /// The file's id; the addresses of its nodes begin with it.
    pub file: SegmentId,
}

impl NodeFileHeader {
    /// The file's first page.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; BLOCK_BYTES];
        let mut out = Writer::new(&mut page, 0);
        out.put(self.kind.magic());
        out.u32(VERSION);
        out.u32(BLOCK_BYTES_U32);
        out.u32(0);
        out.u32(0);
        out.u64(self.seed);
        out.put(&self.log);
        out.put(&self.incarnation);
        out.u64(self.nonce);
        out.u64(self.file.0);
        out.u32(u32::try_from(UNIT_BYTES).expect("a small constant"));
        // One section; a rewritten file may hold several.
        out.u32(1);
        out.u64(self.file.0);
        out.u64(0);
        out.u64(u64::from(UNITS_MAX));
        let crc = page_crc(&page, CHECKSUM_AT, self.nonce, self.file.0);
        page[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// The nonce in a first page that verifies and is of a file of this kind, pool and id.
    #[must_use]
    pub fn nonce_of(page: &[u8], kind: NodeFileKind, seed: u64, file: SegmentId) -> Option<u64> {
        let mut from = Reader::new(page, 24);
        let own_seed = from.u64()?;
        let log = from.array::<16>()?;
        from.skip(16)?;
        let (nonce, own_file) = (from.u64()?, from.u64()?);
        let is_ours = own_seed == seed && own_file == file.0;
        (is_ours && Self::is_of(page, kind, seed, log)).then_some(nonce)
    }

    /// Whether a first page verifies and is of a file of this kind, pool and log.
    #[must_use]
    pub fn is_of(page: &[u8], kind: NodeFileKind, seed: u64, log: [u8; 16]) -> bool {
        let fields = || {
            let mut from = Reader::new(page, 8);
            let version = from.u32()?;
            from.skip(4)?;
            let stored = from.u32()?;
            from.skip(4)?;
            let (own_seed, own_log) = (from.u64()?, from.array::<16>()?);
            from.skip(16)?;
            let (nonce, file) = (from.u64()?, from.u64()?);
            let verifies = stored == page_crc(page, CHECKSUM_AT, nonce, file);
            verifies.then_some((version, own_seed, own_log))
        };
        page.len() == BLOCK_BYTES
            && page[..8] == kind.magic()[..]
            && fields() == Some((VERSION, seed, log))
    }
}

/// Checksum of a node at `address`.
#[must_use]
pub fn node_crc(seed: u64, address: u64, node: &[u8]) -> u32 {
    let mut identity = [0u8; 16];
    identity[..8].copy_from_slice(&seed.to_le_bytes());
    identity[8..].copy_from_slice(&address.to_le_bytes());
    extend(crate::checksum::crc(&identity), node)
}

/// The address of a unit in a file.
#[must_use]
pub fn address(file: SegmentId, unit: u32) -> u64 {
    file.slot(unit).0
}

/// The file and the unit of an address; `None` where it is none.
#[must_use]
pub fn place(address: u64) -> Option<(SegmentId, u32)> {
    let locator = crate::types::Locator(address);
    let unit = locator.slot();
    (unit >= FIRST_UNIT)
        .then(|| super::segment::segment_id(locator.segment().0))?
        .map(|id| (id, unit))
}

/// Put a reference.
pub fn put_reference(out: &mut Vec<u8>, node: &NodeReference) {
    out.extend(node.address.to_le_bytes());
    out.extend(node.second_address.to_le_bytes());
    out.extend(node.stored_bytes.to_le_bytes());
    out.extend(node.checksum.to_le_bytes());
    out.extend(node.newest.0.to_le_bytes());
    out.extend(node.mapped.to_le_bytes());
}

/// Take a reference.
pub fn take_reference(from: &mut Reader<'_>) -> Option<NodeReference> {
    Some(NodeReference {
        address: from.u64()?,
        second_address: from.u64()?,
        stored_bytes: from.u32()?,
        checksum: from.u32()?,
        newest: Position(from.u64()?),
        mapped: from.u64()?,
    })
}

/// What a node is, before its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeHeader {
    /// Which body follows.
    pub kind: NodeKind,
    /// 0 for leaves.
    pub height: u8,
    /// What the body counts.
    pub count: u16,
    /// First block of a map's node, lowest key of a tree's.
    pub first: u64,
}

/// The bodies there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum NodeKind {
    /// Children of a map's node.
    MapInner = 1,
    /// Runs of a map's leaf.
    MapRuns = 2,
    /// One locator for each block of a map's leaf.
    MapDense = 3,
    /// Keys and values.
    TreeLeaf = 4,
    /// Keys and references.
    TreeInner = 5,
}

impl NodeHeader {
    /// Begin a node; `finish` says how long it became.
    #[must_use]
    pub fn begin(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.extend([self.kind as u8, self.height]);
        out.extend(self.count.to_le_bytes());
        out.extend([0; 4]);
        out.extend(self.first.to_le_bytes());
        out
    }

    /// Note a node's length in it.
    pub fn finish(node: &mut [u8]) {
        let length = u32::try_from(node.len()).expect("a node is smaller than a file");
        node[4..8].copy_from_slice(&length.to_le_bytes());
    }

    /// Read what comes before the body.
    pub fn decode(from: &mut Reader<'_>, node_bytes: usize) -> Option<Self> {
        let (kind, height, count) = (from.u8()?, from.u8()?, from.u16()?);
        let (length, first) = (usize::try_from(from.u32()?).ok()?, from.u64()?);
        let kind = match kind {
            1 => NodeKind::MapInner,
            2 => NodeKind::MapRuns,
            3 => NodeKind::MapDense,
            4 => NodeKind::TreeLeaf,
            5 => NodeKind::TreeInner,
            _ => return None,
        };
        (length == node_bytes).then_some(NodeHeader { kind, height, count, first })
    }
}
