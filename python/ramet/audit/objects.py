"""Objects and places as the trees and the records say them.

Pure. Docs: docs/internals/format.md, "Records" and "Trees". Invariant: whatever the bytes, the
result is a structure whose values have the right length, or `MalformedError`.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from ramet.audit.structures import (
    REFERENCE_BYTES,
    VERSION,
    MalformedError,
    Reference,
    decode_reference,
)

ITEMS_MAX = 65_536
NAME_BYTES_MAX = 255
ATTRIBUTES_BYTES_MAX = 64 << 10
VOLUME, SNAPSHOT = 1, 2
STATE_LIVE, STATE_RECEIVING, STATE_TRASHED = 1, 2, 3
EPOCH_SHIFT = 28  # Of an object's id: its epoch lies above the ordinal.
LIVING, DYING, GONE = 1, 2, 3  # Of places.
GOVERNANCE, COMPLIANCE = 1, 2  # Modes of locks.
MAP_HEIGHT_MAX = 9  # 2^64 blocks.
_RECORD = struct.Struct("<4sHHII")
_FIELD = struct.Struct("<HHI")
_PLACE = struct.Struct("<QQQQIIBB6s")


class Tag(IntEnum):
    """A field of an item or an object."""

    ID = 1
    UUID = 2
    NAME = 3
    KIND = 4
    SIZE = 5
    STATE = 6
    BATCH = 7
    CREATED = 8
    PARENT = 9
    ORIGIN_OBJECT = 10
    ORIGIN_LOG = 11
    ORIGIN_POSITION = 12
    SERIAL = 13
    LOCK_MODE = 14
    LOCK_UNTIL = 15
    DELETE_AFTER = 16
    ATTRIBUTES = 17
    LOCK_FIRM = 18
    LOCK_CLOCK = 19
    LOCK_DAY = 20
    SOURCE = 32
    INSTANT = 33
    MAP = 40
    PLACE = 41


class Verb(IntEnum):
    """What a record does."""

    CREATE = 1
    SNAPSHOT = 2
    CLONE = 3
    REVERT = 4
    RENAME = 5
    DELETE = 6
    FREEZE = 7
    RESIZE = 8
    ATTRIBUTES = 9
    ADMIT = 10
    LOCK = 11
    UNLOCK = 12
    TRASH = 13
    RESTORE = 14


_LOCK_TAGS = (Tag.LOCK_MODE, Tag.LOCK_UNTIL, Tag.LOCK_FIRM, Tag.LOCK_CLOCK, Tag.LOCK_DAY)
_LENGTHS = {
    Tag.UUID: 16,
    Tag.BATCH: 16,
    Tag.ORIGIN_OBJECT: 16,
    Tag.ORIGIN_LOG: 16,
    Tag.KIND: 1,
    Tag.STATE: 1,
    Tag.MAP: REFERENCE_BYTES + 1,
}
_BYTES = {Tag.NAME, Tag.ATTRIBUTES}

Fields = dict[int, bytes]


class Lock(NamedTuple):
    """A lock, over or not."""

    mode: int
    until_ns: int
    firm_ns: int
    """Up to here it can be taken back."""
    clock_ns: int
    """When it was set."""
    day_ns: int


@dataclass(slots=True)
class Object:
    """A volume or a snapshot."""

    id: int
    uuid: bytes
    name: str
    """Empty: it is being received. In the trash: the name it had."""
    kind: int
    size_bytes: int
    place: int
    map: bytes
    """The reference to its root and the height; empty: it maps nothing."""
    lock: Lock | None = None
    delete_after_ns: int = 0
    """The lock clock from which on it may go; 0: it is not in the trash."""

    @property
    def blocks_count(self) -> int:
        """The blocks that it has."""
        return -(-self.size_bytes // 4096)

    @property
    def root(self) -> tuple[Reference, int] | None:
        """The root of its map, and its height."""
        return (decode_reference(self.map, 0), self.map[-1]) if self.map else None


class PlaceNode(NamedTuple):
    """A place in the tree of lineage."""

    id: int
    family: int
    position: int
    dying_order: int
    parent: int
    state: int
    root: Reference | None
    height: int


def decode_fields(content: bytes) -> Fields:
    """Take the fields of an item apart.

    Raises: MalformedError.
    """
    fields: Fields = {}
    at = 0
    while at < len(content):
        if at + _FIELD.size > len(content):
            raise MalformedError("it ends inside a field")
        tag, zero, length = _FIELD.unpack_from(content, at)
        at += _FIELD.size
        value = content[at : at + length]
        at += length
        if len(value) != length:
            raise MalformedError("it ends inside a field's value")
        if zero or tag in fields:
            raise MalformedError(f"field {tag} is there twice, or its zeros are not")
        if tag in Tag.__members__.values():
            if tag not in _BYTES and length != _LENGTHS.get(Tag(tag), 8):
                raise MalformedError(f"field {tag} has {length} bytes")
            if tag != Tag.MAP and not any(value):
                raise MalformedError(f"field {tag} is there without a value")
        fields[tag] = value
    if Tag.ID not in fields:
        raise MalformedError("it has no id")
    return fields


def number(fields: Fields, tag: Tag) -> int:
    """Give a field's number; 0 where it is left out."""
    return int.from_bytes(fields.get(tag, b""), "little")


def decode_lock(fields: Fields) -> Lock | None:
    """Give the lock of an object or of a record's item; None: it has none.

    Raises: MalformedError where it cannot be one.
    """
    if not any(tag in fields for tag in _LOCK_TAGS):
        return None
    lock = Lock(*(number(fields, tag) for tag in _LOCK_TAGS))
    if lock.mode not in (GOVERNANCE, COMPLIANCE) or lock.until_ns <= lock.clock_ns:
        raise MalformedError(
            f"a lock of mode {lock.mode} from {lock.clock_ns} to {lock.until_ns} ns"
        )
    if lock.mode == COMPLIANCE and lock.day_ns:
        raise MalformedError("a compliance lock with a time of day")
    return lock


def decode_record(content: bytes) -> tuple[int, list[Fields]]:
    """Give a record's verb and items.

    Raises: MalformedError.
    """
    if len(content) < _RECORD.size:
        raise MalformedError("a record is too short")
    magic, version, verb, items_count, zero = _RECORD.unpack_from(content)
    if magic != b"RREC" or version != VERSION or zero or items_count > ITEMS_MAX:
        raise MalformedError("a record's head is wrong")
    if verb not in Verb.__members__.values():
        raise MalformedError(f"a record's verb {verb} is not known here")
    items = list(_items(content))
    if len(items) != items_count:
        raise MalformedError(f"a record of {items_count} items has {len(items)}")
    return verb, items


def _items(content: bytes) -> Iterator[Fields]:
    at = _RECORD.size
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "little")
        at += 4
        if at + length > len(content):
            raise MalformedError("a record ends inside an item")
        yield decode_fields(content[at : at + length])
        at += length


def decode_object(fields: Fields) -> Object:
    """Make an object of its fields.

    Raises: MalformedError where it cannot be one.
    """
    kind, state = number(fields, Tag.KIND), number(fields, Tag.STATE)
    if (kind, state) not in (
        (VOLUME, STATE_LIVE),
        (SNAPSHOT, STATE_LIVE),
        (VOLUME, STATE_RECEIVING),
        (VOLUME, STATE_TRASHED),
        (SNAPSHOT, STATE_TRASHED),
    ):
        raise MalformedError(f"an object of kind {kind}, state {state}")
    if (state == STATE_RECEIVING) == (Tag.NAME in fields):
        raise MalformedError(f"an object of state {state} with or without a name")
    if (state == STATE_TRASHED) != (Tag.DELETE_AFTER in fields):
        raise MalformedError(f"an object of state {state} with or without a time to go")
    if Tag.UUID not in fields or number(fields, Tag.SIZE) == 0:
        raise MalformedError("an object without UUID or size")
    if len(fields.get(Tag.ATTRIBUTES, b"")) > ATTRIBUTES_BYTES_MAX:
        raise MalformedError("an object's attributes are too long")
    lock = decode_lock(fields)
    if lock and kind != SNAPSHOT:
        raise MalformedError("a volume with a lock")
    root = fields.get(Tag.MAP, b"")
    if root and root[-1] > MAP_HEIGHT_MAX:
        raise MalformedError(f"a map of height {root[-1]}")
    return Object(
        number(fields, Tag.ID),
        fields[Tag.UUID],
        decode_name(fields[Tag.NAME]) if Tag.NAME in fields else "",
        kind,
        number(fields, Tag.SIZE),
        number(fields, Tag.PLACE),
        root,
        lock,
        number(fields, Tag.DELETE_AFTER),
    )


def decode_name(value: bytes) -> str:
    """Give a name as text.

    Raises: MalformedError.
    """
    if not 1 <= len(value) <= NAME_BYTES_MAX:
        raise MalformedError(f"a name of {len(value)} bytes")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise MalformedError(f"a name is not UTF-8: {value!r}") from error


def decode_place(value: bytes) -> PlaceNode:
    """Take a place of the tree of lineage apart.

    Raises: MalformedError.
    """
    if len(value) not in (_PLACE.size, _PLACE.size + REFERENCE_BYTES):
        raise MalformedError(f"a place of {len(value)} bytes")
    fields = _PLACE.unpack_from(value)
    place_id, family, position, order, parent, zero, state, height, zeros = fields
    dying = len(value) > _PLACE.size
    if state not in (LIVING, DYING, GONE) or dying != (state == DYING) or zero or any(zeros):
        raise MalformedError(f"a place of state {state} and {len(value)} bytes")
    if (not dying and (height or order)) or height > MAP_HEIGHT_MAX:
        raise MalformedError(f"a place of state {state}, height {height}, order {order}")
    root = decode_reference(value, _PLACE.size) if dying else None
    return PlaceNode(place_id, family, position, order, parent, state, root, height)
