"""`ramet volume create|list|show|tag|rename|resize|freeze|revert`."""

import time
from argparse import Namespace

from ramet.cli.output import print_names, print_object, print_objects
from ramet.cli.session import uri_of, verbs_of
from ramet.errors import CorruptError, InvalidError
from ramet.tags import matches, parse_selector, parse_tags


def create(arguments: Namespace) -> None:
    """Make empty volumes."""
    tags = parse_tags(arguments.set_tag)
    with verbs_of(arguments) as verbs:
        made = verbs.create_volumes(arguments.names, arguments.size, arguments.count, tags)
    print_names(made, (item.name for item in made), arguments.json)


def list_all(arguments: Namespace) -> None:
    """List the volumes."""
    list_kind(arguments, "volume")


def list_kind(arguments: Namespace, kind: str) -> None:
    """List the objects of a kind that have all tags asked for, with what they take if asked.

    Example: list_kind(parse(["-p", "/srv/pool", "volume", "list"]), "volume")
    """
    selector = parse_selector(arguments.tag)
    with verbs_of(arguments) as verbs:
        found = verbs.objects()
        spaces = verbs.spaces() if arguments.space else None
    chosen = [item for item in found if item.kind == kind and matches(item.tags, selector)]
    print_objects(chosen, spaces, arguments.json, time.time_ns())


def show(arguments: Namespace) -> None:
    """Describe one volume or snapshot."""
    with verbs_of(arguments) as verbs:
        found = verbs.find_object(arguments.name)
        uri = uri_of(arguments, verbs, found.name)
        try:
            takes = verbs.space(found.uuid), verbs.sharing(found.uuid)
        except CorruptError:
            # All else of an object with a damaged map can be told, and reading it says more.
            takes = None
    print_object(found, takes, uri, time.time_ns(), arguments.json)


def tag(arguments: Namespace) -> None:
    """Set and remove tags of volumes and snapshots."""
    tags = parse_tags(arguments.set_tag)
    if not tags and not arguments.remove_tag:
        raise InvalidError("tags_not_given", "no tags; hint: --set-tag K=V or --remove-tag K")
    with verbs_of(arguments) as verbs:
        tagged = verbs.tag(arguments.names, tags, arguments.remove_tag)
    print_names(tagged, (item.name for item in tagged), arguments.json)


def rename(arguments: Namespace) -> None:
    """Give an object another name."""
    with verbs_of(arguments) as verbs:
        renamed = verbs.rename(arguments.name, arguments.new_name)
    print_names([renamed], [renamed.name], arguments.json)


def resize(arguments: Namespace) -> None:
    """Give a volume another size."""
    with verbs_of(arguments) as verbs:
        resized = verbs.resize(arguments.name, arguments.size, arguments.shrink, arguments.force)
    print_names([resized], [resized.name], arguments.json)


def freeze(arguments: Namespace) -> None:
    """Turn volumes into snapshots."""
    with verbs_of(arguments) as verbs:
        frozen = verbs.freeze(arguments.names, arguments.force)
    print_names(frozen, (item.name for item in frozen), arguments.json)


def revert(arguments: Namespace) -> None:
    """Give volumes the content of snapshots; prints the snapshots of what was discarded."""
    if arguments.keep and arguments.discard:
        raise InvalidError("keep_and_discard", "--keep and --discard; hint: choose one of them")
    keep = arguments.keep or not arguments.discard
    pairs = _pairs(arguments.names, arguments.to)
    with verbs_of(arguments) as verbs:
        kept = verbs.revert(pairs, keep, arguments.take_size, arguments.force)
    print_names(kept, (item.name for item in kept), arguments.json)


def _pairs(names: list[str], pattern: str | None) -> list[tuple[str, str]]:
    if pattern is not None:
        return [(name, pattern.replace("{volume}", name)) for name in names]
    if len(names) != 2:
        text = f"{len(names)} names; hint: VOLUME SNAPSHOT, or VOLUME... --to '{{volume}}@nightly'"
        raise InvalidError("revert_names", text)
    return [(names[0], names[1])]
