"""`ramet snapshot create|list|show|tag`."""

from argparse import Namespace

from ramet.cli.output import print_names
from ramet.cli.session import verbs_of
from ramet.cli.volume import list_kind, show, tag
from ramet.errors import InvalidError
from ramet.tags import parse_selector, parse_tags

__all__ = ["create", "list_all", "show", "tag"]


def create(arguments: Namespace) -> None:
    """Take one instant of volumes."""
    selector, tags = parse_selector(arguments.tag), parse_tags(arguments.set_tag)
    if bool(arguments.volumes) + arguments.all_volumes + bool(selector) != 1:
        text = "which volumes? hint: name them, or --all, or --tag, one of them"
        raise InvalidError("volumes_not_given", text)
    with verbs_of(arguments) as verbs:
        made = verbs.snapshot(
            arguments.volumes, arguments.all_volumes, arguments.name, selector, tags
        )
    print_names(made, (item.name for item in made), arguments.json)


def list_all(arguments: Namespace) -> None:
    """List the snapshots."""
    list_kind(arguments, "snapshot")
