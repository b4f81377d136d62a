"""The stub of the core says what the core is, and the package gives all its names, late."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_stub_of_the_core_is_true() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "ramet._core", "--concise"],
        cwd=ROOT,
        env=os.environ | {"MYPYPATH": "python"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_importing_the_package_loads_nothing_else() -> None:
    code = (
        "import sys, ramet; ramet.__version__;"
        "print(sorted(n for n in sys.modules if n.startswith('ramet.')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "[]"


def test_every_public_name_can_be_had() -> None:
    import ramet

    for name in ramet.__all__:
        assert getattr(ramet, name) is not None
        assert name in dir(ramet)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ramet.nothing
