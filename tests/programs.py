"""Programs of others that tests drive: qemu, libnbd, fio, mkfs and mount.

Invariants: a program that is absent skips the test and is named; one that hangs is killed and
fails it.
"""

import os
import shutil
import subprocess

import pytest

RUN_SECONDS_MAX = 60
SYSTEM_PATHS = "/usr/sbin:/sbin"  # Where mkfs and losetup are; not on everybody's PATH.


def find(name: str) -> str:
    """Give the path of a program, or skip the test."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATHS}")
    if path is None:
        pytest.skip(f"no {name}; hint: tools/setup tools")
    return path


def finish(name: str, *arguments: object, text_in: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program to its end, whatever that is."""
    return subprocess.run(
        [find(name), *map(str, arguments)],
        input=text_in,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )


def run(name: str, *arguments: object, text_in: str = "") -> str:
    """Run a program, which must succeed. Result: what it printed."""
    done = finish(name, *arguments, text_in=text_in)
    command = " ".join([name, *map(str, arguments)])
    assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def fail(name: str, *arguments: object, text_in: str = "") -> str:
    """Run a program, which must fail by itself. Result: all it said."""
    done = finish(name, *arguments, text_in=text_in)
    command = " ".join([name, *map(str, arguments)])
    assert done.returncode > 0, f"{command}: {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr
