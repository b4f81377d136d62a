"""A pool whose log is damaged is refused; with loss accepted it goes back to before the damage."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ramet
from pool_checks import assert_clean
from pool_forge import (
    OBJECTS,
    RECORD,
    batches_of,
    batches_with,
    forge_record,
    newest_slot,
    put,
    word,
)
from ramet.errors import BusyError, ConflictError, CorruptError, InvalidError, NotFoundError
from ramet.records import LossReport

BLOCK_BYTES = 4096
HEADER = b"RBAT"
SNAPSHOT_RECORD = b"RREC\1\0\2\0"


@pytest.fixture
def damaged_pool(pool_path: Path) -> Path:
    """A pool that was killed, whose log is damaged between two writes to "db"."""
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        volume = pool.create_volume("db", "1MiB")
        volume.write(0, b"a" * BLOCK_BYTES)
        volume.write(100 * BLOCK_BYTES, b"k" * BLOCK_BYTES)
    pool = ramet.open(pool_path)
    volume = pool.volume("db")
    for block, letter in enumerate((b"b", b"c", b"d")):
        volume.write(block * BLOCK_BYTES, letter * BLOCK_BYTES)
        volume.flush()
    pool.create_volume("late", "1MiB")
    # As it is now, before a clean close seals the log.
    copy = pool_path.with_name("copy")
    _copy(pool_path, copy)
    pool.close()
    # The pool may have prepared a segment beyond, at any moment.
    path = max(it for it in copy.glob("segments/*.seg") if batches_of(it.read_bytes()))
    content = bytearray(path.read_bytes())
    content[batches_of(content)[1] * BLOCK_BYTES + 20] ^= 1
    path.write_bytes(content)
    return copy


def _copy(pool_path: Path, copy: Path) -> None:
    for source in sorted(pool_path.rglob("*")):
        target = copy / source.relative_to(pool_path)
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
        elif source.is_dir():
            target.mkdir(parents=True, exist_ok=True)


def accepted(path: Path) -> LossReport:
    report = ramet.accept_loss(path)
    assert report is not None
    return report


def test_a_damaged_log_is_refused_and_the_error_names_the_way_out(damaged_pool: Path) -> None:
    with pytest.raises(CorruptError) as caught:
        ramet.open(damaged_pool)
    assert caught.value.code == "log_damaged"
    assert "slot" in caught.value.text
    assert "ramet check --accept-loss" in caught.value.text


def test_with_loss_accepted_the_pool_is_what_it_was_before_the_damage(damaged_pool: Path) -> None:
    report = accepted(damaged_pool)
    assert [(it.name, it.is_gone, it.ranges) for it in report.objects] == [
        ("db", False, [(2 * BLOCK_BYTES, BLOCK_BYTES)]),
        ("late", True, []),
    ]
    assert [(it.verb, it.names) for it in report.commands] == [("create", ["late"])]
    assert report.unread_count == 1
    assert "'late' is gone" in report.text
    json.dumps(report.to_json())
    assert_clean(damaged_pool)
    assert ramet.accept_loss(damaged_pool) is None
    assert_clean(damaged_pool)
    with ramet.open(damaged_pool) as pool:
        (volume,) = pool.volumes()
        assert volume.read(0, 2 * BLOCK_BYTES) == b"b" * BLOCK_BYTES + bytes(BLOCK_BYTES)
        volume.write(BLOCK_BYTES, b"e" * BLOCK_BYTES)
    with ramet.open(damaged_pool) as pool:
        assert pool.volume("db").read(BLOCK_BYTES, 2 * BLOCK_BYTES) == b"e" * BLOCK_BYTES + bytes(
            BLOCK_BYTES
        )


def test_a_missing_segment_costs_its_blocks_only(damaged_pool: Path) -> None:
    """The oldest segment, which a checkpoint knows: nothing of the log after it is lost."""
    (damaged_pool / "lost").mkdir()  # As somebody may have made it.
    assert ramet.accept_loss(damaged_pool) is not None
    missing = min(damaged_pool.glob("segments/*.seg"))
    missing.unlink()
    with pytest.raises(CorruptError, match="missing"):
        ramet.open(damaged_pool)
    report = accepted(damaged_pool)
    assert report.missing_segments == [missing.stem]
    assert (report.commands, report.directory) == ([], "lost/2")
    # Block 1 was read as zeros since the first loss: only block 100 was in it, and no newer one.
    assert [(it.name, it.is_gone, it.ranges, it.unreadable) for it in report.objects] == [
        ("db", False, [], [(100 * BLOCK_BYTES, BLOCK_BYTES)])
    ]
    assert "'db' gives an error for 4096 bytes: 409600+4096" in report.text
    text = (damaged_pool / "lost" / "2" / "report.txt").read_text()
    assert "409600+4096" in text
    with ramet.open(damaged_pool) as pool:
        volume = pool.volume("db")
        assert volume.read(0, BLOCK_BYTES) == b"b" * BLOCK_BYTES
        volume.write(BLOCK_BYTES, b"f" * BLOCK_BYTES)
    with ramet.open(damaged_pool) as pool:
        assert pool.volume("db").read(BLOCK_BYTES, BLOCK_BYTES) == b"f" * BLOCK_BYTES


def test_what_is_kept_of_a_sealed_segment_is_not_given_back(pool_path: Path) -> None:
    """The record of a snapshot was damaged in a segment that was sealed: the log ends in it.

    What it holds up to there was not counted, so the next checkpoint took it for empty, and the
    file was removed. Its footer tells of what is discarded: it counts no longer.
    """
    copy = pool_path.with_name("copy")
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        volume = pool.create_volume("db", "8MiB")
        volume.write(0, b"a" * 100 * BLOCK_BYTES)
        volume.snapshot("db@1")
        volume.write(1 << 20, b"b" * 600 * BLOCK_BYTES)
        volume.flush()
        _copy(pool_path, copy)
    path = min(copy.glob("segments/*.seg"))
    content = bytearray(path.read_bytes())
    assert content[-BLOCK_BYTES:][:8] == b"RAMETFTR"
    content[content.index(SNAPSHOT_RECORD) - BLOCK_BYTES + 20] ^= 1
    path.write_bytes(content)
    report = accepted(copy)
    assert [(it.name, it.unreadable) for it in report.objects] == [("db", [])]
    assert_clean(copy)
    for _ in range(2):
        with ramet.open(copy) as pool:
            volume = pool.volume("db")
            assert volume.read(0, 101 * BLOCK_BYTES) == b"a" * 100 * BLOCK_BYTES + bytes(
                BLOCK_BYTES
            )
            volume.write(2 << 20, b"c" * BLOCK_BYTES)
            pool.checkpoint()
            pool.reclaim(everything=True)
        assert_clean(copy)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(pool_path: Path) -> None:
    """One bad sector in the list of objects made all of a pool useless, though nothing was lost."""
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        pool.create_volume("db", "8MiB").write(0, b"a" * 300 * BLOCK_BYTES)
    with ramet.open(pool_path) as pool:
        pool.volume("db").snapshot("db@1")
        # Nothing is deleted: a checkpoint by itself, soon after, would be in both slots.
        pool.volume("db").write(0, b"b" * 300 * BLOCK_BYTES)
    superblock = (pool_path / "superblock").read_bytes()
    page = superblock[newest_slot(superblock) :]
    root = next(at + 8 for at in range(256, BLOCK_BYTES, 56) if page[at] == OBJECTS)
    address = word(page, root)
    file = pool_path / "nodes" / f"{address >> 16:012x}.map"
    content = bytearray(file.read_bytes())
    content[(address & 0xFFFF) * 64 + 30] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptError) as caught:
        ramet.open(pool_path)
    assert caught.value.code == "checkpoint_damaged"
    assert "--accept-loss" in caught.value.text
    done = ramet_check(pool_path, "--accept-loss", pool_path.name)
    assert done.returncode == 0, done.stderr
    assert "the checkpoint before it was taken" in done.stdout
    assert "lost writes" not in done.stdout
    assert_clean(pool_path)
    with ramet.open(pool_path) as pool:
        assert [it.name for it in pool.objects()] == ["db", "db@1"]
        assert pool.volume("db").read(0, 300 * BLOCK_BYTES) == b"b" * 300 * BLOCK_BYTES
        assert pool.get("db@1").read(0, 300 * BLOCK_BYTES) == b"a" * 300 * BLOCK_BYTES
    assert_clean(pool_path)


def test_a_record_of_a_later_version_is_no_loss(pool_path: Path) -> None:
    # It verifies: an older program that calls it damage must not offer to cut it off.
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        pool.create_volume("db", "1MiB")
    pool = ramet.open(pool_path)
    pool.create_volume("late", "1MiB")
    copy = pool_path.with_name("copy")
    _copy(pool_path, copy)
    pool.close()
    path = max(it for it in copy.glob("segments/*.seg") if batches_with(it, RECORD))
    slot = batches_with(path, RECORD)[-1]
    forge_record(copy, path, slot, lambda content: put(content, 6, 99, 2))
    before = {it: it.read_bytes() for it in copy.rglob("*") if it.is_file()}
    for call in (lambda: ramet.open(copy), lambda: ramet.accept_loss(copy)):
        with pytest.raises(InvalidError, match="a record of unknown kind 99") as caught:
            call()
        assert caught.value.code == "pool_format_unsupported"
    del before[copy / "lock"]
    assert all(it.read_bytes() == content for it, content in before.items())


def test_locks_and_the_trash_are_clean_after_a_loss(pool_path: Path) -> None:
    # The check once called it wrong that the time of what is in the trash begins anew where its
    # lock is over, and that a lock is set again in the trash.
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        pool.set_trash_window("7d")
        pool.create_volume("db", "1MiB")
        pool.snapshot("db", name="over")
        pool.snapshot("db", name="held")
        pool.lock("over", 1e-9, mode="compliance")
        pool.delete(["over", "held"])
    pool = ramet.open(pool_path)
    pool.volume("db").write(0, b"a" * BLOCK_BYTES)
    pool.volume("db").flush()
    pool.restore("held")
    pool.lock("held", "1h", mode="compliance")
    pool.volume("db").flush()
    copy = pool_path.with_name("copy")
    _copy(pool_path, copy)
    pool.close()
    path = max(it for it in copy.glob("segments/*.seg") if batches_of(it.read_bytes()))
    content = bytearray(path.read_bytes())
    content[batches_of(content)[1] * BLOCK_BYTES + 20] ^= 1
    path.write_bytes(content)
    assert [it.verb for it in accepted(copy).commands] == ["lock"]
    with ramet.open(copy) as again:
        assert {it.object.name for it in again.trash().objects} == {"held", "over"}
        with pytest.raises(ConflictError, match="'held' is locked"):
            again.empty_trash("held")
    assert_clean(copy)


def test_what_was_lost_is_kept_beside_the_pool_with_a_report(damaged_pool: Path) -> None:
    report = accepted(damaged_pool)
    directory = damaged_pool / report.directory
    assert "did not happen: create late" in (directory / "report.txt").read_text()
    kept = b"".join((directory / name).read_bytes() for name in report.files)
    assert b"d" * BLOCK_BYTES in kept
    assert HEADER in kept


def ramet_check(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ramet", "-p", str(path), "check", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_wants_the_name_of_the_pool(damaged_pool: Path) -> None:
    before = sorted(damaged_pool.rglob("*"))
    for options in (["--accept-loss"], ["--accept-loss", "another"]):
        done = ramet_check(damaged_pool, *options)
        assert done.returncode != 0
        assert "not_confirmed" in done.stderr
        assert sorted(damaged_pool.rglob("*")) == before
    done = ramet_check(damaged_pool, "--accept-loss", damaged_pool.name)
    assert done.returncode == 0
    assert "'db' lost writes to 4096 bytes: 8192+4096" in done.stdout
    assert str(damaged_pool / "lost" / "1") in done.stdout
    assert "is whole" in ramet_check(damaged_pool, "--accept-loss", "copy").stdout


def test_the_command_gives_one_json_value(damaged_pool: Path) -> None:
    done = ramet_check(damaged_pool, "--accept-loss", "copy", "--json")
    told = json.loads(done.stdout)
    assert told["directory"] == "lost/1"
    assert told["objects"][0]["ranges"] == [{"offset_bytes": 8192, "length_bytes": 4096}]
    assert json.loads(ramet_check(damaged_pool, "--accept-loss", "copy", "--json").stdout) is None


def test_a_pool_that_is_held_or_missing_is_refused(pool_path: Path) -> None:
    with ramet.open(pool_path, create=True), pytest.raises(BusyError):
        ramet.accept_loss(pool_path)
    with pytest.raises(NotFoundError):
        ramet.accept_loss(pool_path / "none")


def test_damage_outside_of_the_log_is_not_accepted(damaged_pool: Path) -> None:
    (damaged_pool / "superblock").write_bytes(bytes(8192))
    with pytest.raises(CorruptError) as caught:
        ramet.accept_loss(damaged_pool)
    assert caught.value.code == "pool_damaged"
    assert not (damaged_pool / "lost").exists()
