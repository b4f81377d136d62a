"""`ramet verify`."""

from argparse import Namespace

from ramet.cli.output import print_json
from ramet.cli.session import verbs_of


def verify(arguments: Namespace) -> None:
    """Read and hash snapshots; print root and name of each once it is known."""
    found = []
    with verbs_of(arguments) as verbs:
        for name in arguments.names:
            verified = verbs.verify(name)
            found.append(verified.to_json())
            if not arguments.json:
                print(f"{verified.root}  {verified.name}", flush=True)
    if arguments.json:
        print_json(found)
