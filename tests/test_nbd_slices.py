"""Sessions ask the scheduler for short slices, but for those with many requests in flight."""

import ctypes
import os
import platform
import struct
from pathlib import Path

import pytest

import ramet
from ramet.demo.probe import Probe

GET_ATTRIBUTES = {"x86_64": 315, "aarch64": 275}  # Numbers of sched_getattr.
SHORT_NS = 300_000
BLOCK_BYTES = 4096
TOGETHER, TIMES = 5, 32
"""Requests that make many, and how often they come until it counts."""


def slice_ns(thread_id: int) -> int:
    """Give a thread's slice; 0 where the system knows none, or this machine's call is unknown."""
    number = GET_ATTRIBUTES.get(platform.machine())
    found = ctypes.create_string_buffer(48)
    if number is None or ctypes.CDLL(None).syscall(number, thread_id, found, 48, 0):
        return 0
    return struct.unpack_from("=Q", found, 24)[0]


def session_ids() -> list[int]:
    """Give the threads of this process that serve a connection."""
    tasks = Path("/proc/self/task").iterdir()
    return [int(it.name) for it in tasks if (it / "comm").read_text() == "nbd-session\n"]


def read_together(probe: Probe, count: int) -> None:
    """Send so many reads at once, and take the answers."""
    asked = (
        struct.pack(">IHHQQI", 0x2560_9513, 0, 0, number, 0, BLOCK_BYTES) for number in range(count)
    )
    probe.stream.sendall(b"".join(asked))
    left_bytes = count * (16 + BLOCK_BYTES)
    while left_bytes:
        left_bytes -= len(probe.stream.recv(left_bytes))


@pytest.mark.skipif(slice_ns(os.getpid()) <= SHORT_NS, reason="no slices here, or short ones")
def test_a_session_has_short_slices_while_its_requests_are_few(
    pool: ramet.Pool, tmp_path: Path
) -> None:
    usual_ns = slice_ns(os.getpid())
    pool.create_volume("db", 16 * BLOCK_BYTES)
    with pool.serve_nbd(tmp_path / "nbd.sock"), Probe(tmp_path / "nbd.sock", "db") as probe:
        probe.read(0, BLOCK_BYTES)
        (session_id,) = session_ids()
        assert slice_ns(session_id) == SHORT_NS
        for _ in range(TIMES):
            read_together(probe, TOGETHER)
        assert slice_ns(session_id) == usual_ns
        for _ in range(TIMES):
            read_together(probe, 1)
        assert slice_ns(session_id) == SHORT_NS
    assert slice_ns(os.getpid()) == usual_ns
