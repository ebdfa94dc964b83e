"""Build the base disk of the local region: Debian 12 with cloud-init's EC2 data source, like a stock cloud image.

mmdebstrap builds the package tree, ``mkfs.ext4 -d`` turns it into a file system, and this module writes GRUB's core, so
that the build needs no mount, loop device or partition nodes. Only what costs time under emulation is left out.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from localcloud import buildlock, hostapt

SUITE = hostapt.SUITE
DISK_BYTES = 8 * 2**30  # as in Debian's own AWS images; sparse
PARTITION_START = 2**20  # bytes; the usual alignment, which leaves room for GRUB's core
SECTOR = 512
GRUB_FOLDER = Path("/usr/lib/grub/i386-pc")
GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "linux", "normal", "configfile", "serial", "terminal")
LOGIN_USER = "admin"  # as in Debian's own AWS images

# apparmor is here because the kernel recommends it, so Debian's own images have it.
PACKAGES = (
    "apparmor", "ca-certificates", "cloud-guest-utils", "cloud-init", "curl", "dbus", "e2fsprogs", "fdisk", "initramfs-tools",
    "iproute2", "kmod", "linux-image-cloud-amd64", "netbase", "openssh-server", "procps", "python3", "python3-apt",
    "sudo", "systemd-resolved", "systemd-sysv", "tzdata", "udev", "zstd",
)  # fmt: skip

# Program -> its Debian package.
NEEDED = {"mmdebstrap": "mmdebstrap", "mkfs.ext4": "e2fsprogs", "grub-mkimage": "grub-common", "tar": "tar"}

# Each takes seconds to minutes of two emulated cores, and is useless on an instance that runs for hours.
MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "cloud-init-hotplugd.socket", "dev-hugepages.mount",
    "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "getty@tty1.service",
    "modprobe@dm_mod.service", "modprobe@drm.service", "modprobe@efi_pstore.service", "modprobe@fuse.service",
    "modprobe@loop.service", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "systemd-binfmt.service",
    "systemd-pstore.service",
)  # fmt: skip

# systemd runs each at every daemon-reload, a dozen times while packages are installed; none has an effect here.
MASKED_GENERATORS = (
    "cryptsetup", "debug", "gpt-auto", "hibernate-resume", "integritysetup", "rc-local", "run", "system-update",
    "veritysetup",
)  # fmt: skip

# An emulated processor does not speculate, and reading its time stamp counter is far cheaper than an emulated timer.
# norandmaps: QEMU caches translated code by address, so with randomised addresses it translates each process again
# (180 ms instead of 65 ms to start one, 121 s instead of 85 s to install docker.io).
KERNEL_OPTIONS = (
    "net.ifnames=0 console=tty0 console=ttyS0,115200 consoleblank=0 quiet mitigations=off tsc=reliable fsck.mode=skip"
    " norandmaps transparent_hugepage=never"
)

INITRAMFS_FILES = {
    # A list instead of all drivers: 7 MB instead of 13, and the kernel boots in half the time.
    "etc/initramfs-tools/conf.d/modules-list": "MODULES=list\n",
    "usr/share/initramfs-tools/modules.d/virtio-root": "virtio_pci\nvirtio_blk\next4\n",
}

# Downloading and indexing the package lists takes a minute on each new emulated instance. With older lists in the image,
# `apt-get update` fetches only changes. Nobody reads the translated descriptions.
APT_FILES = {"etc/apt/apt.conf.d/90no-translations": 'Acquire::Languages "none";\n'}

CLOUD_CONFIG = f"""\
datasource_list: [Ec2, None]
datasource:
  Ec2:
    # The other addresses of the default list cost a DNS query each.
    metadata_urls: ["http://169.254.169.254"]
# systemd-networkd has its own file, so a copy of this disk works with another network card.
network: {{config: disabled}}
manage_etc_hosts: true
ssh_genkeytypes: [ed25519, ecdsa]
cloud_init_modules:
  [bootcmd, write-files, mounts, set_hostname, update_hostname, update_etc_hosts, users-groups, ssh]
# SSH starts before the disk grows, which takes 4 s; user scripts and runcmd follow.
cloud_config_modules: [growpart, resizefs, set-passwords, runcmd]
cloud_final_modules:
  [package-update-upgrade-install, write-files-deferred, scripts-per-once, scripts-per-boot, scripts-per-instance,
   scripts-user, final-message, power-state-change]
system_info:
  default_user:
    name: {LOGIN_USER}
    gecos: Debian
"""

NETWORK = """\
[Match]
Name=en* eth*

[Network]
DHCP=ipv4
LinkLocalAddressing=no
IPv6AcceptRA=no

[DHCPv4]
UseMTU=yes
"""

Progress = Callable[[str], None]


class ImageError(RuntimeError):
    """The base image cannot be built; the text is one line that names what is missing or failed."""


def build_base_image(cache: Path, progress: Progress) -> Path:
    """Return the raw disk (8 GiB, sparse) in ``cache``, after building it unless the cache has one of the same recipe.

    Calls ``progress`` with short lines such as ``packages 45 %``. Raises ImageError.
    """
    apt = hostapt.read()
    authorities = hostapt.certificate_authorities()
    cache.mkdir(parents=True, exist_ok=True)
    disk = cache / f"debian-12-localcloud-{_recipe(apt, authorities)}.raw"
    with buildlock.exclusive_lock(cache / "base-image.lock", progress, "the base image"):
        if not disk.exists():
            _check_host()
            _build(disk, apt, authorities, progress)
    return disk


def _recipe(apt: hostapt.Settings, authorities: Mapping[str, bytes]) -> str:
    """Return a hash of everything that determines the content of the disk, except the state of the package archive."""
    code = [Path(module).read_text() for module in (__file__, hostapt.__file__)]
    trusted = sorted((name, text.decode("latin-1")) for name, text in authorities.items())
    inputs = json.dumps([code, apt.sources, apt.options, trusted])
    return hashlib.sha256(inputs.encode()).hexdigest()[:12]


def _check_host() -> None:
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    if not (GRUB_FOLDER / "boot.img").exists():
        missing.append("grub-pc-bin")
    if os.geteuid() != 0 and shutil.which("newuidmap") is None:
        missing.append("uidmap (to build without root)")
    if missing:
        raise ImageError(f"base image: not installed on this host: {', '.join(missing)}")


def _build(disk: Path, apt: hostapt.Settings, authorities: Mapping[str, bytes], progress: Progress) -> None:
    for leftover in disk.parent.glob("build-*"):  # of a killed build; the lock ensures that no other is running
        _remove(leftover)
    # Without root, mmdebstrap runs as a subordinate user, who can enter /tmp but rarely the caller's home.
    root = os.geteuid() == 0
    staging = Path(tempfile.mkdtemp(prefix="build-", dir=disk.parent if root else None))
    part = disk.with_suffix(".part")
    try:
        staging.chmod(0o755 if root else 0o1777)
        identifier = str(uuid.uuid4())
        _bootstrap(staging, apt, authorities, progress)
        progress("file system")
        _make_file_system(staging, identifier, () if root else ("mmdebstrap", "--unshare-helper"))
        progress("boot loader")
        _run(["cp", "--sparse=always", str(staging / "disk.raw"), str(part)])
        _write_boot_loader(part, staging)
        part.replace(disk)
        progress("base image ready")
    finally:
        part.unlink(missing_ok=True)
        _remove(staging)


def _remove(folder: Path) -> None:
    """Remove the folder of a build, but never files of the host: a killed mmdebstrap leaves parts of it mounted there."""

    def mounted() -> list[str]:
        table = Path("/proc/self/mountinfo").read_text().splitlines()
        points = [
            line.split()[4].encode().decode("unicode_escape") for line in table
        ]  # the table writes blanks as \\040
        return [point for point in points if Path(point).is_relative_to(folder.absolute())]

    for point in reversed(mounted()):
        subprocess.run(["umount", point], capture_output=True, check=False)
    if left := mounted():
        raise ImageError(f"base image: {folder}: an ended build left {left[0]} mounted there; unmount it first")
    shutil.rmtree(folder, ignore_errors=True)


def _bootstrap(staging: Path, apt: hostapt.Settings, authorities: Mapping[str, bytes], progress: Progress) -> None:
    """Write the package tree as ``staging/root.tar``."""
    sources = []
    for name, text in apt.sources.items():
        sources.append(staging / name)
        sources[-1].write_text(text)
    trusted = {f"usr/local/share/ca-certificates/{name}": text for name, text in authorities.items()}
    _write_tar(staging / "early.tar", {**INITRAMFS_FILES, **APT_FILES, **trusted})
    command = [
        "mmdebstrap",
        f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
        "--variant=minbase",
        "--format=tar",
        "--verbose",
        f"--include={','.join(PACKAGES)}",
        *(f"--aptopt={option}" for option in apt.options),
        f"--setup-hook=tar-in {shlex.quote(str(staging / 'early.tar'))} /",
        '--customize-hook=chroot "$1" systemctl enable systemd-networkd.service systemd-resolved.service',
        f'--customize-hook=chroot "$1" systemctl mask {" ".join(MASKED)}',
        *(['--customize-hook=chroot "$1" update-ca-certificates'] if authorities else []),
        '--customize-hook=chroot "$1" sh -c "apt-get clean && apt-cache gencaches"',
        "--skip=cleanup/apt/lists,cleanup/apt/cache",
        SUITE,
        str(staging / "root.tar"),
        *map(str, sources),
    ]
    _follow(command, progress, {**os.environ, "TMPDIR": str(staging), "LC_ALL": "C.UTF-8"})


def _follow(command: Sequence[str], progress: Progress, environment: Mapping[str, str]) -> None:
    """Run mmdebstrap and report its progress.

    It runs apt twice, first for the essential packages (a quarter of the work), then for the rest. Each time apt prints
    how many packages it will install, then a line for each that it downloads, unpacks and sets up.
    """
    shown = done = total = base = span = 0
    reason = "no output"
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in process.stderr or ():
            if line.startswith("E: "):
                reason = line.strip()
            if newly := re.search(r"(\d+) newly installed", line):
                done, total, base, span = 0, int(newly[1]), span, 75 if span else 25
            done += line.startswith(("Get:", "Unpacking ", "Setting up "))
            percent = base + span * min(done, 3 * total) // (3 * total) if total else 0
            if percent >= shown + 5:
                shown = percent
                progress(f"packages {percent} %")
        if process.wait() != 0:
            raise ImageError(f"base image: mmdebstrap ended with {process.returncode}: {reason}")
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _make_file_system(staging: Path, identifier: str, helper: Sequence[str]) -> None:
    """Write the tree as an ext4 file system at its place in ``staging/disk.raw``."""
    _write_tar(staging / "late.tar", _late_files(identifier))
    blocks = (DISK_BYTES - PARTITION_START) // 1024
    # Leave out device nodes: the kernel creates them, and without root this script cannot. Write inode tables now, because
    # the guest's kernel would write them later, at 128 MB per volume.
    extended = f"offset={PARTITION_START},lazy_itable_init=0,lazy_journal_init=0"
    script = f"""set -e
umask 022
cd {shlex.quote(str(staging))}
trap 'rm -rf tree' EXIT
mkdir tree
tar -C tree --numeric-owner --xattrs --xattrs-include='*' --exclude='./dev/*' -xf root.tar
rm -f tree/etc/ssh/ssh_host_* tree/etc/resolv.conf tree/etc/machine-id
tar -C tree --numeric-owner -xf late.tar
truncate -s {DISK_BYTES} disk.raw
mkfs.ext4 -q -F -U {identifier} -L root -m 1 -E {extended} -d tree disk.raw {blocks}k
"""
    _run([*helper, "sh", "-c", script])


def _late_files(identifier: str) -> dict[str, str | bytes | Path]:
    """Path in the disk -> contents, or the target (Path) of a symbolic link."""
    boot = f"root=UUID={identifier} ro {KERNEL_OPTIONS}"
    return {
        **{f"etc/systemd/system-generators/systemd-{name}-generator": Path("/dev/null") for name in MASKED_GENERATORS},
        "boot/grub/grub.cfg": (
            "serial --unit=0 --speed=115200\nterminal_output console serial\nset timeout=0\n"
            "menuentry 'Debian' {\n"
            f"  linux /vmlinuz {boot}\n  initrd /initrd.img\n}}\n"
        ),
        "etc/cloud/cloud.cfg.d/10_localcloud.cfg": CLOUD_CONFIG,
        "etc/default/locale": "LANG=C.UTF-8\n",
        "etc/fstab": f"UUID={identifier} / ext4 defaults,errors=remount-ro 0 0\n",
        "etc/hostname": "localhost\n",
        "etc/machine-id": "",
        "etc/resolv.conf": Path("../run/systemd/resolve/stub-resolv.conf"),
        "etc/ssh/sshd_config.d/10-cloud.conf": "PasswordAuthentication no\n",
        "etc/systemd/network/80-dhcp.network": NETWORK,
        "etc/systemd/resolved.conf.d/10-unicast-only.conf": "[Resolve]\nLLMNR=no\nMulticastDNS=no\n",
    }


def _write_tar(path: Path, files: Mapping[str, str | bytes | Path]) -> None:
    """Write a tarball of root's files, mode 0644, with their folders."""
    now = int(time.time())
    with tarfile.open(path, "w") as tar:
        folders = sorted({str(parent) for name in files for parent in Path(name).parents} - {"."})
        for folder in folders:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, now
            tar.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.mtime = now
            if isinstance(content, Path):
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, str(content), 0o777
                tar.addfile(entry)
            else:
                data = content if isinstance(content, bytes) else content.encode()
                entry.size, entry.mode = len(data), 0o644
                tar.addfile(entry, io.BytesIO(data))


def _write_boot_loader(disk: Path, staging: Path) -> None:
    """Write GRUB's boot sector, a table with one partition, and GRUB's core in the gap before it."""
    core = staging / "core.img"
    prefix = "(hd0,msdos1)/boot/grub"
    _run(["grub-mkimage", "-O", "i386-pc", "-d", str(GRUB_FOLDER), "-p", prefix, "-o", str(core), *GRUB_MODULES])
    image = core.read_bytes()
    if len(image) > PARTITION_START - SECTOR:
        raise ImageError(f"base image: GRUB's core of {len(image)} bytes does not fit before the partition")
    start, count = PARTITION_START // SECTOR, (DISK_BYTES - PARTITION_START) // SECTOR
    # Active, type Linux; the cylinder fields mean "use the sector numbers".
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", start, count)
    signature = uuid.uuid4().bytes[:4]
    code = (GRUB_FOLDER / "boot.img").read_bytes()[:440]
    with disk.open("r+b") as raw:
        raw.write(code + signature + b"\0\0" + entry + bytes(48) + b"\x55\xaa" + image)
        os.fsync(raw.fileno())


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = "; ".join(result.stderr.strip().splitlines()[:3]) or "no output"
        raise ImageError(f"base image: {Path(command[0]).name} ended with {result.returncode}: {reason}")
