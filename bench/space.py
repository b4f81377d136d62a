"""Space that clones of a disk image take, at the start and after real use, beside others.

A golden image with a file system and files of this machine, some of them deleted again; clones of
it as copies, as reflinks on XFS and btrfs, as qcow2 overlays and in a pool. Each clone is then
mounted as a client would, a package is installed in it by dpkg, and a repository is cloned and
checked out twice. What was written into a clone is counted at the end: its blocks of 4 KiB that
differ from the golden image's and are not zeros. Needs root for the mounts; what is not installed
is left out.
"""

import os
import random
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import ramet
from command_line import command, service
from fleet import BLOCK_BYTES, MIB, Bench
from guests import DEVICES, device, fuse_file, mounted, run_program, taken_bytes
from peers import qemu_nbd

STARTS = 1000
GOLDEN = "golden@base"
FILES = Path("/usr")
"""Where the golden image's files are from."""
SIZES_TIMES = 2
"""The image's size through the bytes of its files, when it was fullest."""
GONE_SHARE = 0.3
"""Of these files so many are deleted again, so that free space is in pieces, as in use."""
COPIES = 2
"""Copies that are used: one is like the other."""
PEER_SIZE = 48 * 1024 * MIB


class System(Protocol):
    """Something that has clones of an image."""

    def __init__(self, directory: Path, golden: Path) -> None: ...

    def clone(self, names: list[str]) -> None:
        """Make clones."""

    def delete(self, names: list[str]) -> None:
        """Delete them."""

    def image(self, name: str) -> AbstractContextManager[Path]:
        """Show one as a file that can be read and written."""

    def beyond_golden_bytes(self) -> int:
        """What all clones together take, as far as it comes back by itself or when asked."""

    def close(self) -> None:
        """End what runs."""


class Pool:
    """Clones in a pool that a service holds."""

    def __init__(self, directory: Path, golden: Path) -> None:
        self._path, self._socket = directory / "pool", directory / "nbd.sock"
        ramet.create(self._path)
        command(self._path, "volume", "import", str(golden), "golden")
        command(self._path, "snapshot", "create", "golden", "--name", GOLDEN)
        self._stack = ExitStack()
        self._stack.enter_context(service(self._path, self._socket))
        self._golden_bytes = 0
        self._golden_bytes = self.beyond_golden_bytes()

    def clone(self, names: list[str]) -> None:
        command(self._path, "clone", GOLDEN, *names)

    def delete(self, names: list[str]) -> None:
        command(self._path, "delete", *names)

    @contextmanager
    def image(self, name: str) -> Iterator[Path]:
        with fuse_file(f"nbd+unix:///{name}?socket={self._socket}", self._path.parent) as path:
            yield path

    def beyond_golden_bytes(self) -> int:
        command(self._path, "reclaim", "--all")
        return taken_bytes(self._path) - self._golden_bytes

    def close(self) -> None:
        self._stack.close()


class Overlays:
    """qcow2 images over the golden one."""

    cluster = "64k"

    def __init__(self, directory: Path, golden: Path) -> None:
        self._directory, self._golden = directory, golden

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.qcow2"

    def clone(self, names: list[str]) -> None:
        words = ["create", "-q", "-f", "qcow2", "-o", f"cluster_size={self.cluster}"]
        for name in names:
            over = ["-F", "raw", "-b", self._golden, self._path(name)]
            run_program("qemu-img", *words, *over)

    def delete(self, names: list[str]) -> None:
        for name in names:
            self._path(name).unlink()

    @contextmanager
    def image(self, name: str) -> Iterator[Path]:
        socket = self._directory / f"{name}.sock"
        with (
            qemu_nbd(self._path(name), "qcow2", socket),
            fuse_file(f"nbd+unix:///?socket={socket}", self._directory) as path,
        ):
            yield path

    def beyond_golden_bytes(self) -> int:
        os.sync()
        return taken_bytes(self._directory)

    def close(self) -> None:
        pass


class SmallOverlays(Overlays):
    """The same with the smallest clusters but those of 512 bytes to 2 KiB."""

    cluster = "4k"


class Reflinks:
    """Files that share what the file system that they are on lets them share."""

    make: tuple[str, ...] = ("mkfs.xfs", "-q", "-m", "reflink=1")

    def __init__(self, directory: Path, golden: Path) -> None:
        disk, self._mount = directory / "disk", directory / "mnt"
        with disk.open("wb") as stream:
            stream.truncate(PEER_SIZE)
        run_program(*self.make, disk)
        self._stack = ExitStack()
        self._device = self._stack.enter_context(device(disk))
        self._stack.enter_context(mounted(self._device, self._mount))
        run_program("cp", "--sparse=always", golden, self._mount / "golden")
        self._golden_bytes = 0
        self._golden_bytes = self.beyond_golden_bytes()

    def clone(self, names: list[str]) -> None:
        for name in names:
            run_program("cp", "--reflink=always", self._mount / "golden", self._mount / name)

    def delete(self, names: list[str]) -> None:
        for name in names:
            (self._mount / name).unlink()

    @contextmanager
    def image(self, name: str) -> Iterator[Path]:
        yield self._mount / name

    def beyond_golden_bytes(self) -> int:
        # Mounted anew, it has nothing set aside for files that may grow.
        run_program("umount", self._mount)
        run_program("mount", self._device, self._mount)
        found = os.statvfs(self._mount)
        return (found.f_blocks - found.f_bfree) * found.f_frsize - self._golden_bytes

    def close(self) -> None:
        self._stack.close()


class BtrfsReflinks(Reflinks):
    """The same on btrfs, with one copy of its metadata."""

    make = ("mkfs.btrfs", "-q", "-m", "single")


class Copies:
    """Files that share nothing."""

    def __init__(self, directory: Path, golden: Path) -> None:
        self._directory, self._golden = directory, golden

    def clone(self, names: list[str]) -> None:
        for name in names:
            run_program("cp", "--sparse=always", self._golden, self._directory / name)

    def delete(self, names: list[str]) -> None:
        for name in names:
            (self._directory / name).unlink()

    @contextmanager
    def image(self, name: str) -> Iterator[Path]:
        yield self._directory / name

    def beyond_golden_bytes(self) -> int:
        os.sync()
        return taken_bytes(self._directory)

    def close(self) -> None:
        pass


RAMET = "ramet"
SYSTEMS: dict[str, Callable[[Path, Path], System]] = {
    RAMET: Pool,
    "xfs-reflink": Reflinks,
    "btrfs-reflink": BtrfsReflinks,
    "qcow2-64k": Overlays,
    "qcow2-4k": SmallOverlays,
    "copies": Copies,
}


def run(bench: Bench) -> None:
    """Measure all, and add the figures."""
    if os.geteuid() != 0 or not DEVICES.exists():
        bench.say("space is left out: it mounts file systems, which needs root and /dev/fuse")
        return
    directory = bench.directory / "space"
    directory.mkdir()
    bench.say("space: a golden image, a package and a repository")
    used_bytes = bench.scale.space_bytes
    image_bytes = SIZES_TIMES * used_bytes
    golden = _golden_image(directory, used_bytes, image_bytes)
    use = Use(directory, used_bytes // 40)
    for name, system in SYSTEMS.items():
        own = directory / name
        own.mkdir()
        try:
            _measure(bench, name, system(own, golden), golden, use)
        except FileNotFoundError as missing:
            bench.say(f"space: {name} is left out: {missing.filename} is not installed")
        shutil.rmtree(own)
    _against_copies(bench, taken_bytes(golden))


def _measure(bench: Bench, name: str, system: System, golden: Path, use: "Use") -> None:
    bench.say(f"space of clones: {name}")
    try:
        starts = min(STARTS, bench.scale.fleet_count) if name != "copies" else 1
        names = [f"start-{number}" for number in range(starts)]
        system.clone(names)
        # A thousand of them, so that what all share does not count.
        each = system.beyond_golden_bytes() / starts
        count = starts if name != "copies" else min(STARTS, bench.scale.fleet_count)
        bench.add(f"space.start.{name}", "bytes", [each], count, note="each")
        system.delete(names)
        before = system.beyond_golden_bytes()
        count = bench.scale.space_clones if name != "copies" else COPIES
        written_bytes = 0
        for number in range(count):
            system.clone([f"used-{number}"])
            with system.image(f"used-{number}") as image:
                with device(image) as disk, mounted(disk, use.mount_point) as root:
                    use.install_and_check_out(root)
                written_bytes += differing_bytes(golden, image)
        taken = system.beyond_golden_bytes() - before
    finally:
        system.close()
    if name == "copies":
        taken, written_bytes = taken / COPIES, written_bytes / COPIES
        taken, written_bytes = (it * bench.scale.space_clones for it in (taken, written_bytes))
    key, count = f"space.used.{name}", bench.scale.space_clones
    details = {"taken_bytes": taken, "written_bytes": written_bytes}
    bench.add(f"{key}.taken", "MiB", [taken / count / MIB], count, note="each", details=details)
    bench.add(f"{key}.ratio", "times", [taken / written_bytes], count)


def _against_copies(bench: Bench, golden_bytes: int) -> None:
    found = {it.key: it for it in bench.figures}
    kinds = (("start", "space.start", 1), ("used", "space.used", MIB))
    for kind, key, unit in kinds:
        suffix = "" if kind == "start" else ".taken"
        ours, copies = found[f"{key}.{RAMET}{suffix}"], found[f"{key}.copies{suffix}"]
        with_golden = golden_bytes + ours.median * unit * ours.count
        ratio = copies.median * unit * copies.count / with_golden
        bench.add(f"{key}.less_than_copies", "times", [ratio], copies.count)


def differing_bytes(golden: Path, image: Path) -> int:
    """Count the blocks of an image that differ from the golden one's and are not zeros."""
    found, zeros = 0, bytes(BLOCK_BYTES)
    with golden.open("rb") as before, image.open("rb") as after:
        while chunk := after.read(MIB):
            same = before.read(MIB)
            if chunk == same:
                continue
            for at in range(0, len(chunk), BLOCK_BYTES):
                block = chunk[at : at + BLOCK_BYTES]
                found += block != same[at : at + BLOCK_BYTES] and block != zeros
    return found * BLOCK_BYTES


def _copy_files(source: Path, target: Path, most_bytes: int, skip: int = 0) -> None:
    """Copy files as they are, in order of their names, until so many bytes are copied."""
    copied = 0
    for directory, folders, files in os.walk(source):
        folders.sort()
        for name in sorted(files):
            path = Path(directory, name)
            if path.is_symlink() or not path.is_file() or path.stat().st_size > most_bytes // 4:
                continue
            copied += path.stat().st_size
            if copied <= skip:
                continue
            if copied > skip + most_bytes:
                return
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)


def _golden_image(directory: Path, used_bytes: int, image_bytes: int) -> Path:
    golden, point = directory / "golden.raw", directory / "golden.mnt"
    with golden.open("wb") as stream:
        stream.truncate(image_bytes)
    # Nothing is left to be written when it is first mounted.
    done = "lazy_itable_init=0,lazy_journal_init=0"
    run_program("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", done, golden)
    with device(golden) as disk, mounted(disk, point) as root:
        _copy_files(FILES, root / "usr", used_bytes)
        draw = random.Random(17)
        for path in sorted(root.rglob("usr/**/*")):
            if path.is_file() and draw.random() < GONE_SHARE:
                path.unlink()
        package_state = root / "var/lib/dpkg"
        for name in ("info", "updates", "triggers"):
            (package_state / name).mkdir(parents=True)
        (root / "var/log").mkdir()
        status = Path("/var/lib/dpkg/status")
        (package_state / "status").write_bytes(status.read_bytes() if status.exists() else b"")
    return golden


class Use:
    """What is done in a clone."""

    def __init__(self, directory: Path, each_bytes: int) -> None:
        self.mount_point = directory / "guest"
        library = Path(sysconfig.get_paths()["stdlib"])
        self._package = directory / "bench.deb"
        tree = directory / "package"
        _copy_files(library, tree / "opt/library", each_bytes)
        (tree / "DEBIAN").mkdir(parents=True)
        fields = ["Package: bench-library", "Version: 1", "Architecture: all"]
        fields += ["Maintainer: nobody <nobody@localhost>", "Description: files", ""]
        (tree / "DEBIAN/control").write_text("\n".join(fields))
        run_program("dpkg-deb", "--build", "-Znone", tree, self._package)
        self._repository = directory / "repository"
        _copy_files(library, self._repository, each_bytes, skip=each_bytes)
        self._git(self._repository, "init", "-q")
        self._commit("v1")
        draw = random.Random(16)
        files = [it for it in sorted(self._repository.rglob("*")) if it.is_file()]
        for path in (it for it in files if ".git" not in it.parts and draw.random() < 0.2):
            path.write_bytes(path.read_bytes() + b"\n# changed\n")
        self._commit("v2")
        self._git(self._repository, "repack", "-adq")

    def _git(self, place: Path, *words: object) -> None:
        identity = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
        run_program("git", "-C", place, *identity, *words)

    def _commit(self, tag: str) -> None:
        self._git(self._repository, "add", "-A")
        self._git(self._repository, "commit", "-q", "-m", tag)
        self._git(self._repository, "tag", tag)

    def install_and_check_out(self, root: Path) -> None:
        """Install the package into the file system at `root`; clone, and check out two versions."""
        run_program("dpkg", f"--root={root}", "--force-all", "-i", self._package)
        work = root / "home/work"
        work.mkdir(parents=True)
        run_program("git", "clone", "-q", "--no-local", self._repository, work / "tree")
        for tag in ("v1", "v2"):
            self._git(work / "tree", "checkout", "-q", tag)
