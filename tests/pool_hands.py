"""Hands that hold a pool: in this process, or in a child that obeys over a pipe and can be killed.

Both do the same verbs, with plain values in and out, so that a test may not care which it has. Run
as a program this file is the child: it reads pickled (verb, arguments) and answers each.
Invariant: what the pool raises in the child is raised here as the same exception.
"""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import ramet
from ramet.errors import RametError, from_json

Listing = list[tuple[str, str, int, dict[str, str], int]]


def names_of(handles: list[ramet.Volume] | list[ramet.Snapshot]) -> list[str]:
    return [it.name for it in handles]


def list_objects(pool: ramet.Pool) -> Listing:
    """Name, kind, size, tags and mapped bytes of all objects, by name."""
    return [
        (it.name, it.kind, it.size_bytes, dict(it.tags), it.mapped_bytes) for it in pool.objects()
    ]


def revert(pool: ramet.Pool, pairs: list[tuple[str, str]], **options: Any) -> list[str]:
    return names_of(pool.revert_many(pairs, **options))


VERBS: dict[str, Callable[..., Any]] = {
    "uuid": lambda pool: pool.uuid,
    "list": list_objects,
    "read": lambda pool, name, *range_: pool.get(name).read(*range_),
    "write": lambda pool, name, *it, **options: pool.volume(name).write(*it, **options),
    "write_zeroes": lambda pool, name, *range_: pool.volume(name).write_zeroes(*range_),
    "trim": lambda pool, name, *range_: pool.volume(name).trim(*range_),
    "flush": lambda pool, name: pool.volume(name).flush(),
    "create": lambda pool, *it, **options: names_of(pool.create_volumes(*it, **options)),
    "snapshot": lambda pool, names, **options: names_of(pool.snapshot(names, **options)),
    "clone": lambda pool, *it, **options: names_of(pool.clone(*it, **options)),
    "revert": revert,
    "freeze": lambda pool, names: names_of(pool.freeze(names)),
    "resize": lambda pool, *it, **options: pool.resize(*it, **options).size_bytes,
    "tag": lambda pool, *it, **options: len(pool.tag(*it, **options)),
    "rename": lambda pool, *it: pool.rename(*it).name,
    "delete": lambda pool, names: [it.name for it in pool.delete(names)],
    "checkpoint": lambda pool: pool.checkpoint(),
    "stats": lambda pool: dict(pool.stats()),
    "diff": lambda pool, *it: [tuple(extent) for extent in pool.diff(*it).extents],
}


class Hand(Protocol):
    """A pool that is held."""

    def ask(self, verb: str, *arguments: Any, **options: Any) -> Any:
        """Do one of `VERBS`."""

    def close(self) -> None:
        """Close the pool."""


class OwnHand:
    """A pool in this process."""

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.pool = ramet.open(path, read_only=read_only)

    def ask(self, verb: str, *arguments: Any, **options: Any) -> Any:
        return VERBS[verb](self.pool, *arguments, **options)

    def close(self) -> None:
        self.pool.close()


class ChildHand:
    """A pool in a child process."""

    def __init__(self, path: Path, read_only: bool = False) -> None:
        command = [sys.executable, __file__, str(path), "read" if read_only else "write"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self._receive()
        except BaseException:
            self.kill()
            raise

    def ask(self, verb: str, *arguments: Any, **options: Any) -> Any:
        self.begin(verb, *arguments, **options)
        return self._receive()

    def begin(self, verb: str, *arguments: Any, **options: Any) -> None:
        """Let it do something and do not wait."""
        assert self._process.stdin is not None
        pickle.dump((verb, arguments, options), self._process.stdin)
        self._process.stdin.flush()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        error, result = pickle.load(self._process.stdout)  # noqa: S301 - it is our own child.
        if error is not None:
            raise from_json(error)
        return result

    def kill(self) -> None:
        """End it without warning."""
        self._process.kill()
        self._end()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        code = self._end()
        assert code == 0, f"the child ended with {code}"

    def _end(self) -> int:
        # Its answers are waited for first: a full pipe would keep it from ending.
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdout.read()
        self._process.stdout.close()
        code = self._process.wait()
        self._process.stdin.close()
        return code


def obey(path: Path, read_only: bool) -> None:
    """Be the child: hold the pool and do what is asked, until nobody is there to ask."""
    asked, answers = sys.stdin.buffer, sys.stdout.buffer

    def answer(do: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            result, error = do(*arguments, **options), None
        except RametError as raised:
            result, error = None, raised.to_json()
        plain = None if isinstance(result, OwnHand) else result
        answers.write(pickle.dumps((error, plain)))
        answers.flush()
        return result

    hand = answer(OwnHand, path, read_only)
    while hand is not None:
        try:
            verb, arguments, options = pickle.load(asked)  # noqa: S301 - it is our own parent.
        except EOFError:
            hand.close()
            return
        answer(hand.ask, verb, *arguments, **options)


if __name__ == "__main__":
    obey(Path(sys.argv[1]), sys.argv[2] == "read")
