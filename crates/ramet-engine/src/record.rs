//! Commands as bytes in the log: length-prefixed typed fields.
//!
//! Pure. Fields that are not known here are kept with the object they belong to, and written again
//! with it. See docs/internals/format.md, "Records".

use crate::object::{ObjectFields, ObjectKind, State};
use ramet_log::format::Reader;
use ramet_log::format::node::{REFERENCE_BYTES, put_reference, take_reference};
use ramet_log::format::superblock::NodeReference;
use ramet_log::{ObjectId, Position};
use uuid::Uuid;

const MAGIC: [u8; 4] = *b"RREC";
const VERSION: u16 = 1;
/// Objects one command may name.
pub const OBJECTS_MAX: usize = 65_536;

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Verb {
    /// New, empty volumes.
    Create = 1,
    /// One instant of several volumes.
    Snapshot = 2,
    /// New volumes that start as another object.
    Clone = 3,
    /// A volume takes a snapshot's content.
    Revert = 4,
    /// Another name.
    Rename = 5,
    /// Objects end.
    Delete = 6,
    /// Volumes become snapshots.
    Freeze = 7,
    /// Another size; a smaller one trims.
    Resize = 8,
    /// Other attributes.
    Attributes = 9,
    /// Volumes that are being received become snapshots with a name.
    Admit = 10,
    /// Snapshots are locked, or their locks are made longer.
    Lock = 11,
    /// Snapshots are not locked any more.
    Unlock = 12,
    /// Objects are in the trash from here on.
    Trash = 13,
    /// What was in the trash is there again.
    Restore = 14,
}

/// Tags of fields. A number is never used for something else.
mod tag {
    pub const ID: u16 = 1;
    pub const UUID: u16 = 2;
    pub const NAME: u16 = 3;
    pub const KIND: u16 = 4;
    pub const SIZE: u16 = 5;
    pub const STATE: u16 = 6;
    pub const BATCH: u16 = 7;
    pub const CREATED: u16 = 8;
    pub const PARENT: u16 = 9;
    pub const ORIGIN_OBJECT: u16 = 10;
    pub const ORIGIN_LOG: u16 = 11;
    pub const ORIGIN_POSITION: u16 = 12;
    pub const SERIAL: u16 = 13;
    pub const LOCK_MODE: u16 = 14;
    pub const LOCK_UNTIL: u16 = 15;
    pub const DELETE_AFTER: u16 = 16;
    pub const ATTRIBUTES: u16 = 17;
    pub const LOCK_FIRM: u16 = 18;
    pub const LOCK_CLOCK: u16 = 19;
    pub const LOCK_DAY: u16 = 20;
    /// The object a command takes its content from.
    pub const SOURCE: u16 = 32;
    /// The nameless instant that a clone straight from a volume makes.
    pub const INSTANT: u16 = 33;
    /// In checkpoints: the map's root.
    pub const ROOT: u16 = 40;
    /// In checkpoints: the place in the tree of lineage.
    pub const PLACE: u16 = 41;
}

/// One object of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Item {
    /// The object as it is after the command; only the id where nothing else is said.
    pub object: ObjectFields,
    /// Whose content it takes.
    pub source: ObjectId,
    /// See `tag::INSTANT`.
    pub instant: ObjectId,
    /// Where its map's root is, and the root's height: in a checkpoint.
    pub root: Option<(NodeReference, u8)>,
    /// Its place in the tree of lineage: in a checkpoint.
    pub place: u64,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it does.
    pub verb: Verb,
    /// Its objects, in order.
    pub items: Vec<Item>,
}

impl Record {
    /// The bytes for the log.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + self.items.len() * 192);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((self.verb as u16).to_le_bytes());
        out.extend(u32::try_from(self.items.len()).expect("bounded by OBJECTS_MAX").to_le_bytes());
        out.extend([0; 4]);
        for item in &self.items {
            let at = out.len();
            out.extend([0; 4]);
            item.encode(&mut out);
            let length = u32::try_from(out.len() - at - 4).expect("fields are small");
            out[at..at + 4].copy_from_slice(&length.to_le_bytes());
        }
        out
    }

    /// Read a record's bytes.
    ///
    /// # Errors
    /// A text that says what is wrong; the bytes verified, so it is a bug or a later version.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let mut from = Fields(bytes);
        if from.take(4)? != MAGIC || from.u16()? != VERSION {
            return Err("a record of an unknown version".into());
        }
        let verb = match from.u16()? {
            1 => Verb::Create,
            2 => Verb::Snapshot,
            3 => Verb::Clone,
            4 => Verb::Revert,
            5 => Verb::Rename,
            6 => Verb::Delete,
            7 => Verb::Freeze,
            8 => Verb::Resize,
            9 => Verb::Attributes,
            10 => Verb::Admit,
            11 => Verb::Lock,
            12 => Verb::Unlock,
            13 => Verb::Trash,
            14 => Verb::Restore,
            other => return Err(format!("a record of unknown kind {other}")),
        };
        let count = from.u32()?;
        from.take(4)?;
        let mut items = Vec::new();
        for _ in 0..count {
            let length = from.u32()?;
            items.push(Item::decode(from.take(length as usize)?)?);
        }
        Ok(Record { verb, items })
    }
}

fn put(out: &mut Vec<u8>, tag: u16, value: &[u8]) {
    out.extend(tag.to_le_bytes());
    out.extend([0; 2]);
    out.extend(u32::try_from(value.len()).expect("fields are small").to_le_bytes());
    out.extend(value);
}

fn put_u64(out: &mut Vec<u8>, tag: u16, value: u64) {
    if value != 0 {
        put(out, tag, &value.to_le_bytes());
    }
}

fn put_uuid(out: &mut Vec<u8>, tag: u16, value: Uuid) {
    if !value.is_nil() {
        put(out, tag, value.as_bytes());
    }
}

impl Item {
    /// The fields of an item.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let object = &self.object;
        put_u64(out, tag::ID, object.id.0);
        put_u64(out, tag::SOURCE, self.source.0);
        put_u64(out, tag::INSTANT, self.instant.0);
        if !object.name.is_empty() {
            put(out, tag::NAME, object.name.as_bytes());
        }
        put_u64(out, tag::SIZE, object.size_bytes);
        if let Some(kind) = object.kind {
            put_uuid(out, tag::UUID, object.uuid);
            put(out, tag::KIND, &[kind as u8]);
            put(out, tag::STATE, &[object.state as u8]);
            put_uuid(out, tag::BATCH, object.batch);
            put_u64(out, tag::CREATED, object.created_ns);
            put_u64(out, tag::PARENT, object.parent.0);
            put_uuid(out, tag::ORIGIN_OBJECT, object.origin_object);
            put_uuid(out, tag::ORIGIN_LOG, object.origin_log);
            put_u64(out, tag::ORIGIN_POSITION, object.origin_position.0);
            put_u64(out, tag::SERIAL, object.serial);
        }
        put_u64(out, tag::DELETE_AFTER, object.delete_after_ns);
        put_u64(out, tag::LOCK_MODE, u64::from(object.lock_mode));
        put_u64(out, tag::LOCK_UNTIL, object.lock_until_ns);
        put_u64(out, tag::LOCK_FIRM, object.lock_firm_ns);
        put_u64(out, tag::LOCK_CLOCK, object.lock_clock_ns);
        put_u64(out, tag::LOCK_DAY, object.lock_day_ns);
        if !object.attributes.is_empty() {
            put(out, tag::ATTRIBUTES, &object.attributes);
        }
        if let Some((root, height)) = &self.root {
            let mut value = Vec::with_capacity(REFERENCE_BYTES + 1);
            put_reference(&mut value, root);
            value.push(*height);
            put(out, tag::ROOT, &value);
        }
        put_u64(out, tag::PLACE, self.place);
        out.extend(&object.unknown);
    }

    /// Read the fields of an item.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let mut item = Item::default();
        let mut from = Fields(bytes);
        while !from.0.is_empty() {
            let whole = from.0;
            let tag = from.u16()?;
            from.take(2)?;
            let length = from.u32()? as usize;
            let value = from.take(length)?;
            if !item.take(tag, value)? {
                item.object.unknown.extend(&whole[..8 + length]);
            }
        }
        if item.object.id == ObjectId(0) {
            return Err("a record's item without an id".into());
        }
        Ok(item)
    }

    /// Take one field; false where it is not known here.
    fn take(&mut self, tag: u16, value: &[u8]) -> Result<bool, String> {
        let number = || Fields(value).u64();
        let uuid = || Uuid::from_slice(value).map_err(|_| "a UUID of another length".to_string());
        let object = &mut self.object;
        match tag {
            tag::ID => object.id = ObjectId(number()?),
            tag::SOURCE => self.source = ObjectId(number()?),
            tag::INSTANT => self.instant = ObjectId(number()?),
            tag::UUID => object.uuid = uuid()?,
            tag::NAME => {
                object.name =
                    String::from_utf8(value.to_vec()).map_err(|_| "a name that is not UTF-8")?
            }
            tag::KIND => object.kind = Some(ObjectKind::from_raw(value)?),
            tag::SIZE => object.size_bytes = number()?,
            tag::STATE => object.state = State::from_raw(value)?,
            tag::BATCH => object.batch = uuid()?,
            tag::CREATED => object.created_ns = number()?,
            tag::PARENT => object.parent = ObjectId(number()?),
            tag::ORIGIN_OBJECT => object.origin_object = uuid()?,
            tag::ORIGIN_LOG => object.origin_log = uuid()?,
            tag::ORIGIN_POSITION => object.origin_position = Position(number()?),
            tag::SERIAL => object.serial = number()?,
            tag::LOCK_MODE => {
                object.lock_mode = u8::try_from(number()?).map_err(|_| "an unknown lock mode")?
            }
            tag::LOCK_UNTIL => object.lock_until_ns = number()?,
            tag::LOCK_FIRM => object.lock_firm_ns = number()?,
            tag::LOCK_CLOCK => object.lock_clock_ns = number()?,
            tag::LOCK_DAY => object.lock_day_ns = number()?,
            tag::DELETE_AFTER => object.delete_after_ns = number()?,
            tag::ATTRIBUTES => object.attributes = value.to_vec(),
            tag::ROOT => {
                let root = take_reference(&mut Reader::new(value, 0));
                let root = root.ok_or("a root that ends early")?;
                self.root = Some((root, Fields(&value[REFERENCE_BYTES..]).u8()?));
            }
            tag::PLACE => self.place = number()?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (part, rest) = self.0.split_at_checked(count).ok_or("a record that ends early")?;
        self.0 = rest;
        Ok(part)
    }

    fn u8(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, String> {
        Ok(u16::from_le_bytes(self.take(2)?.try_into().expect("two bytes")))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_reads_back_and_keeps_unknown_fields() {
        let mut object = ObjectFields {
            id: ObjectId(5),
            name: "db".into(),
            kind: Some(ObjectKind::Volume),
            ..ObjectFields::default()
        };
        object.size_bytes = 4096;
        put(&mut object.unknown, 999, b"later");
        let item = Item { object, source: ObjectId(3), instant: ObjectId(4), ..Item::default() };
        let record = Record { verb: Verb::Clone, items: vec![item] };
        assert_eq!(Record::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn fields_without_a_value_take_no_bytes() {
        // `ramet check` holds records to it: an origin of zeros was once written for every volume.
        let made = |origin_object| {
            let object = ObjectFields {
                id: ObjectId(5),
                uuid: Uuid::from_u128(9),
                kind: Some(ObjectKind::Volume),
                origin_object,
                ..ObjectFields::default()
            };
            Record { verb: Verb::Create, items: vec![Item { object, ..Item::default() }] }
        };
        let bytes = made(Uuid::nil()).encode();
        assert_eq!(made(Uuid::from_u128(7)).encode().len() - bytes.len(), 8 + 16);
        assert_eq!(Record::decode(&bytes), Ok(made(Uuid::nil())));
    }

    #[test]
    fn cut_records_are_errors() {
        let item = Item {
            object: ObjectFields { id: ObjectId(5), name: "db".into(), ..ObjectFields::default() },
            ..Item::default()
        };
        let bytes = Record { verb: Verb::Rename, items: vec![item] }.encode();
        for length in 0..bytes.len() {
            assert!(Record::decode(&bytes[..length]).is_err(), "{length} bytes");
        }
    }
}
