"""The bench leaves out requests while a processor was away, and no others."""

import importlib.util
import itertools
import random
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

PATH = Path(__file__).parent.parent / "bench" / "stolen.py"
SPEC = importlib.util.spec_from_file_location("bench_stolen", PATH)
assert SPEC is not None
assert SPEC.loader is not None
stolen = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = stolen
SPEC.loader.exec_module(stolen)

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 6)), max_size=12)


def test_a_late_beat_during_ticks_is_the_system_s_own() -> None:
    ticks = list(range(0, 5_000, 200))
    assert stolen.silences(1_000, 4_000, ticks, 500) == []


def test_a_late_beat_without_ticks_is_stolen_where_they_are_missing() -> None:
    ticks = [800, 1_000, 1_200, 2_400, 2_600, 3_400, 3_500]
    assert stolen.silences(1_100, 3_300, ticks, 500) == [(1_200, 2_400), (2_600, 3_300)]
    assert stolen.silences(1_100, 1_500, [], 500) == []
    assert stolen.silences(1_100, 1_600, [], 500) == [(1_100, 1_600)]


def test_a_span_within_the_one_before_changes_nothing() -> None:
    watch = stolen.StolenTime.__new__(stolen.StolenTime)
    watch.spans = []
    watch._add(0, 10)
    watch._add(5, 8)
    assert watch.spans == [(0, 10)]


@given(SPANS, st.integers(-5, 70), st.integers(0, 9))
def test_what_touches_a_span_is_found_whatever_order_they_came_in(
    found: list[tuple[int, int]], begun: int, length: int
) -> None:
    # As they come: each ends after all that were found before it.
    spans = sorted(((first, first + more) for first, more in found), key=lambda span: span[1])
    watch = stolen.StolenTime.__new__(stolen.StolenTime)
    watch.spans = []
    for span in spans:
        watch._add(*span)
    assert watch.spans == sorted(watch.spans)
    ended = begun + length
    assert watch.touches(begun, ended) == any(a <= ended and begun <= b for a, b in spans)
    covered = {at for a, b in spans for at in range(a, b)}
    if length:
        inside = len(covered & set(range(begun, ended)))
        assert abs(watch.part((begun, ended)) - inside / length) < 1e-9


def test_a_timer_that_ticks_as_if_by_chance_tells_of_a_slow_processor() -> None:
    chance = random.Random(1)
    regular = [at + chance.randrange(20) for at in range(0, 20_000, 200)]
    slow = sorted(chance.randrange(20_000, 24_000) for _ in range(20))
    after = [at + chance.randrange(20) for at in range(24_000, 40_000, 200)]
    assert stolen.irregular(regular + after, 200, 8, 40) == []
    found = stolen.irregular(regular + slow + after, 200, 8, 40)
    assert found
    # Those that begin before reach into it, and those that end after it begin in it.
    assert all(begun < 24_000 and ended > 20_000 for begun, ended in found)
    covered = {at for begun, ended in found for at in range(begun, ended)}
    assert len(covered & set(range(20_000, 24_000))) > 3_000


def test_an_idle_processor_s_timer_tells_nothing() -> None:
    chance = random.Random(2)
    heard = [at + chance.randrange(200) for at in range(0, 60_000, 1_000)]
    assert stolen.irregular(heard, 200, 8, 40) == []


@given(st.lists(st.integers(0, 5_000), max_size=60))
def test_irregular_ticks_are_found_as_by_looking_at_each_stretch(ticks: list[int]) -> None:
    ticks.sort()
    expected = []
    for first in range(len(ticks) - 4):
        part = ticks[first : first + 5]
        gaps = [later - one for one, later in itertools.pairwise(part)]
        off = [min(gap % 200, 200 - gap % 200) for gap in gaps]
        if sum(off) / 4 >= 40 and part[-1] - part[0] <= 3 * 4 * 200:
            expected.append((part[0], part[-1]))
    assert stolen.irregular(ticks, 200, 4, 40) == expected
