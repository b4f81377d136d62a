"""A disk behind a volatile cache, as a file system: what was not synced goes with its power.

Run as a program: `python volatile_disk.py MOUNT [cached]`; removing the directory `POWER_SWITCH` in
it is the power loss, and it is there again. While there is a directory `BROKEN`, every read fails.
With `cached` the system keeps pages of files, which can then be mapped. Invariants: content
survives by a sync of its file, a name by a sync of its directory, and nothing survives without.
Directories at the top are there at once: nobody could sync them.
"""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mfusepy
import pytest

POWER_SWITCH = "power-loss"
BROKEN = "broken"
CACHED = "cached"
READY_SECONDS_MAX = 20
FILE_MODE = stat.S_IFREG | 0o600
DIRECTORY_MODE = stat.S_IFDIR | 0o700
needs_fuse = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="mounting needs root and /dev/fuse"
)


@dataclass(eq=False)
class File:
    """Bytes as they are seen, and as the medium has them."""

    content: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    mode: int = FILE_MODE


@dataclass(eq=False)
class Directory:
    """Names as they are seen, and as the medium has them."""

    names: "dict[str, File | Directory]" = field(default_factory=dict)
    synced: "dict[str, File | Directory]" = field(default_factory=dict)

    def lose_power(self) -> None:
        """Keep what was synced."""
        self.names = dict(self.synced)
        for it in self.names.values():
            if isinstance(it, Directory):
                it.lose_power()
            else:
                it.content = bytearray(it.synced)


class VolatileDisk(mfusepy.Operations):  # type: ignore[misc]
    """The file system. Paths are absolute."""

    use_ns = True

    def __init__(self) -> None:
        self.root = Directory()
        self.mkdir(f"/{POWER_SWITCH}", 0)
        self.open_files: dict[int, File] = {}
        self.last_handle = 0

    def find(self, path: str) -> File | Directory:
        """Give what has this path."""
        at: File | Directory = self.root
        for name in filter(None, path.split("/")):
            if not isinstance(at, Directory) or name not in at.names:
                raise mfusepy.FuseOSError(errno.ENOENT)
            at = at.names[name]
        return at

    def place(self, path: str) -> tuple[Directory, str]:
        """Give the directory of a path, and the name in it."""
        parent, _, name = path.rpartition("/")
        found = self.find(parent)
        if not isinstance(found, Directory):
            raise mfusepy.FuseOSError(errno.ENOTDIR)
        return found, name

    def file(self, path: str, handle: int | None) -> File:
        """Give an open file, or the one with this path."""
        found = self.open_files.get(handle or 0) or self.find(path)
        if not isinstance(found, File):
            raise mfusepy.FuseOSError(errno.EISDIR)
        return found

    def hand_out(self, file: File) -> int:
        """Give a handle."""
        self.last_handle += 1
        self.open_files[self.last_handle] = file
        return self.last_handle

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = self.open_files.get(fh or 0) or self.find(path)
        if isinstance(found, Directory):
            return {"st_mode": DIRECTORY_MODE, "st_nlink": 2}
        size = len(found.content)
        return {"st_mode": found.mode, "st_nlink": 1, "st_size": size, "st_blocks": -(-size // 512)}

    def readdir(self, path: str, fh: int) -> list[str]:
        found = self.find(path)
        assert isinstance(found, Directory)
        return [".", "..", *found.names]

    def mkdir(self, path: str, mode: int) -> int:
        directory, name = self.place(path)
        directory.names[name] = Directory()
        if directory is self.root:
            directory.synced[name] = directory.names[name]
        return 0

    def rmdir(self, path: str) -> int:
        directory, name = self.place(path)
        if directory is self.root and name == POWER_SWITCH:
            self.root.lose_power()
        else:
            del directory.names[name]
        return 0

    def create(self, path: str, mode: int, fi: object = None) -> int:
        directory, name = self.place(path)
        made = directory.names[name] = File()
        return self.hand_out(made)

    def mknod(self, path: str, mode: int, dev: int) -> int:
        directory, name = self.place(path)
        directory.names[name] = File(mode=mode)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        return 0

    def open(self, path: str, flags: int) -> int:
        return self.hand_out(self.file(path, None))

    def release(self, path: str, fh: int) -> int:
        del self.open_files[fh]
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        if BROKEN in self.root.names:
            raise mfusepy.FuseOSError(errno.EIO)
        return bytes(self.file(path, fh).content[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        content = self.file(path, fh).content
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        content[offset : offset + len(data)] = data
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        content = self.file(path, fh).content
        content.extend(bytes(max(0, length - len(content))))
        del content[length:]
        return 0

    def rename(self, old: str, new: str) -> int:
        (from_directory, from_name), (to_directory, to_name) = self.place(old), self.place(new)
        to_directory.names[to_name] = from_directory.names.pop(from_name)
        return 0

    def unlink(self, path: str) -> int:
        directory, name = self.place(path)
        del directory.names[name]
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        file = self.file(path, fh)
        file.synced = bytes(file.content)
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        found = self.find(path)
        assert isinstance(found, Directory)
        found.synced = dict(found.names)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 2**20, "f_bavail": 2**20}

    def utimens(self, path: str, times: object = None) -> int:
        return 0


@contextmanager
def volatile_disk(mount: Path, *, cached: bool = False) -> Iterator[Path]:
    """Mount one at a new directory. The mount is gone at the end, however it ends."""
    mount.mkdir()
    command = [sys.executable, __file__, str(mount), *([CACHED] if cached else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n", "the disk cannot be mounted"
        yield mount
    finally:
        unmount = ["fusermount3", "-u", "-z", str(mount)]
        subprocess.run(unmount, capture_output=True, timeout=READY_SECONDS_MAX, check=False)
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def lose_power(mount: Path) -> None:
    """Keep only what was synced; nobody may have a file open."""
    (mount / POWER_SWITCH).rmdir()


@contextmanager
def broken(mount: Path) -> Iterator[None]:
    """Have every read of the medium fail. Of files that are opened again nothing is cached."""
    (mount / BROKEN).mkdir()
    try:
        yield
    finally:
        (mount / BROKEN).rmdir()


class _Ready(VolatileDisk):
    def init(self, path: str) -> None:
        os.write(1, b"ready\n")


if __name__ == "__main__":
    mfusepy.FUSE(
        _Ready(),
        sys.argv[1],
        foreground=True,
        nothreads=True,
        direct_io=CACHED not in sys.argv[2:],
        hard_remove=True,
        attr_timeout=0,
        entry_timeout=0,
        negative_timeout=0,
    )
