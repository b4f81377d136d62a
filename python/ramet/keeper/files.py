"""The keeper's two files in a pool: what it is to do, and what remotes are known to have.

Imports errors. Invariants: a file is whole or the one before, over a crash too; a lost or strange
state is "nothing is known", which drops nothing.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ramet.errors import UnavailableError

RULES_NAME = "policies.toml"
STATE_NAME = "replication.json"


class Known(NamedTuple):
    """What is known of a remote."""

    url: str
    reached_ns: int
    """When it last answered."""
    have: frozenset[str]
    """UUIDs of the snapshots that it has, of those that are here."""


def read_rules(pool_path: Path) -> str:
    """Give the text of the pool's policies; none were set: an empty text.

    Raises: UnavailableError (code rules_unreadable).
    Example: read_rules(Path("/srv/pool"))
    """
    try:
        return (pool_path / RULES_NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UnavailableError(
            "rules_unreadable", f"cannot read '{RULES_NAME}' of the pool: {error}; hint: mend it"
        ) from error


def write_rules(pool_path: Path, text: str) -> None:
    """Replace the pool's policies; durable on return."""
    write_durable(pool_path / RULES_NAME, text)


def read_known(pool_path: Path) -> dict[str, Known]:
    """Give what is known of remotes, by name."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        told = json.loads((pool_path / STATE_NAME).read_bytes())
        return {
            str(name): Known(str(it["url"]), int(it["reached_ns"]), frozenset(map(str, it["have"])))
            for name, it in told["remotes"].items()
        }
    return {}


def write_known(pool_path: Path, known: dict[str, Known]) -> None:
    """Replace what is known of remotes; durable on return."""
    told = {
        name: {"url": it.url, "reached_ns": it.reached_ns, "have": sorted(it.have)}
        for name, it in known.items()
    }
    write_durable(pool_path / STATE_NAME, json.dumps({"remotes": told}))


def write_durable(path: Path, text: str) -> None:
    """Replace a file so that no crash leaves half of it.

    Raises: UnavailableError (code rules_unwritable).
    Example: write_durable(Path("/srv/pool/policies.toml"), "")
    """
    fresh = path.with_name(f"{path.name}.new")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise UnavailableError(
            "rules_unwritable", f"cannot write '{path.name}' of the pool: {error}; hint: its disk"
        ) from error
