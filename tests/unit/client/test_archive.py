"""Unpacking a result: what is in it arrives, nothing leaves the folder, and no Python newer than Debian 12's is needed."""

from __future__ import annotations

import ast
import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from umccr_pcgr.client.archive import UnsafeArchive, extract

ROOT = Path(__file__).resolve().parents[2]


def archive(path: Path, *members: tuple[str, bytes | None, dict[str, object]]) -> Path:
    with tarfile.open(path, "w:gz") as out:
        for name, data, fields in members:
            member = tarfile.TarInfo(name)
            member.type = tarfile.REGTYPE if data is not None else tarfile.DIRTYPE
            member.size = len(data or b"")
            for field, value in fields.items():
                setattr(member, field, value)
            out.addfile(member, io.BytesIO(data or b""))
    return path


def test_files_and_folders_arrive(tmp_path: Path) -> None:
    tarball = archive(
        tmp_path / "a.tar.gz",
        ("s", None, {"mode": 0}),
        ("./s/report.html", b"new", {"mode": 0o4777}),
        ("s/deep/x.txt", b"x", {}),
    )
    (tmp_path / "out/s").mkdir(parents=True)
    (tmp_path / "other").write_bytes(b"keep")
    (tmp_path / "out/s/report.html").symlink_to(tmp_path / "other")
    found = extract(tarball, tmp_path / "out")
    assert found == [tmp_path / "out/s/report.html", tmp_path / "out/s/deep/x.txt"]
    assert [path.read_bytes() for path in found] == [b"new", b"x"]
    assert (tmp_path / "other").read_bytes() == b"keep"
    assert not found[0].stat().st_mode & 0o7137


@pytest.mark.parametrize(
    "member",
    [
        ("../evil", b"x", {}),
        ("s/../../evil", b"x", {}),
        ("/tmp/evil", b"x", {}),
        ("link", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc"}),
        ("link", b"", {"type": tarfile.LNKTYPE, "linkname": "s/a"}),
        ("pipe", b"", {"type": tarfile.FIFOTYPE}),
        ("disk", b"", {"type": tarfile.BLKTYPE}),
    ],
)  # fmt: skip
def test_a_member_that_is_not_allowed_stops_all(tmp_path: Path, member: tuple[str, bytes, dict[str, object]]) -> None:
    tarball = archive(tmp_path / "a.tar.gz", ("s/a", b"first", {}), member)
    with pytest.raises(UnsafeArchive, match="allowed: "):
        extract(tarball, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    tarball = archive(tmp_path / "a.tar.gz", ("s/a", b"x", {}))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/s").symlink_to(tmp_path)
    with pytest.raises(UnsafeArchive, match="symbolic link"):
        extract(tarball, tmp_path / "out")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("cut", [40, 0, None])
def test_a_damaged_archive_is_one_line(tmp_path: Path, cut: int | None) -> None:
    tarball = archive(tmp_path / "a.tar.gz", ("s/a", bytes(range(256)) * 50, {}))
    tarball.write_bytes(tarball.read_bytes()[:cut] if cut is not None else b"no archive")
    with pytest.raises(UnsafeArchive) as refusal:
        extract(tarball, tmp_path / "out")
    assert "\n" not in str(refusal.value) and str(tarball) in str(refusal.value)


# Names by module that Python 3.11.2 lacks, of those that are easily reached for; keywords by the method that got them later.
NEWER_NAMES = {
    "tarfile": {"data_filter", "tar_filter", "fully_trusted_filter", "FilterError"},
    "itertools": {"batched"},
    "typing": {"override", "TypeAliasType", "ReadOnly", "TypeIs"},
    "warnings": {"deprecated"},
    "copy": {"replace"},
    "math": {"sumprod"},
}
NEWER_KEYWORDS = {
    "extractall": {"filter"},
    "extract": {"filter"},
    "unpack_archive": {"filter"},
    "NamedTemporaryFile": {"delete_on_close"},
    "rmtree": {"onexc"},
    "relative_to": {"walk_up"},
}


def newer(source: str) -> list[str]:
    """What a program uses that Python 3.11.2 does not have, as `line: name`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            found += [
                f"{node.lineno}: {a.name}" for a in node.names if a.name in NEWER_NAMES.get(node.module or "", ())
            ]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in NEWER_NAMES.get(node.value.id, ()):
                found.append(f"{node.lineno}: {node.attr}")
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            found += [
                f"{node.lineno}: {name}({k.arg}=)" for k in node.keywords if k.arg in NEWER_KEYWORDS.get(name, ())
            ]
    return found


def test_the_guard_finds_what_is_newer() -> None:
    assert newer("import tarfile\ntarfile.open('x').extractall('y', filter='data')\n") == ["2: extractall(filter=)"]
    assert newer("from typing import override\n") == ["1: override"]
    assert newer("import itertools\nitertools.batched([], 2)\n") == ["2: batched"]


def test_nothing_needs_a_python_newer_than_debian_12s() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    programs = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.suffix == ".py" or (path.is_file() and path.parent.name == "scripts" and not path.suffix):
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".py" or text.startswith("#!/usr/bin/env python3"):
                programs.append((name, text))
    assert len(programs) > 100
    assert [f"{name}:{use}" for name, text in programs for use in newer(text)] == []
