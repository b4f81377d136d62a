"""The goals in figures, and what a figure is.

Owns the one table of goals (docs: "Goals in figures") and the verdict of a figure against its goal.
Pure. Invariant: a goal that is meant for a size is judged at that size only; anything smaller is
printed without a verdict.
"""

import statistics
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Goal:
    """A limit for one statistic of a figure.

    `judged`: median, min or max. `at_least`: the limit is a floor. `or_ratio`: it is also met where
    the figure is at most this many times its baseline. `count`: the number it is meant for.
    """

    text: str
    limit: float
    judged: str = "median"
    at_least: bool = False
    or_ratio: float | None = None
    count: int | None = None


@dataclass
class Figure:
    """What was measured: `values` of all rounds, in `unit`, of `count` objects (0: no number)."""

    key: str
    unit: str
    values: list[float]
    count: int = 0
    baseline: float | None = None
    note: str = ""
    details: dict[str, object] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def statistic(self, name: str) -> float:
        return {"median": self.median, "min": min(self.values), "max": max(self.values)}[name]

    def goal(self) -> Goal | None:
        return GOALS.get(self.key)

    def met(self) -> bool | None:
        """Say whether the goal is met; None where there is none, or none for this number."""
        goal = self.goal()
        if goal is None or (goal.count is not None and goal.count != self.count):
            return None
        value = self.statistic(goal.judged)
        if goal.at_least:
            return value >= goal.limit
        if goal.or_ratio is not None and self.baseline is not None:
            return value <= max(goal.limit, goal.or_ratio * self.baseline)
        return value <= goal.limit

    def to_json(self) -> dict[str, object]:
        goal = self.goal()
        summary = {name: self.statistic(name) for name in ("median", "min", "max")}
        told = {"goal": None if goal is None else goal.text, "met": self.met()}
        return asdict(self) | summary | told


MANY = 10_000
_STALL = "at most 1.2 of without, or 5 ms"
_SAME = "none measurable: at most 1.2"
LIVE_MIB = 1024
_TWICE = Goal("at most 2", 2.0, "max", count=MANY)


def _at_most(limit: float) -> Goal:
    return Goal(f"at most {limit}", limit, count=LIVE_MIB)


def _at_least(limit: float) -> Goal:
    return Goal(f"at least {limit}", limit, at_least=True, count=LIVE_MIB)


GOALS = {
    # Snapshot and clone of many, in the engine and by command.
    "engine.load.snapshot.gate": Goal("under 1 ms (each)", 1.0, "max", count=MANY),
    "engine.load.snapshot.beyond_device": Goal("under 50 ms", 50, count=MANY),
    "engine.load.clone.whole": Goal("under 250 ms", 250, count=MANY),
    "engine.load.clone.first_byte": Goal("under 5 ms", 5, count=MANY),
    "command.version": Goal("under 60 ms", 60),
    "command.idle": Goal("under 200 ms", 200),
    "command.snapshot.whole": Goal("under 200 ms", 200, count=1),
    "command.clone.whole": Goal("under 200 ms", 200, count=1),
    "command.snapshot.over_idle": Goal("under 250 ms", 250, count=MANY),
    "command.clone.over_idle": Goal("under 500 ms", 500, count=MANY),
    "command.clone.first_byte": Goal("under 5 ms", 5, count=MANY),
    # Clients meanwhile.
    "stalls.commands.max": Goal(_STALL, 5, "max", or_ratio=1.2, count=MANY),
    "stalls.commands.p99": Goal(_STALL, 5, "max", or_ratio=1.2, count=MANY),
    **{
        f"latency.{how}.{work}.{statistic}": Goal(_STALL, 5, "max", or_ratio=1.2, count=MANY)
        for how in ("clients", "fio")
        for work in ("snapshots", "checkpoint", "delete_all", "delete_one", "reclaim")
        for statistic in ("p99", "max")
    },
    # Whatever the shape.
    "shape.size.snapshot.ratio": Goal(_SAME, 1.2),
    "shape.size.clone.ratio": Goal(_SAME, 1.2),
    "shape.fill.snapshot.ratio": Goal(_SAME, 1.2),
    "shape.fill.clone.ratio": Goal(_SAME, 1.2),
    "shape.depth.snapshot.ratio": Goal(_SAME, 1.2, count=MANY),
    "shape.depth.clone.ratio": Goal(_SAME, 1.2, count=MANY),
    "shape.depth.read.ratio": Goal("at least 0.97", 0.97, at_least=True, count=MANY),
    # Memory and opening.
    "memory.idle_volume": Goal("at most 1 KiB", 1024),
    "memory.idle_clone": Goal("at most 1 KiB", 1024),
    "memory.idle_snapshot": Goal("at most 1 KiB", 1024),
    "memory.overwrites": Goal("at most 256 KiB", 256 * 1024, count=1000),
    "opening.filled": Goal("under 2 s", 2.0, count=MANY),
    "opening.objects": Goal("under 2 s", 2.0, count=1_000_000),
    "cold.device_reads": Goal("at most 3", 3.0, count=20_000),
    # The data path: ratios to the peer that stands in the unit's column.
    "datapath.memory.read.d32.cpu_us.ratio": _at_most(0.5),
    "datapath.memory.read.d32.iops.ratio": _at_least(1.6),
    "datapath.memory.write.d32.calm_cpu_us.ratio": _at_most(0.5),
    "datapath.memory.write.d32.iops.ratio": _at_least(1.6),
    "datapath.memory.read.d1.p50_us.ratio": _at_most(0.8),
    "datapath.memory.read.d1.cpu_us.ratio": _at_most(1.1),
    "datapath.memory.write.d1.p50_us.ratio": _at_most(0.8),
    "datapath.memory.write.d1.cpu_us.ratio": _at_most(1.1),
    "datapath.disk.write.d32.iops.ratio": _at_least(3),
    "datapath.disk.write.d32.calm_cpu_us.ratio": _at_most(0.25),
    "datapath.disk.write.flush.iops.ratio": _at_least(1.5),
    "datapath.disk.write.d32.long.iops.ratio": _at_least(3),
    "datapath.disk.write.d32.long.calm_cpu_us.ratio": _at_most(0.25),
    "datapath.history.read.after.ratio": Goal("at most 1.03", 1.03, count=1),
    "datapath.history.write.after.ratio": Goal("at most 1.1", 1.1, count=1),
    "datapath.history.read.deep.ratio": Goal("at most 1.03", 1.03, count=MANY),
    "datapath.history.write.deep.ratio": Goal("at most 1.1", 1.1, count=MANY),
    "datapath.disk.sequential.read.iops.ratio": _at_least(1.25),
    "datapath.disk.sequential.write.flush.iops.ratio": _at_least(1.0),
    "datapath.disk.read.cold.iops.ratio": _at_least(1.0),
    "datapath.disk.aged.ratio": _at_most(1.5),
    "volumes.flush.one.ratio": Goal("at least 10", 10, at_least=True, count=64),
    "volumes.flush.qemu-nbd-qcow2.ratio": Goal("at least 5", 5, at_least=True, count=64),
    # Space: nodes visited through nodes that differ, or die.
    "space.used.ramet.ratio": Goal("at most 1.12", 1.12, count=20),
    "space.used.less_than_copies": Goal("at least 6", 6, at_least=True, count=20),
    "space.start.less_than_copies": Goal("at least 100", 100, at_least=True, count=1000),
    "reclaim.one.golden.visited": _TWICE,
    "reclaim.one.cold.visited": _TWICE,
    "reclaim.one.golden_gone.visited": _TWICE,
    "reclaim.chain.visited": _TWICE,
    # Sending what changed: the bound is 1.05 of that, and 1 KiB for each snapshot.
    "sites.wire.of_bound": Goal("at most 1", 1.0),
    "sites.run.of_interval": Goal("at most 1", 1.0, "max"),
    "differences.1%.wire.of_bound": Goal("at most 1", 1.0),
    "differences.0.1%.wire.of_bound": Goal("at most 1", 1.0),
    "differences.0%.wire.of_bound": Goal("at most 1", 1.0),
    "differences.group.wire.of_bound": Goal("at most 1", 1.0),
    "differences.1%.cpu.of_all": Goal("at most 0.05", 0.05, count=8192),
    "differences.0.1%.cpu.of_all": Goal("at most 0.02", 0.02, count=8192),
    "differences.0%.cpu.of_all": Goal("at most 0.02", 0.02, count=8192),
    "volumes.first.flushed.bytes.ramet": Goal("at most 8.5 KiB", 8704),
    "volumes.first.d32.bytes.ramet": Goal("at most 4.5 KiB", 4608),
}


def table(figures: list[Figure]) -> str:
    """Lay the figures out for people, one a line."""
    head = ("figure", "of", "median", "min", "max", "unit", "goal", "")
    verdicts = {True: "met", False: "MISSED", None: ""}
    rows = [head]
    for it in figures:
        goal = it.goal()
        numbers = [_short(it.statistic(name)) for name in ("median", "min", "max")]
        of = f"{it.count:,}" if it.count else it.note
        rows.append(
            (it.key, of, *numbers, it.unit, "" if goal is None else goal.text, verdicts[it.met()])
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row in rows:
        cells = [
            text.rjust(width) if 2 <= column <= 4 else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def _short(value: float) -> str:
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
