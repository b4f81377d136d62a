"""What tests of streams share: sending into bytes, receiving from them, and taking them apart."""

import io
from collections.abc import Callable, Sequence

import pytest

import ramet
from ramet.errors import RametError
from ramet.replication import Received, incomplete, position, receive, send

HEAD_BYTES, RECORD_HEAD_BYTES, SEAL_BYTES = 16, 8, 16


def stream_of(
    pool: ramet.Pool,
    snapshots: Sequence[str],
    bases: Sequence[str] = (),
    *,
    zstd: bool = False,
    resume: str | None = None,
) -> bytes:
    pieces = send(pool, snapshots, bases, zstd=zstd, resume=resume)
    return b"".join(piece.content for piece in pieces)


def take_in(pool: ramet.Pool, stream: bytes, name: str | None = None) -> list[Received]:
    return receive(pool, io.BytesIO(stream).read, name=name)


def token_of(pool: ramet.Pool) -> str:
    return position(incomplete(pool))


def records_of(stream: bytes) -> list[bytes]:
    """Cut a stream into its head and its records."""
    parts, at = [stream[:HEAD_BYTES]], HEAD_BYTES
    while at < len(stream):
        length = int.from_bytes(stream[at + 4 : at + 8], "little")
        end = at + RECORD_HEAD_BYTES + length + SEAL_BYTES
        parts.append(stream[at:end])
        at = end
    assert at == len(stream)
    return parts


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(RametError) as caught:
        call()
    assert "hint:" in caught.value.text, "an error says what to do"
    return caught.value.code


def listing(pool: ramet.Pool) -> list[tuple[object, ...]]:
    """All that users see of a pool's objects, but what was computed of them."""
    return [tuple(it._replace(root=None, tags=dict(it.tags))) for it in pool.objects()]
