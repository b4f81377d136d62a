"""`ramet volume import|export`: disk images through qemu-img, over NBD.

Invariants: sparse stays sparse; a volume has its name, and a file its, once all of it is there; an
import that fails leaves no volume, a failed export no file. One that was killed leaves what says
`.importing-` or `.part` in its name.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from ramet.cli.output import print_json
from ramet.cli.session import verbs_of
from ramet.config import format_nbd_uri
from ramet.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from ramet.names import VOLUME_NAME_LENGTH_MAX, check_volume_name
from ramet.verbs import Verbs

if TYPE_CHECKING:
    from rich.console import Console

SECTOR_BYTES = 512
PROGRESS = re.compile(rb"\(([0-9.]+)/100%\)")
QUEUE_REQUESTS = "16"


def import_image(arguments: Namespace) -> None:
    """Make a volume from a raw or qcow2 file."""
    file = Path(arguments.file).absolute()  # For qemu-img, which sees options and protocols else.
    if not file.exists():
        raise NotFoundError("image_not_found", f"no file '{file}'; hint: check its path")
    size_bytes = inspect(file).size_bytes
    size_bytes = -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES
    if size_bytes == 0:
        raise InvalidError("image_empty", f"'{file}' has no bytes; hint: give a disk image")
    check_volume_name(arguments.name)
    # As Ctrl-C does: what was begun is taken away.
    signal.signal(signal.SIGTERM, _end)
    with verbs_of(arguments) as verbs:
        _check_free(verbs, arguments.name)
        begun = temporary_name(arguments.name)
        verbs.create_volumes([begun], str(size_bytes), None)
        try:
            copy_in(verbs, file, begun, arguments.name)
            # Durable together with all that was copied.
            made = verbs.rename(begun, arguments.name)
        except BaseException:
            verbs.delete([begun], True, True)
            raise
    if arguments.json:
        print_json(made.to_json())
    else:
        print(made.name)


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def temporary_name(name: str) -> str:
    """Give a volume's name that says of which import it is, and that nobody else has.

    Example: temporary_name("golden")
    """
    suffix = f".importing-{uuid4().hex[:8]}"
    return name[: VOLUME_NAME_LENGTH_MAX - len(suffix)] + suffix


def _check_free(verbs: Verbs, name: str) -> None:
    """Find out that a name is taken before anything is copied.

    Raises: ConflictError (code name_taken).
    """
    try:
        verbs.find_object(name)
    except NotFoundError:
        return
    raise ConflictError("name_taken", f"'{name}' exists; hint: another name, or delete it first")


def copy_in(verbs: Verbs, file: Path, name: str, shown: str) -> None:
    """Copy an image's content into a volume that was made for it and reads as zeros.

    `shown`: what the image is to be called.
    """
    with verbs.nbd_socket() as socket_path:
        uri = format_nbd_uri(name, socket_path)
        convert(
            ["-n", "--target-is-zero", "-m", QUEUE_REQUESTS, "-W"],
            ["-f", inspect(file).kind, str(file)],
            ["-O", "raw", uri],
            f"importing {shown}",
        )


def export_image(arguments: Namespace) -> None:
    """Write a volume or snapshot to a file."""
    file = Path(arguments.file).absolute()  # For qemu-img, which sees options and protocols else.
    if file.exists() and not (arguments.force and file.is_file()):
        hint = "another name, or --force" if file.is_file() else "the name of a file"
        raise ConflictError("file_exists", f"'{file}' exists; hint: {hint}")
    part = file.with_name(f".ramet-{os.getpid()}.part")
    kind = "qcow2" if file.suffix == ".qcow2" else "raw"
    with verbs_of(arguments) as verbs:
        found = verbs.find_object(arguments.name)
        try:
            with verbs.nbd_socket() as socket_path:
                uri = format_nbd_uri(found.name, socket_path)
                convert(
                    ["-m", QUEUE_REQUESTS, "-W"],
                    ["-f", "raw", uri],
                    ["-O", kind, str(part)],
                    f"exporting {found.name}",
                )
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
    if arguments.json:
        told = {"name": found.name, "file": arguments.file, "size_bytes": found.size_bytes}
        print_json(told)
    else:
        print(arguments.file)


class Image(NamedTuple):
    """What a disk image says of itself."""

    kind: str
    """`raw` or `qcow2`."""
    size_bytes: int


def inspect(file: Path) -> Image:
    """Say what qemu-img says of a file, which must be raw or qcow2.

    Example: inspect(Path("debian.qcow2")).size_bytes
    """
    told = json.loads(_run([*_program(), "info", "--output=json", str(file)]))
    if told["format"] not in ("raw", "qcow2"):
        text = f"'{file}' is a {told['format']} image; hint: convert it to raw or qcow2 first"
        raise InvalidError("image_format", text)
    return Image(told["format"], told["virtual-size"])


def convert(options: list[str], source: list[str], target: list[str], title: str) -> None:
    """Run `qemu-img convert`, with a progress bar where somebody looks."""
    command = [*_program(), "convert", "-p", *options, *source, *target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            _show_progress(process.stdout.fileno(), title)
        except BaseException:
            process.kill()
            raise
        said = process.stderr.read().decode(errors="replace").strip()
        if process.wait() != 0:
            raise UnavailableError("copy_failed", f"{title}: {said}; hint: see the message above")


def _show_progress(descriptor: int, title: str) -> None:
    from rich.progress import Progress

    with Progress(transient=True, disable=not sys.stderr.isatty(), console=_console()) as bar:
        task = bar.add_task(title, total=100.0)
        while piece := os.read(descriptor, 4096):
            found = PROGRESS.findall(piece)
            if found:
                bar.update(task, completed=float(found[-1]))


def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True)


def _run(command: list[str]) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise InvalidError("image_unreadable", f"{said}; hint: give a raw or qcow2 image")
    return done.stdout


def _program() -> list[str]:
    found = shutil.which("qemu-img")
    if found is None:
        raise UnavailableError("qemu_img_missing", "no qemu-img; hint: apt-get install qemu-utils")
    return [found]
