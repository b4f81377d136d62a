"""The log up to a checkpoint's cut, replayed from its first batch on: I10 and I11.

Docs: docs/internals/format.md, "Records". What was given back cannot be replayed, and what an
object was behind it is not known: from there on each batch is held against itself only. Memory: a
few hundred bytes for each object, and the journal of one segment.
"""

import numpy as np
import numpy.typing as npt

from ramet.audit.checksums import U64Array
from ramet.audit.files import PoolFile, PoolFiles
from ramet.audit.footer import load_journal
from ramet.audit.log import Log, Segment
from ramet.audit.objects import EPOCH_SHIFT, VOLUME, Lock, Object, decode_record
from ramet.audit.replay import Objects
from ramet.audit.report import Place
from ramet.audit.structures import (
    COUNTER_BITS,
    KIND_RECORD,
    KIND_TRIM,
    SLOT_BITS,
    Commit,
    MalformedError,
)

BLOCK_BYTES = 4096
CELLS = 4  # A batch's head in a journal is as long as an entry: four numbers.
BLOCKS_MAX = np.uint64(1 << 60)  # More cannot be, and sums of two such numbers fit.
WRONG_MAX = 100  # Told of one segment: the others are like them.
Rows = npt.NDArray[np.intp]


class _Journal:
    """The entries of a segment's batches, as arrays with one row for each."""

    def __init__(self, content: bytes, sequence_max: int) -> None:
        cells: U64Array = np.frombuffer(content, dtype="<u8").reshape(-1, CELLS)
        counts = (cells[:, 3] & np.uint64(0xFFFFFFFF)).tolist()
        heads, at = [], 0
        while at < len(cells):
            heads.append(at)
            at += 1 + counts[at]
        starts = np.array(heads, dtype=np.intp)
        inside = cells[starts, 0] <= sequence_max
        self.sequences = cells[starts, 0]
        self.first_slots = cells[starts, 2] & np.uint64(0xFFFFFFFF)
        is_entry = np.ones(len(cells), dtype=bool)
        is_entry[starts] = False
        rows = np.nonzero(is_entry)[0]
        batch = np.searchsorted(starts, rows, side="right") - 1
        rows, self.batch = rows[inside[batch]], batch[inside[batch]]
        self.kind = cells[rows, 0] & np.uint64(0xFF)
        self.object, self.first, self.count = cells[rows, 1], cells[rows, 2], cells[rows, 3]

    def place(self, row: int) -> tuple[int, int]:
        """Give the sequence of an entry's batch, and the slot of its header."""
        batch = self.batch[row]
        return int(self.sequences[batch]), int(self.first_slots[batch])


class History:
    """Replays a log up to the cut of `commit`."""

    def __init__(self, files: PoolFiles, log: Log, seed: int, commit: Commit) -> None:
        self._files, self._report = files, files.report
        self._log, self._seed, self._commit = log, seed, commit
        self.objects = Objects(files.report, commit.has_lock_secret)
        self.whole = True
        """Whether every batch so far could be replayed."""

    def replay(self) -> None:
        """Replay all that is there, and hold it against itself."""
        expected = 1
        for segment in self._log.segments:
            if segment.id > self._commit.cut_position >> SLOT_BITS:
                break
            if segment.first_sequence not in (0, expected) or segment.faults:
                self.whole = False
            expected = segment.last_sequence + 1 if segment.last_sequence else expected
            if segment.thinned and not segment.ended_at:
                self.whole = False  # What its batches said may be gone.
            else:
                self._replay_segment(segment)
        self.whole = self.whole and expected > self._commit.cut_sequence

    def hold(self, objects: dict[int, Object]) -> None:
        """Hold what the log made, where all of it was replayed, against what the tree says."""
        made = self.objects.by_id
        if self.objects.lock_clock_ns > self._commit.lock_clock_ns:
            text = f"a record says that the lock clock was {self.objects.lock_clock_ns} ns"
            text += f", and a commit after it {self._commit.lock_clock_ns} ns"
            self._report.add("record", text, Place("superblock"))
        for object_id in sorted(made.keys() | objects.keys()) if self.whole else ():
            ours, theirs = made.get(object_id), objects.get(object_id)
            if ours is None or theirs is None:
                where = "the log has made, and the tree has not" if ours else "the log has not made"
                text = f"object {object_id:#x} is one that {where}"
            elif _said(ours) != _said(theirs):
                text = f"'{theirs.name}' is {_said(theirs)}, but the log made it {_said(ours)}"
            else:
                continue
            self._report.add("object", text, Place("nodes"))

    def _replay_segment(self, segment: Segment) -> None:
        try:
            with self._files.open(segment.name) as file:
                journal = _Journal(self._journal_of(file, segment), self._commit.cut_sequence)
                start = 0
                for row in np.nonzero(journal.kind == KIND_RECORD)[0].tolist():
                    self._hold_changes(segment, journal, np.arange(start, row))
                    self._replay_record(segment, journal, row, file)
                    start = row + 1
                self._hold_changes(segment, journal, np.arange(start, len(journal.kind)))
        except MalformedError:
            self.whole = False  # That was told when the segment was scanned.

    def _journal_of(self, file: PoolFile, segment: Segment) -> bytes:
        if segment.sealed:
            return load_journal(file, segment.header)
        return segment.scan(file, self._seed, quick=True).journal

    def _replay_record(self, segment: Segment, journal: _Journal, row: int, file: PoolFile) -> None:
        sequence, slot = journal.place(row)
        if any(fault.sequence == sequence for fault in segment.faults):
            return
        content = file.read((slot + 1) * BLOCK_BYTES, int(journal.first[row]))
        try:
            verb, items = decode_record(content)
            self.objects.take_ids(items)
            if self.whole:
                self.objects.apply(verb, items)
        except MalformedError as error:
            self.whole = False
            self._report.add("record", f"batch {sequence}: {error}", segment.place(slot))

    def _hold_changes(self, segment: Segment, journal: _Journal, rows: Rows) -> None:
        """Hold writes, zeros and trims between two records against the volumes that they name."""
        rows = rows[journal.kind[rows] <= KIND_TRIM]
        if not len(rows):
            return
        named, which = np.unique(journal.object[rows], return_inverse=True)
        if self.whole:
            sizes = [self._blocks_of(it) for it in named.tolist()]
        else:
            # An object is made before it is written to: its id is of no later epoch.
            epoch = segment.id >> COUNTER_BITS
            sizes = [int(BLOCKS_MAX) * (0 < it >> EPOCH_SHIFT <= epoch) for it in named.tolist()]
        size = np.array(sizes, dtype=np.uint64)[which]
        first, count = journal.first[rows], journal.count[rows]
        wrong = (count == 0) | (first >= size) | (count > size) | (first + count > size)
        for at in np.nonzero(wrong)[0][:WRONG_MAX].tolist():
            sequence, slot = journal.place(int(rows[at]))
            text = f"batch {sequence}: {int(count[at])} blocks from {int(first[at])} on"
            text += f" of object {int(named[which[at]]):#x}"
            text += f", which has {int(size[at])}" if self.whole else ", which cannot be"
            self._report.add("batch_entry", text, segment.place(slot))

    def _blocks_of(self, object_id: int) -> int:
        """Give the blocks of a volume; 0 where there is none."""
        found = self.objects.by_id.get(object_id)
        return found.blocks_count if found is not None and found.kind == VOLUME else 0


def _said(it: Object) -> tuple[bytes, str, int, int, int, Lock | None, int]:
    return it.uuid, it.name, it.kind, it.size_bytes, it.place, it.lock, it.delete_after_ns
