"""The pool that a command works on: through the service that holds it, else opened here.

Imports client, service, pool. Invariants: a user never has to know which; another command's lock is
waited for, a service's never.
"""

import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ramet.client import Client
from ramet.config import (
    LOCK_WAIT_SECONDS_MAX,
    NBD_SOCKET_NAME,
    find_pool_path,
    format_nbd_uri,
)
from ramet.errors import BusyError
from ramet.verbs import PoolVerbs, Verbs

if TYPE_CHECKING:
    from ramet.pool import Pool

RETRY_SECONDS = 0.05


@contextmanager
def verbs_of(arguments: Namespace) -> Iterator[Verbs]:
    """Give the verbs of the pool that the arguments name.

    Raises: BusyError where another command holds it for too long; and what opening a pool raises.
    Example: verbs_of(Namespace(pool="/srv/pool", no_wait=False))
    """
    path = find_pool_path(arguments.pool)
    until = time.monotonic() + (0.0 if arguments.no_wait else LOCK_WAIT_SECONDS_MAX)
    while True:
        client = Client.find(path)
        if client is not None:
            try:
                yield client
            finally:
                client.close()
            return
        from ramet.pool import open as open_pool  # The core is loaded only where it is needed.

        try:
            pool = open_pool(path)
            break
        except BusyError:
            if time.monotonic() >= until:
                raise
        time.sleep(RETRY_SECONDS)
    with pool:
        yield PoolVerbs(pool, lambda: _serve_here(pool))


@contextmanager
def _serve_here(pool: "Pool") -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ramet-") as directory:
        socket_path = Path(directory) / "nbd.sock"
        with pool.serve_nbd(socket_path):
            yield socket_path


def uri_of(arguments: Namespace, verbs: Verbs, name: str) -> str:
    """Give the URI to attach `name` by: where the service listens, or would."""
    if isinstance(verbs, Client):
        return format_nbd_uri(name, verbs.nbd_path)
    return format_nbd_uri(name, find_pool_path(arguments.pool) / NBD_SOCKET_NAME)
