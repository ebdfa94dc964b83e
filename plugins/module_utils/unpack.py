# SPDX-License-Identifier: MIT
"""Unpack a gzipped tar file while it arrives, so that a cut at any moment, of the process or the machine, costs little."""

from __future__ import annotations

import base64
import ctypes
import json
import mmap
import multiprocessing
import os
import posixpath
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from ansible_collections.umccr.pcgr.plugins.module_utils.download import BLOCK, Download, DownloadError, Interrupted
from ansible_collections.umccr.pcgr.plugins.module_utils.gunzip import Gunzip, GzipError, Sha256

LATEST, SYNCED = ".checkpoint.json", ".checkpoint-on-disk.json"
CHECKPOINTS = 250  # in an archive: a cut costs at most 0.4 % of it, and what was read ahead
LEAST_BETWEEN = 2 << 20  # compressed bytes; a checkpoint is 0.2 MB
PROGRESS = ".databundle.progress"
TELL_SECONDS = 1.0  # between two reports of the progress
SYNC_SECONDS = 10.0  # between checkpoints that outlive a cut of the machine
SLOTS = 4  # blocks of 1 MiB that are ready to be decompressed
FORK = multiprocessing.get_context("fork")  # the other ways cannot find a module that Ansible has packed


class UnpackError(Exception):
    """The archive holds what must not be unpacked; the text is one line."""


def safe_name(name: str) -> str | None:
    """Normalised relative path of an archive member; None when it would leave the folder."""
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        return None
    return posixpath.normpath(name)


def fetch(download: Download, start: int, state: bytes, slots: mmap.mmap, pipe: Connection) -> None:
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
        self._sha256 = ""
        self._slots = mmap.mmap(-1, SLOTS * BLOCK)
        self._pipe, other = FORK.Pipe()
        state = base64.b64decode(point["sha256"]) if stream else Sha256().state
        self._current = (self._offset, memoryview(b""), state)
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
                except (EOFError, ConnectionError):
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
                with suppress(ConnectionError):  # it has sent everything and is gone
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
        replace(os.path.join(self.folder, LATEST), text)
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
        replace(os.path.join(self.folder, SYNCED), text)
        sync(self.folder)


def replace(path: str, text: str) -> None:
    """Make the file at `path` hold `text`; nobody sees half of it."""
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
    """Writes the members below the `wanted` paths into the folder of `checkpoints`; `count` counts files and bytes."""

    def __init__(self, arrival: Arrival, label: str, wanted: list[str], checkpoints: Checkpoints) -> None:
        self.arrival = arrival
        self.label = label
        self.stream = arrival.stream
        self.wanted = wanted
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
        links to places further inside are accepted. Raises UnpackError.
        """
        if point:
            self.count, self._next = point["count"], point["next"]
            if point["member"]:
                self._write(**point["member"])
            self.stream.seek(self._next)
        with tarfile.TarFile(fileobj=self.stream) as archive:
            while member := archive.next():
                archive.members = []  # type: ignore[attr-defined]  # nobody asks for them again
                self._next = archive.offset
                name = self._judge(member)
                if any(name == path or name.startswith(path + "/") for path in self.wanted):
                    self._extract(member, os.path.join(self.folder, name))
                self._save(None)

    def _judge(self, member: tarfile.TarInfo) -> str:
        """The member's path inside the folder; raises UnpackError."""
        name = safe_name(member.name)
        if name is None:
            raise UnpackError(f"{self.url}: refused, member {member.name!r} would be unpacked outside its folder")
        if not (member.isreg() or member.isdir() or member.issym()):
            raise UnpackError(
                f"{self.url}: refused, member {member.name!r} is neither a file, a folder nor a symbolic link"
            )
        # A target that goes down only cannot lead outside, whatever links it passes through.
        if member.issym() and safe_name(member.linkname) is None:
            raise UnpackError(f"{self.url}: refused, link {member.name!r} leads to {member.linkname!r}")
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
        about = {"part": self.label, "done": self.stream.consumed, "size": self.arrival.download.size}
        about |= {"fetched": self.stream.consumed - self._begun_at, "seconds": time.monotonic() - self._started}
        replace(os.path.join(os.path.dirname(self.folder), PROGRESS), json.dumps(about))
