"""P6 and P9: what nobody holds comes back, as much as was said before, whatever is deleted."""

import json
import random
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

import ramet
from pool_checks import assert_clean, taken_bytes
from ramet.audit.check import check_beside
from ramet.errors import NotFoundError
from serving import make_pool, run_ramet, serving

BLOCK_BYTES = 4096
MIB = 1024 * 1024
OVERHEAD_BYTES = MIB + 128 * 1024
"""The reserve, and a little for what holds no block."""


def random_blocks(generator: random.Random, count: int) -> bytes:
    return generator.randbytes(count * BLOCK_BYTES)


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for the background; the time limit of the test bounds it."""
    while not is_so():
        threading.Event().wait(0.05)


def test_a_dry_run_says_what_comes_back(pool: ramet.Pool) -> None:
    """Random families: what a set would free is what lives less when it is deleted."""
    generator = random.Random(8812)
    pool.create_volumes("v-{n}", "16MiB", count=3)
    for _ in range(60):
        names = [item.name for item in pool.objects()]
        volumes = [item.name for item in pool.objects() if item.kind == "volume"]
        step = generator.randrange(10)
        volume = pool.volume(generator.choice(volumes))
        if step < 5:
            at = generator.randrange(4000)
            volume.write(at * BLOCK_BYTES, random_blocks(generator, generator.randrange(1, 60)))
        elif step < 7:
            volume.snapshot()
        elif step < 9:
            pool.clone(generator.choice(names), f"c-{len(names)}-{generator.random()}")
        else:
            volume.trim(0, 4 * MIB)
    while len(pool.objects()) > 3:
        names = [item.name for item in pool.objects()]
        some = generator.sample(names, min(generator.randrange(1, 8), len(names) - 1))
        freed_bytes = pool.frees(some)
        pool.reclaim(everything=True)
        before = pool.stats()["living_bytes"]
        pool.delete(some)
        pool.reclaim(everything=True)
        after = pool.stats()["living_bytes"]
        assert int(before) - int(after) == freed_bytes, f"deleting {some}"
    assert pool.frees([item.name for item in pool.objects()]) == pool.stats()["living_bytes"]


def test_what_is_deleted_is_given_back_without_being_asked(
    pool: ramet.Pool, pool_path: Path
) -> None:
    generator = random.Random(3)
    golden = pool.create_volume("golden", "64MiB")
    golden.write(0, random_blocks(generator, 2048))
    base = golden.snapshot("base")
    clones = pool.clone(base, "vm-{n}", count=20)
    for clone in clones:
        clone.write(0, random_blocks(generator, 256))
    pool.flush()
    freed_bytes = pool.frees(clones[:10])
    assert freed_bytes == 10 * MIB
    before = taken_bytes(pool_path)
    pool.delete(clones[:10])
    # A segment may be prepared meanwhile.
    wait_until(lambda: before + MIB - taken_bytes(pool_path) >= 0.97 * freed_bytes)
    assert [clone.read(0, 4) for clone in clones[10:]]
    assert golden.read(2047 * BLOCK_BYTES, BLOCK_BYTES) == base.read(
        2047 * BLOCK_BYTES, BLOCK_BYTES
    )


def test_a_golden_with_many_clones_goes_and_they_stay(pool: ramet.Pool) -> None:
    generator = random.Random(4)
    content = random_blocks(generator, 256)
    golden = pool.create_volume("golden", "16MiB")
    golden.write(0, content)
    base = golden.snapshot("base")
    clones = pool.clone(base, "vm-{n}", count=1000)
    for clone in clones[::10]:
        clone.write(0, random_blocks(generator, 1))
    assert pool.frees([golden, base]) == 0
    pool.delete([golden, base])
    pool.reclaim(everything=True)
    assert clones[1].read(0, len(content)) == content
    assert clones[10].read(BLOCK_BYTES, BLOCK_BYTES) == content[BLOCK_BYTES : 2 * BLOCK_BYTES]
    assert pool.stats()["living_bytes"] == (256 + 100) * BLOCK_BYTES
    pool.delete(clones[1::10])
    pool.delete(clones[2::10])
    pool.reclaim(everything=True)
    assert clones[20].read(BLOCK_BYTES, BLOCK_BYTES) == content[BLOCK_BYTES : 2 * BLOCK_BYTES]
    pool.delete([item.name for item in pool.objects()])
    pool.reclaim(everything=True)
    assert pool.stats()["living_bytes"] == 0


def test_after_everything_is_deleted_nearly_nothing_is_left(
    pool: ramet.Pool, pool_path: Path
) -> None:
    generator = random.Random(5)
    volume = pool.create_volume("a", "64MiB")
    for number in range(8):
        volume.write(number * MIB, random_blocks(generator, 1024))
        volume.snapshot()
    pool.delete([item.name for item in pool.objects()])
    done = pool.reclaim(everything=True)
    assert done.is_done
    assert (done.waiting_bytes, done.dying_count) == (0, 0)
    pool.close()
    assert taken_bytes(pool_path) < OVERHEAD_BYTES
    with ramet.open(pool_path) as again:
        assert again.objects() == []
        again.create_volume("b", "1MiB").write(0, b"x")


def test_nothing_that_is_allocated_ahead_stays_after_a_reclaim_of_all(pool_path: Path) -> None:
    """A service that holds a small pool kept 8 MiB prepared, and up to 8 MiB of the open segment;
    after a kill the room behind the log's last batch stayed with the pool for good."""
    with ramet.open(pool_path, create=True) as pool:
        pool.create_volume("a", "64MiB").write(0, b"a" * 4 * MIB)
    with serving(pool_path) as served:
        with served.connect("a") as client:
            client.write(0, b"b" * MIB)
            client.flush()
        served.kill()
        served.wait()
    with serving(pool_path) as served, served.verbs() as verbs, served.connect("a") as client:
        client.write(2 * MIB, b"c" * MIB)
        client.flush()
        verbs.reclaim(True, 60.0)
        living = int(verbs.stats()["living_bytes"])
        reserve = (pool_path / "spare" / "reserve").stat().st_blocks * 512
        assert living == 4 * MIB
        assert taken_bytes(pool_path) - reserve <= 1.02 * living + MIB
        client.write(MIB, b"d" * MIB)
        client.flush()
        told = (b"b", b"d", b"c", b"a")
        assert b"".join(client.read(at * MIB, 1) for at in range(4)) == b"".join(told)
    assert_clean(pool_path)


def test_a_dry_run_of_what_is_not_there_is_refused(pool: ramet.Pool) -> None:
    pool.create_volume("a", "1MiB")
    with pytest.raises(NotFoundError):
        pool.frees(["a", "absent"])
    assert pool.frees([]) == 0
    assert pool.frees(["a", "a"]) == 0


def test_the_command_says_what_a_delete_frees_and_gives_it_back(pool_path: Path) -> None:
    with ramet.open(pool_path, create=True) as pool:
        pool.create_volume("a", "16MiB").write(0, random.Random(1).randbytes(64 * BLOCK_BYTES))
    for held in (False, True):
        with serving(pool_path) if held else nullcontext():
            told = run_ramet("-p", pool_path, "--json", "delete", "a", "--dry-run")
            assert json.loads(told.stdout) == {
                "freed_bytes": 64 * BLOCK_BYTES,
                "freed_later_bytes": 0,
                "names": ["a"],
                "locked": [],
            }
            told = run_ramet("-p", pool_path, "delete", "a", "--dry-run")
            assert told.stdout == "256 KiB would come back; nothing was deleted\n"
    with serving(pool_path):
        assert run_ramet("-p", pool_path, "delete", "a").returncode == 0
        done = json.loads(run_ramet("-p", pool_path, "--json", "reclaim", "--all").stdout)
        assert done["is_done"]
        assert done["waiting_bytes"] == 0
    assert "given back" in run_ramet("-p", pool_path, "reclaim").stdout


def test_nothing_is_given_back_while_somebody_reads_beside(pool_path: Path) -> None:
    generator = random.Random(9)
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        pool.create_volume("a", "16MiB").write(0, generator.randbytes(1024 * BLOCK_BYTES))
        pool.create_volume("b", "16MiB").write(0, generator.randbytes(8 * BLOCK_BYTES))
    with serving(pool_path) as served, served.verbs() as verbs:
        with verbs.holding_space() as holds:
            before = sorted(pool_path.glob("segments/*"))
            verbs.delete(["a"], False)
            done = verbs.reclaim(True, 10.0)
            assert done.given_back_bytes == 0
            assert set(before) <= set(pool_path.glob("segments/*"))
            assert check_beside(pool_path).clean
            assert holds()
        # The service finds out by itself that nobody reads any more.
        wait_until(lambda: verbs.reclaim(True, 10.0).given_back_bytes > 4 * MIB)
    assert_clean(pool_path)


def test_a_hold_ends_with_its_block(pool_path: Path) -> None:
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        with pool.holding_space() as holds:
            assert holds()
            pool.create_volume("a", "1MiB").write(0, b"x")
            assert holds()
        assert not holds()


def test_a_hold_that_ended_is_not_taken_for_a_later_one(pool_path: Path) -> None:
    make_pool(pool_path)
    with serving(pool_path) as served, served.verbs() as verbs:
        with verbs.holding_space() as first:
            assert first()
        wait_until(lambda: not first())
        with verbs.holding_space() as second:
            assert second()
            assert not first()


def test_the_figures_of_one_object_say_what_is_its_own(pool: ramet.Pool) -> None:
    generator = random.Random(10)
    golden = pool.create_volume("golden", "16MiB")
    golden.write(0, random_blocks(generator, 100))
    assert pool.space("golden")[:3] == (100 * BLOCK_BYTES, 100 * BLOCK_BYTES, 0)
    base = golden.snapshot("base")
    first, second = pool.clone(base, "vm-{n}", count=2)
    assert pool.space(base)[:3] == (100 * BLOCK_BYTES, 0, 100 * BLOCK_BYTES)
    first.write(50 * BLOCK_BYTES, random_blocks(generator, 60))
    assert pool.space(first)[:3] == (110 * BLOCK_BYTES, 60 * BLOCK_BYTES, 50 * BLOCK_BYTES)
    assert pool.space(second.uuid)[:3] == (100 * BLOCK_BYTES, 0, 100 * BLOCK_BYTES)
    stats = pool.stats()
    assert stats["mapped_bytes"] == 410 * BLOCK_BYTES
    assert stats["saving_factor"] == round(410 / 160, 2)
    pool.delete([golden, base, second])
    assert pool.space(first).exclusive_bytes == 110 * BLOCK_BYTES
    for target in (first, *pool.clone(first, ["again"])):
        assert pool.space(target).exclusive_bytes == pool.frees([target])
    with pytest.raises(NotFoundError):
        pool.space("absent")


def test_an_empty_pool_saves_nothing(pool: ramet.Pool) -> None:
    assert pool.stats()["saving_factor"] == 1.0


def test_show_says_what_is_exclusive_and_what_is_shared(pool_path: Path) -> None:
    with ramet.open(pool_path, create=True) as pool:
        volume = pool.create_volume("a", "16MiB")
        volume.write(0, random.Random(1).randbytes(64 * BLOCK_BYTES))
        volume.snapshot("a@1")
        volume.write(0, random.Random(2).randbytes(16 * BLOCK_BYTES))
    for held in (False, True):
        with serving(pool_path) if held else nullcontext():
            for noun, name in (("volume", "a"), ("snapshot", "a@1")):
                told = json.loads(run_ramet("-p", pool_path, "--json", noun, "show", name).stdout)
                assert told["mapped_bytes"] == 64 * BLOCK_BYTES
                assert told["exclusive_bytes"] == 16 * BLOCK_BYTES
                assert told["shared_bytes"] == 48 * BLOCK_BYTES
            shown = run_ramet("-p", pool_path, "volume", "show", "a").stdout
            assert "exclusive: 64 KiB (65536 bytes)\nshared:    192 KiB" in shown
            assert "saving_factor" in run_ramet("-p", pool_path, "stats").stdout
