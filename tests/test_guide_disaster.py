"""The disaster guide, word for word: two sites, one is lost, its data lives on and comes back."""

import os
import re
import stat
from pathlib import Path

import pytest

import programs
from test_documents import ROOT, run_script, section_of, shell_of

GUIDE = ROOT / "docs" / "guides" / "disaster.md"

# Both hosts are here. Like the real one, it gives its words to a shell.
SSH = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -o ]] && shift; shift; done
shift
exec sh -c "$*"
"""
WRITE = 'qemu-io -f raw -c "write -P {byte} {at}k 64k" -c flush "nbd+unix:///db?socket={socket}"\n'
READ = 'qemu-io -f raw -c "read -P {byte} {at}k 64k" "nbd+unix:///db?socket={socket}"\n'


def write(byte: int, at: int, site: str) -> str:
    return WRITE.format(byte=byte, at=at, socket=f"/srv/{site}/nbd.sock")


def read(byte: int, at: int, site: str) -> str:
    return READ.format(byte=byte, at=at, socket=f"/srv/{site}/nbd.sock") + "[ $? = 0 ] || exit 1\n"


@pytest.mark.slow
@pytest.mark.parametrize("survives", [True, False], ids=["home survives", "home is gone"])
def test_a_lost_site_comes_back_as_the_guide_says(
    tmp_path: Path, survives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in ("jq", "qemu-io", "nbdinfo"):
        programs.find(tool)
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(SSH)
    ssh.chmod(ssh.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", os.pathsep.join([str(ssh.parent), os.environ["PATH"]]))
    before, lost, back = (
        shell_of(GUIDE, title) for title in ("Before", "Home is lost", "Home is back")
    )
    assert before.rstrip().endswith("'.[].name')"), "it proves what is there"
    serve = re.findall(r"^ramet -p /srv/home serve &$", before, re.MULTILINE)
    assert len(serve) == 1
    # The data that must survive is written before the first send, more is lost, more comes after.
    before = before.replace(
        "ramet -p /srv/home replicate dr\n",
        write(1, 0, "home")
        + "ramet -p /srv/home policy run hourly\nramet -p /srv/home replicate dr\n"
        + write(2, 64, "home"),
    )
    fall = "kill -9 $!; wait $! || true\n"
    if not survives:
        fall += "rm -r /srv/home; ramet init /srv/home\n"
        fall += "ramet -p /srv/home volume create db --size 64MiB\n"
        fall += "ramet -p /srv/home remote add dr ssh://backup@dr/srv/dr\n"
        fall += (
            "ramet -p /srv/home policy set hourly --every 1h --volume db --hourly 24 --remote dr\n"
        )
    live = read(1, 0, "dr") + read(0, 64, "dr") + write(3, 128, "dr")
    again = "ramet -p /srv/home serve &\n" + read(1, 0, "home") + read(3, 128, "home")
    again += read(0, 64, "home")
    said = run_script(before + fall + lost + live + back + again, tmp_path)
    assert "db@before-failback" in said
    assert "Pattern verification failed" not in said


def test_the_guide_is_run_whole() -> None:
    """Each section with commands is one that the test above runs."""
    titles = re.findall(r"^## (.+)$", GUIDE.read_text(), re.MULTILINE)
    with_commands = [it for it in titles if "```sh" in section_of(GUIDE, it)]
    assert with_commands == ["Before", "Home is lost", "Home is back"]
