"""One build at a time of a thing that several commands may want at once."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(path: Path, tell: Callable[[str], None], what: str) -> Iterator[None]:
    """Hold the lock file ``path``; ``tell`` hears of it when another process holds it and has to be waited for."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f"waiting for another build of {what}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
