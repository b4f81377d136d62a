//! B+ trees of u64 keys on disk, path-copied: objects, lineage, file table.
//!
//! Pure but for the reading and writing it is handed. Invariants: keys ascend; an update writes the
//! paths to what changed and nothing else; what an older root shows stays as it is.

use crate::{EngineError, Kind};
use ramet_log::format::Reader;
use ramet_log::format::node::{NodeHeader, NodeKind, put_reference, take_reference};
use ramet_log::format::superblock::NodeReference;

/// A node is split where it would become longer; a single entry may be.
const NODE_BYTES_MAX: usize = 4096;
/// Levels a tree may have: more is damage.
const HEIGHT_MAX: u8 = 16;

type Result<T> = std::result::Result<T, EngineError>;
/// Reads the verified bytes of a node.
pub(crate) type Read<'a> = dyn Fn(&NodeReference) -> Result<Vec<u8>> + 'a;
/// Writes a node with so many entries below it.
pub(crate) type Write<'a> = dyn FnMut(&[u8], u64) -> Result<NodeReference> + 'a;

/// A key's new value; `None`: it goes.
pub(crate) type Change = (u64, Option<Vec<u8>>);

enum Content {
    Leaf(Vec<(u64, Vec<u8>)>),
    Inner(Vec<(u64, NodeReference)>),
}

fn open(bytes: &[u8]) -> Option<(u8, Content)> {
    let mut from = Reader::new(bytes, 0);
    let header = NodeHeader::decode(&mut from, bytes.len())?;
    let content = match (header.kind, header.height) {
        (NodeKind::TreeLeaf, 0) => {
            let mut entries = Vec::with_capacity(usize::from(header.count));
            for _ in 0..header.count {
                let (key, length) = (from.u64()?, from.u32()?);
                entries.push((key, from.take(usize::try_from(length).ok()?)?.to_vec()));
            }
            Content::Leaf(entries)
        }
        (NodeKind::TreeInner, 1..=HEIGHT_MAX) => {
            let mut children = Vec::with_capacity(usize::from(header.count));
            for _ in 0..header.count {
                children.push((from.u64()?, take_reference(&mut from)?));
            }
            Content::Inner(children)
        }
        _ => return None,
    };
    from.take(1).is_none().then_some((header.height, content))
}

fn read_node(read: &Read<'_>, reference: &NodeReference) -> Result<(u8, Content)> {
    open(&read(reference)?).ok_or_else(|| misread(reference))
}

fn misread(reference: &NodeReference) -> EngineError {
    let text = format!(
        "tree node {:#x} is not what its parent says; hint: `ramet check` names it",
        reference.address
    );
    EngineError::new(Kind::Corrupt, "node_damaged", text)
}

/// Show every entry, in order of keys; `visit` is told every node first.
pub(crate) fn scan(
    read: &Read<'_>,
    root: &NodeReference,
    visit: &mut dyn FnMut(&NodeReference),
    see: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    visit(root);
    let bytes = read(root)?;
    let mut from = Reader::new(&bytes, 0);
    let header = NodeHeader::decode(&mut from, bytes.len()).ok_or_else(|| misread(root))?;
    if header.kind != NodeKind::TreeLeaf {
        let Some((_, Content::Inner(children))) = open(&bytes) else { return Err(misread(root)) };
        return children.iter().try_for_each(|(_, child)| scan(read, child, visit, see));
    }
    let mut entry = || {
        let (key, length) = (from.u64()?, from.u32()?);
        Some((key, from.take(usize::try_from(length).ok()?)?))
    };
    for _ in 0..header.count {
        let (key, value) = entry().ok_or_else(|| misread(root))?;
        see(key, value)?;
    }
    Ok(())
}

/// Apply changes, sorted by key, each key once. Result: the new root; `None` for an empty tree.
pub(crate) fn update(
    read: &Read<'_>,
    write: &mut Write<'_>,
    root: Option<&NodeReference>,
    changes: &[Change],
) -> Result<Option<NodeReference>> {
    debug_assert!(changes.windows(2).all(|pair| pair[0].0 < pair[1].0), "sorted, each once");
    if changes.is_empty() {
        return Ok(root.copied());
    }
    let (mut height, mut level) = match root {
        Some(root) => change_node(read, write, root, changes, true)?,
        None => (0, write_leaves(write, merge(Vec::new(), changes))?),
    };
    while level.len() > 1 {
        assert!(height < HEIGHT_MAX, "a tree of so many entries");
        height += 1;
        level = write_inner(write, height, &level)?;
    }
    Ok(level.pop().map(|(_, root)| root))
}

/// Result: the height, and what stands in place of the node.
fn change_node(
    read: &Read<'_>,
    write: &mut Write<'_>,
    node: &NodeReference,
    changes: &[Change],
    is_root: bool,
) -> Result<(u8, Vec<(u64, NodeReference)>)> {
    let (height, content) = read_node(read, node)?;
    let children = match content {
        Content::Leaf(entries) => return Ok((0, write_leaves(write, merge(entries, changes))?)),
        Content::Inner(children) => children,
    };
    let mut fresh = Vec::with_capacity(children.len() + 1);
    let mut rest = changes;
    for (index, (key, child)) in children.iter().enumerate() {
        let end = match children.get(index + 1) {
            Some((next, _)) => rest.partition_point(|(key, _)| key < next),
            None => rest.len(),
        };
        let (own, after) = rest.split_at(end);
        rest = after;
        if own.is_empty() {
            fresh.push((*key, *child));
        } else {
            fresh.extend(change_node(read, write, child, own, false)?.1);
        }
    }
    if is_root && fresh.len() <= 1 {
        // A root above a single child is one level too many.
        return Ok((height - 1, fresh));
    }
    Ok((height, write_inner(write, height, &fresh)?))
}

fn merge(entries: Vec<(u64, Vec<u8>)>, changes: &[Change]) -> Vec<(u64, Vec<u8>)> {
    let mut merged = Vec::with_capacity(entries.len() + changes.len());
    let mut entries = entries.into_iter().peekable();
    for (key, value) in changes {
        while let Some(entry) = entries.next_if(|(own, _)| own < key) {
            merged.push(entry);
        }
        let _replaced = entries.next_if(|(own, _)| own == key);
        merged.extend(value.as_ref().map(|value| (*key, value.clone())));
    }
    merged.extend(entries);
    merged
}

fn write_leaves(
    write: &mut Write<'_>,
    entries: Vec<(u64, Vec<u8>)>,
) -> Result<Vec<(u64, NodeReference)>> {
    let mut written = Vec::new();
    let mut at = 0;
    while at < entries.len() {
        let mut bytes = 16;
        let fits = entries[at..].iter().take_while(|(_, value)| {
            bytes += 12 + value.len();
            bytes <= NODE_BYTES_MAX
        });
        let part = &entries[at..at + fits.count().max(1)];
        let mut node = header(NodeKind::TreeLeaf, 0, part.len(), part[0].0).begin();
        for (key, value) in part {
            node.extend(key.to_le_bytes());
            node.extend(u32::try_from(value.len()).expect("values are small").to_le_bytes());
            node.extend(value);
        }
        NodeHeader::finish(&mut node);
        written.push((part[0].0, write(&node, part.len() as u64)?));
        at += part.len();
    }
    Ok(written)
}

fn write_inner(
    write: &mut Write<'_>,
    height: u8,
    children: &[(u64, NodeReference)],
) -> Result<Vec<(u64, NodeReference)>> {
    let mut written = Vec::new();
    for part in children.chunks((NODE_BYTES_MAX - 16) / 48) {
        let mut node = header(NodeKind::TreeInner, height, part.len(), part[0].0).begin();
        for (key, child) in part {
            node.extend(key.to_le_bytes());
            put_reference(&mut node, child);
        }
        NodeHeader::finish(&mut node);
        let entries = part.iter().map(|(_, child)| child.mapped).sum();
        written.push((part[0].0, write(&node, entries)?));
    }
    Ok(written)
}

fn header(kind: NodeKind, height: u8, count: usize, first: u64) -> NodeHeader {
    NodeHeader { kind, height, count: u16::try_from(count).expect("bounded by a node"), first }
}
