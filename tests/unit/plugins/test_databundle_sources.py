"""Where reference data may come from beside plain HTTP: buckets, Google Drive, folders of the machine; and their removal."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
import requests
import yaml
from ansible.errors import AnsibleError
from ansible_collections.umccr.pcgr.plugins.module_utils._release import list_releases
from moto.server import ThreadedMotoServer

from support import ROOT
from support.databundle import BUNDLE, DATE, VEP, Mirror, archive, bring, mirror, refused, release, tree, unpacked
from support.module_runner import load, record_progress, run

__all__ = ["mirror"]  # a fixture

FINAL = f"bundles/{DATE}/data/grch38"
CACHE = "vep/115/homo_sapiens/115_GRCh38"


# ---- buckets


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    settings |= {"AWS_ACCESS_KEY_ID": "key-of-the-controller", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    requests.post(
        f"{settings['AWS_ENDPOINT_URL']}/moto-api/reset", timeout=10
    )  # all servers of a process share their state
    client = boto3.client("s3")
    where = {"LocationConstraint": "ap-southeast-2"}
    boto3.client("s3", region_name="ap-southeast-2").create_bucket(Bucket="mirror", CreateBucketConfiguration=where)
    yield client
    server.stop()


def sign(folder: str, *files: str) -> dict[str, str]:
    signed: dict[str, str] = load("lookup.s3_presigned_urls").sign(folder, list(files))
    return signed


def test_bucket_through_signed_addresses(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"bundle.tgz": archive(BUNDLE), "vep.tar.gz": archive(VEP)}
    sums = "".join(f"{hashlib.sha256(body).hexdigest()}  {name}\n" for name, body in files.items())
    for name, body in (files | {"SHA256SUMS": sums.encode()}).items():
        bucket.put_object(Bucket="mirror", Key=f"pcgr/{name}", Body=body)
    signed = sign("s3://mirror/pcgr/", *files, "SHA256SUMS")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # the machine has none
        monkeypatch.delenv(name)
    root = tmp_path / "root"
    answer = bring(root, None, mirror_url="s3://mirror/pcgr", signed=signed)
    assert answer["changed"] is True, answer
    assert (root / FINAL / "big").read_bytes() == BUNDLE["data/grch38/big"]
    left = "".join(path.read_text("latin-1") for path in tmp_path.rglob("*.json"))
    assert "s3://mirror/pcgr/bundle.tgz" in left
    assert "Signature" not in left
    assert bring(root, None, mirror_url="s3://mirror/pcgr", signed=signed)["changed"] is False


def test_addresses_are_signed_for_the_buckets_own_region(bucket: Any) -> None:
    (address,) = sign("s3://mirror/pcgr", "a b.tgz").values()
    asked = parse_qs(urlsplit(address).query)
    assert asked["X-Amz-Credential"][0].split("/")[2] == "ap-southeast-2"
    assert asked["X-Amz-Expires"] == ["604800"]
    assert urlsplit(address).path.endswith("/pcgr/a%20b.tgz")


def test_a_public_bucket_needs_no_credentials(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (address,) = sign("s3://mirror/pcgr", "a.tgz").values()
    assert "?" not in address


def test_other_mirrors_are_not_signed() -> None:
    assert sign("https://mirror.example.org/pcgr", "a.tgz") == {}


def test_no_such_bucket(bucket: Any) -> None:
    with pytest.raises(AnsibleError, match=r"^s3://none: no such bucket"):
        sign("s3://none/pcgr", "a.tgz")


def test_bucket_without_signed_addresses(tmp_path: Path) -> None:
    wanted = release(sha256="0" * 64)
    wanted["vep"]["location"] = "in_bundle"
    refused(
        bring(tmp_path, None, mirror_url="s3://mirror", release=wanted), tmp_path, "s3://mirror/bundle.tgz", "signed"
    )


def test_what_the_store_says_is_told(mirror: Mirror, tmp_path: Path) -> None:
    mirror.refusal = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
    signed = {"s3://mirror/bundle.tgz": f"{mirror.url}/bundle.tgz?X-Amz-Signature=secret"}
    answer = bring(tmp_path, None, mirror_url="s3://mirror", signed=signed, release=release(sha256="0" * 64))
    assert "s3://mirror/SHA256SUMS" in answer["msg"]  # not signed, and the VEP cache's sum is not known
    signed["s3://mirror/SHA256SUMS"] = f"{mirror.url}/SHA256SUMS?X-Amz-Signature=secret"
    answer = bring(tmp_path, None, mirror_url="s3://mirror", signed=signed)
    refused(answer, tmp_path, "s3://mirror/SHA256SUMS", "403", "Request has expired")
    assert "secret" not in answer["msg"]


# ---- Google Drive


def from_drive(mirror: Mirror, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> dict[str, Any]:
    """A release whose bundle is in a Drive, and the Drive with `files` by id."""
    monkeypatch.setattr(load("module_utils._transfer.download"), "GDRIVE", f"{mirror.url}/")
    mirror.files = files
    wanted = release(gdrive_id="1tOyPmzgXkSZjPJQOojFQxUP8JlQuQqLq")
    wanted["vep"]["location"] = "in_bundle"
    return wanted


def test_google_drive_by_id(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = archive(BUNDLE | {"data/grch38/.vep/homo_sapiens/92_GRCh38/info.txt": b"x"})
    wanted = from_drive(mirror, monkeypatch, {"1tOyPmzgXkSZjPJQOojFQxUP8JlQuQqLq": body})
    answer = bring(tmp_path, None, release=wanted)
    assert answer["changed"] is True, answer
    assert (
        json.loads((tmp_path / FINAL / ".umccr.pcgr.json").read_text())["source"]
        == "gdrive:1tOyPmzgXkSZjPJQOojFQxUP8JlQuQqLq"
    )


def test_google_drives_page_instead_of_the_file(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head></html>"
    wanted = from_drive(mirror, monkeypatch, {"1tOyPmzgXkSZjPJQOojFQxUP8JlQuQqLq": page})
    mirror.type = "text/html; charset=utf-8"
    refused(bring(tmp_path, None, release=wanted), tmp_path, "gdrive:1tOy", "Google Drive - Quota exceeded")


@pytest.mark.parametrize("name", [n for n in list_releases() if n != "rehearsal"])
def test_every_release_says_where_its_data_are(name: str) -> None:
    data = load("module_utils._refdata.parts")
    wanted = yaml.safe_load((ROOT / f"releases/{name}.yml").read_text())
    parts = data.plan(wanted, wanted["assemblies"])
    assert all(re.match(r"https?://|gdrive:[\w-]{20,}$", part.url) for part in parts)
    assert len({part.archive for part in parts}) == len(parts)


def test_address_of_google_drive() -> None:
    assert load("module_utils._transfer.download").GDRIVE.startswith("https://drive.usercontent.google.com/download?")


# ---- a folder of the machine


@pytest.mark.parametrize(
    ("bundle", "cache"),
    [("", ""), (f"{DATE}/", ""), (f"bundles/{DATE}/", "vep/115/")],
    ids=["as documented", "by date", "as here"],
)
def test_seed_is_copied(tmp_path: Path, bundle: str, cache: str) -> None:
    seed = unpacked(tmp_path / "seed", {bundle + name: body for name, body in BUNDLE.items()})
    unpacked(seed, {cache + name: body for name, body in VEP.items()})
    (seed / bundle / "data/grch38/big").chmod(0o600)
    (seed / bundle / "data/grch38/same").symlink_to("big")
    before, root = tree(seed), tmp_path / "root"
    answer = bring(root, None, seed=str(seed))
    assert answer["changed"] is True, answer
    assert (root / FINAL / "big").read_bytes() == BUNDLE["data/grch38/big"]
    assert (root / FINAL / "big").stat().st_mode & 0o777 == 0o644
    assert (root / FINAL / "same").readlink() == Path("big")
    assert (root / CACHE / "info.txt").exists()
    assert not list(root.glob(".databundle*"))
    assert tree(seed) == before
    assert bring(root, None, seed=str(seed))["changed"] is False
    assert bring(root, None, seed=str(seed), release=release(sha256="0" * 64))["changed"] is False


def test_data_put_in_place_by_hand_are_only_stamped(tmp_path: Path) -> None:
    root = unpacked(tmp_path / "root", {f"bundles/{DATE}/{name}": body for name, body in BUNDLE.items()})
    unpacked(root / "vep/115", VEP)
    inode = (root / FINAL / "big").stat().st_ino
    assert bring(root, None, seed=str(root))["changed"] is True
    assert (root / FINAL / "big").stat().st_ino == inode
    assert json.loads((root / FINAL / ".umccr.pcgr.json").read_text())["files"] == 2
    assert bring(root, None, seed=str(root))["changed"] is False
    assert bring(root, None)["changed"] is False


def test_seed_of_another_release_is_named_and_not_used(mirror: Mirror, tmp_path: Path) -> None:
    seed = unpacked(tmp_path / "seed", BUNDLE | {"data/grch38/.PCGR_BUNDLE_VERSION": b"20250314\n"})
    answer = bring(tmp_path / "root", mirror, seed=str(seed))
    assert "does not contain 20260620 but '20250314'" in str(answer["warnings"])
    assert answer["parts"][0]["sha256"] == hashlib.sha256(mirror.files["bundle.tgz"]).hexdigest()
    refused(bring(tmp_path / "other", None, seed=str(seed)), tmp_path / "other", "bundle.tgz", "pcgr_mirror_url")


def test_seed_with_a_link_that_leads_away(tmp_path: Path) -> None:
    seed = unpacked(tmp_path / "seed", BUNDLE | VEP)
    (seed / "data/grch38/out").symlink_to("/etc")
    refused(bring(tmp_path / "root", None, seed=str(seed)), tmp_path / "root", "/etc", "out")


def test_seed_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = unpacked(tmp_path / "seed", BUNDLE | VEP)

    def fail(source: str, target: str) -> None:
        raise OSError(5, "Input/output error", source)

    monkeypatch.setattr(load("module_utils._refdata.seed").shutil, "copyfile", fail)
    answer = bring(tmp_path / "root", None, seed=str(seed))
    refused(answer, tmp_path / "root", "Input/output error")
    assert answer["msg"].startswith(f"{seed}/data/grch38: cannot be copied: ")


def test_seed_changed_while_it_was_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = unpacked(tmp_path / "seed", BUNDLE | VEP)
    monkeypatch.setattr(
        load("module_utils._refdata.seed").shutil, "copyfile", lambda _source, target: Path(target).touch()
    )
    refused(bring(tmp_path / "root", None, seed=str(seed)), tmp_path / "root", "nothing was put in place")


def test_copying_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller takes work that tells nothing for stalled."""
    seed = unpacked(tmp_path / "seed", BUNDLE | VEP)
    told = record_progress(monkeypatch)
    assert bring(tmp_path / "root", None, seed=str(seed))["changed"] is True
    name = load("module_utils._progress").PROGRESS
    assert (f"{tmp_path}/root/{name}", f"bundle 20260620 grch38 from {seed}/data/grch38") in {
        (one["path"], one["part"]) for one in told
    }


def test_seed_larger_than_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = unpacked(tmp_path / "seed", BUNDLE | VEP)
    usage = load("module_utils._refdata.seed").shutil._ntuple_diskusage(10, 9, 1)
    monkeypatch.setattr(load("module_utils._refdata.seed").shutil, "disk_usage", lambda _path: usage)
    refused(bring(tmp_path / "root", None, seed=str(seed)), tmp_path / "root", "GB free", str(seed))


# ---- what an archive must be


def test_known_size_is_compared_before_anything_is_unpacked(mirror: Mirror, tmp_path: Path) -> None:
    size = len(mirror.files["bundle.tgz"])
    refused(
        bring(tmp_path, mirror, release=release(bytes=size + 1)), tmp_path, "bundle.tgz", f"{size} bytes", str(size + 1)
    )
    assert bring(tmp_path, mirror, release=release(bytes=size))["changed"] is True


def test_a_cache_of_another_release_is_named(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["vep.tar.gz"] = archive({"homo_sapiens/113_GRCh38/info.txt": b"x"})
    mirror.sums()
    answer = bring(tmp_path, mirror)
    assert (
        "VEP cache 115 grch38: homo_sapiens/115_GRCh38 is missing; the archive holds homo_sapiens/113_GRCh38"
        in answer["msg"]
    )


def test_an_empty_cache_is_not_taken_for_one(mirror: Mirror, tmp_path: Path) -> None:
    bring(tmp_path, mirror)
    (tmp_path / CACHE / "info.txt").unlink()
    assert [part["installed"] for part in bring(tmp_path, mirror)["parts"]] == [False, True]


# ---- removal


def other(date: str = "20250314", vep: int = 113) -> dict[str, Any]:
    """A release that needs other data."""
    wanted = release()
    wanted["bundle"]["date"] = wanted["bundle"]["version_text"] = date
    wanted["vep"]["release"] = vep
    return wanted


def installed(root: Path, mirror: Mirror) -> None:
    """Data of two releases."""
    for wanted in (release(), other()):
        date, vep = wanted["bundle"]["date"], wanted["vep"]["release"]
        versions = {f"data/{name}/.PCGR_BUNDLE_VERSION": date.encode() for name in ("grch37", "grch38")}
        mirror.files["bundle.tgz"] = archive(BUNDLE | versions)
        mirror.files["vep.tar.gz"] = archive(
            {f"homo_sapiens/{vep}_{name}/info.txt": b"x" for name in ("GRCh37", "GRCh38")}
        )
        mirror.sums()
        assert bring(root, mirror, ("grch37", "grch38"), release=wanted).get("changed")


def prune(root: Path, *releases: dict[str, Any], check: bool = False, assemblies: tuple[str, ...] = ("grch38",)) -> Any:
    return run("databundle_prune", check=check, root=str(root), releases=list(releases), assemblies=list(assemblies))


def test_only_what_nobody_needs_is_removed(mirror: Mirror, tmp_path: Path) -> None:
    installed(tmp_path, mirror)
    by_hand = unpacked(tmp_path / "bundles/20200101/data/grch38", {"file": b"x"})
    everything = tree(tmp_path)
    both = ("grch37", "grch38")
    assert prune(tmp_path, release(), other(), assemblies=both)["removed"] == []
    predicted = prune(tmp_path, release(), assemblies=both, check=True)
    assert tree(tmp_path) == everything
    answer = prune(tmp_path, release(), assemblies=both)
    assert answer["removed"] == predicted["removed"]
    assert len(answer["removed"]) == 4
    assert tree(tmp_path) == {
        name: body for name, body in everything.items() if "20250314" not in name and "113" not in name
    }
    assert not (tmp_path / "bundles/20250314").exists()
    assert by_hand.is_dir()
    assert prune(tmp_path, release(), assemblies=both)["changed"] is False
    assert [Path(name).name for name in prune(tmp_path, release())["removed"]] == ["grch37", "115_GRCh37"]


def test_nothing_is_kept_by_mistake(tmp_path: Path) -> None:
    assert "at least one" in prune(tmp_path)["msg"]


def test_not_beside_a_run_that_brings_data(mirror: Mirror, tmp_path: Path) -> None:
    installed(tmp_path, mirror)
    before = tree(tmp_path)
    with load("module_utils._state").exclusive_lock(str(tmp_path)):
        assert "another run" in prune(tmp_path, release())["msg"]
    assert tree(tmp_path) == before


def test_a_removal_that_was_cut_is_finished_by_the_next_run(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, mirror)
    module = load("modules.databundle_prune")

    def cut(_path: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module.shutil, "rmtree", cut)
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path, release())
    assert list(tmp_path.glob(".databundle-*"))
    prune(tmp_path, release(), other(), assemblies=("grch37", "grch38"))
    assert not list(tmp_path.glob(".databundle-*"))
