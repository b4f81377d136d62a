"""Change a pool's bytes as a bug of the engine would: with every checksum right.

Written from docs/internals/format.md. Invariant: but for what was asked for, nothing changes.
"""

import struct
from collections.abc import Callable
from pathlib import Path

from ramet.audit.checksums import block_crc, node_crc, page_crc

BLOCK_BYTES = 4096
UNIT_BYTES = 64
OBJECTS, LINEAGE, FILES = 1, 2, 3  # Kinds of roots.
RECORD = 4  # A kind of entry.
Change = Callable[[bytearray], object]


def word(content: bytes | bytearray, at: int) -> int:
    """Give the number of eight bytes at `at`."""
    return int.from_bytes(content[at : at + 8], "little")


def put(content: bytearray, at: int, value: int, length: int = 8) -> None:
    """Put a number at `at`."""
    content[at : at + length] = value.to_bytes(length, "little")


def seed_of(path: Path) -> int:
    """Give the pool's seed."""
    return word((path / "pool").read_bytes(), 40)


def seal(page: bytearray, at: int, nonce: int, place: int) -> None:
    """Make the checksum right that a page holds at `at`."""
    put(page, at, page_crc(bytes(page), at, nonce, place), 4)


def forge_page(file: Path, start: int, change: Change, at: int, place: int | None = None) -> None:
    """Change a page of a segment; its checksum is at `at`, made for `place`; None: the segment."""
    content = bytearray(file.read_bytes())
    nonce, segment = word(content, 64), word(content, 72)
    page = content[start : start + BLOCK_BYTES]
    change(page)
    seal(page, at, nonce, segment if place is None else place)
    content[start : start + BLOCK_BYTES] = page
    file.write_bytes(content)


def newest_slot(superblock: bytes | bytearray) -> int:
    """Give where the newer slot begins."""
    return max((0, BLOCK_BYTES), key=lambda at: word(superblock, at + 24))


def forge_commit(path: Path, change: Change) -> None:
    """Change the newer slot of the superblock."""
    superblock = bytearray((path / "superblock").read_bytes())
    slot = newest_slot(superblock)
    page = superblock[slot : slot + BLOCK_BYTES]
    change(page)
    seal(page, 16, seed_of(path), 0)
    superblock[slot : slot + BLOCK_BYTES] = page
    (path / "superblock").write_bytes(superblock)


def forge_tree(path: Path, kind: int, change: Change) -> None:
    """Change the root node, a leaf, of one of the trees that the newer slot names."""

    def change_root(page: bytearray) -> None:
        roots = range(256, 256 + 56 * page[20], 56)
        root = next(at + 8 for at in roots if page[at] == kind)
        address, _, length = struct.unpack_from("<QQI", page, root)
        folder, suffix = ("tables", "tab") if kind == FILES else ("nodes", "map")
        file = path / folder / f"{address >> 16:012x}.{suffix}"
        content = bytearray(file.read_bytes())
        start = (address & 0xFFFF) * UNIT_BYTES
        node = content[start : start + length]
        change(node)
        assert len(node) == length
        content[start : start + length] = node
        file.write_bytes(content)
        put(page, root + 20, node_crc(seed_of(path), address, bytes(node)), 4)

    forge_commit(path, change_root)


def entries_of(node: bytes | bytearray) -> list[tuple[int, int]]:
    """Give the keys of a tree's leaf, and where their values begin."""
    found, at = [], 16
    while at < len(node):
        found.append((word(node, at), at + 12))
        at += 12 + int.from_bytes(node[at + 8 : at + 12], "little")
    return found


def field_at(content: bytes | bytearray, tag: int, start: int = 0) -> int:
    """Give where the value of the next field with this tag begins, behind `start`."""
    heads = (struct.pack("<HHI", tag, 0, length) for length in range(1, 256))
    found = [at for at in (content.find(head, start) for head in heads) if at >= 0]
    return min(found) + 8


def batches_of(segment: bytes | bytearray) -> list[int]:
    """Give the slots of the headers of a segment's batches."""
    found, slot = [], 1
    while segment[slot * BLOCK_BYTES :][:4] == b"RBAT":
        found.append(slot)
        slot += int.from_bytes(segment[slot * BLOCK_BYTES + 32 :][:4], "little")
    return found


def batches_with(file: Path, kind: int, verb: int = 0) -> list[int]:
    """Give the slots of batches whose first entry is of a kind; `verb`: of records with it."""
    content = file.read_bytes()

    def fits(slot: int) -> bool:
        at = slot * BLOCK_BYTES
        told = int.from_bytes(content[at + BLOCK_BYTES + 6 :][:2], "little")
        return content[at + 64] == kind and verb in (0, told)

    return [slot for slot in batches_of(content) if fits(slot)]


def forge_batch(file: Path, slot: int, change: Change) -> None:
    """Change the header of a batch."""
    segment = word(file.read_bytes(), 72)
    forge_page(file, slot * BLOCK_BYTES, change, 12, segment << 16 | slot)


def forge_record(path: Path, file: Path, slot: int, change: Change) -> None:
    """Change a record, whose batch's header is in `slot`."""
    content = bytearray(file.read_bytes())
    at = (slot + 1) * BLOCK_BYTES
    end = at + BLOCK_BYTES * word(content, slot * BLOCK_BYTES + 64 + 24)
    payload = content[at:end]
    change(payload)
    assert len(payload) == end - at
    content[at:end] = payload
    file.write_bytes(content)
    crc = block_crc(bytes(payload), seed_of(path), word(content, 72), slot + 1, 0)
    forge_batch(file, slot, lambda header: put(header, 96, crc, 4))
