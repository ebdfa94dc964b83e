# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unpack a gzipped tar file during its transfer, so that an interruption of the process or the host costs little at any moment."""

from __future__ import annotations

import ctypes
import itertools
import json
import mmap
import multiprocessing
import os
import posixpath
import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from ansible_collections.umccr.pcgr.plugins.module_utils._progress import Progress
from ansible_collections.umccr.pcgr.plugins.module_utils._state import write_file
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.download import (
    BLOCK,
    Download,
    DownloadError,
    Interrupted,
)
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.gunzip import Gunzip, GzipError, Sha256
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.tar_reader import (
    FOLDER,
    HARDLINK,
    SYMLINK,
    Member,
    TarReader,
)

LATEST, SYNCED = (".checkpoint-0", ".checkpoint-1"), ".checkpoint-on-disk"
HEAD = struct.Struct("<II")  # of a checkpoint: CRC-32 and length of what follows
CHECKPOINTS = 500  # in an archive: an interruption costs at most 0.2 % of it, and what was read ahead
LEAST_BETWEEN = 2 << 20  # compressed bytes; a checkpoint is 0.1 MB
FORMAT = 2  # of checkpoints; the first lacked the tar reader's state, and what was behind it was read less strictly
# Between checkpoints that survive an interruption of the host; so little is left to wait for at the end.
SYNC_SECONDS = 1.0
OTHERS = 8  # folders named when an archive does not hold what is wanted
SLOTS = 3  # blocks of 1 MiB that are ready to be written
SLOT_BYTES = BLOCK + Gunzip.STATE_BYTES + Sha256.STATE_BYTES  # decompressed bytes, and the states behind them
FORK = multiprocessing.get_context("fork")  # the other ways cannot find a module that Ansible has packed


def safe_name(name: str) -> str | None:
    """Normalised relative path of an archive member; None when it would leave the folder."""
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        return None
    return posixpath.normpath(name)


def split_states(states: bytes) -> dict[str, bytes]:
    """The two states of a checkpoint, which lie one behind the other in a block and in a file."""
    size = Gunzip.STATE_BYTES
    return {"inflate": states[:size], "sha256": states[size:]}


def fetch(download: Download, point: dict[str, Any], slots: mmap.mmap, pipe: Connection) -> None:
    """Fetch, hash and decompress an archive from `point` on, in a process of its own, where this does not hold up the writing.

    Decompressed blocks go into `slots` in turn, each with the states that reading can go on with behind it. For each, `pipe` gets
    its length and how many bytes of the archive are used up; then the SHA-256 of the archive, or the error that ended it all. It
    gives back a message for each block that is used up.
    """
    start: int = point.get("consumed", 0)
    sha256 = Sha256(point.get("sha256"))
    begin, block = start, memoryview(b"")  # what is being decompressed, and where in the archive it begins
    hashed = start

    def hash_to(end: int) -> None:
        nonlocal hashed
        first, last = hashed - begin, end - begin
        sha256.update(block[first:last])
        hashed = end

    def incoming() -> Iterator[memoryview]:
        nonlocal begin, block
        for received in download.blocks(start):
            begin, block = begin + len(block), received
            yield received
            hash_to(begin + len(block))

    try:
        stream = Gunzip(incoming(), point.get("inflate"), start)
        with memoryview(slots) as view:
            for number in itertools.count():
                if number >= SLOTS:
                    pipe.recv_bytes()
                place = number % SLOTS * SLOT_BYTES
                state, end = place + BLOCK, place + SLOT_BYTES
                length = stream.readinto(view[place:state])
                if not length:
                    break
                hash_to(stream.consumed)
                view[state:end] = stream.state + sha256.state
                pipe.send((length, stream.consumed))
        pipe.send(sha256.hexdigest())
    except (DownloadError, GzipError) as error:
        pipe.send(error)
    except (EOFError, ConnectionError):  # the reader has ended
        pass


class Transfer:
    """The content of an archive, decompressed and hashed during its transfer; it can only be read forwards.

    `point` is a checkpoint made of `state()` earlier, perhaps by a process that is no more. `position` counts the bytes given out,
    `consumed` those of the archive that are behind them; `between` is called whenever `state()` can be asked. Raises DownloadError
    and GzipError.
    """

    def __init__(self, download: Download, point: dict[str, Any]) -> None:
        self.download = download
        self.position: int = point.get("position", 0)
        self.consumed: int = point.get("consumed", 0)
        self.between: Callable[[], None] = lambda: None
        self.sha256 = ""  # of the archive, at its end
        self._number = 0
        self._slots = mmap.mmap(-1, SLOTS * SLOT_BYTES)
        self._view = memoryview(self._slots)
        self._block = self._view[:0]
        self._pipe, other = FORK.Pipe()
        work = (download, point, self._slots, other)
        self._fetcher = FORK.Process(target=self._fetch, args=(self._pipe, work), daemon=True)
        self._fetcher.start()
        other.close()

    @staticmethod
    def _fetch(ours: Connection, work: tuple[Any, ...]) -> None:
        ours.close()  # else the end of the other process would not show
        fetch(*work)

    def take(self, size: int) -> memoryview:
        """At most `size` of the next bytes, good until the next call; empty at the end."""
        if not self._block and not self._next_block():
            return self._block
        part, self._block = self._block[:size], self._block[size:]
        self.position += len(part)
        return part

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, fewer at the end."""
        part = bytes(self.take(size))
        while len(part) < size and (more := self.take(size - len(part))):
            part += more
        return part

    def seek(self, position: int) -> int:
        """Skip forwards; return the position reached, an earlier one at the end."""
        while self.position < position and self.take(position - self.position):
            pass
        return self.position

    def _next_block(self) -> bool:
        """Give the used block back and wait for the next; False at the end."""
        if self.sha256:
            return False
        if self._number:
            self.between()
            with suppress(ConnectionError):  # it has sent everything and is gone
                self._pipe.send_bytes(b"")
        try:
            message = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise Interrupted(f"{self.download.url}: the process that fetches it was ended") from None
        if isinstance(message, Exception):
            raise message
        if isinstance(message, str):
            self.sha256 = message
            return False
        length, self.consumed = message
        place = self._number % SLOTS * SLOT_BYTES
        end = place + length
        self._block = self._view[place:end]
        self._number += 1
        return True

    def state(self) -> dict[str, Any]:
        """A checkpoint of this moment, which must be one between two blocks."""
        place = (self._number - 1) % SLOTS * SLOT_BYTES + BLOCK
        end = place + SLOT_BYTES - BLOCK
        numbers = {"position": self.position, "consumed": self.consumed}
        return numbers | split_states(bytes(self._view[place:end]))

    def finish(self) -> str:
        """Read on to the end, if anything is left; return the archive's SHA-256."""
        while self.take(BLOCK):
            pass
        return self.sha256

    def close(self) -> None:
        """End the process that fetches."""
        self._fetcher.kill()
        self._fetcher.join()
        self._pipe.close()


class Checkpoints:
    """Checkpoints from which the unpacking of an archive into `folder` resumes after an interruption.

    If the process is interrupted: two files, overwritten in turn so that one of them is whole; a new file renamed over an old one
    would be sent to the disk each time. If the host is interrupted: one more file, written less often and only after all data has
    reached the disk. The system's boot id decides which of them count.
    """

    def __init__(self, folder: str, download: Download) -> None:
        self.folder = folder
        self.identity = {"format": FORMAT, "url": download.url, "size": download.size, "tag": download.tag}
        self.boot = boot_id()
        self.interval = max(LEAST_BETWEEN, (download.size or 0) // CHECKPOINTS)
        self._turns = itertools.cycle(LATEST)
        self._syncer = ThreadPoolExecutor(1)
        self._syncing: Future[None] | None = None
        self._synced_at = time.monotonic()

    def read(self) -> dict[str, Any]:
        """The checkpoint to go on from; empty when there is none, or when the file at the address is another by now."""
        points = [self._point(name) for name in (*LATEST, SYNCED)]
        return max(points, key=lambda point: int(point.get("consumed", -1)))

    def _point(self, name: str) -> dict[str, Any]:
        """The checkpoint in a file; empty when it cannot be used."""
        try:
            with open(os.path.join(self.folder, name), "rb") as file:
                checksum, length = HEAD.unpack(file.read(HEAD.size))
                record = file.read(length)
        except (OSError, struct.error):
            return {}
        if zlib.crc32(record) != checksum:
            return {}
        text, _unused, states = record.partition(b"\n")
        point: dict[str, Any] = json.loads(text)
        known = self.identity["tag"] and point["identity"] == self.identity
        if not known or (name != SYNCED and point["boot"] != self.boot):
            return {}
        return point | split_states(states)

    def write(self, point: dict[str, Any]) -> None:
        """Keep a checkpoint; from time to time let it follow the data to the disk in a thread."""
        about = {key: value for key, value in point.items() if not isinstance(value, bytes)}
        text = json.dumps({"identity": self.identity, "boot": self.boot, **about}).encode()
        record = b"\n".join((text, point["inflate"] + point["sha256"]))
        record = HEAD.pack(zlib.crc32(record), len(record)) + record
        file = os.open(os.path.join(self.folder, next(self._turns)), os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.write(file, record)
        finally:
            os.close(file)
        if self._syncing and self._syncing.done():
            self._syncing.result()
        if time.monotonic() - self._synced_at > SYNC_SECONDS and (not self._syncing or self._syncing.done()):
            self._synced_at = time.monotonic()
            self._syncing = self._syncer.submit(self._sync, record)

    def finish(self) -> None:
        """Wait for what is on its way to the disk."""
        self._syncer.shutdown()

    def _sync(self, record: bytes) -> None:
        sync(self.folder)
        write_file(os.path.join(self.folder, SYNCED), record, durable=False)  # synced just below
        sync(self.folder)


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

    def __init__(
        self, transfer: Transfer, label: str, wanted: list[str], checkpoints: Checkpoints, progress: Progress
    ) -> None:
        self.transfer = transfer
        self.progress = progress
        self.wanted = wanted
        self.checkpoints = checkpoints
        self.folder = checkpoints.folder
        self.count = {"files": 0, "unpacked_bytes": 0}
        self.others: set[str] = set()  # where members lie that are not wanted, two folders deep
        self.reader = TarReader(transfer, transfer.download.url)
        self._member: dict[str, Any] | None = None  # the file that is being written
        self._saved_at = transfer.consumed
        progress.begin(label, transfer.download.size, done=transfer.consumed)
        transfer.between = self._save

    def run(self, point: dict[str, Any]) -> None:
        """Unpack all, from the checkpoint `point` on when it is not empty, and read the archive to its end.

        Every member is judged, also those that are not wanted: names must stay inside, only regular files, folders and
        links to places further inside are accepted. Raises UnpackError.
        """
        if point:
            self.count = point["count"]
            self.reader = TarReader(self.transfer, self.reader.label, point["tar"])
            if point["member"]:
                self._write(**point["member"])
        while member := self.reader.member():
            name = self._judge(member)
            if self._is_wanted(name):
                self._extract(member, os.path.join(self.folder, name))
            elif len(self.others) < OTHERS:
                self.others.add("/".join(name.split("/")[:2]))

    def _is_wanted(self, name: str) -> bool:
        return any(name == path or name.startswith(path + "/") for path in self.wanted)

    def _judge(self, member: Member) -> str:
        """The member's path inside the folder; raises UnpackError."""
        name = safe_name(member.name)
        if name is None or (name == "." and member.kind != FOLDER):
            raise self.reader.refuse(member, "a path that leads outside", "one inside the archive's folder")
        # A target that goes down only cannot lead outside, whatever links it passes through.
        if member.kind in (SYMLINK, HARDLINK) and (not member.target or safe_name(member.target) is None):
            raise self.reader.refuse(
                member, f"a {member.kind} to {member.target!r}", "one that stays inside the archive's folder"
            )
        return name

    def _extract(self, member: Member, path: str) -> None:
        """Write one member to `path`: own files, no special permissions, the archive's time of change."""
        if member.kind == FOLDER:
            os.makedirs(path, mode=0o755, exist_ok=True)
            return
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        target = self._linked(member, path) if member.kind == HARDLINK else ""
        if os.path.lexists(path):  # written after the checkpoint that this run goes on from
            os.unlink(path)
        if member.kind == SYMLINK:
            os.symlink(member.target, path)
        elif member.kind == HARDLINK:
            os.link(target, path, follow_symlinks=False)
            about = os.lstat(path)
            if stat.S_ISREG(about.st_mode):
                self.count["files"] += 1
                self.count["unpacked_bytes"] += about.st_size
        else:
            mode = 0o755 if member.mode & 0o100 else 0o644
            self._write(path=path, size=member.size, done=0, mode=mode, changed=member.changed)

    def _linked(self, member: Member, path: str) -> str:
        """Path of the file that the hard link `member`, to be made at `path`, is another name of; raises UnpackError."""
        name = safe_name(member.target) or ""
        target = os.path.join(self.folder, name)
        # What is not wanted is not there to be linked to; a link to what comes later is damage.
        there = self._is_wanted(name) and target != path and os.path.lexists(target)
        if not there or (os.path.isdir(target) and not os.path.islink(target)):
            raise self.reader.refuse(
                member, f"a hard link to {member.target!r}", "one to a file that is unpacked before it"
            )
        return target

    def _write(self, path: str, size: int, done: int, mode: int, changed: int) -> None:
        """Write what is left of a file of which `done` bytes are there."""
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, mode)
        try:
            if done:  # ext4 writes a file out at once, when it is closed, that was ever truncated to nothing
                os.ftruncate(file, done)
                os.lseek(file, done, os.SEEK_SET)
            while done < size:
                self._member = {"path": path, "size": size, "done": done, "mode": mode, "changed": changed}
                part = self.transfer.take(size - done)
                if not part:
                    raise self.reader.cut()
                done += len(part)
                while part:
                    written = os.write(file, part)
                    part = part[written:]
            os.utime(file, (changed, changed))
        finally:
            os.close(file)
        self._member = None
        self.count["files"] += 1
        self.count["unpacked_bytes"] += size

    def _save(self) -> None:
        """Save a checkpoint between two blocks of the transfer, when everything before is written."""
        self.progress.count(self.transfer.consumed - self.progress.done)
        if self.transfer.consumed - self._saved_at < self.checkpoints.interval:
            return
        if not self._member and self.transfer.position > self.reader.next:
            return  # in the midst of a member's header, of which the first half would be lost
        self._saved_at = self.transfer.consumed
        about = {"tar": self.reader.state, "member": self._member, "count": self.count}
        self.checkpoints.write(self.transfer.state() | about)
