"""Module text_files: content, owner, mode; changes told truly; nothing written in check mode."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from support.module_runner import run

ME = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}


def write(
    path: Path, content: str, *, check: bool = False, absent: list[str] | None = None, **more: Any
) -> dict[str, Any]:
    item = {"path": str(path), "content": content, **ME, **more}
    return run("config_files", check=check, files=[item], absent=absent or [])


def test_writes_once(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/file"
    assert write(path, "one", mode="0640")["changed_paths"] == [str(path)]
    assert path.read_text() == "one\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert write(path, "one", mode="0640")["changed"] is False
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("change", [{"content": "two"}, {"mode": "0600"}])
def test_tells_and_repairs_each_difference(tmp_path: Path, change: dict[str, str]) -> None:
    path = tmp_path / "file"
    write(path, "one")
    wanted = {"content": "one"} | change
    assert write(path, check=True, **wanted)["changed"] is True  # type: ignore[arg-type]
    assert path.read_text() == "one\n"
    assert write(path, **wanted)["changed"] is True  # type: ignore[arg-type]
    assert write(path, **wanted)["changed"] is False  # type: ignore[arg-type]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / "file"
    target.write_text("keep\n")
    path.symlink_to(target)
    assert write(path, "keep")["changed"] is True
    assert not path.is_symlink()
    write(path, "other")
    assert target.read_text() == "keep\n"


def test_check_mode_writes_nothing_and_needs_no_owner_yet(tmp_path: Path) -> None:
    answer = write(tmp_path / "new/file", "one", check=True, owner="not-made-yet")
    assert answer["changed"] is True
    assert list(tmp_path.iterdir()) == []


def test_removes(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.symlink_to("nowhere")
    assert str(old) in write(tmp_path / "file", "one", absent=[str(old)])["changed_paths"]
    assert not old.is_symlink()
    assert write(tmp_path / "file", "one", absent=[str(old)])["changed"] is False


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"mode": "rw"}, "octal"),
        ({"owner": "nobody-here"}, "nobody-here"),
        ({"path": "/proc/self/nope/file"}, "/proc/self/nope"),
    ],
)
def test_refusals_are_one_line(tmp_path: Path, wrong: dict[str, str], words: str) -> None:
    item = {"path": str(tmp_path / "file"), "content": "x", **ME} | wrong
    answer = run("config_files", files=[item])
    assert answer["failed"]
    assert words in answer["msg"]
    assert "\n" not in answer["msg"]


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    assert "folder" in write(tmp_path, "x")["msg"]
