"""What many volumes and snapshots cost the data path, on the disk that holds the bench's directory.

64 volumes at once, each writing 4 KiB and flushing, over and over, by one client process: beside
one volume alone, and beside as many qemu-nbd processes over qcow2 images. And the first 4 KiB
writes after a snapshot, each in its own 64 KiB: how many bytes reach the device for each, beside a
new qcow2 overlay. These are the device's own counters: whatever else writes to it counts too.
"""

import json
import os
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from command_line import command
from fleet import BLOCK_BYTES, MIB, Bench
from machine import device_written_bytes, sync_files
from peers import OVERLAY, QCOW2, RAMET, Server, build_clients, load, qcow2_image, qemu_nbd
from peers import ramet_server as ramet_on

MANY = 64
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
    for name, start in ((RAMET, _after_snapshot), (OVERLAY, _new_overlay)):
        for kind, arguments in FIRST.items():
            bench.say(f"first writes of {name}, {kind}")
            found: list[float] = []
            rates: list[float] = []
            for number in range(bench.scale.rounds):
                own = directory / f"first-{name}-{kind}-{number}"
                own.mkdir()
                try:
                    with start(own, size, client) as server:
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
def _after_snapshot(directory: Path, size: int, client: Path) -> Iterator[Server]:
    with ramet_on(directory, size) as server:
        load(client, server, FILL, size // FILL[2])
        command(directory / "pool", "snapshot", "create", "volume-1")
        yield server


@contextmanager
def _new_overlay(directory: Path, size: int, client: Path) -> Iterator[Server]:
    base = qcow2_image(directory / "base.qcow2", size)
    with qemu_nbd(base, "qcow2", directory / "base.sock") as server:
        load(client, server, FILL, size // FILL[2])
    image = qcow2_image(directory / "overlay.qcow2", size, base)
    with qemu_nbd(image, "qcow2", directory / "nbd.sock") as server:
        yield server
