"""`ramet check` holds locks to I21: each fault here has right checksums, so no byte is damaged.

It stands for a bug of the engine that made a lock shorter, or let somebody end it.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import ramet
from pool_checks import assert_clean
from pool_forge import (
    OBJECTS,
    RECORD,
    batches_with,
    field_at,
    forge_commit,
    forge_record,
    forge_tree,
    put,
    word,
)
from ramet.audit.check import check
from ramet.audit.locks import hold_set
from ramet.audit.objects import GOVERNANCE, Lock
from ramet.audit.structures import MalformedError

PHRASE = "a secret of locks"
RENAME, DELETE, LOCK, UNLOCK = 5, 6, 11, 12
LOCK_MODE, LOCK_UNTIL, LOCK_FIRM, LOCK_CLOCK, LOCK_DAY = 14, 15, 18, 19, 20
HOUR_NS = 3600 * 10**9
Plant = Callable[[Path], object]


def _make(path: Path, secret: bool) -> Path:
    """Make a pool in which locks of both modes were set, made longer, ended, and are over."""
    with ramet.open(path, create=True, segment_size="1MiB") as pool:
        pool.create_volume("v", "1MiB")
        if secret:
            pool.set_lock_secret(PHRASE)
        for name in ("longer", "over", "back", "free"):
            pool.volume("v").snapshot(name)
        pool.lock("longer", "1h", mode="compliance")
        pool.lock("longer", "2h", mode="compliance")
        pool.lock("over", 1e-9)
        pool.delete("over")
        pool.set_cooling_off("1h", secret=PHRASE if secret else None)
        pool.lock("back", "1h", mode="compliance")
        pool.unlock("back")
        pool.rename("free", "other")
    assert_clean(path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool without a secret, closed."""
    return _make(tmp_path_factory.mktemp("plain") / "pool", False)


def _record(path: Path, verb: int, tag: int, value: int, which: int = 0) -> None:
    files = sorted((path / "segments").glob("*.seg"))
    found = [(it, slot) for it in files for slot in batches_with(it, RECORD, verb)]
    file, slot = found[which]
    forge_record(path, file, slot, lambda content: put(content, field_at(content, tag), value))


def _tree(path: Path, tag: int, change: Callable[[int], int]) -> None:
    def forge(node: bytearray) -> None:
        at = field_at(node, tag)
        put(node, at, change(word(node, at)))

    forge_tree(path, OBJECTS, forge)


FAULTS: dict[str, tuple[Plant, str]] = {
    "the second lock is shorter": (
        lambda path: _record(path, LOCK, LOCK_UNTIL, HOUR_NS // 2, 1),
        "made shorter",
    ),
    "the second lock is milder": (
        lambda path: _record(path, LOCK, LOCK_MODE, 1, 1),
        "made milder",
    ),
    "a deleted snapshot was locked for longer": (
        lambda path: _record(path, LOCK, LOCK_UNTIL, 9 * HOUR_NS, 2),
        "'over' is deleted at",
    ),
    "a lock was taken back that was firm": (
        lambda path: _record(path, LOCK, LOCK_FIRM, 1, 3),
        "'back' is released at",
    ),
    "a lock ends before it begins": (
        lambda path: _record(path, LOCK, LOCK_UNTIL, 1, 0),
        "a lock of mode 2",
    ),
    "a lock of a mode that is none": (
        lambda path: _record(path, LOCK, LOCK_MODE, 3, 0),
        "a lock of mode 3",
    ),
    "a record tells of a clock that never was": (
        lambda path: _record(path, UNLOCK, LOCK_CLOCK, 99 * HOUR_NS),
        "says that the lock clock was",
    ),
    "the tree has a shorter lock than the log": (
        lambda path: _tree(path, LOCK_UNTIL, lambda until_ns: until_ns - 1),
        "but the log made it",
    ),
    "the newer slot has the lower clock": (
        lambda path: forge_commit(path, lambda page: put(page, 112, 1)),
        "the lower lock clock",
    ),
    "a cooling-off of more than a day": (
        lambda path: forge_commit(path, lambda page: put(page, 120, 86_401)),
        "a cooling-off of 86401 s",
    ),
    "a time of day was confirmed without a secret": (
        lambda path: forge_commit(path, lambda page: put(page, 200, 1)),
        "there is no secret",
    ),
    "a time of day was confirmed later than now": (
        lambda path: forge_commit(path, lambda page: put(page, 192, 1 << 62)),
        "later than the lock clock is",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_lock_that_was_made_shorter_is_told(plain: Path, tmp_path: Path, name: str) -> None:
    plant, expected = FAULTS[name]
    path = shutil.copytree(plain, tmp_path / "pool")
    plant(path)
    texts = [finding.text for finding in check(path).findings]
    assert any(expected in text for text in texts), texts


def test_what_the_secret_may_have_done_is_not_called_wrong(tmp_path: Path) -> None:
    path = _make(tmp_path / "pool", True)
    with ramet.open(path) as pool:
        pool.volume("v").snapshot("released")
        pool.lock("released", "9h")
        pool.set_cooling_off(0, secret=PHRASE)
        pool.unlock("released", secret=PHRASE)
        pool.lock("released", "9h")
        pool.confirm_lock_clock(PHRASE)
        pool.lock("released", "9h", mode="compliance")
    assert_clean(path)


def test_a_lock_may_take_the_place_of_one_that_is_over_by_a_confirmed_time() -> None:
    """The second was called one that can be taken back for longer: the first seemed to run."""
    first = Lock(GOVERNANCE, until_ns=100, firm_ns=10, clock_ns=0, day_ns=7)
    second = Lock(GOVERNANCE, until_ns=90, firm_ns=60, clock_ns=50, day_ns=8)
    hold_set("s", first, second, True)
    with pytest.raises(MalformedError, match="taken back for longer"):
        hold_set("s", first, second, False)


def test_locks_are_held_where_the_log_is_behind_the_last_checkpoint(tmp_path: Path) -> None:
    path = _make(tmp_path / "pool", False)
    with ramet.open(path) as pool:
        pool.volume("v").snapshot("s")
        pool.lock("s", "1h", mode="compliance")
        pool.checkpoint()
        pool.rename("other", "another")
        shutil.copytree(path, tmp_path / "killed")
    # What a rename says is made a delete of what is locked.
    killed = tmp_path / "killed"
    assert_clean(killed)
    with ramet.open(killed, read_only=True) as pool:
        locked_id = pool._core.find("s").id
    # A segment that was made ahead has none.
    files = sorted((killed / "segments").glob("*.seg"))
    file = [it for it in files if batches_with(it, RECORD, RENAME)][-1]

    def forge(content: bytearray) -> None:
        put(content, 6, DELETE, 2)
        put(content, field_at(content, 1), locked_id)

    forge_record(killed, file, batches_with(file, RECORD, RENAME)[-1], forge)
    texts = [finding.text for finding in check(killed).findings]
    assert any("'s' is deleted at" in text for text in texts), texts
