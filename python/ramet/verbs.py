"""The verbs of commands as plain values: one protocol, kept by a pool and by a service's client.

Imports pool, records, tags. Called by service, http and cli. Invariant: arguments and results go to
JSON and back unchanged, so that a user never has to know who holds the pool.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ramet.errors import InvalidError
from ramet.fullness import DEFAULT as DEFAULT_THRESHOLDS
from ramet.fullness import Thresholds
from ramet.records import (
    Diff,
    LockClock,
    ObjectRecord,
    ObjectSpace,
    Reclaimed,
    Scrubbed,
    Sharing,
    Trash,
    Verified,
)
from ramet.tags import Selector, Tags

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path

    from ramet.pool import Pool
    from ramet.volume import Handle

Stats = dict[str, int | float | str | bool]


@dataclass(frozen=True, slots=True)
class Made:
    """An object that a command made: what a list of ten thousand can afford to say."""

    name: str
    uuid: str

    def to_json(self) -> dict[str, str]:
        """Give it as a dictionary that `json.dumps` takes."""
        return {"name": self.name, "uuid": self.uuid}


class Verbs(Protocol):
    """What a command can ask of a pool. Each verb is one commit; errors are of `ramet.errors`."""

    def create_volumes(
        self, names: list[str], size: str, count: int | None, tags: Tags | None = None
    ) -> list[Made]:
        """Make volumes; one name may be a pattern with `{n}`."""

    def snapshot(
        self,
        volumes: list[str] | None,
        all_volumes: bool,
        name: str | None,
        tagged: Selector | None = None,
        tags: Tags | None = None,
    ) -> list[Made]:
        """Take one instant of `volumes`, of all, or of those with some tags."""

    def clone(
        self,
        source: str,
        names: list[str],
        count: int | None,
        size: str | None,
        tags: Tags | None = None,
    ) -> list[Made]:
        """Make volumes that start as `source`."""

    def revert(
        self, pairs: list[tuple[str, str]], keep: bool | str, take_size: bool, force: bool
    ) -> list[Made]:
        """Give volumes the content of snapshots. Result: the snapshots of what was discarded."""

    def freeze(self, names: list[str], force: bool) -> list[Made]:
        """Turn volumes into snapshots."""

    def resize(self, name: str, size: str, shrink: bool, force: bool) -> ObjectRecord:
        """Give a volume another size."""

    def tag(self, names: list[str], tags: Tags, remove: list[str]) -> list[ObjectRecord]:
        """Set and remove tags."""

    def rename(self, name: str, new_name: str) -> ObjectRecord:
        """Give an object another name."""

    def delete(self, names: list[str], force: bool, now: bool = False) -> list[Made]:
        """Delete objects; `now`: without the trash."""

    def trash(self) -> Trash:
        """Say what is in the trash, and what the undo window is."""

    def set_trash_window(self, duration: str | float) -> None:
        """Say for how long what is deleted from now on can be restored."""

    def restore(self, names: list[str], new_names: list[str] | None) -> list[Made]:
        """Bring back what was deleted."""

    def empty_trash(self, names: list[str] | None) -> list[Made]:
        """End what is in the trash; None: all of it."""

    def trash_frees(self, names: list[str] | None) -> int:
        """Say how many bytes emptying the trash would free."""

    def lock(self, names: list[str], duration: str | float, mode: str) -> list[ObjectRecord]:
        """Lock snapshots, so that nobody deletes them for a time."""

    def unlock(self, names: list[str], secret: str | None) -> list[ObjectRecord]:
        """Release locks before their time."""

    def lock_clock(self) -> LockClock:
        """Say what the clock of locks shows, and what holds for locks."""

    def confirm_lock_clock(self, secret: str) -> float:
        """Confirm that the time of day is right, for governance locks."""

    def set_lock_secret(self, secret: str, old: str | None) -> None:
        """Set the secret that releases governance locks."""

    def set_cooling_off(self, duration: str | float, secret: str | None) -> None:
        """Say for how long a lock that is set from now on can be taken back."""

    def frees(self, names: list[str]) -> int:
        """Say how many bytes deleting objects would free."""

    def space(self, name: str) -> ObjectSpace:
        """Say what one object takes."""

    def spaces(self) -> dict[str, ObjectSpace]:
        """Say what each object takes, by UUID; up to a minute old."""

    def sharing(self, name: str) -> Sharing:
        """Say who shares most with an object, and how scattered it is."""

    def reclaim(self, everything: bool, seconds: float) -> Reclaimed:
        """Give back what is dead, for a while."""

    def scrub(self, rate: str | None) -> "Generator[Scrubbed, None, None]":
        """Read all that is held, so many bytes a second, and tell how far that is."""

    def set_limit(self, size: str | None) -> None:
        """Have the pool take no more than `size`; None: as much as there is."""

    def diff(self, before: str, after: str) -> Diff:
        """Say what differs between two objects."""

    def verify(self, name: str) -> Verified:
        """Read and hash the blocks of a snapshot."""

    def objects(self) -> list[ObjectRecord]:
        """Describe everything, sorted by name."""

    def find_object(self, name: str) -> ObjectRecord:
        """Describe one object."""

    def stats(self) -> Stats:
        """Give the pool's figures."""

    def checkpoint(self) -> bool:
        """Write the maps out up to now."""

    def nbd_socket(self) -> "AbstractContextManager[Path]":
        """Give a socket that serves the pool while the block is not left."""


def one_pattern(names: list[str], count: int | None) -> str | list[str]:
    """Give what the pool takes: one name as a pattern, several as they are."""
    if len(names) == 1:
        return names[0]
    if count is not None:
        raise InvalidError(
            "count_with_names",
            f"--count with {len(names)} names; hint: give one pattern, 'vm-{{n}}'",
        )
    return names


class PoolVerbs:
    """The verbs of a pool that this process holds; see `Verbs` for what they do."""

    def __init__(
        self,
        pool: "Pool",
        nbd_socket: Callable[[], AbstractContextManager["Path"]],
        thresholds: Thresholds = DEFAULT_THRESHOLDS,
    ) -> None:
        self.pool = pool
        self._thresholds = thresholds
        self.nbd_socket = nbd_socket

    def create_volumes(
        self, names: list[str], size: str, count: int | None, tags: Tags | None = None
    ) -> list[Made]:
        """See `Verbs`."""
        made = self.pool.create_volumes(one_pattern(names, count), size, count=count, tags=tags)
        return _made(made)

    def snapshot(
        self,
        volumes: list[str] | None,
        all_volumes: bool,
        name: str | None,
        tagged: Selector | None = None,
        tags: Tags | None = None,
    ) -> list[Made]:
        """See `Verbs`."""
        made = self.pool.snapshot(
            volumes or None, name=name, all_volumes=all_volumes, tagged=tagged or None, tags=tags
        )
        return _made(made)

    def clone(
        self,
        source: str,
        names: list[str],
        count: int | None,
        size: str | None,
        tags: Tags | None = None,
    ) -> list[Made]:
        """See `Verbs`."""
        pattern = one_pattern(names, count)
        return _made(self.pool.clone(source, pattern, count=count, size=size, tags=tags))

    def revert(
        self, pairs: list[tuple[str, str]], keep: bool | str, take_size: bool, force: bool
    ) -> list[Made]:
        """See `Verbs`."""
        return _made(self.pool.revert_many(pairs, keep=keep, take_size=take_size, force=force))

    def freeze(self, names: list[str], force: bool) -> list[Made]:
        """See `Verbs`."""
        return _made(self.pool.freeze(names, force=force))

    def resize(self, name: str, size: str, shrink: bool, force: bool) -> ObjectRecord:
        """See `Verbs`."""
        return self.pool.resize(name, size, shrink=shrink, force=force)

    def tag(self, names: list[str], tags: Tags, remove: list[str]) -> list[ObjectRecord]:
        """See `Verbs`."""
        return self.pool.tag(names, tags, remove=remove)

    def rename(self, name: str, new_name: str) -> ObjectRecord:
        """See `Verbs`."""
        return self.pool.rename(name, new_name)

    def delete(self, names: list[str], force: bool, now: bool = False) -> list[Made]:
        """See `Verbs`."""
        deleted = self.pool.delete(names, force=force, now=now)
        return [Made(item.name, item.uuid) for item in deleted]

    def trash(self) -> Trash:
        """See `Verbs`."""
        return self.pool.trash()

    def set_trash_window(self, duration: str | float) -> None:
        """See `Verbs`."""
        self.pool.set_trash_window(duration)

    def restore(self, names: list[str], new_names: list[str] | None) -> list[Made]:
        """See `Verbs`."""
        return _made(self.pool.restore(names, names=new_names))

    def empty_trash(self, names: list[str] | None) -> list[Made]:
        """See `Verbs`."""
        return [Made(item.name, item.uuid) for item in self.pool.empty_trash(names)]

    def trash_frees(self, names: list[str] | None) -> int:
        """See `Verbs`."""
        return self.pool.trash_frees(names)

    def lock(self, names: list[str], duration: str | float, mode: str) -> list[ObjectRecord]:
        """See `Verbs`."""
        return self.pool.lock(names, duration, mode=mode)

    def unlock(self, names: list[str], secret: str | None) -> list[ObjectRecord]:
        """See `Verbs`."""
        return self.pool.unlock(names, secret=secret)

    def lock_clock(self) -> LockClock:
        """See `Verbs`."""
        return self.pool.lock_clock()

    def confirm_lock_clock(self, secret: str) -> float:
        """See `Verbs`."""
        return self.pool.confirm_lock_clock(secret)

    def set_lock_secret(self, secret: str, old: str | None) -> None:
        """See `Verbs`."""
        self.pool.set_lock_secret(secret, old=old)

    def set_cooling_off(self, duration: str | float, secret: str | None) -> None:
        """See `Verbs`."""
        self.pool.set_cooling_off(duration, secret=secret)

    def frees(self, names: list[str]) -> int:
        """See `Verbs`."""
        return self.pool.frees(names)

    def space(self, name: str) -> ObjectSpace:
        """See `Verbs`."""
        return self.pool.space(name)

    def spaces(self) -> dict[str, ObjectSpace]:
        """See `Verbs`."""
        return self.pool.spaces()

    def sharing(self, name: str) -> Sharing:
        """See `Verbs`."""
        return self.pool.sharing(name)

    def reclaim(self, everything: bool, seconds: float) -> Reclaimed:
        """See `Verbs`."""
        return self.pool.reclaim(everything=everything, seconds=seconds)

    def scrub(self, rate: str | None) -> "Generator[Scrubbed, None, None]":
        """See `Verbs`."""
        return self.pool.scrub(rate=rate)

    def set_limit(self, size: str | None) -> None:
        """See `Verbs`."""
        self.pool.set_limit(size)

    def diff(self, before: str, after: str) -> Diff:
        """See `Verbs`."""
        return self.pool.diff(before, after)

    def verify(self, name: str) -> Verified:
        """See `Verbs`."""
        return self.pool.verify(name)

    def objects(self) -> list[ObjectRecord]:
        """See `Verbs`."""
        return self.pool.objects()

    def find_object(self, name: str) -> ObjectRecord:
        """See `Verbs`."""
        return self.pool.record(name)

    def stats(self) -> Stats:
        """See `Verbs`."""
        return self.pool.stats(thresholds=self._thresholds)

    def checkpoint(self) -> bool:
        """See `Verbs`."""
        return self.pool.checkpoint()


def _made(handles: "Iterable[Handle]") -> list[Made]:
    return [Made(handle.made_name, handle.uuid) for handle in handles]
