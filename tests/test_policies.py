"""Policies decide as their page says: when, of what, what is kept; a wrong file is refused."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import InvalidError, NotFoundError, RametError
from ramet.policies import (
    POLICY_TAG,
    Keep,
    Policy,
    Remote,
    Rules,
    changed,
    drops,
    due,
    forecast,
    next_runs,
    parse,
    volumes_of,
)
from ramet.policies.retention import kept
from ramet.policies.schedule import is_due, latest_due, next_due
from ramet.records import ObjectRecord

SECOND = 10**9
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
START = 1_800_000_000 * SECOND  # 2027-01-15T08:00:00Z.
ZONE = ZoneInfo("UTC")

SCHEDULES = st.one_of(
    st.integers(10, 200_000).map(lambda it: Policy("all", every=f"{it}s")),
    st.sampled_from(
        ["* * * * *", "*/7 * * * *", "30 2 * * *", "0 0 1 * *", "5 4 * * sun", "0 0 29 2 *"]
    ).map(lambda it: Policy("all", cron=it)),
)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Apia"]).map(ZoneInfo)
TIMES = st.integers(START - 2000 * DAY, START + 2000 * DAY)
KEEPS = st.builds(Keep, *(st.integers(0, 4) for _ in Keep.__struct_fields__))


def volume(name: str, **tags: str) -> ObjectRecord:
    return ObjectRecord(
        f"uuid-{name}", name, "volume", 4096, 0, START, None, None, "batch", 0, tags
    )


def snapshot(of: str, at_ns: int, policy: str | None = "p") -> ObjectRecord:
    tags = {} if policy is None else {POLICY_TAG: policy}
    return ObjectRecord(
        f"uuid-{of}-{at_ns}", f"{of}@{at_ns}", "snapshot", 4096, 0, at_ns, None, f"uuid-{of}",
        "batch", 0, tags,
    )  # fmt: skip


def free(_: ObjectRecord) -> None:
    """Nothing holds a snapshot."""


def rules_of(**policies: Policy) -> Rules:
    return Rules(ZONE, policies, {})


@given(SCHEDULES, TIMES, ZONES)
def test_due_times_follow_each_other_without_gap_or_overlap(
    policy: Policy, at_ns: int, zone: ZoneInfo
) -> None:
    before, after = latest_due(policy, at_ns, zone), next_due(policy, at_ns, zone)
    assert before <= at_ns < after
    assert next_due(policy, before, zone) == after
    assert latest_due(policy, after, zone) == after
    assert latest_due(policy, after - SECOND, zone) == before


@given(SCHEDULES, TIMES, st.integers(0, 400 * DAY))
def test_a_policy_runs_once_for_each_due_time_and_once_after_downtime(
    policy: Policy, ran_ns: int, away_ns: int
) -> None:
    now = ran_ns + away_ns
    assert is_due(policy, None, now, ZONE), "one that never ran is due"
    assert is_due(policy, ran_ns, now, ZONE) == (next_due(policy, ran_ns, ZONE) <= now)
    assert not is_due(policy, now, now, ZONE), "what ran is done"


def model_kept(times: list[int], keep: Keep, zone: ZoneInfo) -> set[int]:
    """The rules as their page says them, without a thought of cost."""
    forms = {
        "hourly": "%Y %j %H %z", "daily": "%Y %j", "weekly": "%G %V", "monthly": "%Y %m",
        "yearly": "%Y",
    }  # fmt: skip
    stay = set(sorted(times, reverse=True)[: keep.last])
    for rule, form in forms.items():
        newest: dict[str, int] = {}
        for at in sorted(times):
            told = datetime.fromtimestamp(at // SECOND, zone).strftime(form)
            newest.pop(told, None)
            newest[told] = at
        count = getattr(keep, rule)
        stay |= set(list(newest.values())[len(newest) - min(count, len(newest)) :])
    return stay


@given(st.sets(st.integers(0, 3000 * 24), max_size=60), KEEPS, ZONES)
def test_what_is_kept_is_what_the_rules_say(hours: set[int], keep: Keep, zone: ZoneInfo) -> None:
    times = [START + it * HOUR + 17 * MINUTE for it in hours]
    assert {times[it] for it in kept(times, keep, zone)} == model_kept(times, keep, zone)


@given(st.lists(st.integers(1, 50 * 24 * 60), max_size=60), KEEPS, ZONES)
def test_dropping_after_each_run_keeps_what_dropping_at_the_end_would(
    gaps: list[int], keep: Keep, zone: ZoneInfo
) -> None:
    every: list[int] = []
    held: list[int] = []
    at = START
    for gap in gaps:
        at += gap * MINUTE
        every.append(at)
        held.append(at)
        held = [held[it] for it in sorted(kept(held, keep, zone))]
    assert held == [every[it] for it in sorted(kept(every, keep, zone))]


@given(st.lists(st.integers(-400, 400), min_size=1, max_size=40), KEEPS)
def test_a_clock_that_moves_empties_no_pool(days: list[int], keep: Keep) -> None:
    """Whatever the clock said when they were taken, a run drops no more than the rules say."""
    rules = rules_of(p=Policy(keep, every="1h", volumes=("*",)))
    objects = [volume("a")] + [snapshot("a", START + it * DAY) for it in set(days)]
    gone = drops(rules, "p", objects, free, START)
    past = [it.created_ns for it in objects if it.kind == "snapshot" and it.created_ns <= START]
    assert all(it.record.created_ns <= START for it in gone), "the future stays"
    assert len(past) - len(gone) == len(model_kept(past, keep, ZONE))


def test_only_snapshots_of_the_policy_are_dropped_each_volume_for_itself() -> None:
    rules = rules_of(p=Policy(Keep(last=1), every="1h", volumes=("*",)))
    objects = [
        *(snapshot(of, START - age * HOUR) for of in ("a", "b") for age in range(3)),
        *(
            snapshot("a", START - age * HOUR - 1, policy)
            for age in range(3)
            for policy in (None, "q")
        ),
    ]
    gone = [it.record for it in drops(rules, "p", objects, free, START)]
    assert [(it.source, it.created_ns) for it in gone] == [
        (f"uuid-{of}", START - age * HOUR) for age in (2, 1) for of in ("a", "b")
    ]


def test_what_is_held_is_named_and_stays() -> None:
    rules = rules_of(p=Policy(Keep(last=1), every="1h", volumes=("*",)))
    objects = [snapshot("a", START - age * HOUR) for age in range(3)]
    told = drops(rules, "p", objects, lambda it: "attached" if it is objects[1] else None, START)
    assert [it.held for it in told] == [None, "attached"]


def test_volumes_belong_by_name_pattern_or_tag() -> None:
    objects = [
        volume("db-1"), volume("db-2"), volume("web"), volume("x", backup="yes"),
        volume("y", backup="no"), snapshot("db-1", START),
    ]  # fmt: skip
    policy = Policy("all", every="1h", volumes=("db-*", "web"), tags=("backup=yes", "other"))
    assert [it.name for it in volumes_of(policy, objects)] == ["db-1", "db-2", "web", "x"]


def model_of_a_service(
    rules: Rules, objects: list[ObjectRecord], until_ns: int
) -> Iterator[tuple[int, str, set[str]]]:
    """A service that looks each minute and does what is due."""
    for at in range(START, until_ns + 1, MINUTE):
        for name in due(rules, objects, at):
            made = [snapshot(it.name, at, name) for it in volumes_of(rules.policies[name], objects)]
            objects = objects + made
            gone = {it.record.uuid for it in drops(rules, name, objects, free, at)}
            objects = [it for it in objects if it.uuid not in gone]
            yield at, name, {it.rpartition("-")[2] for it in gone}


@settings(max_examples=25)
@given(
    st.lists(st.integers(5, 300), min_size=1, max_size=3),
    st.lists(KEEPS.filter(lambda it: it != Keep()), min_size=3, max_size=3),
    st.lists(st.integers(1, 2000), max_size=5),
)
def test_a_forecast_is_what_then_happens(
    minutes: list[int], keeps: list[Keep], ages: list[int]
) -> None:
    """Here each policy has a volume of its own, and looks fall on due times."""
    rules = rules_of(
        **{
            f"p{at}": Policy(keep, every=f"{every}m", volumes=(f"v{at}",))
            for at, (every, keep) in enumerate(zip(minutes, keeps, strict=False))
        }
    )
    objects = [volume("v0"), volume("v1"), volume("v2")]
    objects += [snapshot("v0", START - age * MINUTE, "p0") for age in set(ages)]
    until = START + 8 * HOUR
    told = list(forecast(rules, objects, free, START, until))
    model = list(model_of_a_service(rules, objects, until))
    assert [(it.at_ns, it.policy) for it in told] == [(at, name) for at, name, _ in model]
    assert [len(it.drops) for it in told] == [len(gone) for _, _, gone in model]


def test_next_runs_are_now_where_one_was_missed() -> None:
    rules = rules_of(
        missed=Policy("all", every="1d", volumes=("a",)),
        done=Policy("all", every="1h", volumes=("a",)),
        empty=Policy("all", every="1h", volumes=("nobody",)),
        keeps=Policy("all"),
    )
    objects = [volume("a"), snapshot("a", START - DAY, "missed"), snapshot("a", START, "done")]
    assert next_runs(rules, objects, START) == {"missed": START, "done": START + HOUR}


GOOD = """
timezone = "Europe/Berlin"  # Where we sleep.

[policy.nightly]
cron = "30 2 * * *"
volumes = ["db-*"]
keep = {daily = 7, weekly = 4}
remotes = ["dr"]

[remote.dr]
url = "ssh://backup@host/srv/pool"
"""


def test_a_file_is_read_and_changed_without_losing_what_people_wrote() -> None:
    rules = parse(GOOD)
    assert rules.zone.key == "Europe/Berlin"
    assert rules.policies["nightly"].keep == Keep(daily=7, weekly=4)
    hourly = Policy(Keep(hourly=24), every="1h", tags=("backup",), after=("true", "a b"))
    text = changed(GOOD, "policy", "hourly", hourly)
    text = changed(text, "remote", "b", Remote("file:///srv/b", zstd=True))
    assert "# Where we sleep." in text
    assert parse(text).policies["hourly"] == hourly
    assert parse(text).remotes["b"] == Remote("file:///srv/b", zstd=True)
    again = changed(changed(text, "policy", "hourly", None), "remote", "b", None)
    assert parse(again) == rules
    with pytest.raises(NotFoundError, match="policy_not_found"):
        changed(GOOD, "policy", "hourly", None)
    with pytest.raises(InvalidError, match="rules_value"):
        changed(GOOD, "remote", "dr", None)


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("x = 1\ny =", "rules_syntax", "end of"),
        ("polcy = 1", "rules_key", "polcy"),
        ('timezone = "Mars"', "rules_value", "Mars"),
        ("[policy.x]\nevry = 1", "rules_key", "policy 'x'"),
        ('[policy.x]\nevery = "1h"\nvolumes = ["*"]', "rules_key", "keep"),
        ('[policy.x]\nkeep = "some"', "rules_key", "some"),
        ("[policy.x]\nkeep.lst = 1", "rules_key", "lst"),
        ("[policy.x]\nkeep.last = 0", "rules_value", "nothing"),
        ("[policy.x]\nkeep = {last = 5, daily = -1}", "rules_value", "less"),
        ('[policy.x]\nevery = "1h"\ncron = "* * * * *"\nkeep = "all"', "rules_value", "both"),
        ('[policy.x]\nevery = "1s"\nvolumes = ["*"]\nkeep = "all"', "rules_value", "10s"),
        ('[policy.x]\nevery = "soon"\nkeep = "all"', "duration_syntax", "policy 'x'"),
        ('[policy.x]\ncron = "0 25 * * *"\nvolumes = ["*"]\nkeep = "all"', "rules_value", "25"),
        ('[policy.x]\ncron = "0 0 31 2 *"\nvolumes = ["*"]\nkeep = "all"', "rules_value", "31"),
        ('[policy.x]\nevery = "1h"\nkeep = "all"', "rules_value", "no volumes"),
        ('[policy.x]\nevery = "1h"\nvolumes = [""]\nkeep = "all"', "rules_value", "empty"),
        ('[policy.x]\nevery = "1h"\ntags = ["_"]\nkeep = "all"', "tag_key", "policy 'x'"),
        ('[policy.x]\nkeep = "all"\nname = "{time}"', "rules_value", "{volume}"),
        ('[policy.x]\nkeep = "all"\nname = "{volume}"', "rules_value", "{time}"),
        ('[policy.x]\nkeep = "all"\nname = "{volume}{tme}"', "pattern_unknown", "tme"),
        ('[policy.x]\nkeep = "all"\nname = "{volume} {time}"', "name_character", "' '"),
        ('[policy.x]\nkeep = "all"\nremotes = ["dr"]', "rules_value", "dr"),
        ('[policy.x]\nkeep = "all"\nbefore = ["true"]', "rules_value", "no schedule"),
        ('[policy.x]\nkeep = "all"\ntimeout = "2h"', "rules_value", "3600s"),
        ('[policy."a b"]\nkeep = "all"', "rules_value", "a b"),
        ('[remote.r]\nurl = "ftp://h/p"', "remote_url", "ftp"),
        ('[remote.r]\nurl = "ssh://h"', "remote_url", "no pool"),
        ('[remote.r]\nurl = "ssh://-oProxyCommand=x/p"', "remote_url", "remote 'r'"),
        ('[remote.r]\nurl = "exec:"', "remote_url", "empty"),
        ('[remote.r]\nurl = "exec:\'"', "remote_url", "remote 'r'"),
        ('[remote.r]\nurl = "file:///p"\nrate = "0"', "rules_value", "rate"),
        ('[remote.r]\nurl = "file:///p"\nhold = "0s"', "rules_value", "hold"),
        (
            "".join(
                f'[policy.{it}]\nevery = "1h"\nvolumes = ["*"]\nkeep = "all"\n'
                'name = "{volume}@{time}"\n'
                for it in "ab"
            ),
            "rules_value",
            "'a'",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(text: str, code: str, says: str) -> None:
    with pytest.raises(RametError) as caught:
        parse(text)
    assert caught.value.code == code
    assert says in caught.value.text
    assert "hint:" in caught.value.text


def test_a_day_that_is_repeated_or_skipped_has_its_hours() -> None:
    """At the end of summer time 2:00 to 3:00 comes twice: two hours, two snapshots."""
    zone = ZoneInfo("Europe/Berlin")
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    times = [round((first + timedelta(hours=it)).timestamp()) * SECOND for it in range(2)]
    assert kept(times, Keep(hourly=2), zone) == {0, 1}
