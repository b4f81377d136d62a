"""P7 with real clients on real file systems: filled to the brim, again and again; ext4 and XFS on a
loop device need root, a pool's own limit does not.

Invariant: what was mounted is unmounted when a test ends, however it ends.
"""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import programs
from pool_checks import assert_clean
from serving import Serving, make_pool, run_ramet, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MIB = 2**20
LIMIT_MIB = 64
RESERVE_BYTES_MAX = 8 * MIB
MAKE = {
    # Without room that only root may use: the pool is to meet the end of the disk.
    "ext4": (96, ("mkfs.ext4", "-q", "-F", "-m", "0")),
    "xfs": (320, ("mkfs.xfs", "-q", "-f")),
}
KEPT = b"kept through it all ".ljust(4096, b".") * 256
ENOSPC_TEXT = "No space left on device"


@dataclass
class Disk:
    """Where a pool soon finds no room."""

    pool: Path
    size_mib: int
    is_limit: bool

    def free_bytes(self, served: Serving) -> int:
        """Say what is left, as the pool's figures tell it."""
        with served.verbs() as verbs:
            return int(verbs.stats()["space_free_bytes"])


@pytest.fixture(
    params=["limit", *(pytest.param(kind, marks=pytest.mark.root) for kind in ("ext4", "xfs"))]
)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "limit":
        pool = make_pool(tmp_path / "pool")
        assert run_ramet("-p", pool, "limit", f"{LIMIT_MIB}MiB").returncode == 0
        yield Disk(pool, LIMIT_MIB, is_limit=True)
        return
    if os.geteuid() != 0:
        pytest.skip("mounting a loop device needs root")
    size_mib, make = MAKE[request.param]
    image, mount = tmp_path / "disk.img", tmp_path / "mnt"
    with image.open("wb") as file:
        file.truncate(size_mib * MIB)
    mount.mkdir()
    programs.run(*make, image)
    done = programs.finish("mount", "-o", "loop", image, mount)
    if done.returncode != 0:
        pytest.skip(f"no loop device can be mounted here: {done.stderr.strip()}")
    try:
        yield Disk(make_pool(mount / "pool"), size_mib, is_limit=False)
    finally:
        subprocess.run(["umount", "-l", str(mount)], timeout=30, check=True)


def write_with_fio(served: Serving, name: str, size: str, *, pattern: str = "randwrite") -> str:
    """Write through fio's NBD engine. Result: what it said, whether it failed or not."""
    done = programs.finish(
        "fio",
        "--name=fill",
        "--ioengine=nbd",
        f"--uri={served.uri(name)}",
        f"--rw={pattern}",
        f"--size={size}",
        "--bs=256k",
        "--iodepth=8",
        "--randseed=8812",
        "--end_fsync=1",
    )
    return done.stdout + done.stderr


def fill(served: Serving, name: str) -> None:
    """Write until there is no more room, in pieces of any size."""
    said = write_with_fio(served, name, "1g")
    if "engine nbd not loadable" in said:
        pytest.skip("fio has no nbd engine; hint: tools/setup tools")
    assert ENOSPC_TEXT in said, said
    with served.connect(name) as client:
        client.flush()


def check_kept(served: Serving, tmp_path: Path) -> None:
    copy = tmp_path / "kept.raw"
    programs.run("nbdcopy", served.uri("keep"), copy)
    assert copy.read_bytes() == KEPT


def give_back(served: Serving, freed_bytes: int) -> None:
    with served.verbs() as verbs:
        given_back_bytes = 0
        while given_back_bytes < 0.9 * freed_bytes:
            given_back_bytes += verbs.reclaim(True, 5.0).given_back_bytes


def test_a_disk_filled_to_the_brim_is_boring(disk: Disk, tmp_path: Path) -> None:
    with serving(disk.pool) as served:
        with served.verbs() as verbs:
            verbs.create_volumes(["keep"], "1MiB", None)
        source = tmp_path / "keep.raw"
        source.write_bytes(KEPT)
        programs.run("nbdcopy", "--flush", source, served.uri("keep"))
        for turn in range(2):
            with served.verbs() as verbs:
                verbs.create_volumes([f"db-{turn}"], "1GiB", None)
            fill(served, f"db-{turn}")
            # Nothing is left, or less than the reserve: a checkpoint may have used that.
            assert disk.free_bytes(served) < RESERVE_BYTES_MAX
            assert served.health()[1]["space_state"] != "ok"
            check_kept(served, tmp_path)
            with served.verbs() as verbs:
                freed_bytes = verbs.frees([f"db-{turn}"])
                assert freed_bytes > disk.size_mib * MIB / 2
                assert [it.name for it in verbs.delete([f"db-{turn}"], False)] == [f"db-{turn}"]
            give_back(served, freed_bytes)
            # Room that came back is used at once, by the same service.
            with served.verbs() as verbs:
                verbs.create_volumes([f"next-{turn}"], "64MiB", None)
            said = write_with_fio(served, f"next-{turn}", "4m", pattern="write")
            assert ENOSPC_TEXT not in said, said
        with served.verbs() as verbs:
            assert verbs.stats()["poisoned"] is False
    assert_clean(disk.pool)


def test_a_full_disk_that_is_killed_opens_and_deletes_and_goes_on(
    disk: Disk, tmp_path: Path
) -> None:
    with serving(disk.pool) as served:
        with served.verbs() as verbs:
            verbs.create_volumes(["keep"], "1MiB", None)
            verbs.create_volumes(["db"], "1GiB", None)
        source = tmp_path / "keep.raw"
        source.write_bytes(KEPT)
        programs.run("nbdcopy", "--flush", source, served.uri("keep"))
        fill(served, "db")
        served.kill()
        served.wait()
    assert_clean(disk.pool)
    for _ in range(2):
        with serving(disk.pool) as served:
            check_kept(served, tmp_path)
            served.kill()
            served.wait()
    with serving(disk.pool) as served:
        with served.verbs() as verbs:
            freed_bytes = verbs.frees(["db"])
            verbs.delete(["db"], False)
        give_back(served, freed_bytes)
        with served.verbs() as verbs:
            verbs.create_volumes(["next"], "64MiB", None)
        said = write_with_fio(served, "next", "8m", pattern="write")
        assert ENOSPC_TEXT not in said, said
        check_kept(served, tmp_path)
    assert_clean(disk.pool)
