"""A family of objects as lines: who was taken from whom, what is alike summed up.

Pure. Called by tree.py. Invariants: every object is in exactly one line; a line stands below one
that holds its parent; families deeper than Python recurses, and of a million, are no problem.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ramet.records import ObjectRecord

SHOWN_MAX = 8  # More that are alike side by side are summed up.
RUN_SHOWN_MAX = 3  # So are more snapshots that follow each other: each would be indented further.

NUMBER = re.compile(r"(\d+)")
WORD = re.compile(r"[A-Za-z]*")

Records = list[ObjectRecord]
Key = Callable[[str], str]


class Line(NamedTuple):
    """One object, or several that are alike."""

    depth: int
    label: str
    """The name; for several what is common to them: `vm-{1..1000}`, `sandbox-*`."""
    members: Records


def lines_of(records: Records) -> Iterator[Line]:
    """Give the lines of all families, parents first.

    Example: [line.label for line in lines_of(pool.objects())]
    """
    children: dict[str | None, Records] = defaultdict(list)
    for record in sorted(records, key=lambda it: (it.created_ns, natural(it.name))):
        children[record.parent].append(record)
    stack = [(0, group) for group in reversed(_groups(children.get(None, [])))]
    while stack:
        depth, group = stack.pop()
        members, below = _line(group, children)
        yield Line(depth, label_of(members), members)
        stack += [(depth + 1, it) for it in reversed(_groups(below))]


def natural(name: str) -> tuple[tuple[str, int], ...]:
    """Give what names are sorted by, so that vm-2 is before vm-10.

    Example: sorted(["vm-10", "vm-2"], key=natural)
    """
    parts = NUMBER.split(name)
    numbers = [*map(int, parts[1::2]), 0]
    return tuple(zip(parts[::2], numbers, strict=True))


def label_of(members: Records) -> str:
    """Give a name for all: numbers that differ as `{FIRST..LAST}`, else what all begin with.

    Example: label_of(pool.objects()[:1])
    """
    names = [member.name for member in members]
    if len(names) == 1:
        return names[0]
    if len({_shape(name) for name in names}) > 1:
        # What the first and the last in order have in common, all between them have.
        low, high = min(names), max(names)
        same = next((at for at, letter in enumerate(low) if high[at : at + 1] != letter), len(low))
        return low[:same] + "*"
    label = ""
    for index, column in enumerate(zip(*map(NUMBER.split, names), strict=True)):
        parts = set(column)
        if index % 2 == 0 or len(parts) == 1:
            label += column[0]
        else:
            first, last = min(parts, key=int), max(parts, key=int)
            label += f"{{{first}..{last}}}"
    return label


def _shape(name: str) -> str:
    return NUMBER.sub("#", name)


def _groups(siblings: Records) -> list[Records]:
    """Siblings one by one; but those of one shape, or else of one first word, together."""
    groups, rest = _together(siblings, _shape)
    more, rest = _together(rest, lambda name: "".join(WORD.findall(name)[:1]))
    groups += more + [[record] for record in rest]
    return sorted(groups, key=lambda group: (group[0].created_ns, natural(group[0].name)))


def _together(siblings: Records, key: Key) -> tuple[list[Records], Records]:
    alike: dict[tuple[str, str], Records] = defaultdict(list)
    for record in siblings:
        alike[record.kind, key(record.name)].append(record)
    many = [group for group in alike.values() if len(group) > SHOWN_MAX]
    few = [it for group in alike.values() if len(group) <= SHOWN_MAX for it in group]
    return many, few


def _line(group: Records, children: dict[str | None, Records]) -> tuple[Records, Records]:
    """Give what stands in the line of a group, and what stands below it.

    Snapshots that follow each other under names of one shape are one line: of many side by side
    always, of one where they are many and nothing else was taken from them.
    """
    if len(group) == 1:
        run = _run(group[0], children)
        members = run if len(run) > RUN_SHOWN_MAX else group
        return members, children.get(members[-1].uuid, [])
    members, below, level = list(group), [], group
    shapes = {_shape(it.name) for it in group if it.kind == "snapshot"}
    while level:
        taken = [child for it in level for child in children.get(it.uuid, [])]
        level = [it for it in taken if it.kind == "snapshot" and _shape(it.name) in shapes]
        members += level
        chosen = {it.uuid for it in level}
        below += [it for it in taken if it.uuid not in chosen]
    return members, below


def _run(first: ObjectRecord, children: dict[str | None, Records]) -> Records:
    run = [first]
    shape = _shape(first.name)
    while run[-1].kind == "snapshot":
        taken = children.get(run[-1].uuid, [])
        if len(taken) != 1 or taken[0].kind != "snapshot" or _shape(taken[0].name) != shape:
            break
        run += taken
    return run
