"""QEMU's own clients against a served pool: what they write is there, in the pool too."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import programs
import ramet
from ramet.config import format_nbd_uri

MIB = 2**20
IMAGE_BYTES = 16 * MIB
DATA_AT = (0, 3 * MIB + 12_288, IMAGE_BYTES - 65_536)
"""Where an image holds data; in between it is a hole."""


@pytest.fixture
def socket_path(pool: ramet.Pool, tmp_path: Path) -> Iterator[Path]:
    """Where `pool` is served."""
    path = tmp_path / "nbd.sock"
    with pool.serve_nbd(path):
        yield path


@pytest.fixture
def image(tmp_path: Path, randomness: random.Random) -> Path:
    """A raw image with holes."""
    path = tmp_path / "image.raw"
    with path.open("wb") as file:
        file.truncate(IMAGE_BYTES)
        for offset in DATA_AT:
            file.seek(offset)
            file.write(randomness.randbytes(65_536))
    return path


def io(socket_path: Path, export: str, *commands: str, read_only: bool = False) -> str:
    """Let one qemu-io do commands in order; all must succeed, and patterns be as said."""
    options = ["-r"] if read_only else []
    script = "\n".join(commands) + "\n"
    uri = format_nbd_uri(export, socket_path)
    return programs.run("qemu-io", "-f", "raw", *options, uri, text_in=script)


def test_info_tells_size_and_follows_a_resize(pool: ramet.Pool, socket_path: Path) -> None:
    volume = pool.create_volume("db", 3 * MIB + 512)
    volume.snapshot("db@1")

    def told(name: str) -> int:
        uri = format_nbd_uri(name, socket_path)
        found = json.loads(programs.run("qemu-img", "info", "--output=json", "-f", "raw", uri))
        size_bytes: int = found["virtual-size"]
        return size_bytes

    assert (told("db"), told("db@1")) == (3 * MIB + 512, 3 * MIB + 512)
    volume.resize(8 * MIB)
    assert (told("db"), told("db@1")) == (8 * MIB, 3 * MIB + 512)


@pytest.mark.random
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_convert_brings_images_there_and_back(
    pool: ramet.Pool, socket_path: Path, image: Path, kind: str
) -> None:
    volume = pool.create_volume("golden", IMAGE_BYTES)
    uri = format_nbd_uri("golden", socket_path)
    there, back = image.with_name(f"there.{kind}"), image.with_name(f"back.{kind}")
    programs.run("qemu-img", "convert", "-f", "raw", "-O", kind, image, there)
    programs.run(
        *("qemu-img", "convert", "-n", "--target-is-zero", "-W", "-m", 8),
        *("-f", kind, "-O", "raw", there, uri),
    )
    assert volume.read(0, IMAGE_BYTES) == image.read_bytes()
    assert volume.record().mapped_bytes == len(DATA_AT) * 65_536
    programs.run("qemu-img", "compare", "-f", kind, "-F", "raw", there, uri)
    programs.run("qemu-img", "convert", "-f", "raw", "-O", kind, uri, back)
    programs.run("qemu-img", "compare", "-f", "raw", "-F", kind, image, back)
    assert back.stat().st_blocks * 512 < IMAGE_BYTES // 2


@pytest.mark.random
def test_a_target_that_is_not_known_to_be_zero_is_zeroed(
    pool: ramet.Pool, socket_path: Path, image: Path
) -> None:
    volume = pool.create_volume("golden", IMAGE_BYTES)
    volume.write(0, b"\xff" * IMAGE_BYTES)
    uri = format_nbd_uri("golden", socket_path)
    programs.run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, uri)
    assert volume.read(0, IMAGE_BYTES) == image.read_bytes()
    assert volume.record().mapped_bytes == len(DATA_AT) * 65_536


def test_compare_tells_what_differs(pool: ramet.Pool, socket_path: Path) -> None:
    volume = pool.create_volume("db", MIB)
    volume.write(5000, b"same")
    volume.snapshot("db@1")
    uris = [format_nbd_uri(name, socket_path) for name in ("db", "db@1")]
    programs.run("qemu-img", "compare", "-f", "raw", "-F", "raw", *uris)
    volume.write(5003, b"x")
    said = programs.fail("qemu-img", "compare", "-f", "raw", "-F", "raw", *uris)
    assert "mismatch at offset 4608" in said, "the sector of byte 5003"


def test_a_snapshot_is_exported_as_it_was(
    pool: ramet.Pool, socket_path: Path, tmp_path: Path
) -> None:
    volume = pool.create_volume("db", MIB)
    volume.write(0, b"old" * 1000)
    expected = volume.snapshot("db@1").read(0, MIB)
    volume.write(0, b"new" * 2000)
    uri = format_nbd_uri("db@1", socket_path)
    programs.run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, tmp_path / "old.raw")
    assert (tmp_path / "old.raw").read_bytes() == expected


def test_a_volume_may_hold_a_qcow2_itself(pool: ramet.Pool, socket_path: Path) -> None:
    pool.create_volume("disk", 4 * MIB)
    uri = format_nbd_uri("disk", socket_path)
    programs.run("qemu-img", "create", "-q", "-f", "qcow2", uri, "64M")
    script = "write -P 7 63M 64k\nflush\n"
    programs.run("qemu-io", "-f", "qcow2", uri, text_in=script)
    pool.snapshot("disk", name="disk@1")
    inside = format_nbd_uri("disk@1", socket_path)
    programs.run("qemu-io", "-r", "-f", "qcow2", inside, text_in="read -P 7 63M 64k\n")
    programs.run("qemu-img", "check", "-f", "qcow2", uri)


def test_patterns_of_any_alignment_are_read_back(pool: ramet.Pool, socket_path: Path) -> None:
    volume = pool.create_volume("db", 4 * MIB)
    writes = ((1, 0, 512), (2, 4096, 8192), (3, 1000, 3), (4, 12_287, 2), (5, MIB - 1, MIB + 2))
    expected = bytearray(4 * MIB)
    commands = []
    for pattern, offset, length in writes:
        commands.append(f"write -P {pattern} {offset} {length}")
        expected[offset : offset + length] = bytes([pattern]) * length
    commands += ["write -f -P 6 2M 4k", "flush", "read -P 5 1M 1M", "read -P 0 3M 1M"]
    expected[2 * MIB : 2 * MIB + 4096] = bytes([6]) * 4096
    io(socket_path, "db", *commands)
    assert volume.read(0, 4 * MIB) == expected
    uri = format_nbd_uri("db", socket_path)
    said = programs.fail("qemu-io", "-f", "raw", uri, text_in="read -P 9 0 512\n")
    assert "Pattern verification failed" in said, "this is how a wrong one is told"


def test_zeroes_and_discards_read_as_zeros_and_give_space_back(
    pool: ramet.Pool, socket_path: Path
) -> None:
    volume = pool.create_volume("db", 4 * MIB)
    io(
        socket_path,
        "db",
        "write -P 1 0 4M",
        "write -z 0 1M",
        "write -z -u 1000 4095",
        "discard 2M 1M",
        "flush",
        "read -P 0 0 1M",
        "read -P 1 1M 1M",
        "read -P 0 2M 1M",
        "read -P 1 3M 1M",
    )
    assert volume.record().mapped_bytes == 2 * MIB
    io(socket_path, "db", "write -z 1049000 5000", "discard 3M 1M")
    content = volume.read(0, 4 * MIB)
    assert content == bytes(MIB) + bytes([1]) * 424 + bytes(5000) + bytes([1]) * (
        MIB - 5424
    ) + bytes(2 * MIB)


def test_many_requests_in_flight_end_as_they_should(pool: ramet.Pool, socket_path: Path) -> None:
    volume = pool.create_volume("db", 8 * MIB)
    writes = [f"aio_write -P {1 + index % 200} {index * 8192} 8192" for index in range(1024)]
    reads = [f"aio_read -P {1 + index % 200} {index * 8192} 8192" for index in range(1024)]
    said = io(socket_path, "db", *writes, "aio_flush", *reads, "aio_flush", "flush")
    assert said.count("wrote 8192/8192") == said.count("read 8192/8192") == 1024
    for index in range(1024):
        assert volume.read(index * 8192, 8192) == bytes([1 + index % 200]) * 8192


def test_bench_goes_through_with_flushes_in_between(pool: ramet.Pool, socket_path: Path) -> None:
    pool.create_volume("db", 32 * MIB)
    uri = format_nbd_uri("db", socket_path)
    said = programs.run(
        *("qemu-img", "bench", "-f", "raw", "-c", 2000, "-d", 32, "-w"),
        *("--flush-interval", 200, "--pattern", 65, uri),
    )
    assert "Run completed" in said
    assert pool.volume("db").read(0, 4096) == b"A" * 4096


def test_a_snapshot_is_opened_for_reading_only(
    pool: ramet.Pool, socket_path: Path, tmp_path: Path
) -> None:
    volume = pool.create_volume("db", MIB)
    volume.write(0, b"\x05" * MIB)
    volume.snapshot("db@1")
    io(socket_path, "db@1", "read -P 5 0 1M", read_only=True)
    uri = format_nbd_uri("db@1", socket_path)
    assert "Permission denied" in programs.fail("qemu-io", "-f", "raw", uri, text_in="quit\n")
    programs.fail(
        "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", tmp_path / "pool/pool", uri
    )
    assert pool.get("db@1").read(0, MIB) == b"\x05" * MIB


def test_names_with_every_allowed_mark_can_be_opened(pool: ramet.Pool, socket_path: Path) -> None:
    pool.create_volume("A-z:0.9_", MIB).snapshot("A-z:0.9_@:-._@")
    for name in ("A-z:0.9_", "A-z:0.9_@:-._@"):
        uri = format_nbd_uri(name, socket_path)
        assert '"virtual-size": 1048576' in programs.run(
            "qemu-img", "info", "--output=json", "-f", "raw", uri
        )
    missing = format_nbd_uri("absent", socket_path)
    assert "object_not_found" in programs.fail("qemu-img", "info", missing)
