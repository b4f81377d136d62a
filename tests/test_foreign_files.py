"""What else may lie in a pool's directory: files of other pools, garbage, a copy cut in the middle.

None of it is used, and nothing that is not certain to be the pool's own is removed.
"""

import shutil
import struct
from contextlib import suppress
from pathlib import Path

import google_crc32c
import pytest

import ramet
from pool_checks import assert_clean
from ramet.errors import CorruptError, InvalidError, ReadOnlyError

BLOCK_BYTES = 4096
KINDS = [("segments", "seg"), ("nodes", "map"), ("tables", "tab")]
NAMES = ["000000000fff", "000000001fff", "0000000fffff", "ffffffffffff"]
"""Ids before all others, between them, soon, and the last that there can be."""


def make_pool(path: Path, letter: bytes) -> Path:
    """A pool with files of every kind, some of them left behind by openings that ended."""
    with ramet.open(path, create=True, segment_size="1MiB") as pool:
        pool.create_volume("db", "8MiB").write(0, letter * (2 << 20))
    for block in range(3):
        with ramet.open(path) as pool:
            pool.volume("db").write(block * BLOCK_BYTES, letter.upper() * BLOCK_BYTES)
    return path


def files_of(path: Path) -> dict[Path, bytes]:
    found = [it for folder, _ in KINDS for it in (path / folder).iterdir()]
    return {it: it.read_bytes() for it in found}


def use(path: Path) -> None:
    """Everything is there, and the pool goes on through two more openings."""
    for letter in (b"y", b"z"):
        with ramet.open(path) as pool:
            volume = pool.volume("db")
            assert volume.read(0, 3 * BLOCK_BYTES) == b"A" * 3 * BLOCK_BYTES
            assert volume.read(3 * BLOCK_BYTES, 4096) == b"a" * BLOCK_BYTES
            volume.write(4 << 20, letter * (2 << 20))
    with ramet.open(path, read_only=True) as pool:
        assert pool.volume("db").read(4 << 20, 2 << 20) == b"z" * (2 << 20)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("folder", "extension"), KINDS)
def test_a_file_of_another_pool_is_left_alone(
    tmp_path: Path, folder: str, extension: str, name: str
) -> None:
    """One before the cut was removed as a leftover, one behind it was taken for damage.

    The name of the last id there can be would have used up all epochs, and says nothing to a check:
    the epochs that the superblock knows are those of the pool's own files.
    """
    pool, other = make_pool(tmp_path / "pool", b"a"), make_pool(tmp_path / "other", b"b")
    foreign = pool / folder / f"{name}.{extension}"
    shutil.copy(max((other / folder).iterdir()), foreign)
    content = foreign.read_bytes()
    assert_clean(pool)
    use(pool)
    assert foreign.read_bytes() == content
    assert_clean(pool)


def test_all_files_of_another_pool_together_are_left_alone(tmp_path: Path) -> None:
    pool, other = make_pool(tmp_path / "pool", b"a"), make_pool(tmp_path / "other", b"b")
    foreign = {}
    for path, content in files_of(other).items():
        target = pool / path.parent.name / path.name
        if not target.exists():
            target.write_bytes(content)
            foreign[target] = content
    for index, (path, content) in enumerate(files_of(other).items()):
        target = pool / path.parent.name / f"00000001{index:04x}{path.suffix}"
        target.write_bytes(content)
        foreign[target] = content
    use(pool)
    assert {path: path.read_bytes() for path in foreign} == foreign


def test_a_segment_replaced_by_one_of_another_pool_is_named(tmp_path: Path) -> None:
    pool, other = make_pool(tmp_path / "pool", b"a"), make_pool(tmp_path / "other", b"b")
    name = min(it.name for it in (pool / "segments").iterdir())
    shutil.copy(other / "segments" / name, pool / "segments" / name)
    with ramet.open(pool) as opened, pytest.raises(CorruptError) as caught:
        opened.volume("db").read(BLOCK_BYTES * 8, BLOCK_BYTES)
    assert name.removesuffix(".seg") in caught.value.text
    assert (pool / "segments" / name).read_bytes() == (other / "segments" / name).read_bytes()


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000], ids=["empty", "garbage"])
@pytest.mark.parametrize("folder", ["segments", "nodes", "tables", "spare", "."])
def test_files_with_names_of_no_pool_are_left_alone(
    tmp_path: Path, folder: str, content: bytes
) -> None:
    pool = make_pool(tmp_path / "pool", b"a")
    strangers = [pool / folder / name for name in ("notes.txt", "000000001000.seg~", "x.map", "é")]
    for stranger in strangers:
        stranger.write_bytes(content)
    (pool / folder / "directory").mkdir()
    use(pool)
    assert [it.read_bytes() for it in strangers] == [content] * len(strangers)


def with_features(path: Path, compatible: int = 0, read_only: int = 0, other: int = 0) -> None:
    """Set feature bits, as a later version would: docs/internals/format.md, "The file pool"."""
    page = bytearray((path / "pool").read_bytes())
    page[64:88] = struct.pack("<3Q", compatible, read_only, other)
    page[16:20] = bytes(4)
    page[16:20] = struct.pack("<I", google_crc32c.value(bytes(16) + page))
    (path / "pool").write_bytes(page)


def test_an_unknown_feature_that_must_be_understood_is_refused_by_name(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", b"a")
    with_features(pool, other=1 << 5)
    before = files_of(pool)
    for read_only in (False, True):
        with pytest.raises(InvalidError) as caught:
            ramet.open(pool, read_only=read_only)
        assert caught.value.code == "pool_format_unsupported"
        assert "0x20" in caught.value.text
    assert files_of(pool) == before


def test_an_unknown_feature_that_forbids_writing_leaves_reading(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", b"a")
    with_features(pool, read_only=1)
    with pytest.raises(InvalidError) as caught:
        ramet.open(pool)
    assert caught.value.code == "pool_format_unsupported"
    assert "0x1" in caught.value.text
    with ramet.open(pool, read_only=True) as opened:
        assert opened.volume("db").read(0, BLOCK_BYTES) == b"A" * BLOCK_BYTES
        with pytest.raises(ReadOnlyError):
            opened.create_volume("new", "1MiB")


def test_a_compatible_feature_is_nobodys_business(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", b"a")
    with_features(pool, compatible=0xFF)
    use(pool)


@pytest.mark.parametrize(("at", "what"), [(12, "blocks of 8192"), (20, "leaves of 8192")])
def test_a_pool_with_other_blocks_or_leaves_is_refused_by_name(
    tmp_path: Path, at: int, what: str
) -> None:
    """The size of leaves was not looked at: such a pool would have been read as nonsense."""
    pool = make_pool(tmp_path / "pool", b"a")
    page = bytearray((pool / "pool").read_bytes())
    page[at : at + 4] = struct.pack("<I", 8192)
    page[16:20] = bytes(4)
    page[16:20] = struct.pack("<I", google_crc32c.value(bytes(16) + page))
    (pool / "pool").write_bytes(page)
    before = files_of(pool)
    with pytest.raises(InvalidError, match=what) as caught:
        ramet.open(pool)
    assert caught.value.code == "pool_format_unsupported"
    assert files_of(pool) == before


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("at", [0, 24, 40, 80, 300, 4095])
def test_one_damaged_superblock_slot_is_repaired(tmp_path: Path, slot: int, at: int) -> None:
    pool = make_pool(tmp_path / "pool", b"a")
    content = bytearray((pool / "superblock").read_bytes())
    content[slot * BLOCK_BYTES + at] ^= 0x40
    (pool / "superblock").write_bytes(content)
    use(pool)
    # The other one may be lost now.
    content = bytearray((pool / "superblock").read_bytes())
    content[(1 - slot) * BLOCK_BYTES + at] ^= 0x40
    (pool / "superblock").write_bytes(content)
    with ramet.open(pool) as opened:
        assert opened.volume("db").read(4 << 20, 2 << 20) == b"z" * (2 << 20)


def test_two_damaged_superblock_slots_are_refused_by_name(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", b"a")
    content = bytearray((pool / "superblock").read_bytes())
    content[30] ^= 1
    content[BLOCK_BYTES + 30] ^= 1
    (pool / "superblock").write_bytes(content)
    before = files_of(pool)
    with pytest.raises(CorruptError) as caught:
        ramet.open(pool)
    assert caught.value.code == "pool_damaged"
    assert "superblock" in caught.value.text
    assert files_of(pool) == before


def test_a_pool_copied_while_it_is_open_is_at_one_point_or_refused_by_name(
    tmp_path: Path,
) -> None:
    """The files are copied one by one in any order while writes go on between them.

    Each write puts the same number into both volumes, the first one first.
    """
    source = tmp_path / "pool"
    opened, refused = 0, set()
    with ramet.open(source, create=True, segment_size="1MiB", checkpoint_log="256KiB") as pool:
        one, two = pool.create_volumes(["one", "two"], "1MiB")
        number = 0
        for order in range(24):
            copy = tmp_path / f"copy-{order}"
            paths = sorted(it for it in source.rglob("*") if it.is_file())
            # Some other order each time.
            paths.sort(key=lambda it: (hash_of(it.name, order), it.name))
            for path in paths:
                for _ in range(8):
                    number += 1
                    for volume in (one, two):
                        volume.write(0, struct.pack("<Q", number) * 512)
                pool.flush()
                if number % 3 == 0:
                    pool._core.checkpoint()
                target = copy / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # It was given back meanwhile.
                    shutil.copy(path, target)
            for folder, _ in KINDS:
                (copy / folder).mkdir(exist_ok=True)
            try:
                with ramet.open(copy) as copied:
                    first = numbers_of(copied.volume("one"))
                    second = numbers_of(copied.volume("two"))
                assert first - 1 <= second <= first, f"{first}, {second}"
                opened += 1
            except CorruptError as error:
                refused.add(error.code)
    assert opened
    assert refused <= {"log_damaged", "node_damaged", "checkpoint_damaged", "pool_damaged"}


def hash_of(name: str, order: int) -> int:
    """Numbers that look random, the same in every run."""
    return google_crc32c.value(f"{order} {name}".encode())


def numbers_of(volume: ramet.Volume) -> int:
    block = volume.read(0, BLOCK_BYTES)
    (number,) = set(struct.unpack("<512Q", block))
    assert isinstance(number, int)
    return number
