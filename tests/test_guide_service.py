"""What the guide says of the service: units that systemd can read, commands that run."""

import re
import sys
from pathlib import Path

import pytest

import programs
from test_documents import BLOCK, POOL, ROOT, run_script, shell_of

GUIDE = ROOT / "docs" / "guides" / "service.md"


def test_systemd_can_read_the_units(tmp_path: Path) -> None:
    text = GUIDE.read_text()
    names = re.findall(r"^.*`/etc/systemd/system/([^`]+)`", text, re.MULTILINE)
    assert names == ["ramet@.service", "ramet@.socket"]
    units = [body for language, body in BLOCK.findall(text) if language == "ini"]
    for name, unit in zip(names, units, strict=True):
        place = str(Path(sys.executable).parent)
        (tmp_path / name).write_text(unit.replace("/opt/ramet/bin", place))
    for name in ("ramet@pool.service", "ramet@pool.socket"):
        # It reads the units of this machine too, which may have faults of their own.
        done = programs.finish(
            "systemd-analyze", "verify", "--recursive-errors=no", tmp_path / name
        )
        faults = [line for line in done.stderr.splitlines() if "ramet@" in line]
        assert not faults
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_snapshots_are_taken_and_the_service_is_watched_as_it_says(tmp_path: Path) -> None:
    programs.find("curl")
    served = POOL + "ramet volume create db --size 1MiB\nramet serve &\n"
    commands = shell_of(GUIDE, "Snapshots on a schedule") + shell_of(GUIDE, "Watch it")
    (probe,) = re.findall(r"`(curl [^`]+)`", GUIDE.read_text())
    said = run_script(f"{served}{commands}{probe}\n", tmp_path)
    assert re.search(r"^db@\d", said, re.MULTILINE)
    assert '"poisoned"' in said
    assert '"status"' in said
