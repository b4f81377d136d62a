"""A signature holds for one snapshot and one key, with and without OpenSSH; for nothing else."""

import base64
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

import programs
import ramet as product
from ramet.errors import RametError
from ramet.records import Verified
from ramet.replication import verify_files
from ramet.signing import Signatures, Signer, statement_of
from serving import make_pool, ramet, run_ramet, serving
from streams import code_of, stream_of, take_in

VERIFIED = Verified(
    "db@1", "0198c0de-0000-7000-8000-000000000000", 2**20, "6e40" * 16, 1764171000123456789
)
# Made with VERIFIED and the key of `seeded`: what was signed once must hold for ever.
GOLDEN = """\
{"format":"ramet-snapshot","version":1,"name":"db@1",\
"uuid":"0198c0de-0000-7000-8000-000000000000","size_bytes":1048576,\
"created_ns":1764171000123456789,\
"root":"6e406e406e406e406e406e406e406e406e406e406e406e406e406e406e406e40"}
-----BEGIN SSH SIGNATURE-----
U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgA6EHv/POEL4dcN0Y50vAmWfk1j
CbpQ1fHdyGZBJVMbgAAAAOcmFtZXQtc25hcHNob3QAAAAAAAAABnNoYTUxMgAAAFMAAAAL
c3NoLWVkMjU1MTkAAABAg9gsGYLqZ0qc0rFo8YHzPQYBbWKw1VSx1O2EfEMlC+XjKiZ8Pz
p4Kvp/bESv4Uv6ZPzamPmu5McAqUAwrNtfCA==
-----END SSH SIGNATURE-----
"""


def write_private(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def seeded(directory: Path, seed: int = 0) -> tuple[Path, Path]:
    """Give a private key in PEM, and its public half in OpenSSH's form."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(seed, seed + 32)))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (directory / f"{seed}.pub").write_bytes(public + b" somebody\n")
    return write_private(directory / f"{seed}.pem", pem), directory / f"{seed}.pub"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return seeded(tmp_path)


def keygen(path: Path, *options: str) -> Path:
    """Make a key with OpenSSH; its public half is beside it."""
    programs.run("ssh-keygen", "-q", "-f", path, "-N", "", *(options or ("-t", "ed25519")))
    return path


def public_of(path: Path) -> Path:
    return path.with_suffix(".pub")


def test_a_signature_is_what_the_page_says_and_what_it_was(
    keys: tuple[Path, Path], tmp_path: Path
) -> None:
    key, public = keys
    assert Signer(key).sign(VERIFIED) == GOLDEN
    (tmp_path / "sig").write_text(GOLDEN)
    signed = Signatures(tmp_path / "sig", public).check(VERIFIED)
    assert signed == ("db@1", Signer(key).fingerprint)
    assert signed.key == "SHA256:lbmsoA0yIEcEiVDRnMWuzm+nV+3ZEEpVIURqFoeSspg"
    renamed = VERIFIED._replace(name="there:db@1")
    assert Signatures(tmp_path / "sig", public).check(renamed).name == "db@1"


def test_openssh_checks_what_ramet_signs(tmp_path: Path) -> None:
    key = keygen(tmp_path / "key")
    statement, _, armor = Signer(key).sign(VERIFIED).partition("-----BEGIN")
    (tmp_path / "armor").write_text("-----BEGIN" + armor)
    (tmp_path / "allowed").write_text(f"me {public_of(key).read_text()}")
    how = ("-Y", "verify", "-f", tmp_path / "allowed", "-I", "me", "-s", tmp_path / "armor", "-n")
    said = programs.run("ssh-keygen", *how, "ramet-snapshot", text_in=statement)
    assert Signer(key).fingerprint in said
    programs.fail("ssh-keygen", *how, "ramet-snapshot", text_in=statement.replace("db", "dc"))
    programs.fail("ssh-keygen", *how, "file", text_in=statement)


@pytest.mark.parametrize("hash_name", ["sha512", "sha256"])
def test_ramet_checks_what_openssh_signs(tmp_path: Path, hash_name: str) -> None:
    key = keygen(tmp_path / "key")
    statement = tmp_path / "statement"
    statement.write_text(statement_of(VERIFIED).text)
    how = ("-Y", "sign", "-f", key, "-O", f"hashalg={hash_name}", "-n")
    programs.run("ssh-keygen", *how, "ramet-snapshot", statement)
    file = tmp_path / "sig"
    armor = tmp_path / "statement.sig"
    file.write_text(statement.read_text() + armor.read_text())
    assert Signatures(file, public_of(key)).check(VERIFIED).name == "db@1"
    armor.unlink()
    programs.run("ssh-keygen", *how, "file", statement)
    file.write_text(statement.read_text() + armor.read_text())
    assert code_of(lambda: Signatures(file, public_of(key))) == "signature_malformed"


def test_keys_are_taken_in_the_forms_of_openssh_and_openssl(tmp_path: Path) -> None:
    ssh, pem = keygen(tmp_path / "ssh"), tmp_path / "pem"
    programs.run("openssl", "genpkey", "-algorithm", "ed25519", "-out", pem)
    pem.chmod(0o600)
    programs.run("openssl", "pkey", "-in", pem, "-pubout", "-out", public_of(pem))
    assert public_of(pem).read_text().startswith("-----BEGIN PUBLIC KEY")
    file = tmp_path / "sig"
    for key in (ssh, pem):
        file.write_text(Signer(key).sign(VERIFIED))
        assert Signatures(file, public_of(key)).check(VERIFIED).key == Signer(key).fingerprint
    printed = programs.run("ssh-keygen", "-l", "-f", public_of(ssh))
    assert Signer(ssh).fingerprint in printed


def test_a_private_key_that_cannot_sign_is_refused_by_what_is_wrong(
    keys: tuple[Path, Path], tmp_path: Path
) -> None:
    key, public = keys

    def code(path: Path) -> str:
        return code_of(lambda: Signer(path))

    assert code(tmp_path / "absent") == "key_file"
    assert code(tmp_path) == "key_file"
    for wrong in (b"", b"secret", key.read_bytes()[:60], b"\xff" * 100):
        assert code(write_private(tmp_path / "wrong", wrong)) == "key_malformed"
    whole = keygen(tmp_path / "ssh").read_bytes()
    for end in range(0, len(whole) - 40, 7):
        assert code(write_private(tmp_path / "cut", whole[:end])) == "key_malformed"
    public.chmod(0o600)
    assert code(public) == "key_kind"
    assert code(keygen(tmp_path / "ecdsa", "-t", "ecdsa")) == "key_kind"
    locked = tmp_path / "locked"
    programs.run("ssh-keygen", "-q", "-t", "ed25519", "-f", locked, "-N", "a passphrase")
    assert code(locked) == "key_encrypted"
    programs.run("openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:a", "-out", locked)
    assert code(locked) == "key_encrypted"
    key.chmod(0o640)
    assert code(key) == "key_exposed"


def test_a_public_key_that_cannot_check_is_refused_by_what_is_wrong(
    keys: tuple[Path, Path], tmp_path: Path
) -> None:
    key, public = keys
    file, wrong = tmp_path / "sig", tmp_path / "wrong.pub"
    file.write_text(GOLDEN)

    def code(path: Path) -> str:
        return code_of(lambda: Signatures(file, path))

    assert code(tmp_path / "absent.pub") == "key_file"
    assert code(key) == "key_kind"
    for text in (b"", b"ssh-ed25519", public.read_bytes()[:40], b"\xff", public.read_bytes() * 2):
        wrong.write_bytes(text)
        assert code(wrong) == "key_malformed"
    assert code(public_of(keygen(tmp_path / "rsa", "-t", "rsa"))) == "key_kind"
    # The kind of hardware keys: the same curve, and another signature.
    blob = b"\0\0\0\x1ask-ssh-ed25519@openssh.com" + b"\0\0\0\x20" + bytes(range(32))
    text_of = base64.b64encode(blob + b"\0\0\0\x04ssh:").decode()
    wrong.write_text(f"sk-ssh-ed25519@openssh.com {text_of}")
    assert code(wrong) == "key_kind"
    _, other = seeded(tmp_path, seed=1)
    assert code(other) == "signature_key"
    assert Signatures(file, public).check(VERIFIED).name == "db@1"


@pytest.mark.random
def test_no_changed_byte_and_no_cut_makes_another_statement_hold(
    keys: tuple[Path, Path], tmp_path: Path, randomness: random.Random
) -> None:
    _, public = keys
    file = tmp_path / "sig"
    codes = set()
    content = GOLDEN.encode()
    changed = [content[:at] for at in range(len(content) - 1)]
    for at in range(len(content)):
        other = bytearray(content)
        other[at] ^= 1 << randomness.randrange(8)
        changed.append(bytes(other))
    for it in changed:
        file.write_bytes(it)
        try:
            found = Signatures(file, public).find("db@1", VERIFIED.uuid)
        except RametError as error:
            codes.add((error.code, error.exit_code))
        else:  # What base64 does not look at.
            assert found == [statement_of(VERIFIED)]
            assert it.partition(b"\n")[0] == content.partition(b"\n")[0]
    assert codes <= {
        ("not_a_signature", 2),
        ("signature_version", 2),
        ("signature_key", 4),
        ("signature_malformed", 8),
        ("signature_wrong", 8),
    }
    file.write_text(GOLDEN.replace("1048576", "1048577"))
    assert code_of(lambda: Signatures(file, public)) == "signature_wrong"
    file.write_text(GOLDEN.replace('"version":1', '"version":2,"more":[]'))
    assert code_of(lambda: Signatures(file, public)) == "signature_version"
    file.write_text(GOLDEN.replace('"version":1', '"version": 1'))
    assert code_of(lambda: Signatures(file, public)) == "signature_malformed"


def test_what_differs_from_what_was_signed_is_told(keys: tuple[Path, Path], tmp_path: Path) -> None:
    _, public = keys
    (tmp_path / "sig").write_text(GOLDEN)
    signatures = Signatures(tmp_path / "sig", public)
    other = {"root": "0" * 64, "size_bytes": 2**20 + 512, "created_ns": 0}
    for field, value in other.items():
        with pytest.raises(RametError) as caught:
            signatures.check(VERIFIED._replace(**{field: value}))
        assert (caught.value.code, caught.value.exit_code) == ("signature_differs", 8)
        assert field in caught.value.text
    another = VERIFIED._replace(uuid="0198c0de-0000-7000-8000-000000000001")
    assert code_of(lambda: signatures.check(another)) == "signature_of_another"


def test_files_of_several_signatures_hold_each_under_its_own_key(tmp_path: Path) -> None:
    another = VERIFIED._replace(uuid="0198c0de-0000-7000-8000-000000000001", name="log@1")
    (one, public), (two, second) = seeded(tmp_path), seeded(tmp_path, seed=1)
    file = tmp_path / "sig"
    signed = [Signer(one).sign(VERIFIED), Signer(one).sign(another), Signer(two).sign(VERIFIED)]
    file.write_text("".join(signed))
    signatures = Signatures(file, public)
    assert [signatures.check(it).name for it in (VERIFIED, another)] == ["db@1", "log@1"]
    assert Signatures(file, second).check(VERIFIED).key == Signer(two).fingerprint
    assert code_of(lambda: Signatures(file, second).check(another)) == "signature_of_another"
    # Both tell of one snapshot, and only one can be right.
    file.write_text(signed[0] + Signer(one).sign(VERIFIED._replace(root="1" * 64)))
    assert code_of(lambda: Signatures(file, public).check(VERIFIED)) == "signature_differs"
    file.write_text(signed[0] + "\n" + signed[1])
    assert code_of(lambda: Signatures(file, public)) == "signature_malformed"


def test_a_signature_holds_where_the_snapshot_was_sent_and_not_for_a_new_one(
    pool: product.Pool, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    key, public = keys
    volume = pool.create_volume("db", "1MiB")
    volume.write(5000, b"content")
    volume.snapshot("db@1")
    file, stream = tmp_path / "sig", tmp_path / "db@1.stream"
    file.write_text(Signer(key).sign(pool.verify("db@1")))
    signatures = Signatures(file, public)
    stream.write_bytes(stream_of(pool, ["db@1"]))
    with product.open(tmp_path / "other", create=True, segment_size="1MiB") as other:
        take_in(other, stream.read_bytes(), "there:{name}")
        assert signatures.check(other.verify("there:db@1")).name == "db@1"
    verified = verify_files([stream])[0].verified()
    assert verified is not None
    assert signatures.check(verified).name == "db@1"
    pool.delete("db@1")
    volume.snapshot("db@1")
    again = pool.verify("db@1")
    assert again.root == verified.root
    assert code_of(lambda: signatures.check(again)) == "signature_of_another"


@pytest.fixture
def site(pool_path: Path) -> Path:
    """A pool with db@1, and db@2 that builds on it."""
    make_pool(pool_path)
    with product.open(pool_path) as pool:
        volume = pool.create_volume("db", "1MiB")
        volume.write(0, b"one")
        volume.snapshot("db@1")
        volume.write(0, b"two")
        volume.snapshot("db@2")
    return pool_path


@pytest.mark.slow
def test_commands_sign_and_check_with_and_without_a_service(
    site: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    key, public = keys
    printed = ramet("-p", site, "verify", "db@1", "--sign", key)
    file = tmp_path / "db@1.sig"
    with serving(site):
        line = ramet("-p", site, "verify", "db@1", "--sign", key, "-o", file)
        assert line == ramet("-p", site, "verify", "db@1")
        assert file.read_text() == printed, "the service's root is what is signed"
        again = run_ramet("-p", site, "verify", "db@1", "--sign", key, "-o", file)
        assert (again.returncode, again.stderr.split(":")[1]) == (4, " file_exists")
        checked = run_ramet(
            *("-p", site, "verify", "db@1", "--check-signature", file, "--key", public)
        )
        assert (checked.returncode, checked.stdout) == (0, line)
        assert f"'db@1' is signed by {Signer(key).fingerprint}" in checked.stderr
    ramet("-p", site, "volume", "rename", "db@1", "kept@1")
    check = ("--check-signature", file, "--key", public)
    [told] = json.loads(ramet("-p", site, "verify", "kept@1", *check, "--json"))
    assert (told["signed_by"], told["signed_name"]) == (Signer(key).fingerprint, "db@1")
    wrong = run_ramet("-p", site, "verify", "db@2", *check)
    assert (wrong.returncode, wrong.stdout) == (4, ""), "refused before anything is read"
    assert "signature_of_another" in wrong.stderr
    statement = ramet("-p", site, "verify", "kept@1", "--statement")
    assert json.loads(statement)["name"] == "kept@1"
    several = json.loads(ramet("-p", site, "verify", "kept@1", "db@2", "--sign", key, "--json"))
    file.write_text("".join(it["signature"] for it in several))
    ramet("-p", site, "verify", "db@2", "kept@1", *check)


@pytest.mark.slow
def test_commands_sign_of_files_what_was_proved(
    site: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    key, public = keys
    streams = [tmp_path / "1.stream", tmp_path / "2.stream"]
    with product.open(site) as pool:
        streams[0].write_bytes(stream_of(pool, ["db@1"]))
        streams[1].write_bytes(stream_of(pool, ["db@2"], ["db@1"]))
    file = tmp_path / "sig"
    ramet("verify", *streams, "--sign", key, "-o", file)
    assert file.read_text().count("BEGIN") == 1
    check = ("--check-signature", file, "--key", public)
    ramet("-p", site, "verify", "db@2", *check)
    ramet("verify", *streams, *check)
    alone = run_ramet("verify", streams[0], *check)
    assert alone.returncode == 4
    assert "signature_of_another" in alone.stderr


@pytest.mark.slow
def test_a_command_that_cannot_do_all_of_it_does_nothing(
    site: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    key, public = keys

    def code(*options: object) -> tuple[int, str]:
        done = run_ramet("-p", site, "verify", "db@1", *options)
        assert done.stdout == ""
        return done.returncode, done.stderr.split(":")[1].strip()

    assert code("--sign", tmp_path / "absent") == (3, "key_file")
    key.chmod(0o644)
    assert code("--sign", key) == (2, "key_exposed")
    assert code("--check-signature", tmp_path / "absent", "--key", public) == (3, "signature_file")
    assert code("--check-signature", public, "--key", public) == (2, "not_a_signature")
    key.chmod(0o600)
    assert code("--sign", key, "-o", tmp_path / "no" / "sig") == (6, "signature_unwritable")
    for options in (("-o", "x"), ("--key", public), ("--check-signature", public)):
        assert code(*options) == (2, "bad_arguments")
    assert code("--sign", key, "--check-signature", public) == (2, "bad_arguments")
    output = tmp_path / "sig"
    failed = run_ramet("-p", site, "verify", "db@1", "absent", "--sign", key, "-o", output)
    assert failed.returncode == 3
    assert [it.name for it in tmp_path.iterdir() if "sig" in it.name or "part" in it.name] == []


def test_only_who_signs_waits_for_the_library() -> None:
    look = (
        "import sys; from ramet.cli import main; main({}); sys.exit('cryptography' in sys.modules)"
    )

    def loads_it(*given: str) -> bool:
        command = [sys.executable, "-c", look.format(list(given))]
        return bool(subprocess.run(command, capture_output=True, check=False).returncode)

    assert not loads_it("--version")
    assert not loads_it("-p", "absent", "verify", "db@1")
    assert loads_it("verify", "x/y", "--sign", "absent")
