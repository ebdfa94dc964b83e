"""Other users read the data: whatever the umask of the run that brings them, and whatever an earlier run has left."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.databundle import BUNDLE, DATE, VEP, Mirror, archive, bring, large, member, mirror, release, unpacked
from support.module_runner import load

__all__ = ["mirror"]  # a fixture

FINAL = f"bundles/{DATE}/data/grch38"


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(root: Path) -> dict[str, int]:
    """Mode of each file and folder, the root's as "."."""
    paths = [root, *root.rglob("*")]
    return {str(path.relative_to(root)): stat.S_IMODE(path.lstat().st_mode) for path in paths if not path.is_symlink()}


def wrong(root: Path, programs: tuple[str, ...] = ()) -> dict[str, str]:
    """Modes that are not what they should be."""
    found = modes(root)
    assert found
    folders = {name for name in found if (root / name).is_dir()}
    right = {name: 0o755 if name in folders or name.endswith(programs or "/") else 0o644 for name in found}
    return {name: oct(mode) for name, mode in found.items() if mode != right[name]}


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o022, 0o002, 0o000, 0o777], ids=oct)
def test_modes_do_not_depend_on_the_umask(mirror: Mirror, tmp_path: Path, mask: int) -> None:
    program = tarfile.TarInfo("data/grch38/tools/program")
    program.mode = 0o700
    careful = member("data/grch38/careful", tarfile.DIRTYPE)
    careful.mode = 0o700
    hard = member("data/grch38/hard", tarfile.LNKTYPE, "data/grch38/big")
    mirror.files["bundle.tgz"] = archive(BUNDLE, [program, careful, hard])
    mirror.sums()
    root = tmp_path / "root/data"
    with umask(mask):
        answer = bring(root, mirror, ("grch37", "grch38"), release=without_sums(mirror))
        assert answer["changed"] is True, answer
        assert os.umask(mask) == mask  # as before
    assert wrong(tmp_path / "root", ("program",)) == {}
    assert (root.parent / "checksums.json").stat().st_mode & 0o777 == 0o644
    assert bring(root, mirror, ("grch37", "grch38"))["changed"] is False


def without_sums(mirror: Mirror) -> dict[str, Any]:
    """A release, with a mirror that publishes no checksum of its archives: they go into a file of this machine."""
    mirror.files["SHA256SUMS"] = f"{'0' * 64}  unrelated\n".encode()
    return release()


@pytest.mark.parametrize("mask", [0o077, 0o000], ids=oct)
def test_copies_of_a_seed_do_not_depend_on_the_umask(tmp_path: Path, mask: int) -> None:
    seed = unpacked(tmp_path / "seed", BUNDLE | VEP)
    (seed / "data/grch38/big").chmod(0o600)
    with umask(mask):
        assert bring(tmp_path / "root", None, seed=str(seed))["changed"] is True
    assert wrong(tmp_path / "root") == {}


def spoil(root: Path) -> None:
    """What a run under umask 077 has left until now, and something that everyone may write."""
    for path in [root, *root.rglob("*")]:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o700)
    (root / FINAL / "big").chmod(0o666)
    (root / "vep/115").chmod(0o777)


def test_wrong_modes_are_mended(mirror: Mirror, tmp_path: Path) -> None:
    root = tmp_path / "root"
    bring(root, mirror)
    stamp = (root / FINAL / ".umccr.pcgr.json").read_bytes()
    spoil(root)
    before = modes(root)
    predicted = bring(root, mirror, check=True)
    assert (predicted["changed"], [part["corrected"] for part in predicted["parts"]]) == (True, [8, 6])
    assert modes(root) == before
    mirror.requests.clear()
    answer = bring(root, mirror)
    assert answer["changed"] is True
    assert [(part["installed"], part["corrected"]) for part in answer["parts"]] == [(False, 8), (False, 6)]
    assert wrong(root) == {}
    assert {name for name, _unused in mirror.requests} == {"SHA256SUMS"}
    assert (root / FINAL / ".umccr.pcgr.json").read_bytes() == stamp
    for check in (True, False):
        answer = bring(root, mirror, check=check)
        assert (answer["changed"], {part["corrected"] for part in answer["parts"]}) == (False, {0})


@pytest.mark.parametrize(
    "place",
    [
        ".",
        "bundles",
        f"bundles/{DATE}/data",
        FINAL,
        f"{FINAL}/big",
        f"{FINAL}/.umccr.pcgr.json",
        "vep/115/homo_sapiens/115_GRCh38/info.txt",
    ],
)
@pytest.mark.parametrize("without", [0o044, 0o005])
def test_each_wrong_mode_is_noticed(mirror: Mirror, tmp_path: Path, place: str, without: int) -> None:
    root = tmp_path / "root"
    bring(root, mirror)
    before = modes(root)
    (root / place).chmod(before[place] & ~without)
    assert bring(root, mirror)["changed"] is True
    assert modes(root) == before


def test_modes_that_others_can_read_are_left_alone(mirror: Mirror, tmp_path: Path) -> None:
    root = tmp_path / "root"
    bring(root, mirror)
    unpacked(root / "work", {"sample": b"secret"})
    (root / "work/sample").chmod(0o600)
    (root / "work").chmod(0o700)
    (root / "bundles").chmod(0o2755)
    (root / FINAL / "big").chmod(0o444)
    (root / FINAL / ".private").symlink_to("nowhere")
    before = modes(root)
    assert bring(root, mirror)["changed"] is False
    assert modes(root) == before


def test_data_put_there_by_hand_are_mended(tmp_path: Path) -> None:
    root = unpacked(tmp_path / "root", {f"bundles/{DATE}/{name}": body for name, body in BUNDLE.items()})
    unpacked(root / "vep/115", VEP)
    spoil(root)
    (root / f"bundles/{DATE}/data/grch37").chmod(0o700)
    assert bring(root, None, seed=str(root))["changed"] is True
    found = wrong(root)
    assert {name.lower().partition("grch37")[1] for name in found} == {"grch37"}  # which nobody asked for
    assert bring(root, None, seed=str(root))["changed"] is False


def test_work_begun_under_another_umask_is_mended(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["bundle.tgz"] = archive(large(9))
    mirror.sums()
    mirror.cut_after["bundle.tgz"] = [1 << 20] * 15 + [0] * 1000
    root = tmp_path / "root"
    assert "the next run goes on" in bring(root, mirror, connections=1)["msg"]
    mirror.cut_after.clear()
    for path in root.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    mirror.sent = 0
    assert bring(root, mirror)["changed"] is True
    assert mirror.sent < len(mirror.files["bundle.tgz"])
    assert wrong(root) == {}


@pytest.mark.parametrize(("mode", "fails"), [(0o700, True), (0o777, False)], ids=oct)
def test_modes_that_cannot_be_changed(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, fails: bool
) -> None:
    """Of someone else's files on a network: unreadable is an error, writable is told."""
    root = tmp_path / "root"
    bring(root, mirror)
    (root / FINAL).chmod(mode)

    def refuse(path: str, _mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)

    monkeypatch.setattr(load("module_utils._refdata.parts").os, "chmod", refuse)
    answer = bring(root, mirror)
    told = answer["msg"] if fails else str(answer["warnings"])
    assert f"{root / FINAL}: mode: found {mode:04o}, allowed 0755" in told
    assert "Operation not permitted" in told
    assert fails or answer["changed"] is False


def test_a_volume_that_is_only_mounted_may_allow_writing(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    bring(root, mirror)
    (root / FINAL / "big").chmod(0o666)
    module = load("module_utils._refdata.parts")
    monkeypatch.setattr(module, "is_read_only", lambda _path: True)
    assert bring(root, mirror, check=True)["changed"] is False
    assert bring(root, mirror)["changed"] is False


def test_not_beside_another_run(mirror: Mirror, tmp_path: Path) -> None:
    root = tmp_path / "root"
    bring(root, mirror)
    (root / FINAL).chmod(0o700)
    with load("module_utils._state").exclusive_lock(str(root)):
        assert "another run" in bring(root, mirror)["msg"]
    assert stat.S_IMODE((root / FINAL).stat().st_mode) == 0o700
