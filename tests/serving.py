"""A service as tests need it: `ramet serve` as a child process, to be asked, ended or killed.

Invariant: when the block of `serving` is left, the process is gone, and whoever left it running
got the same check as a user: SIGTERM ends it with 0.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path

import nbd_client
from ramet.client import Client
from ramet.config import format_nbd_uri

RAMET = [sys.executable, "-m", "ramet"]
END_SECONDS_MAX = 10  # What the service promises for SIGTERM.
COMMAND_SECONDS_MAX = 50


class Serving:
    """A `ramet serve` that said it is ready."""

    def __init__(
        self,
        pool_path: Path,
        *options: object,
        command: Sequence[str] = RAMET,
        descriptors: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.pool_path = pool_path
        self.nbd_path = pool_path / "nbd.sock"
        self.said: list[str] = []
        self._process = subprocess.Popen(
            [*command, "-p", str(pool_path), "serve", *map(str, options)],
            stderr=subprocess.PIPE,
            pass_fds=descriptors,
            env=os.environ | (environment or {}),
            text=True,
            errors="surrogateescape",
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.said.append(line)
            if line.startswith("ready:"):
                break
        else:
            self.wait()
            raise AssertionError(f"the service did not start: {''.join(self.said)}")
        # Somebody must go on reading, or the service waits for a full pipe.
        self._reader = threading.Thread(target=self.said.extend, args=(self._process.stderr,))
        self._reader.start()

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def connect(self, export: str) -> nbd_client.NbdClient:
        return nbd_client.connect(self.nbd_path, export)

    def uri(self, export: str) -> str:
        return format_nbd_uri(export, self.nbd_path)

    @contextmanager
    def verbs(self) -> Iterator[Client]:
        """Be a client of the service, for one thread."""
        client = Client.find(self.pool_path)
        assert client is not None, f"nobody answers: {''.join(self.said)}"
        try:
            yield client
        finally:
            client.close()

    def health(self) -> tuple[int, dict[str, str]]:
        """Ask how it is, as a probe does. Result: the status of the answer, and the answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.pool_path / "api.sock"))
            connection.sendall(b"GET /v0/health HTTP/1.0\r\n\r\n")
            response = HTTPResponse(connection)
            response.begin()
            told: dict[str, str] = json.loads(response.read())
            return response.status, told

    def terminate(self) -> None:
        """Tell it to end, as an init system does."""
        self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Tell it to end; it must end in time, with 0."""
        self.terminate()
        code = self.wait()
        assert code == 0, f"ended with {code}: {''.join(self.said)}"

    def kill(self) -> None:
        """End it without warning. Idempotent."""
        self._process.kill()

    def wait(self) -> int:
        """Wait for the end. Result: its exit code, negative where a signal ended it."""
        code = self._process.wait(END_SECONDS_MAX)
        assert self._process.stderr is not None
        if reader := getattr(self, "_reader", None):
            reader.join()
        self._process.stderr.close()
        return code


@contextmanager
def serving(
    pool_path: Path,
    *options: object,
    command: Sequence[str] = RAMET,
    descriptors: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Serving]:
    """Serve a pool; afterwards stop it, unless the block stopped or killed it.

    `command`: what runs `ramet`; it keeps `descriptors` open, and adds to the `environment`.
    """
    served = Serving(
        pool_path, *options, command=command, descriptors=descriptors, environment=environment
    )
    try:
        yield served
        if served.running:
            served.stop()
    finally:
        served.kill()
        served.wait()


def run_ramet(
    *arguments: object, stdin: str = "", environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does, whatever comes of it."""
    return subprocess.run(
        [*RAMET, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=COMMAND_SECONDS_MAX,
        env=environment,
        check=False,
    )


def ramet(*arguments: object) -> str:
    """Run a command, which must succeed. Result: what it printed."""
    done = run_ramet(*arguments)
    assert done.returncode == 0, f"ramet {arguments}: {done.returncode}: {done.stderr}"
    return done.stdout


def take_snapshots(client: Client, volumes: list[str], name: str) -> list[str]:
    """Take one instant of `volumes`. Result: the names of the snapshots."""
    return [made.name for made in client.snapshot(volumes, False, name)]


def make_pool(pool_path: Path) -> Path:
    """Make an empty pool with small segments, so that many are sealed in a short test."""
    ramet("init", pool_path, "--segment-size", "1MiB")
    return pool_path
