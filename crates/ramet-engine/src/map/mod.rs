//! An object's map: a persistent tree from block index to locator, shared node by node with every
//! map that has not changed it.
//!
//! Pure: no clock, no input or output, no lock. Called by volumes (look up, write, clear), by
//! lineage (walk) and by diff. Invariants: a snapshot or clone is one reference counted up; only a
//! write or removal makes nodes; holes are absent.

mod change;
mod diff;
pub(crate) mod disk;
pub(crate) mod fresh;
mod leaf;
mod node;
mod read;
mod walk;

pub use change::LetGo;
pub use diff::diff;
pub(crate) use node::Parts;
pub use node::{Missing, Node};
pub use read::{Extent, Extents};
pub use walk::{Beside, Listed, Walked, walk_unheld};

use ramet_log::Position;
use std::sync::Arc;

/// Blocks that a leaf stands for: 2 MiB. Stored in the pool's descriptor.
pub const LEAF_BLOCKS: u64 = 512;
/// `LEAF_BLOCKS` for arithmetic in memory.
const BLOCKS_PER_LEAF: usize = 512;
/// Blocks a map can have: 256 TiB.
pub const BLOCKS_MAX: u64 = 1 << 36;

/// The map of one object. A clone shares everything and costs one counted reference.
#[derive(Clone, Default)]
pub struct Map {
    root: Option<Arc<Node>>,
}

impl Map {
    /// A map of what was detached elsewhere: a subtree whose first block is `first`.
    pub fn from_subtree(first: u64, node: Arc<Node>) -> Self {
        let mut map = Map::default();
        map.graft(first, node);
        map
    }

    /// A map whose root is on disk.
    pub(crate) fn from_root(root: Arc<Node>) -> Self {
        Map { root: Some(root) }
    }

    pub(crate) fn root(&self) -> Option<&Arc<Node>> {
        self.root.as_ref()
    }

    /// The position of the newest change; zero for an empty map.
    pub fn newest(&self) -> Position {
        self.root.as_ref().map_or(Position::ZERO, |root| root.newest)
    }

    /// Blocks mapped.
    pub fn mapped(&self) -> u64 {
        self.root.as_ref().map_or(0, |root| root.mapped)
    }

    /// Whether no block is mapped.
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Whether both are one and the same tree: then nothing differs. (Otherwise something may, or
    /// not.)
    pub fn is_same(&self, other: &Map) -> bool {
        node::same(self.root.as_ref(), other.root.as_ref())
    }

    /// Bring the root into the processor's cache.
    pub fn touch(&self) {
        if let Some(root) = &self.root {
            std::hint::black_box(Arc::strong_count(root));
        }
    }

    /// Estimate of the memory that all nodes take that are in it, allocation overhead included.
    pub fn node_bytes(&self) -> u64 {
        self.node_bytes_beside(&Map::default())
    }

    /// Estimate of the memory of the nodes that `other` does not share.
    pub fn node_bytes_beside(&self, other: &Map) -> u64 {
        let root = self.root.as_ref();
        root.map_or(0, |root| bytes_beside(root, 0, other))
    }

    /// Hold the tree against its invariants: for tests and audits; visits every node.
    ///
    /// # Panics
    /// Where one does not hold.
    pub fn check(&self) {
        if let Some(root) = &self.root {
            root.check();
        }
    }

    fn find(&self, base: u64, height: u8) -> Result<Option<Arc<Node>>, Missing> {
        self.root.as_ref().map_or(Ok(None), |root| root.find(base, height))
    }

    /// What of this map lies beside a node of another one: see `node::Beside`.
    fn beside(&self, base: u64, height: u8) -> Result<Option<Arc<Node>>, Missing> {
        match &self.root {
            Some(root) if root.height < height => Ok((base == 0).then(|| root.clone())),
            Some(root) => root.find(base, height),
            None => Ok(None),
        }
    }
}

fn bytes_beside(node: &Arc<Node>, base: u64, other: &Map) -> u64 {
    let beside = other.find(base, node.height).ok().flatten();
    if beside.is_some_and(|found| Arc::ptr_eq(&found, node)) {
        return 0;
    }
    let below: u64 = match node.look().as_deref() {
        Ok(node::Body::Inner(inner)) => {
            let children = inner.indexes(u64::MAX).zip(inner.children());
            children
                .map(|(index, child)| bytes_beside(child, node.child_base(base, index), other))
                .sum()
        }
        Ok(node::Body::Leaf(_)) | Err(_) => 0,
    };
    node.own_bytes() + below
}
