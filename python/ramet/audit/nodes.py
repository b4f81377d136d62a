"""Nodes in node and table files, each read by a reference and held against it.

Docs: docs/internals/format.md, "Node files", I12 and I18. Invariant: what `read` gives is a node
whose bytes match the reference's checksum, and which says of itself what the reference says.
"""

from typing import Final, NamedTuple

from ramet.audit.checksums import BLOCK_BYTES, node_crc
from ramet.audit.files import PoolFiles
from ramet.audit.report import Place
from ramet.audit.structures import (
    SLOT_BITS,
    UNIT_BYTES,
    UNITS_MAX,
    Commit,
    Descriptor,
    MalformedError,
    NodeFileHeader,
    Reference,
    check_identity,
    decode_node_file_header,
)

HEADER_BYTES = 16
MAP_INNER, MAP_RUNS, MAP_DENSE, TREE_LEAF, TREE_INNER = 1, 2, 3, 4, 5
FIRST_UNIT = BLOCK_BYTES // UNIT_BYTES
UNIT_MASK: Final = UNITS_MAX - 1


class Node(NamedTuple):
    """A node that matches its reference."""

    kind: int
    height: int
    entries_count: int
    first: int
    body: bytes


class NodeFiles:
    """The node and table files of a pool."""

    def __init__(self, files: PoolFiles, descriptor: Descriptor, commit: Commit) -> None:
        self._files, self.report = files, files.report
        self._seed, self._log = descriptor.seed, commit.log
        self._headers: dict[str, NodeFileHeader | None] = {}
        self.ends: dict[int, int] = {}
        """Of each node file, the unit behind the last node that was read so far."""

    def name(self, address: int, is_table: bool) -> str:
        """Give the name of the file that an address lies in."""
        directory, suffix = ("tables", "tab") if is_table else ("nodes", "map")
        return f"{directory}/{address >> SLOT_BITS:012x}.{suffix}"

    def place(self, address: int, is_table: bool) -> Place:
        """Say where a node is."""
        return Place(self.name(address, is_table), (address & UNIT_MASK) * UNIT_BYTES)

    def header(self, file_id: int, is_table: bool) -> NodeFileHeader | None:
        """Give a file's header; None where it is wrong, which is reported once."""
        name = self.name(file_id << SLOT_BITS, is_table)
        if name not in self._headers:
            self._headers[name] = None
            try:
                page = self._files.kept_open(name).page(0)
                header = decode_node_file_header(page, is_table)
                check_identity(header, self._seed, self._log, file_id)
            except MalformedError as error:
                self.report.add("node_file", f"a node file: {error}", Place(name, 0))
            else:
                self._headers[name] = header
        return self._headers[name]

    def read(self, reference: Reference, is_table: bool) -> Node:
        """Read a node.

        Raises: MalformedError where it is not what the reference says.
        """
        address, length_bytes = reference.address, reference.length_bytes
        unit = address & UNIT_MASK
        if address == 0 or reference.second_address or unit < FIRST_UNIT:
            raise MalformedError(f"a node cannot be at address {address:016x}")
        if not HEADER_BYTES <= length_bytes <= (UNITS_MAX - unit) * UNIT_BYTES:
            raise MalformedError(f"a node cannot have {length_bytes} bytes")
        self.header(address >> SLOT_BITS, is_table)
        file = self._files.kept_open(self.name(address, is_table))
        content = file.whole(unit * UNIT_BYTES, length_bytes)
        computed = node_crc(self._seed, address, content)
        if computed != reference.checksum:
            text = f"a node: stored {reference.checksum:#010x}, computed {computed:#010x}"
            raise MalformedError(text)
        self.report.count("nodes_count")
        if int.from_bytes(content[4:8], "little") != length_bytes:
            raise MalformedError("a node says that it has another length")
        if not is_table:
            file_id, end = address >> SLOT_BITS, unit + -(-length_bytes // UNIT_BYTES)
            self.ends[file_id] = max(self.ends.get(file_id, 0), end)
        count = int.from_bytes(content[2:4], "little")
        first = int.from_bytes(content[8:16], "little")
        return Node(content[0], content[1], count, first, content[HEADER_BYTES:])
