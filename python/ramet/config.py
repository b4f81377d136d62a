"""Where the pool and its sockets are, and the defaults that have a name.

Reads the environment and touches no file. Imports errors only.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from ramet.errors import InvalidError

POOL_VARIABLE = "RAMET_POOL"
NBD_SOCKET_NAME = "nbd.sock"
API_SOCKET_NAME = "api.sock"
ADDRESS_NAME = "service.json"  # Tells commands where the service listens.
LOCK_WAIT_SECONDS_MAX = 10.0  # How long a command waits for another command's lock.
SOCKET_PATH_LENGTH_MAX = 107  # `sun_path` of Linux, without the byte that ends it.


def find_pool_path(option: str | None, environment: Mapping[str, str] = os.environ) -> Path:
    """Give the pool's directory: `option` (what -p/--pool says), else the variable RAMET_POOL.

    Raises: InvalidError (code pool_not_given).
    Example: find_pool_path("/srv/pool")
    """
    text = option or environment.get(POOL_VARIABLE, "")
    if not text:
        raise InvalidError(
            "pool_not_given",
            f"no pool given; hint: -p POOL, or set {POOL_VARIABLE} to its directory",
        )
    return Path(text)


def find_nbd_socket(pool_path: Path, option: str | None = None) -> Path:
    """Give the path of the NBD socket: `option` as "unix:PATH" or PATH, else POOL/nbd.sock.

    Raises: InvalidError (codes socket_scheme, socket_path_too_long).
    Example: find_nbd_socket(Path("/srv/pool"), "unix:/run/ramet.sock")
    """
    return _find_socket(pool_path / NBD_SOCKET_NAME, option)


def find_api_socket(pool_path: Path, option: str | None = None) -> Path:
    """Give the path of the command socket: `option` as "unix:PATH" or PATH, else POOL/api.sock.

    Raises: InvalidError (codes socket_scheme, socket_path_too_long).
    Example: find_api_socket(Path("/srv/pool"))
    """
    return _find_socket(pool_path / API_SOCKET_NAME, option)


def format_nbd_uri(name: str, socket_path: Path) -> str:
    """Give the URI of an export, "nbd+unix:///NAME?socket=PATH", both escaped.

    A relative path is made absolute, because the client may run in another directory.
    Example: format_nbd_uri("golden@1", Path("/srv/pool/nbd.sock"))
    """
    from urllib.parse import quote  # Costs milliseconds that most commands need not pay.

    place = quote(os.fsencode(socket_path.absolute()))  # A path may hold what is not UTF-8.
    return f"nbd+unix:///{quote(name, safe='@:')}?socket={place}"


def parse_unix(text: str) -> Path:
    """Give the path that "unix:PATH" or PATH says.

    Raises: InvalidError (code socket_scheme).
    Example: parse_unix("unix:/run/ramet.sock")
    """
    path = Path(text.removeprefix("unix:"))
    if not path.name or "://" in text or text.startswith("tcp:"):
        raise InvalidError(
            "socket_scheme", f"'{text}' is not a unix socket; hint: unix:PATH, or PATH alone"
        )
    return path


def check_socket_path(path: Path) -> Path:
    """Give the path back if the system takes it whole.

    Raises: InvalidError (code socket_path_too_long).
    Example: check_socket_path(Path("/run/ramet.sock"))
    """
    # Absolute, because clients are told that: they may run in another directory.
    length = len(os.fsencode(path.absolute()))
    if length > SOCKET_PATH_LENGTH_MAX:
        raise InvalidError(
            "socket_path_too_long",
            f"socket path '{path}' has {length} bytes; hint: at most {SOCKET_PATH_LENGTH_MAX},"
            " choose a shorter one with --nbd or --api",
        )
    return path


def _find_socket(default: Path, option: str | None) -> Path:
    return check_socket_path(parse_unix(option) if option else default)
