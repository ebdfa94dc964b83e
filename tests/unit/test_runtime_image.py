"""Module runtime_image with a docker command that keeps its images in a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.module_runner import load, run

REFERENCE = "umccr/tool:1"
# An image is a file named by its reference (with / and : as _) that holds its id; an archive is "<reference> <id>".
DOCKER = """#!/bin/sh
cd "$(dirname "$0")"
echo "$@" >> calls
file() { echo "images/$(echo "$1" | tr '/:@' '___')"; }
case "$1 $2" in
  "image inspect") grep -l "^$5$" images/* 2>/dev/null | head -1 | xargs -r cat | grep . || cat "$(file "$5")" 2>/dev/null || exit 1 ;;
  "pull --quiet")
    [ -e broken ] && { n=$(cat broken); [ "$n" -gt 0 ] && { echo $((n-1)) > broken; echo "Error: connection reset" >&2; exit 1; }; }
    [ -e registry ] || { echo "Error: manifest unknown" >&2; exit 1; }
    cp registry "$(file "$3")" ;;
  "load --input") read -r name id < "$3"; echo "$id" > "$(file "$name")"; echo "Loaded image: $name" ;;
  *) exit 9 ;;
esac
"""
ID = "sha256:" + "1" * 64


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    (folder / "images").mkdir(parents=True)
    (folder / "docker").write_text(DOCKER)
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    return folder


def provide(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return run(
        "runtime_image", reference=REFERENCE, record=str(tmp_path / "etc/runtime.json"), scratch=str(tmp_path), **more
    )


def record(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "etc/runtime.json").read_text())
    return found


def calls(docker: Path, word: str) -> list[str]:
    if not (docker / "calls").exists():
        return []
    return [line for line in (docker / "calls").read_text().splitlines() if line.startswith(word)]


def test_pulled_once_and_recorded_by_id(docker: Path, tmp_path: Path) -> None:
    (docker / "registry").write_text(ID)
    answer = provide(tmp_path)
    assert (answer["changed"], answer["image"]) == (True, ID)
    assert record(tmp_path) == {"kind": "docker", "image": ID, "reference": REFERENCE, "digest": None}
    assert provide(tmp_path)["changed"] is False
    assert len(calls(docker, "pull")) == 1


def test_digest_replaces_the_tag(docker: Path, tmp_path: Path) -> None:
    (docker / "registry").write_text(ID)
    digest = "sha256:" + "a" * 64
    provide(tmp_path, digest=digest)
    assert calls(docker, "pull") == [f"pull --quiet umccr/tool@{digest}"]
    assert record(tmp_path)["digest"] == digest


def test_pull_is_tried_again(docker: Path, tmp_path: Path) -> None:
    (docker / "registry").write_text(ID)
    (docker / "broken").write_text("2")
    assert provide(tmp_path)["changed"] is True
    assert len(calls(docker, "pull")) == 3


def test_unknown_image_is_not_tried_again(docker: Path, tmp_path: Path) -> None:
    answer = provide(tmp_path)
    assert "manifest unknown" in answer["msg"]
    assert "\n" not in answer["msg"]
    assert len(calls(docker, "pull")) == 1
    assert not (tmp_path / "etc").exists()


def mirror(tmp_path: Path, text: str, sums: str | None = None) -> dict[str, Any]:
    folder = tmp_path / "mirror"
    folder.mkdir(exist_ok=True)
    (folder / "image.tar").write_text(text)
    found = sums or hashlib.sha256(text.encode()).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{found}  image.tar\n")
    return {"archive": "image.tar", "mirror_url": f"file://{folder}"}


def test_loaded_once_and_again_when_the_archive_is_another(docker: Path, tmp_path: Path) -> None:
    source = mirror(tmp_path, f"{REFERENCE} {ID}\n")
    assert provide(tmp_path, **source)["image"] == ID
    assert provide(tmp_path, **source)["changed"] is False
    other = "sha256:" + "2" * 64
    assert provide(tmp_path, **mirror(tmp_path, f"{REFERENCE} {other}\n"))["image"] == other
    assert record(tmp_path)["image"] == other
    assert not list(tmp_path.glob(".pcgr-image-*"))


def test_wrong_archives_are_refused(docker: Path, tmp_path: Path) -> None:
    answer = provide(tmp_path, **mirror(tmp_path, f"{REFERENCE} {ID}\n", sums="0" * 64))
    assert "expected " + "0" * 64 in answer["msg"]
    assert not calls(docker, "load")
    assert "does not hold" in provide(tmp_path, **mirror(tmp_path, f"other/tool:1 {ID}\n"))["msg"]
    assert not (tmp_path / "etc").exists()


def test_loaded_image_stays_when_the_mirror_is_gone(docker: Path, tmp_path: Path) -> None:
    source = mirror(tmp_path, f"{REFERENCE} {ID}\n")
    provide(tmp_path, **source)
    (tmp_path / "mirror/SHA256SUMS").unlink()
    assert provide(tmp_path, **source)["changed"] is False
    (docker / "images/umccr_tool_1").unlink()
    assert provide(tmp_path, **source)["failed"]


def test_check_mode_with_and_without_docker(docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = mirror(tmp_path, f"{REFERENCE} {ID}\n")
    assert provide(tmp_path, check=True, **source)["changed"] is True
    monkeypatch.setattr(load("modules.runtime_image").AnsibleModule, "get_bin_path", lambda *_: None)
    assert provide(tmp_path, check=True, **source)["changed"] is True
    assert "umccr.pcgr.docker" in provide(tmp_path, **source)["msg"]
    assert not (tmp_path / "etc").exists()


def test_archive_without_a_mirror(docker: Path, tmp_path: Path) -> None:
    assert "pcgr_mirror_url" in provide(tmp_path, archive="image.tar")["msg"]
