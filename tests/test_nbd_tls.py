"""TLS: who gets in, what is told before it, what a certificate allows, and that bytes are bytes.

Standard clients are tested where they are there; the rest by a raw socket under Python's own TLS.
"""

import contextlib
import json
import random
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbd_client
import programs
import ramet
from certificates import Authority
from nbd_client import NbdClient, NbdRefusedError, ask, go, pack_string

MIB = 2**20
SIZE_BYTES = 16 * MIB
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED = 1, 2, 3, 5, 6, 7, 8
LIST_CONTEXT, SET_CONTEXT, EXTENDED = 9, 10, 11
UNSUPPORTED, POLICY, INVALID, TLS_REQUIRED, UNKNOWN = (1 << 31 | it for it in (1, 2, 3, 5, 6))
HANDSHAKE_SECONDS_MAX = 10
OPTIONS = (LIST, INFO, GO, STRUCTURED, LIST_CONTEXT, SET_CONTEXT, EXTENDED, 99)


class Pki:
    """An authority, a server of it, and a client of it; and a stranger's client."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory / "authority")
        self.server = self.authority.server(directory / "server")
        self.client = self.authority.client(directory / "client", "host-1", "DNS:host-1.example")
        stranger = Authority(directory / "stranger", "stranger")
        self.wrong = stranger.client(directory / "wrong", "host-1")
        (self.wrong / "ca-cert.pem").write_bytes(self.authority.certificate.read_bytes())
        self.nobody = directory / "nobody"
        self.nobody.mkdir()
        (self.nobody / "ca-cert.pem").write_bytes(self.authority.certificate.read_bytes())

    def tls(self, clients: bool = False, allow: Path | None = None) -> ramet.NbdTls:
        return ramet.NbdTls(*self.server, self.authority.certificate if clients else None, allow)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def served_pool(pool: ramet.Pool) -> ramet.Pool:
    """A pool with volume "db", which begins with "x", and volume "other"."""
    pool.create_volume("db", SIZE_BYTES).write(0, b"x" * MIB)
    pool.create_volume("other", MIB)
    return pool


@pytest.fixture
def address(served_pool: ramet.Pool, pki: Pki) -> Iterator[tuple[str, int]]:
    """Where it is served with TLS, to anybody who has it."""
    with served_pool.serve_nbd("tcp:127.0.0.1:0", tls=pki.tls()) as server:
        yield host_and_port(server)


def host_and_port(server: ramet.NbdServer) -> tuple[str, int]:
    (told,) = server.addresses
    _, host, port = told.split(":")
    return host, int(port)


def greet(address: tuple[str, int]) -> socket.socket:
    """Connect and take the greeting, without TLS."""
    stream = socket.create_connection(address, nbd_client.ANSWER_SECONDS_MAX)
    nbd_client.greet(stream)
    return stream


def encrypt(
    stream: socket.socket, directory: Path, version: ssl.TLSVersion | None = None
) -> ssl.SSLSocket:
    """Ask for TLS, and begin it with the files of a client's directory."""
    assert ask(stream, STARTTLS, b"") == []
    context = ssl.create_default_context(cafile=str(directory / "ca-cert.pem"))
    if version is not None:
        context.minimum_version = context.maximum_version = version
    certificate = directory / "client-cert.pem"
    if certificate.exists():
        context.load_cert_chain(certificate, directory / "client-key.pem")
    return context.wrap_socket(stream, server_hostname="localhost")


def refusal(stream: socket.socket, option: int, payload: bytes = b"") -> int:
    with pytest.raises(NbdRefusedError) as caught:
        ask(stream, option, payload)
    return caught.value.reply


def name_data(name: str) -> bytes:
    return pack_string(name.encode()) + b"\0\0"


def listed(stream: socket.socket) -> list[str]:
    return [content[4:].decode() for _, content in ask(stream, LIST, b"")]


def assert_ended(stream: socket.socket) -> None:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        assert stream.recv(1) == b""


def test_nothing_is_told_before_tls_where_it_is_needed(address: tuple[str, int], pki: Pki) -> None:
    with greet(address) as stream:
        for option in OPTIONS:
            assert refusal(stream, option, name_data("db")) == TLS_REQUIRED, option
        assert refusal(stream, STARTTLS, b"data") == INVALID
        with encrypt(stream, pki.nobody) as encrypted:
            assert refusal(encrypted, STARTTLS) == INVALID
            assert listed(encrypted) == ["db", "other"]
            client = NbdClient(encrypted, *go(encrypted, "db"))
            assert client.read(MIB - 2, 4) == b"xx\0\0"
    with greet(address) as stream:
        assert ask(stream, ABORT, b"") == []
        assert_ended(stream)
    with greet(address) as stream:
        stream.sendall(b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, 2) + b"db")
        assert_ended(stream)


def test_a_client_that_cannot_ask_for_tls_is_sent_away(address: tuple[str, int]) -> None:
    with socket.create_connection(address, nbd_client.ANSWER_SECONDS_MAX) as stream:
        nbd_client.receive(stream, 18)
        stream.sendall(bytes(4))
        assert_ended(stream)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_of_tls_are_spoken(
    address: tuple[str, int], pki: Pki, version: ssl.TLSVersion
) -> None:
    with encrypt(greet(address), pki.nobody, version) as stream:
        assert stream.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
        assert NbdClient(stream, *go(stream, "db")).read(0, 2) == b"xx"


def test_what_is_sent_together_with_the_request_for_tls_is_never_heard(
    address: tuple[str, int],
) -> None:
    """Whoever is between client and server could put options in front of the client's own.

    Several servers took such bytes for what came encrypted (CVE-2021-3716 is nbdkit's).
    """
    with greet(address) as stream:
        starttls = b"IHAVEOPT" + struct.pack(">II", STARTTLS, 0)
        stream.sendall(starttls + b"IHAVEOPT" + struct.pack(">II", STRUCTURED, 0))
        magic, _, kind, length = struct.unpack(">QIII", nbd_client.receive(stream, 20))
        assert (magic, kind, length) == (0x0003_E889_0455_65A9, 1, 0)
        assert_ended(stream)


def test_what_was_agreed_on_before_tls_is_void(served_pool: ramet.Pool, pki: Pki) -> None:
    with served_pool.serve_nbd("tcp:127.0.0.1:0", tls=pki.tls(), plain_tcp=True) as server:
        with greet(host_and_port(server)) as stream:
            assert ask(stream, STRUCTURED, b"") == []
            with encrypt(stream, pki.nobody) as encrypted:
                # A read would be answered in chunks otherwise.
                assert NbdClient(encrypted, *go(encrypted, "db")).read(0, 2) == b"xx"
        with greet(host_and_port(server)) as stream:
            assert NbdClient(stream, *go(stream, "db")).read(0, 2) == b"xx", "plain is served too"


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"IHAVEOPT" + struct.pack(">II", LIST, 0),
        b"\x16\x03\x01\xff\xff" + b"a record that is longer than any",
        bytes(100),
    ],
    ids=["another protocol", "an option", "a long record", "zeros"],
)
def test_garbage_in_place_of_tls_ends_its_connection_only(
    address: tuple[str, int], pki: Pki, garbage: bytes
) -> None:
    with encrypt(greet(address), pki.nobody) as other, greet(address) as stream:
        assert ask(stream, STARTTLS, b"") == []
        stream.sendall(garbage)
        stream.settimeout(HANDSHAKE_SECONDS_MAX / 2)
        # An alert may say so, then comes the end.
        with contextlib.suppress(ConnectionError):
            while stream.recv(MIB):
                pass
        assert NbdClient(other, *go(other, "db")).read(0, 2) == b"xx"
    with encrypt(greet(address), pki.nobody) as encrypted:
        assert listed(encrypted) == ["db", "other"]


@pytest.mark.slow
def test_a_handshake_that_does_not_end_is_ended(address: tuple[str, int], pki: Pki) -> None:
    """Who said nothing, or a byte now and then, kept a thread and its place for ever."""
    with greet(address) as silent, greet(address) as slow:
        for stream in (silent, slow):
            assert ask(stream, STARTTLS, b"") == []
        hello = b"\x16\x03\x01\x40\x00" + b"\x01\x00\x3f\xfc"
        slow.settimeout(0.25)
        with contextlib.suppress(ConnectionError):
            for it in range(MIB):
                slow.sendall(hello[it : it + 1] or b"\0")
                with contextlib.suppress(TimeoutError):
                    slow.recv(1)
                    break
        # An alert may say so, then comes the end.
        with contextlib.suppress(ConnectionError):
            while silent.recv(MIB):
                pass
    with greet(address) as stream, encrypt(stream, pki.nobody) as encrypted:
        assert listed(encrypted) == ["db", "other"]


def test_there_is_no_tls_where_there_are_no_certificates(
    served_pool: ramet.Pool, pki: Pki, tmp_path: Path
) -> None:
    with (
        served_pool.serve_nbd("tcp:127.0.0.1:0") as server,
        greet(host_and_port(server)) as stream,
    ):
        assert refusal(stream, STARTTLS) == UNSUPPORTED
        assert NbdClient(stream, *go(stream, "db")).read(0, 2) == b"xx"
    # Who may open the file of a unix socket is who may connect, with or without certificates.
    path = tmp_path / "nbd.sock"
    with (
        served_pool.serve_nbd(path, "tcp:127.0.0.1:0", tls=pki.tls(clients=True)),
        nbd_client.connect(path, "db") as client,
    ):
        assert client.read(0, 2) == b"xx"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_without_the_right_certificate_is_refused(
    served_pool: ramet.Pool, pki: Pki, version: ssl.TLSVersion
) -> None:
    with served_pool.serve_nbd("tcp:127.0.0.1:0", tls=pki.tls(clients=True)) as server:
        for directory in (pki.nobody, pki.wrong):
            # With TLS 1.3 a client learns of it only when it reads.
            with (
                pytest.raises((ConnectionError, ssl.SSLError)),
                greet(host_and_port(server)) as stream,
                encrypt(stream, directory, version) as encrypted,
            ):
                ask(encrypted, LIST, b"")
        with encrypt(greet(host_and_port(server)), pki.client, version) as stream:
            assert NbdClient(stream, *go(stream, "db")).read(0, 2) == b"xx"


def test_a_client_opens_what_the_list_allows_and_sees_nothing_else(
    served_pool: ramet.Pool, pki: Pki, tmp_path: Path
) -> None:
    served_pool.snapshot(["db"], name="db@1")
    served_pool.snapshot(["db"], name="db@secret")
    allow = tmp_path / "allow"
    allow.write_text("host-1 db db@1 # and no more\nhost-2 *\n")
    tls = pki.tls(clients=True, allow=allow)
    with served_pool.serve_nbd("tcp:127.0.0.1:0", tls=tls) as server:
        address = host_and_port(server)
        with encrypt(greet(address), pki.client) as stream:
            assert listed(stream) == ["db", "db@1"]
            uuid = served_pool.get("other").uuid
            for name in ("other", "absent", "db@secret", "", uuid):
                assert refusal(stream, INFO, name_data(name)) == POLICY, name
                assert refusal(stream, GO, name_data(name)) == POLICY, name
            ask(stream, STRUCTURED, b"")
            contexts = pack_string(b"db") + struct.pack(">I", 0)
            told = [content[4:].decode() for _, content in ask(stream, LIST_CONTEXT, contexts)]
            assert told == ["base:allocation", "qemu:dirty-bitmap:db@1"]
            query = pack_string(b"db") + struct.pack(">I", 1)
            query += pack_string(b"qemu:dirty-bitmap:db@secret")
            assert ask(stream, SET_CONTEXT, query) == []
            served_pool.delete("db@1")
            assert refusal(stream, INFO, name_data("db@1")) == UNKNOWN
            size, _ = go(stream, served_pool.get("db").uuid)
            assert size == SIZE_BYTES
        with encrypt(greet(address), pki.client) as stream:
            stream.sendall(b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, 5) + b"other")
            assert_ended(stream)
        allow.write_text("*.example *r\n")
        server.reload_tls()
        with encrypt(greet(address), pki.client) as stream:
            assert listed(stream) == ["other"], "the other name in its certificate"


@pytest.mark.random
def test_bytes_are_the_same_through_tls(
    served_pool: ramet.Pool, address: tuple[str, int], pki: Pki, randomness: random.Random
) -> None:
    content = bytearray(served_pool.volume("db").read(0, SIZE_BYTES))
    with encrypt(greet(address), pki.nobody) as stream:
        client = NbdClient(stream, *go(stream, "db"))
        for length in (1, 512, 4096, 16_384, 16_385, 65_536, MIB + 1, 9 * MIB, 12 * MIB):
            offset = randomness.randrange(SIZE_BYTES - length + 1)
            data = randomness.randbytes(length)
            client.write(offset, data)
            content[offset : offset + length] = data
            offset = randomness.randrange(SIZE_BYTES - length + 1)
            assert client.read(offset, length) == content[offset : offset + length]
        # Many requests at once, replies to all of them.
        header = struct.pack(">IHHQQI", 0x2560_9513, 0, 0, 5, 0, 4096)
        stream.sendall(header * 500)
        for _ in range(500):
            assert nbd_client.receive(stream, 16 + 4096)[16:] == content[:4096]
        client.flush()
    assert served_pool.volume("db").read(0, SIZE_BYTES) == content


def test_a_write_that_was_cut_off_under_tls_is_never_applied(
    served_pool: ramet.Pool, address: tuple[str, int], pki: Pki
) -> None:
    with encrypt(greet(address), pki.nobody) as stream:
        go(stream, "db")
        stream.sendall(struct.pack(">IHHQQI", 0x2560_9513, 0, 1, 5, 0, MIB) + b"!" * (MIB - 1))
        # Without a goodbye of TLS, as somebody between both could.
        stream.shutdown(socket.SHUT_WR)
        # The server's own goodbye, then the end: Python has let go of TLS already.
        while stream.recv(1024):
            pass
    assert served_pool.volume("db").read(0, MIB) == b"x" * MIB


def test_files_that_are_of_no_use_are_refused_by_name(
    served_pool: ramet.Pool, pki: Pki, tmp_path: Path
) -> None:
    certificate, key = pki.server
    other_key = pki.client / "client-key.pem"
    empty, rules = tmp_path / "empty.pem", tmp_path / "rules"
    empty.write_text("")
    rules.write_text("host-1 # and nothing for it\n")
    authority = pki.authority.certificate
    for tls, named in (
        (ramet.NbdTls(tmp_path / "absent.pem", key), "absent.pem"),
        (ramet.NbdTls(certificate, tmp_path / "absent.pem"), "absent.pem"),
        (ramet.NbdTls(empty, key), "empty.pem"),
        (ramet.NbdTls(certificate, empty), "empty.pem"),
        (ramet.NbdTls(certificate, certificate), "server-cert.pem"),
        (ramet.NbdTls(certificate, other_key), "server-cert.pem"),
        (ramet.NbdTls(certificate, key, empty), "empty.pem"),
        (ramet.NbdTls(certificate, key, authority, rules), "line 1"),
        (ramet.NbdTls(certificate, key, None, rules), "rules"),
    ):
        with pytest.raises(ramet.InvalidError) as caught:
            served_pool.serve_nbd("tcp:127.0.0.1:0", tls=tls)
        assert caught.value.code == "nbd_tls_file"
        assert named in caught.value.text
    with pytest.raises(ramet.InvalidError) as caught:
        served_pool.serve_nbd("tcp:127.0.0.1:0", tls=pki.tls(clients=True), plain_tcp=True)
    assert caught.value.code == "tls_contradiction"


def uri_of(address: tuple[str, int], directory: Path, export: str) -> str:
    host, port = address
    return f"nbds://{host}:{port}/{export}?tls-certificates={directory}"


@pytest.mark.slow
def test_libnbd_and_qemu_attach_by_tls(served_pool: ramet.Pool, pki: Pki, tmp_path: Path) -> None:
    with served_pool.serve_nbd("tcp:127.0.0.1:0", tls=pki.tls(clients=True)) as server:
        address = host_and_port(server)
        told = json.loads(programs.run("nbdinfo", "--json", uri_of(address, pki.client, "db")))
        assert (told["protocol"], told["TLS"]) == ("newstyle-fixed", True)
        copy, back = tmp_path / "copy.raw", tmp_path / "back.raw"
        programs.run("nbdcopy", uri_of(address, pki.client, "db"), copy)
        assert copy.read_bytes() == served_pool.volume("db").read(0, SIZE_BYTES)

        def image(export: str) -> str:
            place = f"server.type=inet,server.host={address[0]},server.port={address[1]}"
            return f"driver=nbd,export={export},{place},tls-creds=tls"

        def credentials(directory: Path) -> tuple[str, str]:
            return "--object", f"tls-creds-x509,id=tls,dir={directory},endpoint=client"

        opened = (*credentials(pki.client), "--image-opts")
        programs.run("qemu-io", *opened, "-c", "write -P 7 1M 2M", "-c", "flush", image("db"))
        assert served_pool.volume("db").read(MIB, 2 * MIB) == b"\7" * 2 * MIB
        programs.run("qemu-img", "convert", *opened, "-O", "raw", image("db"), back)
        assert back.read_bytes() == served_pool.volume("db").read(0, SIZE_BYTES)
        # Plain, and with the wrong certificate.
        host, port = address
        said = programs.fail("nbdinfo", f"nbd://{host}:{port}/db")
        assert "TLS" in said
        programs.fail("nbdinfo", uri_of(address, pki.wrong, "db"))
        programs.fail("qemu-img", "info", *credentials(pki.wrong), "--image-opts", image("db"))
        plain = image("db").removesuffix(",tls-creds=tls")
        said = programs.fail("qemu-img", "info", "--image-opts", plain)
        assert "TLS" in said
