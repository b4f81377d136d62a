"""`ramet delete`."""

import sys
from argparse import Namespace

from ramet.cli.output import lock_text, print_json, print_names
from ramet.cli.session import verbs_of
from ramet.errors import InvalidError
from ramet.units import format_duration, format_size

NAMES_SHOWN_MAX = 10


def delete(arguments: Namespace) -> None:
    """Delete volumes and snapshots; a person at a terminal is asked first."""
    if arguments.dry_run:
        _say_what_it_frees(arguments)
        return
    if sys.stdin.isatty() and sys.stdout.isatty() and not arguments.json:
        confirm(arguments.names, "without the trash" if arguments.now else "")
    with verbs_of(arguments) as verbs:
        deleted = verbs.delete(arguments.names, arguments.force, arguments.now)
    print_names(deleted, (item.name for item in deleted), arguments.json)


def _say_what_it_frees(arguments: Namespace) -> None:
    names = set(arguments.names)
    with verbs_of(arguments) as verbs:
        freed_bytes = verbs.frees(arguments.names)
        locked = [it for it in verbs.objects() if it.lock and not names.isdisjoint(it[:2])]
        window_seconds = 0 if arguments.now else verbs.trash().window_seconds
    if arguments.json:
        now_bytes, later_bytes = (0, freed_bytes) if window_seconds else (freed_bytes, 0)
        told = {"names": arguments.names, "locked": [it.name for it in locked]}
        print_json({"freed_bytes": now_bytes, "freed_later_bytes": later_bytes, **told})
        return
    for it in locked:
        print(f"'{it.name}' is locked {lock_text(it.lock)}: it would be refused, and all with it")
    when = f" when {format_duration(window_seconds)} are over" if window_seconds else ""
    print(f"{format_size(freed_bytes)} would come back{when}; nothing was deleted")


def confirm(names: list[str], how: str) -> None:
    """Ask whether objects are to be deleted.

    Raises: InvalidError where the answer is not yes.
    Example: confirm(["db"], "for ever")
    """
    shown = ", ".join(names[:NAMES_SHOWN_MAX])
    more = len(names) - NAMES_SHOWN_MAX
    told = f"{shown}{f' and {more} more' if more > 0 else ''}{how and f', {how}'}"
    print(f"this deletes {told}", file=sys.stderr)
    print("delete? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise InvalidError("not_confirmed", "nothing was deleted; hint: answer y")
