"""The Python API does what its docstrings say, and refuses what the issue calls bad input."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import ramet
from ramet.errors import (
    ConflictError,
    FullError,
    InvalidError,
    NotFoundError,
    RametError,
    ReadOnlyError,
    UnavailableError,
)

MIB = 2**20
UUID = "01936f3a-7c1e-7d2b-8f00-0123456789ab"


def names_of(objects: list[ramet.Volume] | list[ramet.Snapshot]) -> list[str]:
    return [it.name for it in objects]


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(RametError) as caught:
        call()
    assert caught.value.text, "an error says what failed"
    return caught.value.code


def test_the_readme_sample_runs(pool_path: Path) -> None:
    data = b"golden" * 1000
    with ramet.open(pool_path, create=True) as pool:
        golden = pool.create_volume("golden", size="10GiB")
        golden.write(0, data)
        golden.flush()
        base = golden.snapshot("golden@1")
        machines = pool.clone(base, "vm-{n}", count=1000)
        nightly = pool.snapshot(machines, name="{volume}@nightly")
    with ramet.open(pool_path) as pool:
        assert len(machines) == len(nightly) == 1000
        assert pool.volume("vm-1000").read(0, len(data)) == data
        assert pool.snapshot_named("vm-7@nightly").read(0, len(data)) == data
        assert pool.get("golden@1").uuid == base.uuid


def test_new_volumes_read_as_zeros_and_take_no_space(pool: ramet.Pool) -> None:
    volume = pool.create_volume("big", "256TiB")
    assert volume.size_bytes == 2**48
    assert volume.read(2**48 - 4096, 4096) == bytes(4096)
    assert volume.record().mapped_bytes == 0
    assert volume.read(0, 0) == b""


def test_writes_of_any_alignment_are_read_back(pool: ramet.Pool) -> None:
    volume = pool.create_volume("db", MIB)
    expected = bytearray(MIB)
    for offset, length in ((0, 1), (4095, 2), (5000, 10_000), (MIB - 1, 1), (65_536, 65_536)):
        data = bytes([offset % 251 + 1]) * length
        volume.write(offset, data)
        expected[offset : offset + length] = data
    assert volume.read(0, MIB) == expected
    buffer = bytearray(3000)
    volume.read_into(4000, buffer)
    assert buffer == expected[4000:7000]


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview, lambda it: memoryview(it)[::1]])
def test_data_may_be_any_buffer(pool: ramet.Pool, make: Callable[[bytes], bytes]) -> None:
    volume = pool.create_volume("db", MIB)
    volume.write(10, make(b"content"))
    assert volume.read(10, 7) == b"content"
    volume.write(10, b"")
    assert volume.read(10, 7) == b"content"


def test_trim_and_zeroes_make_zeros_and_give_space_back(pool: ramet.Pool) -> None:
    volume = pool.create_volume("db", MIB)
    volume.write(0, b"\xff" * MIB)
    assert volume.record().mapped_bytes == MIB
    volume.trim(0, MIB // 2)
    assert volume.read(0, MIB // 2) == bytes(MIB // 2)
    assert volume.record().mapped_bytes == MIB // 2
    volume.write_zeroes(MIB // 2 + 100, 8192)
    content = volume.read(MIB // 2, 16_384)
    assert content == b"\xff" * 100 + bytes(8192) + b"\xff" * (16_384 - 8292)
    volume.trim(0, 0)
    volume.write_zeroes(MIB, 0)


def test_snapshots_keep_what_was_and_never_change(pool: ramet.Pool) -> None:
    volume = pool.create_volume("db", MIB)
    volume.write(0, b"one")
    first = volume.snapshot()
    volume.write(0, b"two")
    second = volume.snapshot()
    assert (first.name, second.name) == ("db@1", "db@2")
    assert (first.read(0, 3), second.read(0, 3), volume.read(0, 3)) == (b"one", b"two", b"two")
    for change in (
        lambda: first.write(0, b"x"),
        lambda: first.trim(0, 4096),
        lambda: first.write_zeroes(0, 4096),
        lambda: pool.open_device("db@1").write(0, b"x"),
        lambda: first.open("r+b"),
    ):
        with pytest.raises(ReadOnlyError):
            change()
    assert first.read(0, 3) == b"one"
    first.flush()


def test_lineage_is_told(pool: ramet.Pool) -> None:
    volume = pool.create_volume("db", MIB)
    assert (volume.record().parent, volume.record().source) == (None, None)
    snapshot = volume.snapshot("db@1")
    assert snapshot.record().source == volume.uuid
    assert volume.record().parent == snapshot.uuid
    clones = pool.clone(snapshot, ["a", "b"])
    assert {it.record().parent for it in clones} == {snapshot.uuid}
    assert {it.record().source for it in clones} == {snapshot.uuid}
    assert len({it.record().batch for it in clones}) == 1
    assert clones[0].record().batch != snapshot.record().batch


def test_clones_go_their_own_ways(pool: ramet.Pool) -> None:
    volume = pool.create_volume("db", MIB)
    volume.write(0, b"origin")
    straight = volume.clone("straight")
    volume.write(0, b"change")
    larger = straight.clone("larger", size="2MiB")
    larger.write(0, b"larger")
    larger.write(2 * MIB - 6, b"behind")
    assert straight.read(0, 6) == b"origin"
    assert larger.read(0, 6) == b"larger"
    assert larger.size_bytes == 2 * MIB
    assert code_of(lambda: straight.clone("smaller", size=512)) == "clone_too_small"


def test_a_clone_outlives_everything_it_came_from(pool: ramet.Pool) -> None:
    volume = pool.create_volume("db", MIB)
    volume.write(0, b"kept")
    clone = volume.snapshot("db@1").clone("kept")
    gone = pool.delete(["db", "db@1", volume])
    assert [it.name for it in gone] == ["db", "db@1"]
    assert clone.read(0, 4) == b"kept"
    assert clone.record().parent is None
    assert names_of(pool.volumes()) == ["kept"]
    assert pool.snapshots() == []


def test_a_group_snapshot_names_each_by_its_volume(pool: ramet.Pool) -> None:
    volumes = pool.create_volumes("vm-{n}", "1MiB", count=3)
    for volume in volumes:
        volume.write(0, volume.name.encode())
    nightly = pool.snapshot(volumes, name="{volume}@nightly")
    assert names_of(nightly) == ["vm-1@nightly", "vm-2@nightly", "vm-3@nightly"]
    assert [it.read(0, 4) for it in nightly] == [b"vm-1", b"vm-2", b"vm-3"]
    assert names_of(pool.snapshot(["vm-2", volumes[0]])) == ["vm-2@1", "vm-1@1"]
    assert names_of(pool.snapshot(all_volumes=True)) == ["vm-1@2", "vm-2@2", "vm-3@1"]
    assert names_of(pool.snapshot(volumes[:2], name=["x", "y"])) == ["x", "y"]
    assert names_of(pool.snapshot("vm-1", name="backup-{time}"))[0].startswith("backup-2")


def test_empty_commands_are_no_ops(pool: ramet.Pool) -> None:
    assert pool.snapshot([]) == []
    assert pool.snapshot(all_volumes=True) == []
    assert pool.delete([]) == []
    assert pool.create_volumes([], 512) == []
    pool.create_volume("db", 512)
    assert pool.clone("db", []) == []
    assert [it.name for it in pool.objects()] == ["db"]


def test_revert_keeps_what_it_discards_unless_told_not_to(pool: ramet.Pool) -> None:
    volume = pool.create_volume("db", MIB)
    volume.write(0, b"old")
    base = volume.snapshot("base")
    for keep, content in ((True, b"new"), ("{volume}@kept", b"n-2"), (False, b"n-3")):
        volume.write(0, content)
        kept = volume.revert(base, keep=keep)
        assert volume.read(0, 3) == b"old"
        if keep is False:
            assert kept is None
        else:
            assert kept is not None
            assert kept.read(0, 3) == content
    assert names_of(pool.snapshots()) == ["base", "db@1", "db@kept"]
    assert volume.record().parent == base.uuid


def test_revert_refuses_what_does_not_fit(pool: ramet.Pool) -> None:
    volume = pool.create_volume("db", MIB)
    snapshot = volume.snapshot("db@1")
    assert code_of(lambda: pool.revert("db", "db")) == "not_a_snapshot"
    assert code_of(lambda: pool.revert("db@1", "db@1")) == "not_a_volume"
    assert code_of(lambda: pool.revert("db", snapshot, keep="db@1")) == "name_taken"
    assert code_of(lambda: pool.revert("db", "nothing")) == "object_not_found"
    assert names_of(pool.snapshots()) == ["db@1"]


def test_handles_follow_a_rename(pool: ramet.Pool) -> None:
    volume = pool.create_volume("old", MIB)
    volume.write(0, b"content")
    other = pool.volume(volume.uuid)
    volume.rename("new")
    assert (volume.name, other.name) == ("new", "new")
    assert other.read(0, 7) == b"content"
    assert volume == other
    assert len({volume, other}) == 1
    assert "new" in repr(volume)
    assert code_of(lambda: pool.volume("old")) == "object_not_found"
    pool.create_volume("old", MIB)
    assert code_of(lambda: volume.rename("old")) == "name_taken"
    assert code_of(lambda: volume.rename("a@b")) == "name_character"
    volume.rename("new")
    snapshot = volume.snapshot("s")
    snapshot.rename("s@2")
    assert pool.snapshot_named("s@2") == snapshot


def test_handles_of_deleted_objects_say_so(pool: ramet.Pool) -> None:
    volume = pool.create_volume("db", MIB)
    volume.write(0, b"content")
    volume.delete()
    assert code_of(volume.record) == "object_not_found"
    assert code_of(lambda: volume.read(0, 1)) == "object_deleted"
    assert code_of(lambda: volume.write(0, b"x")) == "object_deleted"
    assert code_of(volume.delete) == "object_not_found"
    again = pool.create_volume("db", MIB)
    assert again.read(0, 7) == bytes(7)
    assert again.uuid != volume.uuid


def test_objects_are_found_by_name_and_uuid_in_any_case(pool: ramet.Pool) -> None:
    volume = pool.create_volume("db", MIB)
    snapshot = volume.snapshot("db@1")
    assert pool.get(volume.uuid.upper()) == pool.get("db") == volume
    assert pool.record(snapshot).name == "db@1"
    assert [it.name for it in pool.records(["db@1", volume, "db"])] == ["db@1", "db", "db"]
    assert code_of(lambda: pool.volume("db@1")) == "not_a_volume"
    assert code_of(lambda: pool.snapshot_named("db")) == "not_a_snapshot"
    assert code_of(lambda: pool.get(UUID)) == "object_not_found"
    assert code_of(lambda: pool.get("no such thing")) == "name_character"
    assert code_of(lambda: pool.get("\ud800")) == "name_character"
    assert code_of(lambda: pool.get("")) == "name_empty"


@pytest.mark.parametrize("size", [0, 511, 513, 2**48 + 512, 2**62, "257TiB"])
def test_sizes_out_of_range_are_refused(pool: ramet.Pool, size: int | str) -> None:
    assert code_of(lambda: pool.create_volume("db", size)) == "size_out_of_range"
    assert pool.objects() == []


@pytest.mark.parametrize("size", [-512, "-1GiB", 2**64, "1.0001KiB"])
def test_sizes_that_are_no_sizes_are_refused(pool: ramet.Pool, size: int | str) -> None:
    assert code_of(lambda: pool.create_volume("db", size)) == "size_range"
    assert pool.objects() == []


@pytest.mark.parametrize("name", ["", "a b", "a@b", "list", "x" * 200, UUID, "a/b", "é", "{x}"])
def test_a_group_with_one_bad_name_makes_nothing(pool: ramet.Pool, name: str) -> None:
    names = [f"vm-{number}" for number in range(10_000)]
    names[5000] = name
    with pytest.raises(InvalidError):
        pool.create_volumes(names, MIB)
    assert pool.objects() == []


def test_a_group_with_a_taken_name_makes_nothing(pool: ramet.Pool) -> None:
    pool.create_volume("vm-5000", MIB)
    for call in (
        lambda: pool.create_volumes("vm-{n}", MIB, count=10_000),
        lambda: pool.clone("vm-5000", "vm-{n}", count=10_000),
    ):
        with pytest.raises(ConflictError) as caught:
            call()
        assert caught.value.code == "name_taken"
        assert "vm-5000" in caught.value.text
    assert code_of(lambda: pool.create_volumes(["x", "x"], MIB)) == "name_given_twice"
    assert [it.name for it in pool.objects()] == ["vm-5000"]


def test_a_group_snapshot_with_a_bad_member_makes_nothing(pool: ramet.Pool) -> None:
    pool.create_volumes("vm-{n}", MIB, count=100)
    volumes = [it.name for it in pool.volumes()]
    snapshot = pool.snapshot("vm-1", name="s")[0]
    cases: list[tuple[list[ramet.Volume | str], str]] = [
        ([*volumes, "nothing"], "object_not_found"),
        ([*volumes, "s"], "not_a_volume"),
        ([*volumes, snapshot], "not_a_volume"),  # type: ignore[list-item]
        ([*volumes, "vm-1"], "volume_given_twice"),
        ([*volumes, pool.volume("vm-2")], "volume_given_twice"),
        ([*volumes, "bad name"], "name_character"),
    ]
    for members, code in cases:
        assert code_of(lambda: pool.snapshot(members)) == code  # noqa: B023 - called at once.
    pool.snapshot("vm-50", name="vm-50@x")
    assert code_of(lambda: pool.snapshot(volumes, name="{volume}@x")) == "name_taken"
    assert code_of(lambda: pool.snapshot(volumes, name="x")) == "pattern_needs_volume"
    assert code_of(pool.snapshot) == "volumes_not_given"
    assert code_of(lambda: pool.snapshot("vm-1", all_volumes=True)) == "volumes_not_given"
    assert names_of(pool.snapshots()) == ["s", "vm-50@x"]


def test_a_delete_with_a_bad_member_deletes_nothing(pool: ramet.Pool) -> None:
    pool.create_volumes("vm-{n}", MIB, count=100)
    names = [it.name for it in pool.volumes()]
    with pytest.raises(NotFoundError):
        pool.delete([*names, "nothing"])
    assert len(pool.volumes()) == 100
    assert len(pool.delete(names)) == 100


@pytest.mark.parametrize(
    ("offset_bytes", "length_bytes", "code"),
    [
        (MIB, 1, "range_past_end"),
        (MIB - 1, 2, "range_past_end"),
        (2 * MIB, 0, "range_past_end"),
        (0, 2**62, "range_past_end"),
        (2**62, 2**62, "offset_range"),
        (-1, 1, "offset_range"),
        (0, -1, "offset_range"),
        (2**70, 1, "offset_range"),
    ],
)
def test_ranges_outside_of_a_volume_are_refused(
    pool: ramet.Pool, offset_bytes: int, length_bytes: int, code: str
) -> None:
    volume = pool.create_volume("db", MIB)
    volume.write(0, b"\xff" * MIB)
    for call in (volume.read, volume.trim, volume.write_zeroes):
        assert code_of(lambda: call(offset_bytes, length_bytes)) == code  # noqa: B023
    if 0 < length_bytes < 10:
        data = bytes(length_bytes)
        assert code_of(lambda: volume.write(offset_bytes, data)) == code
        assert code_of(lambda: volume.read_into(offset_bytes, bytearray(data))) == code
    assert volume.read(0, MIB) == b"\xff" * MIB


def test_threads_that_take_default_names_never_meet(pool: ramet.Pool) -> None:
    volume = pool.create_volume("db", MIB)
    taken: list[str] = []
    errors: list[Exception] = []

    def take() -> None:
        try:
            taken.extend(volume.snapshot().name for _ in range(20))
        except RametError as error:
            errors.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(taken) == sorted(f"db@{number}" for number in range(1, 161))


def test_default_names_fill_gaps(pool: ramet.Pool) -> None:
    volume = pool.create_volume("db", MIB)
    snapshots = [volume.snapshot() for _ in range(5)]
    snapshots[1].delete()
    snapshots[3].rename("other")
    assert [volume.snapshot().name for _ in range(3)] == ["db@2", "db@4", "db@6"]


def test_stats_are_numbers_whose_names_say_what_they_count(pool: ramet.Pool) -> None:
    pool.create_volume("db", MIB).write(0, b"x")
    pool.flush()
    stats = pool.stats()
    assert stats["volumes_count"] == 1
    assert stats["snapshots_count"] == 0
    assert stats["mapped_bytes"] == 4096
    assert all(isinstance(value, int | float | str | bool) for value in stats.values())


def test_everything_after_close_is_an_ordinary_error(pool_path: Path) -> None:
    pool = ramet.open(pool_path, create=True)
    volume = pool.create_volume("db", MIB)
    volume.write(0, b"x")
    file = volume.open("rb")
    pool.close()
    pool.close()
    for call in (
        pool.objects,
        pool.stats,
        pool.flush,
        volume.record,
        volume.flush,
        file.read,
        lambda: volume.read(0, 1),
        lambda: volume.write(0, b"x"),
        lambda: pool.create_volume("other", MIB),
        lambda: pool.snapshot("db"),
        lambda: pool.serve_nbd(pool_path / "nbd.sock"),
    ):
        with pytest.raises(UnavailableError):
            call()


def test_a_file_of_a_volume_is_the_volume(pool: ramet.Pool) -> None:
    volume = pool.create_volume("db", MIB)
    with volume.open() as file:
        file.seek(5000)
        file.write(b"through the file")
    assert volume.read(5000, 16) == b"through the file"
    snapshot = volume.snapshot()
    with snapshot.open() as file:
        assert file.read() == volume.read(0, MIB)
    with volume.open("r+b", buffering=0) as file:
        assert file.seek(0, 2) == MIB
        with pytest.raises(OSError, match="ends at byte"):
            file.write(b"x")


def test_full_is_told_from_other_errors() -> None:
    assert not issubclass(FullError, UnavailableError)
