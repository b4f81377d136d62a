"""Certificates of tests, made by openssl: authorities, servers and clients, as PEM files.

Invariant: files have the names that libnbd and QEMU look for in a directory.
"""

from pathlib import Path

import programs

SERVER_NAMES = "IP:127.0.0.1,DNS:localhost"


class Authority:
    """An authority of its own, in `directory`."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        directory.mkdir()
        self.directory = directory
        self.certificate, self._key = directory / "ca-cert.pem", directory / "ca-key.pem"
        extensions = ("-addext", "basicConstraints=critical,CA:TRUE")
        _request(self._key, self.certificate, name, "-x509", "-days", 2, *extensions)

    def server(self, directory: Path) -> tuple[Path, Path]:
        """Make a server's certificate and key for this machine."""
        return self._sign(directory, "server", "server", SERVER_NAMES, "serverAuth")

    def client(self, directory: Path, name: str, other_names: str = "") -> Path:
        """Make what a client needs, in a directory of its own. Result: the directory."""
        self._sign(directory, "client", name, other_names, "clientAuth")
        return directory

    def _sign(
        self, directory: Path, role: str, name: str, other_names: str, usage: str
    ) -> tuple[Path, Path]:
        directory.mkdir(exist_ok=True)
        certificate, key = directory / f"{role}-cert.pem", directory / f"{role}-key.pem"
        request, extensions = directory / f"{role}.csr", directory / f"{role}.ext"
        _request(key, request, name)
        lines = [f"extendedKeyUsage={usage}", "basicConstraints=CA:FALSE"]
        if other_names:
            lines.append(f"subjectAltName={other_names}")
        extensions.write_text("\n".join(lines) + "\n")
        programs.run(
            *("openssl", "x509", "-req", "-days", 2, "-in", request, "-out", certificate),
            *("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial"),
            *("-extfile", extensions),
        )
        (directory / "ca-cert.pem").write_bytes(self.certificate.read_bytes())
        return certificate, key


def _request(key: Path, out: Path, name: str, *more: object) -> None:
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    programs.run(
        *("openssl", "req", "-new", *curve, "-keyout", key, "-out", out),
        *("-subj", f"/O=Ramet/CN={name}", *more),
    )
