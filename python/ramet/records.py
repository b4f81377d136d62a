"""What commands return: plain, immutable values that go to JSON and back.

Pure. Imports units only. Invariant: every integer that counts bytes has a name ending in `_bytes`.
A record is a named tuple, because ten thousand of them are made three times as fast as of a frozen
dataclass, and a command that needs none of them does not pay for the machinery.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ramet.units import format_time

NO_TAGS: Mapping[str, str] = MappingProxyType({})  # One for all objects without.


class ObjectRecord(NamedTuple):
    """A volume or a snapshot as it was at the moment of the call."""

    uuid: str
    name: str
    kind: str
    """`volume` or `snapshot`."""
    size_bytes: int
    mapped_bytes: int
    """Bytes of the blocks written and not trimmed since; what is shared counts in full."""
    created_ns: int
    """Nanoseconds since 1970, UTC."""
    parent: str | None
    """UUID of the nearest living ancestor in the tree of lineage."""
    source: str | None
    """UUID of what it was taken or cloned from, which may be deleted since."""
    batch: str
    """UUID that all objects of one command share."""
    attached_count: int
    """NBD connections that have it open."""
    tags: Mapping[str, str] = NO_TAGS

    @property
    def created(self) -> str:
        """The moment of creation: ISO 8601, UTC, milliseconds."""
        return format_time(self.created_ns)

    def to_json(self) -> dict[str, str | int | dict[str, str] | None]:
        """Give the record as a dictionary that `json.dumps` takes; `from_json` reads it back."""
        return {
            "uuid": self.uuid,
            "name": self.name,
            "kind": self.kind,
            "size_bytes": self.size_bytes,
            "mapped_bytes": self.mapped_bytes,
            "created": self.created,
            "created_ns": self.created_ns,
            "parent": self.parent,
            "source": self.source,
            "batch": self.batch,
            "attached_count": self.attached_count,
            "tags": dict(self.tags),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ObjectRecord":
        """Read what `to_json` gave; keys that are not known here are ignored."""
        return cls(
            uuid=value["uuid"],
            name=value["name"],
            kind=value["kind"],
            size_bytes=value["size_bytes"],
            mapped_bytes=value["mapped_bytes"],
            created_ns=value["created_ns"],
            parent=value["parent"],
            source=value["source"],
            batch=value["batch"],
            attached_count=value["attached_count"],
            tags=value.get("tags", NO_TAGS),
        )


class Extent(NamedTuple):
    """A range in which two objects differ."""

    offset_bytes: int
    length_bytes: int
    mapped: bool
    """Whether anything is written there in the later object; else it reads as zeros."""

    def to_json(self) -> dict[str, int | bool]:
        """Give the extent as a dictionary that `json.dumps` takes."""
        return self._asdict()


class Diff(NamedTuple):
    """What differs between two objects."""

    before: str
    after: str
    before_size_bytes: int
    after_size_bytes: int
    extents: list[Extent]

    def to_json(self) -> dict[str, object]:
        """Give it as a dictionary that `json.dumps` takes; `from_json` reads it back."""
        return {**self._asdict(), "extents": [extent.to_json() for extent in self.extents]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Diff":
        """Read what `to_json` gave."""
        return cls(**{**value, "extents": [Extent(**extent) for extent in value["extents"]]})
