"""Segments of which dead slots were given back: docs/internals/format.md, "File table".

What is left of one is its header, the blocks that are not dead with their checksums, and its
trailer; where it was never sealed, all batch headers instead of the trailer. Invariant: a block is
verified when a map is found to hold it, against the index there.
"""

from typing import NamedTuple

import google_crc32c
import numpy as np

from ramet.audit.checksums import BLOCK_BYTES, U32Array, U64Array, fold_blocks
from ramet.audit.files import PoolFile
from ramet.audit.footer import CHECKSUMS, CHECKSUMS_PER_PAGE, check_places
from ramet.audit.scan import NO_BLOCK, scan_segment
from ramet.audit.structures import (
    SegmentHeader,
    Trailer,
    decode_column_page,
    decode_trailer,
)


class Thinned(NamedTuple):
    """What a thinned segment still says of its blocks."""

    segment: int
    slots_count: int
    """Slots in use."""
    checksums: U32Array
    known: U32Array
    """1 for each slot whose checksum is there."""


def load_trailer(file: PoolFile, header: SegmentHeader) -> Trailer:
    """Read a sealed segment's trailer.

    Raises: MalformedError where it is not what it has to be.
    """
    at = file.length_bytes - BLOCK_BYTES
    trailer = decode_trailer(file.page(at), header.nonce, header.segment)
    check_places(trailer, header, at)
    return trailer


def load_thinned(file: PoolFile, header: SegmentHeader, seed: int, ended_at: int) -> Thinned:
    """Read what is left of a segment's checksums; `ended_at` as of `scan_segment`.

    Raises: MalformedError where it is less than has to be left.
    """
    if ended_at:
        scan = scan_segment(file, header, seed, quick=True, ended_at=ended_at)
        holds = (scan.block_indexes != np.uint64(NO_BLOCK)).astype(np.uint32)
        return Thinned(header.segment, scan.end_slot, scan.checksums, holds)
    trailer = load_trailer(file, header)
    pages = -(-trailer.slots_count // CHECKSUMS_PER_PAGE)
    checksums = np.zeros(pages * CHECKSUMS_PER_PAGE, dtype=np.uint32)
    known = np.zeros(pages * CHECKSUMS_PER_PAGE, dtype=np.uint32)
    content = file.whole(trailer.checksums_at, pages * BLOCK_BYTES)
    for index in range(pages):
        page = content[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
        if page.count(0) == len(page):
            continue
        body = decode_column_page(page, header.nonce, header.segment, CHECKSUMS, index)
        start = index * CHECKSUMS_PER_PAGE
        values = np.frombuffer(body, dtype="<u4")[:CHECKSUMS_PER_PAGE]
        checksums[start : start + len(values)] = values
        known[start : start + len(values)] = 1
    return Thinned(header.segment, trailer.slots_count, checksums, known)


def wrong_blocks(
    file: PoolFile,
    thinned: Thinned,
    seed: int,
    slots: U64Array,
    blocks: U64Array,
    *,
    quick: bool,
) -> list[tuple[int, str]]:
    """Verify blocks that a map holds. Result: the places in `slots` that are wrong, and why."""
    found: list[tuple[int, str]] = []
    inside = slots < thinned.slots_count
    lost = ~inside
    lost[inside] = thinned.known[slots[inside].astype(np.int64)] == 0
    found += [(at, "the slot was given back") for at in np.nonzero(lost)[0].tolist()]
    there = np.nonzero(~lost)[0]
    if quick or not len(there):
        return found
    value = google_crc32c.value
    crcs = np.zeros(len(there), dtype=np.uint32)
    order = np.argsort(slots[there], kind="stable")
    run: list[int] = []
    for at in [*order.tolist(), -1]:
        if run and (at < 0 or slots[there[at]] != slots[there[run[-1]]] + 1):
            start = int(slots[there[run[0]]]) * BLOCK_BYTES
            content = file.read(start, len(run) * BLOCK_BYTES).ljust(len(run) * BLOCK_BYTES, b"\0")
            for number, place in enumerate(run):
                offset = number * BLOCK_BYTES
                crcs[place] = value(content[offset : offset + BLOCK_BYTES])
            run = []
        run.append(at)
    own = slots[there]
    computed = fold_blocks(crcs, seed, thinned.segment, own.astype(np.uint32), blocks[there])
    stored = thinned.checksums[own.astype(np.int64)]
    for place in np.nonzero(computed != stored)[0].tolist():
        text = f"a block: stored {int(stored[place]):#010x}, computed {int(computed[place]):#010x}"
        found.append((int(there[place]), text))
    return found
