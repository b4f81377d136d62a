"""What maps take comes back like blocks do: the second reader says which nodes are needed."""

import random
from pathlib import Path

import pytest

import ramet
from conftest import SEGMENT_SIZE
from ramet.audit.check import check_beside
from ramet.audit.nodes import UNIT_MASK, Node, NodeFiles
from ramet.audit.structures import SLOT_BITS, UNIT_BYTES, Reference

BLOCK_BYTES = 4096
LEAF_BLOCKS = 512
LEAVES_COUNT = 200
OBJECTS_MAX = 12

Page = tuple[str, int]


def needed_pages(pool_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[Page]:
    """Pages of node files in which a check comes to a node, from either slot of the superblock."""
    found: set[Page] = set()
    read = NodeFiles.read

    def noted(self: NodeFiles, reference: Reference, is_table: bool) -> Node:
        if not is_table:
            name = f"{reference.address >> SLOT_BITS:012x}.map"
            first = (reference.address & UNIT_MASK) * UNIT_BYTES
            last = first + reference.length_bytes - 1
            pages = range(first // BLOCK_BYTES, last // BLOCK_BYTES + 1)
            found.update((name, page) for page in pages)
        return read(self, reference, is_table)

    with monkeypatch.context() as patch:
        patch.setattr(NodeFiles, "read", noted)
        report = check_beside(pool_path)
    assert report.clean, report.findings
    return found


def pages_with_bytes(pool_path: Path) -> set[Page]:
    """Pages of node files that are not zeros, but for their headers."""
    found = set()
    for path in (pool_path / "nodes").glob("*.map"):
        content = path.read_bytes()
        for page in range(1, -(-len(content) // BLOCK_BYTES)):
            if any(content[page * BLOCK_BYTES : (page + 1) * BLOCK_BYTES]):
                found.add((path.name, page))
    return found


def change(pool: ramet.Pool, draw: random.Random, number: int) -> None:
    """Do something that makes nodes, shares them, or lets go of some."""
    objects = pool.objects()
    volumes = [it.name for it in objects if it.kind == "volume"]
    step = draw.randrange(12) if volumes and len(objects) < OBJECTS_MAX else 11
    if not volumes:
        pool.create_volume(f"v-{number}", LEAVES_COUNT * LEAF_BLOCKS * BLOCK_BYTES)
    elif step < 6:
        device = pool.open_device(draw.choice(volumes))
        for _ in range(draw.randrange(1, 30)):
            at = draw.randrange(LEAVES_COUNT) * LEAF_BLOCKS + draw.randrange(3)
            device.write(at * BLOCK_BYTES, draw.randbytes(8) * (BLOCK_BYTES // 8))
    elif step < 7:
        first = draw.randrange(LEAVES_COUNT - 8) * LEAF_BLOCKS * BLOCK_BYTES
        pool.open_device(draw.choice(volumes)).trim(first, 8 * LEAF_BLOCKS * BLOCK_BYTES)
    elif step < 9:
        pool.volume(draw.choice(volumes)).snapshot()
    elif step < 11:
        pool.clone(draw.choice(objects).name, f"c-{number}")
    else:
        names = [it.name for it in objects]
        pool.delete(draw.sample(names, min(len(names), draw.randrange(1, 4))))


@pytest.mark.slow
def test_node_files_keep_what_is_needed_and_nothing_else(
    pool_path: Path, monkeypatch: pytest.MonkeyPatch, randomness: random.Random
) -> None:
    monkeypatch.setenv("RAMET_CHECKPOINT_BATCHES", "7")
    given_back = 0
    with ramet.open(pool_path, create=True, segment_size=SEGMENT_SIZE) as pool:
        for round_number in range(8):
            for number in range(25):
                change(pool, randomness, 100 * round_number + number)
            before = len(pages_with_bytes(pool_path))
            # What the first one writes is looked at by the second.
            for _ in range(2):
                pool.reclaim(everything=True)
            assert pages_with_bytes(pool_path) == needed_pages(pool_path, monkeypatch)
            given_back += max(0, before - len(pages_with_bytes(pool_path)))
    assert given_back > 0
