"""Settings of the local region: where it keeps its files, and how much of the host it may use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ACCOUNT = "123456789012"  # moto's account for all access keys that it did not issue itself
DEBIAN_ACCOUNT = "136693071363"  # owner of Debian's images on AWS (wiki.debian.org/Cloud/AmazonEC2Image)
SSH_PORT = 2222  # ports below 1024 need root
HOST_FROM_GUEST = "169.254.0.2"  # QEMU's user network maps it to the host's loopback
NOTICE_SECONDS = 86400  # longest interruption notice; EC2 gives 120 s
GIB = 1 << 30


class SettingError(ValueError):
    """A setting cannot be used; the text is one line with its name, what was found and what is allowed."""


@dataclass(frozen=True)
class Settings:
    """The settings of one region.

    ``state`` is the folder of the region, ``cache`` that of images, ``disk`` a raw disk to use instead of the base image
    (if any), and ``region`` the name. ``vcpus`` and ``memory_mib`` limit each virtual machine. ``stop_seconds`` and
    ``terminate_seconds`` are the time a guest gets to shut down before its power is cut.
    """

    state: Path
    cache: Path
    disk: Path | None
    region: str
    vcpus: int
    memory_mib: int
    stop_seconds: int
    terminate_seconds: int

    @property
    def record(self) -> Path:
        """File with the running region's process and ports, as JSON."""
        return self.state / "region.json"

    @property
    def lock(self) -> Path:
        """File that the running region keeps locked; the kernel releases it however the region ends."""
        return self.state / "lock"

    @property
    def client_config(self) -> Path:
        """Configuration file for the ``aws`` command and the SDKs."""
        return self.state / "aws-config"

    @property
    def log(self) -> Path:
        """File with the output of the region's process."""
        return self.state / "region.log"


def load() -> Settings:
    """Read the settings from the environment; raises SettingError."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Settings(
        state=Path(os.environ.get("LOCALCLOUD_DIR") or Path(__file__).resolve().parents[2] / ".localcloud").absolute(),
        cache=Path(cache).absolute() / "umccr.pcgr",
        disk=_file("LOCALCLOUD_DISK"),
        region=os.environ.get("LOCALCLOUD_REGION") or "ap-southeast-2",
        vcpus=_number("LOCALCLOUD_VCPUS", 2),
        memory_mib=_number("LOCALCLOUD_MEMORY_MIB", 2048),
        stop_seconds=_number("LOCALCLOUD_STOP_SECONDS", 60),
        terminate_seconds=_number("LOCALCLOUD_TERMINATE_SECONDS", 20),
    )


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise SettingError(f"{name}: found {text!r}, allowed is a whole number from 1")
    return int(text)


def _file(name: str) -> Path | None:
    text = os.environ.get(name)
    if not text:
        return None
    if not Path(text).is_file():
        raise SettingError(f"{name}: found no file {text}")
    return Path(text).absolute()
