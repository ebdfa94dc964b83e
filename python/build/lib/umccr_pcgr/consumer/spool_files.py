"""What queue and store of a spool share: claims, the lock, moves that overwrite nothing, and files that cannot be claimed."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from umccr_pcgr.samples.model import Transient
from umccr_pcgr.samples.spool_layout import CLAIM, CLAIM_INPUT, CLAIM_KEY, DONE, claim_name

log = logging.getLogger(__name__)

# What may be wrong with one file or folder while the rest of the spool works.
ERRORS_OF_ONE_FILE = frozenset(
    {
        errno.EACCES,
        errno.EBUSY,
        errno.EEXIST,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOTDIR,
        errno.ENOTEMPTY,
        errno.EPERM,
        errno.EXDEV,
    }
)


@contextmanager
def spool_errors(stage: str) -> Iterator[None]:
    """Turn what the file system raises into Transient of `stage`."""
    try:
        yield
    except OSError as error:
        raise Transient(stage, f"{error.filename or 'spool'}: {error.strerror}") from error


@contextmanager
def exclusive_lock(root: Path) -> Iterator[None]:
    """Lock the names in ``done/`` and ``failed/`` against all other consumers of the spool `root`."""
    with (root / DONE / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class ClaimFolder:
    """A folder in ``claimed/``; ``version`` is the time of the tarball's first claim in microseconds since 1970."""

    path: Path
    version: str
    receives: int

    @classmethod
    def read(cls, path: Path) -> ClaimFolder | None:
        """Parse the folder's name; None if it is not a claim's."""
        match = CLAIM.fullmatch(path.name)
        return cls(path, match["version"], int(match["receives"])) if match else None

    @classmethod
    def new(cls, parent: Path, version: str, receives: int) -> ClaimFolder:
        """Return a folder with a new token; it is not created."""
        return cls(parent / claim_name(version, receives, secrets.token_hex(8)), version, receives)

    @property
    def name(self) -> Path:
        """What stays the same from one holder to the next."""
        return self.path.parent / self.version

    @property
    def input(self) -> Path:
        """The tarball."""
        return self.path / CLAIM_INPUT

    @property
    def key_file(self) -> Path:
        """The file that holds the key."""
        return self.path / CLAIM_KEY

    def key(self) -> str:
        """Return the tarball's path in the inbox; FileNotFoundError when the claim is gone or was never complete."""
        return os.fsdecode(self.key_file.read_bytes())

    def remove(self) -> None:
        """Remove the folder, from which the tarball is gone."""
        self.key_file.unlink(missing_ok=True)
        self.path.rmdir()


def move(source: Path, targets: Iterator[Path]) -> None:
    """Rename `source` to the first target that is free and possible, and overwrite nothing; call it under the lock."""
    failure: OSError = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(source))
    for target in targets:
        try:
            target.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
            if not os.path.lexists(target):
                source.rename(target)
                return
        except OSError as error:
            if error.errno not in ERRORS_OF_ONE_FILE:
                raise
            failure = error
    raise failure


class Skipped:
    """Paths that cannot be claimed. Each is logged once for as long as it stays."""

    def __init__(self) -> None:
        self._paths: set[Path] = set()

    def __contains__(self, path: Path) -> bool:
        return path in self._paths

    def add(self, path: Path, error: OSError) -> None:
        """Log why `path` is skipped, unless that was done."""
        if path not in self._paths:
            log.error("%s: cannot be claimed and is skipped: %s", ascii(str(path))[1:-1], error.strerror)
        self._paths.add(path)

    def discard(self, path: Path) -> None:
        """Forget a path that could be claimed after all."""
        self._paths.discard(path)

    def keep(self, seen: set[Path]) -> None:
        """Forget what is not there any more."""
        self._paths &= seen
