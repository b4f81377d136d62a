"""Sizes, durations and times: what people write is understood exactly or refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import InvalidError
from ramet.units import (
    SIZE_BYTES_MAX,
    format_age,
    format_duration,
    format_size,
    format_time,
    parse_duration,
    parse_size,
)

SECOND_NS = 10**9


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        (0, 0),
        (512, 512),
        ("512", 512),
        ("0", 0),
        ("512B", 512),
        ("1KiB", 1024),
        ("10GiB", 10 * 2**30),
        ("10G", 10 * 2**30),
        ("10g", 10 * 2**30),
        ("1.5TiB", 3 * 2**39),
        (" 1.5 TiB ", 3 * 2**39),
        ("0.5KiB", 512),
        ("256T", 2**48),
        ("7PiB", 7 * 2**50),
        ("9007199254740993", 2**53 + 1),
        (str(SIZE_BYTES_MAX), SIZE_BYTES_MAX),
    ],
)
def test_sizes_mean_exactly_what_they_say(text: str | int, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "GiB", "ten", "10 GB", "10kB", "10Gi B", "1e9", "1,5GiB", "10GiBs", "0x10"),
        *("1.GiB", ".5GiB", "1 0", "٣", "1_000", "10\x00", True, 10.0, None, b"10", "9" * 40),
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_size(text)
    assert caught.value.code == "size_syntax"


@pytest.mark.parametrize("text", [-1, "-1", "-10GiB", "0.1GiB", SIZE_BYTES_MAX + 1, "9000PiB"])
def test_sizes_that_cannot_be_are_refused(text: str | int) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_size(text)
    assert caught.value.code == "size_range"


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (10 * 2**30, "10 GiB"),
        (2**48, "256 TiB"),
        (2**62, "4096 PiB"),
        (1_234_567, "1.18 MiB"),
    ],
)
def test_sizes_are_short_for_people(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(st.integers(0, 1023), st.sampled_from([1, 2**10, 2**20, 2**30, 2**40, 2**50]))
def test_whole_units_are_read_back_as_they_were(count: int, unit_bytes: int) -> None:
    assert parse_size(format_size(count * unit_bytes)) == count * unit_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (90, 90),
        (0.25, 0.25),
        ("90", 90),
        ("1.5", 1.5),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("2d", 172_800),
        ("1w", 604_800),
        ("250ms", 0.25),
        ("10us", 1e-5),
        ("1y", 31_536_000),
        (" 1h ", 3600),
    ],
)
def test_durations_are_understood(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "h", "-1h", "1x", "1h!", -1, float("nan"), float("inf"), True, None, "1e3", "101y"],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_duration(text)
    assert caught.value.code == "duration_syntax"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 us"),
        (0.00042, "420 us"),
        (0.0123, "12.3 ms"),
        (0.99949, "999 ms"),
        (0.99951, "1 s"),
        (4.56, "4.56 s"),
        (59.96, "1m"),
        (200, "3m 20s"),
        (7500, "2h 5m"),
        (273_600, "3d 4h"),
        (-2, "-2 s"),
    ],
)
def test_durations_have_three_digits(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("age_seconds", "text"),
    [
        (-5, "just now"),
        (0, "just now"),
        (1, "1s"),
        (59, "59s"),
        (60, "1m"),
        (7199, "1h"),
        (86_400, "1d"),
        (8 * 86_400, "1w"),
        (800 * 86_400, "2y"),
    ],
)
def test_ages_are_in_their_largest_unit(age_seconds: int, text: str) -> None:
    assert format_age(SECOND_NS, SECOND_NS + age_seconds * SECOND_NS) == text


def test_times_are_utc_to_the_millisecond() -> None:
    assert format_time(0) == "1970-01-01T00:00:00.000Z"
    assert format_time(1_795_520_605_123_999_999) == "2026-11-24T11:43:25.123Z"
