"""`ramet tree`: a family as lines, with what is alike summed up."""

import random
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from ramet.cli.family import SHOWN_MAX, label_of, lines_of, natural
from ramet.cli.tree import table_of
from ramet.records import ObjectRecord

HOUR_NS = 3600 * 10**9
NOW_NS = 1000 * HOUR_NS
MIB = 1 << 20


def thing(name: str, parent: str | None = None, hours: int = 1, attached: int = 0) -> ObjectRecord:
    """An object whose UUID is its name, so many hours old."""
    kind = "snapshot" if "@" in name else "volume"
    created_ns = NOW_NS - hours * HOUR_NS
    return ObjectRecord(name, name, kind, MIB, 4096, created_ns, parent, None, "", attached)


def drawn(records: Iterable[ObjectRecord]) -> list[str]:
    """Give the lines as text: depth as dots, label, count where it is more than one."""
    return [
        "." * line.depth + line.label + (f" {len(line.members)}" if len(line.members) > 1 else "")
        for line in lines_of(list(records))
    ]


def test_objects_stand_below_what_they_were_taken_from() -> None:
    records = [
        thing("golden", "golden@1", hours=9),
        thing("golden@1", hours=8),
        thing("vm-10", "golden@1", hours=2),
        thing("vm-2", "golden@1", hours=2),
        thing("alone", hours=1),
    ]
    assert drawn(records) == ["golden@1", ".golden", ".vm-2", ".vm-10", "alone"]


def test_many_alike_are_one_line_with_their_count_and_first_and_last_number() -> None:
    """They were "vm-1 .. vm-99": the first and last in the order of letters."""
    clones = [thing(f"vm-{number}", "golden@1") for number in range(1, 1001) if number % 7]
    assert drawn([thing("golden@1", hours=5), *clones]) == ["golden@1", ".vm-{1..1000} 858"]
    few = clones[:SHOWN_MAX]
    assert drawn([*few, thing("golden@1", hours=5)])[1:] == [f".{it.name}" for it in few]


def test_names_without_numbers_are_summed_up_by_their_first_word() -> None:
    letters = [f"sandbox-{letter}x" for letter in "abcdefghijkl"]
    assert drawn(map(thing, letters)) == ["sandbox-* 12"]
    hexes = [f"ci-{number:x}f" for number in range(100, 140)]
    assert all(line.startswith("ci-") for line in drawn(map(thing, hexes)))
    assert len(drawn(map(thing, hexes))) <= SHOWN_MAX


def test_what_was_taken_from_any_of_a_line_stands_below_it() -> None:
    records = [thing("golden@1", hours=9)]
    for number in range(1, 101):
        records += [
            thing(f"vm-{number}@nightly-1", "golden@1", hours=8),
            thing(f"vm-{number}@nightly-2", f"vm-{number}@nightly-1", hours=7),
            thing(f"vm-{number}", f"vm-{number}@nightly-2", hours=6),
        ]
    records += [thing("vm-7@kept", "vm-7@nightly-1", hours=1), thing("debug", "vm-9@nightly-2")]
    assert drawn(records) == [
        "golden@1",
        ".vm-{1..100}@nightly-{1..2} 200",
        "..vm-{1..100} 100",
        "..debug",
        "..vm-7@kept",
    ]


def chain(count: int) -> list[ObjectRecord]:
    """Snapshots that follow each other, and the volume they were taken of."""
    names = [f"db@{number}" for number in range(1, count + 1)] + ["db"]
    return [
        thing(name, before, hours=count - index)
        for index, (name, before) in enumerate(zip(names, [None, *names], strict=False))
    ]


def test_a_long_line_of_snapshots_is_one_line_unless_something_was_taken_between() -> None:
    assert drawn(chain(1)) == ["db@1", ".db"]
    assert drawn(chain(3)) == ["db@1", ".db@2", "..db@3", "...db"]
    assert drawn(chain(30)) == ["db@{1..30} 30", ".db"]
    assert drawn([*chain(30), thing("fork", "db@12", hours=0)]) == [
        "db@{1..12} 12",
        ".db@{13..30} 18",
        "..db",
        ".fork",
    ]
    assert drawn(chain(50_000)) == ["db@{1..50000} 50000", ".db"]


def test_a_deep_family_is_no_problem() -> None:
    names = [f"{'ab'[depth % 2]}@x" + "y" * (depth % 3) + str(depth) for depth in range(5000)]
    records = [thing(name, before) for name, before in zip(names, [None, *names], strict=False)]
    lines = list(lines_of(records))
    assert [line.depth for line in lines] == list(range(5000))
    _, rows = table_of(lines, NOW_NS, 80)
    assert max(map(len, (row[0] for row in rows))) <= 80


@given(st.integers(0, 2**32), st.integers(1, 120))
def test_every_object_is_in_one_line_and_its_parent_at_or_above_it(seed: int, count: int) -> None:
    draws = random.Random(seed)
    records: list[ObjectRecord] = []
    for number in range(count):
        parent = draws.choice([None, *records])
        form = draws.choice(["v{}", "v{}@{}", "other", "x-{}-y", "v@{}"])
        name = form.format(number, draws.randrange(3)) + ("" if "{" in form else str(number))
        records.append(thing(name, parent and parent.name, hours=count - number))
    place = {}
    lines = list(lines_of(records))
    for index, line in enumerate(lines):
        for member in line.members:
            assert member.name not in place
            place[member.name] = index
    assert len(place) == len(records)
    for record in records:
        if record.parent is not None:
            above = place[record.parent]
            assert above <= place[record.name]
            if above < place[record.name]:
                assert lines[above].depth == lines[place[record.name]].depth - 1


def test_labels_say_what_differs() -> None:
    def label(*names: str) -> str:
        return label_of([thing(name) for name in names])

    assert label("db") == "db"
    assert label("vm-9", "vm-10") == "vm-{9..10}"
    assert label("a1@5", "a2@5") == "a{1..2}@5"
    assert label("vm-007", "vm-012") == "vm-{007..012}"
    assert label("web", "worker") == "w*"
    assert label("x", "y") == "*"
    assert sorted(["vm-10", "vm-2", "vm", "a"], key=natural) == ["a", "vm", "vm-2", "vm-10"]


def test_the_table_fits_the_terminal_and_leaves_empty_columns_out() -> None:
    records = [thing("long-" * 30 + "end", hours=30), thing("small", hours=1, attached=2)]
    lines = list(lines_of(records))
    head, rows = table_of(lines, NOW_NS, 80)
    assert head == ["NAME", "SIZE>", "MAPPED>", "AGE>", "ATTACHED>"]
    assert rows[1] == ["* small", "1 MiB", "4 KiB", "1h", "2"]
    assert rows[0][0].startswith("* long-")
    assert rows[0][0].endswith("long-end")
    assert "…" in rows[0][0]
    widest = max(len(row[0]) for row in rows)
    assert widest + len("  1 MiB  4 KiB   1d  ATTACHED  ") <= 80 + 4
    assert table_of(lines, NOW_NS, None)[1][0][0] == "* " + records[0].name


def test_a_line_of_many_says_their_sum_and_their_ages() -> None:
    records = [thing(f"vm-{number}", hours=number, attached=1) for number in range(1, 21)]
    records[3] = records[3]._replace(size_bytes=2 * MIB)
    ((name, count, size, mapped, age, attached),) = table_of(list(lines_of(records)), NOW_NS, 120)[
        1
    ]
    assert (name, count, size) == ("* vm-{1..20}", "20", "<= 2 MiB")
    assert (mapped, age, attached) == ("80 KiB", "1h-20h", "20")
