"""`ramet tree`: the family as a person likes to see it."""

import os
import shutil
import sys
import time
from argparse import Namespace

from ramet.cli.family import Line, lines_of
from ramet.cli.output import print_json, print_table
from ramet.cli.session import verbs_of
from ramet.units import format_age, format_size

DEPTH_INDENTED_MAX = 20  # Deeper families go on at this depth, so that lines stay readable.
NAME_WIDTH_MIN = 20
GAP = 2  # Between columns.


def tree(arguments: Namespace) -> None:
    """Show who was taken from whom; what is gone is folded away, what is alike summed up."""
    with verbs_of(arguments) as verbs:
        records = verbs.objects()
    if arguments.json:
        print_json([record.to_json() for record in records])
        return
    head, rows = table_of(list(lines_of(records)), time.time_ns(), _width())
    print_table(head, rows)


def table_of(
    lines: list[Line], now_ns: int, width: int | None
) -> tuple[list[str], list[list[str]]]:
    """Give head and rows; columns that nothing is in are left out, long names are shortened.

    Example: table_of([], time.time_ns(), 80)
    """
    head = ["NAME", "COUNT>", "SIZE>", "MAPPED>", "AGE>", "ATTACHED>"]
    rows = [_row(line, now_ns) for line in lines]
    used = [column for column in range(len(head)) if column < 1 or any(it[column] for it in rows)]
    head = [head[column] for column in used]
    rows = [[row[column] for column in used] for row in rows]
    if width is not None and rows:
        widths = [
            max(len(title.rstrip(">")), *(len(row[column]) for row in rows))
            for column, title in enumerate(head)
        ]
        left = max(NAME_WIDTH_MIN, width - sum(widths[1:]) - GAP * (len(widths) - 1))
        for row in rows:
            row[0] = _shortened(row[0], left)
    return head, rows


def _row(line: Line, now_ns: int) -> list[str]:
    first = line.members[0]
    mark = "@" if first.kind == "snapshot" else "*"
    sizes = {record.size_bytes for record in line.members}
    size = format_size(max(sizes))
    attached = sum(record.attached_count for record in line.members)
    return [
        "  " * min(line.depth, DEPTH_INDENTED_MAX) + f"{mark} {line.label}",
        str(len(line.members)) if len(line.members) > 1 else "",
        size if len(sizes) == 1 else f"<= {size}",
        format_size(sum(record.mapped_bytes for record in line.members)),
        _ages(line, now_ns),
        str(attached) if attached else "",
    ]


def _ages(line: Line, now_ns: int) -> str:
    moments = [record.created_ns for record in line.members]
    newest, oldest = (
        format_age(moment, now_ns).replace("just ", "") for moment in (max(moments), min(moments))
    )
    return newest if newest == oldest else f"{newest}-{oldest}"


def _shortened(text: str, width: int) -> str:
    """Leave the middle of a text out, where it is too wide: both ends say more."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"


def _width() -> int | None:
    """Columns of the terminal; None where nobody looks."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        return shutil.get_terminal_size().columns
    return None
