"""The trees of u64 keys: objects, lineage and file table.

Docs: docs/internals/format.md, "Node files" and "Trees", I14. Memory: the nodes on one way down,
and the addresses of those that were met.
"""

import struct
from collections.abc import Iterator
from itertools import pairwise

from ramet.audit.nodes import TREE_INNER, TREE_LEAF, Node, NodeFiles
from ramet.audit.report import Report
from ramet.audit.structures import REFERENCE_BYTES, MalformedError, Reference, decode_reference

NODE_BYTES_MAX = 4096  # A leaf with a single entry may be longer.
HEIGHT_MAX = 16
_LEAF_ENTRY = struct.Struct("<QI")
_KEY = struct.Struct("<Q")
Entries = list[tuple[int, bytes]]
Children = list[tuple[int, Reference]]


class Tree:
    """Walks trees of one kind. Each node is read once, however many roots reach it."""

    def __init__(self, nodes: NodeFiles, report: Report, is_table: bool) -> None:
        self._nodes, self.report, self._is_table = nodes, report, is_table
        self.met: set[int] = set()
        self.bad_count = 0
        """Nodes that could not be read: what is below them is not known."""

    def walk(self, root: Reference) -> Iterator[tuple[int, bytes]]:
        """Give the entries of a tree in order of keys, without those of nodes met before."""
        yield from self._walk(root, None, None, [-1])

    def _walk(
        self, reference: Reference, key: int | None, height: int | None, last: list[int]
    ) -> Iterator[tuple[int, bytes]]:
        if reference.address in self.met:
            return
        self.met.add(reference.address)
        try:
            node = self._nodes.read(reference, self._is_table)
            below = _decode(node, key, height, reference)
        except MalformedError as error:
            self.bad_count += 1
            place = self._nodes.place(reference.address, self._is_table)
            self.report.add("tree_node", f"in a tree: {error}", place)
            return
        if node.kind == TREE_LEAF:
            for child_key, value in below:
                if child_key <= last[0]:
                    self._bad_key(reference, child_key)
                last[0] = child_key
                assert isinstance(value, bytes)
                yield child_key, value
            return
        for child_key, child in below:
            assert isinstance(child, Reference)
            yield from self._walk(child, child_key, node.height - 1, last)

    def _bad_key(self, reference: Reference, key: int) -> None:
        place = self._nodes.place(reference.address, self._is_table)
        self.report.add("tree_node", f"key {key:#x} is not in order", place)


def _decode(
    node: Node, key: int | None, height: int | None, reference: Reference
) -> Entries | Children:
    """Take a node apart and hold it against its place in the tree."""
    if node.kind not in (TREE_LEAF, TREE_INNER) or (node.kind == TREE_LEAF) != (node.height == 0):
        raise MalformedError(f"a node of kind {node.kind} and height {node.height}")
    if (height is not None and node.height != height) or node.height > HEIGHT_MAX:
        raise MalformedError(f"a node of height {node.height} below one of height {height}")
    if key is not None and node.first != key:
        raise MalformedError(f"a node says that its lowest key is {node.first:#x}, not {key:#x}")
    if reference.newest:
        raise MalformedError("a tree's reference names a position")
    if reference.length_bytes > NODE_BYTES_MAX and not (
        node.kind == TREE_LEAF and node.entries_count == 1
    ):
        raise MalformedError(f"a node of {reference.length_bytes} bytes")
    below: Entries | Children
    if node.kind == TREE_LEAF:
        below = _leaf_entries(node)
        entries_count = len(below)
    else:
        below = _children(node)
        entries_count = sum(child.below_count for _, child in below)
    keys = [key for key, _ in below]
    if not keys or keys[0] != node.first or any(a >= b for a, b in pairwise(keys)):
        raise MalformedError("a node's keys are not in order")
    if entries_count != reference.below_count:
        text = f"a node has {entries_count} entries, not {reference.below_count}"
        raise MalformedError(text)
    return below


def _leaf_entries(node: Node) -> Entries:
    found, at, body = [], 0, node.body
    for _ in range(node.entries_count):
        if at + _LEAF_ENTRY.size > len(body):
            raise MalformedError("a node ends inside an entry")
        key, length = _LEAF_ENTRY.unpack_from(body, at)
        at += _LEAF_ENTRY.size
        if at + length > len(body):
            raise MalformedError("a node ends inside a value")
        found.append((key, body[at : at + length]))
        at += length
    if at != len(body):
        raise MalformedError("a node is longer than its entries")
    return found


def _children(node: Node) -> Children:
    size = _KEY.size + REFERENCE_BYTES
    if len(node.body) != node.entries_count * size:
        raise MalformedError("a node is not as long as its entries")
    return [
        (_KEY.unpack_from(node.body, at)[0], decode_reference(node.body, at + _KEY.size))
        for at in range(0, len(node.body), size)
    ]
