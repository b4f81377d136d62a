"""Python's imports point down one list without a circle, and the pool alone imports the core.

Imports inside functions and under TYPE_CHECKING count too: what is needed late is still needed.
Cargo forbids circles between crates, so Rust needs only a list of what each may depend on.
"""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "ramet"

# A module or package may import what stands below it, and its own parts. See ARCHITECTURE.md.
LAYERS = (
    "__main__",
    "cli",
    "demo",
    "client",
    "web",
    "http",
    "service",
    "keeper",
    "replication",
    "policies",
    "audit",
    "verbs",
    "pool",
    "volume",
    "device",
    "names",
    "fullness",
    "listening",
    "activation",
    "signing",
    "records",
    "tags",
    "tuning",
    "units",
    "config",
    "frames",
    "errors",
)
CORE = "_core"
CORE_IMPORTERS = {"pool"}
ROOT_NAMES = {"__version__"}  # What the package's own modules may take from `ramet` itself.
# A second reader of the format shares no code with the engine, and policies are pure.
ALLOWED_ONLY = {
    "audit": {"audit", "records", "units", "config", "errors", "names"},
    "policies": {"policies", "records", "tags", "units", "errors", "names"},
    "errors": {"errors"},
}
CRATES = ("ramet-py", "ramet-nbd", "ramet-engine", "ramet-log", "ramet-store")
CRATES_TEST_ONLY = ("ramet-sim",)


def module_paths() -> Iterator[tuple[str, Path]]:
    """Give dotted names without "ramet.", and files."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        if parts:
            yield ".".join(parts), path


MODULES = dict(module_paths())


def imports_of(name: str, path: Path) -> Iterator[tuple[int, str]]:
    """Give line and dotted target, without "ramet.", of each import of our own."""
    here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "ramet" or alias.name.startswith("ramet."):
                    yield node.lineno, alias.name.removeprefix("ramet").removeprefix(".")
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = here[: len(here) - node.level + 1] + (node.module or "").split(".")
            elif node.module == "ramet" or (node.module or "").startswith("ramet."):
                base = (node.module or "").split(".")[1:]
            else:
                continue
            prefix = ".".join(part for part in base if part)
            for alias in node.names:
                dotted = f"{prefix}.{alias.name}" if prefix else alias.name
                is_module = dotted in MODULES or dotted == CORE
                yield node.lineno, dotted if is_module or not prefix else prefix


def layer_of(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down_the_list(name: str) -> None:
    layer = layer_of(name)
    assert layer in LAYERS, f"'{layer}' has no place; hint: give it one in LAYERS, and say why"
    wrong = []
    for line, target in imports_of(name, MODULES[name]):
        other = layer_of(target)
        if target in ROOT_NAMES:
            continue
        if other == CORE:
            allowed = layer in CORE_IMPORTERS
        elif other not in LAYERS:
            allowed = False
        else:
            allowed = LAYERS.index(other) >= LAYERS.index(layer)
        if not allowed or other not in ALLOWED_ONLY.get(layer, {other}):
            wrong.append(f"{name}:{line} imports '{target or 'ramet'}'")
    assert not wrong, "\n".join(wrong)


def test_there_is_no_circle_between_modules() -> None:
    targets = {
        name: {target for _, target in imports_of(name, path) if target in MODULES} - {name}
        for name, path in MODULES.items()
    }
    finished: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in finished:
            for target in sorted(targets[name]):
                visit(target, [*way, name])
            finished.add(name)

    for name in MODULES:
        visit(name, [])


def test_crates_depend_only_on_what_stands_below_them() -> None:
    for path in sorted((ROOT / "crates").glob("*/Cargo.toml")):
        manifest = tomllib.loads(path.read_text())
        name = manifest["package"]["name"]
        if name in CRATES_TEST_ONLY:
            continue
        below = CRATES[CRATES.index(name) + 1 :]
        ours = {it for it in manifest.get("dependencies", {}) if it.startswith("ramet-")}
        assert ours <= set(below), f"{name} depends on {sorted(ours - set(below))}"


def test_the_binding_is_the_only_crate_that_knows_python() -> None:
    for path in sorted((ROOT / "crates").glob("*/Cargo.toml")):
        manifest = tomllib.loads(path.read_text())
        if manifest["package"]["name"] != "ramet-py":
            assert "pyo3" not in manifest.get("dependencies", {}), path
