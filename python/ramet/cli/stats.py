"""`ramet stats`."""

from argparse import Namespace

from ramet.cli.output import print_json
from ramet.cli.session import verbs_of
from ramet.units import format_size


def stats(arguments: Namespace) -> None:
    """Show the pool's figures."""
    with verbs_of(arguments) as verbs:
        figures = verbs.stats()
    if arguments.json:
        print_json(figures)
        return
    width = max(len(name) for name in figures)
    for name, value in figures.items():
        text = format_size(int(value)) if name.endswith("_bytes") else str(value)
        print(f"{name.removesuffix('_bytes'):{width}}  {text}")
