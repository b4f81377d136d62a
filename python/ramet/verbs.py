"""The verbs of commands as plain values: one protocol, kept by a pool in this process and by a client of a service.

Imports pool, records. Called by service, http and cli. Invariant: arguments and results go to JSON and
back unchanged, so that a user never has to know who holds the pool.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ramet.errors import InvalidError
from ramet.records import ObjectRecord

if TYPE_CHECKING:
    from pathlib import Path

    from ramet.pool import Pool


@dataclass(frozen=True, slots=True)
class Made:
    """An object that a command made: what a list of ten thousand can afford to say."""

    name: str
    uuid: str

    def to_json(self) -> dict[str, str]:
        """Give it as a dictionary that `json.dumps` takes."""
        return {"name": self.name, "uuid": self.uuid}


Stats = dict[str, int | str | bool]


class Verbs(Protocol):
    """What a command can ask of a pool. Errors are those of `ramet.errors`; each verb is one commit."""

    def create_volumes(self, names: list[str], size: str, count: int | None) -> list[Made]:
        """Make volumes; one name may be a pattern with `{n}`."""

    def snapshot(
        self, volumes: list[str], all_volumes: bool, name: str | None
    ) -> list[Made]:
        """Take one instant of `volumes`, or of all."""

    def clone(
        self, source: str, names: list[str], count: int | None, size: str | None
    ) -> list[Made]:
        """Make volumes that start as `source`."""

    def revert(
        self, volume: str, snapshot: str, keep: bool | str, take_size: bool, force: bool
    ) -> Made | None:
        """Give a volume a snapshot's content. Result: the snapshot of what was discarded."""

    def rename(self, name: str, new_name: str) -> ObjectRecord:
        """Give an object another name."""

    def delete(self, names: list[str], force: bool) -> list[Made]:
        """End objects."""

    def objects(self) -> list[ObjectRecord]:
        """Describe everything, sorted by name."""

    def find_object(self, name: str) -> ObjectRecord:
        """Describe one object."""

    def stats(self) -> Stats:
        """Give the pool's figures."""

    def nbd_socket(self) -> "AbstractContextManager[Path]":
        """Give a socket that serves the pool while the block is not left."""


def one_pattern(names: list[str], count: int | None) -> str | list[str]:
    """Give what the pool takes: one name as a pattern, several as they are."""
    if len(names) == 1:
        return names[0]
    if count is not None:
        raise InvalidError(
            "count_with_names", f"--count with {len(names)} names; hint: give one pattern, 'vm-{{n}}'"
        )
    return names


class PoolVerbs:
    """The verbs of a pool that this process holds."""

    def __init__(self, pool: "Pool", nbd_socket: Callable[[], AbstractContextManager["Path"]]):
        self.pool = pool
        self.nbd_socket = nbd_socket

    def create_volumes(self, names: list[str], size: str, count: int | None) -> list[Made]:
        """See `Verbs`."""
        made = self.pool.create_volumes(one_pattern(names, count), size, count=count)
        return [Made(volume.name, volume.uuid) for volume in made]

    def snapshot(self, volumes: list[str], all_volumes: bool, name: str | None) -> list[Made]:
        """See `Verbs`."""
        chosen = None if all_volumes and not volumes else volumes
        made = self.pool.snapshot(chosen, name=name, all_volumes=all_volumes)
        return [Made(snapshot.name, snapshot.uuid) for snapshot in made]

    def clone(
        self, source: str, names: list[str], count: int | None, size: str | None
    ) -> list[Made]:
        """See `Verbs`."""
        made = self.pool.clone(source, one_pattern(names, count), count=count, size=size)
        return [Made(volume.name, volume.uuid) for volume in made]

    def revert(
        self, volume: str, snapshot: str, keep: bool | str, take_size: bool, force: bool
    ) -> Made | None:
        """See `Verbs`."""
        kept = self.pool.revert(volume, snapshot, keep=keep, take_size=take_size, force=force)
        return None if kept is None else Made(kept.name, kept.uuid)

    def rename(self, name: str, new_name: str) -> ObjectRecord:
        """See `Verbs`."""
        return self.pool.rename(name, new_name)

    def delete(self, names: list[str], force: bool) -> list[Made]:
        """See `Verbs`."""
        return [Made(item.name, item.uuid) for item in self.pool.delete(names, force=force)]

    def objects(self) -> list[ObjectRecord]:
        """See `Verbs`."""
        return self.pool.objects()

    def find_object(self, name: str) -> ObjectRecord:
        """See `Verbs`."""
        return self.pool.record(name)

    def stats(self) -> Stats:
        """See `Verbs`."""
        return self.pool.stats()
