"""Locks as their users meet them: from Python, over the socket, on the command line.

What they hold against, and whose clock counts, is in crates/ramet-engine/tests/locks.rs.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import pytest

import programs
import ramet
from ramet.errors import ConflictError, InvalidError, ReadOnlyError
from serving import ramet as run
from serving import run_ramet, serving

PHRASE = "a lock secret of some length"
DAY_SECONDS = 86_400.0


@pytest.fixture
def snapshots(pool: ramet.Pool) -> list[str]:
    """Two snapshots of a volume."""
    volume = pool.create_volume("db", "1MiB")
    volume.write(0, b"data")
    return [volume.snapshot(name).name for name in ("db@1", "db@2")]


def test_a_locked_snapshot_says_until_when_and_is_not_deleted(
    pool: ramet.Pool, snapshots: list[str]
) -> None:
    records = pool.lock(snapshots, timedelta(days=30), mode="compliance")
    assert [record.name for record in records] == snapshots
    record = pool.record("db@1")
    lock = record.lock
    assert lock is not None
    assert lock.mode == "compliance"
    assert 29.99 * DAY_SECONDS < lock.remaining_seconds <= 30 * DAY_SECONDS
    assert lock.until_ns - record.created_ns >= 30 * DAY_SECONDS * 10**9
    assert pool.record("db").lock is None
    for force in (False, True):
        with pytest.raises(ConflictError) as caught:
            pool.delete(["db", "db@1"], force=force)
        assert caught.value.code == "object_locked"
    assert pool.volume("db").read(0, 4) == b"data", "nothing was deleted"


def test_all_else_of_a_locked_snapshot_goes_on(
    pool: ramet.Pool, pool_path: Path, snapshots: list[str]
) -> None:
    pool.lock(snapshots[0], "1d")
    snapshot = pool.snapshot_named("db@1")
    snapshot.tag({"keep": "yes"})
    snapshot.rename("kept")
    root = pool.verify("kept").root
    pool.volume("db").write(0, b"lost")
    pool.volume("db").revert("kept", keep=False)
    assert pool.clone("kept", "other")[0].read(0, 4) == b"data"
    pool.close()
    with ramet.open(pool_path) as again:
        record = again.record("kept")
        assert record.lock is not None
        assert (record.tags, record.root) == ({"keep": "yes"}, root)
        with pytest.raises(ConflictError):
            again.delete("kept")


def test_a_lock_is_over_by_itself(pool: ramet.Pool, snapshots: list[str]) -> None:
    pool.lock("db@1", 1e-6, mode="compliance")
    assert pool.record("db@1").lock is None
    pool.delete(snapshots)


def test_only_the_secret_releases_a_governance_lock(
    pool: ramet.Pool, pool_path: Path, snapshots: list[str]
) -> None:
    with pytest.raises(InvalidError) as short:
        pool.set_lock_secret("too short")
    assert short.value.code == "lock_secret_short"
    pool.set_lock_secret(PHRASE)
    pool.lock(snapshots, "30d")
    for secret, code in ((None, "lock_secret_missing"), ("another", "lock_secret_wrong")):
        with pytest.raises(ReadOnlyError) as refused:
            pool.unlock(snapshots, secret=secret)
        assert refused.value.code == code
    assert pool.lock_clock().wrong_secrets_count == 1
    assert [record.lock for record in pool.unlock(snapshots, secret=PHRASE)] == [None, None]
    pool.delete(snapshots)
    pool.close()
    # What is kept of it is not the secret, and another pool keeps something else.
    kept = (pool_path / "superblock").read_bytes()[4096 + 136 :][:32]
    assert any(kept)
    assert PHRASE.encode() not in (pool_path / "superblock").read_bytes()


def test_a_lock_can_be_taken_back_while_it_cools_off(
    pool: ramet.Pool, snapshots: list[str]
) -> None:
    pool.set_cooling_off("1h")
    lock = pool.lock("db@1", "30d", mode="compliance")[0].lock
    assert lock is not None
    assert 3599 < lock.cooling_off_seconds <= 3600
    assert pool.unlock(snapshots[0])[0].lock is None


@pytest.mark.parametrize("duration", ["500ms", 0.5, timedelta(milliseconds=500)])
def test_a_cooling_off_of_less_than_a_second_is_refused(
    pool: ramet.Pool, duration: str | float | timedelta
) -> None:
    """It was taken for none."""
    with pytest.raises(InvalidError, match="cooling_off_too_short"):
        pool.set_cooling_off(duration)


@pytest.mark.slow
def test_locks_go_over_the_socket_unchanged(
    pool: ramet.Pool, pool_path: Path, snapshots: list[str]
) -> None:
    pool.close()
    with serving(pool_path) as served, served.verbs() as verbs:
        verbs.set_lock_secret(PHRASE, None)
        verbs.set_cooling_off("0s", PHRASE)
        locked = verbs.lock(snapshots, "30d", "governance")
        assert [record.lock and record.lock.mode for record in locked] == ["governance"] * 2
        clock = verbs.lock_clock()
        assert (clock.locked_count, clock.has_secret) == (2, True)
        assert verbs.confirm_lock_clock(PHRASE) < 60
        with pytest.raises(ConflictError) as caught:
            verbs.delete(snapshots, True)
        assert caught.value.code == "object_locked"
        with pytest.raises(ReadOnlyError) as refused:
            verbs.unlock(["db@1"], "wrong")
        assert refused.value.code == "lock_secret_wrong"
        assert verbs.unlock(["db@1"], PHRASE)[0].lock is None
        with pytest.raises(InvalidError):
            verbs.lock(snapshots, "30d", "forever")


@pytest.mark.slow
def test_the_command_line_locks_shows_and_releases(
    pool: ramet.Pool, pool_path: Path, tmp_path: Path, snapshots: list[str]
) -> None:
    pool.close()
    given, other = tmp_path / "secret", tmp_path / "other"
    given.write_text(PHRASE + "\n")
    other.write_text("another secret altogether\n")
    asked = ["-p", pool_path]
    told = run_ramet(*asked, "snapshot", "lock", "db@2", "--for", "1d")
    assert "nobody can release this" in told.stderr
    refused = run_ramet(*asked, "lock-clock", "secret", "--new-secret-file", given)
    assert "lock_runs" in refused.stderr
    date = "2096-05-04T12:30"
    shown = run(*asked, "snapshot", "lock", "db@1", "--until", date, "--mode", "compliance")
    assert date in shown
    assert "or later" in shown
    assert "LOCKED" in run(*asked, "snapshot", "list")
    assert "(compliance)" in run(*asked, "snapshot", "show", "db@1")
    keys = json.loads(run(*asked, "--json", "snapshot", "show", "db@1"))["lock"]
    assert (keys["mode"], keys["until"][:16]) == ("compliance", date)
    dry = run(*asked, "delete", "--dry-run", *snapshots)
    assert "'db@1' is locked until" in dry
    assert "it would be refused" in dry
    assert json.loads(run(*asked, "--json", "delete", "--dry-run", "db@2"))["locked"] == ["db@2"]
    refused = run_ramet(*asked, "delete", "--force", "db", "db@1")
    assert "object_locked" in refused.stderr
    assert "db" in run(*asked, "volume", "list")
    assert "locked:      2" in run(*asked, "lock-clock", "show")
    for options, code in (
        (["unlock", "db@2"], "lock_secret_missing"),
        (["unlock", "db@2", "--secret-file", other], "lock_secret_unset"),
        (["unlock", "db@2", "--secret-file", tmp_path / "absent"], "lock_secret_unread"),
        (["unlock", "db@1", "--secret-file", other], "lock_is_compliance"),
        (["lock", "db@1", "--until", "2001-01-01"], "lock_time"),
        (["lock", "db@1", "--until", "tomorrow"], "date_syntax"),
        (["lock", "db@1", "--for", "1d", "--mode", "compliance"], "lock_is_longer"),
        (["lock", "db@1", "--for", "99d"], "lock_is_firmer"),
        (["lock", "db", "--for", "1d"], "not_a_snapshot"),
    ):
        assert code in run_ramet(*asked, "snapshot", *options).stderr, options


@pytest.mark.slow
def test_the_command_line_sets_the_secret_and_asks_for_the_old_one(
    pool: ramet.Pool, pool_path: Path, tmp_path: Path, snapshots: list[str]
) -> None:
    pool.close()
    given, other = tmp_path / "secret", tmp_path / "other"
    given.write_text(PHRASE)
    other.write_text("another secret altogether")
    asked = ["-p", pool_path]
    run(*asked, "lock-clock", "secret", "--new-secret-file", given)
    change = [*asked, "lock-clock", "secret", "--new-secret-file", other]
    assert "lock_secret_missing" in run_ramet(*change).stderr
    assert "lock_secret_wrong" in run_ramet(*change, "--secret-file", other).stderr
    run(*change, "--secret-file", given)
    run(*asked, "lock-clock", "cooling-off", "10m", "--secret-file", other)
    run(*asked, "snapshot", "lock", *snapshots, "--for", "1d")
    run(*asked, "snapshot", "unlock", "db@1")
    run(*asked, "lock-clock", "cooling-off", "0", "--secret-file", other)
    told = run(*asked, "lock-clock", "confirm", "--secret-file", other)
    assert "governance locks end up to" in told
    run(*asked, "snapshot", "unlock", "db@1", "db@2", "--secret-file", other)
    run(*asked, "delete", *snapshots)


@pytest.mark.slow
def test_a_time_namespace_ends_no_lock(
    pool: ramet.Pool, pool_path: Path, snapshots: list[str]
) -> None:
    """Anybody may start a process that is shown ten years more since the machine's boot."""
    unshare = [programs.find("unshare"), "-Ur", "--time", "--monotonic", "315360000"]
    if programs.finish(*unshare, "true").returncode:
        pytest.skip("this system makes no time namespaces")
    pool.lock(snapshots, "30d", mode="compliance")
    pool.close()
    for options in (["snapshot", "list"], ["delete", *snapshots]):
        told = programs.finish(*unshare, sys.executable, "-m", "ramet", "-p", pool_path, *options)
        assert told.returncode == (0 if options[1] == "list" else ConflictError.exit_code), told
    # Nor by what such a process has written down.
    with ramet.open(pool_path) as again:
        lock = again.record("db@1").lock
        assert lock is not None
        assert lock.remaining_seconds > 29.9 * DAY_SECONDS
