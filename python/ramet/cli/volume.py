"""`ramet volume create|list|show|rename|revert`."""

import time
from argparse import Namespace

from ramet.cli.output import print_json, print_names, print_object, print_objects
from ramet.cli.session import uri_of, verbs_of
from ramet.errors import InvalidError


def create(arguments: Namespace) -> None:
    """Make empty volumes."""
    with verbs_of(arguments) as verbs:
        made = verbs.create_volumes(arguments.names, arguments.size, arguments.count)
    print_names(made, (item.name for item in made), arguments.json)


def list_all(arguments: Namespace) -> None:
    """List the volumes."""
    with verbs_of(arguments) as verbs:
        found = [item for item in verbs.objects() if item.kind == "volume"]
    print_objects(found, arguments.json, time.time_ns())


def show(arguments: Namespace) -> None:
    """Describe one volume or snapshot."""
    with verbs_of(arguments) as verbs:
        found = verbs.find_object(arguments.name)
        uri = uri_of(arguments, verbs, found.name)
    print_object(found, uri, time.time_ns(), arguments.json)


def rename(arguments: Namespace) -> None:
    """Give an object another name."""
    with verbs_of(arguments) as verbs:
        renamed = verbs.rename(arguments.name, arguments.new_name)
    print_names([renamed], [renamed.name], arguments.json)


def revert(arguments: Namespace) -> None:
    """Give a volume a snapshot's content."""
    if arguments.keep and arguments.discard:
        raise InvalidError("keep_and_discard", "--keep and --discard; hint: choose one of them")
    keep = arguments.keep or not arguments.discard
    with verbs_of(arguments) as verbs:
        kept = verbs.revert(
            arguments.name, arguments.snapshot, keep, arguments.take_size, arguments.force
        )
    if arguments.json:
        print_json({"volume": arguments.name, "kept": None if kept is None else kept.to_json()})
    elif kept is not None:
        print(kept.name)
