"""A small, blocking NBD client: the demonstration stamps volumes and times each write with it.

Pure Python, the standard library only, no pool. Invariant: an answer that is not what the protocol
says is an error, never ignored. Source: the NBD protocol document, fixed newstyle, simple replies.
"""

import socket
import struct
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ramet.errors import NotFoundError, UnavailableError

MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
REPLY_MAGIC = 0x67446698
OPTION_GO = 7
REPLY_ACK = 1
REPLY_INFO = 3
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3


class Probe:
    """One connection to one export; `stream` is its socket."""

    def __init__(self, socket_path: Path, name: str) -> None:
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.connect(str(socket_path))
        self._handle = 0
        self.size_bytes = self._negotiate(name)

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
        """Say goodbye and close the connection."""
        with suppress(OSError):  # The server may have gone before us.
            self.stream.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, DISCONNECT, 0, 0, 0))
        self.stream.close()

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Read; the server has verified what it answers."""
        self._request(READ, offset_bytes, length_bytes)
        return self._receive(length_bytes)

    def write(self, offset_bytes: int, data: bytes) -> None:
        """Write; durable after a `flush`."""
        self._request(WRITE, offset_bytes, len(data), data)

    def flush(self) -> None:
        """Make everything that was answered durable."""
        self._request(FLUSH, 0, 0)

    def _negotiate(self, name: str) -> int:
        magic, option_magic, _flags = struct.unpack(">QQH", self._receive(18))
        if (magic, option_magic) != (MAGIC, OPTION_MAGIC):
            raise UnavailableError("nbd_protocol", "no NBD server answers; hint: ramet serve")
        encoded = name.encode()
        data = struct.pack(">I", len(encoded)) + encoded + struct.pack(">H", 0)
        head = struct.pack(">IQII", 3, OPTION_MAGIC, OPTION_GO, len(data))
        self.stream.sendall(head + data)
        size_bytes = 0
        while True:
            _magic, _option, kind, length = struct.unpack(">QIII", self._receive(20))
            body = self._receive(length)
            if kind == REPLY_ACK:
                return size_bytes
            if kind & 0x80000000:
                said = body.decode(errors="replace")
                raise NotFoundError(
                    "nbd_export", f"export '{name}': {said}; hint: ramet volume list"
                )
            if kind == REPLY_INFO and body[:2] == b"\0\0":
                size_bytes = struct.unpack(">Q", body[2:10])[0]

    def _request(self, kind: int, offset_bytes: int, length_bytes: int, data: bytes = b"") -> None:
        self._handle += 1
        head = struct.pack(
            ">IHHQQI", REQUEST_MAGIC, 0, kind, self._handle, offset_bytes, length_bytes
        )
        self.stream.sendall(head + data)
        magic, error, handle = struct.unpack(">IIQ", self._receive(16))
        if magic != REPLY_MAGIC or handle != self._handle:
            raise UnavailableError("nbd_protocol", "an answer to no request; hint: report this")
        if error:
            text = f"request {kind} at {offset_bytes}: errno {error}; hint: ramet stats"
            raise UnavailableError("nbd_error", text)

    def _receive(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            part = self.stream.recv(length - len(parts))
            if not part:
                raise UnavailableError(
                    "nbd_closed", "the server closed the connection; hint: serve"
                )
            parts += part
        return bytes(parts)
