"""The layout of a spool: where files lie, and that role, consumer and client agree on it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from support import ROOT
from umccr_pcgr.client.spool import Spool
from umccr_pcgr.consumer.spool_files import ClaimFolder
from umccr_pcgr.consumer.spool_store import SpoolStore
from umccr_pcgr.samples.model import Outcome
from umccr_pcgr.samples.naming import Sample
from umccr_pcgr.samples.spool_layout import FOLDERS, claim_name, free_places, place


def test_places_are_the_keys_themselves_unless_they_cannot_be(tmp_path: Path) -> None:
    for key in ("a/b/demo-000001-somatic-output.tar.gz", "x", "a~/b", "a" * 255, "machines/i-0/x.json"):
        assert place(tmp_path, key) == tmp_path / key
    long = ["a" * 256, "a" * 250 + "-failed.json", "ü" * 128, "d" * 300 + "-output.tar.gz", "\udcff" * 256]
    deep = "/".join(["d"] * 600)
    found = [place(tmp_path, key) for key in [*long, deep, f"{deep}d", *(f"{'e' * 250}{n}-failed.json" for n in "12")]]
    assert len(set(found)) == len(found)
    for path in found:
        assert path.parent == tmp_path
        path.write_bytes(b"x")  # the file system takes it
    assert found[1].name.endswith("-failed.json")
    assert found[3].name.endswith("-output.tar.gz")


def test_no_free_place_is_one_where_something_is_published(tmp_path: Path) -> None:
    version = f"{1764000000000000:016d}"
    cases: tuple[tuple[Outcome, str], ...] = (("done", "-output.tar.gz"), ("failed", "-failed.json"))
    for outcome, ending in cases:
        for stem in ("in/demo-000001-somatic", "in/" + "x" * (255 - len(ending))):
            for path in free_places(tmp_path, outcome, f"{stem}{ending}", version):
                assert not path.name.endswith(ending)
                assert version in path.name
                assert len(os.fsencode(path.name)) <= 255


def test_a_claim_is_named_as_it_is_read(tmp_path: Path) -> None:
    folder = ClaimFolder.new(tmp_path, "1764000000000000", 3)
    assert ClaimFolder.read(folder.path) == folder
    assert ClaimFolder.read(tmp_path / claim_name("1764000000000000", 3, "0" * 15)) is None


@pytest.mark.parametrize(
    "folder", ["", "lab/", "x-failed.json/", "y-output.tar.gz/", "1764000000000000.1.0123456789abcdef/"]
)
def test_the_client_finds_what_the_consumer_publishes(tmp_path: Path, folder: str) -> None:
    """A folder of the inbox may have a name that the consumer reserves in its own folders."""
    for name in FOLDERS:
        (tmp_path / name).mkdir()
    sample = Sample(folder, "demo", 1, "somatic")
    store, source = SpoolStore(tmp_path), tmp_path / "content"
    source.write_bytes(b"{}")
    for key in (sample.result_key, sample.failed_key):
        store.put_if("spool", key, source, {}, None)
    store.put("spool", sample.running_key, b"{}")
    spool = Spool(tmp_path)
    assert spool.entry(sample, "result") and spool.entry(sample, "failed") and spool.entry(sample, "running")
    assert spool.download(sample, tmp_path / "out").read_bytes() == b"{}"


def test_the_role_creates_the_folders_of_the_layout() -> None:
    text = (ROOT / "roles/consumer/templates/etc/tmpfiles.d/pcgr-consumer.conf.j2").read_text()
    found = re.search(r"for folder in \[(.*)\]", text)
    assert found and tuple(re.findall(r"'(\w+)'", found[1])) == FOLDERS
