"""Records, errors as JSON, and where sockets and pools are found."""

import json
import pickle
from pathlib import Path

import pytest

from ramet import errors
from ramet.config import (
    SOCKET_PATH_LENGTH_MAX,
    find_api_socket,
    find_nbd_socket,
    find_pool_path,
    format_nbd_uri,
)
from ramet.records import ObjectRecord

RECORD = ObjectRecord(
    uuid="01936f3a-7c1e-7d2b-8f00-0123456789ab",
    name="db",
    kind="volume",
    size_bytes=10 * 2**30,
    mapped_bytes=4096,
    created_ns=1_795_520_605_123_000_000,
    parent=None,
    source="01936f3a-7c1e-7d2b-8f00-0123456789aa",
    batch="01936f3a-7c1e-7d2b-8f00-0123456789ac",
    attached_count=2,
)
KINDS = (
    ("invalid", errors.InvalidError, 2),
    ("forbidden", errors.ReadOnlyError, 9),
    ("not_found", errors.NotFoundError, 3),
    ("conflict", errors.ConflictError, 4),
    ("busy", errors.BusyError, 5),
    ("unavailable", errors.UnavailableError, 6),
    ("full", errors.FullError, 7),
    ("corrupt", errors.CorruptError, 8),
    ("internal", errors.InternalError, 1),
)


def test_a_record_survives_json() -> None:
    text = json.dumps(RECORD.to_json() | {"a key of a later version": 1})
    assert ObjectRecord.from_json(json.loads(text)) == RECORD


def test_every_integer_of_bytes_in_json_says_so_in_its_name() -> None:
    numbers = {key for key, value in RECORD.to_json().items() if isinstance(value, int)}
    assert numbers == {"size_bytes", "mapped_bytes", "created_ns", "attached_count"}
    assert RECORD.to_json()["created"] == "2026-11-24T11:43:25.123Z"


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        RECORD.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(("kind", "error_class", "exit_code"), KINDS)
def test_every_kind_has_a_class_and_an_exit_code_of_its_own(
    kind: str, error_class: type[errors.RametError], exit_code: int
) -> None:
    error = errors.from_core(kind, "some_code", "what failed")
    assert type(error) is error_class
    assert (error.kind, error.code, error.text) == (kind, "some_code", "what failed")
    assert error.exit_code == exit_code
    assert str(error) == "some_code: what failed"


def test_exit_codes_are_told_apart() -> None:
    assert len({exit_code for _, _, exit_code in KINDS}) == len(KINDS)


@pytest.mark.parametrize(("kind", "error_class", "exit_code"), KINDS)
def test_errors_survive_json_and_pickle(
    kind: str, error_class: type[errors.RametError], exit_code: int
) -> None:
    error = errors.from_core(kind, "some_code", "what failed")
    for other in (
        errors.from_json(json.loads(json.dumps(error.to_json()))),
        pickle.loads(pickle.dumps(error)),  # noqa: S301 - our own bytes.
    ):
        assert type(other) is error_class
        assert other.to_json() == error.to_json()
        assert other.exit_code == exit_code


def test_an_error_of_an_unknown_kind_is_not_lost() -> None:
    error = errors.from_core("new_kind", "some_code", "what failed")
    assert type(error) is errors.InternalError
    assert str(error) == "some_code: what failed"
    assert isinstance(errors.from_json({}), errors.InternalError)


def test_read_only_is_a_kind_of_invalid() -> None:
    assert issubclass(errors.ReadOnlyError, errors.InvalidError)


def test_the_pool_is_that_of_the_option_else_of_the_environment() -> None:
    assert find_pool_path("/a", {"RAMET_POOL": "/b"}) == Path("/a")
    assert find_pool_path(None, {"RAMET_POOL": "/b"}) == Path("/b")
    for environment in ({}, {"RAMET_POOL": ""}):
        with pytest.raises(errors.InvalidError) as caught:
            find_pool_path(None, environment)
        assert caught.value.code == "pool_not_given"


def test_sockets_lie_in_the_pool_unless_told_otherwise() -> None:
    pool = Path("/srv/pool")
    assert find_nbd_socket(pool) == Path("/srv/pool/nbd.sock")
    assert find_api_socket(pool) == Path("/srv/pool/api.sock")
    assert find_nbd_socket(pool, "unix:/run/x") == Path("/run/x")
    assert find_api_socket(pool, "/run/x") == Path("/run/x")
    assert find_api_socket(pool, "x.sock") == Path("x.sock")


@pytest.mark.parametrize("option", ["tcp:localhost:10809", "http://host/x", "unix:"])
def test_what_is_no_unix_socket_is_refused(option: str) -> None:
    with pytest.raises(errors.InvalidError) as caught:
        find_nbd_socket(Path("/srv/pool"), option)
    assert caught.value.code == "socket_scheme"


def test_a_socket_path_that_the_system_would_cut_off_is_refused() -> None:
    longest = "/" + "x" * (SOCKET_PATH_LENGTH_MAX - 1)
    assert find_nbd_socket(Path("/srv/pool"), longest) == Path(longest)
    with pytest.raises(errors.InvalidError) as caught:
        find_nbd_socket(Path("/srv/pool"), longest + "x")
    assert caught.value.code == "socket_path_too_long"


def test_nbd_uris_are_absolute_and_escaped() -> None:
    assert (
        format_nbd_uri("golden@1", Path("/srv/my pool/nbd.sock"))
        == "nbd+unix:///golden@1?socket=/srv/my%20pool/nbd.sock"
    )
    assert format_nbd_uri("x", Path("nbd.sock")).endswith(f"{Path.cwd()}/nbd.sock")
