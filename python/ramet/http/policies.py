"""Policies and remotes over HTTP: parse, call, answer; no logic.

Imports errors. Called by this package.
"""

from typing import Any

import msgspec

from ramet.errors import InvalidError


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


def days_of(text: str) -> float:
    """Read a number of days.

    Raises: InvalidError (code bad_request).
    Example: days_of("1.5")
    """
    try:
        return float(text)
    except ValueError as error:
        raise InvalidError(
            "bad_request", f"days={text!r} is no number; hint: see docs/reference/http.md"
        ) from error
