"""The build of the rehearsal's archives: nothing is built twice or left incomplete. The slow parts are replaced here."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from rehearsal import build, layer


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace downloads and image tools; return a list that grows with each image built."""
    made: list[str] = []

    def image(work: Path) -> str:
        made.append("image")
        (work / build.IMAGE).write_bytes(b"an image")
        return "sha256:" + "0" * 64

    monkeypatch.setattr(build, "_check_host", lambda: None)
    monkeypatch.setattr(build, "_base", lambda cache: cache)
    monkeypatch.setattr(build, "_wheels", lambda cache: cache)
    monkeypatch.setattr(layer, "write_layer", lambda *_unused: 1)
    monkeypatch.setattr(build, "_image", image)
    return made


def files(out: Path) -> set[str]:
    """Return the names of the files that a build leaves."""
    return {path.name for path in out.iterdir()} - {".rehearsal.lock"}


def test_archives_sums_and_record(quick: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = build.build(out, tmp_path)
    assert files(out) == {build.IMAGE, build.BUNDLE, build.VEP, build.RECORD, "SHA256SUMS"}
    lines = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    assert lines == {
        name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in (build.IMAGE, build.BUNDLE, build.VEP)
    }
    assert json.loads((out / build.RECORD).read_text()) == record
    with tarfile.open(out / build.BUNDLE) as archive:
        names = archive.getnames()
        version = archive.extractfile("data/grch37/.PCGR_BUNDLE_VERSION")
        assert version is not None
        assert b"20260620" in version.read()
    assert {name.split("/")[0] for name in names} == {"data"}
    with tarfile.open(out / build.VEP) as archive:
        assert {"homo_sapiens/115_GRCh37", "homo_sapiens/115_GRCh38"} <= set(archive.getnames())


def test_nothing_is_built_twice(quick: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    build.build(out, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name != ".rehearsal.lock"}
    build.build(out, tmp_path)
    assert quick == ["image"]
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name != ".rehearsal.lock"}


@pytest.mark.parametrize("change", ["sources", "damaged archive", "missing archive", "damaged record"])
def test_changed_parts_are_built_again(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    out = tmp_path / "out"
    record = build.build(out, tmp_path)
    if change == "sources":
        monkeypatch.setattr(build, "source_hash", lambda: "other")
    elif change == "damaged archive":
        (out / build.BUNDLE).write_bytes(b"cut")
    elif change == "missing archive":
        (out / build.VEP).unlink()
    else:
        (out / build.RECORD).write_text("{")
    assert build.build(out, tmp_path)["files"] == record["files"]
    assert quick == ["image", "image"]


def test_interrupted_build_leaves_nothing_incomplete(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def cut(work: Path) -> str:
        (work / build.IMAGE).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_image", cut)
    with pytest.raises(KeyboardInterrupt):
        build.build(out, tmp_path)
    assert files(out) == set()
    leftover = out / ".rehearsal-killed"  # the remains of a killed build
    leftover.mkdir()
    monkeypatch.setattr(build, "_image", lambda work: (work / build.IMAGE).write_bytes(b"x") and "sha256:1")
    build.build(out, tmp_path)
    assert not leftover.exists()


def test_checksums_of_other_files_stay(quick: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "SHA256SUMS").write_text(f"{'a' * 64}  other.tgz\n{'b' * 64}  {build.BUNDLE}\n")
    build.build(out, tmp_path)
    text = (out / "SHA256SUMS").read_text()
    assert f"{'a' * 64}  other.tgz\n" in text
    assert "b" * 64 not in text
    assert len(text.splitlines()) == 4


def test_failing_program_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None if name == "umoci" else name)
    assert build.main(["--out", str(tmp_path / "out"), "--cache", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: rehearsal image: not installed on this host: umoci\n"
    with pytest.raises(build.BuildError, match=r"ls failed with exit code 2: .*nowhere"):
        build._run(["ls", "/nowhere"])


def test_layer_is_reproducible_and_pruned(tmp_path: Path) -> None:
    base, wheels, package = tmp_path / "base.tar", tmp_path / "wheels", tmp_path / "pcgr_rehearsal"
    with tarfile.open(base, "w") as archive:
        for name in (
            "./usr/bin/python3.11",
            "./usr/share/doc/x/copyright",
            "./usr/share/doc/x/changelog",
            "./usr/lib/python3.11/re.py",
        ):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = 5, 2_000_000_000
            archive.addfile(entry, io.BytesIO(b"x = 1"))
    for path in (wheels / "bin/tool", wheels / "pkg/a.py", wheels / "pkg/a.pxd", package / "run.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("y = 2\n")
    for target in ("one.tar", "two.tar"):
        layer.write_layer(tmp_path / target, base, wheels, package, 1000)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as archive:
        entries = {entry.name: entry for entry in archive}
    assert {
        "usr/share/doc/x/copyright",
        f"{layer.SITE}/pkg/a.py",
        f"{layer.SITE}/pcgr_rehearsal/run.py",
    } <= entries.keys()
    assert {
        "usr/lib/python3.11/__pycache__/re.cpython-311.pyc",
        f"{layer.PREFIX}/bin/pcgr",
        "tmp",
        "proc",
    } <= entries.keys()
    assert not {"usr/share/doc/x/changelog", f"{layer.SITE}/bin/tool", f"{layer.SITE}/pkg/a.pxd"} & entries.keys()
    assert {entry.mtime for entry in entries.values()} == {1000}
    assert {entry.uid for entry in entries.values()} == {0}
    assert entries["tmp"].mode == 0o1777
    assert entries[f"{layer.PREFIX}/bin/pcgr"].mode == 0o755
