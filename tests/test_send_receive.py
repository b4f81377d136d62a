"""Snapshots sent from one pool and received in another are the same there; anything that goes wrong
leaves both as they were, and the next run goes on.
"""

import io
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import pytest
from msgspec.structs import replace

import nbd_client
import ramet
from blake3_reference import root_of_image
from pool_checks import assert_clean
from ramet.errors import BusyError, FullError, NotFoundError, ReadOnlyError
from ramet.pool.transfers import Incoming
from ramet.replication import abandon, incomplete, position, receive, send
from ramet.replication.stream import Run, StreamReader, StreamWriter
from ramet.tags import ATTRIBUTES_BYTES_MAX
from streams import code_of, listing, records_of, stream_of, take_in, token_of
from test_stream import header_of, item_of

KIB, MIB = 1024, 2**20
BLOCK = 4096


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[ramet.Pool]:
    """The other side: empty, with segments of another size."""
    with ramet.open(tmp_path / "remote", create=True, segment_size="2MiB") as opened:
        yield opened


def fill(volume: ramet.Volume, seed: int, count: int = 30) -> None:
    """Write here and there."""
    drawn = random.Random(seed)
    for _ in range(count):
        at = drawn.randrange(volume.size_bytes - 9000)
        volume.write(at, drawn.randbytes(drawn.randrange(1, 9000)))


def content(pool: ramet.Pool, name: str) -> bytes:
    found = pool.get(name)
    return found.read(0, found.size_bytes)


def chain(pool: ramet.Pool, size: int = MIB + 512) -> ramet.Volume:
    """A volume with snapshots db@1 to db@3, of three sizes."""
    volume = pool.create_volume("db", size)
    fill(volume, 1)
    volume.snapshot("db@1")
    fill(volume, 2, 5)
    volume.trim(0, 64 * KIB)
    volume.resize(size - 100 * KIB, shrink=True)
    volume.snapshot("db@2")
    volume.resize(2 * size)
    volume.write(2 * size - 100, b"end" * 30)
    volume.snapshot("db@3")
    return volume


def test_a_snapshot_is_the_same_on_the_other_side(pool: ramet.Pool, remote: ramet.Pool) -> None:
    chain(pool)
    pool.tag("db@1", {"env": "prod", "note": "äß"})
    received = take_in(remote, stream_of(pool, ["db@1"]))
    here, there = pool.record("db@1"), remote.record("db@1")
    assert there == here._replace(parent=None)
    assert here.root == received[0].root == root_of_image(content(pool, "db@1"))
    assert content(remote, "db@1") == content(pool, "db@1")
    assert remote.verify("db@1").root == here.root
    with pytest.raises(ReadOnlyError):
        remote.get("db@1").write(0, b"x")


@pytest.mark.parametrize("zstd", [False, True])
def test_differences_make_the_next_snapshot(
    pool: ramet.Pool, remote: ramet.Pool, tmp_path: Path, zstd: bool
) -> None:
    chain(pool)
    whole = stream_of(pool, ["db@1"], zstd=zstd)
    take_in(remote, whole)
    for before, after in (("db@1", "db@2"), ("db@2", "db@3")):
        stream = stream_of(pool, [after], [before], zstd=zstd)
        assert len(stream) < len(whole)
        take_in(remote, stream)
        assert content(remote, after) == content(pool, after)
        assert remote.record(after).parent == remote.record(before).uuid
    # In any direction, and between any two.
    remote.delete(["db@1", "db@2"])
    take_in(remote, stream_of(pool, ["db@1"], ["db@3"], zstd=zstd))
    assert content(remote, "db@1") == content(pool, "db@1")
    clone = remote.clone("db@3", "live")[0]
    clone.write(5, b"changed there")
    clone.snapshot("live@1")
    take_in(pool, stream_of(remote, ["live@1"], ["db@3"]))
    assert content(pool, "live@1") == content(remote, "live@1")
    remote.close()
    pool.close()
    for path in (Path(pool.path), Path(remote.path)):
        assert_clean(path)


def test_what_is_shared_with_the_base_takes_no_space(pool: ramet.Pool, remote: ramet.Pool) -> None:
    volume = chain(pool)
    take_in(remote, stream_of(pool, ["db@3"]))
    volume.write(0, b"x")
    volume.snapshot("db@4")
    take_in(remote, stream_of(pool, ["db@4"], ["db@3"]))
    assert remote.space("db@4").exclusive_bytes == BLOCK


@pytest.mark.slow
def test_bytes_on_the_wire_follow_the_change(pool: ramet.Pool) -> None:
    volume = pool.create_volume("db", "64TiB")
    for at in range(0, 64 * MIB, MIB):
        volume.write(at, bytes([at // MIB + 1]) * MIB)
    volume.snapshot("db@1")
    changed = 0
    for at in range(BLOCK, 64 * MIB, 96 * KIB):
        volume.write(at, b"x" * BLOCK)
        changed += BLOCK
    volume.snapshot("db@2")
    assert len(stream_of(pool, ["db@2"], ["db@1"])) <= 1.05 * changed + KIB
    volume.trim(0, 2**46)
    volume.snapshot("db@3")
    volume.snapshot("db@4")
    assert len(stream_of(pool, ["db@3"], ["db@2"])) <= 2 * KIB, "a trim travels as such"
    assert len(stream_of(pool, ["db@4"], ["db@3"])) <= KIB


def group(pool: ramet.Pool, suffix: str) -> list[str]:
    names = [f"v{number}{suffix}" for number in range(5)]
    pool.snapshot([f"v{number}" for number in range(5)], name=names)
    return names


def test_a_group_appears_at_once_or_not_at_all(pool: ramet.Pool, remote: ramet.Pool) -> None:
    for number, volume in enumerate(pool.create_volumes("v{n}", "1MiB", count=5)):
        volume.rename(f"v{number}")
        fill(volume, number, 3 * number)
    one = group(pool, "@1")
    stream = stream_of(pool, one)
    parts = records_of(stream)
    for count in range(1, len(parts)):
        assert code_of(lambda it=count: take_in(remote, b"".join(parts[:it]))) == "stream_cut"
        assert remote.objects() == []
    assert remote.stats()["receiving_count"] == 5
    take_in(remote, stream_of(pool, one, resume=token_of(remote)))
    assert {it.batch for it in remote.objects()} == {pool.record(one[0]).batch}
    fill(pool.volume("v3"), 77)
    two = group(pool, "@2")
    take_in(remote, stream_of(pool, two, one))
    for name in [*one, *two]:
        assert content(remote, name) == content(pool, name)


def test_what_was_proved_stays_so_when_it_is_told_again(
    pool: ramet.Pool, remote: ramet.Pool
) -> None:
    """A stream from the start that was cut in its first snapshot took the root back of what had
    been proved before; the rest began behind it, and it was admitted without a root.
    """
    chain(pool)
    stream = stream_of(pool, ["db@1", "db@3"])
    parts = records_of(stream)
    (second,) = [at for at, part in enumerate(parts) if part[0] == 2 and at > 2]
    assert code_of(lambda: take_in(remote, b"".join(parts[: second + 1]))) == "stream_cut"
    token = token_of(remote)
    assert token.endswith("-1-0")
    assert code_of(lambda: take_in(remote, b"".join(parts[:4]))) == "stream_cut"
    assert token_of(remote) == token
    take_in(remote, stream_of(pool, ["db@1", "db@3"], resume=token))
    for name in ("db@1", "db@3"):
        assert remote.record(name).root == pool.record(name).root
        assert remote.verify(name).root == root_of_image(content(pool, name))


@pytest.mark.slow
def test_a_cut_stream_is_resumed_where_it_was_cut(pool: ramet.Pool, tmp_path: Path) -> None:
    """At every record, with the pools closed and opened in between."""
    volume = pool.create_volume("db", 5 * MIB)
    volume.write(0, random.Random(3).randbytes(5 * MIB))
    volume.snapshot("db@1")
    stream = stream_of(pool, ["db@1"])
    parts = records_of(stream)
    assert len(parts) == 2 + 1 + 5 + 2
    for count in range(2, len(parts)):
        path = tmp_path / f"remote-{count}"
        with ramet.open(path, create=True, segment_size="1MiB") as remote:
            assert code_of(lambda it=remote, c=count: take_in(it, b"".join(parts[:c])))
        with ramet.open(path) as remote:
            token = token_of(remote)
            assert bool(token) == (count > 2), "nothing arrived before the first begin"
            rest = stream_of(pool, ["db@1"], resume=token)
            arrived = sum(len(it) for it in parts[:count])
            assert len(rest) <= len(stream) - arrived + 2 * KIB, "what arrived is not sent again"
            take_in(remote, rest)
            assert content(remote, "db@1") == content(pool, "db@1")
            assert (token_of(remote), incomplete(remote)) == ("", [])
        assert_clean(path)


def test_a_stream_from_the_start_writes_nothing_twice(pool: ramet.Pool, remote: ramet.Pool) -> None:
    volume = pool.create_volume("db", 8 * MIB)
    volume.write(0, random.Random(3).randbytes(8 * MIB))
    volume.snapshot("db@1")
    stream = stream_of(pool, ["db@1"])
    code_of(lambda: take_in(remote, stream[: 7 * MIB]))
    before = int(remote.stats()["written_bytes"])
    token = token_of(remote)
    code_of(lambda: take_in(remote, stream[: 2 * MIB]))
    assert token_of(remote) == token, "a position never goes back"
    take_in(remote, stream)
    remote.flush()
    assert int(remote.stats()["written_bytes"]) - before < 4 * MIB
    assert content(remote, "db@1") == content(pool, "db@1")


def test_a_damaged_stream_changes_nothing_and_is_resumed(
    pool: ramet.Pool, remote: ramet.Pool
) -> None:
    chain(pool, 3 * MIB)
    take_in(remote, stream_of(pool, ["db@1"]))
    before, sender_before = listing(remote), listing(pool)
    stream = bytearray(stream_of(pool, ["db@3"], ["db@1"]))
    stream[len(stream) // 2] ^= 4
    assert code_of(lambda: take_in(remote, bytes(stream))) == "stream_damaged"
    assert listing(remote) == before
    take_in(remote, stream_of(pool, ["db@3"], ["db@1"], resume=token_of(remote)))
    assert content(remote, "db@3") == content(pool, "db@3")
    assert listing(pool) == sender_before


def test_the_base_is_proved_before_anything_is_changed(
    pool: ramet.Pool, remote: ramet.Pool
) -> None:
    chain(pool)
    stream = stream_of(pool, ["db@2"], ["db@1"])

    def begins_only(length: int) -> bytes:
        assert source.tell() < len(records_of(stream)[1]) + 16, "data was asked for"
        return source.read(length)

    source = io.BytesIO(stream)
    assert code_of(lambda: receive(remote, begins_only)) == "base_missing"
    with pytest.raises(NotFoundError, match="'db@2' is told as what differs from 'db@1'"):
        take_in(remote, stream)
    take_in(remote, stream_of(pool, ["db@1"]))
    before = listing(remote)
    reader = StreamReader(io.BytesIO(stream).read)
    item = reader.header.snapshots[0]
    assert item.base is not None
    forged = replace(item, base=replace(item.base, root="0" * 64))
    other = StreamWriter().header(replace(reader.header, snapshots=[forged]))
    assert code_of(lambda: take_in(remote, other)) == "base_differs"
    assert (listing(remote), remote.stats()["receiving_count"]) == (before, 0)


def test_what_is_here_already_is_not_changed(pool: ramet.Pool, remote: ramet.Pool) -> None:
    chain(pool)
    stream, both = stream_of(pool, ["db@1"]), stream_of(pool, ["db@1", "db@2"])
    take_in(remote, stream)
    before = listing(remote)
    assert [it.is_new for it in take_in(remote, stream)] == [False]
    # A pool may send to itself.
    assert [it.is_new for it in take_in(pool, stream)] == [False]
    assert code_of(lambda: take_in(remote, both)) == "partly_here"
    assert code_of(lambda: take_in(remote, stream[:-1])) == "stream_cut"
    remote.rename("db@1", "kept")
    assert [it.name for it in take_in(remote, stream)] == ["kept"]
    remote.rename("kept", "db@1")
    assert listing(remote) == before
    remote.delete("db@1")
    take_in(remote, both)
    assert [it.name for it in remote.snapshots()] == ["db@1", "db@2"]


def test_the_same_uuid_with_other_bytes_is_told(pool: ramet.Pool, remote: ramet.Pool) -> None:
    item = item_of(0, 8 * BLOCK)
    root = root_of_image(bytes(8 * BLOCK))

    def stream(data: bytes, root: str) -> bytes:
        writer = StreamWriter()
        parts = [writer.header(header_of(item)), writer.begin(0, 0)]
        parts += [writer.changes(8, [Run(0, 1, True)], data), writer.done(0, root), writer.end()]
        return b"".join(parts)

    bad = stream(b"x" * BLOCK, root)
    assert code_of(lambda: take_in(remote, bad)) == "received_differs"
    assert (remote.objects(), incomplete(remote)) == ([], [])
    take_in(remote, stream(bytes(BLOCK), root))
    other = root_of_image(b"x" * BLOCK + bytes(7 * BLOCK))
    assert code_of(lambda: take_in(remote, stream(b"x" * BLOCK, other))) == "snapshot_differs"
    assert content(remote, "s0") == bytes(8 * BLOCK)


def test_a_volume_with_the_uuid_is_told(pool: ramet.Pool, tmp_path: Path) -> None:
    """A pool was copied, and a volume frozen in one of both: one UUID, two things."""
    chain(pool)
    pool.close()
    shutil.copytree(pool.path, tmp_path / "copy")
    with ramet.open(pool.path) as one, ramet.open(tmp_path / "copy") as copy:
        one.freeze("db")
        stream = stream_of(one, ["db"])
        assert code_of(lambda: take_in(copy, stream)) == "uuid_taken"
        assert copy.record("db").kind == "volume"


def test_a_taken_name_is_told_and_another_can_be_given(
    pool: ramet.Pool, remote: ramet.Pool
) -> None:
    chain(pool)
    stream = stream_of(pool, ["db@1"])
    other = remote.create_volume("db", MIB).snapshot("db@1")
    assert code_of(lambda: take_in(remote, stream)) == "name_taken"
    assert remote.get("db@1").uuid == other.uuid
    assert code_of(lambda: take_in(remote, stream, "a/b")) == "name_character"
    assert incomplete(remote) == []
    source = io.BytesIO(stream)

    def overtaken(length: int) -> bytes:
        if source.tell() > len(stream) // 2 and "late" not in {it.name for it in remote.objects()}:
            remote.create_volume("late", MIB)
        return source.read(min(length, 4096))

    assert code_of(lambda: receive(remote, overtaken, name="late")) == "name_taken"
    rest = stream_of(pool, ["db@1"], resume=token_of(remote))
    assert len(rest) < 2 * KIB, "all of it arrived"
    assert [it.name for it in take_in(remote, rest, "site-a.{name}")] == ["site-a.db@1"]
    assert content(remote, "site-a.db@1") == content(pool, "db@1")
    both = stream_of(pool, ["db@2", "db@3"])
    assert code_of(lambda: take_in(remote, both, "one")) == "name_given_twice"


def test_a_full_pool_is_told_and_receives_the_rest_later(
    pool: ramet.Pool, remote: ramet.Pool
) -> None:
    volume = pool.create_volume("db", 12 * MIB)
    volume.write(0, random.Random(5).randbytes(12 * MIB))
    volume.snapshot("db@1")
    remote.set_limit(int(remote.stats()["taken_bytes"]) + 6 * MIB)
    before = listing(remote)
    stream = stream_of(pool, ["db@1"])
    with pytest.raises(FullError):
        take_in(remote, stream)
    assert listing(remote) == before
    remote.set_limit(None)
    take_in(remote, stream_of(pool, ["db@1"], resume=token_of(remote)))
    assert content(remote, "db@1") == content(pool, "db@1")


def test_what_is_being_received_is_seen_by_nobody(
    pool: ramet.Pool, remote: ramet.Pool, tmp_path: Path
) -> None:
    chain(pool)
    take_in(remote, stream_of(pool, ["db@1"]))
    before = dict(remote.stats())
    stream = stream_of(pool, ["db@2"], ["db@1"])
    code_of(lambda: take_in(remote, stream[: len(stream) // 2]))
    uuid = pool.record("db@2").uuid
    assert [it.name for it in remote.objects()] == ["db@1"]
    assert remote.stats()["receiving_count"] == 1
    for key in ("volumes_count", "snapshots_count"):
        assert remote.stats()[key] == before[key]
    for call in (remote.get, remote.delete, remote.freeze, remote.verify, remote.space):
        assert code_of(lambda it=call: it(uuid)) == "object_not_found"  # type: ignore[operator]
    assert code_of(lambda: remote.clone(uuid, "x")) == "object_not_found"
    with remote.serve_nbd(tmp_path / "nbd.sock"), pytest.raises(nbd_client.NbdRefusedError):
        nbd_client.connect(tmp_path / "nbd.sock", uuid)
    remote.create_volume("db@2".replace("@", "-"), MIB)
    # The base may go meanwhile: what is hidden has a map of its own.
    remote.delete("db@1")
    remote.close()
    assert_clean(Path(remote.path))
    with ramet.open(remote.path) as again:
        rest = stream_of(pool, ["db@2"], ["db@1"], resume=token_of(again))
        take_in(again, rest)
        assert content(again, "db@2") == content(pool, "db@2")


def test_what_arrived_is_given_up_on_demand(pool: ramet.Pool, remote: ramet.Pool) -> None:
    chain(pool, 4 * MIB)
    stream, pair = stream_of(pool, ["db@3"]), stream_of(pool, ["db@1", "db@2"])
    code_of(lambda: take_in(remote, stream[:-100]))
    code_of(lambda: take_in(remote, pair[: len(pair) // 2]))
    parts = incomplete(remote)
    assert code_of(lambda: position(parts)) == "transfer_not_given"
    (last,) = [it for it in parts if it.name == "db@3"]
    assert position(parts, "db@3") == f"{last.transfer}-0-{last.block}"
    assert code_of(lambda: position(parts, "absent")) == "not_receiving"
    assert code_of(lambda: abandon(remote, "absent")) == "not_receiving"
    assert {it.name for it in abandon(remote, "db@1")} <= {"db@1", "db@2"}
    assert [it.name for it in incomplete(remote)] == ["db@3"]
    abandon(remote, pool.record("db@3").uuid)
    assert remote.stats()["receiving_count"] == 0
    remote.reclaim(everything=True)
    assert remote.stats()["living_bytes"] == 0
    take_in(remote, stream)


def test_a_crash_before_anything_was_noted_is_no_obstacle(
    pool: ramet.Pool, remote: ramet.Pool
) -> None:
    """A hidden volume is made before it has its size and its first note: what is left of it says
    nothing, and the next stream begins anew.
    """
    chain(pool)
    record = pool.record("db@1")
    left = Incoming(record.uuid, record.batch, None, 1, 4 * MIB, b"")
    remote.transfers.begin(left, None)
    assert [(it.transfer, it.uuid) for it in incomplete(remote)] == [("", record.uuid)]
    assert token_of(remote) == ""
    take_in(remote, stream_of(pool, ["db@1"]))
    assert remote.record("db@1") == pool.record("db@1")._replace(parent=None)
    remote.delete("db@1")
    remote.transfers.begin(left, None)
    assert [it.uuid for it in abandon(remote, record.uuid)] == [record.uuid]
    assert incomplete(remote) == []


def test_another_transfer_of_the_same_snapshot_is_told(
    pool: ramet.Pool, remote: ramet.Pool
) -> None:
    chain(pool)
    take_in(remote, stream_of(pool, ["db@1"]))
    whole, part = stream_of(pool, ["db@2"]), stream_of(pool, ["db@2"], ["db@1"])
    code_of(lambda: take_in(remote, part[:-50]))
    assert code_of(lambda: take_in(remote, whole)) == "receiving_otherwise"
    token = token_of(remote)
    assert code_of(lambda: stream_of(pool, ["db@2"], resume=token)) == "token_of_another_transfer"
    abandon(remote, "db@2")
    rest = stream_of(pool, ["db@2"], ["db@1"], resume=token)
    assert code_of(lambda: take_in(remote, rest)) == "resume_gap"
    take_in(remote, whole)


def test_one_transfer_is_received_once_at_a_time(pool: ramet.Pool, remote: ramet.Pool) -> None:
    chain(pool)
    stream = stream_of(pool, ["db@1"])
    source = io.BytesIO(stream)

    def interrupted(length: int) -> bytes:
        if source.tell() > len(stream) // 2:
            assert code_of(lambda: take_in(remote, stream)) == "receive_in_progress"
            assert code_of(lambda: abandon(remote, "db@1")) == "receive_in_progress"
        return source.read(length)

    receive(remote, interrupted)
    assert content(remote, "db@1") == content(pool, "db@1")


@pytest.mark.parametrize(
    ("snapshots", "bases", "code"),
    [
        (["db"], [], "not_a_snapshot"),
        (["db@2"], ["db"], "not_a_snapshot"),
        (["db@2"], ["db@2"], "base_is_itself"),
        (["db@1", "db@1"], [], "sent_twice"),
        (["db@1", "db@2"], ["db@3"], "bases_count"),
        ([], [], "send_count"),
        (["absent"], [], "object_not_found"),
    ],
)
def test_what_cannot_be_sent_is_refused(
    pool: ramet.Pool, snapshots: Sequence[str], bases: Sequence[str], code: str
) -> None:
    chain(pool)
    assert code_of(lambda: stream_of(pool, snapshots, bases)) == code
    assert code_of(lambda: stream_of(pool, ["db@1"], resume="x")) == "token_malformed"


def test_what_is_being_sent_cannot_be_deleted(pool: ramet.Pool) -> None:
    chain(pool)
    pieces = send(pool, ["db@2"], ["db@1"])
    next(pieces)
    for name in ("db@1", "db@2"):
        with pytest.raises(BusyError):
            pool.delete(name)
    pool.delete("db")
    pieces.close()
    pool.delete(["db@1", "db@2"])


def test_what_is_to_be_received_has_attributes_of_a_bounded_size(pool: ramet.Pool) -> None:
    """It was checked when they were changed, and not at the beginning."""
    incoming = Incoming(str(uuid4()), str(uuid4()), None, 0, 4096, bytes(ATTRIBUTES_BYTES_MAX + 1))
    assert code_of(lambda: pool.transfers.begin(incoming, None)) == "attributes_too_large"
    assert pool.transfers.hidden() == []
    pool.transfers.begin(incoming._replace(attributes=bytes(ATTRIBUTES_BYTES_MAX)), None)
    pool.transfers.abandon([incoming.uuid])


def test_a_pool_that_is_only_read_sends(pool: ramet.Pool, remote: ramet.Pool) -> None:
    chain(pool)
    pool.close()
    with ramet.open(pool.path, read_only=True) as reader:
        take_in(remote, stream_of(reader, ["db@1"]))
        stream = stream_of(reader, ["db@2"], ["db@1"])
        take_in(remote, stream)
        assert content(remote, "db@2") == content(reader, "db@2")
        writer = StreamWriter()
        begun = writer.header(header_of(item_of(0, 8 * BLOCK))) + writer.begin(0, 0)
        assert code_of(lambda: take_in(reader, begun)) == "pool_read_only"


def test_a_damaged_block_ends_the_stream_with_its_reason(
    pool: ramet.Pool, remote: ramet.Pool
) -> None:
    volume = pool.create_volume("db", 4 * MIB)
    volume.write(0, b"first" * 300_000)
    volume.write(3 * MIB, b"needle" * 1000)
    volume.snapshot("db@1")
    pool.close()
    for path in sorted((Path(pool.path) / "segments").iterdir()):
        held = path.read_bytes()
        at = held.find(b"needleneedle")
        if at >= 0:
            path.write_bytes(held[:at] + b"N" + held[at + 1 :])
    with ramet.open(pool.path) as damaged:
        sent: list[bytes] = []
        pieces = send(damaged, ["db@1"])
        assert code_of(lambda: sent.extend(it.content for it in pieces)) == "block_checksum"
        assert code_of(lambda: take_in(remote, b"".join(sent))) == "sender_failed"
        assert remote.objects() == []
        damaged.delete("db@1")


def test_many_small_snapshots_cost_a_sync_each_and_no_more(
    pool: ramet.Pool, remote: ramet.Pool
) -> None:
    """Each took one at the sender and three here: 1,000 volumes every minute were 4,000 syncs."""
    count = 40
    pool.create_volumes("vm-{n}", MIB, count=count)
    names = [it.name for it in pool.snapshot(all_volumes=True)]
    before = [site.stats()["syncs_count"] for site in (pool, remote)]
    take_in(remote, stream_of(pool, names))
    after = [site.stats()["syncs_count"] for site in (pool, remote)]
    assert after[0] - before[0] < count // 2
    assert count <= after[1] - before[1] < 2 * count
    assert {it.root for it in pool.objects() if it.kind == "snapshot"} == {
        it.root for it in remote.objects()
    }
