"""Memory of idle objects, and of random overwrites in a clone of a large golden image.

Each is measured in a process of its own (this file, started again), as the growth of what is
resident: over batches of objects or clones, of which the first pays for the process's own start and
is left out.
"""

import gc
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ramet
from fleet import BLOCK_BYTES, MIB, Bench
from machine import resident_bytes

BATCHES_COUNT = 4


def run(bench: Bench) -> None:
    """Measure, and add the figures."""
    count = bench.scale.fleet_count
    bench.say("memory of idle objects")
    with bench.pool("idle") as path:
        for key, values in _child("idle", path, count).items():
            bench.add(f"memory.{key}", "bytes", values, note=f"each, over {count:,}")
    bench.say("memory of random overwrites")
    with bench.pool("overwrites") as path:
        scale = bench.scale
        told = _child("overwrites", path, scale.golden_bytes, scale.golden_clones, scale.overwrites)
        golden = f"golden of {scale.golden_bytes // MIB:,} MiB"
        clones = f"each, over {scale.golden_clones} clones; {golden}"
        # Only the golden of the full scale is what the goal is about.
        told_count = scale.overwrites if scale.name == "full" else 0
        bench.add("memory.overwrites", "bytes", told["clones"], told_count, note=clones)
        bench.add("memory.golden", "bytes", told["golden"], note=golden)


def _child(what: str, path: Path, *numbers: int) -> dict[str, list[float]]:
    job = json.dumps([what, str(path), *numbers])
    done = subprocess.run(
        [sys.executable, __file__, job], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def _growth(call: Callable[[], object]) -> int:
    gc.collect()
    before = resident_bytes()
    call()
    gc.collect()
    return resident_bytes() - before


def measure_idle(path: str, count: int) -> dict[str, list[float]]:
    """Bytes for each volume, clone and snapshot, over batches of `count`."""
    with ramet.open(path, create=True) as pool:
        golden = pool.create_volume("golden", 2**30)
        golden.write(0, b"a" * MIB)
        base = golden.snapshot("golden@base")

        def volumes(batch: int) -> None:
            pool.create_volumes(f"volume-{batch}-" + "{n}", 2**30, count=count)

        def clones(batch: int) -> None:
            pool.clone(base, f"clone-{batch}-" + "{n}", count=count)

        def snapshots(batch: int) -> None:
            names = [f"clone-{batch}-{number}" for number in range(1, count + 1)]
            pool.snapshot(names, name="{volume}@idle")

        found: dict[str, list[float]] = {}
        for key, make in (
            ("idle_volume", volumes),
            ("idle_clone", clones),
            ("idle_snapshot", snapshots),
        ):
            grown = [_growth(lambda: make(batch)) / count for batch in range(BATCHES_COUNT)]
            found[key] = grown[1:]
    return found


def measure_overwrites(path: str, size: int, clones: int, overwrites: int) -> dict:
    """Bytes for the golden's map, and for each clone that random blocks are written into."""
    draw = random.Random(9)
    data = bytearray(draw.randbytes(MIB))
    block = draw.randbytes(BLOCK_BYTES)
    with ramet.open(path, create=True) as pool:

        def import_golden() -> None:
            golden = pool.create_volume("golden", size)
            for at in range(0, size, MIB):
                data[:8] = at.to_bytes(8, "little")
                golden.write(at, data)
            golden.snapshot("golden@base")

        def overwrite(batch: int) -> None:
            for clone in pool.clone("golden@base", f"clone-{batch}-" + "{n}", count=clones):
                for _ in range(overwrites):
                    clone.write(draw.randrange(size // BLOCK_BYTES) * BLOCK_BYTES, block)
            pool.flush()  # What is staged belongs to the log, not to the clones.

        golden = _growth(import_golden)
        grown = [_growth(lambda: overwrite(batch)) / clones for batch in range(BATCHES_COUNT)]
        return {"golden": [golden], "clones": grown[1:]}


if __name__ == "__main__":
    what, place, *numbers = json.loads(sys.argv[1])
    measure = {"idle": measure_idle, "overwrites": measure_overwrites}[what]
    print(json.dumps(measure(place, *numbers)))
