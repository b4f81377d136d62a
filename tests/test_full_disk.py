"""P7, a full pool is boring: over NBD, by commands, after a stop and after a kill; needs root.

The disk is a small tmpfs. Invariant: it is unmounted when a test ends, however it ends.
"""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import programs
from nbd_client import NbdClient, NbdError
from pool_checks import assert_clean
from serving import Serving, make_pool, run_ramet, serving

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]

MIB = 2**20
DISK_MIB = 24
FULL_EXIT_CODE = 7


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that is soon full."""
    directory = tmp_path / "disk"
    directory.mkdir()
    programs.run("mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", directory)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], timeout=30, check=True)


def fill(client: NbdClient) -> int:
    """Write until there is no more room. Result: the MiB that are written."""
    for index in range(2 * DISK_MIB):
        try:
            client.write(index * MIB, bytes([index + 1]) * MIB)
        except NbdError as error:
            if error.errno != errno.ENOSPC:
                raise
            return index
    raise AssertionError("the disk is never full")


def check(client: NbdClient, mib_count: int) -> None:
    for index in range(mib_count):
        assert client.read(index * MIB, MIB) == bytes([index + 1]) * MIB


def make_full(served: Serving) -> int:
    """Fill volume "db" of a new pool, beside "other". Result: the MiB that are written."""
    with served.verbs() as verbs:
        verbs.create_volumes(["db", "other"], "64MiB", None)
    with served.connect("other") as other, served.connect("db") as client:
        other.write(0, b"other")
        mib_count = fill(client)
        client.flush()
    assert mib_count > DISK_MIB // 2
    return mib_count


def test_writes_get_enospc_and_all_else_goes_on(disk: Path) -> None:
    with serving(make_pool(disk / "pool")) as served:
        mib_count = make_full(served)
        with served.connect("other") as other, served.connect("db") as client:
            for _ in range(3):
                with pytest.raises(NbdError) as caught:
                    other.write(0, b"!" * MIB)
                assert caught.value.errno == errno.ENOSPC
                assert other.read(0, 6) == b"other\0", "a write that fails changes nothing"
                other.flush()
                check(client, mib_count)
            client.trim(0, MIB)
            client.flush()
            assert client.read(0, MIB) == bytes(MIB)
        with served.verbs() as verbs:
            assert verbs.stats()["poisoned"] is False
            assert [it.name for it in verbs.delete(["other"], False)] == ["other"]
    with serving(served.pool_path) as again, again.connect("db") as client:
        assert client.read(0, MIB) == bytes(MIB)
        assert client.read(MIB, MIB) == b"\x02" * MIB


def test_a_full_pool_opens_after_a_kill_without_repair(disk: Path) -> None:
    with serving(make_pool(disk / "pool")) as served:
        mib_count = make_full(served)
        served.kill()
        served.wait()
    for _ in range(3):
        with serving(served.pool_path) as again:
            with again.connect("db") as client, again.connect("other") as other:
                check(client, mib_count)
                assert other.read(0, 5) == b"other"
            again.kill()
            again.wait()


def test_a_command_on_a_full_disk_says_so_or_succeeds(disk: Path) -> None:
    """What a record needs may be allocated already; when nothing is, the exit code says full."""
    pool = make_pool(disk / "pool")
    with (disk / "foreign").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free)
    made = []
    for number in range(3):
        name = f"db-{number}"
        done = run_ramet("-p", pool, "volume", "create", name, "--size", "1MiB")
        assert done.returncode in (0, FULL_EXIT_CODE), done.stderr
        if done.returncode == 0:
            made.append(name)
        else:
            assert "pool_full" in done.stderr
    assert run_ramet("init", disk / "second").returncode == FULL_EXIT_CODE
    (disk / "foreign").unlink()
    listed = run_ramet("-p", pool, "volume", "list").stdout
    assert [line.split()[0] for line in listed.splitlines()[1:]] == made
    assert run_ramet("-p", pool, "volume", "create", "last", "--size", "1MiB").returncode == 0


def test_an_import_that_does_not_fit_leaves_no_volume(disk: Path, tmp_path: Path) -> None:
    programs.find("qemu-img")
    pool, image = make_pool(disk / "pool"), tmp_path / "large.raw"
    image.write_bytes(b"\xa5" * (2 * DISK_MIB * MIB))
    done = run_ramet("-p", pool, "volume", "import", image, "golden")
    assert done.returncode == 6
    assert "No space left" in done.stderr
    assert run_ramet("-p", pool, "volume", "list", "--json").stdout == "[]\n"


def test_deletes_always_work_and_what_they_free_can_be_used_at_once(disk: Path) -> None:
    """P7: again and again, though others take all the room that the pool left."""
    with serving(make_pool(disk / "pool")) as served, served.verbs() as verbs:
        verbs.create_volumes(["keep"], "64MiB", None)
        with served.connect("keep") as keep:
            keep.write(0, b"kept")
        for turn in range(3):
            verbs.create_volumes(["db"], "64MiB", None)
            with served.connect("db") as client:
                mib_count = fill(client)
                client.flush()
                check(client, mib_count)
            assert mib_count > 4, f"turn {turn}"
            with (disk / "foreign").open("wb") as file:
                if free_bytes := shutil.disk_usage(disk).free:
                    os.posix_fallocate(file.fileno(), 0, free_bytes)
            freed_bytes = verbs.frees(["db"])
            assert freed_bytes == mib_count * MIB
            assert [it.name for it in verbs.delete(["db"], False)] == ["db"]
            given_back_bytes = 0
            while given_back_bytes < 0.9 * freed_bytes:
                given_back_bytes += verbs.reclaim(True, 5.0).given_back_bytes
            (disk / "foreign").unlink()
        with served.connect("keep") as keep:
            assert keep.read(0, 4) == b"kept"
        assert verbs.stats()["poisoned"] is False
    assert_clean(disk / "pool")
