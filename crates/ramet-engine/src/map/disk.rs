//! Nodes of maps as bytes: docs/internals/format.md, "Node files".
//!
//! Pure. Invariant: decoding never panics, whatever the bytes, and accepts nothing that breaks an
//! invariant of the node or contradicts what its parent says of it.

use super::leaf::Leaf;
use super::node::{Body, Inner, Missing, Node};
use super::{BLOCKS_PER_LEAF, LEAF_BLOCKS};
use ramet_log::Locator;
use ramet_log::format::Reader;
use ramet_log::format::node::{NodeHeader, NodeKind, put_reference, take_reference};
use ramet_log::format::superblock::NodeReference;
use std::sync::Arc;

/// The bytes of a node whose first block is `first`. Its children are stored already.
pub(crate) fn encode(node: &Arc<Node>, first: u64) -> Result<Vec<u8>, Missing> {
    let body = node.look()?;
    let header = |kind, count: usize| NodeHeader {
        kind,
        height: node.height(),
        count: u16::try_from(count).expect("at most 512"),
        first,
    };
    let mut out;
    match &*body {
        Body::Inner(inner) => {
            out = header(NodeKind::MapInner, inner.children().len()).begin();
            out.extend(inner.bitmap().to_le_bytes());
            for child in inner.children() {
                put_reference(&mut out, &child.reference().expect("children are stored first"));
            }
        }
        Body::Leaf(leaf) => {
            let (runs_count, dense) = leaf.shape();
            let kind = if dense { NodeKind::MapDense } else { NodeKind::MapRuns };
            out = header(kind, runs_count).begin();
            if dense {
                let mut locators = [Locator::NONE; BLOCKS_PER_LEAF];
                for run in leaf.runs(0, BLOCKS_PER_LEAF) {
                    for (offset, locator) in (0..).zip(&mut locators[run.start()..run.end()]) {
                        *locator = run.locator.offset(offset);
                    }
                }
                out.extend(locators.iter().flat_map(|locator| locator.0.to_le_bytes()));
            } else {
                for run in leaf.runs(0, BLOCKS_PER_LEAF) {
                    let short = |value: usize| u16::try_from(value).expect("a leaf has 512 blocks");
                    out.extend(short(run.start()).to_le_bytes());
                    out.extend(short(run.length()).to_le_bytes());
                    out.extend(run.locator.0.to_le_bytes());
                }
            }
        }
    }
    NodeHeader::finish(&mut out);
    Ok(out)
}

/// The children that an inner node of `height` refers to; `None` where it cannot be one.
pub(crate) fn children(bytes: &[u8], height: u8) -> Option<Vec<NodeReference>> {
    let mut from = Reader::new(bytes, 0);
    let header = NodeHeader::decode(&mut from, bytes.len())?;
    from.u64()?;
    let is_inner = header.kind == NodeKind::MapInner && header.height == height && height > 0;
    is_inner.then(|| (0..header.count).map(|_| take_reference(&mut from)).collect())?
}

/// The body in verified bytes, for a node of `height` of which `reference` speaks; `stub` gives
/// its children. `None` where it cannot be.
pub(crate) fn decode(
    bytes: &[u8],
    reference: &NodeReference,
    height: u8,
    stub: &mut dyn FnMut(&NodeReference, u8) -> Arc<Node>,
) -> Option<Body> {
    let mut from = Reader::new(bytes, 0);
    let header = NodeHeader::decode(&mut from, bytes.len())?;
    if header.height != height || !header.first.is_multiple_of(LEAF_BLOCKS) {
        return None;
    }
    let count = usize::from(header.count);
    let body = match header.kind {
        NodeKind::MapInner if height > 0 => {
            let bitmap = from.u64()?;
            let references: Vec<NodeReference> =
                (0..count).map(|_| take_reference(&mut from)).collect::<Option<_>>()?;
            let mapped =
                references.iter().try_fold(0u64, |sum, child| sum.checked_add(child.mapped))?;
            let sane = |child: &NodeReference| {
                child.address != 0 && child.mapped > 0 && child.newest <= reference.newest
            };
            if mapped != reference.mapped || !references.iter().all(sane) {
                return None;
            }
            let children = references.iter().map(|child| stub(child, height - 1)).collect();
            Body::Inner(Inner::of(bitmap, children)?)
        }
        NodeKind::MapRuns if height == 0 => {
            let mut runs = Vec::with_capacity(count);
            for _ in 0..count {
                runs.push((from.u16()?, from.u16()?, Locator(from.u64()?)));
            }
            Body::Leaf(Leaf::of_runs(runs.into_iter())?)
        }
        NodeKind::MapDense if height == 0 => {
            let mut locators = [Locator::NONE; BLOCKS_PER_LEAF];
            for locator in &mut locators {
                *locator = Locator(from.u64()?);
            }
            Body::Leaf(Leaf::of_locators(locators))
        }
        _ => return None,
    };
    if let Body::Leaf(leaf) = &body {
        let mapped: u64 = leaf.runs(0, BLOCKS_PER_LEAF).map(|run| run.length() as u64).sum();
        if mapped != reference.mapped || mapped == 0 {
            return None;
        }
    }
    from.take(1).is_none().then_some(body)
}
