# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""State that modules keep on a host: stamps, locks, the record of the runtime, and how its files are written."""

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

# File in each folder that a module has installed; it says what the folder was made from. The consumer's smoke check reads it too.
STAMP = ".umccr.pcgr.json"
# What may be removed from the folder of runtimes: conda environments, Apptainer images, and what an interrupted download left.
RUNTIME = re.compile(r"[0-9a-f]{16}(\.sif)?|\.packages-[0-9a-f]{16}|\.[0-9a-f]{16}\.sif\.part")


class BusyError(Exception):
    """Another run holds the lock; the text is one line."""


@contextmanager
def exclusive_lock(folder: str) -> Iterator[None]:
    """Hold the lock of `folder`; raises BusyError when another run holds it."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise BusyError(f"{folder}: another run is in progress here") from error
    finally:
        os.close(lock)


@contextmanager
def readable_by_others() -> Iterator[None]:
    """Let all users read, and only the owner write, what is made meanwhile, whatever the caller's umask."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def write_file(
    path: str, content: bytes, *, mode: int = 0o644, owner: tuple[int, int] | None = None, durable: bool = True
) -> None:
    """Replace the file at `path` by a rename: a reader sees the old content or the new one.

    `owner` is a pair of uid and gid. Unless `durable` is false, the content reaches the disk before the rename.
    """
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=f".{os.path.basename(path)}.")
    try:
        with open(descriptor, "wb") as handle:
            handle.write(content)
            handle.flush()
            if owner is not None:
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
            if durable:
                os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(path: str, content: dict[str, Any]) -> None:
    """Replace the file at `path` by `content` as JSON; makes missing folders."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    write_file(path, f"{json.dumps(content, indent=1, sort_keys=True)}\n".encode())


def read_json(path: str) -> dict[str, Any]:
    """Return the mapping in the file at `path`; empty when there is none that can be read."""
    try:
        with open(path, encoding="utf-8") as handle:
            content = json.load(handle)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def other_runtimes(folder: str, current: str | None) -> list[str]:
    """Return the paths of the runtimes in `folder`, complete or not, other than `current`."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    paths = [os.path.join(folder, name) for name in names if RUNTIME.fullmatch(name)]
    return [path for path in paths if path != current]


def remove(path: str) -> None:
    """Remove the file or folder at `path`."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
