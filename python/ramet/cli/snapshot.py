"""`ramet snapshot create|list|show`."""

import time
from argparse import Namespace

from ramet.cli.output import print_names, print_objects
from ramet.cli.session import verbs_of
from ramet.cli.volume import show
from ramet.errors import InvalidError

__all__ = ["create", "list_all", "show"]


def create(arguments: Namespace) -> None:
    """Take one instant of volumes."""
    if bool(arguments.volumes) == arguments.all_volumes:
        raise InvalidError("volumes_not_given", "which volumes? hint: name them, or --all, not both")
    with verbs_of(arguments) as verbs:
        made = verbs.snapshot(arguments.volumes, arguments.all_volumes, arguments.name)
    print_names(made, (item.name for item in made), arguments.json)


def list_all(arguments: Namespace) -> None:
    """List the snapshots."""
    with verbs_of(arguments) as verbs:
        found = [item for item in verbs.objects() if item.kind == "snapshot"]
    print_objects(found, arguments.json, time.time_ns())
