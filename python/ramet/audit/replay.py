"""The log's tail, replayed over the objects of a checkpoint: docs/internals/format.md, "Records".

Holds I10 and I11, and follows what is wrong from object to object. Memory: a few hundred bytes for
each object. Invariant: a record that makes no sense is told, and the rest is replayed as far as it
goes.
"""

from collections.abc import Callable
from typing import NamedTuple

from ramet.audit.locks import hold_end, hold_set
from ramet.audit.objects import (
    SNAPSHOT,
    VOLUME,
    Fields,
    Object,
    Tag,
    Verb,
    decode_lock,
    decode_name,
    decode_object,
    decode_record,
    number,
)
from ramet.audit.report import Finding, Place, Report
from ramet.audit.structures import (
    KIND_MARK,
    KIND_RECORD,
    KIND_WRITE,
    Batch,
    Entry,
    MalformedError,
)


class Hit(NamedTuple):
    """Blocks of an object that need what is wrong."""

    first: int
    blocks_count: int
    finding: Finding


class Objects:
    """All objects at one point of the log, and what each of them needs."""

    def __init__(self, report: Report, has_lock_secret: bool = False) -> None:
        self._report, self._has_lock_secret = report, has_lock_secret
        self.lock_clock_ns = 0
        """The latest that a record tells of."""
        self.by_id: dict[int, Object] = {}
        self.hits: dict[int, list[Hit]] = {}
        self.last_id = 0
        """The highest that was made so far."""
        self._ids_by_name: dict[str, int] = {}
        self._uuids: set[bytes] = set()

    def add(self, made: Object) -> None:
        """Add an object.

        Raises: MalformedError where its id, UUID or name is another's.
        """
        if made.id == 0 or made.id in self.by_id:
            raise MalformedError(f"the id {made.id:#x} is none, or another object's")
        if made.uuid in self._uuids:
            raise MalformedError(f"the UUID of '{made.name}' is another object's")
        self._give_name(made, made.name)
        self.by_id[made.id] = made
        self.last_id = max(self.last_id, made.id, made.place)
        self._uuids.add(made.uuid)

    def _give_name(self, named: Object, name: str) -> None:
        if self._ids_by_name.get(name, named.id) != named.id and not named.delete_after_ns:
            raise MalformedError(f"the name '{name}' is another object's")
        self._forget_name(named)
        named.name = name
        # What is being received has none, and in the trash it does not count.
        if name and not named.delete_after_ns:
            self._ids_by_name[name] = named.id

    def _forget_name(self, named: Object) -> None:
        if self._ids_by_name.get(named.name) == named.id:
            del self._ids_by_name[named.name]

    def get(self, object_id: int, kind: int | None = None, *, trashed: bool = False) -> Object:
        """Give an object; `trashed`: it may be in the trash.

        Raises: MalformedError where it is not there, or of another kind.
        """
        found = self.by_id.get(object_id)
        if found is None or (found.delete_after_ns and not trashed):
            raise MalformedError(f"object {object_id:#x} is not there")
        if kind is not None and found.kind != kind:
            what = "volume" if kind == VOLUME else "snapshot"
            raise MalformedError(f"'{found.name}' is no {what}")
        return found

    def _create(self, items: list[Fields]) -> None:
        for fields in items:
            self._make(fields, VOLUME)

    def _make(self, fields: Fields, kind: int) -> Object:
        made = decode_object(fields)
        if made.kind != kind:
            raise MalformedError(f"'{made.name}' is made of kind {made.kind}")
        made.place = made.id
        self.add(made)
        return made

    def _snapshot(self, items: list[Fields]) -> None:
        for fields in items:
            source = self.get(number(fields, Tag.SOURCE), VOLUME)
            self._take_content(self._make(fields, SNAPSHOT), source)

    def _clone(self, items: list[Fields]) -> None:
        for fields in items:
            source = self.get(number(fields, Tag.SOURCE))
            if (source.kind == VOLUME) != (Tag.INSTANT in fields):
                raise MalformedError(f"a clone of '{source.name}' with or without an instant")
            self._take_content(self._make(fields, VOLUME), source)

    def _take_content(self, taker: Object, source: Object) -> None:
        if hits := self.hits.get(source.id):
            self.hits[taker.id] = list(hits)
        else:
            self.hits.pop(taker.id, None)

    def _revert(self, items: list[Fields]) -> None:
        for fields in items:
            if Tag.KIND in fields:
                self._snapshot([fields])
                continue
            volume = self.get(number(fields, Tag.ID), VOLUME)
            self._take_content(volume, self.get(number(fields, Tag.SOURCE), SNAPSHOT))
            volume.size_bytes = number(fields, Tag.SIZE) or volume.size_bytes
            volume.place = number(fields, Tag.INSTANT)

    def _rename(self, items: list[Fields]) -> None:
        for fields in items:
            renamed = self.get(number(fields, Tag.ID))
            if not renamed.name:
                raise MalformedError(f"object {renamed.id:#x} is renamed while it is received")
            self._give_name(renamed, decode_name(fields.get(Tag.NAME, b"")))

    def _delete(self, items: list[Fields]) -> None:
        for fields in items:
            gone = self.get(number(fields, Tag.ID), trashed=True)
            self._end_lock(gone, fields, "deleted")
            del self.by_id[gone.id]
            self._forget_name(gone)
            self._uuids.discard(gone.uuid)
            self.hits.pop(gone.id, None)

    def _trash(self, items: list[Fields]) -> None:
        for fields in items:
            trashed = self.get(number(fields, Tag.ID), trashed=True)
            if Tag.DELETE_AFTER not in fields:
                raise MalformedError(f"'{trashed.name}' is in the trash for no time")
            if not trashed.name:
                raise MalformedError(f"object {trashed.id:#x} is in the trash while it is received")
            if not trashed.delete_after_ns:
                lock = trashed.lock
                self._end_lock(trashed, fields, "deleted")
                trashed.lock = lock
            self._forget_name(trashed)
            trashed.delete_after_ns = number(fields, Tag.DELETE_AFTER)

    def _restore(self, items: list[Fields]) -> None:
        for fields in items:
            restored = self.get(number(fields, Tag.ID), trashed=True)
            if not restored.delete_after_ns:
                raise MalformedError(f"'{restored.name}' is restored, and was not in the trash")
            restored.delete_after_ns = 0
            self._give_name(restored, decode_name(fields.get(Tag.NAME, b"")))

    def _freeze(self, items: list[Fields]) -> None:
        for fields in items:
            self.get(number(fields, Tag.ID), VOLUME).kind = SNAPSHOT

    def _admit(self, items: list[Fields]) -> None:
        for fields in items:
            admitted = self.get(number(fields, Tag.ID), VOLUME)
            if admitted.name:
                raise MalformedError(f"'{admitted.name}' is admitted, and was not being received")
            self._give_name(admitted, decode_name(fields.get(Tag.NAME, b"")))
            admitted.kind = SNAPSHOT

    def _resize(self, items: list[Fields]) -> None:
        for fields in items:
            resized = self.get(number(fields, Tag.ID), VOLUME)
            if number(fields, Tag.SIZE) == 0:
                raise MalformedError(f"'{resized.name}' is resized to nothing")
            resized.size_bytes = number(fields, Tag.SIZE)
            self._let_go(resized.id, resized.blocks_count, 1 << 63)

    def _attributes(self, items: list[Fields]) -> None:
        for fields in items:
            self.get(number(fields, Tag.ID))

    def _lock(self, items: list[Fields]) -> None:
        for fields in items:
            # Locks that a loss took are set again in the trash too.
            locked = self.get(number(fields, Tag.ID), SNAPSHOT, trashed=True)
            lock = decode_lock(fields)
            if lock is None:
                raise MalformedError(f"'{locked.name}' is locked for no time")
            self.lock_clock_ns = max(self.lock_clock_ns, lock.clock_ns)
            hold_set(locked.name, locked.lock, lock, self._has_lock_secret)
            locked.lock = lock

    def _unlock(self, items: list[Fields]) -> None:
        for fields in items:
            self._end_lock(self.get(number(fields, Tag.ID), SNAPSHOT), fields, "released")

    def _end_lock(self, locked: Object, fields: Fields, what: str) -> None:
        clock_ns = number(fields, Tag.LOCK_CLOCK)
        self.lock_clock_ns = max(self.lock_clock_ns, clock_ns)
        hold_end(locked.name, locked.lock, clock_ns, self._has_lock_secret, what)
        locked.lock = None

    def take_ids(self, items: list[Fields]) -> None:
        """Hold the ids that a record makes against those that were made before it.

        Raises: MalformedError where one is not higher.
        """
        made = {number(it, Tag.ID) for it in items if Tag.KIND in it}
        made |= {number(it, Tag.INSTANT) for it in items if Tag.INSTANT in it}
        if made and min(made) <= self.last_id:
            text = f"the id {min(made):#x} is not new: {self.last_id:#x} was made before it"
            raise MalformedError(text)
        self.last_id = max(made, default=self.last_id)

    def apply_record(self, content: bytes) -> None:
        """Do what a record says.

        Raises: MalformedError where it cannot be done.
        """
        verb, items = decode_record(content)
        self.take_ids(items)
        self.apply(verb, items)

    def apply(self, verb: int, items: list[Fields]) -> None:
        """Do what a record says that is taken apart already.

        Raises: MalformedError where it cannot be done.
        """
        verbs: dict[int, Callable[[list[Fields]], None]] = {
            Verb.CREATE: self._create,
            Verb.SNAPSHOT: self._snapshot,
            Verb.CLONE: self._clone,
            Verb.REVERT: self._revert,
            Verb.RENAME: self._rename,
            Verb.DELETE: self._delete,
            Verb.FREEZE: self._freeze,
            Verb.RESIZE: self._resize,
            Verb.ATTRIBUTES: self._attributes,
            Verb.ADMIT: self._admit,
            Verb.LOCK: self._lock,
            Verb.UNLOCK: self._unlock,
            Verb.TRASH: self._trash,
            Verb.RESTORE: self._restore,
        }
        verbs[verb](items)

    def apply_change(self, entry: Entry) -> None:
        """Do what a write, zero or trim says to what its object needs.

        Raises: MalformedError where there is no such volume, or it ends before.
        """
        changed = self.get(entry.object, VOLUME)
        if entry.length == 0 or entry.first + entry.length > changed.blocks_count:
            text = f"blocks {entry.first} to {entry.first + entry.length} of '{changed.name}'"
            raise MalformedError(f"{text}, which has {changed.blocks_count}")
        self._let_go(entry.object, entry.first, entry.length)

    def _let_go(self, object_id: int, first: int, count: int) -> None:
        hits = self.hits.get(object_id)
        if hits:
            left: list[Hit] = []
            for hit in hits:
                left += _without(hit, first, first + count)
            self.hits[object_id] = left


def _without(hit: Hit, first: int, end: int) -> list[Hit]:
    """Give what is left of a hit when a range is taken out of it."""
    hit_end = hit.first + hit.blocks_count
    parts = ((hit.first, min(hit_end, first)), (max(hit.first, end), hit_end))
    return [Hit(start, stop - start, hit.finding) for start, stop in parts if start < stop]


class Replay:
    """Applies batches to objects, one after the other."""

    def __init__(
        self, report: Report, objects: Objects, bad_blocks: dict[int, tuple[int, Finding]]
    ) -> None:
        self._report, self._objects = report, objects
        self._bad_blocks = bad_blocks

    def apply(
        self, batch: Batch, locator: int, place: Place, read: Callable[[int, int], bytes]
    ) -> None:
        """Apply a batch whose header is at `locator`. `read` gives bytes by slot and length."""
        slot = locator + 1
        for entry in batch.entries:
            try:
                if entry.kind == KIND_RECORD:
                    self._objects.apply_record(read(slot & 0xFFFF, entry.first))
                elif entry.kind != KIND_MARK:
                    self._objects.apply_change(entry)
                    if entry.kind == KIND_WRITE and self._bad_blocks:
                        self._note_bad(entry, slot)
            except MalformedError as error:
                code = "record" if entry.kind == KIND_RECORD else "batch_entry"
                self._report.add(code, f"batch {batch.sequence}: {error}", place)
            slot += entry.slots_count

    def _note_bad(self, entry: Entry, slot: int) -> None:
        for at in range(entry.length):
            bad = self._bad_blocks.get(slot + at)
            if bad is not None:
                hit = Hit(entry.first + at, 1, bad[1])
                self._objects.hits.setdefault(entry.object, []).append(hit)
