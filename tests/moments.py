"""What a pool holds, by names and bytes, and which of several moments a crash has left.

Pure. Invariant: a write that was not flushed may be there in part, each block whole or not at all;
anything else is there or not.
"""

from dataclasses import dataclass, field
from typing import Any

from pool_hands import Hand

BLOCK_BYTES = 4096


@dataclass(frozen=True)
class Expected:
    """What the model knows of an object."""

    kind: str
    content: bytes
    tags: dict[str, str] = field(default_factory=dict)


Model = dict[str, Expected]


@dataclass(frozen=True)
class Call:
    """A verb as a hand is asked for it."""

    verb: str
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def ask(self, hand: Hand) -> Any:
        return hand.ask(self.verb, *self.arguments, **self.options)


def find_moment(left: Model, moments: list[tuple[Call | None, Model]]) -> int:
    """Say which moment a pool was left at, the newest that fits; there must be one."""
    for index in reversed(range(len(moments))):
        model = moments[index][1]
        if left == model:
            return index
        if index + 1 < len(moments) and is_between(left, model, *moments[index + 1]):
            return index
    wrong = [name for name in left.keys() | moments[-1][1].keys() if left.get(name) != moments[-1]]
    raise AssertionError(f"a kill left none of {len(moments)} moments: {sorted(wrong)}")


def is_between(left: Model, before: Model, call: Call | None, after: Model) -> bool:
    """Whether a write that was not flushed is there in part: each block whole or not at all."""
    if call is None or call.verb not in ("write", "write_zeroes", "trim"):
        return False
    name = call.arguments[0]
    if left.keys() != before.keys() or any(left[it] != before[it] for it in left if it != name):
        return False
    contents = [it[name].content for it in (left, before, after)]
    for at in range(0, max(map(len, contents)), BLOCK_BYTES):
        found, *allowed = (content[at : at + BLOCK_BYTES] for content in contents)
        if found not in allowed:
            return False
    return True
