"""The service: holds a pool, serves it over NBD, and says where it listens.

Imports pool, verbs, keeper, listening, config. Called by http (which is mounted on it) and
cli/serve.
Invariant: the pool is closed, flushed and unlocked when `run` is left, whatever happened inside.
"""

import json
import os
import resource
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ramet.config import ADDRESS_NAME, check_socket_path, find_api_socket, find_nbd_socket
from ramet.errors import BusyError, ConflictError, InvalidError
from ramet.fullness import DEFAULT as DEFAULT_THRESHOLDS
from ramet.fullness import Thresholds
from ramet.keeper import Keeper
from ramet.listening import NbdListening
from ramet.pool import NbdServer, Pool
from ramet.pool import open as open_pool
from ramet.verbs import PoolVerbs

BACKLOG_MAX = 128


class Service:
    """A pool that is held and served."""

    def __init__(
        self,
        pool: Pool,
        pool_path: Path,
        nbd: NbdServer,
        *,
        nbd_path: Path,
        api_path: Path,
        thresholds: Thresholds = DEFAULT_THRESHOLDS,
    ) -> None:
        self.pool = pool
        self.nbd = nbd
        self.pool_path = pool_path
        self.nbd_path = nbd_path
        self.api_path = api_path
        self.thresholds = thresholds
        self.keeper = Keeper(pool, pool_path)
        self.verbs = PoolVerbs(pool, self._nbd_socket, thresholds)
        self.address_error: str | None = None
        """Why commands do not find it by `service.json`, if so."""

    @contextmanager
    def _nbd_socket(self) -> Iterator[Path]:
        yield self.nbd_path

    def health(self) -> dict[str, str]:
        """Say how the pool is: `status` is "ok" or "poisoned", `reason` why.

        `space_state`: "ok", "low" or "critical"; a pool that is full still answers reads.
        """
        reason = self.pool.poisoned_reason
        state = self.pool.fullness().state(self.thresholds)
        status = "poisoned" if reason else "ok"
        return {"status": status, "reason": reason, "space_state": state}

    def describe(self) -> dict[str, str | int | list[str]]:
        """Say where it listens: what `service.json` holds."""
        directory = self.pool_path.stat()
        return {
            "process_id": os.getpid(),
            # Whose address it is: a copy of the directory has another number.
            "pool_device": directory.st_dev,
            "pool_inode": directory.st_ino,
            "nbd_socket": str(self.nbd_path.absolute()),
            "nbd_addresses": self.nbd.addresses,
            "api_socket": str(self.api_path.absolute()),
        }


@contextmanager
def hold(
    pool_path: Path,
    nbd: NbdListening | None = None,
    api: str | None = None,
    api_given: int | None = None,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
) -> Iterator[tuple[Service, socket.socket]]:
    """Open the pool, serve it over NBD, and listen for commands; close all of it afterwards.

    `nbd`: where; on this machine too, by the default in the pool's directory if nothing else.
    `api`: "unix:PATH"; None: the default in the pool's directory. `api_given`: the number of a
    socket that listens already, instead. `thresholds`: when space is called low and critical.
    Result: the service, and the socket that commands arrive at.
    Raises: BusyError where somebody else holds the pool or answers at a socket, and what opening
    a pool raises.
    Example: hold(Path("/srv/pool"))
    """
    nbd, nbd_path = _with_local(pool_path, nbd or NbdListening())
    listening = listen(find_api_socket(pool_path, api)) if api_given is None else take(api_given)
    with open_pool(pool_path) as pool, _serve(pool, nbd) as server:
        address = pool_path / ADDRESS_NAME
        with listening as (listener, api_path):
            service = Service(
                pool,
                pool_path,
                server,
                nbd_path=nbd_path,
                api_path=api_path,
                thresholds=thresholds,
            )
            try:
                try:
                    write_whole(address, json.dumps(service.describe()))
                except OSError as error:
                    # A full disk is no reason not to serve what is on it.
                    service.address_error = str(error)
                service.keeper.start(_say)
                yield service, listener
            finally:
                service.keeper.stop()
                address.unlink(missing_ok=True)


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # Nobody may be there to read it.
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _serve(pool: Pool, nbd: NbdListening) -> NbdServer:
    return pool.serve_nbd(
        *nbd.addresses,
        socket_mode=nbd.socket_mode,
        socket_group=nbd.socket_group,
        plain_tcp=nbd.plain_tcp,
        tls=nbd.tls,
    )


def _with_local(pool_path: Path, nbd: NbdListening) -> tuple[NbdListening, Path]:
    """Make sure that commands on this machine have a way in, and give its path."""
    for path in nbd.unix:
        check_socket_path(path)
    paths = [*nbd.unix, *(path for path in map(_path_of, nbd.given) if path is not None)]
    if paths:
        return nbd, paths[0]
    path = find_nbd_socket(pool_path)
    return replace(nbd, unix=[path]), path


def _path_of(number: int) -> Path | None:
    """Give the path of a unix socket that was passed on; who serves it says what else it is."""
    try:
        with socket.socket(fileno=os.dup(number)) as given:
            name = given.getsockname()
            usable = given.family == socket.AF_UNIX and isinstance(name, str) and name
            return Path(name) if usable else None
    except OSError:
        return None


@contextmanager
def take(number: int) -> Iterator[tuple[socket.socket, Path]]:
    """Listen for commands on a socket that listens already; its file is left alone.

    Raises: InvalidError (code api_socket_unusable).
    Example: take(3)
    """
    path = _path_of(number)
    if path is None:
        raise InvalidError(
            "api_socket_unusable",
            f"file descriptor {number} is no unix socket with a path; hint: ListenStream=PATH",
        )
    with socket.socket(fileno=os.dup(number)) as listener:
        yield listener, path


@contextmanager
def listen(path: Path) -> Iterator[tuple[socket.socket, Path]]:
    """Listen on a unix socket that only the owner can use; a stale one is replaced.

    Result: the socket, and its path again.
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
        yield listener, path
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Replace a small file so that no reader sees half of it."""
    fresh = path.with_suffix(".new")
    try:
        fresh.write_text(text)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def raise_file_limit() -> int:
    """Let the process open as many files as the system allows. Result: how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
