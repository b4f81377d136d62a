"""Reads that the service sends from where the blocks lie, without a copy: a medium that fails is an
error of the read, and a client that takes nothing holds no file up."""

import errno
import random
import struct
from pathlib import Path

import pytest

import ramet
from nbd_client import NbdClient, NbdError, receive
from serving import Serving, run_ramet, serving
from volatile_disk import broken, needs_fuse, volatile_disk

BLOCK_BYTES = 4096
MIB = 1 << 20
SIZE_BYTES = 4 * MIB
READ_BYTES = 128 << 10
READ_REQUEST, REPLY_BYTES = ">IHHQQI", 16
READ, WRITE = 0, 1
REPLY = struct.pack(">IIQ", 0x67446698, 0, 0)
REQUEST_MAGIC = 0x25609513
# After a read that was slow, as many are copied, and some more.
WARM_COUNT = 400
LOOKS_MAX = 20
ROUNDS_COUNT = 10
# A batch reads as much and writes half of it at most, which a socket holds: sending it ends.
BATCH_BYTES = 256 << 10


def make_pool(pool_path: Path, draw: random.Random) -> bytes:
    """Make a pool with a volume "v" in several segments. Result: what is in it."""
    content = draw.randbytes(SIZE_BYTES)
    with ramet.open(pool_path, create=True, segment_size="1MiB") as pool:
        volume = pool.create_volume("v", SIZE_BYTES)
        volume.write(0, content)
        volume.flush()
    return content


def segments(pool_path: Path) -> list[Path]:
    return sorted(pool_path.glob("segments/*.seg"))


def warm(client: NbdClient, at: int) -> None:
    """Read a block until it is lent: the first reads of a file may be slow, and are copied."""
    for _ in range(WARM_COUNT):
        client.read(at, BLOCK_BYTES)


def is_kept(served: Serving) -> bool:
    """Whether the service still has a file mapped that has no name any more."""
    mapped = Path(f"/proc/{served.process_id}/maps").read_text()
    return any(".seg" in line and line.endswith("(deleted)") for line in mapped.splitlines())


def assert_fails(client: NbdClient, at: int) -> None:
    with pytest.raises(NbdError) as caught:
        client.read(at, BLOCK_BYTES)
    assert caught.value.errno == errno.EIO


def test_a_segment_that_is_cut_off_under_the_service_is_an_error_of_the_read(
    pool_path: Path, randomness: random.Random
) -> None:
    """P5: the mapping of a file that became shorter gives a signal that ends processes."""
    content = make_pool(pool_path, randomness)
    with serving(pool_path) as served, served.connect("v") as client:
        middle = SIZE_BYTES // 2
        warm(client, middle)
        for path in segments(pool_path):
            with path.open("r+b") as stream:
                stream.truncate(BLOCK_BYTES)
        assert_fails(client, middle)
        assert_fails(client, 0)
        client.write(middle, content[:BLOCK_BYTES], fua=True)
        assert client.read(middle, BLOCK_BYTES) == content[:BLOCK_BYTES]
        assert served.running


@needs_fuse
@pytest.mark.root
def test_a_medium_that_fails_under_a_mapping_is_an_error_of_the_read(
    tmp_path: Path, randomness: random.Random
) -> None:
    """P5, with a file system whose reads fail."""
    with volatile_disk(tmp_path / "disk", cached=True) as disk:
        pool_path = disk / "pool"
        content = make_pool(pool_path, randomness)
        with serving(pool_path, "--nbd", f"unix:{tmp_path}/nbd.sock") as served:
            with connect(served, tmp_path) as client:
                warm(client, 0)
                with broken(disk):
                    # What the system kept of the files goes.
                    for path in segments(pool_path):
                        path.open("rb").close()
                    assert_fails(client, 0)
                    assert_fails(client, 2 * MIB)
                assert client.read(0, READ_BYTES) == content[:READ_BYTES]
                at = 2 * MIB
                assert client.read(at, READ_BYTES) == content[at : at + READ_BYTES]
            assert served.running


def connect(served: Serving, directory: Path) -> NbdClient:
    served.nbd_path = directory / "nbd.sock"
    return served.connect("v")


@pytest.mark.random
def test_a_read_has_the_bytes_of_before_the_write_that_follows_it(
    pool_path: Path, randomness: random.Random
) -> None:
    """They are sent together: a read, a write over a part of it, and the same read again."""
    content = bytearray(make_pool(pool_path, randomness))
    with serving(pool_path) as served, served.connect("v") as client:
        warm(client, 0)
        for length in (512, BLOCK_BYTES, 3 * BLOCK_BYTES + 1, READ_BYTES) * ROUNDS_COUNT:
            at = randomness.randrange(SIZE_BYTES - length)
            batch, answers = b"", []
            for _ in range(BATCH_BYTES // length // 2):
                read = struct.pack(READ_REQUEST, REQUEST_MAGIC, 0, READ, 0, at, length)
                start = randomness.randrange(length)
                data = randomness.randbytes(randomness.randint(1, length - start))
                write = (REQUEST_MAGIC, 0, WRITE, 0, at + start, len(data))
                batch += read + struct.pack(READ_REQUEST, *write) + data + read
                answers += [bytes(content[at : at + length]), b""]
                content[at + start : at + start + len(data)] = data
                answers.append(bytes(content[at : at + length]))
            client.stream.sendall(batch)
            for answer in answers:
                assert receive(client.stream, REPLY_BYTES) == REPLY
                assert receive(client.stream, len(answer)) == answer
        assert client.read(0, SIZE_BYTES) == content


def test_a_client_that_takes_nothing_holds_no_file_up(
    pool_path: Path, randomness: random.Random
) -> None:
    """It asks for all of a volume and does not listen. All is trimmed and given back meanwhile; of
    each block it then gets what was there before, or what is there now."""
    content = make_pool(pool_path, randomness)
    with (
        serving(pool_path) as served,
        served.connect("v") as deaf,
        served.connect("v") as other,
    ):
        warm(deaf, 0)
        places = range(0, SIZE_BYTES, READ_BYTES)
        for cookie, at in enumerate(places):
            asked = (REQUEST_MAGIC, 0, 0, cookie, at, READ_BYTES)
            deaf.stream.sendall(struct.pack(READ_REQUEST, *asked))
        other.trim(0, SIZE_BYTES)
        other.flush()
        done = run_ramet("-p", pool_path, "reclaim", "--all")
        assert done.returncode == 0, done.stderr
        left_bytes = sum(path.stat().st_blocks * 512 for path in segments(pool_path))
        assert left_bytes < SIZE_BYTES / 2, "what is dead was not given back"
        # Each look takes some of the time that what is lent may be kept.
        looks = (is_kept(served) and run_ramet("-p", pool_path, "list") for _ in range(LOOKS_MAX))
        assert not all(looks), "a file that was removed still takes room"
        for at in places:
            receive(deaf.stream, REPLY_BYTES)
            payload = receive(deaf.stream, READ_BYTES)
            for offset in range(0, READ_BYTES, BLOCK_BYTES):
                block = payload[offset : offset + BLOCK_BYTES]
                before = content[at + offset : at + offset + BLOCK_BYTES]
                assert block in (before, bytes(BLOCK_BYTES)), f"block at {at + offset}"
