"""What lies in each slot of the log, which slots maps hold, and which the file table calls dead.

Docs: docs/internals/format.md, "File table", I15 to I17. Memory: two bits for each slot of the
log, and `CACHE_BYTES_MAX` of what lies in them.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ramet.audit.checksums import U64Array
from ramet.audit.files import PoolFiles
from ramet.audit.footer import load_footer
from ramet.audit.log import Log, Segment
from ramet.audit.report import Finding
from ramet.audit.scan import NO_BLOCK
from ramet.audit.structures import SLOT_BITS, SLOTS_MAX, MalformedError
from ramet.audit.thinned import Thinned, load_thinned, wrong_blocks

CACHE_BYTES_MAX = 64 << 20
THINNED_MAX = 64  # Segments of which checksums are kept.
WRONG_MAX = 16  # Of one call and one segment: the others are like them.
Bits = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]


class Wrong(NamedTuple):
    """What is wrong with a slot that a map names."""

    code: str
    text: str
    finding: Finding | None = None
    """What was said of it before."""


class Tally(NamedTuple):
    """How many blocks of a segment are what."""

    held_count: int
    dead_count: int
    uncounted_count: int
    dead_without_block: list[int]


class Slots:
    """The slots of a log up to a cut, which is the locator `last`."""

    def __init__(
        self,
        files: PoolFiles,
        log: Log,
        seed: int,
        last: int,
        dead: Mapping[int, Bits],
        *,
        quick: bool,
    ) -> None:
        self._files, self._log, self._seed = files, log, seed
        self._last, self._quick = last, quick
        self._thinned: dict[int, Thinned] = {}
        self._dead = dead
        self._held: dict[int, Bits] = {}
        self._cache: dict[int, U64Array] = {}
        self._cached_bytes = 0
        bad: dict[int, list[int]] = {}
        for locator in log.bad_blocks:
            bad.setdefault(locator >> SLOT_BITS, []).append(locator & (SLOTS_MAX - 1))
        self._bad = bad

    def block_indexes(self, segment: Segment) -> U64Array:
        """Give the block index that each slot holds, `NO_BLOCK` where it holds none."""
        found = self._cache.pop(segment.id, None)
        if found is None:
            found = self._load(segment)
            self._cached_bytes += found.nbytes
        self._cache[segment.id] = found
        while self._cached_bytes > CACHE_BYTES_MAX and len(self._cache) > 1:
            self._cached_bytes -= self._cache.pop(next(iter(self._cache))).nbytes
        return found

    def _load(self, segment: Segment) -> U64Array:
        try:
            with self._files.open(segment.name) as file:
                footer = load_footer(file, segment.header) if segment.sealed else None
                if footer is not None:
                    indexes = footer.owners["block_index"].copy()
                    indexes[footer.owners["object"] == 0] = NO_BLOCK
                    found: U64Array = indexes
                else:
                    found = segment.scan(file, self._seed, quick=True).block_indexes
        except MalformedError:
            found = np.zeros(0, dtype=np.uint64)
        if self._last >> SLOT_BITS == segment.id:
            found = found[: (self._last & (SLOTS_MAX - 1)) + 1]
        return found

    def hold(self, locators: U64Array, blocks: U64Array) -> Iterator[tuple[int, Wrong]]:
        """Note that maps hold these locators. Result: the places where one is wrong, and why."""
        segments = locators >> np.uint64(SLOT_BITS)
        order = np.argsort(segments, kind="stable")
        sorted_segments = segments[order]
        starts = np.nonzero(np.diff(sorted_segments))[0] + 1
        for part in np.split(order, starts):
            if len(part):
                slots = (locators[part] & np.uint64(SLOTS_MAX - 1)).astype(np.int64)
                yield from self._hold_in(int(segments[part[0]]), part, slots, blocks[part])

    def _hold_in(
        self, segment_id: int, part: Positions, slots: Positions, blocks: U64Array
    ) -> Iterator[tuple[int, Wrong]]:
        segment = self._log.find(segment_id)
        if segment is None:
            wrong = Wrong("slot_missing", "its segment is not a part of the log")
            yield from ((at, wrong) for at in part[:WRONG_MAX].tolist())
            return
        outside = slots >= segment.header.slots_count
        for at in part[outside][:WRONG_MAX].tolist():
            yield at, Wrong("slot_missing", "its segment has fewer slots")
        part, slots, blocks = part[~outside], slots[~outside], blocks[~outside]
        held = self._held.get(segment_id)
        if held is None:
            held = self._held[segment_id] = _no_bits(segment)
        mask = np.zeros(len(held) * 8, dtype=bool)
        mask[slots] = True
        if segment.thinned:
            yield from self._hold_in_thinned(segment, held, part, slots, blocks)
            held |= np.packbits(mask, bitorder="little")
            return
        held |= np.packbits(mask, bitorder="little")
        known = self.block_indexes(segment)
        found = np.full(len(slots), NO_BLOCK, dtype=np.uint64)
        inside = slots < len(known)
        found[inside] = known[slots[inside]]
        for at in np.nonzero(found != blocks)[0][:WRONG_MAX].tolist():
            holds = "no block before the cut"
            if found[at] != NO_BLOCK:
                holds = f"block {int(found[at])}"
            yield int(part[at]), Wrong("slot_differs", f"the slot holds {holds}")
        yield from self._dead_in(segment_id, part, slots)
        for slot in self._bad.get(segment_id, ()):
            finding = self._log.bad_blocks[segment_id << SLOT_BITS | slot][1]
            for at in np.nonzero(slots == slot)[0].tolist():
                yield int(part[at]), Wrong(finding.code, finding.text, finding)

    def _dead_in(
        self, segment_id: int, part: Positions, slots: Positions
    ) -> Iterator[tuple[int, Wrong]]:
        dead = self._dead.get(segment_id)
        if dead is not None:
            is_dead = dead[slots >> 3] >> (slots & 7).astype(np.uint8) & 1
            for at in np.nonzero(is_dead)[0][:WRONG_MAX].tolist():
                yield int(part[at]), Wrong("slot_dead", "the file table says that it is dead")

    def _hold_in_thinned(
        self, segment: Segment, held: Bits, part: Positions, slots: Positions, blocks: U64Array
    ) -> Iterator[tuple[int, Wrong]]:
        """Verify the blocks of a segment that says no more which blocks it holds."""
        yield from self._dead_in(segment.id, part, slots)
        fresh = (held[slots >> 3] >> (slots & 7).astype(np.uint8) & 1) == 0
        try:
            with self._files.open(segment.name) as file:
                if segment.id not in self._thinned:
                    if len(self._thinned) >= THINNED_MAX:
                        self._thinned.clear()
                    self._thinned[segment.id] = load_thinned(
                        file, segment.header, self._seed, segment.ended_at
                    )
                thinned = self._thinned[segment.id]
                own = slots[fresh].astype(np.uint64)
                told = (self._seed, own, blocks[fresh])
                wrong = wrong_blocks(file, thinned, *told, quick=self._quick)
        except MalformedError:
            return  # That was told when the segment was looked at.
        self._files.report.count("blocks_count", 0 if self._quick else len(own))
        places = part[fresh]
        for at, text in wrong[:WRONG_MAX]:
            slot = int(own[at])
            locator = segment.id << SLOT_BITS | slot
            if locator not in self._log.bad_blocks:
                said = f"segment {segment.id:012x}, slot {slot}: {text}"
                made = self._files.report.add("block_checksum", said, segment.place(slot))
                self._log.bad_blocks[locator] = (int(blocks[fresh][at]), made)
            finding = self._log.bad_blocks[locator][1]
            yield int(places[at]), Wrong(finding.code, finding.text, finding)

    def tally(self, segment: Segment) -> Tally:
        """Count what the blocks of a segment are, up to the cut."""
        nothing = _no_bits(segment)
        if segment.thinned:
            held = int(np.unpackbits(self._held.get(segment.id, nothing)).sum())
            dead_count = int(np.unpackbits(self._dead.get(segment.id, nothing)).sum())
            return Tally(held, dead_count, 0, [])
        known = self.block_indexes(segment)
        is_block = np.zeros(len(nothing) * 8, dtype=bool)
        is_block[: len(known)] = known != np.uint64(NO_BLOCK)
        is_held = np.unpackbits(self._held.get(segment.id, nothing), bitorder="little").astype(bool)
        dead = np.unpackbits(self._dead.get(segment.id, nothing), bitorder="little").astype(bool)
        return Tally(
            int(is_held.sum()),
            int(dead.sum()),
            int((is_block & ~is_held & ~dead).sum()),
            np.nonzero(dead & ~is_block)[0].tolist(),
        )


def bits_bytes(slots_count: int) -> int:
    """Give the length of a bitmap of this many slots, in bytes."""
    return (slots_count + 7) // 8


def _no_bits(segment: Segment) -> Bits:
    return np.zeros(bits_bytes(segment.header.slots_count), dtype=np.uint8)
