"""A lock for builds that several commands may start at the same time."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive_lock(path: Path, report: Callable[[str], None], what: str) -> Iterator[None]:
    """Hold the lock file ``path`` for the block.

    If another process holds it, call ``report`` with a line that names the build, ``what``, and wait.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another build of {what}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
