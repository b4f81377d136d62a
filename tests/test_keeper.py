"""Policies are done: snapshots in one commit, commands around them, deletes by the rules only, and
remotes kept in step whatever happens to them.
"""

import json
import random
import stat
import sys
import threading
from pathlib import Path

import pytest

import ramet
from ramet.errors import InvalidError, NotFoundError, RametError, UnavailableError
from ramet.keeper import Keeper
from ramet.keeper.hooks import run_hook
from ramet.policies import POLICY_TAG

SECOND = 10**9
HOUR = 3600 * SECOND
MIB = 2**20


@pytest.fixture
def keeper(pool: ramet.Pool, pool_path: Path) -> Keeper:
    """A keeper over a pool with three volumes, two of which are databases."""
    pool.create_volumes(["db-1", "db-2", "web"], MIB)
    return Keeper(pool, pool_path)


def now_of(pool: ramet.Pool) -> int:
    """A moment ago: when the newest object was made."""
    return max(it.created_ns for it in pool.objects())


def set_policy(keeper: Keeper, **keys: object) -> None:
    base = {"every": "1h", "volumes": ["db-*"], "keep": {"last": 2}}
    keeper.change_rules("policy", "p", base | keys)


def names(pool: ramet.Pool, policy: str = "p") -> list[str]:
    return sorted(it.name for it in pool.objects() if it.tags.get(POLICY_TAG) == policy)


def test_a_run_is_one_instant_of_all_its_volumes(pool: ramet.Pool, keeper: Keeper) -> None:
    set_policy(keeper)
    [report] = keeper.step(now_of(pool))
    assert report.created == names(pool)
    assert [it.partition("@")[0] for it in report.created] == ["db-1", "db-2"]
    assert len({it.batch for it in pool.objects() if it.kind == "snapshot"}) == 1


def test_two_runs_within_a_second_are_two_snapshots(pool: ramet.Pool, keeper: Keeper) -> None:
    set_policy(keeper, keep="all")
    for _ in range(3):
        assert keeper.run(["p"])[0].error is None
    assert len(names(pool)) == 6


def test_it_runs_when_it_is_due_once_after_downtime(pool: ramet.Pool, keeper: Keeper) -> None:
    now = now_of(pool)
    # Half an hour away, whatever time it is: snapshots are dated by the engine's own clock.
    minute = (now // (60 * SECOND) + 30) % 60
    hourly = {"cron": f"{minute} * * * *", "volumes": ["db-*"], "keep": {"last": 2}}
    keeper.change_rules("policy", "p", hourly)
    assert [len(keeper.step(now + later * 60 * SECOND)) for later in (0, 1, 2)] == [1, 0, 0]
    assert len(keeper.step(now + 50 * HOUR)) == 1
    # The engine's own clock has not moved, so the run above is of now: it is due again.
    assert keeper.policies(now)[0].last_ns is not None


def test_only_what_the_policy_took_is_dropped(pool: ramet.Pool, keeper: Keeper) -> None:
    pool.set_trash_window("7d")
    pool.snapshot(all_volumes=True, name="{volume}@by-hand")
    taken = []
    for round_ in range(4):
        set_policy(keeper, name=f"{{volume}}@{{time}}-{round_}")
        taken.append(keeper.run(["p"])[0])
    assert [len(it.dropped) for it in taken] == [0, 0, 2, 2]
    assert names(pool) == sorted(taken[2].created + taken[3].created)
    assert {"db-1@by-hand", "web@by-hand"} <= {it.name for it in pool.objects()}
    assert pool.trash().objects == [], "the rule said how long it was wanted"


def test_what_is_attached_stays_until_it_is_not(pool: ramet.Pool, keeper: Keeper) -> None:
    set_policy(keeper, keep={"last": 1}, name="{volume}@{time}-{n}-a")
    first = keeper.run(["p"])[0].created
    set_policy(keeper, keep={"last": 1}, name="{volume}@{time}-{n}-b")
    with pool.transfers.attached([pool.record(first[0]).uuid]):
        report = keeper.run(["p"])[0]
        assert report.dropped == first[1:]
        assert report.error is None
        assert keeper.policies()[0].kept_count == 1
    set_policy(keeper, keep={"last": 1}, name="{volume}@{time}-{n}-c")
    assert first[0] in keeper.run(["p"])[0].dropped


def test_what_is_locked_stays_without_a_word(pool: ramet.Pool, keeper: Keeper) -> None:
    set_policy(keeper, keep={"last": 1}, name="{volume}@{time}-a")
    first = keeper.run(["p"])[0].created
    pool.lock(first[:1], "1d", mode="compliance")
    set_policy(keeper, keep={"last": 1}, name="{volume}@{time}-b")
    report = keeper.run(["p"])[0]
    assert (report.dropped, report.error) == (first[1:], None)
    assert keeper.policies()[0].kept_count == 1


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize("before", ["exit 0", "echo frozen is broken; exit 3", "sleep 600"])
def test_after_always_runs_and_a_failed_before_takes_no_snapshot(
    pool: ramet.Pool, keeper: Keeper, tmp_path: Path, before: str
) -> None:
    told = tmp_path / "told"
    set_policy(
        keeper,
        before=[script(tmp_path / "before", f'echo "$RAMET_POLICY" >> {told}; {before}')],
        after=[script(tmp_path / "after", f'echo "$RAMET_VOLUMES" >> {told}')],
        timeout="1s",
    )
    now = now_of(pool)
    [report] = keeper.step(now)
    assert told.read_text().split() == ["p", "db-1", "db-2"]
    if before == "exit 0":
        assert report.error is None
        assert len(names(pool)) == 2
        return
    assert names(pool) == []
    assert report.error is not None
    assert "hook_failed" in report.error
    assert ("frozen is broken" if "exit" in before else "longer than 1 s") in report.error
    assert keeper.policies(now)[0].error == report.error
    assert keeper.step(now + 59 * SECOND) == [], "it waits a minute"
    assert len(keeper.step(now + 60 * SECOND)) == 1
    assert keeper.step(now + 179 * SECOND) == [], "then twice as long"


def test_a_failed_after_keeps_the_snapshot_and_says_so(
    pool: ramet.Pool, keeper: Keeper, tmp_path: Path
) -> None:
    set_policy(keeper, after=[script(tmp_path / "after", "exit 1")])
    [report] = keeper.run(["p"])
    assert len(names(pool)) == 2
    assert "hook_failed" in str(report.error)


def test_a_command_ends_with_all_it_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    slow = script(tmp_path / "slow", f"sleep 600 & echo $! > {child}; wait")
    with pytest.raises(UnavailableError, match="longer"):
        run_hook("before", [slow], 1.0, {})
    state = Path(f"/proc/{child.read_text().strip()}/stat")
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] not in "ZX":
        threading.Event().wait(0.05)
    with pytest.raises(UnavailableError, match="hook_failed"):
        run_hook("before", [str(tmp_path / "absent")], 1.0, {})


def test_rules_survive_and_wrong_ones_change_nothing(
    pool: ramet.Pool, pool_path: Path, keeper: Keeper
) -> None:
    set_policy(keeper)
    text = keeper.rules_text()
    for wrong in ("[policy.x]", "x"):
        with pytest.raises(InvalidError):
            keeper.set_rules(wrong)
    with pytest.raises(InvalidError, match="rules_key"):
        set_policy(keeper, evry="1h")
    assert keeper.rules_text() == text
    assert Keeper(pool, pool_path).rules_text() == text
    (pool_path / "policies.toml").write_text("[policy")
    broken = Keeper(pool, pool_path)
    assert broken.step(now_of(pool)) == []
    for call in (broken.rules_text, broken.policies, broken.remotes, lambda: broken.plan(1)):
        with pytest.raises(InvalidError, match="rules_syntax"):
            call()
    broken.set_rules(text)
    assert len(broken.policies()) == 1
    with pytest.raises(NotFoundError, match="policy_not_found"):
        broken.run(["q"])


class Sites:
    """A pool with a policy that names a remote, which is another pool here."""

    def __init__(self, pool: ramet.Pool, here: Path, there: Path) -> None:
        self.pool, self.here, self.there = pool, here, there
        self.keeper = Keeper(pool, here)
        self.round = 0
        pool.create_volumes(["db-1", "db-2"], 4 * MIB)
        self.url = f"exec:{sys.executable} -m ramet -p {there}"
        self.set_remote()
        self.set_policy()

    def set_remote(self, **keys: object) -> None:
        self.keeper.change_rules("remote", "dr", {"url": self.url, **keys})

    def set_policy(self) -> None:
        """Each round has names of its own: several runs may be within one second."""
        self.round += 1
        self.keeper.change_rules(
            "policy",
            "p",
            {
                "every": "1h",
                "volumes": ["db-*"],
                "keep": {"last": 1},
                "remotes": ["dr"],
                "name": f"{{volume}}@{self.round}-{{time}}",
            },
        )

    def run(self, data: bytes = b"") -> list[str]:
        """Write, run the policy, and give what was created."""
        self.set_policy()
        if data:
            self.pool.volume("db-1").write(self.round * 65536, data)
        return self.keeper.run(["p"])[0].created

    def held(self) -> list[str]:
        return names(self.pool)

    def arrived(self) -> list[str]:
        with ramet.open(self.there) as pool:
            return sorted(it.name for it in pool.objects())

    def same(self, name: str) -> bool:
        with ramet.open(self.there) as pool:
            size = pool.record(name).size_bytes
            there = pool.get(name).read(0, size)
            return bytes(there) == bytes(self.pool.get(name).read(0, size))


@pytest.fixture
def sites(pool: ramet.Pool, pool_path: Path, tmp_path: Path) -> Sites:
    there = tmp_path / "there"
    ramet.open(there, create=True, segment_size="1MiB").close()
    return Sites(pool, pool_path, there)


def test_a_remote_is_kept_in_step_and_its_base_is_kept_here(sites: Sites) -> None:
    first = sites.run(b"one" * 1000)
    second = sites.run(b"two" * 1000)
    assert sites.held() == sorted(first + second), "nothing goes before the remote was reached"
    behind = sites.keeper.remotes()[0]
    assert behind.lag_count == 4
    assert behind.lag_bytes == 2 * 4096, "one block, then another"
    assert behind.lag_seconds > 0
    assert sites.keeper.replicate([]) == first + second
    assert sites.arrived() == sorted(first + second)
    in_step = sites.keeper.remotes()[0]
    assert (in_step.lag_count, in_step.lag_bytes, in_step.lag_seconds) == (0, 0, 0.0)
    third = sites.run(b"three")
    assert sites.held() == sorted(second + third), "the base of the next send stays"
    assert sites.keeper.replicate(["dr"]) == third
    assert sites.same(third[0])
    assert sites.arrived() == sorted(first + second + third), "a remote keeps what it wants"


def test_what_is_known_of_a_remote_survives_and_without_it_nothing_is_dropped(
    sites: Sites,
) -> None:
    first = sites.run(b"one")
    sites.keeper.replicate([])
    sites.keeper = Keeper(sites.pool, sites.here)
    second = sites.run(b"two")
    assert sites.keeper.remotes()[0].lag_count == 2
    sites.keeper.replicate([])
    (sites.here / "replication.json").unlink()
    sites.keeper = Keeper(sites.pool, sites.here)
    third = sites.run(b"three")
    assert sites.held() == sorted(first + second + third)
    sites.keeper.replicate([])
    fourth = sites.run(b"four")
    assert sites.held() == sorted(third + fourth)


def test_a_base_that_is_gone_there_is_found_out_and_another_is_taken(sites: Sites) -> None:
    first = sites.run(b"one")
    sites.keeper.replicate([])
    with ramet.open(sites.there) as there:
        there.delete(first)
    second = sites.run(b"two")
    with pytest.raises(NotFoundError, match="base_missing"):
        sites.keeper.replicate([])
    assert "base_missing" in str(sites.keeper.remotes()[0].error)
    sites.keeper.replicate([])
    assert sites.arrived() == sorted(first + second)


def test_a_clone_is_sent_as_what_differs_from_its_golden_image(sites: Sites) -> None:
    golden = sites.run(b"golden" * 10_000)
    sites.keeper.replicate([])
    sites.pool.clone(golden[0], "db-3").pop().write(2 * MIB, b"own")
    created = sites.run()
    assert sites.keeper.remotes()[0].lag_bytes == 4096
    sites.keeper.replicate([])
    assert sites.same(created[2])


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("exec:/nowhere/ramet", "remote_unreachable"),
        ("exec:sh -c 'echo Connection refused >&2; exit 255'", "remote_unreachable"),
        ("exec:sh -c 'echo motd'", "remote_answer"),
        ("exec:sh -c 'echo [1]'", "remote_answer"),
    ],
)
def test_a_remote_that_is_down_or_strange_is_an_error_and_snapshots_go_on(
    sites: Sites, url: str, code: str
) -> None:
    sites.keeper.change_rules("remote", "dr", {"url": url})
    sites.run(b"one")
    with pytest.raises(UnavailableError) as caught:
        sites.keeper.replicate([])
    assert caught.value.code == code
    assert "'dr'" in caught.value.text
    assert len(sites.run(b"two")) == 2


def test_a_remote_is_never_this_pool(sites: Sites) -> None:
    with pytest.raises(InvalidError, match="remote_is_itself"):
        sites.keeper.change_rules("remote", "dr", {"url": f"file://{sites.here}"})
    fake = json.dumps({"uuid": sites.pool.uuid})
    answers = script(sites.here.parent / "fake", f"[ $2 = stats ] && echo '{fake}' || echo '[]'")
    sites.keeper.change_rules("remote", "dr", {"url": f"exec:{answers}"})
    sites.run()
    with pytest.raises(InvalidError, match="remote_is_itself"):
        sites.keeper.replicate([])


@pytest.mark.parametrize("keys", [{"hold": "1h"}, {"hold_size": "4KiB"}])
def test_bases_for_a_remote_that_is_away_are_given_up_at_a_bound(
    sites: Sites, keys: dict[str, str]
) -> None:
    sites.set_remote(**keys)
    first = sites.run(b"one" * 100_000)
    sites.keeper.replicate([])
    sites.pool.volume("db-1").trim(0, 4 * MIB)
    sites.set_policy()
    now = now_of(sites.pool) + SECOND
    later = now + 2 * HOUR if "hold" in keys else now
    away = sites.keeper.remotes(later)[0]
    assert "goes whole" in str(away.note)
    assert away.held_count == 0
    second = sites.keeper.run(["p"], later)[0].created
    assert sites.held() == second, "the bases are dropped as the policy says"
    sites.keeper.replicate([])
    assert set(first + second) <= set(sites.arrived())


def test_what_was_never_reached_holds_things_up_to_its_bound_too(sites: Sites) -> None:
    sites.keeper.change_rules("remote", "dr", {"url": "exec:false", "hold": "1h"})
    first = sites.run(b"one")
    second = sites.run(b"two")
    assert sites.held() == sorted(first + second)
    assert sites.keeper.remotes()[0].held_count == 4
    sites.set_policy()
    later = now_of(sites.pool) + 2 * HOUR
    third = sites.keeper.run(["p"], later)[0].created
    assert sites.held() == third


def test_a_keeper_that_was_stopped_still_knows_what_is_held(sites: Sites) -> None:
    """A run that is under way when the service ends must not drop what a remote needs."""
    first = sites.run(b"one")
    sites.keeper.replicate([])
    sites.set_policy()
    sites.keeper.start()
    sites.keeper.stop()
    second = sites.keeper.run(["p"])[0].created
    assert sites.held() == sorted(first + second)


def test_a_cut_transfer_is_resumed(sites: Sites, tmp_path: Path) -> None:
    """The remote dies twice within the first send; what arrived is not sent again."""
    sites.pool.volume("db-1").write(0, random.Random(3).randbytes(3 * MIB))
    created = sites.run(b"one")
    real = f"{sys.executable} -m ramet -p {sites.there}"
    cut = script(
        tmp_path / "cut",
        f'case "$*" in *--name*) head -c 1500000 | {real} "$@";; *) exec {real} "$@";; esac',
    )
    sites.keeper.change_rules("remote", "dr", {"url": f"exec:{cut}"})
    with pytest.raises(RametError):
        sites.keeper.replicate([])
    assert sites.arrived() == []
    sites.keeper.change_rules("remote", "dr", {"url": sites.url})
    sites.keeper.replicate([])
    assert sites.arrived() == created
    assert all(map(sites.same, created))
