"""Open-loop clients over NBD: one process, many connections, 4 KiB writes at a fixed rate.

`Load` starts and stops this file as a process of its own; `run_clients` is that process. Request k
is due at start + k * interval on connection k % connections, whatever happened to those before it,
and its latency counts from when it was due: a server that stalls cannot hide it. One thread and
`select`, so that no lock is in the way; nothing is allocated that the collector would look at.
How late the requests themselves were sent is recorded too: that is the client's own share. It runs
before everything else where the system allows that (`first_in_line`), so that the share is small.
"""

import gc
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from array import array
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ramet.demo.probe import Probe

BLOCK_BYTES = 4096
SPAN_BYTES = 64 * 1024 * 1024  # Of each volume, that the writes fall into.
DRAIN_SECONDS_MAX = 30.0
REPLY = struct.Struct(">IIQ")
REQUEST = struct.Struct(">IHHQQI")
REQUEST_MAGIC, REPLY_MAGIC, WRITE = 0x2560_9513, 0x6744_6698, 1
UNANSWERED = -1


@dataclass
class Latencies:
    """What the clients saw. Request k was due at `start_ns + k * interval_ns`, monotonic clock."""

    start_ns: int
    interval_ns: int
    latency_ns: array
    late_ns: array
    failed_count: int
    processor_share: float

    def within(self, windows: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Requests that were in flight in one of the windows (from, to): (due_ns, latency_ns)."""
        found: set[int] = set()
        for first_ns, last_ns in windows:
            # Back by the longest of all, so that none that began before the window is missed.
            reach_ns = first_ns - self.start_ns - max(self.latency_ns)
            begin = max(0, reach_ns // self.interval_ns)
            end = min(len(self.latency_ns), (last_ns - self.start_ns) // self.interval_ns + 1)
            found.update(
                k for k in range(begin, end) if self._due(k) + self.latency_ns[k] >= first_ns
            )
        return [(self._due(k), self.latency_ns[k]) for k in sorted(found)]

    def worst(self, count: int) -> list[tuple[int, int]]:
        """The `count` slowest requests, as (due_ns, latency_ns)."""
        order = sorted(range(len(self.latency_ns)), key=lambda k: -self.latency_ns[k])
        return [(self._due(k), self.latency_ns[k]) for k in order[:count]]

    def _due(self, k: int) -> int:
        return self.start_ns + k * self.interval_ns


def percentile_ms(values_ns: "list[int] | array", share: float) -> float:
    """The value that `share` of all are at or below, in milliseconds; 0 where there is none."""
    ordered = sorted(values_ns)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6 if ordered else 0.0


def first_in_line(process_id: int = 0) -> None:
    """Let a process, or this one, run before all others, so that its own wait is not measured."""
    with suppress(PermissionError, ProcessLookupError):
        os.sched_setscheduler(process_id, os.SCHED_FIFO, os.sched_param(1))


class Load:
    """Clients that write until the block is left; `latencies` then holds what they saw."""

    def __init__(self, socket_path: Path, exports: list[str], rate: int, directory: Path) -> None:
        self._file = directory / "latencies"
        job = {
            "socket": str(socket_path),
            "exports": exports,
            "rate": rate,
            "file": str(self._file),
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.latencies: Latencies | None = None

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError("the clients did not start; what they printed is above")
        return self

    def __exit__(self, *_: object) -> None:
        told, _ = self._process.communicate()  # Closes their stdin, which is how they are stopped.
        if self._process.returncode != 0:
            raise RuntimeError("the clients failed; what they printed is above")
        summary = json.loads(told)
        latency, late = array("q"), array("q")
        count = summary.pop("count")
        with self._file.open("rb") as stream:
            latency.fromfile(stream, count)
            late.fromfile(stream, count)
        self._file.unlink()
        self.latencies = Latencies(latency_ns=latency, late_ns=late, **summary)


class Clients:
    """All connections of one process, and the clock that drives them."""

    def __init__(self, probes: list[Probe], rate: int) -> None:
        self._streams = [probe.stream for probe in probes]
        self._numbers = {stream: number for number, stream in enumerate(self._streams)}
        self._partial = [b""] * len(probes)
        self._payload = bytearray(random.Random(1).randbytes(BLOCK_BYTES))
        span = min([SPAN_BYTES] + [probe.size_bytes for probe in probes])
        draw = random.Random(2)
        # Drawn before the clock starts; 7919 is prime to the number of connections.
        self._offsets = [draw.randrange(span // BLOCK_BYTES) * BLOCK_BYTES for _ in range(7919)]
        self.interval_ns = 1_000_000_000 // (rate * len(probes))
        self.latency_ns, self.late_ns = array("q"), array("q")
        self.failed_count = 0
        self._answered_count = 0
        self.start_ns = 0

    def run(self) -> None:
        """Write until stdin is closed, then wait for what is in flight."""
        self.start_ns = time.monotonic_ns() + 10_000_000
        watched = [*self._streams, sys.stdin]
        stopping = False
        while not stopping:
            self._send_due()
            due = self.start_ns + len(self.late_ns) * self.interval_ns
            wait = max(0, due - time.monotonic_ns()) / 1e9
            for stream in select.select(watched, (), (), wait)[0]:
                if stream is sys.stdin:
                    stopping = True
                else:
                    self._receive(stream)
        self._drain()

    def _drain(self) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS_MAX
        while self._answered_count < len(self.late_ns):
            ready = select.select(self._streams, (), (), max(0, deadline - time.monotonic()))[0]
            if not ready:
                raise TimeoutError(f"requests are not answered after {DRAIN_SECONDS_MAX:.0f} s")
            for stream in ready:
                self._receive(stream)

    def _send_due(self) -> None:
        k = len(self.late_ns)
        due = self.start_ns + k * self.interval_ns
        while (now := time.monotonic_ns()) >= due:
            offset = self._offsets[k % len(self._offsets)]
            self._payload[:8] = k.to_bytes(8, "little")
            head = REQUEST.pack(REQUEST_MAGIC, 0, WRITE, k, offset, BLOCK_BYTES)
            self.late_ns.append(now - due)
            self.latency_ns.append(UNANSWERED)
            # Blocks only once a connection has dozens in flight: the clock of all goes on counting.
            self._streams[k % len(self._streams)].sendall(head + self._payload)
            k += 1
            due += self.interval_ns

    def _receive(self, stream: "object") -> None:
        number = self._numbers[stream]
        received = stream.recv(65_536)
        now = time.monotonic_ns()
        if not received:
            raise ConnectionError("the server hung up")
        content = self._partial[number] + received
        whole = len(content) - len(content) % REPLY.size
        for magic, code, k in REPLY.iter_unpack(content[:whole]):
            if magic != REPLY_MAGIC:
                raise ConnectionError(f"answer {magic:#x} to a write")
            self.failed_count += code != 0
            self.latency_ns[k] = now - self.start_ns - k * self.interval_ns
            self._answered_count += 1
        self._partial[number] = content[whole:]


def run_clients(job: dict) -> None:
    """Be the process that `Load` starts."""
    first_in_line()
    probes = [Probe(Path(job["socket"]), export) for export in job["exports"]]
    clients = Clients(probes, job["rate"])
    gc.collect()
    gc.freeze()
    gc.disable()
    print("ready", flush=True)
    begun, used = time.monotonic(), time.process_time()
    clients.run()
    share = (time.process_time() - used) / (time.monotonic() - begun)
    with Path(job["file"]).open("wb") as stream:
        clients.latency_ns.tofile(stream)
        clients.late_ns.tofile(stream)
    summary = {
        "start_ns": clients.start_ns,
        "interval_ns": clients.interval_ns,
        "count": len(clients.late_ns),
        "failed_count": clients.failed_count,
        "processor_share": share,
    }
    print(json.dumps(summary), flush=True)
    for probe in probes:
        probe.close()


if __name__ == "__main__":
    run_clients(json.loads(sys.argv[1]))
    os._exit(0)  # No interpreter's farewell: the figures are out.
