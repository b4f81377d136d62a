"""The exceptions of Ramet, by what the caller does about them.

    RametError(code, text)     kind          exit code   what to do
    |- InvalidError            invalid       2           fix the call
    |  `- ReadOnlyError        forbidden     9           do not change it: a snapshot, a read-only
    pool
    |- NotFoundError           not_found     3           look for another name
    |- ConflictError           conflict      4           retry, or choose another name
    |- BusyError               busy          5           wait until somebody else is done
    |- UnavailableError        unavailable   6           retry later, or open the pool again
    |- FullError               full          7           free space
    |- CorruptError            corrupt       8           restore from elsewhere; do not retry
    `- InternalError           internal      1           report a bug

Pure; imports nothing of Ramet. Invariant: a code is stable and listed in docs/reference/errors.md,
a text is for people and may change; nothing may match on a text.
"""

from collections.abc import Mapping
from typing import ClassVar


class RametError(Exception):
    """A failure with a stable `code` and a `text`: what failed, the values, the remedy.

    `str(error)` is "code: text". `kind` says what the caller does about it, one for each class, and
    `exit_code` is what the `ramet` command ends with; both are in the table at the top of this
    file.
    """

    kind: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"

    def to_json(self) -> dict[str, str]:
        """Give the error as a dictionary: kind, code, text. `from_json` reads it back."""
        return {"kind": self.kind, "code": self.code, "text": self.text}


class InvalidError(RametError):
    """The call cannot succeed as it was made: fix it."""

    kind = "invalid"
    exit_code = 2


class ReadOnlyError(InvalidError):
    """The object may not be changed: a snapshot, or a pool opened for reading only."""

    kind = "forbidden"
    exit_code = 9


class NotFoundError(RametError):
    """There is nothing with this name or UUID."""

    kind = "not_found"
    exit_code = 3


class ConflictError(RametError):
    """Something else is there already: choose another name, or retry."""

    kind = "conflict"
    exit_code = 4


class BusyError(RametError):
    """Somebody else uses it: wait, or make them let go."""

    kind = "busy"
    exit_code = 5


class UnavailableError(RametError):
    """It cannot be done now: the pool is closed or poisoned. Retry later, or reopen it."""

    kind = "unavailable"
    exit_code = 6


class FullError(RametError):
    """There is no space left: free some. Reads go on."""

    kind = "full"
    exit_code = 7


class CorruptError(RametError):
    """Stored bytes do not match their checksum, or are missing: restore them, do not retry."""

    kind = "corrupt"
    exit_code = 8


class InternalError(RametError):
    """Ramet is wrong: report it as a bug."""

    kind = "internal"
    exit_code = 1


_CLASS_BY_KIND: dict[str, type[RametError]] = {
    error_class.kind: error_class
    for error_class in (
        InvalidError,
        ReadOnlyError,
        NotFoundError,
        ConflictError,
        BusyError,
        UnavailableError,
        FullError,
        CorruptError,
        InternalError,
    )
}


def from_core(kind: str, code: str, text: str) -> RametError:
    """Build the exception for an error of the core; the binding raises what it gets.

    An unknown `kind` becomes an InternalError that keeps code and text.
    """
    return _CLASS_BY_KIND.get(kind, InternalError)(code, text)


def from_json(value: Mapping[str, object]) -> RametError:
    """Build the exception that `RametError.to_json` described; missing fields are replaced."""
    return from_core(
        str(value.get("kind", "internal")),
        str(value.get("code", "unknown")),
        str(value.get("text", "an error without a text")),
    )
