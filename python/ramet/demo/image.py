"""A real disk image to demonstrate with: an ext4 file system made from a tree of real files.

Calls mke2fs. Invariant: it holds the files of this Python's own library, and needs no download.
"""

import shutil
import subprocess
import sysconfig
from pathlib import Path

from ramet.errors import UnavailableError

LEFT_OUT = shutil.ignore_patterns(
    "site-packages", "test", "tests", "__pycache__", "config-*", "lib-dynload", "idlelib", "*.a"
)
SPARE = 2.0  # The file system is this many times what its files take.
SIZE_BYTES_MIN = 64 << 20


def build_image(directory: Path) -> Path:
    """Make `directory`/golden.img, an ext4 file system with a tree of files in it.

    Raises: UnavailableError (code mke2fs_missing, mke2fs_failed).
    Example: build_image(Path("/tmp"))
    """
    program = shutil.which("mke2fs") or shutil.which("mke2fs", path="/usr/sbin:/sbin")
    if program is None:
        raise UnavailableError("mke2fs_missing", "no mke2fs; hint: apt-get install e2fsprogs")
    tree, image = directory / "tree", directory / "golden.img"
    shutil.copytree(sysconfig.get_path("stdlib"), tree, ignore=LEFT_OUT, symlinks=True)
    used_bytes = sum(path.lstat().st_size for path in tree.rglob("*"))
    size_bytes = max(SIZE_BYTES_MIN, int(used_bytes * SPARE) >> 20 << 20)
    command = [program, "-q", "-t", "ext4", "-d", str(tree), str(image), f"{size_bytes >> 10}k"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UnavailableError("mke2fs_failed", f"{done.stderr.strip()}; hint: see the message")
    shutil.rmtree(tree)
    return image
