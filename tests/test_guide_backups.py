"""The guide to backups, word for word: a full copy, what changed, and the proof."""

import re
from pathlib import Path

import pytest

import ramet
from test_documents import POOL, ROOT, blocks_of, run_python, run_script, section_of, shell_of

GUIDE = ROOT / "docs" / "guides" / "backups.md"
AGAIN = "export RAMET_POOL=/srv/pool\n"
SERVE = "ramet serve &\n"


def write(directory: Path, *contents: tuple[int, bytes]) -> None:
    with ramet.open(directory / "pool") as pool:
        for offset_bytes, content in contents:
            pool.volume("db").write(offset_bytes, content)


@pytest.mark.slow
@pytest.mark.parametrize("served", [False, True], ids=["pool", "nbd"])
def test_a_backup_is_made_and_brought_up_to_date_as_the_guide_says(
    tmp_path: Path, served: bool
) -> None:
    serve = SERVE if served else ""
    examples = [it for it in blocks_of(GUIDE) if it.language == "python"]
    run_script(f"{POOL}ramet volume create db --size 1MiB\n", tmp_path)
    write(tmp_path, (0, b"one"), (300_000, b"to be zeros"))
    first = shell_of(GUIDE, "First: a full copy")
    if served:
        snapshot, export, *rest = first.splitlines()
        assert export.startswith("ramet volume export ")
        assert not rest
        first = f"{snapshot}\n{shell_of(GUIDE, 'From a served pool')}"
    run_script(AGAIN + serve + first, tmp_path)
    write(tmp_path, (500_000, b"two"), (299_008, bytes(4096)))
    changed = run_script(AGAIN + serve + shell_of(GUIDE, "Then: what changed"), tmp_path)
    assert re.search(r"^ *499712 +4096 +data$", changed, re.MULTILINE)
    run_python(examples[int(served)], tmp_path)
    (delete,) = re.findall("`(ramet delete [^`]+)`", section_of(GUIDE, "Apply it to the image"))
    run_script(f"{AGAIN}{serve}{delete}\n{shell_of(GUIDE, 'Prove it')}", tmp_path)


def test_the_guide_is_run_whole() -> None:
    """Each section with commands is one that the test above runs."""
    titles = re.findall(r"^## (.+)$", GUIDE.read_text(), re.MULTILINE)
    assert [it for it in titles if "```" in section_of(GUIDE, it)] == [
        "First: a full copy",
        "Then: what changed",
        "Apply it to the image",
        "From a served pool",
        "Prove it",
    ]
