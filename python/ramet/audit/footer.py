"""The footer of a sealed segment: docs/internals/format.md, "Footer".

Called by scan.py and by owners.py. Invariant: a footer counts as a whole or not at all.
"""

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ramet.audit.checksums import BLOCK_BYTES, U32Array
from ramet.audit.files import PoolFile
from ramet.audit.structures import (
    COLUMN,
    ENTRY_BYTES,
    JOURNAL,
    JOURNAL_BATCH,
    TRAILER,
    VERSION,
    Batch,
    MalformedError,
    SegmentHeader,
    Trailer,
    decode_column_page,
    decode_entries,
    decode_journal,
    decode_trailer,
    with_checksum,
)

CHECKSUMS, OWNERS = 1, 2  # Columns.
CHECKSUMS_PER_PAGE = 1016
OWNERS_PER_PAGE = 254
SECTOR_BYTES = 512  # Written whole or not at all.
# Bytes of a trailer that its batches do not tell: the checksum, and what was durable.
TRAILER_UNKNOWN = ((16, 20), (48, 56))

OWNER = np.dtype([("object", "<u8"), ("block_index", "<u8")])
OwnerArray = npt.NDArray[np.void]


class Footer(NamedTuple):
    """A footer of which everything verifies."""

    trailer: Trailer
    checksums: U32Array
    owners: OwnerArray
    batches_count: int
    journal: bytes
    """The batches, without the journal's head."""
    zeros_are_zeros: bool
    """What is behind the columns' values and the journal, and in its head."""


class Remains(NamedTuple):
    """A footer of which only a part is there."""

    offset_bytes: int
    """The first part that is not as it should be."""
    torn: bool
    """Whether the rest was never written; else it was, and is damaged."""


def load_journal(file: PoolFile, header: SegmentHeader) -> bytes:
    """Read the batches out of a footer that is known to be whole.

    Raises: MalformedError.
    """
    at = file.length_bytes - BLOCK_BYTES
    trailer = decode_trailer(file.page(at), header.nonce, header.segment)
    content = file.whole(trailer.journal_at, trailer.journal_bytes)
    return decode_journal(content, header.nonce, header.segment)[1]


def load_footer(file: PoolFile, header: SegmentHeader) -> Footer | None:
    """Read a segment's footer; None where it does not verify as a whole."""
    at = file.length_bytes - BLOCK_BYTES
    if at <= 0:
        return None
    try:
        trailer = decode_trailer(file.page(at), header.nonce, header.segment)
    except MalformedError:
        return None
    try:
        check_places(trailer, header, at)
        checksums = _load_column(file, header, trailer, CHECKSUMS)
        owners = _load_column(file, header, trailer, OWNERS)
        content = file.whole(trailer.journal_at, trailer.journal_bytes)
        journal = decode_journal(content, header.nonce, header.segment)
    except MalformedError:
        return None
    behind = trailer.journal_at + trailer.journal_bytes
    padding = file.read(behind, file.length_bytes - BLOCK_BYTES - behind)
    used = trailer.slots_count
    rest = checksums[used * 4 :] + owners[used * OWNER.itemsize :] + padding
    return Footer(
        trailer,
        np.frombuffer(checksums, dtype="<u4")[:used],
        np.frombuffer(owners, dtype=OWNER)[:used],
        journal[0],
        journal[1],
        journal[2] and not any(rest),
    )


def find_remains(
    file: PoolFile, expected: bytes, offset_bytes: int, *, reused: bool
) -> Remains | None:
    """Say what is left of a footer that should be `expected`; None where none was begun.

    A crash may leave any sectors of it unwritten, which read as zeros; other bytes are damage. In a
    `reused` file they read as whatever was there before.
    """
    actual = file.read(offset_bytes, len(expected)).ljust(len(expected), b"\0")
    masked = bytearray(actual)
    trailer_at = len(expected) - BLOCK_BYTES
    for start, end in TRAILER_UNKNOWN:
        masked[trailer_at + start : trailer_at + end] = bytes(end - start)
    found = np.frombuffer(masked, dtype=np.uint8).reshape(-1, SECTOR_BYTES)
    whole = np.frombuffer(expected, dtype=np.uint8).reshape(-1, SECTOR_BYTES)
    equal, written = (found == whole).all(axis=1), whole.any(axis=1)
    if not (equal & written).any():
        return None
    wrong = np.nonzero(~equal & found.any(axis=1) & (not reused))[0]
    missing = np.nonzero(~equal)[0]
    # Where nothing else is wrong, it is in what only the trailer's checksum knows.
    first = int(wrong[0] if len(wrong) else missing[0] if len(missing) else len(found) - 8)
    torn = len(wrong) == 0 and len(missing) > 0
    return Remains(offset_bytes + first * SECTOR_BYTES, torn)


def encode_footer(
    header: SegmentHeader,
    checksums: U32Array,
    owners: OwnerArray,
    journal: bytes,
    sequences: list[int],
) -> bytes:
    """Make the footer that a segment's batches call for, with zeros for `TRAILER_UNKNOWN`.

    `checksums`, `owners`: for each slot used. `journal`: the batches. `sequences`: theirs.
    """
    parts = []
    for column, per_page, content in (
        (CHECKSUMS, CHECKSUMS_PER_PAGE * 4, checksums.tobytes()),
        (OWNERS, OWNERS_PER_PAGE * 16, owners.tobytes()),
    ):
        for index, start in enumerate(range(0, len(content), per_page)):
            identity = (column, 0, header.segment, index)
            page = COLUMN.pack(b"RPAG", VERSION, *identity) + content[start : start + per_page]
            page = page.ljust(BLOCK_BYTES, b"\0")
            parts.append(with_checksum(page, 12, header.nonce, index))
    owners_at = len(checksums) * BLOCK_BYTES
    owners_at += -(-len(checksums) // CHECKSUMS_PER_PAGE) * BLOCK_BYTES
    journal_at = owners_at + -(-len(checksums) // OWNERS_PER_PAGE) * BLOCK_BYTES
    whole = JOURNAL.pack(b"RJRN", VERSION, len(sequences), 0, header.segment, 0)
    whole = with_checksum(whole + journal, 12, header.nonce, header.segment)
    parts.append(whole.ljust(-(-len(whole) // BLOCK_BYTES) * BLOCK_BYTES, b"\0"))
    first, last = (sequences[0], sequences[-1]) if sequences else (0, 0)
    places = (len(checksums) * BLOCK_BYTES, owners_at, journal_at, len(whole))
    trailer = struct.pack("<8sIII", b"RAMETFTR", VERSION, BLOCK_BYTES, 0)
    trailer += TRAILER.pack(len(checksums), header.segment, first, last, 0, *places)
    parts.append(trailer.ljust(BLOCK_BYTES, b"\0"))
    return b"".join(parts)


def journal_batches(journal: bytes) -> list[tuple[int, Batch]]:
    """Give the batches of a journal, each with its header's slot; their checksums are left out.

    Raises: MalformedError where the bytes are no batches.
    """
    found = []
    at = 0
    while at < len(journal):
        if at + JOURNAL_BATCH.size > len(journal):
            raise MalformedError("the journal ends inside a batch")
        sequence, durable, slot, slots_count, entries_count = JOURNAL_BATCH.unpack_from(journal, at)
        at += JOURNAL_BATCH.size
        entries_bytes = journal[at : at + entries_count * ENTRY_BYTES]
        if len(entries_bytes) != entries_count * ENTRY_BYTES:
            raise MalformedError("the journal ends inside an entry")
        at += len(entries_bytes)
        entries, _ = decode_entries(entries_bytes)
        found.append((slot, Batch(sequence, durable, slots_count, entries, entries_bytes, b"")))
    return found


def _load_column(file: PoolFile, header: SegmentHeader, trailer: Trailer, column: int) -> bytes:
    at = trailer.checksums_at if column == CHECKSUMS else trailer.owners_at
    per_page = CHECKSUMS_PER_PAGE if column == CHECKSUMS else OWNERS_PER_PAGE
    content = file.whole(at, -(-trailer.slots_count // per_page) * BLOCK_BYTES)
    return b"".join(
        decode_column_page(
            content[start : start + BLOCK_BYTES], header.nonce, header.segment, column, index
        )
        for index, start in enumerate(range(0, len(content), BLOCK_BYTES))
    )


def check_places(trailer: Trailer, header: SegmentHeader, trailer_at: int) -> None:
    """Hold what a trailer says against the length of its file.

    Raises: MalformedError.
    """
    if not 1 <= trailer.slots_count <= header.slots_count:
        raise MalformedError(f"the trailer says that {trailer.slots_count} slots are used")
    checksum_pages = -(-trailer.slots_count // CHECKSUMS_PER_PAGE)
    owner_pages = -(-trailer.slots_count // OWNERS_PER_PAGE)
    checksums_at = trailer.slots_count * BLOCK_BYTES
    owners_at = checksums_at + checksum_pages * BLOCK_BYTES
    journal_at = owners_at + owner_pages * BLOCK_BYTES
    journal_pages = -(-trailer.journal_bytes // BLOCK_BYTES)
    told = (trailer.checksums_at, trailer.owners_at, trailer.journal_at)
    if told != (checksums_at, owners_at, journal_at):
        raise MalformedError(f"the trailer says that the footer's parts lie at bytes {told}")
    if journal_at + journal_pages * BLOCK_BYTES != trailer_at:
        raise MalformedError("the trailer does not follow the journal")
