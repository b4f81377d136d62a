"""Where and how NBD clients are listened for: what is asked for, read and made definite.

Asks the resolver and the list of groups; opens nothing. Imports config and errors. Invariant: a
`NbdListening` names no host, only addresses.
"""

import os
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ramet.config import parse_unix
from ramet.errors import InvalidError, NotFoundError

NBD_PORT = 10809
"""What NBD clients take where none is given."""
SOCKET_MODE = 0o600
SOCKET_MODE_MAX = 0o777


@dataclass(frozen=True)
class NbdTls:
    """The PEM files of a server: its certificate with what leads to the authority, and its key.

    `clients`: authorities of client certificates; every client needs one then. `allow`: the list of
    what each client may open, which goes by the names in its certificate.
    """

    certificate: Path
    key: Path
    clients: Path | None = None
    allow: Path | None = None


@dataclass(frozen=True)
class NbdListening:
    """Where a server listens: paths of unix sockets, IP:PORT, and sockets that listen already.

    `plain_tcp`: TCP without TLS is served, other machines' too.
    """

    unix: Sequence[Path] = ()
    tcp: Sequence[str] = ()
    given: Sequence[int] = ()
    socket_mode: int = SOCKET_MODE
    socket_group: int | None = None
    plain_tcp: bool = False
    tls: NbdTls | None = None

    @property
    def addresses(self) -> list[str | Path | int]:
        """All of them, as `find_listening` takes them."""
        return [*self.unix, *(f"tcp:{address}" for address in self.tcp), *self.given]


def find_listening(
    addresses: Iterable[str | os.PathLike[str] | int],
    *,
    socket_mode: int = SOCKET_MODE,
    socket_group: int | str | None = None,
    plain_tcp: bool = False,
    tls: NbdTls | None = None,
) -> NbdListening:
    """Make definite where to listen.

    `addresses`: "unix:PATH" or PATH; "tcp:HOST", "tcp:HOST:PORT" or "tcp:[IPv6]:PORT"; the number
    of a socket that listens already. Of a host with several addresses the first counts.
    `socket_group`: of unix sockets, a name or a number.
    Raises: InvalidError (codes nbd_address_malformed, socket_scheme, socket_mode,
    tls_contradiction); NotFoundError (codes nbd_host_unknown, socket_group_unknown).
    Example: find_listening(["/run/nbd.sock", "tcp:127.0.0.1:0"])
    """
    addresses = list(addresses)
    given = [address for address in addresses if isinstance(address, int)]
    texts = [os.fspath(address) for address in addresses if not isinstance(address, int)]
    tcp = [find_tcp(text) for text in texts if text.startswith("tcp:")]
    unix = [parse_unix(text) for text in texts if not text.startswith("tcp:")]
    if not 0 <= socket_mode <= SOCKET_MODE_MAX:
        raise InvalidError(
            "socket_mode", f"{socket_mode:o} is no mode of a socket; hint: 600, 660, 666"
        )
    if tls is not None and tls.clients is not None and plain_tcp:
        raise InvalidError(
            "tls_contradiction",
            "plain TCP would let clients in without the certificates that they are asked for;"
            " hint: one of both",
        )
    group = find_group(socket_group) if isinstance(socket_group, str) else socket_group
    return NbdListening(unix, tcp, given, socket_mode, group, plain_tcp, tls)


def find_tcp(text: str) -> str:
    """Give IP:PORT of "tcp:HOST:PORT"; without a port it is that of NBD.

    Raises: InvalidError (code nbd_address_malformed), NotFoundError (code nbd_host_unknown).
    Example: find_tcp("tcp:[::1]:10809")
    """
    match = re.fullmatch(r"tcp:(?:\[([^][]+)\]|([^][:/]+))(?::([0-9]{1,5}))?", text)
    port = int(match[3] or NBD_PORT) if match else -1
    if match is None or not 0 <= port < 2**16:
        raise InvalidError(
            "nbd_address_malformed",
            f"'{text}' is no TCP address; hint: tcp:HOST:PORT, tcp:[IPv6]:PORT",
        )
    host = match[1] or match[2]
    try:
        family, _, _, _, found = socket.getaddrinfo(
            host,
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_NUMERICHOST if match[1] else socket.AI_PASSIVE,
        )[0]
    except (OSError, UnicodeError) as error:
        raise NotFoundError(
            "nbd_host_unknown", f"no address of host '{host}': {error}; hint: an IP address"
        ) from error
    if family == socket.AF_INET6:
        scope = f"%{found[3]}" if len(found) > 3 and found[3] else ""
        return f"[{str(found[0]).partition('%')[0]}{scope}]:{port}"
    return f"{found[0]!s}:{port}"


def find_group(name: str) -> int:
    """Give the number of a group.

    Raises: NotFoundError (code socket_group_unknown).
    Example: find_group("root")
    """
    import grp

    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise NotFoundError(
            "socket_group_unknown", f"no group '{name}'; hint: `getent group`"
        ) from None
