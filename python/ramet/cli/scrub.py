"""`ramet scrub`: read all that is held, beside a service or alone.

Invariants: what was found is printed, also where it is interrupted; with --json stdout is one
value.
"""

import sys
from argparse import Namespace
from contextlib import closing

from ramet.cli import EXIT_INTERRUPTED
from ramet.cli.output import describe_holders, print_json
from ramet.cli.progress import show_progress
from ramet.cli.session import verbs_of
from ramet.errors import CorruptError
from ramet.records import Damage, Scrubbed
from ramet.units import format_size


def scrub(arguments: Namespace) -> int:
    """Scrub. Result: 0, or the exit code of damage, or of an interruption."""
    rate = None if arguments.rate == "none" else arguments.rate
    now = Scrubbed(0, 0, 0, False, [])
    found: list[Damage] = []
    interrupted = False
    with verbs_of(arguments) as verbs, show_progress() as progress:
        try:
            with closing(verbs.scrub(rate)) as told:
                for now in told:
                    # At the end all are told once more, with everybody who needs them.
                    found = now.findings if now.is_done else found + now.findings
                    if progress is not None:
                        progress(_doing(now), now.read_bytes, now.all_bytes)
        except KeyboardInterrupt:
            interrupted = True
    if arguments.json:
        print_json(now._replace(findings=found).to_json())
    else:
        for finding in found:
            print(_describe(finding))
        print(_summary(now))
    if interrupted:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return CorruptError.exit_code if now.findings_count else 0


def _doing(now: Scrubbed) -> str:
    return f"scrubbing, {now.findings_count} found" if now.findings_count else "scrubbing"


def _describe(finding: Damage) -> str:
    return describe_holders(f"{finding.code}: {finding.text}", finding)


def _summary(now: Scrubbed) -> str:
    verdict = f"damaged: {now.findings_count} findings" if now.findings_count else "no damage"
    left = "" if now.is_done else f" of about {format_size(now.all_bytes)}"
    return f"{verdict}; read {format_size(now.read_bytes)}{left}"
