"""Freeze, resize, tags, group revert and diff: what users expect, and what is refused."""

import errno
from pathlib import Path

import pytest

import nbd_client
import ramet
from ramet.errors import BusyError, ConflictError, InvalidError, NotFoundError, ReadOnlyError

BLOCK_BYTES = 4096
MIB = 1024 * 1024


def test_a_frozen_volume_is_a_snapshot_with_its_name_and_content(pool: ramet.Pool) -> None:
    volume = pool.create_volume("golden", "1MiB")
    volume.write(0, b"content")
    frozen = volume.freeze()
    assert (frozen.name, frozen.uuid, frozen.record().kind) == ("golden", volume.uuid, "snapshot")
    assert frozen.read(0, 7) == b"content"
    with pytest.raises(ReadOnlyError):
        volume.write(0, b"x")
    assert pool.clone("golden", "vm")[0].read(0, 7) == b"content"
    with pytest.raises(InvalidError):
        pool.freeze("golden")


def test_a_volume_with_snapshots_and_clones_is_frozen(pool: ramet.Pool, pool_path: Path) -> None:
    volume = pool.create_volume("db", "1MiB")
    volume.write(0, b"one")
    volume.snapshot("db@1")
    clone = pool.clone("db", "fork")[0]
    volume.write(0, b"two")
    pool.freeze("db")
    clone.write(0, b"abc")
    pool.close()
    with ramet.open(pool_path) as again:
        contents = [again.get(name).read(0, 3) for name in ("db", "db@1", "fork")]
        assert contents == [b"two", b"one", b"abc"]
        assert again.record("db").kind == "snapshot"


def test_freezing_many_is_all_or_nothing(pool: ramet.Pool) -> None:
    pool.create_volumes("v-{n}", "1MiB", count=3)
    pool.snapshot("v-2", name="s")
    with pytest.raises(InvalidError):
        pool.freeze(["v-1", "s", "v-3"])
    with pytest.raises(NotFoundError):
        pool.freeze(["v-1", "absent"])
    assert {volume.name for volume in pool.volumes()} == {"v-1", "v-2", "v-3"}
    assert [it.name for it in pool.freeze(["v-3", "v-1"])] == ["v-3", "v-1"]


def test_growing_adds_zeros_and_shrinking_cuts_off(pool: ramet.Pool, pool_path: Path) -> None:
    volume = pool.create_volume("db", 3 * BLOCK_BYTES)
    volume.write(0, b"\xff" * 3 * BLOCK_BYTES)
    before = volume.snapshot("db@1")
    with pytest.raises(InvalidError) as caught:
        volume.resize(BLOCK_BYTES + 512)
    assert caught.value.code == "resize_would_shrink"
    volume.resize(BLOCK_BYTES + 512, shrink=True)
    with pytest.raises(InvalidError):
        volume.read(BLOCK_BYTES + 512, 1)
    volume.resize("1MiB")
    kept = b"\xff" * (BLOCK_BYTES + 512)
    assert volume.read(0, MIB) == kept + bytes(MIB - len(kept))
    assert before.read(0, 3 * BLOCK_BYTES) == b"\xff" * 3 * BLOCK_BYTES
    pool.close()
    with ramet.open(pool_path) as again:
        assert again.volume("db").read(0, MIB) == kept + bytes(MIB - len(kept))


@pytest.mark.parametrize("size", [0, 100, -512, "257TiB", "1furlong"])
def test_a_bad_size_is_refused(pool: ramet.Pool, size: str | int) -> None:
    pool.create_volume("db", "1MiB")
    with pytest.raises(InvalidError):
        pool.resize("db", size, shrink=True)
    assert pool.record("db").size_bytes == MIB


def test_a_snapshot_is_not_resized(pool: ramet.Pool) -> None:
    pool.create_volume("db", "1MiB").snapshot("db@1")
    with pytest.raises(InvalidError):
        pool.resize("db@1", "2MiB")


def test_tags_are_set_removed_and_kept(pool: ramet.Pool, pool_path: Path) -> None:
    volume = pool.create_volume("db", "1MiB", tags={"env": "prod"})
    snapshot = pool.snapshot("db", name="db@1", tags={"kind": "nightly"})[0]
    clone = pool.clone("db", "fork", tags={"who": "Zoë"})[0]
    assert snapshot.record().tags == {"kind": "nightly"}, "a snapshot inherits none"
    assert clone.record().tags == {"who": "Zoë"}
    changed = pool.tag(["db", "db@1"], {"team": "x"}, remove=["env", "absent"])
    assert [it.tags for it in changed] == [{"team": "x"}, {"kind": "nightly", "team": "x"}]
    volume.tag({"team": "y"})
    pool.close()
    with ramet.open(pool_path) as again:
        assert again.record("db").tags == {"team": "y"}
        assert again.record("fork").tags == {"who": "Zoë"}


def test_a_group_is_chosen_by_tag(pool: ramet.Pool) -> None:
    pool.create_volumes("a-{n}", "1MiB", count=3, tags={"env": "prod", "app": "a"})
    pool.create_volumes("b-{n}", "1MiB", count=2, tags={"env": "prod", "app": "b"})
    pool.create_volume("c", "1MiB")
    taken = pool.snapshot(tagged={"env": None, "app": "a"}, name="{volume}@t")
    assert [it.name for it in taken] == ["a-1@t", "a-2@t", "a-3@t"]
    with pytest.raises(NotFoundError) as caught:
        pool.snapshot(tagged={"env": "test"})
    assert caught.value.code == "tag_not_found"
    with pytest.raises(InvalidError):
        pool.snapshot("c", tagged={"env": "prod"})


def test_tags_that_are_too_large_together_change_nothing(pool: ramet.Pool) -> None:
    pool.create_volume("db", "1MiB", tags={"a": "1"})
    with pytest.raises(InvalidError) as caught:
        pool.tag("db", {f"k{number}": "v" * 1024 for number in range(63)} | {"z": "v" * 1025})
    assert caught.value.code == "tag_value"
    with pytest.raises(InvalidError) as caught:
        pool.tag("db", {f"{number:063}": "v" * 1024 for number in range(63)})
    assert caught.value.code == "attributes_too_large"
    assert pool.record("db").tags == {"a": "1"}


@pytest.mark.parametrize(
    ("value", "code"), [("\udcff", "tag_not_utf8"), ("v" * 1025, "tag_value"), ("\0", "tag_value")]
)
def test_a_tag_that_cannot_be_changes_nothing(pool: ramet.Pool, value: str, code: str) -> None:
    pool.create_volume("db", "1MiB", tags={"a": "1"})
    for change in (
        lambda: pool.tag("db", {"env": value}),
        lambda: pool.create_volume("new", "1MiB", tags={"env": value}),
        lambda: pool.snapshot("db", tags={"env": value}),
        lambda: pool.clone("db", "new", tags={"env": value}),
    ):
        with pytest.raises(InvalidError) as caught:
            change()
        assert caught.value.code == code
        assert "hint: " in caught.value.text
    assert [(it.name, it.tags) for it in pool.objects()] == [("db", {"a": "1"})]


def test_a_group_reverts_to_one_instant(pool: ramet.Pool) -> None:
    volumes = pool.create_volumes("v-{n}", "1MiB", count=3)
    for volume in volumes:
        volume.write(0, b"old")
    pool.snapshot(volumes, name="{volume}@1")
    for volume in volumes:
        volume.write(0, b"new")
    pairs = [(volume, f"{volume.name}@1") for volume in volumes]
    kept = pool.revert_many(pairs, keep="{volume}@kept")
    assert [it.name for it in kept] == ["v-1@kept", "v-2@kept", "v-3@kept"]
    assert [it.read(0, 3) for it in kept] == [b"new"] * 3
    assert [it.read(0, 3) for it in volumes] == [b"old"] * 3
    assert pool.revert_many([]) == []


def test_a_group_revert_with_one_bad_pair_changes_nothing(pool: ramet.Pool) -> None:
    volumes = pool.create_volumes("v-{n}", "1MiB", count=2)
    pool.snapshot(volumes, name="{volume}@1")
    volumes[0].write(0, b"new")
    pool.create_volume("large", "2MiB").snapshot("large@1")
    for pairs in (
        [("v-1", "v-1@1"), ("v-2", "absent")],
        [("v-1", "v-1@1"), ("v-2", "large@1")],
        [("v-1", "v-1@1"), ("v-1", "v-1@1")],
        [("v-1", "v-1@1"), ("v-2@1", "v-1@1")],
    ):
        with pytest.raises((NotFoundError, InvalidError, ConflictError)):
            pool.revert_many(pairs)
    assert volumes[0].read(0, 3) == b"new"
    assert len(pool.snapshots()) == 3


def test_diff_names_what_changed_and_no_more(pool: ramet.Pool) -> None:
    volume = pool.create_volume("db", "1GiB")
    volume.write(0, b"x" * 4 * BLOCK_BYTES)
    volume.snapshot("db@1")
    assert pool.diff("db@1", "db").extents == []
    volume.write(BLOCK_BYTES + 10, b"y")
    volume.write(2 * BLOCK_BYTES, b"z" * BLOCK_BYTES)
    volume.trim(3 * BLOCK_BYTES, BLOCK_BYTES)
    volume.write(512 * MIB, b"far")
    expected = [
        (BLOCK_BYTES, 2 * BLOCK_BYTES, True),
        (3 * BLOCK_BYTES, BLOCK_BYTES, False),
        (512 * MIB, BLOCK_BYTES, True),
    ]
    assert pool.diff("db@1", "db").extents == expected
    back = [extent[:2] for extent in pool.diff("db", "db@1").extents]
    assert sum(length for _, length in back) == 4 * BLOCK_BYTES


def test_diff_of_different_sizes_says_both(pool: ramet.Pool) -> None:
    volume = pool.create_volume("db", "1MiB")
    volume.write(0, b"x")
    volume.snapshot("db@1")
    volume.resize("2MiB")
    volume.write(MIB, b"tail")
    found = pool.diff("db@1", "db")
    assert (found.before_size_bytes, found.after_size_bytes) == (MIB, 2 * MIB)
    assert found.extents == [(MIB, BLOCK_BYTES, True)]
    assert type(found).from_json(found.to_json()) == found


def test_diff_of_unrelated_volumes(pool: ramet.Pool) -> None:
    pool.create_volume("a", "1MiB").write(0, b"x" * 2 * BLOCK_BYTES)
    pool.create_volume("b", "1MiB").write(BLOCK_BYTES, b"x" * 2 * BLOCK_BYTES)
    assert pool.diff("a", "b").extents == [
        (0, BLOCK_BYTES, False),
        (BLOCK_BYTES, 2 * BLOCK_BYTES, True),
    ]
    with pytest.raises(NotFoundError):
        pool.diff("a", "absent")


def test_what_is_attached_is_not_frozen_nor_shrunk_unless_forced(
    pool: ramet.Pool, tmp_path: Path
) -> None:
    volume = pool.create_volume("db", "1MiB")
    path = tmp_path / "nbd.sock"
    with pool.serve_nbd(path):
        for size_bytes, change in (
            (MIB, lambda force: volume.resize("512KiB", shrink=True, force=force)),
            (MIB // 2, lambda force: volume.freeze(force=force)),
        ):
            with nbd_client.connect(path, "db") as client:
                client.write(0, b"x" * 512)
                with pytest.raises(BusyError) as caught:
                    change(False)
                assert caught.value.code == "object_attached"
                assert (client.size, client.read(0, 1)) == (size_bytes, b"x")
                change(True)
                with pytest.raises(ConnectionError):
                    client.read(0, 1)
        assert pool.get("db").read(0, MIB // 2) == b"x" * 512 + bytes(MIB // 2 - 512)
        assert pool.record("db").kind == "snapshot"


def test_a_volume_grows_under_a_connection_that_keeps_the_size_it_began_with(
    pool: ramet.Pool, tmp_path: Path
) -> None:
    volume = pool.create_volume("db", "1MiB")
    path = tmp_path / "nbd.sock"
    with pool.serve_nbd(path), nbd_client.connect(path, "db") as before:
        volume.resize("2MiB")
        for call, expected in (
            (lambda: before.read(MIB - 1, 2), errno.EINVAL),
            (lambda: before.write(MIB, b"x"), errno.ENOSPC),
        ):
            with pytest.raises(nbd_client.NbdError) as caught:
                call()
            assert caught.value.errno == expected
        before.write(MIB - 1, b"x")
        with nbd_client.connect(path, "db") as after:
            assert (before.size, after.size) == (MIB, 2 * MIB)
            after.write(2 * MIB - 1, b"y")
            assert after.read(MIB - 1, 2) == b"x\0"
