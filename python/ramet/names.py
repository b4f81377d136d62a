"""The rules of names, and the patterns that make many names of one text.

Pure. Imports errors only. A pattern may hold `{n}` (counting from 1), `{volume}` and `{time}`;
whatever comes out is an ordinary name and is checked as one. Invariant: `expand_volume_names` and
`expand_snapshot_names` return checked names; whether one is taken, or given twice, the core says.
They are made for ten thousand names in a few milliseconds: one regular expression says yes, and
only a name that fails it is looked at closely, to say what is wrong.
"""

import re
import time
from collections.abc import Callable, Iterable, Sequence

from ramet.errors import InvalidError

VOLUME_NAME_LENGTH_MAX = 199
SNAPSHOT_NAME_LENGTH_MAX = 255
COUNT_MAX = 65_536  # Objects that one record of the log can hold.
NAMES_TRIED_MAX = 65_536  # Names asked for at once in the search for free ones.
RESERVED_NAMES = ("list", "status")

_HEX = "[0-9A-Fa-f]"
_UUID_TEXT = f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}"
_UUID = re.compile(_UUID_TEXT)
_REFUSED = rf"(?!(?:{_UUID_TEXT}|{'|'.join(RESERVED_NAMES)})\Z)"
_VOLUME_NAME = re.compile(rf"{_REFUSED}[A-Za-z0-9._:-]{{1,{VOLUME_NAME_LENGTH_MAX}}}")
_SNAPSHOT_NAME = re.compile(rf"{_REFUSED}[A-Za-z0-9._:@-]{{1,{SNAPSHOT_NAME_LENGTH_MAX}}}")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


def is_uuid(text: str) -> bool:
    """Tell whether `text` has the form of a UUID (in any case), and so can be no name."""
    return _UUID.fullmatch(text) is not None


def check_volume_name(name: str) -> None:
    """Accept 1 to 199 of `A-Z a-z 0-9 . _ : -`, not in the form of a UUID, not `list` or `status`.

    Raises: InvalidError (codes name_empty, name_too_long, name_character, name_is_uuid,
    name_reserved).
    Example: check_volume_name("vm-1")
    """
    if not _VOLUME_NAME.fullmatch(name):
        raise _explain(name, "volume", VOLUME_NAME_LENGTH_MAX, "._:-")


def check_snapshot_name(name: str) -> None:
    """Accept what is a volume's name, and also `@`, up to 255 characters.

    Raises: as `check_volume_name`.
    Example: check_snapshot_name("vm-1@nightly")
    """
    if not _SNAPSHOT_NAME.fullmatch(name):
        raise _explain(name, "snapshot", SNAPSHOT_NAME_LENGTH_MAX, "._:-@")


def expand_volume_names(
    names: str | Iterable[str],
    count: int | None = None,
    *,
    time_text: str = "",
    volume: str | None = None,
) -> list[str]:
    """Give the checked names of new volumes, in order.

    `names`: one pattern, or several; with `count` each gives that many names (`{n}` = 1 to
    `count`), without it each gives one (`{n}` = 1). `time_text` is what `{time}` stands for,
    `volume` what `{volume}` stands for (a clone's source; None: it stands for nothing and is
    refused).
    Raises: InvalidError (codes of `check_volume_name`, and pattern_needs_number, pattern_unknown,
    count_range).
    Example: expand_volume_names("vm-{n}", 3)
    """
    patterns = [names] if isinstance(names, str) else list(names)
    values = {"time": time_text} if volume is None else {"time": time_text, "volume": volume}
    expanded: list[str] = []
    for pattern in patterns:
        expanded += expand_pattern(pattern, count, values)
        _check_count(len(expanded), minimum=0)
    if not all(map(_VOLUME_NAME.fullmatch, expanded)):
        for name in expanded:
            check_volume_name(name)
    return expanded


def expand_snapshot_names(
    names: str | Iterable[str], volumes: Sequence[str], *, time_text: str = ""
) -> list[str]:
    """Give the checked name of each volume's snapshot, in the order of `volumes`.

    `names`: a pattern (`{volume}` is the volume's name, `{n}` its number in the list from 1,
    `{time}` is `time_text`), or a list with one name for each volume.
    Raises: InvalidError (codes of `check_snapshot_name`, and pattern_needs_volume, pattern_unknown,
    names_count).
    Example: expand_snapshot_names("{volume}@nightly", ["a", "b"])
    """
    if isinstance(names, str):
        expanded = _expand_for_volumes(names, volumes, time_text)
    else:
        expanded = list(names)
        if len(expanded) != len(volumes):
            raise InvalidError(
                "names_count",
                f"{len(expanded)} names for {len(volumes)} volumes;"
                " hint: one name for each, or a pattern",
            )
    if not all(map(_SNAPSHOT_NAME.fullmatch, expanded)):
        for name in expanded:
            check_snapshot_name(name)
    return expanded


def expand_pattern(pattern: str, count: int | None, values: dict[str, str]) -> list[str]:
    """Give `count` texts of `pattern`, unchecked: `{n}` is 1, 2, 3, ..., `{key}` is `values[key]`.

    `count` None: one text, in which `{n}` is 1.
    Raises: InvalidError (codes pattern_needs_number, pattern_unknown, count_range).
    """
    if count is not None:
        _check_count(count, minimum=1)
    _check_placeholders(pattern, ("n", *values))
    for key, value in values.items():
        pattern = pattern.replace(f"{{{key}}}", value)
    parts = pattern.split("{n}")
    numbers_count = 1 if count is None else count
    if len(parts) == 1 and numbers_count > 1:
        raise InvalidError(
            "pattern_needs_number",
            f"'{pattern}' gives {count} objects the same name;"
            f" hint: put {{n}} into it: '{pattern}-{{n}}'",
        )
    return [str(number).join(parts) for number in range(1, numbers_count + 1)]


def format_time_name(time_ns: int) -> str:
    """Give the text of `{time}`: UTC, as "20261124T114325Z".

    It holds no colon: qemu-img takes what stands before one for a protocol.
    Example: format_time_name(0)
    """
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time_ns // 10**9))


class NumberedNames:
    """The default names of snapshots: VOLUME@N, N the first free number.

    Remembers for each volume how many numbers are taken without a gap, so that a name costs the
    same with ten thousand snapshots as with one. Not for several threads at once; whoever owns it
    serializes the commands.
    """

    def __init__(self, taken: Callable[[list[str]], Iterable[str]]) -> None:
        self._taken = taken  # Gives those of many names that are in use.
        self._numbers_taken: dict[str, int] = {}

    def first_free(self, volumes: Sequence[str]) -> list[str]:
        """Give a free name for each volume. Ends, because each round tries higher numbers."""
        free: dict[str, str] = {}
        waiting, tried_count = list(volumes), 1
        while waiting:
            firsts = [self._numbers_taken.get(volume, 0) + 1 for volume in waiting]
            tried = [
                f"{volume}@{number}"
                for volume, first in zip(waiting, firsts, strict=True)
                for number in range(first, first + tried_count)
            ]
            taken = set(self._taken(tried))
            for index, volume in enumerate(waiting):
                names = tried[index * tried_count : (index + 1) * tried_count]
                skipped_count = 0
                while skipped_count < tried_count and names[skipped_count] in taken:
                    skipped_count += 1
                if skipped_count:
                    self._numbers_taken[volume] = firsts[index] - 1 + skipped_count
                if skipped_count < tried_count:
                    free[volume] = names[skipped_count]
            waiting = [volume for volume in waiting if volume not in free]
            tried_count = max(1, min(tried_count * 2, NAMES_TRIED_MAX // max(1, len(waiting))))
        return [free[volume] for volume in volumes]

    def learn(self, names: Iterable[str]) -> None:
        """Learn that names are taken now, so that the next search begins behind them."""
        for name in names:
            # Most names end otherwise, and there may be thousands.
            if not name[-1:].isdigit():
                continue
            volume, _, number = name.rpartition("@")
            if volume and number == str(self._numbers_taken.get(volume, 0) + 1):
                self._numbers_taken[volume] = int(number)

    def forget(self, names: Iterable[str]) -> None:
        """Learn that names are free again; what is known of a volume goes with its own name."""
        for name in names:
            volume, _, number = name.rpartition("@")
            if not volume:
                self._numbers_taken.pop(name, None)
            elif number.isdigit() and int(number) <= self._numbers_taken.get(volume, 0):
                self._numbers_taken[volume] = max(0, int(number) - 1)


def _expand_for_volumes(pattern: str, volumes: Sequence[str], time_text: str) -> list[str]:
    _check_placeholders(pattern, ("n", "volume", "time"))
    if len(volumes) > 1 and "{volume}" not in pattern and "{n}" not in pattern:
        raise InvalidError(
            "pattern_needs_volume",
            f"'{pattern}' gives {len(volumes)} snapshots the same name;"
            f" hint: put {{volume}} or {{n}} into it: '{{volume}}@{pattern}'",
        )
    pattern = pattern.replace("{time}", time_text)
    expanded = [pattern.replace("{volume}", volume) for volume in volumes]
    if "{n}" in pattern:
        return [name.replace("{n}", str(number)) for number, name in enumerate(expanded, start=1)]
    return expanded


def _check_placeholders(pattern: str, known: Sequence[str]) -> None:
    for placeholder in _PLACEHOLDER.findall(pattern):
        if placeholder not in known:
            choices = ", ".join(f"{{{key}}}" for key in known)
            raise InvalidError(
                "pattern_unknown",
                f"'{{{placeholder}}}' in pattern '{pattern}' means nothing here;"
                f" hint: known are {choices}",
            )


def _check_count(count: int, minimum: int) -> None:
    if not minimum <= count <= COUNT_MAX:
        raise InvalidError(
            "count_range",
            f"{count} objects in one command;"
            f" hint: {minimum} to {COUNT_MAX}, more in several commands",
        )


def _explain(name: str, kind: str, length_max: int, marks: str) -> InvalidError:
    if not name:
        return InvalidError(
            "name_empty", f"a {kind}'s name is empty; hint: give 1 character or more"
        )
    if len(name) > length_max:
        return InvalidError(
            "name_too_long",
            f"{kind} name '{name[:40]}...' has {len(name)} characters; hint: at most {length_max}",
        )
    if is_uuid(name):
        return InvalidError(
            "name_is_uuid", f"{kind} name '{name}' has the form of a UUID; hint: choose another"
        )
    if name in RESERVED_NAMES:
        return InvalidError(
            "name_reserved", f"{kind} name '{name}' is reserved; hint: choose another"
        )
    bad = next(
        character
        for character in name
        if not (character.isascii() and character.isalnum()) and character not in marks
    )
    return InvalidError(
        "name_character",
        f"{kind} name {name!r} holds {bad!r}; hint: A-Z a-z 0-9 and {' '.join(marks)} are allowed",
    )
