"""Sizes, durations and times as people write them.

Pure. Imports errors only. Invariant: what `format_size` prints for a whole number of a unit,
`parse_size` reads back exactly. Units are powers of 1024. `K`, `M`, `G`, `T` and `P` alone mean
KiB, MiB, GiB, TiB and PiB, as in qemu-img and ceph; `kB`, `MB` and the like are refused, because
people disagree about what they mean.
"""

import re
import time
from datetime import timedelta

from ramet.errors import InvalidError

SIZE_BYTES_MAX = (
    2**63 - 1
)  # What a signed 64-bit offset can say; the engine's own limits are lower.
DURATION_SECONDS_MAX = 100 * 365 * 86_400  # A hundred years: beyond it is a typing error.

_UNIT_BYTES: dict[str, int] = {"": 1, "B": 1} | {
    prefix + suffix: 1024**power
    for power, prefix in enumerate("KMGTP", start=1)
    for suffix in ("", "iB")
}
_BYTES_BY_UNIT = {unit.upper(): unit_bytes for unit, unit_bytes in _UNIT_BYTES.items()}
_SIZE = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,15}))?\s*([A-Za-z]*)")

_UNIT_SECONDS = {
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86_400.0,
    "w": 7 * 86_400.0,
    "y": 365 * 86_400.0,
}
_DURATION_PART = re.compile(r"\s*([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*(us|ms|[smhdwy])")
_DURATION_PLAIN = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?")


def parse_size(value: str | int) -> int:
    """Give the bytes that `value` means.

    `value`: an integer, or a text such as "512", "10GiB", "10G" (10 GiB), "1.5 TiB"; upper and
    lower case are the same. Result: bytes, from 0 to `SIZE_BYTES_MAX`.
    Raises: InvalidError, code size_syntax for a text that is no size, size_range for a number that
    is negative, too large or not a whole number of bytes.
    Example: parse_size("10GiB")
    """
    if isinstance(value, str):
        value = _parse_size_text(value)
    elif isinstance(value, bool) or not isinstance(value, int):
        raise _bad_size(value)
    if not 0 <= value <= SIZE_BYTES_MAX:
        raise InvalidError(
            "size_range", f"size of {value} bytes is not between 0 and {SIZE_BYTES_MAX}"
        )
    return value


def _parse_size_text(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        if text.strip().startswith("-"):
            raise InvalidError("size_range", f"size '{text}' is negative; hint: give 1 or more")
        raise _bad_size(text)
    whole, fraction, unit = match.group(1), match.group(2) or "", match.group(3).upper()
    if unit not in _BYTES_BY_UNIT:
        raise _bad_size(text)
    # Whole numbers all the way: a size that went through a float would be wrong from 8 PiB on.
    scaled: int = int(whole + fraction) * _BYTES_BY_UNIT[unit]
    scale: int = 10 ** len(fraction)
    if scaled % scale:
        raise InvalidError(
            "size_range",
            f"size '{text}' is not a whole number of bytes; hint: use a smaller unit",
        )
    return scaled // scale


def _bad_size(value: object) -> InvalidError:
    return InvalidError(
        "size_syntax",
        f"{value!r} is not a size; hint: bytes, or a number with KiB, MiB, GiB, TiB or PiB"
        " ('10GiB'; 'G' alone is GiB too)",
    )


def format_size(size_bytes: int) -> str:
    """Give a size for people: "10 GiB", "1.5 TiB", "512 B"; at most two digits after the point.

    Example: format_size(1536)
    """
    unit, unit_bytes = "B", 1
    for candidate in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(size_bytes) < _UNIT_BYTES[candidate]:
            break
        unit, unit_bytes = candidate, _UNIT_BYTES[candidate]
    if unit_bytes == 1:
        return f"{size_bytes} B"
    number = f"{size_bytes / unit_bytes:.2f}".rstrip("0").rstrip(".")
    return f"{number} {unit}"


def parse_duration(value: str | float | timedelta) -> float:
    """Give the seconds that `value` means.

    `value`: seconds as a number, a text such as "90", "1.5h", "1h30m", "2d", "1w", "250ms", or a
    timedelta. Result: seconds, from 0 to a hundred years.
    Raises: InvalidError (code duration_syntax) for anything else.
    Example: parse_duration("1h30m")
    """
    if isinstance(value, str):
        seconds = _parse_duration_text(value)
    elif isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad_duration(value)
    else:
        seconds = float(value)
    if not 0 <= seconds <= DURATION_SECONDS_MAX:  # False for a NaN, too.
        raise _bad_duration(value)
    return seconds


def _parse_duration_text(text: str) -> float:
    stripped = text.strip()
    if _DURATION_PLAIN.fullmatch(stripped):
        return float(stripped)
    seconds, at = 0.0, 0
    while at < len(stripped):
        match = _DURATION_PART.match(stripped, at)
        if match is None:
            raise _bad_duration(text)
        seconds += float(match.group(1)) * _UNIT_SECONDS[match.group(2)]
        at = match.end()
    if at == 0:
        raise _bad_duration(text)
    return seconds


def _bad_duration(value: object) -> InvalidError:
    return InvalidError(
        "duration_syntax",
        f"{value!r} is not a duration of up to 100 years; hint: seconds, or numbers with"
        " us, ms, s, m, h, d, w or y ('1h30m')",
    )


def format_duration(seconds: float) -> str:
    """Give a duration for people: "420 us", "12.3 ms", "4.56 s", "3m 20s", "2h 5m", "3d 4h".

    Example: format_duration(0.0123)
    """
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    # Half a unit of the last digit below each border, so that nothing is shown as 1000 of a unit.
    for unit, unit_seconds, limit in (
        ("us", 1e-6, 999.5e-6),
        ("ms", 1e-3, 0.9995),
        ("s", 1.0, 59.95),
    ):
        if seconds < limit:
            return f"{_three_digits(seconds / unit_seconds)} {unit}"
    whole = round(seconds)
    for unit, unit_seconds, small, small_seconds in (
        ("d", 86_400, "h", 3600),
        ("h", 3600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if whole >= unit_seconds:
            rest = whole % unit_seconds // small_seconds
            return f"{whole // unit_seconds}{unit}" + (f" {rest}{small}" if rest else "")
    return f"{whole} s"


def _three_digits(number: float) -> str:
    digits_count = 2 if number < 9.995 else 1 if number < 99.95 else 0
    text = f"{number:.{digits_count}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_age(created_ns: int, now_ns: int) -> str:
    """Give an age for people in its largest unit: "just now", "42s", "5m", "3h", "2d", "5w", "3y".

    Both are nanoseconds since 1970, UTC. What lies in the future is "just now".
    Example: format_age(0, 90 * 10**9)
    """
    age_seconds = (now_ns - created_ns) // 10**9
    for unit in ("y", "w", "d", "h", "m", "s"):
        unit_seconds = int(_UNIT_SECONDS[unit])
        if age_seconds >= unit_seconds:
            return f"{age_seconds // unit_seconds}{unit}"
    return "just now"


def format_time(time_ns: int) -> str:
    """Give nanoseconds since 1970 as ISO 8601 in UTC: "2026-11-24T11:43:25.123Z".

    Example: format_time(0)
    """
    seconds, rest_ns = divmod(time_ns, 10**9)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{text}.{rest_ns // 10**6:03d}Z"
