"""`scrub` reads all that is held, at a pace, and names what is damaged before it is needed."""

import json
import threading
from http.client import HTTPResponse
from itertools import pairwise
from pathlib import Path
from socket import AF_UNIX, socket
from types import SimpleNamespace

import pytest

import ramet
import ramet.pool.scrub
from ramet.cli import main
from ramet.errors import InvalidError, UnavailableError
from ramet.records import Damage, DamageHolder
from serving import run_ramet, serving

BLOCK_BYTES = 4096
MIB = 1024 * 1024
MARK = b"find this block on the medium! " * 132


class Clock:
    """Time that passes only where somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have scrubs of this process go by it."""
        time = SimpleNamespace(monotonic=lambda: self.now, sleep=self.pause)
        monkeypatch.setattr(ramet.pool.scrub, "time", time)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.use(monkeypatch)
    return clock


@pytest.fixture
def damaged_pool(pool_path: Path) -> Path:
    """A pool in which a block of "db", of its snapshot and of a clone was damaged."""
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        volume = pool.create_volume("db", "8MiB")
        volume.write(0, b"a" * 6 * MIB)
        volume.write(5 * BLOCK_BYTES, MARK[:BLOCK_BYTES])
        volume.snapshot("db@1")
        pool.clone("db@1", "vm")
        pool.volume("vm").write(0, b"b" * BLOCK_BYTES)
    places = [(it, it.read_bytes().find(MARK[:200])) for it in pool_path.glob("segments/*.seg")]
    ((path, offset),) = [(path, offset) for path, offset in places if offset >= 0]
    content = bytearray(path.read_bytes())
    content[offset + 100] ^= 1
    path.write_bytes(content)
    return pool_path


HOLDERS = [DamageHolder(name, 5 * BLOCK_BYTES, BLOCK_BYTES) for name in ("db", "db@1", "vm")]


def test_a_pool_that_is_well_is_read_once_and_nothing_is_found(pool: ramet.Pool) -> None:
    volume = pool.create_volume("db", "8MiB")
    volume.write(0, b"a" * 2 * MIB)
    pool.clone("db", "vm-{n}", count=20)
    *_, last = pool.scrub(rate=None)
    assert last == (2 * MIB, 2 * MIB, 0, True, [])


def test_an_empty_pool_is_scrubbed_at_once(pool: ramet.Pool) -> None:
    assert list(pool.scrub()) == [(0, 0, 0, True, [])]


def test_what_is_damaged_is_named_by_object_and_offset(damaged_pool: Path) -> None:
    with ramet.open(damaged_pool) as pool:
        *_, last = pool.scrub(rate=None)
    assert last.findings_count == 1
    (found,) = last.findings
    assert (found.code, found.holders_count) == ("block_checksum", 3)
    assert found.holders == HOLDERS
    assert "segments/" in found.text
    assert Damage.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_rate_is_kept(pool: ramet.Pool, clock: Clock) -> None:
    pool.create_volume("db", "64MiB").write(0, b"a" * 20 * MIB)
    began = clock.now
    told = list(pool.scrub(rate="2MiB"))
    # Maps are read too, and the last piece needs no pause.
    assert 9.5 <= clock.now - began <= 11
    steps = [after.read_bytes - before.read_bytes for before, after in pairwise(told)]
    assert len(told) > 15, "it is told twice a second"
    assert max(steps) <= 2 * MIB


def test_a_busy_disk_is_not_pressed_harder_afterwards(pool: ramet.Pool, clock: Clock) -> None:
    """A scrub that fell behind reads on at its rate: it does not make up for what it missed."""
    pool.create_volume("db", "64MiB").write(0, b"a" * 20 * MIB)
    scrub = pool.scrub(rate="2MiB")
    next(scrub)
    clock.now += 3600
    began, read_bytes = clock.now, 0
    for told in scrub:
        if clock.now - began <= 2:
            read_bytes = told.read_bytes
    assert 4 * MIB <= read_bytes <= 7 * MIB


@pytest.mark.parametrize("rate", ["0", "1023KiB", "-1", "fast"])
def test_a_rate_that_is_none_is_refused(pool: ramet.Pool, rate: str) -> None:
    with pytest.raises(InvalidError):
        pool.scrub(rate=rate)


def test_a_pool_that_is_closed_meanwhile_ends_a_scrub(pool: ramet.Pool, clock: Clock) -> None:
    pool.create_volume("db", "64MiB").write(0, b"a" * 20 * MIB)
    scrub = pool.scrub(rate="1MiB")
    next(scrub)
    pool.close()
    with pytest.raises(UnavailableError) as caught:
        list(scrub)
    assert caught.value.code == "pool_closed"
    assert clock.now > 1000


@pytest.mark.slow
def test_the_command_ends_with_8_where_it_found_damage_beside_a_service_and_without(
    damaged_pool: Path,
) -> None:
    alone = run_ramet("-p", damaged_pool, "scrub", "--rate", "none")
    with serving(damaged_pool):
        beside = run_ramet("-p", damaged_pool, "scrub")
        as_json = run_ramet("-p", damaged_pool, "scrub", "--json")
    for done in (alone, beside):
        assert done.returncode == 8, done
        assert done.stdout.startswith("block_checksum: ")
        for holder in HOLDERS:
            wanted = f"  needed by '{holder.name}', 4096 bytes from {holder.offset_bytes} on"
            assert wanted in done.stdout.splitlines()
        assert done.stdout.splitlines()[-1] == "damaged: 1 findings; read 6 MiB"
    assert as_json.returncode == 8
    told = json.loads(as_json.stdout)
    assert told["findings"][0]["holders"] == [holder._asdict() for holder in HOLDERS]
    assert (told["is_done"], told["findings_count"]) == (True, 1)


def test_the_command_ends_with_0_where_all_is_well(pool_path: Path) -> None:
    with ramet.open(pool_path, create=True) as pool:
        pool.create_volume("db", "8MiB").write(0, b"a" * MIB)
    done = run_ramet("-p", pool_path, "scrub")
    assert (done.returncode, done.stdout) == (0, "no damage; read 1 MiB\n")


@pytest.mark.slow
def test_a_service_refuses_a_bad_rate(pool_path: Path) -> None:
    ramet.create(pool_path)
    with serving(pool_path):
        done = run_ramet("-p", pool_path, "scrub", "--rate", "7")
    assert done.returncode == 2
    assert "scrub_rate_too_low" in done.stderr


def test_an_interrupted_scrub_says_what_it_found(
    damaged_pool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C comes in a pause, after the damage was found."""
    clock = Clock()
    pauses = iter(range(12))

    def pause(seconds: float) -> None:
        clock.now += seconds
        if next(pauses, None) is None:
            raise KeyboardInterrupt

    clock.pause = pause  # type: ignore[method-assign]
    clock.use(monkeypatch)
    assert main(["-p", str(damaged_pool), "scrub", "--rate", "1MiB", "--json"]) == 130
    told = json.loads(capsys.readouterr().out)
    assert not told["is_done"]
    assert 0 < told["read_bytes"] < 5 * MIB
    assert told["findings"][0]["code"] == "block_checksum"


@pytest.mark.slow
def test_who_leaves_ends_the_scrub_and_the_service_goes_on(pool_path: Path) -> None:
    with ramet.open(pool_path, create=True) as pool:
        pool.create_volume("db", "64MiB").write(0, b"a" * 32 * MIB)
    with serving(pool_path) as served:
        with socket(AF_UNIX) as connection:
            connection.connect(str(pool_path / "api.sock"))
            connection.sendall(b"GET /v0/scrub?rate=1MiB HTTP/1.0\r\n\r\n")
            response = HTTPResponse(connection)
            response.begin()
            first = json.loads(response.readline())
            assert not first["is_done"]
        with served.verbs() as verbs:
            *_, last = verbs.scrub(None)
            assert last.is_done
        assert served.health()[0] == 200
        # Nothing of the first one holds the service up: `serving` stops it in time.


@pytest.mark.slow
def test_a_service_that_ends_ends_a_scrub_with_an_error(pool_path: Path) -> None:
    with ramet.open(pool_path, create=True) as pool:
        pool.create_volume("db", "64MiB").write(0, b"a" * 32 * MIB)
    with serving(pool_path) as served, served.verbs() as verbs:
        scrub = verbs.scrub("1MiB")
        next(scrub)
        ending = threading.Thread(target=served.stop)
        ending.start()
        with pytest.raises(UnavailableError):
            list(scrub)
        ending.join()
