"""Snapshot and clone of one, a thousand and ten thousand volumes through the Python API.

Every volume holds data of its own and is dirty; first with nobody else about (`quiet`), then while
open-loop clients write over NBD (`load`). Times are whole calls, names and handles included.
"""

import statistics
from collections import defaultdict
from pathlib import Path

import ramet
from fleet import GOLDEN, Bench, Dirtier, settle, timed_ms, vm_names
from load import BLOCK_BYTES, Load
from machine import device_commit_ms
from ramet.demo.probe import Probe


def run(bench: Bench) -> None:
    """Measure both, and add the figures."""
    socket = bench.directory / "engine.sock"
    with ramet.open(bench.fleet()) as pool, pool.serve_nbd(socket):
        bench.say("engine, quiet")
        _measure(bench, pool, "quiet")
        bench.say("engine, under load")
        clients = vm_names(min(bench.scale.connections, bench.scale.fleet_count))
        with Load(socket, clients, bench.scale.rate, bench.directory):
            _measure(bench, pool, "load")


def _measure(bench: Bench, pool: ramet.Pool, how: str) -> None:
    dirtier = Dirtier(pool, vm_names(bench.scale.fleet_count))
    for count in bench.scale.counts:
        found: dict[str, list[float]] = defaultdict(list)
        for _ in range(bench.scale.rounds):
            found["device_8mib"].append(device_commit_ms(bench.directory))
            found["device_4kib"].append(device_commit_ms(bench.directory, BLOCK_BYTES))
            _snapshot(pool, dirtier, count, found)
            _clone(bench, pool, dirtier, count, found)
        device = statistics.median(found["device_8mib"])
        found["snapshot.beyond_device"] = [it - device for it in found["snapshot.whole"]]
        for name, values in sorted(found.items()):
            bench.add(f"engine.{how}.{name}", "ms", values, count)


def _snapshot(
    pool: ramet.Pool, dirtier: Dirtier, count: int, found: dict[str, list[float]]
) -> None:
    volumes = [pool.volume(name) for name in vm_names(count)]
    dirtier.dirty_all()
    made: list[ramet.Snapshot] = []
    whole = timed_ms(lambda: made.extend(pool.snapshot(volumes, name="{volume}@bench")))
    found["snapshot.whole"].append(whole)
    found["snapshot.gate"].append(_gate_ms(pool))
    found["delete.whole"].append(timed_ms(lambda: pool.delete(made)))
    found["delete.gate"].append(_gate_ms(pool))
    found["delete.settled"].append(settle(pool) * 1000)


def _clone(
    bench: Bench, pool: ramet.Pool, dirtier: Dirtier, count: int, found: dict[str, list[float]]
) -> None:
    dirtier.dirty_all()
    made: list[ramet.Volume] = []
    found["clone.whole"].append(
        timed_ms(lambda: made.extend(pool.clone(GOLDEN, "clone-{n}", count=count)))
    )
    found["clone.gate"].append(_gate_ms(pool))
    found["clone.first_byte"].append(first_byte_ms(bench.directory / "engine.sock", count))
    pool.delete(made, force=True)  # The client that just went may not have been missed yet.
    settle(pool)


def first_byte_ms(socket: Path, count: int) -> float:
    """Time from nothing to the first block of the last of the clones `clone-{n}`."""

    def read() -> None:
        with Probe(socket, f"clone-{count}") as probe:
            if not any(probe.read(0, BLOCK_BYTES)):
                raise RuntimeError("a clone does not hold what the golden snapshot holds")

    return timed_ms(read)


def _gate_ms(pool: ramet.Pool) -> float:
    return int(pool.stats()["gate_closed_ns_last"]) / 1e6
