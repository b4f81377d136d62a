"""`ramet check` calls a pool clean that nobody damaged, whatever its shape and however it ended."""

import json
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import ramet
from pool_checks import assert_clean
from pool_hands import ChildHand
from ramet.audit.check import check, check_beside
from ramet.errors import BusyError, NotFoundError
from serving import make_pool, run_ramet, serving

BLOCK_BYTES = 4096
CHECKPOINTS_COUNT = 150
Action = Callable[[ramet.Pool], object]


def write_about(pool: ramet.Pool, name: str, draw: random.Random, count: int = 40) -> None:
    volume = pool.volume(name)
    for _ in range(count):
        data = draw.randbytes(1) * (BLOCK_BYTES * draw.randint(1, 4))
        volume.write(draw.randrange(volume.size_bytes - len(data)), data)


def freeze_a_clone(pool: ramet.Pool) -> None:
    pool.clone("b", "frozen")
    pool.freeze("frozen")


ACTIONS: dict[str, Action] = {
    "create": lambda pool: pool.create_volumes("more{n}", "1GiB", count=3, tags={"a": "b"}),
    "write": lambda pool: pool.volume("a").write(5000, b"x" * 10_000),
    "trim": lambda pool: pool.volume("a").trim(0, 1 << 20),
    "zero": lambda pool: pool.volume("b").write_zeroes(4096, 1 << 20),
    "snapshot": lambda pool: pool.snapshot(["a", "b"], name="{volume}@2"),
    "clone of a snapshot": lambda pool: pool.clone("a@1", "c{n}", count=5),
    "clone of a volume": lambda pool: pool.clone("a", "d{n}", count=5),
    "write to a clone": lambda pool: pool.volume("d1").write(0, b"y" * 8192),
    "revert": lambda pool: pool.revert_many([("a", "a@1"), ("b", "b@1")]),
    "discard": lambda pool: pool.revert_many([("a", "a@1")], keep=False),
    "freeze": freeze_a_clone,
    "grow": lambda pool: pool.resize("c2", "1TiB"),
    "shrink": lambda pool: pool.resize("c3", "1MiB", shrink=True),
    "tag": lambda pool: pool.tag(["a", "b"], {"what": "this"}),
    "rename": lambda pool: pool.rename("c4", "other"),
    "delete": lambda pool: pool.delete(["a@1", "c1", "b"]),
    "checkpoint": lambda pool: pool.checkpoint(),
}


def test_an_empty_pool_is_clean(pool_path: Path) -> None:
    ramet.create(pool_path)
    assert_clean(pool_path)


@pytest.mark.slow
@pytest.mark.random
@pytest.mark.parametrize("budget", ["64KiB", "16MiB"])
def test_a_pool_is_clean_after_every_verb(
    pool_path: Path, tmp_path: Path, randomness: random.Random, budget: str
) -> None:
    """Copied while open, with and without a checkpoint, and closed: each is a pool of its own."""
    ramet.create(pool_path, segment_size="1MiB")
    with ramet.open(pool_path, node_budget=budget) as pool:
        pool.create_volumes(["a", "b"], "64MiB")
        for name in "ab":
            write_about(pool, name, randomness)
        pool.snapshot(["a", "b"], name="{volume}@1")
        copy = tmp_path / "copy"
        for number, (verb, action) in enumerate(ACTIONS.items()):
            action(pool)
            write_about(pool, "a", randomness, 5)
            pool.flush()
            if number % 3 == 0:
                pool.checkpoint()
            shutil.copytree(pool_path, copy)
            report = assert_clean(copy)
            volumes_count = sum(it.kind == "volume" for it in pool.objects())
            assert report.counts["volumes_count"] == volumes_count, verb
            shutil.rmtree(copy)
    report = assert_clean(pool_path)
    assert report.counts["uncounted_bytes"] == 0
    ramet.open(pool_path).close()
    assert_clean(pool_path)


def test_a_killed_pool_is_clean_before_and_after_it_is_opened(pool_path: Path) -> None:
    ramet.create(pool_path, segment_size="1MiB")
    for turn in range(3):
        hand = ChildHand(pool_path)
        hand.ask("create", f"v{turn}", "64MiB")
        for at in range(300):
            hand.ask("write", f"v{turn}", at * 3 * BLOCK_BYTES, b"z" * BLOCK_BYTES)
        hand.ask("snapshot", [f"v{turn}"])
        hand.ask("write", f"v{turn}", 0, b"not flushed")
        hand.kill()
        assert_clean(pool_path)
    with ramet.open(pool_path) as pool:
        assert len(pool.volumes()) == 3
    report = assert_clean(pool_path)
    # The first block of each may be held twice: by the snapshot, and written again unflushed.
    assert 900 <= report.counts["held_bytes"] // BLOCK_BYTES <= 903


def test_what_is_held_and_dead_is_counted(pool_path: Path) -> None:
    with ramet.open(pool_path, create=True) as pool:
        volume = pool.create_volume("db", "64MiB")
        volume.write(0, b"1" * (10 * BLOCK_BYTES))
        volume.snapshot("db@1")
        volume.write(0, b"2" * (4 * BLOCK_BYTES))
        volume.write(0, b"3" * (2 * BLOCK_BYTES))
    report = assert_clean(pool_path)
    assert report.counts["held_bytes"] == 14 * BLOCK_BYTES
    assert report.counts["dead_bytes"] == 2 * BLOCK_BYTES
    assert report.counts["blocks_count"] == 16


def test_quick_leaves_the_bytes_of_blocks_out(pool_path: Path) -> None:
    with ramet.open(pool_path, create=True) as pool:
        pool.create_volume("db", "64MiB").write(0, b"1" * (32 << 20))
    report = check(pool_path, quick=True)
    assert report.clean
    assert report.counts["blocks_count"] == 0
    assert report.counts["held_bytes"] == 32 << 20
    assert report.counts["read_bytes"] < 4 << 20


def test_the_command_says_it_in_one_line_or_one_json_value(pool_path: Path) -> None:
    make_pool(pool_path)
    done = run_ramet("-p", pool_path, "check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("clean: 0 volumes")
    assert done.stdout.count("\n") == 1
    done = run_ramet("-p", pool_path, "check", "--quick", "--json")
    assert json.loads(done.stdout)["clean"] is True


def test_a_pool_is_checked_beside_the_service_that_writes_to_it(pool_path: Path) -> None:
    make_pool(pool_path)
    with serving(pool_path) as served, served.verbs() as verbs:
        verbs.create_volumes(["a"], "64MiB", None)
        with served.connect("a") as client:
            for turn in range(3):
                client.write(turn << 20, b"a" * (1 << 20))
                done = run_ramet("-p", pool_path, "check")
                assert done.returncode == 0, done.stdout
                # The service was asked for a checkpoint: what was written is in it.
                assert f"held {turn + 1} MiB" in done.stdout


@pytest.mark.slow
def test_a_check_beside_a_pool_is_not_confused_by_checkpoints_meanwhile(pool_path: Path) -> None:
    """Each checkpoint takes a slot of the superblock away, and at times a file of tables."""
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        pool.create_volumes("v{n}", "64MiB", count=200)
        pool.checkpoint()
        done = threading.Event()

        def work() -> None:
            draw = random.Random(3)
            for _ in range(CHECKPOINTS_COUNT):
                pool.clone("v1", f"c{draw.random()}")
                write_about(pool, "v1", draw, 3)
                pool.checkpoint()
            done.set()

        worker = threading.Thread(target=work)
        worker.start()
        try:
            while not done.is_set():
                report = check_beside(pool_path)
                assert report.clean, [it.text for it in report.findings]
        finally:
            worker.join()


def test_a_check_keeps_writers_out_and_no_other_check(pool_path: Path) -> None:
    with ramet.open(pool_path, create=True):
        with pytest.raises(BusyError):
            check(pool_path)
        done = run_ramet("-p", pool_path, "--no-wait", "check")
        assert done.returncode == BusyError.exit_code
    refused = []

    def try_others(doing: str, done_bytes: int, total_bytes: int) -> None:
        if not refused:
            refused.append(check(pool_path).clean)
            with pytest.raises(BusyError):
                ramet.open(pool_path)

    assert check(pool_path, progress=try_others).clean
    assert refused == [True]


def test_what_is_no_pool_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        check(tmp_path / "nothing")
    with pytest.raises(NotFoundError):
        check(tmp_path)


def test_a_pool_that_gave_space_back_is_clean_and_its_blocks_are_verified(
    pool_path: Path,
) -> None:
    generator = random.Random(6)
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        volume = pool.create_volume("a", "16MiB")
        volume.write(0, generator.randbytes(1000 * BLOCK_BYTES))
        volume.snapshot("s")
        for block in range(0, 900, 3):
            volume.write(block * BLOCK_BYTES, generator.randbytes(BLOCK_BYTES))
        pool.delete("s")
        pool.reclaim(everything=True)
        volume.write(0, b"tail")
    report = assert_clean(pool_path)
    assert report.counts["blocks_count"] >= 1000
    with ramet.open(pool_path, read_only=True) as pool:
        content = pool.get("a").read(0, 1000 * BLOCK_BYTES)
    name = min((pool_path / "segments").iterdir())
    damaged = bytearray(name.read_bytes())
    # A block that lives, in a segment of which others were given back.
    at = damaged.find(content[BLOCK_BYTES : 2 * BLOCK_BYTES])
    assert at > 0
    assert not any(damaged[at - BLOCK_BYTES : at])
    damaged[at + 77] ^= 8
    name.write_bytes(damaged)
    report = check(pool_path)
    assert [finding.code for finding in report.findings] == ["block_checksum"]
    assert report.findings[0].holders[0].offset_bytes == BLOCK_BYTES
    assert check(pool_path, quick=True).clean
