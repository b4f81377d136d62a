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
    root: str | None = None
    """Of a snapshot: the root hash, once it was computed."""
    lock: "Lock | None" = None
    """Of a snapshot: the lock that runs."""

    @property
    def created(self) -> str:
        """The moment of creation: ISO 8601, UTC, milliseconds."""
        return format_time(self.created_ns)

    def to_json(self) -> dict[str, Any]:
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
            "root": self.root,
            "lock": self.lock.to_json() if self.lock else None,
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
            root=value.get("root"),
            lock=Lock.from_json(value["lock"]) if value.get("lock") else None,
        )


class Lock(NamedTuple):
    """A lock of a snapshot, while it runs."""

    mode: str
    """`governance` or `compliance`; `unknown`: of a later version."""
    remaining_seconds: float
    """It runs on for at least so long."""
    until_ns: int
    """When it ends if its clock does not stop until then: nanoseconds since 1970, UTC."""
    cooling_off_seconds: float
    """For so long it can be taken back without a secret."""

    @property
    def until(self) -> str:
        """When it ends at the earliest: ISO 8601, UTC, milliseconds."""
        return format_time(self.until_ns)

    def to_json(self) -> dict[str, str | int | float]:
        """Give it as a dictionary that `json.dumps` takes; `from_json` reads it back."""
        return {**self._asdict(), "until": self.until}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Lock":
        """Read what `to_json` gave; keys that are not known here are ignored."""
        return cls(*(value[name] for name in cls._fields))


class Trashed(NamedTuple):
    """A deleted object that can be restored."""

    object: ObjectRecord
    """As it was; its name may be another's by now."""
    remaining_seconds: float
    """It stays for at least so long, if nobody empties the trash."""
    until_ns: int
    """When it goes if its clock does not stop until then: nanoseconds since 1970, UTC."""

    @property
    def until(self) -> str:
        """When it goes at the earliest: ISO 8601, UTC, milliseconds."""
        return format_time(self.until_ns)

    def to_json(self) -> dict[str, Any]:
        """Give it as a dictionary that `json.dumps` takes; `from_json` reads it back."""
        return {**self._asdict(), "until": self.until, "object": self.object.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Trashed":
        """Read what `to_json` gave."""
        known = ObjectRecord.from_json(value["object"])
        return cls(known, value["remaining_seconds"], value["until_ns"])


class Trash(NamedTuple):
    """What is in the trash, and for how long what is deleted now stays."""

    window_seconds: int
    """0: what is deleted is not in it at all."""
    objects: list[Trashed]
    """What goes first at the front."""

    def to_json(self) -> dict[str, Any]:
        """Give it as a dictionary that `json.dumps` takes; `from_json` reads it back."""
        objects = [trashed.to_json() for trashed in self.objects]
        return {"window_seconds": self.window_seconds, "objects": objects}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Trash":
        """Read what `to_json` gave."""
        objects = [Trashed.from_json(trashed) for trashed in value["objects"]]
        return cls(value["window_seconds"], objects)


class LockClock(NamedTuple):
    """The clock that locks run by, and what holds for them."""

    clock_seconds: float
    """What has passed since the pool was made, as far as the clock knows."""
    day_ns: int
    """The time of day: what would be confirmed now, in nanoseconds since 1970."""
    confirmed_day_ns: int
    """The time of day that was confirmed last; 0: none was."""
    behind_seconds: float
    """By how much governance locks would end earlier at most if it were confirmed now."""
    locked_count: int
    """Locks that run."""
    has_secret: bool
    """Whether the pool has a lock secret."""
    cooling_off_seconds: int
    """For so long a lock that is set now can be taken back."""
    wrong_secrets_count: int
    """Wrong secrets that were given since the pool was opened."""

    def to_json(self) -> dict[str, int | float | bool]:
        """Give it as a dictionary that `json.dumps` takes."""
        return self._asdict()

    @classmethod
    def from_core(cls, told: Mapping[str, Any]) -> "LockClock":
        """Read what the core tells."""
        return cls(
            told["clock_ns"] / 10**9,
            told["day_ns"],
            told["confirmed_day_ns"],
            told["behind_ns"] / 10**9,
            told["locked_count"],
            told["has_secret"],
            told["cooling_off_seconds"],
            told["wrong_secrets_count"],
        )


class LostObject(NamedTuple):
    """An object that changed behind the place where a damaged log ends now, or lost blocks."""

    name: str
    """Its name; where it is gone, the name it was made with, or empty where that is not known."""
    id: int
    is_gone: bool
    """Whether it was made there: it is not in the pool any more."""
    ranges: list[tuple[int, int]]
    """Where its writes and trims were lost: first byte and length, in order."""
    unreadable: list[tuple[int, int]]
    """What it still has and cannot be read any more: reads there raise CorruptError."""


class LostCommand(NamedTuple):
    """A command that did not happen."""

    verb: str
    names: list[str]


class LossReport(NamedTuple):
    """What was lost when a damaged log was accepted."""

    text: str
    """All of it for people, some lines."""
    damage: str
    kept_sequence: int
    """The last batch of the log that is kept."""
    durable_sequence: int
    """The last batch that is known to have been there."""
    unread_count: int
    """Batches between both that cannot be read: what they did is not known."""
    missing_segments: list[str]
    """Segments without a file: reads of blocks in them raise CorruptError."""
    directory: str
    """Where the rest of the log is kept, relative to the pool; empty: there is none."""
    files: list[str]
    objects: list[LostObject]
    commands: list[LostCommand]

    def to_json(self) -> dict[str, object]:
        """Give the report as a dictionary that `json.dumps` takes."""

        def told(ranges: list[tuple[int, int]]) -> list[dict[str, int]]:
            return [{"offset_bytes": first, "length_bytes": length} for first, length in ranges]

        objects = [
            {**item._asdict(), "ranges": told(item.ranges), "unreadable": told(item.unreadable)}
            for item in self.objects
        ]
        commands = [item._asdict() for item in self.commands]
        return {**self._asdict(), "objects": objects, "commands": commands}

    @classmethod
    def from_core(cls, told: Mapping[str, Any]) -> "LossReport":
        """Read what the core tells."""
        objects = [LostObject(*item) for item in told["objects"]]
        commands = [LostCommand(*item) for item in told["commands"]]
        return cls(**{**told, "objects": objects, "commands": commands})


class ObjectSpace(NamedTuple):
    """What one object takes, all at one moment."""

    mapped_bytes: int
    """Bytes of the blocks written and not trimmed since; what is shared counts in full."""
    exclusive_bytes: int
    """Those that no other object holds: what deleting this one alone frees."""
    shared_bytes: int
    """Those that others hold too."""
    sequence: int
    """The last batch of the log that had begun then, as `appended_sequence` of `stats`."""

    def to_json(self) -> dict[str, int]:
        """Give it as a dictionary that `json.dumps` takes."""
        return self._asdict()


class Sharer(NamedTuple):
    """An object that shares blocks with another one."""

    name: str
    shared_bytes: int


class Sharing(NamedTuple):
    """Who an object shares its blocks with, and how scattered they are."""

    sharers: list[Sharer]
    """Those that share most, most first; ten at most."""
    compared_count: int
    """Objects that were compared: its nearest relatives, where there are very many."""
    fragments_per_mib: float | None
    """Runs of blocks that lie one behind the other, for each MiB; None: nothing is mapped."""

    def to_json(self) -> dict[str, Any]:
        """Give it as a dictionary that `json.dumps` takes; `from_json` reads it back."""
        return {**self._asdict(), "sharers": [sharer._asdict() for sharer in self.sharers]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Sharing":
        """Read what `to_json` gave."""
        sharers = [Sharer(**sharer) for sharer in value["sharers"]]
        return cls(**{**value, "sharers": sharers})


class Verified(NamedTuple):
    """A snapshot whose blocks were read and hashed."""

    name: str
    uuid: str
    size_bytes: int
    root: str
    """The root hash: 64 hexadecimal digits."""
    created_ns: int
    """Of the snapshot: nanoseconds since 1970, UTC."""

    def to_json(self) -> dict[str, str | int]:
        """Give it as a dictionary that `json.dumps` takes."""
        return self._asdict()


class Reclaimed(NamedTuple):
    """How far giving back dead space is."""

    given_back_bytes: int
    """Bytes that came back to the file system by this call."""
    waiting_bytes: int
    """Bytes that are dead and still there."""
    dying_count: int
    """Deleted objects and other places whose blocks are still being looked at."""
    is_done: bool
    """Whether all was done that could be; False where the time was up."""

    def to_json(self) -> dict[str, int | bool]:
        """Give it as a dictionary that `json.dumps` takes."""
        return self._asdict()


class DamageHolder(NamedTuple):
    """A range of an object that needs what is damaged."""

    name: str
    offset_bytes: int
    length_bytes: int


class Damage(NamedTuple):
    """Something that cannot be read."""

    code: str
    """The code that a reader is refused with."""
    text: str
    """What is wrong, and where: file and byte."""
    holders: list[DamageHolder]
    """Who needs it, the first ten."""
    holders_count: int
    """How many there are."""

    def to_json(self) -> dict[str, Any]:
        """Give it as a dictionary that `json.dumps` takes; `from_json` reads it back."""
        return {**self._asdict(), "holders": [holder._asdict() for holder in self.holders]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Damage":
        """Read what `to_json` gave."""
        holders = [DamageHolder(**holder) for holder in value["holders"]]
        return cls(**{**value, "holders": holders})


class Scrubbed(NamedTuple):
    """How far a scrub is."""

    read_bytes: int
    """Bytes of blocks that were read so far, each once."""
    all_bytes: int
    """About how many there are."""
    findings_count: int
    """How many things cannot be read."""
    is_done: bool
    findings: list[Damage]
    """Those found since this was last told; at the end all of them, the first thousand."""

    def to_json(self) -> dict[str, Any]:
        """Give it as a dictionary that `json.dumps` takes; `from_json` reads it back."""
        return {**self._asdict(), "findings": [finding.to_json() for finding in self.findings]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Scrubbed":
        """Read what `to_json` gave."""
        findings = [Damage.from_json(finding) for finding in value["findings"]]
        return cls(**{**value, "findings": findings})


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
