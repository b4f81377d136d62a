"""A remote, as a command that stands before ramet's own words: asked, and sent to.

Imports errors and frames. Invariants: what is said to a remote cannot delete there;
no process outlives `stop`; what a remote answers is data of a stranger: it is parsed, checked, and
never run.
"""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import IO, Any, NamedTuple

from ramet.errors import RametError, UnavailableError, from_json
from ramet.frames import PacedWriter

ASK_SECONDS_MAX = 60.0
ERROR_BYTES_MAX = 4096
END_SECONDS_MAX = 2.0


class How(NamedTuple):
    """How streams go to a remote."""

    name: str = "{name}"
    """What snapshots are called there: a pattern with `{name}`."""
    zstd: bool = False
    rate: int | None = None
    """Bytes a second at most."""


HOW = How()


class Link:
    """One remote. May be stopped from another thread; everything after that fails."""

    def __init__(self, name: str, command: Sequence[str], how: How = HOW) -> None:
        self.name = name
        self.how = how
        self._command = list(command)
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def ask(self, *words: str) -> Any:
        """Give what the remote's `ramet --json WORDS` answers.

        Raises: UnavailableError (codes remote_unreachable, remote_slow, remote_answer); what the
        remote raised.
        """
        process = self._start(words, stdin=subprocess.DEVNULL)
        try:
            answer, said = process.communicate(timeout=ASK_SECONDS_MAX)
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(
                "remote_slow",
                f"remote '{self.name}' did not answer `{words[0]}` in {ASK_SECONDS_MAX:.0f} s;"
                " hint: see whether it is up",
            ) from error
        finally:
            self._end(process)
        return self._answer(process.returncode, answer, said)

    def receive(self, pieces: Iterable[bytes]) -> Any:
        """Have the remote take in a stream; give what it answers.

        Raises: as `ask`; and whatever `pieces` raises.
        """
        process = self._start(("receive", "--name", self.how.name), stdin=subprocess.PIPE)
        stdin, outputs = process.stdin, (process.stdout, process.stderr)
        answers: list[bytes] = [b"", b""]

        def drain(place: int, pipe: IO[bytes] | None) -> None:
            answers[place] = pipe.read() if pipe is not None else b""

        drains = [
            threading.Thread(target=drain, args=(place, pipe), daemon=True)
            for place, pipe in enumerate(outputs)
        ]
        for it in drains:
            it.start()
        try:
            # Where the remote refuses, it says why, and reads no more.
            with suppress(BrokenPipeError):
                assert stdin is not None, "it is a pipe"
                writer = PacedWriter(stdin.fileno(), self.how.rate)
                for piece in pieces:
                    writer.write(piece)
                stdin.close()
            process.wait()
            for it in drains:
                it.join()
        finally:
            self._end(process)
        return self._answer(process.returncode, *answers)

    def stop(self) -> None:
        """End what runs, now and from now on."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            _kill(process)

    def _start(self, words: Sequence[str], stdin: int) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise UnavailableError(
                    "remote_stopped", f"remote '{self.name}' is not asked any more; hint: retry"
                )
            try:
                process = subprocess.Popen(
                    [*self._command, "--json", *words],
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            except OSError as error:
                raise UnavailableError(
                    "remote_unreachable",
                    f"remote '{self.name}': cannot run '{self._command[0]}': {error};"
                    " hint: install it, or change the remote's url",
                ) from error
            self._running.add(process)
            return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            _kill(process)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        with self._lock:
            self._running.discard(process)

    def _answer(self, code: int, answer: bytes, said: bytes) -> Any:
        if code == 0:
            try:
                return json.loads(answer)
            except ValueError as error:
                raise self._strange(answer) from error
        last = said[-ERROR_BYTES_MAX:].decode(errors="replace").strip().rpartition("\n")[2]
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            refused = from_json(json.loads(last))
            raise type(refused)(refused.code, f"remote '{self.name}': {refused.text}")
        raise UnavailableError(
            "remote_unreachable",
            f"remote '{self.name}' ended with {code}: {last or 'no word'};"
            " hint: try its command by hand",
        )

    def _strange(self, answer: bytes) -> RametError:
        begun = answer[:60].decode(errors="replace")
        return UnavailableError(
            "remote_answer",
            f"remote '{self.name}' answered {begun!r}, not JSON;"
            " hint: its shell must print nothing; the same version of Ramet on both sides",
        )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS_MAX)
            return
