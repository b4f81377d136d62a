"""Lists say what is its own of each object, `show` says who shares the rest, and all agree."""

import json
from pathlib import Path

import pytest

import ramet
from ramet.records import Sharer, Sharing
from serving import run_ramet, serving

BLOCK_BYTES = 4096
MIB = 1024 * 1024


def make_family(pool: ramet.Pool) -> None:
    """A golden volume of 4 MiB, its snapshot, and clones of which one took more of its own."""
    golden = pool.create_volume("golden", "16MiB")
    golden.write(0, b"g" * 4 * MIB)
    golden.snapshot("base")
    pool.clone("base", "vm-{n}", count=3)
    pool.volume("vm-2").write(MIB, b"2" * MIB)
    pool.volume("vm-3").write(0, b"3" * 3 * MIB)
    pool.create_volume("other", "16MiB").write(0, b"o" * MIB)


SHARERS = [Sharer("golden", 4 * MIB), Sharer("vm-1", 4 * MIB)]
SHARERS += [Sharer("vm-2", 3 * MIB), Sharer("vm-3", MIB)]
EXCLUSIVE = {"vm-2": MIB, "vm-3": 3 * MIB, "other": MIB}


def test_the_pool_says_how_scattered_volumes_are(pool: ramet.Pool) -> None:
    pool.create_volume("a", "16MiB").write(0, b"a" * 2 * MIB)
    pool.volume("a").write(MIB, b"b" * BLOCK_BYTES)
    found = pool.sharing("a").fragments_per_mib
    assert found is not None
    assert found > 1
    assert pool.stats()["fragments_per_mib"] == found
    pool.volume("a").write(0, b"c" * BLOCK_BYTES)
    assert pool.stats()["fragments_per_mib"] == found, "it is looked at once a minute"


def test_a_list_agrees_with_each_object_by_itself(pool: ramet.Pool) -> None:
    make_family(pool)
    spaces = pool.spaces()
    assert set(spaces) == {record.uuid for record in pool.objects()}
    for record in pool.objects():
        space = spaces[record.uuid]
        assert space == pool.space(record.uuid)
        assert space.exclusive_bytes == EXCLUSIVE.get(record.name, 0) == pool.frees(record.name)
        assert space.sequence == pool.stats()["appended_sequence"]


def test_who_shares_most_comes_first(pool: ramet.Pool) -> None:
    make_family(pool)
    found = pool.sharing("base")
    assert (found.sharers, found.compared_count) == (SHARERS, 4)
    assert Sharing.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert pool.sharing("other").sharers == []
    # At most ten, however many there are.
    pool.clone("base", "more-{n}", count=20)
    found = pool.sharing("base")
    assert (len(found.sharers), found.compared_count) == (10, 24)


def test_a_volume_written_at_random_is_more_scattered(pool: ramet.Pool) -> None:
    volume = pool.create_volume("v", "4MiB")
    assert pool.sharing("v").fragments_per_mib is None
    volume.write(0, b"a" * MIB)
    # In one piece, or in two where a segment ends.
    assert pool.sharing("v").fragments_per_mib in (1, 2)
    # Every other block lies elsewhere now.
    for block in range(1, 256, 2):
        volume.write(block * BLOCK_BYTES, b"b" * BLOCK_BYTES)
    fragments = pool.sharing("v").fragments_per_mib
    assert fragments is not None
    assert 255 <= fragments <= 256


@pytest.mark.slow
def test_the_commands_show_it_beside_a_service_and_without(pool_path: Path) -> None:
    with ramet.open(pool_path, create=True) as pool:
        make_family(pool)
    alone = run_ramet("-p", pool_path, "volume", "list", "--space")
    with serving(pool_path):
        beside = run_ramet("-p", pool_path, "volume", "list", "--space")
        as_json = run_ramet("-p", pool_path, "volume", "list", "--space", "--json")
        plain = run_ramet("-p", pool_path, "volume", "list", "--json")
        show = run_ramet("-p", pool_path, "snapshot", "show", "base")
        show_json = run_ramet("-p", pool_path, "snapshot", "show", "base", "--json")
    for done in (alone, beside):
        lines = [line.split() for line in done.stdout.splitlines()]
        assert lines[0] == ["NAME", "SIZE", "MAPPED", "EXCLUSIVE", "SHARED", "AGE", "ATTACHED"]
        by_name = {line[0]: line for line in lines}
        assert by_name["vm-3"][3:9] == ["4", "MiB", "3", "MiB", "1", "MiB"]
    told = {item["name"]: item["space"] for item in json.loads(as_json.stdout)}
    assert {name: space["exclusive_bytes"] for name, space in told.items()} == {
        "golden": 0,
        "vm-1": 0,
        **EXCLUSIVE,
    }
    assert all("space" not in item for item in json.loads(plain.stdout))
    assert "with:      4 MiB shared with 'golden'" in show.stdout
    sharing = json.loads(show_json.stdout)["sharing"]
    assert [Sharer(**sharer) for sharer in sharing["sharers"]] == SHARERS
