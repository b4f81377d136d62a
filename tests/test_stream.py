"""A stream's bytes are what docs/internals/stream.md says, and any other bytes are refused."""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import zstandard

from blake3_reference import blake3
from ramet.errors import CorruptError, RametError, UnavailableError
from ramet.replication.stream import (
    DATA_BYTES_MAX,
    RUNS_MAX,
    Base,
    Begin,
    Changes,
    Done,
    Event,
    Header,
    Item,
    Run,
    StreamReader,
    StreamWriter,
    Token,
    decode_changes,
    transfer_of,
)
from streams import code_of, records_of

UUIDS = [f"01936f3a-7c1e-7d2b-8f00-{number:012x}" for number in range(6)]
ROOTS = [f"{number:064x}" for number in range(6)]
BLOCK = 4096
MANGLED = ("stream_cut", "stream_damaged", "stream_malformed", "not_a_stream", "stream_version")


def item_of(number: int, size_bytes: int, base: int | None = None) -> Item:
    told = None if base is None else Base(UUIDS[base], f"s{base}", ROOTS[base])
    return Item(
        UUIDS[number], f"s{number}", size_bytes, 7, UUIDS[5], None, {"k": "v"}, 0, None, told
    )


def header_of(*items: Item, resumed: tuple[int, int] | None = None) -> Header:
    transfer = transfer_of([(it.uuid, it.base.uuid if it.base else None) for it in items])
    return Header("0.1.0", UUIDS[4], transfer, resumed, list(items))


def sample(compress: bool = False) -> tuple[bytes, list[Event]]:
    """Two snapshots, the second as what differs."""
    writer = StreamWriter(compress=compress)
    data = bytes(range(256)) * 32
    parts = [
        writer.header(header_of(item_of(0, 10 * BLOCK), item_of(1, (1 << 33) + 512, base=3))),
        writer.begin(0, 0),
        writer.changes(10, [], b""),
        writer.done(0, ROOTS[0]),
        writer.begin(1, 0),
        writer.changes(1 << 20, [Run(0, 1, True)], data[:BLOCK]),
        writer.changes((1 << 21) + 1, [Run(1 << 20, 2, True), Run((1 << 20) + 5, 7, False)], data),
        writer.done(1, ROOTS[1]),
        writer.end(),
    ]
    events: list[Event] = [
        Begin(0, 0),
        Changes(10, [], memoryview(b"")),
        Done(0, ROOTS[0]),
        Begin(1, 0),
        Changes(1 << 20, [Run(0, 1, True)], memoryview(data[:BLOCK])),
        Changes(
            (1 << 21) + 1,
            [Run(1 << 20, 2, True), Run((1 << 20) + 5, 7, False)],
            memoryview(data),
        ),
        Done(1, ROOTS[1]),
    ]
    return b"".join(parts), events


def read_until_error(stream: bytes) -> tuple[list[Event], RametError | None]:
    """Give what was told, and why no more."""
    seen: list[Event] = []
    try:
        # One by one: what came before the error counts.
        seen.extend(StreamReader(io.BytesIO(stream).read).events())
    except RametError as error:
        return seen, error
    return seen, None


def read_all(stream: bytes, most: int = 1 << 30) -> list[Event]:
    source = io.BytesIO(stream)
    return list(StreamReader(lambda length: source.read(min(length, most))).events())


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("most", [1, 7, 1 << 30])
def test_what_is_written_is_read(compress: bool, most: int) -> None:
    stream, events = sample(compress)
    assert read_all(stream, most) == events
    if compress:
        assert len(stream) < len(sample()[0])


def test_seals_are_those_of_the_page() -> None:
    stream, _ = sample()
    before = b""
    for part in records_of(stream):
        if before:
            assert part[-16:] == blake3(before + part[:-16])[:16]
        before += part
    end = records_of(stream)[-1]
    assert end[8:-16] == blake3(stream[: -len(end)])


def test_a_stream_that_is_cut_anywhere_is_refused() -> None:
    stream, events = sample(compress=True)
    for length in range(len(stream)):
        seen, error = read_until_error(stream[:length])
        assert error is not None
        assert (type(error), error.code) == (UnavailableError, "stream_cut")
        assert seen == events[: len(seen)], "what came before the cut is true"


def test_a_stream_with_a_flipped_bit_is_refused() -> None:
    stream, events = sample(compress=True)
    for at in range(len(stream)):
        bad = bytearray(stream)
        bad[at] ^= 1 << at % 8
        seen, error = read_until_error(bytes(bad))
        assert error is not None
        assert error.code in MANGLED
        assert seen == events[: len(seen)], "what came before the damage is true"


def test_records_that_are_missing_doubled_or_swapped_are_refused() -> None:
    stream, _ = sample()
    parts = records_of(stream)
    for at in range(1, len(parts)):
        for mangled in (
            parts[:at] + parts[at + 1 :],
            [*parts[:at], parts[at], *parts[at:]],
            [*parts[: at - 1], parts[at], parts[at - 1], *parts[at + 1 :]],
        ):
            assert code_of(lambda it=mangled: read_all(b"".join(it))) in MANGLED


def test_two_streams_are_no_stream() -> None:
    stream, _ = sample()
    assert code_of(lambda: read_all(stream + stream)) == "stream_malformed"
    parts = records_of(stream)
    assert code_of(lambda: read_all(b"".join(parts[:5]) + stream)) == "stream_damaged"


def test_another_version_and_other_files_are_named() -> None:
    stream, _ = sample()
    newer = stream[:8] + (2).to_bytes(4, "little") + stream[12:]
    with pytest.raises(RametError, match="version 2, this Ramet reads 1") as caught:
        read_all(newer)
    assert caught.value.code == "stream_version"
    with pytest.raises(RametError, match="Last login: Mon") as caught:
        read_all(b"Last login: Monday, " + stream)
    assert caught.value.code == "not_a_stream"


def test_a_failed_sender_is_told_with_its_reason() -> None:
    writer = StreamWriter()
    stream = writer.header(header_of(item_of(0, BLOCK))) + writer.begin(0, 0)
    stream += writer.failed(CorruptError("block_checksum", "a block is damaged; hint: restore"))
    with pytest.raises(UnavailableError, match="block_checksum: a block is damaged") as caught:
        read_all(stream)
    assert caught.value.code == "sender_failed"


@dataclass
class Odd:
    """A stream whose seals are right, and whose content is not."""

    what: str
    make: Callable[[StreamWriter], bytes]


def header(writer: StreamWriter, *items: Item, **changes: object) -> bytes:
    from msgspec.structs import replace

    return writer.header(replace(header_of(*(items or (item_of(0, 8 * BLOCK),))), **changes))


def changed(**changes: object) -> Item:
    from msgspec.structs import replace

    return replace(item_of(0, 8 * BLOCK), **changes)


ODD = [
    Odd("no begin", lambda it: header(it) + it.changes(8, [], b"")),
    Odd("the second first", lambda it: header(it) + it.begin(1, 0)),
    Odd("from block 1 on", lambda it: header(it) + it.begin(0, 1)),
    Odd("done too early", lambda it: header(it) + it.begin(0, 0) + it.done(0, ROOTS[0])),
    Odd("beyond the end", lambda it: header(it) + it.begin(0, 0) + it.changes(9, [], b"")),
    Odd(
        "done is another",
        lambda it: header(it) + it.begin(0, 0) + it.changes(8, [], b"") + it.done(1, ROOTS[0]),
    ),
    Odd("ends without its snapshot", lambda it: header(it) + it.end()),
    Odd("two headers", lambda it: header(it) + it._record(1, b"{}")),
    Odd("begins without header", lambda it: header(it)[:16] + it.begin(0, 0)),
    Odd("an unknown kind", lambda it: header(it) + b"\x09\0\0\0\0\0\0\0" + bytes(16)),
    Odd("no snapshots", lambda it: header(it, snapshots=[])),
    Odd("another transfer", lambda it: header(it, transfer="0" * 32)),
    Odd("no pool", lambda it: header(it, pool="x")),
    Odd("resumed outside", lambda it: header(it, resumed=(0, 9))),
    Odd("resumed before", lambda it: header(it, resumed=(-1, 0))),
    Odd("twice the same", lambda it: header(it, item_of(0, BLOCK), item_of(0, BLOCK))),
    Odd("a size of nothing", lambda it: header(it, changed(size_bytes=0))),
    Odd("a size that is none", lambda it: header(it, changed(size_bytes=511))),
    Odd("a size over 256 TiB", lambda it: header(it, changed(size_bytes=(1 << 48) + 512))),
    Odd("a time before 1970", lambda it: header(it, changed(created_ns=-1))),
    Odd("a time beyond all", lambda it: header(it, changed(created_ns=1 << 64))),
    Odd("the nil UUID", lambda it: header(it, changed(uuid="0" * 8 + UUIDS[0][8:]))),
    Odd("an upper case UUID", lambda it: header(it, changed(uuid=UUIDS[0].upper()))),
    Odd("a root that is none", lambda it: header(it, changed(root="z" * 64))),
    Odd("its own base", lambda it: header(it, item_of(0, BLOCK, base=0))),
    Odd("a name that is none", lambda it: header(it, changed(name="a/b"))),
    Odd("a name in the form of a UUID", lambda it: header(it, changed(name=UUIDS[1]))),
    Odd("a tag that is none", lambda it: header(it, changed(tags={"": "x"}))),
    Odd("a header that is a list", lambda it: header(it)[:16] + it._record(1, b"[]")),
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.what)
def test_a_well_sealed_stream_that_makes_no_sense_is_refused(odd: Odd) -> None:
    stream = odd.make(StreamWriter())
    codes = ("stream_malformed", "stream_damaged", "name_character", "name_is_uuid", "tag_key")
    assert code_of(lambda: read_all(stream)) in codes


@pytest.mark.random
def test_changes_of_any_bytes_are_refused_or_make_sense(randomness: random.Random) -> None:
    taken = 0
    for _ in range(4000):
        at, blocks_count = randomness.randrange(4), randomness.randrange(4, 40)
        count = randomness.randrange(4)
        runs, block = [], at
        for _ in range(count):
            block += randomness.randrange(3)
            runs.append((block, randomness.randrange(3), randomness.choice((1, 1, 2, 2, 3))))
            block += runs[-1][1]
        end, flags = block + randomness.randrange(3), randomness.choice((0, 0, 0, 1, 2))
        blocks = sum(it[1] for it in runs if it[2] == 1)
        payload = end.to_bytes(8, "little") + count.to_bytes(4, "little")
        payload += flags.to_bytes(4, "little")
        for first, length, kind in runs:
            payload += first.to_bytes(8, "little") + length.to_bytes(4, "little")
            payload += kind.to_bytes(4, "little")
        payload += bytes(max(0, blocks + randomness.choice((0, 0, 0, 1, -1))) * BLOCK)
        if randomness.random() < 0.3:
            payload = payload[: randomness.randrange(len(payload) + 1)]
        try:
            changes = decode_changes(payload, at, blocks_count)
        except CorruptError:
            continue
        taken += 1
        assert at <= changes.end <= blocks_count
        for run, data in changes.parts():
            assert at <= run.first < run.first + run.blocks <= changes.end
            assert len(data) == (run.blocks * BLOCK if run.is_data else 0)
            at = run.first + run.blocks
    assert taken > 200


def test_a_record_never_unpacks_to_more_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:

    def packed(frame: bytes, blocks: int = 1) -> bytes:
        head = (9).to_bytes(8, "little") + (1).to_bytes(4, "little") + (1).to_bytes(4, "little")
        run = bytes(8) + blocks.to_bytes(4, "little") + (1).to_bytes(4, "little")
        return head + run + frame

    block = zstandard.compress(bytes(BLOCK))
    assert decode_changes(packed(block), 0, 9).data == bytes(BLOCK)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(BLOCK))
    bombs = (zstandard.compress(bytes(1 << 26)), zstandard.compress(bytes(BLOCK - 1)), unsized, b"")
    with monkeypatch.context() as patched:
        # Its memory is not even asked for.
        patched.setattr(zstandard, "ZstdDecompressor", None)
        for bad in bombs:
            assert code_of(lambda it=bad: decode_changes(packed(it), 0, 9)) == "stream_malformed"
    for bad in (
        block + b"x",
        block[:-1],
        block + block,
    ):
        assert code_of(lambda it=bad: decode_changes(packed(it), 0, 9)) == "stream_malformed"
    many = packed(zstandard.compress(bytes(2 * DATA_BYTES_MAX)), 2 * DATA_BYTES_MAX // BLOCK)
    assert code_of(lambda: decode_changes(many, 0, 1 << 20)) == "stream_malformed"
    assert code_of(lambda: decode_changes((9).to_bytes(8, "little") + b"\xff" * 8, 0, 9))
    assert RUNS_MAX * 16 + DATA_BYTES_MAX < 2 << 20


def test_tokens_are_read_as_written() -> None:
    token = Token("0123456789abcdef" * 2, 3, 1 << 36)
    assert Token.parse(f" {token}\n") == token
    for bad in ("", "x", str(token)[1:], f"{token}0000", f"{token.transfer}-1--1"):
        assert code_of(lambda it=bad: Token.parse(it)) == "token_malformed"
