"""The Rust core as Python sees it.

Only `ramet.pool` imports it; prose for users is there.
"""

import builtins
import os
from collections.abc import Sequence
from typing import Any, Protocol, final, type_check_only

from typing_extensions import Buffer

__all__ = [
    "Attached",
    "Device",
    "HashedReader",
    "NbdServer",
    "Object",
    "Pool",
    "RootHasher",
    "Scrub",
    "StreamHash",
    "accept_loss",
    "pool_uuid",
    "version",
]

@final
class Object:
    """What the pool knows of one volume or snapshot at the moment of the call."""

    @property
    def id(self) -> int: ...
    @property
    def uuid(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str:
        """`volume` or `snapshot`."""
    @property
    def size_bytes(self) -> int: ...
    @property
    def mapped_bytes(self) -> int: ...
    @property
    def created_ns(self) -> int:
        """Nanoseconds since 1970, UTC."""
    @property
    def parent(self) -> str | None:
        """UUID of the nearest living ancestor in the tree of lineage, or None."""
    @property
    def source(self) -> str | None:
        """UUID of the object it was taken or cloned from (which may be deleted since), or None."""
    @property
    def batch(self) -> str:
        """UUID shared by all objects of one command."""
    @property
    def attributes(self) -> bytes:
        """JSON that the layer above owns; empty: none."""
    @property
    def lock(self) -> tuple[str, int, int] | None:
        """The lock that runs: mode, nanoseconds that it runs on, and can be taken back."""
    @property
    def attached_count(self) -> int: ...

@final
class Device:
    """A volume or snapshot, open for I/O. Keeps working by id when the object is renamed."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def read_only(self) -> bool: ...
    def read(self, offset_bytes: int, length_bytes: int) -> bytes: ...
    def read_into(self, offset_bytes: int, buffer: Buffer) -> None: ...
    def write(self, offset_bytes: int, data: Buffer, fua: bool = False) -> None: ...
    def trim(self, offset_bytes: int, length_bytes: int) -> None: ...
    def write_zeroes(self, offset_bytes: int, length_bytes: int) -> None: ...
    def flush(self) -> None: ...

@type_check_only
class _NbdTls(Protocol):
    @property
    def certificate(self) -> os.PathLike[str]: ...
    @property
    def key(self) -> os.PathLike[str]: ...
    @property
    def clients(self) -> os.PathLike[str] | None: ...
    @property
    def allow(self) -> os.PathLike[str] | None: ...

@type_check_only
class _NbdListening(Protocol):
    @property
    def unix(self) -> Sequence[os.PathLike[str]]: ...
    @property
    def tcp(self) -> Sequence[str]:
        """Each IP:PORT or [IPv6]:PORT."""
    @property
    def given(self) -> Sequence[int]:
        """Descriptors of listening sockets; they are duplicated."""
    @property
    def socket_mode(self) -> int: ...
    @property
    def socket_group(self) -> int | None: ...
    @property
    def plain_tcp(self) -> bool: ...
    @property
    def tls(self) -> _NbdTls | None: ...

@final
class Attached:
    """Objects that count as attached until `detach`."""

    def detach(self) -> None:
        """Let them go. Idempotent."""

@final
class NbdServer:
    """An NBD server. Stops when closed or dropped."""

    @property
    def addresses(self) -> list[str]:
        """Where it listens, unix:PATH or tcp:HOST:PORT: unix first, then TCP, then given ones."""
    @property
    def connections_count(self) -> int: ...
    def reload_tls(self) -> None:
        """Read certificates and the allow list again; on an error what there was stays."""
    def close_connections(self, objects: list[int]) -> int:
        """Close the connections to these object ids, and refuse new ones until `allow_connections`.

        Result: how many were closed.
        """
    def allow_connections(self, objects: list[int]) -> None: ...
    def close(self) -> None:
        """Stop accepting, answer the requests in progress, flush, close all. Idempotent."""

@final
class RootHasher:
    """Computes the root hash of a snapshot of `size_bytes`; see docs/internals/root-hash.md."""

    def __new__(cls, size_bytes: int) -> RootHasher: ...
    def add(self, first_block: int, data: Buffer) -> None:
        """Add blocks; in ascending order, each once. What is not added is zeros."""
    def add_stored(self, device: Device, first_block: int, blocks_max: int) -> int:
        """Read and add about `blocks_max` mapped blocks. Result: the block to go on from."""
    def finish(self) -> str:
        """Give the root, 64 hexadecimal digits. Nothing can be done afterwards."""

@final
class HashedReader:
    """Reads a snapshot, keeps what its blocks hash to, and computes its root from kept hashes."""

    @property
    def size_bytes(self) -> int: ...
    def read(self, first_block: int, length_bytes: int) -> bytes: ...
    def step(self, blocks_max: int) -> str | None:
        """Go on with the root, reading about so many blocks at most; the root once it is known."""

@final
class StreamHash:
    """BLAKE3 over what it is fed."""

    def __new__(cls) -> StreamHash: ...
    def update(self, data: Buffer) -> None: ...
    def digest(self) -> bytes:
        """Give the 32 bytes for what was fed so far; more may follow."""

@final
class Scrub:
    """A scrub under way: reads all that is held, each stored byte once."""

    def step(self, budget_bytes: int) -> int:
        """Read about so many bytes. Result: how many, nodes included; 0 when nothing is left."""
    def progress(self) -> tuple[int, int, int]:
        """Give the bytes read, about how many there are, and how many findings."""
    def findings(self) -> list[tuple[str, str, list[tuple[str, int, int]], int]]:
        """Give what is damaged: code, text, who needs it (name, first byte, length), how many."""

@final
class Pool:
    """An open pool. All calls may come from several threads; blocking ones release the GIL."""

    @staticmethod
    def create(path: str, segment_bytes: int = 0) -> None:
        """Make an empty pool in a directory that is empty or missing. 0: the default of 64 MiB."""
    @staticmethod
    def open(
        path: str,
        read_only: bool = False,
        node_budget_bytes: int = 0,
        checkpoint_log_bytes: int = 0,
        checkpoint_batches: int = 0,
    ) -> Pool:
        """Open a pool. 0: the default."""
    def checkpoint(self) -> bool:
        """Write a checkpoint. Result: whether there was anything to write."""
    def close(self) -> None:
        """Flush, seal, give the lock back. Idempotent. Later calls raise UnavailableError."""
    @property
    def uuid(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def poisoned_reason(self) -> str:
        """The failure after which writes are refused; empty: none."""

    def hashed_reader(self, name: str) -> HashedReader:
        """Read a snapshot, or something that is being received and is complete."""
    def forget_hashes(self) -> None:
        """Remove all kept hashes."""
    def hold_space(self) -> int:
        """Give nothing back until `let_go`, or until there is no space. Result: its number."""

    def still_holds(self, number: int) -> bool: ...
    def let_go(self, number: int) -> None: ...
    def reclaim(self, everything: bool, time_ms: int) -> tuple[int, int, int, bool]:
        """Give back what is dead. Result: bytes given back, bytes and places that wait, done."""

    def scrub(self) -> Scrub:
        """Begin a scrub."""
    def frees(self, names: list[str]) -> int:
        """Say how many bytes deleting these objects would free."""

    def set_limit(self, limit_bytes: int | None) -> None:
        """Set how many bytes the pool may take; None: as many as there are."""
    def space(self, name: str) -> tuple[int, int, int]:
        """Give the bytes that an object maps, those that no other holds, and the last batch."""
    def list_space(self) -> dict[str, tuple[int, int, int]]:
        """Give the same of all objects, by UUID; up to a minute old."""
    def sharers(self, name: str, count: int) -> tuple[builtins.list[tuple[str, int]], int]:
        """Give who shares most with an object: name, bytes; and how many were compared."""
    def scatter(self, name: str) -> tuple[int, int]:
        """Give the fragments of what was looked at of an object, and its bytes."""
    def fullness(self) -> tuple[int, int, int, int]:
        """Give bytes taken, limit (0: none), bytes free on the file system, and all of them."""
    def stats(self) -> dict[str, int | str | bool]: ...
    def list(self) -> builtins.list[Object]:
        """All volumes and snapshots, sorted by name."""
    def find(self, name: str) -> Object:
        """By name or UUID. Raises NotFoundError."""
    def find_many(self, names: builtins.list[str]) -> builtins.list[Object]:
        """Several, each by name or UUID, in that order. Raises NotFoundError for the first."""
    def taken(self, names: builtins.list[str]) -> builtins.list[str]:
        """Those of `names` that are in use."""
    def create_volumes(
        self, names: builtins.list[str], size_bytes: int, attributes: bytes = ...
    ) -> builtins.list[Object]: ...
    def snapshot(
        self,
        volumes: builtins.list[str],
        names: builtins.list[str],
        attributes: bytes = ...,
    ) -> builtins.list[Object]:
        """One instant; `names[i]` is the snapshot of `volumes[i]`."""
    def clone(
        self,
        source: str,
        names: builtins.list[str],
        size_bytes: int | None = None,
        attributes: bytes = ...,
    ) -> builtins.list[Object]: ...
    def revert(
        self,
        volumes: builtins.list[str],
        snapshots: builtins.list[str],
        keep_names: builtins.list[str] | None = None,
        take_size: bool = False,
    ) -> builtins.list[Object]:
        """Give the snapshots of what was discarded, where `keep_names` is given."""
    def freeze(self, names: builtins.list[str]) -> builtins.list[Object]: ...
    def resize(self, name: str, size_bytes: int, may_shrink: bool = False) -> Object: ...
    def set_attributes(
        self, names: builtins.list[str], attributes: builtins.list[bytes]
    ) -> None: ...
    def diff(self, before: str, after: str) -> builtins.list[tuple[int, int, bool]]:
        """First byte, length in bytes, whether anything is mapped there in `after`."""
    def rename(self, name: str, new_name: str) -> Object: ...
    def delete(self, names: builtins.list[str]) -> builtins.list[Object]:
        """All in one commit. BusyError where one is attached. Result: the objects as they were."""
    def trash(self, names: builtins.list[str]) -> builtins.list[Object]:
        """As `delete`, but where the pool has a window they can be restored."""
    def trashed(self) -> builtins.list[tuple[Object, int]]:
        """Give what is in the trash, and for how many nanoseconds."""
    def restore(
        self, keys: builtins.list[str], names: builtins.list[str] | None = None
    ) -> builtins.list[Object]:
        """`keys`: UUIDs, or the names they had; `names`: others for them."""
    def empty_trash(self, keys: builtins.list[str] | None = None) -> builtins.list[Object]: ...
    def trash_frees(self, keys: builtins.list[str] | None = None) -> int: ...
    def trash_seconds(self) -> int: ...
    def set_trash_seconds(self, seconds: int) -> None: ...
    def lock(self, names: builtins.list[str], time_ns: int, mode: str) -> builtins.list[Object]: ...
    def unlock(
        self, names: builtins.list[str], secret: bytes | None = None
    ) -> builtins.list[Object]:
        """`secret`, here and below: 32 bytes, the hash of the lock secret."""
    def lock_clock(self) -> dict[str, int | bool]: ...
    def confirm_lock_clock(self, secret: bytes) -> int:
        """Give by how many nanoseconds governance locks end earlier at most."""
    def set_lock_secret(self, secret: bytes, old: bytes | None = None) -> None: ...
    def set_cooling_off(self, seconds: int, secret: bytes | None = None) -> None: ...
    def flush(self) -> None: ...
    def open_device(self, name: str) -> Device:
        """By name or UUID, for use in this process; does not count as attached."""
    def changed_runs(
        self, before: str | None, after: str, first_block: int
    ) -> tuple[builtins.list[tuple[int, int, bool]], int]:
        """Give runs of blocks in which `after` differs, from `first_block` on, up to its end.

        A run: the first block, how many, whether anything is mapped there. Result: runs, and the
        block before which all was told; to be called again until that is the end.
        """
    def attach(self, names: builtins.list[str]) -> Attached:
        """Have objects count as attached, by name or UUID, all or none."""
    def begin_receiving(
        self,
        uuid: str,
        batch: str,
        source: str | None,
        created_ns: int,
        size_bytes: int,
        attributes: bytes,
        base: str | None = None,
    ) -> Object:
        """Make a hidden volume for a snapshot to come; see docs/internals/stream.md."""
    def note_receiving(self, uuid: str, attributes: bytes) -> None: ...
    def admit(
        self,
        uuids: builtins.list[str],
        names: builtins.list[str],
        attributes: builtins.list[bytes],
    ) -> builtins.list[Object]:
        """Make snapshots of what was received, in one commit."""
    def abandon(self, uuids: builtins.list[str]) -> None: ...
    def receiving(self) -> builtins.list[Object]: ...
    def receiving_device(self, uuid: str) -> Device: ...
    def serve_nbd(self, listening: _NbdListening) -> NbdServer:
        """Serve all objects by name, at all addresses or not at all."""

def accept_loss(path: str, secret: bytes | None = None) -> dict[str, Any] | None:
    """Open a pool whose log is damaged at the last batch that can be followed, and close it.

    Result: what was lost, the fields of `LossReport`; None where nothing is damaged.
    """

def pool_uuid(path: str) -> str:
    """Of a pool that need not be well."""

def version() -> str: ...
