"""Measure Ramet: `python bench [--quick] [--only NAME ...]`, or `make bench ARGS=--quick`.

Prints a table of all figures beside their goals, and stores every raw figure with a description of
the machine as JSON in bench/results, and a drawing of all ratios beside it. Uses the public API,
the command line and NBD; needs nothing but the project. The pools go into a directory of their own
that is removed afterwards: put it (`--directory`) on the file system that is to be measured.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
NAMES = {
    "engine": "snapshot and clone of 1, 1,000, 10,000 volumes through the Python API",
    "command_line": "the same by command, with a running service",
    "stalls": "the longest wait of clients meanwhile",
    "latency": "the wait of clients beside each kind of work, by turns with and without",
    "shapes": "cost against size, fill and depth; random reads at depth",
    "memory": "memory of idle objects and of overwrites in a clone",
    "opening": "opening after a kill",
    "datapath": "requests over NBD beside nbdkit and qemu-nbd",
    "volumes": "many volumes that flush at once; bytes written for first writes",
    "reclaim": "nodes that deletes visit, time and memory of checks, against the pool's size",
    "space": "space of clones, new and used, beside copies, qcow2 and reflinks; needs root",
    "cold_reads": "random reads with nothing in memory, maps ten times the node budget",
    "sites": "a policy that keeps another service in step, under load",
    "differences": "sending what changed, beside rsync, btrfs and qcow2; 1,000 volumes at once",
}


def main() -> int:
    """Run what is asked for. Result: the exit code; a missed goal is no error."""
    # Put first, so that this checkout is measured whatever else is installed.
    sys.path.insert(0, str(HERE.parent / "python"))
    from fleet import SCALES, Bench
    from goals import table
    from machine import describe, file_system
    from plot import draw

    parsed = _arguments(list(SCALES))
    scale = SCALES["quick" if parsed.quick else parsed.scale]
    parsed.directory.mkdir(parents=True, exist_ok=True)
    before = describe(parsed.directory)
    if file_system(parsed.directory) in ("tmpfs", "ramfs"):
        print("bench: this directory is in memory; hint: --directory on a disk", file=sys.stderr)
    seconds, failed = {}, []
    with tempfile.TemporaryDirectory(prefix="ramet-bench-", dir=parsed.directory) as directory:
        bench = Bench(scale, Path(directory), long=parsed.long)
        for name in parsed.only or NAMES:
            begun = time.monotonic()
            try:
                importlib.import_module(name).run(bench)
            except Exception:  # noqa: BLE001 - what was measured for hours is not to be lost.
                traceback.print_exc()
                failed.append(name)
            seconds[name] = round(time.monotonic() - begun, 1)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": _version(),
        "scale": scale.name,
        "machine": before,
        "load_average_after": describe(parsed.directory)["load_average"],
        "seconds": seconds,
        "failed": failed,
        "figures": [figure.to_json() for figure in bench.figures],
    }
    path = _store(result, parsed.results)
    path.with_suffix(".svg").write_text(draw(bench.figures, _line_about(result)))
    print(table(bench.figures))
    print(f"\n{_line_about(result)}\nraw figures: {path}")
    if failed:
        print(f"bench: failed, see above: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _arguments(scales: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Measure Ramet; print a table, store JSON.",
        epilog="benchmarks:\n" + "\n".join(f"  {name:14} {text}" for name, text in NAMES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=NAMES, help="one of them; repeatable")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--long", action="store_true", help="runs of a minute as well")
    parser.add_argument("--scale", choices=scales, default="full", help="default: full")
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where the pools go (about 30 GB); default: the system's temporary directory",
    )
    parser.add_argument(
        "--results", type=Path, default=HERE / "results", help="default: bench/results"
    )
    return parser.parse_args()


def _version() -> str:
    import ramet

    return ramet.__version__


def _store(result: dict, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    stamp = str(result["date"]).replace(":", "").replace("+0000", "Z")
    path = directory / f"{stamp}-{result['scale']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def _line_about(result: dict) -> str:
    machine = result["machine"]
    return (
        f"ramet {result['version']}, {result['scale']} scale; {machine['processor']},"
        f" {machine['cores_count']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB,"
        f" Linux {machine['kernel']}, {machine['file_system']}"
    )


if __name__ == "__main__":
    sys.exit(main())
