"""What policies would do: to which volumes, what is dropped, and the days ahead.

Pure: objects and times are given. Docs: docs/internals/policies.md. Invariant: a forecast is played
with the functions that decide in earnest.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from ramet.names import expand_snapshot_names, format_time_name
from ramet.policies.retention import kept
from ramet.policies.rules import POLICY_TAG, Policy, Rules, snapshot_pattern
from ramet.policies.schedule import is_due, next_due
from ramet.records import ObjectRecord
from ramet.tags import matches

LOOKS_MAX = 5_000_000  # At snapshots, by a forecast: some seconds.

# Says why a snapshot must stay whatever the rules say; None: it need not.
Held = Callable[[ObjectRecord], str | None]


class Drop(NamedTuple):
    """A snapshot that no rule keeps."""

    record: ObjectRecord
    held: str | None
    """Why it stays nevertheless; None: it is to be deleted."""


class Run(NamedTuple):
    """What a policy would do at one time."""

    at_ns: int
    policy: str
    creates: list[str]
    drops: list[str]

    def to_json(self) -> dict[str, object]:
        """Give it as a dictionary that `json.dumps` takes."""
        return self._asdict()


def volumes_of(policy: Policy, objects: Iterable[ObjectRecord]) -> list[ObjectRecord]:
    """Give the volumes that belong to a policy, in their order.

    Example: volumes_of(Policy("all", every="1h", volumes=("db-*",)), [])
    """
    selectors = policy.selectors
    names = set(policy.volumes)
    patterns = [it for it in policy.volumes if any(mark in it for mark in "*?[")]

    def belongs(it: ObjectRecord) -> bool:
        return it.kind == "volume" and (
            it.name in names
            or any(fnmatchcase(it.name, pattern) for pattern in patterns)
            or any(matches(it.tags, selector) for selector in selectors)
        )

    return [it for it in objects if belongs(it)]


def snapshots_of(name: str, objects: Iterable[ObjectRecord]) -> list[ObjectRecord]:
    """Give the snapshots that a policy took, or that arrived and were taken by one of its name.

    Example: snapshots_of("hourly", [])
    """
    return [it for it in objects if it.kind == "snapshot" and it.tags.get(POLICY_TAG) == name]


def due(rules: Rules, objects: Sequence[ObjectRecord], now_ns: int) -> list[str]:
    """Give the policies that are to run now, and have volumes.

    Example: due(parse(""), [], 0)
    """
    times: dict[str, int] = {}
    # What arrived from another pool, where a policy of the same name took it, is no run of this.
    here = {it.uuid for it in objects if it.kind == "volume"}
    for it in objects:
        name = it.tags.get(POLICY_TAG)
        if name is not None and it.source in here and it.created_ns <= now_ns:
            times[name] = max(times.get(name, it.created_ns), it.created_ns)
    return [
        name
        for name, policy in rules.policies.items()
        if is_due(policy, times.get(name), now_ns, rules.zone) and volumes_of(policy, objects)
    ]


def drops(
    rules: Rules, name: str, objects: Iterable[ObjectRecord], held: Held, now_ns: int
) -> list[Drop]:
    """Give the snapshots of a policy that no rule keeps, oldest first.

    Those dated later than now are kept and not counted: a clock that was set back must not let them
    push others out.
    Example: drops(parse(""), "hourly", [], lambda it: None, 0)
    """
    by_source: dict[str | None, list[ObjectRecord]] = {}
    for it in snapshots_of(name, objects):
        if it.created_ns <= now_ns:
            by_source.setdefault(it.source, []).append(it)
    keep, zone = rules.policies[name].keep, rules.zone
    found = []
    for records in by_source.values():
        stay = kept([it.created_ns for it in records], keep, zone)
        found += [it for place, it in enumerate(records) if place not in stay]
    found.sort(key=lambda it: (it.created_ns, it.name))
    return [Drop(it, held(it)) for it in found]


def forecast(
    rules: Rules, objects: Sequence[ObjectRecord], held: Held, now_ns: int, until_ns: int
) -> Iterator[Run]:
    """Play the days ahead: what each run would create and drop.

    The first are what would be done now. Volumes stay as they are, remotes are kept in step. It
    ends early where it would take long.
    Example: list(forecast(parse(""), [], lambda it: None, 0, 10**9))
    """
    state, at_ns, looks_left = list(objects), now_ns, LOOKS_MAX
    names = due(rules, state, now_ns)
    while at_ns <= until_ns and looks_left > 0:
        for name in names:
            run, state = _play(rules, name, state, held, at_ns)
            looks_left -= len(state)
            yield run
        coming = _coming(rules, state, at_ns)
        at_ns = min(coming.values(), default=until_ns + 1)
        names = [name for name, when in coming.items() if when == at_ns]


def next_runs(rules: Rules, objects: Sequence[ObjectRecord], now_ns: int) -> Mapping[str, int]:
    """Give when each policy with a schedule and volumes runs next; now, where it is due.

    Example: next_runs(parse(""), [], 0)
    """
    now = dict.fromkeys(due(rules, objects, now_ns), now_ns)
    return _coming(rules, objects, now_ns) | now


def _coming(rules: Rules, objects: Sequence[ObjectRecord], at_ns: int) -> dict[str, int]:
    return {
        name: next_due(policy, at_ns, rules.zone)
        for name, policy in rules.policies.items()
        if policy.takes and volumes_of(policy, objects)
    }


def _play(
    rules: Rules, name: str, objects: list[ObjectRecord], held: Held, at_ns: int
) -> tuple[Run, list[ObjectRecord]]:
    policy = rules.policies[name]
    volumes = volumes_of(policy, objects)
    names = expand_snapshot_names(
        snapshot_pattern(name, policy),
        [it.name for it in volumes],
        time_text=format_time_name(at_ns),
    )
    made = [
        volume._replace(
            uuid=f"{name}/{volume.uuid}/{at_ns}",
            name=snapshot,
            kind="snapshot",
            created_ns=at_ns,
            source=volume.uuid,
            tags={POLICY_TAG: name},
            attached_count=0,
        )
        for volume, snapshot in zip(volumes, names, strict=True)
    ]
    state = [*objects, *made]
    gone = {it.record.uuid for it in drops(rules, name, state, held, at_ns) if it.held is None}
    dropped = [it.name for it in state if it.uuid in gone]
    return Run(at_ns, name, names, dropped), [it for it in state if it.uuid not in gone]
