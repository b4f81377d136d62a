"""Which snapshots are kept.

Pure. Docs: docs/internals/policies.md, "What is kept". Invariants: ages are never compared, only
snapshots counted; dropping after each run keeps what dropping once at the end would.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from ramet.policies.rules import Everything, Keep
from ramet.policies.schedule import moment

_BUCKETS: dict[str, Callable[[datetime], tuple[int, ...]]] = {
    "hourly": lambda it: (it.year, it.month, it.day, it.hour, it.fold),
    "daily": lambda it: (it.year, it.month, it.day),
    "weekly": lambda it: it.isocalendar()[:2],
    "monthly": lambda it: (it.year, it.month),
    "yearly": lambda it: (it.year,),
}


def kept(times_ns: Sequence[int], keep: Keep | Everything, zone: ZoneInfo) -> set[int]:
    """Give the places in `times_ns` of the snapshots that a rule keeps.

    `times_ns`: when the snapshots of one volume were taken, in any order.
    Example: kept([1, 2, 3], Keep(last=2), ZoneInfo("UTC"))
    """
    if isinstance(keep, str):
        return set(range(len(times_ns)))
    newest_first = sorted(range(len(times_ns)), key=lambda place: (times_ns[place], place))[::-1]
    result = set(newest_first[: keep.last])
    for rule, bucket_of in _BUCKETS.items():
        count, seen = getattr(keep, rule), set[tuple[int, ...]]()
        for place in newest_first if count else ():
            bucket = bucket_of(moment(times_ns[place], zone))
            if bucket in seen:
                continue
            if len(seen) == count:
                break
            seen.add(bucket)
            result.add(place)
    return result
