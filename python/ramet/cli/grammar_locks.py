"""What can be typed of locks; called by grammar.py.

Pure. Invariant: a secret is never an argument, only the name of a file that has it.
"""

from collections.abc import Callable
from typing import Any

# As in grammar.py.
AddVerb = Callable[[Any, str, tuple[str, str], str, str], Any]


def add_locking(verbs: Any, verb: AddVerb) -> None:
    """Add the verbs of `snapshot` that lock.

    Example: add_locking(verbs, verb)
    """
    it = verb(
        verbs,
        "lock",
        ("locks", "lock"),
        "lock snapshots: nobody deletes them before a time",
        "-p /srv/pool snapshot lock db@1 --for 30d",
    )
    it.add_argument("names", nargs="+", metavar="NAME")
    until = it.add_mutually_exclusive_group(required=True)
    until.add_argument("--for", dest="duration", metavar="TIME", help="30d, 1y, 12h")
    until.add_argument("--until", metavar="DATE", help="2033-01-01, or 2033-01-01T12:00 (UTC)")
    it.add_argument(
        "--mode",
        choices=("governance", "compliance"),
        default="governance",
        help="governance: the lock secret releases it; compliance: nobody does",
    )
    it = verb(
        verbs,
        "unlock",
        ("locks", "unlock"),
        "release governance locks, or locks within their cooling-off",
        "-p /srv/pool snapshot unlock db@1 --secret-file /run/secrets/ramet-lock",
    )
    it.add_argument("names", nargs="+", metavar="NAME")
    _add_secret(it)


def add_clock(nouns: Any, verb: AddVerb) -> None:
    """Add the noun `lock-clock`.

    Example: add_clock(nouns, verb)
    """
    clock = nouns.add_parser("lock-clock", help="the clock of locks, their secret and cooling-off")
    verbs = clock.add_subparsers(title="verbs", metavar="VERB", required=True)
    text = "show the clock that locks run by, and what holds for them"
    verb(verbs, "show", ("locks", "show"), text, "-p /srv/pool lock-clock show")
    it = verb(
        verbs,
        "confirm",
        ("locks", "confirm"),
        "confirm that the time of day is right, so that governance locks count time that was off",
        "-p /srv/pool lock-clock confirm --secret-file /run/secrets/ramet-lock",
    )
    _add_secret(it)
    it = verb(
        verbs,
        "secret",
        ("locks", "secret"),
        "set the secret that releases governance locks",
        "-p /srv/pool lock-clock secret --new-secret-file /run/secrets/ramet-lock",
    )
    it.add_argument("--new-secret-file", metavar="FILE", help="has it; else you are asked")
    _add_secret(it)
    it = verb(
        verbs,
        "cooling-off",
        ("locks", "cooling_off"),
        "say for how long a lock can be taken back that is set from now on",
        "-p /srv/pool lock-clock cooling-off 10m",
    )
    it.add_argument("duration", metavar="TIME", help="a day at most; 0: not at all")
    _add_secret(it)


def _add_secret(it: Any) -> None:
    it.add_argument(
        "--secret-file", metavar="FILE", help="has the pool's lock secret; else you are asked"
    )
