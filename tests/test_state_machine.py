"""Any sequence of verbs leaves the pool as a dictionary of bytearrays says it must be.

Hypothesis draws the sequences; `make soak` draws longer ones with new seeds.
"""

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

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
from ramet.errors import ConflictError, InvalidError

BLOCK_BYTES = 4096
SIZES = (512, BLOCK_BYTES, 3 * BLOCK_BYTES + 512, 65_536, 2**20, 2**21 + 512)
SEGMENT_SIZE = "1MiB"
NAMES = [f"v{number}" for number in range(6)]
OBJECTS_MAX = 40

draws = st.integers(0, 2**32)
patterns = st.binary(min_size=1, max_size=5)


@dataclass
class Expected:
    """What the model knows of an object."""

    kind: str
    content: bytearray
    tags: dict[str, str] = field(default_factory=dict)


class PoolMachine(RuleBasedStateMachine):
    """A pool beside a dictionary of names and contents."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="ramet-"))
        self.pool = ramet.open(self.directory / "pool", create=True, segment_size=SEGMENT_SIZE)
        self.model: dict[str, Expected] = {}

    def teardown(self) -> None:
        try:
            self.reopen()
            self.compare_all()
        finally:
            self.pool.close()
            shutil.rmtree(self.directory)

    # Choosing: a draw is reduced to what is there, so that every drawn sequence is a legal one.

    def choose(self, kind: str, draw: int) -> str:
        names = sorted(name for name, it in self.model.items() if kind in ("any", it.kind))
        return names[draw % len(names)]

    def has(self, kind: str) -> bool:
        return any(it.kind == kind for it in self.model.values())

    def has_volume(self) -> bool:
        return self.has("volume")

    def has_snapshot(self) -> bool:
        return self.has("snapshot")

    def has_both(self) -> bool:
        return self.has("volume") and self.has("snapshot")

    def has_room(self) -> bool:
        return len(self.model) < OBJECTS_MAX and self.has("volume")

    def choose_range(self, content: bytearray, start: int, length: int) -> tuple[int, int]:
        offset_bytes = start % (len(content) + 1)
        return offset_bytes, length % (min(len(content) - offset_bytes, 300_000) + 1)

    def add(self, kind: str, handles: list[ramet.Volume] | list[ramet.Snapshot]) -> None:
        for handle in handles:
            self.model[handle.name] = Expected(kind, bytearray(handle.size_bytes))

    # Verbs

    @initialize(size=st.sampled_from(SIZES))
    def begin_with_a_volume(self, size: int) -> None:
        self.add("volume", [self.pool.create_volume("v0", size)])

    @rule(
        names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3), size=st.sampled_from(SIZES)
    )
    def create(self, names: list[str], size: int) -> None:
        if len(set(names)) < len(names) or set(names) & set(self.model):
            with pytest.raises(ConflictError):
                self.pool.create_volumes(names, size)
        else:
            self.add("volume", self.pool.create_volumes(names, size))

    @precondition(has_volume)
    @rule(which=draws, start=draws, length=draws, pattern=patterns, fua=st.booleans())
    def write(self, which: int, start: int, length: int, pattern: bytes, fua: bool) -> None:
        name = self.choose("volume", which)
        content = self.model[name].content
        offset_bytes, length_bytes = self.choose_range(content, start, length)
        data = (pattern * (length_bytes // len(pattern) + 1))[:length_bytes]
        self.pool.volume(name).write(offset_bytes, data, fua=fua)
        content[offset_bytes : offset_bytes + length_bytes] = data

    @precondition(has_volume)
    @rule(which=draws, start=draws, length=draws)
    def write_zeroes(self, which: int, start: int, length: int) -> None:
        name = self.choose("volume", which)
        content = self.model[name].content
        offset_bytes, length_bytes = self.choose_range(content, start, length)
        self.pool.volume(name).write_zeroes(offset_bytes, length_bytes)
        content[offset_bytes : offset_bytes + length_bytes] = bytes(length_bytes)

    @precondition(has_volume)
    @rule(which=draws, start=draws, length=draws)
    def trim(self, which: int, start: int, length: int) -> None:
        name = self.choose("volume", which)
        content = self.model[name].content
        offset_bytes, length_bytes = self.choose_range(content, start, length)
        end_bytes = offset_bytes + length_bytes
        volume = self.pool.volume(name)
        volume.trim(offset_bytes, length_bytes)
        first = min(end_bytes, -(-offset_bytes // BLOCK_BYTES) * BLOCK_BYTES)
        last = end_bytes if end_bytes == len(content) else end_bytes // BLOCK_BYTES * BLOCK_BYTES
        last = max(first, last)
        content[first:last] = bytes(last - first)
        for start_bytes, stop_bytes in ((offset_bytes, first), (last, end_bytes)):
            edge = volume.read(start_bytes, stop_bytes - start_bytes)
            assert edge in (content[start_bytes:stop_bytes], bytes(len(edge)))
            content[start_bytes:stop_bytes] = edge

    @precondition(has_volume)
    @rule(which=draws)
    def flush(self, which: int) -> None:
        self.pool.volume(self.choose("volume", which)).flush()

    @precondition(has_room)
    @rule(which=st.lists(draws, min_size=1, max_size=4))
    def snapshot(self, which: list[int]) -> None:
        names = list(dict.fromkeys(self.choose("volume", draw) for draw in which))
        for name, handle in zip(names, self.pool.snapshot(names), strict=True):
            assert handle.name.startswith(f"{name}@")
            assert handle.name not in self.model
            content = bytearray(self.model[name].content)
            self.model[handle.name] = Expected("snapshot", content)

    @precondition(has_room)
    @rule(which=draws, count=st.integers(1, 3), growth=st.sampled_from([0, 512, 70_144]))
    def clone(self, which: int, count: int, growth: int) -> None:
        source = self.choose("any", which)
        content = self.model[source].content
        names = [name for name in NAMES if name not in self.model][:count]
        size = len(content) + growth if growth else None
        for handle in self.pool.clone(source, names, size=size):
            self.model[handle.name] = Expected("volume", content + bytes(growth))

    @precondition(has_both)
    @rule(which=draws, to=draws, keep=st.booleans())
    def revert(self, which: int, to: int, keep: bool) -> None:
        volume, snapshot = self.choose("volume", which), self.choose("snapshot", to)
        old, new = self.model[volume].content, self.model[snapshot].content
        if len(new) > len(old):
            return
        kept = self.pool.revert(volume, snapshot, keep=keep)
        if kept is not None:
            self.model[kept.name] = Expected("snapshot", bytearray(old))
        self.model[volume].content = new + bytes(len(old) - len(new))

    @precondition(has_both)
    @rule(which=st.lists(draws, min_size=1, max_size=3), to=draws, keep=st.booleans())
    def revert_many(self, which: list[int], to: int, keep: bool) -> None:
        volumes = list(dict.fromkeys(self.choose("volume", draw) for draw in which))
        snapshot = self.choose("snapshot", to)
        pairs = [(volume, snapshot) for volume in volumes]
        kept = self.pool.revert_many(pairs, keep=keep, take_size=True)
        assert len(kept) == (len(volumes) if keep else 0)
        for handle, volume in zip(kept, volumes, strict=False):
            self.model[handle.name] = Expected("snapshot", self.model[volume].content)
        for volume in volumes:
            self.model[volume].content = bytearray(self.model[snapshot].content)

    @precondition(has_volume)
    @rule(which=draws)
    def freeze(self, which: int) -> None:
        name = self.choose("volume", which)
        assert [it.name for it in self.pool.freeze(name)] == [name]
        self.model[name].kind = "snapshot"

    @precondition(has_volume)
    @rule(which=draws, size=st.sampled_from(SIZES))
    def resize(self, which: int, size: int) -> None:
        name = self.choose("volume", which)
        content = self.model[name].content
        if size < len(content):
            with pytest.raises(InvalidError):
                self.pool.resize(name, size)
        assert self.pool.resize(name, size, shrink=True).size_bytes == size
        self.model[name].content = content[:size] + bytes(max(0, size - len(content)))

    @precondition(has_volume)
    @rule(which=draws, key=st.sampled_from("ab"), value=st.text("xyzäü", max_size=3))
    def tag(self, which: int, key: str, value: str) -> None:
        name = self.choose("any", which)
        tags = self.model[name].tags
        self.pool.tag(name, {key: value}, remove=["b"])
        tags.pop("b", None)
        tags[key] = value

    @precondition(has_volume)
    @rule(which=draws, to=draws)
    def diff(self, which: int, to: int) -> None:
        before, after = self.choose("any", which), self.choose("any", to)
        old, new = self.model[before].content, self.model[after].content
        patched = old[: len(new)] + bytes(max(0, len(new) - len(old)))
        for start, length, mapped in self.pool.diff(before, after).extents:
            if not mapped:
                assert not any(new[start : start + length])
            if start < len(new):
                patched[start : start + length] = new[start : start + length]
        assert patched == new

    @rule(which=draws, name=st.sampled_from(NAMES))
    @precondition(has_volume)
    def rename(self, which: int, name: str) -> None:
        old = self.choose("volume", which)
        if name in self.model and name != old:
            with pytest.raises(ConflictError):
                self.pool.rename(old, name)
        else:
            self.pool.rename(old, name)
            self.model[name] = self.model.pop(old)

    @precondition(has_snapshot)
    @rule(which=st.lists(draws, min_size=1, max_size=3))
    def delete_snapshots(self, which: list[int]) -> None:
        self.delete({self.choose("snapshot", draw) for draw in which})

    @precondition(has_volume)
    @rule(which=draws)
    def delete_volume(self, which: int) -> None:
        self.delete({self.choose("volume", which)})

    def delete(self, names: set[str]) -> None:
        deleted = self.pool.delete(sorted(names))
        assert [it.name for it in deleted] == sorted(names)
        for name in names:
            del self.model[name]

    @rule()
    def reopen(self) -> None:
        uuid = self.pool.uuid
        self.pool.close()
        self.pool = ramet.open(self.directory / "pool")
        assert self.pool.uuid == uuid

    @rule()
    def compare_all(self) -> None:
        for name, expected in self.model.items():
            assert self.pool.get(name).read(0, len(expected.content)) == expected.content, name

    @invariant()
    def the_listing_is_that_of_the_model(self) -> None:
        found = [(it.name, it.kind, it.size_bytes, it.tags) for it in self.pool.objects()]
        assert found == [
            (name, it.kind, len(it.content), it.tags) for name, it in sorted(self.model.items())
        ]

    @invariant()
    def no_block_is_mapped_that_was_never_written(self) -> None:
        for it in self.pool.objects():
            blocks_count = -(-len(self.model[it.name].content) // BLOCK_BYTES)
            assert it.mapped_bytes <= blocks_count * BLOCK_BYTES


@pytest.mark.slow
@pytest.mark.random
@pytest.mark.timeout(900)
def test_any_sequence_of_verbs_leaves_what_the_model_says() -> None:
    current = settings.default
    assert current is not None
    quick = current.derandomize
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        PoolMachine,
        settings=settings(current, max_examples=200, stateful_step_count=60) if quick else current,
    )
