"""What no client should send, sent to a served pool over a raw socket.

The protocol's corners are tested in crates/ramet-nbd over a device of memory; here a real pool
stands behind, and what counts is that its bytes and the other connections do not suffer.
"""

import contextlib
import errno
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import nbd_client
import ramet
from nbd_client import NbdClient, NbdError, NbdRefusedError, receive
from serving import make_pool, serving

MIB = 2**20
BLOCK_BYTES = 4096
SIZE_BYTES = 4 * MIB
OPTION_MAGIC = b"IHAVEOPT"
REQUEST_MAGIC = 0x2560_9513
READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, FRAGMENT, FAST_ZERO = 1, 2, 4, 16
REPLY_ACK, REPLY_SERVER, REPLY_INFO = 1, 2, 3
PAYLOAD_BYTES_MAX = 32 * MIB
UNSUPPORTED, INVALID, UNKNOWN, TOO_BIG = (1 << 31 | code for code in (1, 3, 6, 9))
MARK = b"find this block on the medium! " * 133


@pytest.fixture
def socket_path(pool: ramet.Pool, tmp_path: Path) -> Iterator[Path]:
    """Where a pool is served, with volume "db" full of "x" and its snapshot "db@1"."""
    volume = pool.create_volume("db", SIZE_BYTES)
    volume.write(0, b"x" * SIZE_BYTES)
    volume.snapshot("db@1")
    path = tmp_path / "nbd.sock"
    with pool.serve_nbd(path):
        yield path


def request(command: int, flags: int, offset: int, length: int) -> bytes:
    return struct.pack(">IHHQQI", REQUEST_MAGIC, flags, command, 77, offset, length)


def answer(client: NbdClient) -> int:
    """Receive a reply without payload. Result: its error."""
    magic, error, cookie = struct.unpack(">IIQ", receive(client.stream, 16))
    assert (magic, cookie) == (0x6744_6698, 77)
    return int(error)


def assert_ended(stream: socket.socket) -> None:
    with contextlib.suppress(ConnectionResetError):
        assert stream.recv(1) == b""


def assert_eio(call: Callable[[], object]) -> None:
    with pytest.raises(NbdError) as caught:
        call()
    assert caught.value.errno == errno.EIO


REFUSED = [
    # command, flags, offset, length, error; a write's payload is sent whole
    (READ, 0, SIZE_BYTES, 1, errno.EINVAL),
    (READ, 0, SIZE_BYTES - 1, 2, errno.EINVAL),
    (READ, 0, 2**64 - 1, 2, errno.EINVAL),
    (READ, 0, 0, PAYLOAD_BYTES_MAX + 1, errno.EINVAL),
    (READ, 0, 0, 2**32 - 1, errno.EINVAL),
    (READ, FRAGMENT, 0, 512, errno.EINVAL),
    (READ, 1 << 15, 0, 512, errno.EINVAL),
    (WRITE, 0, SIZE_BYTES, 1, errno.ENOSPC),
    (WRITE, 0, SIZE_BYTES - 1, 2, errno.ENOSPC),
    (WRITE, 0, 2**64 - 1, 512, errno.ENOSPC),
    (WRITE, 0, 0, PAYLOAD_BYTES_MAX + 1, errno.EINVAL),
    (WRITE, FAST_ZERO, 0, 512, errno.EINVAL),
    (FLUSH, 0, 0, 1, errno.EINVAL),
    (FLUSH, 0, 1, 0, errno.EINVAL),
    (TRIM, 0, SIZE_BYTES - 1, 2, errno.EINVAL),
    (TRIM, 0, 2**63, 2**32 - 1, errno.EINVAL),
    (TRIM, NO_HOLE, 0, BLOCK_BYTES, errno.EINVAL),
    (ZEROES, 0, SIZE_BYTES - 1, 2, errno.ENOSPC),
    (ZEROES, 0, 2**64 - BLOCK_BYTES, BLOCK_BYTES, errno.ENOSPC),
    (ZEROES, FAST_ZERO, 1, BLOCK_BYTES, errno.ENOTSUP),
    (CACHE, 0, SIZE_BYTES, 1, errno.EINVAL),
    (CACHE, NO_HOLE, 0, BLOCK_BYTES, errno.EINVAL),
    (BLOCK_STATUS, 0, 0, BLOCK_BYTES, errno.EINVAL),
    (1000, 0, 0, BLOCK_BYTES, errno.EINVAL),
    (2**16 - 1, 2**16 - 1, 2**64 - 1, 2**32 - 1, errno.EINVAL),
]


def test_each_bad_request_has_its_error_and_the_connection_goes_on(
    pool: ramet.Pool, socket_path: Path
) -> None:
    with nbd_client.connect(socket_path, "db") as client:
        for command, flags, offset, length, expected in REFUSED:
            payload = b"!" * length if command == WRITE else b""
            client.stream.sendall(request(command, flags, offset, length) + payload)
            assert answer(client) == expected, (command, flags, offset, length)
            assert client.read(SIZE_BYTES - 3, 3) == b"xxx"
        client.write(0, b"still")
    assert pool.volume("db").read(0, SIZE_BYTES) == b"still" + b"x" * (SIZE_BYTES - 5)


def test_requests_of_length_zero_change_nothing(pool: ramet.Pool, socket_path: Path) -> None:
    with nbd_client.connect(socket_path, "db") as client:
        for offset in (0, 1, SIZE_BYTES):
            assert client.read(offset, 0) == b""
            client.write(offset, b"")
            client.trim(offset, 0)
            client.write_zeroes(offset, 0)
    assert pool.diff("db@1", "db").extents == []


def assert_refuses_changes(socket_path: Path, export: str) -> None:
    with nbd_client.connect(socket_path, export) as client:
        assert client.flags & nbd_client.READ_ONLY
        for call in (
            lambda: client.write(0, b"!" * BLOCK_BYTES),
            lambda: client.write(SIZE_BYTES - 1, b"!", fua=True),
            lambda: client.write(2**40, b"!" * BLOCK_BYTES),
            lambda: client.write(0, b""),
            lambda: client.trim(0, SIZE_BYTES),
            lambda: client.write_zeroes(0, SIZE_BYTES),
        ):
            with pytest.raises(NbdError) as caught:
                call()
            assert caught.value.errno == errno.EPERM
        client.flush()
        assert client.read(0, SIZE_BYTES) == b"x" * SIZE_BYTES


def test_a_snapshot_refuses_every_change_and_is_read_on(
    pool: ramet.Pool, socket_path: Path
) -> None:
    assert_refuses_changes(socket_path, "db@1")
    assert pool.get("db@1").read(0, SIZE_BYTES) == b"x" * SIZE_BYTES


def test_a_volume_of_a_pool_that_is_open_for_reading_refuses_every_change(
    pool: ramet.Pool, socket_path: Path, pool_path: Path
) -> None:
    pool.close()
    with ramet.open(pool_path, read_only=True) as reading, reading.serve_nbd(socket_path):
        assert_refuses_changes(socket_path, "db")


@pytest.mark.parametrize("magic", [0, REQUEST_MAGIC ^ 1, 0x21E4_1C71, 2**32 - 1])
def test_a_bad_magic_ends_its_connection_and_no_other(socket_path: Path, magic: int) -> None:
    with (
        nbd_client.connect(socket_path, "db") as bad,
        nbd_client.connect(socket_path, "db") as good,
    ):
        bad.stream.sendall(struct.pack(">IHHQQI", magic, 0, WRITE, 1, 0, 3) + b"!!!")
        assert_ended(bad.stream)
        assert good.read(0, 3) == b"xxx"


def test_a_payload_beyond_all_reason_ends_the_connection(socket_path: Path) -> None:
    with nbd_client.connect(socket_path, "db") as client:
        client.stream.sendall(request(WRITE, 0, 0, 2**32 - 1))
        assert_ended(client.stream)


def test_a_write_that_arrives_in_part_is_never_applied(pool: ramet.Pool, socket_path: Path) -> None:
    for length_sent in (0, 1, BLOCK_BYTES, MIB - 1):
        with nbd_client.connect(socket_path, "db") as client:
            client.stream.sendall(request(WRITE, 0, 0, MIB) + b"!" * length_sent)
            client.stream.shutdown(socket.SHUT_WR)
            assert_ended(client.stream)
    assert pool.diff("db@1", "db").extents == []


def start(socket_path: Path, flags: int = 1) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(nbd_client.ANSWER_SECONDS_MAX)
    stream.connect(str(socket_path))
    assert receive(stream, 18)[:16] == b"NBDMAGIC" + OPTION_MAGIC
    stream.sendall(struct.pack(">I", flags))
    return stream


def haggle(stream: socket.socket, option: int, data: bytes) -> int:
    """Send an option. Result: the kind of its last reply."""
    stream.sendall(OPTION_MAGIC + struct.pack(">II", option, len(data)) + data)
    while True:
        _, echoed, kind, length = struct.unpack(">QIII", receive(stream, 20))
        receive(stream, length)
        assert echoed == option
        if kind not in (REPLY_SERVER, REPLY_INFO):
            return int(kind)


def go(name: bytes, length: int | None = None, infos: bytes = b"\0\0") -> bytes:
    return struct.pack(">I", len(name) if length is None else length) + name + infos


@pytest.mark.parametrize("option", [6, 7], ids=["info", "go"])
def test_bad_options_are_refused_and_the_next_one_is_heard(socket_path: Path, option: int) -> None:
    cases = [
        (5, b"", UNSUPPORTED),
        (8, b"junk", INVALID),
        (9, b"junk", INVALID),
        (10, b"", INVALID),
        (11, b"junk", INVALID),
        (2**32 - 1, b"x" * 1000, UNSUPPORTED),
        (3, b"data where none belongs", INVALID),
        (option, b"", INVALID),
        (option, go(b"db", length=2**32 - 1), INVALID),
        (option, go(b"db", length=3), INVALID),
        (option, go(b"db", infos=b"\0\5\0\0"), INVALID),
        (option, go(b"db") + b"more", INVALID),
        (option, go(b"\xff\xfe"), INVALID),
        (option, go(b"d\0b"), INVALID),
        (option, go(b"x" * 5000), INVALID),
        (option, b"x" * 100_000, TOO_BIG),
        (option, go(b"absent"), UNKNOWN),
        (option, go(b"x" * 4096), UNKNOWN),
        (option, go(b""), UNKNOWN),
        (option, go(b"../../etc/passwd"), UNKNOWN),
        (option, go("dü".encode()), UNKNOWN),
    ]
    with start(socket_path) as stream:
        for number, data, expected in cases:
            assert haggle(stream, number, data) == expected, (number, data[:40])
        assert haggle(stream, 7, go(b"db")) == REPLY_ACK
        client = NbdClient(stream, SIZE_BYTES, 0)
        assert client.read(0, 3) == b"xxx"


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack(">I", 2**31),  # Flags that were not offered.
        struct.pack(">I", 1) + b"IHAVENOT" + struct.pack(">II", 7, 0),
        struct.pack(">I", 1) + OPTION_MAGIC + struct.pack(">II", 7, 2**32 - 1),
        struct.pack(">I", 1) + OPTION_MAGIC + struct.pack(">II", 1, 6) + b"absent",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["flags", "magic", "length", "export-name", "http"],
)
def test_a_handshake_that_makes_no_sense_ends_the_connection(
    pool: ramet.Pool, socket_path: Path, sent: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(nbd_client.ANSWER_SECONDS_MAX)
        stream.connect(str(socket_path))
        receive(stream, 18)
        stream.sendall(sent)
        assert_ended(stream)
    with nbd_client.connect(socket_path, "db") as client:
        assert client.read(0, 3) == b"xxx"


def test_what_was_deleted_or_closed_by_force_cannot_be_opened(
    pool: ramet.Pool, socket_path: Path
) -> None:
    client = nbd_client.connect(socket_path, "db")
    pool.delete("db", force=True)
    with pytest.raises((ConnectionError, BrokenPipeError)):
        client.read(0, 1)
    client.disconnect()
    with pytest.raises(NbdRefusedError) as caught:
        nbd_client.connect(socket_path, "db")
    assert caught.value.reply == UNKNOWN
    assert "object_not_found" in str(caught.value)


def test_a_damaged_block_is_eio_for_that_block_until_it_is_written_anew(
    pool_path: Path, tmp_path: Path
) -> None:
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        volume = pool.create_volume("db", MIB)
        volume.write(0, b"a" * BLOCK_BYTES + MARK[:BLOCK_BYTES] + b"c" * BLOCK_BYTES)
        volume.flush()
    for path in pool_path.glob("segments/*.seg"):
        content = path.read_bytes()
        path.write_bytes(content.replace(MARK[:200], b"?" + MARK[1:200]))
    with ramet.open(pool_path) as pool, pool.serve_nbd(tmp_path / "nbd.sock") as server:
        with nbd_client.connect(server.socket_path, "db") as client:
            for call in (
                lambda: client.read(0, MIB),
                lambda: client.read(BLOCK_BYTES + 1, 1),
                lambda: client.write(BLOCK_BYTES + 1, b"a part needs the rest"),
            ):
                assert_eio(call)
            assert client.read(0, BLOCK_BYTES) == b"a" * BLOCK_BYTES
            client.write(BLOCK_BYTES, b"b" * BLOCK_BYTES)
            assert client.read(BLOCK_BYTES, 2 * BLOCK_BYTES) == b"b" * 4096 + b"c" * 4096
            client.flush()
        assert pool.volume("db").read(BLOCK_BYTES, 1) == b"b"


@pytest.mark.slow
def test_a_pool_whose_files_cannot_be_written_is_eio_for_changes_and_is_read_on(
    pool_path: Path,
) -> None:
    """A limit of zero on the size of files makes every write of the service fail.

    The pool is poisoned then: nothing is written any more though the limit is lifted, reads go on,
    the service says so at its end, and the next one has all that was flushed.
    """
    with serving(make_pool(pool_path)) as served:
        with served.verbs() as verbs:
            verbs.create_volumes(["db"], "64MiB", None)
        with served.connect("db") as client:
            client.write(0, b"flushed")
            client.flush()
            limits = resource.prlimit(served.process_id, resource.RLIMIT_FSIZE)
            resource.prlimit(served.process_id, resource.RLIMIT_FSIZE, (0, limits[1]))
            client.write(BLOCK_BYTES, b"staged")
            assert_eio(client.flush)
            resource.prlimit(served.process_id, resource.RLIMIT_FSIZE, limits)
            assert_eio(client.flush)
            assert_eio(lambda: client.write(0, b"more"))
            assert_eio(lambda: client.trim(0, MIB))
            assert_eio(lambda: client.write_zeroes(0, MIB))
            assert client.read(0, 7) == b"flushed"
        with served.verbs() as verbs:
            assert verbs.stats()["poisoned"] is True
        status, health = served.health()
        assert (status, health["status"]) == (503, "poisoned")
        assert health["reason"]
        served.terminate()
        assert served.wait() == 6, "unavailable: what was not flushed may be lost"
        assert "pool_poisoned" in "".join(served.said)
        assert len([line for line in served.said if line.startswith("poisoned: ")]) == 1
    with serving(pool_path) as served, served.connect("db") as client:
        assert client.read(0, 7) == b"flushed"
        status, health = served.health()
        assert (status, health["status"], health["reason"]) == (200, "ok", "")


@pytest.mark.slow
def test_a_poisoned_service_ends_by_itself_where_it_is_asked_to(pool_path: Path) -> None:
    """Nobody flushes: the service finds out when it flushes by itself.

    It never did where no segment could be prepared ahead: what was written stayed in memory.
    """
    with serving(make_pool(pool_path), "--exit-when-poisoned") as served:
        with served.verbs() as verbs:
            verbs.create_volumes(["db"], "64MiB", None)
        with served.connect("db") as client:
            client.write(0, b"flushed")
            client.flush()
            limits = resource.prlimit(served.process_id, resource.RLIMIT_FSIZE)
            resource.prlimit(served.process_id, resource.RLIMIT_FSIZE, (0, limits[1]))
            client.write(BLOCK_BYTES, b"staged")
        assert served.wait() == 6
        assert "poisoned: " in "".join(served.said)
    with serving(pool_path) as served, served.connect("db") as client:
        assert client.read(0, 7) == b"flushed"
