# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which folders of reference data a release needs, where they are, and whether they are as they should be."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ansible_collections.umccr.pcgr.plugins.module_utils._state import STAMP, read_json

STAGING = ".databundle-"
AT_FDCWD = -100
RENAME_EXCHANGE = 2  # linux/fs.h
# How Ensembl spells the assemblies in cache folders.
ENSEMBL = {"grch37": "GRCh37", "grch38": "GRCh38"}


class DatabundleError(Exception):
    """The data cannot be installed; the text is one line."""


@dataclass(frozen=True)
class Part:
    """One folder of reference data: `member` is its path in the archive, `home` (below root) the folder the archive unpacks into."""

    label: str
    home: str
    member: str
    archive: str
    url: str | None
    bytes: int | None
    sha256: str | None
    # Files or folders that must be there, relative to `home`; with a text, the file must contain it.
    proofs: tuple[tuple[str, str | None], ...]

    def folder(self, root: str) -> str:
        """Final place of the folder."""
        return os.path.join(root, self.home, self.member)

    def stamp(self, root: str) -> str:
        """The file in it that says what it was made from."""
        return os.path.join(self.folder(root), STAMP)


def plan(release: dict[str, Any], assemblies: Iterable[str]) -> list[Part]:
    """The folders that `release` needs for `assemblies`; raises DatabundleError."""
    parts = []
    bundle, vep = release["bundle"], release["vep"]
    for assembly in assemblies:
        if assembly not in release["assemblies"] or assembly not in ENSEMBL:
            allowed = ", ".join(release["assemblies"])
            raise DatabundleError(
                f"assembly {assembly} is not part of release {release['release']}; allowed: {allowed}"
            )
        proofs: list[tuple[str, str | None]] = [
            (bundle["version_file"].format(assembly=assembly), bundle["version_text"])
        ]
        if vep["location"] == "in_bundle":
            proofs.append((f"data/{assembly}/.vep/homo_sapiens", None))
        parts.append(
            Part(
                label=f"bundle {bundle['date']} {assembly}",
                home=f"bundles/{bundle['date']}",
                member=f"data/{assembly}",
                proofs=tuple(proofs),
                **archive_of(release, bundle["archives"], assembly, "bundle"),
            )
        )
        if vep["location"] == "separate":
            member = f"homo_sapiens/{vep['release']}_{ENSEMBL[assembly]}"
            parts.append(
                Part(
                    label=f"VEP cache {vep['release']} {assembly}",
                    home=f"vep/{vep['release']}",
                    member=member,
                    proofs=((member, None),),
                    **archive_of(release, vep["archives"], assembly, "VEP cache"),
                )
            )
    return parts


def archive_of(release: dict[str, Any], archives: dict[str, Any], assembly: str, what: str) -> dict[str, Any]:
    """File name, address and checksum of an assembly's archive; raises DatabundleError when the release names none."""
    entry = archives.get(assembly) or {}
    drive = entry.get("gdrive_id")
    name = entry.get("file") or (
        f"{drive}.tgz" if drive else None
    )  # what it is called in the Drive is not known of all
    if not name:
        raise DatabundleError(f"release {release['release']}: no archive of the {what} is known for {assembly}")
    url = entry.get("url") or (f"gdrive:{drive}" if drive else None)
    return {"archive": name, "url": url, "bytes": entry.get("bytes"), "sha256": entry.get("sha256")}


def verify(item: Part, base: str) -> str | None:
    """Why the folders of `item` below `base` are not as they should be, or None."""
    for name, text in item.proofs:
        path = os.path.join(base, name)
        if not os.path.exists(path):
            return f"{name} is missing"
        if os.path.isdir(path) and not set(os.listdir(path)) - {STAMP}:
            return f"{name} is empty"
        if text is not None:
            with open(path, encoding="utf-8", errors="replace") as handle:
                found = handle.read(65536)
            if text not in found:
                return f"{name} does not contain {text} but {found.strip()[:60]!r}"
    return None


def is_current(item: Part, root: str) -> bool:
    """True when the installed folder was made from the wanted archive and is still there."""
    stamp = read_json(item.stamp(root))
    # A folder that was copied from a seed has no archive whose checksum is known.
    same = stamp.get("archive") == item.archive
    if item.sha256 and not stamp.get("seed"):
        same = stamp.get("sha256") == item.sha256.lower()
    return same and verify(item, os.path.join(root, item.home)) is None


def measure(folder: str) -> dict[str, int]:
    """Number and bytes of the regular files below `folder`, its stamp aside."""
    found = {"files": 0, "unpacked_bytes": 0}
    for path, _folders, files in os.walk(folder):
        for name in files:
            about = os.lstat(os.path.join(path, name))
            if stat.S_ISREG(about.st_mode) and (path, name) != (folder, STAMP):
                found["files"] += 1
                found["unpacked_bytes"] += about.st_size
    return found


def is_read_only(path: str) -> bool:
    """True when the file system at `path` is mounted read-only."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def wrong_modes(item: Part, root: str) -> Iterator[tuple[str, int, int]]:
    """Files and folders of an installed part, and folders above it, with a wrong mode: path, mode, and what it should be.

    All users read the data and only their owner writes them. A folder comes before what it holds is looked at.
    """
    loose = 0 if is_read_only(item.folder(root)) else 0o022
    above = root
    for name in ("", *os.path.join(item.home, os.path.dirname(item.member)).split("/")):
        above = os.path.join(above, name) if name else above
        yield from _wrong_mode(above, os.stat(above).st_mode, loose)
    yield from _wrong_modes_below(os.path.realpath(item.folder(root)), loose)


def _wrong_modes_below(path: str, loose: int) -> Iterator[tuple[str, int, int]]:
    mode = os.lstat(path).st_mode
    yield from _wrong_mode(path, mode, loose)
    if stat.S_ISDIR(mode):
        with os.scandir(path) as entries:
            for entry in entries:
                yield from _wrong_modes_below(entry.path, loose)


def _wrong_mode(path: str, mode: int, loose: int) -> Iterator[tuple[str, int, int]]:
    found = stat.S_IMODE(mode)
    right = (found & ~loose) | (0o555 if stat.S_ISDIR(mode) or found & 0o100 else 0o444)
    if found != right and (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        yield path, found, right


def correct_modes(item: Part, root: str, warn: Callable[[str], None]) -> int:
    """Correct the wrong modes of an installed part; return how many there were.

    What cannot be changed and others can read is given to `warn`; raises DatabundleError when they cannot read it.
    """
    corrected, stuck = 0, []
    for path, found, right in wrong_modes(item, root):
        try:
            os.chmod(path, right)
            corrected += 1
        except OSError as error:
            text = f"{path}: mode: found {found:04o}, allowed {right:04o}, which cannot be set: {error.strerror}"
            if right & ~found:
                raise DatabundleError(text) from error
            stuck.append(text)
    if stuck:
        warn(stuck[0] if len(stuck) == 1 else f"{stuck[0]}; so are {len(stuck) - 1} more")
    return corrected


def compare(found: dict[str, int], count: dict[str, int], source: str) -> None:
    """Raise DatabundleError if the disk does not hold as many files and bytes as the source delivered."""
    if found != count:
        raise DatabundleError(f"{source}: unpacked {count}, but on the disk are {found}; nothing was put in place")


def staging_of(root: str, url: str, items: list[Part]) -> str:
    """Folder in which an archive is unpacked; the same for the same work, so that a later run finds it."""
    work = json.dumps([url, sorted(item.member for item in items)])
    return os.path.join(root, STAGING + hashlib.sha256(work.encode()).hexdigest()[:12])


def put_in_place(new: str, final: str) -> None:
    """Make folder `new` the folder `final` in one step; what was there before is then at `new`."""
    os.makedirs(os.path.dirname(final), mode=0o755, exist_ok=True)
    if not os.path.lexists(final):
        os.rename(new, final)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(final), RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), final)
