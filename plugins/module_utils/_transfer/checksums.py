# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Resolve the checksums of files: those that a release knows, those of a mirror, those trusted on first use."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.umccr.pcgr.plugins.module_utils._state import write_json
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.download import Download, DownloadError, address

SUMS = "SHA256SUMS"  # the mirror's list of checksums, as sha256sum writes it


class NoChecksumError(DownloadError):
    """Nobody knows the checksum of a file that must have one; `name` is the file, the text one line."""

    def __init__(self, name: str, where: str) -> None:
        super().__init__(f"{where}: no line for {name}")
        self.name, self.where = name, where


def mirror_checksums(base: str, **options: Any) -> dict[str, str]:
    """Return the SHA-256 by file name from `SHA256SUMS` of the mirror at `base`; raises DownloadError."""
    url = address(base, SUMS)
    text = b"".join(map(bytes, Download(url, **options).blocks())).decode("utf-8", "replace")
    sums = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(\S.*)", line)
        if match:
            sums[match[2]] = match[1].lower()
    if not sums:
        raise DownloadError(f"{url}: holds no line as sha256sum writes them")
    return sums


def resolve_checksums(
    known: Mapping[str, str | None], mirror_url: str | None, *, required: bool = False, **options: Any
) -> dict[str, str | None]:
    """Return the SHA-256 by file name: the `known` ones, and for the others (None) those of the mirror.

    The mirror is asked only when a checksum is missing; `options` are those of its download. Raises DownloadError, and, when
    they are `required`, NoChecksumError for the first name that has none.
    """
    resolved = dict(known)
    if mirror_url and not all(resolved.values()):
        sums = mirror_checksums(mirror_url, **options)
        resolved = {name: sha256 or sums.get(name) for name, sha256 in resolved.items()}
    for name, sha256 in resolved.items():
        if required and not sha256:
            raise NoChecksumError(name, address(mirror_url, SUMS) if mirror_url else "pcgr_mirror_url is not set")
    return resolved


def trust_on_first_use(path: str, name: str, sha256: str, *, remember: bool = True) -> None:
    """Remember the first checksum of something whose checksum nobody publishes; raise DownloadError if it has changed.

    The file at `path` is kept apart from what it is about, so that it outlives it.
    """
    try:
        with open(path, encoding="utf-8") as handle:
            sums = dict(json.load(handle))
    except FileNotFoundError:
        sums = {}
    except (ValueError, TypeError) as error:
        raise DownloadError(f"{path}: not a list of checksums: {error}") from error
    before = sums.setdefault(name, sha256)
    if before != sha256:
        raise DownloadError(
            f"{name}: sha256 is {sha256}, but was {before} when it was fetched first;"
            f" if the change is meant, remove its line from {path}"
        )
    if remember:
        write_json(path, sums)
