"""What deletes and checks cost against the size of the pool.

Nodes of maps that a delete visits, for each that differs: one delete among many clones, with the
golden snapshot there and gone, with maps in memory and not (how many it reads then, too); and a
chain of snapshots deleted in one command, in a process of its own (this file, started again) whose
memory is watched. And what a check by the second reader takes for each TiB mapped, for a volume
written in order and one written at random.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import ramet
from command_line import program
from fleet import BLOCK_BYTES, MIB, Bench, settle
from machine import drop_caches

LEAF_BLOCKS = 512  # docs/internals/format.md: what a leaf stands for, and children of a node.
FANOUT = 64
CLONE_BLOCKS = 10
DELETES = 20
TIB = 2**40

Node = tuple[int, int]


def run(bench: Bench) -> None:
    """Measure all, and add the figures."""
    bench.say("nodes visited by one delete among many clones")
    with bench.pool("family") as path:
        _one_delete(bench, path)
    bench.say("nodes visited by deletes of a chain")
    with bench.pool("chain") as path:
        _chain(bench, path)
    bench.say("what a check costs")
    for order in ("sequential", "random"):
        with bench.pool(f"check-{order}") as path:
            _check(bench, path, order)


def path_of(block_index: int, blocks_count: int) -> list[Node]:
    """Nodes of a map of so many blocks that lead to one of them: height and number, leaf first."""
    nodes = [(0, block_index // LEAF_BLOCKS)]
    height, span = 0, LEAF_BLOCKS
    while span < blocks_count:
        height, span = height + 1, span * FANOUT
        nodes.append((height, block_index // span))
    return nodes


def _golden(pool: ramet.Pool, size: int) -> ramet.Volume:
    data = random.Random(11).randbytes(MIB)
    volume = pool.create_volume("golden", size)
    for at in range(0, size, MIB):
        volume.write(at, data[: min(MIB, size - at)])
    return volume


def _one_delete(bench: Bench, path: Path) -> None:
    scale, draw = bench.scale, random.Random(12)
    blocks_count = scale.datapath_bytes // BLOCK_BYTES
    own: dict[str, set[Node]] = {}
    with ramet.open(path, create=True) as pool:
        _golden(pool, scale.datapath_bytes).snapshot("golden@base")
        data = draw.randbytes(BLOCK_BYTES)
        for clone in pool.clone("golden@base", "vm-{n}", count=scale.fleet_count):
            written = [draw.randrange(blocks_count) for _ in range(CLONE_BLOCKS)]
            device = pool.open_device(clone.name)
            for block_index in written:
                device.write(block_index * BLOCK_BYTES, data)
            paths = [path_of(block_index, blocks_count) for block_index in written]
            own[clone.name] = {node for nodes in paths for node in nodes}
    names = iter(draw.sample(sorted(own), min(3 * DELETES + 1, len(own))))
    each = min(DELETES, len(own) // 4)
    for case in ("golden", "cold", "golden_gone"):
        drop_caches(path)
        with ramet.open(path) as pool:
            if case == "golden_gone":
                pool.delete(["golden", "golden@base"])
                settle(pool)
            chosen = [next(names) for _ in range(each)]
            if case != "cold":  # A dry run walks what the delete will walk.
                for name in chosen:
                    pool.frees([name])
            loaded = int(pool.stats()["nodes_loaded_count"])
            # Without the golden snapshot a clone differs from the next in what either wrote.
            beside = own[next(names)] if case == "golden_gone" else set()
            differ = {name: len(own[name] | beside) for name in chosen}
            found = [_visited(pool, [name]) / differ[name] for name in chosen]
            loaded = int(pool.stats()["nodes_loaded_count"]) - loaded
        bench.add(f"reclaim.one.{case}.visited", "times", found, scale.fleet_count)
        if case == "cold":
            reads = loaded / sum(differ.values())
            bench.add("reclaim.one.cold.read", "times", [reads], scale.fleet_count)


def _visited(pool: ramet.Pool, names: list[str]) -> int:
    before = int(pool.stats()["nodes_visited_count"])
    pool.delete(names)
    settle(pool)
    return int(pool.stats()["nodes_visited_count"]) - before


def _chain(bench: Bench, path: Path) -> None:
    count, size = bench.scale.fleet_count, bench.scale.datapath_bytes
    job = json.dumps([str(path), count, size])
    done = subprocess.run(
        [sys.executable, __file__, job], stdout=subprocess.PIPE, text=True, check=True
    )
    told = json.loads(done.stdout)
    bench.add("reclaim.chain.visited", "times", [told["visited"] / told["die"]], count)
    bench.add("reclaim.chain.command", "ms", [told["command_ms"]], count)
    bench.add("reclaim.chain.whole", "s", [told["seconds"]], count, details=told)
    bench.add("reclaim.chain.memory", "bytes", [told["memory_bytes"]], count, note="at its peak")


def measure_chain(path: str, count: int, size: int) -> dict[str, float]:
    """Delete a chain of snapshots, of each of which one block was overwritten."""
    draw, blocks_count = random.Random(13), size // BLOCK_BYTES
    with ramet.open(path, create=True) as pool:
        volume = _golden(pool, size)
        data = draw.randbytes(BLOCK_BYTES)
        names, die = [], 0
        for number in range(count):
            names.append(volume.snapshot(f"golden@{number}").name)
            block_index = draw.randrange(blocks_count)
            volume.write(block_index * BLOCK_BYTES, data)
            # What the snapshots had there is theirs alone from now on.
            die += len(path_of(block_index, blocks_count))
    with ramet.open(path) as pool:
        before = _resident_peak_bytes(begin=True)
        begun = time.monotonic()
        pool.delete(names)
        command_ms = (time.monotonic() - begun) * 1000
        settle(pool)
        pool.reclaim(everything=True)
        seconds = time.monotonic() - begun
        return {
            "visited": int(pool.stats()["nodes_visited_count"]),
            "die": die,
            "command_ms": command_ms,
            "seconds": seconds,
            "memory_bytes": _resident_peak_bytes() - before,
        }


def _resident_peak_bytes(begin: bool = False) -> int:
    """Give the most memory that was resident since this was called with `begin`."""
    if begin:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kib) * 1024


def _check(bench: Bench, path: Path, order: str) -> None:
    size = bench.scale.datapath_bytes
    with ramet.open(path, create=True) as pool:
        volume = pool.create_volume("volume", size)
        if order == "sequential":
            data = random.Random(14).randbytes(MIB)
            for at in range(0, size, MIB):
                volume.write(at, data[: min(MIB, size - at)])
        else:
            draw = random.Random(15)
            data = draw.randbytes(BLOCK_BYTES)
            blocks = list(range(size // BLOCK_BYTES))
            draw.shuffle(blocks)
            for block_index in blocks:
                volume.write(block_index * BLOCK_BYTES, data)
    for kind, more in (("full", []), ("quick", ["--quick"])):
        drop_caches(path)
        begun = time.monotonic()
        memory_bytes = _child_memory_bytes([*program(), "-p", str(path), "check", *more])
        seconds = (time.monotonic() - begun) * TIB / size
        note = f"{size // MIB:,} MiB, {order}"
        bench.add(f"reclaim.check.{order}.{kind}", "s/TiB", [seconds], note=note)
        bench.add(f"reclaim.check.{order}.{kind}.memory", "bytes", [memory_bytes], note=note)


def _child_memory_bytes(words: list[str]) -> int:
    """Run a command. Result: the most memory that it had."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{words} ended with {process.returncode}")
    return used.ru_maxrss * 1024


if __name__ == "__main__":
    place, *numbers = json.loads(sys.argv[1])
    print(json.dumps(measure_chain(place, *numbers)))
