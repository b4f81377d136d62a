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


def taken_bytes(path: Path) -> int:
    """Count what the files of a pool take of the file system."""
    return sum(item.stat().st_blocks * 512 for item in path.rglob("*") if item.is_file())
