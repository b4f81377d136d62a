"""Make the pools and streams of a version of the format, once, for every later version to open.

`python tests/compat/make.py DIRECTORY` writes an archive of each, and what is in it as JSON.
They are made when a version is declared, and never again: what is in `v1` stays as it is. A feature
that comes later gets a new archive beside them.
"""

import io
import json
import lzma
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ramet
from ramet.keeper import Keeper
from ramet.pool.transfers import hash_device
from ramet.replication import receive, send

BLOCK = 4096
SEGMENT_SIZE = "1MiB"
SECRET = "the secret of a golden pool"  # noqa: S105 - it guards nothing.
LEAF_BLOCKS = 512
RULES = """\
timezone = "Europe/Berlin"

[remote.dr]
url = "file:///srv/dr"
hold = "30d"

[policy.nightly]
cron = "30 2 * * *"
volumes = ["db*"]
keep = {daily = 14, last = 2}
remotes = ["dr"]
"""
Maker = Callable[[Path], None]


def blocks(number: int, count: int) -> bytes:
    """Give blocks that differ from all others and compress well."""
    return b"".join((f"{number}:{at};".encode() * BLOCK)[:BLOCK] for at in range(count))


def describe(pool: ramet.Pool) -> dict[str, object]:
    """Give what a pool holds: everything of it that a reader of a later version must find."""
    names = {it.uuid: it.name for it in pool.objects()}
    objects = [
        {
            "name": it.name,
            "uuid": it.uuid,
            "kind": it.kind,
            "size_bytes": it.size_bytes,
            "mapped_bytes": it.mapped_bytes,
            "created_ns": it.created_ns,
            "parent": names.get(it.parent or ""),
            "source": it.source,
            "batch": it.batch,
            "tags": dict(it.tags),
            "root": it.root,
            "lock": it.lock.mode if it.lock else None,
            "content": hash_device(pool.open_device(it.uuid)),
        }
        for it in pool.objects()
    ]
    trash = pool.trash()
    return {
        "uuid": pool.uuid,
        "objects": objects,
        "trash": [it.object.name for it in trash.objects],
        "window_seconds": trash.window_seconds,
        "limit_bytes": pool.stats()["limit_bytes"],
        "receiving_count": pool.stats()["receiving_count"],
        "has_secret": pool.lock_clock().has_secret,
        "cooling_off_seconds": pool.lock_clock().cooling_off_seconds,
    }


@contextmanager
def opened(path: Path) -> Iterator[ramet.Pool]:
    with ramet.open(path, create=True, segment_size=SEGMENT_SIZE) as pool:
        yield pool


@contextmanager
def killed(path: Path) -> Iterator[ramet.Pool]:
    """Give a pool that is at `path` afterwards as if its process had ended without a word."""
    with tempfile.TemporaryDirectory() as directory:
        made = Path(directory) / "pool"
        with opened(made) as pool:
            yield pool
            pool.flush()
            with pool.holding_space():
                copy(made, path)


def make_plain(path: Path) -> None:
    """Volumes, tags, snapshots, clones of both kinds, a revert, a freeze, sizes within a block."""
    with opened(path) as pool:
        db = pool.create_volume("db", "8MiB", tags={"env": "prod", "empty": ""})
        pool.create_volumes("vm-{n}", 3 * 512 + BLOCK, count=3)
        db.write(0, blocks(1, 20))
        pool.snapshot(all_volumes=True, name="{volume}@mon")
        db.write(5 * BLOCK, blocks(2, 10))
        db.write(700 * BLOCK + 100, b"not whole")
        db.trim(0, 2 * BLOCK)
        db.write_zeroes(3 * BLOCK, BLOCK)
        pool.snapshot("db", name="db@tue", tags={"policy": "nightly"})
        pool.clone("db@mon", "child-{n}", count=2)
        pool.clone("db", "twin")
        pool.volume("child-1").write(BLOCK, blocks(3, 4))
        pool.snapshot("child-1", name="child-1@1")
        db.write(9 * BLOCK, blocks(4, 3))
        db.revert("db@mon", keep="db@discarded")
        pool.freeze("vm-2")
        pool.rename("vm-3", "renamed")
        pool.resize("renamed", "1MiB")
        pool.resize("twin", 7 * BLOCK + 512, shrink=True)
        pool.verify("db@tue")
        pool.delete("db@mon")


def make_large(path: Path) -> None:
    """Maps of several levels, segments that are sealed, thinned and gone, a limit."""
    with opened(path) as pool:
        pool.set_limit("64MiB")
        wide = pool.create_volume("wide", "16TiB")
        for at in range(40):
            wide.write(at * 977 * LEAF_BLOCKS * BLOCK, blocks(100 + at, 1))
        pool.snapshot("wide", name="wide@1")
        dense = pool.create_volume("dense", "8MiB")
        for at in range(0, 1024, 64):
            dense.write(at * BLOCK, blocks(200 + at, 64))
        pool.snapshot("dense", name="dense@1")
        for at in range(0, 1024, 3):
            dense.write(at * BLOCK, blocks(300 + at, 1))
        pool.delete("dense@1")
        pool.checkpoint()
        pool.reclaim(everything=True)
        pool.delete("wide")
        pool.clone("wide@1", "again")


def make_guarded(path: Path) -> None:
    """Locks of both modes, one that is over, a secret, a cooling-off, a trash with things in it."""
    with opened(path) as pool:
        pool.set_lock_secret(SECRET)
        pool.create_volume("db", "1MiB").write(0, blocks(1, 8))
        for name in ("governed", "complied", "over", "free"):
            pool.snapshot("db", name=name)
        pool.lock("governed", "50y")
        pool.lock("complied", "50y", mode="compliance")
        pool.lock("over", 1e-6)
        pool.set_cooling_off("1h", secret=SECRET)
        pool.confirm_lock_clock(SECRET)
        pool.set_trash_window("50y")
        pool.create_volume("gone", "1MiB", tags={"was": "here"}).write(0, blocks(2, 4))
        pool.snapshot("gone", name="gone@1")
        pool.delete(["gone", "gone@1", "free"])
        pool.create_volume("gone", "2MiB")
        pool.delete("over", now=True)


def make_received(path: Path) -> None:
    """Snapshots that were received, kept hashes, and one of which a part has arrived."""
    with tempfile.TemporaryDirectory() as directory, opened(Path(directory) / "sender") as sender:
        db = sender.create_volume("db", "4MiB", tags={"env": "prod"})
        sender.create_volume("web", "1MiB").write(0, blocks(9, 2))
        db.write(0, blocks(1, 300))
        sender.snapshot(all_volumes=True, name="{volume}@1")
        db.write(50 * BLOCK, blocks(2, 40))
        db.trim(200 * BLOCK, 20 * BLOCK)
        sender.snapshot("db", name="db@2")
        with opened(path) as pool:
            for names, bases in ([["db@1", "web@1"], []], [["db@2"], ["db@1"]]):
                stream = io.BytesIO(b"".join(it.content for it in send(sender, names, bases)))
                receive(pool, stream.read)
            db.write(0, blocks(3, 1000))
            sender.snapshot("db", name="db@3")
            content = b"".join(it.content for it in send(sender, ["db@3"], ["db@2"]))
            cut = io.BytesIO(content[: len(content) // 2])
            try:
                receive(pool, cut.read)
            except ramet.RametError:
                pass
            else:
                raise AssertionError("the stream was cut")
            pool.clone("db@2", "live")
            Keeper(pool, path).set_rules(RULES)


def make_killed(path: Path) -> None:
    """A log that was not closed: a checkpoint, commands and writes after it, one that was dying."""
    with killed(path) as pool:
        db = pool.create_volume("db", "4MiB")
        db.write(0, blocks(1, 400))
        pool.snapshot("db", name="db@1")
        pool.checkpoint()
        db.write(0, blocks(2, 100))
        pool.snapshot("db", name="db@2", tags={"a": "b"})
        pool.clone("db@1", "child")
        pool.volume("child").write(3 * BLOCK, blocks(3, 1))
        db.trim(300 * BLOCK, 50 * BLOCK)
        pool.delete("db@1")
        db.write(90 * BLOCK, blocks(4, 1))


def make_reused(path: Path) -> None:
    """A log in files that were those of dead segments, not closed: old bytes lie behind its end."""
    with killed(path) as pool:
        db = pool.create_volume("db", "2MiB")
        number = 0
        while pool.stats()["reused_count"] < 4:
            number += 1
            db.write(number % 4 * 128 * BLOCK, blocks(number, 128))
            if number % 16 == 0:
                pool.checkpoint()
        db.write(7 * BLOCK, blocks(1, 1))


def make_went_back(path: Path) -> None:
    """A damaged log that was accepted: what lies behind its new end is in `lost`."""
    with tempfile.TemporaryDirectory() as directory:
        make_killed(Path(directory) / "pool")
        copy(Path(directory) / "pool", path)
    last = max(it for it in path.glob("segments/*.seg") if b"RBAT" in it.read_bytes()[BLOCK:])
    content = bytearray(last.read_bytes())
    headers = [at for at in range(BLOCK, len(content), BLOCK) if content[at : at + 4] == b"RBAT"]
    content[headers[-4] + 20] ^= 1
    last.write_bytes(content)
    assert ramet.accept_loss(path) is not None


def copy(source: Path, target: Path) -> None:
    """Copy a pool, as it is on the medium now."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.sock", "service*"))


POOLS: dict[str, Maker] = {
    "plain": make_plain,
    "large": make_large,
    "guarded": make_guarded,
    "received": make_received,
    "killed": make_killed,
    "reused": make_reused,
    "went-back": make_went_back,
}


def make_streams(directory: Path) -> list[dict[str, object]]:
    """Write streams: whole, what differs, compressed, a group. Result: what they hold."""
    with tempfile.TemporaryDirectory() as scratch, opened(Path(scratch) / "pool") as pool:
        db = pool.create_volume("db", "4MiB", tags={"env": "prod"})
        pool.create_volume("web", "1MiB").write(0, blocks(9, 2))
        db.write(0, blocks(1, 60))
        pool.snapshot(all_volumes=True, name="{volume}@1")
        db.write(30 * BLOCK, blocks(2, 40))
        db.trim(0, 9 * BLOCK)
        pool.snapshot("db", name="db@2")
        db.write(0, blocks(3, 5))
        pool.snapshot("db", name="db@3")
        told: list[dict[str, object]] = []
        for name, names, bases, zstd in [
            ("group", ["db@1", "web@1"], [], False),
            ("differs", ["db@2"], ["db@1"], False),
            ("zstd", ["db@3"], ["db@2"], True),
        ]:
            content = b"".join(it.content for it in send(pool, names, bases, zstd=zstd))
            (directory / f"{name}.stream.xz").write_bytes(lzma.compress(content, preset=9))
            told += [{"stream": name, **pool.verify(it).to_json()} for it in names]
        return told


def pack(source: Path, archive: Path) -> None:
    """Put the files of a pool into an archive."""
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for path in sorted(source.rglob("*")):
            tar.add(path, path.relative_to(source), recursive=False)


def main(directory: Path) -> int:
    """Make all of it."""
    directory.mkdir(parents=True)
    told: dict[str, object] = {}
    for name, make in POOLS.items():
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "pool"
            make(path)
            pack(path, directory / f"{name}.tar.xz")
            # A copy tells: what is packed was opened by nobody since.
            copy(path, Path(scratch) / "copy")
            with ramet.open(Path(scratch) / "copy") as pool:
                told[name] = describe(pool)
    told["streams"] = make_streams(directory)
    (directory / "content.json").write_text(json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
