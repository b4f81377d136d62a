"""Policies and remotes over HTTP: parse, call, answer; no logic.

Imports keeper. Called by this package.
"""

from typing import Any

import msgspec

from ramet.keeper import Keeper


class Rules(msgspec.Struct, forbid_unknown_fields=True):
    """Replace all policies and remotes."""

    text: str


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """Set or leave out one policy or remote."""

    kind: str
    name: str
    value: dict[str, Any] | None = None


class Names(msgspec.Struct, forbid_unknown_fields=True):
    """Policies to run, or remotes to look at."""

    names: list[str] = []


def told(keeper: Keeper) -> dict[str, object]:
    """Give what was set."""
    return {"text": keeper.rules_text()}


def plan(keeper: Keeper, days: str) -> list[dict[str, object]]:
    """Give the runs of the days ahead."""
    return [it.to_json() for it in keeper.plan(float(days) if _is_number(days) else -1.0)]


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()
