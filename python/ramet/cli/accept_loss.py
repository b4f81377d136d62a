"""`ramet check --accept-loss`: go back to before the damage of a log or a checkpoint.

Invariant: nothing is written before the pool was named twice, as an option and by who is asked, or
as the option's value.
"""

import sys
from argparse import Namespace
from pathlib import Path

from ramet.cli.locks import read_secret
from ramet.cli.output import print_json
from ramet.config import find_pool_path
from ramet.errors import CorruptError, InvalidError

DAMAGED = ("log_damaged", "node_damaged", "checkpoint_damaged")


def accept_loss(arguments: Namespace) -> None:
    """Open a pool whose log is damaged at the last good place, and say what was lost."""
    from ramet.pool import accept_loss as accept  # The core is loaded only where it is needed.
    from ramet.pool import open as open_pool

    path = find_pool_path(arguments.pool)
    report = None
    try:
        open_pool(path, read_only=True).close()
    except CorruptError as error:
        if error.code not in DAMAGED:
            raise
        _confirm(path, arguments.accept_loss, error)
        given = arguments.secret_file
        secret = None if given is None else read_secret(given, "")
        report = accept(path, lock_secret=secret)
    if arguments.json:
        print_json(None if report is None else report.to_json())
    elif report is None:
        print("the log is whole: there is no loss to accept")
    else:
        print(report.text, end="")
        if report.directory:
            print(f"the rest of the log is in '{path / report.directory}'")


def _confirm(path: Path, given: str, error: CorruptError) -> None:
    """Ask for the pool's name, unless it was given.

    Raises: InvalidError (code not_confirmed) where it is another, or nobody can be asked.
    Example: _confirm(Path("/srv/pool"), "pool", error)
    """
    name = path.absolute().name
    if not given and sys.stdin.isatty():
        print(
            f"{error.text}\n"
            f"this takes pool '{path}', all its volumes and snapshots, back to before the damage;\n"
            f"what was written later and cannot be followed is lost, and kept in '{path}/lost'\n"
            f"type the pool's name, {name}: ",
            end="",
            file=sys.stderr,
            flush=True,
        )
        given = sys.stdin.readline().strip()
    if given not in (name, str(path)):
        asked = f"'{given}' is not the pool's name" if given else "nobody confirmed it"
        text = f"{asked}: nothing was changed; hint: --accept-loss {name}"
        raise InvalidError("not_confirmed", text)
