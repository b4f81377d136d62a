"""`ramet serve`: the service in the foreground.

Imports service and http, and is imported for this verb only: FastAPI is slow to import.
"""

import signal
import socket
import sys
from argparse import Namespace
from types import FrameType

import uvicorn

from ramet.config import find_pool_path
from ramet.http import build
from ramet.service import hold, raise_file_limit

GRACE_SECONDS_MAX = 3  # For commands in progress, when the service is told to end.


class _Server(uvicorn.Server):
    """Says one line when it is ready."""

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._ready, file=sys.stderr, flush=True)


def serve(arguments: Namespace) -> None:
    """Hold the pool and serve it until SIGTERM or SIGINT; then flush and end."""
    path = find_pool_path(arguments.pool)
    files = raise_file_limit()
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again once it has ended: that must not end us before the flush.
        signal.signal(number, _ignore)
    with hold(path, arguments.nbd, arguments.api) as (service, listener):
        config = uvicorn.Config(
            build(service),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS_MAX,
            lifespan="off",
        )
        ready = (
            f"ready: pool '{path}', NBD at 'unix:{service.nbd_path}',"
            f" commands at 'unix:{service.api_path}', {files} open files allowed"
        )
        _Server(config, ready).run(sockets=[listener])
    print("ended: everything is flushed", file=sys.stderr)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    pass
