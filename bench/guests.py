"""Disk images as their users see them: as a file over NBD, a loop device, a mounted file system.

Needs root. Invariant: what was started, attached or mounted is gone when its block is left.
"""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEVICES = Path("/dev/fuse")
READY_SECONDS_MAX = 20.0


def run_program(*words: object) -> str:
    """Run one of the system's programs. Result: what it printed."""
    told = [str(word) for word in words]
    done = subprocess.run(told, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{told} ended with {done.returncode}: {done.stderr}")
    return done.stdout


@contextmanager
def fuse_file(uri: str, directory: Path) -> Iterator[Path]:
    """Be a file over NBD."""
    place = Path(tempfile.mkdtemp(dir=directory))
    file = place / "disk"
    fuse = subprocess.Popen(["nbdfuse", str(file), uri], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + READY_SECONDS_MAX
        while not place.is_mount():
            if fuse.poll() is not None or time.monotonic() > until:
                raise RuntimeError("nbdfuse does not mount; what it printed is above")
            time.sleep(0.01)
        yield file
    finally:
        subprocess.run(["fusermount3", "-u", str(place)], check=False)
        fuse.wait()
        place.rmdir()


@contextmanager
def device(image: Path) -> Iterator[Path]:
    """Be a loop device over a file."""
    loop = run_program("losetup", "--find", "--show", image).strip()
    try:
        yield Path(loop)
    finally:
        run_program("losetup", "-d", loop)


@contextmanager
def mounted(disk: Path, point: Path) -> Iterator[Path]:
    """Mount a device."""
    point.mkdir(exist_ok=True)
    run_program("mount", disk, point)
    try:
        yield point
    finally:
        run_program("umount", point)


def taken_bytes(path: Path) -> int:
    """Count what a file, or the files of a directory, take of the file system."""
    files = [path] if path.is_file() else [it for it in path.rglob("*") if it.is_file()]
    return sum(it.stat().st_blocks * 512 for it in files)
