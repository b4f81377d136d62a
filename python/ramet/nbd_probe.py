"""A small NBD client that stamps and verifies: for the demo, the tests and the benchmarks.

One request at a time on one unix socket, simple replies, nothing cached: what it was told is what
the server said. For work on real disks there are qemu, libnbd and the kernel. Imports nothing of
Ramet, so that it can judge it. Invariant: after any error but an answered one the connection is
closed.
Source: NBD protocol, fixed newstyle negotiation and transmission phase.
"""

import contextlib
import errno
import os
import socket
import struct
from types import TracebackType
from typing import Self

ANSWER_SECONDS_MAX = 60.0
OPTION_BYTES_MAX = 65_536  # Of what a server may say about an export; more is no NBD server.

_OPTION_MAGIC = b"IHAVEOPT"
_OPTION_REPLY_MAGIC = 0x0003_E889_0455_65A9
_REQUEST_MAGIC = 0x2560_9513
_SIMPLE_REPLY_MAGIC = 0x6744_6698
_CLIENT_FLAGS = 0b11  # Fixed newstyle, no zeros.
_OPTION_GO = 7
_REPLY_ACK, _REPLY_INFO, _REPLY_ERROR_BIT = 1, 3, 1 << 31
_REPLY_UNKNOWN = _REPLY_ERROR_BIT | 6
_INFO_EXPORT = 0
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _WRITE_ZEROES = 0, 1, 2, 3, 4, 6
_FLAG_FUA = 1

FLAG_READ_ONLY = 1 << 1
FLAG_FLUSH = 1 << 2
FLAG_FUA = 1 << 3
FLAG_TRIM = 1 << 5
FLAG_WRITE_ZEROES = 1 << 6
FLAG_MULTI_CONNECTION = 1 << 8


class Probe:
    """A connection to one export.

    `size_bytes` and `flags` (`FLAG_...`) are what the server said when it was made. A request that
    the server refuses raises OSError with the errno it answered with (EINVAL, ENOSPC, EPERM, EIO),
    and the connection goes on. A connection that breaks raises ConnectionError. Not for several
    threads at once: give each its own.
    """

    def __init__(self, stream: socket.socket, size_bytes: int, flags: int, export: str) -> None:
        self._stream = stream
        self._cookie = 0
        self.size_bytes = size_bytes
        self.flags = flags
        self.export = export

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.disconnect()

    @property
    def read_only(self) -> bool:
        """Whether the server said that every write fails."""
        return bool(self.flags & FLAG_READ_ONLY)

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Read exactly `length_bytes` bytes."""
        return self._ask(_READ, offset_bytes, length_bytes)

    def write(self, offset_bytes: int, data: bytes, *, fua: bool = False) -> None:
        """Write `data`; with `fua` it is durable on return."""
        self._ask(_WRITE, offset_bytes, len(data), data, _FLAG_FUA if fua else 0)

    def flush(self) -> None:
        """Make durable every write of this export that was answered before, on any connection."""
        self._ask(_FLUSH, 0, 0)

    def trim(self, offset_bytes: int, length_bytes: int) -> None:
        """Give a range back."""
        self._ask(_TRIM, offset_bytes, length_bytes)

    def write_zeroes(self, offset_bytes: int, length_bytes: int) -> None:
        """Make a range read as zeros."""
        self._ask(_WRITE_ZEROES, offset_bytes, length_bytes)

    def disconnect(self) -> None:
        """Say goodbye and close. Idempotent; makes nothing durable."""
        with contextlib.suppress(OSError):  # Whoever is gone needs no goodbye.
            self._stream.sendall(struct.pack(">IHHQQI", _REQUEST_MAGIC, 0, _DISCONNECT, 0, 0, 0))
        self._stream.close()

    def _ask(
        self, command: int, offset_bytes: int, length_bytes: int, data: bytes = b"", flags: int = 0
    ) -> bytes:
        self._cookie += 1
        head = struct.pack(
            ">IHHQQI", _REQUEST_MAGIC, flags, command, self._cookie, offset_bytes, length_bytes
        )
        try:
            self._stream.sendall(head + data)
            magic, code, cookie = struct.unpack(">IIQ", _receive(self._stream, 16))
            if magic != _SIMPLE_REPLY_MAGIC or cookie != self._cookie:
                raise ConnectionError(f"'{self.export}': answer {magic:#x} to request {cookie}")
            if code == 0:
                return _receive(self._stream, length_bytes if command == _READ else 0)
        except OSError as error:
            # Half an answer may be on its way: nothing that follows could be told apart.
            self._stream.close()
            if isinstance(error, ConnectionError):
                raise
            raise ConnectionError(f"'{self.export}': {error}") from error
        text = f"{os.strerror(code)}: command {command}, {length_bytes} bytes at {offset_bytes}"
        raise OSError(code, f"'{self.export}': {text}")


def connect(socket_path: str | os.PathLike[str], export: str) -> Probe:
    """Open `export` of the server at `socket_path`.

    Raises: FileNotFoundError where the server has no such export (or there is no socket);
    PermissionError where it refuses to open it now; ConnectionError for everything else.
    Example: connect("/srv/pool/nbd.sock", "golden").size_bytes
    """
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(ANSWER_SECONDS_MAX)
    try:
        stream.connect(os.fspath(socket_path))
        size_bytes, flags = _negotiate(stream, export)
    except BaseException:
        stream.close()
        raise
    return Probe(stream, size_bytes, flags, export)


def _negotiate(stream: socket.socket, export: str) -> tuple[int, int]:
    """Choose the export. Result: its size in bytes and transmission flags."""
    greeting = _receive(stream, 18)
    if greeting[:16] != b"NBDMAGIC" + _OPTION_MAGIC:
        raise ConnectionError(f"no NBD server of the newstyle: {greeting!r}")
    name = export.encode()
    payload = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
    head = struct.pack(">II", _OPTION_GO, len(payload))
    stream.sendall(struct.pack(">I", _CLIENT_FLAGS) + _OPTION_MAGIC + head + payload)
    shape: tuple[int, int] | None = None
    while True:
        magic, _, kind, length_bytes = struct.unpack(">QIII", _receive(stream, 20))
        if magic != _OPTION_REPLY_MAGIC or length_bytes > OPTION_BYTES_MAX:
            raise ConnectionError(f"answer {magic:#x} of {length_bytes} bytes to an option")
        content = _receive(stream, length_bytes)
        if kind & _REPLY_ERROR_BIT:
            number = errno.ENOENT if kind == _REPLY_UNKNOWN else errno.EACCES
            raise OSError(number, f"'{export}' is refused ({kind:#x}): {content.decode()}")
        if kind == _REPLY_INFO and content[:2] == struct.pack(">H", _INFO_EXPORT):
            shape = struct.unpack(">QH", content[2:12])
        if kind == _REPLY_ACK:
            if shape is None:
                raise ConnectionError(f"'{export}' was opened without a word about its size")
            return shape


def _receive(stream: socket.socket, length_bytes: int) -> bytes:
    content = bytearray(length_bytes)
    view, at = memoryview(content), 0
    while at < length_bytes:
        count = stream.recv_into(view[at:])
        if count == 0:
            raise ConnectionError("the server hung up")
        at += count
    return bytes(content)
