"""Limits of one sample."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one sample: of its container (memory, cpus, pids) and of its tarball (the rest, sizes in bytes)."""

    memory: str = "6g"
    cpus: float = 2
    pids: int = 512
    members: int = 16
    unpacked_bytes: int = 8 << 30
    ratio: int = 200  # unpacked : packed; a VCF as text packs about 10-30 : 1
    free_bytes: int = 2 << 30  # room for the tool's output, asked of the work disk beside the input's own
