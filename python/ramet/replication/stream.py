"""The stream's bytes: docs/internals/stream.md, "Bytes".

Imports pool for its hash only. Invariants: nothing is looked at before its seal was checked, but
the lengths that are needed to find it, and those are bounded; whatever the bytes are, the result is
what a sender wrote, or an error of `ramet.errors`.
"""

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple, TypeVar

import msgspec

from ramet.errors import CorruptError, InvalidError, RametError, UnavailableError
from ramet.names import check_snapshot_name
from ramet.pool.transfers import StreamHash
from ramet.tags import check_tags

MAGIC, VERSION = b"RAMETSTR", 1
BLOCK_BYTES = 4096
SECTOR_BYTES = 512
SIZE_BYTES_MAX = 1 << 48  # Of a snapshot.
DATA_BYTES_MAX = 1 << 20  # Of one record of changes, unpacked.
RUNS_MAX = 4096
RUN_BLOCKS_MAX = 2**32 - 1
SNAPSHOTS_MAX = 65_536
SEAL_BYTES = 16
DATA, ZEROS = 1, 2
COMPRESSED = 1

_HEAD = struct.Struct("<8sII")
_RECORD = struct.Struct("<B3sI")
_BEGIN = struct.Struct("<IIQ")
_CHANGES = struct.Struct("<QII")
_RUN = struct.Struct("<QII")
_DONE = struct.Struct("<II32s")
# As the core writes it, and not the nil one, which stands for none.
_UUID = re.compile(r"(?!0{8}-)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ROOT = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(r"([0-9a-f]{32})-([0-9]{1,5})-([0-9]{1,11})")

Json = TypeVar("Json")


class Kind(IntEnum):
    """What a record is."""

    HEADER = 1
    BEGIN = 2
    CHANGES = 3
    DONE = 4
    END = 5
    FAILED = 6


PAYLOAD_BYTES_MAX = {
    Kind.HEADER: 64 << 20,
    Kind.BEGIN: _BEGIN.size,
    Kind.CHANGES: 2 << 20,
    Kind.DONE: _DONE.size,
    Kind.END: 32,
    Kind.FAILED: 64 << 10,
}


class Base(msgspec.Struct, frozen=True):
    """The snapshot that a stream tells the differences from."""

    uuid: str
    name: str
    root: str


class Item(msgspec.Struct, frozen=True):
    """A snapshot in a stream."""

    uuid: str
    name: str
    size_bytes: int
    created_ns: int
    batch: str
    source: str | None
    tags: dict[str, str]
    data_bytes: int
    root: str | None
    base: Base | None

    @property
    def blocks_count(self) -> int:
        """The blocks that it has."""
        return -(-self.size_bytes // BLOCK_BYTES)


class Header(msgspec.Struct, frozen=True):
    """What a stream says of itself."""

    ramet: str
    pool: str
    transfer: str
    resumed: tuple[int, int] | None
    snapshots: list[Item]

    @property
    def start(self) -> tuple[int, int]:
        """Index of a snapshot and block from which on it tells."""
        return self.resumed or (0, 0)


class Failure(msgspec.Struct, frozen=True):
    """Why a sender gave up."""

    kind: str
    code: str
    text: str


class Run(NamedTuple):
    """Blocks that changed alike."""

    first: int
    blocks: int
    is_data: bool


class Begin(NamedTuple):
    """A snapshot follows, told from a block on."""

    place: int
    """Which one of the header."""
    block: int


class Changes(NamedTuple):
    """What all blocks up to `end` are that are not as before."""

    end: int
    runs: list[Run]
    data: memoryview

    def parts(self) -> Iterator[tuple[Run, memoryview]]:
        """Give the runs with their data; of zeros, none."""
        at = 0
        for run in self.runs:
            length = run.blocks * BLOCK_BYTES if run.is_data else 0
            yield run, self.data[at : at + length]
            at += length


class Done(NamedTuple):
    """All of a snapshot was told."""

    place: int
    root: str


Event = Begin | Changes | Done


class Token(NamedTuple):
    """From where on a transfer is to be resumed."""

    transfer: str
    place: int
    """Which snapshot of it."""
    block: int

    def __str__(self) -> str:
        return f"{self.transfer}-{self.place}-{self.block}"

    @classmethod
    def parse(cls, text: str) -> "Token":
        """Read what `__str__` gave.

        Raises: InvalidError (code token_malformed).
        """
        found = _TOKEN.fullmatch(text.strip())
        if found is None:
            raise InvalidError(
                "token_malformed",
                f"{text!r} is no token; hint: give what `ramet receive --position` prints",
            )
        return cls(found[1], int(found[2]), int(found[3]))


def transfer_of(pairs: Sequence[tuple[str, str | None]]) -> str:
    """Give what names a transfer: UUIDs of snapshots and bases, in order."""
    hashed = StreamHash()
    hashed.update(msgspec.json.encode(pairs))
    return hashed.digest().hex()[: 2 * SEAL_BYTES]


class StreamWriter:
    """Makes the bytes of a stream, piece by piece."""

    def __init__(self, *, compress: bool = False) -> None:
        self._hash = StreamHash()
        self._compress: Callable[[bytes], bytes] | None = None
        if compress:
            from zstandard import ZstdCompressor

            self._compress = ZstdCompressor().compress

    def header(self, header: Header) -> bytes:
        """Give the head and the header."""
        head = _HEAD.pack(MAGIC, VERSION, 0)
        self._hash.update(head)
        return head + self._record(Kind.HEADER, msgspec.json.encode(header))

    def begin(self, index: int, block: int) -> bytes:
        """Begin a snapshot."""
        return self._record(Kind.BEGIN, _BEGIN.pack(index, 0, block))

    def changes(self, end: int, runs: Sequence[Run], data: bytes) -> bytes:
        """Tell all changes up to a block."""
        flags = 0
        if self._compress is not None and data:
            packed = self._compress(data)
            if len(packed) < len(data):
                data, flags = packed, COMPRESSED
        table = b"".join(
            _RUN.pack(it.first, it.blocks, DATA if it.is_data else ZEROS) for it in runs
        )
        return self._record(Kind.CHANGES, _CHANGES.pack(end, len(runs), flags) + table + data)

    def done(self, index: int, root: str) -> bytes:
        """End a snapshot."""
        return self._record(Kind.DONE, _DONE.pack(index, 0, bytes.fromhex(root)))

    def end(self) -> bytes:
        """End the stream."""
        return self._record(Kind.END, self._hash.digest())

    def failed(self, error: RametError) -> bytes:
        """End the stream with why it cannot go on."""
        return self._record(Kind.FAILED, msgspec.json.encode(error.to_json()))

    def _record(self, kind: Kind, payload: bytes) -> bytes:
        if len(payload) > PAYLOAD_BYTES_MAX[kind]:
            raise InvalidError(
                "stream_too_large",
                f"a record of {len(payload)} bytes; hint: send fewer snapshots at once",
            )
        record = _RECORD.pack(kind, bytes(3), len(payload)) + payload
        self._hash.update(record)
        seal = self._hash.digest()[:SEAL_BYTES]
        self._hash.update(seal)
        return record + seal


class StreamReader:
    """Reads a stream: `header` once, then `events`, which ends with the stream.

    `read`: gives up to so many bytes, none at the end.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._hash = StreamHash()
        self.read_bytes = 0
        """Bytes of the stream that were read."""
        self._header = self._read_header()

    @property
    def header(self) -> Header:
        """What the stream says of itself."""
        return self._header

    def _read_header(self) -> Header:
        head = self._take(_HEAD.size)
        magic, version, zero = _HEAD.unpack(head)
        if magic != MAGIC:
            raise InvalidError(
                "not_a_stream",
                f"what is read begins with {head!r}, which is no stream;"
                " hint: give what `ramet send` wrote, and nothing before it",
            )
        if version != VERSION or zero:
            raise InvalidError(
                "stream_version",
                f"the stream is of version {version}, this Ramet reads {VERSION};"
                " hint: receive it with the Ramet that is as new as the sender's",
            )
        self._hash.update(head)
        kind, payload, _ = self._record()
        if kind != Kind.HEADER:
            raise _malformed(f"it begins with a record of kind {kind}")
        header = _decode(payload, Header)
        check_header(header)
        return header

    def events(self) -> Iterator[Event]:
        """Give what the stream tells, in order and checked, up to its end.

        Raises: UnavailableError (code stream_cut) where it ends early, and what made the sender
        give up; CorruptError (codes stream_damaged, stream_malformed).
        """
        items = self._header.snapshots
        start = self._header.start
        for index in range(start[0], len(items)):
            first = start[1] if index == start[0] else 0
            begin = self._begin()
            if begin != Begin(index, first):
                raise _malformed(f"snapshot {begin.place} from block {begin.block} on is told")
            yield begin
            yield from self._snapshot(index, first, items[index].blocks_count)
        before = self._hash.digest()
        payload = self._expect(Kind.END)
        if payload != before:
            raise _damaged(self.read_bytes)
        if self._read(1):
            raise _malformed("something follows its end")

    def _begin(self) -> Begin:
        payload = self._expect(Kind.BEGIN)
        if len(payload) != _BEGIN.size:
            raise _malformed("a record begin is too short")
        index, zero, block = _BEGIN.unpack(payload)
        if zero:
            raise _malformed("a record begin has no zeros")
        return Begin(index, block)

    def _snapshot(self, index: int, first: int, blocks_count: int) -> Iterator[Event]:
        at = first
        while True:
            kind, payload, _ = self._record()
            if kind == Kind.CHANGES:
                changes = decode_changes(payload, at, blocks_count)
                yield changes
                at = changes.end
            elif kind == Kind.DONE and len(payload) == _DONE.size and at == blocks_count:
                done_index, zero, root = _DONE.unpack(payload)
                if (done_index, zero) != (index, 0):
                    raise _malformed(f"snapshot {done_index} is done, {index} was told")
                yield Done(index, root.hex())
                return
            else:
                raise _malformed(f"a record of kind {kind} at block {at} of {blocks_count}")

    def _expect(self, expected: Kind) -> bytes:
        kind, payload, _ = self._record()
        if kind != expected:
            raise _malformed(f"a record of kind {kind} where {expected} should be")
        return payload

    def _record(self) -> tuple[int, bytes, int]:
        """Give kind and payload of the next record, and where it began.

        Raises: what the sender failed with.
        """
        at = self.read_bytes
        head = self._take(_RECORD.size)
        kind, zero, length = _RECORD.unpack(head)
        if any(zero) or length > PAYLOAD_BYTES_MAX.get(kind, -1):
            raise _damaged(at)
        payload = self._take(length)
        self._hash.update(head)
        self._hash.update(payload)
        seal = self._hash.digest()[:SEAL_BYTES]
        if self._take(SEAL_BYTES) != seal:
            raise _damaged(at)
        self._hash.update(seal)
        if kind == Kind.FAILED:
            failure = _decode(payload, Failure)
            raise UnavailableError(
                "sender_failed",
                f"the sender gave up: {failure.code}: {failure.text}; hint: mend that, send again",
            )
        return kind, payload, at

    def _take(self, length: int) -> bytes:
        parts, left = [], length
        while left:
            part = self._read(left)
            if not part:
                raise UnavailableError(
                    "stream_cut",
                    f"the stream ends after {self.read_bytes} bytes, before its end;"
                    " hint: resume it from `ramet receive --position`, or send it again",
                )
            parts.append(part)
            left -= len(part)
            self.read_bytes += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def read_unsealed(read: Callable[[int], bytes], blocks_count: int) -> Iterator[Changes]:
    """Read the changes of one snapshot again, from behind its record begin on.

    For what was read before: seals are not looked at.
    Raises: CorruptError (code stream_malformed).
    """
    at = 0
    while True:
        kind, _, length = _RECORD.unpack(read(_RECORD.size).ljust(_RECORD.size, b"\0"))
        if kind == Kind.DONE:
            return
        if kind != Kind.CHANGES or length > PAYLOAD_BYTES_MAX[Kind.CHANGES]:
            raise _malformed("it changed while it was read")
        payload = read(length)
        read(SEAL_BYTES)
        changes = decode_changes(payload, at, blocks_count)
        yield changes
        at = changes.end


def decode_changes(payload: bytes, at: int, blocks_count: int) -> Changes:
    """Read a record of changes that follows block `at`.

    Raises: CorruptError (code stream_malformed).
    """
    if len(payload) < _CHANGES.size:
        raise _malformed("a record of changes is too short")
    end, count, flags = _CHANGES.unpack_from(payload)
    data_at = _CHANGES.size + count * _RUN.size
    if not at <= end <= blocks_count or count > RUNS_MAX or flags > COMPRESSED:
        raise _malformed(f"changes up to block {end}, {count} runs, flags {flags}")
    if data_at > len(payload):
        raise _malformed(f"{count} runs do not fit")
    runs = []
    for first, length, kind in _RUN.iter_unpack(payload[_CHANGES.size : data_at]):
        if first < at or length == 0 or first + length > end or kind not in (DATA, ZEROS):
            raise _malformed(f"a run of {length} blocks from {first} on, of kind {kind}")
        runs.append(Run(first, length, kind == DATA))
        at = first + length
    blocks = sum(run.blocks for run in runs if run.is_data)
    data = memoryview(payload)[data_at:]
    if blocks * BLOCK_BYTES > DATA_BYTES_MAX:
        raise _malformed(f"{blocks} blocks of data in one record")
    if flags & COMPRESSED:
        data = _unpack(data, blocks * BLOCK_BYTES)
    if len(data) != blocks * BLOCK_BYTES:
        raise _malformed(f"{len(data)} bytes of data for {blocks} blocks")
    return Changes(end, runs, data)


def _unpack(frame: memoryview, length: int) -> memoryview:
    import zstandard

    try:
        # The length is believed only after it was compared: it says how much memory is taken.
        if zstandard.frame_content_size(frame) != length:
            raise _malformed(f"a frame that does not hold {length} bytes")
        unpacked = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _malformed(f"a frame that is none: {error}") from error
    return memoryview(unpacked)


def check_header(header: Header) -> None:
    """Hold a header to what its fields may be, whoever wrote it.

    Raises: CorruptError (code stream_malformed); InvalidError for a name or a tag.
    """
    items = header.snapshots
    if not 1 <= len(items) <= SNAPSHOTS_MAX:
        raise _malformed(f"{len(items)} snapshots")
    for item in items:
        check_item(item)
    for what in ({it.uuid for it in items}, {it.name for it in items}):
        if len(what) != len(items):
            raise _malformed("a snapshot is there twice")
    pairs = [(it.uuid, it.base.uuid if it.base else None) for it in items]
    if header.transfer != transfer_of(pairs) or not _UUID.fullmatch(header.pool):
        raise _malformed("its name is not that of its snapshots")
    index, block = header.start
    within = 0 <= index < len(items) and 0 <= block <= items[index].blocks_count
    if not within and (index, block) != (len(items), 0):
        raise _malformed(f"it is resumed at snapshot {index}, block {block}")


def check_item(item: Item) -> None:
    """Hold a snapshot of a header to what its fields may be.

    Raises: as `check_header`.
    """
    check_snapshot_name(item.name)
    check_tags(item.tags)
    base = item.base
    uuids = [item.uuid, item.batch, item.source, base.uuid if base else None]
    roots = [item.root, base.root if base else None]
    sizes_fit = 0 < item.size_bytes <= SIZE_BYTES_MAX and item.size_bytes % SECTOR_BYTES == 0
    if (
        not all(_UUID.fullmatch(it) for it in uuids if it is not None)
        or not all(_ROOT.fullmatch(it) for it in roots if it is not None)
        or not sizes_fit
        or not 0 <= item.created_ns < 2**64
        or item.data_bytes < 0
        or (base is not None and base.uuid == item.uuid)
    ):
        raise _malformed(f"what it says of '{item.name}' cannot be")


def _decode(payload: bytes, kind: type[Json]) -> Json:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(f"its {kind.__name__.lower()} is none: {error}") from error


def _damaged(at: int) -> CorruptError:
    return CorruptError(
        "stream_damaged",
        f"the stream's record at byte {at} does not match its seal;"
        " hint: send it again; what arrived before it can be resumed",
    )


def _malformed(text: str) -> CorruptError:
    return CorruptError(
        "stream_malformed", f"no stream that Ramet wrote: {text}; hint: send it again"
    )
