"""The bench leaves out requests while a processor was away, and no others."""

import importlib.util
import io
import mmap
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

from hypothesis import example, given
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
    ticks = list(range(1_000_030, 5_000_000, 500_000))
    due = range(1_000_010, 4_000_000, 500_000)
    assert stolen.silences((1_000_000, 4_000_000), due, ticks, 200_000) == []


def test_a_late_beat_without_ticks_is_stolen_from_when_one_was_due() -> None:
    due = range(1_500_000, 4_300_000, 500_000)
    # Nobody heard the one of 2 ms in time, nor those of 3 and 3.5, nor that of 4.
    ticks_us = [500, 1_000, 1_520, 2_200, 2_500, 3_600, 4_400, 4_500]
    ticks = [at * 1000 for at in ticks_us]
    late = (1_100_000, 4_300_000)
    longest = (3_000_000, 3_600_000)
    found = [(2_000_000, 2_200_000), longest, (4_000_000, 4_300_000)]
    assert stolen.silences(late, due, ticks, 200_000) == found
    assert stolen.silences(late, due, ticks, 301_000) == [longest]
    assert stolen.silences((1_100_000, 1_450_000), range(0), [], 200_000) == []
    none_after = stolen.silences((1_100_000, 1_700_000), due[:1], ticks[:2], 200_000)
    assert none_after == [(1_500_000, 1_700_000)]


@given(
    st.integers(0, 499_999),
    st.lists(st.integers(0, 20_000), min_size=60, max_size=60),
    st.lists(st.integers(100_000, 400_000), max_size=40),
)
@example(450_000, [0] * 60, [100_000] * 40)
def test_when_a_timer_is_due_is_told_by_most_of_its_ticks(
    due: int, on_time: list[int], away: list[int]
) -> None:
    ticks = [due + 500_000 * count + late for count, late in enumerate(away + on_time)]
    found = stolen.phase(ticks, 500_000)
    assert (due - found + stolen.TOGETHER_NS) % 500_000 <= stolen.TOGETHER_NS + 20_000


def test_ticks_are_read_once_and_across_the_end_of_the_ring() -> None:
    timer = stolen.Timer.__new__(stolen.Timer)
    timer._ring = mmap.mmap(-1, mmap.PAGESIZE + timer._RING_BYTES)
    records = [(timer._TICKED, at) for at in (7, 8, 9, 10)]
    records.insert(2, (2, 99))  # Of another kind.
    written = timer._RING_BYTES - 3 * 16
    for kind, at in records:
        place = mmap.PAGESIZE + written % timer._RING_BYTES
        timer._ring[place : place + 16] = struct.pack("=IHHQ", kind, 0, 16, at)
        written += 16
    timer._TIME.pack_into(timer._ring, timer._READ, written - 5 * 16)
    timer._TIME.pack_into(timer._ring, timer._WRITTEN, written)
    assert timer.ticks() == [7, 8, 9, 10]
    assert timer.ticks() == []
    timer.close()


def test_a_stretched_piece_is_stolen_whatever_ticked_and_a_late_beat_where_nothing_did() -> None:
    heart = stolen.Heart.__new__(stolen.Heart)
    heart._ticks = []
    every_ns = stolen.Timer.TICK_NS
    ticks = [at for at in range(7_000, 9_000_000, every_ns) if not 5e6 < at < 7e6]
    heart._timer = SimpleNamespace(ticks=lambda: ticks, TICK_NS=every_ns)
    lines = [
        (1_000_000, 2_000_000, False),
        (3_000_000, 3_150_000, True),
        (5_100_000, 6_900_000, False),
    ]
    sent = b"".join(stolen.Heart._LINE.pack(*line) for line in lines)
    heart._process = SimpleNamespace(stdout=io.BytesIO(sent))
    assert heart.away() == [(3_000_000, 3_150_000), (5_507_000, 6_900_000)]


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
