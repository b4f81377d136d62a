"""`ramet limit`."""

from argparse import Namespace

from ramet.cli.output import print_json
from ramet.cli.session import verbs_of
from ramet.units import format_size

NONE = "none"


def limit(arguments: Namespace) -> None:
    """Say how much the pool may take."""
    with verbs_of(arguments) as verbs:
        verbs.set_limit(None if arguments.size == NONE else arguments.size)
        figures = verbs.stats()
    limit_bytes, taken_bytes = int(figures["limit_bytes"]), int(figures["taken_bytes"])
    if arguments.json:
        print_json({"limit_bytes": limit_bytes, "taken_bytes": taken_bytes})
        return
    told = f"limit {format_size(limit_bytes)}" if limit_bytes else "no limit"
    print(f"{told}, {format_size(taken_bytes)} taken")
