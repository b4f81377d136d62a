"""The structures on disk, decoded: docs/internals/format.md, sections 5 to 11.

Pure. Invariant: whatever the bytes, the result is a structure whose checksum, magic and bounds are
right, or `MalformedError` with a text that says what is wrong.
"""

import struct
from typing import NamedTuple

from ramet.audit.checksums import BLOCK_BYTES, page_crc

VERSION = 1
SLOTS_MAX = 1 << 16
COUNTER_BITS, SLOT_BITS = 12, 16
LEAF_BLOCKS = 512
OPENS, REUSED = 1, 2  # Flags of a segment.

KIND_WRITE, KIND_ZERO, KIND_TRIM, KIND_RECORD, KIND_MARK = 1, 2, 3, 4, 0x85
KINDS_OF_BLOCKS = {KIND_WRITE, KIND_ZERO, KIND_TRIM}
KINDS_KNOWN = KINDS_OF_BLOCKS | {KIND_RECORD, KIND_MARK}
KIND_SKIPPABLE = 0x80

REFERENCE_BYTES = 40
ROOT_BYTES = 56
ROOTS_AT = 256
ROOTS_MAX = (BLOCK_BYTES - ROOTS_AT) // ROOT_BYTES
ENTRIES_AT = 64
ENTRY_BYTES = 32
UNIT_BYTES = 64
UNITS_MAX = 1 << 16

# What follows the checksum at 16, from 20 on.
_DESCRIPTOR = struct.Struct("<I16sQQQ3Q")
_COMMIT = struct.Struct("<IQQ16s16s5QQQQ32s16s4Q")
_SEGMENT = struct.Struct("<IQ16s16s5QIIQQQ")
_NODE_FILE = struct.Struct("<IQ16s16sQQIIQQQ")
TRAILER = struct.Struct("<I8Q")
# Whole structures.
_REFERENCE = struct.Struct("<QQIIQQ")
_BATCH = struct.Struct("<4sIIIQQIHH")
_ENTRY = struct.Struct("<4Q")  # The kind with its seven zero bytes first.
COLUMN = struct.Struct("<4sIIIQQ")
JOURNAL = struct.Struct("<4sIIIQQ")
JOURNAL_BATCH = struct.Struct("<QQIII4x")


class MalformedError(Exception):
    """What was read is not the structure that should be there; the text says why."""


class ForeignError(MalformedError):
    """What was read is whole, and another pool's: it counts as not there."""


class Reference(NamedTuple):
    """A reference to a node."""

    address: int
    second_address: int
    length_bytes: int
    checksum: int
    newest: int
    below_count: int
    """Blocks mapped, or entries of a tree, at or below the node."""


class Descriptor(NamedTuple):
    """The file `pool`."""

    uuid: bytes
    seed: int
    segment_bytes: int
    features: tuple[int, int, int]
    """Compatible, read-only compatible, incompatible."""


class Commit(NamedTuple):
    """A slot of the superblock."""

    number: int
    number_before: int
    log: bytes
    incarnation: bytes
    epoch: int
    cut_position: int
    cut_sequence: int
    durable: int
    table_file: int
    lock_clock_ns: int
    boot: bytes
    """The machine's start when it was written; zeros: not known."""
    cooling_off_seconds: int
    has_lock_secret: bool
    confirmed_clock_ns: int
    confirmed_day_ns: int
    roots: dict[int, Reference]


class SegmentHeader(NamedTuple):
    """Slot 0 of a segment."""

    seed: int
    log: bytes
    incarnation: bytes
    nonce: int
    file: int
    segment: int
    slots_count: int
    previous: int
    opens: bool
    reused: bool
    """Whether the file was another segment's before: old bytes may lie behind what counts."""
    end_position: int
    end_sequence: int


class NodeFileHeader(NamedTuple):
    """The first page of a node or table file."""

    seed: int
    log: bytes
    nonce: int
    file: int
    section: int
    units_count: int


class Entry(NamedTuple):
    """An entry of a batch."""

    kind: int
    object: int
    first: int
    length: int
    """Blocks; of a record: slots."""

    @property
    def slots_count(self) -> int:
        """Slots of payload."""
        return self.length if self.kind in (KIND_WRITE, KIND_RECORD) else 0


class Batch(NamedTuple):
    """A batch's header."""

    sequence: int
    durable: int
    slots_count: int
    entries: list[Entry]
    entries_bytes: bytes
    """All entries, unknown ones included, as they lie there."""
    checksums: bytes
    """The checksums as they lie there, four bytes each."""
    odd: str = ""
    """Which of the bytes that are to be zeros are not; nothing reads them."""


class Trailer(NamedTuple):
    """The last page of a sealed segment."""

    slots_count: int
    first: int
    last: int
    durable: int
    checksums_at: int
    owners_at: int
    journal_at: int
    journal_bytes: int


def decode_descriptor(page: bytes) -> Descriptor:
    """Decode the file `pool`. Features not known here are the caller's to refuse.

    Raises: MalformedError.
    """
    _check_page(page, b"RAMETPOL", 0, 0)
    leaf_blocks, uuid, seed, segment_bytes, _, *features = _DESCRIPTOR.unpack_from(page, 20)
    _expect_zeros(page, 88, BLOCK_BYTES)
    in_range = 1 << 20 <= segment_bytes <= SLOTS_MAX * BLOCK_BYTES
    if segment_bytes % BLOCK_BYTES or not in_range:
        raise MalformedError(f"segments of {segment_bytes} bytes are out of range")
    if leaf_blocks != LEAF_BLOCKS:
        raise MalformedError(f"leaves of {leaf_blocks} blocks are not known here")
    return Descriptor(uuid, seed, segment_bytes, (features[0], features[1], features[2]))


def decode_commit(page: bytes, seed: int) -> Commit:
    """Decode a slot of the superblock.

    Raises: MalformedError.
    """
    _check_page(page, b"RAMETSUP", seed, 0)
    roots_count, *fields = _COMMIT.unpack_from(page, 20)
    if roots_count > ROOTS_MAX:
        raise MalformedError(f"it says that it has {roots_count} roots")
    number, before, log, incarnation, epoch, position, sequence, durable, table = fields[:9]
    clock, cooling_off, _, secret_hash, boot, _, confirmed_clock, confirmed_day, _ = fields[9:]
    roots: dict[int, Reference] = {}
    for index in range(roots_count):
        at = ROOTS_AT + index * ROOT_BYTES
        kind = int.from_bytes(page[at : at + 2], "little")
        if kind in roots:
            raise MalformedError(f"two roots are of kind {kind}")
        roots[kind] = decode_reference(page, at + 8)
        _expect_zeros(page, at + 2, at + 8)
        _expect_zeros(page, at + 48, at + ROOT_BYTES)
    _expect_zeros(page, 216, ROOTS_AT)
    _expect_zeros(page, ROOTS_AT + roots_count * ROOT_BYTES, BLOCK_BYTES)
    return Commit(
        number,
        before,
        log,
        incarnation,
        epoch,
        position,
        sequence,
        durable,
        table,
        clock,
        boot,
        cooling_off,
        any(secret_hash),
        confirmed_clock,
        confirmed_day,
        roots,
    )


def decode_reference(content: bytes, at: int) -> Reference:
    """Decode a reference, which has no checksum of its own.

    Raises: MalformedError where the content ends before it does.
    """
    if at + REFERENCE_BYTES > len(content):
        raise MalformedError("a reference is cut off")
    return Reference(*_REFERENCE.unpack_from(content, at))


def decode_segment_header(page: bytes) -> SegmentHeader:
    """Decode slot 0 of a segment.

    Raises: MalformedError.
    """
    if len(page) != BLOCK_BYTES:
        raise MalformedError("it is too short")
    flags, seed, log, incarnation, nonce, file, *rest = _SEGMENT.unpack_from(page, 20)
    previous, end_position, end_sequence, sections, zero, segment, first, slots_count = rest
    _check_page(page, b"RAMETSEG", nonce, file)
    _expect_zeros(page, 136, BLOCK_BYTES)
    if flags & ~(OPENS | REUSED) or (not flags & OPENS and (end_position or end_sequence)):
        text = f"flags {flags:#x}, and an end at {end_position:016x}, cannot be"
        raise MalformedError(text)
    if sections != 1 or zero or first or not 2 <= slots_count <= SLOTS_MAX:
        raise MalformedError(f"sections {sections}, slots {first} to {slots_count} cannot be")
    return SegmentHeader(
        seed,
        log,
        incarnation,
        nonce,
        file,
        segment,
        slots_count,
        previous,
        bool(flags & OPENS),
        bool(flags & REUSED),
        end_position,
        end_sequence,
    )


def decode_node_file_header(page: bytes, is_table: bool) -> NodeFileHeader:
    """Decode the first page of a node file, or of a table file.

    Raises: MalformedError.
    """
    if len(page) != BLOCK_BYTES:
        raise MalformedError("it is too short")
    flags, seed, log, _, nonce, file, *rest = _NODE_FILE.unpack_from(page, 20)
    unit_bytes, sections, section, first, units_count = rest
    _check_page(page, b"RAMETTAB" if is_table else b"RAMETMAP", nonce, file)
    _expect_zeros(page, 112, BLOCK_BYTES)
    if flags or sections != 1 or first or (unit_bytes, units_count) != (UNIT_BYTES, UNITS_MAX):
        text = f"flags {flags:#x}, {units_count} units of {unit_bytes} bytes cannot be"
        raise MalformedError(text)
    return NodeFileHeader(seed, log, nonce, file, section, units_count)


def decode_batch(page: bytes, nonce: int, place: int, slots_max: int) -> Batch:
    """Decode a batch's header; `place` is the locator of its slot, `slots_max` what can follow.

    Raises: MalformedError.
    """
    fields = _BATCH.unpack_from(page)
    magic, version, used, checksum, sequence, durable, slots_count = fields[:7]
    entries_count, checksums_count = fields[7:]
    if magic != b"RBAT" or version != VERSION:
        raise MalformedError("there is no batch header")
    if checksum != page_crc(page, 12, nonce, place):
        raise MalformedError("a batch header does not match its checksum")
    checksums_at = ENTRIES_AT + entries_count * ENTRY_BYTES
    if used != checksums_at + 4 * checksums_count or used > BLOCK_BYTES:
        raise MalformedError(f"a batch header says that it uses {used} bytes")
    entries_bytes = page[ENTRIES_AT:checksums_at]
    entries, odd = decode_entries(entries_bytes)
    slots = 1 + sum(entry.slots_count for entry in entries)
    checksums = sum(1 if it.kind == KIND_RECORD else it.slots_count for it in entries)
    if slots != slots_count or checksums != checksums_count:
        raise MalformedError("a batch header's counts are not those of its entries")
    if slots_count > slots_max:
        raise MalformedError("a batch does not end inside the segment")
    if any(page[40:ENTRIES_AT]) or any(page[used:]):
        odd = "bytes of its head, or behind what it uses, are not zeros"
    checksums_bytes = page[checksums_at:used]
    return Batch(sequence, durable, slots_count, entries, entries_bytes, checksums_bytes, odd)


def decode_entries(content: bytes) -> tuple[list[Entry], str]:
    """Decode a batch's entries, without those of unknown kinds that may be skipped.

    Result: also which of their zeros are none, which harms nothing.
    Raises: MalformedError.
    """
    entries = [Entry(*fields) for fields in _ENTRY.iter_unpack(content)]
    if all(entry.kind in KINDS_OF_BLOCKS for entry in entries):
        return entries, ""
    known, odd = [], ""
    for word, *fields in entries:
        entry = Entry(word & 0xFF, *fields)
        if entry.kind in KINDS_KNOWN:
            known.append(entry)
        elif not entry.kind & KIND_SKIPPABLE:
            raise MalformedError(f"a batch has an entry of unknown kind {entry.kind}")
        zeros = {KIND_MARK: fields, KIND_RECORD: fields[:1]}.get(entry.kind, ())
        if word > 0xFF or any(zeros):
            odd = f"an entry of kind {entry.kind} has bytes that are not zeros"
    return known, odd


def decode_column_page(page: bytes, nonce: int, segment: int, column: int, index: int) -> bytes:
    """Give the values of a column's page.

    Raises: MalformedError.
    """
    magic, version, *told, its_segment, its_index = COLUMN.unpack_from(page)
    its_column, checksum = told
    if magic != b"RPAG" or version != VERSION or checksum != page_crc(page, 12, nonce, index):
        raise MalformedError("it does not match its checksum")
    if (its_segment, its_column, its_index) != (segment, column, index):
        raise MalformedError("it is another segment's, or another page")
    return page[COLUMN.size :]


def decode_journal(content: bytes, nonce: int, segment: int) -> tuple[int, bytes, bool]:
    """Give the count of batches in a journal, their bytes, and whether its zeros are zeros.

    Raises: MalformedError.
    """
    if len(content) < 32:
        raise MalformedError("the journal is too short")
    magic, version, batches_count, checksum, its_segment, zero = JOURNAL.unpack_from(content)
    if magic != b"RJRN" or version != VERSION:
        raise MalformedError("there is no journal")
    if checksum != page_crc(content, 12, nonce, segment) or its_segment != segment:
        raise MalformedError("the journal does not match its checksum")
    return batches_count, content[JOURNAL.size :], zero == 0


def decode_trailer(page: bytes, nonce: int, segment: int) -> Trailer:
    """Decode the last page of a sealed segment.

    Raises: MalformedError.
    """
    _check_page(page, b"RAMETFTR", nonce, segment)
    slots_count, its_segment, *fields = TRAILER.unpack_from(page, 20)
    if its_segment != segment:
        raise MalformedError(f"it is the trailer of segment {its_segment:012x}")
    _expect_zeros(page, 88, BLOCK_BYTES)
    return Trailer(slots_count, *fields)


def with_checksum(page: bytes, at: int, nonce: int, place: int) -> bytes:
    """Give the page with its checksum in the four bytes at `at`."""
    return page[:at] + page_crc(page, at, nonce, place).to_bytes(4, "little") + page[at + 4 :]


def check_identity(
    header: SegmentHeader | NodeFileHeader, seed: int, log: bytes, file: int
) -> None:
    """Hold a header against the pool and the log that its file is in, and against the file's name.

    Raises: ForeignError, MalformedError.
    """
    if header.seed != seed or header.log != log:
        raise ForeignError("it is a file of another pool or log")
    if header.file != file:
        raise MalformedError(f"its header says that it is file {header.file:012x}")
    its_section = header.segment if isinstance(header, SegmentHeader) else header.section
    if its_section != file:
        raise MalformedError(f"it holds section {its_section:012x}")


def _check_page(page: bytes, magic: bytes, nonce: int, place: int) -> None:
    if len(page) != BLOCK_BYTES:
        raise MalformedError("it is too short")
    its_magic, version, block_bytes, checksum = struct.unpack_from("<8sIII", page)
    if its_magic != magic:
        raise MalformedError(f"it does not begin with {magic.decode()}")
    if version != VERSION or block_bytes != BLOCK_BYTES:
        raise MalformedError(f"it is of version {version}, with blocks of {block_bytes} bytes")
    computed = page_crc(page, 16, nonce, place)
    if checksum != computed:
        raise MalformedError(f"its checksum is {checksum:#010x}, computed {computed:#010x}")


def _expect_zeros(page: bytes, start: int, end: int) -> None:
    if page.count(0, start, end) != end - start:
        raise MalformedError(f"bytes {start} to {end} are not zeros")
