#!/usr/bin/python
# SPDX-License-Identifier: MIT
"""Bring PCGR's reference bundle and VEP cache to a machine."""

from __future__ import annotations

DOCUMENTATION = r"""
module: databundle
short_description: Bring PCGR's reference bundle and VEP cache to a machine
version_added: 1.0.0
description:
  - Downloads the archives that a release names, for the wanted assemblies, by several connections at once, and unpacks them while they arrive,
    so that no archive needs room on the disk.
  - Broken connections are resumed. A run that was cut, even by a reboot, is taken up by the next run where it was.
  - Members that would leave their folder, devices and the like are refused.
  - "What was unpacked is checked (SHA-256, number and size of the files, the bundle's version file, the VEP cache's folder) and then put in place by one rename:
    after a cut at any moment each folder is the old one or the new one."
  - "Each installed folder holds a stamp, C(.umccr.pcgr.json), that says what it was made from. The stamp decides whether anything is to do."
requirements:
  - python3-requests (for http and https)
  - libisal2
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
  checksums:
    description: File in which the checksums of archives are kept that nobody has published; a later archive of the same name must have the same one.
    type: path
    default: /var/lib/pcgr/checksums.json
  connections:
    description: Connections by which one archive is fetched at once.
    type: int
    default: 6
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

import base64
import ctypes
import fcntl
import hashlib
import json
import mmap
import multiprocessing
import os
import posixpath
import shutil
import stat
import tarfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.umccr.pcgr.plugins.module_utils.download import (
    BLOCK,
    Download,
    DownloadError,
    Interrupted,
    address,
    check,
    mirror_checksums,
)
from ansible_collections.umccr.pcgr.plugins.module_utils.gunzip import Gunzip, GzipError, Sha256

STAMP = ".umccr.pcgr.json"
STAGING = ".databundle-"
LATEST, SYNCED = ".checkpoint.json", ".checkpoint-on-disk.json"
CHECKPOINTS = 250  # in an archive: a cut costs at most 0.4 % of it, and what was read ahead
LEAST_BETWEEN = 2 << 20  # compressed bytes; a checkpoint is 0.2 MB
PROGRESS = ".databundle.progress"
TELL_SECONDS = 1.0  # between two reports of the progress
SYNC_SECONDS = 10.0  # between checkpoints that outlive a cut of the machine
SLOTS = 4  # blocks of 1 MiB that are ready to be decompressed
FORK = multiprocessing.get_context("fork")  # the other ways cannot find a module that Ansible has packed
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


def fetch(download: Download, start: int, state: bytes | None, slots: mmap.mmap, pipe: Connection) -> None:
    """Fetch and hash what comes from byte `start` on, in a process of its own, where this does not hold up the unpacking.

    Blocks go into `slots` in turn. For each, `pipe` gets its length and the state of the hash before it; then the whole
    SHA-256, or the error that ended it all. It gives back a message for each block that is used up.
    """
    sha256 = Sha256(state)
    try:
        for number, block in enumerate(download.blocks(start)):
            before = sha256.state
            sha256.update(block)
            if number >= SLOTS:
                pipe.recv_bytes()
            place = number % SLOTS * BLOCK
            slots[place : place + len(block)] = block
            pipe.send((len(block), before))
        pipe.send(sha256.hexdigest())
    except DownloadError as error:
        pipe.send(error)
    except (EOFError, ConnectionError):  # nobody wants it any more
        pass


class Arrival:
    """What an archive holds, decompressed while it arrives, and hashed in the same pass.

    `point` is a checkpoint made by `state()` earlier, perhaps by a process that is no more.
    """

    def __init__(self, download: Download, point: dict[str, Any]) -> None:
        stream = point.get("stream")
        self.download = download
        self._offset = stream["consumed"] if stream else 0
        self._current: tuple[int, memoryview, bytes] = (0, memoryview(b""), Sha256().state)
        self._sha256 = ""
        self._slots = mmap.mmap(-1, SLOTS * BLOCK)
        self._pipe, other = FORK.Pipe()
        state = base64.b64decode(point["sha256"]) if stream else None
        work = (download, self._offset, state, self._slots, other)
        self._fetcher = FORK.Process(target=self._fetch, args=(self._pipe, work), daemon=True)
        self._fetcher.start()
        other.close()
        self.stream = Gunzip(self._blocks(), stream)

    @staticmethod
    def _fetch(ours: Connection, work: tuple[Any, ...]) -> None:
        ours.close()  # else the end of the other process would not show
        fetch(*work)

    def _blocks(self) -> Iterator[memoryview]:
        number = 0
        with memoryview(self._slots) as slots:
            while True:
                try:
                    told = self._pipe.recv()
                except EOFError:
                    raise Interrupted(f"{self.download.url}: the process that fetches it was ended") from None
                if isinstance(told, DownloadError):
                    raise told
                if isinstance(told, str):
                    self._sha256 = told
                    return
                length, before = told
                place = number % SLOTS * BLOCK
                block = slots[place : place + length]
                self._current = (self._offset, block, before)
                self._offset += length
                number += 1
                yield block
                with suppress(BrokenPipeError):  # it has sent everything and is gone
                    self._pipe.send_bytes(b"")

    def state(self) -> dict[str, Any]:
        """A checkpoint of this moment."""
        start, block, before = self._current
        sha256 = Sha256(before)
        sha256.update(block[: self.stream.consumed - start])
        return {"stream": self.stream.state(), "sha256": base64.b64encode(sha256.state).decode()}

    def finish(self) -> str:
        """Read on to the end, whatever follows the tar file's own end; return the archive's SHA-256."""
        while self.stream.read(BLOCK):
            pass
        return self._sha256

    def close(self) -> None:
        """End the process that fetches."""
        self._fetcher.kill()
        self._fetcher.join()
        self._pipe.close()


class Checkpoints:
    """Where the unpacking of an archive into `folder` can go on after a cut.

    Two files: one for a cut of the process, whose files the system has in memory; and one, written less often and only after
    all data has reached the disk, for a cut of the machine. Which of them counts is told by the system's boot id.
    """

    def __init__(self, folder: str, download: Download) -> None:
        self.folder = folder
        self.identity = {"url": download.url, "size": download.size, "tag": download.tag}
        self.interval = max(LEAST_BETWEEN, (download.size or 0) // CHECKPOINTS)
        self._syncer = ThreadPoolExecutor(1)
        self._syncing: Future[None] | None = None
        self._synced_at = time.monotonic()

    def read(self) -> dict[str, Any]:
        """The checkpoint to go on from; empty when there is none, or when the file at the address is another by now."""
        for name in (LATEST, SYNCED):
            try:
                with open(os.path.join(self.folder, name), encoding="utf-8") as handle:
                    point = json.load(handle)
            except (OSError, ValueError):
                continue
            if point.get("identity") != self.identity or not self.identity["tag"]:
                continue
            if name == SYNCED or point["boot"] == boot_id():
                return dict(point)
        return {}

    def write(self, point: dict[str, Any]) -> None:
        """Keep a checkpoint; from time to time have it follow the data to the disk, beside the work."""
        text = json.dumps({"identity": self.identity, "boot": boot_id(), **point})
        self._replace(LATEST, text)
        if self._syncing and self._syncing.done():
            self._syncing.result()
        if time.monotonic() - self._synced_at > SYNC_SECONDS and (not self._syncing or self._syncing.done()):
            self._synced_at = time.monotonic()
            self._syncing = self._syncer.submit(self._sync, text)

    def finish(self) -> None:
        """Wait for what is on its way to the disk."""
        self._syncer.shutdown()

    def _sync(self, text: str) -> None:
        sync(self.folder)
        self._replace(SYNCED, text)
        sync(self.folder)

    def _replace(self, name: str, text: str) -> None:
        path = os.path.join(self.folder, name)
        with open(path + ".new", "w", encoding="utf-8") as out:
            out.write(text)
        os.replace(path + ".new", path)


def sync(folder: str) -> None:
    """Have everything of the folder's file system on the disk."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if libc.syncfs(handle) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), folder)
    finally:
        os.close(handle)


def boot_id() -> str:
    """Changes with each start of the system."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as handle:
        return handle.read().strip()


class Unpacker:
    """Writes the folders of `items` from an archive into the staging folder; `count` counts files and bytes."""

    def __init__(self, arrival: Arrival, items: list[Part], checkpoints: Checkpoints) -> None:
        self.arrival = arrival
        self.part = items[0].label
        self.stream = arrival.stream
        self.wanted = [item.member for item in items]
        self.checkpoints = checkpoints
        self.folder = checkpoints.folder
        self.url = arrival.download.url
        self.count = {"files": 0, "unpacked_bytes": 0}
        self._next = 0  # where in the tar file the next member begins
        self._saved_at = self._begun_at = self.stream.consumed
        self._told_at = self._started = time.monotonic()
        self._buffer = memoryview(bytearray(BLOCK))

    def run(self, point: dict[str, Any]) -> None:
        """Unpack all, from the checkpoint `point` on when it is not empty.

        Every member is judged, also those that are not wanted: names must stay inside, only regular files, folders and
        links to places further inside are accepted. Raises DatabundleError.
        """
        if point:
            self.count, self._next = point["count"], point["next"]
            if point["member"]:
                self._write(**point["member"])
            self.stream.seek(self._next)
        with tarfile.TarFile(fileobj=self.stream) as archive:
            while member := archive.next():
                archive.members = []  # nobody asks for them again
                self._next = archive.offset
                name = self._judge(member)
                if any(name == path or name.startswith(path + "/") for path in self.wanted):
                    self._extract(member, os.path.join(self.folder, name))
                self._save(None)

    def _judge(self, member: tarfile.TarInfo) -> str:
        """The member's path inside the folder; raises DatabundleError."""
        name = safe_name(member.name)
        if name is None:
            raise DatabundleError(f"{self.url}: refused, member {member.name!r} would be unpacked outside its folder")
        if not (member.isreg() or member.isdir() or member.issym()):
            raise DatabundleError(
                f"{self.url}: refused, member {member.name!r} is neither a file, a folder nor a symbolic link"
            )
        # A target that goes down only cannot lead outside, whatever links it passes through.
        if member.issym() and safe_name(member.linkname) is None:
            raise DatabundleError(f"{self.url}: refused, link {member.name!r} leads to {member.linkname!r}")
        return name

    def _extract(self, member: tarfile.TarInfo, path: str) -> None:
        """Write one member to `path`: own files, no special permissions, the archive's time of change."""
        if member.isdir():
            os.makedirs(path, mode=0o755, exist_ok=True)
            return
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        if os.path.lexists(path):  # written after the checkpoint that this run goes on from
            os.unlink(path)
        if member.issym():
            os.symlink(member.linkname, path)
            return
        mode = 0o755 if member.mode & 0o100 else 0o644
        self._write(path=path, size=member.size, done=0, mode=mode, changed=int(member.mtime))

    def _write(self, path: str, size: int, done: int, mode: int, changed: int) -> None:
        """Write what is left of a file of which `done` bytes are there."""
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, mode)
        try:
            if done:  # ext4 writes a file out at once, when it is closed, that was ever cut to nothing
                os.ftruncate(file, done)
                os.lseek(file, done, os.SEEK_SET)
            while done < size:
                got = self.stream.readinto(self._buffer[: min(BLOCK, size - done)])
                if not got:
                    raise GzipError("cut off: it ends in the midst of a file")
                part = self._buffer[:got]
                while part:
                    part = part[os.write(file, part) :]
                done += got
                self._save({"path": path, "size": size, "done": done, "mode": mode, "changed": changed})
            os.utime(file, (changed, changed))
        finally:
            os.close(file)
        self.count["files"] += 1
        self.count["unpacked_bytes"] += size

    def _save(self, member: dict[str, Any] | None) -> None:
        if time.monotonic() > self._told_at + TELL_SECONDS:
            self._told_at = time.monotonic()
            self._tell()
        if self.stream.consumed - self._saved_at < self.checkpoints.interval:
            return
        self._saved_at = self.stream.consumed
        self.checkpoints.write({**self.arrival.state(), "next": self._next, "member": member, "count": self.count})

    def _tell(self) -> None:
        """Write how far it is (bytes of the archive), for who looks after a long run."""
        about = {"part": self.part, "done": self.stream.consumed, "size": self.arrival.download.size}
        about |= {"fetched": self.stream.consumed - self._begun_at, "seconds": time.monotonic() - self._started}
        path = os.path.join(os.path.dirname(self.folder), PROGRESS)
        with open(path + ".new", "w", encoding="utf-8") as out:
            json.dump(about, out)
        os.replace(path + ".new", path)


def make_sure_of_space(root: str, download: Download, factor: float) -> None:
    """Raise DatabundleError when the disk is too full for what the server announces."""
    free = shutil.disk_usage(root).free
    need = int((download.size or 0) * factor)
    if free < need:
        raise DatabundleError(
            f"{root}: {free / 1e9:.1f} GB free, about {need / 1e9:.1f} GB needed for {download.url} ({download.size} bytes)"
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


def staging_of(root: str, url: str, items: list[Part]) -> str:
    """Folder in which an archive is unpacked; the same for the same work, so that a later run finds it."""
    work = json.dumps([url, sorted(item.member for item in items)])
    return os.path.join(root, STAGING + hashlib.sha256(work.encode()).hexdigest()[:12])


def install(items: list[Part], root: str, url: str, options: dict[str, Any]) -> None:
    """Bring the archive at `url` and put the folders of `items` in place. Raises DatabundleError and DownloadError.

    What a broken connection or a cut leaves is where the next run goes on; after any other fault it is removed.
    """
    staging = staging_of(root, url, items)
    download = Download(url, **options["download"])
    try:
        stamp = unpack(items, staging, download, options)
        for item in items:
            with open(os.path.join(staging, item.member, STAMP), "w", encoding="utf-8") as handle:
                json.dump({"part": item.label, **stamp}, handle, indent=1, sort_keys=True)
                handle.write("\n")
        sync(staging)  # a rename must not reach the disk before the data
        for item in items:
            put_in_place(os.path.join(staging, item.member), item.folder(root))
    except Interrupted as error:
        raise DownloadError(f"{error}; the next run goes on from there") from error
    except (tarfile.TarError, GzipError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        what = looks_like(url, options["download"])
        raise DatabundleError(f"{url}: {what or f'damaged or cut archive: {error}'}") from error
    except Exception:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(staging)


def unpack(items: list[Part], staging: str, download: Download, options: dict[str, Any]) -> dict[str, Any]:
    """Unpack the archive into `staging`, check what came, and return what the stamp is to say."""
    first, url = items[0], download.url
    checkpoints = Checkpoints(staging, download)
    point = checkpoints.read()
    if not point:
        shutil.rmtree(staging, ignore_errors=True)
        make_sure_of_space(os.path.dirname(staging), download, options["space_factor"])
        os.mkdir(staging, 0o755)
    arrival = Arrival(download, point)
    unpacker = Unpacker(arrival, items, checkpoints)
    try:
        unpacker.run(point)
        sha256 = arrival.finish()
    finally:
        arrival.close()
        checkpoints.finish()
    if first.sha256:
        check(url, sha256, download.size, first.sha256)
    else:
        compare_with_first(options["checksums"], first.archive, sha256)
    for item in items:
        if fault := verify(item, staging):
            raise DatabundleError(f"{url}: not the data of {item.label}: {fault}")
    compare(unpacker.count, items, staging, url)
    stamp = {"archive": first.archive, "sha256": sha256, "bytes": arrival.stream.consumed, "source": url}
    return stamp | unpacker.count


def compare(count: dict[str, int], items: list[Part], staging: str, url: str) -> None:
    """Raise DatabundleError when on the disk are not as many files and bytes as came out of the archive."""
    found = {"files": 0, "unpacked_bytes": 0}
    for item in items:
        for folder, _folders, files in os.walk(os.path.join(staging, item.member)):
            for name in files:
                about = os.lstat(os.path.join(folder, name))
                if stat.S_ISREG(about.st_mode):
                    found["files"] += 1
                    found["unpacked_bytes"] += about.st_size
    if found != count:
        raise DatabundleError(f"{url}: unpacked {count}, but on the disk are {found}; nothing was put in place")


def looks_like(url: str, options: dict[str, Any]) -> str | None:
    """What is at `url` if it is not a gzip file."""
    download = Download(url, **options)
    head = bytes(next(download.blocks(), b""))[:512]
    if head[:2] == b"\x1f\x8b":
        return None
    what = "a web page" if head.lstrip()[:1] == b"<" else f"something that begins with {head[:16]!r}"
    return f"not a gzipped tar archive but {what} (type {download.type or 'not given'})"


def compare_with_first(path: str, archive: str, sha256: str) -> None:
    """Of an archive whose checksum nobody published, remember that of the first time; raise DatabundleError when it is another now.

    The file at `path` is none of the data, so that it outlives them.
    """
    try:
        with open(path, encoding="utf-8") as handle:
            sums = dict(json.load(handle))
    except FileNotFoundError:
        sums = {}
    except (ValueError, TypeError) as error:
        raise DatabundleError(f"{path}: not a list of checksums: {error}") from error
    before = sums.setdefault(archive, sha256)
    if before != sha256:
        raise DatabundleError(
            f"{archive}: sha256 is {sha256}, but was {before} when it was fetched first;"
            f" if the change is meant, remove its line from {path}"
        )
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with open(path + ".new", "w", encoding="utf-8") as out:
        json.dump(sums, out, indent=1, sort_keys=True)
        out.write("\n")
    os.replace(path + ".new", path)


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
    params = module.params
    root, mirror = params["root"], params["mirror_url"]
    download = {"timeout": params["timeout"], "attempts": params["attempts"]}
    parts, unknown = with_checksums(plan(params["release"], params["assemblies"]), mirror, download)
    due = [item for item in parts if not is_current(item, root)]
    if unknown:
        if due and not module.check_mode:
            raise DatabundleError(unknown)
        module.warn(f"checksums could not be compared: {unknown}")
    jobs: dict[str, list[Part]] = {}
    for item in due:
        jobs.setdefault(source(item, mirror), []).append(item)
    if due and not module.check_mode:
        options = {
            "download": download | {"connections": params["connections"]},
            "space_factor": params["space_factor"],
            "checksums": params["checksums"],
        }
        os.makedirs(root, mode=0o755, exist_ok=True)
        with alone(root):
            wanted = {staging_of(root, url, items) for url, items in jobs.items()}
            for name in os.listdir(root):
                path = os.path.join(root, name)
                if name.startswith(STAGING) and path not in wanted:  # of work that was cut and is no longer wanted
                    shutil.rmtree(path)
            try:
                for url, items in jobs.items():
                    install(items, root, url, options)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(root, PROGRESS))
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
            "checksums": {"type": "path", "default": "/var/lib/pcgr/checksums.json"},
            "connections": {"type": "int", "default": 6},
            "timeout": {"type": "int", "default": 60},
            "attempts": {"type": "int", "default": 6},
            "space_factor": {"type": "float", "default": 2.5},
        },
        supports_check_mode=True,
    )
    try:
        bring(module)
    except (DatabundleError, DownloadError, GzipError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or module.params['root']}: {error.strerror or error}")


if __name__ == "__main__":
    main()
