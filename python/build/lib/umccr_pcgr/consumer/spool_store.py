"""Results and reports of a spool (see :mod:`umccr_pcgr.samples.spool_layout`), with conditional writes.

A first result is published by linking, which fails if the name is taken; an older one is replaced under a lock that the kernel drops
with its holder.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from umccr_pcgr.samples.documents import json_object
from umccr_pcgr.samples.inflate import Inflater
from umccr_pcgr.samples.labels import from_labels, labels_in
from umccr_pcgr.samples.model import (
    Conflict,
    InputRef,
    InputVersion,
    Permanent,
    Published,
    Stopped,
    StopReason,
    Transient,
)
from umccr_pcgr.samples.spool_layout import CLAIMED, published_path

from .spool_files import ClaimFolder, exclusive_lock, spool_errors

RATIO = 2000  # output : input; gzip reaches 1032
PROVENANCE_FIRST = 1 << 20  # bytes; provenance.json is a result's first member and far smaller
CHUNK = 1 << 20


class SpoolStore:
    """Results and reports of a spool. A published file says in itself which input version it is of."""

    echoes = False  # nothing published comes back as an input: it lies in other folders

    def __init__(self, root: Path) -> None:
        self._root = root

    def _input(self, version: str, key: str) -> Path | None:
        for path in (self._root / CLAIMED).glob(f"{version}.*"):
            held = ClaimFolder.read(path)
            with suppress(FileNotFoundError):
                if held and held.key() == key:
                    return held.input
        return None

    def head(self, ref: InputRef) -> InputVersion | None:
        """Return the claimed tarball that `ref` names; None when it is not claimed any more."""
        with spool_errors("fetch"):
            path = self._input(ref.version_id or "", ref.key)
            try:
                size = path.lstat().st_size if path else None
            except FileNotFoundError:
                size = None
        if size is None or ref.version_id is None:
            return None
        moment = datetime.fromtimestamp(int(ref.version_id) / 1_000_000, timezone.utc)
        return InputVersion(ref.bucket, ref.key, ref.version_id, None, size, moment)

    def is_current(self, version: InputVersion) -> bool:
        """Return False: versions are microseconds apart, so that there are no ties to break."""
        del version
        return False

    def fetch(self, version: InputVersion, target: Path, stop: StopReason) -> str:
        """Copy the claimed tarball; Permanent for what is no regular file or may not be read."""
        with spool_errors("fetch"):
            path = self._input(version.version_id or "", version.key)
            if not path:
                raise Transient("fetch", f"{version.key}: no longer claimed")
            try:
                source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO):
                    raise Permanent("fetch", f"{version.key}: not a regular file") from None
                if error.errno in (errno.EACCES, errno.EPERM):
                    raise Permanent("fetch", f"{version.key}: the consumer's user may not read the file") from None
                raise
            digest, count = hashlib.sha256(), 0
            with os.fdopen(source, "rb") as reader, target.open("wb") as writer:
                if not path.is_file():
                    raise Permanent("fetch", f"{version.key}: not a regular file")
                while chunk := reader.read(CHUNK):
                    if reason := stop():
                        raise Stopped(reason)
                    writer.write(chunk)
                    digest.update(chunk)
                    count += len(chunk)
        if count != version.size:
            raise Transient("fetch", f"{version.key}: got {count} bytes of {version.size}")
        return digest.hexdigest()

    def published(self, bucket: str, key: str) -> Published | None:
        """Return the result or report at `key`, or None."""
        del bucket
        path = published_path(self._root, key)
        with spool_errors("publish"):
            try:
                tag = _tag(path)
                document = _document(path)
            except FileNotFoundError:
                return None
        return from_labels(labels_in(document), tag)

    def put_if(self, bucket: str, key: str, path: Path, labels: Mapping[str, str], tag: str | None) -> None:
        """Publish under the lock: a first file by linking, which fails if the name is taken, a later one by renaming."""
        del bucket, labels  # the file says it all itself
        target = published_path(self._root, key)
        with spool_errors("publish"):
            target.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
            fresh = target.with_name(f".{secrets.token_hex(8)}.new")
            try:
                _copy(path, fresh)
                with exclusive_lock(self._root):
                    if tag is None:
                        os.link(fresh, target)
                    elif not target.exists() or _tag(target) != tag:
                        raise Conflict("another worker changed it")
                    else:
                        fresh.replace(target)
            except FileExistsError:
                raise Conflict("another worker was first") from None
            finally:
                fresh.unlink(missing_ok=True)

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Store a progress note."""
        del bucket
        target = published_path(self._root, key)
        with spool_errors("progress"):
            target.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
            fresh = target.with_name(f".{secrets.token_hex(8)}.new")
            fresh.write_bytes(content)
            fresh.replace(target)

    def delete(self, bucket: str, key: str) -> None:
        """Remove the file of `key` if it is there."""
        del bucket
        with spool_errors("progress"):
            published_path(self._root, key).unlink(missing_ok=True)


def _tag(path: Path) -> str:
    found = path.lstat()
    return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"


def _copy(source: Path, target: Path) -> None:
    """Copy and flush to disk: a name must never appear before its bytes are safe."""
    with source.open("rb") as reader, target.open("xb") as writer:
        target.chmod(0o640)
        shutil.copyfileobj(reader, writer, CHUNK)
        writer.flush()
        os.fsync(writer.fileno())


def _document(path: Path) -> dict[str, Any]:
    """Return the failure report, or the provenance that is a result's first member; empty when it is neither."""
    try:
        return json_object(path.read_bytes() if path.name.endswith(".json") else _first_member(path))
    except ValueError:
        return {}


def _first_member(path: Path) -> bytes:
    """Return the content of a result's first member, which is a small regular file, else ValueError.

    A single header is decoded, not read as an archive: a file that another program put there may be hostile, and the standard library
    keeps extension records of any size in memory; before CVE-2024-6232 was fixed, its time for them grew with their square.
    """
    with Inflater(path, PROVENANCE_FIRST, RATIO) as stream:
        try:
            header = tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise ValueError(str(error)) from None
        if header.type != tarfile.REGTYPE or not 0 < header.size < PROVENANCE_FIRST - tarfile.BLOCKSIZE:
            raise ValueError("no provenance")
        return stream.read(header.size)
