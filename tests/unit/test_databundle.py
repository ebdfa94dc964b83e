"""Module databundle against a loopback server: what arrives, what is refused, what is left behind."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.unit.module_runner import load, run

DATE = "20260620"


def archive(members: dict[str, bytes], extra: list[tarfile.TarInfo] | None = None) -> bytes:
    """A gzipped tar file with regular files `members` and members of other types."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w|") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra or []:
            tar.addfile(info)
    return out.getvalue()


BUNDLE = {f"data/{asm}/.PCGR_BUNDLE_VERSION": f"{DATE}\n".encode() for asm in ("grch37", "grch38")} | {
    f"data/{asm}/big": bytes(range(256)) * 4096 for asm in ("grch37", "grch38")
}
VEP = {f"homo_sapiens/115_{asm}/info.txt": b"species homo_sapiens\n" for asm in ("GRCh37", "GRCh38")}


class Mirror:
    """A folder on loopback HTTP, with faults on demand."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut_after: dict[str, list[int]] = {}  # bytes of the next answers to the name, then whole ones
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []
        self.errors: list[int] = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                asked = self.headers.get("Range")
                mirror.requests.append((name, asked))
                if mirror.errors:
                    self.send_error(mirror.errors.pop(0))
                    return
                if name not in mirror.files:
                    self.send_error(404)
                    return
                body = mirror.files[name]
                start = int(re.match(r"bytes=(\d+)-", asked)[1]) if asked and mirror.ranges else 0  # type: ignore[index]
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()[:8]}"')
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                cuts = mirror.cut_after.get(name)
                self.wfile.write(body[start:][: cuts.pop(0)] if cuts else body[start:])

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def sums(self) -> None:
        """Write SHA256SUMS for what is there now."""
        lines = [
            f"{hashlib.sha256(body).hexdigest()}  {name}\n" for name, body in self.files.items() if name != "SHA256SUMS"
        ]
        self.files["SHA256SUMS"] = "".join(lines).encode()


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setattr(load("module_utils.download").time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(load("modules.databundle").os, "sync", lambda: None)  # of the whole machine: slow
    made = Mirror()
    made.files = {"bundle.tgz": archive(BUNDLE), "vep.tar.gz": archive(VEP)}
    made.sums()
    yield made
    made.server.shutdown()
    made.server.server_close()


def release(**changes: Any) -> dict[str, Any]:
    """A release whose assemblies share their archives."""
    entry = {"file": "bundle.tgz", "url": None, "sha256": None}
    cache = {"file": "vep.tar.gz", "url": None, "sha256": None}
    return {
        "release": "rehearsal",
        "assemblies": ["grch37", "grch38"],
        "bundle": {
            "date": DATE,
            "version_file": "data/{assembly}/.PCGR_BUNDLE_VERSION",
            "version_text": DATE,
            "archives": {"grch37": entry, "grch38": entry | changes},
        },
        "vep": {"release": 115, "location": "separate", "archives": {"grch37": cache, "grch38": cache}},
    }


def bring(root: Path, mirror: Mirror | None, assemblies: tuple[str, ...] = ("grch38",), **more: Any) -> dict[str, Any]:
    more.setdefault("release", release())
    return run(
        "databundle",
        root=str(root),
        assemblies=list(assemblies),
        **({"mirror_url": mirror.url} if mirror else {}),
        **more,
    )


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


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
    assert [name for name, _ in mirror.requests] == ["SHA256SUMS"]
    assert tree(tmp_path) == before


def test_two_assemblies_in_one_archive_are_downloaded_once(mirror: Mirror, tmp_path: Path) -> None:
    answer = bring(tmp_path, mirror, ("grch37", "grch38"))
    assert len([part for part in answer["parts"] if part["brought"]]) == 4
    assert sorted(name for name, _ in mirror.requests) == ["SHA256SUMS", "bundle.tgz", "vep.tar.gz"]
    assert bring(tmp_path, mirror, ("grch37", "grch38"))["changed"] is False


def test_a_second_assembly_later_leaves_the_first_alone(mirror: Mirror, tmp_path: Path) -> None:
    bring(tmp_path, mirror)
    inode = (tmp_path / f"bundles/{DATE}/data/grch38").stat().st_ino
    answer = bring(tmp_path, mirror, ("grch38", "grch37"))
    assert [part["brought"] for part in answer["parts"]] == [False, False, True, True]
    assert (tmp_path / f"bundles/{DATE}/data/grch38").stat().st_ino == inode


def test_broken_connections_are_resumed_where_they_broke(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cut_after["bundle.tgz"] = [1000, 500, 0, 0]
    answer = bring(tmp_path, mirror)
    assert answer["changed"] is True, answer
    asked = [span for name, span in mirror.requests if name == "bundle.tgz"]
    assert asked == [None, "bytes=1000-", "bytes=1500-", "bytes=1500-", "bytes=1500-"]


def test_a_server_without_ranges_is_read_again_from_the_start(mirror: Mirror, tmp_path: Path) -> None:
    mirror.ranges = False
    mirror.cut_after["bundle.tgz"] = [1000, 2000]
    assert bring(tmp_path, mirror)["changed"] is True


def test_a_file_replaced_between_two_attempts_is_noticed(mirror: Mirror, tmp_path: Path) -> None:
    """The server ignores If-Range; only the checksum can tell."""
    mirror.cut_after["bundle.tgz"] = [1000]
    changed = bytearray(mirror.files["bundle.tgz"])
    changed[-5] ^= 1  # in gzip's length field
    mirror.files["bundle.tgz"] = bytes(changed)
    refused(bring(tmp_path, mirror), tmp_path, "bundle.tgz")


def test_passing_server_errors_are_waited_out(mirror: Mirror, tmp_path: Path) -> None:
    mirror.errors = [503, 429, 500]
    assert bring(tmp_path, mirror)["changed"] is True


def refused(answer: dict[str, Any], root: Path, *words: str) -> None:
    """The module failed with one line that has the words, and left nothing."""
    assert answer.get("failed"), answer
    assert "\n" not in answer["msg"]
    for word in words:
        assert word in answer["msg"], answer["msg"]
    assert tree(root) == {}
    assert not list(root.glob(".databundle-*"))


def test_dead_mirror_is_given_up_with_its_address(mirror: Mirror, tmp_path: Path) -> None:
    mirror.errors = [503] * 100
    refused(bring(tmp_path, mirror), tmp_path, mirror.url, "6 attempts", "503")


def test_connection_that_always_breaks_is_given_up(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cut_after["bundle.tgz"] = [1000] + [0] * 50
    refused(bring(tmp_path, mirror), tmp_path, "bundle.tgz", "byte 1000", "early")


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


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("../escaped", tarfile.REGTYPE),
        member("data/grch38/../../../escaped", tarfile.REGTYPE),
        member("/tmp/escaped-absolute", tarfile.REGTYPE),
        member("data/grch38/device", tarfile.CHRTYPE),
        member("data/grch38/fifo", tarfile.FIFOTYPE),
        member("data/grch38/hard", tarfile.LNKTYPE, "data/grch38/big"),
        member("data/grch38/up", tarfile.SYMTYPE, "../../.."),
        member("data/grch38/out", tarfile.SYMTYPE, "/etc"),
    ],
    ids=lambda info: info.name,
)
@pytest.mark.parametrize("with_filter", [True, False])
def test_hostile_members(
    mirror: Mirror, tmp_path: Path, bad: tarfile.TarInfo, with_filter: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Python has no filters for tar files yet."""
    if not with_filter:
        monkeypatch.delattr(tarfile, "data_filter")
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
        # As after a kill: nothing that follows happens, the clean-up neither.
        patched.setattr(module.os, "sync", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        patched.setattr(module.shutil, "rmtree", lambda *_a, **_k: None)
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
    assert [part["brought"] for part in answer["parts"]] == [True, False]


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
    with load("modules.databundle").alone(str(tmp_path)):
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
    answer = run("databundle", root=str(root), release=release(), assemblies=["grch38"], mirror_url=f"file://{source}")
    assert answer["changed"] is True, answer
    assert answer["parts"][0]["sha256"] == hashlib.sha256(mirror.files["bundle.tgz"]).hexdigest()
