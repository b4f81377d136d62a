"""A pool whose files were damaged gives an error that names the place, and never wrong data."""

import shutil
from pathlib import Path

import pytest

import ramet
from ramet.errors import CorruptError, RametError

BLOCK_BYTES = 4096
MARK = b"find this block on the medium! " * 132


@pytest.fixture
def closed_pool(pool_path: Path) -> Path:
    """A pool whose volume "db" holds `MARK` in its second block, between two others."""
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        volume = pool.create_volume("db", "1MiB")
        volume.write(0, b"a" * BLOCK_BYTES)
        volume.write(BLOCK_BYTES, MARK[:BLOCK_BYTES])
        volume.write(2 * BLOCK_BYTES, b"c" * BLOCK_BYTES)
        volume.flush()
        volume.snapshot("db@1")
    return pool_path


def flip_a_bit_of_the_mark(pool_path: Path) -> None:
    places = [(it, it.read_bytes().find(MARK[:200])) for it in pool_path.glob("segments/*.seg")]
    ((path, offset),) = [(path, offset) for path, offset in places if offset >= 0]
    content = bytearray(path.read_bytes())
    content[offset + 100] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_is_an_error_that_names_segment_and_slot(closed_pool: Path) -> None:
    flip_a_bit_of_the_mark(closed_pool)
    with ramet.open(closed_pool) as pool:
        for name in ("db", "db@1"):
            with pytest.raises(CorruptError) as caught:
                pool.get(name).read(BLOCK_BYTES, BLOCK_BYTES)
            assert caught.value.code == "block_checksum"
            assert "segment" in caught.value.text
            assert "slot" in caught.value.text


def test_a_damaged_block_leaves_the_rest_usable_and_heals_when_overwritten(
    closed_pool: Path,
) -> None:
    flip_a_bit_of_the_mark(closed_pool)
    with ramet.open(closed_pool) as pool:
        volume = pool.volume("db")
        with pytest.raises(CorruptError):
            volume.read(0, 3 * BLOCK_BYTES)
        assert volume.read(0, BLOCK_BYTES) == b"a" * BLOCK_BYTES
        assert volume.read(2 * BLOCK_BYTES, BLOCK_BYTES) == b"c" * BLOCK_BYTES
        with pytest.raises(CorruptError):
            volume.write(BLOCK_BYTES + 10, b"a part needs the rest")
        volume.write(BLOCK_BYTES, b"b" * BLOCK_BYTES)
        assert volume.read(BLOCK_BYTES, BLOCK_BYTES) == b"b" * BLOCK_BYTES
        with pytest.raises(CorruptError):
            pool.get("db@1").read(BLOCK_BYTES, 1)


def test_a_missing_segment_is_never_silent(closed_pool: Path) -> None:
    for path in sorted(closed_pool.glob("segments/*.seg"))[:1]:
        path.unlink()
    before = sorted(it.name for it in closed_pool.rglob("*"))
    with pytest.raises(CorruptError):
        ramet.open(closed_pool)
    assert sorted(it.name for it in closed_pool.rglob("*")) == before


@pytest.mark.parametrize("name", ["pool", "superblock"])
@pytest.mark.parametrize("damage", ["empty", "zeros", "noise", "missing"])
def test_a_damaged_foundation_is_refused_and_left_alone(
    closed_pool: Path, name: str, damage: str
) -> None:
    path = closed_pool / name
    length = path.stat().st_size
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "zeros": bytes(length), "noise": b"\xa5" * length}[damage])
    before = {it: it.read_bytes() for it in closed_pool.rglob("*") if it.is_file()}
    with pytest.raises(RametError) as caught:
        ramet.open(closed_pool)
    assert caught.value.kind in ("corrupt", "not_found", "invalid")
    after = {it: it.read_bytes() for it in closed_pool.rglob("*") if it.is_file()}
    assert {it: content for it, content in after.items() if it.name != "lock"} == {
        it: content for it, content in before.items() if it.name != "lock"
    }


def test_no_flipped_bit_of_the_descriptor_goes_unnoticed(closed_pool: Path, tmp_path: Path) -> None:
    content = (closed_pool / "pool").read_bytes()
    used = content.rstrip(b"\0")
    for index in range(len(used)):
        copy = tmp_path / "copy"
        shutil.copytree(closed_pool, copy)
        damaged = bytearray(content)
        damaged[index] ^= 0x10
        (copy / "pool").write_bytes(damaged)
        with pytest.raises(RametError):
            ramet.open(copy)
        shutil.rmtree(copy)
