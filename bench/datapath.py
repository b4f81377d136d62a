"""The data path side by side: Ramet, nbdkit (memory, file) and qemu-nbd (raw), by one client.

Every server gets the same volume, written through once, and the same requests from the same client
(crates/ramet-nbd/examples/load_client.rs, built here), one server after the other, in rounds that
begin with another server each. Processor time is the server process's own; ratios are of one round.
A peer that is not installed is named and left out. Nothing is read from a device: all of it fits
in the page cache.
"""

import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import ramet
from command_line import service
from fleet import MIB, Bench
from machine import file_system, processor_seconds, sync_files

ROOT = Path(__file__).parent.parent
MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of our own is made in it
START_SECONDS_MAX = 20.0
FILL_BYTES = 128 * 1024
RAMET, MEMORY_PEER, FILE_PEER, QEMU_PEER = "ramet", "nbdkit-memory", "nbdkit-file", "qemu-nbd-raw"
BEST = "the fastest peer"
UNITS = {"iops": "IO/s", "cpu_us": "us/IO", "p50_us": "us", "p99_us": "us"}


@dataclass(frozen=True)
class Workload:
    """`arguments`: the client's kind, depth and bytes. `ratios`: which statistic, and to whom."""

    name: str
    arguments: tuple[str, int, int]
    ratios: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Server:
    """A server that runs; `export` is what the client asks it for."""

    socket: Path
    process_id: int
    export: str = ""


Running = AbstractContextManager[Server]
_DEEP = (("cpu_us", MEMORY_PEER), ("iops", MEMORY_PEER))
_ALONE = (("p50_us", MEMORY_PEER), ("cpu_us", MEMORY_PEER))
FRESH = Workload("sequential.read", ("read-through", 8, FILL_BYTES), (("iops", FILE_PEER),))
AGED = Workload("sequential.read.aged", ("read-through", 8, FILL_BYTES))
WORKLOADS = {
    # The first reads what was written in order; the last what the writes between have scattered.
    "memory": (
        FRESH,
        Workload("read.d32", ("read", 32, 4096), _DEEP),
        Workload("read.d1", ("read", 1, 4096), _ALONE),
        Workload("write.d32", ("write", 32, 4096), _DEEP),
        Workload("write.d1", ("write", 1, 4096), _ALONE),
        AGED,
    ),
    "disk": (
        FRESH,
        Workload("write.d32", ("write", 32, 4096), (("iops", BEST), ("cpu_us", BEST))),
        Workload("write.flush", ("write-flush", 1, 4096), (("iops", BEST),)),
        AGED,
    ),
}


def run(bench: Bench) -> None:
    """Measure in memory, then on the disk that holds the bench's directory; add the figures."""
    client = build_client()
    memory = MEMORY if MEMORY.is_dir() and file_system(MEMORY) == "tmpfs" else None
    if memory is None:
        bench.say("datapath: /dev/shm is no memory file system; that half is left out")
    else:
        with tempfile.TemporaryDirectory(prefix="ramet-bench-", dir=memory) as place:
            _measure(bench, client, "memory", Path(place))
    directory = bench.directory / "datapath"
    directory.mkdir()
    _measure(bench, client, "disk", directory)
    shutil.rmtree(directory)


def build_client() -> Path:
    """Build the load client. Result: the program."""
    words = "build --release --locked --quiet -p ramet-nbd --example load_client"
    done = subprocess.run(
        ["cargo", *words.split(), "--message-format=json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    return Path(next(it["executable"] for it in reversed(messages) if it.get("executable")))


def _measure(bench: Bench, client: Path, place: str, directory: Path) -> None:
    size = bench.scale.datapath_bytes
    with ExitStack() as stack:
        servers = {}
        for name, start in PEERS.items():
            if place == "disk" and name == MEMORY_PEER:
                continue
            own = directory / name
            own.mkdir()
            try:
                servers[name] = stack.enter_context(start(own, size))
            except FileNotFoundError as missing:
                bench.say(f"datapath: {name} is left out: {missing.filename} is not installed")
                continue
            _load(client, servers[name], ("write-through", 8, FILL_BYTES), size // FILL_BYTES)
        used: dict[str, float] = {}
        for workload in WORKLOADS[place]:
            bench.say(f"datapath in {place}: {workload.name} of {', '.join(servers)}")
            found = _rounds(bench, client, servers, workload, directory)
            _add(bench, f"datapath.{place}.{workload.name}", workload, found)
            used[workload.name] = statistics.median(it["cpu_us"] for it in found[RAMET])
        aged = used[AGED.name] / used[FRESH.name]
        bench.add(f"datapath.{place}.aged.ratio", "of fresh CPU", [aged], size // MIB)


def _rounds(
    bench: Bench, client: Path, servers: dict[str, Server], workload: Workload, directory: Path
) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    names = list(servers)
    for number in range(bench.scale.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            limit = f"{bench.scale.datapath_seconds}s"
            sync_files(directory)  # Nobody pays for what another left to be written back.
            found[name].append(_load(client, servers[name], workload.arguments, limit))
    return found


def _load(
    client: Path, server: Server, arguments: tuple[str, int, int], limit: object
) -> dict[str, float]:
    """Run the client once. Result: `iops`, `cpu_us` of the server for each request, latencies."""
    words = [server.socket, server.export, *arguments, limit]
    before = processor_seconds(server.process_id)
    done = subprocess.run(
        [str(client), *map(str, words)], stdout=subprocess.PIPE, text=True, check=True
    )
    used = processor_seconds(server.process_id) - before
    told = json.loads(done.stdout)
    rates = {"iops": told["count"] / told["seconds"], "cpu_us": used / told["count"] * 1e6}
    return rates | {name: told[name] for name in ("p50_us", "p99_us", "max_us")}


def _add(
    bench: Bench, key: str, workload: Workload, found: dict[str, list[dict[str, float]]]
) -> None:
    for statistic, unit in UNITS.items():
        for name, rounds in found.items():
            values = [it[statistic] for it in rounds]
            details = {"max_us": [it["max_us"] for it in rounds]} if statistic == "p99_us" else {}
            bench.add(f"{key}.{statistic}.{name}", unit, values, details=details)
    count = bench.scale.datapath_bytes // MIB
    for statistic, whom in workload.ratios:
        peer = _fastest_peer(found) if whom == BEST else whom
        if peer in found:
            pairs = zip(found[RAMET], found[peer], strict=True)
            values = [ours[statistic] / theirs[statistic] for ours, theirs in pairs]
            bench.add(f"{key}.{statistic}.ratio", f"of {peer}", values, count)


def _fastest_peer(found: dict[str, list[dict[str, float]]]) -> str:
    """Whose median rate is the highest."""
    medians = {
        name: statistics.median(it["iops"] for it in rounds)
        for name, rounds in found.items()
        if name != RAMET
    }
    return max(medians, key=lambda name: medians[name], default="")


@contextmanager
def _ramet(directory: Path, size: int) -> Iterator[Server]:
    with ramet.open(directory / "pool", create=True) as pool:
        pool.create_volume("volume", size)
    socket = directory / "nbd.sock"
    with service(directory / "pool", socket) as process:
        yield Server(socket, process.pid, "volume")


@contextmanager
def _peer(words: list[str], socket: Path) -> Iterator[Server]:
    process = subprocess.Popen(words)
    try:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{words[0]} did not start; what it printed is above")
            time.sleep(0.01)
        yield Server(socket, process.pid)
    finally:
        process.terminate()
        process.wait()


def _file(directory: Path, size: int) -> str:
    path = directory / "volume.raw"
    with path.open("wb") as stream:
        stream.truncate(size)
    return str(path)


def _nbdkit_memory(directory: Path, size: int) -> Running:
    socket = directory / "nbd.sock"
    return _peer(["nbdkit", "-f", "-U", str(socket), "memory", str(size)], socket)


def _nbdkit_file(directory: Path, size: int) -> Running:
    socket = directory / "nbd.sock"
    return _peer(["nbdkit", "-f", "-U", str(socket), "file", _file(directory, size)], socket)


def _qemu_nbd(directory: Path, size: int) -> Running:
    socket = directory / "nbd.sock"
    words = ["qemu-nbd", "-t", "-f", "raw", "-k", str(socket), _file(directory, size)]
    return _peer(words, socket)


PEERS: dict[str, Callable[[Path, int], Running]] = {
    RAMET: _ramet,
    MEMORY_PEER: _nbdkit_memory,
    FILE_PEER: _nbdkit_file,
    QEMU_PEER: _qemu_nbd,
}
