"""Maps larger than memory: random verbs on terabytes of thin volumes, with 64 KiB for their maps.

The model is a dictionary of block to stamp for each object. Sizes and places are such that trees
are deep, leaves of every form are there, and nearly every look at a map has to load something.
"""

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

import ramet
from pool_checks import assert_clean

BLOCK_BYTES = 4096
LEAF_BLOCKS = 512
VOLUME_BYTES = 4 << 40
BASES = (0, 1 << 12, 1 << 20, (1 << 26) + 300, (1 << 30) - 40_000)  # In blocks, far apart.
SPREAD_BLOCKS = 24 * LEAF_BLOCKS
STEPS_COUNT = 350
OBJECTS_MAX = 10

Blocks = dict[int, int]


def block_of(stamp: int) -> bytes:
    return struct.pack("<Q", stamp) * (BLOCK_BYTES // 8)


class World:
    """A pool beside its model."""

    def __init__(self, path: Path, draw: random.Random) -> None:
        self.path, self.draw = path, draw
        self.model: dict[str, Blocks] = {}
        self.stamp = 0
        self.names = (f"o{number}" for number in range(10**6))
        self.workings: dict[str, int] = {}
        self.pool = ramet.open(path, create=True, segment_size="1MiB")
        self.create()

    def create(self) -> None:
        name = next(self.names)
        self.pool.create_volume(name, size=VOLUME_BYTES)
        self.model[name] = {}

    def pick(self, kind: str) -> str:
        """Choose a volume, a snapshot, or "any" object; a volume is made where there is none."""
        names = [it.name for it in self.pool.objects() if kind in ("any", it.kind)]
        if not names:
            self.create()
            return self.pick("any")
        return self.draw.choice(names)

    def place(self) -> int:
        return self.draw.choice(BASES) + self.draw.randrange(SPREAD_BLOCKS)

    def write(self) -> None:
        name = self.pick("volume")
        for _ in range(self.draw.randint(1, 60)):
            first, count = self.place(), self.draw.choice((1, 1, 1, 2, 9, 300))
            stamps = [self.stamp + index for index in range(1, count + 1)]
            self.stamp += count
            data = b"".join(map(block_of, stamps))
            self.pool.volume(name).write(first * BLOCK_BYTES, data)
            self.model[name].update(zip(range(first, first + count), stamps, strict=True))

    def comb(self) -> None:
        """Write every second block of a leaf: then it is as large as it can be."""
        name = self.pick("volume")
        base = self.place() // LEAF_BLOCKS * LEAF_BLOCKS
        for index in range(base, base + LEAF_BLOCKS, 2):
            self.stamp += 1
            self.pool.volume(name).write(index * BLOCK_BYTES, block_of(self.stamp))
            self.model[name][index] = self.stamp

    def trim(self) -> None:
        name = self.pick("volume")
        first = self.place()
        count = self.draw.choice((1, 700, 5000, 1 << 21, 1 << 27))
        count = min(count, VOLUME_BYTES // BLOCK_BYTES - first)
        self.pool.volume(name).trim(first * BLOCK_BYTES, count * BLOCK_BYTES)
        kept = self.model[name].items()
        self.model[name] = {at: it for at, it in kept if not first <= at < first + count}

    def snapshot(self) -> None:
        name, new = self.pick("volume"), next(self.names)
        self.pool.snapshot([name], name=[new])
        self.model[new] = dict(self.model[name])

    def clone(self) -> None:
        name, new = self.pick("any"), next(self.names)
        self.pool.clone(name, [new])
        self.model[new] = dict(self.model[name])

    def revert(self) -> None:
        volume, snapshot = self.pick("volume"), self.pick("snapshot")
        if isinstance(self.pool.get(snapshot), ramet.Snapshot):
            self.pool.volume(volume).revert(snapshot, keep=False)
            self.model[volume] = dict(self.model[snapshot])

    def delete(self) -> None:
        name = self.pick("any")
        self.pool.delete([name])
        del self.model[name]

    def diff(self) -> None:
        """Every block that differs is told; what is told may be the same bytes written again."""
        one, other = self.pick("any"), self.pick("any")
        told = [(it.offset_bytes, it.length_bytes) for it in self.pool.diff(one, other).extents]
        before, after = self.model[one], self.model[other]
        for at in before.keys() | after.keys():
            if before.get(at) != after.get(at):
                byte = at * BLOCK_BYTES
                assert any(first <= byte < first + length for first, length in told), at

    def reopen(self) -> None:
        self.note()
        self.pool.close()
        assert_clean(self.path)
        self.pool = ramet.open(self.path)

    def note(self) -> None:
        for name, value in self.pool.stats().items():
            if isinstance(value, int) and name.endswith("_count"):
                self.workings[name] = self.workings.get(name, 0) + value

    def check(self, name: str, blocks_max: int) -> None:
        blocks = self.model[name]
        handle = self.pool.get(name)
        assert handle.record().mapped_bytes == len(blocks) * BLOCK_BYTES, name
        some = list(blocks.items())
        for at, stamp in self.draw.sample(some, min(blocks_max, len(some))):
            assert handle.read(at * BLOCK_BYTES, BLOCK_BYTES) == block_of(stamp), (name, at)
        for _ in range(5):
            at = self.place()
            expected = block_of(blocks[at]) if at in blocks else bytes(BLOCK_BYTES)
            assert handle.read(at * BLOCK_BYTES, BLOCK_BYTES) == expected, (name, at)


@pytest.fixture
def world(
    pool_path: Path, randomness: random.Random, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    monkeypatch.setenv("RAMET_NODE_BUDGET", "64KiB")
    monkeypatch.setenv("RAMET_CHECKPOINT_BATCHES", "100")
    it = World(pool_path, randomness)
    yield it
    it.pool.close()


@pytest.mark.slow
@pytest.mark.random
def test_maps_larger_than_memory_are_what_the_model_says(world: World) -> None:
    verbs = (world.write, world.comb, world.trim, world.snapshot, world.clone, world.revert)
    verbs += (world.delete, world.diff, world.reopen)
    weights = (30, 6, 6, 6, 6, 3, 4, 4, 1)
    for _ in range(STEPS_COUNT):
        verb = world.draw.choices(verbs, weights)[0]
        if len(world.model) > OBJECTS_MAX and verb in (world.snapshot, world.clone):
            verb = world.delete
        verb()
        world.check(world.pick("any"), 20)
    for name in world.model:
        world.check(name, 10**9)
    world.reopen()
    for name in world.model:
        world.check(name, 10**9)
    world.note()
    needed = ("nodes_loaded_count", "nodes_evicted_count", "checkpoints_count", "sealed_count")
    missed = [name for name in needed if not world.workings[name]]
    assert not missed, f"never happened: {missed}"
