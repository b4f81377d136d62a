"""Any sequence of verbs leaves the pool as a dictionary of names and bytes says it must be.

Hypothesis draws the sequences; `make soak` draws longer ones with new seeds. One machine holds the
pool itself; the other lets a child hold it, and kills the child between verbs and in the middle of
them. After a kill the whole pool must be as the model was at one moment since the last flush.
"""

import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import ramet
from moments import BLOCK_BYTES, Call, Expected, Model, find_moment
from pool_checks import assert_clean
from pool_hands import ChildHand, Hand, OwnHand
from ramet.errors import ConflictError, InvalidError, ReadOnlyError
from volatile_disk import lose_power, needs_fuse, volatile_disk

SIZES = (512, BLOCK_BYTES, 3 * BLOCK_BYTES + 512, 65_536, 2**20, 2**21 + 512)
SEGMENT_SIZE = "1MiB"
NAMES = [f"v{number}" for number in range(8)]
WRITE_BYTES_MAX = 300_000
SMALL_TUNING = {"RAMET_NODE_BUDGET": "64KiB", "RAMET_CHECKPOINT_BATCHES": "3"}
FUSE_MICROSECONDS_MAX = 3000  # From the begin of a verb to the kill; most verbs take less.

draws = st.integers(0, 2**32)
several = st.lists(draws, min_size=1, max_size=4)
patterns = st.binary(min_size=1, max_size=5)
tags = st.dictionaries(st.sampled_from("abc"), st.text("xyzäü", max_size=3), max_size=2)


def patched(content: bytes, offset_bytes: int, data: bytes) -> bytes:
    return content[:offset_bytes] + data + content[offset_bytes + len(data) :]


class PoolMachine(RuleBasedStateMachine):
    """A pool beside a dictionary of names and contents."""

    hand_class: ClassVar[Callable[..., Hand]] = OwnHand
    parent: ClassVar[Path | None] = None
    """Where pools are made; None: where temporary files are."""
    sizes: ClassVar[tuple[int, ...]] = SIZES
    objects_max: ClassVar[int] = 40
    happened: ClassVar[Counter[str]] = Counter()
    """What pools told of how they worked, over all examples."""
    workings: ClassVar[tuple[str, ...]] = (
        "checkpoints_count",
        "nodes_loaded_count",
        "sealed_count",
    )

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="ramet-", dir=self.parent))
        ramet.create(self.directory / "pool", segment_size=SEGMENT_SIZE)
        self.hand = self.open()
        self.model: Model = {}
        self.moments: list[tuple[Call | None, Model]] = [(None, {})]
        """What a kill may leave: the durable state, and that after each verb since."""

    def teardown(self) -> None:
        try:
            self.reopen()
            self.compare_all()
        finally:
            self.hand.close()
            assert_clean(self.directory / "pool")
            shutil.rmtree(self.directory)

    def note_what_happened(self) -> None:
        stats = self.do("stats")
        self.happened.update({name: stats[name] for name in self.workings})

    def open(self, read_only: bool = False) -> Hand:
        return type(self).hand_class(self.directory / "pool", read_only)

    def do(self, verb: str, *arguments: Any, **options: Any) -> Any:
        return self.hand.ask(verb, *arguments, **options)

    def note(self, changes: Model, gone: Iterable[str] = (), lost: Call | None = None) -> None:
        """Change the model; `lost`: what was done, where a kill may undo it."""
        removed = set(gone)
        kept = {name: it for name, it in self.model.items() if name not in removed}
        self.model = {**kept, **changes}
        if lost is None:
            self.moments = []
        self.moments.append((lost, self.model))

    # Choosing: a draw is reduced to what is there, so that every drawn sequence is a legal one.

    def choose(self, kind: str, draw: int) -> str:
        names = sorted(name for name, it in self.model.items() if kind in ("any", it.kind))
        return names[draw % len(names)]

    def choose_several(self, kind: str, drawn: list[int]) -> list[str]:
        return list(dict.fromkeys(self.choose(kind, draw) for draw in drawn))

    def choose_size(self, draw: int) -> int:
        return self.sizes[draw % len(self.sizes)]

    def has(self, kind: str) -> bool:
        return any(it.kind == kind for it in self.model.values())

    def has_any(self) -> bool:
        return bool(self.model)

    def has_volume(self) -> bool:
        return self.has("volume")

    def has_both(self) -> bool:
        return self.has("volume") and self.has("snapshot")

    def has_room(self) -> bool:
        return len(self.model) < self.objects_max and self.has("volume")

    def choose_range(self, name: str, start: int, length: int) -> tuple[int, int]:
        size = len(self.model[name].content)
        offset_bytes = start % (size + 1)
        return offset_bytes, length % (min(size - offset_bytes, WRITE_BYTES_MAX) + 1)

    def patch(self, name: str, offset_bytes: int, data: bytes) -> Model:
        it = self.model[name]
        return {name: replace(it, content=patched(it.content, offset_bytes, data))}

    # What a verb does to the model, for those that are killed as well.

    def plan_write(self, which: int, start: int, length: int, pattern: bytes) -> tuple[Call, Model]:
        name = self.choose("volume", which)
        offset_bytes, length_bytes = self.choose_range(name, start, length)
        data = (pattern * (length_bytes // len(pattern) + 1))[:length_bytes]
        return Call("write", (name, offset_bytes, data)), self.patch(name, offset_bytes, data)

    def plan_clone(self, which: int, count: int, growth: int) -> tuple[Call, Model]:
        source = self.choose("any", which)
        content = self.model[source].content
        names = [name for name in NAMES if name not in self.model][:count]
        size = len(content) + growth if growth else None
        clone = Expected("volume", content + bytes(growth))
        return Call("clone", (source, names), {"size": size}), dict.fromkeys(names, clone)

    def plan_revert(self, which: list[int], to: int, names: list[str]) -> tuple[Call, Model]:
        """`names`: of what is kept, one for each draw; where empty nothing is."""
        volumes = self.choose_several("volume", which)
        snapshot = self.choose("snapshot", to)
        content = self.model[snapshot].content
        changes = {it: replace(self.model[it], content=content) for it in volumes}
        for name, volume in zip(names, volumes, strict=False):
            changes[name] = Expected("snapshot", self.model[volume].content)
        return Call("revert", ([(it, snapshot) for it in volumes],)), changes

    def plan_resize(self, which: int, size: int) -> tuple[Call, Model]:
        name = self.choose("volume", which)
        it = self.model[name]
        content = it.content[:size] + bytes(max(0, size - len(it.content)))
        return Call("resize", (name, size), {"shrink": True}), {name: replace(it, content=content)}

    # Verbs

    @initialize(size=draws)
    def begin_with_a_volume(self, size: int) -> None:
        self.create(["v0"], size, {})

    @rule(names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3), size=draws, tags=tags)
    def create(self, names: list[str], size: int, tags: dict[str, str]) -> None:
        size_bytes = self.choose_size(size)
        if len(set(names)) < len(names) or set(names) & set(self.model):
            with pytest.raises(ConflictError):
                self.do("create", names, size_bytes, tags=tags)
        else:
            assert self.do("create", names, size_bytes, tags=tags) == names
            self.note(dict.fromkeys(names, Expected("volume", bytes(size_bytes), tags)))

    @precondition(has_volume)
    @rule(which=draws, start=draws, length=draws, pattern=patterns, fua=st.booleans())
    def write(self, which: int, start: int, length: int, pattern: bytes, fua: bool) -> None:
        call, changes = self.plan_write(which, start, length, pattern)
        self.do(call.verb, *call.arguments, fua=fua)
        self.note(changes, lost=None if fua else call)

    @precondition(has_volume)
    @rule(which=draws, pattern=patterns)
    def scatter(self, which: int, pattern: bytes) -> None:
        """Write every second block, so that a leaf becomes as large as it can."""
        name = self.choose("volume", which)
        data = (pattern * BLOCK_BYTES)[:BLOCK_BYTES]
        for index in range(0, len(self.model[name].content) // BLOCK_BYTES, 2):
            call = Call("write", (name, index * BLOCK_BYTES, data))
            call.ask(self.hand)
            self.note(self.patch(name, index * BLOCK_BYTES, data), lost=call)

    @precondition(has_volume)
    @rule(which=draws, start=draws, length=draws)
    def write_zeroes(self, which: int, start: int, length: int) -> None:
        name = self.choose("volume", which)
        offset_bytes, length_bytes = self.choose_range(name, start, length)
        call = Call("write_zeroes", (name, offset_bytes, length_bytes))
        call.ask(self.hand)
        self.note(self.patch(name, offset_bytes, bytes(length_bytes)), lost=call)

    @precondition(has_volume)
    @rule(which=draws, start=draws, length=draws)
    def trim(self, which: int, start: int, length: int) -> None:
        """Parts of blocks at the edges are free to stay or to become zeros."""
        name = self.choose("volume", which)
        content = self.model[name].content
        offset_bytes, length_bytes = self.choose_range(name, start, length)
        end_bytes = offset_bytes + length_bytes
        call = Call("trim", (name, offset_bytes, length_bytes))
        call.ask(self.hand)
        first = min(end_bytes, -(-offset_bytes // BLOCK_BYTES) * BLOCK_BYTES)
        last = end_bytes if end_bytes == len(content) else end_bytes // BLOCK_BYTES * BLOCK_BYTES
        last = max(first, last)
        trimmed = patched(content, first, bytes(last - first))
        for start_bytes, stop_bytes in ((offset_bytes, first), (last, end_bytes)):
            edge = self.do("read", name, start_bytes, stop_bytes - start_bytes)
            assert edge in (content[start_bytes:stop_bytes], bytes(len(edge)))
            trimmed = patched(trimmed, start_bytes, edge)
        self.note({name: replace(self.model[name], content=trimmed)}, lost=call)

    @precondition(has_volume)
    @rule(which=draws)
    def flush(self, which: int) -> None:
        self.do("flush", self.choose("volume", which))
        self.note({})

    @precondition(has_room)
    @rule(which=several, tags=tags)
    def snapshot(self, which: list[int], tags: dict[str, str]) -> None:
        volumes = self.choose_several("volume", which)
        names = self.do("snapshot", volumes, tags=tags)
        for name, volume in zip(names, volumes, strict=True):
            assert name.startswith(f"{volume}@")
            assert name not in self.model
        contents = [self.model[volume].content for volume in volumes]
        taken = [Expected("snapshot", content, tags) for content in contents]
        self.note(dict(zip(names, taken, strict=True)))

    @precondition(has_room)
    @rule(which=draws, count=st.integers(1, 3), growth=st.sampled_from([0, 512, 70_144]))
    def clone(self, which: int, count: int, growth: int) -> None:
        call, changes = self.plan_clone(which, count, growth)
        assert call.ask(self.hand) == list(changes)
        self.note(changes)

    @precondition(has_both)
    @rule(which=draws, to=draws, keep=st.booleans())
    def revert_keeping_the_size(self, which: int, to: int, keep: bool) -> None:
        volume, snapshot = self.choose("volume", which), self.choose("snapshot", to)
        old, new = self.model[volume], self.model[snapshot].content
        call = Call("revert", ([(volume, snapshot)],), {"keep": keep})
        if len(new) > len(old.content):
            with pytest.raises(InvalidError):
                call.ask(self.hand)
            return
        kept = dict.fromkeys(call.ask(self.hand), Expected("snapshot", old.content))
        assert len(kept) == keep
        content = new + bytes(len(old.content) - len(new))
        self.note({**kept, volume: replace(old, content=content)})

    @precondition(has_both)
    @rule(which=several, to=draws, keep=st.booleans())
    def revert_many(self, which: list[int], to: int, keep: bool) -> None:
        call, changes = self.plan_revert(which, to, [])
        kept = self.do(call.verb, *call.arguments, keep=keep, take_size=True)
        assert len(kept) == (len(changes) if keep else 0)
        discarded = [Expected("snapshot", self.model[volume].content) for volume in changes]
        self.note({**changes, **dict(zip(kept, discarded, strict=False))})

    @precondition(has_volume)
    @rule(which=st.lists(draws, min_size=1, max_size=2))
    def freeze(self, which: list[int]) -> None:
        names = self.choose_several("volume", which)
        assert self.do("freeze", names) == names
        self.note({name: replace(self.model[name], kind="snapshot") for name in names})

    @precondition(has_volume)
    @rule(which=draws, size=draws)
    def resize(self, which: int, size: int) -> None:
        size_bytes = self.choose_size(size)
        call, changes = self.plan_resize(which, size_bytes)
        ((name, _),) = changes.items()
        if size_bytes < len(self.model[name].content):
            with pytest.raises(InvalidError):
                self.do("resize", name, size_bytes)
        assert call.ask(self.hand) == size_bytes
        self.note(changes)

    @precondition(has_any)
    @rule(which=several, key=st.sampled_from("ab"), value=st.text("xyzäü", max_size=3))
    def tag(self, which: list[int], key: str, value: str) -> None:
        names = self.choose_several("any", which)
        assert self.do("tag", names, {key: value}, remove=["b"]) == len(names)
        changes = {}
        for name in names:
            it = self.model[name]
            left = {other: text for other, text in it.tags.items() if other != "b"}
            changes[name] = replace(it, tags={**left, key: value})
        self.note(changes)

    @precondition(has_any)
    @rule(which=draws, to=draws)
    def diff(self, which: int, to: int) -> None:
        before, after = self.choose("any", which), self.choose("any", to)
        old, new = self.model[before].content, self.model[after].content
        found = bytearray(old[: len(new)] + bytes(max(0, len(new) - len(old))))
        end = 0
        for start, length, mapped in self.do("diff", before, after):
            assert start >= end
            assert length > 0
            end = start + length
            assert mapped or not any(new[start:end])
            if start < len(new):
                found[start:end] = new[start:end]
        assert found == new
        assert end <= max(len(old), len(new)) or end % BLOCK_BYTES == 0
        if before == after:
            assert end == 0

    @precondition(has_any)
    @rule(which=draws, name=st.sampled_from(NAMES))
    def rename(self, which: int, name: str) -> None:
        old = self.choose("any", which)
        if name in self.model and name != old:
            with pytest.raises(ConflictError):
                self.do("rename", old, name)
        else:
            assert self.do("rename", old, name) == name
            self.note({name: self.model[old]}, {old} - {name})

    @precondition(has_any)
    @rule(which=several)
    def delete(self, which: list[int]) -> None:
        names = self.choose_several("any", which)
        assert self.do("delete", names) == names
        self.note({}, names)

    @rule()
    def reopen(self) -> None:
        uuid = self.do("uuid")
        self.note_what_happened()
        self.hand.close()
        assert_clean(self.directory / "pool")
        self.hand = self.open()
        assert self.do("uuid") == uuid
        self.note({})

    @rule()
    def look_without_changing(self) -> None:
        self.note_what_happened()
        self.hand.close()
        self.hand = self.open(read_only=True)
        self.compare_all()
        for name in sorted(self.model)[:1]:
            with pytest.raises(ReadOnlyError):
                self.do("delete", [name])
        self.hand.close()
        self.hand = self.open()
        self.note({})

    @rule()
    def compare_all(self) -> None:
        for name, expected in self.model.items():
            assert self.do("read", name, 0, len(expected.content)) == expected.content, name

    @invariant()
    def the_listing_is_that_of_the_model(self) -> None:
        found = self.do("list")
        assert [it[:4] for it in found] == [
            (name, it.kind, len(it.content), it.tags) for name, it in sorted(self.model.items())
        ]
        for name, _, size_bytes, _, mapped_bytes in found:
            assert mapped_bytes <= -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES, name


class KilledPoolMachine(PoolMachine):
    """The same, with the pool in a child that is killed."""

    hand_class = ChildHand
    workings = ("checkpoints_count", "replayed_count")
    sizes = (512, BLOCK_BYTES, 3 * BLOCK_BYTES + 512, 65_536, 2**20 + 512)
    objects_max = 14

    def __init__(self) -> None:
        super().__init__()
        self.kills_count = 0

    @rule()
    def kill(self) -> None:
        self.kill_and_check(None, None)

    @precondition(PoolMachine.has_both)
    @rule(
        verb=st.sampled_from(["write", "snapshot", "clone", "revert", "resize", "delete"]),
        which=several,
        to=draws,
        size=draws,
        pattern=patterns,
        fuse_microseconds=st.integers(0, FUSE_MICROSECONDS_MAX),
    )
    def kill_in_the_middle(
        self,
        *,
        verb: str,
        which: list[int],
        to: int,
        size: int,
        pattern: bytes,
        fuse_microseconds: int,
    ) -> None:
        """The names of what is made are given, so that the model knows them before the answer."""
        gone: list[str] = []
        names = [f"k{self.kills_count}@{index}" for index in range(len(which))]
        if verb == "write":
            call, changes = self.plan_write(which[0], to, size, pattern)
        elif verb == "snapshot":
            volumes = self.choose_several("volume", which)
            call = Call("snapshot", (volumes,), {"name": names[: len(volumes)]})
            contents = [self.model[it].content for it in volumes]
            taken = [Expected("snapshot", content) for content in contents]
            changes = dict(zip(names, taken, strict=False))
        elif verb == "clone":
            call, changes = self.plan_clone(which[0], 3, 0)
        elif verb == "revert":
            kept = [f"{it}@k{self.kills_count}" for it in self.choose_several("volume", which)]
            call, changes = self.plan_revert(which, to, kept)
            keep = f"{{volume}}@k{self.kills_count}"
            call = replace(call, options={"keep": keep, "take_size": True})
        elif verb == "resize":
            call, changes = self.plan_resize(which[0], self.choose_size(size))
        else:
            gone = self.choose_several("any", which)
            call, changes = Call("delete", (gone,)), {}
        kept_objects = {name: it for name, it in self.model.items() if name not in gone}
        assert isinstance(self.hand, ChildHand)
        self.hand.begin(call.verb, *call.arguments, **call.options)
        threading.Event().wait(fuse_microseconds / 1e6)
        self.kill_and_check(call, {**kept_objects, **changes})

    def kill_and_check(self, call: Call | None, after: Model | None) -> None:
        """Kill; find the moment that is left; do again what came after it, to go on from there."""
        assert isinstance(self.hand, ChildHand)
        self.kills_count += 1
        self.hand.kill()
        self.after_kill()
        assert_clean(self.directory / "pool")
        self.hand = self.open()
        self.note_what_happened()
        moments = [*self.moments, *([(call, after)] if after is not None else [])]
        left = {
            name: Expected(kind, self.do("read", name, 0, size), tags)
            for name, kind, size, tags, _ in self.do("list")
        }
        index = find_moment(left, moments)
        self.model, self.moments = left, [(None, left)]
        for lost, model in moments[index + 1 :]:
            assert lost is not None
            lost.ask(self.hand)
            self.model = model
            if lost.verb not in ("write", "write_zeroes", "trim"):
                self.moments = []
            self.moments.append((lost, model))

    def after_kill(self) -> None:
        """What happens to the machine."""


class UnpoweredPoolMachine(KilledPoolMachine):
    """The same; with the process the machine goes, and all that was not synced."""

    def after_kill(self) -> None:
        assert self.parent is not None
        lose_power(self.parent)


def run(machine: type[PoolMachine], examples: int, steps: int) -> None:
    current = settings.default
    assert current is not None
    if current.derandomize:
        current = settings(current, max_examples=examples, stateful_step_count=steps)
    run_state_machine_as_test(machine, settings=current)  # type: ignore[no-untyped-call]


def run_with_small_tuning(
    machine: type[PoolMachine], monkeypatch: pytest.MonkeyPatch, examples: int, steps: int
) -> None:
    """Every working of the engine happens, often; and that is asserted."""
    for name, value in SMALL_TUNING.items():
        monkeypatch.setenv(name, value)
    machine.happened.clear()
    run(machine, examples, steps)
    missed = [name for name in machine.workings if not machine.happened[name]]
    assert not missed, f"never happened: {missed}, but {dict(machine.happened)}"


@pytest.mark.slow
@pytest.mark.random
@pytest.mark.timeout(900)
def test_any_sequence_of_verbs_leaves_what_the_model_says() -> None:
    run(PoolMachine, examples=100, steps=60)


@pytest.mark.slow
@pytest.mark.random
@pytest.mark.timeout(900)
def test_any_sequence_of_verbs_with_many_checkpoints(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_with_small_tuning(PoolMachine, monkeypatch, examples=100, steps=60)


@pytest.mark.slow
@pytest.mark.random
@pytest.mark.timeout(900)
def test_a_kill_between_verbs_or_in_the_middle_leaves_one_moment_of_the_model() -> None:
    """P1 and P3, for all verbs, one after the other."""
    run(KilledPoolMachine, examples=20, steps=50)


@pytest.mark.slow
@pytest.mark.random
@pytest.mark.timeout(900)
def test_a_kill_with_checkpoints_in_between_leaves_one_moment_of_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P1 and P3, with a checkpoint after every few batches."""
    run_with_small_tuning(KilledPoolMachine, monkeypatch, examples=20, steps=50)


@needs_fuse
@pytest.mark.root
@pytest.mark.slow
@pytest.mark.random
@pytest.mark.timeout(900)
def test_a_power_loss_leaves_one_moment_of_the_model_since_the_last_flush(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """P1, P2 and P3, with the file store itself: on a disk that loses all that was not synced."""
    with volatile_disk(tmp_path / "disk") as disk:
        monkeypatch.setattr(UnpoweredPoolMachine, "parent", disk)
        run_with_small_tuning(UnpoweredPoolMachine, monkeypatch, examples=5, steps=40)
