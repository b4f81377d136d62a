"""Locks as records and objects say them: docs/internals/format.md, "Locks", and I21.

Pure. Invariant: what is called wrong here cannot come of any call, whatever the clocks did; of a
governance lock in a pool with a secret nothing can be said, because the secret may release it.
"""

from ramet.audit.objects import COMPLIANCE, GOVERNANCE, Lock
from ramet.audit.structures import Commit, MalformedError

COOLING_OFF_SECONDS_MAX = 24 * 3600


def hold_set(name: str, before: Lock | None, after: Lock, has_secret: bool) -> None:
    """Hold a lock against the one that it takes the place of.

    Raises: MalformedError where that ran, and the new one is shorter, milder or can be taken back
    for longer.
    """
    if before is None or before.until_ns <= after.clock_ns:
        return
    if before.mode == GOVERNANCE and has_secret:
        return  # By a time of day that was confirmed it may have been over.
    if after.mode < before.mode:
        raise MalformedError(f"the lock of '{name}' is made milder")
    if after.firm_ns > before.firm_ns:
        raise MalformedError(f"the lock of '{name}' can be taken back for longer")
    if before.mode == COMPLIANCE and after.until_ns < before.until_ns:
        raise MalformedError(
            f"the lock of '{name}' is made shorter: {after.until_ns} ns, not {before.until_ns}"
        )


def hold_end(name: str, before: Lock | None, clock_ns: int, has_secret: bool, what: str) -> None:
    """Hold that a lock could be over, or taken back, when a record ended it.

    Raises: MalformedError where it was not.
    """
    if before is None or before.until_ns <= clock_ns:
        return
    if before.mode == GOVERNANCE and has_secret:
        return
    if what == "released" and clock_ns < before.firm_ns:
        return
    text = f"'{name}' is {what} at {clock_ns} ns, and locked until {before.until_ns} ns"
    raise MalformedError(text)


def hold_commit(commit: Commit) -> None:
    """Hold what a slot says of locks.

    Raises: MalformedError.
    """
    if commit.cooling_off_seconds > COOLING_OFF_SECONDS_MAX:
        raise MalformedError(f"a cooling-off of {commit.cooling_off_seconds} s")
    if commit.confirmed_clock_ns > commit.lock_clock_ns:
        raise MalformedError("a time of day was confirmed later than the lock clock is")
    if commit.confirmed_day_ns and not commit.has_lock_secret:
        raise MalformedError("a time of day was confirmed, and there is no secret")
