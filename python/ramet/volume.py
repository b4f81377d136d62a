"""Volumes and snapshots in a caller's hands.

Owns `Volume` and `Snapshot`: a UUID and the verbs on it. Calls its pool through `Commands` and
never imports it. Invariant: a handle follows its object by UUID, so a rename by anybody does not
break it; name and size are asked for when they are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeAlias

from ramet.device import Device, open_file
from ramet.errors import InvalidError
from ramet.records import ObjectRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from typing_extensions import Buffer

OFFSET_BYTES_MAX = 2**63 - 1  # What the NBD protocol and the core can say.


class BlockDevice(Device, Protocol):
    """A device with all that block devices can do."""

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Read exactly `length_bytes` bytes."""

    def trim(self, offset_bytes: int, length_bytes: int) -> None:
        """Give a range back."""

    def write_zeroes(self, offset_bytes: int, length_bytes: int) -> None:
        """Make a range zeros."""


class Commands(Protocol):
    """What a handle asks of its pool."""

    def record(self, target: ObjectLike) -> ObjectRecord:
        """Describe one object."""

    def open_device(self, target: ObjectLike) -> BlockDevice:
        """Open one object for reading and writing."""

    def snapshot(
        self, volumes: VolumeLike | Iterable[VolumeLike], *, name: str | None = None
    ) -> list[Snapshot]:
        """Take snapshots."""

    def clone(
        self, source: ObjectLike, names: str, *, size: str | int | None = None
    ) -> list[Volume]:
        """Make clones."""

    def revert(
        self,
        volume: VolumeLike,
        snapshot: SnapshotLike,
        *,
        keep: bool | str,
        take_size: bool,
        force: bool,
    ) -> Snapshot | None:
        """Give a volume a snapshot's content."""

    def freeze(self, volumes: VolumeLike | Iterable[VolumeLike], *, force: bool) -> list[Snapshot]:
        """Turn volumes into snapshots."""

    def resize(
        self, volume: VolumeLike, size: str | int, *, shrink: bool, force: bool
    ) -> ObjectRecord:
        """Give a volume another size."""

    def tag(
        self, targets: ObjectLike, tags: Mapping[str, str], *, remove: Iterable[str]
    ) -> list[ObjectRecord]:
        """Set and remove tags."""

    def rename(self, target: ObjectLike, new_name: str) -> ObjectRecord:
        """Give an object another name."""

    def delete(self, targets: ObjectLike, *, force: bool, now: bool) -> list[ObjectRecord]:
        """Delete an object."""


class Handle:
    """What volumes and snapshots have in common."""

    __slots__ = ("_commands", "_device", "made_name", "uuid")

    def __init__(self, commands: Commands, uuid: str, name: str) -> None:
        self._commands = commands
        self._device: BlockDevice | None = None
        self.made_name = name  # As it was when the handle was made: free to ask for, maybe old.
        self.uuid = uuid

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.made_name!r} {self.uuid}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and other.uuid == self.uuid

    def __hash__(self) -> int:
        return hash(self.uuid)

    @property
    def name(self) -> str:
        """The name at the moment of the call. Raises: NotFoundError once the object is deleted."""
        return self.record().name

    @property
    def size_bytes(self) -> int:
        """The size at the moment of the call. Raises: NotFoundError once the object is deleted."""
        return self.record().size_bytes

    def record(self) -> ObjectRecord:
        """Describe the object as it is now.

        Raises: NotFoundError once it is deleted; UnavailableError after the pool was closed.
        Example: pool.volume("db").record().mapped_bytes
        """
        return self._commands.record(self.uuid)

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Read `length_bytes` bytes starting at `offset_bytes`.

        Neither needs to be aligned. Result: exactly `length_bytes` bytes; never-written blocks are
        zeros. Sees every write completed before the call, flushed or not.
        Raises: InvalidError past the end; NotFoundError once the object is deleted;
        UnavailableError after the pool was closed; CorruptError when a checksum fails (that block
        only; volume and pool stay writable).
        Source: NBD protocol, NBD_CMD_READ.
        Example: pool.volume("db").read(0, 4096)
        """
        _check_range(offset_bytes, length_bytes)
        return self._open_device().read(offset_bytes, length_bytes)

    def read_into(self, offset_bytes: int, buffer: Buffer) -> None:
        """Fill `buffer` (writable, contiguous bytes) from `offset_bytes` on; else as `read`.

        Raises: as `read`.
        Example: pool.volume("db").read_into(512, bytearray(1024))
        """
        _check_range(offset_bytes, 0)
        self._open_device().read_into(offset_bytes, buffer)

    def write(self, offset_bytes: int, data: Buffer, *, fua: bool = False) -> None:
        """Write `data` (contiguous bytes, any length) at `offset_bytes`, which need not be aligned.

        Durable after the next `flush` of this volume, through any handle or connection; with `fua`
        on return. Up to 1 MiB is in a snapshot whole or not at all.
        Raises: InvalidError past the end (nothing is written); ReadOnlyError on a snapshot or in a
        pool open for reading; FullError; UnavailableError once the pool is poisoned or closed.
        Source: NBD protocol, NBD_CMD_WRITE.
        Example: pool.volume("db").write(4096, b"hello", fua=True)
        """
        _check_range(offset_bytes, 0)
        self._open_device().write(offset_bytes, data, fua)

    def flush(self) -> None:
        """Make durable every write of this volume that was completed before the call, by whomever.

        Raises: UnavailableError once the pool is poisoned or closed; after a failed flush, what is
        durable is not known until the pool is opened again.
        Source: NBD protocol, NBD_CMD_FLUSH.
        Example: pool.volume("db").flush()
        """
        self._open_device().flush()

    def trim(self, offset_bytes: int, length_bytes: int) -> None:
        """Give the whole blocks of a range back.

        They read as zeros; parts of blocks at the edges may stay as they are. Durable after the
        next `flush`. Costs the same for any length.
        Raises: as `write`.
        Source: NBD protocol, NBD_CMD_TRIM.
        Example: pool.volume("db").trim(0, 65536)
        """
        _check_range(offset_bytes, length_bytes)
        self._open_device().trim(offset_bytes, length_bytes)

    def write_zeroes(self, offset_bytes: int, length_bytes: int) -> None:
        """Make a range zeros to the byte, and give its whole blocks back.

        Durable after the next `flush`. Costs the same for any length.
        Raises: as `write`.
        Source: NBD protocol, NBD_CMD_WRITE_ZEROES.
        Example: pool.volume("db").write_zeroes(100, 5000)
        """
        _check_range(offset_bytes, length_bytes)
        self._open_device().write_zeroes(offset_bytes, length_bytes)

    def clone(self, name: str, *, size: str | int | None = None) -> Volume:
        """Make a volume that starts with this object's content; see `Pool.clone`, which makes many.

        `name`: the new volume's. `size`: bytes or a text, not below this object's; None: the same.
        Result: the new volume. Durable on return. Costs the same whatever the size.
        Raises: InvalidError for a bad name or a smaller size; ConflictError where the name is
        taken; FullError.
        Example: pool.volume("db").clone("db-test")
        """
        return self._commands.clone(self, name, size=size)[0]

    def rename(self, new_name: str) -> None:
        """Give the object another name. Durable on return; connections that have it open go on.

        Raises: InvalidError for a bad name; ConflictError where it is taken.
        Example: pool.volume("db").rename("database")
        """
        self.made_name = self._commands.rename(self, new_name).name

    def tag(self, tags: Mapping[str, str], *, remove: Iterable[str] = ()) -> None:
        """Set and remove tags; see `Pool.tag`. `record().tags` gives them.

        Example: pool.volume("db").tag({"env": "prod"})
        """
        self._commands.tag(self, tags, remove=remove)

    def delete(self, *, force: bool = False, now: bool = False) -> None:
        """Delete the object, whatever was cloned from it; see `Pool.delete`, which deletes many.

        `force`: close NBD connections that have it open first. `now`: without the trash. Durable on
        return.
        Raises: BusyError while it is attached and not `force`; NotFoundError where it is deleted
        already.
        Example: pool.volume("db").delete()
        """
        self._commands.delete(self, force=force, now=now)

    def _open_device(self) -> BlockDevice:
        # Two threads may both open one: they are equal, and the one that is lost costs nothing.
        device = self._device
        if device is None:
            device = self._device = self._commands.open_device(self.uuid)
        return device


class Snapshot(Handle):
    """A read-only image of a volume at an instant. Its bytes never change.

    Made by `Pool.snapshot` and `Volume.snapshot`, found by `Pool.snapshot_named`. `uuid` never
    changes; `name` does with a rename.
    """

    __slots__ = ()

    def open(self, mode: str = "rb", *, buffering: int = -1) -> BinaryIO:
        """Open the snapshot as a file for reading, for code that takes one.

        `mode`: "rb". `buffering`: 0 for the raw file, else the buffer's bytes (-1: 64 KiB).
        Raises: InvalidError for another mode; ReadOnlyError for one that writes.
        Example: pool.snapshot_named("db@1").open().read(512)
        """
        return open_file(self._open_device(), self.name, mode, buffering, read_only=True)


class Volume(Handle):
    """A named, sized, writable block device, always thin.

    Made by `Pool.create_volume` and `Pool.clone`, found by `Pool.volume`. `uuid` never changes;
    `name` does with a rename. Reads and writes may come from many threads at once; where two writes
    overlap, each block of 4 KiB is from one or the other.
    """

    __slots__ = ()

    def open(self, mode: str = "r+b", *, buffering: int = -1) -> BinaryIO:
        """Open the volume as a file, for code that takes one.

        `mode`: "r+b" to read and write, "rb" to read. `buffering`: 0 for the raw file, else the
        buffer's bytes (-1: 64 KiB). The file has the volume's size and cannot change it; a write at
        its end fails with ENOSPC. What a buffered file wrote is durable once it is closed, or after
        its `flush` and then the volume's.
        Raises: InvalidError for another mode.
        Example: pool.volume("db").open("rb").read(512)
        """
        return open_file(self._open_device(), self.name, mode, buffering, read_only=False)

    def snapshot(self, name: str | None = None) -> Snapshot:
        """Take a snapshot of this volume; see `Pool.snapshot`, which takes one of many volumes.

        `name`: the snapshot's, or a pattern with `{volume}` and `{time}`; None: VOLUME@N, N the
        first free number.
        Result: the snapshot, which holds every write completed before the call. Durable on return,
        with these writes.
        Raises: InvalidError for a bad name; ConflictError where it is taken; FullError.
        Example: pool.volume("db").snapshot("db@{time}")
        """
        return self._commands.snapshot(self, name=name)[0]

    def revert(
        self,
        snapshot: SnapshotLike,
        *,
        keep: bool | str = True,
        take_size: bool = False,
        force: bool = False,
    ) -> Snapshot | None:
        """Give the volume a snapshot's content; see `Pool.revert`.

        Example: pool.volume("db").revert("db@1", keep=False)
        """
        return self._commands.revert(self, snapshot, keep=keep, take_size=take_size, force=force)

    def freeze(self, *, force: bool = False) -> Snapshot:
        """Turn the volume into a snapshot, for good; see `Pool.freeze`. This handle goes on as one.

        Example: pool.volume("db").freeze().name
        """
        return self._commands.freeze(self, force=force)[0]

    def resize(self, size: str | int, *, shrink: bool = False, force: bool = False) -> None:
        """Give the volume another size; see `Pool.resize`.

        Example: pool.volume("db").resize("20GiB")
        """
        self._commands.resize(self, size, shrink=shrink, force=force)


# Wherever a name is accepted, so are a UUID and a handle.
ObjectLike: TypeAlias = Handle | str
VolumeLike: TypeAlias = Volume | str
SnapshotLike: TypeAlias = Snapshot | str


def _check_range(offset_bytes: int, length_bytes: int) -> None:
    # The engine knows the size; here only what cannot be said in unsigned 64-bit numbers.
    if offset_bytes < 0 or length_bytes < 0 or offset_bytes + length_bytes > OFFSET_BYTES_MAX:
        raise InvalidError(
            "offset_range",
            f"{length_bytes} bytes at offset {offset_bytes} are outside of any volume;"
            " hint: neither may be negative, nor the end beyond the size",
        )
