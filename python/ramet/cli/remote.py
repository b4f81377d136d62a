"""`ramet remote add|list|remove` and `ramet replicate`.

Imports policy (the command), client. Invariant: `replicate` returns when each remote has all, or
with why not.
"""

import sys
import time
from argparse import Namespace
from typing import Any

from ramet.cli.output import print_json, print_table
from ramet.cli.policy import keeper_of
from ramet.cli.progress import show_bytes
from ramet.client import Client
from ramet.errors import UnavailableError
from ramet.units import format_age, format_duration, format_size

POLL_SECONDS = 0.5


def add(arguments: Namespace) -> None:
    """Name a place to send to."""
    it = arguments
    value = {
        "url": it.url,
        "name": it.pattern,
        "rate": it.rate,
        "zstd": it.zstd,
        "hold": it.hold,
        "hold_size": it.hold_size,
    }
    with keeper_of(it) as keeper:
        given = {key: held for key, held in value.items() if held}
        keeper.change_rules("remote", it.name, given)


def list_all(arguments: Namespace) -> None:
    """List the remotes."""
    with keeper_of(arguments) as keeper:
        found = keeper.remotes()
    if arguments.json:
        print_json(found)
        return
    now_ns = time.time_ns()
    rows = [
        [
            it["name"],
            it["url"],
            "-" if it["reached_ns"] is None else format_age(it["reached_ns"], now_ns),
            format_duration(it["lag_seconds"]) if it["lag_count"] else "-",
            str(it["lag_count"] or "-"),
            format_size(it["lag_bytes"]) if it["lag_count"] else "-",
            "sending" if it["is_sending"] else "",
        ]
        for it in found
    ]
    print_table(["NAME", "URL", "REACHED>", "LAG>", "SNAPSHOTS>", "BYTES>", ""], rows)
    for it in found:
        for text in (it["note"], it["error"]):
            if text:
                print(f"'{it['name']}': {text}", file=sys.stderr)


def remove(arguments: Namespace) -> None:
    """Forget a remote."""
    with keeper_of(arguments) as keeper:
        keeper.change_rules("remote", arguments.name, None)


def replicate(arguments: Namespace) -> None:
    """Bring remotes in step."""
    with keeper_of(arguments) as keeper, show_bytes("sending") as show:
        if not isinstance(keeper, Client):
            sent = keeper.keeper.replicate(arguments.names, show)
            if arguments.json:
                print_json(sent)
            else:
                print("\n".join(sent), end="\n" if sent else "")
            return
        keeper.wake_remotes(arguments.names)
        left = _wait(keeper, arguments.names)
    if arguments.json:
        print_json(left)


def _wait(client: Client, names: list[str]) -> list[dict[str, Any]]:
    """Wait until the service has brought remotes in step.

    Raises: UnavailableError (code remote_behind).
    """
    while True:
        time.sleep(POLL_SECONDS)
        found = [it for it in client.remotes() if not names or it["name"] in names]
        failed = [it for it in found if it["error"] and not it["is_sending"]]
        behind = [
            it for it in found if it["lag_count"] or it["is_sending"] or it["reached_ns"] is None
        ]
        if failed:
            text = "; ".join(f"'{it['name']}': {it['error']}" for it in failed)
            raise UnavailableError("remote_behind", f"{text}; hint: it is tried again by itself")
        if not behind:
            return found
