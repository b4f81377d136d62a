"""A steady load by fio's own NBD clients, one process for all: 4 KiB random writes at a fixed rate.

Latency counts from when fio sent a request (it holds a late one back, so a stall shows in fewer
requests than with `load`). fio logs every request with the time of day in milliseconds.
"""

import signal
import subprocess
import time
from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from load import first_in_line
from ramet.demo.probe import Probe

SPAN_BYTES = 64 * 1024 * 1024  # Of each volume, that the writes fall into.
DEPTH = 8
START_SECONDS_MAX = 30.0
SECONDS_MAX = 3600


@dataclass
class FioLatencies:
    """What fio saw: of every request when it ended, in nanoseconds of the monotonic clock."""

    ended_ns: list[int] = field(default_factory=list)
    latency_ns: list[int] = field(default_factory=list)
    failed_count: int = 0

    def within(self, windows: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Requests that were in flight in one of the windows (from, to): (sent_ns, latency_ns)."""
        found: set[int] = set()
        longest = max(self.latency_ns)
        for first_ns, last_ns in windows:
            begin = bisect_left(self.ended_ns, first_ns)
            end = bisect_left(self.ended_ns, last_ns + longest)
            found.update(
                k for k in range(begin, end) if self.ended_ns[k] - self.latency_ns[k] <= last_ns
            )
        return [(self.ended_ns[k] - self.latency_ns[k], self.latency_ns[k]) for k in sorted(found)]


class FioLoad:
    """fio from entering the block until it is left; `latencies` then holds what it saw."""

    def __init__(self, socket_path: Path, exports: list[str], rate: int, directory: Path) -> None:
        self._logs = directory / "fio"
        self._socket, self._exports, self._rate = socket_path, exports, rate
        self._process: subprocess.Popen | None = None
        self.latencies: FioLatencies | None = None

    def __enter__(self) -> Self:
        self._logs.mkdir()
        with Probe(self._socket, self._exports[0]) as probe:
            size = min(SPAN_BYTES, probe.size_bytes)
        words = (
            f"--ioengine=nbd --rw=randwrite --bs=4k --iodepth={DEPTH} --size={size}"
            f" --rate_iops={self._rate} --time_based --runtime={SECONDS_MAX} --thread"
            f" --randrepeat=1 --write_lat_log=all --log_unix_epoch=1 --output=fio.txt"
        ).split()
        for export in self._exports:
            words += [f"--name={export}", f"--uri=nbd+unix:///{export}?socket={self._socket}"]
        self._process = subprocess.Popen(["fio", *words], cwd=self._logs)
        first_in_line(self._process.pid)  # And so the threads that it is going to make.
        self._await_first()
        return self

    def _await_first(self) -> None:
        """Wait until fio writes: it tells nobody, but it is connected then."""
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline and self._process.poll() is None:
            if len(list(Path(f"/proc/{self._process.pid}/task").iterdir())) > len(self._exports):
                time.sleep(1.0)
                return
            time.sleep(0.05)
        raise RuntimeError("fio did not start; what it printed is above")

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        # Both clocks at one moment: fio's log is in the time of day.
        offset_ns = time.monotonic_ns() - time.time_ns()
        self._process.send_signal(signal.SIGINT)
        self._process.wait()
        found: list[tuple[int, int]] = []
        for path in self._logs.glob("all_lat.*.log"):
            for line in path.read_text().splitlines():
                ended_ms, latency_ns = line.split(",", 2)[:2]
                found.append((int(ended_ms) * 1_000_000 + offset_ns, int(latency_ns)))
        if not found:
            raise RuntimeError((self._logs / "fio.txt").read_text())
        found.sort()
        self.latencies = FioLatencies([it[0] for it in found], [it[1] for it in found])
        for path in self._logs.iterdir():
            path.unlink()
        self._logs.rmdir()
