"""The layout of a spool, a folder on a local or shared file system for sites without a cloud.

``inbox/``    tarballs waiting, in any sub-folders. Names with a leading dot are ignored: write such a file, then rename it.
``claimed/``  one folder per claim, named ``<version>.<receives>.<token>``, holding the tarball as ``input`` and its path in the
              inbox as ``key``. The folder's modification time plus the visibility is when the claim runs out.
              Progress notes lie here, too.
``done/``     results, and the tarballs they are of.
``failed/``   failure reports, and their tarballs.

People choose the names in the inbox, so a name may be anything: one that is too long with one of our endings, or a folder that is
named like one of our files. A published file is therefore named like its key only where the file system takes that name and no other
file needs it. What its name has in addition begins with ``~``, which no sample's key may hold: two samples never share a name.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from .model import Outcome
from .naming import ENDINGS, KEY_MAX, SUFFIX, Role

INBOX, CLAIMED, DONE, FAILED = FOLDERS = ("inbox", "claimed", "done", "failed")
FOLDER_OF: dict[Role, str] = {"input": INBOX, "result": DONE, "failed": FAILED, "running": CLAIMED}
OUTCOME_FOLDERS: dict[Outcome, str] = {"done": DONE, "failed": FAILED}  # where the tarballs go
CLAIM = re.compile(r"(?P<version>[0-9]{16})\.(?P<receives>[0-9]+)\.[0-9a-f]{16}")  # name of a claim's folder
CLAIM_INPUT, CLAIM_KEY = "input", "key"  # files in a claim's folder
NAME_MAX = 255  # bytes of a file's name (ext4, XFS, NFS)
_MARK = "~"
_PUBLISHED: dict[Outcome, str] = {"done": ENDINGS["result"], "failed": ENDINGS["failed"]}


def claim_name(version: str, receives: int, token: str) -> str:
    """Return the name of a claim's folder.

    `version` is the time of the tarball's first claim in microseconds since 1970 (16 digits), `token` 16 hex digits.
    """
    return f"{version}.{receives}.{token}"


def published_path(root: Path, key: str) -> Path:
    """Return where the result, failure report or progress note `key` lies, or would lie, in the spool `root`."""
    roles: tuple[Role, ...] = ("failed", "running")
    folder = next((FOLDER_OF[role] for role in roles if key.endswith(ENDINGS[role])), DONE)
    return place(root / folder, key)


def place(folder: Path, key: str) -> Path:
    """Return where the file of `key` lies below `folder`; the same for every caller while the spool's other files stay."""
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


def free_places(root: Path, outcome: Outcome, key: str, version: str) -> Iterator[Path]:
    """Return where the tarball of `key` may be moved to, best first; never a name under which something is published."""
    folder = root / OUTCOME_FOLDERS[outcome]
    plain = place(folder, key)
    versioned = _versioned(plain.name, version)
    if not plain.name.endswith(_PUBLISHED[outcome]):
        yield plain
    yield plain.with_name(versioned)
    yield folder / versioned


def _folder(name: str) -> str:
    taken = name.endswith(tuple(ENDINGS.values())) or CLAIM.fullmatch(name)
    return _fitting(name, _MARK) if taken else name


def _split(name: str) -> tuple[str, str]:
    """Return a name without its ending, and the ending, which is empty if it is none of ours."""
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
