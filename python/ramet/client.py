"""The verbs over a service's socket.

Imports config, errors, records, verbs and the standard library only: it is on the way of every
command, so it is light to import. Invariants: what a service refuses is raised here as the
exception that the pool would raise; a copy of a pool is never taken for the pool that a service
holds.
"""

import json
import select
import socket
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ramet.config import ADDRESS_NAME, API_SOCKET_NAME, NBD_SOCKET_NAME
from ramet.errors import UnavailableError, from_json
from ramet.frames import Piece, decode_frames
from ramet.records import (
    Diff,
    LockClock,
    ObjectRecord,
    ObjectSpace,
    Reclaimed,
    Scrubbed,
    Sharing,
    Trash,
    Verified,
)
from ramet.tags import Selector, Tags
from ramet.verbs import Made, Stats

CONNECT_SECONDS_MAX = 5.0


class _Connection(HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(CONNECT_SECONDS_MAX)
        self.sock.connect(str(self._path))
        # A command may take as long as it takes.
        self.sock.settimeout(None)


class Client:
    """The verbs of the pool that a service holds; see `Verbs` for what they do."""

    def __init__(self, api_path: Path, nbd_path: Path) -> None:
        self.api_path = api_path
        self.nbd_path = nbd_path
        self._connection = _Connection(api_path)

    @classmethod
    def find(cls, pool_path: Path) -> "Client | None":
        """Give a client of the service that holds the pool, or None where none answers.

        Example: Client.find(Path("/srv/pool"))
        """
        # The second is for a service that could not write its address, and for a pool that was
        # moved while it is served.
        standard = (pool_path / API_SOCKET_NAME, pool_path / NBD_SOCKET_NAME)
        for paths in (_told_paths(pool_path), standard):
            if paths is not None:
                client = cls(*paths)
                try:
                    client._connection.connect()
                except OSError:
                    client.close()
                else:
                    return client
        return None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def create_volumes(
        self, names: list[str], size: str, count: int | None, tags: Tags | None = None
    ) -> list[Made]:
        """See `Verbs`."""
        body = {"names": names, "size": size, "count": count, "tags": tags}
        return self._made("/v0/volumes", body)

    def snapshot(
        self,
        volumes: list[str] | None,
        all_volumes: bool,
        name: str | None,
        tagged: Selector | None = None,
        tags: Tags | None = None,
    ) -> list[Made]:
        """See `Verbs`."""
        body = {
            "volumes": volumes or [],
            "all_volumes": all_volumes,
            "name": name,
            "tagged": tagged,
            "tags": tags,
        }
        return self._made("/v0/snapshots", body)

    def clone(
        self,
        source: str,
        names: list[str],
        count: int | None,
        size: str | None,
        tags: Tags | None = None,
    ) -> list[Made]:
        """See `Verbs`."""
        body = {"source": source, "names": names, "count": count, "size": size, "tags": tags}
        return self._made("/v0/clones", body)

    def revert(
        self, pairs: list[tuple[str, str]], keep: bool | str, take_size: bool, force: bool
    ) -> list[Made]:
        """See `Verbs`."""
        body = {"pairs": pairs, "keep": keep, "take_size": take_size, "force": force}
        return self._made("/v0/reverts", body)

    def freeze(self, names: list[str], force: bool) -> list[Made]:
        """See `Verbs`."""
        return self._made("/v0/freezes", {"names": names, "force": force})

    def resize(self, name: str, size: str, shrink: bool, force: bool) -> ObjectRecord:
        """See `Verbs`."""
        body = {"name": name, "size": size, "shrink": shrink, "force": force}
        return ObjectRecord.from_json(self._ask("POST", "/v0/resizes", body))

    def tag(self, names: list[str], tags: Tags, remove: list[str]) -> list[ObjectRecord]:
        """See `Verbs`."""
        body = {"names": names, "tags": tags, "remove": remove}
        return [ObjectRecord.from_json(item) for item in self._ask("POST", "/v0/tags", body)]

    def rename(self, name: str, new_name: str) -> ObjectRecord:
        """See `Verbs`."""
        body = {"name": name, "new_name": new_name}
        return ObjectRecord.from_json(self._ask("POST", "/v0/renames", body))

    def delete(self, names: list[str], force: bool, now: bool = False) -> list[Made]:
        """See `Verbs`."""
        return self._made("/v0/deletes", {"names": names, "force": force, "now": now})

    def trash(self) -> Trash:
        """See `Verbs`."""
        return Trash.from_json(self._ask("GET", "/v0/trash"))

    def set_trash_window(self, duration: str | float) -> None:
        """See `Verbs`."""
        self._ask("POST", "/v0/trash_windows", {"duration": duration})

    def restore(self, names: list[str], new_names: list[str] | None) -> list[Made]:
        """See `Verbs`."""
        return self._made("/v0/restores", {"names": names, "new_names": new_names})

    def empty_trash(self, names: list[str] | None) -> list[Made]:
        """See `Verbs`."""
        return self._made("/v0/trash_ends", {"names": names})

    def trash_frees(self, names: list[str] | None) -> int:
        """See `Verbs`."""
        answer = self._ask("POST", "/v0/trash_ends", {"names": names, "dry_run": True})
        return int(answer["freed_bytes"])

    def lock(self, names: list[str], duration: str | float, mode: str) -> list[ObjectRecord]:
        """See `Verbs`."""
        body = {"names": names, "duration": duration, "mode": mode}
        return [ObjectRecord.from_json(item) for item in self._ask("POST", "/v0/locks", body)]

    def unlock(self, names: list[str], secret: str | None) -> list[ObjectRecord]:
        """See `Verbs`."""
        body = {"names": names, "secret": secret}
        return [ObjectRecord.from_json(item) for item in self._ask("POST", "/v0/unlocks", body)]

    def lock_clock(self) -> LockClock:
        """See `Verbs`."""
        return LockClock(**self._ask("GET", "/v0/lock_clock"))

    def confirm_lock_clock(self, secret: str) -> float:
        """See `Verbs`."""
        answer = self._ask("POST", "/v0/lock_confirms", {"secret": secret})
        return float(answer["earlier_seconds"])

    def set_lock_secret(self, secret: str, old: str | None) -> None:
        """See `Verbs`."""
        self._ask("POST", "/v0/lock_secrets", {"secret": secret, "old": old})

    def set_cooling_off(self, duration: str | float, secret: str | None) -> None:
        """See `Verbs`."""
        self._ask("POST", "/v0/cooling_offs", {"duration": duration, "secret": secret})

    def frees(self, names: list[str]) -> int:
        """See `Verbs`."""
        answer = self._ask("POST", "/v0/deletes", {"names": names, "dry_run": True})
        return int(answer["freed_bytes"])

    def space(self, name: str) -> ObjectSpace:
        """See `Verbs`."""
        return ObjectSpace(**self._ask("GET", f"/v0/space?name={_escape(name)}"))

    def spaces(self) -> dict[str, ObjectSpace]:
        """See `Verbs`."""
        told = self._ask("GET", "/v0/spaces")
        return {uuid: ObjectSpace(**space) for uuid, space in told.items()}

    def sharing(self, name: str) -> Sharing:
        """See `Verbs`."""
        return Sharing.from_json(self._ask("GET", f"/v0/sharing?name={_escape(name)}"))

    def reclaim(self, everything: bool, seconds: float) -> Reclaimed:
        """See `Verbs`."""
        body = {"everything": everything, "seconds": seconds}
        return Reclaimed(**self._ask("POST", "/v0/reclaims", body))

    def scrub(self, rate: str | None) -> Generator[Scrubbed, None, None]:
        """See `Verbs`: over a connection of its own, ended with it."""
        connection = _Connection(self.api_path)
        query = "" if rate is None else f"?rate={_escape(rate)}"
        try:
            connection.request("GET", f"/v0/scrub{query}")
            answer = connection.getresponse()
            if answer.status != 200:
                raise from_json(json.loads(answer.read()))
            is_done = False
            for line in iter(answer.readline, b""):
                told = json.loads(line)
                if "kind" in told:
                    raise from_json(told)
                is_done = told["is_done"]
                yield Scrubbed.from_json(told)
            if not is_done:
                raise self._failed("it ended")
        except (OSError, HTTPException, ValueError) as error:
            raise self._failed(error) from error
        finally:
            connection.close()

    def set_limit(self, size: str | None) -> None:
        """See `Verbs`."""
        self._ask("POST", "/v0/limits", {"size": size})

    @contextmanager
    def holding_space(self) -> Iterator[Callable[[], bool]]:
        """See `Pool.holding_space`: over a connection of its own, ended with it."""
        connection = _Connection(self.api_path)
        try:
            connection.request("GET", "/v0/hold")
            answer = connection.getresponse()
            number = int(answer.readline())
            yield lambda: bool(self._ask("GET", f"/v0/held?number={number}")["holds"])
        finally:
            connection.close()

    def diff(self, before: str, after: str) -> Diff:
        """See `Verbs`."""
        query = f"before={_escape(before)}&after={_escape(after)}"
        return Diff.from_json(self._ask("GET", f"/v0/diff?{query}"))

    def verify(self, name: str) -> Verified:
        """See `Verbs`."""
        return Verified(**self._ask("POST", "/v0/verifies", {"name": name}))

    def send(
        self, snapshots: list[str], bases: list[str | None], zstd: bool, resume: str | None
    ) -> Generator[Piece, None, None]:
        """See `ramet.replication.send`: over a connection of its own, ended with it."""
        body = {"snapshots": snapshots, "bases": bases, "zstd": zstd, "resume": resume}
        connection = _Connection(self.api_path)
        try:
            connection.request("POST", "/v0/sends", _encode(body))
            response = connection.getresponse()
            if response.status != HTTPStatus.OK:
                raise from_json(json.loads(response.read()))
            yield from decode_frames(lambda length: _read_up_to(response, length))
        except (OSError, HTTPException, ValueError) as error:
            raise self._failed(error) from error
        finally:
            connection.close()

    def receive(self, pieces: Iterator[bytes], name: str | None) -> list[dict[str, Any]]:
        """See `ramet.replication.receive`. `pieces`: the stream, none of them empty."""
        path = "/v0/receives" if name is None else f"/v0/receives?name={_escape(name)}"
        connection = _Connection(self.api_path)
        try:
            connection.connect()
            # Where it refuses, it answers before it has read all.
            with suppress(BrokenPipeError, ConnectionResetError, _AnsweredError):
                body = _until_answered(pieces, connection.sock)
                connection.request("POST", path, body, encode_chunked=True)
            response = connection.getresponse()
            value = json.loads(response.read())
        except (OSError, HTTPException, ValueError) as error:
            raise self._failed(error) from error
        finally:
            connection.close()
        if response.status != HTTPStatus.OK:
            raise from_json(value)
        return list(value)

    def receiving(self) -> list[dict[str, Any]]:
        """See `ramet.replication.incomplete`."""
        return list(self._ask("GET", "/v0/receiving"))

    def abandon(self, what: str) -> list[dict[str, Any]]:
        """See `ramet.replication.abandon`."""
        return list(self._ask("POST", "/v0/abandons", {"what": what}))

    def rules_text(self) -> str:
        """See `Keeper`."""
        return str(self._ask("GET", "/v0/rules")["text"])

    def set_rules(self, text: str) -> None:
        """See `Keeper`."""
        self._ask("POST", "/v0/rules", {"text": text})

    def change_rules(self, kind: str, name: str, value: dict[str, object] | None) -> None:
        """See `Keeper`."""
        self._ask("POST", "/v0/changes", {"kind": kind, "name": name, "value": value})

    def policies(self) -> list[dict[str, Any]]:
        """See `Keeper`."""
        return list(self._ask("GET", "/v0/policies"))

    def plan(self, days: float) -> list[dict[str, Any]]:
        """See `Keeper`."""
        return list(self._ask("GET", f"/v0/plan?days={days}"))

    def run_policies(self, names: list[str]) -> list[dict[str, Any]]:
        """See `Keeper.run`."""
        return list(self._ask("POST", "/v0/runs", {"names": names}))

    def remotes(self) -> list[dict[str, Any]]:
        """See `Keeper`."""
        return list(self._ask("GET", "/v0/remotes"))

    def wake_remotes(self, names: list[str]) -> None:
        """See `Keeper.wake`."""
        self._ask("POST", "/v0/wakes", {"names": names})

    def objects(self) -> list[ObjectRecord]:
        """See `Verbs`."""
        return [ObjectRecord.from_json(item) for item in self._ask("GET", "/v0/objects")]

    def find_object(self, name: str) -> ObjectRecord:
        """See `Verbs`."""
        return ObjectRecord.from_json(self._ask("GET", f"/v0/object?name={_escape(name)}"))

    def stats(self) -> Stats:
        """See `Verbs`."""
        figures: Stats = self._ask("GET", "/v0/stats")
        return figures

    def checkpoint(self) -> bool:
        """See `Verbs`."""
        return bool(self._ask("POST", "/v0/checkpoints", {})["written"])

    @contextmanager
    def nbd_socket(self) -> Iterator[Path]:
        """See `Verbs`."""
        yield self.nbd_path

    def _made(self, path: str, body: Mapping[str, object]) -> list[Made]:
        return [Made(item["name"], item["uuid"]) for item in self._ask("POST", path, body)]

    def _failed(self, why: object) -> UnavailableError:
        return UnavailableError(
            "service_failed",
            f"the service at '{self.api_path}' did not answer: {why};"
            " hint: see what it printed, and start it again",
        )

    def _ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        try:
            text = None if body is None else _encode(body)
            self._connection.request(method, path, text, {"content-type": "application/json"})
            response = self._connection.getresponse()
            value = json.loads(response.read())
        except (OSError, HTTPException, ValueError) as error:
            raise self._failed(error) from error
        if response.status != HTTPStatus.OK:
            raise from_json(value)
        return value


class _AnsweredError(Exception):
    """The service said its last word on a request that it has not read to its end."""


def _until_answered(pieces: Iterator[bytes], connection: socket.socket) -> Iterator[bytes]:
    """Pass pieces on.

    Raises: _AnsweredError.
    """
    answer = select.poll()
    answer.register(connection, select.POLLIN)
    for piece in pieces:
        if answer.poll(0):
            raise _AnsweredError
        yield piece


def _read_up_to(response: HTTPResponse, length: int) -> bytes:
    """Read so many bytes, less only at the end."""
    try:
        return response.read(length)
    except IncompleteRead as error:
        return error.partial


def _told_paths(pool_path: Path) -> tuple[Path, Path] | None:
    """Give the sockets that `service.json` names, unless it came here with a copy of a pool."""
    try:
        told = json.loads((pool_path / ADDRESS_NAME).read_bytes())
        here = pool_path.stat()
        if (told["pool_device"], told["pool_inode"]) != (here.st_dev, here.st_ino):
            return None
        return Path(told["api_socket"]), Path(told["nbd_socket"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _escape(name: str) -> str:
    # What is not UTF-8 is no name; the pool says so, as it does where there is no service.
    return quote(name, safe="", errors="replace")


def _encode(body: Mapping[str, object]) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode(errors="replace")
