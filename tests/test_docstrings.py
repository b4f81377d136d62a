"""The examples in docstrings run, and every public call has one.

An example is a line "Example: EXPRESSION". It sees the names of its module, `ramet`, an empty
`directory`, and a `pool` with volume "db" of 1 MiB and its snapshot "db@1".
"""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ramet

PACKAGE = Path(__file__).parent.parent / "python" / "ramet"
MODULES = ("config", "names", "pool", "pool.base", "pool.server", "tags", "units", "volume")
CLASSES_WITHOUT_EXAMPLES = {"BlockDevice", "Commands", "NumberedNames"}
"""Not for users, or told elsewhere."""
FUNCTIONS_WITHOUT_EXAMPLES = {
    *("is_uuid", "expand_pattern", "close"),
    *("key_of", "as_list", "now_text", "describe"),
}

EXAMPLE = re.compile(r"^\s*Example: (.+)$", re.MULTILINE)


def public_functions() -> Iterator[tuple[str, str, str]]:
    """Give module, qualified name and docstring of what users call; no properties."""
    for module in MODULES:
        path = PACKAGE / module.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        tree = ast.parse(file.read_text())
        for owner in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
            prefix = f"{owner.name}." if isinstance(owner, ast.ClassDef) else ""
            if prefix[:-1] in CLASSES_WITHOUT_EXAMPLES:
                continue
            for node in owner.body:
                if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                    continue
                if any(getattr(it, "id", None) == "property" for it in node.decorator_list):
                    continue
                yield module, prefix + node.name, ast.get_docstring(node) or ""


FUNCTIONS = list(public_functions())
EXAMPLES = [
    pytest.param(module, example, id=f"{module}.{name}")
    for module, name, docstring in FUNCTIONS
    for example in EXAMPLE.findall(docstring)
]


@pytest.mark.parametrize(("module", "example"), EXAMPLES)
def test_the_example_runs(module: str, example: str, pool: ramet.Pool, tmp_path: Path) -> None:
    volume = pool.create_volume("db", "1MiB")
    volume.write(0, b"content")
    volume.snapshot("db@1")
    directory = tmp_path / "directory"
    directory.mkdir()
    names = vars(importlib.import_module(f"ramet.{module}")) | {
        "ramet": ramet,
        "pool": pool,
        "directory": directory,
        "Path": Path,
    }
    exec(compile(example, f"example of {module}", "exec"), names)  # noqa: S102 - our own text.


@pytest.mark.parametrize(("module", "name", "docstring"), FUNCTIONS)
def test_every_public_call_says_what_it_does_with_an_example(
    module: str, name: str, docstring: str
) -> None:
    assert docstring.strip(), f"{module}.{name} has no docstring"
    if name.rpartition(".")[2] not in FUNCTIONS_WITHOUT_EXAMPLES:
        assert EXAMPLE.search(docstring), f"{module}.{name} has no example"
