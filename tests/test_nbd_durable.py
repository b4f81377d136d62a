"""What an NBD client was told is durable is there after its server is killed.

Random floods over many connections are in test_kill.py; here is each kind of change by itself.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from nbd_client import FLAG_FUA, NbdClient
from serving import make_pool, serving

BLOCK_BYTES = 4096
SIZE_BYTES = 64 * BLOCK_BYTES
BEFORE = b"x" * SIZE_BYTES

CHANGES: dict[str, tuple[Callable[[NbdClient], None], int, bytes]] = {
    # What is done, and which bytes are where afterwards.
    "write": (lambda it: it.write(0, b"a" * 8192, fua=True), 0, b"a" * 8192),
    "write-part": (lambda it: it.write(5000, b"a" * 9, fua=True), 5000, b"a" * 9),
    "trim": (lambda it: it.trim(8192, 8192, FLAG_FUA), 8192, bytes(8192)),
    "trim-part": (lambda it: it.trim(5000, 9, FLAG_FUA), 5000, bytes(9)),
    "zeroes": (lambda it: it.write_zeroes(8192, 8192, FLAG_FUA), 8192, bytes(8192)),
    "zeroes-edges": (lambda it: it.write_zeroes(5000, 20_000, FLAG_FUA), 5000, bytes(20_000)),
}


def serve_and_kill(pool_path: Path, change: Callable[[NbdClient], None]) -> bytes:
    """Make a volume of "x", change it, kill the service. Result: the bytes that it then has."""
    with serving(make_pool(pool_path)) as served:
        with served.verbs() as verbs:
            verbs.create_volumes(["db"], str(SIZE_BYTES), None)
        with served.connect("db") as client:
            client.write(0, BEFORE)
            client.flush()
            change(client)
            served.kill()
        served.wait()
    with serving(pool_path) as served, served.connect("db") as client:
        return client.read(0, SIZE_BYTES)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHANGES)
def test_each_kind_of_change_with_fua_is_durable_when_it_is_answered(
    pool_path: Path, kind: str
) -> None:
    change, offset, expected = CHANGES[kind]
    after = serve_and_kill(pool_path, change)
    end = offset + len(expected)
    assert after == BEFORE[:offset] + expected + BEFORE[end:]


@pytest.mark.slow
def test_zeroes_with_fua_inside_of_a_hole_make_the_hole_durable(pool_path: Path) -> None:
    """The story: the hole was a trim's that was not durable, zeroing it wrote nothing and so synced
    nothing, and after a power loss the old bytes were back under zeros that were promised."""

    def change(client: NbdClient) -> None:
        client.trim(BLOCK_BYTES, BLOCK_BYTES)
        client.write_zeroes(BLOCK_BYTES + 100, 10, FLAG_FUA)

    after = serve_and_kill(pool_path, change)
    assert after[BLOCK_BYTES + 100 : BLOCK_BYTES + 110] == bytes(10)


@pytest.mark.slow
def test_a_flush_of_one_connection_covers_what_another_was_answered(pool_path: Path) -> None:
    with serving(make_pool(pool_path)) as served:
        with served.verbs() as verbs:
            verbs.create_volumes(["db"], str(SIZE_BYTES), None)
        with served.connect("db") as one, served.connect("db") as other:
            one.write(0, b"a" * 8192)
            one.trim(0, BLOCK_BYTES)
            other.flush()
            served.kill()
        served.wait()
    with serving(pool_path) as served, served.connect("db") as client:
        assert client.read(0, 12_288) == bytes(4096) + b"a" * 4096 + bytes(4096)


@pytest.mark.slow
def test_a_flush_that_is_expected_is_done_once_and_not_expected_for_long(pool_path: Path) -> None:
    """The NBD side is tested with a device that counts; here is what the log makes of it."""
    pairs_count, few = 200, 10
    with serving(make_pool(pool_path)) as served, served.verbs() as verbs:
        verbs.create_volumes(["db"], str(SIZE_BYTES), None)

        def syncs() -> int:
            return int(verbs.stats()["syncs_count"])

        with served.connect("db") as client:
            before = syncs()
            for number in range(pairs_count):
                client.write(number % 64 * BLOCK_BYTES, b"a" * BLOCK_BYTES)
                client.flush()
            flushed = syncs()
            assert pairs_count <= flushed - before <= pairs_count + few
            for number in range(pairs_count):
                client.write(number % 64 * BLOCK_BYTES, b"b" * BLOCK_BYTES)
            assert client.read(0, SIZE_BYTES) == b"b" * SIZE_BYTES
            assert syncs() - flushed <= few
