"""`ramet verify`: snapshots of a pool, or streams in files.

Imports session; replication where files are given. Invariant: what is the name of a file is a file;
a snapshot of that name is meant by its UUID.
"""

import sys
from argparse import Namespace
from pathlib import Path

from ramet.cli.output import print_json
from ramet.cli.progress import show_bytes
from ramet.cli.session import verbs_of
from ramet.errors import InvalidError
from ramet.records import Verified
from ramet.verbs import PoolVerbs, Verbs


def verify(arguments: Namespace) -> None:
    """Read and hash; print the root and name of each snapshot once it is known."""
    files = [Path(name) for name in arguments.names if "/" in name or Path(name).is_file()]
    if not files:
        _verify_snapshots(arguments)
    elif len(files) == len(arguments.names):
        _verify_files(files, arguments.json)
    else:
        raise InvalidError(
            "files_and_snapshots",
            f"'{files[0]}' is a file, others are not; hint: verify files, or snapshots of a pool",
        )


def _verify_snapshots(arguments: Namespace) -> None:
    found = []
    with verbs_of(arguments) as verbs:
        for name in arguments.names:
            verified = _verify(verbs, name)
            found.append(verified.to_json())
            if not arguments.json:
                print(f"{verified.root}  {verified.name}", flush=True)
    if arguments.json:
        print_json(found)


def _verify(verbs: Verbs, name: str) -> Verified:
    if not isinstance(verbs, PoolVerbs):
        return verbs.verify(name)
    with show_bytes(f"verifying {name}") as show:
        return verbs.pool.verify(name, progress=show)


def _verify_files(files: list[Path], as_json: bool) -> None:
    from ramet.replication import verify_files

    with show_bytes("verifying") as show:
        found = verify_files(files, progress=show)
    if as_json:
        print_json([it.to_json() for it in found])
        return
    for it in found:
        print(f"{it.root}  {it.name}")
        if not it.is_proved:
            print(f"'{it.name}' is whole; proved is what builds on it", file=sys.stderr)
