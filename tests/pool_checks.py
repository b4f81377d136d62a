"""The second reader's word on a pool that a test leaves: clean, or what is wrong with it.

Invariant: the pool is closed, or what was copied or left by a kill.
"""

from pathlib import Path

from ramet.audit.check import check
from ramet.audit.report import Report


def assert_clean(pool_path: Path) -> Report:
    """Check a pool, which must be clean. Result: the figures."""
    report = check(pool_path)
    told = "\n".join(f"{it.code}: {it.text} ({it.place})" for it in report.findings)
    assert report.clean, f"{pool_path}: {report.findings_count} findings\n{told}"
    return report
