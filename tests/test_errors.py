"""Every error's code is listed in docs/reference/errors.md with its kind, and nothing else is.

The sources are scanned: Python for calls of an error's class, Rust for a kind followed by a code,
and for helpers that take a code and know the kind.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet import errors

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference" / "errors.md"

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.RametError)
}
KIND_BY_RUST_NAME = {
    "Invalid": "invalid",
    "Forbidden": "forbidden",
    "NotFound": "not_found",
    "Conflict": "conflict",
    "Busy": "busy",
    "Unavailable": "unavailable",
    "Full": "full",
    "Corrupt": "corrupt",
    "Internal": "internal",
}
CODE = r'"([a-z][a-z0-9]*(?:_[a-z0-9]+)*)"'
RUST_PAIR = re.compile(rf"\bKind::(\w+),\s*{CODE}")
RUST_HELPER = re.compile(r"\bfn (\w+)\(\s*code: &'static str.*?\n\}", re.DOTALL)
RUST_KIND = re.compile(r"\bKind::(\w+),\s*code\b")
UNSEEN_CODES = {"unknown": "internal"}
"""Made where an answer of another program has no code; raised by no name that a scan could find."""


def python_codes() -> Iterator[tuple[str, str, str]]:
    """Give code, kind and place of every error made in Python."""
    for path in sorted((ROOT / "python").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", None))
            if name not in CLASSES or not node.args:
                continue
            place = f"{path.relative_to(ROOT)}:{node.lineno}"
            first = node.args[0]
            assert isinstance(first, ast.Constant), f"{place}: an error's code is a literal"
            yield str(first.value), CLASSES[name].kind, place


def rust_codes() -> Iterator[tuple[str, str, str]]:
    """Give code, kind and place of every error made in Rust, tests left out."""
    for path in sorted((ROOT / "crates").glob("*/src/**/*.rs")):
        text = path.read_text().split("#[cfg(test)]")[0]
        place = str(path.relative_to(ROOT))
        for kind, code in RUST_PAIR.findall(text):
            yield code, KIND_BY_RUST_NAME[kind], place
        for helper in RUST_HELPER.finditer(text):
            kinds = RUST_KIND.findall(helper.group(0))
            assert len(kinds) == 1, f"{place}: helper {helper.group(1)} has one kind"
            for code in re.findall(rf"\b{helper.group(1)}\(\s*{CODE}", text):
                yield code, KIND_BY_RUST_NAME[kinds[0]], place


def listed_codes() -> dict[str, str]:
    """Give the page's table: code -> kind."""
    rows = re.findall(r"^\| `([a-z0-9_]+)` \| ([a-z_]+) \|", PAGE.read_text(), re.MULTILINE)
    codes = [code for code, _ in rows]
    assert sorted(codes) == codes, "the page's table is sorted by code"
    assert len(set(codes)) == len(codes), "the page lists each code once"
    return dict(rows)


FOUND = [*python_codes(), *rust_codes()]


def test_the_scan_finds_errors_of_both_languages() -> None:
    places = {place.split("/")[0] for _, _, place in FOUND}
    assert places == {"python", "crates"}


def test_every_code_that_can_be_raised_is_listed() -> None:
    listed = listed_codes()
    missing = [f"{code} ({kind}) in {place}" for code, kind, place in FOUND if code not in listed]
    assert not missing, "\n".join(missing)


def test_every_listed_code_can_be_raised() -> None:
    raised = {code for code, _, _ in FOUND} | set(UNSEEN_CODES)
    assert not set(listed_codes()) - raised


def test_a_code_has_one_kind_everywhere() -> None:
    listed = listed_codes()
    wrong = [
        f"{code} is {kind} in {place}, and {listed[code]} in the list"
        for code, kind, place in FOUND
        if code in listed and listed[code] != kind
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", CLASSES)
def test_the_page_says_exit_code_and_class_of_every_kind(name: str) -> None:
    error_class = CLASSES[name]
    if error_class is not errors.RametError:
        row = f"| {error_class.kind} | `{name}` | {error_class.exit_code} |"
        assert row in PAGE.read_text(), row


def test_the_rust_kinds_are_the_python_kinds() -> None:
    text = (ROOT / "crates" / "ramet-engine" / "src" / "error.rs").read_text()
    body = text.split("pub enum Kind {")[1].split("}")[0]
    names = re.findall(r"^\s*(\w+),", body, re.MULTILINE)
    assert {KIND_BY_RUST_NAME[name] for name in names} == {it.kind for it in CLASSES.values()}
