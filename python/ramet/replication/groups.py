"""What a remote has not got yet, and from which bases it is sent.

Pure: objects are given. Docs: docs/internals/policies.md, "Remotes". Invariants: a base is older
than what is sent, and both sides have it; groups are in the order in which they were taken.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ramet.records import ObjectRecord


class Group(NamedTuple):
    """Snapshots of one instant that the remote has not, each with its base or none."""

    created_ns: int
    snapshots: list[ObjectRecord]
    bases: list[ObjectRecord | None]

    @property
    def pairs(self) -> list[tuple[ObjectRecord, ObjectRecord | None]]:
        """Each snapshot with its base."""
        return list(zip(self.snapshots, self.bases, strict=True))


def bases_of(snapshots: Sequence[ObjectRecord], have: Collection[str]) -> dict[str, ObjectRecord]:
    """Give the newest snapshot of each source that the remote has, by the source's UUID.

    `have`: UUIDs of what the remote has.
    Example: bases_of([], set())
    """
    newest: dict[str, ObjectRecord] = {}
    for it in snapshots:
        if it.source is not None and it.uuid in have:
            held = newest.get(it.source)
            if held is None or _age(it) > _age(held):
                newest[it.source] = it
    return newest


def missing(
    snapshots: Sequence[ObjectRecord], objects: Mapping[str, ObjectRecord], have: Collection[str]
) -> list[Group]:
    """Give what is to be sent: all that is newer than what the remote has of the same source.

    `snapshots`: those that belong to the remote. `objects`: everything, by UUID: the base may be an
    ancestor that no policy took, such as the golden image that a volume was cloned from. `have`:
    UUIDs of what the remote has.
    Example: missing([], {}, set())
    """
    newest = bases_of(snapshots, have)
    by_batch: dict[str, list[ObjectRecord]] = {}
    for it in snapshots:
        held = newest.get(it.source or "")
        if it.uuid not in have and (held is None or _age(it) > _age(held)):
            by_batch.setdefault(it.batch, []).append(it)
    there, groups = set(have), []
    for batch in sorted(by_batch.values(), key=lambda its: min(map(_age, its))):
        batch.sort(key=lambda it: it.name)
        bases = [newest.get(it.source or "") or _ancestor(it, objects, there) for it in batch]
        groups.append(Group(batch[0].created_ns, batch, bases))
        for it in batch:
            there.add(it.uuid)
            if it.source is not None:
                newest[it.source] = it
    return groups


def _age(it: ObjectRecord) -> tuple[int, str]:
    return it.created_ns, it.uuid


def _ancestor(
    it: ObjectRecord, objects: Mapping[str, ObjectRecord], there: Collection[str]
) -> ObjectRecord | None:
    """Give the nearest living ancestor that the remote has."""
    seen: set[str] = set()
    above = it.parent
    while above is not None and above not in seen:
        seen.add(above)
        found = objects.get(above)
        if found is None:
            return None
        if found.kind == "snapshot" and found.uuid in there:
            return found
        above = found.parent
    return None
