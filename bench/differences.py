"""What it costs to bring what changed to another place: `ramet send | ramet receive` and peers.

A filled part of a volume of 1 TiB, of which single blocks of 4 KiB change, all over it; then the
same by a client of libnbd that reads the dirty bitmap of the snapshot, of a raw file with `rsync
--inplace`, of a file on btrfs with `btrfs send`, and of a qcow2 overlay that is copied and
committed. Seconds are those of both ends together, processor time is the sum of all processes at
both ends, start of each included. And 1,000 small volumes as one group.
"""

import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ramet
from command_line import program, service
from fleet import BLOCK_BYTES, MIB, Bench
from machine import processor_seconds

SHARES = {"1%": 0.01, "0.1%": 0.001, "0%": 0.0}
VOLUME = "1TiB"
RAMET, BITMAP, RSYNC, BTRFS, QCOW2 = "ramet", "bitmap", "rsync", "btrfs", "qcow2"
BOUND_BYTES = 1024  # On the wire, for each snapshot beside 1.05 of what changed.
GROUP_VOLUME_BYTES = 64 * MIB
GROUP_FILL_BYTES = 64 * 1024
PIECE_BYTES = 8 * MIB
PIPE_BYTES = 1 * MIB
SYSTEM_PYTHON = "/usr/bin/python3"  # The one that has libnbd.
TOTAL_SENT = re.compile(r"Total bytes sent: ([0-9,]+)")


@dataclass
class Cost:
    """What one transfer took."""

    seconds: float
    processor_seconds: float
    wire_bytes: int


def run(bench: Bench) -> None:
    """Measure, and add the figures."""
    costs: dict[str, dict[str, Cost]] = {}
    for name, measure in (
        (RAMET, _ramet),
        (BITMAP, _bitmap),
        (RSYNC, _rsync),
        (BTRFS, _btrfs),
        (QCOW2, _qcow2),
    ):
        directory = bench.directory / f"differences-{name}"
        directory.mkdir()
        try:
            bench.say(f"differences by {name}")
            costs[name] = measure(directory, bench.scale.sent_bytes)
        except (FileNotFoundError, PermissionError) as missing:
            bench.say(f"differences: {name} is left out: {missing}")
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    _add(bench, costs)
    _group(bench)


def _add(bench: Bench, costs: dict[str, dict[str, Cost]]) -> None:
    filled = bench.scale.sent_bytes // MIB
    for name, found in costs.items():
        for share, cost in found.items():
            key = f"differences.{share}.{name}"
            bench.add(f"{key}.seconds", "s", [cost.seconds], filled)
            bench.add(f"{key}.cpu", "s", [cost.processor_seconds], filled)
            bench.add(f"{key}.wire", "bytes", [cost.wire_bytes], filled)
            ours = costs[RAMET].get(share)
            if name != RAMET and ours is not None:
                ratio = ours.processor_seconds / max(cost.processor_seconds, 0.001)
                bench.add(f"{key}.cpu.ratio", "times", [ratio], filled)
                bench.add(f"{key}.seconds.ratio", "times", [ours.seconds / cost.seconds], filled)
    found = costs[RAMET]
    for share, part in SHARES.items():
        changed = int(bench.scale.sent_bytes * part)
        over = found[share].wire_bytes / (1.05 * changed + BOUND_BYTES)
        bench.add(f"differences.{share}.wire.of_bound", "times", [over], filled)
        # Of the work: without two commands that start, open a pool and end.
        idle = found["idle"].processor_seconds
        work, whole = (found[it].processor_seconds - idle for it in (share, "all"))
        bench.add(f"differences.{share}.cpu.of_all", "times", [work / max(whole, 0.001)], filled)


def _changes(filled_bytes: int) -> Iterator[tuple[str, list[int]]]:
    """By share: the offsets of blocks to be changed."""
    draw = random.Random(8)
    for share, part in SHARES.items():
        count = int(filled_bytes * part) // BLOCK_BYTES
        yield share, sorted(draw.sample(range(0, filled_bytes, BLOCK_BYTES), count))


def _pieces(filled_bytes: int) -> Iterator[tuple[int, bytes]]:
    draw = random.Random(9)
    for at in range(0, filled_bytes, PIECE_BYTES):
        yield at, draw.randbytes(min(PIECE_BYTES, filled_bytes - at))


def _pipe(sender: list[str], receiver: list[str]) -> Cost:
    """Run two commands, one into the other, and count what goes between."""
    before = os.times()
    with (
        subprocess.Popen(sender, stdout=subprocess.PIPE) as source,
        subprocess.Popen(receiver, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as target,
    ):
        assert source.stdout is not None
        assert target.stdin is not None
        wire_bytes = 0
        while piece := os.read(source.stdout.fileno(), PIPE_BYTES):
            wire_bytes += len(piece)
            target.stdin.write(piece)
        target.stdin.close()
    if source.returncode or target.returncode:
        raise RuntimeError(f"{sender[0]} ended with {source.returncode}, {target.returncode}")
    return _since(before, wire_bytes)


def _run(*words: object) -> tuple[Cost, str]:
    before = os.times()
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, check=True)
    return _since(before, 0), done.stdout.decode()


def _since(before: os.times_result, wire_bytes: int) -> Cost:
    """Only processes that were waited for count, and not this one."""
    now = os.times()
    used = now.children_user + now.children_system
    used -= before.children_user + before.children_system
    return Cost(now.elapsed - before.elapsed, used, wire_bytes)


def _together(costs: list[Cost], wire_bytes: int) -> Cost:
    return Cost(
        sum(it.seconds for it in costs), sum(it.processor_seconds for it in costs), wire_bytes
    )


def _send(here: Path, there: Path, names: list[str], bases: list[str]) -> Cost:
    sender = [*program(), "-p", str(here), "send", *names]
    return _pipe(
        sender + (["--from", *bases] if bases else []), [*program(), "-p", str(there), "receive"]
    )


def _ramet(directory: Path, filled_bytes: int) -> dict[str, Cost]:
    here, there = directory / "here", directory / "there"
    ramet.open(there, create=True).close()
    with ramet.open(here, create=True) as pool:
        volume = pool.create_volume("db", VOLUME)
        for at, piece in _pieces(filled_bytes):
            volume.write(at, piece)
        volume.snapshot("db@all")
    costs = {"all": _send(here, there, ["db@all"], [])}
    idle = [_run(*program(), "-p", path, "stats")[0] for path in (here, there)]
    costs["idle"] = _together(idle, 0)
    base = "db@all"
    for share, offsets in _changes(filled_bytes):
        with ramet.open(here) as pool:
            device = pool.open_device("db")
            for at in offsets:
                device.write(at, os.urandom(BLOCK_BYTES))
            pool.volume("db").snapshot(f"db@{share.rstrip('%')}")
        name = f"db@{share.rstrip('%')}"
        costs[share] = _send(here, there, [name], [base])
        base = name
    return costs


def _bitmap(directory: Path, filled_bytes: int) -> dict[str, Cost]:
    """The dirty bitmap over NBD, copied into a file by a client of libnbd."""
    script = Path(__file__).with_name("bitmap.py")
    if subprocess.run([SYSTEM_PYTHON, "-c", "import nbd"], check=False).returncode:
        raise FileNotFoundError("libnbd's binding for Python")
    here, there, socket = (directory / name for name in ("here", "there.raw", "nbd.sock"))
    with there.open("wb") as stream:
        stream.truncate(filled_bytes)
    with ramet.open(here, create=True) as pool:
        volume = pool.create_volume("db", filled_bytes)
        for at, piece in _pieces(filled_bytes):
            volume.write(at, piece)
        volume.snapshot("db@all")
    costs, base = {}, "db@all"
    for share, offsets in _changes(filled_bytes):
        name = f"db@{share.rstrip('%')}"
        with ramet.open(here) as pool:
            device = pool.open_device("db")
            for at in offsets:
                device.write(at, os.urandom(BLOCK_BYTES))
            pool.volume("db").snapshot(name)
        with service(here, socket) as served:
            used = processor_seconds(served.pid)
            cost, told = _run(SYSTEM_PYTHON, script, socket, name, base, there)
            cost.processor_seconds += processor_seconds(served.pid) - used
        costs[share] = _together([cost], int(told))
        base = name
    return costs


def _fill(path: Path, filled_bytes: int) -> None:
    with path.open("wb") as stream:
        for _, piece in _pieces(filled_bytes):
            stream.write(piece)
        os.fsync(stream.fileno())


def _overwrite(path: Path, offsets: list[int]) -> None:
    with path.open("r+b") as stream:
        for at in offsets:
            os.pwrite(stream.fileno(), os.urandom(BLOCK_BYTES), at)
        os.fsync(stream.fileno())


def _rsync(directory: Path, filled_bytes: int) -> dict[str, Cost]:
    here, there = directory / "here.raw", directory / "there.raw"
    _fill(here, filled_bytes)
    shutil.copyfile(here, there)
    costs = {}
    for share, offsets in _changes(filled_bytes):
        _overwrite(here, offsets)
        # It looks into a file whose time or size differs only.
        words = ("rsync", "--inplace", "--no-whole-file", "--ignore-times", "--fsync", "--stats")
        cost, told = _run(*words, here, there)
        sent = TOTAL_SENT.search(told)
        assert sent is not None, told
        costs[share] = _together([cost], int(sent[1].replace(",", "")))
    return costs


@contextmanager
def _btrfs_on(directory: Path, size: int) -> Iterator[Path]:
    image, place = directory / "btrfs.img", directory / "mounted"
    with image.open("wb") as stream:
        stream.truncate(size)
    place.mkdir()
    if os.geteuid() != 0:
        raise PermissionError("mounting a loop device needs root")
    _run("mkfs.btrfs", "-q", image)
    try:
        _run("mount", "-o", "loop", image, place)
    except subprocess.CalledProcessError as error:
        raise PermissionError("btrfs cannot be mounted here") from error
    try:
        yield place
    finally:
        _run("umount", place)


def _btrfs(directory: Path, filled_bytes: int) -> dict[str, Cost]:
    with _btrfs_on(directory, 3 * filled_bytes + 512 * MIB) as place:
        work, there = place / "work", place / "there"
        _run("btrfs", "subvolume", "create", work)
        there.mkdir()
        _fill(work / "db.raw", filled_bytes)
        base = place / "all"
        _run("btrfs", "subvolume", "snapshot", "-r", work, base)
        costs = {"all": _pipe(["btrfs", "send", "-q", str(base)], _into(there))}
        for share, offsets in _changes(filled_bytes):
            _overwrite(work / "db.raw", offsets)
            taken = place / share.rstrip("%")
            _run("btrfs", "subvolume", "snapshot", "-r", work, taken)
            sender = ["btrfs", "send", "-q", "-p", str(base), str(taken)]
            costs[share] = _pipe(sender, _into(there))
            base = taken
        return costs


def _into(place: Path) -> list[str]:
    return ["btrfs", "receive", "-q", str(place)]


def _qcow2(directory: Path, filled_bytes: int) -> dict[str, Cost]:
    """Changes are written to an overlay, which is copied to the other side and committed there."""
    here, there = directory / "here.raw", directory / "there.raw"
    overlay, copy = directory / "overlay.qcow2", directory / "copy.qcow2"
    _fill(here, filled_bytes)
    shutil.copyfile(here, there)
    costs = {}
    for share, offsets in _changes(filled_bytes):
        _run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", here, overlay)
        script = "".join(f"write -q -P {at % 251 + 1} {at} {BLOCK_BYTES}\n" for at in offsets)
        words = ["qemu-io", "-f", "qcow2", str(overlay)]
        subprocess.run(words, input=script.encode(), stdout=subprocess.DEVNULL, check=True)
        wire_bytes = overlay.stat().st_size
        steps: list[Callable[[], tuple[Cost, str]]] = [
            lambda: _run("cp", overlay, copy),
            lambda: _run("qemu-img", "rebase", "-u", "-F", "raw", "-b", there, copy),
            lambda: _run("qemu-img", "commit", "-q", copy),
        ]
        costs[share] = _together([step()[0] for step in steps], wire_bytes)
        _run("qemu-img", "commit", "-q", overlay)
    return costs


def _group(bench: Bench) -> None:
    """Small volumes, each with one block changed, as one group."""
    count = bench.scale.counts[1]
    bench.say(f"a group of {count:,} volumes")
    with bench.pool("group-here") as here, bench.pool("group-there") as there:
        ramet.open(there, create=True).close()
        bases: list[str] = []
        with ramet.open(here, create=True) as pool:
            pool.create_volumes("vm-{n}", GROUP_VOLUME_BYTES, count=count)
            names = [f"vm-{number}" for number in range(1, count + 1)]
            devices = [pool.open_device(name) for name in names]
            for number, device in enumerate(devices):
                device.write(0, random.Random(number).randbytes(GROUP_FILL_BYTES))
        for step in range(3):
            with ramet.open(here) as pool:
                for number, name in enumerate(names if step else []):
                    at = BLOCK_BYTES * (number % (GROUP_FILL_BYTES // BLOCK_BYTES))
                    pool.open_device(name).write(at, os.urandom(BLOCK_BYTES))
                taken = [it.name for it in pool.snapshot(names, name=f"{{volume}}@{step}")]
            cost = _send(here, there, taken, bases)
            bases = taken
        changed_bytes = BLOCK_BYTES * count
        over = cost.wire_bytes / (1.05 * changed_bytes + BOUND_BYTES * count)
        bench.add("differences.group.wire.of_bound", "times", [over], count)
        bench.add("differences.group.wire", "bytes/snapshot", [cost.wire_bytes / count], count)
        bench.add("differences.group.seconds", "s", [cost.seconds], count)
        bench.add("differences.group.cpu", "s", [cost.processor_seconds], count)
