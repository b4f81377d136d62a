"""A pool warns before it is full: of its limit, and of its file system, the worse of both."""

import threading
from pathlib import Path

import pytest

import ramet
from ramet.errors import InvalidError
from ramet.fullness import Fullness, Thresholds, Watch, parse_thresholds
from serving import run_ramet, serving

MIB = 1024 * 1024


def of_limit(percent: float) -> Fullness:
    return Fullness(int(percent * 10), 1000, 900, 1000)


@pytest.mark.parametrize(
    ("taken", "limit", "free", "state"),
    [
        (0, 0, 1000, "ok"),
        (0, 0, 0, "critical"),
        (999, 0, 500, "ok"),  # No limit: what the pool takes is part of the file system.
        (849, 1000, 1000, "ok"),
        (850, 1000, 1000, "low"),
        (949, 1000, 1000, "low"),
        (950, 1000, 1000, "critical"),
        (1001, 1000, 1000, "critical"),
        (10, 1000, 151, "ok"),
        (10, 1000, 150, "low"),
        (10, 1000, 50, "critical"),
        (900, 1000, 10, "critical"),
    ],
)
def test_the_worse_of_limit_and_file_system_counts(
    taken: int, limit: int, free: int, state: str
) -> None:
    assert Fullness(taken, limit, free, 1000).state() == state


def test_a_file_system_that_does_not_say_its_size_is_never_full() -> None:
    assert Fullness(10, 0, 0, 0).state() == "ok"


def test_a_change_is_told_once_and_says_of_what() -> None:
    watch = Watch()
    assert watch.observe(of_limit(10)) is None
    said = watch.observe(of_limit(86))
    assert said is not None
    assert said.startswith("space low: 86.0% of the pool's limit in use, 140 B left; hint: ")
    assert watch.observe(of_limit(94)) is None
    said = watch.observe(Fullness(860, 1000, 20, 1000))
    assert said is not None
    assert said.startswith("space critical: 98.0% of its file system in use, 20 B left; hint: ")


def test_a_state_at_a_threshold_does_not_flutter() -> None:
    watch = Watch(Thresholds(0.8, 0.9))
    said = [watch.observe(of_limit(percent)) for percent in (80, 79.5, 80, 79.2, 90, 89.5, 90)]
    assert [text is not None for text in said] == [True, False, False, False, True, False, False]
    said = [watch.observe(of_limit(percent)) for percent in (88, 79.5, 78.9)]
    assert [(text or "").split(":")[0] for text in said] == ["space low", "", "space ok"]


@pytest.mark.parametrize(
    ("low", "critical"),
    [("0", None), ("96", None), ("90", "80"), ("50", "101"), ("much", None), (None, "nan")],
)
def test_thresholds_that_are_none_are_refused(low: str | None, critical: str | None) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_thresholds(low, critical)
    assert caught.value.code == "space_thresholds"


def test_stats_say_it(pool: ramet.Pool) -> None:
    pool.set_limit("64MiB")
    assert pool.fullness().limit_bytes == 64 * MIB
    before = pool.stats()
    pool.create_volume("db", "64MiB").write(0, b"a" * 50 * MIB)
    tight = Thresholds(0.5, 0.7)
    after = pool.stats(thresholds=tight)
    assert after["space_state"] == pool.fullness().state(tight) == "critical"
    assert before["space_state"] in ("ok", "low", "critical")
    # Whatever this machine's disk is, the figures are its own.
    assert 0 < int(after["file_system_free_bytes"]) < int(after["file_system_bytes"])


@pytest.mark.slow
def test_a_service_warns_once_and_takes_it_back(pool_path: Path) -> None:
    """The file system that the tests run on may be full to any part: the thresholds of this pool
    lie above it, so that only the limit counts."""
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        used = pool.fullness().used
        if used > 0.9:
            pytest.skip(f"{used:.0%} of the file system are in use, and the test needs room there")
        low = used + (1 - used) / 3
        critical = used + (1 - used) * 2 / 3
        pool.set_limit("100MiB")
        pool.create_volume("db", "100MiB")
    options = ("--space-low", str(100 * low), "--space-critical", f"{100 * critical}%")
    with serving(pool_path, *options) as served:
        assert served.health()[1]["space_state"] == "ok"
        with served.connect("db") as client, served.verbs() as verbs:
            block = b"a" * MIB
            at = 0
            while served.health()[1]["space_state"] != "critical":
                client.write(at * MIB, block)
                client.flush()
                at += 1
            assert verbs.stats()["space_state"] == "critical"
            wait_for(served.said, "space critical: ")
            assert served.health()[0] == 200, "it still serves"
            client.trim(0, at * MIB)
            client.flush()
            while not verbs.reclaim(True, 1.0).is_done:
                pass
            assert served.health()[1]["space_state"] == "ok"
            wait_for(served.said, "space ok: ")
    said = [line.split(":")[0] for line in served.said if line.startswith("space ")]
    assert said in (["space low", "space critical", "space ok"], ["space critical", "space ok"])


def wait_for(lines: list[str], start: str) -> None:
    """Wait for a line; the time limit of the test bounds it."""
    while not any(line.startswith(start) for line in lines):
        threading.Event().wait(0.05)


@pytest.mark.slow
def test_a_service_refuses_thresholds_that_are_none(pool_path: Path) -> None:
    ramet.create(pool_path)
    done = run_ramet("-p", pool_path, "serve", "--space-low", "99")
    assert done.returncode == 2
    assert "space_thresholds" in done.stderr
