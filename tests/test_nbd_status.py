"""Holes and changes as NBD clients see them: block status, dirty bitmaps, reads of holes.

The model is a dictionary of block to stamp for each object; what the server tells is held against
it, and against `diff`.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbd_client
import ramet
from nbd_client import Extents, NbdClient
from ramet.errors import BusyError

BLOCK_BYTES = 4096
TIB = 1 << 40
ALLOCATION, DIRTY = "base:allocation", "qemu:dirty-bitmap:"
HOLE, DATA, CHANGED, SAME = 3, 0, 1, 0
BASES = (0, 1 << 12, 1 << 20, (1 << 26) + 300, (1 << 28) - 3000)  # In blocks, far apart.
NODE_BUDGET_BYTES = 64 << 10
ROUNDS_COUNT = 12

Blocks = dict[int, int]


@pytest.fixture
def socket_path(pool: ramet.Pool, tmp_path: Path) -> Iterator[Path]:
    """Where `pool` is served."""
    path = tmp_path / "nbd.sock"
    with pool.serve_nbd(path):
        yield path


def connect(
    socket_path: str | Path, export: str, *contexts: str, extended: bool = False
) -> NbdClient:
    return nbd_client.connect(socket_path, export, list(contexts), extended)


def blocks_with(extents: Extents, flags: int) -> set[int]:
    """Give the blocks of the extents that have just these flags."""
    found: set[int] = set()
    at = 0
    for length, own in extents:
        if own == flags:
            found |= set(range(at // BLOCK_BYTES, -(-(at + length) // BLOCK_BYTES)))
        at += length
    return found


class World:
    """A volume that is written to at random, with snapshots, beside a model."""

    def __init__(self, pool: ramet.Pool, draw: random.Random) -> None:
        self.pool, self.draw = pool, draw
        self.volume = pool.create_volume("db", TIB)
        self.blocks: Blocks = {}
        self.snapshots: dict[str, Blocks] = {}
        self.stamp = 0

    def change(self) -> None:
        for _ in range(self.draw.randint(1, 20)):
            first = self.draw.choice(BASES) + self.draw.randrange(2000)
            count = self.draw.choice((1, 1, 1, 2, 60))
            if self.draw.random() < 0.3:
                self.volume.trim(first * BLOCK_BYTES, count * BLOCK_BYTES)
                for index in range(first, first + count):
                    self.blocks.pop(index, None)
            else:
                self.stamp += 1
                self.volume.write(first * BLOCK_BYTES, b"x" * count * BLOCK_BYTES)
                self.blocks.update(dict.fromkeys(range(first, first + count), self.stamp))

    def snapshot(self) -> None:
        name = f"db@{len(self.snapshots)}"
        self.volume.snapshot(name)
        self.snapshots[name] = dict(self.blocks)

    def check(self, socket_path: str | Path, extended: bool) -> None:
        base = self.draw.choice(sorted(self.snapshots))
        with connect(socket_path, "db", ALLOCATION, DIRTY + base, extended=extended) as client:
            told = client.whole_status(ALLOCATION)
            assert blocks_with(told, DATA) == self.blocks.keys()
            assert sum(length for length, _ in told) == client.size
            changed = blocks_with(client.whole_status(DIRTY + base), CHANGED)
        before = self.snapshots[base]
        expected = {
            at for at in before.keys() | self.blocks.keys() if before.get(at) != self.blocks.get(at)
        }
        assert changed == expected
        diff = [(it.offset_bytes, it.length_bytes) for it in self.pool.diff(base, "db").extents]
        assert changed == {
            block // BLOCK_BYTES
            for first, length in diff
            for block in range(first, first + length, BLOCK_BYTES)
        }


@pytest.mark.random
@pytest.mark.parametrize("extended", [False, True], ids=["structured", "extended"])
def test_status_tells_what_is_mapped_and_what_changed(
    pool: ramet.Pool, socket_path: Path, randomness: random.Random, extended: bool
) -> None:
    world = World(pool, randomness)
    for _ in range(ROUNDS_COUNT):
        world.snapshot()
        world.change()
        world.check(socket_path, extended)


@pytest.mark.random
def test_status_of_maps_that_are_not_in_memory(
    pool_path: Path, monkeypatch: pytest.MonkeyPatch, randomness: random.Random
) -> None:
    monkeypatch.setenv("RAMET_NODE_BUDGET", str(NODE_BUDGET_BYTES))
    pool = ramet.open(pool_path, create=True, segment_size="1MiB")
    world = World(pool, randomness)
    for _ in range(ROUNDS_COUNT // 3):
        world.snapshot()
        for _ in range(10):
            world.change()
        pool.close()
        pool = world.pool = ramet.open(pool_path)
        world.volume = pool.volume("db")
        with pool.serve_nbd(pool_path / "nbd.sock") as server:
            world.check(server.socket_path, extended=True)
    assert pool.stats()["nodes_loaded_count"] > 0
    pool.close()


def test_a_read_of_holes_and_data_is_told_in_parts(pool: ramet.Pool, socket_path: Path) -> None:
    volume = pool.create_volume("db", 64 * BLOCK_BYTES)
    volume.write(BLOCK_BYTES, b"a" * BLOCK_BYTES)
    volume.write(3 * BLOCK_BYTES + 5, b"b")
    for extended in (False, True):
        with connect(socket_path, "db", extended=extended) as client:
            whole = client.read(0, 64 * BLOCK_BYTES)
            assert whole == volume.read(0, 64 * BLOCK_BYTES)
            assert client.holes_read_count == 3
            assert client.read(1, 20_000) == whole[1:20_001]


def test_extents_are_cut_to_the_request_and_to_one_where_asked(
    pool: ramet.Pool, socket_path: Path
) -> None:
    volume = pool.create_volume("db", 64 * BLOCK_BYTES + 512)
    volume.write(BLOCK_BYTES, b"a" * 2 * BLOCK_BYTES)
    with connect(socket_path, "db", ALLOCATION) as client:
        assert client.status(5000, 2)[ALLOCATION] == [(2, DATA)]
        assert client.status(4000, 9000)[ALLOCATION] == [(96, HOLE), (8192, DATA), (712, HOLE)]
        assert client.status(0, 20_000, nbd_client.FLAG_ONE)[ALLOCATION] == [(4096, HOLE)]
        assert client.status(64 * BLOCK_BYTES, 512)[ALLOCATION] == [(512, HOLE)]
        for offset, length in ((0, 0), (0, 65 * BLOCK_BYTES), (2**64 - 1, 1)):
            with pytest.raises(nbd_client.NbdError) as caught:
                client.status(offset, length)
            assert caught.value.errno == 22


def test_status_of_terabytes_is_one_request_and_told_in_bounded_replies(
    pool: ramet.Pool, socket_path: Path
) -> None:
    volume = pool.create_volume("db", 64 * TIB)
    volume.snapshot("db@1")
    with connect(socket_path, "db", ALLOCATION, DIRTY + "db@1", extended=True) as client:
        told = client.status(0, 64 * TIB)
        assert told == {ALLOCATION: [(64 * TIB, HOLE)], DIRTY + "db@1": [(64 * TIB, SAME)]}
        client.write(63 * TIB, b"x")
        told = client.status(0, 64 * TIB)
        after = TIB - BLOCK_BYTES
        assert told == {
            ALLOCATION: [(63 * TIB, HOLE), (BLOCK_BYTES, DATA), (after, HOLE)],
            DIRTY + "db@1": [(63 * TIB, SAME), (BLOCK_BYTES, CHANGED), (after, SAME)],
        }
        client.write_zeroes(0, 64 * TIB, nbd_client.FLAG_FAST_ZERO)
        assert client.status(0, 64 * TIB)[ALLOCATION] == [(64 * TIB, HOLE)]
    assert volume.record().mapped_bytes == 0


@pytest.mark.parametrize(
    ("size", "longest", "extended"),
    [(64 * TIB, 64 * TIB, True), (4 * TIB, 2**32 - BLOCK_BYTES, False)],
    ids=["at once", "in requests of 32 bits"],
)
def test_terabytes_are_trimmed(
    pool: ramet.Pool, socket_path: Path, size: int, longest: int, extended: bool
) -> None:
    volume = pool.create_volume("db", size)
    with connect(socket_path, "db", ALLOCATION, extended=extended) as client:
        places = (0, TIB + 5 * BLOCK_BYTES, size - BLOCK_BYTES)
        for at in places:
            client.write(at, b"x" * BLOCK_BYTES)
        told = client.whole_status(ALLOCATION)
        assert blocks_with(told, DATA) == {at // BLOCK_BYTES for at in places}
        for at in range(0, size, longest):
            client.trim(at, min(longest, size - at))
        assert client.whole_status(ALLOCATION) == [(size, HOLE)]
        assert [client.read(at, 1) for at in places] == [b"\0"] * 3
    assert volume.record().mapped_bytes == 0


def test_changes_are_told_since_any_snapshot_of_the_family_and_no_other(
    pool: ramet.Pool, socket_path: Path
) -> None:
    db = pool.create_volume("db", 64 * BLOCK_BYTES)
    db.write(0, b"1")
    db.snapshot("db@1")
    db.write(BLOCK_BYTES, b"2")
    db.snapshot("db@2")
    (clone,) = pool.clone("db@1", "clone")
    clone.write(2 * BLOCK_BYTES, b"3")
    clone.snapshot("clone@1")
    pool.create_volume("other", 64 * BLOCK_BYTES).snapshot("other@1")
    for export, base, expected in (
        ("db", "db@1", {1}),
        ("db", "db@2", set()),
        ("db@2", "db@1", {1}),
        ("db@1", "db@2", {1}),
        ("clone", "db@1", {2}),
        ("clone", "db@2", {1, 2}),
        ("db", "clone@1", {1, 2}),
    ):
        with connect(socket_path, export, DIRTY + base) as client:
            assert blocks_with(client.whole_status(DIRTY + base), CHANGED) == expected, export
    for export, base in (("db", "other@1"), ("db", "clone"), ("db", "absent"), ("db@1", "db@1")):
        with pytest.raises(AssertionError, match=r"the server chose \{\}"):
            connect(socket_path, export, DIRTY + base)


def test_the_base_of_a_backup_cannot_be_deleted_while_it_is_read(
    pool: ramet.Pool, socket_path: Path
) -> None:
    db = pool.create_volume("db", 64 * BLOCK_BYTES)
    db.snapshot("db@1")
    db.write(0, b"1")
    db.snapshot("db@2")
    with connect(socket_path, "db@2", DIRTY + "db@1") as client:
        with pytest.raises(BusyError):
            pool.delete("db@1")
        pool.delete("db@1", force=True)
        with pytest.raises((ConnectionError, BrokenPipeError)):
            client.status(0, BLOCK_BYTES)
    with pytest.raises(AssertionError, match=r"the server chose \{\}"):
        connect(socket_path, "db@2", DIRTY + "db@1")
