"""The folder backend: a spool on a local or shared file system, for sites without a cloud.

``inbox/``    tarballs waiting, in any sub-folders. Names with a leading dot are not looked at: write there, then rename.
``claimed/``  one folder per claim, named ``<version>.<receives>.<token>``, holding the tarball as ``input`` and its path in the
              inbox as ``key``. The folder's modification time plus the visibility is when the claim runs out.
``done/``     results, and the tarballs they are of.
``failed/``   failure reports, and their tarballs.

Claiming and taking over are renames, of which the file system lets one win. A first result is published by linking, which fails
if the name is taken; an older one is replaced under a lock that the kernel drops with its holder.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import clock
from .model import (
    Claim,
    Conflict,
    InputRef,
    InputVersion,
    LeaseLost,
    Permanent,
    Published,
    Stopped,
    StopReason,
    Transient,
)
from .naming import ENDINGS
from .publish import from_labels
from .queue import Outcome

FOLDERS = ("inbox", "claimed", "done", "failed")
VISIBILITY = 300.0  # seconds without a heartbeat after which a claim may be taken over
SETTLE = 5.0  # seconds since the last write before a file in the inbox counts as whole
BUCKET = "spool"  # what stands for a bucket in reports
PROVENANCE_FIRST = 1 << 20  # bytes; provenance.json is a result's first member and far smaller
CHUNK = 1 << 20


@contextmanager
def _touching(stage: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Transient(stage, f"{error.filename or 'spool'}: {error.strerror}") from error


_CLAIM = re.compile(r"(?P<version>[0-9]{16})\.(?P<receives>[0-9]+)\.[0-9a-f]{16}")


@dataclass(frozen=True)
class _Held:
    """A folder in ``claimed/``; ``version`` is the time of the file's first claim in microseconds since 1970."""

    path: Path
    version: str
    receives: int

    @classmethod
    def read(cls, path: Path) -> _Held | None:
        match = _CLAIM.fullmatch(path.name)
        return cls(path, match["version"], int(match["receives"])) if match else None

    @classmethod
    def new(cls, parent: Path, version: str, receives: int) -> _Held:
        return cls(parent / f"{version}.{receives}.{secrets.token_hex(8)}", version, receives)

    def key(self) -> str:
        """The tarball's path in the inbox; FileNotFoundError when the claim is gone or was never complete."""
        return os.fsdecode((self.path / "key").read_bytes())

    def clear(self) -> None:
        (self.path / "key").unlink(missing_ok=True)
        self.path.rmdir()


class SpoolQueue:
    """The queue side of a spool; the folders are made when missing."""

    def __init__(
        self, root: Path, *, visibility: float = VISIBILITY, max_receives: int = 5, settle: float = SETTLE
    ) -> None:
        self._root = root
        self._settle = settle
        self.visibility = visibility
        self.max_receives: int | None = max_receives
        with _touching("queue"):
            for name in FOLDERS:
                (root / name).mkdir(mode=0o770, parents=True, exist_ok=True)

    def _now(self) -> float:
        """The file system's own time, which all machines share that share the spool."""
        probe = self._root / "claimed" / f".clock-{os.getpid()}-{secrets.token_hex(4)}"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()

    def claim(self, wait: float) -> Claim | None:
        del wait  # a folder answers at once; the worker sleeps between looks
        with _touching("queue"):
            now = self._now()
            return self._claim_waiting(now) or self._take_over(now)

    def _waiting(self) -> list[Path]:
        inbox, found = self._root / "inbox", []
        for folder, folders, names in os.walk(inbox):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [Path(folder, name) for name in names if not name.startswith(".")]
        return found

    def _claim_waiting(self, now: float) -> Claim | None:
        aged = []
        for path in self._waiting():
            with suppress(FileNotFoundError):
                modified = path.lstat().st_mtime
                if not 0 <= now - modified < self._settle:
                    aged.append((modified, path))
        for _unused, path in sorted(aged):
            key = path.relative_to(self._root / "inbox").as_posix()
            received = clock.now()
            held = _Held.new(self._root / "claimed", f"{int(self._now() * 1e6):016d}", 1)
            held.path.mkdir(mode=0o700)
            (held.path / "key").write_bytes(os.fsencode(key))
            try:
                path.rename(held.path / "input")
            except FileNotFoundError:  # another worker was faster
                held.clear()
                continue
            return self._claimed(held, key, received)
        return None

    def _take_over(self, now: float) -> Claim | None:
        """A claim whose holder was silent for the whole visibility; only one worker's rename finds it."""
        for path in sorted((self._root / "claimed").iterdir()):
            old = _Held.read(path)
            if not old:
                continue
            held = _Held.new(path.parent, old.version, old.receives + 1)
            try:
                if now - path.stat().st_mtime < self.visibility:
                    continue
                received = clock.now()
                os.utime(path)  # before the rename: a fresh claim must never look old
                path.rename(held.path)
            except FileNotFoundError:
                continue
            if not os.path.lexists(held.path / "input"):  # its holder was killed before the file came or after it went
                held.clear()
                continue
            return self._claimed(held, held.key(), received)
        return None

    def _claimed(self, held: _Held, key: str, received: float) -> Claim:
        exhausted = self.max_receives is not None and held.receives > self.max_receives
        job = InputRef(BUCKET, key, held.version)
        return Claim(held.path.name, (job,), held.receives, received, exhausted=exhausted)

    def _set(self, claim: Claim, *, visible_in: float) -> None:
        with _touching("queue"):
            path = self._root / "claimed" / claim.handle
            moment = self._now() - self.visibility + visible_in
            try:
                os.utime(path, (moment, moment))
            except FileNotFoundError:
                raise LeaseLost("another worker has taken the claim over") from None

    def extend(self, claim: Claim) -> None:
        self._set(claim, visible_in=self.visibility)

    def release(self, claim: Claim, delay: float) -> None:
        self._set(claim, visible_in=delay)

    def finish(self, claim: Claim, outcome: Outcome) -> None:
        held = _Held.read(self._root / "claimed" / claim.handle)
        assert held  # noqa: S101  (the handle was made here)
        with _touching("queue"):
            try:
                target = self._root / outcome / held.key()
                target.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
                (held.path / "input").replace(target)
            except FileNotFoundError:
                raise LeaseLost("another worker has taken the claim over") from None
            held.clear()

    def unfinished(self) -> int:
        with _touching("queue"):
            held = sum(1 for path in (self._root / "claimed").iterdir() if _Held.read(path))
            return len(self._waiting()) + held


class SpoolStore:
    """The store side of a spool. A published object says in itself which input version it is of."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def _input(self, version: str, key: str) -> Path | None:
        for path in (self._root / "claimed").glob(f"{version}.*"):
            held = _Held.read(path)
            with suppress(FileNotFoundError):
                if held and held.key() == key:
                    return path / "input"
        return None

    def _place(self, key: str) -> Path:
        if key.endswith(ENDINGS["failed"]):
            return self._root / "failed" / key
        if key.endswith(ENDINGS["running"]):
            return self._root / "claimed" / key
        return self._root / "done" / key

    def head(self, ref: InputRef) -> InputVersion | None:
        with _touching("fetch"):
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
        del version
        return False  # versions are microseconds apart; a tie cannot be broken and is not

    def fetch(self, version: InputVersion, target: Path, stop: StopReason) -> str:
        with _touching("fetch"):
            path = self._input(version.version_id or "", version.key)
            if not path:
                raise Transient("fetch", f"{version.key}: no longer claimed")
            try:
                source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO):
                    raise Permanent("fetch", f"{version.key}: not a regular file") from None
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
        del bucket
        path = self._place(key)
        with _touching("publish"):
            try:
                tag = _tag(path)
                document = _document(path)
            except FileNotFoundError:
                return None
        return from_labels(_labels_in(document), tag)

    def put_if(self, bucket: str, key: str, path: Path, labels: Mapping[str, str], tag: str | None) -> None:
        del bucket, labels  # the file says it all itself
        target = self._place(key)
        with _touching("publish"):
            target.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
            fresh = target.with_name(f".{secrets.token_hex(8)}.new")
            try:
                _copy(path, fresh)
                with (self._root / "done" / ".lock").open("a") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    if tag is None:
                        os.link(fresh, target)
                    elif not target.exists() or _tag(target) != tag:
                        raise Conflict("somebody else changed it")
                    else:
                        fresh.replace(target)
            except FileExistsError:
                raise Conflict("somebody else was first") from None
            finally:
                fresh.unlink(missing_ok=True)

    def put(self, bucket: str, key: str, content: bytes) -> None:
        del bucket
        target = self._place(key)
        with _touching("progress"):
            target.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
            fresh = target.with_name(f".{secrets.token_hex(8)}.new")
            fresh.write_bytes(content)
            fresh.replace(target)

    def delete(self, bucket: str, key: str) -> None:
        del bucket
        with _touching("progress"):
            self._place(key).unlink(missing_ok=True)


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
    """The failure report, or the provenance that is a result's first member; empty when it is neither."""
    try:
        if path.name.endswith(".json"):
            document = json.loads(path.read_bytes())
        else:
            with tarfile.open(path, "r|gz") as archive:
                first = archive.next()
                file = archive.extractfile(first) if first and first.size < PROVENANCE_FIRST else None
                document = json.loads(file.read()) if file else {}
    except (tarfile.TarError, ValueError, EOFError):
        return {}
    return document if isinstance(document, dict) else {}


def _labels_in(document: Mapping[str, Any]) -> dict[str, str]:
    source = document.get("input")
    if not isinstance(source, dict) or not source.get("version_id"):
        return {}
    return {
        "pcgr-input": f"version:{source['version_id']}",
        "pcgr-input-modified": str(source.get("last_modified") or ""),
        "pcgr-attempt": str(document.get("attempt") or ""),
        "pcgr-final": "yes" if document.get("permanent", True) else "no",
    }
