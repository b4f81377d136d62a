"""The data path side by side: Ramet, nbdkit and qemu-nbd, by one client.

Every server gets the same volume, written through once, and the same requests from the same client,
one server after the other, in rounds that begin with another server each. Processor time is the
server process's own; ratios are of one round. A peer that is not installed is named and left out.
Nothing is read from a device, except where a workload is cold: all of it fits in the page cache.
Then Ramet beside itself: the same requests before and after a snapshot, and after very many. A
drawing of all ratios lies beside the figures. `--long` adds a minute of random writes.
"""

import os
import shutil
import statistics
import tempfile
from collections import defaultdict
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from command_line import command
from fleet import BLOCK_BYTES, MIB, Bench
from machine import Place, cached_bytes, drop_caches, file_system, page_out, sync_files
from peers import (
    FILE_PEER,
    MEMORY_PEER,
    PEERS,
    RAMET,
    RAW,
    Server,
    build_clients,
    load,
    ramet_server,
)
from ramet.client import Client
from ramet.demo.probe import Probe

MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of our own is made in it
FILL_BYTES = 128 * 1024
# Of a volume no more than this part is cached when its reads are to be cold.
COLD_PART = 16
BEST = "the fastest peer"
UNITS = {"iops": "IO/s", "cpu_us": "us/IO", "calm_cpu_us": "us/IO", "p50_us": "us", "p99_us": "us"}
# What is measured in memory: qcow2 images have nothing to show there.
MEMORY_SERVERS = (RAMET, MEMORY_PEER, FILE_PEER, RAW)


@dataclass(frozen=True)
class Workload:
    """`arguments`: the client's kind, depth and bytes. `ratios`: which statistic, and to whom.

    `is_cold`: the page cache forgets the server's files before each round. `place`: whether server
    and client are kept on one processor or on two; None where the system decides.
    """

    name: str
    arguments: tuple[str, int, int]
    ratios: tuple[tuple[str, str], ...] = ()
    is_cold: bool = False
    place: Place | None = None


_DEEP = (("cpu_us", MEMORY_PEER), ("iops", MEMORY_PEER))
# The goals of writes are for a server that gives nothing back meanwhile.
_DEEP_WRITE = (*_DEEP, ("calm_cpu_us", MEMORY_PEER))
_DISK_WRITE = (("iops", BEST), ("cpu_us", BEST), ("calm_cpu_us", BEST))
_ALONE = (("p50_us", MEMORY_PEER), ("cpu_us", MEMORY_PEER))
FRESH = Workload("sequential.read", ("read-through", 8, FILL_BYTES), (("iops", FILE_PEER),))
AGED = Workload("sequential.read.aged", ("read-through", 8, FILL_BYTES))
WORKLOADS = {
    # The first reads what was written in order; the last what the writes between have scattered.
    "memory": (
        FRESH,
        Workload("read.d32", ("read", 32, 4096), _DEEP),
        Workload("read.d1", ("read", 1, 4096), _ALONE),
        Workload("write.d32", ("write", 32, 4096), _DEEP_WRITE),
        Workload("write.d1", ("write", 1, 4096), _ALONE),
        # One at a time, the way to another processor costs more than the work: where the system
        # puts server and client is most of the two above. Reported, no goal.
        *(
            Workload(f"{kind}.d1.{place}", (kind, 1, 4096), _ALONE, place=place)
            for kind in ("read", "write")
            for place in (Place if len(os.sched_getaffinity(0)) > 1 else ())
        ),
        AGED,
    ),
    "disk": (
        FRESH,
        Workload("sequential.write", ("write-through", 8, FILL_BYTES)),
        # A flush every 8 MiB: without any, a server that overwrites only rewrites dirty cache.
        Workload(
            "sequential.write.flush",
            ("write-through-flush-64", 8, FILL_BYTES),
            (("iops", FILE_PEER),),
        ),
        Workload("read.d32", ("read", 32, 4096)),
        Workload("read.cold", ("read", 32, 4096), (("iops", FILE_PEER),), is_cold=True),
        Workload("write.d32", ("write", 32, 4096), _DISK_WRITE),
        Workload("write.flush", ("write-flush", 1, 4096), (("iops", BEST),)),
        Workload("write.fua", ("write-fua", 1, 4096)),
        Workload("write.flush32", ("write-flush-32", 32, 4096), (("iops", BEST),)),
        AGED,
    ),
}
# Writeback is part of it: what is written is more than the system keeps dirty.
LONG = Workload("write.d32.long", ("write", 32, 4096), _DISK_WRITE)
LONG_SECONDS = 60
HISTORY = {"read": ("read", 32, 4096), "write": ("write", 32, 4096)}

Found = dict[str, list[dict[str, float]]]


def run(bench: Bench) -> None:
    """Measure in memory, then on the disk that holds the bench's directory; add the figures."""
    client = build_clients()["load_client"]
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
    _aging(bench, client, bench.directory)
    _histories(bench, client, memory or bench.directory)


def _measure(bench: Bench, client: Path, place: str, directory: Path) -> None:
    size = bench.scale.datapath_bytes
    wanted = MEMORY_SERVERS if place == "memory" else [it for it in PEERS if it != MEMORY_PEER]
    with ExitStack() as stack:
        servers = {}
        for name in wanted:
            own = directory / name
            own.mkdir()
            try:
                servers[name] = stack.enter_context(PEERS[name](own, size))
            except FileNotFoundError as missing:
                bench.say(f"datapath: {name} is left out: {missing.filename} is not installed")
                continue
            load(client, servers[name], ("write-through", 8, FILL_BYTES), size // FILL_BYTES)
        for workload in WORKLOADS[place]:
            bench.say(f"datapath in {place}: {workload.name} of {', '.join(servers)}")
            found = _rounds(bench, client, servers, workload, directory)
            _add(bench, f"datapath.{place}.{workload.name}", workload, found)
        if bench.long and place == "disk":
            bench.say(f"datapath in {place}: {LONG.name}, up to {LONG_SECONDS} s for each")
            found = _rounds(bench, client, servers, LONG, directory)
            _add(bench, f"datapath.{place}.{LONG.name}", LONG, found)


def _rounds(
    bench: Bench,
    client: Path,
    servers: dict[str, Server],
    workload: Workload,
    directory: Path,
) -> Found:
    """Load each server in turn."""
    rounds, seconds = bench.scale.rounds, bench.scale.datapath_seconds
    if workload is LONG:
        rounds, seconds = 1, min(LONG_SECONDS, LONG_SECONDS * bench.scale.datapath_seconds)
    found: Found = defaultdict(list)
    names = list(servers)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            limit = f"{seconds}s"
            sync_files(directory)  # Nobody pays for what another left to be written back.
            if workload.is_cold:
                page_out(servers[name].process_id, directory / name)
                drop_caches(directory / name)
                _check_cold(directory / name, bench.scale.datapath_bytes)
            with workload.place.keep(servers[name].process_id) if workload.place else nullcontext():
                found[name].append(load(client, servers[name], workload.arguments, limit))
    return found


class Pair:
    """A server of two volumes of `size` bytes, written through once; two of one kind of load."""

    def __init__(self, bench: Bench, client: Path, server: Server) -> None:
        self.server, self.flat = server, replace(server, export="volume-2")
        self._client, self._seconds, self._count = client, bench.scale.datapath_seconds, 0
        size = bench.scale.datapath_bytes
        for one in (self.server, self.flat):
            load(client, one, ("write-through", 8, FILL_BYTES), size // FILL_BYTES)

    def ratio(self, arguments: tuple[str, int, int]) -> float:
        """Load the first volume, and the second. Result: what the first takes of its CPU."""
        self._count += 1
        ours_first = self._count % 2 == 0
        used = {}
        for one in (self.server, self.flat) if ours_first else (self.flat, self.server):
            used[one.export] = load(self._client, one, arguments, f"{self._seconds}s")["cpu_us"]
        return used[self.server.export] / used[self.flat.export]


def _aging(bench: Bench, client: Path, place: Path) -> None:
    """Measure a volume that was overwritten at random once over, beside one that was not."""
    size = bench.scale.datapath_bytes
    with (
        tempfile.TemporaryDirectory(prefix="ramet-bench-", dir=place) as directory,
        ramet_server(Path(directory), size, 2) as server,
    ):
        pair = Pair(bench, client, server)
        bench.say("datapath: sequential reads of an aged volume, beside a fresh one")
        load(client, server, ("write", 32, BLOCK_BYTES), size // BLOCK_BYTES)
        sync_files(Path(directory))
        ratios = [pair.ratio(AGED.arguments) for _ in range(bench.scale.rounds)]
    bench.add("datapath.disk.aged.ratio", "of fresh CPU", ratios, size // MIB)


def _check_cold(directory: Path, size: int) -> None:
    cached = cached_bytes(directory)
    if cached > size / COLD_PART:
        raise RuntimeError(f"{cached} bytes of '{directory}' are still cached")


def _histories(bench: Bench, client: Path, place: Path) -> None:
    """Measure a volume right after a snapshot, and at depth, beside one that never had any."""
    size, depth = bench.scale.datapath_bytes, max(bench.scale.depths)
    found: dict[str, list[float]] = defaultdict(list)

    def measure(state: str) -> None:
        for kind, arguments in HISTORY.items():
            if state == "after":
                command(pool, "snapshot", "create", "volume-1", "--name", "history")
            found[f"{kind}.{state}"].append(pair.ratio(arguments))
            if state == "after":
                command(pool, "delete", "history")

    with tempfile.TemporaryDirectory(prefix="ramet-bench-", dir=place) as directory:
        pool = Path(directory) / "pool"
        with ramet_server(Path(directory), size, 2) as server:
            pair = Pair(bench, client, server)
            bench.say("datapath: reads and writes right after a snapshot")
            for _ in range(bench.scale.rounds):
                measure("after")
            bench.say(f"datapath: the same at depth {depth:,}")
            _deepen(server, pool, depth)
            for _ in range(bench.scale.rounds):
                measure("deep")
    for key, values in found.items():
        count = depth if key.endswith("deep") else 1
        bench.add(f"datapath.history.{key}.ratio", "of CPU without", values, count)


def _deepen(server: Server, pool: Path, depth: int) -> None:
    """Take snapshots one after the other, with a write before each."""
    verbs = Client.find(pool)
    if verbs is None:
        raise RuntimeError("the service does not answer")
    probe = Probe(server.socket, server.export)
    places = probe.size_bytes // BLOCK_BYTES
    for number in range(depth):
        at = number * 7919 % places * BLOCK_BYTES
        # Every block begins with its offset: the client that measures goes by that.
        probe.write(at, at.to_bytes(8, "little") * (BLOCK_BYTES // 8))
        verbs.snapshot(["volume-1"], False, f"deep-{number}")
    probe.close()
    verbs.close()


def _add(bench: Bench, key: str, workload: Workload, found: Found) -> None:
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


def _fastest_peer(found: Found) -> str:
    """Whose median rate is the highest."""
    medians = {
        name: statistics.median(it["iops"] for it in rounds)
        for name, rounds in found.items()
        if name != RAMET
    }
    return max(medians, key=lambda name: medians[name], default="")
