"""Holes and changed blocks as standard clients show them, and a backup made of nothing else."""

import json
import random
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import programs
import ramet
from ramet.config import format_nbd_uri

MIB = 2**20
BLOCK_BYTES = 4096
SIZE_BYTES = 16 * MIB
DIRTY = "qemu:dirty-bitmap:"
SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.fixture
def socket_path(pool: ramet.Pool, tmp_path: Path) -> Iterator[Path]:
    """Where `pool` is served."""
    path = tmp_path / "nbd.sock"
    with pool.serve_nbd(path):
        yield path


@pytest.fixture
def volume(pool: ramet.Pool) -> ramet.Volume:
    """A volume with data at 1 MiB; since its snapshot "db@1" one block changed, one was trimmed."""
    volume = pool.create_volume("db", SIZE_BYTES)
    volume.write(MIB, b"a" * MIB)
    volume.snapshot("db@1")
    volume.write(MIB + BLOCK_BYTES, b"b")
    volume.trim(2 * MIB - BLOCK_BYTES, BLOCK_BYTES)
    return volume


def shell(uri: str, script: str, contexts: tuple[str, ...] = ()) -> str:
    """Run Python with libnbd's `h`, connected with these metadata contexts."""
    # The distribution's own Python has libnbd's module; the one of the tests does not.
    if programs.finish(SYSTEM_PYTHON, "-c", "import nbd").returncode:
        pytest.skip("no module nbd (libnbd); hint: tools/setup tools")
    asked = "\n".join(f"h.add_meta_context({name!r})" for name in contexts)
    start = f"import nbd\nh = nbd.NBD()\n{asked}\nh.connect_uri({uri!r})"
    return programs.run(SYSTEM_PYTHON, "-c", f"{start}\n{textwrap.dedent(script)}")


def extents_of(told: str) -> list[tuple[int, int, int]]:
    rows: list[dict[str, Any]] = json.loads(told)
    return [(row["offset"], row["length"], row["type"]) for row in rows]


def test_nbdinfo_maps_holes_and_changes(volume: ramet.Volume, socket_path: Path) -> None:
    uri = format_nbd_uri("db", socket_path)
    told = programs.run("nbdinfo", "--map", "--json", uri)
    assert extents_of(told) == [
        (0, MIB, 3),
        (MIB, MIB - BLOCK_BYTES, 0),
        (2 * MIB - BLOCK_BYTES, 14 * MIB + BLOCK_BYTES, 3),
    ]
    told = programs.run("nbdinfo", f"--map={DIRTY}db@1", "--json", uri)
    assert extents_of(told) == [
        (0, MIB + BLOCK_BYTES, 0),
        (MIB + BLOCK_BYTES, BLOCK_BYTES, 1),
        (MIB + 2 * BLOCK_BYTES, MIB - 3 * BLOCK_BYTES, 0),
        (2 * MIB - BLOCK_BYTES, BLOCK_BYTES, 1),
        (2 * MIB, 14 * MIB, 0),
    ]
    (export,) = json.loads(programs.run("nbdinfo", "--json", uri))["exports"]
    assert export["contexts"] == ["base:allocation", f"{DIRTY}db@1"]


def test_libnbd_reads_in_parts_and_is_told_of_every_flag(
    volume: ramet.Volume, socket_path: Path
) -> None:
    said = shell(
        format_nbd_uri("db", socket_path),
        f"""
        assert h.get_structured_replies_negotiated()
        for can in (h.can_fua, h.can_flush, h.can_trim, h.can_zero, h.can_fast_zero, h.can_df,
                    h.can_cache, h.can_multi_conn):
            assert can(), can
        assert h.can_meta_context("base:allocation") and h.can_meta_context("{DIRTY}db@1")
        assert not h.can_meta_context("{DIRTY}absent")
        assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
        assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
        assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
        parts = []
        def part(buffer, offset, status, error):
            parts.append((offset, len(buffer), status))
        content = h.pread_structured(2 << 20, 0, part)
        parts.sort()
        expected = [(0, 1 << 20, nbd.READ_HOLE), (1 << 20, (1 << 20) - 4096, nbd.READ_DATA),
                    ((2 << 20) - 4096, 4096, nbd.READ_HOLE)]
        assert parts == expected, parts
        whole = []
        h.pread_structured(2 << 20, 0, lambda *it: whole.append(it[2]), nbd.CMD_FLAG_DF)
        assert whole == [nbd.READ_DATA], whole
        h.cache(16 << 20, 0)
        h.pwrite(b"c", 5, nbd.CMD_FLAG_FUA)
        h.trim(4096, 4096, nbd.CMD_FLAG_FUA)
        h.zero(8192, 8192, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
        try:
            h.zero(100, 1, nbd.CMD_FLAG_FAST_ZERO)
            raise AssertionError("a byte is not zeroed faster than written")
        except nbd.Error as error:
            assert error.errno == "ENOTSUP", error.errno
        extents = []
        h.block_status(1 << 20, 0, lambda name, offset, entries, error: extents.append(
            (name, offset, entries)), nbd.CMD_FLAG_REQ_ONE)
        print(sorted(extents))
        """,
        ("base:allocation", f"{DIRTY}db@1", f"{DIRTY}absent"),
    )
    # The byte at 5 made a block that was a hole.
    told = [("base:allocation", 0, [4096, 0]), (f"{DIRTY}db@1", 0, [4096, 1])]
    assert said.strip() == repr(told)


def test_a_damaged_block_is_told_with_its_place_and_what_lies_before_it_is_read(
    pool_path: Path, tmp_path: Path
) -> None:
    mark = b"find this block on the medium! " * 133
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        made = pool.create_volume("db", MIB)
        made.write(0, b"a" * 5 * BLOCK_BYTES + mark[:BLOCK_BYTES] + b"c" * BLOCK_BYTES)
    for path in pool_path.glob("segments/*.seg"):
        path.write_bytes(path.read_bytes().replace(mark[:200], b"?" + mark[1:200]))
    with ramet.open(pool_path) as pool, pool.serve_nbd(tmp_path / "nbd.sock") as server:
        shell(
            format_nbd_uri("db", Path(server.socket_path)),
            """
            parts = []
            try:
                h.pread_structured(1 << 20, 100, lambda buffer, offset, status, error:
                    parts.append((bytes(buffer), offset, status)))
                raise AssertionError("damage was not told")
            except nbd.Error as error:
                assert error.errno == "EIO", error.errno
            good, bad = parts
            assert good == (b"a" * (5 * 4096 - 100), 100, nbd.READ_DATA), good[1:]
            assert bad[1:] == (5 * 4096, nbd.READ_ERROR), bad
            assert h.pread(4096, 6 * 4096) == b"c" * 4096
            """.replace("1 << 20, 100", "500000, 100"),
        )


def test_qemu_img_maps_holes_and_changes(volume: ramet.Volume, socket_path: Path) -> None:
    def told(*options: str) -> list[tuple[int, int]]:
        image = f"driver=nbd,export=db,server.type=unix,server.path={socket_path}"
        image = ",".join((image, *options))
        rows = json.loads(programs.run("qemu-img", "map", "--output=json", "--image-opts", image))
        return [(row["start"], row["length"]) for row in rows if not row["data"]]

    holes = [(0, MIB), (2 * MIB - BLOCK_BYTES, 14 * MIB + BLOCK_BYTES)]
    assert told() == holes
    # With x-dirty-bitmap QEMU shows what changed as what holds no data.
    changed = [(MIB + BLOCK_BYTES, BLOCK_BYTES), (2 * MIB - BLOCK_BYTES, BLOCK_BYTES)]
    assert told(f"x-dirty-bitmap={DIRTY}db@1") == changed


@pytest.mark.random
def test_a_backup_by_standard_tools_is_full_then_incremental_and_restores(
    pool: ramet.Pool, socket_path: Path, tmp_path: Path, randomness: random.Random
) -> None:
    """qemu-img copies the first snapshot; then libnbd copies what the dirty bitmap names."""
    size_bytes = 8 * MIB + 512
    volume = pool.create_volume("vm", size_bytes)
    backup = tmp_path / "backup.raw"
    for number in range(6):
        for _ in range(20):
            offset = randomness.randrange(size_bytes - 70_000)
            volume.write(offset, randomness.randbytes(randomness.choice((1, 512, 4096, 70_000))))
        volume.trim(randomness.randrange(4 * MIB), MIB)
        volume.write(size_bytes - 3, randomness.randbytes(3))
        snapshot = volume.snapshot(f"vm@{number}")
        uri = format_nbd_uri(snapshot.name, socket_path)
        if number == 0:
            programs.run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, backup)
        else:
            copied = shell(
                uri,
                f"""
                changed, at, size = [], 0, h.get_size()
                def tell(name, offset, entries, error):
                    global at
                    for length, flags in zip(entries[::2], entries[1::2]):
                        if flags & 1:
                            changed.append((at, length))
                        at += length
                while at < size:
                    h.block_status(size - at, at, tell)
                with open({str(backup)!r}, "r+b") as file:
                    for offset, length in changed:
                        file.seek(offset)
                        file.write(h.pread(length, offset))
                print(sum(length for _, length in changed))
                """,
                (f"{DIRTY}vm@{number - 1}",),
            )
            assert 0 < int(copied) < 4 * MIB, "only what changed was copied"
        programs.run("qemu-img", "compare", "-f", "raw", "-F", "raw", backup, uri)
    restored = pool.create_volume("restored", size_bytes)
    target = format_nbd_uri("restored", socket_path)
    programs.run("nbdcopy", "--flush", backup, target)
    last = pool.get("vm@5")
    assert restored.read(0, size_bytes) == last.read(0, size_bytes) == backup.read_bytes()
