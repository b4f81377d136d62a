"""What clients feel of each kind of work, in interleaved rounds with it and without.

Under one steady load every round does each work once, until nothing of it is left to do, and then
lets as much time pass without. Twice: with the open-loop clients of `load`, whose latency counts
from when a request was due, and with fio's own NBD clients, where fio is installed.

A virtual machine's host may run something else on its processors for tens of milliseconds; every
client then waits, with the work and without it. Requests that were in flight while a processor was
away (`stolen`) are left out on both sides, and how many is told; for a round of which little would
be left there is another one, up to a limit.
"""

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import ramet
from fio_load import FioLatencies, FioLoad
from fleet import Bench, Dirtier, settle, vm_names
from load import Latencies, Load, percentile_ms
from stolen import Span, StolenTime

# After everything was made dirty: so that its bytes are on their way to the device.
PAUSE_SECONDS = 0.3
FIO_CLIENTS = 8
# A round counts as whole where no more of its time was stolen than this part,
STOLEN_PART_MAX = 0.25
# and so many are made at most for each that is wanted.
ATTEMPTS = 3


class Works:
    """Everything that runs beside clients; each leaves the pool as the next one wants it."""

    def __init__(self, pool: ramet.Pool, count: int) -> None:
        self._pool = pool
        self._volumes = [pool.volume(name) for name in vm_names(count)]
        self._made: list[ramet.Snapshot] = []

    def snapshots(self) -> None:
        """Snapshots of all volumes."""
        self._made = self._pool.snapshot(self._volumes, name="{volume}@latency")

    def checkpoint(self) -> None:
        """A checkpoint after all volumes changed."""
        self._pool.checkpoint()

    def delete_all(self) -> None:
        """A delete of all those snapshots in one command, until all is answered."""
        self._pool.delete(self._made)
        settle(self._pool)

    def delete_one(self) -> None:
        """A snapshot of one volume, and its delete."""
        self._volumes[0].snapshot("latency-one").delete()
        settle(self._pool)

    def reclaim(self) -> None:
        """All that is dead given back."""
        self._pool.reclaim(everything=True)


def run(bench: Bench) -> None:
    """Measure under both loads, and add the figures."""
    socket = bench.directory / "latency.sock"
    clients = vm_names(min(bench.scale.connections, bench.scale.fleet_count))
    with ramet.open(bench.fleet()) as pool, pool.serve_nbd(socket):
        bench.say("latency, open-loop clients")
        load = Load(socket, clients, bench.scale.rate, bench.directory)
        _measure(bench, pool, load, "clients")
        if shutil.which("fio") is None:
            bench.say("fio is missing: its part is left out")
            return
        bench.say("latency, fio")
        rate = bench.scale.rate * len(clients) // FIO_CLIENTS
        _measure(bench, pool, _fio(bench.directory, socket, clients[:FIO_CLIENTS], rate), "fio")


def _fio(directory: Path, socket: Path, clients: list[str], rate: int) -> FioLoad:
    return FioLoad(socket, clients, rate, directory)


def _measure(bench: Bench, pool: ramet.Pool, load: Load | FioLoad, how: str) -> None:
    works = Works(pool, bench.scale.fleet_count)
    dirtier = Dirtier(pool, vm_names(bench.scale.fleet_count))
    kinds: dict[str, Callable[[], None]] = {
        "snapshots": works.snapshots,
        "checkpoint": works.checkpoint,
        "delete_all": works.delete_all,
        "delete_one": works.delete_one,
        "reclaim": works.reclaim,
    }
    spans: dict[str, list[tuple[Span, Span]]] = {kind: [] for kind in kinds}
    with StolenTime() as stolen, load:
        wanted = bench.scale.latency_rounds
        for _ in range(wanted * ATTEMPTS):
            whole = [sum(_is_whole(it, stolen) for it in pairs) for pairs in spans.values()]
            if min(whole) >= wanted:
                break
            for kind, work in kinds.items():
                spans[kind].append(_round(work, dirtier, bench.scale.latency_window_seconds))
    assert load.latencies is not None
    if load.latencies.failed_count:
        raise RuntimeError(f"{load.latencies.failed_count} writes failed")
    for kind, pairs in spans.items():
        _add(bench, f"latency.{how}.{kind}", pairs, load.latencies, stolen)


def _is_whole(pair: tuple[Span, Span], stolen: StolenTime) -> bool:
    return all(stolen.part(span) <= STOLEN_PART_MAX for span in pair)


def _round(work: Callable[[], None], dirtier: Dirtier, seconds_min: float) -> tuple[Span, Span]:
    """Do the work, then let as much time pass without; before each everything is made dirty."""
    dirtier.dirty_all()
    time.sleep(PAUSE_SECONDS)
    during = _during(work, seconds_min)
    dirtier.dirty_all()
    time.sleep(PAUSE_SECONDS)
    return during, _during(lambda: None, (during[1] - during[0]) / 1e9)


def _during(work: Callable[[], None], seconds_min: float) -> Span:
    """Do the work, and let at least so much time pass. Result: from when, to when."""
    begun = time.monotonic_ns()
    work()
    time.sleep(max(0.0, seconds_min - (time.monotonic_ns() - begun) / 1e9))
    return begun, time.monotonic_ns()


def _add(
    bench: Bench,
    key: str,
    pairs: list[tuple[Span, Span]],
    seen: Latencies | FioLatencies,
    stolen: StolenTime,
) -> None:
    """Add p99 and maximum of all rounds beside those without, and how the rounds compare."""
    count = bench.scale.fleet_count

    def calm(spans: list[Span]) -> list[int]:
        flights = seen.within(spans)
        return [took for begun, took in flights if not stolen.touches(begun, begun + took)]

    both = [[pair[side] for pair in pairs] for side in (0, 1)]
    during, without = map(calm, both)
    counts = [len(seen.within(spans)) for spans in both]
    left_out = [counts[0] - len(during), counts[1] - len(without)]
    told = " / ".join(f"{left_out[side] / max(counts[side], 1):.0%}" for side in (0, 1))
    for name, share in (("p99", 0.99), ("max", 1.0)):
        value, base = percentile_ms(during, share), percentile_ms(without, share)
        each = [[percentile_ms(calm([span]), share) for span in pair] for pair in pairs]
        details = {
            "without_ms": base,
            "rounds_ms": each,
            "requests": [len(during), len(without)],
            "left_out": left_out,
        }
        bench.add(f"{key}.{name}", "ms", [value], count, baseline=base, details=details)
        ratios = [with_it / max(alone, 1e-6) for with_it, alone in each]
        note = f"median round {statistics.median(ratios):.2f}; {told} left out"
        bench.add(f"{key}.{name}.ratio", "", [value / max(base, 1e-6)], note=note)
