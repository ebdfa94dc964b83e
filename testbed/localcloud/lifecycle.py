"""Find out whether a region is running, and remove what a stopped one left behind. Cheap to import: every command does."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from localcloud.settings import Settings

HOST = "127.0.0.1"
PORT = 4610  # preferred port of the API; any free one when it is taken


class AlreadyRunning(Exception):
    """Another process is serving this region."""


@contextmanager
def exclusive_lock(settings: Settings) -> Iterator[None]:
    """Hold the region's lock for the block; raises AlreadyRunning if another process holds it."""
    settings.state.mkdir(parents=True, exist_ok=True)
    with settings.lock.open("w") as file:
        _lock(file)
        yield


def is_running(settings: Settings) -> bool:
    """Whether a process holds the region's lock."""
    try:
        with settings.lock.open("r") as file:
            _lock(file)
    except FileNotFoundError:
        return False
    except AlreadyRunning:
        return True
    return False


def _lock(file: TextIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AlreadyRunning(file.name) from None


def clean(settings: Settings) -> None:
    """Remove a region's disks, sockets, record and client configuration. The log stays."""
    if settings.record.exists():
        shutil.rmtree(json.loads(settings.record.read_text())["sockets"], ignore_errors=True)
        settings.record.unlink()
    settings.client_config.unlink(missing_ok=True)
    for name in ("volumes", "snapshots", "instances"):
        shutil.rmtree(settings.state / name, ignore_errors=True)
