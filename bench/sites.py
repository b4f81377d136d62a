"""Two services: a policy keeps the pool of one in step with the other, while clients write.

A policy takes a snapshot of every volume at intervals and sends what changed to the other service.
Clients write to some volumes all the time, and to one block of each volume in every interval. A
process between the services counts what goes over the wire; what changed is found afterwards, by
comparing every snapshot with the one before. `Wire`'s process is this file, too.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ramet
from command_line import command, program, service
from fleet import BLOCK_BYTES, MIB, Bench, vm_names
from load import Load, percentile_ms
from machine import processor_seconds
from ramet.client import Client
from ramet.demo.probe import Probe

VOLUME_BYTES = 64 * MIB
FILL_BYTES = 64 * 1024
POLICY, REMOTE = "every", "there"
SEPARATOR = "@"
POLL_SECONDS = 0.25
RUN_SECONDS_MAX = 300.0
RATE = 10  # Writes a second to each of the volumes that clients write to all the time.
BOUND_BYTES = 1024  # On the wire, for each snapshot beside 1.05 of what changed.
PIECE_BYTES = 1 << 20


@dataclass
class Run:
    """One run of the policy: what it took until all of it had arrived."""

    taken_ns: int
    seconds: float
    processor_seconds: float
    wire_bytes: int


def run(bench: Bench) -> None:
    """Measure, and add the figures."""
    count = bench.scale.counts[1]
    bench.say(f"two services, {count:,} volumes")
    with bench.pool("site-here") as here, bench.pool("site-there") as there:
        ramet.open(there, create=True).close()
        _fill(here, count)
        sockets = [bench.directory / f"site-{it}.sock" for it in ("here", "there")]
        with service(here, sockets[0]) as one, service(there, sockets[1]) as other:
            client = Client.find(here)
            assert client is not None, "it said that it is ready"
            clients = vm_names(min(bench.scale.connections, count))
            with Load(sockets[0], clients, RATE, bench.directory) as load:
                before = _quiet(bench)
                with _touching(sockets[0], count, bench.scale.site_seconds):
                    wire = Wire(bench.directory / "wire", there)
                    runs = _follow(bench, here, client, wire, [one.pid, other.pid])
            changed = _changed_bytes(client, count, runs)
            client.close()
            _compare(here, there, count)
    assert load.latencies is not None, "it has ended"
    spans = [(it.taken_ns, it.taken_ns + int(it.seconds * 1e9)) for it in runs]
    _add(bench, count, runs, changed)
    for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
        value = percentile_ms([took for _, took in load.latencies.within(spans)], share)
        base = percentile_ms([took for _, took in load.latencies.within([before])], share)
        bench.add(f"sites.clients.{name}", "ms", [value], count, baseline=base)


class Wire:
    """What stands between both services, and counts."""

    def __init__(self, file: Path, there: Path) -> None:
        self._file = file
        words = [sys.executable, __file__, str(file), *program(), "-p", str(there)]
        self.url = f"exec:{' '.join(words)}"

    def bytes(self) -> int:
        """Bytes of all streams that have ended."""
        return sum(map(int, self._file.read_text().split())) if self._file.exists() else 0


def _fill(path: Path, count: int) -> None:
    with ramet.open(path, create=True) as pool:
        pool.create_volumes("vm-{n}", VOLUME_BYTES, count=count)
        for number, name in enumerate(vm_names(count)):
            pool.open_device(name).write(0, random.Random(number).randbytes(FILL_BYTES))


def _quiet(bench: Bench) -> tuple[int, int]:
    """Let clients write alone for a while."""
    begun = time.monotonic_ns()
    time.sleep(bench.scale.site_seconds / 3)
    return begun, time.monotonic_ns()


@contextmanager
def _touching(socket: Path, count: int, seconds: float) -> Iterator[None]:
    """Write one block of each volume in every so many seconds."""
    ended = threading.Event()

    def touch() -> None:
        draw = random.Random(5)
        while not ended.is_set():
            begun = time.monotonic()
            for number, name in enumerate(vm_names(count)):
                with Probe(socket, name) as probe:
                    at = draw.randrange(VOLUME_BYTES // BLOCK_BYTES) * BLOCK_BYTES
                    probe.write(at, draw.randbytes(BLOCK_BYTES))
                due = begun + seconds * (number + 1) / count
                if ended.wait(max(0.0, due - time.monotonic())):
                    return

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _follow(
    bench: Bench, here: Path, client: Client, wire: Wire, processes: Sequence[int]
) -> list[Run]:
    """Set the policy, let the first run go over whole, and measure those after it."""
    command(here, "remote", "add", REMOTE, wire.url)
    every = f"{bench.scale.site_seconds:g}s"
    words = ["--every", every, "--volume", "vm-*", "--keep-all", "--remote", REMOTE]
    command(here, "policy", "set", POLICY, *words)
    _arrived(client, 0)
    runs = []
    for _ in range(bench.scale.site_runs):
        last = _newest_ns(client)
        used, sent = sum(map(processor_seconds, processes)), wire.bytes()
        newest = _wait(lambda: (it := _newest_ns(client)) > last and it)
        taken_ns = time.monotonic_ns() - (time.time_ns() - newest)
        _arrived(client, newest)
        seconds = (time.monotonic_ns() - taken_ns) / 1e9
        used = sum(map(processor_seconds, processes)) - used
        runs.append(Run(taken_ns, seconds, used, wire.bytes() - sent))
        bench.say(f"sites: a run in {seconds:.1f} s, {runs[-1].wire_bytes:,} bytes on the wire")
    client.change_rules("policy", POLICY, None)
    return runs


def _newest_ns(client: Client) -> int:
    return next(it["last_ns"] or 0 for it in client.policies() if it["name"] == POLICY)


def _arrived(client: Client, newest_ns: int) -> None:
    """Wait until the remote has everything up to a run."""

    def is_there() -> bool:
        remote = client.remotes()[0]
        if remote["error"]:
            raise RuntimeError(remote["error"])
        return (
            bool(_newest_ns(client) > 0 and remote["lag_count"] == 0)
            and (remote["reached_ns"] or 0) > newest_ns
        )

    _wait(is_there)


def _wait(found: Callable[[], int]) -> int:
    until = time.monotonic() + RUN_SECONDS_MAX
    while not (told := found()):
        if time.monotonic() > until:
            raise TimeoutError("a run of the policy does not end")
        time.sleep(POLL_SECONDS)
    return int(told)


def _changed_bytes(client: Client, count: int, runs: list[Run]) -> int:
    """Bytes of blocks in which the snapshots of the measured runs differ from those before."""
    taken: dict[str, list[str]] = {name: [] for name in vm_names(count)}
    for it in sorted(client.objects(), key=lambda it: it.created_ns):
        if it.kind == "snapshot":
            taken[it.name.partition(SEPARATOR)[0]].append(it.name)
    changed = 0
    for names in taken.values():
        measured = names[1 : 1 + len(runs)]
        for before, after in zip(names, measured, strict=False):
            changed += sum(it.length_bytes for it in client.diff(before, after).extents)
    return changed


def _compare(here: Path, there: Path, count: int) -> None:
    """Hold some of what arrived against what was sent."""
    names = [it["name"] for it in json.loads(command(there, "--json", "snapshot", "list"))]
    for name in random.Random(6).sample(sorted(names), min(len(names), 16)):
        roots = {command(path, "verify", name) for path in (here, there)}
        if len(roots) != 1:
            raise RuntimeError(f"'{name}' is not the same at both: {roots}")
    if len(names) < 2 * count:
        raise RuntimeError(f"only {len(names)} snapshots arrived")


def _add(bench: Bench, count: int, runs: list[Run], changed: int) -> None:
    wire_bytes = sum(it.wire_bytes for it in runs)
    bound = 1.05 * changed + BOUND_BYTES * count * len(runs)
    bench.add("sites.wire.of_bound", "times", [wire_bytes / bound], count)
    bench.add("sites.changed", "MiB/run", [changed / len(runs) / MIB], count)
    bench.add("sites.run.seconds", "s", [it.seconds for it in runs], count)
    ratio = [it.seconds / bench.scale.site_seconds for it in runs]
    bench.add("sites.run.of_interval", "times", ratio, count)
    bench.add("sites.run.cpu", "s", [it.processor_seconds for it in runs], count)
    slowest = statistics.median(it.seconds for it in runs)
    bench.add("sites.rate", "snapshots/s", [count / slowest], count)


def _stand_between(file: Path, words: list[str]) -> int:
    """Run a command; count what it is given, where that is a stream."""
    if "receive" not in words or "--position" in words or "--abandon" in words:
        return subprocess.run(words, check=False).returncode
    wire_bytes = 0
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None, "it is a pipe"
        while piece := os.read(0, PIECE_BYTES):
            wire_bytes += len(piece)
            process.stdin.write(piece)
        process.stdin.close()
    with file.open("a") as stream:
        stream.write(f"{wire_bytes}\n")
    return process.returncode


if __name__ == "__main__":
    sys.exit(_stand_between(Path(sys.argv[1]), sys.argv[2:]))
