"""What all benchmarks share: how large they are, where they work, and a pool of filled volumes.

Owns `Scale`, `Bench` (the directory, the figures so far) and the fleet: many volumes that each hold
data of their own, and one golden snapshot. Calls the public API only. Invariant: the fleet is left
as it was found: who makes objects deletes them.
"""

import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import ramet
from goals import Figure

MIB = 1024 * 1024
BLOCK_BYTES = 4096
VOLUME_BYTES = 1024 * MIB
GOLDEN = "golden@base"
SETTLE_SECONDS_MAX = 300.0


@dataclass(frozen=True)
class Scale:
    """How much is done. Only `FULL` is what the goals are about."""

    name: str
    counts: tuple[int, ...]
    fill_bytes: int
    rounds: int
    connections: int
    rate: int
    stall_rounds: int
    stall_round_seconds: float
    latency_rounds: int
    latency_window_seconds: float
    shape_rounds: int
    fills: tuple[int, ...]
    depths: tuple[int, ...]
    reads: int
    golden_bytes: int
    golden_clones: int
    overwrites: int
    tail_bytes: int
    objects: int
    datapath_bytes: int
    datapath_seconds: float
    cold_bytes: int
    cold_reads: int
    sent_bytes: int
    space_bytes: int
    space_clones: int
    site_seconds: float
    site_runs: int

    @property
    def fleet_count(self) -> int:
        return self.counts[-1]


FULL = Scale(
    name="full",
    counts=(1, 1_000, 10_000),
    fill_bytes=MIB,
    rounds=7,
    connections=64,
    rate=50,
    stall_rounds=10,
    stall_round_seconds=3.0,
    latency_rounds=4,
    latency_window_seconds=1.5,
    shape_rounds=40,
    fills=(0, 64 * MIB, 1024 * MIB, 4096 * MIB),
    depths=(0, 100, 1_000, 10_000),
    reads=40_000,
    golden_bytes=10 * 1024 * MIB,
    golden_clones=50,
    overwrites=1_000,
    tail_bytes=1024 * MIB,
    objects=1_000_000,
    datapath_bytes=1024 * MIB,
    datapath_seconds=1.0,
    cold_bytes=4096 * MIB,
    cold_reads=20_000,
    sent_bytes=8192 * MIB,
    space_bytes=1024 * MIB,
    space_clones=20,
    site_seconds=60.0,
    site_runs=3,
)
QUICK = Scale(
    name="quick",
    counts=(1, 100, 1_000),
    fill_bytes=MIB,
    rounds=3,
    connections=64,
    rate=50,
    stall_rounds=3,
    stall_round_seconds=2.0,
    latency_rounds=2,
    latency_window_seconds=1.0,
    shape_rounds=15,
    fills=(0, 64 * MIB, 512 * MIB),
    depths=(0, 100, 1_000),
    reads=10_000,
    golden_bytes=1024 * MIB,
    golden_clones=10,
    overwrites=1_000,
    tail_bytes=128 * MIB,
    objects=20_000,
    datapath_bytes=256 * MIB,
    datapath_seconds=0.5,
    cold_bytes=512 * MIB,
    cold_reads=5_000,
    sent_bytes=1024 * MIB,
    space_bytes=128 * MIB,
    space_clones=5,
    site_seconds=15.0,
    site_runs=3,
)
TINY = Scale(
    name="tiny",
    counts=(1, 8),
    fill_bytes=64 * 1024,
    rounds=1,
    connections=4,
    rate=20,
    stall_rounds=1,
    stall_round_seconds=0.1,
    latency_rounds=1,
    latency_window_seconds=0.1,
    shape_rounds=2,
    fills=(0, MIB),
    depths=(0, 3),
    reads=50,
    golden_bytes=4 * MIB,
    golden_clones=3,
    overwrites=20,
    tail_bytes=MIB,
    objects=100,
    datapath_bytes=4 * MIB,
    datapath_seconds=0.05,
    cold_bytes=8 * MIB,
    cold_reads=200,
    sent_bytes=16 * MIB,
    space_bytes=16 * MIB,
    space_clones=1,
    site_seconds=10.0,
    site_runs=1,
)
SCALES = {scale.name: scale for scale in (FULL, QUICK, TINY)}


@dataclass
class Bench:
    """One run: its size, its directory, its figures; `long`: what takes minutes is run too."""

    scale: Scale
    directory: Path
    figures: list[Figure] = field(default_factory=list)
    long: bool = False
    _fleet: Path | None = None

    def add(self, key: str, unit: str, values: list[float], count: int = 0, **more: object) -> None:
        """Keep a figure; `more`: `baseline`, `note`, `details`."""
        self.figures.append(Figure(key, unit, values, count, **more))

    def say(self, text: str) -> None:
        """Tell whoever waits what is going on."""
        print(f"bench: {text}", file=sys.stderr, flush=True)

    def fleet(self) -> Path:
        """Give the pool of filled volumes `vm-1`..., which is made when it is first asked for."""
        if self._fleet is None:
            self.say(f"filling {self.scale.fleet_count:,} volumes")
            path = self.directory / "fleet"
            with ramet.open(path, create=True) as pool:
                fill(pool, self.scale)
            self._fleet = path
        return self._fleet

    @contextmanager
    def pool(self, name: str) -> Iterator[Path]:
        """A place for a pool that is gone afterwards."""
        path = self.directory / name
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def vm_names(count: int) -> list[str]:
    return [f"vm-{number}" for number in range(1, count + 1)]


def fill(pool: ramet.Pool, scale: Scale) -> None:
    """Make the golden snapshot and the fleet's volumes, each with data of its own."""
    data = bytearray(random.Random(3).randbytes(scale.fill_bytes))
    golden = pool.create_volume("golden", VOLUME_BYTES)
    golden.write(0, data)
    golden.snapshot(GOLDEN)
    golden.delete()
    pool.create_volumes("vm-{n}", VOLUME_BYTES, count=scale.fleet_count)
    for number, name in enumerate(vm_names(scale.fleet_count)):
        for at in range(0, len(data), BLOCK_BYTES):
            data[at : at + 8] = number.to_bytes(8, "little")
        pool.open_device(name).write(0, data)
    pool.flush()


class Dirtier:
    """Writes 4 KiB to each of some volumes, so that all are dirty again."""

    def __init__(self, pool: ramet.Pool, names: list[str]) -> None:
        self._devices = [pool.open_device(name) for name in names]
        self._draw = random.Random(4)
        self._block = self._draw.randbytes(BLOCK_BYTES)

    def dirty_all(self) -> None:
        for device in self._devices:
            device.write(self._draw.randrange(16) * BLOCK_BYTES, self._block)


def settle(pool: ramet.Pool) -> float:
    """Wait until nothing is dying any more. Result: seconds."""
    begun = time.monotonic()
    while pool.stats()["dying_count"]:
        if time.monotonic() - begun > SETTLE_SECONDS_MAX:
            raise TimeoutError("deleted objects are still dying")
        time.sleep(0.02)
    return time.monotonic() - begun


def timed_ms(call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1000


def spread(groups: dict[object, list[float]]) -> float:
    """Largest median of any group over the smallest: 1 where they are the same."""
    medians = [statistics.median(values) for values in groups.values()]
    return max(medians) / min(medians)
