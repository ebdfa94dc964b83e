#!/usr/bin/python
# SPDX-License-Identifier: MIT
"""Bring PCGR's reference bundle and VEP cache to a machine."""

from __future__ import annotations

DOCUMENTATION = r"""
module: databundle
short_description: Bring PCGR's reference bundle and VEP cache to a machine
version_added: 1.0.0
description:
  - Downloads the archives that a release names, for the wanted assemblies, and unpacks them while they arrive, so that no archive needs room on the disk.
  - Broken connections are resumed. Members that would leave their folder, devices and the like are refused.
  - "What was unpacked is checked (SHA-256, the bundle's version file, the VEP cache's folder) and then put in place by one rename:
    after a cut at any moment each folder is the old one or the new one."
  - "Each installed folder holds a stamp, C(.umccr.pcgr.json), that says what it was made from. The stamp decides whether anything is to do."
author: University of Melbourne Centre for Cancer Research (@umccr)
attributes:
  check_mode: {support: full, description: Can run in check mode and tell what would change.}
  diff_mode: {support: none, description: Shows a difference.}
options:
  root:
    description: Folder that gets C(bundles/<date>/data/<assembly>) and C(vep/<release>/homo_sapiens/<cache>).
    type: path
    required: true
  release:
    description: A release as the lookup P(umccr.pcgr.release#lookup) returns it; C(bundle) and C(vep) are used.
    type: dict
    required: true
  assemblies:
    description: Genome assemblies.
    type: list
    elements: str
    required: true
  mirror_url:
    description: Folder with the archives and C(SHA256SUMS), as C(http://), C(https://) or C(file://). Without it, the release's own addresses.
    type: str
  timeout:
    description: Seconds of silence after which a connection counts as broken.
    type: int
    default: 60
  attempts:
    description: Attempts without a byte of progress before giving up.
    type: int
    default: 6
  space_factor:
    description: Free space asked for, as a multiple of an archive's size, before its download begins.
    type: float
    default: 2.5
"""

EXAMPLES = r"""
- name: Bring the data of PCGR 2.3.2 for GRCh38
  umccr.pcgr.databundle:
    root: /mnt/pcgr
    release: "{{ lookup('umccr.pcgr.release', '2.3.2') }}"
    assemblies: [grch38]
    mirror_url: https://mirror.example.org/pcgr
"""

RETURN = r"""
parts:
  description: One entry per folder, with its path, the archive, its SHA-256 and whether it was brought now.
  type: list
  elements: dict
  returned: always
"""

import ctypes
import fcntl
import io
import json
import os
import posixpath
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.umccr.pcgr.plugins.module_utils.download import (
    BLOCK,
    DownloadError,
    Stream,
    address,
    check,
    mirror_checksums,
)

STAMP = ".umccr.pcgr.json"
STAGING = ".databundle-"
# How Ensembl spells the assemblies in cache folders.
ENSEMBL = {"grch37": "GRCh37", "grch38": "GRCh38"}
AT_FDCWD = -100
RENAME_EXCHANGE = 2  # linux/fs.h


class DatabundleError(Exception):
    """The data cannot be brought; the text is one line."""


@dataclass(frozen=True)
class Part:
    """One folder to have: `member` is its path in the archive, `home` (below root) the folder the archive unpacks into."""

    label: str
    home: str
    member: str
    archive: str
    url: str | None
    sha256: str | None
    # Files or folders that must be there, relative to `home`; with a text, the file must contain it.
    proofs: tuple[tuple[str, str | None], ...]

    def folder(self, root: str) -> str:
        """Final place of the folder."""
        return os.path.join(root, self.home, self.member)


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
    if not entry.get("file"):
        raise DatabundleError(f"release {release['release']}: no archive of the {what} is known for {assembly}")
    return {"archive": entry["file"], "url": entry.get("url"), "sha256": entry.get("sha256")}


def read_stamp(folder: str) -> dict[str, Any]:
    """The stamp in `folder`; empty when there is none that can be read."""
    try:
        with open(os.path.join(folder, STAMP), encoding="utf-8") as handle:
            stamp = json.load(handle)
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def verify(item: Part, base: str) -> str | None:
    """Why the folders of `item` below `base` are not as they should be, or None."""
    for name, text in item.proofs:
        path = os.path.join(base, name)
        if not os.path.exists(path):
            return f"{name} is missing"
        if text is not None:
            with open(path, encoding="utf-8", errors="replace") as handle:
                found = handle.read(65536)
            if text not in found:
                return f"{name} does not contain {text} but {found.strip()[:60]!r}"
    return None


def is_current(item: Part, root: str) -> bool:
    """True when the installed folder was made from the wanted archive and is still there."""
    stamp = read_stamp(item.folder(root))
    same = stamp.get("sha256") == item.sha256.lower() if item.sha256 else stamp.get("archive") == item.archive
    return same and verify(item, os.path.join(root, item.home)) is None


def safe_name(name: str) -> str | None:
    """Normalised relative path of an archive member; None when it would leave the folder."""
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        return None
    return posixpath.normpath(name)


def unpack(reader: io.BufferedReader, wanted: list[str], folder: str, url: str) -> dict[str, Any]:
    """Unpack the members below the `wanted` paths into `folder`; return counts of files and bytes.

    Every member is judged, also those that are not wanted: names must stay inside, only regular files, folders and
    links to places further inside are accepted. Raises DatabundleError.
    """
    count = {"files": 0, "unpacked_bytes": 0}
    with tarfile.open(fileobj=reader, mode="r|*", bufsize=BLOCK) as archive:
        for member in archive:
            name = safe_name(member.name)
            if name is None:
                raise DatabundleError(f"{url}: refused, member {member.name!r} would be unpacked outside its folder")
            if not (member.isreg() or member.isdir() or member.issym()):
                raise DatabundleError(
                    f"{url}: refused, member {member.name!r} is neither a file, a folder nor a symbolic link"
                )
            # A target that goes down only cannot lead outside, whatever links it passes through.
            if member.issym() and safe_name(member.linkname) is None:
                raise DatabundleError(f"{url}: refused, link {member.name!r} leads to {member.linkname!r}")
            if hasattr(tarfile, "data_filter"):
                tarfile.data_filter(member, folder)
            if not any(name == path or name.startswith(path + "/") for path in wanted):
                continue
            extract(archive, member, os.path.join(folder, name))
            if member.isreg():
                count["files"] += 1
                count["unpacked_bytes"] += member.size
    return count


def extract(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
    """Write one member to `path`: own files, no special permissions, the archive's time of change."""
    if member.isdir():
        os.makedirs(path, mode=0o755, exist_ok=True)
        return
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    if member.issym():
        os.symlink(member.linkname, path)
        return
    source = archive.extractfile(member)
    if source is None:
        raise DatabundleError(f"member {member.name!r} has no content")
    mode = 0o755 if member.mode & 0o100 else 0o644
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "wb") as out:
        shutil.copyfileobj(source, out, BLOCK)
    os.utime(path, (member.mtime, member.mtime))


def looks_like_archive(reader: io.BufferedReader, stream: Stream) -> None:
    """Raise DatabundleError when the first bytes are not those of a tar file, compressed or not."""
    head = reader.peek(512)[:512]
    if head[:2] == b"\x1f\x8b" or head[:3] == b"BZh" or head[:6] == b"\xfd7zXZ\0" or head[257:262] == b"ustar":
        return
    what = "a web page" if head.lstrip()[:1] == b"<" else f"something that begins with {head[:16]!r}"
    raise DatabundleError(f"{stream.url}: not a tar archive but {what} (type {stream.type or 'not given'})")


def make_sure_of_space(root: str, stream: Stream, factor: float) -> None:
    """Raise DatabundleError when the disk is too full for what `stream` announces."""
    free = shutil.disk_usage(root).free
    need = int((stream.size or 0) * factor)
    if free < need:
        raise DatabundleError(
            f"{root}: {free / 1e9:.1f} GB free, about {need / 1e9:.1f} GB needed for {stream.url} ({stream.size} bytes)"
        )


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


def install(items: list[Part], root: str, url: str, options: dict[str, Any], space_factor: float) -> None:
    """Bring one archive and the folders `items` in it. Nothing in place changes before all of it has been checked."""
    first = items[0]
    staging = os.path.join(root, f"{STAGING}{first.archive}")
    os.makedirs(staging, mode=0o755)
    try:
        with Stream(url, **options) as stream:
            make_sure_of_space(root, stream, space_factor)
            reader = io.BufferedReader(stream, BLOCK)
            looks_like_archive(reader, stream)
            count = unpack(reader, [item.member for item in items], staging, url)
            while reader.read(BLOCK):  # what follows tar's end mark is part of the checksum
                pass
            check(stream, first.sha256)
            stamp = {
                "archive": first.archive,
                "sha256": stream.sha256(),
                "bytes": stream.received,
                "source": url,
                **count,
            }
        for item in items:
            if fault := verify(item, staging):
                raise DatabundleError(f"{url}: not the data of {item.label}: {fault}")
            with open(os.path.join(staging, item.member, STAMP), "w", encoding="utf-8") as handle:
                json.dump({"part": item.label, **stamp}, handle, indent=1, sort_keys=True)
                handle.write("\n")
        os.sync()  # a rename must not reach the disk before the data
        for item in items:
            put_in_place(os.path.join(staging, item.member), item.folder(root))
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DatabundleError(f"{url}: damaged or cut archive: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def with_checksums(parts: list[Part], mirror_url: str | None, options: dict[str, Any]) -> tuple[list[Part], str | None]:
    """Fill in checksums that the release does not know from the mirror; also returns why that failed, if so."""
    if not mirror_url or all(item.sha256 for item in parts):
        return parts, None
    try:
        sums = mirror_checksums(mirror_url, **options)
    except DownloadError as error:
        return parts, str(error)
    known = [Part(**{**vars(item), "sha256": item.sha256 or sums.get(item.archive)}) for item in parts]
    return known, None


def source(item: Part, mirror_url: str | None) -> str:
    """Where the archive comes from; raises DatabundleError when nowhere is known."""
    if mirror_url:
        return address(mirror_url, item.archive)
    if not item.url:
        raise DatabundleError(
            f"{item.archive} ({item.label}): no public address is known; set pcgr_mirror_url to a folder that has it"
        )
    return item.url


@contextmanager
def alone(root: str) -> Iterator[None]:
    """Hold the lock of `root`; raises DatabundleError when another run has it."""
    lock = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise DatabundleError(f"{root}: another run is bringing data at this moment") from error
    finally:
        os.close(lock)


def bring(module: AnsibleModule) -> None:
    """Do the module's work and leave through `exit_json`."""
    root, mirror = module.params["root"], module.params["mirror_url"]
    options = {"timeout": module.params["timeout"], "attempts": module.params["attempts"]}
    parts, unknown = with_checksums(plan(module.params["release"], module.params["assemblies"]), mirror, options)
    due = [item for item in parts if not is_current(item, root)]
    if unknown:
        if due and not module.check_mode:
            raise DatabundleError(unknown)
        module.warn(f"checksums could not be compared: {unknown}")
    jobs: dict[str, list[Part]] = {}
    for item in due:
        jobs.setdefault(source(item, mirror), []).append(item)
    if due and not module.check_mode:
        os.makedirs(root, mode=0o755, exist_ok=True)
        with alone(root):
            for name in os.listdir(root):  # of a run that was cut
                if name.startswith(STAGING):
                    shutil.rmtree(os.path.join(root, name))
            for url, items in jobs.items():
                install(items, root, url, options, module.params["space_factor"])
    report = [
        {
            "part": item.label,
            "path": item.folder(root),
            "archive": item.archive,
            "sha256": read_stamp(item.folder(root)).get("sha256")
            if not (module.check_mode and item in due)
            else item.sha256,
            "brought": item in due,
        }
        for item in parts
    ]
    module.exit_json(changed=bool(due), parts=report)


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "release": {"type": "dict", "required": True},
            "assemblies": {"type": "list", "elements": "str", "required": True},
            "mirror_url": {"type": "str"},
            "timeout": {"type": "int", "default": 60},
            "attempts": {"type": "int", "default": 6},
            "space_factor": {"type": "float", "default": 2.5},
        },
        supports_check_mode=True,
    )
    try:
        bring(module)
    except (DatabundleError, DownloadError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or module.params['root']}: {error.strerror or error}")


if __name__ == "__main__":
    main()
