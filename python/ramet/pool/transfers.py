"""What sending and receiving snapshots need of a pool beside its verbs.

Called by ramet.replication. Invariant: what is being received is seen through here only, until
`admit` makes snapshots of it; see docs/internals/stream.md.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from ramet import _core
from ramet.errors import BusyError
from ramet.pool.base import describe
from ramet.records import ObjectRecord

BLOCK_BYTES = 4096
STEP_BLOCKS = 8192  # 32 MiB between two looks for an interrupt.

StreamHash = _core.StreamHash
RootHasher = _core.RootHasher
HashedReader = _core.HashedReader

Run = tuple[int, int, bool]  # The first block, how many, whether anything is mapped there.


class Incoming(NamedTuple):
    """What a snapshot to be received brings with it."""

    uuid: str
    batch: str
    source: str | None
    created_ns: int
    size_bytes: int
    attributes: bytes
    """How far it is, as for `note`."""


class Hidden(NamedTuple):
    """What is being received, or was when a stream was cut."""

    uuid: str
    size_bytes: int
    mapped_bytes: int
    attributes: bytes
    """What `note` noted; empty: it was never begun in earnest."""


class Transfers:
    """Maps compared, snapshots held while they are sent, and hidden volumes to receive into."""

    def __init__(
        self, core: _core.Pool, command: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._core = core
        self._command = command
        self._lock = threading.Lock()
        self._busy: set[str] = set()

    @contextmanager
    def attached(self, uuids: list[str]) -> Iterator[None]:
        """Have objects count as attached while the block is not left, so that they stay."""
        held = self._core.attach(uuids)
        try:
            yield
        finally:
            held.detach()

    def changed_runs(
        self, before: str | None, after: str, first_block: int, blocks_count: int
    ) -> Iterator[Run]:
        """Give the runs in which `after` differs; without `before`, what is mapped in it.

        In order, from `first_block` to `blocks_count`, the end of `after`.
        """
        block = first_block
        while block < blocks_count:
            runs, block = self._core.changed_runs(before, after, block)
            yield from runs

    @contextmanager
    def exclusive(self, transfer: str) -> Iterator[None]:
        """Receive one transfer at a time.

        Raises: BusyError (code receive_in_progress).
        """
        with self._lock:
            if transfer in self._busy:
                raise BusyError(
                    "receive_in_progress",
                    f"transfer {transfer} is being received already; hint: wait for its end",
                )
            self._busy.add(transfer)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(transfer)

    def begin(self, incoming: Incoming, base: str | None) -> None:
        """Make a hidden volume, starting as the snapshot `base`. Durable on return."""
        self._core.begin_receiving(*incoming, base)

    def note(self, uuid: str, attributes: bytes) -> None:
        """Say how far a hidden volume is. Durable on return."""
        self._core.note_receiving(uuid, attributes)

    def hidden(self) -> list[Hidden]:
        """List the hidden volumes, in any order."""
        return [
            Hidden(item.uuid, item.size_bytes, item.mapped_bytes, item.attributes)
            for item in self._core.receiving()
        ]

    def device(self, uuid: str) -> _core.Device:
        """Open a hidden volume."""
        return self._core.receiving_device(uuid)

    def admit(
        self, uuids: list[str], names: list[str], attributes: list[bytes]
    ) -> list[ObjectRecord]:
        """Make snapshots of hidden volumes, in one commit. Durable on return."""
        with self._command():
            return [describe(item) for item in self._core.admit(uuids, names, attributes)]

    def hashed_reader(self, uuid: str) -> _core.HashedReader:
        """Open a snapshot, or a hidden volume that is complete, to read it with hashes."""
        return self._core.hashed_reader(uuid)

    def forget_hashes(self) -> None:
        """Remove all kept hashes: one of them may be wrong."""
        self._core.forget_hashes()

    def abandon(self, uuids: list[str]) -> None:
        """Give hidden volumes up, in one commit."""
        self._core.abandon(uuids)


def root_of(reader: HashedReader) -> str:
    """Give the root hash from kept hashes; see docs/internals/root-hash.md, "Kept hashes"."""
    while (root := reader.step(STEP_BLOCKS)) is None:
        pass  # So that an interrupt is noticed.
    return root


def hash_device(device: _core.Device, progress: Callable[[int, int], None] | None = None) -> str:
    """Give the root hash of what is stored; see docs/internals/root-hash.md."""
    size_bytes = device.size_bytes
    hasher = RootHasher(size_bytes)
    block, blocks_count = 0, -(-size_bytes // BLOCK_BYTES)
    while block < blocks_count:
        block = hasher.add_stored(device, block, STEP_BLOCKS)
        if progress is not None:
            progress(min(block * BLOCK_BYTES, size_bytes), size_bytes)
    return hasher.finish()
