"""Where a remote is: its URL, as the command that stands before ramet's own words.

Pure. Imports errors only. Invariant: what follows the command are words of ramet without a
character that a shell looks at, so a command may go through one.
"""

import shlex
import sys
from urllib.parse import unquote, urlsplit

from ramet.errors import InvalidError

HINT = "ssh://[USER@]HOST[:PORT]/POOL, file:///POOL, or exec:COMMAND"


def command_of(url: str) -> list[str]:
    """Give the words of the command that reaches the pool at `url`.

    Raises: InvalidError (code remote_url).
    Example: command_of("ssh://backup@host/srv/pool")
    """
    if url.startswith("exec:"):
        return _split(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _refuse(url, str(error)) from error
    path = unquote(parts.path)
    if parts.query or parts.fragment or parts.password is not None:
        raise _refuse(url, "it has a query or a password")
    if len(path) < 2 or "\0" in path:
        raise _refuse(url, "it names no pool")
    if parts.scheme == "file" and not parts.netloc:
        return [sys.executable, "-m", "ramet", "-p", path]
    if parts.scheme == "ssh" and host and not host.startswith("-"):
        user = unquote(parts.username or "")
        if user.startswith("-"):
            raise _refuse(url, "a user does not start with '-'")
        place = f"{user}@{host}" if user else host
        port_words = ["-p", str(port)] if port else []
        # ssh gives what follows to a shell.
        return ["ssh", "-o", "BatchMode=yes", *port_words, place, f"ramet -p {shlex.quote(path)}"]
    raise _refuse(url, "no such kind")


def _split(url: str) -> list[str]:
    try:
        words = shlex.split(url.removeprefix("exec:"))
    except ValueError as error:
        raise _refuse(url, str(error)) from error
    if not words:
        raise _refuse(url, "an empty command")
    return words


def _refuse(url: str, what: str) -> InvalidError:
    return InvalidError("remote_url", f"'{url}' is no remote: {what}; hint: {HINT}")
