# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules that bring data and runtimes keep on a machine: locks, first checksums, the record of the runtime."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.download import DownloadError

# What may be removed from the folder of runtimes: conda environments, Apptainer images, and what a cut left of their arrival.
RUNTIME = re.compile(r"[0-9a-f]{16}(\.sif)?|\.packages-[0-9a-f]{16}|\.[0-9a-f]{16}\.sif\.part")


class BusyError(Exception):
    """Another run is at work; the text is one line."""


@contextmanager
def alone(folder: str) -> Iterator[None]:
    """Hold the lock of `folder`; raises BusyError when another run has it."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise BusyError(f"{folder}: another run is at work here at this moment") from error
    finally:
        os.close(lock)


@contextmanager
def readable_by_others() -> Iterator[None]:
    """What is made meanwhile is readable by all users and writable by its owner only, whatever the umask of whoever began this."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def replace(path: str, content: bytes) -> None:
    """Make the file at `path` hold `content`; nobody sees half of it."""
    with open(path + ".new", "wb") as out:
        out.write(content)
    os.replace(path + ".new", path)


def write_json(path: str, content: dict[str, Any]) -> None:
    """Replace the file at `path` by a rename."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".umccr.pcgr.")
    with open(descriptor, "w", encoding="utf-8") as handle:
        json.dump(content, handle, indent=1, sort_keys=True)
        handle.write("\n")
        os.fchmod(descriptor, 0o644)
    os.replace(temporary, path)


def read_json(path: str) -> dict[str, Any]:
    """The mapping in the file at `path`; empty when there is none that can be read."""
    try:
        with open(path, encoding="utf-8") as handle:
            content = json.load(handle)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def others(folder: str, current: str | None) -> list[str]:
    """Paths of runtimes in `folder`, finished or not, other than `current`."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    paths = [os.path.join(folder, name) for name in names if RUNTIME.fullmatch(name)]
    return [path for path in paths if path != current]


def remove(path: str) -> None:
    """Remove the file or folder at `path`."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def compare_with_first(path: str, name: str, sha256: str, *, remember: bool = True) -> None:
    """Of something whose checksum nobody published, remember that of the first time; raise DownloadError when it is another now.

    The file at `path` lies apart from what it is about, so that it outlives it.
    """
    try:
        with open(path, encoding="utf-8") as handle:
            sums = dict(json.load(handle))
    except FileNotFoundError:
        sums = {}
    except (ValueError, TypeError) as error:
        raise DownloadError(f"{path}: not a list of checksums: {error}") from error
    before = sums.setdefault(name, sha256)
    if before != sha256:
        raise DownloadError(
            f"{name}: sha256 is {sha256}, but was {before} when it was fetched first;"
            f" if the change is meant, remove its line from {path}"
        )
    if remember:
        write_json(path, sums)
