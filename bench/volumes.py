"""What many volumes and snapshots cost the data path, on the disk that holds the bench's directory.

64 volumes at once, each writing 4 KiB and flushing, over and over, by one client process: beside
one volume alone, and beside as many qemu-nbd processes over qcow2 images. And the first 4 KiB
writes after a snapshot, each in its own 64 KiB: how many bytes reach the device for each, beside a
new qcow2 overlay. These are the device's own counters: whatever else writes to it counts too.

In a pool that was just made the log also writes zeros ahead of itself, so that a flush is quick; in
one that was written over a few times it begins its segments in the files of dead ones instead, and
need not. Both are told; the goal is for the second, which is what a pool is for the rest of its
life.
"""

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from command_line import command
from fleet import BLOCK_BYTES, MIB, Bench
from machine import device_written_bytes, sync_files
from peers import (
    OVERLAY,
    QCOW2,
    RAMET,
    Server,
    build_clients,
    load,
    qcow2_image,
    qemu_nbd,
)
from peers import ramet_server as ramet_on
from ramet.client import Client

MANY = 64
NEW_POOL = f"{RAMET}-new-pool"
# How often a volume is written over, from its beginning to its end, until files are used again.
PASSES_MAX = 12
SPARES_SECONDS_MAX = 1.5
# Two segments: the one that is written to, and the one that is prepared behind it.
SEGMENTS_BYTES = 128 * MIB
VOLUME_BYTES = 64 * MIB
APART_BYTES = 64 * 1024
FILL = ("write-through", 8, 128 * 1024)
FIRST = {
    "flushed": ("write-apart-flush", 1, BLOCK_BYTES),
    "d32": ("write-apart", 32, BLOCK_BYTES),
}


def run(bench: Bench) -> None:
    """Measure both, and add the figures."""
    clients = build_clients()
    directory = bench.directory / "volumes"
    directory.mkdir()
    _many(bench, clients["many_clients"], directory)
    _first_writes(bench, clients["load_client"], directory)


def _many(bench: Bench, client: Path, directory: Path) -> None:
    seconds = bench.scale.datapath_seconds
    found: dict[str, list[float]] = {}

    def measure(name: str, socket: str, export: str, count: int) -> None:
        words = [str(client), socket, export, str(count), str(seconds)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        told = json.loads(done.stdout)
        found.setdefault(name, []).append(told["count"] / told["seconds"])

    bench.say(f"{MANY} volumes at once, each with a flush after every write")
    with ExitStack() as stack:
        own = directory / "many"
        own.mkdir()
        ours = stack.enter_context(ramet_on(own, VOLUME_BYTES, MANY))
        peers = True
        for number in range(1, MANY + 1):
            try:
                image = qcow2_image(own / f"{number}.qcow2", VOLUME_BYTES)
                stack.enter_context(qemu_nbd(image, "qcow2", own / f"{number}.sock"))
            except FileNotFoundError as missing:
                bench.say(f"volumes: {QCOW2} is left out: {missing.filename} is not installed")
                peers = False
                break
        for _ in range(bench.scale.rounds):
            sync_files(own)
            measure("one", str(ours.socket), "volume-{n}", 1)
            measure(RAMET, str(ours.socket), "volume-{n}", MANY)
            if peers:
                measure(QCOW2, str(own / "{n}.sock"), "", MANY)
    for name, values in found.items():
        bench.add(f"volumes.flush.{name}", "pairs/s", values, 1 if name == "one" else MANY)
    for name in ("one", QCOW2):
        if name in found:
            pairs = zip(found[RAMET], found[name], strict=True)
            values = [our / their for our, their in pairs]
            bench.add(f"volumes.flush.{name}.ratio", "times", values, MANY)


def _first_writes(bench: Bench, client: Path, directory: Path) -> None:
    size = bench.scale.datapath_bytes
    writes = size // APART_BYTES
    starts = {RAMET: _in_steady_state, NEW_POOL: _in_a_new_pool, OVERLAY: _new_overlay}
    for name, start in starts.items():
        for kind, arguments in FIRST.items():
            bench.say(f"first writes of {name}, {kind}")
            found: list[float] = []
            rates: list[float] = []
            for number in range(bench.scale.rounds):
                own = directory / f"first-{name}-{kind}-{number}"
                own.mkdir()
                try:
                    with start(bench, own, client) as server:
                        os.sync()
                        before = device_written_bytes(own)
                        rates.append(load(client, server, arguments, writes)["iops"])
                        # What waits in the server's memory is written too: by one write more.
                        load(client, server, ("write-flush", 1, BLOCK_BYTES), 1)
                        os.sync()
                        found.append((device_written_bytes(own) - before) / writes)
                except FileNotFoundError as missing:
                    bench.say(f"volumes: {name} is left out: {missing.filename} is not installed")
                    break
                finally:
                    shutil.rmtree(own)
            if found:
                key = f"volumes.first.{kind}"
                bench.add(f"{key}.bytes.{name}", "bytes", found, writes)
                bench.add(f"{key}.iops.{name}", "IO/s", rates, writes)
                bench.say(f"{statistics.median(found):,.0f} bytes each")


@contextmanager
def _in_a_new_pool(bench: Bench, directory: Path, client: Path) -> Iterator[Server]:
    size = bench.scale.datapath_bytes
    with ramet_on(directory, size) as server:
        load(client, server, FILL, size // FILL[2])
        command(directory / "pool", "snapshot", "create", "volume-1")
        yield server


@contextmanager
def _in_steady_state(bench: Bench, directory: Path, client: Path) -> Iterator[Server]:
    """Written over until the log has files of dead segments for all that will be measured."""
    size = bench.scale.datapath_bytes
    with ramet_on(directory, size) as server:
        verbs = Client.find(directory / "pool")
        if verbs is None:
            raise RuntimeError("the service does not answer")
        load(client, server, FILL, size // FILL[2])
        if not any(_uses_files_again(client, server, verbs, size) for _ in range(PASSES_MAX)):
            bench.say("volumes: the log begins no segment in a used file; it is as in a new pool")
        verbs.snapshot(["volume-1"], False, "first")
        verbs.close()
        yield server


def _uses_files_again(client: Path, server: Server, verbs: Client, size: int) -> bool:
    """Write the volume over. Result: whether files are spare for all that will be measured."""
    wanted_bytes = size // APART_BYTES * 2 * BLOCK_BYTES
    load(client, server, FILL, size // FILL[2])
    # Else no segment dies as a whole: volumes of a trial run.
    if size < SEGMENTS_BYTES or not _has_spares(verbs, wanted_bytes):
        return False
    # Past the segments that were begun or prepared before there were any.
    load(client, server, FILL, SEGMENTS_BYTES // FILL[2])
    return _has_spares(verbs, wanted_bytes)


def _has_spares(verbs: Client, wanted_bytes: int) -> bool:
    """Wait a moment, for as long as they are kept, until files of so many bytes are spare."""
    deadline = time.monotonic() + SPARES_SECONDS_MAX
    while int(verbs.stats()["spare_bytes"]) < wanted_bytes:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@contextmanager
def _new_overlay(bench: Bench, directory: Path, client: Path) -> Iterator[Server]:
    size = bench.scale.datapath_bytes
    base = qcow2_image(directory / "base.qcow2", size)
    with qemu_nbd(base, "qcow2", directory / "base.sock") as server:
        load(client, server, FILL, size // FILL[2])
    image = qcow2_image(directory / "overlay.qcow2", size, base)
    with qemu_nbd(image, "qcow2", directory / "nbd.sock") as server:
        yield server
