"""`ramet check` finds what is wrong with a pool and names it; and what the engine reads of such a
pool is an error or right, never wrong.

A bit may flip unnoticed only where docs/internals/format.md says that nothing reads it.
"""

import random
import shutil
import struct
from pathlib import Path

import pytest

import ramet
from pool_checks import assert_clean
from pool_forge import FILES, forge_tree
from ramet.audit.check import check
from ramet.audit.checksums import page_crc
from ramet.audit.report import Finding, Report
from ramet.audit.structures import (
    SLOT_BITS,
    MalformedError,
    decode_batch,
    decode_segment_header,
)
from ramet.errors import CorruptError, RametError
from serving import run_ramet

BLOCK_BYTES = 4096
LOOKS_MAX = 100_000
UNIT_BYTES = 64
FLIPS_COUNT = 10  # In each file, and as many among its bytes that are not zero.
FLIPS_COUNT_SOAK = 2000
Contents = dict[str, bytes]
UNREAD = ("lock", "reserve")  # Nothing reads what is in them.
MARK = b"find this block on the medium! " * 132


def make_shape(path: Path, draw: random.Random, copy: Path) -> None:
    """Make a pool that was opened three times, and copy it while it is open."""
    ramet.create(path, segment_size="1MiB")
    for turn in range(3):
        with ramet.open(path, node_budget="64KiB") as pool:
            if turn == 0:
                pool.create_volume("a", "6MiB", tags={"x": "y"})
                pool.create_volume("b", "5MiB")
            for name in "ab":
                volume = pool.volume(name)
                for _ in range(12):
                    data = draw.randbytes(BLOCK_BYTES) * draw.randint(1, 3)
                    volume.write(draw.randrange(1024) * BLOCK_BYTES, data)
            pool.snapshot(["a", "b"], name=f"{{volume}}@{turn}")
            pool.checkpoint()
            pool.clone(f"a@{turn}", f"c{turn}")
            volume = pool.volume("b")
            volume.trim(0, 10 * BLOCK_BYTES)
            volume.write(2 * BLOCK_BYTES, draw.randbytes(2 * BLOCK_BYTES))
            if turn == 1:
                pool.delete(["a@0"])
            pool.flush()
            # The mark says that what is before it was durable.
            volume.write(7 * BLOCK_BYTES, MARK[:BLOCK_BYTES])
            pool.flush()
            if turn == 2:
                shutil.copytree(path, copy)


def read_all(path: Path) -> Contents | None:
    """Read all that the engine gives; None where it says that something is wrong."""
    try:
        with ramet.open(path, read_only=True) as pool:
            return {it.name: pool.get(it.name).read(0, it.size_bytes) for it in pool.objects()}
    except RametError:
        return None


def files_of(path: Path) -> list[Path]:
    return sorted(it for it in path.rglob("*") if it.is_file() and it.name not in UNREAD)


class Sweep:
    """Flips bits of a pool, one at a time, and holds both readers to it."""

    def __init__(self, path: Path, draw: random.Random) -> None:
        self.path, self.draw = path, draw
        assert_clean(path)
        told = read_all(path)
        assert told is not None
        self.truth = told
        self.found: dict[str, int] = {}
        self.missed: dict[str, int] = {}

    def flip(self, file: Path, content: bytes, at: int) -> None:
        damaged = bytearray(content)
        damaged[at] ^= 1 << self.draw.randrange(8)
        file.write_bytes(damaged)
        name = str(file.relative_to(self.path))
        counts = self.missed if check(self.path).clean else self.found
        counts[name] = counts.get(name, 0) + 1
        told = read_all(self.path)
        in_tail = counts is self.missed and file.suffix == ".seg"
        if told is not None and not in_tail:
            assert told == self.truth, f"wrong data: byte {at} of {name}"
        if counts is self.missed:
            assert told is not None, f"the engine refuses what check calls clean: {name}, {at}"
            self.hold_unused(file, content, at)

    def hold_unused(self, file: Path, content: bytes, at: int) -> None:
        """See that nothing reads a byte whose change went unnoticed."""
        if file.suffix == ".seg":
            assert at >= last_batch_at(content), f"byte {at} of {file.name} is no tail"
            return
        # A node begins at a multiple of 64 bytes, so nothing of one that is read lies from here to
        # the next multiple: between nodes, or in one to which nothing refers.
        assert file.suffix in (".map", ".tab"), f"byte {at} of {file.name} is read"
        assert at >= BLOCK_BYTES, f"byte {at} of the header of {file.name}"
        end = at // UNIT_BYTES * UNIT_BYTES + UNIT_BYTES
        noise = bytes(byte ^ 0xA5 for byte in content[at:end])
        file.write_bytes(content[:at] + noise + content[end:])
        assert check(self.path).clean, f"a byte from {at} of {file.name} on is read"
        assert read_all(self.path) == self.truth, f"byte {at} of {file.name}"

    def run(self, flips_count: int) -> None:
        for file in files_of(self.path):
            content = file.read_bytes()
            used = [at for at, byte in enumerate(content) if byte]
            places = [self.draw.randrange(len(content)) for _ in range(flips_count)]
            for at in places + [self.draw.choice(used) for _ in range(flips_count)]:
                self.flip(file, content, at)
            file.write_bytes(content)


def last_batch_at(segment: bytes) -> int:
    """Where the batch of the mark begins, behind which nothing else was durable."""
    header = decode_segment_header(segment[:BLOCK_BYTES])
    page = segment[BLOCK_BYTES : 2 * BLOCK_BYTES]
    try:
        decode_batch(page, header.nonce, header.segment << SLOT_BITS | 1, header.slots_count)
    except MalformedError:
        return BLOCK_BYTES  # It was only prepared; a file that was used before holds old batches.
    at = segment.find(MARK[:200])
    return at - BLOCK_BYTES if at >= 0 else len(segment)


@pytest.fixture
def shape(tmp_path: Path) -> tuple[Path, Path]:
    """The same pool, closed and open."""
    closed, opened = tmp_path / "pool", tmp_path / "open"
    make_shape(closed, random.Random(5), opened)
    return closed, opened


@pytest.mark.slow
@pytest.mark.random
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("which", ["closed", "open"])
def test_every_flipped_bit_is_found_but_where_nothing_reads_it(
    shape: tuple[Path, Path], which: str, randomness: random.Random, request: pytest.FixtureRequest
) -> None:
    sweep = Sweep(shape[which == "open"], randomness)
    soak = request.config.getoption("--hypothesis-profile") == "soak"
    sweep.run(FLIPS_COUNT_SOAK if soak else FLIPS_COUNT)
    never_missed = {"pool", "superblock"}
    if which == "closed":
        never_missed |= {name for name in sweep.found if name.startswith("segments/")}
    assert not never_missed & sweep.missed.keys()
    assert all(sweep.found.get(str(it.relative_to(sweep.path))) for it in files_of(sweep.path))


@pytest.fixture
def marked(pool_path: Path) -> Path:
    """A pool whose volume "db" holds the mark in block 3, and others had it from it."""
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        volume = pool.create_volume("db", "64MiB")
        pool.create_volume("other", "64MiB").write(0, b"o" * 5 * BLOCK_BYTES)
        volume.write(0, b"a" * 10 * BLOCK_BYTES)
        volume.write(3 * BLOCK_BYTES, MARK[:BLOCK_BYTES])
        pool.snapshot(["db", "other"], name="{volume}@1")
        pool.clone("db@1", "clone{n}", count=30)
        pool.volume("clone7").write(3 * BLOCK_BYTES, b"healed" * 1000)
        wait_for_second_segment(pool)
    return pool_path


def wait_for_second_segment(pool: ramet.Pool) -> None:
    """The background makes it soon after opening, and the names of other files come after it."""
    for _ in range(LOOKS_MAX):
        if len(list(Path(pool.path).glob("segments/*.seg"))) > 1:
            return
        pool.stats()
    raise AssertionError("no segment was made ahead")


def damage_mark(path: Path) -> Path:
    for file in path.glob("segments/*.seg"):
        content = bytearray(file.read_bytes())
        at = content.find(MARK[:200])
        if at >= 0:
            content[at + 100] ^= 1
            file.write_bytes(content)
            return file
    raise AssertionError("no mark")


def only(report: Report) -> Finding:
    assert report.findings_count == 1, [it.text for it in report.findings]
    return report.findings[0]


def test_a_damaged_block_is_named_with_everybody_who_needs_it(marked: Path) -> None:
    file = damage_mark(marked)
    finding = only(check(marked))
    assert finding.code == "block_checksum"
    assert finding.place.file == f"segments/{file.name}"
    assert finding.holders_count == 2 + 29  # All clones but the one that wrote there.
    assert {it.name for it in finding.holders} >= {"db", "db@1", "clone1"}
    assert all(it.offset_bytes == 3 * BLOCK_BYTES for it in finding.holders)
    done = run_ramet("-p", marked, "check")
    assert done.returncode == CorruptError.exit_code
    assert "needed by 'db', 4096 bytes from 12288 on" in done.stdout
    assert check(marked, quick=True).clean


def test_who_needs_a_damaged_block_is_followed_through_the_tail(
    marked: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    with ramet.open(marked) as pool:
        pool.clone("db", "late")
        pool.volume("db").trim(0, 1 << 20)
        pool.delete([f"clone{number}" for number in range(1, 31)])
        pool.rename("db@1", "kept")
        pool.flush()
        shutil.copytree(marked, copy)
    damage_mark(copy)
    finding = only(check(copy))
    assert {it.name for it in finding.holders} == {"late", "kept"}


def test_a_damaged_node_is_named_with_the_range_that_needs_it(marked: Path) -> None:
    root_of_other = struct.pack("<HH", 0, 5)  # Its leaf's one run: from block 0, five blocks.
    (file,) = marked.glob("nodes/*.map")
    content = bytearray(file.read_bytes())
    at = content.find(root_of_other, BLOCK_BYTES)
    content[at + 5] ^= 1
    file.write_bytes(content)
    finding = only(check(marked))
    assert finding.code == "map_node"
    assert finding.place.file == f"nodes/{file.name}"
    assert {it.name for it in finding.holders} == {"other", "other@1"}
    with ramet.open(marked, read_only=True) as pool, pytest.raises(CorruptError):
        pool.volume("other").read(0, BLOCK_BYTES)


@pytest.mark.parametrize("which", ["pool", "superblock", "segments", "nodes", "tables"])
@pytest.mark.parametrize("how", ["missing", "truncated", "empty"])
def test_a_file_that_is_missing_or_short_is_named(marked: Path, which: str, how: str) -> None:
    file = min(it for it in files_of(marked) if which in it.relative_to(marked).parts)
    if how == "missing":
        file.unlink()
    else:
        length = file.stat().st_size // 2 if how == "truncated" else 0
        file.write_bytes(file.read_bytes()[:length])
    report = check(marked)
    assert not report.clean
    assert any(it.place.file == str(file.relative_to(marked)) for it in report.findings)


@pytest.mark.parametrize("kind", ["segments/*.seg", "nodes/*.map", "tables/*.tab"])
def test_a_file_of_another_pool_is_named(marked: Path, tmp_path: Path, kind: str) -> None:
    """Both pools have files of the same names, and all checksums in them are right."""
    other = tmp_path / "other"
    with ramet.open(other, create=True, segment_size="1MiB") as pool:
        pool.create_volume("db", "64MiB").write(0, b"a" * 10 * BLOCK_BYTES)
        wait_for_second_segment(pool)
    ours, theirs = (min(it.glob(kind)) for it in (marked, other))
    assert ours.name == theirs.name
    shutil.copy(theirs, ours)
    report = check(marked)
    assert not report.clean
    assert any("another pool" in it for it in [*report.notes, *(f.text for f in report.findings)])
    assert any(it.place.file == str(ours.relative_to(marked)) for it in report.findings)


def test_a_foreign_file_is_no_damage(marked: Path) -> None:
    (marked / "segments" / "notes.txt").write_text("nothing reads this")
    (marked / "segments" / "00000000FFFF.seg").write_text("nor this")
    report = assert_clean(marked)
    assert len(report.notes) == 2
    ramet.open(marked).close()


def test_one_damaged_slot_of_the_superblock_is_told_and_the_other_is_used(marked: Path) -> None:
    for slot in range(2):
        content = (marked / "superblock").read_bytes()
        damaged = bytearray(content)
        damaged[slot * BLOCK_BYTES + 50] ^= 4
        (marked / "superblock").write_bytes(damaged)
        report = check(marked)
        assert report.findings[0].place.offset_bytes == slot * BLOCK_BYTES
        assert report.counts["blocks_count"] > 0
        (marked / "superblock").write_bytes(content)


def test_with_both_slots_damaged_the_check_says_that_it_cannot_go_on(marked: Path) -> None:
    (marked / "superblock").write_bytes(bytes(2 * BLOCK_BYTES))
    report = check(marked)
    assert [it.code for it in report.findings] == ["superblock", "superblock"]
    assert report.notes


def with_features(path: Path, at: int) -> None:
    page = bytearray((path / "pool").read_bytes())
    page[at] = 1
    page[16:20] = page_crc(bytes(page), 16, 0, 0).to_bytes(4, "little")
    (path / "pool").write_bytes(page)


def test_an_unknown_feature_is_refused_by_name_or_noted(marked: Path) -> None:
    with_features(marked, 64)
    assert assert_clean(marked).notes
    with_features(marked, 80)
    assert only(check(marked)).code == "feature_unknown"


@pytest.fixture
def with_dead_slots(pool_path: Path) -> Path:
    """A pool of one segment with eight blocks, two of them dead: slots 3 and 4."""
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        volume = pool.create_volume("db", "64MiB")
        pool.flush()
        volume.write(0, b"1" * 6 * BLOCK_BYTES)
        pool.flush()
        volume.write(2 * BLOCK_BYTES, b"2" * 2 * BLOCK_BYTES)
    return pool_path


def bitmap_of(node: bytearray) -> int:
    """Where the first entry's bitmap begins: behind the head, key, length and 48 bytes."""
    assert node[16 + 12 + 32] == 2, "two slots are dead"
    return 16 + 12 + 48


def move_dead_bits(node: bytearray, by: int) -> None:
    at = bitmap_of(node)
    length = struct.unpack_from("<I", node, at - 12)[0]
    bits = int.from_bytes(node[at : at + length], "little")
    moved = bits << by if by > 0 else bits >> -by
    node[at : at + length] = moved.to_bytes(length, "little")


def count_one_more(node: bytearray) -> None:
    node[bitmap_of(node) - 16] += 1


def test_a_file_table_that_is_written_again_as_it_was_is_clean(with_dead_slots: Path) -> None:
    forge_tree(with_dead_slots, FILES, lambda node: move_dead_bits(node, 0))
    assert assert_clean(with_dead_slots).counts["dead_bytes"] == 2 * BLOCK_BYTES


def test_a_slot_that_is_held_and_called_dead_is_named_with_its_holder(
    with_dead_slots: Path,
) -> None:
    """The worst that can be: reclaim would give away what somebody needs."""
    forge_tree(with_dead_slots, FILES, lambda node: move_dead_bits(node, -1))
    report = check(with_dead_slots)
    finding = next(it for it in report.findings if it.code == "slot_dead")
    assert [it.name for it in finding.holders] == ["db"]
    assert finding.holders[0].offset_bytes == BLOCK_BYTES


def test_a_wrong_count_of_dead_slots_is_found(with_dead_slots: Path) -> None:
    forge_tree(with_dead_slots, FILES, count_one_more)
    assert only(check(with_dead_slots)).code == "file_table"
