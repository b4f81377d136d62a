"""Commands that run before and after a snapshot.

Imports errors only. Invariants: a command that takes too long is ended, with what it started; what
it says is shown only as far as a line goes.
"""

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress

from ramet.errors import UnavailableError

SAID_BYTES_MAX = 200


def run_hook(kind: str, words: Sequence[str], seconds: float, variables: Mapping[str, str]) -> None:
    """Run a command to its end; `variables` are added to its environment.

    Raises: UnavailableError (code hook_failed): it cannot be run, ends with something else than 0,
    or takes longer than `seconds`.
    Example: run_hook("before", ["fsfreeze", "--freeze", "/srv/db"], 10.0, {})
    """
    # A file and not a pipe: a child that lives on must not hold us up.
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                list(words),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env={**os.environ, **variables},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise _failed(kind, words, str(error)) from error
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise _failed(kind, words, f"it took longer than {seconds:g} s") from error
        finally:
            # What it started ends with it only where it was too slow.
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code != 0:
            said.seek(max(0, said.seek(0, os.SEEK_END) - SAID_BYTES_MAX))
            last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise _failed(kind, words, f"it ended with {code}: {last or 'no word'}")


def _failed(kind: str, words: Sequence[str], why: str) -> UnavailableError:
    return UnavailableError(
        "hook_failed", f"`{kind}` command '{words[0]}': {why}; hint: run it by hand"
    )
