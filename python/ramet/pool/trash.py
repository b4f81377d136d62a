"""The trash: what was deleted can be restored for a time.

Docs: docs/guides/trash.md, docs/internals/trash.md. Invariant: what is in it is found by the calls
here alone.
"""

import time
from collections.abc import Iterable
from datetime import timedelta

from ramet.errors import InvalidError
from ramet.names import check_snapshot_name, check_volume_name
from ramet.pool.base import as_list, describe, key_of
from ramet.pool.locks import SECOND_NS, PoolLocks
from ramet.records import ObjectRecord, Trash, Trashed
from ramet.units import parse_duration
from ramet.volume import ObjectLike, Snapshot, Volume


class PoolTrash(PoolLocks):
    """What a pool does with its trash; see `Pool`."""

    def set_trash_window(self, duration: str | float | timedelta) -> None:
        """Say for how long what is deleted from now on can be restored; 0: not at all.

        `duration`: seconds, a text such as "7d", or a timedelta; up to 100 years. What is in the
        trash stays as long as it would have. Durable on return.
        Raises: InvalidError for a bad duration; ReadOnlyError.
        Source: docs/internals/trash.md.
        Example: pool.set_trash_window("7d")
        """
        seconds = parse_duration(duration)
        if 0 < seconds < 1:
            text = f"a window of {duration} is less than a second; hint: 1s, 7d, or 0 for none"
            raise InvalidError("trash_window", text)
        with self._command():
            self._core.set_trash_seconds(int(seconds))

    def trash(self) -> Trash:
        """Say what is in the trash, what goes first at the front, and what the window is.

        What is in it holds its blocks, so space comes back when it ends.
        Example: [it.object.name for it in pool.trash().objects]
        """
        self._check_usable()
        now_ns = time.time_ns()
        objects = [
            Trashed(describe(item), remaining_ns / SECOND_NS, now_ns + remaining_ns)
            for item, remaining_ns in self._core.trashed()
        ]
        return Trash(self._core.trash_seconds(), objects)

    def restore(
        self,
        targets: ObjectLike | Iterable[ObjectLike],
        *,
        names: str | Iterable[str] | None = None,
    ) -> list[Volume | Snapshot]:
        """Bring back what was deleted, all or none, in one commit; nothing about it has changed.

        `targets`: one or a list, each a handle, a UUID, or the name it had. `names`: one for each,
        where it is to have another. Durable on return.
        Raises: NotFoundError where one is not in the trash; ConflictError where a name is taken, or
        was had by several in the trash (say which, by UUID); InvalidError for a bad name;
        FullError; ReadOnlyError.
        Example: pool.set_trash_window("7d"); pool.delete("db"); pool.restore("db")
        """
        keys = _keys(targets)
        new_names = [names] if isinstance(names, str) else None if names is None else list(names)
        with self._command():
            self._check_names(keys, new_names)
            restored = self._core.restore(keys, new_names)
            self._numbers.forget([item.name for item in restored])
            return [self._handle_of(item) for item in restored]

    def empty_trash(
        self, targets: ObjectLike | Iterable[ObjectLike] | None = None
    ) -> list[ObjectRecord]:
        """End what is in the trash: nothing brings it back, and its space can be given back.

        `targets`: as in `restore`; None: all. Works on a full pool.
        Result: the objects as they were. Durable on return.
        Raises: as `restore`.
        Example: pool.empty_trash()
        """
        with self._command():
            keys = None if targets is None else _keys(targets)
            return [describe(item) for item in self._core.empty_trash(keys)]

    def trash_frees(self, targets: ObjectLike | Iterable[ObjectLike] | None = None) -> int:
        """Say how many bytes `empty_trash` would free.

        Raises: as `restore`.
        Example: pool.trash_frees()
        """
        self._check_usable()
        return self._core.trash_frees(None if targets is None else _keys(targets))

    def _check_names(self, keys: list[str], names: list[str] | None) -> None:
        """Hold new names against the rules of what gets them."""
        kinds: dict[str, str] = {}
        for item, _ in self._core.trashed() if names else []:
            kinds[item.uuid] = kinds[item.name] = item.kind
        for key, name in zip(keys, names or [], strict=False):
            (check_snapshot_name if kinds.get(key) == "snapshot" else check_volume_name)(name)


def _keys(targets: ObjectLike | Iterable[ObjectLike]) -> list[str]:
    return [key_of(target) for target in as_list(targets)]
