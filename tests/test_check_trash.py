"""`ramet check` holds the trash to I22: faults with right checksums, so that no byte is damaged."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import ramet
from pool_checks import assert_clean
from pool_forge import OBJECTS, RECORD, batches_with, field_at, forge_record, forge_tree, put, word
from ramet.audit.check import check

RENAME, DELETE, TRASH, RESTORE = 5, 6, 13, 14
ID, STATE, DELETE_AFTER = 1, 6, 16
Plant = Callable[[Path], object]


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool in which things went to the trash, came back, ended and were named like others."""
    path = tmp_path_factory.mktemp("closed") / "pool"
    with ramet.open(path, create=True, segment_size="1MiB") as pool:
        pool.set_trash_window("7d")
        pool.create_volumes(["a", "b", "c", "d"], "1MiB")
        pool.rename("d", "e")
        pool.delete(["a", "b", "c"])
        pool.create_volume("a", "1MiB")
        pool.restore("b")
        pool.empty_trash("c")
    assert_clean(path)
    return path


def _ids(path: Path) -> dict[str, int]:
    """Give the ids of what was made, as the first record says them."""
    found: dict[str, int] = {}
    file, slot = _find(path, 1)
    content = file.read_bytes()[(slot + 1) * 4096 :]
    at = 0
    for name in "abcd":
        at = field_at(content, ID, at)
        found[name] = word(content, at)
    return found


def _find(path: Path, verb: int) -> tuple[Path, int]:
    files = sorted((path / "segments").glob("*.seg"))
    return next((it, slot) for it in files for slot in batches_with(it, RECORD, verb))


def _record(path: Path, verb: int, tag: int, value: int) -> None:
    file, slot = _find(path, verb)
    forge_record(path, file, slot, lambda content: put(content, field_at(content, tag), value))


def _tree(path: Path, tag: int, value: int, length: int) -> None:
    def forge(node: bytearray) -> None:
        put(node, field_at(node, tag), value, length)

    forge_tree(path, OBJECTS, forge)


FAULTS: dict[str, tuple[Plant, str]] = {
    "a record ends what is not there": (
        lambda path: _record(path, DELETE, ID, 1),
        "is not there",
    ),
    "what is not in the trash is restored": (
        lambda path: _record(path, RESTORE, ID, _ids(path)["d"]),
        "is restored, and was not in the trash",
    ),
    "what ended is restored under the name of another": (
        lambda path: _record(path, RESTORE, ID, _ids(path)["c"]),
        "but the log made it",
    ),
    "the tree says another time": (
        lambda path: _tree(path, DELETE_AFTER, 5, 8),
        "but the log made it",
    ),
    "the tree says that all see what has a time to go": (
        lambda path: _tree(path, STATE, 1, 1),
        "an object of state 1 with or without a time to go",
    ),
    "the tree says that something is in the trash for no time": (
        lambda path: forge_tree(path, OBJECTS, _trash_last),
        "an object of state 3 with or without a time to go",
    ),
}


def _trash_last(node: bytearray) -> None:
    at = last = field_at(node, STATE)
    while True:
        try:
            at = field_at(node, STATE, at)
        except ValueError:
            break
        last = at
    put(node, last, 3, 1)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_trash_is_told(closed: Path, tmp_path: Path, name: str) -> None:
    plant, expected = FAULTS[name]
    path = shutil.copytree(closed, tmp_path / "pool")
    plant(path)
    texts = [finding.text for finding in check(path).findings]
    assert any(expected in text for text in texts), texts
