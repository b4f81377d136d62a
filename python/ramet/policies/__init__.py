"""Policies: when snapshots are taken, of what, how long they are kept, and where they are sent.

Pure: everything here decides, nothing acts; times and objects are given. Docs:
docs/internals/policies.md.
"""

from ramet.policies.plan import (
    Drop,
    Held,
    Run,
    drops,
    due,
    forecast,
    next_runs,
    snapshots_of,
    volumes_of,
)
from ramet.policies.rules import (
    POLICY_TAG,
    Keep,
    Policy,
    Remote,
    Rules,
    changed,
    not_found,
    parse,
    snapshot_pattern,
)

__all__ = [
    "POLICY_TAG",
    "Drop",
    "Held",
    "Keep",
    "Policy",
    "Remote",
    "Rules",
    "Run",
    "changed",
    "drops",
    "due",
    "forecast",
    "next_runs",
    "not_found",
    "parse",
    "snapshot_pattern",
    "snapshots_of",
    "volumes_of",
]
