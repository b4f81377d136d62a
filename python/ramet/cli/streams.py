"""`ramet send|receive`: a stream to stdout, or from stdin.

Imports client; replication where the pool is opened here. Invariant: stdout of `send` and stdin of
`receive` carry the stream and nothing else; how far it is goes to stderr.
"""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ramet.cli.output import print_json, print_table
from ramet.cli.progress import Show, show_bytes
from ramet.cli.session import verbs_of
from ramet.client import Client
from ramet.errors import InvalidError, UnavailableError
from ramet.frames import PacedWriter
from ramet.units import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Generator

    from ramet.frames import Piece
    from ramet.pool import Pool
    from ramet.verbs import Verbs

READ_BYTES = 1 << 20
NO_BASE = "-"  # Among bases: this snapshot goes whole.
# Where the header's JSON and its length are: docs/internals/stream.md, "Bytes".
HEADER_LENGTH_AT, HEADER_AT = 20, 24


def send(arguments: Namespace) -> None:
    """Write snapshots as a stream."""
    rate = None if arguments.rate is None else parse_size(arguments.rate)
    if rate == 0:
        raise InvalidError("rate_range", "a rate of 0 sends nothing; hint: leave --rate out")
    if sys.stdout.isatty():
        raise InvalidError(
            "stream_to_terminal",
            "the stream would go to the terminal; hint: send it to a file or a pipe",
        )
    out = sys.stdout.fileno()
    writer = PacedWriter(out, rate)
    with (
        verbs_of(arguments) as verbs,
        show_bytes("sending") as show,
        closing(_pieces(verbs, arguments)) as pieces,
    ):
        for content, done_bytes, total_bytes in pieces:
            try:
                writer.write(content)
            except BrokenPipeError as error:
                raise UnavailableError(
                    "reader_gone",
                    f"whoever reads the stream is gone, after {writer.written_bytes} bytes;"
                    " hint: see what it says; `ramet receive --position` tells how to go on",
                ) from error
            show(done_bytes, total_bytes)


def _pieces(verbs: "Verbs", arguments: Namespace) -> "Generator[Piece, None, None]":
    it = arguments
    bases = [None if name == NO_BASE else name for name in it.bases]
    if isinstance(verbs, Client):
        return verbs.send(it.snapshots, bases, it.zstd, it.resume)
    from ramet.replication import send as send_here

    return send_here(_pool_of(verbs), it.snapshots, bases, zstd=it.zstd, resume=it.resume)


def _pool_of(verbs: "Verbs") -> "Pool":
    from ramet.verbs import PoolVerbs

    assert isinstance(verbs, PoolVerbs), "what is no client holds the pool"
    return verbs.pool


def receive(arguments: Namespace) -> None:
    """Take in a stream, or say what of one is here."""
    with verbs_of(arguments) as verbs:
        if arguments.list:
            _list(_parts(verbs), arguments.json)
        elif arguments.position is not None:
            _print_position(_parts(verbs), arguments)
        elif arguments.abandon is not None:
            _list(_abandon(verbs, arguments.abandon), arguments.json)
        else:
            _receive(verbs, arguments)


def _receive(verbs: "Verbs", arguments: Namespace) -> None:
    if sys.stdin.isatty():
        raise InvalidError(
            "stream_from_terminal", "stdin is the terminal; hint: receive from a file or a pipe"
        )
    with show_bytes("receiving") as show:
        if isinstance(verbs, Client):
            received = verbs.receive(_chunks(show), arguments.name)
        else:
            from ramet.replication import receive as receive_here

            source = sys.stdin.fileno()
            found = receive_here(
                _pool_of(verbs),
                lambda length: os.read(source, min(length, READ_BYTES)),
                name=arguments.name,
                progress=show,
            )
            received = [it.to_json() for it in found]
    if arguments.json:
        print_json(received)
        return
    for it in received:
        if not it["is_new"]:
            print(f"'{it['name']}' was here already", file=sys.stderr)
        print(it["name"])


def _chunks(show: Show) -> Iterator[bytes]:
    source, done_bytes, total_bytes, begun = sys.stdin.fileno(), 0, None, b""
    while chunk := os.read(source, READ_BYTES):
        yield chunk
        done_bytes += len(chunk)
        if total_bytes is None and len(begun) < READ_BYTES:
            begun += chunk
            total_bytes = expected_bytes(begun)
        show(done_bytes, total_bytes)


def expected_bytes(begun: bytes) -> int | None:
    """Guess a stream's length from its beginning, for people: what its header says of its data.

    None: that is not known (yet). Nothing is checked; whoever receives it does.
    Example: expected_bytes(b"")
    """
    length = int.from_bytes(begun[HEADER_LENGTH_AT:HEADER_AT], "little")
    if not begun or len(begun) < HEADER_AT + length:
        return None
    try:
        items = json.loads(begun[HEADER_AT : HEADER_AT + length])["snapshots"]
        return sum(int(item["data_bytes"]) for item in items)
    except (ValueError, KeyError, TypeError):
        return None


def _parts(verbs: "Verbs") -> list[dict[str, Any]]:
    if isinstance(verbs, Client):
        return verbs.receiving()
    from ramet.replication import incomplete

    return [it.to_json() for it in incomplete(_pool_of(verbs))]


def _abandon(verbs: "Verbs", what: str) -> list[dict[str, Any]]:
    if isinstance(verbs, Client):
        return verbs.abandon(what)
    from ramet.replication import abandon

    return [it.to_json() for it in abandon(_pool_of(verbs), what)]


def _print_position(parts: list[dict[str, Any]], arguments: Namespace) -> None:
    from ramet.replication import Incomplete, position

    token = position([Incomplete(**it) for it in parts], arguments.position or None)
    if arguments.json:
        print_json({"token": token})
    elif token:
        print(token)


def _list(parts: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(parts)
    elif parts:
        rows = [
            [
                it["name"] or it["uuid"],
                format_size(it["size_bytes"]),
                "all" if it["root"] else format_size(it["block"] * 4096),
                it["transfer"],
            ]
            for it in parts
        ]
        print_table(["NAME", "SIZE>", "ARRIVED>", "TRANSFER"], rows)
