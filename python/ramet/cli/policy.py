"""`ramet policy set|apply|dump|list|plan|run|remove`.

Imports client; keeper where the pool is opened here.
"""

import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ramet.cli.output import print_json, print_table
from ramet.cli.session import verbs_of
from ramet.client import Client
from ramet.config import find_pool_path
from ramet.errors import InvalidError, UnavailableError
from ramet.units import format_age, format_time

if TYPE_CHECKING:
    from ramet.keeper import PlainKeeper

RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
NAMES_SHOWN_MAX = 3


@contextmanager
def keeper_of(arguments: Namespace) -> Iterator["Client | PlainKeeper"]:
    """Give the service that holds the pool, or a keeper over the pool, opened here."""
    with verbs_of(arguments) as verbs:
        if isinstance(verbs, Client):
            yield verbs
            return
        from ramet.keeper import Keeper, PlainKeeper
        from ramet.verbs import PoolVerbs

        assert isinstance(verbs, PoolVerbs), "what is no client holds the pool"
        yield PlainKeeper(Keeper(verbs.pool, find_pool_path(arguments.pool)))


def set_one(arguments: Namespace) -> None:
    """Make a policy, or replace it."""
    it = arguments
    counts = {rule: getattr(it, rule) for rule in RULES if getattr(it, rule) is not None}
    if it.keep_all and counts:
        raise InvalidError("keep_twice", "--keep-all and a number to keep; hint: give one of them")
    if not it.keep_all and not counts:
        raise InvalidError(
            "keep_not_given", "how many are kept? hint: --last, --hourly, --daily, or --keep-all"
        )
    value = {
        "keep": "all" if it.keep_all else counts,
        "every": it.every,
        "cron": it.cron,
        "volumes": it.volume,
        "tags": it.tag,
        "name": it.pattern,
        "remotes": it.remote,
        "before": _words(it.before),
        "after": _words(it.after),
        "timeout": it.timeout,
    }
    with keeper_of(it) as keeper:
        given = {key: held for key, held in value.items() if held}
        keeper.change_rules("policy", it.name, given)


def apply(arguments: Namespace) -> None:
    """Replace all policies and remotes."""
    try:
        if arguments.file == "-":
            text = sys.stdin.read()
        else:
            text = Path(arguments.file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(
            "rules_file", f"cannot read '{arguments.file}': {error}; hint: a file of TOML"
        ) from error
    with keeper_of(arguments) as keeper:
        keeper.set_rules(text)


def dump(arguments: Namespace) -> None:
    """Print what was set."""
    with keeper_of(arguments) as keeper:
        text = keeper.rules_text()
    if arguments.json:
        print_json({"text": text})
    else:
        print(text, end="" if text.endswith("\n") or not text else "\n")


def list_all(arguments: Namespace) -> None:
    """List the policies."""
    with keeper_of(arguments) as keeper:
        found = keeper.policies()
    if arguments.json:
        print_json(found)
        return
    now_ns = time.time_ns()
    rows = [
        [
            it["name"],
            it["schedule"] or "-",
            it["keep"],
            str(it["volumes_count"]),
            str(it["snapshots_count"]),
            "-" if it["last_ns"] is None else format_age(it["last_ns"], now_ns),
            "-" if it["next_ns"] is None else _short(it["next_ns"]),
            " ".join(it["remotes"]) or "-",
        ]
        for it in found
    ]
    print_table(
        ["NAME", "WHEN", "KEEP", "VOLUMES>", "SNAPSHOTS>", "LAST>", "NEXT", "REMOTES"], rows
    )
    for it in found:
        if it["kept_count"]:
            print(f"'{it['name']}': {it['kept_count']} more are kept: attached, locked, or bases")
        if it["error"]:
            print(f"'{it['name']}': {it['error']}", file=sys.stderr)


def plan(arguments: Namespace) -> None:
    """Show the days ahead."""
    with keeper_of(arguments) as keeper:
        runs = keeper.plan(arguments.days)
    if arguments.json:
        print_json(runs)
        return
    rows = [
        [_short(it["at_ns"]), it["policy"], _some(it["creates"]), _some(it["drops"])] for it in runs
    ]
    print_table(["AT", "POLICY", "CREATES", "DROPS"], rows)


def run(arguments: Namespace) -> None:
    """Run policies now."""
    with keeper_of(arguments) as keeper:
        reports = keeper.run_policies(arguments.names)
    if arguments.json:
        print_json(reports)
    else:
        for it in reports:
            for name in it["created"]:
                print(name)
            if it["dropped"]:
                print(f"'{it['policy']}' dropped {_some(it['dropped'])}", file=sys.stderr)
    errors = [f"'{it['policy']}': {it['error']}" for it in reports if it["error"]]
    if errors:
        raise UnavailableError(
            "policy_failed", "; ".join(errors) + "; hint: see `ramet policy list`"
        )


def remove(arguments: Namespace) -> None:
    """End a policy."""
    with keeper_of(arguments) as keeper:
        keeper.change_rules("policy", arguments.name, None)


def _words(text: str | None) -> list[str] | None:
    if text is None:
        return None
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidError("command_words", f"{text!r}: {error}; hint: quote as a shell") from error


def _short(time_ns: int) -> str:
    return f"{format_time(time_ns)[:19]}Z"


def _some(names: list[str]) -> str:
    if not names:
        return "-"
    shown = " ".join(names[:NAMES_SHOWN_MAX])
    left_count = len(names) - NAMES_SHOWN_MAX
    return f"{shown} and {left_count} more" if left_count > 0 else shown
