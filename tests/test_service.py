"""`ramet serve`: how it starts, says what happens, is found by commands, and ends."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

import nbd_client
import programs
import ramet as ramet_api
from ramet.config import find_api_socket, find_nbd_socket, format_nbd_uri
from serving import RAMET, Serving, make_pool, ramet, run_ramet, serving, take_snapshots

MIB = 2**20
END_SECONDS_MAX = 10
AT_ONCE_SECONDS_MAX = 5

pytestmark = pytest.mark.slow


@pytest.fixture
def pool(pool_path: Path) -> Path:
    """A closed pool with volume "db"."""
    make_pool(pool_path)
    ramet("-p", pool_path, "volume", "create", "db", "--size", "1MiB")
    return pool_path


@pytest.fixture
def served(pool: Path) -> Iterator[Serving]:
    with serving(pool) as it:
        yield it


def sockets_in(pool: Path) -> list[str]:
    return sorted(path.name for path in pool.iterdir() if path.is_socket())


def names_listed(*arguments: object) -> list[str]:
    listed = json.loads(ramet(*arguments, "volume", "list", "--json"))
    return [it["name"] for it in listed]


# Starting


def test_its_files_are_for_the_owner_only_and_gone_at_the_end(pool: Path) -> None:
    before = {path.name for path in pool.iterdir()}
    old_mask = os.umask(0)
    try:
        with serving(pool):
            for name in ("nbd.sock", "api.sock"):
                assert stat.S_IMODE((pool / name).stat().st_mode) == 0o600
            told = json.loads((pool / "service.json").read_text())
            assert told["nbd_socket"] == str(pool / "nbd.sock")
    finally:
        os.umask(old_mask)
    assert {path.name for path in pool.iterdir()} == before


def test_what_a_kill_left_behind_is_replaced(pool: Path) -> None:
    with serving(pool) as killed:
        killed.kill()
        killed.wait()
        assert sockets_in(pool) == ["api.sock", "nbd.sock"]
        assert (pool / "service.json").exists()
    assert names_listed("-p", pool) == ["db"], "a command is not led astray by it"
    with serving(pool) as again:
        assert names_listed("-p", pool) == ["db"]
        with again.connect("db") as client:
            assert client.size == MIB


@pytest.mark.parametrize("name", ["nbd.sock", "api.sock"])
def test_a_file_that_is_no_socket_is_left_alone(pool: Path, name: str) -> None:
    (pool / name).write_text("precious")
    done = run_ramet("-p", pool, "serve")
    assert done.returncode == 4
    assert "is not a socket" in done.stderr
    assert (pool / name).read_text() == "precious"
    assert names_listed("-p", pool) == ["db"], "the pool is let go of"


def test_a_second_service_is_told_at_once_and_harms_nothing(served: Serving) -> None:
    begun = time.monotonic()
    done = run_ramet("-p", served.pool_path, "serve")
    assert time.monotonic() - begun < AT_ONCE_SECONDS_MAX
    assert done.returncode == 5
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "pool_in_use" in line
    assert str(served.pool_path) in line
    assert str(served.process_id) in line
    with served.connect("db") as client:
        client.write(0, b"still served")
    assert names_listed("-p", served.pool_path) == ["db"]


def test_it_waits_for_a_command_that_has_the_pool_open(pool: Path) -> None:
    """It was refused at once where any other command would have waited."""
    held = ramet_api.open(pool)
    done = run_ramet("-p", pool, "serve", "--no-wait")
    assert done.returncode == 5
    assert "pool_in_use" in done.stderr
    process = subprocess.Popen(
        [*RAMET, "-p", str(pool), "serve"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("waiting for another command: ")
        held.close()
        assert process.stderr.readline().startswith("ready: ")
        process.terminate()
        assert process.wait(END_SECONDS_MAX) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_socket_that_another_service_answers_on_is_left_to_it(
    served: Serving, tmp_path: Path
) -> None:
    other = make_pool(tmp_path / "other")
    for option, path in (("--nbd", "nbd.sock"), ("--api", "api.sock")):
        done = run_ramet("-p", other, "serve", option, f"unix:{served.pool_path / path}")
        assert done.returncode == 5
        assert "answers" in done.stderr
    with served.connect("db") as client:
        assert client.size == MIB
    assert names_listed("-p", served.pool_path) == ["db"]
    assert names_listed("-p", other) == []


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_without_a_pool_it_ends_and_says_so(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "nothing"
    if kind == "empty":
        path.mkdir()
    elif kind == "file":
        path.write_text("precious")
    done = run_ramet("-p", path, "serve")
    assert done.returncode in (3, 6)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: pool_")
    assert str(path) in line
    assert path.exists() == (kind != "missing")
    assert kind != "empty" or list(path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "code"),
    [
        ("tcp:127.0.0.1:10809", "socket_scheme"),
        ("http://x/y.sock", "socket_scheme"),
        ("unix:", "socket_scheme"),
        ("unix:/" + "x" * 107, "socket_path_too_long"),
        ("x" * 100, "socket_path_too_long"),
    ],
)
@pytest.mark.parametrize("find", [find_nbd_socket, find_api_socket])
def test_a_socket_that_cannot_be_is_refused(
    find: Callable[[Path, str], Path], option: str, code: str
) -> None:
    with pytest.raises(ramet_api.InvalidError) as caught:
        find(Path("/srv/pool"), option)
    assert caught.value.code == code
    assert find(Path("/srv/pool"), "unix:/run/x.sock") == Path("/run/x.sock")


def test_sockets_elsewhere_are_found_by_commands(pool: Path, tmp_path: Path) -> None:
    nbd, api = tmp_path / "n.sock", tmp_path / "a.sock"
    with serving(pool, "--nbd", f"unix:{nbd}", "--api", api):
        assert sockets_in(pool) == []
        assert names_listed("-p", pool) == ["db"]
        told = json.loads(ramet("-p", pool, "volume", "show", "db", "--json"))
        assert told["nbd_uri"] == format_nbd_uri("db", nbd)
        with nbd_client.connect(nbd, "db") as client:
            assert client.size == MIB
    assert not nbd.exists()
    assert not api.exists()


def test_a_copy_of_a_served_pool_is_not_taken_for_it(served: Serving, tmp_path: Path) -> None:
    """A copy holds the address of the original's service: commands to it went there.

    `ramet -p COPY delete db` would have deleted the original's volume.
    """
    copy = tmp_path / "copy"
    programs.run("cp", "-a", served.pool_path, copy)
    ramet("-p", copy, "volume", "create", "only-in-the-copy", "--size", "1MiB")
    assert names_listed("-p", served.pool_path) == ["db"]
    assert "only-in-the-copy" in names_listed("-p", copy)


def test_a_pool_that_was_moved_while_served_is_still_found(served: Serving) -> None:
    moved = served.pool_path.with_name("moved")
    served.pool_path.rename(moved)
    try:
        assert names_listed("-p", moved) == ["db"]
    finally:
        moved.rename(served.pool_path)


@pytest.mark.parametrize("name", ["with space", "q?u=e%r#y", "b\udcffyte", "ü"])
def test_a_pool_may_lie_in_a_directory_of_any_name(tmp_path: Path, name: str) -> None:
    pool = make_pool(tmp_path / name)
    ramet("-p", pool, "volume", "create", "db", "--size", "1MiB")
    with serving(pool) as it, it.connect("db") as client:
        assert client.size == MIB
        uri = json.loads(ramet("-p", pool, "volume", "show", "db", "--json"))["nbd_uri"]
        assert programs.run("nbdinfo", "--size", uri) == f"{MIB}\n"


def test_a_pool_in_a_deep_directory_is_worked_on_without_a_service(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / ("d" * 100))
    ramet("-p", pool, "volume", "create", "db", "--size", "1MiB")
    assert "nbd+unix" in ramet("-p", pool, "volume", "show", "db")
    done = run_ramet("-p", pool, "serve")
    assert done.returncode == 2
    assert "socket_path_too_long" in done.stderr


# Ending


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_time_with_everything_flushed(pool: Path, number: int) -> None:
    with serving(pool) as it, it.connect("db") as client, it.verbs() as verbs:
        client.write(0, b"never flushed by the client")
        verbs.tag(["db"], {"env": "prod"}, [])
        os.kill(it.process_id, number)
        begun = time.monotonic()
        assert it.wait() == 0
        assert time.monotonic() - begun < END_SECONDS_MAX
        assert it.said[-1] == "ended: everything is flushed\n"
    with ramet_api.open(pool) as opened:
        assert opened.volume("db").read(0, 27) == b"never flushed by the client"
        assert opened.record("db").tags == {"env": "prod"}


def test_clients_that_hang_do_not_keep_it_from_ending(served: Serving) -> None:
    """One that never reads its answers, one in the middle of a write, one in a command."""
    stuck = served.connect("db")
    stuck.stream.sendall(nbd_request(0, MIB) * 1000)
    half = served.connect("db")
    half.stream.sendall(nbd_request(1, MIB) + b"half")
    with socket.socket(socket.AF_UNIX) as command:
        command.connect(str(served.pool_path / "api.sock"))
        command.sendall(b"POST /v0/deletes HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        begun = time.monotonic()
        served.stop()
    assert time.monotonic() - begun < END_SECONDS_MAX
    stuck.stream.close()
    half.stream.close()


def nbd_request(command: int, length: int) -> bytes:
    head = (0x2560_9513).to_bytes(4, "big") + bytes(2) + command.to_bytes(2, "big")
    return head + bytes(16) + length.to_bytes(4, "big")


EARLY = """
import contextlib, os, signal, sys
from ramet.cli import main, serve
hold = serve.hold
@contextlib.contextmanager
def hold_and_be_told_to_end(*arguments):
    with hold(*arguments) as held:
        os.kill(os.getpid(), signal.SIGTERM)
        yield held
serve.hold = hold_and_be_told_to_end
sys.exit(main(["-p", sys.argv[1], "serve"]))
"""


def test_a_signal_while_it_starts_is_not_lost(pool: Path) -> None:
    """It was: between opening the pool and the first loop of the server it was ignored."""
    done = subprocess.run(
        [sys.executable, "-c", EARLY, str(pool)],
        capture_output=True,
        text=True,
        timeout=END_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr.endswith("ended: everything is flushed\n")


# What it says


def test_it_says_one_line_for_an_event_and_none_for_a_request(pool: Path) -> None:
    with serving(pool) as it:
        for _ in range(20):
            with it.connect("db") as client:
                client.write(0, b"x")
                client.flush()
                with pytest.raises(nbd_client.NbdError):
                    client.read(MIB, 1)
        with it.verbs() as verbs:
            for number in range(20):
                verbs.snapshot(["db"], False, f"db@{number}")
                verbs.objects()
                with pytest.raises(ramet_api.RametError):
                    verbs.find_object("absent")
        assert ask(pool, "GET", "/v0/nothing")[0] == 404
        it.stop()
        # How full the file system of the tests is, is no event of this pool.
        events = [line.split(":")[0] for line in it.said if not line.startswith("space ")]
        assert events == ["ready", "ended"]


def ask(pool: Path, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Send one HTTP request. Result: status and body."""
    connection = HTTPConnection("localhost", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(pool / "api.sock"))
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


BAD_REQUESTS = [
    ("POST /v0/deletes", b"", 400, "bad_request"),
    ("POST /v0/deletes", b"{", 400, "bad_request"),
    ("POST /v0/deletes", b"[]", 400, "bad_request"),
    ("POST /v0/deletes", b'{"names": "db"}', 400, "bad_request"),
    ("POST /v0/deletes", b'{"names": ["db"], "frce": true}', 400, "bad_request"),
    ("POST /v0/deletes", b'{"names": ["\xff"]}', 400, "bad_request"),
    ("POST /v0/volumes", b'{"names": ["a"], "size": 512}', 400, "bad_request"),
    ("POST /v0/volumes", b'{"names": ["a"], "size": "511"}', 400, "size_out_of_range"),
    ("POST /v0/volumes", b'{"names": ["db"], "size": "512"}', 409, "name_taken"),
    ("POST /v0/clones", b'{"source": "x", "names": ["a"]}', 404, "object_not_found"),
    ("POST /v0/freezes", b"[" * 100_000, 400, "bad_request"),
    ("GET /v0/object", None, 400, "bad_request"),
    ("GET /v0/object?name=%FF", None, 400, "name_character"),
    ("GET /v0/object?name=absent", None, 404, "object_not_found"),
    ("GET /v0/diff?before=db", None, 400, "bad_request"),
]


@pytest.mark.parametrize(("request_line", "body", "status", "code"), BAD_REQUESTS)
def test_a_bad_request_over_http_has_status_kind_and_code(
    shared_pool: Path, request_line: str, body: bytes | None, status: int, code: str
) -> None:
    found, answer = ask(shared_pool, *request_line.split(), body)
    told = json.loads(answer)
    assert (found, told["code"]) == (status, code)
    assert set(told) == {"kind", "code", "text"}
    assert [it["name"] for it in json.loads(ask(shared_pool, "GET", "/v0/objects")[1])] == ["db"]


def test_the_number_of_no_hold_may_be_any_text(shared_pool: Path) -> None:
    """Also more digits than Python reads as a number."""
    for number in ("0", "x", "9" * 5000):
        path = f"/v0/held?number={number}"
        assert ask(shared_pool, "GET", path) == (200, b'{"holds":false}')


@pytest.fixture(scope="module")
def shared_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A pool with volume "db" that is served while this file's tests run."""
    pool = make_pool(tmp_path_factory.mktemp("shared") / "pool")
    ramet("-p", pool, "volume", "create", "db", "--size", "1MiB")
    with serving(pool):
        yield pool


# Commands beside it


@pytest.mark.parametrize(
    "command",
    [
        ("volume", "resize", "db", "512KiB", "--shrink"),
        ("volume", "freeze", "db"),
        ("volume", "revert", "db", "db@1"),
        ("delete", "db"),
    ],
    ids=["shrink", "freeze", "revert", "delete"],
)
def test_what_is_attached_is_in_the_way_of_a_command_unless_forced(
    served: Serving, command: tuple[str, ...]
) -> None:
    with served.verbs() as verbs:
        take_snapshots(verbs, ["db"], "db@1")
    with served.connect("db") as client:
        client.write(0, b"x")
        refused = run_ramet("-p", served.pool_path, *command)
        assert refused.returncode == 5
        assert refused.stderr.startswith("error: object_attached: ")
        assert client.read(0, 1) == b"x"
        ramet("-p", served.pool_path, *command, "--force")
        with pytest.raises(ConnectionError):
            client.read(0, 1)


def test_a_command_whose_service_is_killed_meanwhile_says_so(pool: Path) -> None:
    with serving(pool) as it, it.verbs() as verbs:
        it.kill()
        it.wait()
        with pytest.raises(ramet_api.UnavailableError) as caught:
            verbs.objects()
        assert caught.value.code == "service_failed"


def test_a_full_disk_does_not_keep_it_from_starting(pool: Path) -> None:
    """P7: a restart on a full disk failed, because its address could not be written.

    A directory in the place of the file stands for the disk here.
    """
    (pool / "service.new").mkdir()
    with serving(pool) as it:
        assert any("commands need the standard sockets" in line for line in it.said)
        assert names_listed("-p", pool) == ["db"]
        with it.connect("db") as client:
            assert client.size == MIB


def test_an_exception_that_nobody_foresaw_is_told_as_such(pool: Path) -> None:
    planted = (
        "import sys; from ramet import cli, verbs;"
        " verbs.PoolVerbs.stats = lambda self: {}['absent'];"
        " sys.exit(cli.main())"
    )
    with serving(pool, command=[sys.executable, "-c", planted]) as it:
        done = run_ramet("-p", pool, "stats")
        assert done.returncode == 1
        assert "unexpected_exception: KeyError: 'absent'" in done.stderr
        assert names_listed("-p", pool) == ["db"], "it goes on"
    assert any(line.startswith("KeyError: 'absent'") for line in it.said), "with its trace"


def test_a_service_that_stops_while_a_command_waits_lets_it_have_the_pool(pool: Path) -> None:
    with serving(pool) as it:
        it.terminate()
        assert names_listed("-p", pool) == ["db"]
        assert it.wait() == 0


def test_ctrl_c_at_a_terminal_ends_a_command_with_130(pool: Path) -> None:
    """A command that waits for the lock is interrupted."""
    with ramet_api.open(pool):
        waiting = subprocess.Popen(
            [*RAMET, "-p", str(pool), "volume", "list"], stderr=subprocess.PIPE, text=True
        )
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=END_SECONDS_MAX)
    assert (waiting.returncode, said) == (130, "interrupted\n")
