"""What a pool's policies and remotes are, and the file that says so.

Pure. Docs: docs/guides/policies.md. Invariant: a `Rules` holds only what can be done: each schedule
has a next time, each pattern gives a name, each remote that a policy names is there.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import msgspec
import tomlkit
from cronsim import CronSim, CronSimError
from tomlkit.exceptions import TOMLKitError

from ramet.errors import InvalidError, NotFoundError
from ramet.names import check_snapshot_name, expand_snapshot_names
from ramet.policies.address import command_of
from ramet.tags import Selector, parse_selector
from ramet.units import parse_duration, parse_size

EVERY_SECONDS_MIN = 10.0
TIMEOUT_SECONDS_MAX = 3600.0
NAME_DEFAULT = "{volume}@{policy}-{time}"
NAME_LENGTH_MAX = 63
NAME_WORD = "{name}"
POLICY_TAG = "policy"  # On each snapshot that a policy took: the policy's name.
_NANOSECONDS = 10**9

Everything = Literal["all"]
Part = TypeVar("Part")


class Keep(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """How many are kept: the newest, and the newest of each of so many times that have one."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0


class Policy(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """When snapshots are taken, of what, how long they are kept, and where they are sent."""

    keep: Keep | Everything
    every: str | None = None
    """A duration; due at its multiples since 1970 UTC."""
    cron: str | None = None
    """Five fields. Neither: the policy takes none, and keeps what arrived of its name."""
    volumes: tuple[str, ...] = ()
    """Names, or patterns with `*` and `?`."""
    tags: tuple[str, ...] = ()
    """`K=V` or `K`; a volume with any of them belongs to it, too."""
    name: str = NAME_DEFAULT
    remotes: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    timeout: str = "1m"
    """Of each command."""

    @property
    def takes(self) -> bool:
        """Whether it has a schedule."""
        return self.every is not None or self.cron is not None

    @property
    def every_ns(self) -> int:
        """Nanoseconds between two due times."""
        assert self.every is not None, "only asked where there is one"
        return round(parse_duration(self.every) * _NANOSECONDS)

    @property
    def selectors(self) -> list[Selector]:
        """The tags, any of which is enough."""
        return [parse_selector([it]) for it in self.tags]


class Remote(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """Where snapshots are sent to."""

    url: str
    """`ssh://[USER@]HOST[:PORT]/POOL`, `file:///POOL`, or `exec:COMMAND`."""
    name: str = NAME_WORD
    """What snapshots are called there: a pattern."""
    rate: str | None = None
    """Bytes a second at most."""
    zstd: bool = False
    hold: str | None = None
    """For how long a base is kept for a remote that is not reached; None: for ever."""
    hold_size: str | None = None
    """How much bases may hold for themselves."""

    @property
    def command(self) -> list[str]:
        """What stands before ramet's own words."""
        return command_of(self.url)


class Rules(NamedTuple):
    """All policies and remotes of a pool."""

    zone: ZoneInfo
    """Of hours, days and cron."""
    policies: dict[str, Policy]
    remotes: dict[str, Remote]


class _Parts(msgspec.Struct, forbid_unknown_fields=True):
    timezone: str = "UTC"
    policy: dict[str, Any] = {}
    remote: dict[str, Any] = {}


def parse(text: str) -> Rules:
    """Read a file of policies and remotes.

    `text`: TOML, as in docs/guides/policies.md.
    Raises: InvalidError that names the place, what is wrong there, and the remedy; nothing of a
    file with an error counts.
    Example: parse('policy = {hourly = {every = "1h", volumes = ["*"], keep = {hourly = 24}}}')
    """
    try:
        told = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidError("rules_syntax", f"not TOML: {error}; hint: mend it there") from error
    with _telling("the file"):
        parts = _convert(told, _Parts)
    zone = _zone(parts.timezone)
    remotes, policies = {}, {}
    for name, value in parts.remote.items():
        with _telling(f"remote '{name}'"):
            _check_name(name)
            remotes[name] = _convert(value, Remote)
            _check_remote(remotes[name])
    for name, value in parts.policy.items():
        with _telling(f"policy '{name}'"):
            _check_name(name)
            policies[name] = _convert(value, Policy)
            _check_policy(name, policies[name], remotes, zone)
    _check_overlaps(policies)
    return Rules(zone, policies, remotes)


def changed(text: str, kind: str, name: str, value: Policy | Remote | None) -> str:
    """Give the file with a policy or remote set, or left out; comments and order stay.

    `kind`: `policy` or `remote`. `value` None: leave it out.
    Raises: NotFoundError where there is none to leave out; and as `parse`, of the result.
    Example: changed("", "remote", "dr", Remote("ssh://dr/srv/pool"))
    """
    try:
        document = tomlkit.parse(text)
    except TOMLKitError as error:
        raise InvalidError("rules_syntax", f"not TOML: {error}; hint: mend it there") from error
    tables: Any = document.setdefault(kind, tomlkit.table(is_super_table=True))
    if value is not None:
        tables[name] = _table_of(value)
    elif name in tables:
        del tables[name]
    else:
        raise not_found(kind, name)
    result = tomlkit.dumps(document)
    parse(result)
    return result


def not_found(kind: str, name: str) -> NotFoundError:
    """Give the error for a policy or remote that is not there."""
    text = f"no {kind} '{name}'; hint: see `ramet {kind} list`"
    if kind == "policy":
        return NotFoundError("policy_not_found", text)
    return NotFoundError("remote_not_found", text)


def _table_of(value: Policy | Remote) -> Any:
    table = tomlkit.table()
    for key, held in msgspec.to_builtins(value).items():
        if isinstance(held, Mapping):
            inner = tomlkit.inline_table()
            inner.update(held)
            table[key] = inner
        else:
            table[key] = list(held) if isinstance(held, tuple) else held
    return table


@contextmanager
def _telling(where: str) -> Iterator[None]:
    """Say in an error where it is."""
    try:
        yield
    except InvalidError as error:
        raise type(error)(error.code, f"{where}: {error.text}") from error


def _convert(value: object, kind: type[Part]) -> Part:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        hint = "docs/guides/policies.md has all keys and their values"
        raise InvalidError("rules_key", f"{error}; hint: {hint}") from error


def _refuse(what: str, hint: str) -> InvalidError:
    return InvalidError("rules_value", f"{what}; hint: {hint}")


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise _refuse(f"no time zone '{name}'", "such as Europe/Berlin") from error


def _check_name(name: str) -> None:
    plain = name.isascii() and all(it.isalnum() or it in "-_." for it in name)
    if not plain or not 1 <= len(name) <= NAME_LENGTH_MAX:
        raise _refuse("not a name", f"1 to {NAME_LENGTH_MAX} of A-Z a-z 0-9 - _ .")


def _check_policy(name: str, policy: Policy, remotes: Mapping[str, Remote], zone: ZoneInfo) -> None:
    if policy.every is not None and policy.cron is not None:
        raise _refuse("both `every` and `cron`", "give one of them")
    if policy.every is not None and parse_duration(policy.every) < EVERY_SECONDS_MIN:
        raise _refuse(f"every '{policy.every}'", f"at least {EVERY_SECONDS_MIN:.0f}s")
    if policy.cron is not None:
        _check_cron(policy.cron, zone)
    _check_selection(policy)
    _check_keep(policy.keep)
    _check_pattern(name, policy)
    for remote in policy.remotes:
        if remote not in remotes:
            raise _refuse(f"no remote '{remote}'", f"add [remote.{remote}] with a url")
    _check_positive("timeout", policy.timeout, TIMEOUT_SECONDS_MAX)
    if (policy.before or policy.after) and not policy.takes:
        raise _refuse("commands, but no schedule", "give `every` or `cron`")


def snapshot_pattern(name: str, policy: Policy) -> str:
    """Give the pattern that names the snapshots of a policy, as `Pool.snapshot` takes it.

    Example: snapshot_pattern("hourly", Policy("all", every="1h"))
    """
    return policy.name.replace("{policy}", name)


def _check_pattern(name: str, policy: Policy) -> None:
    pattern = snapshot_pattern(name, policy)
    [first] = expand_snapshot_names(pattern, ["a"], time_text="t")
    if "{volume}" not in pattern:
        raise _refuse(f"name '{policy.name}' says no volume", "put {volume} in")
    if expand_snapshot_names(pattern, ["a"], time_text="u") == [first]:
        raise _refuse(f"name '{policy.name}' is always the same", "put {time} in")


def _check_cron(text: str, zone: ZoneInfo) -> None:
    try:
        next(CronSim(text, datetime(2026, 1, 1, tzinfo=zone)))
    except (CronSimError, StopIteration) as error:
        raise _refuse(
            f"cron '{text}' never comes or is none ({error})",
            "minute hour day month weekday, such as '30 2 * * *'",
        ) from error


def _check_selection(policy: Policy) -> None:
    if policy.takes and not policy.volumes and not policy.tags:
        raise _refuse("no volumes", 'volumes = ["db-*"], or tags = ["backup=yes"]')
    if any(not it for it in policy.volumes):
        raise _refuse("an empty pattern", 'volumes = ["*"] for all')
    parse_selector(policy.tags)


def _check_keep(keep: Keep | Everything) -> None:
    if isinstance(keep, str):
        return
    counts: Sequence[int] = msgspec.structs.astuple(keep)
    if min(counts) < 0 or max(counts) == 0:
        hint = 'such as keep.last = 4, keep.daily = 7, or keep = "all"'
        raise _refuse("it keeps nothing, or less", hint)


def _check_remote(remote: Remote) -> None:
    command_of(remote.url)
    if NAME_WORD not in remote.name:
        raise _refuse(f"name '{remote.name}' is the same for all", "put {name} in")
    check_snapshot_name(remote.name.replace(NAME_WORD, "a"))
    for key, text in (("rate", remote.rate), ("hold_size", remote.hold_size)):
        if text is not None and parse_size(text) == 0:
            raise _refuse(f"{key} is 0", "leave it out")
    if remote.hold is not None:
        _check_positive("hold", remote.hold, None)


def _check_positive(key: str, text: str, most: float | None) -> None:
    seconds = parse_duration(text)
    if seconds <= 0 or (most is not None and seconds > most):
        bound = "" if most is None else f", to {most:.0f}s"
        raise _refuse(f"{key} '{text}'", f"more than 0{bound}")


def _check_overlaps(policies: Mapping[str, Policy]) -> None:
    """Two policies must not give one name at one time."""
    seen: dict[str, str] = {}
    for name, policy in policies.items():
        if not policy.takes:
            continue
        pattern = snapshot_pattern(name, policy)
        if pattern in seen:
            what = f"policy '{name}': it names snapshots as '{seen[pattern]}' does: '{pattern}'"
            raise _refuse(what, "put {policy} into both")
        seen[pattern] = name
