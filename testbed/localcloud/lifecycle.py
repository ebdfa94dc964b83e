"""Whether a region runs, and what is left of one that does not. Light to import: every command needs it."""

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


class Running(Exception):
    """Another process serves this region."""


@contextmanager
def held(settings: Settings) -> Iterator[None]:
    """Hold the region's lock; raises Running."""
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
    except Running:
        return True
    return False


def _lock(file: TextIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Running(file.name) from None


def clean(settings: Settings) -> None:
    """Remove what a region left behind: disks, sockets, record, configuration of clients. The log stays."""
    if settings.record.exists():
        shutil.rmtree(json.loads(settings.record.read_text())["sockets"], ignore_errors=True)
        settings.record.unlink()
    settings.client_config.unlink(missing_ok=True)
    for name in ("volumes", "snapshots", "instances"):
        shutil.rmtree(settings.state / name, ignore_errors=True)
