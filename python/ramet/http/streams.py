"""Snapshots sent and received over HTTP: parse, call, pass bytes on; no logic.

Imports replication. Called by this package. Invariant: a stream is never held as a whole; whoever
hangs up ends what was running for it.
"""

from collections.abc import AsyncIterator
from functools import cache

import msgspec
from anyio import CapacityLimiter, from_thread, to_thread
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from ramet.frames import encode_frames
from ramet.pool import Pool
from ramet.replication import abandon, incomplete, receive, send

RECEIVES_MAX = 64  # At a time; others wait.


class Send(msgspec.Struct, forbid_unknown_fields=True):
    """Send snapshots."""

    snapshots: list[str]
    bases: list[str | None] = []
    zstd: bool = False
    resume: str | None = None


class Abandon(msgspec.Struct, forbid_unknown_fields=True):
    """Give up what arrived."""

    what: str


async def send_frames(pool: Pool, asked: Send) -> AsyncIterator[bytes]:
    """Give the frames of a stream.

    Example: send_frames(pool, Send(["db@1"]))
    """
    pieces = send(pool, asked.snapshots, asked.bases, zstd=asked.zstd, resume=asked.resume)
    frames = encode_frames(pieces)
    try:
        while frame := await run_in_threadpool(next, frames, b""):
            yield frame
    finally:
        # The snapshots are let go at once, not when somebody collects garbage.
        frames.close()
        pieces.close()


async def receive_body(pool: Pool, request: Request) -> list[dict[str, str | bool]]:
    """Take in the stream that is a request's body.

    Example: receive_body(pool, request)
    """
    chunks, rest = request.stream(), b""

    async def next_chunk() -> bytes:
        try:
            async for chunk in chunks:
                if chunk:
                    return chunk
        except ClientDisconnect:
            pass
        return b""

    def read(length: int) -> bytes:
        nonlocal rest
        if not rest:
            rest = from_thread.run(next_chunk)
        part, rest = rest[:length], rest[length:]
        return part

    name = request.query_params.get("name")
    received = await to_thread.run_sync(lambda: receive(pool, read, name=name), limiter=_receives())
    return [it.to_json() for it in received]


@cache
def _receives() -> CapacityLimiter:
    # Threads of their own: one that waits for a slow sender must not keep a command from running.
    return CapacityLimiter(RECEIVES_MAX)


def list_parts(pool: Pool) -> list[dict[str, str | int | None]]:
    """List what arrived in part."""
    return [it.to_json() for it in incomplete(pool)]


def abandon_part(pool: Pool, asked: Abandon) -> list[dict[str, str | int | None]]:
    """Give up what arrived in part."""
    return [it.to_json() for it in abandon(pool, asked.what)]
