"""A volume or a snapshot as a file of Python: seek, read, write, close.

Owns the contract of a block device as Python code sees it, and the file made of it. Imports errors
only, so that it can be tested over a bytearray. Invariant: a file never changes its device's size.
"""

import errno
import io
import os
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from ramet.errors import InvalidError, ReadOnlyError

if TYPE_CHECKING:
    from typing_extensions import Buffer

BUFFER_BYTES = 65_536  # Of a buffered file: sixteen blocks, few calls and little read in vain.


class Device(Protocol):
    """What a volume or a snapshot can do. Nothing needs to be aligned; any thread may call."""

    @property
    def size_bytes(self) -> int:
        """Size at the moment of the call."""

    def read_into(self, offset_bytes: int, buffer: "Buffer") -> None:
        """Fill all of `buffer`."""

    def write(self, offset_bytes: int, data: "Buffer", fua: bool = False) -> None:
        """Write all of `data`."""

    def flush(self) -> None:
        """Make durable what was written before."""


class DeviceFile(io.RawIOBase):
    """A device as an unbuffered binary file with a position, for code that takes a file.

    Reads give all that was asked for, less only at the end. A write at the end fails with ENOSPC,
    as on a block device, and the size cannot be changed. `flush` and `close` make durable what was
    written.
    """

    def __init__(self, device: Device, name: str, *, writable: bool) -> None:
        super().__init__()
        self._device = device
        self._writable = writable
        self._position = 0
        self.name = name
        self.mode = "rb+" if writable else "rb"

    def readable(self) -> bool:
        """Tell that it can be read: always."""
        self._check_open()
        return True

    def writable(self) -> bool:
        """Tell whether it was opened for writing."""
        self._check_open()
        return self._writable

    def seekable(self) -> bool:
        """Tell that it has a position: always."""
        self._check_open()
        return True

    def readinto(self, buffer: "Buffer", /) -> int:
        """Fill `buffer` from the position on; result: the bytes read, 0 at the end."""
        self._check_open()
        view = memoryview(buffer).cast("B")
        length_bytes = max(0, min(len(view), self._device.size_bytes - self._position))
        if length_bytes:
            self._device.read_into(self._position, view[:length_bytes])
            self._position += length_bytes
        return length_bytes

    def write(self, data: "Buffer", /) -> int:
        """Write `data` at the position; result: bytes written, fewer only where the device ends."""
        self._check_open()
        if not self._writable:
            raise io.UnsupportedOperation(f"'{self.name}' is open for reading only")
        view = memoryview(data).cast("B")
        length_bytes = max(0, min(len(view), self._device.size_bytes - self._position))
        if view and not length_bytes:
            raise OSError(errno.ENOSPC, f"'{self.name}' ends at byte {self._device.size_bytes}")
        if length_bytes:
            self._device.write(self._position, view[:length_bytes])
            self._position += length_bytes
        return length_bytes

    def seek(self, offset_bytes: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position; result: the new one, which may lie beyond the end."""
        self._check_open()
        if whence == os.SEEK_CUR:
            offset_bytes += self._position
        elif whence == os.SEEK_END:
            offset_bytes += self._device.size_bytes
        elif whence != os.SEEK_SET:
            raise ValueError(f"whence is {whence}; hint: 0, 1 or 2")
        if offset_bytes < 0:
            raise ValueError(f"position {offset_bytes} is negative")
        self._position = offset_bytes
        return offset_bytes

    def tell(self) -> int:
        """Give the position in bytes from the start."""
        self._check_open()
        return self._position

    def truncate(self, _size_bytes: int | None = None, /) -> int:
        """Refuse: the size of a volume is not that of a file."""
        raise io.UnsupportedOperation(f"the size of '{self.name}' cannot be changed through a file")

    def flush(self) -> None:
        """Make durable what was written through this file, and all that was written before."""
        if not self.closed and self._writable:
            self._device.flush()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"file over '{self.name}' is closed")


def open_file(device: Device, name: str, mode: str, buffering: int, *, read_only: bool) -> BinaryIO:
    """Make a file over `device` in the way of the builtin `open`: modes "rb" and "r+b".

    `buffering`: bytes; 0: not buffered; -1: `BUFFER_BYTES`. A buffered file writes what it holds at
    `flush` and makes it durable at `close`.
    Raises: InvalidError (codes mode_unknown, buffering_range); ReadOnlyError (code
    object_read_only).
    """
    if mode not in ("rb", "r+b", "rb+"):
        raise InvalidError("mode_unknown", f"mode '{mode}' is not known here; hint: 'rb' or 'r+b'")
    if buffering < -1 or buffering == 1:
        raise InvalidError(
            "buffering_range", f"buffering is {buffering}; hint: -1, 0, or bytes from 2 on"
        )
    writable = "+" in mode
    if writable and read_only:
        raise ReadOnlyError(
            "read_only",
            f"'{name}' cannot be written to; hint: open it with 'rb', or clone it",
        )
    raw = DeviceFile(device, name, writable=writable)
    if buffering == 0:
        return cast("BinaryIO", raw)
    size_bytes = BUFFER_BYTES if buffering == -1 else buffering
    return io.BufferedRandom(raw, size_bytes) if writable else io.BufferedReader(raw, size_bytes)
