"""The verbs of the trash over HTTP: what they are asked with, and where."""

from collections.abc import Callable
from typing import Any

import msgspec

from ramet.verbs import Verbs


class Restore(msgspec.Struct, forbid_unknown_fields=True):
    """Bring back what was deleted."""

    names: list[str]
    new_names: list[str] | None = None


class Empty(msgspec.Struct, forbid_unknown_fields=True):
    """End what is in the trash, or say what that would free; null: all of it."""

    names: list[str] | None = None
    dry_run: bool = False


class Window(msgspec.Struct, forbid_unknown_fields=True):
    """Say for how long what is deleted can be restored."""

    duration: str | float


def add_trash(
    post: Callable[[str, type[Any], Callable[[Any], object]], None], verbs: Verbs
) -> None:
    """Add the verbs that change something.

    Example: add_trash(post, verbs)
    """
    post("/v0/restores", Restore, lambda it: verbs.restore(it.names, it.new_names))
    post(
        "/v0/trash_ends",
        Empty,
        lambda it: (
            {"freed_bytes": verbs.trash_frees(it.names)}
            if it.dry_run
            else verbs.empty_trash(it.names)
        ),
    )
    post("/v0/trash_windows", Window, lambda it: verbs.set_trash_window(it.duration))
