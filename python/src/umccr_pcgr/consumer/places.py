"""Where the files of a key lie below a folder of the spool.

People choose the names in the inbox, so any name may come: one that grows too long with an ending of ours, or a folder with the
name of a file of ours. A place is therefore the key itself only where the file system takes it and no other file needs it. What
a place has in addition begins with ``~``, which no sample's key may hold: two samples never share a place.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from umccr_pcgr.samples.naming import ENDINGS, KEY_MAX, SUFFIX

log = logging.getLogger(__name__)

NAME_MAX = 255  # bytes of a file's name (ext4, XFS, NFS)
CLAIM = re.compile(r"(?P<version>[0-9]{16})\.(?P<receives>[0-9]+)\.[0-9a-f]{16}")  # a folder in claimed/
# What may be wrong with one file or folder while the rest of the spool works.
OF_ONE_FILE = frozenset(
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
_MARK = "~"
_OWN = {"done": (ENDINGS["result"],), "failed": (ENDINGS["failed"],)}  # what is published there


def place(folder: Path, key: str) -> Path:
    """Where the file of `key` lies below `folder`; the same for every caller while the spool's other files stay."""
    *parents, name = key.split("/")
    if len(os.fsencode(key)) > KEY_MAX:
        return folder / _digested(name, key)
    path = folder
    for parent in parents:
        path /= _folder(parent)
        if os.path.lexists(path) and not os.path.isdir(path):  # noqa: PTH112  (Path.is_dir may raise)
            path = path.with_name(_fitting(path.name, _MARK))
    path /= _digested(name, name) if len(os.fsencode(name)) > NAME_MAX else name
    return path.with_name(_marked(path.name)) if os.path.isdir(path) else path  # noqa: PTH112


def free_places(root: Path, outcome: str, key: str, version: str) -> Iterator[Path]:
    """Where the input of `key` may be moved below ``root/outcome``, best first; never a name under which something is published."""
    plain = place(root / outcome, key)
    versioned = _versioned(plain.name, version)
    if not plain.name.endswith(_OWN[outcome]):
        yield plain
    yield plain.with_name(versioned)
    yield root / outcome / versioned


def _folder(name: str) -> str:
    taken = name.endswith(tuple(ENDINGS.values())) or CLAIM.fullmatch(name)
    return _fitting(name, _MARK) if taken else name


def _split(name: str) -> tuple[str, str]:
    """A name without its ending, and the ending; an unknown one does not count."""
    ending = next((one for one in sorted(ENDINGS.values(), key=len, reverse=True) if name.endswith(one)), "")
    return name.removesuffix(ending), ending


def _fitting(stem: str, ending: str) -> str:
    room = NAME_MAX - len(os.fsencode(ending))
    data = os.fsencode(stem)
    return (stem if len(data) <= room else data[:room].decode("utf-8", "ignore")) + ending


def _marked(name: str) -> str:
    """``x-failed.json`` becomes ``x~-failed.json``: a report's ending says how it is read."""
    stem, ending = _split(name)
    return _fitting(stem, f"{_MARK}{ending}")


def _digested(name: str, of: str) -> str:
    stem, ending = _split(name)
    return _fitting(stem, f"{_MARK}{hashlib.sha256(os.fsencode(of)).hexdigest()[:16]}{ending}")


def _versioned(name: str, version: str) -> str:
    """``x-output.tar.gz`` becomes ``x-output.<version>.tar.gz``, which is no name of ours."""
    for ending in (SUFFIX, Path(name).suffix):
        if name.endswith(ending) and len(os.fsencode(ending)) < NAME_MAX // 2:
            return _fitting(name.removesuffix(ending), f".{version}{ending}")
    return _fitting(name, f".{version}")


def move(source: Path, targets: Iterator[Path]) -> None:
    """Rename `source` to the first target that is free and possible; call it under the lock. Never over anything."""
    failure: OSError = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(source))
    for target in targets:
        try:
            target.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
            if not os.path.lexists(target):
                source.rename(target)
                return
        except OSError as error:
            if error.errno not in OF_ONE_FILE:
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
        """It could be claimed after all."""
        self._paths.discard(path)

    def keep(self, seen: set[Path]) -> None:
        """Forget what is not there any more."""
        self._paths &= seen
