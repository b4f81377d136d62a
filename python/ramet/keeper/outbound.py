"""One remote as the keeper sees it: kept in step by a thread, and asked how far behind it is.

Imports replication, pool. Invariants: one stream at a time; what a remote is known to have is noted
before what it replaces may be dropped here; a failure forgets what it is believed to have.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ramet.errors import RametError
from ramet.keeper.files import Known
from ramet.keeper.status import RemoteStatus
from ramet.policies import Remote
from ramet.pool.transfers import BLOCK_BYTES
from ramet.replication import How, Link, bases_of, have_of, missing, sync
from ramet.replication.sync import Progress
from ramet.units import parse_duration, parse_size

if TYPE_CHECKING:
    from ramet.pool import Pool
    from ramet.records import ObjectRecord

RETRY_SECONDS_MIN = 10.0
RETRY_SECONDS_MAX = 3600.0
IDLE_SECONDS_MAX = 3600.0  # So often a remote is asked for a sign of life, at least.
_NANOSECONDS = 10**9

Choose = Callable[[], "list[ObjectRecord]"]
Note = Callable[[str, Known], None]


class Outbound:
    """A remote. Its thread runs from `start` to `stop`; without one, `sync_once` does the work."""

    def __init__(
        self,
        pool: "Pool",
        name: str,
        remote: Remote,
        known: Known | None,
        *,
        choose: Choose,
        note: Note,
        say: Callable[[str], None],
    ) -> None:
        self.name = name
        self.remote = remote
        self._pool = pool
        self._choose = choose
        self._note = note
        self._say = say
        self._link = Link(name, remote.command, _how(remote))
        is_same = known is not None and known.url == remote.url
        self._known = known if is_same else None
        self._have: set[str] | None = None  # None: it is asked first.
        self._sending = threading.Lock()
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._failures_count = 0
        self.error: str | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Keep it in step from now on."""
        self._wake.set()
        self._thread = threading.Thread(target=self._run, name=f"remote {self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the stream that runs, and the thread."""
        self._ended.set()
        self._link.stop()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def wake(self) -> None:
        """Look now whether there is something to send."""
        self.error = None
        self._wake.set()

    def sync_once(self, progress: Progress | None = None) -> list[str]:
        """Send what the remote has not. Result: the names of what was sent.

        Raises: what `sync` raises; what arrived by then stays.
        """
        with self._sending:
            sent = list[str]()
            try:
                self._ask()
                assert self._have is not None, "it was asked"
                for names in sync(self._pool, self._link, self._choose, self._have, progress):
                    sent += names
                    self._learn()
            except BaseException:
                self._have = None
                raise
        self.error = None
        return sent

    def holds(self, snapshots: Sequence["ObjectRecord"], now_ns: int) -> dict[str, str]:
        """Give why snapshots that a policy of this remote took must stay here, by UUID.

        Example: outbound.holds([], 0)
        """
        bases, why = self._bases(snapshots)
        return {} if self._gives_up(bases, now_ns) else {it.uuid: why for it in bases}

    def status(self, now_ns: int) -> RemoteStatus:
        """Say how far behind it is; compares maps of what is to be sent."""
        objects = {it.uuid: it for it in self._pool.objects()}
        chosen, known = self._choose(), self._known
        have = known.have if known is not None else frozenset[str]()
        groups = missing(chosen, objects, have)
        oldest = min((it.created_ns for it in groups), default=None)
        bases, _ = self._bases(chosen)
        note = self._gives_up(bases, now_ns)
        return RemoteStatus(
            name=self.name,
            url=self.remote.url,
            reached_ns=known.reached_ns if known is not None else None,
            lag_seconds=max(0.0, (now_ns - oldest) / _NANOSECONDS) if oldest is not None else 0.0,
            lag_count=sum(len(it.snapshots) for it in groups),
            lag_bytes=sum(self._changed_bytes(*pair) for it in groups for pair in it.pairs),
            held_count=0 if note else len(bases),
            is_sending=self._sending.locked(),
            error=self.error,
            note=note,
        )

    def _run(self) -> None:
        while not self._ended.is_set():
            wait = IDLE_SECONDS_MAX
            self._wake.clear()
            try:
                self.sync_once()
                self._failures_count = 0
            except Exception as error:  # noqa: BLE001 - a remote must not fall behind in silence.
                if self._ended.is_set():
                    return
                if self._failures_count == 0:
                    self._say(f"remote '{self.name}': {error}")
                self.error = str(error)
                wait = min(RETRY_SECONDS_MIN * 2**self._failures_count, RETRY_SECONDS_MAX)
                self._failures_count = min(self._failures_count + 1, 16)
            if not self._wake.wait(wait):
                self._have = None  # A sign of life is wanted.

    def _ask(self) -> None:
        if self._have is None:
            self._have = have_of(self._link, self._pool.uuid)
            self._learn()

    def _learn(self) -> None:
        assert self._have is not None, "only called after it was asked"
        here = frozenset(it.uuid for it in self._choose()) & self._have
        self._known = Known(self.remote.url, time.time_ns(), here)
        self._note(self.name, self._known)

    def _bases(self, snapshots: Sequence["ObjectRecord"]) -> tuple[list["ObjectRecord"], str]:
        """Give what the remote may need as bases, and why: any, where it was not reached yet."""
        if self._known is None:
            return list(snapshots), f"remote '{self.name}' was not reached yet"
        bases = bases_of(snapshots, self._known.have)
        return list(bases.values()), f"base of remote '{self.name}'"

    def _gives_up(self, bases: Sequence["ObjectRecord"], now_ns: int) -> str | None:
        """Say why bases are not kept any longer; None: they are."""
        if not bases:
            return None
        then = "bases are given up, and what follows goes whole"
        if self.remote.hold is not None:
            oldest_ns = min(it.created_ns for it in bases)
            reached_ns = self._known.reached_ns if self._known is not None else oldest_ns
            if (now_ns - reached_ns) / _NANOSECONDS > parse_duration(self.remote.hold):
                return f"not reached for longer than {self.remote.hold}: {then}"
        most = self.remote.hold_size
        if most is not None and self._pool.frees([it.uuid for it in bases]) > parse_size(most):
            return f"bases hold more than {most}: {then}"
        return None

    def _changed_bytes(self, snapshot: "ObjectRecord", base: "ObjectRecord | None") -> int:
        before = None if base is None else base.uuid
        blocks = -(-snapshot.size_bytes // BLOCK_BYTES)
        try:
            runs = self._pool.transfers.changed_runs(before, snapshot.uuid, 0, blocks)
            return sum(length for _, length, is_data in runs if is_data) * BLOCK_BYTES
        except RametError:
            return 0  # It was deleted meanwhile, or cannot be read: sending it says so.


def _how(remote: Remote) -> How:
    rate = None if remote.rate is None else parse_size(remote.rate)
    return How(remote.name, remote.zstd, rate)
