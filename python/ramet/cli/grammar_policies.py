"""What can be typed about policies and remotes.

Pure. Called by grammar.py.
"""

from collections.abc import Callable
from typing import Any

# As in grammar.py.
AddVerb = Callable[[Any, str, tuple[str, str], str, str], Any]


def add_policies(nouns: Any, verb: AddVerb) -> None:
    """Add `policy`, `remote` and `replicate`.

    Example: add_policies(parser.add_subparsers(), verb)
    """
    policy = nouns.add_parser("policy", help="say when snapshots are taken, kept, and sent")
    verbs = policy.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_policy_verbs(verbs, verb)
    remote = nouns.add_parser("remote", help="say where snapshots are sent")
    verbs = remote.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_remote_verbs(verbs, verb)
    it = verb(
        nouns,
        "replicate",
        ("remote", "replicate"),
        "send remotes what they have not got yet, now",
        "-p /srv/pool replicate dr",
    )
    it.add_argument("names", nargs="*", metavar="REMOTE", help="none: all")


def _add_policy_verbs(verbs: Any, verb: AddVerb) -> None:
    it = verb(
        verbs,
        "set",
        ("policy", "set_one"),
        "make a policy, or replace it",
        "-p /srv/pool policy set hourly --every 1h --volume 'db-*' --hourly 24 --daily 7",
    )
    it.add_argument("name", metavar="NAME")
    it.add_argument("--every", metavar="DURATION", help="15m, 1h, 1d")
    it.add_argument("--cron", metavar="'M H D M W'", help="minute hour day month weekday")
    it.add_argument(
        "--volume", metavar="PATTERN", action="append", default=[], help="a name, or with *; repeat"
    )
    it.add_argument(
        "--tag", metavar="K[=V]", action="append", default=[], help="volumes with this tag; repeat"
    )
    for rule in ("last", "hourly", "daily", "weekly", "monthly", "yearly"):
        text = "keep the newest N" if rule == "last" else f"keep N {rule} ones"
        it.add_argument(f"--{rule}", metavar="N", type=int, help=text)
    it.add_argument("--keep-all", action="store_true", help="drop none")
    it.add_argument("--name", dest="pattern", metavar="PATTERN", help="of the snapshots")
    it.add_argument("--remote", metavar="NAME", action="append", default=[], help="repeat")
    it.add_argument("--before", metavar="COMMAND", help="to run before; its words as in a shell")
    it.add_argument("--after", metavar="COMMAND", help="to run after, whatever happened")
    it.add_argument("--timeout", metavar="DURATION", help="of each command; default 1m")
    _add_all_policies(verbs, verb)


def _add_all_policies(verbs: Any, verb: AddVerb) -> None:
    it = verb(
        verbs,
        "apply",
        ("policy", "apply"),
        "replace all policies and remotes by those of a file",
        "-p /srv/pool policy apply policies.toml",
    )
    it.add_argument("file", metavar="FILE", help="TOML; -: stdin")
    verb(
        verbs,
        "dump",
        ("policy", "dump"),
        "print that file",
        "-p /srv/pool policy dump > policies.toml",
    )
    verb(
        verbs,
        "list",
        ("policy", "list_all"),
        "list the policies, and how they are",
        "-p /srv/pool policy list",
    )
    it = verb(
        verbs,
        "plan",
        ("policy", "plan"),
        "show what will be created and dropped in the days ahead",
        "-p /srv/pool policy plan --days 7",
    )
    it.add_argument("--days", type=float, default=1.0, metavar="N", help="default 1")
    it = verb(
        verbs,
        "run",
        ("policy", "run"),
        "run policies now; none named: those that are due",
        "-p /srv/pool policy run hourly",
    )
    it.add_argument("names", nargs="*", metavar="NAME")
    it = verb(
        verbs,
        "remove",
        ("policy", "remove"),
        "end a policy; its snapshots stay",
        "-p /srv/pool policy remove hourly",
    )
    it.add_argument("name", metavar="NAME")


def _add_remote_verbs(verbs: Any, verb: AddVerb) -> None:
    it = verb(
        verbs,
        "add",
        ("remote", "add"),
        "name a place to send to, or change it",
        "-p /srv/pool remote add dr ssh://backup@host/srv/pool",
    )
    it.add_argument("name", metavar="NAME")
    it.add_argument(
        "url", metavar="URL", help="ssh://[USER@]HOST[:PORT]/POOL, file:///POOL, exec:COMMAND"
    )
    it.add_argument(
        "--name", dest="pattern", metavar="PATTERN", help="names there; {name}: the name here"
    )
    it.add_argument("--rate", metavar="SIZE", help="at most so many bytes a second")
    it.add_argument("--zstd", action="store_true", help="compress data")
    it.add_argument(
        "--hold", metavar="DURATION", help="keep bases so long if it is not reached; else for ever"
    )
    it.add_argument("--hold-size", metavar="SIZE", help="and while they take no more than this")
    verb(
        verbs,
        "list",
        ("remote", "list_all"),
        "list the remotes, and how far behind they are",
        "-p /srv/pool remote list",
    )
    it = verb(
        verbs,
        "remove",
        ("remote", "remove"),
        "forget a remote; what it has stays there",
        "-p /srv/pool remote remove dr",
    )
    it.add_argument("name", metavar="NAME")
