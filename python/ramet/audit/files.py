"""A pool's files, for reading only, and its lock.

Imports config and errors. Called by all of audit; nothing else of it opens a file. Invariants:
nothing is ever written; bytes that the medium does not give are reported, and read as zeros.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from ramet.audit.checksums import BLOCK_BYTES
from ramet.audit.report import Place, Progress, Report
from ramet.audit.structures import MalformedError
from ramet.errors import BusyError, NotFoundError, UnavailableError

LOCK_RETRY_SECONDS = 0.05
FILES_OPEN_MAX = 64  # Node and table files that are kept open.


class PoolFile:
    """An open file. `read` may give fewer bytes, where the file ends first."""

    def __init__(self, files: "PoolFiles", name: str) -> None:
        self.name = name
        self._files = files
        self._descriptor = os.open(files.root / name, os.O_RDONLY | os.O_CLOEXEC)
        self.length_bytes = os.fstat(self._descriptor).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Read a range; what lies behind the file's end is left out."""
        try:
            content = os.pread(self._descriptor, length_bytes, offset_bytes)
        except OSError:
            content = self._read_in_pages(offset_bytes, length_bytes)
        self._files.report.count("read_bytes", len(content))
        self._files.show_progress()
        return content

    def will_need(self, offset_bytes: int, length_bytes: int) -> None:
        """Say what is read soon: the medium goes on while what is there is worked on."""
        os.posix_fadvise(self._descriptor, offset_bytes, length_bytes, os.POSIX_FADV_WILLNEED)

    def page(self, offset_bytes: int) -> bytes:
        """Read a page.

        Raises: MalformedError where the file ends first.
        """
        return self.whole(offset_bytes, BLOCK_BYTES)

    def whole(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Read a range of which nothing may be missing.

        Raises: MalformedError where the file ends first.
        """
        content = self.read(offset_bytes, length_bytes)
        if len(content) != length_bytes:
            raise MalformedError(f"the file ends at byte {self.length_bytes}, too early")
        return content

    def _read_in_pages(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Read what can be read; zeros stand for the rest, whose checksums will not match."""
        content = bytearray()
        end_bytes = min(offset_bytes + length_bytes, self.length_bytes)
        for at in range(offset_bytes, end_bytes, BLOCK_BYTES):
            length = min(BLOCK_BYTES, end_bytes - at)
            try:
                content += os.pread(self._descriptor, length, at)
            except OSError as error:
                text = f"'{self.name}' cannot be read at byte {at}: {error.strerror}"
                self._files.report.add("read_failed", text, Place(self.name, at))
                content += bytes(length)
        return bytes(content)


class PoolFiles:
    """The files of the pool in directory `root`."""

    def __init__(self, root: Path, report: Report, progress: Progress | None) -> None:
        self.root = root
        self.report = report
        self.doing = "reading"
        self.bytes_to_read = 0
        self._progress = progress
        self._open: dict[str, PoolFile] = {}

    def close(self) -> None:
        """Close the files that were kept open."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def open(self, name: str) -> PoolFile:
        """Open a file; the caller closes it.

        Raises: MalformedError where it is missing or cannot be opened.
        """
        try:
            return PoolFile(self, name)
        except OSError as error:
            raise MalformedError(f"'{name}' cannot be opened: {error.strerror}") from error

    def kept_open(self, name: str) -> PoolFile:
        """Give a file that stays open as long as few others are asked for.

        Raises: as `open`.
        """
        file = self._open.pop(name, None)
        if file is None:
            file = self.open(name)
        self._open[name] = file
        if len(self._open) > FILES_OPEN_MAX:
            self._open.pop(next(iter(self._open))).close()
        return file

    def names(self, directory: str) -> list[str]:
        """Give the names of the files in a directory of the pool, sorted; none if it is missing."""
        try:
            with os.scandir(self.root / directory) as entries:
                return sorted(entry.name for entry in entries if not entry.is_dir())
        except FileNotFoundError:
            return []

    def show_progress(self) -> None:
        """Tell whoever looks how far the check is."""
        if self._progress is not None:
            done = self.report.counts["read_bytes"]
            self._progress(self.doing, done, max(done, self.bytes_to_read))


@contextmanager
def pool_lock(root: Path, wait_seconds: float) -> Iterator[None]:
    """Keep writers out of a pool, as any reader does; other readers may go on.

    Raises: NotFoundError where there is no pool; BusyError where somebody has it open for writing
    for longer than `wait_seconds`; UnavailableError where it cannot be read.
    """
    try:
        exists = (root / "pool").exists() or (root / "superblock").exists()
        descriptor = os.open(root / "lock", os.O_RDONLY | os.O_CLOEXEC) if exists else -1
    except FileNotFoundError:
        yield  # A copy without the file: nobody can have it open for writing.
        return
    except OSError as error:
        raise UnavailableError(
            "pool_io_failed", f"'{root}' cannot be read: {error.strerror}; hint: check permissions"
        ) from error
    if descriptor < 0:
        raise NotFoundError(
            "pool_not_found", f"'{root}' is not a pool: it has no file 'pool'; hint: ramet init"
        )
    try:
        _wait_for(descriptor, root, time.monotonic() + wait_seconds)
        yield
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, root: Path, until: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise BusyError(
                    "pool_in_use",
                    f"'{root}' is open for writing in another process; hint: wait for it, or stop"
                    " the service that holds it",
                ) from None
            time.sleep(LOCK_RETRY_SECONDS)
        else:
            return
