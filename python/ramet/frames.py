"""Pieces of a stream with how far it is, and how they travel over HTTP.

Pure. Imports errors only, light for the client. A frame is length u32, done u64, total u64 and that
many bytes; one of no length is the last, and JSON follows it: an error, or `{}`. Invariant: a
stream without its last frame was cut.
"""

import json
import os
import struct
import time
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from ramet.errors import RametError, UnavailableError, from_json

_FRAME = struct.Struct("<IQQ")
PIECE_BYTES_MAX = 1 << 30  # More is no piece that Ramet made.
WRITE_BYTES_MAX = 1 << 20
WRITES_PER_SECOND = 10  # With a rate, so much is written at once: a tenth of a second.


class Piece(NamedTuple):
    """Bytes of a stream, and how far it is with them."""

    content: bytes
    done_bytes: int
    """Bytes of the snapshots' data that are sent."""
    total_bytes: int


class PacedWriter:
    """Writes all of some bytes to a descriptor, so many a second at most.

    Example: PacedWriter(1, rate=10_000_000)
    """

    def __init__(self, out: int, rate: int | None) -> None:
        self.written_bytes = 0
        self._out = out
        self._rate = rate
        self._most = WRITE_BYTES_MAX if rate is None else max(1, rate // WRITES_PER_SECOND)
        self._started = time.monotonic()

    def write(self, content: bytes) -> None:
        """Write all of `content`.

        Raises: OSError, as `os.write`.
        """
        view = memoryview(content)
        while view:
            length = os.write(self._out, view[: self._most])
            view = view[length:]
            self.written_bytes += length
            if self._rate is not None:
                due = self._started + self.written_bytes / self._rate
                time.sleep(max(0.0, due - time.monotonic()))


def encode_frames(pieces: Iterator[Piece]) -> Generator[bytes, None, None]:
    """Give the frames of pieces; an error on the way is the last of them.

    Example: list(encode_frames(iter([])))
    """
    outcome: dict[str, str] = {}
    try:
        for content, done_bytes, total_bytes in pieces:
            yield _FRAME.pack(len(content), done_bytes, total_bytes) + content
    except RametError as error:
        outcome = error.to_json()
    yield _FRAME.pack(0, 0, 0) + json.dumps(outcome).encode()


def decode_frames(read: Callable[[int], bytes]) -> Iterator[Piece]:
    """Give the pieces of frames. `read` gives that many bytes, less only at the end.

    Raises: what the other side raised; UnavailableError (code service_cut) without a last frame.
    Example: list(decode_frames(io.BytesIO(frames).read))
    """
    while True:
        head = read(_FRAME.size)
        if len(head) < _FRAME.size:
            raise _cut()
        length, done_bytes, total_bytes = _FRAME.unpack(head)
        if length == 0:
            break
        content = read(length) if length <= PIECE_BYTES_MAX else b""
        if len(content) < length:
            raise _cut()
        yield Piece(content, done_bytes, total_bytes)
    try:
        outcome = json.loads(read(PIECE_BYTES_MAX))
    except ValueError:
        raise _cut() from None
    if outcome:
        raise from_json(outcome)


def _cut() -> UnavailableError:
    return UnavailableError(
        "service_cut", "the service stopped in the middle of a stream; hint: see what it printed"
    )
