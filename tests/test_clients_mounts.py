"""Real file systems on volumes, mounted through nbdfuse and a loop device; needs root.

Invariant: mounts, loop devices and nbdfuse are gone when a test ends, however it ends.
"""

import hashlib
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import programs
from serving import Serving, make_pool, serving

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="no /dev/fuse"),
]

ROOT = Path(__file__).parent.parent
READY_SECONDS_MAX = 20
MAKE = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f")}
CHECK = {"ext4": ("e2fsck", "-f", "-n"), "xfs": ("xfs_repair", "-n")}
SIZE = {"ext4": "256MiB", "xfs": "320MiB"}
MOUNT_OPTIONS = {"ext4": "noatime", "xfs": "noatime,nouuid"}
"""A clone has the UUID of its origin, which XFS wants to be told."""


@pytest.fixture
def served(pool_path: Path) -> Iterator[Serving]:
    with serving(make_pool(pool_path)) as it:
        yield it


def command(*arguments: object) -> None:
    """Run one of the system's own programs, for cleaning up: whether it succeeds is no matter."""
    subprocess.run([*map(str, arguments)], capture_output=True, timeout=30, check=False)


@contextmanager
def block_device(served: Serving, export: str, directory: Path) -> Iterator[Path]:
    """Be a loop device over a file over NBD."""
    directory.mkdir()
    file = directory / "disk"
    with ExitStack() as stack:
        fuse = subprocess.Popen(
            [programs.find("nbdfuse"), str(file), served.uri(export)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

        def end_fuse() -> None:
            command(programs.find("fusermount3"), "-u", directory)
            try:
                fuse.wait(READY_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                fuse.kill()
                command("umount", "-l", directory)
                fuse.wait(READY_SECONDS_MAX)
            assert fuse.stdout is not None
            fuse.stdout.close()

        stack.callback(end_fuse)
        wait_for_mount(directory, fuse)
        read_only = ["-r"] if export_is_snapshot(served, export) else []
        loop = programs.run("losetup", "--find", "--show", *read_only, file).strip()
        stack.callback(command, programs.find("losetup"), "-d", loop)
        yield Path(loop)


def export_is_snapshot(served: Serving, export: str) -> bool:
    with served.verbs() as verbs:
        return verbs.find_object(export).kind == "snapshot"


def wait_for_mount(directory: Path, fuse: subprocess.Popen[bytes]) -> None:
    """Wait until nbdfuse is there; the kernel wakes us when the list of mounts changes."""
    with Path("/proc/self/mounts").open() as mounts:
        watch = select.poll()
        watch.register(mounts, select.POLLPRI | select.POLLERR)
        while not directory.is_mount():
            assert fuse.poll() is None, "nbdfuse ended"
            assert watch.poll(READY_SECONDS_MAX * 1000), "nbdfuse does not mount"


@contextmanager
def mounted(device: Path, kind: str, directory: Path, *options: str) -> Iterator[Path]:
    directory.mkdir(exist_ok=True)
    choices = ",".join([MOUNT_OPTIONS[kind], *options])
    programs.run("mount", "-t", kind, "-o", choices, device, directory)
    try:
        yield directory
        programs.run("umount", directory)
    finally:
        if directory.is_mount():
            command("umount", "-l", directory)


def tree_of(directory: Path) -> dict[str, tuple[int, str]]:
    """Give all that is in a directory: path -> (mode, digest or target)."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            said = str(path.readlink())
        elif path.is_file():
            said = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            said = ""
        found[str(path.relative_to(directory))] = (path.lstat().st_mode, said)
    found.pop("lost+found", None)
    return found


def copy_project(target: Path) -> None:
    """Copy real files: those of this project that git knows, with a link and odd names."""
    ignored = shutil.ignore_patterns("target", ".venv", ".git", "__pycache__", "*.so", ".*_cache")
    shutil.copytree(ROOT, target, ignore=ignored, symlinks=True)
    (target / "link").symlink_to("README.md")
    (target / "name with spaces and ü").write_text("odd")
    (target / "empty").mkdir(mode=0o750)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_clone_of_a_mounted_file_system_holds_the_same_files(
    served: Serving, tmp_path: Path, kind: str
) -> None:
    with served.verbs() as verbs, ExitStack() as stack:
        verbs.create_volumes(["disk"], SIZE[kind], None)
        device = stack.enter_context(block_device(served, "disk", tmp_path / "fuse"))
        programs.run(*MAKE[kind], device)
        with mounted(device, kind, tmp_path / "mnt") as root:
            copy_project(root / "project")
            programs.run("sync", "-f", root)
            expected = tree_of(root)
            assert len(expected) > 100
            verbs.snapshot(["disk"], False, "disk@1")
            shutil.rmtree(root / "project" / "tests")
            (root / "project" / "README.md").write_text("changed")
            verbs.clone("disk@1", ["clone"], None, None)
            clone = stack.enter_context(block_device(served, "clone", tmp_path / "fuse2"))
            with mounted(clone, kind, tmp_path / "mnt2") as other:
                assert tree_of(other) == expected
                shutil.rmtree(other / "project" / "python")
            changed = tree_of(root)
            assert "project/python/ramet/errors.py" in changed
            assert "project/tests" not in changed
        programs.run(*CHECK[kind], device)
        programs.run(*CHECK[kind], clone)


def test_a_file_system_survives_a_restart_and_gives_space_back(
    served: Serving, tmp_path: Path
) -> None:
    with served.verbs() as verbs, ExitStack() as stack:
        verbs.create_volumes(["disk"], SIZE["ext4"], None)
        device = stack.enter_context(block_device(served, "disk", tmp_path / "fuse"))
        programs.run(*MAKE["ext4"], device)
        with mounted(device, "ext4", tmp_path / "mnt") as root:
            (root / "large").write_bytes(b"\x5a" * (32 << 20))
            programs.run("sync", "-f", root)
            full_bytes = verbs.find_object("disk").mapped_bytes
            (root / "large").unlink()
            copy_project(root / "project")
            programs.run("sync", "-f", root)
            programs.run("fstrim", root)
            expected = tree_of(root)
        assert verbs.find_object("disk").mapped_bytes < full_bytes - (16 << 20)
    served.stop()
    with serving(served.pool_path) as again, ExitStack() as stack:
        device = stack.enter_context(block_device(again, "disk", tmp_path / "fuse3"))
        programs.run(*CHECK["ext4"], device)
        with mounted(device, "ext4", tmp_path / "mnt", "ro") as root:
            assert tree_of(root) == expected


def test_a_snapshot_is_mounted_for_reading(served: Serving, tmp_path: Path) -> None:
    with served.verbs() as verbs, ExitStack() as stack:
        verbs.create_volumes(["disk"], "64MiB", None)
        device = stack.enter_context(block_device(served, "disk", tmp_path / "fuse"))
        programs.run(*MAKE["ext4"], device)
        with mounted(device, "ext4", tmp_path / "mnt") as root:
            (root / "file").write_text("as it was")
        verbs.snapshot(["disk"], False, "disk@1")
        with mounted(device, "ext4", tmp_path / "mnt") as root:
            (root / "file").write_text("later")
        snapshot = stack.enter_context(block_device(served, "disk@1", tmp_path / "fuse2"))
        with mounted(snapshot, "ext4", tmp_path / "mnt2", "ro") as root:
            assert (root / "file").read_text() == "as it was"
            with pytest.raises(OSError, match="Read-only"):
                (root / "new").write_text("x")


def test_a_file_system_that_a_kill_cut_off_is_whole_again_after_its_journal(
    served: Serving, tmp_path: Path
) -> None:
    """P1 through a file system: what `sync` promised is there, and fsck has nothing to say."""
    with ExitStack() as stack:
        with served.verbs() as verbs:
            verbs.create_volumes(["disk"], SIZE["ext4"], None)
        device = stack.enter_context(block_device(served, "disk", tmp_path / "fuse"))
        programs.run(*MAKE["ext4"], device)
        root = stack.enter_context(mounted_until_lost(device, tmp_path / "mnt"))
        copy_project(root / "project")
        programs.run("sync", "-f", root)
        expected = tree_of(root)
        served.kill()
    with serving(served.pool_path) as again, ExitStack() as stack:
        device = stack.enter_context(block_device(again, "disk", tmp_path / "fuse2"))
        with mounted(device, "ext4", tmp_path / "mnt2") as root:
            assert tree_of(root) == expected
        programs.run(*CHECK["ext4"], device)


@contextmanager
def mounted_until_lost(device: Path, directory: Path) -> Iterator[Path]:
    """Mount what will lose its device; the end is never a clean one."""
    directory.mkdir()
    programs.run("mount", "-t", "ext4", "-o", "errors=continue", device, directory)
    try:
        yield directory
    finally:
        command("umount", directory)
        if directory.is_mount():
            command("umount", "-l", directory)
