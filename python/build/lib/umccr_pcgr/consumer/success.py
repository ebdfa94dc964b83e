"""Whether a run of the tool succeeded. Success is verified, not believed: PCGR exits 0 on many failures."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from umccr_pcgr.samples.model import Permanent, Transient

from .runtime import Job, Run, error_line, last_line, log_tail

SIGNALLED = 128  # exit codes above it: ended by the signal `code - 128`
DISK_FULL = 64 << 20  # bytes; with less left on the work disk a failure of the tool proves nothing


def shortcomings(job: Job, result: Run, success: Mapping[str, Any], prefix: str) -> list[str]:
    """Return in what a run falls short of a success: its exit code, the closing log line, files; empty if it succeeded.

    `success` is that of the release's dialect, `prefix` what the names of the files begin with.
    """
    closed = any(success["closing"] in line for line in log_tail(job.log))
    found = [f"exit code {result.code}"] if result.code else []
    found += [] if closed else [f"no closing line {success['closing']!r}"]
    return found + [f"no {prefix}{end}" for end in success["files"] if not _is_filled(job.outputs / f"{prefix}{end}")]


def failure(
    command: str, job: Job, result: Run, found: Sequence[str], *, timeout: float, memory: str
) -> Permanent | Transient:
    """Return why `command` failed: Transient if the host is to blame, Permanent if the sample or the tool is.

    `found` is what :func:`shortcomings` returns, `timeout` the limit in seconds, `memory` that of the container.
    """
    tail = log_tail(job.log)
    last = last_line(tail)
    if result.overtime:
        return Permanent("run", f"{command} ran longer than {timeout} s; last line: {last}", tail)
    if result.code > SIGNALLED or result.code < 0:
        return Transient(
            "run",
            f"{command} was killed by signal {abs(result.code) % SIGNALLED} (from outside, or for more memory than "
            f"{memory}); last line: {last}",
            tail,
        )
    full = shutil.disk_usage(job.log.parent).free < DISK_FULL
    if full or any("No space left on device" in line for line in tail):
        return Transient("run", f"{command} failed on a full disk; last line: {last}", tail)
    error = error_line(tail)
    why = f"error: {error}" if error else f"last line: {last}"
    return Permanent("run", f"{command} failed: {', '.join(found)}; {why}", tail)


def _is_filled(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size > 0
