"""Volumes and snapshots hold exactly the bytes that were written, checked with QEMU's own tools."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from localcloud.settings import GIB
from localcloud.volumes import BLOCK, Disks

MIB = 1 << 20


def write(path: Path, pattern: int, offset: int, length: int) -> None:
    """Write bytes of one value to a volume with QEMU's own tool."""
    command = f"write -P {pattern} {offset} {length}"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, str(path)], check=True, capture_output=True)


def content(path: Path, offset: int, length: int) -> bytes:
    """Return bytes of a volume as QEMU reads them, through a sparse copy."""
    raw = path.with_suffix(".check")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(raw)], check=True)
    with raw.open("rb") as file:
        file.seek(offset)
        return file.read(length)


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    """The disks of a new region."""
    return Disks(tmp_path / "region")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A raw disk of 3 MiB: ones, a hole, threes."""
    path = tmp_path / "base.raw"
    with path.open("wb") as file:
        file.write(b"\x01" * MIB)
        file.seek(2 * MIB)
        file.write(b"\x03" * MIB)
    return path


def test_volume_has_the_bytes_of_its_snapshot_followed_by_zeros(disks: Disks, base: Path) -> None:
    disks.import_snapshot("snap-1", base)
    volume = disks.create_volume("vol-1", 1, "snap-1")
    assert content(volume, 0, 3 * MIB) == base.read_bytes()
    assert content(volume, 3 * MIB, MIB) == bytes(MIB)


def test_importing_a_disk_copies_nothing(disks: Disks, base: Path) -> None:
    disks.import_snapshot("snap-1", base)
    assert disks.snapshot("snap-1").samefile(base)


def test_snapshot_keeps_its_moment_and_the_base_its_bytes(disks: Disks, base: Path) -> None:
    before = base.read_bytes()
    disks.import_snapshot("snap-1", base)
    volume = disks.create_volume("vol-1", 1, "snap-1")
    write(volume, 0x55, MIB, 4096)
    disks.snapshot_volume("vol-1", "snap-2")
    write(volume, 0x66, MIB, 4096)
    taken = disks.snapshot("snap-2")
    assert taken.stat().st_size == GIB
    with taken.open("rb") as file:
        assert file.read(3 * MIB) == before[:MIB] + b"\x55" * 4096 + before[MIB + 4096 :]
    assert taken.stat().st_blocks * 512 < 4 * MIB, "the empty rest takes no space"
    assert base.read_bytes() == before


def test_volume_keeps_the_content_of_a_deleted_snapshot(disks: Disks, base: Path) -> None:
    disks.import_snapshot("snap-1", base)
    expected = base.read_bytes()
    volume = disks.create_volume("vol-1", 1, "snap-1")
    disks.delete_snapshot("snap-1")
    base.unlink()
    assert content(volume, 0, 3 * MIB) == expected


def test_deleted_volume_leaves_no_file(disks: Disks, base: Path, tmp_path: Path) -> None:
    disks.import_snapshot("snap-1", base)
    disks.create_volume("vol-1", 1, "snap-1")
    disks.delete_volume("vol-1")
    assert not list((tmp_path / "region" / "volumes").iterdir())
    assert disks.snapshot("snap-1").exists()


def test_written_blocks_are_read_back(disks: Disks) -> None:
    disks.open_snapshot("snap-1", 1)
    disks.write_block("snap-1", 3, b"\x07" * BLOCK)
    disks.write_block("snap-1", 2047, b"\x08" * BLOCK)
    disks.seal("snap-1")
    assert disks.blocks("snap-1") == [3, 2047]
    assert disks.read_block("snap-1", 3) == b"\x07" * BLOCK
    assert disks.read_block("snap-1", 4) == bytes(BLOCK)
    volume = disks.create_volume("vol-1", 1, "snap-1")
    assert content(volume, 3 * BLOCK, BLOCK) == b"\x07" * BLOCK


def test_block_beyond_the_end_of_a_short_disk_is_zeros(disks: Disks, base: Path) -> None:
    disks.import_snapshot("snap-1", base)
    assert disks.read_block("snap-1", 100) == bytes(BLOCK)


def test_changed_blocks_are_those_whose_bytes_differ(disks: Disks) -> None:
    disks.open_snapshot("snap-1", 1)
    for index in (0, 1, 2):
        disks.write_block("snap-1", index, bytes([index + 1]) * BLOCK)
    disks.open_snapshot("snap-2", 1, parent_id="snap-1")
    disks.write_block("snap-2", 1, b"\x99" * BLOCK)
    disks.write_block("snap-2", 2, b"\x03" * BLOCK)
    disks.write_block("snap-2", 7, b"\x98" * BLOCK)
    assert disks.changed_blocks("snap-1", "snap-2") == [1, 7]
    assert disks.read_block("snap-1", 1) == b"\x02" * BLOCK, "the parent keeps its bytes"


def test_grown_volume_keeps_its_bytes(disks: Disks, base: Path) -> None:
    disks.import_snapshot("snap-1", base)
    volume = disks.create_volume("vol-1", 1, "snap-1")
    disks.resize_volume("vol-1", 2)
    write(volume, 0x44, GIB + MIB, 4096)
    assert content(volume, 0, 3 * MIB) == base.read_bytes()


def test_error_of_qemu_is_reported_in_one_line(disks: Disks) -> None:
    with pytest.raises(OSError, match=r"^qemu-img convert failed: .*vol-none"):
        disks.snapshot_volume("vol-none", "snap-1")
