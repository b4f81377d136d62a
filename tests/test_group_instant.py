"""P2: a group snapshot is one instant of all its volumes, while writers go on through NBD.

Each writer stamps one increasing counter across all volumes in order: write k to volume k % count,
wait for the answer, go on. Whatever instant is taken, there is one m such that every volume holds
the largest stamp up to m that is its own.
"""

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from serving import Serving, make_pool, ramet, serving, take_snapshots

BLOCK_BYTES = 4096
WRITE_BYTES = 1 << 20

VOLUMES_COUNT = 24
CHAINS_COUNT = 4
GROUPS_COUNT = 24
ACKS_BETWEEN_GROUPS = 40  # So that every group meets the writers somewhere else.

WHOLE_VOLUMES_COUNT = 4
WHOLE_GROUPS_COUNT = 16
WHOLE_ACKS_BETWEEN_GROUPS = 3


class Progress:
    """How far the writers are, and whether they should go on."""

    def __init__(self, chains_count: int) -> None:
        self.sent = [0] * chains_count
        self.acked = [0] * chains_count
        self._changed = threading.Condition()
        self._ended = False

    def send(self, chain: int, stamp: int) -> bool:
        """Note what is about to be written. Result: whether it should be."""
        if not self._ended:
            self.sent[chain] = stamp
        return not self._ended

    def ack(self, chain: int, stamp: int) -> None:
        with self._changed:
            self.acked[chain] = stamp
            self._changed.notify()

    def wait(self, count: int) -> None:
        """Wait until each writer got `count` answers more."""
        goals = [acked + count for acked in self.acked]
        with self._changed:
            done = self._changed.wait_for(
                lambda: all(a >= b for a, b in zip(self.acked, goals, strict=True)), timeout=50
            )
        assert done, f"the writers got to {self.acked}, waiting for {goals}"

    def end(self) -> None:
        self._ended = True


@contextmanager
def running(progress: Progress, writer: Callable[[int], None]) -> Iterator[None]:
    """Run one writer for each chain in the block; what one of them raises fails the test."""
    errors: list[Exception] = []

    def run(chain: int) -> None:
        try:
            writer(chain)
        except Exception as error:  # noqa: BLE001 - it is raised below, in the test.
            errors.append(error)

    threads = [threading.Thread(target=run, args=(it,)) for it in range(len(progress.sent))]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        progress.end()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


@pytest.fixture
def served(pool_path: Path) -> Iterator[Serving]:
    with serving(make_pool(pool_path)) as it:
        yield it


def block_of(chain: int, stamp: int) -> bytes:
    return struct.pack("<QQ", chain, stamp) * (BLOCK_BYTES // 16)


def stamp_in(block: bytes, chain: int, place: str) -> int:
    """Read a stamp; 0 where none was written. Half a block is a failure."""
    stamp: int = struct.unpack_from("<Q", block, 8)[0]
    assert block in (block_of(chain, stamp), bytes(BLOCK_BYTES)), f"{place}: chain {chain} is torn"
    return stamp


def instant_of(stamps: list[int]) -> int:
    """Give the m that all stamps agree on. The first write, to volume 0, is number `len`."""
    count = len(stamps)
    held = [stamp or index for index, stamp in enumerate(stamps)]
    newest = max(held)
    expected = [newest - (newest - index) % count for index in range(count)]
    assert held == expected, f"no one instant: {held}, where {newest} needs {expected}"
    return newest


def read_group(served: Serving, names: list[str]) -> list[int]:
    """Read a group snapshot through NBD. Result: the instant each chain is at."""
    stamps: list[list[int]] = [[] for _ in range(CHAINS_COUNT)]
    for name in names:
        with served.connect(name) as snapshot:
            content = snapshot.read(0, CHAINS_COUNT * BLOCK_BYTES)
        for chain in range(CHAINS_COUNT):
            block = content[chain * BLOCK_BYTES : (chain + 1) * BLOCK_BYTES]
            stamps[chain].append(stamp_in(block, chain, name))
    return [instant_of(of_chain) for of_chain in stamps]


@pytest.mark.slow
def test_group_snapshots_under_load_are_one_instant_of_all_volumes(served: Serving) -> None:
    """P2, with many chains of writers through NBD, by the service and by commands."""
    volumes = [f"v{index}" for index in range(VOLUMES_COUNT)]
    progress = Progress(CHAINS_COUNT)
    progress.sent = [VOLUMES_COUNT - 1] * CHAINS_COUNT
    progress.acked = [VOLUMES_COUNT - 1] * CHAINS_COUNT
    groups: list[tuple[list[str], list[int], list[int]]] = []

    def write_chain(chain: int) -> None:
        with ExitStack() as stack:
            connections = [stack.enter_context(served.connect(name)) for name in volumes]
            stamp = VOLUMES_COUNT
            while progress.send(chain, stamp):
                target = connections[stamp % VOLUMES_COUNT]
                target.write(chain * BLOCK_BYTES, block_of(chain, stamp))
                progress.ack(chain, stamp)
                stamp += 1

    with served.verbs() as verbs:
        verbs.create_volumes(volumes, "1MiB", None)
        with running(progress, write_chain):
            for group in range(GROUPS_COUNT):
                progress.wait(ACKS_BETWEEN_GROUPS)
                pattern = f"{{volume}}@g{group}"
                before = list(progress.acked)
                if group % 4 == 3:
                    made = ramet(
                        "-p", served.pool_path, "snapshot", "create", *volumes, "--name", pattern
                    ).split()
                else:
                    made = take_snapshots(verbs, volumes, pattern)
                groups.append((made, before, list(progress.sent)))

    for names, before, after in groups:
        assert names == [f"{volume}@{names[0].split('@')[1]}" for volume in volumes]
        instants = read_group(served, names)
        for first, instant, last in zip(before, instants, after, strict=True):
            assert first <= instant <= last, f"{names[0]}: {before} <= {instants} <= {after}"


@pytest.mark.slow
@pytest.mark.parametrize("offset_bytes", [0, 1536], ids=["aligned", "across-blocks"])
def test_a_write_of_1_mib_is_in_a_snapshot_whole_or_not_at_all(
    served: Serving, offset_bytes: int
) -> None:
    """P2 for one large request, group snapshots and all."""
    volumes = [f"v{index}" for index in range(WHOLE_VOLUMES_COUNT)]
    progress = Progress(WHOLE_VOLUMES_COUNT)

    def write_whole(index: int) -> None:
        stamp = 1
        with served.connect(volumes[index]) as connection:
            while progress.send(index, stamp):
                data = struct.pack("<Q", stamp) * (WRITE_BYTES // 8)
                connection.write(offset_bytes, data)
                progress.ack(index, stamp)
                stamp += 1

    groups: list[tuple[list[str], list[int], list[int]]] = []
    with served.verbs() as verbs:
        verbs.create_volumes(volumes, "2MiB", None)
        with running(progress, write_whole):
            for group in range(WHOLE_GROUPS_COUNT):
                progress.wait(WHOLE_ACKS_BETWEEN_GROUPS)
                before = list(progress.acked)
                names = take_snapshots(verbs, volumes, f"{{volume}}@g{group}")
                groups.append((names, before, list(progress.sent)))

    for names, before, after in groups:
        for name, first, last in zip(names, before, after, strict=True):
            with served.connect(name) as snapshot:
                content = snapshot.read(offset_bytes, WRITE_BYTES)
            stamps = set(struct.unpack(f"<{WRITE_BYTES // 8}Q", content))
            assert len(stamps) == 1, f"{name} holds parts of the writes {sorted(stamps)}"
            assert first <= stamps.pop() <= last, name
