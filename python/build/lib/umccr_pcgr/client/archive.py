"""Unpacks a result's tarball without trusting it, on every Python 3.11.

``tarfile``'s own filters came with Python 3.11.4; Debian 12 has 3.11.2. They have also been bypassed (CVE-2025-4517).
"""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

CHUNK = 1 << 20


class UnsafeArchive(Exception):
    """The archive is damaged, or a member would leave the folder or is no regular file or folder; the text is one line."""


def extract(tarball: Path, folder: Path) -> list[Path]:
    """Unpack a tarball of regular files and folders into `folder`; return the files' paths in the archive's order.

    Files that exist are replaced, never written through; owners, modes and times of the archive do not count. Raises
    UnsafeArchive before anything is written if a member is not allowed, OSError when the disk refuses.
    """
    try:
        with tarfile.open(tarball) as archive:
            members = archive.getmembers()
            for member in members:
                _check(tarball, member)
            return [path for member in members if (path := _write(tarball, archive, member, folder))]
    except (tarfile.TarError, EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        raise UnsafeArchive(f"{tarball}: damaged archive: {' '.join(str(error).split())}") from None


def _check(tarball: Path, member: tarfile.TarInfo) -> None:
    path = PurePosixPath(member.name)
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise UnsafeArchive(f"{tarball}: member {member.name[:100]!a}: allowed: regular files and folders")
    if path.is_absolute() or ".." in path.parts or "\0" in member.name or (member.isreg() and not path.parts):
        raise UnsafeArchive(f"{tarball}: member {member.name[:100]!a}: allowed: names inside the archive's own folder")


def _write(tarball: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> Path | None:
    parts = PurePosixPath(member.name).parts
    parent = folder
    parent.mkdir(parents=True, exist_ok=True)
    for part in parts if member.isdir() else parts[:-1]:
        parent = parent / part
        if parent.is_symlink():
            raise UnsafeArchive(f"{tarball}: {parent} is a symbolic link; allowed: a folder")
        parent.mkdir(exist_ok=True)
    source = archive.extractfile(member) if member.isreg() else None
    if source is None:
        return None
    target = parent / parts[-1]
    target.unlink(missing_ok=True)
    # O_EXCL and O_NOFOLLOW: a file that another program creates there in this moment is not written to
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640)
    with source, os.fdopen(handle, "wb") as out:
        shutil.copyfileobj(source, out, CHUNK)
    return target
