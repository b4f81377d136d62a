"""An NBD client for tests: blocking, one request at a time, nothing cached and nothing retried.

Written from the protocol alone and imports nothing of the product, because it judges it.
Invariant: `NbdError` is the server's answer and the connection goes on; `ConnectionError` is the
end of the connection.
Source: NBD protocol, fixed newstyle negotiation, simple replies; with `contexts` also structured
replies or extended headers, and metadata contexts.
"""

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import Self

ANSWER_SECONDS_MAX = 50.0

READ_ONLY, FLUSH, FUA, TRIM, ZEROES, MULTI = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 6, 1 << 8
FLAG_FUA, FLAG_ONE, FLAG_FAST_ZERO = 1, 8, 16

Extents = list[tuple[int, int]]
"""Lengths in bytes, with the flags of a metadata context."""

_OPTION_MAGIC, _OPTION_REPLY_MAGIC = b"IHAVEOPT", 0x0003_E889_0455_65A9
_OPTION_GO, _REPLY_ACK, _REPLY_INFO, _REPLY_ERROR = 7, 1, 3, 1 << 31
_REQUEST_MAGIC, _REPLY_MAGIC = 0x2560_9513, 0x6744_6698
_COMMAND_READ, _COMMAND_WRITE, _COMMAND_DISCONNECT = 0, 1, 2
_COMMAND_FLUSH, _COMMAND_TRIM, _COMMAND_CACHE, _COMMAND_ZEROES = 3, 4, 5, 6
_COMMAND_STATUS = 7
_OPTION_STRUCTURED, _OPTION_SET_CONTEXT, _OPTION_EXTENDED = 8, 10, 11
_REPLY_CONTEXT = 4
_EXTENDED_REQUEST_MAGIC, _PAYLOAD = 0x21E4_1C71, 32
_CHUNK_MAGIC, _EXTENDED_CHUNK_MAGIC = 0x668E_33EF, 0x6E8A_278C
_DATA, _HOLE, _STATUS, _STATUS_WIDE, _ERROR = 1, 2, 5, 6, 1 << 15


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
    """A connection to one export, of `size` bytes, with transmission `flags`.

    `contexts`: names of metadata contexts by id; `extended`: with extended headers.
    """

    def __init__(
        self,
        stream: socket.socket,
        size: int,
        flags: int,
        contexts: dict[int, str] | None = None,
        extended: bool = False,
    ) -> None:
        self.stream, self.size, self.flags = stream, size, flags
        self.contexts, self.extended = contexts, extended
        self.holes_read_count = 0
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

    def trim(self, offset: int, length: int, flags: int = 0) -> None:
        self._ask(_COMMAND_TRIM, offset, length, flags=flags)

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        self._ask(_COMMAND_ZEROES, offset, length, flags=flags)

    def cache(self, offset: int, length: int) -> None:
        self._ask(_COMMAND_CACHE, offset, length)

    def status(self, offset: int, length: int, flags: int = 0) -> dict[str, Extents]:
        """Ask once. Result: for each context what the server told, which may be a part."""
        self.stream.sendall(self._request(_COMMAND_STATUS, offset, length, flags))
        told: dict[str, Extents] = {}
        for kind, payload in self._chunks(offset, length):
            (context,) = struct.unpack(">I", payload[:4])
            wide = kind == _STATUS_WIDE
            assert kind in (_STATUS, _STATUS_WIDE)
            assert wide == self.extended
            assert self.contexts is not None
            told[self.contexts[context]] = list(
                struct.iter_unpack(">QQ", payload[8:])
                if wide
                else struct.iter_unpack(">II", payload[4:])
            )
        return told

    def whole_status(self, context: str) -> Extents:
        """Ask until the whole export is told. Result: extents, joined where flags are equal."""
        found: Extents = []
        at = 0
        longest = 2**60 if self.extended else 2**32 - 512
        while at < self.size:
            for length, flags in self.status(at, min(longest, self.size - at))[context]:
                at += length
                if found and found[-1][1] == flags:
                    found[-1] = (found[-1][0] + length, flags)
                else:
                    found.append((length, flags))
        return found

    def disconnect(self) -> None:
        """Say goodbye if anybody is there, and close: the volume is attached no longer then.

        The server lets go of it before it closes its end; a test that deleted the volume without
        waiting for that was refused now and then.
        """
        with contextlib.suppress(OSError):
            self.stream.sendall(self._request(_COMMAND_DISCONNECT, 0, 0, 0))
            while self.stream.recv(1 << 16):
                pass
        self.stream.close()

    def _request(self, command: int, offset: int, length: int, flags: int) -> bytes:
        self._cookie += 1
        start = (flags, command, self._cookie, offset, length)
        if self.extended:
            return struct.pack(">IHHQQQ", _EXTENDED_REQUEST_MAGIC, *start)
        return struct.pack(">IHHQQI", _REQUEST_MAGIC, *start)

    def _ask(
        self, command: int, offset: int, length: int, data: bytes = b"", flags: int = 0
    ) -> bytes:
        if self.extended and command == _COMMAND_WRITE:
            flags |= _PAYLOAD
        self.stream.sendall(self._request(command, offset, length, flags) + data)
        if self.contexts is not None and (self.extended or command == _COMMAND_READ):
            return self._assemble(offset, length)
        magic, errno, cookie = struct.unpack(">IIQ", receive(self.stream, 16))
        if magic != _REPLY_MAGIC or cookie != self._cookie:
            raise ConnectionError(f"reply {magic:#x} to {cookie}, asked {self._cookie}")
        if errno:
            raise NbdError(errno, f"command {command}, {length} bytes at {offset}")
        return receive(self.stream, length) if command == _COMMAND_READ else b""

    def _assemble(self, offset: int, length: int) -> bytes:
        """Put the chunks of a read together, in the order in which they lie."""
        content = b""
        for kind, payload in self._chunks(offset, length):
            (at,) = struct.unpack(">Q", payload[:8])
            assert at == offset + len(content)
            if kind == _HOLE:
                self.holes_read_count += 1
                content += bytes(struct.unpack(">I", payload[8:])[0])
            else:
                assert kind == _DATA
                content += payload[8:]
        return content

    def _chunks(self, offset: int, length: int) -> list[tuple[int, bytes]]:
        """Receive all chunks of one reply; raise what they tell as an error."""
        chunks: list[tuple[int, bytes]] = []
        error: NbdError | None = None
        done = False
        while not done:
            if self.extended:
                magic, flags, kind, cookie, at, size = struct.unpack(
                    ">IHHQQQ", receive(self.stream, 32)
                )
                expected = _EXTENDED_CHUNK_MAGIC, at
            else:
                magic, flags, kind, cookie, size = struct.unpack(">IHHQI", receive(self.stream, 20))
                expected = _CHUNK_MAGIC, offset
            if (magic, offset) != expected or cookie != self._cookie:
                raise ConnectionError(f"chunk {magic:#x} to {cookie}, asked {self._cookie}")
            payload = receive(self.stream, size)
            done = bool(flags & 1)
            if kind & _ERROR:
                errno, text_length = struct.unpack(">IH", payload[:6])
                text = payload[6 : 6 + text_length].decode()
                error = NbdError(errno, f"{text} ({length} bytes at {offset})")
            elif kind:
                chunks.append((kind, payload))
        if error is not None:
            raise error
        return chunks


def connect(
    socket_path: str | Path,
    export: str,
    contexts: list[str] | None = None,
    extended: bool = False,
) -> NbdClient:
    """Open `export`, or raise NbdRefusedError.

    `contexts`: metadata contexts, all of which must be there; with any list, an empty one too,
    replies are structured, or `extended`.
    """
    stream = socket.socket(socket.AF_UNIX)
    try:
        stream.settimeout(ANSWER_SECONDS_MAX)
        stream.connect(str(socket_path))
        if contexts is None:
            return NbdClient(stream, *negotiate(stream, export))
        greet(stream)
        ask(stream, _OPTION_EXTENDED if extended else _OPTION_STRUCTURED, b"")
        queries = [context.encode() for context in contexts]
        payload = pack_string(export.encode()) + struct.pack(">I", len(queries))
        replies = ask(stream, _OPTION_SET_CONTEXT, payload + b"".join(map(pack_string, queries)))
        chosen = {
            struct.unpack(">I", content[:4])[0]: content[4:].decode()
            for kind, content in replies
            if kind == _REPLY_CONTEXT
        }
        assert sorted(chosen.values()) == sorted(contexts), f"the server chose {chosen}"
        return NbdClient(stream, *go(stream, export), chosen, extended)
    except BaseException:
        stream.close()
        raise


def negotiate(stream: socket.socket, export: str) -> tuple[int, int]:
    """Go to `export`. Result: its size in bytes and its transmission flags."""
    greet(stream)
    return go(stream, export)


def greet(stream: socket.socket) -> None:
    """Take the greeting and answer it."""
    greeting = receive(stream, 18)
    if greeting[:16] != b"NBDMAGIC" + _OPTION_MAGIC:
        raise ConnectionError(f"greeting {greeting!r}")
    stream.sendall(struct.pack(">I", 3))


def go(stream: socket.socket, export: str) -> tuple[int, int]:
    """Start transmission. Result: the export's size in bytes and its transmission flags."""
    replies = ask(stream, _OPTION_GO, pack_string(export.encode()) + struct.pack(">H", 0))
    for kind, content in replies:
        if kind == _REPLY_INFO and content[:2] == b"\0\0":
            size, flags = struct.unpack(">QH", content[2:12])
            return size, flags
    raise ConnectionError(f"'{export}' opened without its size")


def ask(stream: socket.socket, option: int, payload: bytes) -> list[tuple[int, bytes]]:
    """Send an option. Result: its replies up to the acknowledgement; raises NbdRefusedError."""
    stream.sendall(_OPTION_MAGIC + struct.pack(">II", option, len(payload)) + payload)
    replies: list[tuple[int, bytes]] = []
    while True:
        magic, _, kind, length = struct.unpack(">QIII", receive(stream, 20))
        content = receive(stream, length)
        if magic != _OPTION_REPLY_MAGIC:
            raise ConnectionError(f"option reply {magic:#x}")
        if kind & _REPLY_ERROR:
            raise NbdRefusedError(kind, f"option {option}: {content.decode()}")
        if kind == _REPLY_ACK:
            return replies
        replies.append((kind, content))


def pack_string(content: bytes) -> bytes:
    """Put the length in front."""
    return struct.pack(">I", len(content)) + content


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
