"""An NBD server of a pool, as users hold it.

Imports the core. Called by the pool, which owns every server's end.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from ramet import _core


class NbdServer:
    """An NBD server of a pool, from `Pool.serve_nbd`. Stops when closed, or with its pool."""

    def __init__(self, core: _core.NbdServer, close: Callable[[_core.NbdServer], None]) -> None:
        self._core = core
        self._close = close

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def socket_path(self) -> str:
        """Path of the first unix socket; empty where there is none."""
        addresses = (it.removeprefix("unix:") for it in self.addresses if it.startswith("unix:"))
        return next(addresses, "")

    @property
    def addresses(self) -> list[str]:
        """Where it listens: "unix:PATH" and "tcp:HOST:PORT", with the port that was free for 0."""
        return self._core.addresses

    @property
    def connections_count(self) -> int:
        """Clients that are connected now."""
        return self._core.connections_count

    def reload_tls(self) -> None:
        """Read certificates and the allow list anew, for connections that come from now on.

        Raises: InvalidError (code nbd_tls_file); then what there was goes on to be used.
        Example: pool.serve_nbd(directory / "nbd.sock").reload_tls()
        """
        self._core.reload_tls()

    def close(self) -> None:
        """Stop: answer the requests in progress, flush, close all connections. Idempotent.

        Example: pool.serve_nbd(directory / "nbd.sock").close()
        """
        self._close(self._core)
