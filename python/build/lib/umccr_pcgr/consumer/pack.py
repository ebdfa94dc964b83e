"""The result tarball: one folder with the tool's files, its log and their provenance."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from umccr_pcgr.samples.documents import as_json

GZIP_LEVEL = 4  # most of the tool's files are packed already; higher levels cost minutes for a percent


def pack(
    target: Path, name: str, outputs: Path, log: Path, *, provenance: Mapping[str, Any], modified: datetime
) -> None:
    """Write `target` (.tar.gz): ``name/provenance.json`` first, then ``name/pcgr.log`` and the files of `outputs` by name.

    The same inputs give the same bytes: sorted, without owner, dated `modified`. Only regular files are taken.
    """
    with (
        target.open("xb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=GZIP_LEVEL, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        seconds = int(modified.timestamp())
        content = as_json(provenance)
        _add(archive, f"{name}/provenance.json", len(content), seconds, io.BytesIO(content))
        for path, inside in [(log, "pcgr.log"), *_files(outputs)]:
            with path.open("rb") as file:
                _add(archive, f"{name}/{inside}", path.stat().st_size, seconds, file)


def _files(outputs: Path) -> Iterator[tuple[Path, str]]:
    found = []
    for folder, _unused, names in os.walk(outputs):
        for name in names:
            path = Path(folder, name)
            if stat.S_ISREG(path.lstat().st_mode):
                found.append((path, path.relative_to(outputs).as_posix()))
    return iter(sorted(found, key=lambda entry: entry[1]))


def _add(archive: tarfile.TarFile, name: str, size: int, modified: int, file: io.BufferedIOBase | Any) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, modified, 0o644
    archive.addfile(member, file)
