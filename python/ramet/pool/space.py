"""What takes space in a pool: figures before and after, giving back, limits, scrubs.

Invariant: nothing that is held is touched.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager

from ramet.errors import InvalidError
from ramet.fullness import Fullness
from ramet.pool.base import PoolBase, as_list
from ramet.pool.scrub import RATE_BYTES_MIN, SCRUB_RATE, run_scrub
from ramet.records import ObjectSpace, Reclaimed, Scrubbed, Sharer, Sharing
from ramet.units import parse_size
from ramet.volume import ObjectLike

SHARERS_MAX = 10
MIB = 1 << 20


class PoolSpace(PoolBase):
    """What a pool says and does about space; see `Pool`."""

    def frees(self, targets: ObjectLike | Iterable[ObjectLike]) -> int:
        """Say how many bytes deleting these objects, all of them together, would free.

        `targets`: one or a list; what is given twice counts once. Result: bytes of blocks that no
        other object holds, exact for the moment of the call; they come back once the pool gave
        them back, see `reclaim`. The cost follows what the objects do not share.
        Raises: NotFoundError; CorruptError where a map is damaged.
        Example: pool.frees(["db", "db@1"])
        """
        with self._command():
            found = self._find_all(as_list(targets))
            return self._core.frees([item.name for item in found]) if found else 0

    def space(self, target: ObjectLike) -> ObjectSpace:
        """Say what one object takes: what it maps, and what of that is its own or shared.

        Result: bytes, exact for the moment of the call. The cost follows what it does not share.
        Raises: NotFoundError; CorruptError where a map is damaged.
        Example: pool.space("db").exclusive_bytes
        """
        with self._command():
            return _space(*self._core.space(self._find(target).name))

    @contextmanager
    def holding_space(self) -> Iterator[Callable[[], bool]]:
        """Give no space back while the block is not left, so that the files can be read beside.

        Yields a question: whether that still holds. Where somebody finds no space it does not: what
        is dead is given back then, whoever reads.
        Raises: UnavailableError after the pool was closed.
        Example: pool.holding_space().__enter__()()
        """
        self._check_usable()
        number = self._core.hold_space()
        try:
            yield lambda: self._core.still_holds(number)
        finally:
            self._core.let_go(number)

    def reclaim(self, *, everything: bool = False, seconds: float = 3600.0) -> Reclaimed:
        """Give the space of what is dead back to the file system, now.

        It happens by itself in the background, where an eighth of a segment comes back; this does
        not return before it is done, or `seconds` have passed. `everything`: give back whatever
        is dead, also where it makes files of many small pieces.
        Result: what came back, and what waits. Nothing that is held is touched.
        Raises: FullError where there is no room for a checkpoint; ReadOnlyError; UnavailableError.
        Example: pool.reclaim(everything=True).given_back_bytes
        """
        self._check_usable()
        return Reclaimed(*self._core.reclaim(everything, int(seconds * 1000)))

    def scrub(self, *, rate: str | int | None = SCRUB_RATE) -> Generator[Scrubbed, None, None]:
        """Read and verify everything that is held, each stored byte once, to find damage early.

        `rate`: bytes a second, or a text, 1 MiB at least; None: as fast as it goes. What comes in
        meanwhile need not be read. Nothing is changed, nobody waits for it; it ends where the
        iterator is left.
        Result: how far it is, twice a second and at the end, with what was found since.
        Raises: InvalidError for a bad rate; UnavailableError where the pool is closed meanwhile.
        Example: assert all(not now.findings for now in pool.scrub(rate=None))
        """
        self._check_usable()
        rate_bytes = None if rate is None else parse_size(rate)
        if rate_bytes is not None and rate_bytes < RATE_BYTES_MIN:
            text = f"{rate_bytes} bytes a second; hint: 1MiB at least"
            raise InvalidError("scrub_rate_too_low", text)
        return run_scrub(self._core.scrub(), rate_bytes)

    def set_limit(self, size: str | int | None) -> None:
        """Have the pool take no more than `size`, as if its file system were no larger.

        `size`: bytes or a text; None: no limit. All files of the pool count, as `du` counts them.
        What is beyond it is refused as on a full file system. Durable on return.
        Raises: InvalidError (code limit_below_use) where more is taken already; ReadOnlyError;
        UnavailableError once the pool is poisoned or closed.
        Example: pool.set_limit("10GiB")
        """
        self._check_usable()
        self._core.set_limit(None if size is None else parse_size(size))

    def fullness(self) -> Fullness:
        """Say what the pool takes of what there is; its `state()` is `ok`, `low` or `critical`.

        Raises: UnavailableError where the file system does not say.
        Example: pool.fullness().state()
        """
        self._check_usable()
        return Fullness(*self._core.fullness())

    def spaces(self) -> dict[str, ObjectSpace]:
        """Say of all objects what each takes, by UUID; those with a damaged map are left out.

        Result: as of `space`; each may be a minute old, and names the batch it is of.
        Raises: UnavailableError where a map cannot be read now.
        Example: [space.exclusive_bytes for space in pool.spaces().values()]
        """
        self._check_usable()
        return {uuid: _space(*told) for uuid, told in self._core.list_space().items()}

    def sharing(self, target: ObjectLike) -> Sharing:
        """Say who shares most blocks with an object, and how scattered its own are.

        Of a large object some thousand places are looked at to say how scattered it is.
        Raises: NotFoundError; CorruptError where its map is damaged.
        Example: pool.sharing("db@1").sharers
        """
        self._check_usable()
        name = self._find(target).name
        found, compared_count = self._core.sharers(name, SHARERS_MAX)
        fragments_count, looked_at_bytes = self._core.scatter(name)
        fragments = round(fragments_count / (looked_at_bytes / MIB), 3) if looked_at_bytes else None
        return Sharing([Sharer(*sharer) for sharer in found], compared_count, fragments)


def _space(mapped_bytes: int, exclusive_bytes: int, sequence: int) -> ObjectSpace:
    return ObjectSpace(mapped_bytes, exclusive_bytes, mapped_bytes - exclusive_bytes, sequence)
