"""`ramet serve`: the service in the foreground.

Imports service and http, and is imported for this verb only: FastAPI is slow to import.
"""

import signal
import socket
import sys
import threading
from argparse import Namespace

import uvicorn

from ramet.config import find_pool_path
from ramet.http import build
from ramet.service import hold, raise_file_limit

GRACE_SECONDS_MAX = 2  # For commands in progress, when the service is told to end.


class _Server(uvicorn.Server):
    """Says one line when it is ready; ends at once where it was told to before it began."""

    def __init__(self, config: uvicorn.Config, ready: str, end: threading.Event) -> None:
        super().__init__(config)
        self._ready = ready
        self._end = end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._ready, file=sys.stderr, flush=True)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._end.is_set()


def serve(arguments: Namespace) -> None:
    """Hold the pool and serve it until SIGTERM or SIGINT; then flush and end."""
    path = find_pool_path(arguments.pool)
    files = raise_file_limit()
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # It may come while the pool is opened; and uvicorn raises the signal again once it has
        # ended: that must not end us before the flush.
        signal.signal(number, lambda _number, _frame: end.set())
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
        if service.address_error is not None:
            print(f"commands need the standard sockets: {service.address_error}", file=sys.stderr)
        _Server(config, ready, end).run(sockets=[listener])
    print("ended: everything is flushed", file=sys.stderr)
