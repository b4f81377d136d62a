"""A pool that is held: its life, and looking things up. `Pool` in this package adds the verbs.

Invariant: after `close`, or in a process that was forked off, every call is an ordinary error.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from ramet import _core
from ramet.errors import InvalidError, NotFoundError, UnavailableError
from ramet.names import NumberedNames, check_snapshot_name, format_time_name, is_uuid
from ramet.records import NO_TAGS, Lock, ObjectRecord
from ramet.tags import Selector, matches, tags_and_root_of, tags_of
from ramet.volume import BlockDevice, Commands, Handle, ObjectLike, Snapshot, Volume, VolumeLike


class PoolBase(Commands):
    """What a pool is without its verbs; see `Pool`."""

    def __init__(self, core: _core.Pool) -> None:
        self._core = core
        self._lock = threading.RLock()
        self._process_id = os.getpid()
        self._closed = False
        self._servers: list[_core.NbdServer] = []
        self._numbers = NumberedNames(core.taken)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Pool {self.path!r}>"

    @property
    def path(self) -> str:
        """The pool's directory."""
        return self._core.path

    @property
    def uuid(self) -> str:
        """The pool's UUID, which never changes."""
        return self._core.uuid

    @property
    def read_only(self) -> bool:
        """Whether it was opened for reading only."""
        return self._core.read_only

    @property
    def poisoned_reason(self) -> str:
        """The failed write or sync after which writes are refused; empty: they are not."""
        return self._core.poisoned_reason

    def close(self) -> None:
        """Stop its NBD servers, make everything durable, and let others open the pool. Idempotent.

        Everything else raises UnavailableError afterwards. In a process that was forked off it does
        nothing: the pool stays with the one that opened it.
        Example: ramet.open(directory / "other", create=True).close()
        """
        if os.getpid() != self._process_id:
            return
        with self._lock:
            self._closed = True
            servers, self._servers = self._servers, []
            for server in servers:
                server.close()
            self._core.close()

    # Objects

    def volume(self, name: str) -> Volume:
        """Find a volume by name or UUID.

        Raises: NotFoundError; InvalidError (code not_a_volume) where it is a snapshot.
        Example: pool.volume("db")
        """
        return self._volume_of(self._find(name))

    def snapshot_named(self, name: str) -> Snapshot:
        """Find a snapshot by name or UUID.

        Raises: NotFoundError; InvalidError (code not_a_snapshot) where it is a volume.
        Example: pool.snapshot_named("db@1")
        """
        return self._snapshot_of(self._find(name))

    def get(self, name: str) -> Volume | Snapshot:
        """Find a volume or a snapshot by name or UUID.

        Raises: NotFoundError.
        Example: pool.get("db@1").size_bytes
        """
        return self._handle_of(self._find(name))

    def volumes(self) -> list[Volume]:
        """List the volumes, sorted by name.

        Example: [volume.name for volume in pool.volumes()]
        """
        return [Volume(self, it.uuid, it.name) for it in self._list() if it.kind == "volume"]

    def snapshots(self) -> list[Snapshot]:
        """List the snapshots, sorted by name.

        Example: [snapshot.name for snapshot in pool.snapshots()]
        """
        return [Snapshot(self, it.uuid, it.name) for it in self._list() if it.kind == "snapshot"]

    def objects(self) -> list[ObjectRecord]:
        """Describe all volumes and snapshots as they are now, sorted by name.

        Example: sum(record.mapped_bytes for record in pool.objects())
        """
        return [describe(item) for item in self._list()]

    def record(self, target: ObjectLike) -> ObjectRecord:
        """Describe one object as it is now.

        Raises: NotFoundError.
        Example: pool.record("db").created
        """
        return describe(self._find(target))

    def records(self, targets: Iterable[ObjectLike]) -> list[ObjectRecord]:
        """Describe several objects as they are at one moment, in the order given.

        Raises: NotFoundError for the first that is not there.
        Example: pool.records(["db", "db@1"])
        """
        with self._command():
            return [describe(item) for item in self._find_all(targets)]

    def open_device(self, target: ObjectLike) -> BlockDevice:
        """Open one object for I/O in this process; it does not count as attached.

        Result: size_bytes, read, read_into, write, trim, write_zeroes, flush, as in `Volume`. A
        snapshot's raises ReadOnlyError where it is to be changed.
        Raises: NotFoundError.
        Example: pool.open_device("db").read(0, 4096)
        """
        self._check_usable()
        return self._core.open_device(key_of(target))

    # Below: what the verbs share.

    @contextmanager
    def _command(self) -> Iterator[None]:
        self._check_usable()
        with self._lock:
            yield

    def _check_usable(self) -> None:
        # After a fork the lock may be held by a thread that is not here: never wait for it.
        if os.getpid() != self._process_id:
            raise UnavailableError(
                "pool_forked",
                f"pool '{self.path}' was opened by process {self._process_id},"
                f" this is {os.getpid()};"
                " hint: open it after the fork, in one of them",
            )
        if self._closed:
            raise UnavailableError(
                "pool_closed", f"pool '{self.path}' was closed; hint: open it again"
            )

    @contextmanager
    def _detached(self, items: Iterable[_core.Object]) -> Iterator[None]:
        """Close the connections to `items`, and let nobody open them before the block is left."""
        object_ids = [item.id for item in items]
        servers = self._servers if object_ids else []
        try:
            for server in servers:
                server.close_connections(object_ids)
            yield
        finally:
            for server in servers:
                server.allow_connections(object_ids)

    def _close_server(self, server: _core.NbdServer) -> None:
        if os.getpid() != self._process_id:
            return
        with self._lock:
            self._servers = [other for other in self._servers if other is not server]
        server.close()

    def _list(self) -> list[_core.Object]:
        self._check_usable()
        return self._core.list()

    def _find(self, target: ObjectLike) -> _core.Object:
        self._check_usable()
        return self._core.find(key_of(target))

    def _find_all(self, targets: Iterable[ObjectLike]) -> list[_core.Object]:
        # By name: the cost follows what was asked for, not what else is in the pool.
        return self._core.find_many([key_of(target) for target in targets])

    def _find_volumes(
        self,
        volumes: VolumeLike | Iterable[VolumeLike] | None,
        all_volumes: bool,
        tagged: Selector | None,
    ) -> list[_core.Object]:
        """Give the volumes chosen in the one way of three that is given."""
        if (volumes is not None) + all_volumes + (tagged is not None) != 1:
            raise InvalidError(
                "volumes_not_given",
                "which volumes? hint: give volumes, all_volumes=True or tagged, one of them",
            )
        if volumes is not None:
            return self._find_all(as_list(volumes))
        found = [item for item in self._list() if item.kind == "volume"]
        if tagged is None:
            return found
        chosen = [item for item in found if matches(tags_of(item.attributes), tagged)]
        if not chosen:
            raise NotFoundError(
                "tag_not_found", f"no volume has the tags {dict(tagged)}; hint: ramet volume list"
            )
        return chosen

    def _volume_of(self, item: _core.Object) -> Volume:
        if item.kind != "volume":
            raise _not_a_volume(item.name)
        return Volume(self, item.uuid, item.name)

    def _snapshot_of(self, item: _core.Object) -> Snapshot:
        if item.kind != "snapshot":
            raise InvalidError(
                "not_a_snapshot", f"'{item.name}' is a volume; hint: take a snapshot of it first"
            )
        return Snapshot(self, item.uuid, item.name)

    def _handle_of(self, item: _core.Object) -> Volume | Snapshot:
        return self._volume_of(item) if item.kind == "volume" else self._snapshot_of(item)


def key_of(target: ObjectLike) -> str:
    """Give what the core finds an object by."""
    if isinstance(target, Handle):
        return target.uuid
    if not is_uuid(target):
        # What can be no name is a mistake of the call, not a missing object.
        check_snapshot_name(target)
    return target


def as_list(targets: ObjectLike | Iterable[ObjectLike]) -> list[ObjectLike]:
    """Give one target as a list, and several as one."""
    return [targets] if isinstance(targets, str | Handle) else list(targets)


def _not_a_volume(name: str) -> InvalidError:
    return InvalidError(
        "not_a_volume", f"'{name}' is a snapshot; hint: clone it, the clone is a volume"
    )


def now_text() -> str:
    """Give what `{time}` in a pattern becomes."""
    return format_time_name(time.time_ns())


def _lock(mode: str, remaining_ns: int, cooling_off_ns: int) -> Lock:
    until_ns = time.time_ns() + remaining_ns
    return Lock(mode, remaining_ns / 10**9, until_ns, cooling_off_ns / 10**9)


def describe(item: _core.Object) -> ObjectRecord:
    """Give the core's object as a record."""
    tags, root = tags_and_root_of(item.attributes) if item.attributes else (NO_TAGS, None)
    return ObjectRecord(
        item.uuid,
        item.name,
        item.kind,
        item.size_bytes,
        item.mapped_bytes,
        item.created_ns,
        item.parent,
        item.source,
        item.batch,
        item.attached_count,
        tags,
        root,
        item.lock and _lock(*item.lock),
    )
