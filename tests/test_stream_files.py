"""Streams kept in files are backups: they prove what receiving them in order would build, or say
which link is missing.
"""

import random
from pathlib import Path

import pytest

import ramet
from blake3_reference import root_of_image
from ramet.errors import CorruptError, NotFoundError
from ramet.replication import FileSnapshot, verify_files
from ramet.replication.stream import Item, Run, StreamWriter
from streams import code_of, stream_of, take_in, token_of
from test_stream import header_of, item_of

BLOCK = 4096


def keep(directory: Path, name: str, stream: bytes) -> Path:
    path = directory / f"{name}.stream"
    path.write_bytes(stream)
    return path


def backup(pool: ramet.Pool, directory: Path, drawn: random.Random, count: int) -> list[Path]:
    """A chain of `count` files: of a volume that is written, trimmed, grown and cut."""
    volume = pool.create_volume("db", 512 * drawn.randrange(1, 300))
    files = []
    for number in range(1, count + 1):
        for _ in range(drawn.randrange(8)):
            at = drawn.randrange(volume.size_bytes)
            length = min(drawn.randrange(1, 40_000), volume.size_bytes - at)
            if drawn.random() < 0.3:
                volume.write_zeroes(at, length)
            else:
                volume.write(at, drawn.randbytes(1) * length)
        if drawn.random() < 0.3:
            volume.resize(512 * drawn.randrange(1, 300), shrink=True)
        name = f"db@{number}"
        volume.snapshot(name)
        bases = [f"db@{number - 1}"] if number > 1 else []
        stream = stream_of(pool, [name], bases, zstd=drawn.random() < 0.5)
        files.append(keep(directory, name, stream))
    return files


@pytest.mark.random
def test_a_chain_proves_what_receiving_it_builds(
    pool: ramet.Pool, tmp_path: Path, randomness: random.Random
) -> None:
    files = backup(pool, tmp_path, randomness, 6)
    read: list[tuple[int, int]] = []
    found = verify_files(files, progress=lambda *it: read.append(it))
    total = sum(path.stat().st_size for path in files)
    assert read[-1] == (total, total)
    assert [it.name for it in found] == [f"db@{number}" for number in range(1, 7)]
    assert [it.is_proved for it in found] == [False] * 5 + [True]
    with ramet.open(tmp_path / "restored", create=True) as restored:
        for path, it in zip(files, found, strict=True):
            take_in(restored, path.read_bytes())
            image = restored.get(it.name).read(0, it.size_bytes)
            assert image == pool.get(it.name).read(0, it.size_bytes)
            assert it.root == root_of_image(image)
    # Each prefix proves its own last one.
    for count in range(1, 7):
        assert verify_files(files[:count])[-1] == found[count - 1]._replace(is_proved=True)


def test_a_file_of_several_snapshots_is_proved(pool: ramet.Pool, tmp_path: Path) -> None:
    volumes = pool.create_volumes("v-{n}", "256KiB", count=3)
    for number, volume in enumerate(volumes):
        volume.write(number * 5000, b"x" * 9000)
    one = [it.name for it in pool.snapshot(volumes, name="{volume}@1")]
    volumes[1].write(0, b"changed")
    two = [it.name for it in pool.snapshot(volumes, name="{volume}@2")]
    files = [
        keep(tmp_path, "one", stream_of(pool, one)),
        # In another order, and one against another volume's snapshot.
        keep(tmp_path, "two", stream_of(pool, two[::-1], [one[2], one[0], one[0]])),
    ]
    found = verify_files(files)
    assert [it.name for it in found] == [*one, *two[::-1]]
    assert {it.name: it.is_proved for it in found} == {
        name: name not in ("v-1@1", "v-3@1") for name in [*one, *two]
    }
    for it in found:
        assert it.root == root_of_image(pool.get(it.name).read(0, it.size_bytes))
        assert FileSnapshot(**it.to_json()) == it  # type: ignore[arg-type]


def test_what_is_zeroed_or_cut_off_is_not_in_the_root(pool: ramet.Pool, tmp_path: Path) -> None:
    volume = pool.create_volume("db", 64 * BLOCK)
    volume.write(0, b"x" * 30 * BLOCK)
    volume.write(50 * BLOCK, b"x" * 10 * BLOCK)
    files = []
    for number in range(1, 6):
        name = f"db@{number}"
        volume.snapshot(name)
        bases = [f"db@{number - 1}"] if number > 1 else []
        files.append(keep(tmp_path, name, stream_of(pool, [name], bases)))
        if number == 1:
            volume.trim(8 * BLOCK, 8 * BLOCK)
        elif number == 2:
            volume.resize(40 * BLOCK, shrink=True)
        elif number == 3:
            volume.resize(20 * BLOCK + 512, shrink=True)
        else:
            volume.resize(64 * BLOCK)
    for count in range(1, 6):
        it = verify_files(files[:count])[-1]
        assert it.root == root_of_image(pool.get(it.name).read(0, it.size_bytes))


def test_a_missing_link_is_named(pool: ramet.Pool, tmp_path: Path) -> None:
    files = backup(pool, tmp_path, random.Random(4), 4)
    uuid = pool.record("db@2").uuid
    with pytest.raises(
        NotFoundError, match=f"'{files[2]}': 'db@3' .* 'db@2', UUID {uuid}"
    ) as caught:
        verify_files([files[0], files[2], files[3]])
    assert caught.value.code == "link_missing"
    for wrong in (files[1:], files[::-1], [files[3]]):
        assert code_of(lambda it=wrong: verify_files(it)) == "link_missing"
    assert code_of(lambda: verify_files([tmp_path / "absent"])) == "stream_file"
    assert code_of(lambda: verify_files([tmp_path])) == "stream_file"


def made_up(item: Item, root: str) -> bytes:
    """A well-formed stream of one snapshot, 4 blocks of which one is data."""
    writer = StreamWriter()
    parts = [writer.header(header_of(item)), writer.begin(0, 0)]
    parts += [writer.changes(4, [Run(1, 1, True)], b"x" * BLOCK)]
    parts += [writer.done(0, root), writer.end()]
    return b"".join(parts)


def test_files_of_different_backups_are_told(tmp_path: Path) -> None:
    image = bytearray(4 * BLOCK)
    image[BLOCK : 2 * BLOCK] = b"x" * BLOCK
    root = root_of_image(bytes(image))
    files = [
        keep(tmp_path, "one", made_up(item_of(0, 4 * BLOCK), root)),
        # It says that its base has another root.
        keep(tmp_path, "two", made_up(item_of(1, 4 * BLOCK, base=0), root)),
    ]
    assert verify_files(files[:1])[0].root == root
    with pytest.raises(CorruptError, match=f"'{files[1]}': 's1' is told against 's0'") as caught:
        verify_files(files)
    assert caught.value.code == "link_differs"


def test_a_cut_or_damaged_file_is_named(pool: ramet.Pool, tmp_path: Path) -> None:
    files = backup(pool, tmp_path, random.Random(4), 2)
    whole = files[1].read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        files[1].write_bytes(whole[:length])
        with pytest.raises(ramet.UnavailableError, match=str(files[1])) as caught:
            verify_files(files)
        assert caught.value.code == "stream_cut"
    damaged = bytearray(whole)
    damaged[len(whole) - 70] ^= 1
    files[1].write_bytes(damaged)
    with pytest.raises(CorruptError, match=str(files[1])):
        verify_files(files)
    files[1].write_bytes(whole + b"x")
    assert code_of(lambda: verify_files(files)) == "stream_malformed"
    files[1].write_bytes(b"not a stream at all, but long enough")
    assert code_of(lambda: verify_files(files)) == "not_a_stream"


def test_the_rest_of_a_stream_stands_for_nothing(pool: ramet.Pool, tmp_path: Path) -> None:
    files = backup(pool, tmp_path, random.Random(4), 1)
    with ramet.open(tmp_path / "remote", create=True) as remote:
        code_of(lambda: take_in(remote, files[0].read_bytes()[:-10]))
        rest = keep(tmp_path, "rest", stream_of(pool, ["db@1"], resume=token_of(remote)))
    assert code_of(lambda: verify_files([rest])) == "stream_partial"


def test_a_root_that_does_not_follow_from_the_bytes_is_told(tmp_path: Path) -> None:
    stream = made_up(item_of(0, 4 * BLOCK), root_of_image(bytes(4 * BLOCK)))
    path = keep(tmp_path, "odd", stream)
    with pytest.raises(CorruptError, match=str(path)) as caught:
        verify_files([path])
    assert caught.value.code == "root_differs"
