"""What can be typed of the trash; called by grammar.py.

Pure.
"""

from collections.abc import Callable
from typing import Any

# As in grammar.py.
AddVerb = Callable[[Any, str, tuple[str, str], str, str], Any]


def add_trash(nouns: Any, verb: AddVerb) -> None:
    """Add the noun `trash`.

    Example: add_trash(nouns, verb)
    """
    trash = nouns.add_parser("trash", help="restore what was deleted, or end it")
    verbs = trash.add_subparsers(title="verbs", metavar="VERB", required=True)
    text = "show what can be restored, and for how long"
    verb(verbs, "list", ("trash", "show"), text, "-p /srv/pool trash list")
    it = verb(
        verbs,
        "restore",
        ("trash", "restore"),
        "bring back what was deleted, all or none",
        "-p /srv/pool trash restore vm-1 golden@1",
    )
    it.add_argument("names", nargs="+", metavar="NAME", help="the name it had, or its UUID")
    it.add_argument("--name", dest="new_name", metavar="NEW", help="another name for it")
    it = verb(
        verbs,
        "empty",
        ("trash", "empty"),
        "end what is in the trash, so that its space comes back",
        "-p /srv/pool trash empty --all",
    )
    it.add_argument("names", nargs="*", metavar="NAME", help="the name it had, or its UUID")
    it.add_argument("--all", action="store_true", help="all of it")
    it.add_argument("--dry-run", action="store_true", help="only say what would come back")
    it = verb(
        verbs,
        "window",
        ("trash", "window"),
        "say for how long what is deleted from now on can be restored",
        "-p /srv/pool trash window 7d",
    )
    it.add_argument("duration", metavar="TIME", help="7d, 12h; none: it is not kept")
