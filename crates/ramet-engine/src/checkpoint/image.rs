//! Checkpoint entries as bytes: docs/internals/format.md, "Trees".

use super::{ObjectAtCut, ROOT_FILES, ROOT_LINEAGE, ROOT_OBJECTS, Result, Roots};
use crate::lineage::{PlaceImage, PlaceState};
use crate::nodes::tree::Change;
use crate::nodes::{NodeWriter, Nodes};
use crate::record::Item;
use crate::space::SpaceImage;
use ramet_log::format::Reader;
use ramet_log::format::node::{UNITS_MAX, put_reference, take_reference};
use ramet_log::format::superblock::{NodeReference, Root};
use ramet_log::{ObjectId, Position, SegmentEntry, SegmentId};
use std::collections::{BTreeMap, BTreeSet};

const STATE_LIVING: u8 = 1;
const STATE_DYING: u8 = 2;
const STATE_GONE: u8 = 3;

const FILE_SEGMENT: u8 = 1;
const FILE_NODES: u8 = 2;
const FLAG_SEALED: u8 = 1;
/// What is dead in the segment may be gone.
const FLAG_THINNED: u8 = 16;
/// The entry says how many slots hold blocks.
const FLAG_COUNTED: u8 = 32;

/// The roots, as the commit record lists them.
pub(super) fn roots(roots: &Roots) -> Vec<Root> {
    let listed =
        [(ROOT_OBJECTS, roots.objects), (ROOT_LINEAGE, roots.lineage), (ROOT_FILES, roots.files)];
    let listed = listed.into_iter();
    listed.filter_map(|(kind, node)| node.map(|node| Root { kind, node })).collect()
}

/// Write the maps of objects; result: the objects' entries.
pub(super) fn objects(
    writer: &mut NodeWriter<'_>,
    nodes: &Nodes,
    objects: &[ObjectAtCut],
    gone: &[ObjectId],
) -> Result<Vec<Change>> {
    let mut changes: BTreeMap<u64, Option<Vec<u8>>> = BTreeMap::new();
    for ObjectAtCut { map, fields, place, .. } in objects {
        let root = writer.write_map(nodes, map)?;
        let item = Item { object: fields.clone(), root, place: *place, ..Item::default() };
        let mut value = Vec::with_capacity(256);
        item.encode(&mut value);
        changes.insert(fields.id.0, Some(value));
    }
    changes.extend(gone.iter().map(|id| (id.0, None)));
    Ok(changes.into_iter().collect())
}

/// Write the maps of dying places; result: the places' entries.
pub(super) fn places(
    writer: &mut NodeWriter<'_>,
    nodes: &Nodes,
    places: &[std::result::Result<PlaceImage, u32>],
) -> Result<Vec<Change>> {
    let mut changes = Vec::with_capacity(places.len());
    for place in places {
        changes.push(match place {
            Err(gone) => (u64::from(*gone), None),
            Ok(place) => {
                let root = match &place.state {
                    PlaceState::Dying(map) => writer.write_map(nodes, map)?,
                    PlaceState::Living | PlaceState::Gone => None,
                };
                (u64::from(place.number), Some(encode_place(place, root)))
            }
        });
    }
    changes.sort_unstable_by_key(|(key, _)| *key);
    Ok(changes)
}

fn encode_place(place: &PlaceImage, root: Option<(NodeReference, u8)>) -> Vec<u8> {
    let mut out = Vec::with_capacity(88);
    for number in [place.id, place.family, place.position.unwrap_or_default().0, place.order] {
        out.extend(number.to_le_bytes());
    }
    out.extend(place.parent.to_le_bytes());
    out.extend([0; 4]);
    out.push(match place.state {
        PlaceState::Living => STATE_LIVING,
        PlaceState::Dying(_) => STATE_DYING,
        PlaceState::Gone => STATE_GONE,
    });
    out.push(root.map_or(0, |(_, height)| height));
    out.extend([0; 6]);
    if let Some((root, _)) = root {
        put_reference(&mut out, &root);
    }
    out
}

/// The root of a dying place's map, with its height; `None` where the entry cannot be one.
#[allow(clippy::option_option)] // Whether it can be read, and whether there is a root.
pub(super) fn root_of_place(value: &[u8]) -> Option<Option<(NodeReference, u8)>> {
    let mut from = Reader::new(value, 0);
    from.skip(40)?;
    let (state, height) = (from.u8()?, from.u8()?);
    from.skip(6)?;
    if state != STATE_DYING {
        return Some(None);
    }
    Some(Some((take_reference(&mut from)?, height)))
}

/// A place out of its entry; `None` where it cannot be one.
pub(super) fn decode_place(nodes: &Nodes, number: u64, value: &[u8]) -> Option<PlaceImage> {
    let mut from = Reader::new(value, 0);
    let (id, family) = (from.u64()?, from.u64()?);
    let (position, order) = (Position(from.u64()?), from.u64()?);
    let parent = from.u32()?;
    from.skip(4)?;
    let (state, height) = (from.u8()?, from.u8()?);
    from.skip(6)?;
    let state = match state {
        STATE_LIVING => PlaceState::Living,
        STATE_DYING => PlaceState::Dying(nodes.map(&take_reference(&mut from)?, height)),
        STATE_GONE => PlaceState::Gone,
        _ => return None,
    };
    Some(PlaceImage {
        number: u32::try_from(number).ok()?,
        id,
        family,
        position: (position != Position::ZERO).then_some(position),
        order,
        parent,
        state,
    })
}

/// The entries of files that changed: segments with their dead slots, node files with their length.
pub(super) fn files(
    space: &SpaceImage,
    grown: &BTreeMap<SegmentId, (u64, u32)>,
    gone: &BTreeSet<SegmentId>,
) -> Vec<Change> {
    let mut changes: BTreeMap<u64, Option<Vec<u8>>> = BTreeMap::new();
    for entry in &space.segments {
        let (dead_count, bits) = &space.dead[&entry.id];
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags = flag(entry.sealed, FLAG_SEALED) | flag(entry.thinned, FLAG_THINNED);
        let is_counted = entry.blocks != SegmentEntry::NOT_COUNTED;
        let told = FileNumbers {
            used: entry.used,
            most: entry.slots_count,
            nonce: entry.nonce,
            dead: *dead_count,
            blocks: if is_counted { entry.blocks } else { 0 },
            given_back: entry.given_back,
        };
        let flags = flags | flag(is_counted, FLAG_COUNTED);
        changes.insert(entry.id.0, Some(encode_file(FILE_SEGMENT, flags, entry.id, &told, bits)));
    }
    for (id, (nonce, units)) in grown {
        let told =
            FileNumbers { used: *units, most: UNITS_MAX, nonce: *nonce, ..Default::default() };
        changes.insert(id.0, Some(encode_file(FILE_NODES, 0, *id, &told, &[])));
    }
    changes.extend(space.dropped.iter().chain(gone).map(|id| (id.0, None)));
    changes.into_iter().collect()
}

#[derive(Default)]
struct FileNumbers {
    used: u32,
    most: u32,
    nonce: u64,
    dead: u32,
    blocks: u32,
    given_back: u32,
}

fn encode_file(kind: u8, flags: u8, id: SegmentId, told: &FileNumbers, bits: &[u64]) -> Vec<u8> {
    let mut bitmap: Vec<u8> = bits.iter().flat_map(|word| word.to_le_bytes()).collect();
    bitmap.truncate(bitmap.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
    let mut out = Vec::with_capacity(48 + bitmap.len());
    out.extend([kind, flags]);
    // Location and section: the first file of its id.
    out.extend([0; 6]);
    out.extend(id.0.to_le_bytes());
    out.extend(told.used.to_le_bytes());
    out.extend(told.most.to_le_bytes());
    out.extend(told.nonce.to_le_bytes());
    out.extend(told.dead.to_le_bytes());
    out.extend(u32::try_from(bitmap.len()).expect("at most 8 KiB").to_le_bytes());
    out.extend(told.blocks.to_le_bytes());
    out.extend(told.given_back.to_le_bytes());
    out.extend(bitmap);
    out
}

/// An entry of the file table.
pub(super) enum FileEntry {
    /// And its dead slots.
    Segment(SegmentEntry, Vec<u64>),
    /// A file of nodes, and units of it in use.
    Nodes(SegmentId, u32),
}

/// A file out of its entry; `None` where it cannot be one.
pub(super) fn decode_file(key: u64, value: &[u8]) -> Option<FileEntry> {
    let mut from = Reader::new(value, 0);
    let (kind, flags) = (from.u8()?, from.u8()?);
    from.skip(6)?;
    let (file, used, slots_count) = (from.u64()?, from.u32()?, from.u32()?);
    let (nonce, _dead_count, bitmap_bytes) = (from.u64()?, from.u32()?, from.u32()?);
    let (blocks, given_back) = (from.u32()?, from.u32()?);
    let bitmap = from.take(usize::try_from(bitmap_bytes).ok()?)?;
    let id = SegmentId(key);
    if file != key {
        return None;
    }
    match kind {
        FILE_SEGMENT => {
            let word = |bytes: &[u8]| {
                bytes.iter().rev().fold(0u64, |word, byte| (word << 8) | u64::from(*byte))
            };
            let bits = bitmap.chunks(8).map(word).collect();
            let sealed = flags & FLAG_SEALED != 0;
            let blocks = if flags & FLAG_COUNTED == 0 { SegmentEntry::NOT_COUNTED } else { blocks };
            let thinned = flags & FLAG_THINNED != 0;
            let entry =
                SegmentEntry { id, sealed, used, slots_count, nonce, blocks, thinned, given_back };
            Some(FileEntry::Segment(entry, bits))
        }
        FILE_NODES => Some(FileEntry::Nodes(id, used)),
        _ => None,
    }
}
