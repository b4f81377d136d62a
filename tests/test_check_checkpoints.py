"""`ramet check` looks at both checkpoints that the superblock names, and at what none names yet."""

import shutil
import struct
from pathlib import Path

import pytest

import ramet
from ramet.audit.check import check, check_beside
from ramet.audit.checksums import node_crc, page_crc
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


def test_a_map_that_names_another_blocks_slot_is_found_with_its_object(pool_path: Path) -> None:
    """All checksums are right: only what the log says of the slot speaks against it."""
    with ramet.open(pool_path, create=True) as pool:
        pool.create_volume("db", "64MiB").write(0, b"1" * BLOCK_BYTES + b"2" * BLOCK_BYTES)
        pool.volume("db").trim(BLOCK_BYTES, BLOCK_BYTES)
    superblock = bytearray((pool_path / "superblock").read_bytes())
    seed = struct.unpack_from("<Q", (pool_path / "pool").read_bytes(), 40)[0]
    numbers = [struct.unpack_from("<Q", superblock, at + 24)[0] for at in (0, BLOCK_BYTES)]
    slot = numbers.index(max(numbers)) * BLOCK_BYTES
    roots = range(slot + 256, slot + 256 + 56 * superblock[slot + 20], 56)
    root = next(at + 8 for at in roots if superblock[at] == OBJECTS_ROOT)
    address, _, length = struct.unpack_from("<QQI", superblock, root)
    file = pool_path / "nodes" / f"{address >> 16:012x}.map"
    content = bytearray(file.read_bytes())
    start = (address & 0xFFFF) * UNIT_BYTES
    objects = content[start : start + length]
    # The field MAP: a reference to the leaf, which has one run: start, length, locator.
    at = objects.find(struct.pack("<HHI", 40, 0, 41)) + 8
    leaf_address, _, leaf_length = struct.unpack_from("<QQI", objects, at)
    leaf_start = (leaf_address & 0xFFFF) * UNIT_BYTES
    leaf = content[leaf_start : leaf_start + leaf_length]
    (locator,) = struct.unpack_from("<Q", leaf, 20)
    struct.pack_into("<Q", leaf, 20, locator + 1)
    content[leaf_start : leaf_start + leaf_length] = leaf
    struct.pack_into("<I", objects, at + 20, node_crc(seed, leaf_address, bytes(leaf)))
    content[start : start + length] = objects
    struct.pack_into("<I", superblock, root + 20, node_crc(seed, address, bytes(objects)))
    page = bytes(superblock[slot : slot + BLOCK_BYTES])
    struct.pack_into("<I", superblock, slot + 16, page_crc(page, 16, seed, 0))
    file.write_bytes(content)
    (pool_path / "superblock").write_bytes(superblock)
    finding = next(it for it in check(pool_path).findings if it.code == "slot_differs")
    assert [(it.name, it.offset_bytes) for it in finding.holders] == [("db", 0)]
