"""`ramet snapshot lock|unlock` and `ramet lock-clock show|confirm|secret|cooling-off`.

Invariant: a secret comes from a file or from a terminal, never from the command line or a pipe.
"""

import getpass
import sys
from argparse import Namespace
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from ramet.cli.output import lock_text, print_json, print_table
from ramet.cli.session import verbs_of
from ramet.errors import InvalidError, ReadOnlyError
from ramet.records import ObjectRecord
from ramet.units import format_duration, format_time

SECRET_FILE_BYTES_MAX = 4096
Result = TypeVar("Result")


def lock(arguments: Namespace) -> None:
    """Lock snapshots for a time, or until a date."""
    until = arguments.until
    duration = arguments.duration if until is None else _seconds_until(until, datetime.now(UTC))
    with verbs_of(arguments) as verbs:
        locked = verbs.lock(arguments.names, duration, arguments.mode)
        has_secret = arguments.mode == "compliance" or verbs.lock_clock().has_secret
    if not has_secret:
        text = "note: the pool has no lock secret, so nobody can release this before its time"
        print(text, file=sys.stderr)
    _print_locks(locked, arguments.json)


def unlock(arguments: Namespace) -> None:
    """Release locks; asks for the secret where one is needed."""
    with verbs_of(arguments) as verbs:
        released = _with_secret(
            arguments.secret_file, lambda secret: verbs.unlock(arguments.names, secret)
        )
    _print_locks(released, arguments.json)


def show(arguments: Namespace) -> None:
    """Show the clock, and what holds for locks."""
    with verbs_of(arguments) as verbs:
        clock = verbs.lock_clock()
    if arguments.json:
        print_json(clock.to_json())
        return
    confirmed = format_time(clock.confirmed_day_ns) if clock.confirmed_day_ns else "never"
    lines = {
        "clock": format_duration(clock.clock_seconds),
        "locked": str(clock.locked_count),
        "time of day": format_time(clock.day_ns),
        "confirmed": confirmed,
        "behind": f"{format_duration(clock.behind_seconds)}, which `confirm` would make good",
        "secret": "set" if clock.has_secret else "none",
        "wrong": f"{clock.wrong_secrets_count} secrets since the pool was opened",
        "cooling-off": format_duration(clock.cooling_off_seconds),
    }
    for title, text in lines.items():
        print(f"{title + ':':13}{text}")


def confirm(arguments: Namespace) -> None:
    """Confirm the time of day."""
    with verbs_of(arguments) as verbs:
        secret = read_secret(arguments.secret_file, "lock secret: ")
        earlier_seconds = verbs.confirm_lock_clock(secret)
    if arguments.json:
        print_json({"earlier_seconds": earlier_seconds})
        return
    print(f"governance locks end up to {format_duration(earlier_seconds)} earlier")


def secret(arguments: Namespace) -> None:
    """Set the secret, with the old one where there is one."""
    with verbs_of(arguments) as verbs:
        new = read_secret(arguments.new_secret_file, "new lock secret: ")
        if arguments.new_secret_file is None and getpass.getpass("once more: ") != new:
            raise InvalidError("lock_secret_twice", "these differ; hint: type the same twice")
        _with_secret(arguments.secret_file, lambda old: verbs.set_lock_secret(new, old))
    if arguments.json:
        print_json({"has_secret": True})


def cooling_off(arguments: Namespace) -> None:
    """Say for how long a lock can be taken back."""
    with verbs_of(arguments) as verbs:
        _with_secret(
            arguments.secret_file, lambda given: verbs.set_cooling_off(arguments.duration, given)
        )
    if arguments.json:
        print_json({"cooling_off": arguments.duration})


def _with_secret(path: str | None, call: Callable[[str | None], Result]) -> Result:
    """Make a call with the secret of a file; without one ask for it where it is needed."""
    if path is not None:
        return call(read_secret(path, ""))
    try:
        return call(None)
    except ReadOnlyError as error:
        if error.code != "lock_secret_missing" or not sys.stdin.isatty():
            raise
    return call(read_secret(None, "lock secret: "))


def read_secret(path: str | None, prompt: str) -> str:
    """Give a secret: what a file has, or what somebody types who is asked.

    Raises: InvalidError where there is nobody to ask, or no file with text.
    Example: read_secret("/run/secrets/ramet-lock", "lock secret: ")
    """
    if path is None:
        if not sys.stdin.isatty():
            text = "nobody can be asked for the lock secret; hint: give a file that has it"
            raise InvalidError("lock_secret_unread", text)
        return getpass.getpass(prompt)
    try:
        with Path(path).open("rb") as file:
            content = file.read(SECRET_FILE_BYTES_MAX + 1)
        text = content.decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        message = f"the secret in '{path}' cannot be read: {error}; hint: a file with text"
        raise InvalidError("lock_secret_unread", message) from error
    if not text or len(content) > SECRET_FILE_BYTES_MAX:
        message = f"'{path}' has no secret; hint: some text, {SECRET_FILE_BYTES_MAX} bytes at most"
        raise InvalidError("lock_secret_unread", message)
    return text


def _seconds_until(text: str, now: datetime) -> str:
    """Give the seconds from now until a date, which is of UTC where it does not say otherwise."""
    try:
        until = datetime.fromisoformat(text)
    except ValueError as error:
        message = f"'{text}' is no date; hint: 2033-01-01, or 2033-01-01T12:00+02:00"
        raise InvalidError("date_syntax", message) from error
    until = until.replace(tzinfo=until.tzinfo or UTC)
    seconds = (until - now).total_seconds()
    if seconds <= 0:
        raise InvalidError("lock_time", f"'{text}' has passed; hint: a date to come")
    return f"{seconds:.3f}"


def _print_locks(records: list[ObjectRecord], as_json: bool) -> None:
    if as_json:
        print_json([record.to_json() for record in records])
        return
    rows = [[record.name, lock_text(record.lock) or "not locked"] for record in records]
    print_table(["NAME", "LOCKED"], rows)
