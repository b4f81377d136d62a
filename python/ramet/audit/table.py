"""The file table, held against the files: docs/internals/format.md, "File table", I17 and I18.

Memory: the bitmaps of dead slots, a bit for each slot of the log.
"""

import struct
from typing import NamedTuple

import numpy as np

from ramet.audit.log import Log, Segment
from ramet.audit.nodes import NodeFiles
from ramet.audit.report import Place, Report
from ramet.audit.slots import Bits, bits_bytes
from ramet.audit.structures import (
    SLOT_BITS,
    SLOTS_MAX,
    UNIT_BYTES,
    UNITS_MAX,
    Commit,
    MalformedError,
)

SEGMENT, NODES = 1, 2
SEALED, THINNED, COUNTED = 1, 16, 32
_ENTRY = struct.Struct("<BBHIQIIQIIII")


class FileEntry(NamedTuple):
    """What the file table says of one file."""

    kind: int
    flags: int
    file: int
    used: int
    room: int
    nonce: int
    dead_count: int
    bitmap: bytes
    blocks_count: int
    given_back_count: int

    @property
    def sealed(self) -> bool:
        """Whether it is a segment that is sealed."""
        return bool(self.flags & SEALED)

    @property
    def thinned(self) -> bool:
        """Whether what is dead in it may be gone."""
        return bool(self.flags & THINNED)


def decode_entry(key: int, value: bytes) -> FileEntry:
    """Take an entry apart and hold it against itself.

    Raises: MalformedError.
    """
    if len(value) < _ENTRY.size:
        raise MalformedError(f"an entry of {len(value)} bytes")
    fields = _ENTRY.unpack_from(value)
    kind, flags, location, section, file, used, room, nonce, dead, bitmap_bytes = fields[:10]
    blocks, given_back = fields[10:]
    bitmap = value[_ENTRY.size :]
    if kind not in (SEGMENT, NODES) or flags & ~(SEALED | THINNED | COUNTED):
        raise MalformedError(f"a file of kind {kind} with flags {flags:#x}")
    if location or section or file != key or used > room or room > SLOTS_MAX:
        raise MalformedError(f"file {file:012x} in the entry of {key:012x}, {used} of {room} used")
    bits = sum(byte.bit_count() for byte in bitmap)
    if len(bitmap) != bitmap_bytes or dead != bits or bitmap[-1:] == b"\0":
        raise MalformedError(f"{dead} dead slots and {bits} bits in {bitmap_bytes} bytes")
    if bitmap_bytes > bits_bytes(room) or (kind == NODES and (bitmap or flags)):
        raise MalformedError(f"a bitmap of {bitmap_bytes} bytes for {room} slots")
    if used == 0 and (blocks or given_back or flags & (SEALED | THINNED)):
        raise MalformedError(f"{blocks} blocks in a segment that is appended to")
    if given_back and not flags & THINNED:
        raise MalformedError(f"{given_back} slots were given back of what is not thinned")
    if flags & COUNTED and max(dead, blocks, given_back) > max(used, dead if not used else 0):
        raise MalformedError(f"{blocks} blocks, {dead} dead, {given_back} gone, {used} slots")
    if flags & COUNTED and used and dead > blocks:
        raise MalformedError(f"{dead} of {blocks} blocks are dead")
    return FileEntry(kind, flags, file, used, room, nonce, dead, bitmap, blocks, given_back)


class FileTable:
    """The entries of one checkpoint."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.entries: dict[int, FileEntry] = {}
        self.bad_keys: set[int] = set()

    def take(self, key: int, value: bytes) -> None:
        """Take an entry of the tree."""
        try:
            self.entries[key] = decode_entry(key, value)
        except MalformedError as error:
            self.bad_keys.add(key)
            self._bad(key, str(error), Place("tables"))

    def _bad(self, key: int, text: str, place: Place) -> None:
        self.report.add("file_table", f"in the file table, of file {key:012x}: {text}", place)

    def dead(self) -> dict[int, Bits]:
        """Give the bitmap of dead slots of each segment that has one."""
        return {
            key: np.frombuffer(it.bitmap.ljust(bits_bytes(it.room), b"\0"), dtype=np.uint8)
            for key, it in self.entries.items()
            if it.kind == SEGMENT and it.bitmap
        }

    def hold_segments(self, log: Log, commit: Commit) -> None:
        """Hold the entries against the segments."""
        cut = commit.cut_position >> SLOT_BITS
        for segment in log.segments:
            entry = self.entries.get(segment.id)
            if entry is not None:
                self._hold_segment(segment, entry)
            elif segment.id <= cut and segment.id not in self.bad_keys:
                self._bad(segment.id, "there is no entry", segment.place(0))
        for key, entry in self.entries.items():
            name = f"{key:012x}.seg"
            if entry.kind == SEGMENT and log.find(key) is None:
                gone = "missing" if name not in log.names else "not a part of the log"
                self._bad(key, f"the segment is {gone}", Place(f"segments/{name}"))

    def _hold_segment(self, segment: Segment, entry: FileEntry) -> None:
        header = segment.header
        told = (entry.kind, entry.room, entry.nonce)
        if told != (SEGMENT, header.slots_count, header.nonce):
            self._bad(segment.id, "kind, slots or nonce are not its header's", segment.place(0))
        if entry.sealed and not segment.sealed:
            text = "it is sealed, but no whole footer is there"
            self._bad(segment.id, text, segment.place(segment.end_slot))
        if (entry.sealed or entry.used) and entry.used != segment.end_slot:
            text = f"{entry.used} slots are used, but its batches end at slot {segment.end_slot}"
            self._bad(segment.id, text, segment.place(segment.end_slot))
        counted = entry.used and entry.flags & COUNTED and not entry.thinned
        if counted and entry.blocks_count != segment.blocks_count:
            text = f"{entry.blocks_count} slots hold blocks, but its batches have"
            self._bad(segment.id, f"{text} {segment.blocks_count}", segment.place(0))

    def hold_nodes(self, nodes: NodeFiles, reached: dict[int, int]) -> None:
        """Hold the entries against the node files; `reached`: each file's highest unit."""
        for file_id, unit in reached.items():
            entry = self.entries.get(file_id)
            end = nodes.ends.get(file_id, unit + 1)
            place = nodes.place(file_id << SLOT_BITS, False)
            if file_id in self.bad_keys:
                continue
            if entry is None or entry.kind != NODES:
                self._bad(file_id, "there is no entry for this node file", place)
            elif end > entry.used:
                text = f"{entry.used} units are used, but a node ends at unit {end}"
                self._bad(file_id, text, place._replace(offset_bytes=entry.used * UNIT_BYTES))
        for file_id, entry in self.entries.items():
            if entry.kind != NODES:
                continue
            header = nodes.header(file_id, False)
            if header is not None and (header.nonce, UNITS_MAX) != (entry.nonce, entry.room):
                place = nodes.place(file_id << SLOT_BITS, False)
                self._bad(file_id, "nonce or units are not its header's", place)
