"""Sending: snapshots as a stream, or what differs from their bases.

Imports pool, stream. Invariants: the stream holds what the snapshots are, whatever happens to the
pool meanwhile, or it ends with why not; it keeps no state, so the same call resumes it.
"""

from collections.abc import Generator, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

from ramet import __version__
from ramet.errors import InvalidError, RametError
from ramet.frames import Piece
from ramet.pool import Pool
from ramet.pool.transfers import BLOCK_BYTES, HashedReader, root_of
from ramet.records import ObjectRecord
from ramet.replication.stream import (
    DATA_BYTES_MAX,
    RUN_BLOCKS_MAX,
    RUNS_MAX,
    SNAPSHOTS_MAX,
    Base,
    Header,
    Item,
    Run,
    StreamWriter,
    Token,
    transfer_of,
)

DATA_BLOCKS_MAX = DATA_BYTES_MAX // BLOCK_BYTES


class _Pair(NamedTuple):
    """A snapshot to send, and the one that the other side has."""

    record: ObjectRecord
    base: ObjectRecord | None

    @property
    def blocks_count(self) -> int:
        return -(-self.record.size_bytes // BLOCK_BYTES)


def send(
    pool: Pool,
    snapshots: Sequence[str],
    bases: Sequence[str | None] = (),
    *,
    zstd: bool = False,
    resume: str | None = None,
) -> Generator[Piece, None, None]:
    """Give snapshots as the pieces of a stream: whole, or as what differs from `bases`.

    `snapshots`: names or UUIDs; they will appear in one commit. `bases`: none, or one for each: a
    snapshot that the other side has, or None. `zstd`: compress data. `resume`: what `position` gave
    at the other side, for the same snapshots and bases; None or empty: from the start.
    Result: bytes in order, each with how much of the data is sent and how much it is in all. The
    cost follows what differs: so does that of the root hashes, once a first snapshot was sent.
    Raises: InvalidError where one is no snapshot, or the token is of another transfer;
    NotFoundError; CorruptError where a block is damaged. What is raised after the first piece is in
    the stream too.
    Source: docs/internals/stream.md.
    Example: sum(len(piece.content) for piece in send(pool, ["db@1"]))
    """
    pairs = _pair_up(pool, snapshots, bases)
    token = _check_token(resume, pairs) if resume else None
    uuids = [it.uuid for pair in pairs for it in pair if it is not None]
    with pool.transfers.attached(list(dict.fromkeys(uuids))):
        yield from _Sender(pool, pairs, token, zstd).pieces()


def _pair_up(pool: Pool, snapshots: Sequence[str], bases: Sequence[str | None]) -> list[_Pair]:
    if not 1 <= len(snapshots) <= SNAPSHOTS_MAX:
        raise InvalidError(
            "send_count", f"{len(snapshots)} snapshots to send; hint: 1 to {SNAPSHOTS_MAX}"
        )
    if bases and len(bases) != len(snapshots):
        raise InvalidError(
            "bases_count",
            f"{len(bases)} bases for {len(snapshots)} snapshots; hint: one for each, or none",
        )
    records = pool.records([*snapshots, *(it for it in bases if it is not None)])
    for record in records:
        if record.kind != "snapshot":
            raise InvalidError(
                "not_a_snapshot", f"'{record.name}' is a volume; hint: send a snapshot of it"
            )
    sent, rest = records[: len(snapshots)], iter(records[len(snapshots) :])
    held = [None if it is None else next(rest) for it in bases]
    if len({it.uuid for it in sent}) != len(sent):
        raise InvalidError("sent_twice", "a snapshot is given twice; hint: give each once")
    for record, base in zip(sent, held, strict=False):
        if base is not None and record.uuid == base.uuid:
            raise InvalidError(
                "base_is_itself",
                f"'{record.name}' is its own base; hint: give an earlier snapshot with --from",
            )
    return [_Pair(record, base) for record, base in zip_longest(sent, held)]


def _pairs_transfer(pairs: Sequence[_Pair]) -> str:
    return transfer_of([(it.record.uuid, it.base.uuid if it.base else None) for it in pairs])


def _check_token(text: str, pairs: Sequence[_Pair]) -> Token:
    token = Token.parse(text)
    transfer = _pairs_transfer(pairs)
    if token.transfer != transfer:
        raise InvalidError(
            "token_of_another_transfer",
            f"the token is of transfer {token.transfer}, this one is {transfer};"
            " hint: give the same snapshots and bases in the same order, or no --resume",
        )
    within = token.place < len(pairs) and token.block <= pairs[token.place].blocks_count
    if not within and (token.place, token.block) != (len(pairs), 0):
        raise InvalidError(
            "token_malformed",
            f"the token says snapshot {token.place}, block {token.block}, which is none;"
            " hint: give what `ramet receive --position` prints",
        )
    return token


class _Sender:
    def __init__(self, pool: Pool, pairs: list[_Pair], token: Token | None, compress: bool) -> None:
        self._pool = pool
        self._pairs = pairs
        self._start = (token.place, token.block) if token else (0, 0)
        self._resumed = self._start if token else None
        self._writer = StreamWriter(compress=compress)
        self._roots: dict[str, str] = {}  # What was computed here.
        self._sent_bytes = 0
        self._total_bytes = 0

    def pieces(self) -> Iterator[Piece]:
        yield self._piece(self._writer.header(self._header()))
        try:
            for index in range(self._start[0], len(self._pairs)):
                yield from self._snapshot(index)
            self._pool.keep_roots(self._roots)
        except RametError as error:
            yield self._piece(self._writer.failed(error))
            raise
        yield self._piece(self._writer.end())

    def _piece(self, content: bytes) -> Piece:
        return Piece(content, self._sent_bytes, self._total_bytes)

    def _header(self) -> Header:
        items = [self._item(index, pair) for index, pair in enumerate(self._pairs)]
        self._total_bytes = sum(item.data_bytes for item in items)
        transfer = _pairs_transfer(self._pairs)
        return Header(__version__, self._pool.uuid, transfer, self._resumed, items)

    def _item(self, index: int, pair: _Pair) -> Item:
        record, base = pair
        first = self._first_block(index)
        blocks = pair.blocks_count if index < self._start[0] else first
        data = sum(it.blocks for it in self._runs(pair, 0) if it.is_data)
        if blocks:
            left = sum(it.blocks for it in self._runs(pair, blocks) if it.is_data)
            self._sent_bytes += (data - left) * BLOCK_BYTES
        told = None
        if base is not None:
            root = base.root or self._root(base, self._pool.transfers.hashed_reader(base.uuid))
            told = Base(base.uuid, base.name, root)
        return Item(
            record.uuid,
            record.name,
            record.size_bytes,
            record.created_ns,
            record.batch,
            record.source,
            dict(record.tags),
            data * BLOCK_BYTES,
            record.root,
            told,
        )

    def _first_block(self, index: int) -> int:
        return self._start[1] if index == self._start[0] else 0

    def _runs(self, pair: _Pair, first_block: int) -> Iterator[Run]:
        before = pair.base.uuid if pair.base else None
        runs = self._pool.transfers.changed_runs(
            before, pair.record.uuid, first_block, pair.blocks_count
        )
        return (Run(*run) for run in runs)

    def _snapshot(self, index: int) -> Iterator[Piece]:
        pair, first = self._pairs[index], self._first_block(index)
        yield self._piece(self._writer.begin(index, first))
        # What is read is hashed on the way.
        reader = self._pool.transfers.hashed_reader(pair.record.uuid)
        at = first
        for runs in _records(self._runs(pair, first)):
            at = runs[-1].first + runs[-1].blocks
            data = self._read(reader, runs)
            self._sent_bytes += len(data)
            yield self._piece(self._writer.changes(at, runs, data))
        if at < pair.blocks_count:
            yield self._piece(self._writer.changes(pair.blocks_count, [], b""))
        root = pair.record.root or self._root(pair.record, reader)
        yield self._piece(self._writer.done(index, root))

    def _read(self, reader: HashedReader, runs: list[Run]) -> bytes:
        parts = []
        for run in runs:
            if run.is_data:
                left = reader.size_bytes - run.first * BLOCK_BYTES
                part = reader.read(run.first, min(run.blocks * BLOCK_BYTES, left))
                parts.append(part.ljust(run.blocks * BLOCK_BYTES, b"\0"))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _root(self, record: ObjectRecord, reader: HashedReader) -> str:
        root = root_of(reader)
        self._roots[record.uuid] = root
        return root


def _records(runs: Iterator[Run]) -> Iterator[list[Run]]:
    """Put runs together, and cut them, so that each list is one record."""
    held: list[Run] = []
    room = DATA_BLOCKS_MAX
    for first, count, is_data in runs:
        at, left = first, count
        while left:
            take = min(left, room if is_data else RUN_BLOCKS_MAX)
            held.append(Run(at, take, is_data))
            at, left = at + take, left - take
            room -= take if is_data else 0
            if room == 0 or len(held) == RUNS_MAX:
                yield held
                held, room = [], DATA_BLOCKS_MAX
    if held:
        yield held
