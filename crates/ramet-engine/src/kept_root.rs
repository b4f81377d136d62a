//! The root hash of a snapshot from kept hashes: only what has none is read.
//!
//! Calls maps, volumes and `hashes`. Invariants: gives the same root as hashing every block does;
//! what is read here was verified; a stored block has zeros beyond the end of whatever object has
//! it, so that its hash is one. See docs/internals/root-hash.md, "Kept hashes".

use crate::engine::Engine;
use crate::ids::IdMap;
use crate::map::{LEAF_BLOCKS, Map, Missing, Node, Parts};
use crate::object::{ObjectKind, State};
use crate::root::{self, CHILDREN, HEIGHT, ZEROS, hash, hash_node};
use crate::volume::{VolumeDevice, object_deleted};
use crate::{BlockDevice, EngineError, Kind};
use ramet_log::format::hashes::Hash;
use ramet_log::{BLOCK_BYTES, BLOCK_BYTES_U64, Locator};
use std::ops::Range;
use std::sync::Arc;

/// Bytes read at once.
const READ_BLOCKS: usize = 256;
/// What a leaf counts for in a step, beside the blocks that are read: hashing hashes.
const LEAF_COST_BLOCKS: u64 = 16;
/// The level of a leaf in the tree of hashes: 8^3 blocks.
const LEAF_LEVEL: usize = 3;
/// Levels that an inner node spans: 8^2 children.
const INNER_LEVELS: usize = 2;

const _: () = assert!(LEAF_BLOCKS == 8 * 8 * 8);

type Result<T> = std::result::Result<T, EngineError>;

/// Reads a snapshot, or what is being received; keeps what its blocks hash to, and computes its
/// root from that.
pub struct HashedReader {
    engine: Arc<Engine>,
    device: VolumeDevice,
    map: Map,
    /// Hashes of subtrees by height and first block: those whose parent is not done.
    done: IdMap<(u8, u64), Hash>,
    blocks_left: u64,
}

/// Why the root is not there yet.
enum Stop {
    Missing(Missing),
    Spent,
    Failed(EngineError),
}

impl From<EngineError> for Stop {
    fn from(error: EngineError) -> Self {
        Stop::Failed(error)
    }
}

impl From<Missing> for Stop {
    fn from(missing: Missing) -> Self {
        Stop::Missing(missing)
    }
}

impl Engine {
    /// Read a snapshot with hashes, or something that is being received and is complete, by name
    /// or UUID.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a volume.
    pub fn hashed_reader(self: &Arc<Self>, name: &str) -> Result<HashedReader> {
        let object = match uuid::Uuid::parse_str(name) {
            Ok(uuid) => self.find_receiving(uuid).or_else(|_| self.find_object(name))?,
            Err(_) => self.find_object(name)?,
        };
        if object.kind() != ObjectKind::Snapshot && object.state() != State::Receiving {
            let text = format!("'{}' is a volume; hint: take a snapshot of it", object.name());
            return Err(EngineError::new(Kind::Invalid, "not_a_snapshot", text));
        }
        let map = object.head.map().clone();
        let device = VolumeDevice::new(self.clone(), object, false);
        let (engine, done) = (self.clone(), IdMap::default());
        Ok(HashedReader { engine, device, map, done, blocks_left: 0 })
    }
}

impl HashedReader {
    /// The snapshot's size.
    pub fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    /// Read from a block on, and keep what the blocks hash to; those whose hash is kept are not
    /// hashed again.
    ///
    /// # Errors
    /// As `BlockDevice::read`.
    pub fn read(&self, first: u64, buffer: &mut [u8]) -> Result<()> {
        self.device.read(first.saturating_mul(BLOCK_BYTES_U64), buffer)?;
        let blocks = buffer.as_chunks::<BLOCK_BYTES>().0;
        let mut extents = Vec::new();
        self.device.look_up(first, blocks.len() as u64, &mut extents)?;
        let mut rest = blocks;
        for extent in extents {
            let count = usize::try_from(extent.count).expect("bounded by the buffer");
            let (own, after) = rest.split_at(count);
            if let Some(locator) = extent.locator {
                let mut hashes = vec![Hash::default(); count];
                for part in self.engine.kept_hashes(locator.0, &mut hashes) {
                    for (hashed, block) in hashes[part.clone()].iter_mut().zip(&own[part.clone()]) {
                        *hashed = hash(block);
                    }
                    let first = locator.offset(part.start as u64);
                    self.engine.keep_hashes(first.0, &hashes[part]);
                }
            }
            rest = after;
        }
        Ok(())
    }

    /// Go on with the root: at most about so many blocks are read. Result: the root, once it is
    /// known.
    ///
    /// # Errors
    /// As `BlockDevice::read`, of what has to be read.
    pub fn step(&mut self, blocks_max: u64) -> Result<Option<Hash>> {
        self.blocks_left = blocks_max.max(1);
        self.engine.check_open()?;
        let engine = self.engine.clone();
        let _pin = engine.reclaim.pin();
        let map = self.map.clone();
        let found = loop {
            let found = match map.root() {
                None => Ok((ZEROS[HEIGHT], HEIGHT)),
                Some(node) => {
                    self.hash_of(node, 0).map(|hash| (hash, level_of(node.height()).min(HEIGHT)))
                }
            };
            match found {
                Ok(found) => break Ok(Some(found)),
                Err(Stop::Spent) => break Ok(None),
                Err(Stop::Failed(error)) => break Err(error),
                Err(Stop::Missing(missing)) => match engine.nodes.load(&missing) {
                    Ok(()) => {}
                    Err(error) => break Err(error),
                },
            }
        };
        // After the look: what a deleted one held may have left the medium.
        if self.device.object().is_deleted() {
            return Err(object_deleted(self.device.object()));
        }
        Ok(found?.map(|(top, level)| root::finish(self.size_bytes(), top, level)))
    }

    /// The hash of what a node stands for.
    fn hash_of(&mut self, node: &Arc<Node>, base: u64) -> std::result::Result<Hash, Stop> {
        let key = (node.height(), base);
        if let Some(found) = self.done.get(&key) {
            return Ok(*found);
        }
        // What is not stored yet has none.
        let address = node.reference().map(|it| it.address);
        if let Some(address) = address {
            let mut found = [Hash::default()];
            if self.engine.kept_hashes(address, &mut found).is_empty() {
                return Ok(found[0]);
            }
        }
        let found = match node.parts()? {
            Parts::Leaf(runs) => self.hash_of_leaf(&runs, base)?,
            Parts::Inner(children) => {
                let level = level_of(node.height() - 1);
                let mut hashes = vec![ZEROS[level]; CHILDREN.pow(2)];
                for (index, child) in &children {
                    hashes[*index] = self.hash_of(child, child_base(node, base, *index))?;
                }
                for (index, _) in children {
                    self.done.remove(&(node.height() - 1, child_base(node, base, index)));
                }
                if level + INNER_LEVELS > HEIGHT {
                    // The highest node there can be has children for one level only.
                    hashes.truncate(CHILDREN);
                }
                fold(hashes)
            }
        };
        if let Some(address) = address {
            self.engine.keep_hashes(address, &[found]);
        }
        self.done.insert(key, found);
        Ok(found)
    }

    fn hash_of_leaf(
        &mut self,
        runs: &[(Range<usize>, Locator)],
        base: u64,
    ) -> std::result::Result<Hash, Stop> {
        if self.blocks_left == 0 {
            return Err(Stop::Spent);
        }
        self.blocks_left = self.blocks_left.saturating_sub(LEAF_COST_BLOCKS);
        let mut hashes = vec![ZEROS[0]; CHILDREN.pow(3)];
        for (blocks, locator) in runs {
            let missing = self.engine.kept_hashes(locator.0, &mut hashes[blocks.clone()]);
            for part in missing {
                let first = locator.offset(part.start as u64);
                let part = blocks.start + part.start..blocks.start + part.end;
                self.read_hashes(base, part.clone(), &mut hashes)?;
                self.engine.keep_hashes(first.0, &hashes[part]);
            }
        }
        Ok(fold(hashes))
    }

    /// Read and hash blocks of a leaf; what lies beyond the end is zeros, stored as such too.
    fn read_hashes(&mut self, base: u64, blocks: Range<usize>, hashes: &mut [Hash]) -> Result<()> {
        self.blocks_left = self.blocks_left.saturating_sub(blocks.len() as u64);
        let mut buffer = vec![0; blocks.len().min(READ_BLOCKS) * BLOCK_BYTES];
        for part in hashes[blocks.clone()].chunks_mut(READ_BLOCKS).zip(0_u64..) {
            let (part, number) = part;
            let first = base + blocks.start as u64 + number * READ_BLOCKS as u64;
            let offset_bytes = first * BLOCK_BYTES_U64;
            let bytes = &mut buffer[..part.len() * BLOCK_BYTES];
            let left_bytes = usize::try_from(self.size_bytes() - offset_bytes);
            let inside = bytes.len().min(left_bytes.unwrap_or(usize::MAX));
            bytes[inside..].fill(0);
            self.device.read(offset_bytes, &mut bytes[..inside])?;
            for (own, block) in part.iter_mut().zip(bytes.as_chunks::<BLOCK_BYTES>().0) {
                *own = hash(block);
            }
        }
        Ok(())
    }
}

fn level_of(height: u8) -> usize {
    LEAF_LEVEL + INNER_LEVELS * usize::from(height)
}

fn child_base(node: &Node, base: u64, index: usize) -> u64 {
    base + index as u64 * (node.span() / CHILDREN.pow(2) as u64)
}

/// The hash of the node over all these, level by level.
fn fold(mut hashes: Vec<Hash>) -> Hash {
    while hashes.len() > 1 {
        hashes = hashes.as_chunks::<CHILDREN>().0.iter().map(hash_node).collect();
    }
    hashes[0]
}
