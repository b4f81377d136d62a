"""What the keeper says of policies and remotes: plain values that go to JSON and back.

Pure.
"""

from typing import Any, NamedTuple


class PolicyStatus(NamedTuple):
    """A policy, and how it is."""

    name: str
    schedule: str
    """As it was set; empty: it takes none."""
    keep: str
    volumes_count: int
    snapshots_count: int
    last_ns: int | None
    """When its newest snapshot here was taken."""
    next_ns: int | None
    """When it runs next; None: it has no schedule or no volume."""
    kept_count: int
    """Snapshots that no rule keeps, and something holds."""
    error: str | None
    """Why its last run failed, or what of it."""
    remotes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Give it as a dictionary that `json.dumps` takes; `PolicyStatus(**value)` reads it."""
        return self._asdict()


class RemoteStatus(NamedTuple):
    """A remote, and how far behind it is."""

    name: str
    url: str
    reached_ns: int | None
    """When it last answered; None: it never did."""
    lag_seconds: float
    """Age of the oldest snapshot that is to be sent; 0: none is."""
    lag_count: int
    """Snapshots that are to be sent."""
    lag_bytes: int
    """Bytes of the blocks that are to be sent for them."""
    held_count: int
    """Snapshots that are kept as bases for it."""
    is_sending: bool
    error: str | None
    note: str | None
    """What else is to be known: that bases were given up."""

    def to_json(self) -> dict[str, Any]:
        """Give it as a dictionary that `json.dumps` takes; `RemoteStatus(**value)` reads it."""
        return self._asdict()


class Report(NamedTuple):
    """What a run of a policy did."""

    policy: str
    created: list[str]
    dropped: list[str]
    error: str | None

    def to_json(self) -> dict[str, Any]:
        """Give it as a dictionary that `json.dumps` takes; `Report(**value)` reads it."""
        return self._asdict()
