"""What a service manager passes to a service and wants to hear of it, as systemd does it.

Reads the environment and sends to the manager's socket. Imports errors only. Invariant: what was
passed is taken once; children of this process find nothing of it in their environment.
Source: sd_listen_fds(3), sd_notify(3).
"""

import contextlib
import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass

from ramet.errors import InvalidError

FIRST = 3
"""The number of the first socket that is passed, `SD_LISTEN_FDS_START`."""
API_NAME = "api"
"""A socket of this name is for commands; all others are for NBD clients."""
READY, RELOADING, STOPPING = "READY=1", "RELOADING=1", "STOPPING=1"


@dataclass(frozen=True)
class Given:
    """Listening sockets by their numbers: for NBD clients, and for commands."""

    nbd: tuple[int, ...] = ()
    api: int | None = None


def take_given(environment: MutableMapping[str, str] = os.environ) -> Given:
    """Take over the sockets that were passed to this process, if any were.

    Raises: InvalidError (code listen_fds_malformed).
    Example: take_given({})
    """
    told = {name: environment.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES")}
    if not told["FDS"] or told["PID"] != str(os.getpid()):
        return Given()
    if not told["FDS"].isdecimal():
        raise InvalidError(
            "listen_fds_malformed",
            f"LISTEN_FDS is '{told['FDS']}', not a number; hint: see what starts the service",
        )
    numbers = range(FIRST, FIRST + int(told["FDS"]))
    names = told["FDNAMES"].split(":") if told["FDNAMES"] else []
    by_name = dict(zip(numbers, names, strict=False))
    for number in numbers:
        with contextlib.suppress(OSError):  # Who serves it says what is wrong with it.
            os.set_inheritable(number, False)
    api = [number for number in numbers if by_name.get(number) == API_NAME]
    if len(api) > 1:
        raise InvalidError(
            "listen_fds_malformed",
            f"{len(api)} sockets are named '{API_NAME}'; hint: one, with FileDescriptorName=",
        )
    return Given(tuple(number for number in numbers if number not in api), *api)


def tell(state: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Tell the service manager how the service is, if it wants to hear it.

    Example: tell(READY, {})
    """
    path = environment.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stream:
        stream.connect(address)
        stream.sendall(state.encode())
