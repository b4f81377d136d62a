"""The pace of a scrub: so many bytes a second, in small pieces, with pauses between them.

Imports the core's scrub, records. Called by this package. Invariant: what was missed in one second
is not made up for in the next: a disk that is busy is not pressed harder.
"""

import time
from collections.abc import Generator

from ramet import _core
from ramet.records import Damage, DamageHolder, Scrubbed

SCRUB_RATE = "64MiB"  # A second: a TiB in four and a half hours.
RATE_BYTES_MIN = 1 << 20  # So that a pause between two pieces is short.
PIECE_BYTES = 256 << 10
TELL_SECONDS = 0.5
LAG_SECONDS_MAX = 0.5


def run_scrub(scrub: _core.Scrub, rate_bytes: int | None) -> Generator[Scrubbed, None, None]:
    """Read on at a rate, and tell how far that is, at the end too.

    Example: list(run_scrub(pool._core.scrub(), None))
    """
    told_count, told_at = 0, time.monotonic()
    due = told_at
    while read_bytes := scrub.step(PIECE_BYTES):
        now = time.monotonic()
        if rate_bytes is not None:
            due = max(due, now - LAG_SECONDS_MAX) + read_bytes / rate_bytes
        if now - told_at >= TELL_SECONDS:
            told = _describe(scrub, told_count, is_done=False)
            told_count += len(told.findings)
            told_at = now
            yield told
        if due > now:
            time.sleep(due - now)
    yield _describe(scrub, 0, is_done=True)


def _describe(scrub: _core.Scrub, told_count: int, *, is_done: bool) -> Scrubbed:
    read_bytes, all_bytes, findings_count = scrub.progress()
    findings = scrub.findings()[told_count:] if findings_count > told_count else []
    return Scrubbed(
        read_bytes,
        all_bytes,
        findings_count,
        is_done,
        [
            Damage(code, text, [DamageHolder(*holder) for holder in holders], count)
            for code, text, holders, count in findings
        ],
    )
