"""`ramet tree`: the family as a person likes to see it."""

import re
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator

from ramet.cli.output import print_json
from ramet.cli.session import verbs_of
from ramet.records import ObjectRecord
from ramet.units import format_age, format_size

SIBLINGS_SHOWN_MAX = 8  # More of one kind and shape under one parent are summed up.
DEPTH_INDENTED_MAX = 40  # Deeper families go on at this depth, so that lines stay readable.

Children = dict[str | None, list[ObjectRecord]]


def tree(arguments: Namespace) -> None:
    """Show who was taken from whom; what is gone is folded away."""
    with verbs_of(arguments) as verbs:
        records = verbs.objects()
    if arguments.json:
        print_json([record.to_json() for record in records])
        return
    for line in lines_of(records, time.time_ns()):
        print(line)


def lines_of(records: list[ObjectRecord], now_ns: int) -> Iterator[str]:
    """Give the tree's lines; families deeper than Python recurses are no problem.

    Example: list(lines_of(pool.objects(), time.time_ns()))
    """
    children: Children = defaultdict(list)
    for record in sorted(records, key=lambda record: (record.created_ns, record.name)):
        children[record.parent].append(record)
    stack: list[tuple[int, list[ObjectRecord]]] = [(0, group) for group in _groups(children, None)]
    stack.reverse()
    while stack:
        depth, group = stack.pop()
        yield "  " * min(depth, DEPTH_INDENTED_MAX) + _describe(group, now_ns)
        if len(group) == 1:
            below = [(depth + 1, it) for it in _groups(children, group[0].uuid)]
            stack.extend(reversed(below))


def _groups(children: Children, parent: str | None) -> list[list[ObjectRecord]]:
    """Siblings one by one, but many alike and childless as one group."""
    alike: dict[tuple[str, str], list[ObjectRecord]] = defaultdict(list)
    for record in children[parent]:
        shape = record.uuid if children.get(record.uuid) else re.sub(r"\d+", "#", record.name)
        alike[record.kind, shape].append(record)
    groups: list[list[ObjectRecord]] = []
    for group in alike.values():
        groups += [group] if len(group) > SIBLINGS_SHOWN_MAX else [[record] for record in group]
    return groups


def _describe(group: list[ObjectRecord], now_ns: int) -> str:
    first, last = group[0], group[-1]
    mark = "@" if first.kind == "snapshot" else "*"
    mapped = format_size(sum(record.mapped_bytes for record in group))
    attached = sum(record.attached_count for record in group)
    name = first.name if len(group) == 1 else f"{first.name} .. {last.name}"
    count = "" if len(group) == 1 else f"{len(group)} {first.kind}s, "
    used = f", {attached} attached" if attached else ""
    size = format_size(first.size_bytes)
    age = format_age(first.created_ns, now_ns)
    return f"{mark} {name}  ({count}{size}, {mapped} mapped, {age} old{used})"
