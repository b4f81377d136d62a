"""The same by command line, with a running service and open-loop clients writing.

Owns the service's process. A command's time is the whole process, from its start to its end; what
it costs over an idle command is that minus the median of `ramet stats`. First byte: from nothing to
a block of a clone that the command has just made, through NBD.
"""

import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine import first_byte_ms
from fleet import BLOCK_BYTES, GOLDEN, Bench, timed_ms, vm_names
from load import Load
from ramet.demo.probe import Probe

READY_SECONDS_MAX = 120.0
END_SECONDS_MAX = 60.0


def program() -> list[str]:
    """How `ramet` is started: the installed script beside this Python, else the module."""
    script = Path(sys.executable).with_name("ramet")
    return [str(script)] if script.exists() else [sys.executable, "-m", "ramet"]


def command(path: Path, *arguments: str) -> str:
    """Run one command on the pool at `path`. Result: what it printed."""
    done = subprocess.run(
        [*program(), "-p", str(path), *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


@contextmanager
def service(path: Path, socket: Path) -> Iterator[subprocess.Popen]:
    """Run `ramet serve` until the block is left."""
    arguments = ["-p", str(path), "serve", "--nbd", f"unix:{socket}"]
    process = subprocess.Popen([*program(), *arguments], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        if not line.startswith("ready"):
            raise RuntimeError(f"the service did not start: {line}{process.stderr.read()}")
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=END_SECONDS_MAX)
        process.kill()


def run(bench: Bench) -> None:
    """Measure, and add the figures."""
    path, socket = bench.fleet(), bench.directory / "command.sock"
    clients = vm_names(min(bench.scale.connections, bench.scale.fleet_count))
    bench.say("command line, under load")
    with service(path, socket), Load(socket, clients, bench.scale.rate, bench.directory):
        for count in bench.scale.counts:
            _measure(bench, path, socket, count)
    starts = [
        timed_ms(lambda: subprocess.run([*program(), "--version"], capture_output=True, check=True))
        for _ in range(bench.scale.rounds)
    ]
    bench.add("command.version", "ms", starts)


def _measure(bench: Bench, path: Path, socket: Path, count: int) -> None:
    found: dict[str, list[float]] = defaultdict(list)
    every = count == bench.scale.fleet_count
    volumes = ["--all"] if every else vm_names(count)
    for number in range(bench.scale.rounds):
        pattern = "{volume}@" + f"cli{number}"
        _dirty_all(socket, bench.scale.fleet_count)
        found["idle"].append(timed_ms(lambda: command(path, "stats")))
        found["snapshot.whole"].append(
            timed_ms(lambda: command(path, "snapshot", "create", *volumes, "--name", pattern))
        )
        snapshots = [pattern.replace("{volume}", name) for name in vm_names(count)]
        found["delete.whole"].append(timed_ms(lambda: command(path, "delete", *snapshots)))
        _dirty_all(socket, bench.scale.fleet_count)
        names = ["clone-{n}", "--count", str(count)]
        found["clone.whole"].append(timed_ms(lambda: command(path, "clone", GOLDEN, *names)))
        found["clone.first_byte"].append(first_byte_ms(socket, count))
        command(path, "delete", "--force", *[f"clone-{n}" for n in range(1, count + 1)])
    idle = statistics.median(found["idle"])
    for verb in ("snapshot", "clone", "delete"):
        found[f"{verb}.over_idle"] = [it - idle for it in found[f"{verb}.whole"]]
    for name, values in sorted(found.items()):
        bench.add(f"command.{name}", "ms", values, count)


def _dirty_all(socket: Path, count: int) -> None:
    block = os.urandom(BLOCK_BYTES)
    for name in vm_names(count):
        with Probe(socket, name) as probe:
            probe.write(0, block)
