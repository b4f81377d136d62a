"""4 KiB random reads of a volume whose maps and slot tables are many times the node budget, with
nothing in the page cache: how many reads of the device each costs.

A volume is written in random order, so that every leaf of its map is dense and every page of the
slot tables is needed. It is read in a process of its own (this file, started again).
"""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import ramet
from fleet import BLOCK_BYTES, Bench
from machine import drop_caches

BUDGET_PART = 10
LEAF_BLOCKS = 512
PAGE_SLOTS = 1016


def run(bench: Bench) -> None:
    """Measure, and add the figures."""
    bench.say("cold random reads, maps ten times the budget")
    blocks_count = bench.scale.cold_bytes // BLOCK_BYTES
    tables_bytes = (blocks_count // LEAF_BLOCKS + blocks_count // PAGE_SLOTS) * BLOCK_BYTES
    with bench.pool("cold") as path:
        _fill(path, blocks_count)
        drop_caches(path)
        budget_bytes = max(tables_bytes // BUDGET_PART, 65_536)
        job = json.dumps([str(path), blocks_count, budget_bytes, bench.scale.cold_reads])
        done = subprocess.run(
            [sys.executable, __file__, job], stdout=subprocess.PIPE, text=True, check=True
        )
    told = json.loads(done.stdout)
    reads = bench.scale.cold_reads
    note = f"{tables_bytes // 1024:,} KiB of leaves and pages, budget {budget_bytes // 1024:,} KiB"
    count = reads if bench.scale.name == "full" else 0
    calls = told["read_calls"] / reads
    bench.add("cold.device_reads", "each", [calls], count, note=note, details=told)
    bench.add("cold.device_bytes", "bytes", [told["device_bytes"] / reads], note="each")
    bench.add("cold.latency", "us", [told["seconds"] / reads * 1e6], note="each, one at a time")


def _fill(path: Path, blocks_count: int) -> None:
    draw = random.Random(1)
    order = list(range(blocks_count))
    draw.shuffle(order)
    block = draw.randbytes(BLOCK_BYTES)
    with ramet.open(path, create=True) as pool:
        volume = pool.create_volume("cold", blocks_count * BLOCK_BYTES)
        device = pool.open_device(volume)
        for index in order:
            device.write(index * BLOCK_BYTES, block)
        pool.flush()


def _counted() -> tuple[int, int]:
    """Read calls of this process so far, and bytes that came from the device for them."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["syscr"]), int(fields["read_bytes"])


def measure(path: str, blocks_count: int, budget_bytes: int, reads: int) -> dict[str, float]:
    """Read blocks at random, and say what that took."""
    draw = random.Random(2)
    with ramet.open(path, read_only=True, node_budget=budget_bytes) as pool:
        device = pool.open_device("cold")
        places = [draw.randrange(blocks_count) * BLOCK_BYTES for _ in range(reads)]
        drop_caches(Path(path))
        calls, read_bytes = _counted()
        begun = time.monotonic()
        for place in places:
            device.read(place, BLOCK_BYTES)
        seconds = time.monotonic() - begun
        calls_after, bytes_after = _counted()
    return {
        "seconds": seconds,
        "read_calls": calls_after - calls,
        "device_bytes": bytes_after - read_bytes,
    }


if __name__ == "__main__":
    print(json.dumps(measure(*json.loads(sys.argv[1]))))
