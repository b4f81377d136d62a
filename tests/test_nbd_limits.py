"""What clients that never finish cost the service: bounded memory, and nobody's time."""

import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import nbd_client
from certificates import Authority
from nbd_client import receive
from serving import Serving, make_pool, serving

MIB = 2**20
CONNECTIONS_COUNT = 1000
LEFT_BYTES_MAX = 10 * MIB
"""What a crowd may leave behind, and another one after it: the allocator's arenas keep some."""
OPEN_BYTES_MAX = 32 * MIB
"""While they are there: each has a thread, which touches two pages or three of its stack, and a
buffer a few times as large as what it sent, or as one of its replies."""
KINDS_COUNT = 8
STARTTLS = 5
STRUCTURED, EXTENDED = 8, 11
UNREAD = {6: (STRUCTURED, ">IHHQQI", 0x2560_9513), 7: (EXTENDED, ">IHHQQQ", 0x21E4_1C71)}
"""Kinds that read and take no reply: what they ask for first, and how a request begins."""
READ_BYTES, READS_COUNT = 32 << 10, 16
"""What those read: more than a socket holds."""


def facts_of(process_id: int) -> tuple[int, int]:
    """Give a process's resident bytes and its number of threads."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{process_id}/status").read_text().splitlines()
    )
    return int(fields["VmRSS"].split()[0]) * 1024, int(fields["Threads"])


def abandon(socket_path: Path, kind: int) -> socket.socket:
    """Connect, come so far, and say no more."""
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(nbd_client.ANSWER_SECONDS_MAX)
    stream.connect(str(socket_path))
    if kind == 0:
        return stream
    receive(stream, 18)
    stream.sendall(struct.pack(">I", 3))
    if kind == 1:
        stream.sendall(b"IHAVEOPT" + struct.pack(">II", 7, 60_000) + b"x" * 100)
        return stream
    if kind in UNREAD:
        option, layout, magic = UNREAD[kind]
        nbd_client.ask(stream, option, b"")
        nbd_client.go(stream, "db")
        stream.sendall(struct.pack(layout, magic, 0, 0, 1, 0, READ_BYTES) * READS_COUNT)
        return stream
    nbd_client.go(stream, "db")
    if kind > 2:
        announced = struct.pack(">IHHQQI", 0x2560_9513, 0, 1, 1, 0, 32 * MIB)
        # The first is the header alone, the next has less than a block, the last has more.
        stream.sendall(announced + b"x" * {3: 0, 4: 1000, 5: 5000}[kind])
    return stream


@contextmanager
def abandoned(served: Serving) -> Iterator[None]:
    """A thousand connections that go no further; afterwards they are closed, and forgotten."""
    threads_count = facts_of(served.process_id)[1]
    streams = [abandon(served.nbd_path, it % KINDS_COUNT) for it in range(CONNECTIONS_COUNT)]
    yield
    for stream in streams:
        stream.close()
    while facts_of(served.process_id)[1] > threads_count:
        pass


@pytest.mark.slow
def test_a_thousand_abandoned_connections_leave_no_memory_behind(pool_path: Path) -> None:
    """Buffers came from the allocator, whose sixteen arenas kept a megabyte of them each."""
    with serving(make_pool(pool_path)) as served:
        with served.verbs() as verbs:
            verbs.create_volumes(["db"], "64MiB", None)
        with served.connect("db") as client:
            client.write(0, b"x" * MIB)
            client.flush()
        before, _ = facts_of(served.process_id)
        for _ in range(3):
            with abandoned(served), served.connect("db") as client:
                assert client.read(0, MIB) == b"x" * MIB, "others are served meanwhile"
                assert facts_of(served.process_id)[0] < before + OPEN_BYTES_MAX
            left, _ = facts_of(served.process_id)
            assert left < before + LEFT_BYTES_MAX


@contextmanager
def encrypted(served: Serving, port: int) -> Iterator[None]:
    """A thousand connections with TLS and an export; afterwards they are closed, and forgotten."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    threads_count = facts_of(served.process_id)[1]
    streams = []
    for _ in range(CONNECTIONS_COUNT):
        stream = socket.create_connection(("127.0.0.1", port), nbd_client.ANSWER_SECONDS_MAX)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        nbd_client.greet(stream)
        assert nbd_client.ask(stream, STARTTLS, b"") == []
        streams.append(context.wrap_socket(stream))
        nbd_client.go(streams[-1], "db")
    yield
    for stream in streams:
        stream.close()
    while facts_of(served.process_id)[1] > threads_count:
        pass


@pytest.mark.slow
def test_crowds_with_tls_leave_no_memory_behind(pool_path: Path, tmp_path: Path) -> None:
    """TLS takes its memory from the allocator, which kept what each crowd needed, and more of the
    next one: 18 MiB after four."""
    certificate, key = Authority(tmp_path / "authority").server(tmp_path / "server")
    make_pool(pool_path)
    options = ("--nbd", "tcp:127.0.0.1:0", "--tls-cert", certificate, "--tls-key", key)
    with serving(pool_path, *options) as served:
        with served.verbs() as verbs:
            verbs.create_volumes(["db"], "64MiB", None)
        port = int("".join(served.said).partition("tcp:127.0.0.1:")[2].partition("'")[0])
        before, _ = facts_of(served.process_id)
        for _ in range(4):
            with encrypted(served, port):
                pass
            left, _ = facts_of(served.process_id)
            assert left < before + LEFT_BYTES_MAX
