"""Module databundle against a loopback server: what arrives, what is refused, what is left behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import tarfile
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from support.databundle import BUNDLE, DATE, Mirror, archive, bring, large, member, mirror, refused, release, tree
from support.module_runner import command, load, run

__all__ = ["mirror"]  # a fixture

SIZE = len(archive(BUNDLE))


def test_brings_what_was_asked_for_and_nothing_else(mirror: Mirror, tmp_path: Path) -> None:
    answer = bring(tmp_path, mirror)
    assert answer["changed"] is True, answer
    files = tree(tmp_path)
    assert files[f"bundles/{DATE}/data/grch38/big"] == BUNDLE["data/grch38/big"]
    assert set(files) == {
        f"bundles/{DATE}/data/grch38/{name}" for name in ("big", ".PCGR_BUNDLE_VERSION", ".umccr.pcgr.json")
    } | {f"vep/115/homo_sapiens/115_GRCh38/{name}" for name in ("info.txt", ".umccr.pcgr.json")}
    stamp = json.loads(files[f"bundles/{DATE}/data/grch38/.umccr.pcgr.json"])
    assert stamp["sha256"] == hashlib.sha256(mirror.files["bundle.tgz"]).hexdigest()
    assert stamp["files"] == 2


def test_second_run_downloads_nothing_and_changes_nothing(mirror: Mirror, tmp_path: Path) -> None:
    bring(tmp_path, mirror)
    before = tree(tmp_path)
    mirror.requests.clear()
    answer = bring(tmp_path, mirror)
    assert answer["changed"] is False
    assert {name for name, _unused in mirror.requests} == {"SHA256SUMS"}
    assert tree(tmp_path) == before


def test_two_assemblies_in_one_archive_are_downloaded_once(mirror: Mirror, tmp_path: Path) -> None:
    answer = bring(tmp_path, mirror, ("grch37", "grch38"))
    assert len([part for part in answer["parts"] if part["installed"]]) == 4
    names = [name for name, span in mirror.requests if span != "bytes=0-0"]
    assert sorted(names) == ["SHA256SUMS", "bundle.tgz", "vep.tar.gz"]
    assert bring(tmp_path, mirror, ("grch37", "grch38"))["changed"] is False


def test_a_second_assembly_later_leaves_the_first_alone(mirror: Mirror, tmp_path: Path) -> None:
    bring(tmp_path, mirror)
    inode = (tmp_path / f"bundles/{DATE}/data/grch38").stat().st_ino
    answer = bring(tmp_path, mirror, ("grch38", "grch37"))
    assert [part["installed"] for part in answer["parts"]] == [False, False, True, True]
    assert (tmp_path / f"bundles/{DATE}/data/grch38").stat().st_ino == inode


def test_broken_connections_are_resumed_where_they_broke(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cut_after["bundle.tgz"] = [1000, 500, 0, 0]
    answer = bring(tmp_path, mirror)
    assert answer["changed"] is True, answer
    asked = [span for name, span in mirror.requests if name == "bundle.tgz"]
    assert asked == [f"bytes={start}" for start in ("0-0", *(f"{n}-{SIZE - 1}" for n in (0, 1000, 1500, 1500, 1500)))]


def test_a_server_without_ranges_is_read_again_from_the_start(mirror: Mirror, tmp_path: Path) -> None:
    mirror.ranges = False
    mirror.cut_after["bundle.tgz"] = [1000, 2000]
    assert bring(tmp_path, mirror)["changed"] is True


def test_a_file_replaced_between_two_attempts_is_noticed(mirror: Mirror, tmp_path: Path) -> None:
    changed = bytearray(mirror.files["bundle.tgz"])
    changed[-5] ^= 1  # in gzip's length field

    def replace() -> None:
        if mirror.requests[-1] == ("bundle.tgz", f"bytes=0-{SIZE - 1}"):
            mirror.files["bundle.tgz"] = bytes(changed)

    mirror.before_answer = replace
    refused(bring(tmp_path, mirror), tmp_path, "bundle.tgz", "replaced while it was being read")


def test_passing_server_errors_are_waited_out(mirror: Mirror, tmp_path: Path) -> None:
    mirror.errors = [503, 429, 500]
    assert bring(tmp_path, mirror)["changed"] is True


def test_dead_mirror_is_given_up_with_its_address(mirror: Mirror, tmp_path: Path) -> None:
    mirror.errors = [503] * 100
    refused(bring(tmp_path, mirror), tmp_path, mirror.url, "6 attempts", "503")


def test_connection_that_always_breaks_is_given_up(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cut_after["bundle.tgz"] = [1000] + [0] * 50
    refused(bring(tmp_path, mirror), tmp_path, "bundle.tgz", "6 attempts", "1000 bytes received", "goes on from there")


def test_missing_file(mirror: Mirror, tmp_path: Path) -> None:
    del mirror.files["bundle.tgz"]
    refused(bring(tmp_path, mirror), tmp_path, "bundle.tgz", "404")


def test_wrong_checksum(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["bundle.tgz"] = archive(BUNDLE | {"data/grch38/big": b"other"})
    refused(
        bring(tmp_path, mirror),
        tmp_path,
        "bundle.tgz",
        "sha256",
        hashlib.sha256(mirror.files["bundle.tgz"]).hexdigest(),
    )


def test_checksum_of_the_release_wins_over_the_mirrors(mirror: Mirror, tmp_path: Path) -> None:
    refused(bring(tmp_path, mirror, release=release(sha256="0" * 64)), tmp_path, "expected " + "0" * 64)


def test_short_file(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["bundle.tgz"] = mirror.files["bundle.tgz"][:-2000]
    mirror.sums()
    refused(bring(tmp_path, mirror), tmp_path, "bundle.tgz", "damaged or cut")


def test_web_page_instead_of_an_archive(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["bundle.tgz"] = b"<!DOCTYPE html><html>Log in first</html>"
    refused(bring(tmp_path, mirror), tmp_path, "bundle.tgz", "web page")


@pytest.mark.parametrize(
    "bad",
    [
        member("../escaped", tarfile.REGTYPE),
        member("data/grch38/../../../escaped", tarfile.REGTYPE),
        member("/tmp/escaped-absolute", tarfile.REGTYPE),
        member("data/grch38/device", tarfile.CHRTYPE),
        member("data/grch38/fifo", tarfile.FIFOTYPE),
        member("data/grch38/up", tarfile.SYMTYPE, "../../.."),
        member("data/grch38/out", tarfile.SYMTYPE, "/etc"),
    ],
    ids=lambda info: info.name,
)
def test_hostile_members(mirror: Mirror, tmp_path: Path, bad: tarfile.TarInfo) -> None:
    mirror.files["bundle.tgz"] = archive(BUNDLE, [bad])
    mirror.sums()
    root = tmp_path / "a/b/c"
    root.mkdir(parents=True)
    refused(bring(root, mirror), root, bad.name)
    assert not list(tmp_path.rglob("escaped*"))


def test_links_that_stay_inside_are_kept(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["bundle.tgz"] = archive(BUNDLE, [member("data/grch38/same", tarfile.SYMTYPE, "big")])
    mirror.sums()
    bring(tmp_path, mirror)
    assert (tmp_path / f"bundles/{DATE}/data/grch38/same").read_bytes() == BUNDLE["data/grch38/big"]


def test_bundle_of_another_date(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["bundle.tgz"] = archive(BUNDLE | {"data/grch38/.PCGR_BUNDLE_VERSION": b"20250314\n"})
    mirror.sums()
    refused(bring(tmp_path, mirror), tmp_path, "bundle.tgz", DATE, "20250314")


def test_cache_of_another_release(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["vep.tar.gz"] = archive({"homo_sapiens/113_GRCh38/info.txt": b"x"})
    mirror.sums()
    answer = bring(tmp_path, mirror)
    assert "homo_sapiens/115_GRCh38 is missing" in answer["msg"]
    assert not list(tmp_path.glob("vep/*/*/*"))


def test_new_data_replaces_old_data_only_when_it_is_right(mirror: Mirror, tmp_path: Path) -> None:
    bring(tmp_path, mirror)
    before = tree(tmp_path)
    mirror.files["bundle.tgz"] = archive(BUNDLE | {"data/grch38/.PCGR_BUNDLE_VERSION": b"wrong\n"})
    mirror.sums()
    assert bring(tmp_path, mirror)["failed"]
    assert tree(tmp_path) == before
    mirror.files["bundle.tgz"] = archive(BUNDLE | {"data/grch38/big": b"newer"})
    mirror.sums()
    assert bring(tmp_path, mirror)["changed"] is True
    assert (tmp_path / f"bundles/{DATE}/data/grch38/big").read_bytes() == b"newer"
    assert not list(tmp_path.glob(".databundle-*"))


def test_a_cut_before_the_rename_leaves_the_old_data(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(tmp_path, mirror)
    before = tree(tmp_path)
    mirror.files["bundle.tgz"] = archive(BUNDLE | {"data/grch38/big": b"newer"})
    mirror.sums()
    module = load("modules.databundle")
    with monkeypatch.context() as patched:
        patched.setattr(module, "sync", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            bring(tmp_path, mirror)
    left = list(tmp_path.glob(".databundle-*"))
    assert left
    assert {name: body for name, body in tree(tmp_path).items() if not name.startswith(".databundle-")} == before
    assert bring(tmp_path, mirror)["changed"] is True
    assert not list(tmp_path.glob(".databundle-*"))


def test_damaged_installation_is_brought_again(mirror: Mirror, tmp_path: Path) -> None:
    bring(tmp_path, mirror)
    (tmp_path / f"bundles/{DATE}/data/grch38/.PCGR_BUNDLE_VERSION").unlink()
    answer = bring(tmp_path, mirror)
    assert [part["installed"] for part in answer["parts"]] == [True, False]


def test_check_mode_predicts_and_writes_nothing(mirror: Mirror, tmp_path: Path) -> None:
    answer = bring(tmp_path / "new", mirror, check=True)
    assert answer["changed"] is True
    assert not (tmp_path / "new").exists()
    bring(tmp_path / "new", mirror)
    assert bring(tmp_path / "new", mirror, check=True)["changed"] is False


def test_check_mode_does_not_need_the_mirror(tmp_path: Path, mirror: Mirror) -> None:
    mirror.errors = [503] * 100
    answer = bring(tmp_path, mirror, check=True)
    assert answer["changed"] is True
    assert "503" in str(answer["warnings"])


def test_installed_data_stays_when_the_mirror_is_gone(tmp_path: Path, mirror: Mirror) -> None:
    bring(tmp_path, mirror)
    mirror.errors = [503] * 100
    assert bring(tmp_path, mirror)["changed"] is False


def test_no_address_and_no_mirror(tmp_path: Path) -> None:
    refused(bring(tmp_path, None), tmp_path, "bundle.tgz", "pcgr_mirror_url")


def test_unknown_assembly(mirror: Mirror, tmp_path: Path) -> None:
    refused(bring(tmp_path, mirror, ("hg19",)), tmp_path, "hg19", "grch37, grch38")


def test_two_runs_at_once(mirror: Mirror, tmp_path: Path) -> None:
    with load("module_utils._state").exclusive_lock(str(tmp_path)):
        refused(bring(tmp_path, mirror), tmp_path, str(tmp_path), "another run")
    assert bring(tmp_path, mirror)["changed"] is True


def test_too_little_room(mirror: Mirror, tmp_path: Path) -> None:
    refused(bring(tmp_path, mirror, space_factor=1e15), tmp_path, "GB free", "bundle.tgz")


def test_file_mirror_and_unknown_checksum_is_recorded(mirror: Mirror, tmp_path: Path) -> None:
    source, root = tmp_path / "source", tmp_path / "root"
    source.mkdir()
    for name, body in mirror.files.items():
        (source / name).write_bytes(body)
    (source / "SHA256SUMS").write_text(f"{'0' * 64}  unrelated\n")
    url, known = f"file://{source}", tmp_path / "known/checksums.json"
    arguments = {"release": release(), "assemblies": ["grch38"], "mirror_url": url, "checksums": str(known)}
    answer = run("databundle", root=str(root), **arguments)
    assert answer["changed"] is True, answer
    sha256 = hashlib.sha256(mirror.files["bundle.tgz"]).hexdigest()
    assert answer["parts"][0]["sha256"] == sha256
    assert json.loads(known.read_text())["bundle.tgz"] == sha256
    # The second time, on a new disk, another archive of that name is not trusted.
    (source / "bundle.tgz").write_bytes(archive(BUNDLE | {"data/grch38/big": b"other"}))
    again = tmp_path / "again"
    again.mkdir()
    refused(run("databundle", root=str(again), **arguments), again, "bundle.tgz", sha256, str(known))
    known.write_text("[1]")
    refused(run("databundle", root=str(again), **arguments), again, str(known), "not a list of checksums")


def test_several_connections_at_once(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["bundle.tgz"] = archive(members := large(1))
    mirror.sums()
    mirror.before_answer = lambda: time.sleep(0.02)
    assert bring(tmp_path, mirror, connections=4)["changed"] is True
    assert mirror.busiest >= 2
    assert all((tmp_path / f"bundles/{DATE}" / name).read_bytes() == body for name, body in members.items())


@pytest.mark.parametrize(("seed", "rebooted"), [(0, False), (1, False), (2, False), (3, True)])
def test_killed_anywhere_and_taken_up_again(
    mirror: Mirror, tmp_path: Path, seed: int, rebooted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 when the server has sent a random number of bytes; the next run asks for the rest only.

    After a reboot only what had been brought to the disk counts: here nothing had, so it starts anew.
    """
    chance = random.Random(seed)
    mirror.files["bundle.tgz"] = body = archive(members := large(2))
    mirror.sums()
    root = tmp_path / "root"
    arguments = {
        "root": str(root),
        "release": release(),
        "assemblies": ["grch38"],
        "mirror_url": mirror.url,
        "checksums": str(tmp_path / "known.json"),
    }
    stop_at = chance.randrange(len(body) // 10, len(body))
    child = subprocess.Popen(command("databundle", **arguments), stdout=subprocess.PIPE)
    mirror.before_answer = lambda: child.kill() if mirror.sent >= stop_at else None
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert not (root / "bundles").exists()
    (root / load("module_utils._progress").PROGRESS).write_text("{}")  # of a run of more than a second
    mirror.before_answer, mirror.sent = (lambda: None), 0
    module = load("module_utils._transfer.archive")
    if rebooted:
        monkeypatch.setattr(module, "boot_id", lambda: "another")
    answer = run("databundle", **arguments)
    assert answer["changed"] is True, answer
    assert answer["parts"][0]["sha256"] == hashlib.sha256(body).hexdigest()
    assert all((root / f"bundles/{DATE}" / name).read_bytes() == content for name, content in members.items())
    # What had arrived but was not used yet: read ahead by each connection, and since the last checkpoint.
    lost = (6 + 1) * (1 << 20) + module.LEAST_BETWEEN + (module.SLOTS + 2) * module.BLOCK
    limit = len(body) if rebooted else len(body) - stop_at + lost
    assert mirror.sent - len(mirror.files["vep.tar.gz"]) - len(mirror.files["SHA256SUMS"]) <= limit + 10


def test_after_a_reboot_it_goes_on_from_what_is_on_the_disk(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files written after the last checkpoint that is on the disk may hold anything: they are written again."""
    module = load("module_utils._transfer.archive")
    monkeypatch.setattr(module, "SYNC_SECONDS", 0)
    monkeypatch.setattr(module, "sync", lambda _folder: None)  # a busy disk takes longer than all that comes here
    mirror.files["bundle.tgz"] = body = archive(members := large(3))
    mirror.sums()
    mirror.cut_after["bundle.tgz"] = [1 << 20] * 15 + [0] * 1000
    assert "the next run goes on" in bring(tmp_path, mirror, connections=1)["msg"]
    (staging,) = tmp_path.glob(".databundle-*")
    point = json.loads((staging / module.SYNCED).read_bytes()[module.HEAD.size :].partition(b"\n")[0])
    assert point["consumed"] > 4 << 20
    assert all((staging / name).exists() for name in module.LATEST)  # and cannot be used
    for path in sorted(staging.rglob("data/grch38/0*"))[point["count"]["files"] + 1 :]:
        path.write_bytes(b"")
    mirror.cut_after.clear()
    mirror.sent = 0
    monkeypatch.setattr(module, "boot_id", lambda: "another")
    assert bring(tmp_path, mirror)["changed"] is True
    assert mirror.sent < len(body) - (3 << 20)
    assert all((tmp_path / f"bundles/{DATE}" / name).read_bytes() == content for name, content in members.items())


def test_a_checkpoint_cut_while_it_was_written_is_not_used(mirror: Mirror, tmp_path: Path) -> None:
    module = load("module_utils._transfer.archive")
    download = load("module_utils._transfer.download").Download(f"{mirror.url}/bundle.tgz")
    states = {"inflate": bytes(module.Gunzip.STATE_BYTES), "sha256": b"\n" * module.Sha256.STATE_BYTES}
    points = [states | {"consumed": number} for number in range(1, 4)]
    checkpoints = module.Checkpoints(str(tmp_path), download)
    for point in points:
        checkpoints.write(point)
        assert module.Checkpoints(str(tmp_path), download).read().items() >= point.items()
    third, second = (tmp_path / name for name in module.LATEST)
    whole = third.read_bytes()
    third.write_bytes(whole[:-1] + b"x")
    assert checkpoints.read().items() >= points[1].items()
    for torn in (b"", whole[:5], whole[:-1]):
        second.write_bytes(torn)
        assert checkpoints.read() == {}


def test_a_new_archive_is_not_mixed_with_what_a_cut_run_left(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["bundle.tgz"] = archive(large(4))
    mirror.sums()
    mirror.cut_after["bundle.tgz"] = [1 << 20] * 15 + [0] * 1000
    assert "the next run goes on" in bring(tmp_path, mirror, connections=1)["msg"]
    mirror.cut_after.clear()
    mirror.files["bundle.tgz"] = archive(members := large(5))
    mirror.sums()
    assert bring(tmp_path, mirror)["changed"] is True
    assert all((tmp_path / f"bundles/{DATE}" / name).read_bytes() == content for name, content in members.items())


def test_files_that_got_lost_on_the_way_to_the_disk_are_noticed(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("module_utils._transfer.archive")
    monkeypatch.setattr(module.Checkpoints, "finish", lambda points: (Path(points.folder) / "data/grch38/big").unlink())
    refused(bring(tmp_path, mirror), tmp_path, "bundle.tgz", "2", "1", "nothing was put in place")


def test_full_disk_is_told_and_left_free(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("module_utils._transfer.archive")
    full = Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "big"))
    monkeypatch.setattr(module.os, "write", full)
    refused(bring(tmp_path, mirror), tmp_path, "No space left")


def test_missing_library_is_named(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load("module_utils._transfer.gunzip"), "ISAL", "libnone.so.2")
    refused(bring(tmp_path, mirror), tmp_path, "libisal2")
