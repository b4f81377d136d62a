"""When a policy is due.

Pure: times are given, in nanoseconds since 1970 UTC. Invariant: due times of a policy do not depend
on when it ran, so nothing drifts and nothing has to be remembered.
"""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim

from ramet.policies.rules import Policy

_NANOSECONDS = 10**9


def moment(time_ns: int, zone: ZoneInfo) -> datetime:
    """Give a time as the zone's clocks show it, in whole seconds.

    Example: moment(0, ZoneInfo("UTC"))
    """
    # Not fromtimestamp, which fails for what a moved clock may have noted.
    since = timedelta(seconds=time_ns // _NANOSECONDS)
    return (datetime(1970, 1, 1, tzinfo=UTC) + since).astimezone(zone)


def latest_due(policy: Policy, at_ns: int, zone: ZoneInfo) -> int:
    """Give the last due time that is not after `at_ns`; the policy has a schedule.

    Example: latest_due(Policy("all", every="1h"), 3_600_000_000_001, ZoneInfo("UTC"))
    """
    if policy.cron is None:
        return at_ns - at_ns % policy.every_ns
    # It gives times before the one it is told: the next whole second still counts.
    before = moment(at_ns, zone) + timedelta(seconds=1)
    return _as_ns(next(CronSim(policy.cron, before, reverse=True)))


def next_due(policy: Policy, after_ns: int, zone: ZoneInfo) -> int:
    """Give the first due time after `after_ns`; the policy has a schedule.

    Example: next_due(Policy("all", every="1h"), 0, ZoneInfo("UTC"))
    """
    if policy.cron is None:
        return after_ns - after_ns % policy.every_ns + policy.every_ns
    return _as_ns(next(CronSim(policy.cron, moment(after_ns, zone))))


def is_due(policy: Policy, last_run_ns: int | None, now_ns: int, zone: ZoneInfo) -> bool:
    """Tell whether a policy is to run now; runs that were missed are made up for by one.

    `last_run_ns`: not later than now; None: it never ran.
    Example: is_due(Policy("all", every="1h"), None, 0, ZoneInfo("UTC"))
    """
    if not policy.takes:
        return False
    return last_run_ns is None or latest_due(policy, now_ns, zone) > last_run_ns


def _as_ns(when: datetime) -> int:
    return round(when.timestamp()) * _NANOSECONDS
