"""The limits of style that a machine can hold, over all source files, tests included.

An exception is named here with its reason, and the list may only shrink.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINE_LENGTH_MAX = 100
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600
PUBLIC_NAMES_MAX = 30

FOLDERS = ("python", "crates", "tests", "bench", "tools", ".ci")
SUFFIXES = (".py", ".pyi", ".rs", ".sh", "")
NOT_OURS = {"__pycache__", "target", "node_modules", "compat", "proptest-regressions"}

EXCEPTIONS: set[tuple[str, str]] = set()
"""Pairs of a rule's name and a path; each with a comment that says why."""


def source_paths() -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix in SUFFIXES and not NOT_OURS & set(path.parts):
                yield path


PATHS = list(source_paths())
PYTHON_PATHS = [path for path in PATHS if path.suffix in (".py", ".pyi")]
RUST_PATHS = [path for path in PATHS if path.suffix == ".rs"]
TEST_PATHS = [path for path in PATHS if "tests" in path.relative_to(ROOT).parts]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def report(rule: str, found: list[tuple[Path, int, str]]) -> None:
    """Fail with every finding as path:line: text, except where it is excused."""
    lines = [
        f"{name_of(path)}:{line}: {text}"
        for path, line, text in found
        if (rule, name_of(path)) not in EXCEPTIONS
    ]
    assert not lines, f"{rule}:\n" + "\n".join(lines)


def grep(paths: list[Path], pattern: str) -> list[tuple[Path, int, str]]:
    expression = re.compile(pattern)
    return [
        (path, number, line.strip())
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if expression.search(line)
    ]


def python_functions(path: Path) -> Iterator[tuple[str, int, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.lineno, node.end_lineno - node.lineno + 1


def rust_functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """Find functions by indentation, which rustfmt makes sure of."""
    lines = path.read_text().splitlines()
    for first, line in enumerate(lines):
        match = re.match(
            r"(\s*)(?:pub(?:\([a-z]+\))? )?(?:const |unsafe |extern \S+ )*fn (\w+)", line
        )
        if match is None:
            continue
        for last in range(first, len(lines)):
            if lines[last].rstrip() == match.group(1) + "}":
                yield match.group(2), first + 1, last - first + 1
                break
            if last == first and (line.rstrip().endswith(("}", ";"))):
                break
            if lines[last].startswith(match.group(1) + ")") and lines[last].rstrip().endswith(";"):
                break


def test_no_line_is_longer_than_the_limit() -> None:
    report("line length", grep(PATHS, rf"^.{{{LINE_LENGTH_MAX + 1},}}$"))


def test_no_file_is_longer_than_the_limit() -> None:
    counts = [(path, len(path.read_text().splitlines())) for path in PATHS]
    report(
        "file length",
        [(path, count, f"{count} lines") for path, count in counts if count > FILE_LINES_MAX],
    )


def test_no_function_is_longer_than_the_limit() -> None:
    found = [
        (path, line, f"{name} has {count} lines")
        for paths, functions in ((PYTHON_PATHS, python_functions), (RUST_PATHS, rust_functions))
        for path in paths
        for name, line, count in functions(path)
        if count > FUNCTION_LINES_MAX
    ]
    report("function length", found)


def test_every_file_begins_with_what_it_owns() -> None:
    found = []
    for path in PATHS:
        lines = path.read_text().splitlines()
        if not lines:
            continue
        if path.suffix in (".py", ".pyi"):
            headed = ast.get_docstring(ast.parse("\n".join(lines))) is not None
        elif path.suffix == ".rs":
            headed = lines[0].startswith("//! ")
        else:
            headed = len(lines) > 1 and lines[0].startswith("#!") and lines[1].startswith("# ")
        if not headed:
            found.append((path, 1, "the file's head is missing"))
    report("file head", found)


def test_every_todo_carries_an_issue_number() -> None:
    words = "TO" + "DO|FIX" + "ME|X" + "XX"
    report("to do", grep(PATHS, rf"\b(?:{words})\b(?!\(#\d+\))"))


def test_every_unsafe_says_why_it_is_safe() -> None:
    found = []
    for path in RUST_PATHS:
        lines = path.read_text().splitlines()
        for index, line in enumerate(lines):
            code = line.split("//")[0]
            if not re.search(r"\bunsafe\b", code) or re.search(r"unsafe_op_in|unsafe_code", code):
                continue
            above = lines[max(0, index - 6) : index + 1]
            if not any("SAFETY:" in other or "# Safety" in other for other in above):
                found.append((path, index + 1, line.strip()))
    report("unsafe", found)


def test_no_test_sleeps() -> None:
    report("sleep", grep(TEST_PATHS, r"\bsleep\((?!\s*\))"))


def test_no_test_reads_the_wall_clock() -> None:
    pattern = r"\btime\.time(_ns)?\(|datetime\.(now|utcnow|today)\(|SystemTime::now"
    report("wall clock", grep([it for it in TEST_PATHS if it.name != "test_tidy.py"], pattern))


def test_no_test_draws_without_a_seed() -> None:
    pattern = (
        r"\brandom\.(random|randint|randrange|choice|choices|shuffle|sample|randbytes|seed)\("
        r"|random\.Random\(\)|os\.urandom|secrets\.|thread_rng|rand::rng\(\)|rand::random"
    )
    report("randomness", grep([it for it in TEST_PATHS if it.name != "test_tidy.py"], pattern))


def test_there_is_no_drawer_for_everything() -> None:
    names = {"utils", "util", "common", "helpers", "misc", "manager"}
    report("drawer", [(path, 1, path.stem) for path in PATHS if path.stem in names])


def test_the_public_boundary_is_small() -> None:
    import ramet

    assert len(ramet.__all__) <= PUBLIC_NAMES_MAX


def test_the_version_is_written_down_only_once_in_effect() -> None:
    import ramet

    match = re.search(r'^version = "([^"]+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    assert match is not None
    assert ramet.__version__ == match.group(1)


def test_exceptions_name_files_that_exist() -> None:
    for rule, path in sorted(EXCEPTIONS):
        assert (ROOT / path).exists(), f"{rule}: {path} is gone, so its exception can go too"
