"""Files of dead segments that became segments again, as the second reader sees them: old bytes in
them are no damage and no log, and damage in them is found.

When a file is used again is the background's choice, so a test writes until some were.
"""

import random
import re
from pathlib import Path

import pytest

import ramet
from pool_checks import assert_clean
from pool_hands import ChildHand, OwnHand
from test_check_damage import BLOCK_BYTES, FLIPS_COUNT, MARK, Sweep

ROUNDS_MAX = 3000
REUSED_COUNT = 6
SEGMENT_BYTES = 1 << 20
FLAGS_AT, REUSED = 20, 2


def make_pool(path: Path, draw: random.Random, *, is_closed: bool) -> None:
    """Overwrite a volume until segments were begun in files that had been others; close or kill."""
    ramet.create(path, segment_size="1MiB")
    hand = OwnHand(path) if is_closed else ChildHand(path)
    hand.ask("create", "a", "2MiB")
    hand.ask("create", "kept", "1MiB")
    for _ in range(ROUNDS_MAX):
        hand.ask("write", "a", 0, draw.randbytes(SEGMENT_BYTES // 2) * 3)
        hand.ask("flush", "a")
        hand.ask("checkpoint")
        if hand.ask("stats")["reused_count"] >= REUSED_COUNT:
            break
    else:
        raise AssertionError(f"files were not used again in {ROUNDS_MAX} rounds")
    # As much as a segment: also the one that was only prepared in a used file holds some of it.
    hand.ask("write", "kept", 0, draw.randbytes(SEGMENT_BYTES))
    hand.ask("flush", "kept")
    # The mark says that what is before it was durable.
    hand.ask("write", "kept", 7 * BLOCK_BYTES, MARK[:BLOCK_BYTES])
    hand.ask("flush", "kept")
    if isinstance(hand, ChildHand):
        hand.kill()
    else:
        hand.close()


def reused_files(path: Path) -> list[str]:
    segments = path.glob("segments/*.seg")
    # A kill may leave one that is empty.
    return [it.name for it in segments if any(byte & REUSED for byte in flags_of(it))]


def flags_of(segment: Path) -> bytes:
    return segment.read_bytes()[FLAGS_AT : FLAGS_AT + 1]


def remove_what_nothing_reads(path: Path) -> None:
    """Remove files that are spare, and dead ones that the background was not through with."""
    for spare in (path / "spare").glob("*.seg"):
        spare.unlink()
    for note in assert_clean(path).notes:
        if found := re.match(r"'(segments/\w+\.seg)' was given back", note):
            (path / found[1]).unlink()


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "killed"])
def test_a_pool_whose_files_were_used_again_is_clean(
    pool_path: Path, is_closed: bool, randomness: random.Random
) -> None:
    make_pool(pool_path, randomness, is_closed=is_closed)
    assert reused_files(pool_path)
    for _ in range(2):
        assert_clean(pool_path)
        with ramet.open(pool_path) as pool:
            # What a killed process had kept is gone, too.
            assert [it.name for it in (pool_path / "spare").iterdir()] == ["reserve"]
            block = pool.volume("kept").read(7 * BLOCK_BYTES, BLOCK_BYTES)
            assert block.startswith(MARK)


@pytest.mark.slow
@pytest.mark.random
@pytest.mark.timeout(3600)
def test_a_flipped_bit_in_a_file_that_was_used_before_is_found(
    pool_path: Path, randomness: random.Random
) -> None:
    """Of a closed pool: a footer of which the file table does not tell yet may be a torn one."""
    make_pool(pool_path, randomness, is_closed=True)
    remove_what_nothing_reads(pool_path)
    sweep = Sweep(pool_path, randomness)
    sweep.run(FLIPS_COUNT)
    reused = reused_files(pool_path)
    assert reused
    assert all(sweep.found.get(f"segments/{name}") for name in reused)
    assert not any(name.startswith("segments/") for name in sweep.missed)
