"""The service: holds a pool, serves it over NBD, and says where it listens.

Imports pool, verbs, config. Called by http (which is mounted on it) and cli/serve. Invariant: the
pool is closed, flushed and unlocked when `run` is left, whatever happened inside.
"""

import json
import os
import resource
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ramet.config import find_api_socket, find_nbd_socket
from ramet.errors import BusyError, ConflictError
from ramet.pool import Pool
from ramet.pool import open as open_pool
from ramet.verbs import PoolVerbs

ADDRESS_NAME = "service.json"  # Tells commands where the service listens.
BACKLOG_MAX = 128


class Service:
    """A pool that is held and served."""

    def __init__(self, pool: Pool, nbd_path: Path, api_path: Path) -> None:
        self.pool = pool
        self.nbd_path = nbd_path
        self.api_path = api_path
        self.verbs = PoolVerbs(pool, self._nbd_socket)
        self._closed = threading.Event()

    @contextmanager
    def _nbd_socket(self) -> Iterator[Path]:
        yield self.nbd_path

    def describe(self) -> dict[str, str | int]:
        """Say where it listens: what `service.json` holds."""
        return {
            "process_id": os.getpid(),
            "nbd_socket": str(self.nbd_path.absolute()),
            "api_socket": str(self.api_path.absolute()),
        }


@contextmanager
def hold(
    pool_path: Path, nbd: str | None = None, api: str | None = None
) -> Iterator[tuple[Service, socket.socket]]:
    """Open the pool, serve it over NBD, and listen for commands; close all of it afterwards.

    `nbd`, `api`: "unix:PATH"; None: the defaults in the pool's directory.
    Result: the service, and the socket that commands arrive at.
    Raises: BusyError where somebody else holds the pool or answers at a socket, and what opening
    a pool raises.
    Example: hold(Path("/srv/pool"))
    """
    nbd_path, api_path = find_nbd_socket(pool_path, nbd), find_api_socket(pool_path, api)
    with open_pool(pool_path) as pool, pool.serve_nbd(nbd_path):
        service = Service(pool, nbd_path, api_path)
        address = pool_path / ADDRESS_NAME
        with listen(api_path) as listener:
            try:
                write_whole(address, json.dumps(service.describe()))
                yield service, listener
            finally:
                address.unlink(missing_ok=True)


@contextmanager
def listen(path: Path) -> Iterator[socket.socket]:
    """Listen on a unix socket that only the owner can use; a stale one is replaced.

    Raises: BusyError where somebody answers; ConflictError where something else has the name.
    Example: listen(Path("/srv/pool/api.sock"))
    """
    if path.exists() or path.is_symlink():
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConflictError(
                "api_socket_name_taken", f"'{path}' is not a socket; hint: remove it"
            )
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise BusyError("api_socket_in_use", f"somebody answers at '{path}'; hint: --api")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    try:
        # Before the name exists, so that nobody else can connect in between.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(BACKLOG_MAX)
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Replace a small file so that no reader sees half of it."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def raise_file_limit() -> int:
    """Let the process open as many files as the system allows. Result: how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
