"""What is attached over NBD: refused, unless the connections are closed first."""

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

import ramet
from ramet.errors import BusyError

OPTION_GO = 7
REPLY_ACK = 1
MAGIC_OPTION = b"IHAVEOPT"


@contextlib.contextmanager
def attached(socket_path: str, name: str) -> Iterator[socket.socket]:
    """Be an NBD client that has export `name` open."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(socket_path)
        assert receive(client, 18)[:16] == b"NBDMAGIC" + MAGIC_OPTION
        client.sendall(struct.pack(">I", 3))
        payload = struct.pack(">I", len(name)) + name.encode() + struct.pack(">H", 0)
        client.sendall(MAGIC_OPTION + struct.pack(">II", OPTION_GO, len(payload)) + payload)
        reply = 0
        while reply != REPLY_ACK:
            _, _, reply, length = struct.unpack(">QIII", receive(client, 20))
            assert not reply & 0x8000_0000, f"refused: {reply:#x} {receive(client, length)!r}"
            receive(client, length)
        yield client


def receive(client: socket.socket, length: int) -> bytes:
    content = b""
    while len(content) < length:
        part = client.recv(length - len(content))
        assert part, "the server hung up"
        content += part
    return content


def is_hung_up(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.fixture
def server(pool: ramet.Pool, tmp_path: Path) -> Iterator[ramet.NbdServer]:
    """A server of a pool with volume "db", its snapshot "db@1", and volume "other"."""
    pool.create_volume("db", "1MiB").snapshot("db@1")
    pool.create_volume("other", "1MiB")
    with pool.serve_nbd(tmp_path / "nbd.sock") as started:
        yield started


def test_the_socket_is_private_and_a_stale_one_is_replaced(
    pool: ramet.Pool, tmp_path: Path
) -> None:
    path = tmp_path / "nbd.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with pool.serve_nbd(path) as server:
        assert server.socket_path == str(path)
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(BusyError):
            pool.serve_nbd(path)
    pool.serve_nbd(path).close()


def test_what_is_attached_is_neither_deleted_nor_reverted(
    pool: ramet.Pool, server: ramet.NbdServer
) -> None:
    with attached(server.socket_path, "db"), attached(server.socket_path, "db"):
        assert server.connections_count == 2
        assert pool.record("db").attached_count == 2
        for call in (lambda: pool.delete(["other", "db"]), lambda: pool.revert("db", "db@1")):
            with pytest.raises(BusyError) as caught:
                call()
            assert caught.value.code == "object_attached"
        assert [it.name for it in pool.objects()] == ["db", "db@1", "other"]
        pool.snapshot("db")
        pool.clone("db", "clone")
        pool.rename("db", "renamed")


def test_force_closes_the_connections_of_what_is_deleted_and_no_other(
    pool: ramet.Pool, server: ramet.NbdServer
) -> None:
    with (
        attached(server.socket_path, "db") as first,
        attached(server.socket_path, "db@1") as second,
        attached(server.socket_path, "other"),
    ):
        deleted = pool.delete(["db", "db@1"], force=True)
        assert [it.name for it in deleted] == ["db", "db@1"]
        assert is_hung_up(first)
        assert is_hung_up(second)
        assert pool.record("other").attached_count == 1
    pool.create_volume("db", "1MiB")
    with attached(server.socket_path, "db"):
        assert pool.record("db").attached_count == 1


def test_force_closes_the_connections_of_what_is_reverted(
    pool: ramet.Pool, server: ramet.NbdServer
) -> None:
    pool.volume("db").write(0, b"new")
    with attached(server.socket_path, "db") as client:
        kept = pool.revert("db", "db@1", force=True)
        assert is_hung_up(client)
    assert kept is not None
    assert kept.read(0, 3) == b"new"
    assert pool.volume("db").read(0, 3) == bytes(3)
    with attached(server.socket_path, "db"):
        assert pool.record("db").attached_count == 1


def test_a_server_ends_with_its_pool(pool_path: Path) -> None:
    pool = ramet.open(pool_path, create=True)
    pool.create_volume("db", "1MiB")
    server = pool.serve_nbd(pool_path / "nbd.sock")
    with attached(server.socket_path, "db") as client:
        pool.close()
        assert is_hung_up(client)
    server.close()
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(OSError, match=r"No such|refused"):
        client.connect(str(pool_path / "nbd.sock"))
