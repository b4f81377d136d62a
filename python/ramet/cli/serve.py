"""`ramet serve`: the service in the foreground.

Imports service, listening and http, and is imported for this verb only: FastAPI is slow to import.
Invariants: another command's lock is waited for, a service's never; a service whose pool was
poisoned never ends with 0.
"""

import re
import signal
import socket
import sys
import threading
import time
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

import uvicorn

from ramet.activation import READY, STOPPING, Given, take_given, tell
from ramet.client import Client
from ramet.config import LOCK_WAIT_SECONDS_MAX, find_pool_path
from ramet.errors import BusyError, InvalidError, RametError, UnavailableError
from ramet.fullness import Thresholds, Watch, parse_thresholds
from ramet.http import build
from ramet.listening import SOCKET_MODE, NbdListening, NbdTls, find_listening
from ramet.service import Service, hold, raise_file_limit

RETRY_SECONDS = 0.05
LOCKED = "pool_in_use"
REMEDY = "mend its disk, then start the service again"
TICKS_PER_LOOK = 10  # A second.
GRACE_SECONDS_MAX = 2  # For commands in progress, when the service is told to end.


class _Server(uvicorn.Server):
    """Says a line when it is ready, the pool is poisoned, space is low; ends when it is told to."""

    def __init__(
        self,
        service: Service,
        ready: str,
        end: threading.Event,
        reload: threading.Event,
        ends_when_poisoned: bool,
    ) -> None:
        config = uvicorn.Config(
            build(service),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS_MAX,
            lifespan="off",
        )
        super().__init__(config)
        self._pool = service.pool
        self._nbd = service.nbd
        self._reload = reload
        self._ready = ready
        self._end = end
        self._ends_when_poisoned = ends_when_poisoned
        self._poisoned = ""
        self._watch = Watch(service.thresholds)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._ready, file=sys.stderr, flush=True)
        tell(READY)

    async def on_tick(self, counter: int) -> bool:
        if self._reload.is_set():
            self._reload.clear()
            self._read_again()
        if not self._poisoned and (reason := self._pool.poisoned_reason):
            self._poisoned = reason
            text = f"poisoned: {reason}; writes are refused, reads go on; hint: {REMEDY}"
            print(text, file=sys.stderr, flush=True)
            if self._ends_when_poisoned:
                self._end.set()
        if counter % TICKS_PER_LOOK == 0:
            self._look_at_space()
        return await super().on_tick(counter) or self._end.is_set()

    def _look_at_space(self) -> None:
        try:
            news = self._watch.observe(self._pool.fullness())
        except RametError:
            return  # The medium does not say; whoever needs it meets that.
        if news is not None:
            print(news, file=sys.stderr, flush=True)

    def _read_again(self) -> None:
        try:
            self._nbd.reload_tls()
        except RametError as error:
            text = f"not reloaded, what there was is used on: {error}"
            print(text, file=sys.stderr, flush=True)
        else:
            print("reloaded: certificates and the allow list", file=sys.stderr, flush=True)


def serve(arguments: Namespace) -> None:
    """Hold the pool and serve it until SIGTERM or SIGINT; then flush and end."""
    path = find_pool_path(arguments.pool)
    thresholds = parse_thresholds(arguments.space_low, arguments.space_critical)
    files = raise_file_limit()
    end, reload = threading.Event(), threading.Event()
    signal.signal(signal.SIGHUP, lambda _number, _frame: reload.set())
    for number in (signal.SIGTERM, signal.SIGINT):
        # It may come while the pool is opened; and uvicorn raises the signal again once it has
        # ended: that must not end us before the flush.
        signal.signal(number, lambda _number, _frame: end.set())
    with ExitStack() as stack:
        service, listener = _hold(stack, arguments, thresholds, end)
        places = ", ".join(f"'{address}'" for address in service.nbd.addresses)
        ready = (
            f"ready: pool '{path}', NBD at {places},"
            f" commands at 'unix:{service.api_path}', {files} open files allowed"
        )
        if service.address_error is not None:
            print(f"commands need the standard sockets: {service.address_error}", file=sys.stderr)
        server = _Server(service, ready, end, reload, arguments.exit_when_poisoned)
        server.run(sockets=[listener])
        tell(STOPPING)
    if reason := service.pool.poisoned_reason:
        raise UnavailableError(
            "pool_poisoned", f"{reason}: what was not flushed may be lost; hint: {REMEDY}"
        )
    print("ended: everything is flushed", file=sys.stderr)


def _hold(
    stack: ExitStack, arguments: Namespace, thresholds: Thresholds, end: threading.Event
) -> tuple[Service, socket.socket]:
    """Hold the pool until `stack` is left; a command that has it open is waited for.

    Raises: BusyError where a service has it, or a command for too long; and what `hold` raises.
    """
    path = find_pool_path(arguments.pool)
    given = take_given()
    listening = _listening(arguments, given)
    until = time.monotonic() + (0.0 if arguments.no_wait else LOCK_WAIT_SECONDS_MAX)
    said = False
    while True:
        try:
            held = hold(path, listening, arguments.api, given.api, thresholds)
            return stack.enter_context(held)
        except BusyError as error:
            client = Client.find(path) if error.code == LOCKED else None
            if client is not None:
                client.close()
                raise
            if error.code != LOCKED or time.monotonic() >= until or end.wait(RETRY_SECONDS):
                raise
            if not said:
                print(f"waiting for another command: {error.text}", file=sys.stderr, flush=True)
                said = True


def _listening(arguments: Namespace, given: Given) -> NbdListening:
    mode = arguments.socket_mode
    if mode is not None and not re.fullmatch(r"0?[0-7]{3}", mode):
        raise InvalidError("socket_mode", f"'{mode}' is no mode; hint: 600, 660, 666")
    return find_listening(
        [*arguments.nbd, *given.nbd],
        socket_mode=SOCKET_MODE if mode is None else int(mode, 8),
        socket_group=arguments.socket_group,
        plain_tcp=arguments.plain_tcp,
        tls=_tls(arguments),
    )


def _tls(arguments: Namespace) -> NbdTls | None:
    certificate, key = arguments.tls_cert, arguments.tls_key
    if not certificate and not key and not arguments.tls_clients and not arguments.tls_allow:
        return None
    if not certificate or not key:
        raise InvalidError(
            "tls_incomplete", "TLS needs a certificate and its key; hint: --tls-cert, --tls-key"
        )
    clients = Path(arguments.tls_clients) if arguments.tls_clients else None
    allow = Path(arguments.tls_allow) if arguments.tls_allow else None
    return NbdTls(Path(certificate), Path(key), clients, allow)
