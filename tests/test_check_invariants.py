"""`ramet check` holds a pool to every invariant of the format: each fault here has right checksums.

So it stands for a bug of the engine, and nothing but the invariant itself speaks against it.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import ramet
from pool_checks import assert_clean
from pool_forge import (
    FILES,
    LINEAGE,
    OBJECTS,
    RECORD,
    Change,
    batches_of,
    batches_with,
    entries_of,
    field_at,
    forge_batch,
    forge_commit,
    forge_page,
    forge_record,
    forge_tree,
    put,
    word,
)
from ramet.audit.check import check

BLOCK_BYTES = 4096
WRITE, TRIM, MARK = 1, 3, 0x85
CREATE, RENAME = 1, 5
NAME, SIZE, ID = 3, 5, 1
Plant = Callable[[Path], object]


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool with a sealed segment: a volume, its snapshot, a clone, and something dying."""
    path = tmp_path_factory.mktemp("closed") / "pool"
    with ramet.open(path, create=True, segment_size="1MiB") as pool:
        volume = pool.create_volume("db", "8MiB")
        volume.write(0, b"1" * 20 * BLOCK_BYTES)
        volume.snapshot("db@1")
        pool.clone("db@1", "copy")
        pool.volume("copy").write(0, b"2" * 3 * BLOCK_BYTES)
        volume.write(BLOCK_BYTES, b"3" * 2 * BLOCK_BYTES)
        volume.trim(8 * BLOCK_BYTES, BLOCK_BYTES)
    assert_clean(path)
    return path


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool as a kill leaves it: one segment, not sealed, a checkpoint in it and a tail."""
    path = tmp_path_factory.mktemp("opened") / "pool"
    with ramet.open(path, create=True, segment_size="1MiB") as pool:
        volume = pool.create_volume("one", "1MiB")
        pool.create_volume("two", "1MiB")
        volume.write(0, b"1" * 20 * BLOCK_BYTES)
        volume.flush()
        volume.trim(8 * BLOCK_BYTES, BLOCK_BYTES)
        pool.rename("two", "new")
        volume.snapshot("one@1")
        pool.clone("one", "clone")
        pool.checkpoint()
        pool.create_volume("six", "1MiB")
        volume.trim(9 * BLOCK_BYTES, BLOCK_BYTES)
        pool.rename("one", "old")
        shutil.copytree(path, path.with_name("copy"))
    assert_clean(path.with_name("copy"))
    return path.with_name("copy")


@pytest.fixture(scope="module")
def thinned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool that gave space back, opened once more: its log cannot be replayed as a whole."""
    path = tmp_path_factory.mktemp("thinned") / "pool"
    with ramet.open(path, create=True, segment_size="1MiB") as pool:
        pool.create_volume("one", "8MiB").write(0, b"1" * 300 * BLOCK_BYTES)
        pool.volume("one").write(0, b"2" * 100 * BLOCK_BYTES)
        pool.reclaim(everything=True)
    with ramet.open(path) as pool:
        pool.create_volume("two", "1MiB")
        pool.volume("one").trim(BLOCK_BYTES, BLOCK_BYTES)
        pool.flush()
        pool.checkpoint()
        shutil.copytree(path, path.with_name("copy"))
    assert_clean(path.with_name("copy"))
    return path.with_name("copy")


def found_in(pool: Path, tmp_path: Path, plant: Plant) -> list[str]:
    """Give what a check finds in a copy with a fault planted: code and text."""
    copy = tmp_path / "planted"
    shutil.copytree(pool, copy)
    plant(copy)
    return [f"{it.code}: {it.text}" for it in check(copy).findings]


def segment(path: Path) -> Path:
    """Give the newest segment in which there are batches."""
    return max(it for it in path.glob("segments/*.seg") if batches_of(it.read_bytes()))


def test_a_pool_that_is_written_again_as_it_was_is_clean(closed: Path, opened: Path) -> None:
    """Else the faults below might be what a wrong checksum makes."""

    def nothing(_: bytearray) -> None:
        pass

    for pool in (closed, opened):
        for kind in (OBJECTS, LINEAGE, FILES):
            forge_tree(pool, kind, nothing)
    (create, *_), file = batches_with(segment(opened), RECORD, CREATE), segment(opened)
    forge_record(opened, file, create, nothing)
    forge_page(segment(closed), 0, nothing, 16)
    forge_page(segment(closed), trailer_at(segment(closed)), nothing, 16)
    assert_clean(closed)
    assert_clean(opened)


def trailer_at(file: Path) -> int:
    return file.stat().st_size - BLOCK_BYTES


def setting(at: int, value: int, length: int = 8) -> Change:
    return lambda content: put(content, at, value, length)


def in_trailer(change: Change) -> Plant:
    return lambda path: forge_page(segment(path), trailer_at(segment(path)), change, 16)


def in_owners(change: Change) -> Plant:
    """In the only page of the owner column."""

    def plant(path: Path) -> None:
        file = segment(path)
        start = word(file.read_bytes()[trailer_at(file) :], 64)
        forge_page(file, start, change, 12, 0)

    return plant


def in_first(kind: int, change: Change) -> Plant:
    """In the header of the first batch that begins with an entry of this kind."""
    return lambda path: forge_batch(segment(path), batches_with(segment(path), kind)[0], change)


def in_record(verb: int, number: int, change: Change) -> Plant:
    """In the record of this number among those with this verb."""

    def plant(path: Path) -> None:
        file = segment(path)
        forge_record(path, file, batches_with(file, RECORD, verb)[number], change)

    return plant


def in_tree(kind: int, change: Change) -> Plant:
    return lambda path: forge_tree(path, kind, change)


def in_places(
    which: Callable[[int, int, int], bool], change: Callable[[bytearray, int], object]
) -> Plant:
    """In the first place of which parent, position and state are so; `change`: where it begins."""

    def change_node(node: bytearray) -> None:
        for _, at in entries_of(node):
            parent = int.from_bytes(node[at + 32 : at + 36], "little")
            if which(parent, word(node, at + 16), node[at + 40]):
                change(node, at)
                return
        raise AssertionError("no such place")

    return in_tree(LINEAGE, change_node)


def in_first_entry(offset: int, value: int, length: int) -> Plant:
    """In the file table's first entry, which is the segment's."""
    return in_tree(FILES, lambda node: put(node, entries_of(node)[0][1] + offset, value, length))


def in_node_file_entry(offset: int, value: int) -> Plant:
    def change(node: bytearray) -> None:
        (at,) = (at for _, at in entries_of(node) if node[at] == 2)
        put(node, at + offset, value, 4)

    return in_tree(FILES, change)


def end_without_opening(header: bytearray) -> None:
    put(header, 20, 0, 4)
    put(header, 96, 7)


def age_the_last(node: bytearray) -> None:
    """Give the last object an id of a later epoch, in its fields and as its key."""
    _, at = entries_of(node)[-1]
    for place in (at - 12, field_at(node, ID, at)):
        put(node, place + 4, 0x7F, 4)


def shorten_node_file(node: bytearray) -> None:
    """As if the last node ended a unit later than the file's units in use."""
    (at,) = (at for _, at in entries_of(node) if node[at] == 2)
    put(node, at + 16, int.from_bytes(node[at + 16 : at + 20], "little") - 1, 4)


IS_VOLUME = 0  # The position of a moving end.
CLOSED: dict[str, tuple[str, Plant]] = {
    "a lock clock": ("superblock", lambda path: forge_commit(path, setting(112, 1))),
    "an end that nothing opens at": (
        "segment_header",
        lambda path: forge_page(segment(path), 0, end_without_opening, 16),
    ),
    "a footer that names more than its last batch durable": (
        "batch_durable",
        in_trailer(lambda it: put(it, 48, word(it, 40) + 1)),
    ),
    "a footer that names less than its last batch durable": (
        "batch_durable",
        in_trailer(setting(48, 0)),
    ),
    "an owner of no slot": ("footer_differs", in_owners(setting(4000, 1))),
    "an id of a later epoch": ("of an epoch that was not taken", in_tree(OBJECTS, age_the_last)),
    "another size than the log made": (
        "object",
        in_tree(OBJECTS, lambda it: put(it, field_at(it, SIZE), 16 << 20)),
    ),
    "a place of no family": (
        "family 0 is none",
        in_places(lambda *_: True, lambda it, at: put(it, at + 8, 0)),
    ),
    "a place with an id of a later epoch": (
        "of an epoch that was not taken",
        in_places(lambda *_: True, lambda it, at: put(it, at + 4, 0x7F, 4)),
    ),
    "a volume that is an instant": (
        "place",
        in_places(
            lambda _, position, state: (position, state) == (IS_VOLUME, 1),
            lambda it, at: put(it, at + 16, 1 << 60),
        ),
    ),
    "a snapshot that is none": (
        "place",
        in_places(lambda _, position, __: position > 0, lambda it, at: put(it, at + 16, 0)),
    ),
    "slots given back of what is whole": ("file_table", in_first_entry(44, 1, 4)),
    "a node behind the units in use": ("file_table", in_tree(FILES, shorten_node_file)),
}


@pytest.mark.parametrize("fault", CLOSED)
def test_a_fault_in_a_closed_pool_is_found(closed: Path, tmp_path: Path, fault: str) -> None:
    told, plant = CLOSED[fault]
    found = found_in(closed, tmp_path, plant)
    assert any(told in it for it in found), found


def test_a_parent_later_than_its_child_is_found(pool_path: Path) -> None:
    """Blocks born between both would be taken for the child's own, and given back."""
    with ramet.open(pool_path, create=True) as pool:
        pool.create_volume("db", "8MiB").snapshot("db@1")
        pool.volume("db").snapshot("db@2")
    assert_clean(pool_path)
    has_parent = in_places(
        lambda parent, position, _: parent > 0 and position > 0,
        lambda it, at: put(it, at + 16, 1 << 28),
    )
    has_parent(pool_path)
    assert {it.code for it in check(pool_path).findings} == {"place"}


def trim_of(block: int, count: int) -> Change:
    return lambda header: put(header, 80, block) or put(header, 88, count)


def rename_the_second(content: bytearray) -> None:
    """Give the second volume made the name of the first."""
    at = field_at(content, NAME)
    content[at : at + 3] = b"one"


BEFORE_THE_CUT: dict[str, tuple[str, Plant]] = {
    "a trim of what never was": (
        "batch_entry",
        in_first(TRIM, setting(72, 1 << 28 | 9)),
    ),
    "a trim beyond the end": ("batch_entry", in_first(TRIM, trim_of(255, 2))),
    "a trim from beyond the end on": ("batch_entry", in_first(TRIM, trim_of(2**64 - 1, 2))),
    "a trim of nothing": ("batch_entry", in_first(TRIM, trim_of(3, 0))),
    "zeros that are none": ("batch_header", in_first(TRIM, setting(66, 1, 1))),
    "zeros in a head that are none": ("batch_header", in_first(TRIM, setting(48, 1))),
    "a record of an object": ("batch_header", in_first(RECORD, setting(72, 5))),
    "a record of an unknown verb": ("record", in_record(CREATE, 0, setting(6, 99, 2))),
    "a volume with the id of another": (
        "record",
        in_record(CREATE, 1, lambda it: put(it, field_at(it, ID), 1 << 28)),
    ),
    "a volume with the name of another": ("record", in_record(CREATE, 1, rename_the_second)),
    "another name than the tree has": (
        "object",
        in_record(RENAME, 0, lambda it: put(it, field_at(it, NAME), ord("x"), 1)),
    ),
    "another size than the tree has": (
        "object",
        in_record(CREATE, 1, lambda it: put(it, field_at(it, SIZE), 2 << 20)),
    ),
}


@pytest.mark.parametrize("fault", BEFORE_THE_CUT)
def test_a_fault_before_the_cut_is_found(opened: Path, tmp_path: Path, fault: str) -> None:
    """What a checkpoint shows was not replayed by the second reader: only its tail was."""
    told, plant = BEFORE_THE_CUT[fault]
    found = found_in(opened, tmp_path, plant)
    assert any(told in it for it in found), found


AFTER_A_GAP: dict[str, tuple[str, Plant]] = {
    "a trim of what cannot be yet": (
        "batch_entry",
        in_first(TRIM, setting(72, 9 << 28)),
    ),
    "a trim of nothing": ("batch_entry", in_first(TRIM, trim_of(3, 0))),
    "a record of an unknown verb": ("record", in_record(CREATE, 0, setting(6, 99, 2))),
}


@pytest.mark.parametrize("fault", AFTER_A_GAP)
def test_a_fault_behind_what_was_given_back_is_found(
    thinned: Path, tmp_path: Path, fault: str
) -> None:
    told, plant = AFTER_A_GAP[fault]
    found = found_in(thinned, tmp_path, plant)
    assert any(told in it for it in found), found


def test_an_id_that_is_not_new_is_found_in_the_tail(opened: Path, tmp_path: Path) -> None:
    """The id of the nameless instant of a clone: no object has it, and yet it is not new."""

    def change(content: bytearray) -> None:
        at = field_at(content, ID)
        put(content, at, word(content, at) - 2)

    (found,) = found_in(opened, tmp_path, in_record(CREATE, -1, change))
    assert "is not new" in found


def test_a_fault_in_the_tail_does_not_end_the_log(opened: Path, tmp_path: Path) -> None:
    """Only what a power loss can make does: bytes of a block or a record that are not there."""
    copy = tmp_path / "planted"
    shutil.copytree(opened, copy)
    slot = batches_with(segment(copy), RECORD, RENAME)[-1]
    forge_batch(segment(copy), slot, setting(48, 1))
    report = check(copy)
    assert {it.code for it in report.findings} == {"batch_header"}
    assert report.last_sequence == check(opened).last_sequence


def test_what_a_batch_names_durable_never_falls_from_segment_to_segment(
    pool_path: Path, tmp_path: Path
) -> None:
    """The first batch of a segment may name none as durable only where none was before it."""
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        volume = pool.create_volume("db", "8MiB")
        for at in range(3):
            volume.write(at << 20, b"x" * (1 << 20))
            volume.flush()
        shutil.copytree(pool_path, tmp_path / "copy")
    copy = tmp_path / "copy"
    assert_clean(copy)
    forge_batch(segment(copy), 1, setting(24, 0))
    assert "batch_durable" in {it.code for it in check(copy).findings}
