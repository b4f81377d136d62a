"""The promise of locks, against somebody who has everything but the secret and the files' owner.

What he may do to clocks and machines is in crates/ramet-engine/tests/locks.rs, where they can be
set, and in test_locks.py.
"""

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import nbd_client
import ramet
from pool_checks import assert_clean
from ramet.client import Client
from ramet.errors import RametError
from ramet.verbs import Verbs
from serving import Serving, run_ramet, serving
from serving import ramet as run

PHRASE = "a secret that he does not have"
BLOCK_BYTES = 4096
VOLUME_BYTES = 4 << 20
VOLUMES = [f"disk-{number}" for number in range(1, 4)]
LOCKED = [f"{name}@locked" for name in VOLUMES]
Attack = Callable[[Client, str], object]

# What he tries on each object, by every verb that there is.
ATTACKS: dict[str, Attack] = {
    "create_volumes": lambda it, name: it.create_volumes([name], "1MiB", None),
    "snapshot": lambda it, name: it.snapshot(["junk"], False, name),
    "clone": lambda it, name: it.clone("junk", [name], None, None),
    "revert": lambda it, name: it.revert([(name, "disk-1@later")], False, True, True),
    "freeze": lambda it, name: it.freeze([name], True),
    "resize": lambda it, name: it.resize(name, "512", True, True),
    "tag": lambda it, name: it.tag([name], {"encrypted": "yes"}, []),
    "rename": lambda it, name: it.rename(name, name.replace("disk", "gone")),
    "delete": lambda it, name: it.delete([name], True),
    "set_trash_window": lambda it, _: it.set_trash_window("1s"),
    "restore": lambda it, name: it.restore([name], None),
    "empty_trash": lambda it, _: it.empty_trash(None),
    "lock": lambda it, name: it.lock([name], "1ms", "governance"),
    "unlock": lambda it, name: it.unlock([name], "no idea what it could be"),
    "confirm_lock_clock": lambda it, _: it.confirm_lock_clock("no idea what it could be"),
    "set_lock_secret": lambda it, _: it.set_lock_secret("a secret of his own", None),
    "set_cooling_off": lambda it, _: it.set_cooling_off("1d", None),
    "set_limit": lambda it, _: it.set_limit("1"),
    "reclaim": lambda it, _: it.reclaim(True, 1.0),
    "checkpoint": lambda it, _: it.checkpoint(),
    "verify": lambda it, name: it.verify(name),
    "abandon": lambda it, name: it.abandon(name),
}
# Each is a quarter of a second for a wrong secret: tried on what is locked.
SLOW = ("unlock", "confirm_lock_clock", "set_lock_secret")
# These change nothing.
QUESTIONS = {
    "frees",
    "trash",
    "trash_frees",
    "space",
    "spaces",
    "sharing",
    "scrub",
    "diff",
    "objects",
    "find_object",
    "stats",
    "lock_clock",
    "nbd_socket",
}


def _make(path: Path, noise: random.Random) -> tuple[dict[str, bytes], list[str]]:
    """Make a pool with locked snapshots among others. Result: what they hold, and their roots."""
    with ramet.open(path, create=True, segment_size="1MiB") as pool:
        pool.set_lock_secret(PHRASE)
        contents = {}
        for name in VOLUMES:
            volume = pool.create_volume(name, VOLUME_BYTES)
            contents[name] = noise.randbytes(VOLUME_BYTES // 2)
            volume.write(BLOCK_BYTES, contents[name])
        pool.snapshot(VOLUMES, name="{volume}@locked")
        pool.volume("disk-1").write(0, b"later")
        pool.snapshot(VOLUMES, name="{volume}@later")
        pool.clone("disk-1@locked", "clone-{n}", count=3)
        pool.lock(LOCKED[:2], "30d")
        pool.lock(LOCKED[2:], "30d", mode="compliance")
        return contents, [pool.verify(name).root for name in LOCKED]


def _overwrite(served: Serving, client: Client, noise: random.Random) -> None:
    """Overwrite every volume through NBD, and try it on every snapshot."""
    for record in client.objects():
        with served.connect(record.name) as device:
            for offset in range(0, record.size_bytes, 1 << 20):
                length = min(1 << 20, record.size_bytes - offset)
                with suppress(nbd_client.NbdError):
                    device.write(offset, noise.randbytes(length))
                with suppress(nbd_client.NbdError):
                    device.trim(offset, length // 2)
            with suppress(nbd_client.NbdError):
                device.write_zeroes(0, BLOCK_BYTES)
                device.flush()


def _attack(client: Client, noise: random.Random) -> None:
    """Try every verb on every object, in some order."""
    with suppress(RametError):
        client.create_volumes(["junk"], "1MiB", None)
    records = client.objects()
    tries = [(verb, record.uuid) for record in records for verb in ATTACKS if verb not in SLOW]
    tries += [(verb, record.uuid) for record in records if record.lock for verb in SLOW]
    noise.shuffle(tries)
    for verb, uuid in tries:
        with suppress(RametError):
            ATTACKS[verb](client, client.find_object(uuid).name)


def _fill(served: Serving, client: Client, noise: random.Random) -> None:
    """Write until there is no room."""
    with suppress(RametError):
        client.create_volumes(["filler"], "64MiB", None)
    client.set_limit(str(int(client.stats()["taken_bytes"]) + (6 << 20)))
    with served.connect("filler") as device:
        written = 0
        with suppress(nbd_client.NbdError):
            for offset in range(0, 64 << 20, 1 << 20):
                device.write(offset, noise.randbytes(1 << 20), fua=True)
                written += 1
        assert written < 64, "there was room for all of it"


def _delete_all(path: Path) -> None:
    """Delete on the command line what can be deleted: all at once, and then one by one."""
    with ramet.open(path, read_only=True) as pool:
        names = [record.name for record in pool.objects()]
        locked = [record.name for record in pool.objects() if record.lock]
    refused = run_ramet("-p", path, "delete", "--force", *names)
    assert "object_locked" in refused.stderr
    for name in locked:
        run_ramet("-p", path, "snapshot", "unlock", name)
        assert "object_locked" in run_ramet("-p", path, "delete", "--force", name).stderr
    if others := set(names) - set(locked):
        run("-p", path, "delete", "--force", *others)
    run("-p", path, "trash", "empty", "--all")
    run_ramet("-p", path, "check", "--accept-loss", path.name)
    run_ramet("-p", path, "init", path)
    run_ramet("-p", path, "reclaim", "--all")


def test_every_verb_is_tried_by_who_wants_snapshots_gone() -> None:
    verbs = {name for name in vars(Verbs) if not name.startswith("_")}
    assert verbs - {"abandon"} <= set(ATTACKS) | QUESTIONS, "try the new ones, too"


@pytest.mark.slow
@pytest.mark.random
def test_locked_snapshots_outlive_ransomware_and_come_back_in_one_command(
    pool_path: Path, randomness: random.Random
) -> None:
    contents, roots = _make(pool_path, randomness)
    uuids = []
    for kills in (True, False):
        with serving(pool_path) as served, served.verbs() as client:
            uuids = uuids or [client.find_object(name).uuid for name in LOCKED]
            _overwrite(served, client, randomness)
            _fill(served, client, randomness)
            _attack(client, randomness)
            if kills:
                served.kill()
                served.wait()
    assert_clean(pool_path)
    run("-p", pool_path, "limit", "none")
    _delete_all(pool_path)
    assert_clean(pool_path)

    with ramet.open(pool_path) as pool:
        assert {record.uuid for record in pool.objects()} == set(uuids), "all else is gone"
        left = [pool.record(uuid) for uuid in uuids]
        modes = [record.lock and record.lock.mode for record in left]
        assert modes == ["governance", "governance", "compliance"]
        assert [pool.verify(uuid).root for uuid in uuids] == roots
    for record, name in zip(left, VOLUMES, strict=True):
        assert run("-p", pool_path, "clone", record.name, name).split() == [name]
    with ramet.open(pool_path) as pool:
        for name in VOLUMES:
            volume = pool.volume(name)
            assert volume.size_bytes == VOLUME_BYTES
            assert volume.read(0, VOLUME_BYTES).strip(b"\0") == contents[name].strip(b"\0")
    assert_clean(pool_path)
