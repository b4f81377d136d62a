"""Receiving: a stream into hidden volumes, which become snapshots when all of it is proved.

Imports pool, stream. Docs: docs/internals/stream.md, "Receiving" and "Resuming". Invariants: until
they are admitted, all in one commit, the visible pool is as before; a position that is noted is
durable; a snapshot is admitted only with the root that its sender told.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ramet.errors import ConflictError, CorruptError, InvalidError, NotFoundError, RametError
from ramet.names import check_snapshot_name
from ramet.pool import Pool
from ramet.pool.transfers import BLOCK_BYTES, Hidden, Incoming, hash_device, root_of
from ramet.records import ObjectRecord
from ramet.replication.stream import (
    Begin,
    Changes,
    Done,
    Event,
    Header,
    Item,
    StreamReader,
    Token,
)
from ramet.tags import ATTRIBUTES_BYTES_MAX, attributes_with, attributes_with_root
from ramet.volume import BlockDevice

NOTE_BYTES = 64 << 20  # Received between two positions that are noted.
NAME_WORD = "{name}"

# Is told bytes of data that arrived, and how many there will be.
Progress = Callable[[int, int], None]


class Received(NamedTuple):
    """A snapshot that a stream held."""

    name: str
    uuid: str
    root: str
    is_new: bool
    """False: it was here already, and is the same."""

    def to_json(self) -> dict[str, str | bool]:
        """Give it as a dictionary that `json.dumps` takes."""
        return self._asdict()


class Incomplete(NamedTuple):
    """A snapshot of which a part arrived."""

    transfer: str
    """Empty: nothing of it arrived, and only its place was made."""
    place: int
    """Which one of the transfer."""
    name: str
    """What the sender calls it."""
    uuid: str
    size_bytes: int
    block: int
    """Before which all arrived."""
    root: str | None
    """What it hashed to; None: not all of it arrived."""

    def to_json(self) -> dict[str, str | int | None]:
        """Give it as a dictionary that `json.dumps` takes; `Incomplete(**value)` reads it back."""
        return self._asdict()


def receive(
    pool: Pool,
    read: Callable[[int], bytes],
    *,
    name: str | None = None,
    progress: Progress | None = None,
) -> list[Received]:
    """Take in a stream: its snapshots appear all at once, when they are whole and proved.

    `read`: gives up to so many bytes of the stream, none at its end. `name`: what the snapshot is
    to be called here, or a pattern with `{name}`, the sender's name; None: as there. What arrived
    before a cut is kept, and the stream goes on where `position` says.
    Result: the snapshots, in order. Durable on return. Where all of them are here already and are
    the same, nothing is changed; from the trash they are restored.
    Raises: UnavailableError (codes stream_cut, sender_failed); CorruptError for a stream that is
    damaged, or what does not hash to what the sender told; NotFoundError (code base_missing);
    ConflictError where the base differs, or a name or UUID is taken; FullError; BusyError;
    InvalidError for what is no stream of this version. In all cases no snapshot appeared.
    Source: docs/internals/stream.md.
    Example: receive(pool, io.BytesIO(stream).read)
    """
    reader = StreamReader(read)
    header = reader.header
    names = _names(header, name)
    _take_out_of_trash(pool, [item.uuid for item in header.snapshots])
    here = [_find(pool, item.uuid) for item in header.snapshots]
    for record in here:
        if record is not None and record.kind != "snapshot":
            raise ConflictError(
                "uuid_taken",
                f"the volume '{record.name}' has the UUID {record.uuid} of a snapshot in the"
                " stream; hint: receive into another pool",
            )
    found = [record for record in here if record is not None]
    if len(found) == len(here):
        return _compare(pool, reader, found)
    if found:
        raise ConflictError(
            "partly_here",
            f"'{found[0].name}' is here already, others of the stream's {len(here)} snapshots are"
            " not; hint: send those that are missing",
        )
    with pool.transfers.exclusive(header.transfer):
        receiver = _Receiver(pool, header, names, progress)
        receiver.check()
        try:
            receiver.follow(reader)
            return receiver.admit()
        except BaseException:
            # What arrived is not to be sent again.
            with suppress(RametError):
                receiver.note()
            raise


def incomplete(pool: Pool) -> list[Incomplete]:
    """List what arrived in part, sorted by transfer and place in it.

    Example: incomplete(pool)
    """
    return sorted(_state(hidden) for hidden in pool.transfers.hidden())


def position(parts: Sequence[Incomplete], what: str | None = None) -> str:
    """Give the token from which a transfer is to be resumed; empty: there is nothing to resume.

    `parts`: what `incomplete` gave. `what`: name or UUID of a snapshot, or a transfer; None: the
    only one.
    Raises: InvalidError (code transfer_not_given) where there are several; NotFoundError.
    Example: position(incomplete(pool))
    """
    transfers = sorted({it.transfer for it in _chosen(parts, what)} - {""})
    if not transfers:
        return ""
    if len(transfers) > 1:
        raise InvalidError(
            "transfer_not_given",
            f"{len(transfers)} transfers are incomplete;"
            " hint: name one, see `ramet receive --list`",
        )
    states = {it.place: it for it in parts if it.transfer == transfers[0]}
    return str(Token(transfers[0], *_end_of(states)))


def abandon(pool: Pool, what: str) -> list[Incomplete]:
    """Give up what arrived of a transfer; its space comes back.

    `what`: name or UUID of a snapshot in it, or the transfer.
    Result: what is gone. Durable on return.
    Raises: NotFoundError (code not_receiving).
    Example: abandon(pool, incomplete(pool)[0].transfer)
    """
    parts = incomplete(pool)
    transfers = {it.transfer for it in _chosen(parts, what)}
    gone = [it for it in parts if it.transfer in transfers]
    for transfer in sorted(transfers):
        with pool.transfers.exclusive(transfer):
            pool.transfers.abandon([it.uuid for it in gone if it.transfer == transfer])
    return gone


def _chosen(parts: Sequence[Incomplete], what: str | None) -> list[Incomplete]:
    if what is None:
        return list(parts)
    found = [it for it in parts if what in (it.transfer, it.uuid, it.name)]
    if not found:
        raise NotFoundError(
            "not_receiving", f"'{what}' is not being received; hint: `ramet receive --list`"
        )
    return found


def _state(hidden: Hidden) -> Incomplete:
    """Read what was noted."""
    if not hidden.attributes:
        return Incomplete("", 0, "", hidden.uuid, hidden.size_bytes, 0, None)
    held: dict[str, Any] = json.loads(hidden.attributes)["receiving"]
    return Incomplete(
        held["transfer"],
        held["index"],
        held["name"],
        hidden.uuid,
        hidden.size_bytes,
        held["block"],
        held["root"],
    )


def _end_of(states: dict[int, Incomplete]) -> tuple[int, int]:
    """Give the place and block before which all of a transfer arrived, and was proved."""
    place = 0
    while place in states and states[place].root is not None:
        place += 1
    return place, states[place].block if place in states else 0


def _names(header: Header, name: str | None) -> list[str]:
    """Give what the snapshots are to be called here."""
    own = [item.name for item in header.snapshots]
    names = own if name is None else [name.replace(NAME_WORD, it) for it in own]
    for it in names:
        check_snapshot_name(it)
    if len(set(names)) != len(names):
        raise ConflictError(
            "name_given_twice",
            f"'{name}' gives several of {len(names)} snapshots one name;"
            f" hint: a pattern with {NAME_WORD}",
        )
    return names


def _take_out_of_trash(pool: Pool, uuids: list[str]) -> None:
    """Restore what was deleted here and comes again, where all of the stream is here then.

    Else a sender that keeps this pool in step could send nothing before the window ends.
    """
    trashed = {it.object.uuid for it in pool.trash().objects} & set(uuids)
    if trashed and all(uuid in trashed or _find(pool, uuid) for uuid in uuids):
        pool.restore(trashed)


def _find(pool: Pool, name: str) -> ObjectRecord | None:
    try:
        return pool.record(name)
    except NotFoundError:
        return None


def _compare(pool: Pool, reader: StreamReader, records: list[ObjectRecord]) -> list[Received]:
    """Read a stream of what is here already, and hold it against that."""
    received = []
    told = {event.place: event.root for event in reader.events() if isinstance(event, Done)}
    for index, (item, record) in enumerate(zip(reader.header.snapshots, records, strict=True)):
        here = record.root or pool.verify(record.uuid).root
        there = told.get(index) or item.root or here
        if there != here or item.size_bytes != record.size_bytes:
            raise ConflictError(
                "snapshot_differs",
                f"'{record.name}' is here with UUID {record.uuid} and hashes to {here}; in the"
                f" stream it has {item.size_bytes} bytes and hashes to {there};"
                " hint: verify it here and at the sender",
            )
        received.append(Received(record.name, record.uuid, here, is_new=False))
    return received


class _Receiver:
    """Follows one stream."""

    def __init__(
        self, pool: Pool, header: Header, names: list[str], progress: Progress | None
    ) -> None:
        self._pool = pool
        self._transfers = pool.transfers
        self._header = header
        self._names = names
        self._progress = progress
        self._total_bytes = sum(item.data_bytes for item in header.snapshots)
        self._arrived_bytes = 0
        hidden = {it.uuid: it for it in self._transfers.hidden()}
        self._hidden = {
            item.uuid: hidden[item.uuid] for item in header.snapshots if item.uuid in hidden
        }
        self._states: dict[int, Incomplete] = {}
        # Those that were proved, which was not noted yet.
        self._proved: list[int] = []
        self._unnoted_bytes = 0
        # Of the snapshot that is told now:
        self._index = 0
        self._device: BlockDevice | None = None
        self._block = 0
        self._unnoted_bytes = 0

    def check(self) -> None:
        """Find out whether it can be received, before anything is changed."""
        header = self._header
        for item in header.snapshots:
            if item.uuid in self._hidden:
                self._check_hidden(item, self._hidden[item.uuid])
        for index, item in enumerate(header.snapshots):
            if (other := _find(self._pool, self._names[index])) is not None:
                raise ConflictError(
                    "name_taken",
                    f"'{other.name}' exists and is another; hint: receive it with --name",
                )
            if item.base is not None and index not in self._states:
                self._check_base(item)
        here = _end_of(self._states)
        if header.start > here:
            raise InvalidError(
                "resume_gap",
                f"the stream begins at snapshot {header.start[0]}, block {header.start[1]};"
                f" what is here ends at snapshot {here[0]}, block {here[1]};"
                " hint: resume from `ramet receive --position`, or send it from the start",
            )

    def _check_hidden(self, item: Item, hidden: Hidden) -> None:
        state = _state(hidden)
        if not state.transfer:
            return
        if state.transfer != self._header.transfer:
            raise ConflictError(
                "receiving_otherwise",
                f"'{item.name}' is being received in another transfer, {state.transfer};"
                f" hint: resume that one, or `ramet receive --abandon {state.transfer}`",
            )
        self._states[state.place] = state

    def _check_base(self, item: Item) -> None:
        assert item.base is not None
        base = _find(self._pool, item.base.uuid)
        if base is None:
            raise NotFoundError(
                "base_missing",
                f"'{item.name}' is told as what differs from '{item.base.name}',"
                f" UUID {item.base.uuid}, which is not here;"
                " hint: receive that first, or send without --from",
            )
        here = None
        if base.kind == "snapshot":
            here = base.root or self._pool.verify(base.uuid).root
        if here != item.base.root:
            raise ConflictError(
                "base_differs",
                f"the base '{base.name}' hashes to {here} here and to {item.base.root} at the"
                " sender; hint: verify it on both sides, or send without --from",
            )

    def follow(self, reader: StreamReader) -> None:
        """Take in all that the stream tells."""
        for event in reader.events():
            self._take(event)

    def _take(self, event: Event) -> None:
        if isinstance(event, Begin):
            self._begin(event)
        elif isinstance(event, Changes):
            self._change(event)
        else:
            self._finish(event)

    def _begin(self, event: Begin) -> None:
        index = event.place
        item = self._header.snapshots[index]
        state = self._states.get(index)
        self._index = index
        if state is None:
            if item.uuid in self._hidden:
                self._transfers.abandon([item.uuid])
            incoming = Incoming(
                item.uuid,
                item.batch,
                item.source,
                item.created_ns,
                item.size_bytes,
                self._noted(index, 0, None),
            )
            self._transfers.begin(incoming, item.base.uuid if item.base else None)
            self._block = 0
        else:
            self._block = item.blocks_count if state.root is not None else state.block
        self._device = self._transfers.device(item.uuid)

    def _change(self, changes: Changes) -> None:
        assert self._device is not None
        size_bytes = self._device.size_bytes
        if changes.end > self._block:
            for run, data in changes.parts():
                offset = run.first * BLOCK_BYTES
                length = min(run.blocks * BLOCK_BYTES, size_bytes - offset)
                if run.is_data:
                    self._device.write(offset, data[:length])
                else:
                    self._device.write_zeroes(offset, length)
            self._block = changes.end
            self._unnoted_bytes += len(changes.data)
            if self._unnoted_bytes >= NOTE_BYTES:
                self.note()
        self._arrived_bytes += len(changes.data)
        if self._progress is not None:
            self._progress(self._arrived_bytes, self._total_bytes)

    def note(self) -> None:
        """Say how far it is: in records of the log, so what came before is durable with them."""
        while self._proved:
            state = self._states[self._proved[0]]
            self._transfers.note(state.uuid, self._noted(state.place, state.block, state.root))
            self._proved.pop(0)
        told = self._states.get(self._index)
        # What was proved stays so, though it is told once more.
        if self._device is not None and (told is None or told.root is None):
            uuid = self._header.snapshots[self._index].uuid
            self._transfers.note(uuid, self._noted(self._index, self._block, None))
        self._unnoted_bytes = 0

    def _noted(self, index: int, block: int, root: str | None) -> bytes:
        held = {
            "transfer": self._header.transfer,
            "index": index,
            "name": self._header.snapshots[index].name,
            "block": block,
            "root": root,
        }
        return json.dumps({"receiving": held}).encode()

    def _finish(self, event: Done) -> None:
        item = self._header.snapshots[event.place]
        assert self._device is not None
        self._device = None
        state = self._states.get(event.place)
        here = state.root if state is not None else None
        if here is None:
            # What was written is read; what the base had was proved when that was received.
            here = root_of(self._transfers.hashed_reader(item.uuid))
        if here != event.root:
            # Unless a kept hash is wrong: then what is stored decides.
            self._transfers.forget_hashes()
            here = hash_device(self._transfers.device(item.uuid))
        if here != event.root or (item.root or here) != here:
            # Whatever it is, it must not be resumed.
            self._transfers.abandon([item.uuid])
            raise CorruptError(
                "received_differs",
                f"'{item.name}' hashes to {here} here and to {event.root} at the sender; what"
                " arrived is removed; hint: verify the base on both sides, and send it again",
            )
        self._proved.append(event.place)
        self._states[event.place] = Incomplete(
            self._header.transfer,
            event.place,
            item.name,
            item.uuid,
            item.size_bytes,
            item.blocks_count,
            here,
        )

    def admit(self) -> list[Received]:
        """Let all of them appear."""
        items = self._header.snapshots
        proved = (self._states[place].root for place in range(len(items)))
        roots = [root for root in proved if root is not None]
        assert len(roots) == len(items), "nothing is admitted that was not proved here"
        attributes = [_attributes(*it) for it in zip(items, roots, strict=True)]
        made = self._transfers.admit([it.uuid for it in items], self._names, attributes)
        return [
            Received(record.name, record.uuid, root, is_new=True)
            for record, root in zip(made, roots, strict=True)
        ]


def _attributes(item: Item, root: str) -> bytes:
    tags = attributes_with(b"", item.tags)
    both = attributes_with_root(tags, root)
    # A root can be computed anew, a tag cannot.
    return both if len(both) <= ATTRIBUTES_BYTES_MAX else tags
