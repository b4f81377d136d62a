"""`ramet init`."""

from argparse import Namespace

from ramet.cli.output import print_json
from ramet.pool import create


def init(arguments: Namespace) -> None:
    """Make an empty pool."""
    create(arguments.directory, segment_size=arguments.segment_size)
    if arguments.json:
        print_json({"pool": arguments.directory})
    else:
        print(arguments.directory)
