"""libnbd's clients and fio against a served pool: what is negotiated, copied and verified."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import programs
import ramet
from ramet.config import format_nbd_uri

MIB = 2**20
EXPORTS_COUNT = 3000
FIO_BYTES = 8 * MIB

ALWAYS = {
    "is_rotational": False,
    "can_flush": True,
    "can_fua": True,
    "can_multi_conn": True,
    "can_df": True,
    "can_cache": True,
    "block_size_minimum": 1,
    "block_size_preferred": 4096,
    "block_size_maximum": 32 * MIB,
}
OF_VOLUMES = ALWAYS | {
    "is_read_only": False,
    "can_trim": True,
    "can_zero": True,
    "can_fast_zero": True,
}
OF_SNAPSHOTS = ALWAYS | {
    "is_read_only": True,
    "can_trim": False,
    "can_zero": False,
    "can_fast_zero": False,
}


@pytest.fixture
def socket_path(pool: ramet.Pool, tmp_path: Path) -> Iterator[Path]:
    """Where `pool` is served."""
    path = tmp_path / "nbd.sock"
    with pool.serve_nbd(path):
        yield path


def info(uri: str, *options: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(programs.run("nbdinfo", "--json", *options, uri))
    return told


def held(told: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Give what was told of what is expected, so that they can be compared."""
    return {key: told.get(key) for key in expected}


def fio(uri: str, *options: object) -> None:
    """Run fio on an export; it fails where its own checksums do not match."""
    common = ("--name=job", "--ioengine=nbd", "--size=8M", "--iodepth=8", "--verify=crc32c")
    common += ("--verify_state_save=0",)
    programs.run("fio", *common, "--verify_fatal=1", "--randseed=8812", f"--uri={uri}", *options)


def test_what_is_negotiated_is_what_volumes_and_snapshots_can_do(
    pool: ramet.Pool, socket_path: Path
) -> None:
    pool.create_volume("db", 3 * MIB + 512).snapshot("db@1")
    for name, size_bytes, expected in (
        ("db", 3 * MIB + 512, OF_VOLUMES),
        ("db@1", 3 * MIB + 512, OF_SNAPSHOTS),
    ):
        told = info(format_nbd_uri(name, socket_path))
        assert (told["protocol"], told["structured"]) == ("newstyle-fixed", True)
        (export,) = told["exports"]
        assert (export["export-name"], export["export-size"]) == (name, size_bytes)
        assert held(export, expected) == expected
    assert info(format_nbd_uri("db@1", socket_path))["exports"][0]["description"] == "snapshot"


def test_every_volume_and_snapshot_is_listed_with_its_size(
    pool: ramet.Pool, socket_path: Path
) -> None:
    sizes = {"a": 512, "b:0.9_-": MIB, "huge": 2**48}
    for name, size_bytes in sizes.items():
        pool.create_volume(name, size_bytes)
    pool.snapshot(all_volumes=True, name="{volume}@1")
    told = info(format_nbd_uri("", socket_path), "--list")
    assert {it["export-name"]: it["export-size"] for it in told["exports"]} == sizes | {
        f"{name}@1": size_bytes for name, size_bytes in sizes.items()
    }
    read_only = {it["export-name"]: it["is_read_only"] for it in told["exports"]}
    assert read_only == {name: name.endswith("@1") for name in read_only}


def test_thousands_of_exports_are_listed(pool: ramet.Pool, socket_path: Path) -> None:
    pool.create_volumes("vm-{n}", MIB, count=EXPORTS_COUNT)
    told = info(format_nbd_uri("", socket_path), "--list")
    names = {it["export-name"] for it in told["exports"]}
    assert names == {f"vm-{number}" for number in range(1, EXPORTS_COUNT + 1)}
    assert all(item.attached_count == 0 for item in pool.objects()), "looking is not attaching"


def test_an_export_that_is_not_there_is_told_by_name(pool: ramet.Pool, socket_path: Path) -> None:
    pool.create_volume("db", MIB)
    for name in ("absent", "db@1"):
        said = programs.fail("nbdinfo", format_nbd_uri(name, socket_path))
        assert f"No such file or directory for export: {name}" in said
    assert "server replied with error" in programs.fail("nbdinfo", format_nbd_uri("", socket_path))


def test_an_export_can_be_opened_by_uuid_and_follows_a_rename(
    pool: ramet.Pool, socket_path: Path
) -> None:
    volume = pool.create_volume("old", MIB)
    volume.rename("new")
    for name in ("new", volume.uuid, volume.uuid.upper()):
        assert programs.run("nbdinfo", "--size", format_nbd_uri(name, socket_path)) == f"{MIB}\n"
    programs.fail("nbdinfo", "--size", format_nbd_uri("old", socket_path))


@pytest.mark.random
def test_nbdcopy_copies_there_and_back_over_many_connections(
    pool: ramet.Pool, socket_path: Path, tmp_path: Path, randomness: random.Random
) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    with there.open("wb") as file:
        file.write(randomness.randbytes(3 * MIB + 1000))
        file.seek(24 * MIB)
        file.write(randomness.randbytes(5000))
        file.truncate(32 * MIB)
    volume = pool.create_volume("db", 32 * MIB)
    uri = format_nbd_uri("db", socket_path)
    programs.run("nbdcopy", "--destination-is-zero", "--flush", "--connections=4", there, uri)
    assert volume.read(0, 32 * MIB) == there.read_bytes()
    assert volume.record().mapped_bytes < 5 * MIB
    programs.run("nbdcopy", "--connections=4", uri, back)
    assert back.read_bytes() == there.read_bytes()
    assert back.stat().st_blocks * 512 < 16 * MIB, "holes come back as holes"
    programs.run("qemu-img", "compare", "-f", "raw", "-F", "raw", there, uri)


@pytest.mark.random
def test_nbdcopy_copies_a_snapshot_into_another_volume(
    pool: ramet.Pool, socket_path: Path, randomness: random.Random
) -> None:
    volume = pool.create_volume("db", 4 * MIB)
    volume.write(MIB, randomness.randbytes(MIB))
    expected = volume.snapshot("db@1").read(0, 4 * MIB)
    volume.write(0, b"x" * 2 * MIB)
    copy = pool.create_volume("copy", 4 * MIB)
    copy.write(3 * MIB, b"left over")
    uris = [format_nbd_uri(name, socket_path) for name in ("db@1", "copy")]
    programs.run("nbdcopy", *uris)
    assert copy.read(0, 4 * MIB) == expected
    said = programs.fail("nbdcopy", *reversed(uris))
    assert "read-only" in said
    assert pool.get("db@1").read(0, 4 * MIB) == expected


@pytest.mark.slow
def test_fio_verifies_what_several_jobs_wrote(pool: ramet.Pool, socket_path: Path) -> None:
    pool.create_volume("db", 4 * FIO_BYTES)
    fio(
        format_nbd_uri("db", socket_path),
        *("--rw=randwrite", "--bsrange=512-128k", "--numjobs=4", "--offset_increment=8M"),
        *("--fsync=32", "--verify_backlog=64"),
    )
    uri = format_nbd_uri("db", socket_path)
    fio(uri, "--rw=randtrimwrite", "--bs=4k", "--numjobs=4", "--offset_increment=8M")


@pytest.mark.slow
def test_fio_verifies_a_clone_of_what_it_wrote_whatever_became_of_the_volume(
    pool: ramet.Pool, socket_path: Path
) -> None:
    """The snapshot's bytes are what fio's checksums say, and a changed block does not pass."""
    volume = pool.create_volume("db", FIO_BYTES)
    pattern = ("--rw=randwrite", "--bs=4k")
    fio(format_nbd_uri("db", socket_path), *pattern, "--do_verify=0")
    pool.snapshot("db", name="db@1")
    volume.write(0, b"x" * FIO_BYTES)
    clone = pool.clone("db@1", "clone")[0]
    fio(format_nbd_uri("clone", socket_path), *pattern, "--verify_only")
    clone.write(FIO_BYTES // 2 + 2000, b"\xa5\x5a\xa5")
    uri = format_nbd_uri("clone", socket_path)
    with pytest.raises(AssertionError, match=r"(?i)verify|crc"):
        fio(uri, *pattern, "--verify_only")
