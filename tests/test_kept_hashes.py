"""Roots from kept hashes: what a send costs, and what a hash that is damaged or wrong does.

The files they are kept in are described in docs/internals/format.md, "Hash files".
"""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import ramet
from blake3_reference import root_of_image
from pool_checks import assert_clean
from pool_forge import seal, word
from ramet.errors import CorruptError
from streams import code_of, stream_of, take_in

MIB = 2**20
PAGE_BYTES = 4096
HASH_BYTES = 32
PAGE_HEADER_BYTES = 32


class Sites(NamedTuple):
    """Two pools, of which the second has what the first sent."""

    here: Path
    there: Path


def write_and_send(pool: ramet.Pool, there: Path, number: int) -> str:
    """Change a block, send what changed, and give the root."""
    pool.volume("db").write(number * 64 << 10, bytes([number]) * 4096)
    snapshot = pool.volume("db").snapshot(f"db@{number}")
    bases = [f"db@{number - 1}"] if number > 1 else []
    stream = stream_of(pool, [snapshot.name], bases)
    with ramet.open(there) as other:
        return take_in(other, stream)[0].root


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    both = Sites(tmp_path / "here", tmp_path / "there")
    ramet.open(both.there, create=True, segment_size="1MiB").close()
    with ramet.open(both.here, create=True, segment_size="1MiB") as pool:
        pool.create_volume("db", 3 * MIB).write(0, random.Random(1).randbytes(3 * MIB))
        write_and_send(pool, both.there, 1)
    yield both
    assert_clean(both.here)
    assert_clean(both.there)


def hash_files(pool: Path) -> list[Path]:
    return sorted((pool / "hashes").glob("*.hsh"))


def forge_hashes(pool: Path) -> int:
    """Turn a bit of every hash that is kept, with every checksum right."""
    forged = 0
    for path in hash_files(pool):
        kinds = [f"segments/{path.stem}.seg", f"nodes/{path.stem}.map"]
        beside = next(pool / it for it in kinds if (pool / it).exists())
        nonce = word(beside.read_bytes(), 64)
        content = bytearray(path.read_bytes())
        for start in range(0, len(content), PAGE_BYTES):
            page = content[start : start + PAGE_BYTES]
            for at in range(PAGE_HEADER_BYTES, PAGE_BYTES, HASH_BYTES):
                if any(page[at : at + HASH_BYTES]):
                    page[at] ^= 1
                    forged += 1
            seal(page, 12, nonce, start // PAGE_BYTES)
            content[start : start + PAGE_BYTES] = page
        path.write_bytes(content)
    return forged


def damage_last_block(pool: Path) -> None:
    """Flip a bit of a block that no later write of a test touches."""
    with ramet.open(pool, read_only=True) as opened:
        needle = opened.get("db@1").read(3 * MIB - 4096, 4096)
    for path in sorted((pool / "segments").iterdir()):
        content = bytearray(path.read_bytes())
        if (at := content.find(needle)) >= 0:
            content[at] ^= 1
            path.write_bytes(content)


def test_what_did_not_change_is_not_read_again_for_a_root(sites: Sites) -> None:
    assert hash_files(sites.here)
    assert hash_files(sites.there)
    with ramet.open(sites.here) as pool:
        image = bytearray(pool.volume("db").read(0, 3 * MIB))
    image[2 * 64 << 10 : (2 * 64 << 10) + 4096] = bytes([2]) * 4096
    kept = {path: path.read_bytes() for path in (sites.here / "segments").iterdir()}
    damage_last_block(sites.here)
    with ramet.open(sites.here) as pool:
        root = write_and_send(pool, sites.there, 2)
        assert root == root_of_image(bytes(image))
        assert pool.stats()["hashes_bytes"] > 0
        with pytest.raises(CorruptError) as caught:
            pool.verify("db@2")  # It reads what is stored.
        assert caught.value.code == "block_checksum"
    for path, content in kept.items():
        path.write_bytes(content)
    with ramet.open(sites.there) as pool:
        assert pool.verify("db@2").root == root


def test_a_wrong_hash_at_the_receiver_costs_a_look_at_what_is_stored(sites: Sites) -> None:
    assert forge_hashes(sites.there) > 700
    with ramet.open(sites.here) as pool:
        root = write_and_send(pool, sites.there, 2)
        assert pool.verify("db@2").root == root
    assert not hash_files(sites.there)
    with ramet.open(sites.there) as pool:
        assert pool.verify("db@2").root == root


def test_a_wrong_hash_at_the_sender_is_refused_and_found_by_verify(sites: Sites) -> None:
    assert forge_hashes(sites.here) > 700
    with ramet.open(sites.here) as pool:
        assert code_of(lambda: write_and_send(pool, sites.there, 2)) == "received_differs"
        assert code_of(lambda: pool.verify("db@2")) == "root_differs"
        assert not hash_files(sites.here)
        pool.volume("db").snapshot("db@3")
        stream = stream_of(pool, ["db@3"], ["db@1"])
        with ramet.open(sites.there) as other:
            assert [it.name for it in other.objects()] == ["db@1"]
            root = take_in(other, stream)[0].root
        assert pool.verify("db@3").root == root


@pytest.mark.parametrize("how", ["removed", "garbage", "empty", "older", "of another pool"])
def test_hash_files_are_a_cache(sites: Sites, tmp_path: Path, how: str) -> None:
    older = {path.name: path.read_bytes() for path in hash_files(sites.here)}
    with ramet.open(sites.here) as pool:
        write_and_send(pool, sites.there, 2)
    other = tmp_path / "other"
    with ramet.open(other, create=True, segment_size="1MiB") as pool:
        pool.create_volume("db", 3 * MIB).write(0, random.Random(2).randbytes(3 * MIB))
        pool.volume("db").snapshot("db@1")
        stream_of(pool, ["db@1"])
    strange = {path.name: path.read_bytes() for path in hash_files(other)}
    changed = 0
    for path in hash_files(sites.here):
        content = path.read_bytes()
        new = {
            "removed": b"",
            "garbage": bytes(byte ^ 0x55 for byte in content),
            "empty": b"",
            "older": older.get(path.name, b""),
            "of another pool": strange.get(path.name, b""),
        }[how]
        changed += new != content
        path.write_bytes(new)
    assert changed > 0
    if how == "removed":
        shutil.rmtree(sites.here / "hashes")
    (sites.there / "hashes" / "notes.txt").write_text("of somebody")
    with ramet.open(sites.here) as pool:
        root = write_and_send(pool, sites.there, 3)
        assert pool.verify("db@3").root == root
    assert (sites.there / "hashes" / "notes.txt").exists()


def test_a_pool_open_for_reading_only_sends_and_keeps_nothing(sites: Sites) -> None:
    shutil.rmtree(sites.here / "hashes")
    with ramet.open(sites.here, read_only=True) as pool:
        assert stream_of(pool, ["db@1"])
    assert not (sites.here / "hashes").exists()
