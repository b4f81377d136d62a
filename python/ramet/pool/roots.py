"""Root hashes of snapshots: what they are is in docs/internals/root-hash.md.

Invariants: `verify` computes a root from blocks that it read, never from anything kept; a
root that is kept is never replaced by another.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property

from ramet import _core
from ramet.errors import CorruptError, FullError, UnavailableError
from ramet.pool.space import PoolSpace
from ramet.pool.transfers import Transfers, hash_device
from ramet.records import Verified
from ramet.tags import ATTRIBUTES_BYTES_MAX, attributes_with_root, tags_and_root_of
from ramet.volume import SnapshotLike

ROOTS_AT_ONCE = 128  # Records are at most 16 MiB, and attributes 64 KiB.

# Is told bytes of the snapshot that were looked at, and its size.
Progress = Callable[[int, int], None]


class PoolRoots(PoolSpace):
    """What a pool does with root hashes; see `Pool`."""

    def verify(self, snapshot: SnapshotLike, *, progress: Progress | None = None) -> Verified:
        """Read every block of a snapshot, check it, and compute the snapshot's root hash.

        `progress`: is called with the bytes looked at and the size. The root is a function of size
        and bytes alone, so two pools agree on it. It is kept with the snapshot, unless the pool is
        open for reading only, and `record().root` gives it. The cost follows what is mapped.
        Result: the root with what it is of.
        Raises: CorruptError where a block is damaged, or where the root is not the one that was
        kept (code root_differs); InvalidError (code not_a_snapshot); NotFoundError, also once it is
        deleted.
        Source: docs/internals/root-hash.md.
        Example: pool.verify("db@1").root
        """
        found = self._find(snapshot)
        self._snapshot_of(found)
        root = self._hash(found, progress)
        with self._command():
            self._keep_roots([(self._core.find(found.uuid), root)])
        return Verified(found.name, found.uuid, found.size_bytes, root, found.created_ns)

    @cached_property
    def transfers(self) -> Transfers:
        """What sending and receiving need beside the verbs; see `ramet.replication`."""
        return Transfers(self._core, self._command)

    def keep_roots(self, roots: Mapping[str, str]) -> None:
        """Keep roots that were computed otherwise, by name or UUID of their snapshots.

        In commits of many; what cannot be kept is computed anew when it is needed.
        Raises: CorruptError (code root_differs) where another one is kept.
        Example: pool.keep_roots({"db@1": pool.verify("db@1").root})
        """
        with self._command():
            self._keep_roots(list(zip(self._find_all(roots), roots.values(), strict=True)))

    def _hash(self, item: _core.Object, progress: Progress | None = None) -> str:
        """Hash what is stored."""
        return hash_device(self._core.open_device(item.uuid), progress)

    def _keep_roots(self, roots: Sequence[tuple[_core.Object, str]]) -> None:
        fresh: dict[str, bytes] = {}
        for item, root in roots:
            _, kept = tags_and_root_of(item.attributes)
            if kept is not None and kept != root:
                self._core.forget_hashes()  # One of them may have made the root that was kept.
                raise CorruptError(
                    "root_differs",
                    f"the blocks of '{item.name}' hash to {root}, and hashed to {kept} before;"
                    " hint: restore it from elsewhere, and run `ramet check`",
                )
            attributes = attributes_with_root(item.attributes, root)
            if kept is None and len(attributes) <= ATTRIBUTES_BYTES_MAX:
                fresh[item.uuid] = attributes
        if not self.read_only:
            with suppress(FullError, UnavailableError):  # A poisoned pool is read, and sends.
                uuids = list(fresh)
                for at in range(0, len(uuids), ROOTS_AT_ONCE):
                    some = uuids[at : at + ROOTS_AT_ONCE]
                    self._core.set_attributes(some, [fresh[it] for it in some])
