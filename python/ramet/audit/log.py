"""The log's files as a whole: which segments count, how they follow each other, where it ends.

Docs: docs/internals/format.md, "Opening" 2 to 7, I3 to I9. Uses scan.py for each segment. Memory:
a few hundred bytes for each segment, and what is wrong.
"""

import re
from dataclasses import dataclass, field

from ramet.audit.checksums import BLOCK_BYTES
from ramet.audit.files import PoolFile, PoolFiles
from ramet.audit.report import Finding, Place
from ramet.audit.scan import NO_BLOCK, Fault, Last, Scan, scan_segment
from ramet.audit.structures import (
    SLOT_BITS,
    Commit,
    Descriptor,
    ForeignError,
    MalformedError,
    SegmentHeader,
    check_identity,
    decode_segment_header,
)
from ramet.audit.thinned import load_trailer

FILE_NAME = re.compile(r"(?!0{9})[0-9a-f]{12}")  # Epochs begin with 1.
BLANK_BYTES = 512  # A header of which these are zeros was never written.
TORN = ("block_checksum", "record_checksum")  # Faults that end a tail that was not durable.


@dataclass
class Segment:
    """A segment whose header is good, and what a scan found in it."""

    name: str
    header: SegmentHeader
    last: Last | None = None
    """Where its stretch ends, if it does so in it."""
    discarded: bool = False
    """Whether its stretch ended before it."""
    first_sequence: int = 0
    last_sequence: int = 0
    last_slot: int = 0
    end_slot: int = 1
    first_durable: int = 0
    last_durable: int = 0
    durable: int = 0
    """The highest that any header or the trailer in it names."""
    beyond_count: int = 0
    broken: str = ""
    sealed: bool = False
    thinned: bool = False
    """Whether what is dead in it may be gone, and its batches with it where it was sealed."""
    ended_at: int = 0
    """The slot where the file table says that it ends though it was not sealed."""
    blocks_count: int = 0
    remains_at: int | None = None
    """Where a footer that was written is damaged."""
    faults: list[Fault] = field(default_factory=list)

    @property
    def id(self) -> int:
        """The segment's id."""
        return self.header.segment

    def place(self, slot: int) -> Place:
        """Say where a slot is."""
        return Place(self.name, slot * BLOCK_BYTES)

    def scan(self, file: PoolFile, seed: int, *, quick: bool) -> Scan:
        """Look at all of it that counts; `quick`: leave the bytes of blocks out."""
        last, ended_at = self.last, self.ended_at
        return scan_segment(file, self.header, seed, quick=quick, last=last, ended_at=ended_at)

    def take(self, scan: Scan) -> None:
        """Keep of a scan what is needed later."""
        self.durable, self.broken, self.end_slot = scan.durable, scan.broken, scan.end_slot
        self.beyond_count, self.faults = scan.beyond_count, scan.faults
        self.sealed = scan.footer is not None
        if scan.remains and not scan.remains.torn:
            self.remains_at = scan.remains.offset_bytes
        self.blocks_count = int((scan.block_indexes != NO_BLOCK).sum())
        if scan.batches:
            first, last = scan.batches[0], scan.batches[-1]
            self.first_sequence, self.last_sequence = first.sequence, last.sequence
            self.first_durable, self.last_durable = first.durable, last.durable
            self.last_slot = last.header_slot


@dataclass
class Log:
    """The segments of a log in order, and what was found out about it."""

    segments: list[Segment]
    """Those that count."""
    names: set[str]
    """All files in the directory that are not foreign."""
    last_sequence: int = 0
    """The last batch that counts."""
    bad_blocks: dict[int, tuple[int, Finding]] = field(default_factory=dict)
    """By locator: the index of the block whose bytes are wrong, and what was said of it."""

    def find(self, segment_id: int) -> Segment | None:
        """Give a segment by its id."""
        return self._by_id.get(segment_id)

    def forget(self, gone: set[int]) -> None:
        """Let go of segments that were given back."""
        self.segments[:] = [it for it in self.segments if it.id not in gone]
        self._by_id = {segment.id: segment for segment in self.segments}

    def drop(self, index: int) -> None:
        """Let go of the segments from `index` on."""
        del self.segments[index:]
        self._by_id = {segment.id: segment for segment in self.segments}

    def __post_init__(self) -> None:
        self._by_id = {segment.id: segment for segment in self.segments}


class LogReader:
    """Reads a log once. `until_cut`: nothing behind the commit's cut is looked at."""

    def __init__(
        self, files: PoolFiles, descriptor: Descriptor, commit: Commit, until_cut: bool
    ) -> None:
        self._files, self._report = files, files.report
        self._descriptor, self._commit = descriptor, commit
        self._until_cut = until_cut

    def find_segments(self) -> Log:
        """Read the headers of all segments, and see which of them count."""
        names = sorted(name for name in self._files.names("segments"))
        good: list[Segment] = []
        bad: list[tuple[int, str, str]] = []
        ours = set()
        for name in names:
            stem = name.removesuffix(".seg")
            if stem == name or not FILE_NAME.fullmatch(stem):
                self._report.note(f"'segments/{name}' is foreign: nothing reads it")
                continue
            ours.add(name)
            file_id = int(stem, 16)
            if self._until_cut and file_id > self._commit.cut_position >> SLOT_BITS:
                continue
            try:
                segment = self._load_header(f"segments/{name}", file_id)
            except ForeignError as error:
                self._report.note(f"'segments/{name}' is foreign: {error}")
                ours.discard(name)
                continue
            except MalformedError as error:
                bad.append((file_id, f"segments/{name}", str(error)))
                continue
            if segment is not None:
                good.append(segment)
        self._mark_ends(good)
        self._report_bad_headers(good, bad)
        return Log([segment for segment in good if not segment.discarded], ours)

    def _load_header(self, name: str, file_id: int) -> Segment | None:
        with self._files.open(name) as file:
            page = file.read(0, BLOCK_BYTES)
        if len(page) < BLOCK_BYTES or not any(page[:BLANK_BYTES]):
            self._report.note(f"'{name}' is blank")
            return None
        header = decode_segment_header(page)
        check_identity(header, self._descriptor.seed, self._commit.log, file_id)
        return Segment(name, header)

    def _mark_ends(self, segments: list[Segment]) -> None:
        """Clip each stretch where the next one says that the log before it ended."""
        end = end_sequence = None
        for segment in reversed(segments):
            header = segment.header
            if end is not None and end_sequence is not None:
                segment.discarded = segment.id > end >> SLOT_BITS or end == 0
                if segment.id == end >> SLOT_BITS:
                    segment.last = Last(end & ((1 << SLOT_BITS) - 1), end_sequence)
            if header.opens and not segment.discarded:
                end, end_sequence = header.end_position, header.end_sequence
        cut = self._commit.cut_position
        if self._until_cut and segments and segments[-1].id == cut >> SLOT_BITS:
            last = Last(cut & ((1 << SLOT_BITS) - 1), self._commit.cut_sequence)
            segments[-1].last = segments[-1].last or last

    def _report_bad_headers(self, segments: list[Segment], bad: list[tuple[int, str, str]]) -> None:
        for file_id, name, text in bad:
            after = next((it for it in segments if it.id > file_id and it.header.opens), None)
            if after is not None and file_id > after.header.end_position >> SLOT_BITS:
                self._report.note(f"'{name}' was discarded; its header is damaged")
                continue
            self._report.add("segment_header", f"a segment's header: {text}", Place(name, 0))

    def know(self, log: Log, known: set[int], thinned: set[int], ended: dict[int, int]) -> None:
        """Take from the file tables which segments were given back, and which of them in part.

        `ended`: where those end that were never sealed. The segment that followed them said it
        too, but may have been given back.
        """
        cut = self._commit.cut_position >> SLOT_BITS
        stale = {it.id for it in log.segments if it.id < cut and it.id not in known}
        for segment in log.segments:
            segment.thinned = segment.id in thinned
            segment.ended_at = ended.get(segment.id, 0)
            if segment.id in stale:
                self._report.note(f"'{segment.name}' was given back; nothing reads it")
        log.forget(stale)

    def scan(self, log: Log, quick: bool) -> None:
        """Scan all segments, report what is wrong in them, and find where the log ends."""
        for segment in log.segments:
            self._scan_one(segment, quick)
        durable = self._last_durable(log)
        if quick:
            for segment in log.segments:
                if segment.last is None and segment.last_sequence > durable:
                    self._scan_one(segment, False)
        self._follow(log, durable)
        for segment in log.segments:
            self._report_faults(log, segment)

    def _scan_one(self, segment: Segment, quick: bool) -> None:
        if segment.thinned and not segment.ended_at:
            self._look_at_thinned(segment)
            return
        quick = quick or segment.thinned
        try:
            with self._files.open(segment.name) as file:
                scan = segment.scan(file, self._descriptor.seed, quick=quick)
        except MalformedError as error:
            segment.broken = str(error)
            return
        segment.take(scan)
        report = self._report
        report.count("segments_count")
        report.count("batches_count", len(scan.batches))
        report.count("records_count", scan.records_count)
        report.count("blocks_count", scan.blocks_count)

    def _look_at_thinned(self, segment: Segment) -> None:
        self._report.count("segments_count")
        try:
            with self._files.open(segment.name) as file:
                trailer = load_trailer(file, segment.header)
        except MalformedError as error:
            segment.broken = str(error)
            self._report.add("footer", f"segment {segment.id:012x}: {error}", segment.place(0))
            return
        segment.sealed, segment.end_slot = True, trailer.slots_count
        segment.first_sequence, segment.last_sequence = trailer.first, trailer.last
        segment.durable = trailer.durable

    def _last_durable(self, log: Log) -> int:
        commit = self._commit
        named = [commit.durable, commit.cut_sequence]
        for segment in reversed(log.segments):
            named.append(segment.durable)
            if segment.header.opens:
                named.append(segment.header.end_sequence)
                break
        return max(named)

    def _follow(self, log: Log, durable: int) -> None:
        """Follow the chain of batches, and end it where "Opening" says that it ends."""
        if self._until_cut:
            durable = self._commit.cut_sequence
        opens = [at for at, segment in enumerate(log.segments) if segment.header.opens]
        opening = opens[-1] if opens else 0
        before: Segment | None = None
        expected, last_durable = 1, 0
        for index, segment in enumerate(log.segments):
            # Up to the end of a stretch that has ended, and where the last one opens, all is there.
            may_end = index > opening and expected > durable
            gap = self._is_gap(before, segment)
            if gap and segment.first_sequence:
                expected = segment.first_sequence
            if not gap and not self._check_chain(before, segment, expected, may_end):
                self._cut_off(log, index)
                break
            if segment.header.opens and not gap:
                self._check_opening(before, segment, expected)
            is_told = segment.first_sequence and segment.last_slot
            if is_told and segment.first_durable < last_durable:
                text = f"batch {segment.first_sequence} names an older batch durable than before"
                self._report.add("batch_durable", text, segment.place(1))
            last_durable = max(last_durable, segment.last_durable)
            ended = index >= opening and self._end_inside(segment, durable)
            if segment.last_sequence:
                expected = segment.last_sequence + 1
            if segment.last:
                self._check_end(segment, segment.last)
                expected = segment.last.sequence + 1
            before = segment
            if ended:
                self._cut_off(log, index + 1)
                break
        log.last_sequence = self._report.last_sequence = expected - 1
        if expected <= durable:
            place = before.place(before.end_slot) if before else Place("segments")
            reason = f": {before.broken}" if before and before.broken else ""
            text = f"the log ends at batch {expected - 1}, but batch {durable} was durable{reason}"
            self._report.add("log_gap", text, place)

    def _cut_off(self, log: Log, index: int) -> None:
        for segment in log.segments[index:]:
            self._report.note(f"'{segment.name}' lies behind the log's end, and was not durable")
        log.drop(index)

    def _is_gap(self, before: Segment | None, segment: Segment) -> bool:
        """Whether the segment before this one may have been given back."""
        at_cut = self._commit.cut_position >> SLOT_BITS
        return segment.header.previous != (before.id if before else 0) and segment.id <= at_cut

    def _check_chain(
        self, before: Segment | None, segment: Segment, expected: int, may_end: bool
    ) -> bool:
        """See whether a segment follows the one before. Result: false where the log ends here."""
        previous = before.id if before else 0
        chained = segment.header.previous == previous
        if chained and segment.first_sequence in (0, expected):
            return True
        if may_end:
            return False
        text, place = f"batch {expected} is missing", segment.place(0)
        if not chained:
            text += f": the segment before is {segment.header.previous:012x}, not {previous:012x}"
        elif before and before.broken:
            text, place = f"{text}: {before.broken}", before.place(before.end_slot)
        else:
            text += f": the segment begins with batch {segment.first_sequence}"
        self._report.add("log_gap", text, place)
        return True

    def _check_opening(self, before: Segment | None, segment: Segment, expected: int) -> None:
        header = segment.header
        end = before.id << SLOT_BITS | before.last_slot if before and before.last_slot else 0
        if before and before.last:
            end = before.id << SLOT_BITS | before.last.slot
        elif before and before.thinned:
            end = header.end_position
        if (header.end_position, header.end_sequence) != (end, expected - 1):
            text = f"it opens after batch {header.end_sequence} at {header.end_position:016x}"
            text += f", but before it is batch {expected - 1} at {end:016x}"
            self._report.add("log_gap", text, segment.place(0))

    def _check_end(self, segment: Segment, last: Last) -> None:
        if not segment.thinned and (segment.last_slot, segment.last_sequence) != last:
            text = f"batch {last.sequence} at slot {last.slot} should be its last one that counts"
            text += f", but batch {segment.last_sequence} at slot {segment.last_slot} is"
            if segment.broken:
                text += f": {segment.broken}"
            self._report.add("log_gap", text, segment.place(segment.end_slot))

    def _end_inside(self, segment: Segment, durable: int) -> bool:
        """End the log at the first fault of the last stretch that is no damage."""
        torn = [it for it in segment.faults if it.sequence > durable and it.code in TORN]
        if not torn:
            return False
        first = min(it.sequence for it in torn)
        segment.last_sequence = first - 1
        segment.faults = [it for it in segment.faults if 0 < it.sequence < first]
        segment.remains_at, segment.sealed = None, False
        self._report.note(
            f"the log ends at batch {first - 1}: the next one was not durable and is torn"
        )
        return True

    def _report_faults(self, log: Log, segment: Segment) -> None:
        for fault in segment.faults:
            text = f"segment {segment.id:012x}, slot {fault.slot}: {fault.text}"
            finding = self._report.add(fault.code, text, segment.place(fault.slot))
            if fault.block_index is not None:
                locator = segment.id << SLOT_BITS | fault.slot
                log.bad_blocks[locator] = (fault.block_index, finding)
        if segment.remains_at is not None:
            place = Place(segment.name, segment.remains_at)
            text = f"segment {segment.id:012x}: a part of its footer is damaged"
            self._report.add("footer", text, place)
