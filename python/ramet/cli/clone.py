"""`ramet clone`."""

from argparse import Namespace

from ramet.cli.output import print_names
from ramet.cli.session import verbs_of
from ramet.tags import parse_tags


def clone(arguments: Namespace) -> None:
    """Make volumes that start as another object."""
    with verbs_of(arguments) as verbs:
        made = verbs.clone(
            arguments.source,
            arguments.names,
            arguments.count,
            arguments.size,
            parse_tags(arguments.set_tag),
        )
    print_names(made, (item.name for item in made), arguments.json)
