"""The file made of a device behaves like a file, over a bytearray that stands for the device."""

import io
import os
import tarfile
from typing import TYPE_CHECKING

import pytest

from ramet.device import DeviceFile, open_file
from ramet.errors import InvalidError, ReadOnlyError

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Memory:
    """A device of a few bytes."""

    def __init__(self, size_bytes: int) -> None:
        self.content = bytearray(size_bytes)
        self.flushes_count = 0

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def read_into(self, offset_bytes: int, buffer: "Buffer") -> None:
        view = memoryview(buffer)
        view[:] = self.content[offset_bytes : offset_bytes + len(view)]

    def write(self, offset_bytes: int, data: "Buffer", fua: bool = False) -> None:
        view = memoryview(data)
        assert offset_bytes + len(view) <= len(self.content)
        self.content[offset_bytes : offset_bytes + len(view)] = view

    def flush(self) -> None:
        self.flushes_count += 1


def test_reads_and_writes_move_the_position() -> None:
    device = Memory(1000)
    with DeviceFile(device, "db", writable=True) as file:
        assert file.write(b"hello") == 5
        assert file.tell() == 5
        assert file.seek(-5, os.SEEK_CUR) == 0
        assert file.read(5) == b"hello"
        assert file.seek(-3, os.SEEK_END) == 997
        assert file.read(10) == bytes(3)
        assert file.read(10) == b""
        assert (file.readable(), file.writable(), file.seekable()) == (True, True, True)
    assert device.content[:5] == b"hello"


def test_positions_beyond_the_end_can_be_reached_but_not_used() -> None:
    with DeviceFile(Memory(10), "db", writable=True) as file:
        assert file.seek(100) == 100
        assert file.read(1) == b""
        with pytest.raises(OSError, match="ends at byte 10"):
            file.write(b"x")
        assert file.write(b"") == 0
        with pytest.raises(ValueError, match="negative"):
            file.seek(-1)
        with pytest.raises(ValueError, match="whence"):
            file.seek(0, 9)


def test_a_write_over_the_end_writes_what_fits() -> None:
    device = Memory(10)
    with DeviceFile(device, "db", writable=True) as file:
        file.seek(8)
        assert file.write(b"abcd") == 2
    assert device.content[8:] == b"ab"


def test_a_buffered_write_over_the_end_fails() -> None:
    file = open_file(Memory(10), "db", "r+b", -1, read_only=False)
    file.write(b"x" * 11)
    with pytest.raises(OSError, match="ends at byte 10"):
        file.flush()
    with pytest.raises(OSError, match="ends at byte 10"):
        file.close()


def test_the_size_cannot_be_changed() -> None:
    with DeviceFile(Memory(10), "db", writable=True) as file, pytest.raises(OSError, match="size"):
        file.truncate(5)


def test_a_file_opened_for_reading_refuses_writes() -> None:
    with DeviceFile(Memory(10), "db", writable=False) as file:
        assert not file.writable()
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")


def test_a_closed_file_says_so() -> None:
    file = DeviceFile(Memory(10), "db", writable=True)
    file.close()
    for call in (file.tell, file.readable, file.writable, file.seekable, file.read):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_close_makes_durable_what_was_written() -> None:
    device = Memory(10)
    with open_file(device, "db", "r+b", -1, read_only=False) as file:
        file.write(b"x")
        assert device.content[:1] == b"\0"
    assert device.content[:1] == b"x"
    assert device.flushes_count == 1


def test_a_file_for_reading_never_flushes() -> None:
    device = Memory(10)
    with open_file(device, "db", "rb", -1, read_only=True) as file:
        file.read()
    assert device.flushes_count == 0


def test_modes_and_buffers_are_those_of_open() -> None:
    device = Memory(10)
    assert isinstance(open_file(device, "x", "rb", -1, read_only=True), io.BufferedReader)
    assert isinstance(open_file(device, "x", "r+b", 4096, read_only=False), io.BufferedRandom)
    assert isinstance(open_file(device, "x", "rb+", 0, read_only=False), DeviceFile)
    for mode, buffering in (("r", -1), ("w", -1), ("wb", -1), ("a+b", -1), ("rb", 1), ("rb", -2)):
        with pytest.raises(InvalidError):
            open_file(device, "x", mode, buffering, read_only=False)
    with pytest.raises(ReadOnlyError) as caught:
        open_file(device, "x", "r+b", -1, read_only=True)
    assert caught.value.code == "read_only"


def test_a_tar_archive_lives_in_a_device() -> None:
    device = Memory(1 << 20)
    with (
        open_file(device, "db", "r+b", -1, read_only=False) as file,
        tarfile.open(fileobj=file, mode="w") as archive,
    ):
        member = tarfile.TarInfo("greeting")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"hello"))
    with (
        open_file(device, "db", "rb", -1, read_only=True) as file,
        tarfile.open(fileobj=file) as archive,
    ):
        extracted = archive.extractfile("greeting")
        assert extracted is not None
        assert extracted.read() == b"hello"
