"""How long opening takes after a kill: filled volumes with a log behind them, and many objects.

The pool is filled and killed in a process of its own (this file, started again), its files are
dropped from the page cache, and a second process opens it. Seconds are of `ramet.open` alone.
"""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import ramet
from fleet import BLOCK_BYTES, MIB, Bench, vm_names
from machine import drop_caches, resident_bytes

ROUNDS = 3
GROUP_COUNT = 10_000  # Objects of one command.


def run(bench: Bench) -> None:
    """Measure, and add the figures."""
    scale = bench.scale
    path = bench.fleet()
    bench.say("opening with filled volumes")
    opened = []
    for number in range(ROUNDS):
        _killed("write", path, scale.fleet_count, scale.tail_bytes, number)
        opened.append(_opened(path))
    note = f"and {scale.tail_bytes // MIB:,} MiB of random writes"
    _add(bench, "filled", opened, scale.fleet_count, note)
    bench.say("opening with many objects")
    with bench.pool("objects") as many:
        _killed("make", many, scale.objects)
        _add(bench, "objects", [_opened(many) for _ in range(ROUNDS)], scale.objects, "")


def _add(bench: Bench, key: str, opened: list[dict], count: int, note: str) -> None:
    seconds = [it["seconds"] for it in opened]
    bench.add(f"opening.{key}", "s", seconds, count, note=note, details={"opened": opened})
    memory = [it["resident_bytes"] / count for it in opened]
    bench.add(f"opening.{key}.memory", "bytes", memory, count, note="each")


def _killed(what: str, path: Path, *numbers: int) -> None:
    """Let a process change the pool, and kill it without warning once it says so."""
    job = json.dumps([what, str(path), *numbers])
    process = subprocess.Popen([sys.executable, __file__, job], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if told != "flushed\n":
        raise RuntimeError("the process that was to be killed failed; what it printed is above")


def _opened(path: Path) -> dict:
    drop_caches(path)
    job = json.dumps(["open", str(path)])
    done = subprocess.run(
        [sys.executable, __file__, job], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def write_tail(path: str, count: int, length_bytes: int, seed: int) -> None:
    """Write random blocks into the fleet's volumes, and flush."""
    draw = random.Random(seed)
    block = draw.randbytes(BLOCK_BYTES)
    pool = ramet.open(path)
    devices = [pool.open_device(name) for name in vm_names(count)]
    for _ in range(length_bytes // BLOCK_BYTES):
        draw.choice(devices).write(draw.randrange(256) * BLOCK_BYTES, block)
    pool.flush()
    _wait_for_the_kill()


def make_objects(path: str, count: int) -> None:
    """Make `count` objects: volumes, and then their snapshots, group by group."""
    pool = ramet.open(path, create=True)
    group = min(GROUP_COUNT, count // 10)
    pool.create_volumes("vm-{n}", 2**30, count=group)
    for number in range(count // group - 1):
        pool.snapshot(vm_names(group), name="{volume}@" + str(number))
    _wait_for_the_kill()


def open_once(path: str) -> None:
    """Open the pool, and say how long it took and what it left resident."""
    before = resident_bytes()
    begun = time.perf_counter()
    pool = ramet.open(path)
    seconds = time.perf_counter() - begun
    told = {
        "seconds": seconds,
        "resident_bytes": resident_bytes() - before,
        "replayed_count": pool.stats()["replayed_count"],
    }
    print(json.dumps(told), flush=True)
    pool.close()


def _wait_for_the_kill() -> None:
    print("flushed", flush=True)
    signal.pause()


if __name__ == "__main__":
    what, place, *numbers = json.loads(sys.argv[1])
    {"write": write_tail, "make": make_objects, "open": open_once}[what](place, *numbers)
