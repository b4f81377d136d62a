"""The root hash of a snapshot is a function of its size and bytes, and is what its page says.

Held against a BLAKE3 and a tree of their own, in blake3_reference.py.
"""

import json
import random
from pathlib import Path

import pytest

import ramet as product
from blake3_reference import blake3, root_hash, root_of_image
from ramet.errors import CorruptError, InvalidError, NotFoundError
from ramet.pool import _core
from serving import make_pool, ramet, run_ramet, serving

MIB = 2**20
EMPTY_HASH = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_the_reference_and_the_core_hash_alike() -> None:
    assert blake3(b"").hex() == EMPTY_HASH  # As published by the authors of BLAKE3.
    content = bytes(at % 251 for at in range(9000))
    for length in (0, 1, 63, 64, 65, 256, 1023, 1024, 1025, 2048, 3073, 4096, 8193, 9000):
        hashed = _core.StreamHash()
        hashed.update(content[: length // 2])
        hashed.update(content[length // 2 : length])
        assert hashed.digest() == blake3(content[:length]), length


@pytest.mark.random
def test_roots_are_those_of_the_reference(pool: product.Pool, randomness: random.Random) -> None:
    for number in range(6):
        # Never a power of anything, and mostly with a last block that is not whole.
        size = 512 * randomness.randrange(1, 700)
        image = bytearray(size)
        volume = pool.create_volume(f"v{number}", size)
        for _ in range(randomness.randrange(7)):
            at = randomness.randrange(size)
            length = min(randomness.randrange(1, 20_000), size - at)
            fill = bytes([randomness.choice((0, 0, 1, 255))]) * length
            if randomness.random() < 0.3:
                volume.trim(at, length)
                first, end = -(-at // 4096) * 4096, (at + length) // 4096 * 4096
                image[at : at + length] = volume.read(at, length)
                assert not any(image[first:end])
            else:
                volume.write(at, fill)
                image[at : at + length] = fill
        assert pool.verify(volume.snapshot()).root == root_of_image(bytes(image))


def test_what_was_written_how_does_not_count(pool: product.Pool) -> None:
    size = 3 * MIB + 512
    one, other = pool.create_volume("one", size), pool.create_volume("other", size)
    one.write(0, b"a" * 10_000)
    one.write(MIB, bytes(MIB))  # Zeros that are written, and take space.
    one.write(2 * MIB, b"b" * 4096)
    one.trim(2 * MIB, 4096)
    for at in reversed(range(0, 10_000, 100)):
        other.write(at, b"a" * 100)
    roots = {pool.verify(it.snapshot()).root for it in (one, other)}
    clone = pool.clone("one@1", "clone")[0]
    assert roots == {pool.verify(clone.snapshot()).root}
    clone.write(size - 1, b"c")
    assert pool.verify(clone.snapshot()).root not in roots
    longer = pool.clone("one@1", "longer", size=size + 512)[0]
    assert pool.verify(longer.snapshot()).root not in roots


def test_sixty_four_tebibytes_cost_what_is_mapped(pool: product.Pool) -> None:
    volume = pool.create_volume("big", "64TiB")
    parts = {0: b"first", 2**45 + 5000: b"middle", 2**46 - 4: b"last"}
    for offset, part in parts.items():
        volume.write(offset, part)
    looked: list[tuple[int, int]] = []
    verified = pool.verify(volume.snapshot(), progress=lambda *it: looked.append(it))
    assert verified.root == root_hash(2**46, parts)
    assert looked[-1] == (2**46, 2**46)
    assert len(looked) < 10
    largest = pool.create_volume("largest", "256TiB")
    assert pool.verify(largest.snapshot()).root == root_hash(2**48, {})


def test_a_root_is_kept_with_the_snapshot_and_with_no_clone(
    pool: product.Pool, pool_path: Path
) -> None:
    volume = pool.create_volume("db", MIB)
    snapshot = volume.snapshot("db@1")
    snapshot.tag({"env": "prod"})
    assert snapshot.record().root is None
    root = pool.verify(snapshot).root
    snapshot.tag({"team": "a"}, remove=["env"])
    assert snapshot.clone("clone").record().root is None
    pool.close()
    with product.open(pool_path, read_only=True) as again:
        record = again.record("db@1")
        assert (record.root, dict(record.tags)) == (root, {"team": "a"})
        assert again.verify("db@1").root == root


def test_a_kept_root_that_does_not_hold_is_an_error(pool: product.Pool) -> None:
    snapshot = pool.create_volume("db", MIB).snapshot("db@1")
    pool._core.set_attributes([snapshot.uuid], [json.dumps({"root": "00" * 32}).encode()])
    with pytest.raises(CorruptError) as caught:
        pool.verify(snapshot)
    assert caught.value.code == "root_differs"
    assert pool.record(snapshot).root == "00" * 32


def test_only_snapshots_have_a_root(pool: product.Pool) -> None:
    pool.create_volume("db", MIB)
    with pytest.raises(InvalidError) as caught:
        pool.verify("db")
    assert caught.value.code == "not_a_snapshot"
    with pytest.raises(NotFoundError):
        pool.verify("absent")


def test_a_damaged_block_is_no_root(pool: product.Pool, pool_path: Path) -> None:
    volume = pool.create_volume("db", MIB)
    volume.write(0, b"needle" * 1000)
    snapshot = volume.snapshot()
    pool.close()
    for path in sorted((pool_path / "segments").iterdir()):
        content = path.read_bytes()
        at = content.find(b"needleneedle")
        if at >= 0:
            path.write_bytes(content[:at] + b"N" + content[at + 1 :])
    with product.open(pool_path) as again:
        with pytest.raises(CorruptError) as caught:
            again.verify(snapshot.uuid)
        assert caught.value.code == "block_checksum"
        assert again.record(snapshot.uuid).root is None


def test_a_hasher_refuses_what_has_no_order() -> None:
    hasher = _core.RootHasher(8192)
    hasher.add(1, b"x")
    for first, data in ((1, b"x"), (0, b"x"), (2, b"x"), (2**64 - 1, b"xx")):
        with pytest.raises(InvalidError) as caught:
            hasher.add(first, data)
        assert caught.value.code == "hash_order"
    hasher.finish()
    with pytest.raises(InvalidError):
        hasher.finish()
    with pytest.raises(InvalidError):
        _core.RootHasher(2**48 + 1)


@pytest.mark.slow
def test_commands_print_roots_with_and_without_a_service(pool_path: Path) -> None:
    make_pool(pool_path)
    ramet("-p", pool_path, "volume", "create", "db", "--size", "1MiB")
    ramet("-p", pool_path, "snapshot", "create", "db", "--name", "db@1")
    root = root_hash(MIB, {})
    assert ramet("-p", pool_path, "verify", "db@1") == f"{root}  db@1\n"
    with serving(pool_path):
        told = json.loads(ramet("-p", pool_path, "verify", "db@1", "--json"))
        assert [it["root"] for it in told] == [root]
        assert f"root:      {root}" in ramet("-p", pool_path, "snapshot", "show", "db@1")
        assert "root:" not in ramet("-p", pool_path, "volume", "show", "db")
        failed = run_ramet("-p", pool_path, "verify", "absent")
        assert failed.returncode == NotFoundError.exit_code
