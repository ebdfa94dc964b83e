"""Data volumes for real: role base and module data_volume on loop devices, with /etc/fstab and mounts of their own.

Each test has a mount namespace in which /etc and /var/lib are overlays, so nothing of this machine is changed. Needs root.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import ROOT
from support.databundle import BUNDLE, VEP, archive, release
from support.module_runner import command

pytestmark = pytest.mark.slow  # forty plays and formatted disks: minutes

MIB = 1 << 20
ID = "vol-0123456789abcdef0"
LINK = "/dev/disk/by-id/virtio-vol0123456789abcdef0"
PLACE = "/mnt/pcgr"
SETUP = """
set -e
mkdir -p /dev/disk
mount -t tmpfs none /dev/disk
mkdir /dev/disk/by-id
mount -t tmpfs none /mnt
mkdir /mnt/own
mount -t tmpfs none /mnt/own
for folder in etc var/lib; do
    mkdir -p /mnt/own/$folder /mnt/own/work/$folder
    mount -t overlay -o lowerdir=/$folder,upperdir=/mnt/own/$folder,workdir=/mnt/own/work/$folder overlay /$folder
done
: >/etc/fstab
echo ready
exec sleep infinity
"""


def may_grow_ext4() -> bool:
    """Whether this process has CAP_SYS_RESOURCE (24 in linux/capability.h), which root of a container may lack."""
    capabilities = Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0]
    return bool(int(capabilities, 16) >> 24 & 1)


def filesystems() -> set[str]:
    return {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}


class Machine:
    """A machine's view of mounts and of /etc."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.devices: list[str] = []
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "sh", "-c", SETUP],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout
        assert self.process.stderr
        if self.process.stdout.readline() != "ready\n":
            pytest.skip(f"no mounts of its own can be made here: {self.process.stderr.read().strip()}")

    def run(self, *command: str | Path, check: bool = True) -> str:
        """What a command prints, run on the machine."""
        inside = ["nsenter", "--target", str(self.process.pid), "--mount", f"--wd={ROOT}"]
        done = subprocess.run([*inside, *command], check=False, capture_output=True, text=True)
        if check and done.returncode:
            raise AssertionError(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def disk(self, mib: int = 300, link: str = LINK) -> Path:
        """Attach a blank disk by a name; its file."""
        file = self.folder / f"disk{len(self.devices)}"
        with file.open("wb") as out:
            out.truncate(mib * MIB)
        self.attach(file, link)
        return file

    def attach(self, file: Path, link: str = LINK) -> str:
        device = self.run("losetup", "--find", "--show", file).strip()
        self.devices.append(device)
        self.run("ln", "-sfn", device, link)
        return device

    def module(self, name: str = "data_volume", *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        """A module's answer."""
        if name == "data_volume":
            arguments = {"source": ID, "path": PLACE} | arguments
        out = self.run(*command(name, check=check, **arguments))
        answer: dict[str, Any] = json.loads(out.splitlines()[-1])
        return answer

    def play(self, *options: str, **variables: Any) -> tuple[int, str]:
        """Run role base; number of changes (-1 when it failed) and what it said."""
        play = self.folder / "play.yml"
        tasks = [{"hosts": "localhost", "connection": "local", "gather_facts": False, "roles": ["umccr.pcgr.base"]}]
        play.write_text(json.dumps(tasks))
        settings = {"base_data_source": ID, "ansible_python_interpreter": sys.executable} | variables
        ansible = Path(sys.executable).parent / "ansible-playbook"
        said = self.run(ansible, "-i", "localhost,", play, "-e", json.dumps(settings), *options, check=False)
        recap = dict(word.split("=") for word in said.rpartition("PLAY RECAP")[2].split() if "=" in word)
        return (-1 if recap["failed"] != "0" else int(recap["changed"])), said

    def reboot(self) -> None:
        """Mounts go and come again as /etc/fstab says."""
        for place in sorted(self.mounts(), reverse=True):
            self.run("umount", place)
        assert self.mounts() == {}
        self.run("mount", "--all")

    def mounts(self) -> dict[str, str]:
        """File system and options of each mount below PLACE."""
        found = self.run("findmnt", "--list", "--noheadings", "--output", "TARGET,FSTYPE,VFS-OPTIONS")
        lines = [line.split() for line in found.splitlines()]
        return {place: f"{kind} {options}" for place, kind, options in lines if place.startswith(PLACE)}

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        for device in self.devices:
            subprocess.run(["losetup", "--detach", device], check=False)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if os.geteuid():
        pytest.skip("not root: disks are attached and mounted")
    made = Machine(tmp_path)
    yield made
    made.end()


# ---- a volume of the machine's own


@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
def test_a_blank_disk_is_made_ready_mounted_and_there_after_a_reboot(machine: Machine, filesystem: str) -> None:
    if filesystem not in filesystems():
        pytest.skip(f"this kernel has no {filesystem}")
    file = machine.disk(400)
    settings = {"base_data_filesystem": filesystem}
    predicted, _unused = machine.play("--check", **settings)
    assert not file.read_bytes().strip(b"\0"), "check mode wrote to the disk"
    assert predicted == 3  # file system, mount, declarations
    assert machine.play(**settings)[0] == 4  # and the handler
    assert machine.mounts() == {PLACE: f"{filesystem} rw,noatime"}
    machine.run("sh", "-c", f"echo kept >{PLACE}/bundles/file")
    assert machine.play(**settings)[0] == 0
    machine.reboot()
    assert machine.play(**settings)[0] == 0
    assert machine.run("cat", f"{PLACE}/bundles/file") == "kept\n"
    assert machine.run("stat", "-c", "%U %a", f"{PLACE}/work") == "pcgr 700\n"
    assert machine.run("cat", "/etc/fstab").split() == [
        LINK, PLACE, filesystem, "defaults,noatime,nofail", "0", "0"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "spoil", [("umount", PLACE), ("sed", "-i", "s/noatime/relatime/", "/etc/fstab"), ("sed", "-i", "d", "/etc/fstab")]
)
def test_a_mount_changed_by_hand_is_mended(machine: Machine, spoil: tuple[str, ...]) -> None:
    machine.disk()
    assert machine.play()[0] == 4
    wanted = machine.mounts(), machine.run("cat", "/etc/fstab")
    machine.run(*spoil)
    assert machine.play()[0] == 1
    assert (machine.mounts(), machine.run("cat", "/etc/fstab")) == wanted


@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
@pytest.mark.parametrize("mounted", [True, False])
def test_the_file_system_grows_with_the_disk(machine: Machine, filesystem: str, mounted: bool) -> None:
    if filesystem not in filesystems():
        pytest.skip(f"this kernel has no {filesystem}")
    if filesystem == "ext4" and not may_grow_ext4():
        pytest.skip("no right to resize ext4 (CAP_SYS_RESOURCE)")
    file = machine.disk(400)
    settings = {"base_data_filesystem": filesystem}
    machine.play(**settings)
    machine.run("sh", "-c", f"echo kept >{PLACE}/bundles/file")
    if not mounted:  # grown while it was away
        machine.run("umount", PLACE)
        machine.run("sed", "-i", "d", "/etc/fstab")
    os.truncate(file, 700 * MIB)
    machine.run("losetup", "--set-capacity", machine.devices[0])
    if mounted:
        assert machine.play("--check", **settings)[0] == 1
    changed, said = machine.play(**settings)
    assert changed == (1 if mounted else 2), said
    assert (
        int(machine.run("stat", "-f", "-c", "%b", PLACE)) * int(machine.run("stat", "-f", "-c", "%S", PLACE))
        > 550 * MIB
    )
    assert machine.run("cat", f"{PLACE}/bundles/file") == "kept\n"
    assert machine.play(**settings)[0] == 0


def test_all_of_a_lost_volume_is_left_to_see(machine: Machine) -> None:
    """Without its volume a machine boots, and the next run says which one is missing."""
    machine.disk()
    machine.play()
    machine.run("umount", PLACE)
    machine.run("rm", LINK)
    machine.run("ln", "-s", machine.devices[0], "/dev/disk/by-id/nvme-other")
    machine.run("mount", "--all")  # nofail
    assert machine.mounts() == {}
    result, said = machine.play()
    assert result == -1
    assert f"{ID}: no such volume is attached to this machine; attached are nvme-other" in said


# ---- what is on a disk is never harmed


def lvm() -> bytes:
    """An LVM label in the second sector (LVM2's on-disk format: text_label.h), which libblkid checks."""
    body = struct.pack("<I8s", 32, b"LVM2 001").ljust(492, b"\0")
    start = 0xF597A6CF ^ 0xFFFFFFFF
    return bytes(512) + b"LABELONE" + struct.pack("<QI", 1, zlib.crc32(body, start) ^ 0xFFFFFFFF) + body


def raid() -> bytes:
    """A superblock of Linux RAID 1.2 (linux/raid/md_p.h)."""
    block = struct.pack("<IIII16s32s", 0xA92B4EFC, 1, 0, 0, b"u" * 16, b"array").ljust(144, b"\0")
    return bytes(4096) + block + struct.pack("<Q", 8)


HELD: dict[str, tuple[list[str] | bytes, str]] = {
    "another file system": (["mkfs.xfs", "-q"], "xfs"),
    "older file system": (["mkfs.ext2", "-q"], "ext2"),
    "GPT": (["sh", "-c", 'echo label: gpt | sfdisk -q "$0"'], "gpt"),
    "MBR": (["sh", "-c", 'echo label: dos | sfdisk -q "$0"'], "dos"),
    "swap": (["mkswap"], "swap"),
    "LUKS": (b"LUKS\xba\xbe\x00\x01", "crypto_LUKS"),
    "LVM": (lvm(), "LVM2_member"),
    "RAID": (raid(), ""),
    "unknown at the start": (b"\0" * 5 * MIB + b"\1", "something unknown at byte 5242880"),
    "unknown in the first byte": (b"x", "something unknown at byte 0 "),
    "unknown at the end": (b"\0" * (300 * MIB - 1) + b"x", "something unknown at byte 314572799"),
}


@pytest.mark.parametrize("what", HELD)
def test_what_holds_anything_is_refused_and_not_touched(machine: Machine, what: str) -> None:
    content, said = HELD[what]
    file = machine.disk()
    if isinstance(content, bytes):
        with file.open("r+b") as out:
            out.write(content)
    else:
        try:
            machine.run(*content, machine.devices[0])
        except AssertionError as error:
            if "No such file" in str(error):
                pytest.skip(f"{content[0]} is not on this machine")
            raise
    machine.run("sync")
    before = zlib.crc32(file.read_bytes())
    for check in (True, False):
        answer = machine.module(check=check)
        assert answer["failed"]
        assert said in answer["msg"]
        assert "nothing was changed on it" in answer["msg"]
        assert "\n" not in answer["msg"]
    machine.run("sync")
    assert zlib.crc32(file.read_bytes()) == before


def test_zeros_are_blank(machine: Machine) -> None:
    """The control for all of the above."""
    machine.disk()
    assert machine.module(check=True)["made"] is True
    assert machine.module()["made"] is True
    assert machine.module()["made"] is False


def test_a_disk_in_use_is_refused(machine: Machine) -> None:
    machine.disk()
    holder = os.open(machine.devices[0], os.O_RDWR | os.O_EXCL)
    answer = machine.module()
    os.close(holder)
    assert f"{LINK}: in use on this machine" in answer["msg"]
    assert machine.module()["made"] is True


def test_files_are_not_hidden_by_a_mount(machine: Machine) -> None:
    machine.disk()
    machine.run("mkdir", "-p", f"{PLACE}/bundles/empty")
    assert machine.module(check=True)["made"] is True
    machine.run("touch", f"{PLACE}/bundles/file")
    assert f"{PLACE}: holds files ({PLACE}/bundles/file)" in machine.module()["msg"]


def test_something_else_mounted_at_the_place_is_refused(machine: Machine) -> None:
    machine.disk()
    machine.run("mkdir", "-p", PLACE)
    machine.run("mount", "-t", "tmpfs", "none", PLACE)
    assert "something else than" in machine.module()["msg"]


# ---- names


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("DEVICE", f"may be another disk after a reboot; .*; this disk is {LINK}"),
        ("/dev/disk/by-path/pci-0000:00:05.0", "may be another disk after a reboot"),
        ("/dev/disk/by-id/none", "not attached to this machine; attached are virtio-vol0123456789abcdef0"),
        ("vol-0123456789abcdef1", "no such volume is attached"),
        ("01234567-89ab-cdef-0123-456789abcdef", "no such volume is attached"),
        ("nas:/export", "an NFS export is only ever mounted read-only"),
        ("/srv/data.erofs", "an image file is only ever mounted read-only"),
        ("sdb", "allowed are a disk below"),
    ],
)
def test_names_that_may_move_or_mean_nothing_are_refused(machine: Machine, source: str, said: str) -> None:
    machine.disk()
    answer = machine.module(source=source.replace("DEVICE", machine.devices[0]), check=True)
    assert answer["failed"]
    assert re.search(said, answer["msg"]), answer["msg"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (ID, "nvme-Amazon_Elastic_Block_Store_vol0123456789abcdef0"),
        ("01234567-89ab-cdef-0123-456789abcdef", "virtio-01234567-89ab-cdef-0"),
        ("01234567-89ab-cdef-0123-456789abcdef", "scsi-0QEMU_QEMU_HARDDISK_01234567-89ab-cdef-0123-456789abcdef"),
    ],
)
def test_a_volume_is_found_by_its_id_in_the_cloud(machine: Machine, source: str, name: str) -> None:
    machine.disk(link=f"/dev/disk/by-id/{name}")
    machine.run("ln", "-s", "/dev/null", f"/dev/disk/by-id/{name}_1")
    machine.run("ln", "-s", "/dev/null", f"/dev/disk/by-id/{name}-part1")
    assert machine.module(source=source, check=True)["source"] == f"/dev/disk/by-id/{name}"


# ---- volumes that hold the data already


@pytest.fixture
def data(machine: Machine, tmp_path: Path) -> dict[str, Any]:
    """Reference data in the folder `data`, as module databundle leaves them; its arguments."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "bundle.tgz").write_bytes(archive(BUNDLE))
    (mirror / "vep.tar.gz").write_bytes(archive(VEP))
    arguments = {"release": release(), "mirror_url": f"file://{mirror}", "checksums": str(tmp_path / "sums.json")}
    (mirror / "SHA256SUMS").write_text(machine.run("sh", "-c", f"cd {mirror}; sha256sum *z"))
    answer = machine.module("databundle", root=str(tmp_path / "data"), assemblies=["grch38"], **arguments)
    assert answer["changed"], answer
    return arguments


def image_of(machine: Machine, kind: str, tmp_path: Path) -> Path:
    """A file system of a kind that holds the folder `data`."""
    if kind not in filesystems():
        pytest.skip(f"this kernel has no {kind}")
    image, tree = tmp_path / "image", str(tmp_path / "data")
    command = {
        "ext4": ["mkfs.ext4", "-q", "-d", tree, str(image), "64M"],
        "erofs": ["mkfs.erofs", "-zlz4", str(image), tree],
        "squashfs": ["mksquashfs", tree, str(image), "-no-progress", "-quiet"],
    }[kind]
    try:
        machine.run(*command)
    except AssertionError as error:
        if "No such file" in str(error):
            pytest.skip(f"{command[0]} is not on this machine")
        raise
    return image


@pytest.mark.parametrize(("way", "kind"), [("disk", "ext4"), ("disk", "erofs"), ("file", "squashfs")])
def test_data_that_is_only_mounted(machine: Machine, data: dict[str, Any], tmp_path: Path, kind: str, way: str) -> None:
    image = image_of(machine, kind, tmp_path)
    before = zlib.crc32(image.read_bytes())
    settings = {"base_data_readonly": True, "base_data_source": str(image)}
    if way == "disk":
        machine.attach(image)
        settings["base_data_source"] = ID
    assert machine.play("--check", **settings)[0] == 3  # volume, folders, declarations
    changed, said = machine.play(**settings)
    assert changed == 4, said  # and the handler
    assert machine.play(**settings)[0] == 0
    machine.reboot()
    assert machine.play(**settings)[0] == 0
    shown = {f"{PLACE}/.volume", f"{PLACE}/bundles", f"{PLACE}/vep"}
    assert machine.mounts() == dict.fromkeys(shown, f"{kind} ro,noatime")
    assert machine.run("stat", "-c", "%U %a", f"{PLACE}/work", f"{PLACE}/log") == "pcgr 700\npcgr 750\n"
    machine.run("touch", f"{PLACE}/work/writable")
    answer = machine.module("databundle", root=PLACE, assemblies=["grch38"], **data)
    assert answer.get("changed") is False, answer
    for check in (True, False):
        answer = machine.module("databundle", root=PLACE, assemblies=["grch38", "grch37"], check=check, **data)
        assert (
            f"bundle 20260620 grch37: not on the volume at {PLACE}/bundles/20260620, which is mounted read-only"
            in answer["msg"]
        )
    assert ".databundle" not in machine.run("ls", "-A", PLACE)
    assert zlib.crc32(image.read_bytes()) == before


def test_a_volume_without_the_data_is_not_mounted(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "data/bundles").mkdir(parents=True)
    machine.attach(image_of(machine, "ext4", tmp_path))
    result, said = machine.play(base_data_readonly=True)
    assert result == -1
    assert f"{LINK}: has no folder vep; a volume that is only mounted must hold the data already" in said
    assert machine.mounts() == {}
    assert machine.run("cat", "/etc/fstab") == ""


def test_an_export_that_cannot_be_reached_yet_is_predicted(machine: Machine) -> None:
    export = {"source": "127.0.0.1:/none", "readonly": True, "folders": ["bundles"]}
    machine.run("sh", "-c", "! type mount.nfs || mount --bind /dev/null $(which mount.nfs)", check=False)
    answer = machine.module(check=True, **export)
    assert (answer["changed"], answer["filesystem"]) == (False, "nfs")
    assert "127.0.0.1:/none: mount failed: " in machine.module(**export)["msg"]


@pytest.mark.parametrize(("content", "said"), [(b"", "holds no file system"), (b"LUKS\xba\xbe\x00\x01", "crypto_LUKS")])
def test_a_volume_that_cannot_be_mounted_is_refused(machine: Machine, content: bytes, said: str) -> None:
    file = machine.disk()
    with file.open("r+b") as out:
        out.write(content)
    answer = machine.module(readonly=True)
    assert said in answer["msg"]
    assert "must hold one of ext2, ext3, ext4, xfs, erofs, squashfs" in answer["msg"]
