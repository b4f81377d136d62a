"""What the guide says of clients that need more than a served pool: each command as it is there.

The other sections of the guide are run by test_documents.py. Places that belong to a machine are
put below a temporary directory, and names of hosts become an address that no other run has.
"""

import contextlib
import os
import re
import subprocess
from pathlib import Path

import pytest

import programs
import ramet
from serving import make_pool, serving
from serving import ramet as run
from test_documents import POOL, ROOT, SERVED, run_script, section_of, shell_of

GUIDE = ROOT / "docs" / "guides" / "attach.md"
HOST = f"127.77.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"

BOOT_BYTES = 512
GUEST = bytes.fromhex(
    "31c0 8ec0"  # es = 0
    "b80103 bb007c b90200 b600 cd13"  # The BIOS writes a sector from 0x7c00 to the disk's second.
    "88e0 0410 e6f4"  # Tell the device below what came of it, plus 16, which ends the machine.
    "f4 ebfd"  # Or stop.
)
"""A guest that fits into a boot sector: it writes itself behind itself, by BIOS calls."""
BOOT = GUEST.ljust(BOOT_BYTES - 2, b"\0") + b"\x55\xaa"
EXITS = "-device isa-debug-exit,iobase=0xf4,iosize=1 -no-reboot"
GUEST_WROTE = 2 * 16 + 1  # What the device makes of 16, with which no error of QEMU's own ends.


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


def boot(served: str, command: str, directory: Path) -> None:
    """Boot the guest from volume `vm-1`: `served` serves it, `command` is the machine.

    Skips where QEMU is missing. Fails where the guest could not read itself, or write.
    """
    programs.find("qemu-system-x86_64")
    (directory / "boot").write_bytes(BOOT)
    made = 'nbdcopy boot "nbd+unix:///vm-1?socket=$RAMET_POOL/nbd.sock"\n'
    machine = f"code=0; {command.rstrip()} {EXITS} || code=$?; [ $code = {GUEST_WROTE} ]\n"
    run_script(SERVED + made + served + machine, directory)
    with ramet.open(directory / "pool", read_only=True) as pool:
        assert pool.volume("vm-1").read(0, 3 * BOOT_BYTES) == BOOT + BOOT + bytes(BOOT_BYTES)


@pytest.mark.slow
def test_a_guest_of_qemu_boots_from_a_volume_and_writes_to_it(tmp_path: Path) -> None:
    command = shell_of(GUIDE, "QEMU")
    assert command.startswith("qemu-system-x86_64 ")
    boot("", command, tmp_path)


@pytest.mark.slow
def test_a_guest_boots_from_the_vhost_user_device_and_writes_to_it(tmp_path: Path) -> None:
    """QEMU stands for the machines that the section names: it takes such devices as well."""
    section = section_of(GUIDE, "Cloud Hypervisor and Firecracker: vhost-user")
    daemon = section.split("```sh\n")[1].split("```")[0]
    assert daemon.startswith("qemu-storage-daemon ")
    wait = "until [ -S vm-1.vhost ]; do kill -0 $!; done\n"
    machine = (
        "qemu-system-x86_64 -m 64M -nographic -machine memory-backend=shared "
        "-object memory-backend-memfd,id=shared,size=64M,share=on "
        "-chardev socket,id=device,path=vm-1.vhost -device vhost-user-blk-pci,chardev=device"
    )
    boot(daemon + wait, machine, tmp_path)


@pytest.mark.slow
def test_reconnect_delay_waits_for_a_service_that_is_started_anew(pool_path: Path) -> None:
    """qemu-io stands for the guest: it is given the `-blockdev` of the guide, with the delay."""
    section = section_of(GUIDE, "QEMU")
    (disk,) = re.findall(r"-blockdev (\S+)", section)
    (delay,) = re.findall(r"`(reconnect-delay=\d+)`", section)
    options = f"{disk},{delay}".replace('"$RAMET_POOL/nbd.sock"', f"{pool_path}/nbd.sock")
    run("-p", make_pool(pool_path), "volume", "create", "vm-1", "--size", "1MiB")
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(serving(pool_path))
        client = subprocess.Popen(
            [programs.find("qemu-io"), "--image-opts", options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(client.communicate, timeout=programs.RUN_SECONDS_MAX)
        stack.callback(client.kill)
        ask(client, "write -P 5 0 64k")
        answer_of(client)
        ask(client, "flush")
        served.kill()
        served.wait()
        ask(client, "read -P 5 0 64k")
        stack.enter_context(serving(pool_path))
        assert "read 65536/65536 bytes" in answer_of(client)
        # Before the service ends, or its last flush waits for the next one.
        client.communicate(timeout=programs.RUN_SECONDS_MAX)


def ask(client: subprocess.Popen[str], command: str) -> None:
    assert client.stdin is not None
    client.stdin.write(f"{command}\n")
    client.stdin.flush()


def answer_of(client: subprocess.Popen[str]) -> str:
    """Give what qemu-io says, up to the first line that tells the end of a read or write."""
    assert client.stdout is not None
    for line in client.stdout:
        if "bytes at offset" in line or "failed" in line:
            return line
    return ""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="no /dev/fuse")
def test_nbdfuse_makes_a_volume_a_file(tmp_path: Path) -> None:
    for tool in ("nbdfuse", "fusermount3"):
        programs.find(tool)
    section = section_of(GUIDE, "nbdfuse: a volume as a file, without root")
    (detach,) = re.findall(r"`(fusermount3 [^`]+)`", section)
    mount = shell_of(GUIDE, "nbdfuse: a volume as a file, without root")
    wait = "until [ -e mount/disk ]; do kill -0 $!; done\n"
    write = "printf hello | dd of=mount/disk conv=notrunc,fsync status=none\n"
    said = run_script(
        f"{SERVED}{mount}{wait}stat -c %s mount/disk\n{write}{detach}\nwait $!\n", tmp_path
    )
    assert said.splitlines()[-1] == str(64 << 20)
    with ramet.open(tmp_path / "pool", read_only=True) as pool:
        assert pool.volume("vm-1").read(0, 6) == b"hello\0"
