"""A check of a pool: everything is read once, held against everything else, and told.

Docs: docs/internals/format.md, which is all that this package knows of the engine. Called by
cli/check.py. Invariants: nothing is written; whatever the bytes, the answer is a report.
"""

from pathlib import Path

from ramet.audit.checksums import BLOCK_BYTES
from ramet.audit.files import PoolFiles, pool_lock
from ramet.audit.footer import journal_batches
from ramet.audit.history import History
from ramet.audit.holders import Edges, Holders
from ramet.audit.lineage import Lineage
from ramet.audit.locks import hold_commit
from ramet.audit.log import Log, LogReader, Segment
from ramet.audit.maps import MapWalk, Need
from ramet.audit.nodes import NodeFiles
from ramet.audit.objects import EPOCH_SHIFT, VOLUME, decode_fields, decode_object
from ramet.audit.replay import Hit, Objects, Replay
from ramet.audit.report import Holder, Place, Progress, Report
from ramet.audit.scan import Last, scan_segment
from ramet.audit.slots import Slots
from ramet.audit.structures import (
    COUNTER_BITS,
    SLOT_BITS,
    SLOTS_MAX,
    Commit,
    Descriptor,
    MalformedError,
    decode_commit,
    decode_descriptor,
)
from ramet.audit.table import SEGMENT, FileTable
from ramet.audit.trees import Tree
from ramet.errors import UnavailableError

OBJECTS, LINEAGE, FILES = 1, 2, 3  # Kinds of roots.
SLOTS_OF_SUPERBLOCK = 2
INCARNATION_AT = 56
OVERTAKEN_MAX = 10  # Times that a superblock is read anew because a service wrote it meanwhile.


def check(
    root: Path,
    *,
    quick: bool = False,
    wait_seconds: float = 0.0,
    progress: Progress | None = None,
) -> Report:
    """Check the pool in directory `root`, which nobody may have open for writing.

    `quick`: leave the bytes of blocks out. Result: what was found.
    Raises: NotFoundError where there is no pool; BusyError where it is open for writing for longer
    than `wait_seconds`; UnavailableError where it cannot be read.
    Example: check(directory / "pool").clean
    """
    with pool_lock(root, wait_seconds):
        return _run(root, quick, progress, False)


def check_beside(root: Path, *, quick: bool = False, progress: Progress | None = None) -> Report:
    """Check a pool that a service has open, up to its newest checkpoint.

    What was written since is left out. Result: what was found.
    Raises: UnavailableError where the pool was closed or opened meanwhile, and files that the
    check needed may have gone.
    Example: check_beside(directory / "pool").clean
    """
    before = _incarnations(root)
    report = _run(root, quick, progress, True)
    if not report.clean and not _incarnations(root) <= before:
        raise UnavailableError(
            "check_overtaken",
            f"'{root}' was closed and opened while it was checked; hint: check it again",
        )
    return report


def _incarnations(root: Path) -> set[bytes]:
    """Give who wrote the superblock."""
    content = (root / "superblock").read_bytes() if (root / "superblock").exists() else b""
    slots = [content[at : at + BLOCK_BYTES] for at in (0, BLOCK_BYTES)]
    return {slot[INCARNATION_AT : INCARNATION_AT + 16] for slot in slots}


def _run(root: Path, quick: bool, progress: Progress | None, until_cut: bool) -> Report:
    report = Report()
    files = PoolFiles(root, report, progress)
    try:
        _Check(files, quick, until_cut).run()
    finally:
        files.close()
    return report


class _Check:
    def __init__(self, files: PoolFiles, quick: bool, until_cut: bool) -> None:
        self._files, self._report = files, files.report
        self._quick, self._until_cut = quick, until_cut

    def run(self) -> None:
        descriptor = self._load_descriptor()
        checkpoints = self._load_checkpoints(descriptor) if descriptor else None
        if not descriptor or not checkpoints:
            self._report.note("nothing else can be checked without it")
            return
        self._seed = descriptor.seed
        commits = checkpoints.commits
        newer = commits[0]
        reader = LogReader(self._files, descriptor, newer, self._until_cut)
        log = self._log = reader.find_segments()
        self._check_epochs(newer, [segment.id for segment in log.segments])
        self._check_epochs(newer, list(checkpoints.tables[0].entries))
        known = checkpoints.known_files()
        reader.know(log, known, checkpoints.thinned_segments(), checkpoints.ended_segments())
        self._files.bytes_to_read = self._bytes_of(log)
        self._files.doing = "reading the log"
        reader.scan(log, self._quick)
        self._files.doing = "reading maps"
        checkpoints.log = log
        objects, needs = checkpoints.hold_newer(self._quick)
        checkpoints.hold_older(self._quick)
        holders = Holders(checkpoints.nodes, needs)
        if needs:
            for it in objects.by_id.values():
                if it.root:
                    found = [Hit(*need[1:]) for need in holders.of(*it.root)]
                    if found:
                        objects.hits[it.id] = found
        self._files.doing = "replaying the log"
        self._hold_history(newer, objects, checkpoints.bad_nodes_count)
        if not self._until_cut:
            self._replay(newer, objects)
        self._name_holders(objects)

    def _load_descriptor(self) -> Descriptor | None:
        try:
            with self._files.open("pool") as file:
                descriptor = decode_descriptor(file.page(0))
                length_bytes = file.length_bytes
        except MalformedError as error:
            self._report.add("descriptor", f"the file 'pool': {error}", Place("pool", 0))
            return None
        if length_bytes != BLOCK_BYTES:
            self._report.add("descriptor", f"it has {length_bytes} bytes", Place("pool"))
        compatible, read_only, incompatible = descriptor.features
        if incompatible:
            text = f"the pool has feature bits {incompatible:#x} that are not known here"
            self._report.add("feature_unknown", text, Place("pool", 80))
            return None
        if compatible or read_only:
            text = f"feature bits {compatible:#x} and {read_only:#x} are not known here"
            self._report.note(f"{text}: what they stand for is not checked")
        return descriptor

    def _load_checkpoints(self, descriptor: Descriptor) -> "_Checkpoints | None":
        """Read the superblock and the file tables that it names.

        A service removes a table once no slot names it: what was overtaken is read again.
        """
        own = self._files.report
        for turn in range(OVERTAKEN_MAX):
            report = self._report = self._files.report = Report()
            before = self._superblock()
            commits = self._load_commits(descriptor)
            found = _Checkpoints(self._files, descriptor, commits) if commits else None
            last = turn + 1 == OVERTAKEN_MAX
            if report.clean or not self._until_cut or last or self._superblock() == before:
                break
        self._report = self._files.report = own
        own.take(report)
        if found:
            found.report_to(own)
        return found

    def _superblock(self) -> bytes:
        path = self._files.root / "superblock"
        return path.read_bytes() if path.exists() else b""

    def _load_commits(self, descriptor: Descriptor) -> list[Commit]:
        """Read the superblock. Result: its valid slots, the newer first, without copies."""
        found: list[tuple[int, Commit, bytes]] = []
        try:
            with self._files.open("superblock") as file:
                content = file.read(0, SLOTS_OF_SUPERBLOCK * BLOCK_BYTES)
                length_bytes = file.length_bytes
        except MalformedError as error:
            self._report.add("superblock", str(error), Place("superblock"))
            return []
        if length_bytes != SLOTS_OF_SUPERBLOCK * BLOCK_BYTES:
            text = f"the superblock has {length_bytes} bytes"
            self._report.add("superblock", text, Place("superblock"))
        for slot in range(SLOTS_OF_SUPERBLOCK):
            page = content[slot * BLOCK_BYTES :][:BLOCK_BYTES]
            try:
                commit = decode_commit(page, descriptor.seed)
                hold_commit(commit)
                found.append((slot, commit, page))
            except MalformedError as error:
                place = Place("superblock", slot * BLOCK_BYTES)
                self._report.add("superblock", f"slot {slot} of the superblock: {error}", place)
        found.sort(key=lambda it: -it[1].number)
        if len(found) == SLOTS_OF_SUPERBLOCK:
            self._compare_commits(found)
            if found[0][1].number == found[1][1].number:
                found.pop()
        return [commit for _, commit, _ in found]

    def _compare_commits(self, found: list[tuple[int, Commit, bytes]]) -> None:
        (slot, newer, page), (_, older, older_page) = found
        text = ""
        if newer.log != older.log:
            text = "they are of two logs"
        elif newer.number == older.number:
            text = "" if page == older_page else f"they differ, and both have number {newer.number}"
        elif newer.number != older.number + 1 or newer.number_before != older.number:
            text = f"commit {newer.number} names {newer.number_before} as the one before"
            text += f", but the other slot holds commit {older.number}"
        elif slot != newer.number % SLOTS_OF_SUPERBLOCK:
            text = f"commit {newer.number} is in slot {slot}"
        elif newer.epoch < older.epoch or newer.cut_sequence < older.cut_sequence:
            text = "the newer one has the lower epoch or cut"
        elif newer.lock_clock_ns < older.lock_clock_ns:
            text = "the newer one has the lower lock clock"
        if text:
            place = Place("superblock", slot * BLOCK_BYTES)
            self._report.add("superblock", f"the superblock's slots: {text}", place)

    def _check_epochs(self, commit: Commit, file_ids: list[int]) -> None:
        newest = max(file_ids, default=0)
        if newest >> COUNTER_BITS > commit.epoch:
            text = f"file {newest:012x} is of epoch {newest >> COUNTER_BITS}"
            text += f", but the highest one taken is {commit.epoch}"
            self._report.add("epoch", text, Place("superblock"))

    def _bytes_of(self, log: Log) -> int:
        if self._quick:
            return 0
        return sum((self._files.root / it.name).stat().st_size for it in log.segments)

    def _hold_history(self, commit: Commit, objects: Objects, bad_nodes_count: int) -> None:
        """Replay what lies before the cut, as far as it is there."""
        history = History(self._files, self._log, self._seed, commit)
        history.replay()
        if not bad_nodes_count:
            history.hold(objects.by_id)
        objects.last_id = max(objects.last_id, history.objects.last_id)

    def _replay(self, commit: Commit, objects: Objects) -> None:
        """Replay what lies between the cut and the log's end."""
        replay = Replay(self._report, objects, self._log.bad_blocks)
        for segment in self._log.segments:
            if segment.id >= commit.cut_position >> SLOT_BITS:
                try:
                    self._replay_segment(segment, commit, replay)
                except MalformedError as error:
                    self._report.add("segment", str(error), segment.place(0))

    def _replay_segment(self, segment: Segment, commit: Commit, replay: Replay) -> None:
        with self._files.open(segment.name) as file:
            scan = segment.scan(file, self._seed, quick=True)
            for slot, batch in journal_batches(scan.journal):
                if commit.cut_sequence < batch.sequence <= self._log.last_sequence:
                    locator = segment.id << SLOT_BITS | slot
                    replay.apply(
                        batch,
                        locator,
                        segment.place(slot),
                        lambda at, length: file.read(at * BLOCK_BYTES, length),
                    )

    def _name_holders(self, objects: Objects) -> None:
        for it in objects.by_id.values():
            if it.name and not it.delete_after_ns:
                name = "volumes_count" if it.kind == VOLUME else "snapshots_count"
                self._report.count(name)
        for object_id, hits in objects.hits.items():
            name = objects.by_id[object_id].name
            for hit in hits:
                holder = Holder(name, hit.first * BLOCK_BYTES, hit.blocks_count * BLOCK_BYTES)
                hit.finding.hold(holder)


class _Checkpoints:
    """Holds the checkpoints that the superblock names. What both reach is read once."""

    def __init__(self, files: PoolFiles, descriptor: Descriptor, commits: list[Commit]) -> None:
        self._files, self._report = files, files.report
        self._seed, self.commits = descriptor.seed, commits
        self.nodes = NodeFiles(files, descriptor, commits[0])
        self._trees = {
            OBJECTS: Tree(self.nodes, files.report, False),
            LINEAGE: Tree(self.nodes, files.report, False),
            FILES: Tree(self.nodes, files.report, True),
        }
        self._walk: MapWalk | None = None
        self.log = Log([], set())
        """To be set before anything is held."""
        self.tables = [self._load_table(commit) for commit in commits]

    def report_to(self, report: Report) -> None:
        """Report to another from here on."""
        self._report = self.nodes.report = report
        for tree in self._trees.values():
            tree.report = report
        for table in self.tables:
            table.report = report

    @property
    def bad_nodes_count(self) -> int:
        """How many nodes of trees could not be read so far."""
        return sum(tree.bad_count for tree in self._trees.values())

    def known_files(self) -> set[int]:
        """Give the files that a table names; nodes that both reach are read for the newer."""
        return {key for table in self.tables for key in table.entries.keys() | table.bad_keys}

    def thinned_segments(self) -> set[int]:
        """Give the segments of which dead slots may be gone."""
        entries = [item for table in self.tables for item in table.entries.items()]
        return {key for key, entry in entries if entry.thinned}

    def ended_segments(self) -> dict[int, int]:
        """Give the slots where segments end that were never sealed."""
        entries = self.tables[0].entries.items()
        return {key: it.used for key, it in entries if it.kind == SEGMENT and not it.sealed}

    def hold_newer(self, quick: bool) -> tuple[Objects, list[Need]]:
        """Hold a checkpoint in every respect. Result: its objects, and what is wrong in maps."""
        commit, table = self.commits[0], self.tables[0]
        objects, lineage = self._load(commit)
        table.hold_segments(self.log, commit)
        last = self._last_slot(commit)
        slots = Slots(self._files, self.log, self._seed, last, table.dead(), quick=quick)
        walk = self._walk = MapWalk(self.nodes, self._report, slots, last)
        self._walk_maps(walk, objects, lineage)
        self._check_sizes(objects)
        lineage.hold(objects.by_id.values())
        table.hold_nodes(self.nodes, self._reached(walk))
        self._tally(slots, commit)
        return objects, walk.needs

    def hold_older(self, quick: bool) -> None:
        """Hold what only the older checkpoint reaches."""
        for commit, table in zip(self.commits[1:], self.tables[1:], strict=True):
            objects, lineage = self._load(commit)
            last = self._last_slot(commit)
            slots = Slots(self._files, self.log, self._seed, last, table.dead(), quick=quick)
            assert self._walk is not None
            self._walk.turn_to(slots, last)
            self._walk_maps(self._walk, objects, lineage)

    def _load_table(self, commit: Commit) -> FileTable:
        table = FileTable(self._report)
        if commit.table_file:
            self.nodes.header(commit.table_file, True)
        for kind in commit.roots.keys() - self._trees.keys():
            text = f"a root of kind {kind} is not known here"
            self._report.add("superblock", text, Place("superblock"))
        if FILES in commit.roots:
            for key, value in self._trees[FILES].walk(commit.roots[FILES]):
                table.take(key, value)
        return table

    def _load(self, commit: Commit) -> tuple[Objects, Lineage]:
        objects = Objects(self._report, commit.has_lock_secret)
        lineage = Lineage(self._report, commit.epoch)
        if OBJECTS in commit.roots:
            for key, value in self._trees[OBJECTS].walk(commit.roots[OBJECTS]):
                self._take_object(objects, key, value, commit.epoch)
        if LINEAGE in commit.roots:
            for key, value in self._trees[LINEAGE].walk(commit.roots[LINEAGE]):
                lineage.take(key, value)
        return objects, lineage

    def _take_object(self, objects: Objects, key: int, value: bytes, epoch_max: int) -> None:
        try:
            made = decode_object(decode_fields(value))
            objects.add(made)
        except MalformedError as error:
            self._report.add("object", f"object {key:#x}: {error}", Place("nodes"))
            return
        if made.id != key or made.place == 0:
            text = f"object {key:#x} says that it is {made.id:#x}, at place {made.place:#x}"
            self._report.add("object", text, Place("nodes"))
        if made.id >> EPOCH_SHIFT > epoch_max:
            text = f"the id {made.id:#x} of '{made.name}' is of an epoch that was not taken"
            self._report.add("object", text, Place("nodes"))

    def _last_slot(self, commit: Commit) -> int:
        """Give the locator of the last slot of the batch at the cut."""
        if commit.cut_position == 0:
            return 0
        segment = self.log.find(commit.cut_position >> SLOT_BITS)
        at = Last(commit.cut_position & (SLOTS_MAX - 1), commit.cut_sequence)
        if segment is not None and segment.thinned:
            return segment.id << SLOT_BITS | segment.end_slot - 1
        if segment is not None:
            try:
                with self._files.open(segment.name) as file:
                    scan = scan_segment(file, segment.header, self._seed, quick=True, last=at)
            except MalformedError:
                return commit.cut_position
            for batch in scan.batches:
                if (batch.header_slot, batch.sequence) == at:
                    return commit.cut_position + batch.slots_count - 1
        text = f"batch {at.sequence} is not at {commit.cut_position:016x}, where the cut is"
        self._report.add("cut", text, Place("superblock"))
        return commit.cut_position

    def _walk_maps(self, walk: MapWalk, objects: Objects, lineage: Lineage) -> None:
        roots = [it.root for it in objects.by_id.values()]
        walk.walk([root for root in roots if root is not None] + lineage.roots)

    def _check_sizes(self, objects: Objects) -> None:
        edges = Edges(self.nodes)
        for it in objects.by_id.values():
            if it.root is not None:
                last = edges.last_block(*it.root)
                if last >= it.blocks_count:
                    text = f"'{it.name}' maps block {last}, but has {it.blocks_count}"
                    self._report.add("object", text, Place("nodes"))

    def _reached(self, walk: MapWalk) -> dict[int, int]:
        reached = walk.files()
        for kind in (OBJECTS, LINEAGE):
            for address in self._trees[kind].met:
                file_id, unit = address >> SLOT_BITS, address & (SLOTS_MAX - 1)
                reached[file_id] = max(reached.get(file_id, 0), unit)
        return reached

    def _tally(self, slots: Slots, commit: Commit) -> None:
        report = self._report
        for segment in self.log.segments:
            if segment.id > commit.cut_position >> SLOT_BITS:
                break
            tally = slots.tally(segment)
            report.count("held_bytes", tally.held_count * BLOCK_BYTES)
            report.count("dead_bytes", tally.dead_count * BLOCK_BYTES)
            report.count("uncounted_bytes", tally.uncounted_count * BLOCK_BYTES)
            for slot in tally.dead_without_block:
                text = f"slot {slot} holds no block, but the file table says that it is dead"
                report.add("slot_dead", text, segment.place(slot))
