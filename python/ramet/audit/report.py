"""What a check found: findings, notes and counts.

Pure. Called by all of audit, printed by cli/check.py. Invariant: a pool without a finding is clean;
a note says what is not usual and harms nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

FINDINGS_MAX = 1000  # Kept to be shown; the others are only counted.
HOLDERS_MAX = 10  # Objects named in one finding; the others are only counted.
NOTES_MAX = 100

Progress = Callable[[str, int, int], None]
"""Called with what is done now, bytes read so far, and bytes to be read in all."""


class Place(NamedTuple):
    """Where something is wrong; what does not apply is None."""

    file: str
    """Relative to the pool's directory."""
    offset_bytes: int | None = None


class Holder(NamedTuple):
    """A range of an object that needs what is wrong."""

    name: str
    offset_bytes: int
    length_bytes: int


@dataclass
class Finding:
    """One thing that is wrong."""

    code: str
    """Stable; docs/guides/check.md lists them."""
    text: str
    place: Place
    holders: list[Holder] = field(default_factory=list)
    """At most `HOLDERS_MAX`."""
    holders_count: int = 0

    def hold(self, holder: Holder) -> None:
        """Note that an object needs what is wrong."""
        self.holders_count += 1
        if len(self.holders) < HOLDERS_MAX:
            self.holders.append(holder)

    def to_json(self) -> dict[str, object]:
        """Give the finding as a dictionary."""
        return {
            "code": self.code,
            "text": self.text,
            "file": self.place.file,
            "offset_bytes": self.place.offset_bytes,
            "holders": [holder._asdict() for holder in self.holders],
            "holders_count": self.holders_count,
        }


COUNTS: Final = (
    "volumes_count",
    "snapshots_count",
    "segments_count",
    "batches_count",
    "records_count",
    "blocks_count",
    "nodes_count",
    "read_bytes",
    "held_bytes",
    "dead_bytes",
    "uncounted_bytes",
)
"""What is counted, in the order in which it is shown."""


class Report:
    """What a check found so far. `count` and `add` are called while it goes on."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.findings_count = 0
        self.notes: list[str] = []
        self.counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
        self.last_sequence = 0
        """The number of the last batch that was looked at."""

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return self.findings_count == 0

    def add(self, code: str, text: str, place: Place) -> Finding:
        """Add a finding. Result: it, so that its holders can be named later."""
        finding = Finding(code, text, place)
        self.findings_count += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)
        return finding

    def take(self, other: "Report") -> None:
        """Take all that another report has."""
        self.findings += other.findings
        self.findings_count += other.findings_count
        self.notes += other.notes
        for name, value in other.counts.items():
            self.counts[name] += value

    def note(self, text: str) -> None:
        """Add a note."""
        if len(self.notes) < NOTES_MAX:
            self.notes.append(text)

    def count(self, name: str, by: int = 1) -> None:
        """Count `by` more of `name`, one of `COUNTS`."""
        self.counts[name] += by

    def to_json(self) -> dict[str, object]:
        """Give the report as a dictionary."""
        return {
            "clean": self.clean,
            "findings_count": self.findings_count,
            "findings": [finding.to_json() for finding in self.findings],
            "notes": self.notes,
            "last_sequence": self.last_sequence,
            **self.counts,
        }
