"""A pool with a limit of its own: full as on a full disk, by Python, by commands and over NBD."""

import errno
import json
from contextlib import nullcontext
from pathlib import Path

import pytest

import ramet
from nbd_client import NbdClient, NbdError
from pool_checks import assert_clean, taken_bytes
from ramet.errors import FullError, InvalidError
from serving import run_ramet, serving

MIB = 2**20
LIMIT_MIB = 24


def fill(client: NbdClient) -> int:
    """Write until there is no more room. Result: the MiB that are written."""
    for index in range(2 * LIMIT_MIB):
        try:
            client.write(index * MIB, bytes([index + 1]) * MIB)
        except NbdError as error:
            if error.errno != errno.ENOSPC:
                raise
            return index
    raise AssertionError("the pool is never full")


def test_a_pool_at_its_limit_refuses_writes_and_all_else_goes_on(pool_path: Path) -> None:
    ramet.create(pool_path, segment_size="1MiB")
    with serving(pool_path) as served, served.verbs() as verbs:
        verbs.set_limit(f"{LIMIT_MIB}MiB")
        for turn in range(3):
            verbs.create_volumes(["db"], "64MiB", None)
            with served.connect("db") as client:
                mib_count = fill(client)
                assert mib_count > LIMIT_MIB // 2, f"turn {turn}"
                client.flush()
                for index in range(mib_count):
                    assert client.read(index * MIB, MIB) == bytes([index + 1]) * MIB
            assert taken_bytes(pool_path) <= LIMIT_MIB * MIB
            freed_bytes = verbs.frees(["db"])
            assert [it.name for it in verbs.delete(["db"], False)] == ["db"]
            given_back_bytes = 0
            while given_back_bytes < 0.9 * freed_bytes:
                given_back_bytes += verbs.reclaim(True, 5.0).given_back_bytes
        stats = verbs.stats()
        assert stats["poisoned"] is False
        assert stats["limit_bytes"] == LIMIT_MIB * MIB
    with serving(pool_path) as served, served.verbs() as verbs:
        assert verbs.stats()["limit_bytes"] == LIMIT_MIB * MIB, "it is kept"
    assert_clean(pool_path)


def test_the_command_sets_shows_and_removes_a_limit(pool_path: Path) -> None:
    ramet.create(pool_path, segment_size="1MiB")
    for held in (False, True):
        with serving(pool_path) if held else nullcontext():
            assert run_ramet("-p", pool_path, "limit", "64MiB").stdout.startswith("limit 64 MiB, ")
            told = json.loads(run_ramet("-p", pool_path, "--json", "stats").stdout)
            assert told["limit_bytes"] == 64 * MIB
            assert told["space_bytes"] == 64 * MIB
            assert told["space_free_bytes"] == 64 * MIB - told["taken_bytes"]
            refused = run_ramet("-p", pool_path, "limit", "4KiB")
            assert refused.returncode == InvalidError.exit_code
            assert "limit_below_use" in refused.stderr
            told = json.loads(run_ramet("-p", pool_path, "--json", "limit", "none").stdout)
            assert told["limit_bytes"] == 0
            assert told["taken_bytes"] > 0
            assert run_ramet("-p", pool_path, "limit", "much").returncode == InvalidError.exit_code


def test_what_is_taken_is_what_the_files_take(pool: ramet.Pool, pool_path: Path) -> None:
    volume = pool.create_volume("a", "64MiB")
    for number in range(5):
        volume.write(number * MIB, bytes([number + 1]) * MIB)
        volume.snapshot()
    pool.checkpoint()
    pool.delete([item.name for item in pool.snapshots()])
    pool.reclaim(everything=True)
    # The lock's file is written behind the store's back; its few bytes count once it is opened.
    assert abs(int(pool.stats()["taken_bytes"]) - taken_bytes(pool_path)) <= 4096


def test_a_limit_holds_for_python_too(pool: ramet.Pool) -> None:
    taken = int(pool.stats()["taken_bytes"])
    with pytest.raises(InvalidError, match="limit_below_use"):
        pool.set_limit(0)
    pool.set_limit(taken + 20 * MIB)
    volume = pool.create_volume("a", "64MiB")
    for number in range(10):
        volume.write(number * MIB, b"x" * MIB)
    with pytest.raises(FullError, match="raise its limit"):
        volume.write(16 * MIB, b"x" * (32 * MIB))
    pool.set_limit(None)
    volume.write(63 * MIB, b"x" * MIB)
    assert volume.read(63 * MIB, MIB) == b"x" * MIB
