"""Pools and streams of format version 1 are opened by every later version, and are what they were.

tests/compat/make.py made them, when the version was declared; nothing in tests/compat/v1 changes.
"""

import json
import lzma
import tarfile
from pathlib import Path

import pytest

import ramet
from compat.make import RULES, SECRET, blocks, describe
from pool_checks import assert_clean
from ramet.errors import ConflictError, InvalidError, ReadOnlyError
from ramet.keeper import Keeper
from ramet.replication import verify_files
from streams import take_in

V1 = Path(__file__).parent / "compat" / "v1"
TOLD = json.loads((V1 / "content.json").read_text())
POOLS = sorted(TOLD.keys() - {"streams"})


def _unpack(name: str, into: Path) -> Path:
    with tarfile.open(V1 / f"{name}.tar.xz") as archive:
        archive.extractall(into / "pool", filter="data")
    return into / "pool"


@pytest.mark.parametrize("name", POOLS)
def test_a_pool_is_what_it_was_and_goes_on(name: str, tmp_path: Path) -> None:
    path = _unpack(name, tmp_path)
    assert_clean(path)
    with ramet.open(path, read_only=True) as pool:
        assert describe(pool) == TOLD[name]
    with ramet.open(path) as pool:
        assert describe(pool) == TOLD[name]
    # Its checkpoint is of this version now.
    with ramet.open(path) as pool:
        assert describe(pool) == TOLD[name]
        new = pool.create_volume("new", "1MiB")
        new.write(0, blocks(1, 3))
        pool.snapshot(all_volumes=True, name="{volume}@new")
        pool.clone("new@new", "newer")
        locked = {it.name for it in pool.objects() if it.lock}
        pool.delete([it.name for it in pool.objects() if it.name not in locked | {"newer"}])
        pool.reclaim(everything=True)
        assert pool.volume("newer").read(0, 3 * 4096) == blocks(1, 3)
        assert {it.name for it in pool.objects()} == locked | {"newer"}
    assert_clean(path)


def test_what_guards_a_pool_still_does(tmp_path: Path) -> None:
    with ramet.open(_unpack("guarded", tmp_path)) as pool:
        for name in ("governed", "complied"):
            with pytest.raises(ConflictError):
                pool.delete(name, force=True, now=True)
        with pytest.raises(ReadOnlyError):
            pool.unlock("complied", secret=SECRET)
        pool.unlock("governed", secret=SECRET)
        pool.delete(["governed", "gone"], now=True)
        assert [it.made_name for it in pool.restore(["gone", "gone@1", "free"])] == [
            "gone",
            "gone@1",
            "free",
        ]
        assert pool.volume("gone").read(0, 4 * 4096) == blocks(2, 4)
        assert pool.record("gone").tags == {"was": "here"}


def test_what_arrived_in_part_is_still_known(tmp_path: Path) -> None:
    with ramet.open(_unpack("received", tmp_path)) as pool:
        assert pool.stats()["receiving_count"] == 1
        for it in pool.snapshots():
            record = it.record()
            assert record.root == pool.verify(record.uuid).root


def test_policies_are_read(tmp_path: Path) -> None:
    path = _unpack("received", tmp_path)
    with ramet.open(path) as pool:
        keeper = Keeper(pool, path)
        assert keeper.rules_text() == RULES
        assert [(it.name, it.remotes) for it in keeper.policies()] == [("nightly", ["dr"])]
        assert [it.name for it in keeper.remotes()] == ["dr"]


def test_streams_are_proved_and_received(tmp_path: Path) -> None:
    files = []
    for name in ("group", "differs", "zstd"):
        files.append(tmp_path / f"{name}.stream")
        files[-1].write_bytes(lzma.decompress((V1 / f"{name}.stream.xz").read_bytes()))
    told = {it["name"]: it["root"] for it in TOLD["streams"]}
    proved = verify_files(files)
    assert {it.name for it in proved} == set(told)
    with ramet.open(tmp_path / "pool", create=True) as pool:
        for file in files:
            take_in(pool, file.read_bytes())
        assert {it.made_name: pool.verify(it).root for it in pool.snapshots()} == told
        assert pool.record("db@1").tags == {}
    assert_clean(tmp_path / "pool")


@pytest.mark.parametrize(("version", "told"), [(0, "before the first release"), (2, "newer than")])
def test_another_version_is_refused_by_its_number(tmp_path: Path, version: int, told: str) -> None:
    path = _unpack("plain", tmp_path)
    page = bytearray((path / "pool").read_bytes())
    page[8:12] = version.to_bytes(4, "little")
    (path / "pool").write_bytes(page)
    with pytest.raises(InvalidError) as refused:
        ramet.open(path)
    assert refused.value.code == "pool_format_unsupported"
    assert f"format version {version} is" in refused.value.text
    assert told in refused.value.text
