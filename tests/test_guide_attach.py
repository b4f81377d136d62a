"""What the guide says of clients that need more than a served pool: each command as it is there.

The other sections of the guide are run by test_documents.py. Places that belong to a machine are
put below a temporary directory, and names of hosts become an address that no other run has.
"""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

import programs
import ramet
from test_documents import POOL, ROOT, SERVED, run_script, section_of, shell_of

GUIDE = ROOT / "docs" / "guides" / "attach.md"
HOST = f"127.77.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"


@pytest.mark.slow
def test_another_user_is_let_in_by_mode_and_group(tmp_path: Path) -> None:
    group = str(os.getgid())  # Which may have no name.
    command = shell_of(GUIDE, "Another user").replace("/run/ramet", "/srv").replace("kvm", group)
    said = run_script(f"{POOL}{command}stat -c '%a %g' /srv/nbd.sock\n", tmp_path)
    assert said.splitlines()[-1] == f"660 {group}"


@pytest.mark.slow
def test_the_network_is_used_as_it_says(tmp_path: Path) -> None:
    script = shell_of(GUIDE, "Over the network")
    for name in ("localhost", "127.0.0.1", "0.0.0.0"):  # noqa: S104 - it is put out of reach.
        script = script.replace(name, HOST)
    made = "ramet volume create vm-1 vm-2 --size 1MiB\n"
    refused = f'! nbdinfo "nbds://{HOST}/vm-2?tls-certificates=$PWD" || exit 1\n'
    said = run_script(POOL + made + script + refused, tmp_path)
    assert "virtual size: 1 MiB" in said
    assert "newstyle-fixed with TLS" in said


@pytest.mark.slow
def test_qemu_storage_daemon_makes_a_vhost_user_device(tmp_path: Path) -> None:
    section = section_of(GUIDE, "Cloud Hypervisor and Firecracker: vhost-user")
    daemon = section.split("```sh\n")[1].split("```")[0]
    assert daemon.startswith("qemu-storage-daemon ")
    wait = "until [ -S vm-1.vhost ]; do kill -0 $!; done\n"
    run_script(SERVED + daemon + wait, tmp_path)


@pytest.mark.slow
def test_qemu_attaches_a_volume_and_writes_to_it(pool: ramet.Pool, tmp_path: Path) -> None:
    qemu = programs.find("qemu-system-x86_64")
    pool.create_volume("vm-1", "1MiB")
    text = shell_of(GUIDE, "QEMU").replace("\\\n", " ").replace("$RAMET_POOL", str(tmp_path))
    name, *options = shlex.split(text)
    assert name == "qemu-system-x86_64"
    # Without a screen, and stopped before the first instruction: there is no guest.
    options.remove("-nographic")
    options += ["-display", "none", "-serial", "none", "-S", "-qmp", "stdio", "-accel", "tcg"]
    device = "/machine/peripheral-anon/device[0]/virtio-backend"  # What the guest would write by.
    say = [
        {"execute": "qmp_capabilities"},
        *(
            {"execute": "human-monitor-command", "arguments": {"command-line": line}}
            for line in (f'qemu-io -d {device} "write -P 5 0 64k"', f"qemu-io -d {device} flush")
        ),
        {"execute": "query-named-block-nodes"},
        {"execute": "quit"},
    ]
    with pool.serve_nbd(tmp_path / "nbd.sock"):
        done = subprocess.run(
            [qemu, *options],
            input="\n".join(map(json.dumps, say)),
            capture_output=True,
            text=True,
            timeout=programs.RUN_SECONDS_MAX,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert pool.volume("vm-1").read(0, 65_537) == b"\5" * 65_536 + b"\0"
