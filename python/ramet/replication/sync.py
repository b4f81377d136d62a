"""A remote kept in step: what it has not is sent, in order, from what both sides have.

Imports pool, sender, link, groups. Docs: docs/internals/policies.md, "Remotes". Invariants: what a
remote is believed to have is what it said or took in; where it turns out to be wrong, it is asked
again before anything else is sent.
"""

from collections.abc import Callable, Iterator, Sequence

from ramet.errors import InvalidError, NotFoundError, RametError, UnavailableError
from ramet.frames import Piece
from ramet.pool import Pool
from ramet.records import ObjectRecord
from ramet.replication.groups import Group, missing
from ramet.replication.link import Link
from ramet.replication.sender import send

# Is told bytes of data sent, and how many there will be in this stream.
Progress = Callable[[int, int], None]


def have_of(link: Link, pool_uuid: str) -> set[str]:
    """Ask a remote for the UUIDs of its snapshots.

    `pool_uuid`: of the pool here; a remote is another one.
    Raises: InvalidError (code remote_is_itself); UnavailableError; what the remote raised.
    Example: have_of(Link("dr", ["ssh", "dr", "ramet", "-p", "/srv/pool"]), pool.uuid)
    """
    try:
        there = link.ask("stats")["uuid"]
        found = link.ask("snapshot", "list")
        have = {str(it["uuid"]) for it in found}
    except (TypeError, KeyError, LookupError) as error:
        raise UnavailableError(
            "remote_answer",
            f"remote '{link.name}' answered something else than was asked ({error!r});"
            " hint: the same version of Ramet on both sides",
        ) from error
    if there == pool_uuid:
        raise InvalidError(
            "remote_is_itself", f"remote '{link.name}' is this pool; hint: change its url"
        )
    return have


def sync(
    pool: Pool,
    link: Link,
    choose: Callable[[], Sequence[ObjectRecord]],
    have: set[str],
    progress: Progress | None = None,
) -> Iterator[list[str]]:
    """Send what a remote has not, group by group, and give the names of each that arrived.

    `choose`: gives the snapshots that belong there, asked before each group: what was deleted
    meanwhile is not sent. `have`: UUIDs of what the remote has; what arrives is added.
    Raises: what sending and the remote raise; what arrived by then stays.
    Example: list(sync(pool, link, lambda: [], set()))
    """
    is_first = True
    while True:
        objects = {it.uuid: it for it in pool.objects()}
        groups = missing([it for it in choose() if it.uuid in objects], objects, have)
        if not groups:
            return
        arrived = groups[0].snapshots
        _send_group(pool, link, groups[0], resume=is_first, progress=progress)
        have.update(it.uuid for it in arrived)
        is_first = False
        yield [it.name for it in arrived]


def _send_group(
    pool: Pool, link: Link, group: Group, *, resume: bool, progress: Progress | None
) -> None:
    snapshots = [it.uuid for it in group.snapshots]
    bases = [None if it is None else it.uuid for it in group.bases]
    token = _token(link, snapshots[0]) if resume else ""

    def pieces(token: str | None) -> Iterator[bytes]:
        given: Iterator[Piece] = send(pool, snapshots, bases, zstd=link.how.zstd, resume=token)
        for piece in given:
            if progress is not None:
                progress(piece.done_bytes, piece.total_bytes)
            yield piece.content

    try:
        link.receive(pieces(token or None))
    except RametError as error:
        if error.code != "token_of_another_transfer":
            raise
        # What arrived was of other bases: it is of no use.
        link.ask("receive", "--abandon", snapshots[0])
        link.receive(pieces(None))


def _token(link: Link, what: str) -> str:
    try:
        return str(link.ask("receive", "--position", what)["token"])
    except NotFoundError:
        return ""
