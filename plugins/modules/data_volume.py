#!/usr/bin/python
# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prepare a data volume for mounting."""

from __future__ import annotations

DOCUMENTATION = r"""
module: data_volume
short_description: Prepare a data volume for mounting
version_added: 1.0.0
description:
  - Finds the volume and says how it is to be mounted; M(ansible.posix.mount) does so.
  - "A blank device gets a file system. Blank means: nobody uses it, it bears no signature of a file system, partition table, LVM, RAID, LUKS or swap,
    and its first and last 8 MiB are zeros."
  - A device with one file system of the wanted type is left as it is; everything else is refused, with what was found.
  - Run again when the volume is mounted, it makes the file system as large as the device, when that has grown.
requirements:
  - util-linux
  - e2fsprogs or xfsprogs, unless O(readonly)
author: University of Melbourne Centre for Cancer Research (@umccr)
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
  idempotent: {support: full}
  platform: {support: full, platforms: linux}
options:
  source:
    description:
      - "A disk by a name that stays: below C(/dev/disk/by-id/), C(/dev/disk/by-uuid/) or C(/dev/disk/by-partuuid/),
        or the id that the cloud knows it by (C(vol-...) of EBS, the UUID of a Cinder volume)."
      - With O(readonly) also an NFS export, C(server:/path), or a file that holds a file system, such as an EROFS or squashfs image.
    type: str
    required: true
  readonly:
    description: The volume holds its data already and is only mounted; nothing is written to it.
    type: bool
    default: false
  filesystem:
    description: File system made on a blank device, and expected on one that is not; not used with O(readonly).
    type: str
    choices: [ext4, xfs]
    default: ext4
  path:
    description: Where the volume is, or is going to be, mounted.
    type: path
    required: true
  folders:
    description: With O(readonly), folders that must be on the volume.
    type: list
    elements: str
    default: []
  covers:
    description: Folders that become invisible when all is mounted; they must hold no files then. Unset, O(path).
    type: list
    elements: path
extends_documentation_fragment:
  - umccr.pcgr.attributes
"""

EXAMPLES = r"""
- name: Have a file system on the volume
  umccr.pcgr.data_volume:
    source: vol-0123456789abcdef0
    path: /mnt/pcgr
  register: volume

- name: Mount it
  ansible.posix.mount:
    src: "{{ volume.source }}"
    path: /mnt/pcgr
    fstype: "{{ volume.filesystem }}"
    opts: "{{ volume.options }}"
    state: mounted
  when: not volume.mounted
"""

RETURN = r"""
source: {description: "What to mount: the name below C(/dev/disk/), the NFS export or the file.", type: str, returned: success}
filesystem: {description: Type of the file system., type: str, returned: success}
options: {description: Mount options., type: str, returned: success}
mounted:
  description: "Whether it is mounted at O(path) and C(/etc/fstab) says so: M(ansible.posix.mount) would change nothing."
  type: bool
  returned: success
made: {description: Whether a file system was made., type: bool, returned: success}
grown: {description: Whether the file system was made larger., type: bool, returned: success}
"""

import errno
import json
import os
import re
import stat
import tempfile
from contextlib import suppress
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DISKS = "/dev/disk"
FSTAB = "/etc/fstab"
STABLE = ("by-id", "by-uuid", "by-partuuid")
MAKE = {
    # No blocks kept for root, as on a system disk: of a terabyte they would be 50 GB.
    "ext4": ["mkfs.ext4", "-q", "-m", "0", "-L", "pcgr-data"],
    "xfs": ["mkfs.xfs", "-q", "-L", "pcgr-data"],
}
READABLE = ("ext2", "ext3", "ext4", "xfs", "erofs", "squashfs")
ENDS = 8 << 20  # bytes looked at, at the beginning and the end of a device; all signatures known to libblkid lie there
# A rest of the device that is smaller does not count: file systems grow by groups, and cannot always use it.
LEAST_GROWTH = 16 << 20


class VolumeError(Exception):
    """The volume cannot be used; the text is one line."""


def names(folder: str = "by-id") -> list[str]:
    """The stable names of disks and partitions on this machine, the shortest first."""
    with suppress(OSError):
        return sorted(os.listdir(os.path.join(DISKS, folder)), key=lambda name: (len(name), name))
    return []


def by_cloud_id(source: str) -> str | None:
    """Name of the disk that the cloud knows as `source`; None when that is not a cloud's id. Raises VolumeError when it is not here.

    A disk's serial number is the EBS volume's id without its dash, or the UUID of the Cinder volume, of which virtio shows 20 characters.
    """
    if re.fullmatch(r"vol-[0-9a-f]{8,17}", source):
        serials = [source.replace("-", "")]
    elif re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", source):
        serials = [source, source[:20]]
    else:
        return None
    for name in names():
        if any(name.endswith((f"_{serial}", f"-{serial}")) for serial in serials):
            return os.path.join(DISKS, "by-id", name)
    raise VolumeError(f"{source}: no such volume is attached to this machine; attached are {attached()}")


def attached() -> str:
    """The names of whole disks, for messages."""
    return ", ".join(name for name in names() if "-part" not in name) or "none that has a name below /dev/disk/by-id/"


def find(source: str, readonly: bool) -> tuple[str, str]:
    """What to mount, and its kind: device, nfs or file. Raises VolumeError."""
    device = by_cloud_id(source) or source
    if device.startswith("/dev/"):
        if not device.startswith(tuple(f"{DISKS}/{folder}/" for folder in STABLE)):
            same = [name for name in names() if os.path.realpath(f"{DISKS}/by-id/{name}") == os.path.realpath(device)]
            hint = f"; this disk is {DISKS}/by-id/{same[0]}" if same else ""
            allowed = ", ".join(f"{DISKS}/{folder}/" for folder in STABLE)
            raise VolumeError(
                f"{device}: may be another disk after a reboot; allowed are names below {allowed} and ids of volumes{hint}"
            )
        if not os.path.exists(device):
            raise VolumeError(f"{device}: not attached to this machine; attached are {attached()}")
        if not stat.S_ISBLK(os.stat(device).st_mode):
            raise VolumeError(f"{device}: not a disk")
        return device, "device"
    kind = "nfs" if re.match(r"[^/\s]+:/", device) else "file" if device.startswith("/") else None
    if kind is None:
        raise VolumeError(
            f"{source}: allowed are a disk below {DISKS}/by-id/, the id of a volume, an NFS export (server:/path) and an image file (/path)"
        )
    if not readonly:
        raise VolumeError(
            f"{source}: {'an NFS export' if kind == 'nfs' else 'an image file'} is only ever mounted read-only; say so"
        )
    if kind == "file" and not os.path.isfile(device):
        raise VolumeError(f"{source}: no such file on this machine")
    return device, kind


class Volume:
    """A device or an image file."""

    def __init__(self, module: AnsibleModule, name: str) -> None:
        self.module = module
        self.name = name

    def run(self, *command: str, what: str | None = None) -> str:
        """Output of a program; raises VolumeError, with its name or `what`, when it fails."""
        status, out, err = self.module.run_command([*command], environ_update={"LC_ALL": "C"})
        if status:
            said = " ".join((err or out or f"status {status}").split())
            raise VolumeError(f"{self.name}: {what or command[0]} failed: {said}")
        return str(out)

    def signatures(self) -> list[str]:
        """What is on it, as far as libblkid knows the signature: ext4, gpt, LVM2_member, crypto_LUKS, ..."""
        out = self.run("wipefs", "--no-act", "--json", self.name).strip()
        return [entry["type"] for entry in json.loads(out)["signatures"]] if out else []

    def size(self) -> int:
        """Bytes."""
        handle = os.open(self.name, os.O_RDONLY)
        try:
            return os.lseek(handle, 0, os.SEEK_END)
        finally:
            os.close(handle)

    def ensure_blank(self) -> None:
        """Raise VolumeError when anything uses the device or it does not begin and end with zeros."""
        try:
            handle = os.open(self.name, os.O_RDWR | os.O_EXCL)  # of a device: refused while the kernel uses it
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise VolumeError(f"{self.name}: in use on this machine; nothing was changed on it") from error
        try:
            size = os.lseek(handle, 0, os.SEEK_END)
            for start in (0, max(0, size - ENDS)):
                found = os.pread(handle, ENDS, start)
                if rest := found.lstrip(b"\0"):
                    raise VolumeError(
                        f"{self.name}: holds something unknown at byte {start + len(found) - len(rest)} of {size};"
                        " nothing was changed on it"
                    )
        finally:
            os.close(handle)

    def make(self, filesystem: str) -> bool:
        """Ensure a file system on the device; False if it was there. Raises VolumeError when anything else is there."""
        found = self.signatures()
        if found == [filesystem]:
            return False
        if found:
            raise VolumeError(
                f"{self.name}: neither blank nor {filesystem} but holds {', '.join(dict.fromkeys(found))}; nothing was changed on it"
            )
        self.ensure_blank()
        if not self.module.check_mode:
            self.run(*MAKE[filesystem], self.name)
        return True

    def readable(self) -> str:
        """The file system of a volume that is only mounted; raises VolumeError when it holds none."""
        found = self.signatures()
        if len(found) != 1 or found[0] not in READABLE:
            raise VolumeError(
                f"{self.name}: holds {', '.join(dict.fromkeys(found)) or 'no file system'}; "
                f"a volume that is only mounted must hold one of {', '.join(READABLE)}"
            )
        return found[0]

    def holds(self, kind: str, options: str) -> list[str]:
        """Names at the top of the volume, by a mount that nobody else sees and that ends with the program that looks."""
        place = tempfile.mkdtemp(dir=self.module.tmpdir)
        look = 'mount -t "$1" -o "$2" "$3" "$4" && ls -A "$4"'
        return self.run(
            "unshare", "--mount", "sh", "-c", look, "sh", kind, options, self.name, place, what="mount"
        ).splitlines()

    def used(self, filesystem: str, path: str) -> int:
        """Bytes of the device that the mounted file system spans."""
        if filesystem == "ext4":
            about = dict(
                line.split(":", 1) for line in self.run("dumpe2fs", "-h", self.name).splitlines() if ":" in line
            )
            return int(about["Block count"]) * int(about["Block size"])
        about_data = re.search(r"(?m)^data\s.*bsize=(\d+)\s+blocks=(\d+)", self.run("xfs_info", path))
        if not about_data:
            raise VolumeError(f"{self.name}: xfs_info does not report its size")
        return int(about_data[1]) * int(about_data[2])

    def grow(self, filesystem: str, path: str) -> tuple[int, int]:
        """Grow the mounted file system to the size of the device; its bytes before and after, the same if it did not grow."""
        before, size = self.used(filesystem, path), self.size()
        if size - before < LEAST_GROWTH:
            return before, before
        if self.module.check_mode:
            return before, size
        self.run(*(["resize2fs", self.name] if filesystem == "ext4" else ["xfs_growfs", "-d", path]))
        return before, self.used(filesystem, path)


def is_mounted(device: str, path: str) -> bool:
    """Whether the device is mounted at `path`; raises VolumeError when something else is."""
    if not os.path.ismount(path):
        return False
    about = os.stat(device)
    if stat.S_ISBLK(about.st_mode) and os.stat(path).st_dev != about.st_rdev:
        raise VolumeError(f"{path}: something else than {device} is mounted there; nothing was changed")
    return True


def is_kept(answer: dict[str, Any], path: str) -> bool:
    """Whether the volume is mounted at `path`, and will be after a reboot."""
    line = [answer["source"], path, answer["filesystem"], answer["options"], "0", "0"]
    with suppress(FileNotFoundError), open(FSTAB, encoding="utf-8") as table:
        return line in (entry.split() for entry in table) and os.path.ismount(path)
    return False


def ensure_nothing_hidden(covers: list[str]) -> None:
    """Raise VolumeError when a folder that is going to be covered by a mount holds a file; empty folders do not count."""
    for top in covers:
        if os.path.ismount(top):
            continue
        for folder, _folders, files in os.walk(top):
            if files:
                raise VolumeError(
                    f"{top}: holds files ({os.path.join(folder, files[0])}) that the data volume would hide; move them away first"
                )


def difference(filesystem: str, *, made: bool, before: int, after: int) -> dict[str, dict[str, str | int | None]]:
    """Diff of a volume whose file system was `made`, or has grown from `before` to `after` bytes; empty if neither."""
    diff: dict[str, dict[str, str | int | None]] = {"before": {}, "after": {}}
    if made:
        diff = {"before": {"filesystem": None}, "after": {"filesystem": filesystem}}
    if after > before:
        diff["before"]["bytes"], diff["after"]["bytes"] = before, after
    return diff


def ready(module: AnsibleModule) -> dict[str, Any]:
    """Do the module's work; what it returns."""
    params = module.params
    source, kind = find(params["source"], params["readonly"])
    ensure_nothing_hidden(params["covers"] or [params["path"]])
    # Without nofail a lost volume would keep the machine from booting, and so from being looked at.
    answer: dict[str, Any] = {
        "source": source,
        "filesystem": "nfs",
        "options": "ro,noatime,nofail",
        "made": False,
        "grown": False,
        "diff": difference("", made=False, before=0, after=0),
    }
    volume = Volume(module, source)
    if params["readonly"]:
        if kind != "nfs":
            answer["filesystem"] = volume.readable()
        if kind == "file":
            answer["options"] += ",loop"
        if kind == "nfs" and module.check_mode and not module.get_bin_path("mount.nfs"):
            return answer  # the package is yet to be installed
        there = os.path.ismount(params["path"]) if kind != "device" else is_mounted(source, params["path"])
        found = os.listdir(params["path"]) if there else volume.holds(answer["filesystem"], answer["options"])
        if missing := [name for name in params["folders"] if name not in found]:
            raise VolumeError(
                f"{source}: has no folder {' and no folder '.join(missing)}; a volume that is only mounted must hold the data already"
            )
        return answer
    mounted = is_mounted(source, params["path"])
    filesystem = params["filesystem"]
    made = volume.make(filesystem)
    before, after = volume.grow(filesystem, params["path"]) if mounted else (0, 0)
    return answer | {
        "filesystem": filesystem,
        "options": "defaults,noatime,nofail",
        "made": made,
        "grown": after > before,
        "diff": difference(filesystem, made=made, before=before, after=after),
    }


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "required": True},
            "readonly": {"type": "bool", "default": False},
            "filesystem": {"type": "str", "choices": list(MAKE), "default": "ext4"},
            "path": {"type": "path", "required": True},
            "folders": {"type": "list", "elements": "str", "default": []},
            "covers": {"type": "list", "elements": "path"},
        },
        supports_check_mode=True,
    )
    try:
        answer = ready(module)
    except VolumeError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or module.params['source']}: {error.strerror or error}")
    changed = answer["made"] or answer["grown"]
    module.exit_json(changed=changed, mounted=is_kept(answer, module.params["path"]), **answer)


if __name__ == "__main__":
    main()
