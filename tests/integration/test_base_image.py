"""The base disk boots as a stock cloud image does: key, user data, host name, growing disk, package sources."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from localcloud import image, metadata
from localcloud.accelerator import QEMU, accelerator
from localcloud.qemu import VirtualMachineSpec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(any(shutil.which(p) is None for p in (QEMU, "mmdebstrap", "socat", "ssh")), reason="no QEMU"),
]

ADDRESS = "127.100.250.1"  # of no instance that a region would start first
BOOT_SECONDS = 600  # 30 s on two idle cores; a loaded host takes minutes
USER_DATA = b"""#!/bin/sh
echo "$(id -un) $(hostname)" > /root/user-data-ran
"""


class Guest:
    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.key = folder, folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        disk = folder / "root.qcow2"
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(disk), "10G"]
        subprocess.run(create, check=True)
        self.view = metadata.InstanceView(
            instance_id="i-0123456789abcdef0",
            image_id="ami-0123456789abcdef0",
            instance_type="t3.small",
            region="ap-southeast-2",
            availability_zone="ap-southeast-2a",
            private_ip="169.254.1.15",
            mac="02:00:00:00:fa:01",
            hostname="ip-169-254-1-15.ap-southeast-2.compute.internal",
            account_id="123456789012",
            reservation_id="r-0123456789abcdef0",
            key_name="lab",
            public_key=self.key.with_suffix(".pub").read_text(),
            user_data=USER_DATA,
        )
        spec = VirtualMachineSpec(
            instance_id=self.view.instance_id,
            product="t3.small",
            vcpus=2,
            memory_mib=1024,
            mac=self.view.mac,
            accelerator=accelerator(),
            disks={"vol-0123456789abcdef0": disk},
            control_socket=folder / "qmp",
            metadata_socket=folder / "imds",
            console=folder / "console.log",
            log=folder / "qemu.log",
            public_ip=ADDRESS,
        )
        self.service = metadata.serve(spec.metadata_socket, lambda: self.view)
        self.started = time.monotonic()
        self.process = subprocess.Popen(spec.command(), stdin=subprocess.DEVNULL)

    def ssh(self, command: str, user: str = image.LOGIN_USER) -> subprocess.CompletedProcess[str]:
        options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=30"]
        flags = [flag for option in options for flag in ("-o", option)]
        call = ["ssh", "-q", "-i", str(self.key), "-p", "2222", *flags, f"{user}@{ADDRESS}", command]
        return subprocess.run(call, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)

    def run(self, command: str) -> str:
        result = self.ssh(command)
        assert result.returncode == 0, f"{command}: {result.stderr}{result.stdout}"
        return result.stdout.strip()

    def wait(self) -> float:
        """Seconds from power-on until SSH lets the user in."""
        while self.ssh("true").returncode != 0:
            assert self.process.poll() is None, "QEMU ended"
            if time.monotonic() - self.started > BOOT_SECONDS:
                console = (self.folder / "console.log").read_text(errors="replace")
                pytest.fail(f"no SSH after {BOOT_SECONDS} s; end of the console log:\n{console[-2000:]}")
            time.sleep(1)
        return time.monotonic() - self.started

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.service.close()


@pytest.fixture(scope="module")
def base() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "umccr.pcgr"
    return image.build_base_image(cache, print)


@pytest.fixture(scope="module")
def guest(base: Path) -> Iterator[Guest]:
    folder = Path(tempfile.mkdtemp())
    machine = Guest(folder, base)
    try:
        print(f"SSH after {machine.wait():.1f} s")
        yield machine
    finally:
        machine.close()
        shutil.rmtree(folder)


def test_cloud_init_is_done_without_error(guest: Guest) -> None:
    status = guest.run("cloud-init status --wait --long")
    assert "status: done" in status
    assert "DataSourceEc2" in status
    assert guest.run("systemctl --failed --plain --no-legend") == ""


def test_user_data_ran_as_root_with_the_host_name_set(guest: Guest) -> None:
    guest.run("cloud-init status --wait")
    assert guest.run("sudo -n cat /root/user-data-ran") == "root ip-169-254-1-15"
    assert guest.run("hostname --fqdn") == guest.view.hostname


def test_only_the_login_user_with_the_key_gets_in(guest: Guest) -> None:
    assert guest.run("sudo -n id -u") == "0"
    assert f'Please login as the user "{image.LOGIN_USER}"' in guest.ssh("id -u", user="root").stdout
    assert guest.ssh("true", user="debian").returncode == 255
    settings = guest.run("sudo -n sshd -T")
    assert "passwordauthentication no" in settings


def test_root_file_system_fills_the_bigger_volume(guest: Guest) -> None:
    guest.run("cloud-init status --wait")
    assert int(guest.run("df --output=size -B1 / | tail -1")) > 9 * 2**30


def test_identity_is_this_machines_own(guest: Guest) -> None:
    keys = guest.run("ls /etc/ssh").split()
    assert "ssh_host_ed25519_key" in keys
    made = int(guest.run("sudo -n stat -c %Y /etc/ssh/ssh_host_ed25519_key"))
    assert made > time.time() - 2 * BOOT_SECONDS
    assert len(guest.run("cat /etc/machine-id")) == 32


def test_clock_agrees_with_the_hosts(guest: Guest) -> None:
    """Signed requests are refused when the clock is off; the guest counts by its emulated time stamp."""
    before = datetime.now(UTC)
    inside = datetime.fromtimestamp(float(guest.run("date +%s.%N")), UTC)
    assert before - timedelta(seconds=5) < inside < datetime.now(UTC) + timedelta(seconds=5)


def test_console_log_tells_the_boot(guest: Guest) -> None:
    guest.run("cloud-init status --wait")
    assert "Cloud-init v." in (guest.folder / "console.log").read_text(errors="replace")


def test_packages_can_be_fetched(guest: Guest) -> None:
    guest.run("cloud-init status --wait")
    guest.run("sudo -n apt-get -qq update")
    assert "Candidate: (none)" not in guest.run("apt-cache policy python3-venv")


def test_software_of_a_plain_machine(guest: Guest) -> None:
    guest.run("python3 -c 'import apt'")
    absent = guest.run("for p in docker pip3; do command -v $p || echo no; done; python3 -m ensurepip 2>&1 || true")
    assert absent.splitlines()[:2] == ["no", "no"]


def test_disk_holds_nothing_of_the_build_host(base: Path) -> None:
    """Read straight from the file system: no host keys, no machine id, no name of the host."""
    offset = f"{base}?offset={image.PARTITION_START}"

    def debugfs(request: str) -> str:
        result = subprocess.run(
            ["/usr/sbin/debugfs", "-R", request, offset], capture_output=True, text=True, check=True
        )
        return result.stdout

    assert "ssh_host" not in debugfs("ls -p /etc/ssh")
    assert "sshd_config" in debugfs("ls -p /etc/ssh")
    assert debugfs("cat /etc/machine-id") == ""
    assert debugfs("cat /etc/hostname") == "localhost\n"
    assert base.stat().st_size == image.DISK_BYTES
    assert base.stat().st_blocks * 512 < image.DISK_BYTES / 4


def test_second_call_takes_the_cached_disk(base: Path) -> None:
    before = base.stat()
    lines: list[str] = []
    assert image.build_base_image(base.parent, lines.append) == base
    assert (base.stat().st_mtime_ns, lines) == (before.st_mtime_ns, [])


def test_another_recipe_is_another_disk(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = image.hostapt.read()
    assert base.name == f"debian-12-localcloud-{image._recipe(apt, image.hostapt.certificate_authorities())}.raw"
    changed = dataclasses.replace(apt, options=[*apt.options, 'Acquire::http::Proxy "http://proxy:3128";'])
    assert image._recipe(changed, {}) != image._recipe(apt, {})
    assert image._recipe(apt, {"company.crt": b"x"}) != image._recipe(apt, {})
