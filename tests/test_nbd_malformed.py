"""Every kind of malformed message by a raw socket: what it is answered, and whether that is all.

Tables, written from the protocol: for each message the error, or the end of the connection. After
each error the connection is used, after each end another one; and nothing was written.
"""

import contextlib
import errno
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import pytest

import nbd_client
import ramet
from nbd_client import NbdRefusedError, ask, greet, pack_string, receive

MIB = 2**20
SIZE = 64 * MIB
PAYLOAD_MAX = 32 * MIB
SKIPPED_MAX = 128 * MIB
READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, ONE, FAST, PAYLOAD = (1 << bit for bit in range(6))
ENDS = -1
"""In place of an error: the connection ends."""

EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED = 1, 2, 3, 5, 6, 7, 8
LIST_CONTEXT, SET_CONTEXT, EXTENDED = 9, 10, 11
UNSUPPORTED, INVALID, UNKNOWN, TOO_BIG = (1 << 31 | it for it in (1, 3, 6, 9))
OPTION_BYTES_MAX = 64 << 10

MAGIC = {"simple": 0x2560_9513, "structured": 0x2560_9513, "extended": 0x21E4_1C71}
STYLES = tuple(MAGIC)
CHUNKS = ("structured", "extended")
COOKIE = 77


class Row(NamedTuple):
    """A request and its errno; of a write the payload is sent, else `payload`."""

    command: int
    flags: int
    offset: int
    length: int
    expected: int
    styles: tuple[str, ...] = STYLES
    payload: bytes = b""


@pytest.fixture
def socket_path(pool: ramet.Pool, tmp_path: Path) -> Iterator[Path]:
    """Where a pool is served, with volume "db" that begins with "x"."""
    pool.create_volume("db", SIZE).write(0, b"x" * MIB)
    pool.volume("db").snapshot("db@1")
    with pool.serve_nbd(tmp_path / "nbd.sock"):
        yield tmp_path / "nbd.sock"


Attach = Callable[[str], "Wire"]


class Wire:
    """A connection in transmission, with replies of a style and the context base:allocation."""

    def __init__(self, socket_path: Path, style: str) -> None:
        self.style = style
        self.stream = plain(socket_path)
        greet(self.stream)
        if style != "simple":
            ask(self.stream, STRUCTURED if style == "structured" else EXTENDED, b"")
            assert len(ask(self.stream, SET_CONTEXT, context_data("db", "base:allocation"))) == 1
        nbd_client.go(self.stream, "db")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def header(self, command: int, flags: int, offset: int, length: int) -> bytes:
        form = ">IHHQQQ" if self.style == "extended" else ">IHHQQI"
        return struct.pack(form, MAGIC[self.style], flags, command, COOKIE, offset, length)

    def answer(self, read_length: int = 0) -> int:
        """Take a reply, whatever it holds. Result: its error."""
        (magic,) = struct.unpack(">I", receive(self.stream, 4))
        if magic == 0x6744_6698:
            error, cookie = struct.unpack(">IQ", receive(self.stream, 12))
            assert cookie == COOKIE
            receive(self.stream, 0 if error else read_length)
            return int(error)
        error, done = 0, False
        while not done:
            if self.style == "extended":
                assert magic == 0x6E8A_278C
                form = ">HHQQQ"
                flags, kind, cookie, _, size = struct.unpack(form, receive(self.stream, 28))
            else:
                assert magic == 0x668E_33EF
                flags, kind, cookie, size = struct.unpack(">HHQI", receive(self.stream, 16))
            payload = receive(self.stream, size)
            assert cookie == COOKIE
            if kind & 1 << 15:
                (error,) = struct.unpack(">I", payload[:4])
            done = bool(flags & 1)
            if not done:
                (magic,) = struct.unpack(">I", receive(self.stream, 4))
        return int(error)

    def assert_lives(self) -> None:
        self.stream.sendall(self.header(READ, 0, SIZE - 3, 3))
        assert self.answer(3) == 0


@pytest.fixture
def attach(socket_path: Path) -> Iterator[Attach]:
    """Makes connections, which end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda style: stack.enter_context(Wire(socket_path, style))


def plain(socket_path: Path) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(nbd_client.ANSWER_SECONDS_MAX)
    stream.connect(str(socket_path))
    return stream


def assert_ended(stream: socket.socket) -> None:
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        assert stream.recv(1) == b""
    stream.close()


def context_data(name: str, *queries: str) -> bytes:
    packed = b"".join(pack_string(query.encode()) for query in queries)
    return pack_string(name.encode()) + struct.pack(">I", len(queries)) + packed


def status_payload(*contexts: int, length: int = 4096) -> bytes:
    return struct.pack(f">Q{len(contexts)}I", length, *contexts)


FLAGS = {
    # What each command may have besides FUA, which all may.
    READ: {"simple": 0, "structured": DF, "extended": DF},
    WRITE: {"simple": 0, "structured": 0, "extended": PAYLOAD},
    FLUSH: dict.fromkeys(STYLES, 0),
    TRIM: dict.fromkeys(STYLES, 0),
    CACHE: dict.fromkeys(STYLES, 0),
    ZEROES: dict.fromkeys(STYLES, NO_HOLE | FAST),
    STATUS: dict.fromkeys(CHUNKS, ONE),
}


@pytest.mark.parametrize("style", STYLES)
def test_each_flag_that_a_command_does_not_have_is_refused(
    pool: ramet.Pool, attach: Attach, style: str
) -> None:
    wire = attach(style)
    for command, allowed in FLAGS.items():
        for bit in range(16):
            flag = 1 << bit
            if style not in allowed or flag & (allowed[style] | FUA):
                continue
            always = PAYLOAD if command == WRITE and style == "extended" else 0
            flags = flag | always
            carries = flags & PAYLOAD if style == "extended" else command == WRITE
            length = 0 if command == FLUSH else 512
            if command == STATUS and flag == PAYLOAD and style == "extended":
                continue  # It has that flag; its payloads are in the table below.
            payload = b"!" * length if carries else b""
            wire.stream.sendall(wire.header(command, flags, 0, length) + payload)
            assert wire.answer() == errno.EINVAL, (command, bit)
            wire.assert_lives()
    assert pool.diff("db@1", "db").extents == []


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("command", [8, 9, 255, 256, 2**15, 2**16 - 1])
def test_a_command_that_there_is_not_is_refused(attach: Attach, style: str, command: int) -> None:
    wire = attach(style)
    for flags in (0, FUA, (2**16 - 1) & ~PAYLOAD):
        for offset, length in ((0, 0), (0, 512), (2**64 - 1, 2**32 - 1)):
            wire.stream.sendall(wire.header(command, flags, offset, length))
            assert wire.answer() == errno.EINVAL
            wire.assert_lives()
    if style == "extended":
        wire.stream.sendall(wire.header(command, PAYLOAD, 0, 512) + b"!" * 512)
        assert wire.answer() == errno.EINVAL
        wire.assert_lives()


FAR = ("extended",)
ROWS = [
    Row(READ, 0, SIZE, 1, errno.EINVAL),
    Row(READ, 0, SIZE - 1, 2, errno.EINVAL),
    Row(READ, 0, 2**64 - 1, 1, errno.EINVAL),
    Row(READ, 0, 2**64 - 1, 2**32 - 1, errno.EINVAL),
    Row(READ, 0, 2**63, 512, errno.EINVAL),
    Row(READ, 0, 0, PAYLOAD_MAX + 1, errno.EINVAL, ("simple",)),
    Row(READ, 0, 0, PAYLOAD_MAX + 1, errno.EOVERFLOW, CHUNKS),
    Row(READ, DF, 0, PAYLOAD_MAX + 1, errno.EOVERFLOW, CHUNKS),
    Row(READ, 0, 0, 2**64 - 1, errno.EINVAL, FAR),
    Row(READ, 0, 1, 2**64 - 1, errno.EINVAL, FAR),
    Row(READ, PAYLOAD, 0, 512, errno.EINVAL, FAR, b"!" * 512),
    Row(READ, PAYLOAD, 0, PAYLOAD_MAX + 1, ENDS, FAR),
    Row(READ, PAYLOAD, 0, 2**64 - 1, ENDS, FAR),
    Row(WRITE, 0, SIZE, 1, errno.ENOSPC),
    Row(WRITE, 0, SIZE - 1, 2, errno.ENOSPC),
    Row(WRITE, FUA, 2**64 - 1, 512, errno.ENOSPC),
    Row(WRITE, 0, 0, PAYLOAD_MAX + 1, errno.EINVAL, ("simple", "structured")),
    Row(WRITE, 0, 0, SKIPPED_MAX + 1, ENDS, ("simple", "structured")),
    Row(WRITE, 0, 0, 2**32 - 1, ENDS, ("simple", "structured")),
    Row(WRITE, 0, 0, PAYLOAD_MAX + 1, ENDS, FAR),
    Row(WRITE, 0, 0, 2**64 - 1, ENDS, FAR),
    Row(FLUSH, 0, 0, 1, errno.EINVAL),
    Row(FLUSH, 0, 1, 0, errno.EINVAL),
    Row(FLUSH, 0, 2**64 - 1, 2**32 - 1, errno.EINVAL),
    Row(FLUSH, PAYLOAD, 0, 0, errno.EINVAL, FAR),
    Row(TRIM, 0, SIZE - 1, 2, errno.EINVAL),
    Row(TRIM, 0, 2**63, 2**32 - 1, errno.EINVAL),
    Row(TRIM, 0, 0, 2**64 - 1, errno.EINVAL, FAR),
    Row(TRIM, PAYLOAD, 0, 512, errno.EINVAL, FAR, b"!" * 512),
    Row(CACHE, 0, SIZE, 1, errno.EINVAL),
    Row(CACHE, 0, 2**64 - 1, 2, errno.EINVAL),
    Row(CACHE, 0, 1, 2**64 - 1, errno.EINVAL, FAR),
    Row(ZEROES, 0, SIZE - 1, 2, errno.ENOSPC),
    Row(ZEROES, 0, 2**64 - 4096, 4096, errno.ENOSPC),
    Row(ZEROES, FAST, 1, 4096, errno.ENOTSUP),
    Row(ZEROES, FAST | NO_HOLE, SIZE, 1, errno.ENOSPC),
    Row(ZEROES, 0, 1, 2**64 - 1, errno.ENOSPC, FAR),
    Row(STATUS, 0, 0, 4096, errno.EINVAL, ("simple",)),
    Row(STATUS, ONE, 0, 0, errno.EINVAL),
    Row(STATUS, 0, SIZE, 1, errno.EINVAL),
    Row(STATUS, 0, 0, SIZE + 1, errno.EINVAL),
    Row(STATUS, 0, 0, 2**64 - 1, errno.EINVAL, FAR),
    Row(STATUS, PAYLOAD, 0, 0, errno.EINVAL, FAR),
    Row(STATUS, PAYLOAD, 0, 7, errno.EINVAL, FAR, b"!" * 7),
    Row(STATUS, PAYLOAD, 0, 8, errno.EINVAL, FAR, status_payload()),
    Row(STATUS, PAYLOAD, 0, 13, errno.EINVAL, FAR, status_payload(0) + b"!"),
    Row(STATUS, PAYLOAD, 0, 12, errno.EINVAL, FAR, status_payload(1)),
    Row(STATUS, PAYLOAD, 0, 12, errno.EINVAL, FAR, status_payload(2**32 - 1)),
    Row(STATUS, PAYLOAD, 0, 16, errno.EINVAL, FAR, status_payload(0, 0)),
    Row(STATUS, PAYLOAD, 0, 12, errno.EINVAL, FAR, status_payload(0, length=0)),
    Row(STATUS, PAYLOAD, 0, 12, errno.EINVAL, FAR, status_payload(0, length=2**64 - 1)),
    Row(STATUS, PAYLOAD | DF, 0, 12, errno.EINVAL, FAR, status_payload(0)),
    Row(STATUS, PAYLOAD, 0, MIB, errno.EINVAL, FAR, b"!" * MIB),
    Row(STATUS, PAYLOAD, 0, PAYLOAD_MAX + 1, ENDS, FAR),
    Row(DISCONNECT, 2**16 - 1 - PAYLOAD, 2**64 - 1, 2**32 - 1, ENDS),
    Row(DISCONNECT, 0, 0, 0, ENDS),
]


@pytest.mark.parametrize("style", STYLES)
def test_each_request_that_cannot_be_has_its_error_or_ends_the_connection(
    pool: ramet.Pool, attach: Attach, style: str
) -> None:
    wire = attach(style)
    for row in ROWS:
        if style not in row.styles:
            continue
        payload, flags = row.payload, row.flags
        if row.command == WRITE:
            payload = b"!" * row.length if row.expected != ENDS else b""
            flags |= PAYLOAD if style == "extended" else 0
        header = wire.header(row.command, flags, row.offset, row.length)
        wire.stream.sendall(header + payload)
        if row.expected == ENDS:
            assert_ended(wire.stream)
            wire = attach(style)
        else:
            assert wire.answer() == row.expected, row._replace(payload=b"")
        wire.assert_lives()
    if style == "extended":
        # Without the flag there is no payload: what was to be written would be missing.
        wire.stream.sendall(wire.header(WRITE, 0, 0, 512))
        assert wire.answer() == errno.EINVAL
        wire.assert_lives()
    assert pool.diff("db@1", "db").extents == []


@pytest.mark.parametrize("style", STYLES)
def test_a_request_out_of_step_or_in_part_ends_the_connection(
    pool: ramet.Pool, attach: Attach, style: str
) -> None:
    for magic in {0, 1, MAGIC[style] ^ 1, 2**32 - 1, *MAGIC.values()} - {MAGIC[style]}:
        wire = attach(style)
        header = wire.header(WRITE, PAYLOAD if style == "extended" else 0, 0, 3)
        wire.stream.sendall(struct.pack(">I", magic) + header[4:] + b"!!!")
        assert_ended(wire.stream)
    wire = attach(style)
    whole = wire.header(WRITE, PAYLOAD if style == "extended" else 0, 0, 3) + b"!!!"
    for sent_count in range(len(whole)):
        cut = attach(style)
        cut.stream.sendall(whole[:sent_count])
        cut.stream.shutdown(socket.SHUT_WR)
        assert_ended(cut.stream)
    wire.assert_lives()
    assert pool.diff("db@1", "db").extents == []


def refusal(stream: socket.socket, option: int, data: bytes) -> int:
    with pytest.raises(NbdRefusedError) as caught:
        ask(stream, option, data)
    return caught.value.reply


def go_data(name: bytes, infos: bytes = b"\0\1\0\3") -> bytes:
    return pack_string(name) + infos


def bad_options() -> Iterator[tuple[int, bytes, int]]:
    """Give option, data and the error, for a connection that agreed on structured replies."""
    for option in (0, 4, 12, 2**31, 2**32 - 1):
        yield option, b"", UNSUPPORTED
        yield option, b"data", UNSUPPORTED
    yield STARTTLS, b"", UNSUPPORTED
    for option in (LIST, STRUCTURED, EXTENDED):
        yield option, b"data", INVALID
    yield STRUCTURED, b"", INVALID  # For the second time.
    for option in (INFO, GO):
        data = go_data(b"db")
        yield from ((option, data[:length], INVALID) for length in range(len(data)))
        yield option, data + b"!", INVALID
        yield option, pack_string(b"db") + b"\0\0!!", INVALID
        yield option, struct.pack(">I", 2**32 - 1) + data[4:], INVALID
        yield option, go_data(b"\xff"), INVALID
        yield option, go_data(b"d\0b"), INVALID
        yield option, go_data(b"x" * 4097), INVALID
        for name in (b"absent", b"", b"db ", b"DB", b"x" * 4096):
            yield option, go_data(name), UNKNOWN
    for option in (LIST_CONTEXT, SET_CONTEXT):
        data = context_data("db", "base:allocation")
        yield from ((option, data[:length], INVALID) for length in range(len(data)))
        yield option, data + b"!", INVALID
        yield option, pack_string(b"db") + struct.pack(">I", 2**32 - 1), INVALID
        yield option, struct.pack(">I", 2**32 - 1) + data[4:], INVALID
        yield option, context_data("d\0b"), INVALID
        yield option, pack_string(b"db") + struct.pack(">I", 1) + pack_string(b"\xff"), INVALID
        yield option, context_data("absent"), UNKNOWN
    for option in (LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_CONTEXT, SET_CONTEXT, EXTENDED, 99):
        yield option, bytes(OPTION_BYTES_MAX + 1), TOO_BIG


def test_each_malformed_option_has_its_error_and_the_next_one_is_heard(socket_path: Path) -> None:
    with plain(socket_path) as stream:
        greet(stream)
        for option in (LIST_CONTEXT, SET_CONTEXT):
            assert refusal(stream, option, context_data("db")) == INVALID, "no style was chosen"
        ask(stream, STRUCTURED, b"")
        for option, data, expected in bad_options():
            assert refusal(stream, option, data) == expected, (option, len(data), data[:40])
            assert len(ask(stream, LIST, b"")) == 2, "the stream is in step"
        # What was refused left nothing behind: a read is answered as was agreed on at first.
        size, flags = nbd_client.go(stream, "db")
        client = nbd_client.NbdClient(stream, size, flags, {})
        assert client.read(0, 3) == b"xxx"


def option_header(option: int, length: int, magic: bytes = b"IHAVEOPT") -> bytes:
    return magic + struct.pack(">II", option, length)


FIRST = bytes([0, 0, 0, 3])
REPLY_MAGIC = struct.pack(">Q", 0x0003_E889_0455_65A9)
ENDING = {
    "flags that were not offered": struct.pack(">I", 4),
    "every flag": struct.pack(">I", 2**32 - 1),
    "an option out of step": FIRST + option_header(LIST, 0, b"IHAVENOT"),
    "a reply's magic": FIRST + option_header(LIST, 0, REPLY_MAGIC),
    "more data than anybody means": FIRST + option_header(GO, (32 << 20) + 1),
    "the most data there can be": FIRST + option_header(99, 2**32 - 1),
    "a long name": FIRST + option_header(EXPORT_NAME, OPTION_BYTES_MAX + 1),
    "a name that is too long": FIRST + option_header(1, 4097) + b"x" * 4097,
    "a name that is no text": FIRST + option_header(1, 2) + b"\xff\xfe",
    "a name with a NUL": FIRST + option_header(1, 3) + b"d\0b",
    "a name that there is not": FIRST + option_header(1, 6) + b"absent",
    "another protocol": b"GET / HTTP/1.1\r\n\r\n",
    "nothing but zeros": bytes(100),
}


@pytest.mark.parametrize("sent", ENDING.values(), ids=ENDING)
def test_each_handshake_that_cannot_be_answered_ends_the_connection(
    socket_path: Path, attach: Attach, sent: bytes
) -> None:
    with plain(socket_path) as stream:
        receive(stream, 18)
        stream.sendall(sent)
        assert_ended(stream)
    attach("simple").assert_lives()


def test_a_handshake_in_part_ends_the_connection(socket_path: Path, attach: Attach) -> None:
    data = go_data(b"db")
    whole = FIRST + option_header(GO, len(data)) + data
    for sent_count in range(len(whole)):
        with plain(socket_path) as stream:
            receive(stream, 18)
            stream.sendall(whole[:sent_count])
            stream.shutdown(socket.SHUT_WR)
            assert_ended(stream)
    attach("simple").assert_lives()


def test_extended_headers_rule_out_what_they_cannot_carry(socket_path: Path) -> None:
    with plain(socket_path) as stream:
        greet(stream)
        ask(stream, EXTENDED, b"")
        assert refusal(stream, EXTENDED, b"") == INVALID
        assert refusal(stream, STRUCTURED, b"") == 1 << 31 | 10
        stream.sendall(option_header(EXPORT_NAME, 2) + b"db")
        assert_ended(stream)
