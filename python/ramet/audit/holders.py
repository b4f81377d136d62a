"""Which objects need what is wrong: the maps once more, along the ways to wrong places only.

Memory: what is wrong, for each node on a way to it.
"""

from bisect import bisect_left

from ramet.audit.maps import FANOUT_BITS, Need, span_blocks
from ramet.audit.nodes import MAP_DENSE, MAP_INNER, MAP_RUNS, NodeFiles
from ramet.audit.structures import (
    LEAF_BLOCKS,
    REFERENCE_BYTES,
    MalformedError,
    Reference,
    decode_reference,
)

NODES_KEPT_MAX = 100_000


class Holders:
    """Finds needs in maps. Whatever two maps share is looked at once."""

    def __init__(self, nodes: NodeFiles, needs: list[Need]) -> None:
        self._nodes = nodes
        self._needs: dict[int, list[Need]] = {}
        for need in needs:
            self._needs.setdefault(need.address, []).append(need)
        self._firsts = sorted({need.first for need in needs})
        self._found: dict[int, list[Need]] = {}

    def of(self, root: Reference, height: int) -> list[Need]:
        """Give what a map needs of it all."""
        return self._below(root, height, 0)

    def _below(self, reference: Reference, height: int, first: int) -> list[Need]:
        found = self._found.get(reference.address)
        if found is None:
            found = list(self._needs.get(reference.address, ()))
            if height and self._is_near(first, span_blocks(height)):
                found += self._in_children(reference, height, first)
            if len(self._found) < NODES_KEPT_MAX:
                self._found[reference.address] = found
        return found

    def _in_children(self, reference: Reference, height: int, first: int) -> list[Need]:
        found: list[Need] = []
        for child, child_first in children_of(self._nodes, reference, height, first):
            if self._is_near(child_first, span_blocks(height - 1)):
                found += self._below(child, height - 1, child_first)
        return found

    def _is_near(self, first: int, span: int) -> bool:
        """Whether a need may lie in a span: a node's begins where the node does."""
        at = bisect_left(self._firsts, first)
        return at < len(self._firsts) and self._firsts[at] < first + span


def children_of(
    nodes: NodeFiles, reference: Reference, height: int, first: int
) -> list[tuple[Reference, int]]:
    """Give the children of an inner node and their first blocks; none where it is damaged."""
    try:
        node = nodes.read(reference, False)
    except MalformedError:
        return []
    length = 8 + REFERENCE_BYTES * node.entries_count
    if node.kind != MAP_INNER or node.height != height or len(node.body) != length:
        return []
    bitmap = int.from_bytes(node.body[:8], "little")
    span = LEAF_BLOCKS << FANOUT_BITS * (height - 1)
    places = [bit for bit in range(64) if bitmap >> bit & 1]
    return [
        (decode_reference(node.body, 8 + REFERENCE_BYTES * at), first + span * bit)
        for at, bit in enumerate(places[: node.entries_count])
    ]


class Edges:
    """Finds the last block that a map maps. Whatever two maps share is looked at once."""

    def __init__(self, nodes: NodeFiles) -> None:
        self._nodes = nodes
        self._found: dict[int, int] = {}

    def last_block(self, root: Reference, height: int) -> int:
        """Give the index of the last block mapped, or less where a node is damaged."""
        found = self._found.get(root.address)
        if found is None:
            found = self._find(root, height)
            if len(self._found) < NODES_KEPT_MAX:
                self._found[root.address] = found
        return found

    def _find(self, reference: Reference, height: int) -> int:
        first = 0
        while height:
            children = children_of(self._nodes, reference, height, first)
            if not children:
                return first
            reference, first = children[-1]
            height -= 1
        return first + leaf_end(self._nodes, reference) - 1


def leaf_end(nodes: NodeFiles, reference: Reference) -> int:
    """Give how far into a leaf it maps; 1 where it is damaged."""
    try:
        node = nodes.read(reference, False)
    except MalformedError:
        return 1
    if node.kind == MAP_RUNS and len(node.body) >= 12:
        start = int.from_bytes(node.body[-12:-10], "little")
        return start + int.from_bytes(node.body[-10:-8], "little")
    if node.kind == MAP_DENSE:
        return (len(node.body.rstrip(b"\0")) + 7) // 8
    return 1
