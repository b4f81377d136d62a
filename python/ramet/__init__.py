"""Ramet: `fork()` for disks. Block volumes, snapshots and clones, thousands in one commit.

The public names are those of `__all__`. They are loaded when first used, so that `import ramet`
costs next to nothing.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ramet.errors import (
        BusyError,
        ConflictError,
        CorruptError,
        FullError,
        InternalError,
        InvalidError,
        NotFoundError,
        RametError,
        ReadOnlyError,
        UnavailableError,
    )
    from ramet.listening import NbdTls
    from ramet.pool import NbdServer, Pool, Snapshot, Volume, accept_loss, create
    from ramet.pool import open as open  # noqa: A004
    from ramet.records import LossReport, ObjectRecord

__version__ = "0.1.0"

__all__ = [
    "BusyError",
    "ConflictError",
    "CorruptError",
    "FullError",
    "InternalError",
    "InvalidError",
    "LossReport",
    "NbdServer",
    "NbdTls",
    "NotFoundError",
    "ObjectRecord",
    "Pool",
    "RametError",
    "ReadOnlyError",
    "Snapshot",
    "UnavailableError",
    "Volume",
    "accept_loss",
    "create",
    "open",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'ramet' has no attribute '{name}'")
    from importlib import import_module

    if name.endswith("Error"):
        home = "ramet.errors"
    elif name.endswith(("Record", "Report")):
        home = "ramet.records"
    elif name == "NbdTls":
        home = "ramet.listening"
    else:
        home = "ramet.pool"
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
