"""Sending and receiving as users do it: commands in a pipe, with services on either side that may
die, and refuse early.
"""

import io
import json
import os
import random
import resource
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest

import ramet as product
from nbd_client import NbdError
from ramet.cli import streams
from ramet.client import Client
from ramet.errors import BusyError, ConflictError, NotFoundError, UnavailableError
from ramet.frames import PacedWriter, Piece, decode_frames, encode_frames
from serving import RAMET, make_pool, ramet, run_ramet, serving
from streams import listing, stream_of, take_in

pytestmark = pytest.mark.slow

MIB = 2**20


@pytest.fixture
def sites(tmp_path: Path) -> tuple[Path, Path]:
    """A pool with db@1, db@2 and log@1, log@2, and an empty one."""
    here, there = make_pool(tmp_path / "here"), make_pool(tmp_path / "there")
    drawn = random.Random(5)
    with product.open(here) as pool:
        db, log = pool.create_volumes("v{n}", 24 * MIB, count=2)
        db.rename("db")
        log.rename("log")
        db.write(0, drawn.randbytes(20 * MIB))
        log.write(5000, b"log")
        pool.snapshot(["db", "log"], name="{volume}@1")
        db.write(MIB, b"changed" * 1000)
        db.trim(2 * MIB, MIB)
        pool.snapshot(["db", "log"], name="{volume}@2")
    return here, there


def pipe(here: Path, there: Path, *what: str) -> subprocess.CompletedProcess[bytes]:
    """Send from one pool and receive in the other; both must succeed."""
    with subprocess.Popen(
        [*RAMET, "-p", str(here), "send", *what], stdout=subprocess.PIPE
    ) as sender:
        done = subprocess.run(
            [*RAMET, "-p", str(there), "receive", "--json"],
            stdin=sender.stdout,
            capture_output=True,
            check=False,
            timeout=50,
        )
    assert (sender.returncode, done.returncode, done.stderr) == (0, 0, b""), done.stderr
    return done


def same(here: Path, there: Path, *names: str) -> bool:
    with product.open(here) as one, product.open(there) as other:
        for name in names:
            size = one.get(name).size_bytes
            assert other.get(name).read(0, size) == one.get(name).read(0, size)
            assert other.verify(name).root == one.verify(name).root
    return True


def test_it_is_the_same_with_and_without_services(sites: tuple[Path, Path]) -> None:
    here, there = sites
    told = json.loads(pipe(here, there, "db@1", "log@1").stdout)
    assert [(it["name"], it["is_new"]) for it in told] == [("db@1", True), ("log@1", True)]
    differences = ["db@2", "log@2", "--from", "db@1", "log@1", "--zstd"]
    with serving(here), serving(there):
        pipe(here, there, *differences)
        again = json.loads(pipe(here, there, *differences).stdout)
        assert [it["is_new"] for it in again] == [False, False]
        ramet("-p", there, "delete", "db@2", "log@2")
    with serving(here):
        pipe(here, there, *differences)
    assert same(here, there, "db@1", "log@1", "db@2", "log@2")


def test_a_service_that_is_killed_while_it_receives_goes_on(sites: tuple[Path, Path]) -> None:
    here, there = sites
    with product.open(here) as pool:
        stream = stream_of(pool, ["db@1", "log@1"])
    with serving(there) as served, served.verbs() as verbs:
        with subprocess.Popen(
            [*RAMET, "-p", str(there), "receive"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
        ) as receiver:
            assert receiver.stdin is not None
            receiver.stdin.write(stream[: len(stream) // 2])
            receiver.stdin.flush()
            while verbs.stats()["receiving_count"] == 0:
                pass
            served.kill()
            assert receiver.communicate()[1].startswith(b"error: service_failed")
        assert receiver.returncode == UnavailableError.exit_code
    with serving(there) as served:
        token = ramet("-p", there, "receive", "--position").strip()
        assert token.split("-")[1] == "0", "the first of both"
        listed = json.loads(ramet("-p", there, "receive", "--list", "--json"))
        assert [it["name"] for it in listed] == ["db@1"]
        assert json.loads(ramet("-p", there, "snapshot", "list", "--json")) == []
        pipe(here, there, "db@1", "log@1", "--resume", token)
        assert ramet("-p", there, "receive", "--position") == ""
    assert same(here, there, "db@1", "log@1")


def test_a_cut_is_told_and_resumed_through_a_service(sites: tuple[Path, Path]) -> None:
    here, there = sites
    with product.open(here) as pool:
        stream = stream_of(pool, ["db@1"])
    with serving(there):
        cut = subprocess.run(
            [*RAMET, "-p", str(there), "receive"],
            input=stream[: 10 * MIB],
            capture_output=True,
            check=False,
            timeout=50,
        )
        assert (cut.returncode, cut.stdout) == (UnavailableError.exit_code, b"")
        assert cut.stderr.startswith(b"error: stream_cut")
        token = ramet("-p", there, "receive", "--position").strip()
        assert int(token.split("-")[2]) >= 9 * MIB // 4096, "a cut notes what arrived"
        pipe(here, there, "db@1", "--resume", token)
        ramet("-p", there, "delete", "db@1")
        with product.open(here) as pool, serving_verbs(there) as verbs:
            with pytest.raises(UnavailableError):
                verbs.receive(iter([stream[: 5 * MIB]]), None)
            assert [it["name"] for it in verbs.receiving()] == ["db@1"]
            assert [it["name"] for it in verbs.abandon("db@1")] == ["db@1"]
            assert verbs.receiving() == []
            assert [it["name"] for it in verbs.receive(iter([stream]), "x")] == ["x"]
            assert pool.record("db@1").uuid == verbs.find_object("x").uuid


def serving_verbs(path: Path) -> AbstractContextManager[Client]:
    """Be a client of a service that runs already."""
    client = Client.find(path)
    assert client is not None
    return closing(client)


def test_a_refusal_comes_before_the_stream_does(sites: tuple[Path, Path]) -> None:
    here, there = sites
    with product.open(here) as pool:
        missing = stream_of(pool, ["db@1"], ["log@1"])
        taken = stream_of(pool, ["db@1"])
        log = stream_of(pool, ["log@1"])
        before = listing(pool)
    assert len(missing) > 19 * MIB
    with serving(there), serving_verbs(there) as verbs:
        taken_bytes = 0

        def counted(stream: bytes) -> Iterator[bytes]:
            nonlocal taken_bytes
            for at in range(0, len(stream), MIB):
                yield stream[at : at + MIB]
                taken_bytes = at

        with pytest.raises(NotFoundError) as caught:
            verbs.receive(counted(missing), None)
        assert caught.value.code == "base_missing"
        assert taken_bytes < 10 * MIB, "it was not read to its end"
        verbs.create_volumes(["v"], "1MiB", None)
        with pytest.raises(ConflictError) as conflict:
            verbs.receive(counted(taken), "v")
        assert conflict.value.code == "name_taken"
        refused = run_ramet("-p", there, "receive", "--name", "v")
        assert refused.returncode == UnavailableError.exit_code
        assert "stream_cut" in refused.stderr
        verbs.receive(iter([log]), None)
        verbs.receive(iter([missing]), None)
    with product.open(here) as pool:
        assert listing(pool) == before


def test_a_sender_that_is_killed_is_told(sites: tuple[Path, Path]) -> None:
    here, there = sites
    with (
        serving(here) as served,
        subprocess.Popen(
            [*RAMET, "-p", str(here), "send", "db@1", "--rate", "4MiB"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as sender,
    ):
        assert sender.stdout is not None
        assert sender.stderr is not None
        begun = sender.stdout.read(MIB)
        served.kill()
        rest = sender.stdout.read()
        said = sender.stderr.read()
    assert sender.returncode == UnavailableError.exit_code
    assert said.startswith((b"error: service_cut", b"error: service_failed"))
    with product.open(there) as pool:
        with pytest.raises(UnavailableError) as caught:
            take_in(pool, begun + rest)
        assert caught.value.code == "stream_cut"
        assert pool.objects() == []


def test_who_hangs_up_lets_the_snapshot_go(sites: tuple[Path, Path]) -> None:
    here, _ = sites
    with serving(here) as served, served.verbs() as verbs:
        pieces = verbs.send(["db@1"], [], False, None)
        next(pieces)
        with pytest.raises(BusyError):
            verbs.delete(["db@1"], False)
        pieces.close()
        while True:
            try:
                verbs.delete(["db@1"], False)
                break
            except BusyError:
                continue
        with pytest.raises(NotFoundError):
            list(verbs.send(["db@1"], [], False, None))


def test_a_poisoned_pool_sends_and_proves_what_it_has(sites: tuple[Path, Path]) -> None:
    """The root could not be kept at the end, and that ended the stream with an error.

    It is the moment at which somebody wants a copy.
    """
    here, there = sites
    with serving(here) as served, served.verbs() as verbs:
        limits = resource.prlimit(served.process_id, resource.RLIMIT_FSIZE)
        resource.prlimit(served.process_id, resource.RLIMIT_FSIZE, (0, limits[1]))
        with served.connect("log") as client, suppress(NbdError):
            client.write(0, b"staged")
            client.flush()
        resource.prlimit(served.process_id, resource.RLIMIT_FSIZE, limits)
        assert verbs.stats()["poisoned"] is True
        stream = b"".join(piece.content for piece in verbs.send(["db@2"], [], False, None))
        root = verbs.verify("db@2").root
        assert verbs.find_object("db@2").root is None
        served.terminate()
        assert served.wait() == UnavailableError.exit_code
    with product.open(there) as pool:
        assert [it.root for it in take_in(pool, stream)] == [root]


def test_a_reader_that_is_gone_is_told(sites: tuple[Path, Path]) -> None:
    here, _ = sites
    with subprocess.Popen(
        [*RAMET, "-p", str(here), "send", "db@1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as sender:
        assert sender.stdout is not None
        assert sender.stderr is not None
        sender.stdout.read(1000)
        sender.stdout.close()
        said = sender.stderr.read()
    assert sender.returncode == UnavailableError.exit_code
    assert said.startswith(b"error: reader_gone")


def test_files_are_verified_and_restored_by_commands(
    sites: tuple[Path, Path], tmp_path: Path
) -> None:
    here, there = sites
    one, two = tmp_path / "one.stream", tmp_path / "two.stream"
    for path, what in ((one, ["db@1"]), (two, ["db@2", "--from", "db@1", "--zstd"])):
        with path.open("wb") as out:
            subprocess.run(
                [*RAMET, "-p", str(here), "send", *what], stdout=out, check=True, timeout=50
            )
    told = json.loads(ramet("verify", one, two, "--json"))
    assert [(it["name"], it["is_proved"]) for it in told] == [("db@1", False), ("db@2", True)]
    failed = run_ramet("verify", two)
    assert failed.returncode == NotFoundError.exit_code
    assert "link_missing" in failed.stderr
    assert run_ramet("-p", here, "verify", one, "db@2").returncode == 2
    for path in (one, two):
        with path.open("rb") as stream:
            subprocess.run(
                [*RAMET, "-p", str(there), "receive"],
                stdin=stream,
                stdout=subprocess.DEVNULL,
                check=True,
                timeout=50,
            )
    assert same(here, there, "db@1", "db@2")


def test_a_rate_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    written: list[tuple[float, int]] = []

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    def write(_: int, content: memoryview) -> int:
        written.append((now, len(content)))
        return len(content)

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", pass_time)
    monkeypatch.setattr(os, "write", write)
    PacedWriter(1, 1000).write(bytes(2500))
    assert sum(length for _, length in written) == 2500
    assert max(length for _, length in written) <= 100
    assert now == pytest.approx(2.5)


def test_the_length_of_a_stream_is_guessed_from_its_header(sites: tuple[Path, Path]) -> None:
    with product.open(sites[0]) as pool:
        stream = stream_of(pool, ["db@1", "log@1"])
        mapped = sum(pool.record(name).mapped_bytes for name in ("db@1", "log@1"))
    assert streams.expected_bytes(stream[:MIB]) == mapped
    for begun in (b"", stream[:10], stream[:100], bytes(100), b"x" * 100, b"[" + bytes(100)):
        assert streams.expected_bytes(begun) is None


def test_frames_tell_pieces_and_errors() -> None:
    pieces = [Piece(b"one", 1, 9), Piece(b"two" * 1000, 9, 9)]

    def failing() -> Iterator[Piece]:
        yield pieces[0]
        raise BusyError("object_attached", "it is; hint: wait")

    whole = b"".join(encode_frames(iter(pieces)))
    assert list(decode_frames(io.BytesIO(whole).read)) == pieces
    for length in range(len(whole)):
        with pytest.raises(UnavailableError) as caught:
            list(decode_frames(io.BytesIO(whole[:length]).read))
        assert caught.value.code == "service_cut"
    failed = b"".join(encode_frames(failing()))
    with pytest.raises(BusyError, match="hint: wait"):
        list(decode_frames(io.BytesIO(failed).read))


def test_slow_senders_keep_no_command_from_running(sites: tuple[Path, Path]) -> None:
    """More receives than the threads that commands run in wait for their senders."""
    here, there = sites
    count = 45
    with product.open(here) as pool:
        for number in range(count):
            pool.create_volume(f"w{number}", MIB).snapshot(f"w{number}@1")
        parts = [stream_of(pool, [f"w{number}@1"]) for number in range(count)]
    with serving(there), serving_verbs(there) as verbs, ExitStack() as stack:
        receivers = []
        for _ in range(count):
            client = HTTPConnection("localhost")
            client.sock = socket.socket(socket.AF_UNIX)
            client.sock.connect(str(there / "api.sock"))
            stack.callback(client.close)
            client.putrequest("POST", "/v0/receives")
            client.putheader("transfer-encoding", "chunked")
            client.endheaders()
            receivers.append(client)
        for client, part in zip(receivers, parts, strict=True):
            client.send(b"%x\r\n%b\r\n" % (len(part) - 10, part[:-10]))
        while verbs.stats()["receiving_count"] < count:
            pass
        verbs.create_volumes(["command"], "1MiB", None)
        for client, part in zip(receivers, parts, strict=True):
            client.send(b"a\r\n%b\r\n0\r\n\r\n" % part[-10:])
            assert client.getresponse().status == 200
        assert int(verbs.stats()["snapshots_count"]) == count
