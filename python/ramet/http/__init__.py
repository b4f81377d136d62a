"""The verbs over HTTP: parse, call, answer; no logic.

Imports verbs and records; FastAPI is imported here only, because it is slow to import. Called by
cli/serve. Answers are encoded by msgspec: a list of ten thousand objects costs milliseconds.
Invariant: an error answers with its kind, code and text, and a status by its kind.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from ramet import __version__
from ramet.errors import InternalError, InvalidError, RametError
from ramet.http import policies
from ramet.http.locks import add_locks
from ramet.http.streams import Abandon, Send, abandon_part, list_parts, receive_body, send_frames
from ramet.http.trash import add_trash
from ramet.keeper import PlainKeeper
from ramet.records import Scrubbed
from ramet.service import Service
from ramet.verbs import Verbs

STATUS = {
    "invalid": 400,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "busy": 423,
    "unavailable": 503,
    "full": 507,
    "corrupt": 500,
    "internal": 500,
}


Body = TypeVar("Body")
Held = dict[str, Callable[[], bool]]
Post = Callable[[str, type[Any], Callable[[Any], object]], None]
Get = Callable[[str, str, Callable[[Request], object]], None]
HOLD_SECONDS = 1.0
HOLD_NUMBERS = itertools.count(1)  # Never used twice: whoever asks late is told of nobody else.
BYTES = "application/octet-stream"


class Create(msgspec.Struct, forbid_unknown_fields=True):
    """Make volumes."""

    names: list[str]
    size: str
    count: int | None = None
    tags: dict[str, str] | None = None


class Snap(msgspec.Struct, forbid_unknown_fields=True):
    """Take one instant."""

    volumes: list[str] = []
    all_volumes: bool = False
    name: str | None = None
    tagged: dict[str, str | None] | None = None
    tags: dict[str, str] | None = None


class Copy(msgspec.Struct, forbid_unknown_fields=True):
    """Make clones."""

    source: str
    names: list[str]
    count: int | None = None
    size: str | None = None
    tags: dict[str, str] | None = None


class Revert(msgspec.Struct, forbid_unknown_fields=True):
    """Give volumes the content of snapshots: pairs of both."""

    pairs: list[tuple[str, str]]
    keep: bool | str = True
    take_size: bool = False
    force: bool = False


class Freeze(msgspec.Struct, forbid_unknown_fields=True):
    """Turn volumes into snapshots."""

    names: list[str]
    force: bool = False


class Resize(msgspec.Struct, forbid_unknown_fields=True):
    """Give a volume another size."""

    name: str
    size: str
    shrink: bool = False
    force: bool = False


class Tag(msgspec.Struct, forbid_unknown_fields=True):
    """Set and remove tags."""

    names: list[str]
    tags: dict[str, str] = {}
    remove: list[str] = []


class Rename(msgspec.Struct, forbid_unknown_fields=True):
    """Give another name."""

    name: str
    new_name: str


class Delete(msgspec.Struct, forbid_unknown_fields=True):
    """End objects, or say what that would free."""

    names: list[str]
    force: bool = False
    now: bool = False
    dry_run: bool = False


class Reclaim(msgspec.Struct, forbid_unknown_fields=True):
    """Give back what is dead."""

    everything: bool = False
    seconds: float = 1.0


class Limit(msgspec.Struct, forbid_unknown_fields=True):
    """Say how much the pool may take; null: as much as there is."""

    size: str | None


class Verify(msgspec.Struct, forbid_unknown_fields=True):
    """Read and hash a snapshot."""

    name: str


class Checkpoint(msgspec.Struct, forbid_unknown_fields=True):
    """Write the maps out."""


def answer(value: object, status: int = 200) -> Response:
    """Encode a result."""
    body = msgspec.json.encode(value)
    return Response(body, status_code=status, media_type="application/json")


def answer_error(error: RametError) -> Response:
    """Encode an error."""
    return answer(error.to_json(), STATUS[error.kind])


def parse(kind: type[Body], body: bytes) -> Body:
    """Read a request's body.

    Raises: InvalidError (code bad_request) that says what is wrong with it.
    Example: parse(Delete, b'{"names": ["db"]}')
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidError("bad_request", f"{error}; hint: see docs/reference/http.md") from error


def asked(request: Request, name: str) -> str:
    """Give a value of the request's query.

    Raises: InvalidError (code bad_request) where it is absent.
    Example: asked(request, "name")
    """
    value = request.query_params.get(name)
    if value is None:
        raise InvalidError("bad_request", f"no '{name}' in the query; hint: add ?{name}=...")
    return value


async def hold_space(service: Service, held: Held) -> AsyncIterator[str]:
    """Hold space for as long as somebody reads this: its number, then a line now and then.

    Example: hold_space(service, {})
    """
    holding = service.pool.holding_space()
    number = str(next(HOLD_NUMBERS))
    held[number] = await run_in_threadpool(holding.__enter__)
    try:
        yield f"{number}\n"
        while True:
            # Whoever is gone is found out by writing to it.
            await asyncio.sleep(HOLD_SECONDS)
            yield "\n"
    finally:
        del held[number]
        holding.__exit__(None, None, None)


def lines_of(told: Iterator[Scrubbed]) -> Iterator[bytes]:
    """Give what a scrub tells, a line each; an error is a line too.

    Example: lines_of(iter([]))
    """
    try:
        for now in told:
            yield msgspec.json.encode(now.to_json()) + b"\n"
    except RametError as error:
        yield msgspec.json.encode(error.to_json()) + b"\n"


def build(service: Service) -> FastAPI:
    """Give the application that serves the verbs of a service.

    Example: build(service)
    """
    app = FastAPI(title="Ramet", version=__version__)
    verbs: Verbs = service.verbs
    held: Held = {}

    _add_errors(app)

    def post(path: str, kind: type[Any], call: Callable[[Any], object]) -> None:
        async def endpoint(request: Request) -> Response:
            body = parse(kind, await request.body())
            return answer(await run_in_threadpool(call, body))

        endpoint.__doc__ = kind.__doc__
        app.add_api_route(path, endpoint, methods=["POST"], name=kind.__name__)

    def get(path: str, name: str, call: Callable[[Request], object]) -> None:
        async def endpoint(request: Request) -> Response:
            return answer(await run_in_threadpool(call, request))

        handler: Callable[[Request], Awaitable[Response]] = endpoint
        app.add_api_route(path, handler, methods=["GET"], name=name)

    _add_verbs(post, verbs)
    add_locks(post, verbs)
    add_trash(post, verbs)
    get("/v0/trash", "trash", lambda _: verbs.trash().to_json())
    get("/v0/lock_clock", "lock_clock", lambda _: verbs.lock_clock().to_json())
    get("/v0/objects", "objects", lambda _: [item.to_json() for item in verbs.objects()])
    get("/v0/object", "object", lambda it: verbs.find_object(asked(it, "name")).to_json())
    get(
        "/v0/diff", "diff", lambda it: verbs.diff(asked(it, "before"), asked(it, "after")).to_json()
    )
    get("/v0/space", "space", lambda it: verbs.space(asked(it, "name")).to_json())
    get("/v0/spaces", "spaces", lambda _: {k: v.to_json() for k, v in verbs.spaces().items()})
    get("/v0/sharing", "sharing", lambda it: verbs.sharing(asked(it, "name")).to_json())
    get("/v0/stats", "stats", lambda _: verbs.stats())

    async def health() -> Response:
        told = service.health()
        return answer(told, 200 if told["status"] == "ok" else STATUS["unavailable"])

    async def hold() -> Response:
        return StreamingResponse(hold_space(service, held), media_type="text/plain")

    def still_holds(request: Request) -> dict[str, bool]:
        holds = held.get(asked(request, "number"))
        return {"holds": holds is not None and holds()}

    async def scrub(request: Request) -> Response:
        told = verbs.scrub(request.query_params.get("rate"))
        return StreamingResponse(lines_of(told), media_type="application/x-ndjson")

    app.add_api_route("/v0/scrub", scrub, methods=["GET"], name="scrub")
    _add_streams(app, service)
    _add_policies(post, get, service)
    post("/v0/abandons", Abandon, lambda it: abandon_part(service.pool, it))
    get("/v0/receiving", "receiving", lambda _: list_parts(service.pool))
    app.add_api_route("/v0/hold", hold, methods=["GET"], name="hold")
    get("/v0/held", "held", still_holds)
    app.add_api_route("/v0/health", health, methods=["GET"], name="health")
    get("/v0/service", "service", lambda _: service.describe())
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RametError)
    async def on_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RametError)
        return answer_error(error)

    @app.exception_handler(Exception)
    async def on_bug(_request: Request, error: Exception) -> Response:
        # The server prints it with its trace once this is answered.
        told = f"{type(error).__name__}: {error}; hint: the service printed where; report it"
        return answer_error(InternalError("unexpected_exception", told))


def _add_policies(post: Post, get: Get, service: Service) -> None:
    keeper = PlainKeeper(service.keeper)
    get("/v0/rules", "rules", lambda _: {"text": keeper.rules_text()})
    post("/v0/rules", policies.Rules, lambda it: keeper.set_rules(it.text))
    post(
        "/v0/changes",
        policies.Change,
        lambda it: keeper.change_rules(it.kind, it.name, it.value),
    )
    get("/v0/policies", "policies", lambda _: keeper.policies())
    get("/v0/plan", "plan", lambda it: keeper.plan(policies.days_of(asked(it, "days"))))
    post("/v0/runs", policies.Names, lambda it: keeper.run_policies(it.names))
    get("/v0/remotes", "remotes", lambda _: keeper.remotes())
    post("/v0/wakes", policies.Names, lambda it: keeper.wake_remotes(it.names))


def _add_streams(app: FastAPI, service: Service) -> None:
    async def sends(request: Request) -> Response:
        body = parse(Send, await request.body())
        return StreamingResponse(send_frames(service.pool, body), media_type=BYTES)

    async def receives(request: Request) -> Response:
        return answer(await receive_body(service.pool, request))

    app.add_api_route("/v0/sends", sends, methods=["POST"], name="send")
    app.add_api_route("/v0/receives", receives, methods=["POST"], name="receive")


def _add_verbs(post: Post, verbs: Verbs) -> None:
    post(
        "/v0/volumes",
        Create,
        lambda it: verbs.create_volumes(it.names, it.size, it.count, it.tags),
    )
    post(
        "/v0/snapshots",
        Snap,
        lambda it: verbs.snapshot(it.volumes, it.all_volumes, it.name, it.tagged, it.tags),
    )
    post(
        "/v0/clones",
        Copy,
        lambda it: verbs.clone(it.source, it.names, it.count, it.size, it.tags),
    )
    post(
        "/v0/reverts",
        Revert,
        lambda it: verbs.revert(it.pairs, it.keep, it.take_size, it.force),
    )
    post("/v0/freezes", Freeze, lambda it: verbs.freeze(it.names, it.force))
    post(
        "/v0/resizes",
        Resize,
        lambda it: verbs.resize(it.name, it.size, it.shrink, it.force).to_json(),
    )
    post("/v0/tags", Tag, lambda it: [o.to_json() for o in verbs.tag(it.names, it.tags, it.remove)])
    post("/v0/renames", Rename, lambda it: verbs.rename(it.name, it.new_name).to_json())
    post("/v0/checkpoints", Checkpoint, lambda _: {"written": verbs.checkpoint()})
    post(
        "/v0/deletes",
        Delete,
        lambda it: (
            {"freed_bytes": verbs.frees(it.names)}
            if it.dry_run
            else verbs.delete(it.names, it.force, it.now)
        ),
    )
    post("/v0/verifies", Verify, lambda it: verbs.verify(it.name).to_json())
    post("/v0/limits", Limit, lambda it: verbs.set_limit(it.size))
    post("/v0/reclaims", Reclaim, lambda it: verbs.reclaim(it.everything, it.seconds).to_json())
