"""The demonstration: a golden image, a thousand clones, one instant under load, a kill.

Runs the product as a user would, `ramet` as child processes and clients over NBD, and proves each
claim by reading back. Called by cli/demo. Invariant: every figure was measured in this run.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ramet.client import Client
from ramet.config import format_nbd_uri
from ramet.demo.image import build_image
from ramet.demo.load import Stamper, qemu_io_writers, read_stamp
from ramet.demo.probe import Probe
from ramet.errors import InternalError, InvalidError, UnavailableError
from ramet.units import format_duration, format_size

STAMPED_VOLUMES_MAX = 24
QEMU_VOLUMES_MAX = 8
WARM_UP_WRITES = 400
STAMP_OFFSET_BYTES = 0
CLONES_MIN = 2


@dataclass
class Report:
    """What was measured, in order."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    figures: dict[str, float | int] = field(default_factory=dict)

    def add(self, title: str, text: str, name: str, value: float) -> None:
        """Note one figure."""
        self.rows.append((title, text))
        self.figures[name] = value

    def add_time(self, title: str, name: str, seconds: float) -> None:
        """Note a time."""
        self.add(title, format_duration(seconds), f"{name}_seconds", round(seconds, 6))


Say = Callable[[str], None]


def run_demo(directory: Path, image: Path | None, clones_count: int, say: Say) -> Report:
    """Run it in `directory`, which is empty or missing. Result: the figures.

    Raises: InternalError where a proof fails; UnavailableError where a program is missing.
    Example: run_demo(Path("/tmp/demo"), None, 1000, print)
    """
    if clones_count < CLONES_MIN:
        raise InvalidError("too_few_clones", f"{clones_count} clones; hint: {CLONES_MIN} or more")
    pool = directory / "pool"
    directory.mkdir(parents=True, exist_ok=True)
    report = Report()
    if image is None:
        say("building an ext4 image from a tree of real files")
        image = build_image(directory)
    ramet("init", str(pool))
    say(f"importing '{image}' as volume golden")
    begun = time.perf_counter()
    ramet("-p", str(pool), "volume", "import", str(image), "golden")
    report.add_time("import of the image", "import", time.perf_counter() - begun)
    clones = [f"vm-{number}" for number in range(1, clones_count + 1)]
    with serving(pool) as (process, client):
        clone_all(client, clones, report, say)
        stamper = snapshot_under_load(client, clones, report, say)
        check_golden(client, image, say)
        revert_one(client, clones, say)
        say("killing the service without warning")
        stamper.wait_for(WARM_UP_WRITES)
        process.kill()
        process.wait()
        stamper.stop(expect_failure=True)
    reopen(pool, stamper, image, report, say)
    measure_space(pool, image, clones_count, report)
    return report


def clone_all(client: Client, clones: list[str], report: Report, say: Say) -> None:
    """Snapshot golden and clone it in one commit."""
    client.snapshot(["golden"], False, "golden@1")
    begun = time.perf_counter()
    client.clone("golden@1", ["vm-{n}"], len(clones), None)
    report.add_time(f"{len(clones)} clones in one commit", "clone", time.perf_counter() - begun)
    begun = time.perf_counter()
    with Probe(client.nbd_path, clones[-1]) as probe:
        probe.read(0, 4096)
    report.add_time("first byte of a fresh clone", "first_byte", time.perf_counter() - begun)
    say(f"cloned golden@1 {len(clones)} times")


def snapshot_under_load(client: Client, clones: list[str], report: Report, say: Say) -> Stamper:
    """Snapshot all clones as one group while clients write, and prove that it is one instant."""
    stamped = clones[:STAMPED_VOLUMES_MAX]
    loaded = clones[STAMPED_VOLUMES_MAX:][:QEMU_VOLUMES_MAX]
    say(f"writing to {len(stamped) + len(loaded)} clones through NBD clients")
    stamper = Stamper(client.nbd_path, stamped, STAMP_OFFSET_BYTES)
    with qemu_io_writers(client.nbd_path, loaded, 8 << 20):
        stamper.wait_for(WARM_UP_WRITES)
        stamper.stall_seconds_max = 0.0
        begun = time.perf_counter()
        client.snapshot(clones, False, "{volume}@demo")
        taken = time.perf_counter() - begun
        stamper.wait_for(WARM_UP_WRITES)
    stall = stamper.stall_seconds_max
    report.add_time(f"snapshot of {len(clones)} volumes at one instant", "snapshot", taken)
    gate = float(client.stats()["gate_closed_ns_last"]) / 1e9
    report.add_time("  writers kept out for", "gate_closed", gate)
    report.add_time("  longest write of a client meanwhile", "write_stall", stall)
    found = [read_one(client, f"{name}@demo") for name in stamped]
    last = stamper.check_instant(found)
    say(f"proved: the {len(clones)} snapshots are one instant, after write {last}")
    return stamper


def check_golden(client: Client, image: Path, say: Say) -> None:
    """Prove through a real client that the golden image is what was imported."""
    compare(image, format_nbd_uri("golden@1", client.nbd_path))
    compare(image, format_nbd_uri("golden", client.nbd_path))
    say("proved: golden is unchanged")


def revert_one(client: Client, clones: list[str], say: Say) -> None:
    """Revert the last clone, which nobody writes to, and prove what it holds."""
    name = clones[-1]
    with Probe(client.nbd_path, name) as probe:
        before = probe.read(0, 4096)
        probe.write(0, b"\xa5" * 4096)
        probe.flush()
    client.revert([(name, f"{name}@demo")], "{volume}@discarded", False, True)
    with Probe(client.nbd_path, name) as probe, Probe(client.nbd_path, f"{name}@discarded") as kept:
        if probe.read(0, 4096) != before or kept.read(0, 4096) != b"\xa5" * 4096:
            raise InternalError(
                "revert_differs", f"'{name}' is not its snapshot; hint: report this"
            )
    say(f"proved: {name} was reverted, and what it had is kept as {name}@discarded")


def reopen(pool: Path, stamper: Stamper, image: Path, report: Report, say: Say) -> None:
    """Open after the kill and prove that everything flushed is there."""
    begun = time.perf_counter()
    with serving(pool) as (process, client):
        report.add_time("service ready again after the kill", "reopen", time.perf_counter() - begun)
        last = stamper.check_instant([read_one(client, name) for name in stamper.names])
        if last < stamper.flushed:
            text = f"write {stamper.flushed} was flushed, only {last} are there"
            raise InternalError("flushed_data_lost", f"{text}; hint: report this")
        say(f"proved: {stamper.flushed} writes were flushed, {last} are there, in one prefix")
        compare(image, format_nbd_uri("golden@1", client.nbd_path))
        process.send_signal(signal.SIGTERM)
        if process.wait() != 0:
            raise InternalError("service_end", "the service did not end well; hint: report this")


def measure_space(pool: Path, image: Path, clones_count: int, report: Report) -> None:
    """Compare what the pool takes with full copies of the image."""
    used_bytes = sum(path.stat().st_blocks * 512 for path in pool.rglob("*") if path.is_file())
    copies_bytes = image.stat().st_blocks * 512 * (clones_count + 1)
    title = f"space of the pool, against {clones_count + 1} copies"
    text = f"{format_size(used_bytes)}, {format_size(copies_bytes)}"
    report.add(title, text, "used_bytes", used_bytes)
    factor = copies_bytes / max(used_bytes, 1)
    report.figures["copies_bytes"] = copies_bytes
    report.add("  saved, by a factor of", f"{factor:.0f}", "saving_factor", round(factor, 1))


def read_one(client: Client, name: str) -> int:
    """Read one object's stamp."""
    with Probe(client.nbd_path, name) as probe:
        return read_stamp(probe, STAMP_OFFSET_BYTES)


def ramet(*arguments: str) -> None:
    """Run the command `ramet`.

    Raises: UnavailableError (code command_failed) with what it said.
    """
    command = [sys.executable, "-m", "ramet", *arguments]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise UnavailableError("command_failed", f"ramet {' '.join(arguments)}: {said}")


def compare(image: Path, uri: str) -> None:
    """Compare an image and an export with qemu-img.

    Raises: InternalError (code image_differs).
    """
    kind = "qcow2" if image.suffix == ".qcow2" else "raw"
    command = ["qemu-img", "compare", "-q", "-f", kind, "-F", "raw", str(image), uri]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        raise InternalError("image_differs", f"{uri} differs from '{image}': {said}")


@contextmanager
def serving(pool: Path) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """Run `ramet serve`, ready; it is killed when the block is left, if it still runs."""
    command = [sys.executable, "-m", "ramet", "-p", str(pool), "serve"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        client = Client.find(pool)
        if client is None:
            raise UnavailableError("service_failed", f"{line.strip()}; hint: see its message")
        yield process, client
        client.close()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
