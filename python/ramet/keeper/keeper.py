"""Policies done: commands before and after, snapshots, deletes, and what remotes are to have.

Imports policies, pool. Docs: docs/internals/policies.md. Invariants: one run at a time; a failed
run changes nothing but what was committed, and is tried again; what is dropped was chosen by
`policies.drops` from what the pool holds at that moment.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from ramet.errors import InvalidError, NotFoundError, RametError
from ramet.keeper.files import Known, read_known, read_rules, write_known, write_rules
from ramet.keeper.hooks import run_hook
from ramet.keeper.outbound import Outbound
from ramet.keeper.status import PolicyStatus, RemoteStatus, Report
from ramet.names import expand_snapshot_names, format_time_name
from ramet.policies import (
    POLICY_TAG,
    Held,
    Policy,
    Remote,
    Rules,
    Run,
    changed,
    drops,
    due,
    forecast,
    next_runs,
    not_found,
    parse,
    snapshot_pattern,
    snapshots_of,
    volumes_of,
)
from ramet.pool import Pool
from ramet.records import ObjectRecord
from ramet.replication.sync import Progress
from ramet.units import parse_duration

STEP_SECONDS = 1.0
LOOK_SECONDS_MAX = 60.0  # So long a volume may wait until the policy it belongs to now sees it.
RETRY_SECONDS_MIN = 60.0
RETRY_SECONDS_MAX = 3600.0
DAYS_MAX = 3660
NAMES_PAUSE_SECONDS = 0.05
NAMES_TRIED_MAX = 30  # More than a second; a name that is still taken is somebody else's.
_NANOSECONDS = 10**9
_DAY_NS = 86_400 * _NANOSECONDS


Say = Callable[[str], None]


def _nobody(_text: str) -> None:
    """Nobody is told."""


class _Failure(NamedTuple):
    text: str
    times: int
    retry_ns: int


class _Following(NamedTuple):
    """What is followed: swapped as one, so that a reader needs no lock."""

    text: str
    rules: Rules
    outbounds: dict[str, Outbound]


class Keeper:
    """Does what a pool's policies say. `step` is called by whoever owns the time."""

    def __init__(self, pool: Pool, pool_path: Path) -> None:
        """Read the pool's policies; where they are wrong, `rules_error` says so, and none count."""
        self._pool = pool
        self._path = pool_path
        self._running = threading.RLock()
        self._following = _Following("", parse(""), {})
        self._noting = threading.Lock()
        self._known = read_known(pool_path)
        self._pause = threading.Event()  # Never set: it waits as long as it is told.
        self._failures: dict[str, _Failure] = {}
        self._look_ns: int | None = 0  # When something may be due; None: never.
        self._stepped_ns = 0
        self._ended: threading.Event | None = None
        self._thread: threading.Thread | None = None
        self._say: Say = _nobody
        self.rules_error: RametError | None = None
        try:
            text = read_rules(pool_path)
            self._follow(text, parse(text))
        except RametError as error:
            self.rules_error = error

    def start(self, say: Say = _nobody) -> None:
        """Step each second in a thread, and keep remotes in step, until `stop`.

        `say`: is told what fails, a line each.
        """
        self._say = say
        if self.rules_error is not None:
            say(f"no policy is followed: {self.rules_error}")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="keeper", daemon=True)
        self._thread.start()
        for outbound in self._following.outbounds.values():
            outbound.start()

    def stop(self) -> None:
        """End what runs: streams at once, a command after its timeout at most."""
        if self._ended is not None:
            self._ended.set()
        with self._running:
            # They still say what they hold: a run that is under way drops by it.
            for outbound in self._following.outbounds.values():
                outbound.stop()
        if self._thread is not None:
            self._thread.join()

    def step(self, now_ns: int) -> list[Report]:
        """Run what is due at `now_ns`, nanoseconds since 1970. Result: what was done."""
        with self._running:
            is_early = self._look_ns is None or now_ns < self._look_ns
            if is_early and now_ns >= self._stepped_ns:
                return []
            self._stepped_ns = now_ns
            if not any(it.takes for it in self._following.rules.policies.values()):
                self._look_ns = None
                return []
            objects = self._pool.objects()
            reports = [
                self._run(name, now_ns)
                for name in due(self._following.rules, objects, now_ns)
                if (failure := self._failures.get(name)) is None or failure.retry_ns <= now_ns
            ]
            self._look_ns = self._next_look(self._pool.objects() if reports else objects, now_ns)
            return reports

    def rules_text(self) -> str:
        """Give the pool's policies and remotes as they were set."""
        self._check_rules()
        return self._following.text

    def set_rules(self, text: str) -> None:
        """Replace the pool's policies and remotes, all of them. Durable on return.

        Raises: InvalidError that names the place; UnavailableError. Then what was set stays.
        """
        rules = parse(text)
        for remote in rules.remotes.values():
            self._check_remote(remote)
        with self._running:
            write_rules(self._path, text)
            self.rules_error = None
            self._failures = {}
            self._look_ns = 0
            self._follow(text, rules)

    def change_rules(self, kind: str, name: str, value: dict[str, object] | None) -> None:
        """Set or leave out one policy or remote; `value` has the keys of the file."""
        part: Policy | Remote | None = None
        if value is not None:
            try:
                if kind == "policy":
                    part = msgspec.convert(value, Policy)
                else:
                    part = msgspec.convert(value, Remote)
            except msgspec.ValidationError as error:
                raise InvalidError(
                    "rules_key", f"{kind} '{name}': {error}; hint: docs/guides/policies.md"
                ) from error
        with self._running:
            self._check_rules()
            self.set_rules(changed(self._following.text, kind, name, part))

    def run(self, names: Sequence[str], now_ns: int | None = None) -> list[Report]:
        """Run policies now, due or not; none given: those that are due."""
        now_ns = time.time_ns() if now_ns is None else now_ns
        with self._running:
            self._check_rules()
            for name in names:
                self._policy(name)
            chosen = names or due(self._following.rules, self._pool.objects(), now_ns)
            return [self._run(name, now_ns) for name in chosen]

    def plan(self, days: float, now_ns: int | None = None) -> list[Run]:
        """Say what runs would create and drop in the days ahead, up to 3,660."""
        if not 0 <= days <= DAYS_MAX:
            raise InvalidError("plan_days", f"{days:g} days; hint: 0 to {DAYS_MAX}")
        now_ns = time.time_ns() if now_ns is None else now_ns
        until_ns = now_ns + round(days * _DAY_NS)
        rules, objects, held = self._look(now_ns)
        return list(forecast(rules, objects, held, now_ns, until_ns))

    def policies(self, now_ns: int | None = None) -> list[PolicyStatus]:
        """Say how each policy is."""
        now_ns = time.time_ns() if now_ns is None else now_ns
        rules, objects, held = self._look(now_ns)
        failures, coming = dict(self._failures), next_runs(rules, objects, now_ns)
        result = []
        for name, policy in rules.policies.items():
            snapshots, failure = snapshots_of(name, objects), failures.get(name)
            kept = [it for it in drops(rules, name, objects, held, now_ns) if it.held is not None]
            result.append(
                PolicyStatus(
                    name=name,
                    schedule=policy.every or policy.cron or "",
                    keep=_keep_text(policy),
                    volumes_count=len(volumes_of(policy, objects)),
                    snapshots_count=len(snapshots),
                    last_ns=max((it.created_ns for it in snapshots), default=None),
                    next_ns=max(coming[name], failure.retry_ns if failure else 0)
                    if name in coming
                    else None,
                    kept_count=len(kept),
                    error=failure.text if failure else None,
                    remotes=list(policy.remotes),
                )
            )
        return result

    def remotes(self, now_ns: int | None = None) -> list[RemoteStatus]:
        """Say how far behind each remote is."""
        self._check_rules()
        now_ns = time.time_ns() if now_ns is None else now_ns
        return [it.status(now_ns) for it in list(self._following.outbounds.values())]

    def wake(self, names: Sequence[str]) -> None:
        """Have remotes looked at now; none given: all."""
        for outbound in self._chosen(names):
            outbound.wake()

    def replicate(self, names: Sequence[str], progress: Progress | None = None) -> list[str]:
        """Bring remotes in step, one after the other, in this thread. Result: what was sent.

        Raises: the first error, once all were tried.
        """
        sent, first_error = [], None
        for outbound in self._chosen(names):
            try:
                sent += outbound.sync_once(progress)
            except RametError as error:
                outbound.error = str(error)
                first_error = first_error or error
        if first_error is not None:
            raise first_error
        return sent

    def _look(self, now_ns: int) -> tuple[Rules, list[ObjectRecord], Held]:
        """Give the rules, what there is, and what must stay; waits for no run."""
        self._check_rules()
        following, objects = self._following, self._pool.objects()
        return following.rules, objects, _held(following, objects, now_ns)

    def _check_rules(self) -> None:
        if self.rules_error is not None:
            raise self.rules_error

    def _tell(self, text: str) -> None:
        self._say(text)

    def _loop(self) -> None:
        assert self._ended is not None, "set before the thread starts"
        while not self._ended.wait(STEP_SECONDS):
            try:
                self.step(time.time_ns())
            except RametError:
                pass  # The pool is poisoned or its medium fails: who needs it meets that.
            except Exception as error:  # noqa: BLE001 - policies must not end in silence.
                self._say(f"policies: {error!r}; hint: report a bug")

    def _run(self, name: str, now_ns: int) -> Report:
        policy, created, errors = self._policy(name), list[str](), list[str]()
        try:
            created = self._snapshot(name, policy, errors)
        except RametError as error:
            errors.append(str(error))
        failed = policy.takes and not created
        dropped = self._drop(name, now_ns, set(created), errors)
        if errors:
            self._note_failure(name, "; ".join(errors), now_ns, again=failed)
            self._say(f"policy '{name}': {'; '.join(errors)}")
        else:
            self._failures.pop(name, None)
        for remote in policy.remotes:
            self._following.outbounds[remote].wake()
        return Report(name, created, dropped, "; ".join(errors) or None)

    def _snapshot(self, name: str, policy: Policy, errors: list[str]) -> list[str]:
        if not policy.takes:
            return []
        objects = self._pool.objects()
        volumes = volumes_of(policy, objects)
        if not volumes:
            return []
        pattern = snapshot_pattern(name, policy)
        self._wait_for_names(pattern, [it.name for it in volumes], {it.name for it in objects})
        seconds = parse_duration(policy.timeout)
        variables = {
            "RAMET_POLICY": name,
            "RAMET_POOL": str(self._path),
            "RAMET_VOLUMES": "\n".join(it.name for it in volumes),
        }
        try:
            if policy.before:
                run_hook("before", policy.before, seconds, variables)
            made = self._pool.snapshot(
                [it.uuid for it in volumes],
                name=pattern,
                tags={POLICY_TAG: name},
            )
        finally:
            if policy.after:
                try:
                    run_hook("after", policy.after, seconds, variables)
                except RametError as error:
                    errors.append(str(error))
        return [it.made_name for it in made]

    def _wait_for_names(self, pattern: str, volumes: list[str], taken: set[str]) -> None:
        """Wait while the names of this second are taken: a policy may just have run by itself."""
        for _ in range(NAMES_TRIED_MAX):
            time_text = format_time_name(time.time_ns())
            if taken.isdisjoint(expand_snapshot_names(pattern, volumes, time_text=time_text)):
                return
            self._pause.wait(NAMES_PAUSE_SECONDS)

    def _drop(self, name: str, now_ns: int, created: set[str], errors: list[str]) -> list[str]:
        """Delete what no rule keeps: all at once, else each that can be."""
        try:
            objects = self._pool.objects()
            # What was just taken is dated a moment after the run began, and counts.
            now_ns = max([now_ns, *(it.created_ns for it in objects if it.name in created)])
            found = drops(
                self._following.rules,
                name,
                objects,
                _held(self._following, objects, now_ns),
                now_ns,
            )
            chosen = [it.record for it in found if it.held is None]
            if not chosen:
                return []
            with suppress(RametError):
                self._pool.delete([it.uuid for it in chosen], now=True)
                return [it.name for it in chosen]
            return [it.name for it in chosen if self._drop_one(it, errors)]
        except RametError as error:
            errors.append(str(error))
            return []

    def _drop_one(self, record: ObjectRecord, errors: list[str]) -> bool:
        try:
            self._pool.delete([record.uuid], now=True)
        except NotFoundError:
            return False  # Somebody else did.
        except RametError as error:
            errors.append(str(error))
            return False
        return True

    def _note_failure(self, name: str, text: str, now_ns: int, *, again: bool) -> None:
        before = self._failures.get(name)
        count = before.times + 1 if before else 1
        wait = min(RETRY_SECONDS_MIN * 2 ** min(count - 1, 16), RETRY_SECONDS_MAX)
        retry_ns = now_ns + round(wait * _NANOSECONDS) if again else 0
        self._failures[name] = _Failure(text, count, retry_ns)

    def _next_look(self, objects: Sequence[ObjectRecord], now_ns: int) -> int:
        coming = next_runs(self._following.rules, objects, now_ns)
        times = [
            max(when, failure.retry_ns) if (failure := self._failures.get(name)) else when
            for name, when in coming.items()
        ]
        return min([*times, now_ns + round(LOOK_SECONDS_MAX * _NANOSECONDS)])

    def _policy(self, name: str) -> Policy:
        policy = self._following.rules.policies.get(name)
        if policy is None:
            raise not_found("policy", name)
        return policy

    def _chosen(self, names: Sequence[str]) -> list[Outbound]:
        for name in names:
            if name not in self._following.outbounds:
                raise not_found("remote", name)
        return [it for name, it in self._following.outbounds.items() if not names or name in names]

    def _check_remote(self, remote: Remote) -> None:
        path = Path(remote.command[-1])
        if remote.url.startswith("file:") and path.exists() and path.samefile(self._path):
            raise InvalidError(
                "remote_is_itself", f"'{remote.url}' is this pool; hint: another one's directory"
            )

    def _follow(self, text: str, rules: Rules) -> None:
        """Follow other rules: have the remotes that they name, and no others."""
        old, outbounds = dict(self._following.outbounds), dict[str, Outbound]()
        for name, remote in rules.remotes.items():
            same = old.get(name)
            if same is not None and same.remote == remote:
                outbounds[name] = old.pop(name)
                continue
            outbounds[name] = Outbound(
                self._pool,
                name,
                remote,
                self._known.get(name),
                choose=lambda name=name: self._belonging(name),  # type: ignore[misc]
                note=self._note,
                say=self._tell,
            )
        before, self._following = self._following, _Following(text, rules, outbounds)
        for name, outbound in outbounds.items():
            if self._thread is not None and outbound is not before.outbounds.get(name):
                outbound.start()
        for outbound in old.values():
            outbound.stop()

    def _belonging(self, remote: str) -> list[ObjectRecord]:
        """Give the snapshots that a remote is to have."""
        objects = self._pool.objects()
        rules = self._following.rules
        return [
            it
            for name, policy in rules.policies.items()
            if remote in policy.remotes
            for it in snapshots_of(name, objects)
        ]

    def _note(self, name: str, known: Known) -> None:
        with self._noting:
            if self._known.get(name) == known:
                return
            remotes = self._following.rules.remotes
            others = {it: held for it, held in self._known.items() if it in remotes}
            self._known = others | {name: known}
            write_known(self._path, self._known)


def _held(following: _Following, objects: Sequence[ObjectRecord], now_ns: int) -> Held:
    held: dict[str, str] = {}
    for name, policy in following.rules.policies.items():
        snapshots = snapshots_of(name, objects) if policy.remotes else []
        for remote in policy.remotes:
            held.update(following.outbounds[remote].holds(snapshots, now_ns))

    def why(it: ObjectRecord) -> str | None:
        if it.lock is not None:
            return "locked"
        return "attached" if it.attached_count else held.get(it.uuid)

    return why


def _keep_text(policy: Policy) -> str:
    if isinstance(policy.keep, str):
        return policy.keep
    return " ".join(f"{key}={count}" for key, count in msgspec.to_builtins(policy.keep).items())
