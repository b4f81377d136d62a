"""The verbs of locks over HTTP: what they are asked with, and where.

Invariant: a secret travels in a body only, never in an address, which others log.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from ramet.verbs import Verbs


class Lock(msgspec.Struct, forbid_unknown_fields=True):
    """Lock snapshots."""

    names: list[str]
    duration: str | float
    mode: str = "governance"


class Unlock(msgspec.Struct, forbid_unknown_fields=True):
    """Release locks."""

    names: list[str]
    secret: str | None = None


class Confirm(msgspec.Struct, forbid_unknown_fields=True):
    """Confirm the time of day."""

    secret: str


class Secret(msgspec.Struct, forbid_unknown_fields=True):
    """Set the secret that releases governance locks."""

    secret: str
    old: str | None = None


class CoolingOff(msgspec.Struct, forbid_unknown_fields=True):
    """Say for how long a lock can be taken back."""

    duration: str | float
    secret: str | None = None


def add_locks(
    post: Callable[[str, type[Any], Callable[[Any], object]], None], verbs: Verbs
) -> None:
    """Add the verbs that change something.

    Example: add_locks(post, verbs)
    """
    post(
        "/v0/locks",
        Lock,
        lambda it: [made.to_json() for made in verbs.lock(it.names, it.duration, it.mode)],
    )
    post(
        "/v0/unlocks",
        Unlock,
        lambda it: [made.to_json() for made in verbs.unlock(it.names, it.secret)],
    )
    post(
        "/v0/lock_confirms",
        Confirm,
        lambda it: {"earlier_seconds": verbs.confirm_lock_clock(it.secret)},
    )
    post("/v0/lock_secrets", Secret, lambda it: verbs.set_lock_secret(it.secret, it.old))
    post("/v0/cooling_offs", CoolingOff, lambda it: verbs.set_cooling_off(it.duration, it.secret))
