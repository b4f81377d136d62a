"""Load through real clients, and the stamps that prove an instant.

`Stampers` write one rising number across many volumes in order, each write answered before the
next: so whatever a group snapshot holds must be a prefix of that sequence. Invariant: what is said
to be flushed was answered by a flush.
"""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ramet.config import format_nbd_uri
from ramet.demo.probe import Probe
from ramet.errors import InternalError, UnavailableError

STAMP_BYTES = 4096
FLUSH_EVERY = 64
QEMU_IO_WRITES = 4000  # More than the demonstration lasts; the process is ended before.


def stamp(number: int) -> bytes:
    """Give the block that says `number`."""
    return number.to_bytes(8, "little") * (STAMP_BYTES // 8)


def read_stamp(probe: Probe, offset_bytes: int) -> int:
    """Read a stamp back.

    Raises: InternalError (code torn_stamp) where the block is not one write's.
    """
    block = probe.read(offset_bytes, STAMP_BYTES)
    number = int.from_bytes(block[:8], "little")
    if block != stamp(number):
        raise InternalError(
            "torn_stamp", f"a block at {offset_bytes} is not whole; hint: report this"
        )
    return number


class Stamper:
    """Writes 1, 2, 3, ... to volumes in turn, in a thread of its own."""

    def __init__(self, socket_path: Path, names: Sequence[str], offset_bytes: int) -> None:
        self.names = list(names)
        self.offset_bytes = offset_bytes
        self.written = 0
        self.flushed = 0
        self.stall_seconds_max = 0.0
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._probes = [Probe(socket_path, name) for name in names]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                number = self.written + 1
                probe = self._probes[(number - 1) % len(self._probes)]
                begun = time.perf_counter()
                probe.write(self.offset_bytes, stamp(number))
                self.stall_seconds_max = max(self.stall_seconds_max, time.perf_counter() - begun)
                self.written = number
                if number % FLUSH_EVERY == 0:
                    probe.flush()
                    self.flushed = number
        except BaseException as error:  # noqa: BLE001 - told to whoever waits for the thread.
            self._failure = error

    def wait_for(self, count: int) -> None:
        """Wait until `count` more writes were answered."""
        target = self.written + count
        while self.written < target and self._thread.is_alive():
            time.sleep(0.001)

    def stop(self, expect_failure: bool = False) -> None:
        """End the thread; its failure is raised here, unless it was to be expected."""
        self._stop.set()
        self._thread.join()
        for probe in self._probes:
            probe.close()
        if self._failure is not None and not expect_failure:
            raise self._failure

    def check_instant(self, found: Sequence[int]) -> int:
        """Hold stamps read from every volume against the sequence. Result: the instant's last one.

        Raises: InternalError (code not_an_instant).
        Example: stamper.check_instant([4, 5, 3])
        """
        last, volumes = max(found), len(self.names)
        for index, number in enumerate(found):
            # The newest number at or below `last` that went to this volume.
            expected = last - (last - 1 - index) % volumes if last > index else 0
            if number != max(expected, 0):
                text = f"'{self.names[index]}' holds {number} where {expected} belongs"
                raise InternalError("not_an_instant", f"{text}; hint: report this")
        return last


@contextmanager
def qemu_io_writers(socket_path: Path, names: Sequence[str], offset_bytes: int) -> Iterator[None]:
    """Let one `qemu-io` for each volume write different patterns while the block is not left.

    Raises: UnavailableError (code qemu_io_missing).
    """
    program = shutil.which("qemu-io")
    if program is None:
        raise UnavailableError("qemu_io_missing", "no qemu-io; hint: apt-get install qemu-utils")
    running = []
    try:
        for index, name in enumerate(names):
            command = [program, "-f", "raw", format_nbd_uri(name, socket_path)]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            running.append(process)
            feeder = threading.Thread(
                target=_feed, args=(process, index, offset_bytes), daemon=True
            )
            feeder.start()
        yield
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def _feed(process: subprocess.Popen[bytes], index: int, offset_bytes: int) -> None:
    assert process.stdin is not None
    try:
        for turn in range(QEMU_IO_WRITES):
            pattern, place = 1 + (index + turn) % 255, offset_bytes + turn % 64 * 65536
            process.stdin.write(f"write -P {pattern} {place} 65536\n".encode())
            if turn % 16 == 15:
                process.stdin.write(b"flush\n")
            process.stdin.flush()
    except (BrokenPipeError, ValueError):
        pass  # It was ended while we wrote.
