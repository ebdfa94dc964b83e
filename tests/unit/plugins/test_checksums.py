"""Checksums of files: known ones, those of a mirror, and which of them the mirror is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.module_runner import load

checksums = load("module_utils._transfer.checksums")
KNOWN, LISTED = "a" * 64, "b" * 64


@pytest.fixture
def mirror(tmp_path: Path) -> str:
    (tmp_path / checksums.SUMS).write_text(f"{LISTED}  ./listed.tgz\n{LISTED} *known.tgz\n")
    return f"file://{tmp_path}"


def test_the_mirror_fills_in_what_is_missing_and_replaces_nothing(mirror: str) -> None:
    known = {"known.tgz": KNOWN, "listed.tgz": None, "other.tgz": None}
    found = checksums.resolve_checksums(known, mirror)
    assert found == {"known.tgz": KNOWN, "listed.tgz": LISTED, "other.tgz": None}


def test_the_mirror_is_not_asked_when_nothing_is_missing() -> None:
    assert checksums.resolve_checksums({"known.tgz": KNOWN}, "file:///nowhere", required=True) == {"known.tgz": KNOWN}


@pytest.mark.parametrize("with_mirror", [True, False])
def test_a_required_checksum_that_nobody_knows_is_an_error(mirror: str, with_mirror: bool) -> None:
    where = f"{mirror}/SHA256SUMS" if with_mirror else "pcgr_mirror_url is not set"
    with pytest.raises(checksums.NoChecksumError) as error:
        checksums.resolve_checksums({"other.tgz": None}, mirror if with_mirror else None, required=True)
    assert (error.value.name, error.value.where) == ("other.tgz", where)
    assert str(error.value) == f"{where}: no line for other.tgz"


def test_a_mirror_without_checksums_is_an_error(tmp_path: Path) -> None:
    (tmp_path / checksums.SUMS).write_text("<html>not found</html>\n")
    with pytest.raises(load("module_utils._transfer.download").DownloadError, match="holds no line as sha256sum"):
        checksums.resolve_checksums({"other.tgz": None}, f"file://{tmp_path}")
