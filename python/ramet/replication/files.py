"""Streams kept in files: held against their seals, each other, and the roots they promise.

Reads no pool. Docs: docs/internals/stream.md, "Files". Invariant: a root that is called proved was
computed from the bytes of the files, as receiving them in this order would build them.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ramet.errors import CorruptError, InvalidError, NotFoundError, RametError
from ramet.pool.transfers import BLOCK_BYTES, RootHasher
from ramet.records import Verified
from ramet.replication.stream import (
    Begin,
    Done,
    Item,
    StreamReader,
    read_unsealed,
)

# Is told bytes that were read, and how many there are.
Progress = Callable[[int, int], None]
# The first block, how many, and their data; None: zeros.
Segment = tuple[int, int, memoryview | None]


class FileSnapshot(NamedTuple):
    """A snapshot that a file holds, whole or as what differs from its base."""

    file: str
    name: str
    uuid: str
    size_bytes: int
    root: str
    is_proved: bool
    """Whether the root was computed; False: another file of the chain, which is, builds on it."""
    created_ns: int

    def to_json(self) -> dict[str, str | int | bool]:
        """Give it as a dictionary that `json.dumps` takes."""
        return self._asdict()

    def verified(self) -> Verified | None:
        """Give what was proved; None where nothing was computed.

        Example: verify_files([Path("db@1.ramet")])[0].verified()
        """
        if not self.is_proved:
            return None
        return Verified(self.name, self.uuid, self.size_bytes, self.root, self.created_ns)


class _Layer(NamedTuple):
    """One snapshot in one file."""

    path: Path
    item: Item
    at: int
    """Where its first record of changes is."""
    root: str
    below: "_Layer | None"


def verify_files(paths: Sequence[Path], *, progress: Progress | None = None) -> list[FileSnapshot]:
    """Read streams in the order in which they would be received, and prove what they hold.

    Each file must be whole; each base must be a snapshot of an earlier file, with the root that is
    told. The roots of snapshots that no later file builds on are computed from all files of their
    chain together. `progress`: is called with bytes of files read and in all.
    Result: the snapshots, in order.
    Raises: NotFoundError (code link_missing) that names the base, or where a file is missing;
    CorruptError (codes stream_damaged, stream_malformed, link_differs, root_differs);
    UnavailableError (code stream_cut); InvalidError (codes not_a_stream, stream_version,
    stream_partial). The text begins with the file.
    Source: docs/internals/stream.md, "Files".
    Example: verify_files([Path("db@1.ramet"), Path("db@2.ramet")])
    """
    layers: dict[str, _Layer] = {}
    order: list[_Layer] = []
    counter = _Counter(paths, progress)
    for path in paths:
        for layer in _read_file(path, layers, counter):
            layers[layer.item.uuid] = layer
            order.append(layer)
    built_on = {id(layer.below) for layer in order if layer.below is not None}
    found = []
    for layer in order:
        proved = id(layer) not in built_on
        if proved:
            _prove(layer)
        item = layer.item
        what = (item.name, item.uuid, item.size_bytes, layer.root, proved, item.created_ns)
        found.append(FileSnapshot(str(layer.path), *what))
    return found


class _Counter:
    """Adds up what was read."""

    def __init__(self, paths: Sequence[Path], progress: Progress | None) -> None:
        self._progress = progress
        self._done_bytes = 0
        self._total_bytes = sum(_size(path) for path in paths)

    def reads(self, file: BinaryIO) -> Callable[[int], bytes]:
        def read(length: int) -> bytes:
            content = file.read(length)
            self._done_bytes += len(content)
            if self._progress is not None:
                self._progress(self._done_bytes, self._total_bytes)
            return content

        return read


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise NotFoundError(
            "stream_file", f"'{path}' cannot be read: {error.strerror}; hint: check its path"
        ) from error


def _read_file(path: Path, layers: dict[str, _Layer], counter: _Counter) -> list[_Layer]:
    """Read one file as a whole."""
    try:
        with path.open("rb") as file:
            reader = StreamReader(counter.reads(file))
            if reader.header.resumed is not None:
                raise InvalidError(
                    "stream_partial",
                    "it holds the rest of a stream that was cut; hint: send it again, all of it",
                )
            below = [_link(item, layers) for item in reader.header.snapshots]
            starts: list[int] = []
            roots: list[str] = []
            for event in reader.events():
                if isinstance(event, Begin):
                    starts.append(reader.read_bytes)
                elif isinstance(event, Done):
                    roots.append(event.root)
    except RametError as error:
        raise type(error)(error.code, f"'{path}': {error.text}") from error
    except OSError as error:
        raise NotFoundError(
            "stream_file", f"'{path}' cannot be read: {error.strerror}; hint: check its path"
        ) from error
    items = reader.header.snapshots
    return [_Layer(path, *parts) for parts in zip(items, starts, roots, below, strict=True)]


def _link(item: Item, layers: dict[str, _Layer]) -> _Layer | None:
    """Find the layer that a snapshot is told against."""
    if item.base is None:
        return None
    below = layers.get(item.base.uuid)
    if below is None:
        raise NotFoundError(
            "link_missing",
            f"'{item.name}' is told as what differs from '{item.base.name}', UUID"
            f" {item.base.uuid}, which no earlier file holds;"
            " hint: give the file with it first",
        )
    if below.root != item.base.root:
        raise CorruptError(
            "link_differs",
            f"'{item.name}' is told against '{item.base.name}' with root {item.base.root};"
            f" in '{below.path}' it has root {below.root}; hint: they are of different backups",
        )
    return below


def _prove(layer: _Layer) -> None:
    """Compute a root from all files of its chain.

    Raises: CorruptError (code root_differs).
    """
    hasher = RootHasher(layer.item.size_bytes)
    for first, _, data in _content(layer):
        if data is not None:
            hasher.add(first, data)
    root = hasher.finish()
    if root != layer.root:
        raise CorruptError(
            "root_differs",
            f"'{layer.path}': the blocks of '{layer.item.name}' hash to {root}, and hashed to"
            f" {layer.root} at the sender; hint: receive an earlier one, and send anew",
        )


def _content(layer: _Layer) -> Iterator[Segment]:
    """Give all data of a snapshot, in order: its own, and its base's where it tells nothing."""
    chain = [layer]
    while chain[-1].below is not None:
        chain.append(chain[-1].below)
    content: Iterator[Segment] = iter(())
    for it in reversed(chain):
        content = _overlay(content, _segments(it), it.item.blocks_count)
    return content


def _segments(layer: _Layer) -> Iterator[Segment]:
    with layer.path.open("rb") as file:
        file.seek(layer.at)
        for changes in read_unsealed(file.read, layer.item.blocks_count):
            for run, data in changes.parts():
                yield run.first, run.blocks, data if run.is_data else None


def _overlay(
    below: Iterator[Segment], above: Iterator[Segment], blocks_count: int
) -> Iterator[Segment]:
    """Lay what is told over what was there; zeros go, and what lies beyond the end."""
    old = next(below, None)
    for new in above:
        first, blocks, _ = new
        while old is not None and old[0] < first:
            before, old = _cut(old, first)
            yield before
            old = old or next(below, None)
        # What is left of it under the new one is gone.
        while old is not None and old[0] < first + blocks:
            old = _cut(old, first + blocks)[1] or next(below, None)
        if new[2] is not None:
            yield new
    while old is not None and old[0] < blocks_count:
        yield _cut(old, blocks_count)[0]
        old = next(below, None)


def _cut(segment: Segment, at: int) -> tuple[Segment, Segment | None]:
    """Cut a segment before block `at`; None where nothing is left behind it."""
    first, blocks, data = segment
    kept = min(blocks, max(at - first, 0))
    if kept == blocks:
        return segment, None
    parts = (
        (None, None) if data is None else (data[: kept * BLOCK_BYTES], data[kept * BLOCK_BYTES :])
    )
    return (first, kept, parts[0]), (first + kept, blocks - kept, parts[1])
