"""The documents are true: links resolve, examples run, what they name exists.

A Python example runs with "/srv/..." put below a temporary directory; where a line prints and ends
in a comment, that is what it must print. Shell examples of the tutorial and of the README run as
one script for each section, with `ramet serve &` waited for until it is ready.
"""

import ast
import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import ramet

ROOT = Path(__file__).parent.parent
NOT_OURS = {
    ".venv",
    "target",
    "node_modules",
    ".git",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
}
PLACES_OF_ALL = {Path("/"), *(Path("/") / it for it in ("home", "opt", "srv", "tmp", "usr", "var"))}
"""Folders that every machine has: naming one says nothing about this one."""

DOCUMENTS = sorted(
    it for it in ROOT.rglob("*.md") if not NOT_OURS & set(it.relative_to(ROOT).parts)
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
PRINTED = re.compile(r"^\s*print\(.*\)  # (.+)$", re.MULTILINE)

TUTORIAL = ROOT / "docs" / "start" / "first-pool.md"
README = ROOT / "README.md"
CLI = ROOT / "docs" / "reference" / "cli.md"
SYSTEM_PYTHON = "/usr/bin/python3"  # Has libnbd's module where the tests' own has not.
TOOLS = (
    *("curl", "fio", "mke2fs", "nbdcopy", "nbdinfo", "openssl"),
    *("qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon", "ssh-keygen"),
)
PYTHON = ROOT / "docs" / "reference" / "python.md"
HTTP = ROOT / "docs" / "reference" / "http.md"
DURABILITY = ROOT / "docs" / "concepts" / "durability.md"

READY = """
rm -f said
mkfifo said
{command} 2>said &
exec {said}<said
read -r line <&$said
[[ "$line" == ready:* ]] || { echo "the service did not start: $line"; exit 1; }
"""
"""In place of `ramet serve &`. The reading end stays open, or the service's last words fail."""

SCRIPT = """
set -euo pipefail
end() { code=$?; kill $(jobs -p) 2>/dev/null || true; wait || true; exit $code; }
trap end EXIT
"""


class Example(NamedTuple):
    """A block of a document."""

    path: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{name_of(self.path)}:{self.line}"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks_of(path: Path) -> Iterator[Example]:
    text = path.read_text()
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Example(path, line, found.group(1), found.group(2))


def prose_of(path: Path) -> str:
    return BLOCK.sub("", path.read_text())


def section_of(path: Path, title: str) -> str:
    """Give a section of a document, up to the next heading of its level."""
    text = path.read_text()
    found = re.search(rf"^(#+) {re.escape(title)}$", text, re.MULTILINE)
    assert found is not None, f"{name_of(path)} has no section '{title}'"
    rest = text[found.end() :]
    return re.split(rf"^#{{1,{len(found.group(1))}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def anchors_of(path: Path) -> set[str]:
    """Give the anchors of a document's headings, as forges make them."""
    titles = (re.sub(r"[^\w\- ]", "", it.lower()) for it in HEADING.findall(prose_of(path)))
    return {it.strip().replace(" ", "-") for it in titles}


def wrong_links(path: Path) -> Iterator[str]:
    for target in LINK.findall(prose_of(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        other = (path.parent / file).resolve() if file else path
        if not other.exists():
            yield f"{name_of(path)}: {target} is not there"
        elif anchor and anchor not in anchors_of(other):
            yield f"{name_of(path)}: {target} has no such heading"


def test_every_relative_link_resolves() -> None:
    wrong = [it for path in DOCUMENTS for it in wrong_links(path)]
    assert not wrong, "\n".join(wrong)


def test_every_document_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [README]
    while waiting:
        path = waiting.pop()
        if path in reached or path.suffix != ".md" or not path.exists():
            continue
        reached.add(path)
        targets = [it.partition("#")[0] for it in LINK.findall(prose_of(path))]
        waiting += [(path.parent / it).resolve() for it in targets if it]
    missed = [name_of(it) for it in DOCUMENTS if it not in reached]
    assert not missed, f"nothing leads to {missed}"


def test_no_document_names_a_path_of_this_machine() -> None:
    places = {ROOT, ROOT.parent, Path.home()} - PLACES_OF_ALL
    names = "|".join(re.escape(str(it)) for it in places)
    pattern = re.compile(rf"(?<![\w.*)}}/-])(?:{names})(?![\w-])")
    wrong = [
        f"{name_of(path)}:{number}: {line}"
        for path in DOCUMENTS
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def sources(folder: str) -> str:
    paths = [*(ROOT / "crates").glob(f"*/{folder}/**/*.rs")]
    if folder == "tests":
        paths += [*(ROOT / "tests").glob("*.py")]
    return "\n".join(it.read_text() for it in paths)


def test_every_test_that_a_promise_names_exists() -> None:
    tests = set(re.findall(r"\b(?:fn|def) (\w+)\(", sources("tests")))
    # A property test is a function inside of a macro; a figure of `stats` is no test.
    named = {it for it in re.findall(r"`(\w+)`", DURABILITY.read_text()) if it.count("_") >= 3}
    named -= {"gate_closed_ns_last", "gate_closed_ns_max"}
    assert named, "the page names tests"
    assert not named - tests


def test_every_rust_name_in_the_architecture_exists() -> None:
    text = sources("src")
    for name in re.findall(r"`(?:\w+::)+(\w+)`", (ROOT / "ARCHITECTURE.md").read_text()):
        assert re.search(rf"\bfn {name}\b", text), f"no function {name}"


def python_examples() -> list[Example]:
    return [it for path in DOCUMENTS for it in blocks_of(path) if it.language == "python"]


def prepare_pool(path: Path) -> None:
    """Make what the examples of the guides find: the README's makes its own."""
    with ramet.open(path, create=True, segment_size="1MiB") as pool:
        golden, volume = pool.create_volumes(["golden", "db"], "1MiB")
        pool.create_volume("vm-1", "1MiB")
        golden.write(0, b"golden")
        golden.snapshot("golden@1")
        volume.write(0, b"one")
        volume.snapshot("db@backup-1")
        volume.write(500_000, b"two")
        volume.snapshot("db@backup-2")


def interpreter_for(example: Example) -> str:
    """Give a Python that has the modules of an example: the tests' own, or the distribution's."""
    parsed = ast.parse(example.text)
    imports = [node for node in ast.walk(parsed) if isinstance(node, ast.Import)]
    for name in [alias.name for node in imports for alias in node.names]:
        if importlib.util.find_spec(name) is None:
            asked = subprocess.run([SYSTEM_PYTHON, "-c", f"import {name}"], check=False)
            if asked.returncode:
                pytest.skip(f"no module {name}; hint: tools/setup tools")
            return SYSTEM_PYTHON
    return sys.executable


def run_python(example: Example, directory: Path) -> str:
    """Run an example, beside a served pool where it connects to one. Result: what it printed."""
    python = interpreter_for(example)
    with contextlib.ExitStack() as stack:
        if re.search(r"/srv/\w+/nbd\.sock", example.text):
            pool = stack.enter_context(ramet.open(directory / "pool"))
            stack.enter_context(pool.serve_nbd(directory / "pool" / "nbd.sock"))
        code = example.text.replace("/srv/", f"{directory}/")
        done = subprocess.run(
            [python, "-c", code], cwd=directory, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, f"{example.place}: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize("example", python_examples(), ids=lambda it: it.place)
def test_the_python_example_runs(example: Example, tmp_path: Path) -> None:
    prepare_pool(tmp_path / "pool")
    shutil.copy(README, tmp_path / "db.img")
    said = run_python(example, tmp_path)
    expected = PRINTED.findall(example.text)
    if expected:
        assert said.splitlines() == expected


def shell_of(path: Path, section: str | None = None) -> str:
    text = path.read_text() if section is None else section_of(path, section)
    return "".join(body for language, body in BLOCK.findall(text) if language == "sh")


def run_script(text: str, directory: Path) -> str:
    """Run shell examples as one script. Result: stdout. Skips by name where a tool is missing."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
    for tool in TOOLS:
        if re.search(rf"^{tool} ", text, re.MULTILINE) and shutil.which(tool, path=tools) is None:
            pytest.skip(f"no {tool}")
    script = SCRIPT + re.sub(
        r"^(ramet .*serve\b(?:.*\\\n)*.*?) &$",
        lambda found: READY.replace("{command}", found.group(1)),
        text.replace("/srv/", f"{directory}/"),
        flags=re.MULTILINE,
    )
    environment = {key: it for key, it in os.environ.items() if key != "RAMET_POOL"}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=directory,
        env={**environment, "PATH": tools},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    said = run_script(shell_of(TUTORIAL), tmp_path)
    assert "golden@1" in said
    assert "1048576   65536  data" in said
    assert "101 names.txt" in said
    assert "vm-1@1\n" in said
    assert "Images are identical." in said


@pytest.mark.slow
def test_the_readme_does_in_a_shell_what_it_says(tmp_path: Path) -> None:
    said = run_script(IMAGE + shell_of(README, "From a shell"), tmp_path).splitlines()
    assert {"golden", "golden@1", "vm-1000", "vm-1000@nightly", "vm-1@1"} <= set(said)


IMAGE = "qemu-img create -q -f qcow2 debian.qcow2 16M\n"
POOL = """
export RAMET_POOL=/srv/pool
ramet init "$RAMET_POOL" --segment-size 1MiB
"""
SERVED = POOL + "ramet serve &\nramet volume create vm-1 --size 64MiB\n"
FAMILY = """
ramet volume create db logs golden --size 1MiB
ramet snapshot create golden
"""

SEND = "guides/send-and-receive.md"
SENT = """
ramet init /srv/pool --segment-size 1MiB
ramet init /srv/new --segment-size 1MiB
ramet -p /srv/pool volume create db --size 1MiB
ramet -p /srv/pool snapshot create db --name db@mon
ramet -p /srv/pool snapshot create db --name db@tue
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "name", "section"),
    [
        (POOL + FAMILY, "guides/snapshots-clones-reverts.md", None),
        (POOL + IMAGE, "guides/import-and-export.md", None),
        (SERVED, "guides/attach.md", "The QEMU tools"),
        (SERVED, "guides/attach.md", "nbdinfo and nbdcopy"),
        (SERVED, "guides/attach.md", "fio"),
        (SERVED, "reference/http.md", "HTTP"),
        (SENT + shell_of(ROOT / "docs" / SEND, "Into a file"), SEND, "Sign it"),
    ],
)
def test_the_page_does_in_a_shell_what_it_says(
    before: str, name: str, section: str | None, tmp_path: Path
) -> None:
    run_script(before + shell_of(ROOT / "docs" / name, section), tmp_path)


def test_the_command_line_page_names_every_command_and_option() -> None:
    import argparse

    from ramet.cli.parser import _build

    text = CLI.read_text()
    common = {"-h", "--help", "-p", "--pool", "--json", "--no-wait", "--version"}

    def walk(parser: argparse.ArgumentParser, words: str) -> Iterator[tuple[str, set[str]]]:
        below = [it for it in parser._actions if isinstance(it, argparse._SubParsersAction)]
        for action in below:
            for name, other in action.choices.items():
                yield from walk(other, f"{words} {name}")
        if not below:
            yield words, {option for it in parser._actions for option in it.option_strings}

    commands = dict(walk(_build(), "ramet"))
    assert len(commands) > 15
    for words, options in commands.items():
        rows = re.findall(rf"^\| `{words}\b.*$", text, re.MULTILINE)
        assert rows, f"no row for '{words}'"
        for option in options - common:
            assert option in "".join(rows), f"'{words}' has no {option}"
    for option in common:
        assert option in text


def test_the_command_line_page_names_every_figure_and_key(pool: ramet.Pool) -> None:
    text = CLI.read_text()
    for name in [*pool.stats(), *ramet.ObjectRecord._fields]:
        assert f"`{name}`" in text, name


def test_the_python_page_names_everything_public(pool: ramet.Pool) -> None:
    text = PYTHON.read_text()
    for name in ramet.__all__:
        assert re.search(rf"\b{name}\b", text), name
    for owner in (ramet.Pool, ramet.Volume, ramet.Snapshot, ramet.NbdServer):
        for name in dir(owner):
            if not name.startswith("_") and name != "made_name":
                assert re.search(rf"`{name}\b|, `{name}|\b{name}\(", text), f"{owner}.{name}"


def test_the_http_page_names_every_path_key_and_status() -> None:
    text = HTTP.read_text()
    package = ROOT / "python" / "ramet" / "http"
    source = "".join(path.read_text() for path in sorted(package.glob("*.py")))
    paths = set(re.findall(r'"(/v0/\w+)"', source))
    assert paths == set(re.findall(r"\| `(/v0/\w+)", text))
    from ramet import http

    for kind, status in http.STATUS.items():
        assert re.search(rf"^\| .*\b{kind}\b.* \| {status} \|", text, re.MULTILINE), kind
    for struct in http.msgspec.Struct.__subclasses__():
        if struct.__module__.startswith("ramet.http"):
            for key in struct.__struct_fields__:
                assert f"`{key}`" in text, f"{struct.__name__}.{key}"
