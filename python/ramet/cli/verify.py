"""`ramet verify`: snapshots of a pool, or streams in files; and signatures of what was read.

Imports session; replication where files are given, signing where something is signed or checked.
Invariants: what is the name of a file is a file; a snapshot of that name is meant by its UUID.
Keys, signatures and where to write are looked at before anything long is read; a file that is
written appears whole.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ramet.cli.output import print_json
from ramet.cli.progress import show_bytes
from ramet.cli.session import verbs_of
from ramet.errors import ConflictError, InvalidError, UnavailableError
from ramet.records import Verified
from ramet.verbs import PoolVerbs, Verbs

if TYPE_CHECKING:
    from ramet.signing import Signatures


class _Asked(NamedTuple):
    """What is to be done with what was verified."""

    sign: Callable[[Verified], str] | None
    """Gives what is to be written of it."""
    output: Path | None
    """Where to; None: stdout, in place of roots."""
    signatures: "Signatures | None"
    """To check it against."""


class _Found(NamedTuple):
    """What was read: as JSON, and what is proved of it."""

    told: dict[str, Any]
    verified: Verified | None


def verify(arguments: Namespace) -> None:
    """Read and hash; print the root and name of each snapshot once it is known."""
    files = [Path(name) for name in arguments.names if "/" in name or Path(name).is_file()]
    if files and len(files) != len(arguments.names):
        raise InvalidError(
            "files_and_snapshots",
            f"'{files[0]}' is a file, others are not; hint: verify files, or snapshots of a pool",
        )
    asked = _asked(arguments)
    with (
        _appears(asked.output) as write,
        closing(_files(files) if files else _snapshots(arguments, asked)) as found,
    ):
        all_told, text = _tell(found, asked, arguments.json)
        write(text)
    if arguments.json:
        print_json(all_told)
    elif asked.output is None:
        sys.stdout.write(text)


def _asked(arguments: Namespace) -> _Asked:
    """Load keys and signatures."""
    it = arguments
    writes = it.sign is not None or it.statement
    for wrong, text in (
        (it.output is not None and not writes, "--output goes with --sign or --statement"),
        (it.key is not None and it.check_signature is None, "--key goes with --check-signature"),
        (it.check_signature is not None and it.key is None, "--check-signature needs --key PUBLIC"),
    ):
        if wrong:
            raise InvalidError("bad_arguments", f"{text}; hint: ramet verify --help")
    if not writes and it.check_signature is None:
        return _Asked(None, None, None)
    from ramet.signing import Signatures, Signer, statement_of

    if it.check_signature is not None:
        return _Asked(None, None, Signatures(it.check_signature, it.key))
    sign = Signer(it.sign).sign if it.sign is not None else lambda it: statement_of(it).text
    return _Asked(sign, None if it.output is None else Path(it.output), None)


def _tell(
    found: Iterator[_Found], asked: _Asked, as_json: bool
) -> tuple[list[dict[str, Any]], str]:
    """Print roots as they are found, and sign or check. Result: what is JSON, what is signed."""
    all_told = []
    signed_text = ""
    prints_roots = not as_json and (asked.sign is None or asked.output is not None)
    for told, verified in found:
        all_told.append(told)
        if prints_roots:
            print(f"{told['root']}  {told['name']}", flush=True)
        if verified is None:
            name = told["name"]
            print(f"'{name}' is whole; proved is what builds on it", file=sys.stderr)
            continue
        if asked.sign is not None:
            told["signature"] = asked.sign(verified)
            signed_text += told["signature"]
        if asked.signatures is not None:
            signed = asked.signatures.check(verified)
            told |= {"signed_by": signed.key, "signed_name": signed.name}
            name = "" if signed.name == verified.name else f" as '{signed.name}'"
            print(f"'{verified.name}' is signed by {signed.key}{name}", file=sys.stderr)
    return all_told, signed_text


@contextmanager
def _appears(path: Path | None) -> Iterator[Callable[[str], None]]:
    """Give what writes a file that appears whole; None: it writes nothing."""
    if path is None:
        yield lambda _: None
        return
    if path.exists():
        raise ConflictError("file_exists", f"'{path}' exists; hint: give another name")
    part = path.with_name(f".ramet-{os.getpid()}.part")
    try:
        file = part.open("x")
    except OSError as error:
        raise _unwritable(path, error) from error

    def write(text: str) -> None:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            raise _unwritable(path, error) from error

    try:
        with file:
            yield write
    finally:
        part.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> UnavailableError:
    return UnavailableError(
        "signature_unwritable",
        f"'{path}' cannot be written: {error.strerror}; hint: see to its directory",
    )


def _snapshots(arguments: Namespace, asked: _Asked) -> Generator[_Found, None, None]:
    with verbs_of(arguments) as verbs:
        if asked.signatures is not None:
            for record in map(verbs.find_object, arguments.names):
                asked.signatures.find(record.name, record.uuid)
        for name in arguments.names:
            verified = _verify(verbs, name)
            yield _Found(verified.to_json(), verified)


def _verify(verbs: Verbs, name: str) -> Verified:
    if not isinstance(verbs, PoolVerbs):
        return verbs.verify(name)
    with show_bytes(f"verifying {name}") as show:
        return verbs.pool.verify(name, progress=show)


def _files(files: list[Path]) -> Generator[_Found, None, None]:
    from ramet.replication import verify_files

    with show_bytes("verifying") as show:
        found = verify_files(files, progress=show)
    for it in found:
        yield _Found(it.to_json(), it.verified())
