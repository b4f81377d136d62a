"""The public API: `open`, `create` and `Pool`, with `Volume` and `Snapshot` of volume.py.

Owns what happens once per command: names, patterns, sizes, and the order of commands. This package
is the only importer of `_core`, which owns what happens once per I/O or per map node; base.py has a
pool's life and the look-ups, this file the verbs. Invariant: commands of
one pool run one after the other, so a name that was found free stays free until the command that
asked for it is through; reads and writes never wait here.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from ramet import _core
from ramet.fullness import DEFAULT as DEFAULT_THRESHOLDS
from ramet.fullness import Thresholds
from ramet.listening import SOCKET_MODE, NbdTls, find_listening
from ramet.names import (
    check_snapshot_name,
    check_volume_name,
    expand_snapshot_names,
    expand_volume_names,
)
from ramet.pool.base import as_list, describe, now_text
from ramet.pool.locks import hash_secret
from ramet.pool.server import NbdServer
from ramet.pool.trash import PoolTrash
from ramet.records import (
    Diff,
    Extent,
    LossReport,
    ObjectRecord,
)
from ramet.tags import Selector, Tags, attributes_with, check_tags, tags_of
from ramet.tuning import find_tuning
from ramet.units import parse_size
from ramet.volume import ObjectLike, Snapshot, SnapshotLike, Volume, VolumeLike

__all__ = ["NbdServer", "Pool", "Snapshot", "Volume", "accept_loss", "create", "open"]

MIB = 1 << 20
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
    node_budget: str | int | None = None,
    checkpoint_log: str | int | None = None,
) -> "Pool":
    """Open the pool in directory `path`.

    `create`: make one first where there is none, with `segment_size` as in `create`. `read_only`:
    change nothing; many processes may do so at once. `node_budget`: memory for maps, in bytes or as
    a text, 64 KiB at least; `checkpoint_log`: maps are written out after so much log. None: what
    the variables RAMET_NODE_BUDGET and RAMET_CHECKPOINT_LOG say, else 256 MiB and 512 MiB.
    Result: the pool, to be closed (use `with`).
    Raises: BusyError at once where another process has it open; NotFoundError where there is no
    pool; InvalidError for a newer format; CorruptError where durable parts of it are damaged;
    UnavailableError where it cannot be written to.
    Example: ramet.open(directory / "pool", create=True).close()
    """
    if create and not (Path(path) / DESCRIPTOR_NAME).exists():
        _create(path, segment_size)
    tuning = find_tuning(node_budget, checkpoint_log)
    core = _core.Pool.open(
        os.fspath(path),
        read_only,
        tuning.node_budget_bytes,
        tuning.checkpoint_log_bytes,
        tuning.checkpoint_batches,
    )
    return Pool(core)


def accept_loss(
    path: str | os.PathLike[str], *, lock_secret: str | None = None
) -> LossReport | None:
    """Make a pool usable again whose log is damaged or cannot be replayed, so that `open` refuses.

    It goes back to the last moment up to which the log can be followed; everything later is lost,
    for all volumes alike. Where the newest checkpoint cannot be read it takes the one before it and
    the log after that: then nothing is lost but what damage of the log costs. No byte is removed:
    the rest of the log is set aside in `lost/` in the pool, with a report. The pool is closed
    again, and opens with `open` from then on.
    Locks of snapshots that are still there are kept; where locked snapshots would be gone it asks
    for the pool's `lock_secret`, if it has one.
    Durable on return; after a crash before that the pool is refused as before, or opens at the same
    moment. Result: what was lost; None where the log is whole.
    Raises: what `open` raises; CorruptError where something else than the log is damaged;
    ReadOnlyError where locked snapshots would be gone.
    Source: docs/internals/format.md, "Accepting a loss".
    Example: ramet.create(directory / "p"); assert ramet.accept_loss(directory / "p") is None
    """
    hashed = None
    if lock_secret is not None:
        hashed = hash_secret(lock_secret, _core.pool_uuid(os.fspath(path)))
    told = _core.accept_loss(os.fspath(path), hashed)
    return None if told is None else LossReport.from_core(told)


def _create(path: str | os.PathLike[str], segment_size: str | int | None) -> None:
    _core.Pool.create(os.fspath(path), 0 if segment_size is None else parse_size(segment_size))


class Pool(PoolTrash):
    """An open pool, as `open` gives it: one flat namespace of volumes and snapshots.

    May be used from many threads. Commands over many objects are one commit: all of it is there
    after a crash, or nothing. Wherever a name is accepted, so are a UUID, a `Volume` and a
    `Snapshot`.
    """

    def create_volume(self, name: str, size: str | int, *, tags: Tags | None = None) -> Volume:
        """Make one volume, which reads as zeros; see `create_volumes`, which makes many.

        `size`: bytes, or a text such as "10GiB"; a positive multiple of 512, up to 256 TiB. Takes
        no space. `tags`: keys and values, see `tag`.
        Result: the volume. Durable on return.
        Raises: InvalidError for a bad name or size; ConflictError where the name is taken;
        ReadOnlyError; FullError.
        Example: pool.create_volume("data", "10GiB")
        """
        return self.create_volumes([name], size, tags=tags)[0]

    def create_volumes(
        self,
        names: str | Iterable[str],
        size: str | int,
        *,
        count: int | None = None,
        tags: Tags | None = None,
    ) -> list[Volume]:
        """Make many volumes of one size in one commit.

        `names`: a pattern with `{n}` (1 to `count`) and `{time}`, or a list of names; `size` and
        `tags` as in `create_volume`, the same for all.
        Result: the volumes, in order. Durable on return.
        Raises: as `create_volume`; on any error none is made.
        Example: pool.create_volumes("disk-{n}", "1GiB", count=3)
        """
        size_bytes, attributes = parse_size(size), _attributes(tags)
        with self._command():
            new_names = expand_volume_names(names, count, time_text=now_text())
            made = self._core.create_volumes(new_names, size_bytes, attributes) if new_names else []
            return [Volume(self, item.uuid, item.name) for item in made]

    def snapshot(
        self,
        volumes: VolumeLike | Iterable[VolumeLike] | None = None,
        *,
        name: str | Iterable[str] | None = None,
        all_volumes: bool = False,
        tagged: Selector | None = None,
        tags: Tags | None = None,
    ) -> list[Snapshot]:
        """Take a snapshot of one, several or all volumes at one instant.

        `volumes`: one or a list; None with `all_volumes`, or with `tagged`: those that have all of
        these tags, a value of None standing for any. `tags`: of the snapshots, see `tag`; they
        inherit none. `name`: a pattern with `{volume}`, `{n}`
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
        attributes = _attributes(tags)
        with self._command():
            found = self._find_volumes(volumes, all_volumes, tagged)
            parents = [item.name for item in found]
            if name is None:
                names = self._numbers.first_free(parents)
            else:
                names = expand_snapshot_names(name, parents, time_text=now_text())
            made = self._core.snapshot(parents, names, attributes) if found else []
            self._numbers.learn(names)
            return [Snapshot(self, item.uuid, item.name) for item in made]

    def clone(
        self,
        source: ObjectLike,
        names: str | Iterable[str],
        *,
        count: int | None = None,
        size: str | int | None = None,
        tags: Tags | None = None,
    ) -> list[Volume]:
        """Make one or thousands of volumes that start with the content of `source`, in one commit.

        `source`: a snapshot, or a volume (its content at the instant of the call). `names`: a
        pattern with `{n}` (1 to `count`), `{volume}` (the source's name) and `{time}`, or a list of
        names. `size`: bytes or a text, not below the source's; None: the same. `tags`: of the
        clones, see `tag`; they inherit none. What is shared takes no space.
        Result: the volumes, in order. Durable on return. Costs the same whatever the size of the
        source.
        Raises: InvalidError for bad names or a smaller size; NotFoundError; ConflictError where a
        name is taken; ReadOnlyError; FullError. On any error none is made.
        Example: pool.clone("db@1", "vm-{n}", count=1000)
        """
        size_bytes = None if size is None else parse_size(size)
        attributes = _attributes(tags)
        with self._command():
            found = self._find(source)
            new_names = expand_volume_names(names, count, time_text=now_text(), volume=found.name)
            if not new_names:
                return []
            made = self._core.clone(found.name, new_names, size_bytes, attributes)
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
        kept = self.revert_many([(volume, snapshot)], keep=keep, take_size=take_size, force=force)
        return kept[0] if kept else None

    def revert_many(
        self,
        pairs: Iterable[tuple[VolumeLike, SnapshotLike]],
        *,
        keep: bool | str = True,
        take_size: bool = False,
        force: bool = False,
    ) -> list[Snapshot]:
        """Give several volumes each the content of a snapshot, all in one commit.

        `pairs`: (volume, snapshot); options as in `revert`. Where `keep`, what is discarded is kept
        as of one instant.
        Result: the snapshots of what was discarded, in order; empty without `keep`. Durable on
        return.
        Raises: as `revert`; on any error none is reverted.
        Example: pool.revert_many([("db", "db@1")], keep=False)
        """
        with self._command():
            asked = [(self._find(volume), self._find(snapshot)) for volume, snapshot in pairs]
            targets = [target.name for target, _ in asked]
            if not targets:
                return []
            keep_names = None
            if isinstance(keep, str):
                keep_names = expand_snapshot_names(keep, targets, time_text=now_text())
            elif keep:
                keep_names = self._numbers.first_free(targets)
            sources = [source.name for _, source in asked]
            with self._detached([target for target, _ in asked] if force else []):
                kept = self._core.revert(targets, sources, keep_names, take_size)
            self._numbers.learn([item.name for item in kept])
            return [Snapshot(self, item.uuid, item.name) for item in kept]

    def freeze(
        self, volumes: VolumeLike | Iterable[VolumeLike], *, force: bool = False
    ) -> list[Snapshot]:
        """Turn volumes into snapshots, for good, in one commit; they keep names and UUIDs.

        `volumes`: one or a list. `force`: close NBD connections that have them open first.
        Result: the snapshots, in order. Durable on return, with all writes they hold.
        Raises: BusyError while one is attached and not `force`; InvalidError where one is a
        snapshot already; NotFoundError; ReadOnlyError. On any error none is frozen.
        Example: pool.freeze("db")
        """
        with self._command():
            found = self._find_all(as_list(volumes))
            if not found:
                return []
            with self._detached(found if force else []):
                frozen = self._core.freeze([item.name for item in found])
            return [Snapshot(self, item.uuid, item.name) for item in frozen]

    def resize(
        self, volume: VolumeLike, size: str | int, *, shrink: bool = False, force: bool = False
    ) -> ObjectRecord:
        """Give a volume another size; what is added reads as zeros.

        `size`: as in `create_volume`. `shrink`: allow a smaller one, which discards what lies
        behind it. `force`: when shrinking, close NBD connections that have it open first. A client
        sees another size with its next connection.
        Result: the volume as it is now. Durable on return.
        Raises: InvalidError for a bad size, or a smaller one without `shrink`; BusyError when
        shrinking while attached and not `force`; NotFoundError; ReadOnlyError.
        Example: pool.resize("db", "20GiB")
        """
        size_bytes = parse_size(size)
        with self._command():
            found = self._find(volume)
            closing = force and shrink and size_bytes < found.size_bytes
            with self._detached([found] if closing else []):
                return describe(self._core.resize(found.name, size_bytes, shrink))

    def tag(
        self,
        targets: ObjectLike | Iterable[ObjectLike],
        tags: Tags,
        *,
        remove: Iterable[str] = (),
    ) -> list[ObjectRecord]:
        """Set and remove tags of volumes and snapshots, in one commit.

        `targets`: one or a list. `tags`: a key has 1 to 63 of `A-Z a-z 0-9 . _ / : -` and starts
        with a letter or digit, a value has up to 1,024 bytes of UTF-8; an object has up to 64.
        `remove`: keys; those that are not there are no error.
        Result: the objects as they are now, in order. Durable on return.
        Raises: InvalidError for a bad tag; NotFoundError; ReadOnlyError where the pool is open for
        reading. On any error none is changed.
        Example: pool.tag(["db", "db@1"], {"env": "prod"}, remove=["old"])
        """
        added, removed = check_tags(tags), set(remove)
        with self._command():
            found = list({item.uuid: item for item in self._find_all(as_list(targets))}.values())
            attributes = []
            for item in found:
                held = {
                    key: it for key, it in tags_of(item.attributes).items() if key not in removed
                }
                attributes.append(attributes_with(item.attributes, check_tags({**held, **added})))
            if found:
                self._core.set_attributes([item.name for item in found], attributes)
            return [describe(self._core.find(item.uuid)) for item in found]

    def diff(self, before: ObjectLike, after: ObjectLike) -> Diff:
        """Say what differs between any two volumes or snapshots, related or not.

        Result: both sizes, and the extents of 4 KiB blocks in which `after` may differ, sorted; up
        to the larger size. A volume is taken as it is at the call. Where blocks were written again
        with the same bytes they count as different. The cost follows what differs, not the sizes.
        Raises: NotFoundError; UnavailableError after the pool was closed.
        Example: [extent.offset_bytes for extent in pool.diff("db@1", "db").extents]
        """
        with self._command():
            first, second = self._find(before), self._find(after)
            extents = self._core.diff(first.name, second.name)
            return Diff(
                first.name,
                second.name,
                first.size_bytes,
                second.size_bytes,
                [Extent(*extent) for extent in extents],
            )

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
            return describe(renamed)

    def delete(
        self,
        targets: ObjectLike | Iterable[ObjectLike],
        *,
        force: bool = False,
        now: bool = False,
    ) -> list[ObjectRecord]:
        """Delete volumes and snapshots, in any order, whatever was cloned from them, in one commit.

        `targets`: one or a list; what is given twice counts once. `force`: close NBD connections
        that have them open first. Where the pool has an undo window, see `set_trash_window`,
        `restore` brings them back for that time; `now`: it does not, and their space is given back.
        Result: the objects as they were. Durable on return; `frees` says beforehand how much space
        they hold.
        Raises: BusyError where one is attached and not `force`; ConflictError (code object_locked)
        where one is locked, `force` or not; NotFoundError; FullError where they would go to the
        trash; ReadOnlyError. On any error none is deleted.
        Example: pool.delete(["db", "db@1"])
        """
        with self._command():
            found = self._find_all(as_list(targets))
            if not found:
                return []
            with self._detached(found if force else []):
                end = self._core.delete if now else self._core.trash
                deleted = end([item.name for item in found])
            self._numbers.forget([item.name for item in deleted])
            return [describe(item) for item in deleted]

    def flush(self) -> None:
        """Make durable every write of every volume that was completed before the call.

        Raises: UnavailableError once the pool is poisoned or closed.
        Example: pool.flush()
        """
        self._check_usable()
        self._core.flush()

    def checkpoint(self) -> bool:
        """Write the maps out, so that opening the pool reads only what was written since.

        This happens by itself, see `checkpoint_log` of `open`.
        Result: whether there was anything to write.
        Raises: UnavailableError once the pool is poisoned or closed; ReadOnlyError; FullError.
        Example: pool.checkpoint()
        """
        self._check_usable()
        return self._core.checkpoint()

    def stats(
        self, *, thresholds: Thresholds = DEFAULT_THRESHOLDS
    ) -> dict[str, int | float | str | bool]:
        """Give figures about the pool by name; those in bytes end in `_bytes`.

        `thresholds`: when space is called low and critical.
        Example: pool.stats()
        """
        self._check_usable()
        figures: dict[str, int | float | str | bool] = {**self._core.stats()}
        mapped, living = int(figures["mapped_bytes"]), int(figures["living_bytes"])
        figures["uuid"] = self.uuid
        figures["space_state"] = self.fullness().state(thresholds)
        figures["saving_factor"] = round(mapped / living, 2) if living else 1.0
        # Of no block at all there are no fragments.
        fragments, looked_at = (int(figures.pop(f"fragments_{it}")) for it in ("count", "bytes"))
        figures["fragments_per_mib"] = round(fragments / (looked_at / MIB), 3) if looked_at else 0.0
        return figures

    def serve_nbd(
        self,
        *addresses: str | os.PathLike[str] | int,
        socket_mode: int = SOCKET_MODE,
        socket_group: int | str | None = None,
        plain_tcp: bool = False,
        tls: NbdTls | None = None,
    ) -> NbdServer:
        """Serve every volume (read-write) and snapshot (read-only) by name over NBD.

        `addresses`: each PATH or "unix:PATH" of a unix socket, where a stale one is replaced, or
        "tcp:HOST:PORT", where port 0 takes one that is free, or the number of a socket that listens
        already. `socket_mode`, `socket_group`: who may connect to the unix sockets. `tls`: TCP
        clients need it; without it other machines are served only with `plain_tcp`. Objects that
        are created later are served too.
        Result: the server, which runs in threads of its own until it is closed.
        Raises: BusyError where another server answers; InvalidError; NotFoundError for a host or a
        group; UnavailableError.
        Source: NBD protocol.
        Example: pool.serve_nbd(directory / "nbd.sock").close()
        """
        listening = find_listening(
            addresses,
            socket_mode=socket_mode,
            socket_group=socket_group,
            plain_tcp=plain_tcp,
            tls=tls,
        )
        with self._command():
            server = self._core.serve_nbd(listening)
            self._servers.append(server)
            return NbdServer(server, self._close_server)


def _attributes(tags: Tags | None) -> bytes:
    return attributes_with(b"", check_tags(tags)) if tags else b""
