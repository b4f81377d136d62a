"""Opening, closing, sharing and forking: who may have a pool, and what directories are refused."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ramet
from ramet.errors import (
    BusyError,
    ConflictError,
    InvalidError,
    NotFoundError,
    RametError,
    ReadOnlyError,
    UnavailableError,
)

HOLD = """
import sys, ramet
pool = ramet.open(sys.argv[1], read_only=sys.argv[2] == "read")
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def closed_pool(pool_path: Path) -> Path:
    """A pool with volume "db" that nobody has open."""
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        volume = pool.create_volume("db", "1MiB")
        volume.write(0, b"content")
    return pool_path


@pytest.fixture
def holder(closed_pool: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The same, held by another process; the test's parameter says how: "read" or "write"."""
    command = [sys.executable, "-c", HOLD, str(closed_pool), request.param]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield closed_pool
        process.communicate()
    assert process.returncode == 0


def test_what_was_written_is_there_after_reopening(closed_pool: Path) -> None:
    with ramet.open(closed_pool) as pool:
        assert pool.volume("db").read(0, 7) == b"content"
        uuid = pool.uuid
        assert pool.path == str(closed_pool)
        assert str(closed_pool) in repr(pool)
    with ramet.open(str(closed_pool)) as pool:
        assert pool.uuid == uuid


def test_create_opens_what_is_there(closed_pool: Path) -> None:
    with ramet.open(closed_pool, create=True) as pool:
        assert [it.name for it in pool.volumes()] == ["db"]


def test_a_second_writer_gets_a_clear_error_at_once(closed_pool: Path) -> None:
    with ramet.open(closed_pool) as pool:
        for read_only in (False, True):
            with pytest.raises(BusyError) as caught:
                ramet.open(closed_pool, read_only=read_only)
            assert str(closed_pool) in caught.value.text
        assert pool.volume("db").read(0, 7) == b"content"
    ramet.open(closed_pool).close()


@pytest.mark.slow
@pytest.mark.parametrize("holder", ["write"], indirect=True)
def test_a_writer_in_another_process_excludes_everybody(holder: Path) -> None:
    for read_only in (False, True):
        with pytest.raises(BusyError):
            ramet.open(holder, read_only=read_only)


@pytest.mark.slow
@pytest.mark.parametrize("holder", ["read"], indirect=True)
def test_readers_share_and_exclude_writers(holder: Path) -> None:
    with ramet.open(holder, read_only=True) as pool:
        assert pool.volume("db").read(0, 7) == b"content"
    with pytest.raises(BusyError):
        ramet.open(holder)


def test_a_pool_open_for_reading_changes_nothing(closed_pool: Path) -> None:
    before = {it: it.read_bytes() for it in closed_pool.rglob("*") if it.is_file()}
    with ramet.open(closed_pool, read_only=True) as pool:
        assert pool.read_only
        volume = pool.volume("db")
        for call in (
            lambda: volume.write(0, b"x"),
            lambda: volume.trim(0, 4096),
            lambda: pool.create_volume("other", 512),
            volume.snapshot,
            volume.delete,
            lambda: volume.rename("other"),
            lambda: volume.clone("other"),
        ):
            with pytest.raises(ReadOnlyError):
                call()
        assert volume.read(0, 7) == b"content"
    assert before == {it: it.read_bytes() for it in closed_pool.rglob("*") if it.is_file()}


def test_directories_that_are_no_pools_are_refused(tmp_path: Path) -> None:
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.mkdir()
    other.mkdir()
    (other / "precious").write_text("data")
    for path in (empty, other, tmp_path / "missing"):
        with pytest.raises(NotFoundError):
            ramet.open(path)
    with pytest.raises(ConflictError):
        ramet.open(other, create=True)
    assert [it.name for it in other.iterdir()] == ["precious"]
    with pytest.raises(RametError):
        ramet.open(other / "precious", create=True)
    assert (other / "precious").read_text() == "data"
    assert list(empty.iterdir()) == []
    assert not (tmp_path / "missing").exists()


def test_a_pool_is_never_made_over_another(closed_pool: Path) -> None:
    with pytest.raises(ConflictError):
        ramet.create(closed_pool)
    with ramet.open(closed_pool) as pool:
        assert pool.volume("db").read(0, 7) == b"content"


@pytest.mark.parametrize("segment_size", ["1KiB", 2**20 + 1, "512MiB", -1, "x", 0.5])
def test_segment_sizes_that_cannot_be_are_refused(tmp_path: Path, segment_size: str) -> None:
    with pytest.raises(InvalidError):
        ramet.create(tmp_path / "pool", segment_size=segment_size)
    assert not (tmp_path / "pool" / "pool").exists()


def test_a_forked_child_gets_an_ordinary_error(closed_pool: Path) -> None:
    with ramet.open(closed_pool) as pool:
        volume = pool.volume("db")
        assert volume.read(0, 7) == b"content"
        child = os.fork()
        if child == 0:
            os._exit(0 if forked_child_is_refused(pool, volume) else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        volume.write(0, b"changed")
        volume.flush()
    with ramet.open(closed_pool) as pool:
        assert pool.volume("db").read(0, 7) == b"changed"


def forked_child_is_refused(pool: ramet.Pool, volume: ramet.Volume) -> bool:
    calls = (
        pool.objects,
        pool.flush,
        lambda: pool.create_volume("other", 512),
        lambda: volume.read(0, 7),
        lambda: volume.write(0, b"child"),
        volume.flush,
    )
    refused_count = 0
    for call in calls:
        try:
            call()
        except UnavailableError:
            refused_count += 1
    pool.close()
    return refused_count == len(calls)
