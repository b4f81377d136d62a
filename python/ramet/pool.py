"""The public API: `open`, `create` and `Pool`, with `Volume` and `Snapshot` of volume.py.

Owns what happens once per command: names, patterns, sizes, and the order of commands. The only
importer of `_core`, which owns what happens once per I/O or per map node. Invariant: commands of
one pool run one after the other, so a name that was found free stays free until the command that
asked for it is through; reads and writes never wait here.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from ramet import _core
from ramet.errors import InvalidError, UnavailableError
from ramet.names import (
    NumberedNames,
    check_snapshot_name,
    check_volume_name,
    expand_snapshot_names,
    expand_volume_names,
    format_time_name,
    is_uuid,
)
from ramet.records import ObjectRecord
from ramet.units import parse_size
from ramet.volume import BlockDevice, Handle, ObjectLike, Snapshot, SnapshotLike, Volume, VolumeLike

__all__ = ["NbdServer", "Pool", "Snapshot", "Volume", "create", "open"]

DESCRIPTOR_NAME = "pool"  # The file that makes a directory a pool.


def create(path: str | os.PathLike[str], *, segment_size: str | int | None = None) -> None:
    """Make an empty pool in directory `path`, which must be empty or missing.

    `segment_size`: bytes or a text, a multiple of 4 KiB from 1 MiB to 256 MiB; None: 64 MiB.
    Durable on return.
    Raises: ConflictError where the directory holds files; InvalidError for a bad size;
    UnavailableError where it cannot be written to; FullError.
    Source: docs/internals/format.md.
    Example: ramet.create(directory / "pool", segment_size="1MiB")
    """
    _create(path, segment_size)


def open(  # noqa: A001 - `ramet.open` is what people look for.
    path: str | os.PathLike[str],
    *,
    create: bool = False,
    read_only: bool = False,
    segment_size: str | int | None = None,
) -> "Pool":
    """Open the pool in directory `path`.

    `create`: make one first where there is none, with `segment_size` as in `create`. `read_only`:
    change nothing; many processes may do so at once. Result: the pool, to be closed (use `with`).
    Raises: BusyError at once where another process has it open; NotFoundError where there is no
    pool; InvalidError for a newer format; CorruptError where durable parts of it are damaged;
    UnavailableError where it cannot be written to.
    Example: ramet.open(directory / "pool", create=True).close()
    """
    if create and not (Path(path) / DESCRIPTOR_NAME).exists():
        _create(path, segment_size)
    return Pool(_core.Pool.open(os.fspath(path), read_only))


def _create(path: str | os.PathLike[str], segment_size: str | int | None) -> None:
    _core.Pool.create(os.fspath(path), 0 if segment_size is None else parse_size(segment_size))


class NbdServer:
    """An NBD server of a pool, from `Pool.serve_nbd`. Stops when closed, or with its pool."""

    def __init__(self, core: _core.NbdServer, pool: "Pool") -> None:
        self._core = core
        self._pool = pool

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def socket_path(self) -> str:
        """Path of the unix socket."""
        return self._core.socket_path

    @property
    def connections_count(self) -> int:
        """Clients that are connected now."""
        return self._core.connections_count

    def close(self) -> None:
        """Stop: answer the requests in progress, flush, close all connections. Idempotent.

        Example: pool.serve_nbd(directory / "nbd.sock").close()
        """
        self._pool._close_server(self._core)  # noqa: SLF001 - one module, two halves of one thing.


class Pool:
    """An open pool, as `open` gives it: one flat namespace of volumes and snapshots.

    May be used from many threads. Commands over many objects are one commit: all of it is there
    after a crash, or nothing. Wherever a name is accepted, so are a UUID, a `Volume` and a
    `Snapshot`.
    """

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

    def create_volume(self, name: str, size: str | int) -> Volume:
        """Make one volume, which reads as zeros; see `create_volumes`, which makes many.

        `size`: bytes, or a text such as "10GiB"; a positive multiple of 512, up to 256 TiB. Takes
        no space.
        Result: the volume. Durable on return.
        Raises: InvalidError for a bad name or size; ConflictError where the name is taken;
        ReadOnlyError; FullError.
        Example: pool.create_volume("data", "10GiB")
        """
        return self.create_volumes([name], size)[0]

    def create_volumes(
        self, names: str | Iterable[str], size: str | int, *, count: int | None = None
    ) -> list[Volume]:
        """Make many volumes of one size in one commit.

        `names`: a pattern with `{n}` (1 to `count`) and `{time}`, or a list of names; `size` as in
        `create_volume`.
        Result: the volumes, in order. Durable on return.
        Raises: as `create_volume`; on any error none is made.
        Example: pool.create_volumes("disk-{n}", "1GiB", count=3)
        """
        size_bytes = parse_size(size)
        with self._command():
            new_names = expand_volume_names(names, count, time_text=_now_text())
            made = self._core.create_volumes(new_names, size_bytes) if new_names else []
            return [Volume(self, item.uuid, item.name) for item in made]

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
        return [_describe(item) for item in self._list()]

    def record(self, target: ObjectLike) -> ObjectRecord:
        """Describe one object as it is now.

        Raises: NotFoundError.
        Example: pool.record("db").created
        """
        return _describe(self._find(target))

    def records(self, targets: Iterable[ObjectLike]) -> list[ObjectRecord]:
        """Describe several objects as they are at one moment, in the order given.

        Raises: NotFoundError for the first that is not there.
        Example: pool.records(["db", "db@1"])
        """
        with self._command():
            return [_describe(item) for item in self._find_all(targets)]

    def open_device(self, target: ObjectLike) -> BlockDevice:
        """Open one object for I/O in this process; it does not count as attached.

        Result: size_bytes, read, read_into, write, trim, write_zeroes, flush, as in `Volume`. A
        snapshot's raises ReadOnlyError where it is to be changed.
        Raises: NotFoundError.
        Example: pool.open_device("db").read(0, 4096)
        """
        self._check_usable()
        return self._core.open_device(_key(target))

    # Verbs

    def snapshot(
        self,
        volumes: VolumeLike | Iterable[VolumeLike] | None = None,
        *,
        name: str | Iterable[str] | None = None,
        all_volumes: bool = False,
    ) -> list[Snapshot]:
        """Take a snapshot of one, several or all volumes at one instant.

        `volumes`: one or a list; None with `all_volumes`. `name`: a pattern with `{volume}`, `{n}`
        and `{time}`, or a list with one name for each; None: VOLUME@N, N the first free number.
        Every write completed before the call is in, none that starts after it, for all volumes at
        the same point. Up to 65,536 in one command; writers are not stalled by their number.
        Result: the snapshots, in the order of the volumes. Durable on return, with all writes they
        hold.
        Raises: InvalidError for bad names, or where one is not a volume or is given twice;
        NotFoundError; ConflictError where a name is taken; ReadOnlyError; FullError. On any error
        none is made.
        Example: pool.snapshot(all_volumes=True, name="{volume}@{time}")
        """
        if (volumes is None) != all_volumes:
            raise InvalidError(
                "volumes_not_given",
                "which volumes? hint: give volumes, or all_volumes=True, not both",
            )
        with self._command():
            if volumes is None:
                found = [item for item in self._list() if item.kind == "volume"]
            else:
                found = self._find_all(_as_list(volumes))
            parents = [item.name for item in found]
            if name is None:
                names = self._numbers.first_free(parents)
            else:
                names = expand_snapshot_names(name, parents, time_text=_now_text())
            made = self._core.snapshot(parents, names) if found else []
            self._numbers.learn(names)
            return [Snapshot(self, item.uuid, item.name) for item in made]

    def clone(
        self,
        source: ObjectLike,
        names: str | Iterable[str],
        *,
        count: int | None = None,
        size: str | int | None = None,
    ) -> list[Volume]:
        """Make one or thousands of volumes that start with the content of `source`, in one commit.

        `source`: a snapshot, or a volume (its content at the instant of the call). `names`: a
        pattern with `{n}` (1 to `count`), `{volume}` (the source's name) and `{time}`, or a list of
        names. `size`: bytes or a text, not below the source's; None: the same. What is shared takes
        no space.
        Result: the volumes, in order. Durable on return. Costs the same whatever the size of the
        source.
        Raises: InvalidError for bad names or a smaller size; NotFoundError; ConflictError where a
        name is taken; ReadOnlyError; FullError. On any error none is made.
        Example: pool.clone("db@1", "vm-{n}", count=1000)
        """
        size_bytes = None if size is None else parse_size(size)
        with self._command():
            found = self._find(source)
            new_names = expand_volume_names(names, count, time_text=_now_text(), volume=found.name)
            made = self._core.clone(found.name, new_names, size_bytes) if new_names else []
            return [Volume(self, item.uuid, item.name) for item in made]

    def revert(
        self,
        volume: VolumeLike,
        snapshot: SnapshotLike,
        *,
        keep: bool | str = True,
        take_size: bool = False,
        force: bool = False,
    ) -> Snapshot | None:
        """Give a volume the content of any snapshot; first keep what it had.

        `keep`: True takes a snapshot of what is being discarded, named VOLUME@N; a text names it (a
        pattern with `{volume}` and `{time}`); False discards it. `take_size`: take the snapshot's
        size too; else the volume keeps its own, and a larger snapshot is refused. `force`: close
        NBD connections that have the volume open first.
        Result: that snapshot, or None. All in one commit, durable on return.
        Raises: BusyError while the volume is attached and not `force`; InvalidError; NotFoundError;
        ConflictError where the name is taken; ReadOnlyError; FullError.
        Example: pool.revert("db", "db@1", keep="{volume}@before")
        """
        with self._command():
            target, source = self._find(volume), self._find(snapshot)
            keep_name = None
            if isinstance(keep, str):
                keep_name = expand_snapshot_names(keep, [target.name], time_text=_now_text())[0]
            elif keep:
                keep_name = self._numbers.first_free([target.name])[0]
            with self._detached([target] if force else []):
                made = self._core.revert(target.name, source.name, keep_name, take_size)
            return None if keep_name is None else Snapshot(self, made[1].uuid, made[1].name)

    def rename(self, target: ObjectLike, new_name: str) -> ObjectRecord:
        """Give an object another name; it keeps its UUID, and connections that have it open go on.

        Result: the object as it is now. Durable on return.
        Raises: InvalidError for a bad name; NotFoundError; ConflictError where it is taken;
        ReadOnlyError.
        Example: pool.rename("db", "database")
        """
        with self._command():
            found = self._find(target)
            (check_volume_name if found.kind == "volume" else check_snapshot_name)(new_name)
            renamed = self._core.rename(found.name, new_name)
            self._numbers.forget([found.name])
            return _describe(renamed)

    def delete(
        self, targets: ObjectLike | Iterable[ObjectLike], *, force: bool = False
    ) -> list[ObjectRecord]:
        """Delete volumes and snapshots, in any order, whatever was cloned from them, in one commit.

        `targets`: one or a list; what is given twice counts once. `force`: close NBD connections
        that have them open first. Result: the objects as they were. Durable on return.
        Raises: BusyError where one is attached and not `force`; NotFoundError; ReadOnlyError. On
        any error none is deleted.
        Example: pool.delete(["db", "db@1"])
        """
        with self._command():
            found = self._find_all(_as_list(targets))
            if not found:
                return []
            with self._detached(found if force else []):
                deleted = self._core.delete([item.name for item in found])
            self._numbers.forget([item.name for item in deleted])
            return [_describe(item) for item in deleted]

    def flush(self) -> None:
        """Make durable every write of every volume that was completed before the call.

        Raises: UnavailableError once the pool is poisoned or closed.
        Example: pool.flush()
        """
        self._check_usable()
        self._core.flush()

    def stats(self) -> dict[str, int | str | bool]:
        """Give figures about the pool by name; those in bytes end in `_bytes`.

        Example: pool.stats()
        """
        self._check_usable()
        return self._core.stats()

    def serve_nbd(self, socket_path: str | os.PathLike[str]) -> NbdServer:
        """Serve every volume (read-write) and snapshot (read-only) by name over NBD.

        `socket_path`: of the unix socket, made with mode 0600; a stale one is replaced. Objects
        that are created later are served too.
        Result: the server, which runs in threads of its own until it is closed.
        Raises: BusyError where another server answers on the socket; InvalidError;
        UnavailableError.
        Source: NBD protocol.
        Example: pool.serve_nbd(directory / "nbd.sock").close()
        """
        with self._command():
            server = self._core.serve_nbd(os.fspath(socket_path))
            self._servers.append(server)
            return NbdServer(server, self)

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
        return self._core.find(_key(target))

    def _find_all(self, targets: Iterable[ObjectLike]) -> list[_core.Object]:
        # One by one: the cost follows what was asked for, not what else is in the pool.
        return [self._core.find(_key(target)) for target in targets]

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


def _key(target: ObjectLike) -> str:
    if isinstance(target, Handle):
        return target.uuid
    if not is_uuid(target):
        check_snapshot_name(
            target
        )  # What can be no name is a mistake of the call, not a missing object.
    return target


def _as_list(targets: ObjectLike | Iterable[ObjectLike]) -> list[ObjectLike]:
    return [targets] if isinstance(targets, str | Handle) else list(targets)


def _not_a_volume(name: str) -> InvalidError:
    return InvalidError(
        "not_a_volume", f"'{name}' is a snapshot; hint: clone it, the clone is a volume"
    )


def _now_text() -> str:
    return format_time_name(time.time_ns())


def _describe(item: _core.Object) -> ObjectRecord:
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
    )
