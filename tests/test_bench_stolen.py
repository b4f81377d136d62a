"""The bench leaves out requests while a processor was away, and no others."""

import importlib.util
import io
import sys
from pathlib import Path
from types import SimpleNamespace

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


def test_a_stretched_piece_is_stolen_whatever_ticked_and_a_late_beat_where_nothing_did() -> None:
    heart = stolen.Heart.__new__(stolen.Heart)
    heart._ticks = []
    heart._timer = SimpleNamespace(ticks=lambda: list(range(0, 5_000_000, 200_000)))
    lines = [(1_000_000, 2_000_000, False), (3_000_000, 3_150_000, True)]
    sent = b"".join(stolen.Heart._LINE.pack(*line) for line in lines)
    heart._process = SimpleNamespace(stdout=io.BytesIO(sent))
    assert heart.away() == [(3_000_000, 3_150_000)]


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
