"""Signatures of snapshots: who vouches for what was read.

Docs: docs/internals/signatures.md. Imports records and errors; `cryptography` where a key is used,
because it takes as long to load as a command. Invariants: a statement has one text; a signature
counts only for that text, in the namespace of Ramet; a private key leaves this module never.
"""

import base64
import hashlib
import os
import stat
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ramet.errors import ConflictError, CorruptError, InvalidError, NotFoundError
from ramet.records import Verified

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FORMAT = "ramet-snapshot"
VERSION = 1
KEY_BYTES_MAX = 1 << 16
SIGNATURES_BYTES_MAX = 1 << 26  # A hundred thousand of them.
# What OpenSSH's PROTOCOL.sshsig and PROTOCOL.key say.
MAGIC = b"SSHSIG"
MAGIC_VERSION = 1
NAMESPACE = FORMAT.encode()
KEY_TYPE = b"ssh-ed25519"
HASHES = {b"sha512": hashlib.sha512, b"sha256": hashlib.sha256}
BEGIN, END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
ARMOR_WIDTH = 70
LENGTH_BYTES = 4

FilePath = str | os.PathLike[str]


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is signed of a snapshot; its keys in this order are the text."""

    format: str
    version: int
    name: str
    uuid: str
    size_bytes: int
    created_ns: int
    root: str

    @property
    def text(self) -> str:
        """The one line that is signed."""
        return msgspec.json.encode(self).decode() + "\n"


class Signed(NamedTuple):
    """A signature that holds for what was read."""

    name: str
    """What the snapshot was called where it was signed."""
    key: str
    """The key's fingerprint, as `ssh-keygen -l` prints it."""


class _Version(msgspec.Struct):
    format: str
    version: int


class _Pair(NamedTuple):
    """A statement and its signature, as a file has them."""

    statement: Statement
    text: str
    key: bytes
    """The public key in OpenSSH's encoding."""
    hash_name: bytes
    signature: bytes


def statement_of(verified: Verified) -> Statement:
    """Give what is to be signed of a snapshot that was verified.

    Example: statement_of(pool.verify("db@1")).text
    """
    return Statement(
        FORMAT,
        VERSION,
        verified.name,
        verified.uuid,
        verified.size_bytes,
        verified.created_ns,
        verified.root,
    )


class Signer:
    """Signs with a private key.

    Raises, when made: NotFoundError (code key_file); InvalidError (codes key_malformed, key_kind,
    key_encrypted, key_exposed).
    """

    def __init__(self, key: FilePath) -> None:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        self._key = _load_private(Path(key))
        raw = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self._public = _string(KEY_TYPE) + _string(raw)

    @property
    def fingerprint(self) -> str:
        """The key's, as `ssh-keygen -l` prints it."""
        return _fingerprint(self._public)

    def sign(self, verified: Verified) -> str:
        """Sign what was read. Result: the text of a signature file.

        Example: Signer("key").sign(pool.verify("db@1"))
        """
        text = statement_of(verified).text
        signature = self._key.sign(_signed_bytes(text, b"sha512"))
        blob = MAGIC + MAGIC_VERSION.to_bytes(LENGTH_BYTES, "big")
        for part in (self._public, NAMESPACE, b"", b"sha512"):
            blob += _string(part)
        blob += _string(_string(KEY_TYPE) + _string(signature))
        armor = textwrap.wrap(base64.b64encode(blob).decode(), ARMOR_WIDTH)
        return "\n".join([text.rstrip("\n"), BEGIN, *armor, END, ""])


class Signatures:
    """What a signature file says under one key; signatures of other keys count for nothing.

    Raises, when made: NotFoundError (codes key_file, signature_file); InvalidError (codes
    key_malformed, key_kind, not_a_signature, signature_version); ConflictError (code signature_key)
    where nothing is signed with this key; CorruptError (codes signature_malformed, and
    signature_wrong where a text is not the one that was signed).
    """

    def __init__(self, file: FilePath, key: FilePath) -> None:
        raw = _load_public(Path(key))
        public = _string(KEY_TYPE) + _string(raw)
        self._file = file
        self._fingerprint = _fingerprint(public)
        pairs = _parse(Path(file), _read_signatures(Path(file)))
        ours = [it for it in pairs if it.key == public]
        if not ours:
            others = sorted({_fingerprint(it.key) for it in pairs})
            raise ConflictError(
                "signature_key",
                f"'{file}' is signed with {others[0]}, not with {self._fingerprint}, which"
                f" '{key}' has; hint: give the signer's public key, or do not trust it",
            )
        for it in ours:
            _check_signature(it, raw, file)
        self._statements = [it.statement for it in ours]

    def find(self, name: str, uuid: str) -> list[Statement]:
        """Give what is signed of a snapshot, before it is read.

        Raises: ConflictError (code signature_of_another) where nothing is.
        Example: Signatures("db@1.sig", "key.pub").find("db@1", record.uuid)
        """
        found = [it for it in self._statements if it.uuid == uuid]
        if not found:
            other = next((it for it in self._statements if it.name == name), self._statements[0])
            raise ConflictError(
                "signature_of_another",
                f"'{self._file}' is of '{other.name}' with UUID {other.uuid}; '{name}' has UUID"
                f" {uuid}; hint: give its own signature, or find out who replaced it",
            )
        return found

    def check(self, verified: Verified) -> Signed:
        """Hold what was read against what is signed of it.

        Raises: ConflictError (code signature_of_another); CorruptError (code signature_differs).
        Example: Signatures("db@1.sig", "key.pub").check(pool.verify("db@1"))
        """
        statements = self.find(verified.name, verified.uuid)
        for it in statements:
            for field in ("root", "size_bytes", "created_ns"):
                signed, found = getattr(it, field), getattr(verified, field)
                if signed != found:
                    raise CorruptError(
                        "signature_differs",
                        f"'{verified.name}' has {field} {found}; signed with {self._fingerprint} is"
                        f" {signed}; hint: it is not what was signed; restore it from elsewhere",
                    )
        return Signed(statements[-1].name, self._fingerprint)


def _load_private(path: Path) -> "Ed25519PrivateKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        load_pem_private_key,
        load_ssh_private_key,
    )

    content = _read_key(path, is_private=True)
    if content.startswith((b"ssh-", b"-----BEGIN PUBLIC KEY-----")):
        text = f"'{path}' is a public key; hint: sign with the private one that belongs to it"
        raise InvalidError("key_kind", text)
    is_openssh = b"-----BEGIN OPENSSH PRIVATE KEY-----" in content
    load = load_ssh_private_key if is_openssh else load_pem_private_key
    try:
        key = load(content, None)
    except TypeError as error:
        raise InvalidError(
            "key_encrypted",
            f"'{path}' needs a passphrase; hint: sign what `ramet verify --statement` prints with"
            f" `ssh-keygen -Y sign -n {FORMAT}`, which asks for it",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidError(
            "key_malformed",
            f"'{path}' is no private key in the format of OpenSSH or PEM: {error};"
            " hint: make one with `ssh-keygen -t ed25519`",
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _other_kind(path, type(key).__name__)
    return key


def _load_public(path: Path) -> bytes:
    """Give the 32 bytes of a public key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import (
        load_pem_public_key,
        load_ssh_public_key,
    )

    content = _read_key(path, is_private=False)
    if b"PRIVATE KEY-----" in content:
        raise InvalidError(
            "key_kind",
            f"'{path}' is a private key; hint: give the public one that belongs to it:"
            f" `ssh-keygen -y -f '{path}'` prints it",
        )
    is_pem = content.startswith(b"-----BEGIN ")
    try:
        key = load_pem_public_key(content) if is_pem else load_ssh_public_key(_one_line(content))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidError(
            "key_malformed",
            f"'{path}' is no public key in the format of OpenSSH or PEM: {error};"
            " hint: it is the file that ends in .pub beside the private key",
        ) from error
    # A key of hardware is an Ed25519 key too, but signs something else.
    if not isinstance(key, Ed25519PublicKey) or content.lstrip().startswith(b"sk-"):
        raise _other_kind(path, content.split()[0].decode(errors="replace"))
    return key.public_bytes_raw()


def _one_line(content: bytes) -> bytes:
    lines = [it for it in content.splitlines() if it.strip() and not it.startswith(b"#")]
    if len(lines) != 1:
        raise ValueError(f"it has {len(lines)} keys")
    return lines[0]


def _other_kind(path: Path, kind: str) -> InvalidError:
    return InvalidError(
        "key_kind",
        f"'{path}' is a key of another kind ({kind}) than Ed25519;"
        " hint: make one with `ssh-keygen -t ed25519`",
    )


def _read_key(path: Path, is_private: bool) -> bytes:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(KEY_BYTES_MAX)
    except OSError as error:
        raise NotFoundError(
            "key_file", f"the key '{path}' cannot be read: {error.strerror}; hint: check its path"
        ) from error
    # As ssh does it: only of one's own files, so that others can be lent to somebody.
    if is_private and status.st_uid == os.getuid() and status.st_mode & 0o077:
        raise InvalidError(
            "key_exposed",
            f"others may read the private key '{path}' (mode {stat.S_IMODE(status.st_mode):04o});"
            f" hint: chmod 600 '{path}', and make a new one if somebody may have",
        )
    return content


def _read_signatures(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(SIGNATURES_BYTES_MAX + 1)
    except OSError as error:
        raise NotFoundError(
            "signature_file",
            f"the signature '{path}' cannot be read: {error.strerror}; hint: check its path",
        ) from error
    if len(content) > SIGNATURES_BYTES_MAX or not content.startswith(b'{"format":"' + NAMESPACE):
        raise InvalidError(
            "not_a_signature",
            f"'{path}' is no signature of a snapshot;"
            " hint: give a file that `ramet verify --sign` wrote",
        )
    return content


def _parse(path: Path, content: bytes) -> list[_Pair]:
    """Read a signature file; it has one pair at least."""
    text = content.decode("ascii", errors="replace")
    return list(_pairs(path, enumerate(text.splitlines(keepends=True), start=1)))


def _pairs(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[_Pair]:
    for number, text in lines:
        statement = _parse_statement(path, number, text)
        try:
            blob = base64.b64decode(_armored(lines), validate=True)
            pair = _Pair(statement, text, *_parse_blob(blob))
        except ValueError as error:
            raise _malformed(path, number, str(error)) from error
        yield pair


def _armored(lines: Iterator[tuple[int, str]]) -> str:
    """Give what is between the lines that begin and end a signature.

    Raises: ValueError.
    """
    if next(lines, (0, ""))[1].rstrip() != BEGIN:
        raise ValueError("no signature follows")
    found = ""
    for _, line in lines:
        if line.rstrip() == END:
            return found
        found += line.rstrip()
    raise ValueError("its signature is cut")


def _parse_statement(path: Path, number: int, text: str) -> Statement:
    try:
        told = msgspec.json.decode(text, type=_Version)
        if told.format == FORMAT and told.version > VERSION:
            raise InvalidError(
                "signature_version",
                f"'{path}', line {number}: signed in version {told.version}, known is"
                f" {VERSION}; hint: check it with a newer Ramet",
            )
        statement = msgspec.json.decode(text, type=Statement)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise _malformed(path, number, str(error)) from error
    if statement.text != text or (statement.format, statement.version) != (FORMAT, VERSION):
        raise _malformed(path, number, "it is not the text of a statement")
    return statement


def _malformed(path: Path, number: int, why: str) -> CorruptError:
    return CorruptError(
        "signature_malformed",
        f"'{path}', line {number}: {why}; hint: take the file from where it was kept",
    )


def _parse_blob(blob: bytes) -> tuple[bytes, bytes, bytes]:
    """Give key, hash and signature.

    Raises: ValueError.
    """
    at = len(MAGIC) + LENGTH_BYTES
    if blob[:at] != MAGIC + MAGIC_VERSION.to_bytes(LENGTH_BYTES, "big"):
        raise ValueError("its signature is none that `ssh-keygen -Y` writes")
    key, namespace, _, hash_name, signature = _strings(blob[at:], 5)
    if namespace != NAMESPACE:
        told = namespace.decode(errors="replace")
        raise ValueError(f"its signature is of the namespace '{told}', not '{FORMAT}'")
    if hash_name not in HASHES:
        raise ValueError(f"its hash is '{hash_name.decode(errors='replace')}'")
    return key, hash_name, signature


def _check_signature(pair: _Pair, raw_key: bytes, file: FilePath) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        _, signature = _strings(pair.signature, 2)
        signed = _signed_bytes(pair.text, pair.hash_name)
        Ed25519PublicKey.from_public_bytes(raw_key).verify(signature, signed)
    except (InvalidSignature, ValueError) as error:
        raise CorruptError(
            "signature_wrong",
            f"'{file}': what it says of '{pair.statement.name}', UUID {pair.statement.uuid}, is not"
            " what was signed; hint: it was changed; take it from where it was kept",
        ) from error


def _signed_bytes(text: str, hash_name: bytes) -> bytes:
    hashed = HASHES[hash_name](text.encode()).digest()
    return MAGIC + b"".join(map(_string, (NAMESPACE, b"", hash_name, hashed)))


def _fingerprint(key: bytes) -> str:
    hashed = base64.b64encode(hashlib.sha256(key).digest()).decode()
    return f"SHA256:{hashed.rstrip('=')}"


def _string(content: bytes) -> bytes:
    return len(content).to_bytes(LENGTH_BYTES, "big") + content


def _strings(content: bytes, count: int) -> list[bytes]:
    """Give all strings of what consists of that many.

    Raises: ValueError.
    """
    found, at = [], 0
    for _ in range(count):
        length = int.from_bytes(content[at : at + LENGTH_BYTES], "big")
        at += LENGTH_BYTES
        found.append(content[at : at + length])
        at += length
    if at != len(content):
        raise ValueError("its signature is cut, or too long")
    return found
