"""`ramet trash list|restore|empty|window`."""

import sys
import time
from argparse import Namespace

from ramet.cli.delete import confirm
from ramet.cli.output import print_json, print_names, print_table
from ramet.cli.session import verbs_of
from ramet.errors import InvalidError
from ramet.records import Trash
from ramet.units import format_age, format_duration, format_size

NONE = "none"


def show(arguments: Namespace) -> None:
    """List what can be restored, and until when."""
    with verbs_of(arguments) as verbs:
        trash = verbs.trash()
        freed_bytes = verbs.trash_frees(None)
    if arguments.json:
        print_json({**trash.to_json(), "freed_bytes": freed_bytes})
        return
    now_ns = time.time_ns()
    rows = [
        [
            it.object.name,
            it.object.kind,
            format_size(it.object.mapped_bytes),
            format_age(it.object.created_ns, now_ns),
            f"for {format_duration(it.remaining_seconds)}",
            it.object.uuid,
        ]
        for it in trash.objects
    ]
    if rows:
        print_table(["NAME", "KIND", "MAPPED>", "AGE", "KEPT", "UUID"], rows)
        print()
    held = f"{len(rows)} in the trash, which hold {format_size(freed_bytes)} alone"
    print(f"{held}; {_window(trash)}")


def restore(arguments: Namespace) -> None:
    """Bring back what was deleted."""
    new = arguments.new_name
    if new is not None and len(arguments.names) > 1:
        text = f"one --name for {len(arguments.names)}; hint: restore them one by one"
        raise InvalidError("counts_differ", text)
    with verbs_of(arguments) as verbs:
        restored = verbs.restore(arguments.names, None if new is None else [new])
    print_names(restored, (item.name for item in restored), arguments.json)


def empty(arguments: Namespace) -> None:
    """End what is in the trash; a person at a terminal is asked first."""
    if bool(arguments.names) == arguments.all:
        raise InvalidError("trash_choice", "what of it? hint: names or UUIDs, or --all")
    names = arguments.names or None
    with verbs_of(arguments) as verbs:
        if arguments.dry_run:
            _say_what_it_frees(verbs.trash_frees(names), arguments)
            return
        if sys.stdin.isatty() and sys.stdout.isatty() and not arguments.json:
            confirm(names or [it.object.name for it in verbs.trash().objects], "for ever")
        ended = verbs.empty_trash(names)
    print_names(ended, (item.name for item in ended), arguments.json)


def window(arguments: Namespace) -> None:
    """Say for how long what is deleted can be restored."""
    with verbs_of(arguments) as verbs:
        verbs.set_trash_window("0" if arguments.duration == NONE else arguments.duration)
        trash = verbs.trash()
    if arguments.json:
        print_json({"window_seconds": trash.window_seconds})
        return
    print(_window(trash))


def _window(trash: Trash) -> str:
    if trash.window_seconds == 0:
        return "what is deleted now is not kept"
    return f"what is deleted now is kept for {format_duration(trash.window_seconds)}"


def _say_what_it_frees(freed_bytes: int, arguments: Namespace) -> None:
    if arguments.json:
        print_json({"freed_bytes": freed_bytes})
        return
    print(f"{format_size(freed_bytes)} would come back; nothing was ended")
