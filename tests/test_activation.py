"""Sockets that a service manager passes to the service, and what it hears of it.

The manager is played by the test: sockets from number 3 on, and the environment of systemd. Two
real ones are asked at the end, systemd's own and libnbd's.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import nbd_client
import programs
import ramet
from nbd_client import NbdClient, go
from ramet.activation import Given, take_given, tell
from ramet.config import format_nbd_uri
from serving import END_SECONDS_MAX, RAMET, Serving, make_pool, serving
from serving import ramet as run
from test_documents import SYSTEM_PYTHON

LAUNCHER = """
import os, sys
numbers, names, command = sys.argv[1], sys.argv[2], sys.argv[3:]
passed = [int(number) for number in numbers.split(",")]
# First out of the way: a number may be taken by another one that is still to be moved.
passed = [os.dup(number) for number in passed]
spare = [os.dup2(number, 200 + place) for place, number in enumerate(passed)]
for place, number in enumerate(spare):
    os.dup2(number, 3 + place)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(passed))}
os.environ["LISTEN_FDNAMES"] = names
os.execv(command[0], command)
"""


@pytest.fixture
def served_pool(pool_path: Path) -> Path:
    """A pool with volume "db", which nobody holds."""
    make_pool(pool_path)
    run("-p", pool_path, "volume", "create", "db", "--size", "1MiB")
    return pool_path


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield listener


def launched(sockets: list[socket.socket], names: str) -> list[str]:
    """Give a command that becomes the service with these sockets passed to it."""
    numbers = ",".join(str(it.fileno()) for it in sockets)
    return [sys.executable, "-c", LAUNCHER, numbers, names, *RAMET]


@pytest.mark.slow
def test_a_service_takes_the_sockets_that_are_passed_to_it(
    served_pool: Path, tmp_path: Path
) -> None:
    nbd_path, api_path = tmp_path / "nbd.sock", tmp_path / "api.sock"
    with ExitStack() as stack:
        unix = stack.enter_context(listening(nbd_path))
        api = stack.enter_context(listening(api_path))
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        sockets = [unix, api, tcp]
        command = launched(sockets, "nbd:api:anything")
        descriptors = [it.fileno() for it in sockets]
        for content in (b"first", b"again"):
            # Who connects before the service is there waits for it.
            early = socket.create_connection(tcp.getsockname(), nbd_client.ANSWER_SECONDS_MAX)
            with serving(served_pool, command=command, descriptors=descriptors) as served, early:
                nbd_client.greet(early)
                with nbd_client.connect(nbd_path, "db") as client:
                    client.write(0, content)
                assert NbdClient(early, *go(early, "db")).read(0, 5) == content
                told = json.loads(run("-p", served_pool, "volume", "show", "db", "--json"))
                assert told["nbd_uri"].endswith(f"?socket={nbd_path}")
                with served.verbs() as verbs:
                    assert verbs.api_path == api_path
                assert not (served_pool / "nbd.sock").exists()
                assert not (served_pool / "api.sock").exists()
            assert nbd_path.exists(), "its file is the manager's"
            assert api_path.exists()


@pytest.mark.slow
def test_a_socket_by_tcp_alone_leaves_the_standard_ones_to_commands(served_pool: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp:
        command = launched([tcp], "")
        with serving(served_pool, command=command, descriptors=[tcp.fileno()]) as served:
            with socket.create_connection(tcp.getsockname()) as stream:
                nbd_client.greet(stream)
                NbdClient(stream, *go(stream, "db")).write(7, b"by TCP")
            with served.connect("db") as client:
                assert client.read(7, 6) == b"by TCP"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "names", "code", "exit_code"),
    [
        ("0.0.0.0", "", "nbd_address_insecure", 2),  # noqa: S104 - it must be refused.
        ("127.0.0.1", "api", "api_socket_unusable", 2),
    ],
)
def test_a_passed_socket_that_may_not_be_served_is_refused(
    served_pool: Path, host: str, names: str, code: str, exit_code: int
) -> None:
    with socket.create_server((host, 0)) as tcp:
        command = launched([tcp], names)
        with pytest.raises(AssertionError, match=f"error: {code}: "):
            Serving(served_pool, command=command, descriptors=[tcp.fileno()])


def test_what_was_passed_is_taken_once_and_by_whom_it_is_for() -> None:
    own = str(os.getpid())
    environment = {"LISTEN_PID": own, "LISTEN_FDS": "3", "LISTEN_FDNAMES": "x:api:y", "OTHER": "z"}
    assert take_given(environment) == Given((3, 5), 4)
    assert environment == {"OTHER": "z"}
    assert take_given(environment) == Given()
    assert take_given({"LISTEN_PID": own, "LISTEN_FDS": "2"}) == Given((3, 4))
    assert take_given({"LISTEN_PID": "1", "LISTEN_FDS": "2"}) == Given(), "for another process"
    assert take_given({"LISTEN_FDS": "2"}) == Given()
    for wrong in (
        {"LISTEN_PID": own, "LISTEN_FDS": "two"},
        {"LISTEN_PID": own, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "api:api"},
    ):
        with pytest.raises(ramet.InvalidError) as caught:
            take_given(wrong)
        assert caught.value.code == "listen_fds_malformed"


@pytest.mark.slow
def test_the_manager_hears_when_the_service_is_ready_and_when_it_ends(
    served_pool: Path, tmp_path: Path
) -> None:
    path = tmp_path / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(nbd_client.ANSWER_SECONDS_MAX)
        manager.bind(str(path))
        with serving(served_pool, environment={"NOTIFY_SOCKET": str(path)}):
            assert manager.recv(100) == b"READY=1"
        assert manager.recv(100) == b"STOPPING=1"


def test_a_manager_is_told_by_an_abstract_name_too_and_may_be_gone() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")  # The system chooses an abstract name.
        name = manager.getsockname()[1:].decode()
        tell("READY=1", {"NOTIFY_SOCKET": f"@{name}"})
        assert manager.recv(100) == b"READY=1"
    tell("READY=1", {"NOTIFY_SOCKET": f"@{name}"})
    tell("READY=1", {})


@pytest.mark.slow
def test_systemd_starts_the_service_when_a_client_connects(
    served_pool: Path, tmp_path: Path
) -> None:
    path = tmp_path / "nbd.sock"
    activator = programs.find("systemd-socket-activate")
    command = [activator, "-l", str(path), *RAMET, "-p", str(served_pool), "serve"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert any("Listening on" in line for line in process.stderr)
            assert not (served_pool / "api.sock").exists(), "it waits for the client"
            script = "write -P 7 0 4k\nread -P 7 0 4k\n"
            programs.run("qemu-io", "-f", "raw", format_nbd_uri("db", path), text_in=script)
            process.terminate()  # The activator has become the service.
            assert process.wait(END_SECONDS_MAX) == 0
        finally:
            process.kill()
    with ramet.open(served_pool, read_only=True) as pool:
        assert pool.volume("db").read(0, 4097) == b"\7" * 4096 + b"\0"


@pytest.mark.slow
def test_libnbd_starts_a_service_for_itself(served_pool: Path) -> None:
    if programs.finish(SYSTEM_PYTHON, "-c", "import nbd").returncode:
        pytest.skip("no module nbd; hint: tools/setup tools")
    script = f"""
import nbd
command = {[*RAMET, "-p", str(served_pool), "serve"]}
h = nbd.NBD()
try:
    h.connect_systemd_socket_activation(command)
except nbd.Error as error:
    print(error)
del h  # Ends the service.
h = nbd.NBD()
h.set_export_name("db")
h.connect_systemd_socket_activation(command)
h.pwrite(b"by libnbd", 0)
h.flush()
print(h.pread(9, 0))
h.shutdown()
del h
"""
    refused, read = programs.run(SYSTEM_PYTHON, "-c", script).splitlines()
    assert "server has no export named ''" in refused, "the guide says that it has to be given"
    assert read == "bytearray(b'by libnbd')"
    with ramet.open(served_pool, read_only=True) as pool:
        assert pool.volume("db").read(0, 9) == b"by libnbd"
