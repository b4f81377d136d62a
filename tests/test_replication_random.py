"""Any sequence of writes, snapshots and sends leaves the other side's snapshots byte-identical.

Two pools, each with a model: what users did with bytearrays. Streams go both ways: whole, against
any snapshot that both have, of groups, compressed; they are cut, damaged, resumed, doubled and
given up; pools are closed and opened in between. After each step the visible objects of both sides
are those of the models; at the end every byte, every root, and the second reader's word.
"""

import random
from pathlib import Path

import pytest

import ramet
from blake3_reference import root_of_image
from pool_checks import assert_clean
from ramet.replication import abandon, incomplete, position
from streams import code_of, records_of, stream_of, take_in

STEPS = 120
SIZE_SECTORS_MAX = 400
CUT_CODES = ("stream_cut", "stream_damaged", "stream_malformed", "not_a_stream", "stream_version")


class Site:
    """A pool and what is known to be in it."""

    def __init__(self, path: Path, segment_size: str) -> None:
        self.path = path
        self.pool = ramet.open(path, create=True, segment_size=segment_size)
        self.volumes: dict[str, bytearray] = {}
        self.snapshots: dict[str, tuple[str, bytes]] = {}
        """By UUID: name and bytes."""

    def reopen(self) -> None:
        self.pool.close()
        self.pool = ramet.open(self.path)

    def check_listing(self) -> None:
        told = {(it.name, it.kind, it.size_bytes) for it in self.pool.objects()}
        known = {(name, "volume", len(image)) for name, image in self.volumes.items()}
        known |= {(name, "snapshot", len(image)) for name, image in self.snapshots.values()}
        assert told == known

    def check_bytes(self) -> None:
        for name, image in self.volumes.items():
            assert self.pool.get(name).read(0, len(image)) == image
        for uuid, (name, image) in self.snapshots.items():
            assert self.pool.get(uuid).name == name
            assert self.pool.get(uuid).read(0, len(image)) == image


class Play:
    """Draws steps, and does them."""

    def __init__(self, drawn: random.Random, sites: tuple[Site, Site]) -> None:
        self.drawn = drawn
        self.sites = sites
        self.number = 0

    def fresh(self, prefix: str) -> str:
        self.number += 1
        return f"{prefix}{self.number}"

    def step(self) -> None:
        here, there = self.drawn.sample(self.sites, 2)
        does = self.drawn.choices(
            (self.write, self.take, self.send, self.forget, self.change),
            (8, 4, 8, 2, 3),
        )[0]
        does(here, there)
        for site in self.sites:
            site.check_listing()

    def write(self, here: Site, _there: Site) -> None:
        if not here.volumes or (len(here.volumes) < 3 and self.drawn.random() < 0.2):
            name, size = self.fresh("v"), 512 * self.drawn.randrange(1, SIZE_SECTORS_MAX)
            here.pool.create_volume(name, size)
            here.volumes[name] = bytearray(size)
        name = self.drawn.choice(sorted(here.volumes))
        image, volume = here.volumes[name], here.pool.volume(name)
        for _ in range(self.drawn.randrange(1, 6)):
            at = self.drawn.randrange(len(image))
            length = min(self.drawn.choice((1, 700, 5000, 60_000)), len(image) - at)
            if self.drawn.random() < 0.3:
                volume.write_zeroes(at, length)
                image[at : at + length] = bytes(length)
            else:
                data = bytes([self.drawn.randrange(3)]) * length
                volume.write(at, data)
                image[at : at + length] = data

    def take(self, here: Site, _there: Site) -> None:
        """One instant of some volumes."""
        if not here.volumes:
            return
        names = self.drawn.sample(
            sorted(here.volumes), self.drawn.randrange(1, len(here.volumes) + 1)
        )
        wanted = [self.fresh(f"{name}@") for name in names]
        for name, made in zip(names, here.pool.snapshot(names, name=wanted), strict=True):
            here.snapshots[made.uuid] = (made.name, bytes(here.volumes[name]))

    def forget(self, here: Site, _there: Site) -> None:
        """Delete what there is too much of."""
        if len(here.snapshots) > 4:
            gone = self.drawn.sample(sorted(here.snapshots), 2)
            here.pool.delete(gone)
            for uuid in gone:
                del here.snapshots[uuid]
        if len(here.volumes) > 2:
            name = self.drawn.choice(sorted(here.volumes))
            here.pool.delete(name)
            del here.volumes[name]

    def change(self, here: Site, _there: Site) -> None:
        """Revert, clone, resize, rename, reopen: what a lineage goes through."""
        what = self.drawn.randrange(5)
        if what == 0:
            here.reopen()
        elif what == 1 and here.volumes and here.snapshots:
            name = self.drawn.choice(sorted(here.volumes))
            uuid = self.drawn.choice(sorted(here.snapshots))
            here.pool.revert(name, uuid, keep=False, take_size=True)
            here.volumes[name] = bytearray(here.snapshots[uuid][1])
        elif what == 2 and here.snapshots and len(here.volumes) < 4:
            uuid = self.drawn.choice(sorted(here.snapshots))
            name = self.fresh("c")
            here.pool.clone(uuid, name)
            here.volumes[name] = bytearray(here.snapshots[uuid][1])
        elif what == 3 and here.volumes:
            name = self.drawn.choice(sorted(here.volumes))
            size = 512 * self.drawn.randrange(1, SIZE_SECTORS_MAX)
            here.pool.resize(name, size, shrink=True)
            image = here.volumes[name]
            here.volumes[name] = image[:size].ljust(size, b"\0")
        elif here.snapshots:
            uuid = self.drawn.choice(sorted(here.snapshots))
            name = self.fresh("renamed@")
            here.pool.rename(uuid, name)
            here.snapshots[uuid] = (name, here.snapshots[uuid][1])

    def send(self, here: Site, there: Site) -> None:
        if not here.snapshots:
            return
        count = min(self.drawn.choice((1, 1, 1, 2, 3)), len(here.snapshots))
        uuids = self.drawn.sample(sorted(here.snapshots), count)
        both = sorted(set(here.snapshots) & set(there.snapshots) - set(uuids))
        bases = (
            [self.drawn.choice(both) for _ in uuids] if both and self.drawn.random() < 0.7 else []
        )
        stream = stream_of(here.pool, uuids, bases, zstd=self.drawn.random() < 0.3)
        if self.is_refused(here, there, uuids, stream):
            return
        for uuid in uuids:
            if uuid in {it.uuid for it in incomplete(there.pool)}:
                abandon(there.pool, uuid)
        while self.drawn.random() < 0.5:
            self.fail(there, stream)
            parts = incomplete(there.pool)
            if self.drawn.random() < 0.3:
                there.reopen()
            if self.drawn.random() < 0.15:
                return  # It is left for good, or given up later.
            if any(it.uuid in uuids for it in parts) and self.drawn.random() < 0.7:
                token = position(parts, uuids[0])
                stream = stream_of(here.pool, uuids, bases, resume=token)
            else:
                stream = stream_of(here.pool, uuids, bases)
        received = take_in(there.pool, stream)
        assert [(it.uuid, it.is_new) for it in received] == [(uuid, True) for uuid in uuids]
        for it in received:
            there.snapshots[it.uuid] = here.snapshots[it.uuid]
            image = here.snapshots[it.uuid][1]
            assert there.pool.get(it.uuid).read(0, len(image)) == image
            arrived, sent = there.pool.record(it.uuid), here.pool.record(it.uuid)
            assert (arrived.batch, arrived.root) == (sent.batch, sent.root)
            assert arrived.root == it.root

    def is_refused(self, here: Site, there: Site, uuids: list[str], stream: bytes) -> bool:
        """Have it received where it must not change anything."""
        known = [uuid in there.snapshots for uuid in uuids]
        names = {name for name, _ in there.snapshots.values()} | set(there.volumes)
        if all(known):
            assert not any(it.is_new for it in take_in(there.pool, stream))
        elif any(known):
            assert code_of(lambda: take_in(there.pool, stream)) == "partly_here"
        elif any(here.snapshots[uuid][0] in names for uuid in uuids):
            assert code_of(lambda: take_in(there.pool, stream)) == "name_taken"
        else:
            return False
        return True

    def fail(self, there: Site, stream: bytes) -> None:
        """Have a stream arrive that is not as it was sent."""
        bad = bytearray(stream)
        how = self.drawn.randrange(3)
        if how == 0:
            bad = bad[: self.drawn.randrange(len(bad))]
        elif how == 1:
            bad[self.drawn.randrange(len(bad))] ^= 1 << self.drawn.randrange(8)
        else:
            parts = records_of(stream)
            at = self.drawn.randrange(1, len(parts))
            bad = bytearray(b"".join(parts[:at] + parts[at + 1 :]))
        assert code_of(lambda: take_in(there.pool, bytes(bad))) in CUT_CODES
        there.check_listing()


@pytest.mark.random
@pytest.mark.slow
def test_whatever_happens_both_sides_agree(tmp_path: Path, randomness: random.Random) -> None:
    sites = Site(tmp_path / "a", "1MiB"), Site(tmp_path / "b", "2MiB")
    play = Play(randomness, sites)
    for _ in range(STEPS):
        play.step()
    for site in sites:
        site.check_bytes()
        for uuid, (_, image) in sorted(site.snapshots.items())[:3]:
            assert site.pool.verify(uuid).root == root_of_image(image)
        site.reopen()
        site.check_listing()
        site.check_bytes()
        site.pool.close()
        assert_clean(site.path)
