"""When a virtual machine's host ran something else although there was work here.

A processor that is taken away looks like a stall to everybody on the machine. How to tell: on
each processor a process wakes up every millisecond before everybody else (`beat`). Where it does so
late, either the system ran something that it does not interrupt, which counts, or the processor was
away. The timer that samples what runs interrupts everything, but not an idle processor, and it
keeps time: so where it did not tick when it was due either, the processor was away. A processor may
also be away for a tenth of a millisecond, again and again: no beat comes very late then. So each
computes the same little piece, which nobody here interrupts but the system, for less; where that
takes a tenth of a millisecond more than usual the processor was away meanwhile.

To watch costs what is watched: on a virtual machine a tick may take 30 us and a beat 80, and who
goes first makes the others wait. So both are no more often than it takes.

That needs the rights to go first and to watch all processors (perf_event_open(2)). Without them
what /proc/stat counts is used, which is hundredths of a second.
"""

import ctypes
import mmap
import os
import platform
import struct
import subprocess
import sys
import threading
import time
from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Protocol, Self

Span = tuple[int, int]

CALLS = {"x86_64": 298, "aarch64": 241}  # Numbers of perf_event_open.
# How far apart ticks come that were on time, and how many tell when that is.
TOGETHER_NS = 50_000
PHASE_TICKS = 400


class StolenTime:
    """Watches, inside its block, when a processor was taken away.

    The `spans` (from, to; monotonic nanoseconds) are disjoint and in order. They reach further than
    what was seen, on both sides: what waited has to be caught up with.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._source = _source()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._source.close()

    def _watch(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._ended.wait(self._source.every_seconds)
            for begun_ns, ended_ns in sorted(self._source.away(), key=lambda span: span[1]):
                self._add(begun_ns - self._source.margin_ns, ended_ns + self._source.margin_ns)

    def _add(self, begun_ns: int, ended_ns: int) -> None:
        while self.spans and self.spans[-1][1] >= begun_ns:
            last = self.spans.pop()
            begun_ns, ended_ns = min(begun_ns, last[0]), max(ended_ns, last[1])
        self.spans.append((begun_ns, ended_ns))

    def touches(self, begun_ns: int, ended_ns: int) -> bool:
        """Say whether some of a stretch of time was stolen."""
        next_one = bisect_left(self.spans, begun_ns, key=lambda span: span[1])
        return next_one < len(self.spans) and self.spans[next_one][0] <= ended_ns

    def part(self, window: Span) -> float:
        """Say how much of a window lies in stolen time: 0 to 1."""
        first, last = window
        inside = (max(0, min(ended, last) - max(begun, first)) for begun, ended in self.spans)
        return sum(inside) / (last - first)


class Source(Protocol):
    """What knows of stolen time: to be asked `every_seconds`."""

    every_seconds: float
    margin_ns: int

    def away(self) -> list[Span]:
        """When processors were away since the last call."""

    def close(self) -> None:
        """Ask no more."""


class Counted:
    """What /proc/stat says, of all processors."""

    every_seconds = 0.01
    margin_ns = 20_000_000

    def __init__(self) -> None:
        self._stolen_ns, self._looked_ns = _counted_ns(), time.monotonic_ns()

    def away(self) -> list[Span]:
        stolen_ns, now_ns = _counted_ns(), time.monotonic_ns()
        more_ns, begun_ns = stolen_ns - self._stolen_ns, self._looked_ns
        self._stolen_ns, self._looked_ns = stolen_ns, now_ns
        return [(begun_ns - more_ns, now_ns)] if more_ns > 0 else []

    def close(self) -> None:
        pass


class Timer:
    """The timer of one processor, whose ticks the system notes in a ring of memory."""

    TICK_NS = 500_000
    # perf_event_attr: type, size, config, period, sample type, read format, flags; the clock.
    _ATTRIBUTES = struct.Struct("=IIQQQQQ44xi16x")
    _SOFTWARE, _CPU_CLOCK, _SAMPLE_TIME, _USE_CLOCK = 1, 0, 1 << 2, 1 << 25
    _TICKED, _HEAD, _TIME = 9, struct.Struct("=IHH"), struct.Struct("=Q")
    # In the first page of the ring: how far the system wrote, and how far we read.
    _WRITTEN, _READ = 1024, 1032
    _RING_BYTES = 64 * mmap.PAGESIZE  # Eight seconds' worth.

    def __init__(self, processor: int) -> None:
        words = (self._SOFTWARE, self._ATTRIBUTES.size, self._CPU_CLOCK, self.TICK_NS)
        asked = (*words, self._SAMPLE_TIME, 0, self._USE_CLOCK, time.CLOCK_MONOTONIC)
        attributes = ctypes.create_string_buffer(self._ATTRIBUTES.pack(*asked))
        libc = ctypes.CDLL(None, use_errno=True)
        handle = libc.syscall(
            CALLS[platform.machine()], attributes, -1, processor, -1, ctypes.c_ulong(0)
        )
        if handle < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        try:
            self._ring = mmap.mmap(handle, mmap.PAGESIZE + self._RING_BYTES)
        finally:
            os.close(handle)  # The mapping keeps it.

    def ticks(self) -> list[int]:
        """When it ticked since the last call, in order."""
        (written,) = self._TIME.unpack_from(self._ring, self._WRITTEN)
        (read,) = self._TIME.unpack_from(self._ring, self._READ)
        begin = mmap.PAGESIZE + read % self._RING_BYTES
        records = self._ring[begin : begin + written - read]  # As far as the end of the ring.
        rest = written - read - len(records)
        records += self._ring[mmap.PAGESIZE : mmap.PAGESIZE + rest]
        self._TIME.pack_into(self._ring, self._READ, written)
        ticks, at = [], 0
        while at < len(records):
            kind, _, size = self._HEAD.unpack_from(records, at)
            if kind == self._TICKED:
                ticks += self._TIME.unpack_from(records, at + self._HEAD.size)
            at += size
        return ticks

    def close(self) -> None:
        self._ring.close()


def phase(ticks: list[int], every_ns: int) -> int:
    """When within its period a timer is due: most ticks come then or up to `TOGETHER_NS` later."""
    when = sorted(tick_ns % every_ns for tick_ns in ticks)
    around = when + [it + every_ns for it in when]
    counts = [bisect_right(around, first + TOGETHER_NS) - at for at, first in enumerate(when)]
    return when[counts.index(max(counts))]


def silences(late: Span, due: range, ticks: list[int], least_ns: int) -> list[Span]:
    """When a tick was due and came so much later, or not at all, while a beat was late.

    `late`: when the beat was due and came; `due`: when ticks were, in that time; `ticks`: in order.
    """
    found = []
    heard_ns, woke_ns = late
    for due_ns in due:
        if due_ns >= heard_ns:
            at = bisect_left(ticks, due_ns - TOGETHER_NS)
            heard_ns = min([woke_ns, *ticks[at : at + 1]])
            if heard_ns - due_ns >= least_ns:
                found.append((due_ns, heard_ns))
    return found


class Heart:
    """One processor's process that wakes up all the time, and its timer."""

    BEAT_NS = 1_000_000
    # A beat that comes so late is looked at,
    LATE_NS = 400_000
    # and where a tick was so late, too, the processor was away.
    SILENCE_NS = 200_000
    # A piece of computing of 10 us takes so much longer where it was away in the middle.
    STRETCHED_NS = 100_000
    _PIECE = (3, (1 << 60) - 1, (1 << 61) - 1)
    _LINE = struct.Struct("=QQ?")
    _LINES_MAX = 1000
    _KEPT_NS = 5_000_000_000

    def __init__(self, processor: int) -> None:
        self._timer = Timer(processor)
        self._ticks: list[int] = []
        words = [sys.executable, __file__, str(processor)]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, bufsize=0)
        assert self._process.stdout is not None
        if self._process.stdout.read(1) != b"!":  # It stops where it may not go first.
            self.close()
            raise PermissionError("no process may go before all others here")
        os.set_blocking(self._process.stdout.fileno(), False)

    def away(self) -> list[Span]:
        """When the processor was away since the last call."""
        assert self._process.stdout is not None
        told = self._process.stdout.read(self._LINE.size * self._LINES_MAX) or b""
        self._ticks += self._timer.ticks()  # After the beats: all ticks of each are there.
        found = self._judge(told) if told and self._ticks else []
        del self._ticks[: bisect_left(self._ticks, time.monotonic_ns() - self._KEPT_NS)]
        return found

    def _judge(self, told: bytes) -> list[Span]:
        every_ns = self._timer.TICK_NS
        phase_ns = phase(self._ticks[-PHASE_TICKS:], every_ns)
        found = []
        for begun_ns, ended_ns, is_stretched in self._LINE.iter_unpack(told):
            if is_stretched:
                found.append((begun_ns, ended_ns))
            else:
                due = range(begun_ns + (phase_ns - begun_ns) % every_ns, ended_ns, every_ns)
                found += silences((begun_ns, ended_ns), due, self._ticks, self.SILENCE_NS)
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._timer.close()

    @classmethod
    def beat(cls, processor: int) -> None:
        """Be the process that wakes up all the time, and say when it did late."""
        try:
            os.sched_setaffinity(0, [processor])
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))
        except PermissionError:
            return
        parent = os.getppid()
        out = sys.stdout.fileno()
        pieces = sorted(ended - begun for begun, ended in (cls._compute() for _ in range(200)))
        stretched_ns = pieces[len(pieces) // 2] + cls.STRETCHED_NS
        os.write(out, b"!")
        due_ns = time.monotonic_ns()
        while os.getppid() == parent:
            time.sleep(cls.BEAT_NS / 1e9)
            due_ns += cls.BEAT_NS
            woke_ns = time.monotonic_ns()
            if woke_ns - due_ns >= cls.LATE_NS:
                os.write(out, cls._LINE.pack(due_ns, woke_ns, False))
            begun_ns, due_ns = cls._compute()
            if due_ns - begun_ns >= stretched_ns:
                os.write(out, cls._LINE.pack(begun_ns, due_ns, True))

    @classmethod
    def _compute(cls) -> Span:
        """Compute the piece. Result: from when, to when."""
        begun_ns = time.monotonic_ns()
        pow(*cls._PIECE)
        return begun_ns, time.monotonic_ns()


class Hearts:
    """All processors."""

    every_seconds = 0.2
    # fio's log, too, knows milliseconds only.
    margin_ns = 2_000_000

    def __init__(self) -> None:
        self._hearts: list[Heart] = []
        try:
            for processor in sorted(os.sched_getaffinity(0)):
                self._hearts.append(Heart(processor))
        except OSError:
            self.close()
            raise

    def away(self) -> list[Span]:
        return [span for heart in self._hearts for span in heart.away()]

    def close(self) -> None:
        for heart in self._hearts:
            heart.close()


def _source() -> Source:
    try:
        return Hearts()
    except (OSError, KeyError):  # It is not allowed, or there is no such call here.
        return Counted()


def _counted_ns() -> int:
    """Time that was stolen so far, of all processors; 0 where the system does not know."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()
    return int(fields[8]) * 1_000_000_000 // os.sysconf("SC_CLK_TCK") if len(fields) > 8 else 0


if __name__ == "__main__":
    Heart.beat(int(sys.argv[1]))
