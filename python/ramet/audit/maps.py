"""Maps, walked for many objects at once; each node is read once, however many objects share it.

Docs: docs/internals/format.md, "Node files", I12, I13, I15 and I16. Memory: `CHUNK_NODES` nodes and
their blocks at a time, four bytes for each 64 bytes of node file that is reached, and what slots.py
keeps. Invariant: a node that cannot be read is told, and the walk goes on beside it.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ramet.audit.checksums import U64Array
from ramet.audit.nodes import MAP_DENSE, MAP_INNER, MAP_RUNS, UNIT_MASK, Node, NodeFiles
from ramet.audit.report import Finding, Report
from ramet.audit.slots import Slots
from ramet.audit.structures import (
    LEAF_BLOCKS,
    REFERENCE_BYTES,
    SLOT_BITS,
    SLOTS_MAX,
    UNITS_MAX,
    MalformedError,
    Reference,
)

CHUNK_NODES = 2048  # With 512 blocks each: a million blocks, in arrays of 8 bytes for each.
FANOUT_BITS = 6
RUNS_MAX = 256
NEEDS_MAX = 1000  # Nodes whose objects are named; those of more findings are not.

REFERENCE: Final = np.dtype(
    [
        ("address", "<u8"),
        ("second", "<u8"),
        ("length", "<u4"),
        ("checksum", "<u4"),
        ("newest", "<u8"),
        ("below", "<u8"),
    ]
)
WORK: Final = np.dtype([("reference", REFERENCE), ("first", "<u8"), ("height", "<u8")])
RUN: Final = np.dtype([("start", "<u2"), ("length", "<u2"), ("locator", "<u8")])
WorkArray = npt.NDArray[np.void]
Rows = npt.NDArray[np.int64]


class Need(NamedTuple):
    """Whoever reaches the node at `address` needs these blocks, and something is wrong there."""

    address: int
    first: int
    blocks_count: int
    finding: Finding


class Runs(NamedTuple):
    """Runs of many leaves: of which leaf, the first block, how many, and the first's locator."""

    row: Rows
    block: U64Array
    length: U64Array
    locator: U64Array


def work_of(roots: list[tuple[Reference, int]]) -> WorkArray:
    """Make work of roots and their heights; a map's first block is 0."""
    work = np.zeros(len(roots), dtype=WORK)
    work["reference"] = np.array([tuple(root) for root, _ in roots], dtype=REFERENCE)
    work["height"] = [height for _, height in roots]
    return work


def references_of(work: WorkArray) -> list[Reference]:
    """Give work's references one by one."""
    return [Reference(*row) for row in work["reference"].tolist()]


class MapWalk:
    """Walks maps of one checkpoint. `newest_max`: no position may be after it."""

    def __init__(self, nodes: NodeFiles, report: Report, slots: Slots, newest_max: int) -> None:
        self._nodes, self._report, self._slots = nodes, report, slots
        self.newest_max = newest_max
        self.needs: list[Need] = []
        self.complete = True
        """Whether all nodes could be read."""
        self._prints: dict[int, npt.NDArray[np.uint32]] = {}

    def turn_to(self, slots: Slots, newest_max: int) -> None:
        """Go on with another checkpoint: what was met is not walked again."""
        self._slots, self.newest_max = slots, newest_max

    def files(self) -> dict[int, int]:
        """Give the node files that were reached, and for each the highest unit."""
        return {it: int(np.nonzero(prints)[0][-1]) for it, prints in self._prints.items()}

    def walk(self, roots: list[tuple[Reference, int]]) -> None:
        """Walk the maps with these roots, without what was walked before."""
        if not roots:
            return
        work = work_of(roots)
        for at in np.nonzero(work["reference"]["newest"] > np.uint64(self.newest_max))[0]:
            self._bad(work[at], "a map's newest change is after the cut")
        stack = [work]
        while stack:
            work = stack.pop()
            if len(work) > CHUNK_NODES:
                stack.append(work[CHUNK_NODES:])
                work = work[:CHUNK_NODES]
            children = self._take(self._new(work))
            if len(children):
                stack.append(children)

    def _bad(self, work: np.void, text: str, code: str = "map_node", count: int = 0) -> None:
        address, first = int(work["reference"]["address"]), int(work["first"])
        finding = self._report.add(code, f"in a map: {text}", self._nodes.place(address, False))
        self._need(address, first, count or span_blocks(int(work["height"])), finding)

    def _need(self, address: int, first: int, count: int, finding: Finding) -> None:
        if len(self.needs) < NEEDS_MAX:
            self.needs.append(Need(address, first, count, finding))

    def _new(self, work: WorkArray) -> WorkArray:
        """Leave out what was met before; whoever refers to a node says the same of it."""
        work = work[np.argsort(work["reference"]["address"], kind="stable")]
        prints = _fingerprints(work)
        address = work["reference"]["address"]
        files = address >> np.uint64(SLOT_BITS)
        units = (address & np.uint64(UNIT_MASK)).astype(np.intp)
        is_new = np.zeros(len(work), dtype=bool)
        starts = [0, *(np.nonzero(files[1:] != files[:-1])[0] + 1).tolist()]
        for start, end in zip(starts, [*starts[1:], len(work)], strict=True):
            file_id = int(files[start])
            met = self._prints.get(file_id)
            if met is None:
                met = self._prints[file_id] = np.zeros(UNITS_MAX, dtype=np.uint32)
            part, its_units = prints[start:end], units[start:end]
            fresh = met[its_units] == 0
            # Of equal addresses in one chunk the first counts, the others must be like it.
            fresh[1:] &= its_units[1:] != its_units[:-1]
            met[its_units[fresh]] = part[fresh]
            is_new[start:end] = fresh
            for at in np.nonzero(met[its_units] != part)[0].tolist():
                self._bad(work[start + at], "two references to one node differ", "map_reference")
        return work[is_new]

    def _take(self, work: WorkArray) -> WorkArray:
        """Read nodes and hold them. Result: what lies below them."""
        inner: list[tuple[int, Node]] = []
        leaves: list[tuple[int, Node]] = []
        rows = zip(
            references_of(work), work["first"].tolist(), work["height"].tolist(), strict=True
        )
        for row, (reference, first, height) in enumerate(rows):
            try:
                node = self._nodes.read(reference, False)
                _check_node(node, first, height)
            except MalformedError as error:
                self._bad(work[row], str(error))
                self.complete = False
                continue
            (leaves if height == 0 else inner).append((row, node))
        self._report.count("nodes_count", len(inner) + len(leaves))
        if leaves:
            self._take_leaves(work, leaves)
        return self._children(work, inner) if inner else work[:0]

    def _children(self, work: WorkArray, inner: list[tuple[int, Node]]) -> WorkArray:
        rows = np.array([row for row, _ in inner])
        counts = np.array([node.entries_count for _, node in inner])
        body = b"".join(node.body[8:] for _, node in inner)
        references = np.frombuffer(body, dtype=REFERENCE)
        bitmaps = np.frombuffer(b"".join(node.body[:8] for _, node in inner), dtype=np.uint8)
        bits = np.unpackbits(bitmaps.reshape(-1, 8), axis=1, bitorder="little")
        which, child = np.nonzero(bits)
        parents = work[rows]
        starts = np.cumsum(counts) - counts
        below = np.add.reduceat(references["below"], starts)
        newest = np.maximum.reduceat(references["newest"], starts)
        empty = np.minimum.reduceat(references["below"], starts) == 0
        wrong = (below != parents["reference"]["below"]) | empty
        wrong |= newest > parents["reference"]["newest"]
        for at in np.nonzero(wrong)[0].tolist():
            self._bad(parents[at], "a node's sums are not those of its children")
        children = np.zeros(len(references), dtype=WORK)
        children["reference"] = references
        height = parents["height"][which] - np.uint64(1)
        children["height"] = height
        shift = np.uint64(9) + np.uint64(FANOUT_BITS) * height
        children["first"] = parents["first"][which] + (child.astype(np.uint64) << shift)
        return children

    def _take_leaves(self, work: WorkArray, leaves: list[tuple[int, Node]]) -> None:
        runs = _runs_of(leaves, work["first"])
        for row, text in _wrong_leaves(runs, leaves, work):
            self._bad(work[row], text)
        counts = runs.length.astype(np.int64)
        within = (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)).astype(
            np.uint64
        )
        locators = np.repeat(runs.locator, counts) + within
        blocks = np.repeat(runs.block, counts) + within
        rows = np.repeat(runs.row, counts)
        for at, wrong in self._slots.hold(locators, blocks):
            address, block = int(work["reference"]["address"][rows[at]]), int(blocks[at])
            text = f"in a map: block {block} at {int(locators[at]):016x}: {wrong.text}"
            place = self._nodes.place(address, False)
            finding = wrong.finding or self._report.add(wrong.code, text, place)
            self._need(address, block, 1, finding)


def span_blocks(height: int) -> int:
    """Give how many blocks a node of this height spans."""
    return LEAF_BLOCKS << FANOUT_BITS * height


def _check_node(node: Node, first: int, height: int) -> None:
    """Hold a node against its place.

    Raises: MalformedError.
    """
    if node.height != height or node.first != first:
        text = f"a node of height {node.height} from block {node.first}"
        raise MalformedError(f"{text}, not of height {height} from block {first}")
    if node.kind == MAP_INNER and height > 0:
        children_count = int.from_bytes(node.body[:8], "little").bit_count()
        length = 8 + REFERENCE_BYTES * node.entries_count
        right = node.entries_count == children_count > 0 and len(node.body) == length
    elif node.kind == MAP_RUNS and height == 0:
        right = (
            0 < node.entries_count <= RUNS_MAX
            and len(node.body) == RUN.itemsize * node.entries_count
        )
    elif node.kind == MAP_DENSE and height == 0:
        right = len(node.body) == 8 * LEAF_BLOCKS
    else:
        right = False
    if not right:
        text = f"a node of kind {node.kind} with {node.entries_count} and {len(node.body)} bytes"
        raise MalformedError(text)


def _fingerprints(work: WorkArray) -> npt.NDArray[np.uint32]:
    """Give for each piece of work a number, never 0, that tells references to one node apart."""
    mixed = work["first"] ^ (work["height"] << np.uint64(58))
    for name in ("length", "checksum", "newest", "below", "second"):
        mixed = (mixed ^ work["reference"][name]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    prints: npt.NDArray[np.uint32] = (mixed >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    return prints


def _runs_of(leaves: list[tuple[int, Node]], firsts: U64Array) -> Runs:
    """Give the runs of leaves, each leaf's in order."""
    some = [(row, node) for row, node in leaves if node.kind == MAP_RUNS]
    dense = [(row, node) for row, node in leaves if node.kind == MAP_DENSE]
    told = np.frombuffer(b"".join(node.body for _, node in some), dtype=RUN)
    row = np.repeat(
        np.array([row for row, _ in some], dtype=np.int64),
        np.array([node.entries_count for _, node in some], dtype=np.int64),
    )
    start, length = told["start"].astype(np.uint64), told["length"].astype(np.uint64)
    locator = told["locator"].astype(np.uint64)
    if dense:
        row_2, start_2, length_2, locator_2 = _dense_runs(dense)
        row, start = np.concatenate((row, row_2)), np.concatenate((start, start_2))
        length, locator = np.concatenate((length, length_2)), np.concatenate((locator, locator_2))
    return Runs(row, firsts[row] + start, length, locator)


def _dense_runs(dense: list[tuple[int, Node]]) -> tuple[Rows, U64Array, U64Array, U64Array]:
    locators = np.frombuffer(b"".join(node.body for _, node in dense), dtype="<u8")
    table = locators.reshape(-1, LEAF_BLOCKS)
    mapped = table != 0
    goes_on = np.zeros(table.shape, dtype=bool)
    goes_on[:, 1:] = mapped[:, 1:] & mapped[:, :-1] & (table[:, 1:] == table[:, :-1] + np.uint64(1))
    which, start = np.nonzero(mapped & ~goes_on)
    ends = np.zeros(table.shape, dtype=bool)
    ends[:, :-1] = mapped[:, :-1] & ~goes_on[:, 1:]
    ends[:, -1] = mapped[:, -1]
    _, end = np.nonzero(ends)
    rows = np.array([row for row, _ in dense], dtype=np.int64)[which]
    return (
        rows,
        start.astype(np.uint64),
        (end - start + 1).astype(np.uint64),
        table[which, start].astype(np.uint64),
    )


def _wrong_leaves(
    runs: Runs, leaves: list[tuple[int, Node]], work: WorkArray
) -> list[tuple[int, str]]:
    """Find leaves that do not hold what a leaf holds."""
    rows_count = len(work)
    found: dict[int, str] = {}
    start = runs.block - work["first"][runs.row]
    end = start + runs.length
    slot = runs.locator & np.uint64(SLOTS_MAX - 1)
    bad = (runs.length == 0) | (end > LEAF_BLOCKS) | (slot == 0) | (slot + runs.length > SLOTS_MAX)
    same = runs.row[1:] == runs.row[:-1]
    follows = runs.locator[1:] == runs.locator[:-1] + runs.length[:-1]
    bad[1:] |= same & ((start[1:] < end[:-1]) | ((start[1:] == end[:-1]) & follows))
    found |= dict.fromkeys(runs.row[bad].tolist(), "a leaf's runs are not sorted and apart")
    mapped = np.zeros(rows_count, dtype=np.uint64)
    np.add.at(mapped, runs.row, runs.length)
    newest = np.zeros(rows_count, dtype=np.uint64)
    np.maximum.at(newest, runs.row, runs.locator + runs.length - np.uint64(1))
    told = np.zeros(rows_count, dtype=np.int64)
    is_leaf = np.zeros(rows_count, dtype=bool)
    for row, node in leaves:
        told[row], is_leaf[row] = node.entries_count, True
    counts = np.bincount(runs.row, minlength=rows_count)
    reference = work["reference"]
    for wrong, text in (
        (counts != told, "a leaf has another count of runs than it says"),
        (mapped != reference["below"], "a leaf maps another count of blocks than is said of it"),
        (newest > reference["newest"], "a leaf maps a block newer than is said of it"),
    ):
        found |= dict.fromkeys(np.nonzero(wrong & is_leaf)[0].tolist(), text)
    return sorted(found.items())
