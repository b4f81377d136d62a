"""What a crash tore and opening discarded is no damage, whoever still says where the log ended."""

from pathlib import Path

import pytest

import ramet
from pool_checks import assert_clean
from pool_hands import ChildHand
from ramet.audit.check import check

BLOCK_BYTES = 4096
LOOKS_MAX = 100


@pytest.mark.parametrize("segment_size", ["1MiB", "4MiB"], ids=["sealed", "unsealed"])
def test_a_segment_whose_end_was_named_by_one_that_went_is_clean(
    pool_path: Path, segment_size: str
) -> None:
    """Found by a kill under load: torn blocks behind an end that only the file table tells."""
    ramet.create(pool_path, segment_size=segment_size)
    hand = ChildHand(pool_path)
    hand.ask("create", "kept", "64MiB")
    hand.ask("write", "kept", 0, b"k" * (20 * BLOCK_BYTES))
    hand.ask("flush", "kept")
    for number in range(8):  # More than stays in memory.
        hand.ask("write", "kept", (100 + 64 * number) * BLOCK_BYTES, b"t" * (64 * BLOCK_BYTES))
    first = min((pool_path / "segments").iterdir())
    # The background writes it out, and would make it durable after a second of silence.
    for _ in range(LOOKS_MAX):
        if b"t" * BLOCK_BYTES in first.read_bytes():
            break
        hand.ask("stats")
    hand.kill()
    content = bytearray(first.read_bytes())
    torn_at = content.find(b"t" * BLOCK_BYTES)
    assert torn_at > 0
    content[torn_at + 7] ^= 1
    first.write_bytes(content)
    ramet.open(pool_path).close()
    assert_clean(pool_path)
    with ramet.open(pool_path) as pool:
        assert pool.volume("kept").read(100 * BLOCK_BYTES, BLOCK_BYTES) == bytes(BLOCK_BYTES)
        pool.create_volume("gone", "64MiB").write(0, b"g" * (8 << 20))
        pool.flush()
        pool.checkpoint()
        pool.delete("gone")
        opened = sorted((pool_path / "segments").iterdir())[1]
        pool.reclaim(everything=True)
        assert not opened.exists()
        assert first.exists()
    assert_clean(pool_path)
    with ramet.open(pool_path) as pool:
        pool.volume("kept").trim(0, 5 * BLOCK_BYTES)
        pool.reclaim(everything=True)
        assert pool.volume("kept").read(5 * BLOCK_BYTES, BLOCK_BYTES) == b"k" * BLOCK_BYTES
    assert not any(first.read_bytes()[5 * BLOCK_BYTES : 7 * BLOCK_BYTES])
    report = assert_clean(pool_path)
    assert report.counts["held_bytes"] == 15 * BLOCK_BYTES
    content = bytearray(first.read_bytes())
    at = content.find(b"k" * BLOCK_BYTES)
    content[at] ^= 1
    first.write_bytes(content)
    assert [it.code for it in check(pool_path).findings] == ["block_checksum"]
