"""Locks: snapshots that nobody deletes before a time, and the secret that releases some of them.

Docs: docs/guides/locks.md, docs/internals/locks.md. Invariant: a secret is never kept and never
given to the core, only what scrypt makes of it.
"""

import hashlib
from collections.abc import Iterable
from datetime import timedelta
from uuid import UUID

from ramet.errors import InvalidError
from ramet.pool.base import as_list, describe
from ramet.pool.roots import PoolRoots
from ramet.records import LockClock, ObjectRecord
from ramet.units import parse_duration
from ramet.volume import SnapshotLike

SECRET_LENGTH_MIN = 12
# docs/internals/format.md, "Locks": 64 MiB and a quarter of a second for each try.
SCRYPT_COST, SCRYPT_BLOCK, SCRYPT_PARALLEL = 1 << 16, 8, 1
SCRYPT_BYTES_MAX = 128 << 20
HASH_BYTES = 32
SECOND_NS = 10**9


def hash_secret(secret: str, pool_uuid: str) -> bytes:
    """Give what a pool keeps of a lock secret.

    Example: hash_secret("correct horse battery", "0198c0de-0000-7000-8000-000000000000")
    """
    return hashlib.scrypt(
        secret.encode(),
        salt=UUID(pool_uuid).bytes,
        n=SCRYPT_COST,
        r=SCRYPT_BLOCK,
        p=SCRYPT_PARALLEL,
        maxmem=SCRYPT_BYTES_MAX,
        dklen=HASH_BYTES,
    )


class PoolLocks(PoolRoots):
    """What a pool does with locks; see `Pool`."""

    def lock(
        self,
        snapshots: SnapshotLike | Iterable[SnapshotLike],
        duration: str | float | timedelta,
        *,
        mode: str = "governance",
    ) -> list[ObjectRecord]:
        """Lock snapshots, so that nobody deletes them for a time from now on, in one commit.

        `snapshots`: one or a list. `duration`: seconds, a text such as "30d", or a timedelta; up
        to 100 years. `mode`: "governance" (who has the pool's lock secret may release it) or
        "compliance" (nobody may). A lock that runs can be made longer and firmer, nothing else. It
        runs by a clock that nobody can set, so it may end later than its `until` says, and never
        earlier. Nothing else about a snapshot changes: it can be renamed, tagged, cloned and sent.
        Result: the snapshots as they are now, in order. Durable on return.
        Raises: InvalidError for a volume or a bad duration; ConflictError where a lock that runs is
        longer or firmer; NotFoundError; ReadOnlyError; FullError. On any error none is locked.
        Source: docs/internals/locks.md.
        Example: pool.lock("db@1", "1s")[0].lock.mode
        """
        time_ns = int(parse_duration(duration) * SECOND_NS)
        with self._command():
            names = [item.name for item in self._find_all(as_list(snapshots))]
            return [describe(item) for item in self._core.lock(names, time_ns, mode)]

    def unlock(
        self, snapshots: SnapshotLike | Iterable[SnapshotLike], *, secret: str | None = None
    ) -> list[ObjectRecord]:
        """Release locks before their time, in one commit.

        `snapshots`: one or a list. `secret`: the pool's lock secret, which governance locks ask
        for; no lock asks for it within its cooling-off, see `set_cooling_off`. One that is over
        may be among them.
        Result: the snapshots as they are now, in order. Durable on return.
        Raises: ReadOnlyError where the secret is missing or wrong, and for compliance locks;
        InvalidError for a volume; NotFoundError. On any error none is released.
        Example: pool.unlock("db@1")
        """
        hashed = self._hashed(secret)
        with self._command():
            names = [item.name for item in self._find_all(as_list(snapshots))]
            return [describe(item) for item in self._core.unlock(names, hashed)]

    def lock_clock(self) -> LockClock:
        """Say what the clock of locks shows, and what holds for locks.

        Example: pool.lock_clock().locked_count
        """
        self._check_usable()
        return LockClock.from_core(self._core.lock_clock())

    def confirm_lock_clock(self, secret: str) -> float:
        """Confirm that the machine's time of day is right, for governance locks.

        The clock of locks stands still while the machine is off. From now on governance locks
        count that time too, since each was set; compliance locks never do.
        Result: by how many seconds they end earlier at most. Durable on return.
        Raises: ReadOnlyError where the secret is wrong, or there is none.
        Example: pool.set_lock_secret("a long secret"); pool.confirm_lock_clock("a long secret")
        """
        hashed = hash_secret(secret, self.uuid)
        with self._command():
            return self._core.confirm_lock_clock(hashed) / SECOND_NS

    def set_lock_secret(self, secret: str, *, old: str | None = None) -> None:
        """Set the secret that releases governance locks; `old`: the one before, if there is one.

        It has 12 characters at least. Durable on return. What the pool keeps of it does not give
        it away; whoever loses it waits until the locks end.
        Raises: InvalidError for one that is too short; ReadOnlyError where `old` is missing or
        wrong; ConflictError where there is none, and a governance lock runs already.
        Example: pool.set_lock_secret("correct horse battery staple")
        """
        if len(secret) < SECRET_LENGTH_MIN:
            text = f"{len(secret)} characters; hint: {SECRET_LENGTH_MIN} at least"
            raise InvalidError("lock_secret_short", text)
        hashed, old_hashed = hash_secret(secret, self.uuid), self._hashed(old)
        with self._command():
            self._core.set_lock_secret(hashed, old_hashed)

    def set_cooling_off(
        self, duration: str | float | timedelta, *, secret: str | None = None
    ) -> None:
        """Say for how long a lock that is set from now on can be taken back; 0: not at all.

        `duration`: as in `lock`, a day at most. `secret`: the pool's lock secret, where it has one.
        Durable on return.
        Raises: InvalidError for a bad duration; ReadOnlyError where the secret is missing or wrong.
        Example: pool.set_cooling_off("10m")
        """
        seconds = parse_duration(duration)
        if 0 < seconds < 1:
            text = f"a cooling-off of {duration} is less than a second; hint: 1s, or 0 for none"
            raise InvalidError("cooling_off_too_short", text)
        hashed = self._hashed(secret)
        with self._command():
            self._core.set_cooling_off(int(seconds), hashed)

    def _hashed(self, secret: str | None) -> bytes | None:
        return None if secret is None else hash_secret(secret, self.uuid)
