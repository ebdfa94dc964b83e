"""Volumes and snapshots as files.

A volume is a qcow2 file; a snapshot is a raw sparse file that never changes once it is complete. A volume created from a
snapshot keeps a hard link to it as its backing file. So volumes keep working after their snapshot is deleted, and copying
a snapshot or importing the base image copies no data.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from localcloud.settings import GIB

BLOCK = 524288  # bytes of one block of the EBS direct APIs (Amazon EBS user guide, "EBS direct APIs")


class Disks:
    """The volumes and snapshots of one region, in two folders below ``root``."""

    def __init__(self, root: Path) -> None:
        self._volumes = root / "volumes"
        self._snapshots = root / "snapshots"
        for folder in (self._volumes, self._snapshots):
            folder.mkdir(parents=True, exist_ok=True)

    def volume(self, volume_id: str) -> Path:
        """Return the path of the volume's qcow2 file."""
        return self._volumes / f"{volume_id}.qcow2"

    def snapshot(self, snapshot_id: str) -> Path:
        """Return the path of the snapshot's raw file."""
        return self._snapshots / f"{snapshot_id}.raw"

    def create_volume(self, volume_id: str, gib: int, snapshot_id: str | None = None) -> Path:
        """Create a volume of ``gib`` GiB, empty or with the snapshot's content; return its file."""
        command = ["qemu-img", "create", "-q", "-f", "qcow2"]
        if snapshot_id:
            base = self._base(volume_id)
            _link(self.snapshot(snapshot_id), base)
            command += ["-b", str(base), "-F", "raw"]
        _run([*command, str(self.volume(volume_id)), str(gib * GIB)])
        return self.volume(volume_id)

    def resize_volume(self, volume_id: str, gib: int) -> None:
        """Grow a volume that no virtual machine has open."""
        _run(["qemu-img", "resize", "-q", "-f", "qcow2", str(self.volume(volume_id)), str(gib * GIB)])

    def delete_volume(self, volume_id: str) -> None:
        """Remove the volume's files, if there are any."""
        self.volume(volume_id).unlink(missing_ok=True)
        self._base(volume_id).unlink(missing_ok=True)

    def import_snapshot(self, snapshot_id: str, raw: Path) -> None:
        """Link the raw disk file ``raw`` as a complete snapshot. It is not copied, so it must never change."""
        _link(raw, self.snapshot(snapshot_id))

    def copy_snapshot(self, source_id: str, snapshot_id: str) -> None:
        """Make a complete snapshot available under a second id; no data is copied."""
        _link(self.snapshot(source_id), self.snapshot(snapshot_id))

    def snapshot_volume(self, volume_id: str, snapshot_id: str) -> None:
        """Copy a volume that no virtual machine has open into a complete snapshot; raises OSError."""
        target = self.snapshot(snapshot_id)
        # -S 4k: runs of zeros become holes.
        _run(["qemu-img", "convert", "-q", "-O", "raw", "-S", "4k", str(self.volume(volume_id)), str(target)])
        self.seal(snapshot_id)

    def open_snapshot(self, snapshot_id: str, gib: int, parent_id: str | None = None) -> Path:
        """Create an incomplete, writable snapshot, empty or with the content of its parent; return its file."""
        return self._open(snapshot_id, gib, self.snapshot(parent_id) if parent_id else None)

    def open_backup(self, volume_id: str, snapshot_id: str, gib: int) -> Path:
        """Create an incomplete snapshot that lacks only what was written to the volume since its creation; return its file."""
        base = self._base(volume_id)
        return self._open(snapshot_id, gib, base if base.exists() else None)

    def _open(self, snapshot_id: str, gib: int, start: Path | None) -> Path:
        target = self.snapshot(snapshot_id)
        if start:
            _run(["cp", "--sparse=always", "--reflink=auto", "--dereference", str(start), str(target)])
            target.chmod(0o600)
        with target.open("r+b" if start else "xb") as file:
            file.truncate(gib * GIB)
        return target

    def seal(self, snapshot_id: str) -> None:
        """Complete a snapshot by making its file read-only."""
        self.snapshot(snapshot_id).chmod(0o400)

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Remove the snapshot's file, if there is one; volumes created from it keep its content."""
        self.snapshot(snapshot_id).unlink(missing_ok=True)

    def write_block(self, snapshot_id: str, index: int, data: bytes) -> None:
        """Write one block of 512 KiB to an incomplete snapshot."""
        with self.snapshot(snapshot_id).open("r+b") as file:
            file.seek(index * BLOCK)
            file.write(data)

    def read_block(self, snapshot_id: str, index: int) -> bytes:
        """Return one block of 512 KiB; beyond the end of the file it is zeros."""
        with self.snapshot(snapshot_id).open("rb") as file:
            file.seek(index * BLOCK)
            return file.read(BLOCK).ljust(BLOCK, b"\0")

    def blocks(self, snapshot_id: str) -> list[int]:
        """Return the indexes of the blocks that hold data, in ascending order."""
        found: dict[int, None] = {}
        with self.snapshot(snapshot_id).open("rb") as file:
            for start, end in _data(file.fileno()):
                found.update(dict.fromkeys(range(start // BLOCK, (end - 1) // BLOCK + 1)))
        return list(found)

    def changed_blocks(self, first_id: str, second_id: str) -> list[int]:
        """Return the indexes of the blocks whose content differs between two snapshots."""
        either = sorted({*self.blocks(first_id), *self.blocks(second_id)})
        return [index for index in either if self.read_block(first_id, index) != self.read_block(second_id, index)]

    def _base(self, volume_id: str) -> Path:
        return self._volumes / f"{volume_id}.base"


def _data(descriptor: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each run of data in a sparse file."""
    end = 0
    with contextlib.suppress(OSError):  # ENXIO: no data beyond this offset
        while True:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            yield start, end


def _link(source: Path, target: Path) -> None:
    """Make a hard link. Across file systems make a symbolic link, which later calls hard-link like any file."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        target.symlink_to(source.resolve())


def _run(command: list[str]) -> None:
    # The kernel kills the command when the calling thread ends.
    done = subprocess.run(["setpriv", "--pdeathsig", "KILL", *command], check=False, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command[:2])} failed: {done.stderr.strip()}")
