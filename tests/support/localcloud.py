"""A small region for one test, whose guests are a boot sector instead of an operating system."""

from __future__ import annotations

import os
from pathlib import Path

WAIT = b"\xf4\xeb\xfd"  # hlt; jmp back


def sector(line: str, then: bytes) -> bytes:
    """Return a boot sector that writes ``line`` to COM1, then executes ``then``."""
    # xor ax,ax; mov ds,ax; mov si,text; cld; L: lodsb; test al,al; jz +6; mov dx,0x3f8; out dx,al; jmp L
    head = b"\x31\xc0\x8e\xd8\xbe%s\xfc\xac\x84\xc0\x74\x06\xba\xf8\x03\xee\xeb\xf5"
    code = head % (0x7C00 + len(head) + len(then)).to_bytes(2, "little") + then + line.encode() + b"\r\n\0"
    return code.ljust(510, b"\0") + b"\x55\xaa"


def settings(folder: Path, *, seconds: int = 1) -> dict[str, str]:
    """Return the environment for a region in ``folder`` whose guests print a line and wait.

    ``seconds`` is the time a guest gets to stop or terminate.
    """
    image = folder / "base.raw"
    image.write_bytes(sector("waiting", WAIT).ljust(1 << 20, b"\0"))
    limits = {"LOCALCLOUD_STOP_SECONDS": str(seconds), "LOCALCLOUD_TERMINATE_SECONDS": str(seconds)}
    limits |= {"LOCALCLOUD_MEMORY_MIB": "16", "LOCALCLOUD_VCPUS": "1", "LOCALCLOUD_DISK": str(image)}
    return os.environ | {"LOCALCLOUD_DIR": str(folder / "state")} | limits
