"""How full a pool is, and when that is worth a warning.

Pure. Imports errors and units. Called by pool, service and cli/serve. Invariant: the worse of the
pool's limit and its file system counts.
"""

from collections.abc import Mapping
from typing import NamedTuple

from ramet.errors import InvalidError
from ramet.units import format_size

OK, LOW, CRITICAL = "ok", "low", "critical"
SLACK = 0.01  # What has to come back before a warning is taken back, so that it does not flutter.


class Thresholds(NamedTuple):
    """From which part in use on space is called low, and critical."""

    low: float = 0.85
    critical: float = 0.95


DEFAULT = Thresholds()


class Fullness(NamedTuple):
    """What a pool takes, and what there is."""

    taken_bytes: int
    limit_bytes: int
    """What its files may take; 0: no limit."""
    file_system_free_bytes: int
    file_system_bytes: int

    @property
    def used(self) -> float:
        """The part in use, 0 to 1: of the limit, or of the file system where that is more."""
        return max(self._used_of_limit, self._used_of_file_system)

    @property
    def _used_of_limit(self) -> float:
        return self.taken_bytes / self.limit_bytes if self.limit_bytes else 0.0

    @property
    def _used_of_file_system(self) -> float:
        if not self.file_system_bytes:
            return 0.0
        return 1 - self.file_system_free_bytes / self.file_system_bytes

    def state(self, thresholds: Thresholds = DEFAULT) -> str:
        """Give `ok`, `low` or `critical`.

        Example: Fullness(90, 100, 500, 1000).state() == "low"
        """
        if self.used >= thresholds.critical:
            return CRITICAL
        return LOW if self.used >= thresholds.low else OK

    def describe(self) -> str:
        """Say how much of what is in use.

        Example: Fullness(90, 100, 500, 1000).describe()
        """
        if self.limit_bytes and self._used_of_limit >= self._used_of_file_system:
            what, left_bytes = "the pool's limit", self.limit_bytes - self.taken_bytes
        else:
            what, left_bytes = "its file system", self.file_system_free_bytes
        return f"{self.used:.1%} of {what} in use, {format_size(max(0, left_bytes))} left"


class Watch:
    """Says once when it gets worse or better."""

    def __init__(self, thresholds: Thresholds = DEFAULT) -> None:
        self._thresholds = thresholds
        self._state = OK

    def observe(self, now: Fullness) -> str | None:
        """Look again. Result: one line, where there is news.

        Example: Watch().observe(Fullness(90, 100, 500, 1000))
        """
        state = now.state(self._thresholds)
        if _RANK[state] < _RANK[self._state]:
            # Better: only where it stays so a little further on.
            lower = Thresholds(*(threshold - SLACK for threshold in self._thresholds))
            state = now.state(lower)
        if state == self._state:
            return None
        self._state = state
        hint = "" if state == OK else "; hint: delete what is not needed, `ramet reclaim --all`"
        return f"space {state}: {now.describe()}{hint}"


_RANK: Mapping[str, int] = {OK: 0, LOW: 1, CRITICAL: 2}


def parse_thresholds(low: str | None, critical: str | None) -> Thresholds:
    """Read thresholds in percent; None: the default.

    Raises: InvalidError (code space_thresholds) where they are none.
    Example: parse_thresholds("80", "90%") == Thresholds(0.8, 0.9)
    """
    try:
        found = Thresholds(
            *(
                default if text is None else float(text.removesuffix("%")) / 100
                for text, default in zip((low, critical), DEFAULT, strict=True)
            )
        )
    except ValueError:
        found = Thresholds(0, 0)
    if not 0 < found.low <= found.critical <= 1:
        raise InvalidError(
            "space_thresholds",
            f"space is to be low from '{low}' and critical from '{critical}' on;"
            " hint: percent, --space-low 85 --space-critical 95",
        )
    return found
