"""`ramet check` looks at both checkpoints that the superblock names, and at what none names yet."""

import shutil
import struct
from pathlib import Path

import pytest

import ramet
from ramet.audit.check import check, check_beside
from ramet.audit.files import PoolFile, PoolFiles
from ramet.audit.structures import MalformedError

BLOCK_BYTES = 4096
UNIT_BYTES = 64
OBJECTS_ROOT = 1


def root_of(superblock: bytes, slot: int) -> int:
    """Give the address of the root of the objects that a slot names."""
    page = superblock[slot * BLOCK_BYTES :][:BLOCK_BYTES]
    at = next(at for at in range(256, BLOCK_BYTES, 56) if page[at] == OBJECTS_ROOT)
    return int(struct.unpack_from("<Q", page, at + 8)[0])


@pytest.fixture
def opened_copy(pool_path: Path, tmp_path: Path) -> Path:
    """A pool copied while it was open: two checkpoints, then segments that were sealed."""
    copy = tmp_path / "copy"
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        for name in "ab":
            pool.create_volume(name, "64MiB").write(0, name.encode() * BLOCK_BYTES)
            pool.checkpoint()
        for at in range(6):
            pool.volume("a").write(at << 20, b"c" * (1 << 20))
            pool.flush()
        shutil.copytree(pool_path, copy)
    assert check(copy).clean
    return copy


@pytest.mark.parametrize("slot", [0, 1])
def test_a_damaged_node_of_either_checkpoint_is_found(opened_copy: Path, slot: int) -> None:
    superblock = (opened_copy / "superblock").read_bytes()
    address = root_of(superblock, slot)
    assert address != root_of(superblock, 1 - slot)
    file = opened_copy / "nodes" / f"{address >> 16:012x}.map"
    content = bytearray(file.read_bytes())
    content[(address & 0xFFFF) * UNIT_BYTES + 20] ^= 1
    file.write_bytes(content)
    assert "tree_node" in {it.code for it in check(opened_copy).findings}


def test_slots_of_the_superblock_in_each_others_place_are_found(opened_copy: Path) -> None:
    content = (opened_copy / "superblock").read_bytes()
    (opened_copy / "superblock").write_bytes(content[BLOCK_BYTES:] + content[:BLOCK_BYTES])
    assert [it.code for it in check(opened_copy).findings] == ["superblock"]


def test_a_damaged_footer_that_no_checkpoint_knows_is_found(opened_copy: Path) -> None:
    """The segment is then read batch by batch, so nothing but the check notices."""
    for file in sorted(opened_copy.glob("segments/*.seg")):
        content = bytearray(file.read_bytes())
        if content[-BLOCK_BYTES:][:8] == b"RAMETFTR":
            content[-BLOCK_BYTES + 40] ^= 1
            file.write_bytes(content)
            finding = check(opened_copy).findings[0]
            assert (finding.code, finding.place.file) == ("footer", f"segments/{file.name}")
            return
    raise AssertionError("no segment was sealed")


def test_tables_that_a_checkpoint_took_away_are_looked_for_again(
    pool_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_open = PoolFiles.kept_open
    turns: list[str] = []
    with ramet.open(pool_path, create=True) as pool:
        pool.create_volume("a", "1MiB")
        pool.checkpoint()

        def overtake(files: PoolFiles, name: str) -> PoolFile:
            if name.startswith("tables/") and not turns:
                turns.append(name)
                pool.create_volume("b", "1MiB")
                pool.checkpoint()
                raise MalformedError("it is gone")
            return kept_open(files, name)

        monkeypatch.setattr(PoolFiles, "kept_open", overtake)
        report = check_beside(pool_path)
    assert turns
    assert report.clean, [it.text for it in report.findings]
    assert report.counts["volumes_count"] == 2
