"""`ramet check`: hold a pool against the format, beside a service or alone.

Imports audit and client; accept_loss.py where that is asked for. Invariant: it does not open the
pool itself, so it works where the engine refuses.
"""

import sys
import time
from argparse import Namespace
from contextlib import closing
from pathlib import Path

from ramet.audit.check import check as check_alone
from ramet.audit.check import check_beside
from ramet.audit.report import Finding, Progress, Report
from ramet.cli.accept_loss import accept_loss
from ramet.cli.output import describe_holders, print_json
from ramet.cli.progress import show_progress
from ramet.client import Client
from ramet.config import LOCK_WAIT_SECONDS_MAX, find_pool_path
from ramet.errors import BusyError, CorruptError, RametError, UnavailableError
from ramet.units import format_size

RETRY_SECONDS = 0.05


def check(arguments: Namespace) -> int:
    """Check the pool, or accept a loss. Result: 0, or the exit code of damage."""
    if arguments.accept_loss is not None:
        accept_loss(arguments)
        return 0
    path = find_pool_path(arguments.pool)
    with show_progress() as progress:
        report = _run(path, arguments, progress)
    if arguments.json:
        print_json(report.to_json())
    else:
        for note in report.notes:
            print(f"note: {note}", file=sys.stderr)
        for finding in report.findings:
            print(_describe(finding))
        print(_summary(report, arguments.quick))
    return 0 if report.clean else CorruptError.exit_code


def _run(path: Path, arguments: Namespace, progress: Progress | None) -> Report:
    until = time.monotonic() + (0.0 if arguments.no_wait else LOCK_WAIT_SECONDS_MAX)
    while True:
        client = Client.find(path)
        if client is not None:
            with closing(client):
                return _run_beside(client, path, arguments.quick, progress)
        try:
            return check_alone(path, quick=arguments.quick, progress=progress)
        except BusyError:
            if time.monotonic() >= until:
                raise
        time.sleep(RETRY_SECONDS)


def _run_beside(client: Client, path: Path, quick: bool, progress: Progress | None) -> Report:
    with client.holding_space() as holds:
        try:
            client.checkpoint()
        except RametError as error:
            print(f"checked up to the last checkpoint: {error}", file=sys.stderr)
        report = check_beside(path, quick=quick, progress=progress)
        if not report.clean and not holds():
            raise UnavailableError(
                "check_unfinished",
                "somebody found no space, and what the check was reading was given back;"
                " hint: make room, and check again",
            )
        return report


def _describe(finding: Finding) -> str:
    place = finding.place
    where = place.file if place.offset_bytes is None else f"{place.file} byte {place.offset_bytes}"
    return describe_holders(f"{finding.code}: {finding.text} ({where})", finding)


def _summary(report: Report, quick: bool) -> str:
    counts = report.counts
    verdict = "clean" if report.clean else f"damaged: {report.findings_count} findings"
    blocks = "blocks left out" if quick else f"{counts['blocks_count']} blocks"
    return (
        f"{verdict}: {counts['volumes_count']} volumes, {counts['snapshots_count']} snapshots;"
        f" read {counts['segments_count']} segments, {counts['batches_count']} batches, {blocks},"
        f" {counts['nodes_count']} nodes; held {format_size(counts['held_bytes'])},"
        f" dead {format_size(counts['dead_bytes'])}, last batch {report.last_sequence}"
    )
