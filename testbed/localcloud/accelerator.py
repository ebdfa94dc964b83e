"""Find out whether virtual machines run on the host's processor (KVM) or are emulated (TCG)."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Literal

QEMU = "qemu-system-x86_64"
TRIAL_SECONDS = 5.0  # a working trial takes a few tenths of a second; a loaded host may need more
EXIT_PORT = 0xF4  # the default of QEMU's isa-debug-exit
EXIT_VALUE = 0x10
EXIT_STATUS = EXIT_VALUE << 1 | 1  # the exit status that isa-debug-exit derives from the value

# Real-mode code at the reset vector: mov al,0x10; out 0xf4,al; then hlt forever.
TRIAL_CODE = bytes((0xB0, EXIT_VALUE, 0xE6, EXIT_PORT, 0xF4, 0xEB, 0xFD))


# QEMU's arguments for each kind. Under emulation, a processor of 2008 boots the base image with 5 % less CPU time than "max"
# (81 s against 86 s on two cores), and has all that binaries of Debian and Python may require (x86-64-v2).
ARGUMENTS = {"kvm": ("-accel", "kvm", "-cpu", "host"), "tcg": ("-accel", "tcg,thread=multi", "-cpu", "Nehalem")}


def accelerator() -> tuple[str, ...]:
    """Return QEMU's arguments for accelerator and processor."""
    return ARGUMENTS[kind()]


@cache
def kind() -> Literal["kvm", "tcg"]:
    """Return ``kvm`` only if the processor's flags, the device and a trial agree, ``tcg`` otherwise.

    A /dev/kvm alone proves nothing: some paravirtual hosts have it without the processor's flags, and a guest hangs
    forever.
    """
    return "kvm" if has_flags() and os.access("/dev/kvm", os.R_OK | os.W_OK) and trial("kvm") else "tcg"


def has_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor supports virtualisation (AMD's svm, Intel's vmx)."""
    try:
        return re.search(r"(?m)^flags\s*:.*\b(svm|vmx)\b", cpuinfo.read_text()) is not None
    except OSError:
        return False


def trial(name: str, code: bytes = TRIAL_CODE, seconds: float = TRIAL_SECONDS) -> bool:
    """Whether a virtual machine with seven bytes of firmware runs and exits with accelerator ``name``."""
    firmware = bytes(0x10000 - 16) + code.ljust(16, b"\xf4")
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(firmware)
        file.flush()
        command = [
            *(QEMU, "-accel", name, "-machine", "pc", "-m", "16", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-bios", file.name, "-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1"),
        ]
        try:
            ended = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=seconds, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
    return ended.returncode == EXIT_STATUS
