"""One pass over a segment: every batch header, every payload, and the footer against them.

Called by log.py, which knows what of it counts. Invariants: reads once, in large pieces; memory is
bounded by the segment's slots; a fault is told with the slot it is in, never raised.
"""

from bisect import bisect_right
from typing import NamedTuple

import google_crc32c
import numpy as np

from ramet.audit.checksums import BLOCK_BYTES, U32Array, U64Array, block_crc, fold_blocks
from ramet.audit.files import PoolFile
from ramet.audit.footer import (
    OWNER,
    Footer,
    OwnerArray,
    Remains,
    encode_footer,
    find_remains,
    journal_batches,
    load_footer,
)
from ramet.audit.structures import (
    JOURNAL_BATCH,
    KIND_RECORD,
    KIND_WRITE,
    SLOT_BITS,
    Batch,
    Entry,
    MalformedError,
    SegmentHeader,
    decode_batch,
)

WINDOW_SLOTS = 512  # Read at a time: 2 MiB, which stay in the processor's cache.
AHEAD_BYTES = 16 << 20  # Asked of the medium beyond.
QUICK_WINDOW_SLOTS = 16  # Where only headers are looked at.
FAULTS_MAX = 1000  # Of one segment.
NO_BLOCK = 2**64 - 1
BATCH_MAGIC = int.from_bytes(b"RBAT", "little")


class Fault(NamedTuple):
    """Something wrong in a segment."""

    code: str
    text: str
    slot: int
    """Where; for a byte offset times 4096."""
    sequence: int = 0
    """The batch it belongs to; 0: the footer, or the segment as a whole."""
    block_index: int | None = None
    """Where it is a block: of which index."""


class ScannedBatch(NamedTuple):
    """A batch that was met, in order."""

    sequence: int
    durable: int
    header_slot: int
    slots_count: int


class Last(NamedTuple):
    """The last batch of a segment that counts."""

    slot: int
    sequence: int


class Scan(NamedTuple):
    """What one pass found in a segment."""

    batches: list[ScannedBatch]
    journal: bytes
    """All of them as a journal holds them."""
    faults: list[Fault]
    end_slot: int
    """The slot behind the last batch."""
    broken: str
    """Why no batch follows; empty at the segment's end."""
    durable: int
    """The highest durable sequence that any header or the trailer names."""
    beyond_count: int
    """Valid headers behind the place where the batches could not be followed."""
    footer: Footer | None
    remains: Remains | None
    """What is there of a footer that does not count as a whole."""
    block_indexes: U64Array
    """Of each slot up to the end; `NO_BLOCK` where it holds none."""
    checksums: U32Array
    """Of each slot up to the end; zero where it holds no block."""
    blocks_count: int
    records_count: int


def scan_segment(
    file: PoolFile,
    header: SegmentHeader,
    seed: int,
    *,
    quick: bool,
    last: Last | None = None,
    ended_at: int = 0,
) -> Scan:
    """Look at all of a segment.

    `quick`: leave the bytes of blocks out. `last`: nothing behind that batch is looked at.
    `ended_at`: the slot where the file table says that it ends, unsealed; 0: it says nothing.
    """
    return _Scanner(file, header, seed, quick, (last, ended_at)).run()


class _Scanner:
    def __init__(
        self,
        file: PoolFile,
        header: SegmentHeader,
        seed: int,
        quick: bool,
        end: tuple[Last | None, int],
    ) -> None:
        last, ended_at = end
        self._file, self._header, self._seed, self._quick = file, header, seed, quick
        self._last = last
        self._is_end_told = last is not None or ended_at != 0
        self._footer = None if ended_at else load_footer(file, header)
        if self._footer and last and self._footer.trailer.last > last.sequence:
            self._footer = None  # It tells of batches that were discarded.
        self._faults: list[Fault] = []
        self._told: dict[int, Batch] = {}
        self._durable = self._footer.trailer.durable if self._footer else 0
        slots_max = ended_at or header.slots_count
        slots_count = min(slots_max, file.length_bytes // BLOCK_BYTES)
        self._slots_count = self._footer.trailer.slots_count if self._footer else slots_count
        if self._footer:
            self._read_journal(self._footer)
        self._slot = 1
        self._broken = ""
        self._batches: list[ScannedBatch] = []
        self._journal: list[bytes] = []
        self._checksums = np.zeros(self._slots_count, dtype=np.uint32)
        self._owners: OwnerArray = np.zeros(self._slots_count, dtype=OWNER)
        self._blocks_count = self._records_count = self._beyond_count = 0
        # Writes of the window: slot, blocks, object, first block; and their checksums.
        self._writes: list[tuple[int, int, int, int]] = []
        self._stored: list[bytes] = []

    def run(self) -> Scan:
        while self._slot < self._slots_count and not self._broken:
            first, window = self._slot, self._read_window(self._slot, 0)
            if not self._take_window(first, window):
                break
        if self._footer:
            self._compare_footer(self._footer)
        elif not self._is_end_told:
            self._search_beyond()
        indexes = np.full(self._slot, NO_BLOCK, dtype=np.uint64)
        held = self._owners["object"][: self._slot] != 0
        indexes[held] = self._owners["block_index"][: self._slot][held]
        return Scan(
            self._batches,
            b"".join(self._journal),
            self._faults,
            self._slot,
            self._broken,
            self._durable,
            self._beyond_count,
            self._footer,
            None if self._footer or self._is_end_told else self._find_remains(),
            indexes,
            self._checksums[: self._slot],
            self._blocks_count,
            self._records_count,
        )

    def _find_remains(self) -> Remains | None:
        end = self._slot
        sequences = [batch.sequence for batch in self._batches]
        journal = b"".join(self._journal)
        columns = (self._checksums[:end], self._owners[:end])
        expected = encode_footer(self._header, *columns, journal, sequences)
        reused = self._header.reused
        return find_remains(self._file, expected, end * BLOCK_BYTES, reused=reused)

    def _fault(self, fault: Fault) -> None:
        if len(self._faults) < FAULTS_MAX:
            self._faults.append(fault)

    def _read_journal(self, footer: Footer) -> None:
        """Keep what the journal says of each batch, for where a header does not verify."""
        try:
            self._told = dict(journal_batches(footer.journal))
        except MalformedError as error:
            self._fault(Fault("footer_differs", str(error), footer.trailer.slots_count))

    def _read_window(self, slot: int, slots_min: int) -> bytes:
        window = WINDOW_SLOTS
        if self._quick:
            large = self._batches and self._batches[-1].slots_count > QUICK_WINDOW_SLOTS
            window = 1 if large else QUICK_WINDOW_SLOTS
        slots = max(slots_min, window)
        slots = min(slots, self._slots_count - slot)
        if not self._quick:
            ahead = (slot + slots) * BLOCK_BYTES
            self._file.will_need(ahead, AHEAD_BYTES)
        return self._file.read(slot * BLOCK_BYTES, slots * BLOCK_BYTES)

    def _take_window(self, first: int, window: bytes) -> bool:
        """Take the batches that lie in the window; false where no more can follow."""
        slots = len(window) // BLOCK_BYTES
        while self._slot < first + slots:
            at = (self._slot - first) * BLOCK_BYTES
            batch = self._take_header(window[at : at + BLOCK_BYTES])
            if batch is None:
                break
            end = self._slot + batch.slots_count
            if not self._quick and end > first + slots:
                if self._slot > first:
                    break  # The next window begins with this batch.
                window = self._read_window(first, batch.slots_count)
                slots = len(window) // BLOCK_BYTES
                if end > first + slots:
                    self._broken = "the file ends inside a batch"
                    break
            self._take_batch(batch, first, window)
            self._slot = end
            if self._is_last():
                self._verify_writes(first, window)
                return False
        self._verify_writes(first, window)
        return slots > 0 and not self._broken

    def _is_last(self) -> bool:
        """Whether nothing behind the batch just taken counts: a footer tells of all, though."""
        last = None if self._footer else self._last
        return last is not None and self._batches[-1].header_slot >= last.slot

    def _take_header(self, page: bytes) -> Batch | None:
        """Decode the header in the next slot, or take the journal's word for it."""
        place = self._header.segment << SLOT_BITS | self._slot
        told = self._told.get(self._slot)
        try:
            slots_max = self._header.slots_count - self._slot
            batch = decode_batch(page, self._header.nonce, place, slots_max)
        except MalformedError as error:
            if told is None or self._slot + told.slots_count > self._slots_count:
                self._broken = str(error)
                return None
            text = f"{error}; its journal says that it is batch {told.sequence}"
            self._fault(Fault("batch_header", text, self._slot, told.sequence))
            return told._replace(checksums=self._stored_checksums(told))
        self._durable = max(self._durable, batch.durable)
        if self._slot + batch.slots_count > self._slots_count:
            self._broken = "the file ends inside a batch"
            return None
        return batch if self._follows(batch) else None

    def _follows(self, batch: Batch) -> bool:
        """Hold a batch's numbers against those of the one before."""
        before = self._batches[-1] if self._batches else None
        if before and batch.sequence != before.sequence + 1:
            self._broken = f"batch {batch.sequence} follows batch {before.sequence}"
            return False
        if batch.durable >= batch.sequence or (before and batch.durable < before.durable):
            text = f"batch {batch.sequence} says that batch {batch.durable} is durable"
            if before:
                text += f", the one before {before.durable}"
            self._fault(Fault("batch_durable", text, self._slot, batch.sequence))
        return True

    def _stored_checksums(self, told: Batch) -> bytes:
        """Take a batch's checksums from the footer; a record's is in its header only."""
        assert self._footer is not None
        found = []
        slot = self._slot + 1
        for entry in told.entries:
            if entry.kind == KIND_WRITE:
                found.append(self._footer.checksums[slot : slot + entry.length].tobytes())
            slot += entry.slots_count
        return b"".join(found)

    def _take_batch(self, batch: Batch, first: int, window: bytes) -> None:
        header_slot = self._slot
        if batch.odd:
            self._fault(Fault("batch_header", batch.odd, header_slot, batch.sequence))
        self._batches.append(
            ScannedBatch(batch.sequence, batch.durable, header_slot, batch.slots_count)
        )
        entries_count = len(batch.entries_bytes) // 32
        fields = (batch.sequence, batch.durable, header_slot, batch.slots_count, entries_count)
        self._journal += (JOURNAL_BATCH.pack(*fields), batch.entries_bytes)
        slot = header_slot + 1
        for entry in batch.entries:
            if entry.kind == KIND_WRITE:
                self._writes.append((slot, entry.length, entry.object, entry.first))
            elif entry.kind == KIND_RECORD:
                self._verify_record(batch, entry, slot, first, window)
            slot += entry.slots_count
        if batch.entries and batch.entries[0].kind != KIND_RECORD:
            self._stored.append(batch.checksums)

    def _verify_record(
        self, batch: Batch, entry: Entry, slot: int, first: int, window: bytes
    ) -> None:
        self._records_count += 1
        if len(batch.checksums) != 4 or len(batch.entries) != 1:
            if batch.checksums:
                text = "a record shares its batch"
                self._fault(Fault("batch_header", text, slot - 1, batch.sequence))
            return  # Without its header a record cannot be verified, which was told already.
        length = entry.length * BLOCK_BYTES
        at = (slot - first) * BLOCK_BYTES
        payload = window[at : at + length]
        if len(payload) != length:
            payload = self._file.read(slot * BLOCK_BYTES, length)
        if entry.first > length:
            text = f"a record of {entry.first} bytes does not fit into {entry.length} slots"
            self._fault(Fault("record", text, slot, batch.sequence))
        stored = int.from_bytes(batch.checksums, "little")
        computed = block_crc(payload, self._seed, self._header.segment, slot, 0)
        if stored != computed:
            text = (
                f"the record of batch {batch.sequence}: stored {stored:#010x},"
                f" computed {computed:#010x}"
            )
            self._fault(Fault("record_checksum", text, slot, batch.sequence))

    def _verify_writes(self, first: int, window: bytes) -> None:
        """Note who owns the window's blocks, and hold their bytes against their checksums."""
        if not self._writes:
            return
        starts, lengths, objects, firsts = np.array(self._writes, dtype=np.uint64).T
        stored = np.frombuffer(b"".join(self._stored), dtype="<u4")
        self._writes.clear()
        self._stored.clear()
        counts = lengths.astype(np.int64)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        slots = np.repeat(starts, counts).astype(np.int64) + within
        indexes = np.repeat(firsts, counts) + within.astype(np.uint64)
        self._checksums[slots] = stored
        self._owners["object"][slots] = np.repeat(objects, counts)
        self._owners["block_index"][slots] = indexes
        if self._quick:
            return
        value = google_crc32c.value
        offsets = ((slots - first) * BLOCK_BYTES).tolist()
        crcs = np.array([value(window[at : at + BLOCK_BYTES]) for at in offsets], dtype=np.uint32)
        segment = self._header.segment
        computed = fold_blocks(crcs, self._seed, segment, slots.astype(np.uint32), indexes)
        self._blocks_count += len(slots)
        for place in np.nonzero(computed != stored)[0].tolist():
            self._bad_block(int(slots[place]), int(stored[place]), int(computed[place]))

    def _bad_block(self, slot: int, stored: int, computed: int) -> None:
        index = bisect_right(self._batches, slot, key=lambda batch: batch.header_slot) - 1
        text = f"a block: stored {stored:#010x}, computed {computed:#010x}"
        block_index = int(self._owners[slot]["block_index"])
        sequence = self._batches[index].sequence
        self._fault(Fault("block_checksum", text, slot, sequence, block_index))

    def _search_beyond(self) -> None:
        """Try every later slot for a header, for what it says is durable."""
        slot = self._slot
        end = min(self._header.slots_count, self._file.length_bytes // BLOCK_BYTES)
        while slot < end:
            window = self._file.read(slot * BLOCK_BYTES, WINDOW_SLOTS * BLOCK_BYTES)
            pages = len(window) // BLOCK_BYTES
            if pages == 0:
                return
            words = np.frombuffer(window[: pages * BLOCK_BYTES], dtype="<u4")
            for page in np.nonzero(words[:: BLOCK_BYTES // 4] == BATCH_MAGIC)[0].tolist():
                place = self._header.segment << SLOT_BITS | slot + page
                content = window[page * BLOCK_BYTES : (page + 1) * BLOCK_BYTES]
                try:
                    batch = decode_batch(content, self._header.nonce, place, end - slot - page)
                except MalformedError:
                    continue
                self._durable = max(self._durable, batch.durable)
                self._beyond_count += 1
            slot += pages

    def _compare_footer(self, footer: Footer) -> None:
        """Hold the footer against what the batches said."""
        trailer = footer.trailer
        said = {
            "slots used": (trailer.slots_count, self._slot),
            "first sequence": (trailer.first, self._batches[0].sequence if self._batches else 0),
            "last sequence": (trailer.last, self._batches[-1].sequence if self._batches else 0),
            "count of batches": (footer.batches_count, len(self._batches)),
            "journal": (footer.journal, b"".join(self._journal)),
        }
        for what, (told, found) in said.items():
            if told != found:
                values = "" if isinstance(told, bytes) else f": {told!r}, the batches {found!r}"
                text = f"the footer's {what} is not what the batches say{values}"
                self._fault(Fault("footer_differs", text, trailer.slots_count))
        if not footer.zeros_are_zeros:
            text = "bytes of the footer that are to be zeros are not"
            self._fault(Fault("footer_differs", text, trailer.slots_count))
        before = self._batches[-1].durable if self._batches else 0
        if self._batches and not before <= trailer.durable <= trailer.last:
            text = f"the footer says that batch {trailer.durable} is durable, not one of"
            text += f" {before} to {trailer.last}"
            self._fault(Fault("batch_durable", text, trailer.slots_count))
        for name, column, own in (
            ("checksums", footer.checksums, self._checksums),
            ("owners", footer.owners, self._owners),
        ):
            for slot in np.nonzero(column != own)[0].tolist():
                text = f"the footer's {name} of slot {slot} is {column[slot]}, not {own[slot]}"
                self._fault(Fault("footer_differs", text, slot))
