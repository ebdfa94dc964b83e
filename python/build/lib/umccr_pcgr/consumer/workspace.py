"""Folders of attempts in ``work_dir``: what the host's own disk refuses, and wiping."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from umccr_pcgr.samples.model import Transient

from .runtime import WORK_PREFIX, Runtime

log = logging.getLogger(__name__)


def wipe(path: Path) -> None:
    """Remove a work folder whatever the tool did to its permissions; a failure is logged, never raised."""
    try:
        for folder, folders, _unused in os.walk(path):
            for name in folders:
                if not (inner := Path(folder, name)).is_symlink():
                    inner.chmod(0o700)
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.error("cannot wipe %s: %s", path, error)


def clear_leftovers(runtime: Runtime, work_dir: Path) -> None:
    """Kill the runs that an earlier process of this worker left, then wipe its folders."""
    for name in runtime.clear():
        log.warning("killed the leftover run %s", name)
    for path in work_dir.glob(f"{WORK_PREFIX}*"):
        log.warning("wiping the leftover folder %s", path)
        wipe(path)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn what this host's own disk refuses into Transient: it is no fault of the sample."""
    try:
        yield
    except OSError as error:
        raise Transient("disk", f"{error.filename or 'work folder'}: {error.strerror or error}") from error
