"""An NBD client for tests: blocking, one request at a time, nothing cached and nothing retried.

Written from the protocol alone and imports nothing of the product, because it judges it.
Invariant: `NbdError` is the server's answer and the connection goes on; `ConnectionError` is the
end of the connection.
Source: NBD protocol, fixed newstyle negotiation, simple replies.
"""

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import Self

ANSWER_SECONDS_MAX = 50.0

READ_ONLY, FLUSH, FUA, TRIM, ZEROES, MULTI = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 6, 1 << 8

_OPTION_MAGIC, _OPTION_REPLY_MAGIC = b"IHAVEOPT", 0x0003_E889_0455_65A9
_OPTION_GO, _REPLY_ACK, _REPLY_INFO, _REPLY_ERROR = 7, 1, 3, 1 << 31
_REQUEST_MAGIC, _REPLY_MAGIC = 0x2560_9513, 0x6744_6698
_COMMAND_READ, _COMMAND_WRITE, _COMMAND_DISCONNECT = 0, 1, 2
_COMMAND_FLUSH, _COMMAND_TRIM, _COMMAND_ZEROES = 3, 4, 6


class NbdError(Exception):
    """The server refused a request, with `errno` as the protocol has it."""

    def __init__(self, errno: int, text: str) -> None:
        super().__init__(f"{os.strerror(errno)}: {text}")
        self.errno = errno


class NbdRefusedError(Exception):
    """The server refused the export, with `reply` as the protocol has it."""

    def __init__(self, reply: int, text: str) -> None:
        super().__init__(f"{reply:#x}: {text}")
        self.reply = reply


class NbdClient:
    """A connection to one export, of `size` bytes, with transmission `flags`."""

    def __init__(self, stream: socket.socket, size: int, flags: int) -> None:
        self.stream, self.size, self.flags = stream, size, flags
        self._cookie = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    def read(self, offset: int, length: int) -> bytes:
        return self._ask(_COMMAND_READ, offset, length)

    def write(self, offset: int, data: bytes, fua: bool = False) -> None:
        self._ask(_COMMAND_WRITE, offset, len(data), data, flags=int(fua))

    def flush(self) -> None:
        self._ask(_COMMAND_FLUSH, 0, 0)

    def trim(self, offset: int, length: int) -> None:
        self._ask(_COMMAND_TRIM, offset, length)

    def write_zeroes(self, offset: int, length: int) -> None:
        self._ask(_COMMAND_ZEROES, offset, length)

    def disconnect(self) -> None:
        """Say goodbye if anybody is there, and close."""
        with contextlib.suppress(OSError):
            self.stream.sendall(self._request(_COMMAND_DISCONNECT, 0, 0, 0))
        self.stream.close()

    def _request(self, command: int, offset: int, length: int, flags: int) -> bytes:
        self._cookie += 1
        return struct.pack(">IHHQQI", _REQUEST_MAGIC, flags, command, self._cookie, offset, length)

    def _ask(
        self, command: int, offset: int, length: int, data: bytes = b"", flags: int = 0
    ) -> bytes:
        self.stream.sendall(self._request(command, offset, length, flags) + data)
        magic, errno, cookie = struct.unpack(">IIQ", receive(self.stream, 16))
        if magic != _REPLY_MAGIC or cookie != self._cookie:
            raise ConnectionError(f"reply {magic:#x} to {cookie}, asked {self._cookie}")
        if errno:
            raise NbdError(errno, f"command {command}, {length} bytes at {offset}")
        return receive(self.stream, length) if command == _COMMAND_READ else b""


def connect(socket_path: str | Path, export: str) -> NbdClient:
    """Open `export`, or raise NbdRefusedError."""
    stream = socket.socket(socket.AF_UNIX)
    try:
        stream.settimeout(ANSWER_SECONDS_MAX)
        stream.connect(str(socket_path))
        return NbdClient(stream, *negotiate(stream, export))
    except BaseException:
        stream.close()
        raise


def negotiate(stream: socket.socket, export: str) -> tuple[int, int]:
    """Go to `export`. Result: its size in bytes and its transmission flags."""
    greeting = receive(stream, 18)
    if greeting[:16] != b"NBDMAGIC" + _OPTION_MAGIC:
        raise ConnectionError(f"greeting {greeting!r}")
    name = export.encode()
    payload = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
    head = struct.pack(">I", 3) + _OPTION_MAGIC + struct.pack(">II", _OPTION_GO, len(payload))
    stream.sendall(head + payload)
    found: tuple[int, int] | None = None
    while True:
        magic, _, kind, length = struct.unpack(">QIII", receive(stream, 20))
        content = receive(stream, length)
        if magic != _OPTION_REPLY_MAGIC:
            raise ConnectionError(f"option reply {magic:#x}")
        if kind & _REPLY_ERROR:
            raise NbdRefusedError(kind, f"'{export}': {content.decode()}")
        if kind == _REPLY_INFO and content[:2] == b"\0\0":
            found = struct.unpack(">QH", content[2:12])
        if kind == _REPLY_ACK:
            if found is None:
                raise ConnectionError(f"'{export}' opened without its size")
            return found


def receive(stream: socket.socket, length: int) -> bytes:
    """Read exactly `length` bytes."""
    content = bytearray(length)
    at = 0
    while at < length:
        count = stream.recv_into(memoryview(content)[at:])
        if count == 0:
            raise ConnectionError(f"the server hung up after {at} of {length} bytes")
        at += count
    return bytes(content)
