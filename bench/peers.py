"""The servers that are measured side by side: Ramet, nbdkit, and qemu-nbd over images of all kinds.

Owns how each is started, and the programs that put load on them (crates/ramet-nbd/examples, built
here). A server is started on an empty directory of its own; every peer gets the same volume.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import ramet
from command_line import service
from machine import processor_seconds, thread_seconds

ROOT = Path(__file__).parent.parent
START_SECONDS_MAX = 20.0
RAMET, MEMORY_PEER, FILE_PEER = "ramet", "nbdkit-memory", "nbdkit-file"
RECLAIM = "ramet-reclaim"  # The thread of a service that gives space back.
RAW, QCOW2, OVERLAY = "qemu-nbd-raw", "qemu-nbd-qcow2", "qemu-nbd-overlay"
CHAINS = {"qemu-nbd-chain-10": 10, "qemu-nbd-chain-100": 100}


@dataclass(frozen=True)
class Server:
    """A server that runs; `export` is what the client asks it for."""

    socket: Path
    process_id: int
    export: str = ""


Running = AbstractContextManager[Server]


def build_clients() -> dict[str, Path]:
    """Build the programs that put load on a server. Result: each by its name."""
    words = "build --release --locked --quiet -p ramet-nbd --examples"
    done = subprocess.run(
        ["cargo", *words.split(), "--message-format=json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    built = [it for it in messages if it.get("executable")]
    return {it["target"]["name"]: Path(it["executable"]) for it in built}


def load(
    client: Path, server: Server, arguments: tuple[str, int, int], limit: object
) -> dict[str, float]:
    """Run `load_client` once. Result: `iops`, `cpu_us` of the server for each request, latencies.

    `calm_cpu_us` leaves out what gives space back: that goes on while a log is filled, and does the
    more the longer it was before. `arguments`: kind, depth and bytes; `limit`: seconds such as
    "1.5s", or a count.
    """
    words = [server.socket, server.export, *arguments, limit]
    before, giving = (
        processor_seconds(server.process_id),
        thread_seconds(server.process_id, RECLAIM),
    )
    done = subprocess.run(
        [str(client), *map(str, words)], stdout=subprocess.PIPE, text=True, check=True
    )
    used = processor_seconds(server.process_id) - before
    calm = used - (thread_seconds(server.process_id, RECLAIM) - giving)
    told = json.loads(done.stdout)
    each_us = 1e6 / told["count"]
    rates = {
        "iops": told["count"] / told["seconds"],
        "cpu_us": used * each_us,
        "calm_cpu_us": calm * each_us,
    }
    return rates | {name: told[name] for name in ("p50_us", "p99_us", "max_us")}


@contextmanager
def ramet_server(directory: Path, size: int, count: int = 1) -> Iterator[Server]:
    """Ramet with a volume `volume-1`, or so many of them: `export` is the first."""
    with ramet.open(directory / "pool", create=True) as pool:
        pool.create_volumes("volume-{n}", size, count=count)
    socket = directory / "nbd.sock"
    with service(directory / "pool", socket) as process:
        yield Server(socket, process.pid, "volume-1")


@contextmanager
def _serve(words: list[str], socket: Path) -> Iterator[Server]:
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


def _raw_file(directory: Path, size: int) -> Path:
    path = directory / "volume.raw"
    with path.open("wb") as stream:
        stream.truncate(size)
    return path


def _nbdkit(directory: Path, *plugin: object) -> Running:
    socket = directory / "nbd.sock"
    return _serve(["nbdkit", "-f", "-U", str(socket), *map(str, plugin)], socket)


def qemu_nbd(image: Path, kind: str, socket: Path) -> Running:
    """qemu-nbd over an image that is there."""
    return _serve(["qemu-nbd", "-t", "-f", kind, "-k", str(socket), str(image)], socket)


def qcow2_image(path: Path, size: int, base: Path | None = None) -> Path:
    """Make an empty image, or one over `base`, which is another."""
    words = ["qemu-img", "create", "-q", "-f", "qcow2"]
    words += [] if base is None else ["-F", "qcow2", "-b", str(base)]
    subprocess.run([*words, str(path), str(size)], check=True)
    return path


def _chain(directory: Path, size: int, depth: int) -> Running:
    """An image over images; all but the one below are empty until something is written."""
    image = qcow2_image(directory / "0.qcow2", size)
    for number in range(1, depth + 1):
        image = qcow2_image(directory / f"{number}.qcow2", size, image)
    return qemu_nbd(image, "qcow2", directory / "nbd.sock")


PEERS: dict[str, Callable[[Path, int], Running]] = {
    RAMET: ramet_server,
    MEMORY_PEER: lambda directory, size: _nbdkit(directory, "memory", size),
    FILE_PEER: lambda directory, size: _nbdkit(directory, "file", _raw_file(directory, size)),
    RAW: lambda directory, size: qemu_nbd(
        _raw_file(directory, size), "raw", directory / "nbd.sock"
    ),
    QCOW2: lambda directory, size: _chain(directory, size, 0),
    OVERLAY: lambda directory, size: _chain(directory, size, 1),
    **{
        name: (lambda directory, size, depth=depth: _chain(directory, size, depth))
        for name, depth in CHAINS.items()
    },
}
