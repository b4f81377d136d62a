"""The trash as its users meet it: from Python, over the socket, on the command line, by policies.

When it ends what it holds, and what crashes do to it, is in crates/ramet-engine/tests/trash.rs and
in the scripts beside it.
"""

import json
from pathlib import Path

import pytest

import ramet
from pool_checks import assert_clean
from ramet.errors import ConflictError, InvalidError, NotFoundError
from serving import ramet as run
from serving import run_ramet, serving
from streams import code_of, stream_of, take_in

DAY_SECONDS = 86_400
BLOCKS = b"data" * 1024 * 4


@pytest.fixture
def kept(pool: ramet.Pool) -> ramet.Pool:
    """A pool with a window, a volume with a tag and four blocks, and a snapshot of it."""
    pool.set_trash_window("7d")
    pool.create_volume("db", "1MiB", tags={"env": "prod"}).write(0, BLOCKS)
    pool.snapshot("db", name="db@1")
    return pool


def test_what_was_deleted_comes_back_with_all_that_it_had(kept: ramet.Pool) -> None:
    handle, was = kept.volume("db"), kept.record("db")
    assert [it.name for it in kept.delete(["db", "db@1"])] == ["db", "db@1"]
    assert kept.objects() == []
    with pytest.raises(NotFoundError):
        handle.read(0, 4)
    trash = kept.trash()
    assert trash.window_seconds == 7 * DAY_SECONDS
    assert {it.object.name for it in trash.objects} == {"db", "db@1"}
    first = trash.objects[0]
    assert 6.99 * DAY_SECONDS < first.remaining_seconds <= 7 * DAY_SECONDS
    assert first.until_ns - was.created_ns > 6.99 * DAY_SECONDS * 10**9
    assert type(trash).from_json(json.loads(json.dumps(trash.to_json()))) == trash
    restored = kept.restore(["db", "db@1"])
    assert [type(it).__name__ for it in restored] == ["Volume", "Snapshot"]
    assert kept.record("db")._replace(parent=None) == was._replace(parent=None)
    assert handle.read(0, 4) == b"data", "who has it open goes on"
    handle.delete()
    assert kept.trash_frees(handle) == 0, "the snapshot has it all"
    assert kept.restore(handle) == [handle]
    assert kept.trash().objects == []


def test_a_restored_name_counts_for_the_next_snapshot(pool: ramet.Pool) -> None:
    pool.set_trash_window("1d")
    volume = pool.create_volume("db", "1MiB")
    first = volume.snapshot("db@7").name
    pool.delete(first)
    again = volume.snapshot("db@7").name
    with pytest.raises(ConflictError) as taken:
        pool.restore("db@7")
    assert taken.value.code == "name_taken"
    assert [it.made_name for it in pool.restore("db@7", names="db@8")] == ["db@8"]
    assert [it.made_name for it in pool.snapshots()] == [again, "db@8"]


def test_space_comes_back_when_it_ends(kept: ramet.Pool) -> None:
    assert kept.frees(["db", "db@1"]) == len(BLOCKS)
    kept.delete(["db", "db@1"])
    kept.reclaim(everything=True)
    assert kept.stats()["living_bytes"] == len(BLOCKS)
    assert kept.stats()["trashed_count"] == 2
    assert (kept.trash_frees("db"), kept.trash_frees()) == (0, len(BLOCKS))
    assert [it.name for it in kept.empty_trash("db")] == ["db"]
    kept.empty_trash()
    kept.reclaim(everything=True)
    assert (kept.stats()["living_bytes"], kept.stats()["trashed_count"]) == (0, 0)


def test_now_goes_past_the_trash_and_no_window_is_none(kept: ramet.Pool) -> None:
    kept.snapshot_named("db@1").delete(now=True)
    assert kept.trash().objects == []
    kept.set_trash_window(0)
    kept.delete("db")
    assert kept.trash().objects == []


@pytest.mark.parametrize("window", ["0.5s", "500ms", "101y", "soon", -1])
def test_a_window_that_cannot_be_is_refused(pool: ramet.Pool, window: str | float) -> None:
    with pytest.raises(InvalidError):
        pool.set_trash_window(window)
    assert pool.trash().window_seconds == 0


def test_what_cannot_be_restored_changes_nothing(kept: ramet.Pool) -> None:
    kept.delete(["db", "db@1"])
    kept.create_volume("db", "1MiB")
    kept.delete("db")
    for names, code in [
        (["db@1", "db"], "trash_ambiguous"),
        (["db@1", "other"], "not_in_trash"),
        ([kept.uuid], "not_in_trash"),
    ]:
        with pytest.raises((ConflictError, NotFoundError)) as caught:
            kept.restore(names)
        assert caught.value.code == code
        assert kept.objects() == []
    with pytest.raises(InvalidError):
        kept.restore("db@1", names="a/b")
    with pytest.raises(InvalidError):
        kept.restore(["db@1"], names=["a", "b"])
    uuids = [it.object.uuid for it in kept.trash().objects if it.object.name == "db"]
    assert len(kept.restore([uuids[0], "db@1"])) == 2


def test_the_trash_outlives_the_process_and_check_knows_it(
    kept: ramet.Pool, pool_path: Path
) -> None:
    kept.clone("db@1", "child")
    kept.delete(["db", "db@1"])
    kept.close()
    assert_clean(pool_path)
    with ramet.open(pool_path) as again:
        assert again.record("child").parent is None
        again.restore("db@1")
        assert again.record("child").parent == again.record("db@1").uuid
        again.delete("child")
    assert_clean(pool_path)
    with ramet.open(pool_path) as again:
        assert [it.object.name for it in again.trash().objects] == ["db", "child"]


def test_what_is_sent_again_is_restored(kept: ramet.Pool, tmp_path: Path) -> None:
    kept.snapshot("db", name="db@2")
    with ramet.open(tmp_path / "there", create=True) as there:
        there.set_trash_window("7d")
        stream = stream_of(kept, ["db@1", "db@2"])
        take_in(there, stream)
        there.delete(["db@1", "db@2"])
        assert [it.is_new for it in take_in(there, stream)] == [False, False]
        assert [it.made_name for it in there.snapshots()] == ["db@1", "db@2"]
        there.delete("db@1")
        there.delete("db@2", now=True)
        assert code_of(lambda: take_in(there, stream)) == "uuid_taken"
        assert (there.objects(), len(there.trash().objects)) == ([], 1)


def test_the_command_line_tells_and_undoes(pool: ramet.Pool, pool_path: Path) -> None:
    pool.create_volume("db", "1MiB").write(0, BLOCKS)
    pool.close()
    assert run("-p", pool_path, "trash", "window", "2d") == "what is deleted now is kept for 2d\n"
    told = run("-p", pool_path, "delete", "db", "--dry-run")
    assert told == "16 KiB would come back when 2d are over; nothing was deleted\n"
    told = json.loads(run("-p", pool_path, "--json", "delete", "db", "--dry-run"))
    assert (told["freed_bytes"], told["freed_later_bytes"]) == (0, len(BLOCKS))
    told = json.loads(run("-p", pool_path, "--json", "delete", "db", "--dry-run", "--now"))
    assert (told["freed_bytes"], told["freed_later_bytes"]) == (len(BLOCKS), 0)
    run("-p", pool_path, "delete", "db")
    listed = run("-p", pool_path, "trash", "list")
    assert "db" in listed
    assert "1 in the trash, which hold 16 KiB alone" in listed
    assert json.loads(run("-p", pool_path, "--json", "trash", "list"))["freed_bytes"] == len(BLOCKS)
    told = run("-p", pool_path, "trash", "empty", "--all", "--dry-run")
    assert told == "16 KiB would come back; nothing was ended\n"
    assert run("-p", pool_path, "trash", "restore", "db", "--name", "old") == "old\n"
    for wrong in (["empty"], ["empty", "old", "--all"], ["restore", "a", "b", "--name", "c"]):
        assert run_ramet("-p", pool_path, "trash", *wrong).returncode != 0
    run("-p", pool_path, "delete", "old")
    assert run("-p", pool_path, "trash", "empty", "old") == "old\n"
    assert run("-p", pool_path, "trash", "window", "none") == "what is deleted now is not kept\n"


def test_a_service_trashes_and_restores(pool: ramet.Pool, pool_path: Path) -> None:
    pool.create_volume("db", "1MiB").write(0, BLOCKS)
    pool.close()
    with serving(pool_path):
        run("-p", pool_path, "trash", "window", "1h")
        run("-p", pool_path, "delete", "db")
        told = json.loads(run("-p", pool_path, "--json", "trash", "list"))
        assert (told["window_seconds"], told["freed_bytes"]) == (3600, len(BLOCKS))
        run("-p", pool_path, "trash", "restore", told["objects"][0]["object"]["uuid"])
        run("-p", pool_path, "delete", "db", "--now")
        assert json.loads(run("-p", pool_path, "--json", "trash", "list"))["objects"] == []
        assert "not_in_trash" in run_ramet("-p", pool_path, "--json", "trash", "empty", "db").stderr
