"""Where NBD clients are listened for: addresses as they are given, and a service that has several.

Sockets that a service manager passes on are in test_activation.py.
"""

import grp
import json
import os
import signal
import socket
from pathlib import Path

import pytest

import nbd_client
import programs
import ramet
from certificates import Authority
from nbd_client import NbdClient, go
from ramet.listening import NbdListening, find_listening
from serving import Serving, make_pool, run_ramet, serving
from serving import ramet as run


@pytest.fixture
def served_pool(pool_path: Path) -> Path:
    """A pool with volume "db", which nobody holds."""
    make_pool(pool_path)
    run("-p", pool_path, "volume", "create", "db", "--size", "1MiB")
    return pool_path


def tcp_address(served: Serving) -> tuple[str, int]:
    """Where it said that it listens."""
    told = json.loads((served.pool_path / "service.json").read_text())["nbd_addresses"]
    (address,) = (address for address in told if address.startswith("tcp:"))
    _, host, port = address.split(":")
    (ready,) = (line for line in served.said if line.startswith("ready: "))
    assert f"'{address}'" in ready
    return host, int(port)


def greet(address: tuple[str, int]) -> socket.socket:
    stream = socket.create_connection(address, nbd_client.ANSWER_SECONDS_MAX)
    nbd_client.greet(stream)
    return stream


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp:127.0.0.1:1", "127.0.0.1:1"),
        ("tcp:127.0.0.1", "127.0.0.1:10809"),
        ("tcp:[::1]:2", "[::1]:2"),
        ("tcp:[::]", "[::]:10809"),
        ("tcp:0.0.0.0:65535", "0.0.0.0:65535"),
        ("tcp:localhost:0", "127.0.0.1:0"),
    ],
)
def test_a_tcp_address_is_host_and_port(text: str, expected: str) -> None:
    (found,) = find_listening([text]).tcp
    assert found == expected or (text == "tcp:localhost:0" and found == "[::1]:0")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("tcp:", "nbd_address_malformed"),
        ("tcp::10809", "nbd_address_malformed"),
        ("tcp:host:", "nbd_address_malformed"),
        ("tcp:host:65536", "nbd_address_malformed"),
        ("tcp:host:-1", "nbd_address_malformed"),
        ("tcp:host:nbd", "nbd_address_malformed"),
        ("tcp:::1:10809", "nbd_address_malformed"),
        ("tcp:[::1", "nbd_address_malformed"),
        ("tcp://host:10809", "nbd_address_malformed"),
        ("tcp:host..name:1", "nbd_host_unknown"),
        ("tcp:[localhost]:1", "nbd_host_unknown"),
        ("nbd://host", "socket_scheme"),
        ("unix:", "socket_scheme"),
    ],
)
def test_what_is_no_address_is_refused(text: str, code: str) -> None:
    with pytest.raises(ramet.RametError) as caught:
        find_listening([text])
    assert caught.value.code == code


def test_addresses_are_told_apart_and_a_group_has_its_number() -> None:
    group = grp.getgrall()[0]
    found = find_listening(["a.sock", Path("b.sock"), 7], socket_group=group.gr_name)
    assert found == NbdListening(
        [Path("a.sock"), Path("b.sock")], [], [7], socket_group=group.gr_gid
    )
    assert find_listening(["a.sock"], socket_group="12").socket_group == 12
    with pytest.raises(ramet.NotFoundError) as caught:
        find_listening(["a.sock"], socket_group="no such group")
    assert caught.value.code == "socket_group_unknown"


@pytest.mark.slow
def test_a_service_listens_at_all_its_addresses(served_pool: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.sock"
    options = ("--nbd", "tcp:127.0.0.1:0", "--nbd", f"unix:{second}", "--socket-mode", "660")
    with serving(served_pool, *options) as served:
        with greet(tcp_address(served)) as stream, nbd_client.connect(second, "db") as local:
            client = NbdClient(stream, *go(stream, "db"))
            client.write(5, b"by TCP")
            assert local.read(5, 6) == b"by TCP"
            host, port = tcp_address(served)
            uri = f"nbd://{host}:{port}/db"
            assert programs.run("nbdinfo", "--size", uri).strip() == str(2**20)
        assert second.stat().st_mode & 0o777 == 0o660
        # Commands find the first unix socket; the standard one is not made beside it.
        assert not (served_pool / "nbd.sock").exists()
        told = json.loads(run("-p", served_pool, "volume", "show", "db", "--json"))
        assert told["nbd_uri"].endswith(f"?socket={second}")
    with serving(served_pool, "--nbd", "tcp:127.0.0.1:0") as served, served.connect("db") as client:
        assert client.read(5, 6) == b"by TCP", "the standard socket is there beside TCP"


@pytest.mark.slow
def test_a_service_that_cannot_listen_says_why_and_ends(served_pool: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for options, code, text in (
            (["--nbd", "tcp:0.0.0.0:0"], 2, "nbd_address_insecure"),
            (["--nbd", "tcp:[::]:0"], 2, "nbd_address_insecure"),
            (["--nbd", f"tcp:127.0.0.1:{port}"], 5, "nbd_address_in_use"),
            (["--nbd", "tcp:192.0.2.1:0", "--plain-tcp"], 6, "nbd_address_failed"),
            (["--nbd", "tcp:nowhere:x"], 2, "nbd_address_malformed"),
            (["--socket-mode", "rw"], 2, "socket_mode"),
            (["--socket-mode", "1777"], 2, "socket_mode"),
            (["--socket-group", "no such group"], 3, "socket_group_unknown"),
            (["--tls-cert", "x.pem"], 2, "tls_incomplete"),
            (["--tls-key", "x.pem"], 2, "tls_incomplete"),
            (["--tls-cert", "x.pem", "--tls-key", "x.pem"], 2, "nbd_tls_file"),
        ):
            done = run_ramet("-p", served_pool, "serve", *options)
            assert done.returncode == code, done.stderr
            assert done.stderr.startswith(f"error: {text}: "), done.stderr
    assert [path.name for path in served_pool.glob("*.sock")] == []


def reload(served: Serving, expected: str) -> None:
    """Let it read its files again; it must say so."""

    def heard() -> list[str]:
        return [line for line in served.said if line.startswith(("reloaded", "not reloaded"))]

    heard_count = len(heard())
    os.kill(served.process_id, signal.SIGHUP)
    while len(heard()) == heard_count:
        assert served.running
    assert heard()[-1].startswith(expected)


def fetch(served: Serving, export: str, certificates: Path) -> int:
    """Ask for the size with TLS. Result: the exit code."""
    host, port = tcp_address(served)
    uri = f"nbds://{host}:{port}/{export}?tls-certificates={certificates}"
    return programs.finish("nbdinfo", "--size", uri).returncode


@pytest.mark.slow
def test_certificates_are_read_again_at_sighup(served_pool: Path, tmp_path: Path) -> None:
    first, second = Authority(tmp_path / "first"), Authority(tmp_path / "second", "second")
    certificate, key = first.server(tmp_path / "server")
    options = ("--nbd", "tcp:127.0.0.1:0", "--tls-cert", certificate, "--tls-key", key)

    def trusted() -> tuple[int, int]:
        """Ask for the size, trusting each authority. Result: the exit codes."""
        return fetch(served, "db", first.directory), fetch(served, "db", second.directory)

    with serving(served_pool, *options) as served:
        programs.find("nbdinfo")
        assert trusted() == (0, 1)
        second.server(tmp_path / "server")
        reload(served, "reloaded: ")
        assert trusted() == (1, 0)
        key.write_text("no key")
        reload(served, "not reloaded, what there was is used on: nbd_tls_file: ")
        assert trusted() == (1, 0)


@pytest.mark.slow
def test_the_allow_list_is_read_again_at_sighup(served_pool: Path, tmp_path: Path) -> None:
    run("-p", served_pool, "volume", "create", "other", "--size", "1MiB")
    authority = Authority(tmp_path / "authority")
    certificate, key = authority.server(tmp_path / "server")
    client, allow = authority.client(tmp_path / "client", "host-1"), tmp_path / "allow"
    options = ("--nbd", "tcp:127.0.0.1:0", "--tls-cert", certificate, "--tls-key", key)
    options += ("--tls-clients", authority.certificate, "--tls-allow", allow)

    def opened() -> list[str]:
        return [export for export in ("db", "other") if fetch(served, export, client) == 0]

    allow.write_text("host-1 db\n")
    with serving(served_pool, *options) as served:
        programs.find("nbdinfo")
        assert opened() == ["db"]
        allow.write_text("host-1 other\n")
        assert opened() == ["db"], "nobody told it to read the list"
        reload(served, "reloaded: ")
        assert opened() == ["other"]
        allow.write_text("host-1 # and nothing for it\n")
        reload(served, "not reloaded, what there was is used on: nbd_tls_file: ")
        assert opened() == ["other"]
