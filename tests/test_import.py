"""`ramet volume import`: a volume has its name when all of the image is in it, and not before."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import programs
from ramet.cli.transfer import temporary_name
from ramet.names import VOLUME_NAME_LENGTH_MAX, check_volume_name
from serving import END_SECONDS_MAX, RAMET, Serving, make_pool, run_ramet, serving

pytestmark = pytest.mark.slow


@pytest.fixture
def image(tmp_path: Path) -> Path:
    programs.find("qemu-img")
    path = tmp_path / "image.raw"
    path.write_bytes(b"content!" * (1 << 17))
    return path


@pytest.fixture
def served(pool_path: Path) -> Iterator[Serving]:
    with serving(make_pool(pool_path)) as it:
        yield it


def names_in(served: Serving) -> list[str]:
    with served.verbs() as verbs:
        return [it.name for it in verbs.objects()]


@contextmanager
def halfway(served: Serving, image: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """An import of "golden" whose copy has begun and waits, with half of the image written."""
    gate, folder = tmp_path / "gate", tmp_path / "programs"
    folder.mkdir()
    os.mkfifo(gate)
    real = programs.find("qemu-img")
    fake = folder / "qemu-img"
    # The URI is the last argument.
    fake.write_text(
        f"""#!/bin/sh
[ "$1" = convert ] || exec {real} "$@"
for uri; do :; done
{programs.find("qemu-io")} -f raw -c "write -P 99 0 512k" "$uri" >/dev/null || exit 1
exec cat {gate}
"""
    )
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        [*RAMET, "-p", str(served.pool_path), "volume", "import", str(image), "golden"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with gate.open("w"):  # Opened once somebody reads from it.
            yield process
    finally:
        process.kill()
        process.communicate()


def test_an_import_that_is_killed_leaves_no_volume_of_that_name(
    served: Serving, image: Path, tmp_path: Path
) -> None:
    """The volume had its name from the start: half an image looked like a whole one."""
    with halfway(served, image, tmp_path) as process:
        process.kill()
        process.wait(END_SECONDS_MAX)
    (left,) = names_in(served)
    assert left.startswith("golden.importing-")
    assert run_ramet("-p", served.pool_path, "volume", "import", image, "golden").returncode == 0
    assert names_in(served) == ["golden", left]
    assert run_ramet("-p", served.pool_path, "delete", left).returncode == 0
    with served.connect("golden") as client:
        assert client.read(0, 1 << 20) == image.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_import_that_is_interrupted_leaves_nothing(
    served: Serving, image: Path, tmp_path: Path, number: int
) -> None:
    with halfway(served, image, tmp_path) as process:
        process.send_signal(number)
        assert process.wait(END_SECONDS_MAX) != 0
    assert names_in(served) == []


def test_an_import_whose_service_ends_gives_an_error(
    served: Serving, image: Path, tmp_path: Path
) -> None:
    with halfway(served, image, tmp_path) as process:
        served.kill()
        served.wait()
    with serving(served.pool_path) as again:
        assert all(".importing-" in name for name in names_in(again))
    assert process.returncode != 0


def test_a_name_that_is_taken_or_bad_is_refused_before_anything_is_copied(
    served: Serving, image: Path
) -> None:
    with served.verbs() as verbs:
        verbs.create_volumes(["golden"], "1MiB", None)
    for name, code in (("golden", "name_taken"), ("a b", "name_character"), ("", "name_empty")):
        done = run_ramet("-p", served.pool_path, "volume", "import", image, name)
        assert code in done.stderr
    assert names_in(served) == ["golden"]


def test_a_temporary_name_is_a_name_however_long_the_final_one_is() -> None:
    for name in ("g", "g" * VOLUME_NAME_LENGTH_MAX):
        check_volume_name(temporary_name(name))
        assert temporary_name(name) != temporary_name(name)
