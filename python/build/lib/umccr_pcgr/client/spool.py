"""A spool folder seen from outside: where samples are put and results come back on sites without a cloud."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from umccr_pcgr.client.store import CHUNK, Entry, Exists, Progress, Refused, complete_file, disk_errors
from umccr_pcgr.samples.documents import json_object
from umccr_pcgr.samples.naming import Role, Sample, classify
from umccr_pcgr.samples.spool_layout import (
    CLAIM_INPUT,
    CLAIM_KEY,
    CLAIMED,
    DONE,
    FAILED,
    FOLDER_OF,
    INBOX,
    published_path,
)


class Spool:
    """A spool folder, see :mod:`umccr_pcgr.samples.spool_layout`."""

    def __init__(self, root: Path) -> None:
        with disk_errors(root):
            if not (root / INBOX).is_dir():
                raise Refused(f"{root}: no spool; allowed: a folder that holds {INBOX}/")
        self._root = root

    def _path(self, key: str) -> Path:
        of = classify(key)
        if of and of[1] != "input":
            return published_path(self._root, key)
        return self._root / FOLDER_OF["input"] / key

    def address(self, key: str) -> str:
        """Return the path of an object; of an input, that in the inbox."""
        return str(self._path(key)) if key else f"{self._root}/{INBOX}/"

    def _files(self) -> Iterator[tuple[str, Path, bool]]:
        """Every file as (key, path, whether a consumer holds it); OSError for a folder that cannot be read."""
        for folder in (INBOX, DONE, FAILED):
            for path in _walk(self._root / folder):
                yield path.relative_to(self._root / folder).as_posix(), path, False
        claimed = self._root / CLAIMED
        closed: list[Path] = []
        notes: list[Path] = []
        for path in _walk(claimed, closed):
            if path.name == CLAIM_KEY:
                with suppress(FileNotFoundError):  # the consumer may be done with it by now
                    yield path.read_text(encoding="utf-8"), path.with_name(CLAIM_INPUT), True
            else:
                notes.append(path)
                yield path.relative_to(claimed).as_posix(), path, False
        if closed:  # claims belong to the consumer's user alone; its notes are for everybody and name what it holds
            for path in notes:
                if (of := classify(path.relative_to(claimed).as_posix())) and of[1] == "running":
                    yield of[0].input_key, path, True

    def entries(self, prefix: str) -> list[tuple[Sample, Role, Entry]]:
        """Return all objects of samples below `prefix`; Refused for a folder that cannot be read."""
        found = []
        with disk_errors(self._root):
            for key, path, claimed in self._files():
                of = classify(key)
                if of and key.startswith(prefix):
                    with suppress(FileNotFoundError):
                        found.append((*of, Entry(key, _modified(path), claimed=claimed)))
        return found

    def entry(self, sample: Sample, role: Role) -> Entry | None:
        """Return one object, or None."""
        key = sample.key(role)
        if role != "input":
            with disk_errors(self._path(key)), suppress(FileNotFoundError):
                return Entry(key, _modified(self._path(key)))
            return None
        found = [entry for of, what, entry in self.entries(key) if (of, what) == (sample, role)]
        return max(found, key=lambda entry: entry.modified, default=None)

    def document(self, key: str) -> dict[str, Any]:
        """Return the JSON object stored at `key`; empty when it is gone or is none."""
        with disk_errors(self._path(key)), suppress(FileNotFoundError):
            return json_object(self._path(key).read_bytes())
        return {}

    def put(self, path: Path, sample: Sample, *, force: bool, progress: Progress) -> Entry:
        """Store an input in the inbox; Exists when there is one in the spool already and not `force`."""
        target = self._path(sample.input_key)
        if not force and self.entry(sample, "input"):
            raise Exists(f"{sample.name} is in the spool {self._root} already; --force sends it again")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with complete_file(target, replace=force) as fresh, path.open("rb") as source, fresh.open("wb") as out:
                while chunk := source.read(CHUNK):
                    out.write(chunk)
                    progress(out.tell())
                out.flush()
                modified = datetime.fromtimestamp(os.fstat(out.fileno()).st_mtime, UTC)
        except FileExistsError:
            raise Exists(f"{target} is there already; --force replaces it") from None
        except OSError as error:
            raise Refused(f"{error.filename or target}: {error.strerror}") from None
        return Entry(sample.input_key, modified)

    def download(self, sample: Sample, folder: Path) -> Path:
        """Copy the result into `folder`; returns its path there."""
        source = self._path(sample.result_key)
        with disk_errors(folder), complete_file(folder / source.name) as path:
            shutil.copyfile(source, path)
        return folder / source.name


def _walk(folder: Path, closed: list[Path] | None = None) -> Iterator[Path]:
    """Every file below `folder`. OSError for a folder that cannot be read, unless it is put on the list `closed`."""

    def failed(error: OSError) -> None:
        place = Path(error.filename)
        if isinstance(error, FileNotFoundError):  # moved on meanwhile, or never needed
            return
        if closed is None or place == folder or not isinstance(error, PermissionError):
            raise error
        closed.append(place)

    for top, _unused, names in os.walk(folder, onerror=failed):
        yield from (Path(top, name) for name in names)


def _modified(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)
