"""What clients feel while snapshots, clones and deletes of all volumes run.

Two runs of equal rounds under the same open-loop load: in both every volume is made dirty at the
start of each round; in the second all are then snapshotted, the snapshots deleted, as many clones
made and deleted. Latency counts from when a request was due.
"""

import time
from collections import defaultdict
from collections.abc import Callable

import ramet
from fleet import GOLDEN, Bench, Dirtier, vm_names
from load import Latencies, Load, percentile_ms

WORST_COUNT = 10

Windows = dict[str, list[tuple[int, int]]]


def run(bench: Bench) -> None:
    """Measure both runs, and add the figures."""
    socket = bench.directory / "stalls.sock"
    with ramet.open(bench.fleet()) as pool, pool.serve_nbd(socket):
        dirtier = Dirtier(pool, vm_names(bench.scale.fleet_count))
        bench.say("clients without commands")
        without, _ = _load_run(bench, pool, dirtier, commands=False)
        bench.say("clients while snapshots, clones and deletes run")
        during, windows = _load_run(bench, pool, dirtier, commands=True)
    _add(bench, without, during, windows)


def _load_run(
    bench: Bench, pool: ramet.Pool, dirtier: Dirtier, *, commands: bool
) -> tuple[Latencies, Windows]:
    scale = bench.scale
    windows: Windows = defaultdict(list)
    clients = vm_names(min(scale.connections, scale.fleet_count))
    socket = bench.directory / "stalls.sock"
    with Load(socket, clients, scale.rate, bench.directory) as load:
        for _ in range(scale.stall_rounds):
            ends = time.monotonic() + scale.stall_round_seconds
            _in_window(windows["dirty"], dirtier.dirty_all)
            if commands:
                _all_commands(pool, scale.fleet_count, windows)
            time.sleep(max(0.0, ends - time.monotonic()))
    assert load.latencies is not None
    if load.latencies.failed_count:
        raise RuntimeError(f"{load.latencies.failed_count} writes failed")
    return load.latencies, windows


def _all_commands(pool: ramet.Pool, count: int, windows: Windows) -> None:
    volumes = [pool.volume(name) for name in vm_names(count)]
    made: list[ramet.Snapshot | ramet.Volume] = []
    _in_window(
        windows["snapshot"], lambda: made.extend(pool.snapshot(volumes, name="{volume}@stall"))
    )
    _in_window(windows["delete_snapshots"], lambda: pool.delete(made))
    clones: list[ramet.Volume] = []
    _in_window(
        windows["clone"], lambda: clones.extend(pool.clone(GOLDEN, "stall-{n}", count=count))
    )
    _in_window(windows["delete_clones"], lambda: pool.delete(clones))


def _in_window(windows: list[tuple[int, int]], call: Callable[[], object]) -> None:
    begun = time.monotonic_ns()
    call()
    windows.append((begun, time.monotonic_ns()))


def _add(bench: Bench, without: Latencies, during: Latencies, windows: Windows) -> None:
    count = bench.scale.fleet_count
    for name, seen in (("without", without), ("commands", during)):
        for statistic, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)):
            base = None if seen is without else percentile_ms(without.latency_ns, share)
            value = percentile_ms(seen.latency_ns, share)
            bench.add(f"stalls.{name}.{statistic}", "ms", [value], count, baseline=base)
        # The client's own share: how late it sent what was due, and how busy it was.
        own = [percentile_ms(seen.late_ns, share) for share in (0.5, 0.99, 1.0)]
        busy = {"processor_share": seen.processor_share, "requests": len(seen.latency_ns)}
        bench.add(f"stalls.{name}.sent_late", "ms", own, note="p50 p99 max", details=busy)
    for kind, spans in windows.items():
        found = [latency for _, latency in during.within(spans)]
        if found:
            values = [percentile_ms(found, share) for share in (0.5, 0.99, 1.0)]
            details = {"windows_ms": [(end - begun) / 1e6 for begun, end in spans]}
            bench.add(f"stalls.in.{kind}", "ms", values, note="p50 p99 max", details=details)
    bench.figures[-1].details["worst"] = [
        {
            "latency_ms": latency / 1e6,
            "during": [
                kind
                for kind, spans in windows.items()
                if any(begun <= due + latency and due <= end for begun, end in spans)
            ],
        }
        for due, latency in during.worst(WORST_COUNT)
    ]
