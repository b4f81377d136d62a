"""P1, P2 and P3: the service is killed at random moments under load, again and again.

Chains of writers (stamps.py) and commanders work through NBD and the service; then SIGKILL, and the
pool is opened and held against what was answered. What a power loss takes beyond what a kill does
is held by the log's own crash tests, on a store that loses what was not synced.
"""

import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

import ramet
from nbd_client import NbdClient
from pool_checks import assert_clean
from ramet.client import Client
from ramet.errors import UnavailableError
from serving import RAMET, Serving, make_pool, serving
from stamps import AREA_BYTES, BLOCK_BYTES, CHAINS_COUNT, FLOOD, FLOOD_BYTES, Chains, Levels

POOLS_COUNT = 3
ROUNDS_COUNT = 10  # Of each pool.
VOLUMES = [f"v{index}" for index in range(6)]
ALL_VOLUMES = [*VOLUMES, "vflood"]
COMMANDERS = "ab"
OBJECTS_MAX = 150  # Of each commander; beyond, it deletes.
CLONES_COUNT = 30
ACKS_MAX = 5000
COMMANDS_MAX = 50
COMMANDED_SHARE = 0.7  # Of the rounds.
FUA_SHARE = 0.03
ACKS_BETWEEN_FLUSHES_MAX = 400
FUSE_SECONDS_MAX = 0.01  # From the sending of a command to the kill.
OPENING_SECONDS_MAX = 0.6
SAMPLE_COUNT = 12  # Objects that are read through NBD as well.
WAIT_SECONDS_MAX = 50


@dataclass(frozen=True)
class Held:
    """An object as it must be; content None where nobody has read it yet."""

    kind: str
    content: bytes | None


View = dict[str, Held]


class World:
    """What all threads of a round share."""

    def __init__(self, served: Serving, chains: Chains) -> None:
        self.served, self.chains = served, chains
        self.killed = False
        self.commands_count = 0
        self.errors: list[Exception] = []
        self._changed = threading.Condition()

    def tell(self, commands_count: int = 0) -> None:
        with self._changed:
            self.commands_count += commands_count
            self._changed.notify_all()

    def wait(self, reached: Callable[[], bool]) -> None:
        with self._changed:
            done = self._changed.wait_for(lambda: reached() or self.errors, WAIT_SECONDS_MAX)
        assert done, "the load stands still"

    def run(self, work: Callable[[], None]) -> None:
        """Do something until the service is gone."""
        try:
            while True:
                work()
        except (OSError, UnavailableError) as error:
            if not self.killed:
                self.errors.append(error)
        except Exception as error:  # noqa: BLE001 - it is raised again in the test.
            self.errors.append(error)
        self.tell()


@dataclass
class Commander:
    """Commands over many objects with names of its own, and what they must have left."""

    prefix: str
    held: View = field(default_factory=dict)
    after: View | None = None
    """What is there once the command under way is through."""
    known: Levels = (0,) * CHAINS_COUNT
    """What of the chains was answered when the newest command was sent."""
    unread: list[str] | None = None
    """The snapshots of a group that nobody has read."""
    number: int = 0

    def owns(self, name: str) -> bool:
        return (name if name[0] in COMMANDERS else name.partition("@")[2]).startswith(self.prefix)

    def names(self, kind: str) -> list[str]:
        return sorted(name for name, it in self.held.items() if it.kind == kind)

    def step(self, world: World, verbs: Client, draw: random.Random) -> None:
        """Do one command, whichever is possible."""
        self.number += 1
        snapshots, volumes = self.names("snapshot"), self.names("volume")
        if len(self.held) > OBJECTS_MAX:
            self.delete(world, verbs, draw)
        elif not snapshots or draw.random() < 0.25:
            self.snapshot(world, verbs)
        elif not volumes or draw.random() < 0.3:
            self.clone(world, verbs, draw.choice(snapshots + volumes))
        else:
            actions = [self.revert, self.write, self.freeze, self.rename, self.delete]
            draw.choice(actions)(world, verbs, draw)

    @contextmanager
    def command(self, world: World, changes: View, gone: set[str] | None = None) -> Iterator[None]:
        kept = {name: it for name, it in self.held.items() if name not in (gone or ())}
        self.known = tuple(world.chains.acked)
        self.after = {**kept, **changes}
        world.tell(commands_count=1)
        yield
        self.held, self.after = self.after, None
        world.chains.raise_floor(dict(enumerate(self.known)))

    def snapshot(self, world: World, verbs: Client) -> None:
        tail = f"{self.prefix}{self.number}"
        names = [f"{volume}@{tail}" for volume in ALL_VOLUMES]
        self.unread = names
        with self.command(world, {name: Held("snapshot", None) for name in names}):
            verbs.snapshot(ALL_VOLUMES, False, f"{{volume}}@{tail}")
        sent = tuple(len(rounds) - 1 for rounds in world.chains.rounds)
        contents = []
        for name in names:
            with world.served.connect(name) as snapshot:
                contents.append(snapshot.read(0, snapshot.size))
        self.check_group(world.chains, contents, sent)
        self.held |= {
            name: Held("snapshot", content) for name, content in zip(names, contents, strict=True)
        }
        self.unread = None

    def check_group(self, chains: Chains, contents: list[bytes], last: Levels) -> None:
        what = f"group snapshot {self.unread}"
        levels, partly = chains.levels_of(contents, what)
        assert not partly, f"{what} holds a part of a write"
        for first, level, end in zip(self.known, levels, last, strict=True):
            assert first <= level <= end, f"{what}: {self.known} <= {levels} <= {last}"

    def clone(self, world: World, verbs: Client, source: str) -> None:
        names = [f"{self.prefix}{self.number}-{index}" for index in range(1, CLONES_COUNT + 1)]
        content = self.held[source].content
        with self.command(world, dict.fromkeys(names, Held("volume", content))):
            verbs.clone(source, [f"{self.prefix}{self.number}-{{n}}"], CLONES_COUNT, None)

    def delete(self, world: World, verbs: Client, draw: random.Random) -> None:
        names = sorted(self.held)
        gone = draw.sample(names, draw.randint(1, len(names)))
        with self.command(world, {}, set(gone)):
            # Forced: the connection that read a snapshot just now may not have ended yet.
            verbs.delete(gone, True)

    def revert(self, world: World, verbs: Client, draw: random.Random) -> None:
        snapshots = self.names("snapshot")
        volumes = self.names("volume")
        pairs = []
        for volume in draw.sample(volumes, min(8, len(volumes))):
            size = len(self.held[volume].content or b"")
            fitting = [it for it in snapshots if len(self.held[it].content or b"") == size]
            if fitting:
                pairs.append((volume, draw.choice(fitting)))
        keep = draw.random() < 0.5
        tail = f"kept{self.number}"
        changes = {volume: Held("volume", self.held[it].content) for volume, it in pairs}
        if keep:
            changes |= {
                f"{volume}@{tail}": Held("snapshot", self.held[volume].content)
                for volume, _ in pairs
            }
        with self.command(world, changes):
            verbs.revert(pairs, f"{{volume}}@{tail}" if keep else False, False, False)

    def write(self, world: World, verbs: Client, draw: random.Random) -> None:
        name = draw.choice(self.names("volume"))
        content = bytearray(self.held[name].content or b"")
        # Within a block: then it is there whole or not at all.
        at, data = draw.randrange(len(content) // BLOCK_BYTES) * BLOCK_BYTES, draw.randbytes(300)
        content[at : at + len(data)] = data
        with (
            world.served.connect(name) as volume,
            self.command(world, {name: Held("volume", bytes(content))}),
        ):
            volume.write(at, data, fua=True)

    def freeze(self, world: World, verbs: Client, draw: random.Random) -> None:
        volumes = self.names("volume")
        # Who was connected a moment ago may still count.
        names = draw.sample(volumes, min(5, len(volumes)))
        changes = {name: Held("snapshot", self.held[name].content) for name in names}
        with self.command(world, changes):
            verbs.freeze(names, True)

    def rename(self, world: World, verbs: Client, draw: random.Random) -> None:
        name = draw.choice(self.names("volume"))
        new_name = f"{self.prefix}{self.number}-renamed"
        with self.command(world, {new_name: self.held[name]}, {name}):
            verbs.rename(name, new_name)

    def check(self, view: View, chains: Chains, levels: Levels) -> None:
        """P3: hold what a crash left against the commands, and go on with it."""
        found = {name: it for name, it in view.items() if self.owns(name)}
        if self.after is not None and differences(found, self.held):
            between = differences(found, self.after)
            assert not between, (
                f"neither before the command nor after it: {differences(found, self.held)[:3]}"
                f" and {between[:3]}"
            )
            assert all(a >= b for a, b in zip(levels, self.known, strict=True)), (
                f"a command is there, but of {self.known} that was answered before only {levels}"
            )
        else:
            assert not differences(found, self.held), differences(found, self.held)[:5]
        if self.unread is not None and self.unread[0] in found:
            contents = [found[name].content or b"" for name in self.unread]
            self.check_group(chains, contents, levels)
        self.held, self.after, self.unread = found, None, None


def differences(found: View, expected: View) -> list[str]:
    wrong = [f"missing {name}" for name in expected if name not in found]
    wrong += [f"unexpected {name}" for name in found if name not in expected]
    for name in found.keys() & expected.keys():
        one, other = found[name], expected[name]
        if one.kind != other.kind or other.content not in (None, one.content):
            wrong.append(f"{name} is another {one.kind} than the {other.kind} expected")
    return wrong


def write_chain(
    world: World, chain: int, draw: random.Random, connections: list[NbdClient]
) -> None:
    volume, offset_bytes, data = world.chains.next_write(chain)
    fua = draw.random() < FUA_SHARE
    connections[volume].write(offset_bytes, data, fua)
    world.chains.ack(chain, fua)
    world.tell()


def write_flood(world: World, connections: list[NbdClient]) -> None:
    """Write a flood, and give way to the others for a while."""
    _, offset_bytes, data = world.chains.next_write(FLOOD)
    connections[-1].write(offset_bytes, data)
    world.chains.ack(FLOOD, False)
    goal = sum(world.chains.acked) + 30
    world.wait(lambda: world.killed or sum(world.chains.acked) >= goal)


def flush_some(world: World, draw: random.Random, connections: list[NbdClient]) -> None:
    """P1: a flush of one connection covers what all connections of the volume had answered."""
    volume = draw.randrange(len(ALL_VOLUMES))
    acked = world.chains.acked_in(volume)
    connections[volume].flush()
    world.chains.raise_floor(acked)
    goal = sum(world.chains.acked) + draw.randrange(ACKS_BETWEEN_FLUSHES_MAX)
    world.wait(lambda: world.killed or sum(world.chains.acked) >= goal)


@contextmanager
def load(world: World, commanders: list[Commander], draw: random.Random) -> Iterator[None]:
    """Work on the pool from many connections while the block is not left; it must kill."""
    with ExitStack() as stack:

        def connect_all() -> list[NbdClient]:
            return [stack.enter_context(world.served.connect(name)) for name in ALL_VOLUMES]

        works: list[Callable[[], None]] = []
        for chain in range(FLOOD):
            some, own = connect_all(), random.Random(draw.random())
            works.append(partial(write_chain, world, chain, own, some))
        flood, flusher, flushing = connect_all(), connect_all(), random.Random(draw.random())
        works.append(partial(write_flood, world, flood))
        works.append(partial(flush_some, world, flushing, flusher))
        for commander in commanders:
            verbs = stack.enter_context(world.served.verbs())
            own = random.Random(draw.random())
            works.append(partial(commander.step, world, verbs, own))
        threads = [threading.Thread(target=world.run, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            world.killed = True
            world.served.kill()
            world.served.wait()
            world.tell()
            for thread in threads:
                thread.join()
    if world.errors:
        raise world.errors[0]


def wait_for_a_moment(world: World, draw: random.Random, commanding: bool) -> None:
    """Wait for some write, or for a command that is under way."""
    if not commanding or draw.random() < 0.4:
        acks = sum(world.chains.acked) + draw.randint(1, ACKS_MAX)
        world.wait(lambda: sum(world.chains.acked) >= acks)
    else:
        count = draw.randint(1, COMMANDS_MAX)
        world.wait(lambda: world.commands_count >= count)
        threading.Event().wait(draw.uniform(0, FUSE_SECONDS_MAX))


def kill_while_opening(pool_path: Path, draw: random.Random) -> None:
    process = subprocess.Popen([*RAMET, "-p", str(pool_path), "serve"], stderr=subprocess.DEVNULL)
    threading.Event().wait(draw.uniform(0, OPENING_SECONDS_MAX))
    process.kill()
    process.wait()


def read_pool(pool_path: Path, read_only: bool) -> View:
    with ramet.open(pool_path, read_only=read_only) as pool:
        return {
            it.name: Held(it.kind, pool.open_device(it.uuid).read(0, it.size_bytes))
            for it in pool.objects()
        }


def check_through_nbd(served: Serving, view: View, draw: random.Random) -> None:
    some = draw.sample(sorted(view), min(SAMPLE_COUNT, len(view)))
    for name in {*ALL_VOLUMES, *some}:
        with served.connect(name) as connection:
            assert connection.read(0, connection.size) == view[name].content, name


def check_view(view: View, chains: Chains, commanders: list[Commander], round_number: int) -> None:
    contents = [view[name].content or b"" for name in ALL_VOLUMES]
    levels, _ = chains.levels_of(contents, f"round {round_number}")
    for chain, (level, floor) in enumerate(zip(levels, chains.floor, strict=True)):
        assert level >= floor, f"chain {chain}: {floor} was flushed, {level} is there"
    for commander in commanders:
        commander.check(view, chains, levels)
    owned = sum(len(commander.held) for commander in commanders)
    assert len(view) == len(ALL_VOLUMES) + owned
    chains.lose(levels, round_number + 1)


@pytest.mark.slow
@pytest.mark.random
@pytest.mark.parametrize("pool_number", range(POOLS_COUNT))
def test_a_kill_under_load_keeps_what_was_flushed_at_one_point_of_the_log(
    pool_path: Path, pool_number: int, randomness: random.Random
) -> None:
    """P1, P2, P3: thirty kills, some in the middle of a command, some in the middle of opening."""
    make_pool(pool_path)
    chains = Chains(ALL_VOLUMES)
    commanders = [Commander(prefix) for prefix in COMMANDERS]
    view: View = {}
    for round_number in range(ROUNDS_COUNT):
        with serving(pool_path) as served:
            if view:
                check_through_nbd(served, view, randomness)
            else:
                with served.verbs() as verbs:
                    verbs.create_volumes(VOLUMES, str(AREA_BYTES), None)
                    verbs.create_volumes(["vflood"], str(FLOOD_BYTES), None)
            world = World(served, chains)
            # A flood that a kill cut off is made whole, so that later ones follow a whole one.
            with served.connect("vflood") as flood:
                flood.write(0, chains.next_write(FLOOD)[2], fua=True)
            chains.ack(FLOOD, True)
            # Commands flush: without them more is lost.
            commanding = commanders if randomness.random() < COMMANDED_SHARE else []
            with load(world, commanding, randomness):
                wait_for_a_moment(world, randomness, bool(commanding))
        assert_clean(pool_path)
        view = read_pool(pool_path, read_only=randomness.random() < 0.7)
        check_view(view, chains, commanders, round_number)
        if randomness.random() < 0.5:
            kill_while_opening(pool_path, randomness)
            assert_clean(pool_path)
            again = read_pool(pool_path, read_only=True)
            assert not differences(again, view), "a kill while opening changed what is there"
