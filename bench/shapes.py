"""Cost of snapshot, clone and random read against a volume's size, fill and depth of history.

One volume at a time in an otherwise empty pool. All of a kind are measured in turns, round after
round, so that a slow moment of the machine falls on all of them; a ratio is the largest median over
the smallest. What is written before a snapshot is flushed first: its cost is its own.
"""

import random
import statistics
from collections import defaultdict

import ramet
from fleet import BLOCK_BYTES, MIB, Bench, spread, timed_ms

SIZES = {"1 GiB": 2**30, "64 GiB": 2**36, "1 TiB": 2**40, "64 TiB": 2**46}
DEPTH_VOLUME_BYTES = 64 * MIB
READ_TURNS = 20

Costs = dict[str, dict[object, list[float]]]


def run(bench: Bench) -> None:
    """Measure the three, and add the figures."""
    with bench.pool("shapes") as path, ramet.open(path, create=True) as pool:
        bench.say("against size")
        _sizes(bench, pool)
        bench.say("against fill")
        _fills(bench, pool)
        bench.say("against depth")
        _depths(bench, pool)


def _sizes(bench: Bench, pool: ramet.Pool) -> None:
    volumes = {}
    for number, (label, size) in enumerate(SIZES.items()):
        volume = pool.create_volume(f"size-{number}", size)
        for at in (0, size // 2, size - BLOCK_BYTES):
            volume.write(at, b"a" * BLOCK_BYTES)
        volumes[label] = volume
    _add(bench, "size", _costs(bench, pool, volumes))


def _fills(bench: Bench, pool: ramet.Pool) -> None:
    data = random.Random(5).randbytes(MIB)
    volumes = {}
    for fill_bytes in bench.scale.fills:
        volume = pool.create_volume(f"fill-{fill_bytes}", 2**34)
        for at in range(0, fill_bytes, MIB):
            volume.write(at, data)
        volumes[f"{fill_bytes // MIB} MiB"] = volume
    scattered = pool.create_volume("fill-scattered", 2**34)
    draw = random.Random(6)
    for _ in range(max(bench.scale.fills) // MIB * 16):
        scattered.write(draw.randrange(2**34 // BLOCK_BYTES) * BLOCK_BYTES, data[:BLOCK_BYTES])
    volumes["scattered"] = scattered
    _add(bench, "fill", _costs(bench, pool, volumes))


def _costs(bench: Bench, pool: ramet.Pool, volumes: dict[str, ramet.Volume]) -> Costs:
    """Time snapshots and clones of all, turn by turn."""
    found: Costs = defaultdict(lambda: defaultdict(list))
    draw = random.Random(7)
    order = list(volumes.items())
    for _ in range(bench.scale.shape_rounds):
        draw.shuffle(order)
        for label, volume in order:
            volume.write(0, draw.randbytes(BLOCK_BYTES))
            volume.flush()
            made: list[ramet.Snapshot] = []
            found["snapshot"][label].append(timed_ms(lambda: made.append(volume.snapshot("it@1"))))
            found["snapshot_gate"][label].append(_gate_us(pool))
            clones: list[ramet.Volume] = []
            found["clone"][label].append(timed_ms(lambda: clones.append(made[0].clone("it-clone"))))
            found["clone_gate"][label].append(_gate_us(pool))
            pool.delete([made[0], clones[0]])
    return found


def _add(bench: Bench, kind: str, found: Costs, count: int = 0) -> None:
    for verb, groups in found.items():
        unit = "us" if verb.endswith("_gate") else "ms"
        for label, values in groups.items():
            bench.add(f"shape.{kind}.{verb}", unit, values, note=str(label))
        bench.add(f"shape.{kind}.{verb}.ratio", "times", [spread(groups)], count)


def _depths(bench: Bench, pool: ramet.Pool) -> None:
    """Let generation follow generation: write a block, snapshot, clone, go on with the clone.

    Beside each milestone stands a volume with the same writes in the same order and no history, so
    that what differs is depth and nothing else.
    """
    draw = random.Random(8)
    flat = pool.create_volume("flat", DEPTH_VOLUME_BYTES)
    volume = pool.create_volume("depth-0", DEPTH_VOLUME_BYTES)
    for at in range(0, DEPTH_VOLUME_BYTES, MIB):
        data = draw.randbytes(MIB)
        volume.write(at, data)
        flat.write(at, data)
    volumes, flats = {}, {}
    for depth in range(max(bench.scale.depths) + 1):
        at = draw.randrange(DEPTH_VOLUME_BYTES // BLOCK_BYTES) * BLOCK_BYTES
        data = draw.randbytes(BLOCK_BYTES)
        volume.write(at, data)
        flat.write(at, data)
        if depth in bench.scale.depths:
            # The volume of this milestone stays as it is, and so does the flat one's like.
            volumes[depth], flats[depth] = volume, _copy(pool, flat, f"flat-{depth}")
        volume = volume.snapshot(f"depth-{depth}@1").clone(f"depth-{depth + 1}")
    _reads(bench, volumes, flats)
    found = _costs(bench, pool, {str(depth): volume for depth, volume in volumes.items()})
    _add(bench, "depth", found, max(bench.scale.depths))


def _copy(pool: ramet.Pool, flat: ramet.Volume, name: str) -> ramet.Volume:
    """A volume without history that reads as `flat` does, in runs as it has them: a clone."""
    return pool.clone(flat, name)[0]


def _reads(bench: Bench, volumes: dict[int, ramet.Volume], flats: dict[int, ramet.Volume]) -> None:
    turns = READ_TURNS
    each = max(1, bench.scale.reads // turns)
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    ratios: dict[int, list[float]] = defaultdict(list)
    for turn in range(turns):
        for depth, deep in volumes.items():
            pair = [("deep", deep), ("flat", flats[depth])]
            for name, volume in pair if turn % 2 else reversed(pair):
                rates[name, depth].append(_read_rate(volume, each, turn))
            ratios[depth].append(rates["deep", depth][-1] / rates["flat", depth][-1])
    for (name, depth), values in rates.items():
        bench.add(f"shape.depth.read.{name}", "reads/s", values, note=f"depth {depth}")
    for depth, values in ratios.items():
        bench.add("shape.depth.read.ratio", "times", [statistics.median(values)], depth)


def _read_rate(volume: ramet.Volume, count: int, seed: int) -> float:
    draw = random.Random(seed)
    blocks = DEPTH_VOLUME_BYTES // BLOCK_BYTES
    offsets = [draw.randrange(blocks) * BLOCK_BYTES for _ in range(count)]
    buffer = bytearray(BLOCK_BYTES)
    read_into = volume.read_into

    def read_all() -> None:
        for offset in offsets:
            read_into(offset, buffer)

    return count / timed_ms(read_all) * 1000


def _gate_us(pool: ramet.Pool) -> float:
    return int(pool.stats()["gate_closed_ns_last"]) / 1e3
