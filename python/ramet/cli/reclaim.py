"""`ramet reclaim`."""

import sys
from argparse import Namespace

from ramet.cli.output import print_json
from ramet.cli.session import verbs_of
from ramet.records import Reclaimed
from ramet.units import format_size

ROUND_SECONDS = 0.5


def reclaim(arguments: Namespace) -> None:
    """Give the space of what is dead back, and say how far that is."""
    given_back_bytes = 0
    shows = sys.stderr.isatty() and not arguments.json
    with verbs_of(arguments) as verbs:
        while True:
            now = verbs.reclaim(arguments.all, ROUND_SECONDS)
            given_back_bytes += now.given_back_bytes
            if shows:
                print(f"\r\033[K{_describe(now, given_back_bytes)}", end="", file=sys.stderr)
            if now.is_done:
                break
    if shows:
        print("\r\033[K", end="", file=sys.stderr)
    total = now._replace(given_back_bytes=given_back_bytes)
    if arguments.json:
        print_json(total.to_json())
    else:
        print(_describe(total, given_back_bytes))


def _describe(now: Reclaimed, given_back_bytes: int) -> str:
    waiting = f"{format_size(now.waiting_bytes)} wait"
    dying = f", {now.dying_count} deleted to look at" if now.dying_count else ""
    return f"{format_size(given_back_bytes)} given back, {waiting}{dying}"
