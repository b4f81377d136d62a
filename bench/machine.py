"""Say what the figures were measured on, and ask the system for its own figures.

Reads /proc and the file system; changes nothing but the page cache and a probe file of its own.
"""

import ctypes
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MIB = 1024 * 1024
PROCESS_MADVISE, MADV_PAGEOUT = 440, 21  # Numbers of the system call, the same on all machines.
PROBE_BYTES = 8 * MIB  # What the log lets stay out of writeback: a commit may have to wait for it.


def describe(directory: Path) -> dict[str, object]:
    """Describe processor, memory, kernel and the file system that holds `directory`."""
    memory_kib = _field(Path("/proc/meminfo"), "MemTotal").split()[0]
    return {
        "processor": _field(Path("/proc/cpuinfo"), "model name"),
        "cores_count": os.cpu_count(),
        "memory_bytes": int(memory_kib) * 1024,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "file_system": file_system(directory),
        "load_average": os.getloadavg(),
    }


def file_system(directory: Path) -> str:
    """Name the type of the file system that holds `directory`, such as ext4."""
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return "unknown"


def _field(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


class Place(StrEnum):
    """Where two programs are kept that wait for each other: on one processor, or on two."""

    TOGETHER = "together"
    APART = "apart"

    @contextmanager
    def keep(self, process_id: int) -> Iterator[None]:
        """Keep a process on the first processor, and what this one starts there or on the last."""
        allowed = os.sched_getaffinity(0)
        first, last = min(allowed), max(allowed)
        _keep_threads(process_id, {first})
        os.sched_setaffinity(0, {first if self is Place.TOGETHER else last})
        try:
            yield
        finally:
            os.sched_setaffinity(0, allowed)
            _keep_threads(process_id, allowed)


def _keep_threads(process_id: int, processors: set[int]) -> None:
    for thread in Path(f"/proc/{process_id}/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), processors)


def resident_bytes() -> int:
    """Memory of this process that is resident and its own (not of files)."""
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * PAGE_BYTES


def processor_seconds(process_id: int) -> float:
    """Processor time that a process has used so far."""
    return _used_seconds(Path(f"/proc/{process_id}/stat").read_text())


def thread_seconds(process_id: int, name: str) -> float:
    """Processor time that threads of this name have used so far in a process."""
    seconds = 0.0
    for task in Path(f"/proc/{process_id}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # It may end meanwhile.
            text = (task / "stat").read_text()
            if text.partition("(")[2].rpartition(")")[0] == name:
                seconds += _used_seconds(text)
    return seconds


def _used_seconds(stat: str) -> float:
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sync_files(directory: Path) -> None:
    """Write the files below `directory` back."""
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):  # A server may remove its files meanwhile.
            if path.is_file():
                with path.open("rb") as stream:
                    os.fdatasync(stream.fileno())


def device_written_bytes(directory: Path) -> int:
    """Bytes that were written to the device of this file system since the system started; 0 where
    it is on none."""
    device = directory.stat().st_dev
    figures = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    # The seventh figure counts sectors of 512 bytes.
    return int(figures.read_text().split()[6]) * 512 if figures.exists() else 0


def drop_caches(directory: Path) -> None:
    """Let the page cache forget the files below `directory`; needs no rights."""
    for path in directory.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fdatasync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


def page_out(process_id: int, directory: Path) -> None:
    """Have the system take the pages of files below `directory` from a process that maps them.

    As long as they are mapped, the page cache does not forget them. Needs the process's owner.
    """
    ranges = []
    for line in Path(f"/proc/{process_id}/maps").read_text().splitlines():
        place, *_, name = line.split(maxsplit=5)
        if name.startswith(f"{directory}/"):
            start, end = (int(it, 16) for it in place.split("-"))
            ranges.append((start, end - start))
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(process_id)
    try:
        for start, length in ranges:
            vector = (ctypes.c_size_t * 2)(start, length)
            if libc.syscall(PROCESS_MADVISE, process, vector, 1, MADV_PAGEOUT, 0) < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(process)


def cached_bytes(directory: Path) -> int:
    """Bytes of the files below `directory` that the page cache has."""
    words = ["fincore", "--bytes", "--noheadings", "--output", "RES"]
    files = [str(it) for it in directory.rglob("*") if it.is_file() and it.stat().st_size]
    told = subprocess.run([*words, *files], capture_output=True, text=True, check=True).stdout
    return sum(map(int, told.split()))


def device_commit_ms(directory: Path, length_bytes: int = PROBE_BYTES) -> float:
    """Time the device: milliseconds to append `length_bytes` to an allocated file, and to sync it.

    That is what a commit of the log cannot be faster than.
    """
    path = directory / "device-probe"
    data = memoryview(os.urandom(length_bytes))
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        os.posix_fallocate(handle, 0, length_bytes)
        os.fsync(handle)
        begun = time.perf_counter()
        written = 0
        while written < length_bytes:
            written += os.pwrite(handle, data[written : written + MIB], written)
        os.fdatasync(handle)
        return (time.perf_counter() - begun) * 1000
    finally:
        os.close(handle)
        path.unlink()
