"""Module data_volume: what its diff shows. Volumes for real are in tests/integration/test_data_volume.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.module_runner import load, run

volume = load("modules.data_volume")
EMPTY = {"before": {}, "after": {}}


@pytest.mark.skipif(not (shutil.which("mkfs.ext4") and shutil.which("wipefs")), reason="needs e2fsprogs and util-linux")
def test_the_diff_shows_a_new_file_system_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file stands in for the disk: both can hold a file system."""
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(32 << 20)
    monkeypatch.setattr(volume, "find", lambda source, _readonly: (source, "device"))
    arguments = {"source": str(disk), "path": str(tmp_path / "place")}
    new = {"before": {"filesystem": None}, "after": {"filesystem": "ext4"}}
    predicted = run("data_volume", check=True, **arguments)
    assert (predicted["changed"], predicted["diff"]) == (True, new)
    first = run("data_volume", **arguments)
    assert (first["changed"], first["made"], first["diff"]) == (True, True, new)
    second = run("data_volume", **arguments)
    assert (second["changed"], second["diff"]) == (False, EMPTY)


def test_the_diff_shows_growth_in_bytes() -> None:
    grown = {"before": {"bytes": 10}, "after": {"bytes": 20}}
    assert volume.difference("xfs", made=False, before=10, after=20) == grown
    assert volume.difference("xfs", made=False, before=10, after=10) == EMPTY
