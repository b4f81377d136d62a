"""`ramet diff`."""

from argparse import Namespace

from ramet.cli.output import print_json, print_table
from ramet.cli.session import verbs_of


def diff(arguments: Namespace) -> None:
    """Show the extents in which two objects differ: offset, length, whether anything is mapped."""
    with verbs_of(arguments) as verbs:
        found = verbs.diff(arguments.before, arguments.after)
    if arguments.json:
        print_json(found.to_json())
        return
    if found.before_size_bytes != found.after_size_bytes:
        print(f"size  {found.before_size_bytes}  {found.after_size_bytes}")
    if not found.extents:
        return
    rows = [
        [str(extent.offset_bytes), str(extent.length_bytes), "data" if extent.mapped else "zeros"]
        for extent in found.extents
    ]
    print_table(["OFFSET>", "LENGTH>", "NOW"], rows)
