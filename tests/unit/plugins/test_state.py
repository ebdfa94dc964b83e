"""State on a host: one name for the stamp, one way to write a file."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from support import ROOT
from support.module_runner import load
from umccr_pcgr.consumer import smoke

state = load("module_utils._state")


def spelled(name: str) -> list[str]:
    """Return the plugins' files whose code, not only their documentation, spells `name` as a string."""
    files = sorted((ROOT / "plugins").rglob("*.py"))
    return [path.name for path in files if f'"{name}"' in path.read_text()]


def test_consumer_and_modules_agree_on_the_stamp() -> None:
    """The consumer cannot import plugins: it runs where they are not installed."""
    assert smoke.STAMP == state.STAMP


def test_contracts_are_written_once() -> None:
    assert spelled(state.STAMP) == ["_state.py"]
    assert spelled(load("module_utils._progress").PROGRESS) == ["_progress.py"]
    assert spelled("SHA256SUMS") == ["checksums.py"]


@pytest.mark.parametrize("mask", [0o077, 0o000], ids=oct)
def test_a_file_gets_its_mode_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        state.write_file(str(tmp_path / "new"), b"one")
        state.write_file(str(tmp_path / "secret"), b"two", mode=0o600, owner=(os.getuid(), os.getgid()))
        state.write_json(str(tmp_path / "record.json"), {"a": 1})
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"new": 0o644, "secret": 0o600, "record.json": 0o644}
    assert state.read_json(str(tmp_path / "record.json")) == {"a": 1}


@pytest.mark.parametrize(("durable", "flushed"), [(True, 1), (False, 0)])
def test_content_reaches_the_disk_before_the_rename_unless_it_need_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool, flushed: int
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(state.os, "fsync", lambda handle: (steps.append("fsync"), fsync(handle)))
    monkeypatch.setattr(state.os, "replace", lambda *paths: (steps.append("rename"), replace(*paths)))
    state.write_file(str(tmp_path / "file"), b"content", durable=durable)
    assert steps == ["fsync"] * flushed + ["rename"]


def test_a_failed_write_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("old")

    def fail(_handle: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        state.write_file(str(tmp_path / "file"), b"new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]
