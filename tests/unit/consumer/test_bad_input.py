"""The corpus of bad inputs: each is refused with one clear line, leaves nothing behind, and never reaches the tool."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.bad_input import CORPUS, header_of
from umccr_pcgr.samples import unpack
from umccr_pcgr.samples.model import Permanent


@pytest.mark.parametrize("case", CORPUS)
def test_refused_with_one_line(spool: Any, make: Any, case: str) -> None:
    build, said = CORPUS[case]
    spool.put(build(make))
    assert spool.settle() == ["failed"]
    report = spool.report()
    for part in said.split(" ... "):
        assert part in report["reason"]
    assert "\n" not in report["reason"]
    assert len(report["reason"]) < 400
    assert (report["permanent"], report["log_tail"]) == (True, [])
    assert spool.runtime.jobs == []
    assert spool.clean()
    assert not list(Path("/tmp").glob("escape.vcf"))
    assert not list(spool.folder.rglob("escape.vcf"))


@pytest.mark.parametrize(
    "key",
    [
        "in/S1.tar.gz",
        "in/demo-1-somatic.tar.gz",
        "in/demo-000001-tumor.tar.gz",
        "in/de mo-000001-somatic.tar.gz",
        "in/notes.txt",
    ],
)
def test_a_name_off_the_convention_is_refused(backend: Any, make: Any, key: str) -> None:
    backend.put(make.tarball(), key)
    assert backend.settle() == ["failed"]
    report = backend.report(key)
    assert report["stage"] == "name"
    assert "somatic.tar.gz" in report["reason"]
    assert backend.runtime.jobs == []


def test_a_host_that_refused_a_sample_is_marked_too(spool: Any, make: Any) -> None:
    """In a spool folder the bytes were on this host before anything checked their name."""
    spool.put(make.tarball(), "in/no-convention.tar.gz")
    assert spool.settle() == ["failed"]
    assert (spool.settings.state_dir / "processed-samples").is_file()


def test_a_name_cannot_write_into_logs(spool: Any, make: Any, caplog: pytest.LogCaptureFixture) -> None:
    key = "in/a\nERROR all is lost\x1b[2J-000001-somatic.tar.gz"
    spool.put(make.tarball(), key)
    assert spool.settle() == ["failed"]
    report = spool.report(key)
    assert (report["sample"] + report["reason"]).isprintable()
    assert caplog.messages
    assert all(message.isprintable() for message in caplog.messages)


def test_a_bomb_of_ten_gigabytes_stops_early(spool: Any, make: Any) -> None:
    """gzip members may follow one another: one packed block of zeros, repeated, is 10 GB in 10 MB made in no time."""
    block = gzip.compress(bytes(64 << 20), 9)
    spool.put(gzip.compress(header_of("s.vcf", 7 << 30)) + block * 160)
    spool.settings = replace(spool.settings, limits=replace(spool.settings.limits, unpacked_bytes=8 << 30))
    assert spool.settle() == ["failed"]
    count = int(spool.report()["reason"].split("(after ")[1].split()[0])
    assert count < 100 << 20  # of 10240 MB


def unpacked(spool: Any, data: bytes, **limits: int) -> list[str]:
    path = spool.folder / "t.tar.gz"
    path.write_bytes(data)
    options = {"members": 16, "unpacked_bytes": 64 << 20, "ratio": 200} | limits
    return unpack.unpack(path, spool.folder / f"x{len(list(spool.folder.iterdir()))}", label="t", **options)


def test_controls_the_limits_are_what_refuses(spool: Any, make: Any) -> None:
    """The same archives pass when the limit in question is wide enough."""
    bomb = make.tarball({"s.vcf": bytes(40 << 20)})
    with pytest.raises(Permanent, match="200 times"):
        unpacked(spool, bomb)
    assert unpacked(spool, bomb, ratio=2000) == ["s.vcf"]
    with pytest.raises(Permanent, match="allowed: 1048576"):
        unpacked(spool, bomb, ratio=2000, unpacked_bytes=1 << 20)
    many = make.tarball({f"{number}.toml": b"" for number in range(17)})
    assert len(unpacked(spool, many, members=17)) == 17


def test_what_is_unpacked_is_private_and_exact(spool: Any, make: Any) -> None:
    content = make.files(s__toml=b"a = 1\n" * 200)
    path = spool.folder / "t.tar.gz"
    path.write_bytes(make.tarball(content))
    target = spool.folder / "x"
    assert unpack.unpack(path, target, members=16, unpacked_bytes=1 << 20, ratio=200, label="t") == list(content)
    assert target.stat().st_mode & 0o777 == 0o700
    for name, data in content.items():
        assert (target / name).read_bytes() == data
        assert (target / name).stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):  # only ever into a fresh folder
        unpack.unpack(path, target, members=16, unpacked_bytes=1 << 20, ratio=200, label="t")


def test_archives_as_people_make_them_are_taken(spool: Any, make: Any) -> None:
    """Times and attributes in extension records (bsdtar), several gzip members (pigz), old formats."""
    info = tarfile.TarInfo("s.vcf")
    info.pax_headers = {"mtime": "1700000000.123", "LIBARCHIVE.xattr.com.apple.quarantine": "MDA4Mw"}
    info.size = 3
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=form) as archive:
            archive.addfile(info, io.BytesIO(b"abc"))
        data = raw.getvalue()
        assert unpacked(spool, gzip.compress(data[:600]) + gzip.compress(data[600:])) == ["s.vcf"]


def test_no_prefix_of_a_good_tarball_passes(spool: Any, make: Any) -> None:
    data = make.tarball()
    for cut in range(1, len(data) - 1, 7):
        with pytest.raises(Permanent):
            unpacked(spool, data[:cut])


def test_the_real_world_vcf_passes_the_checks(spool: Any, make: Any) -> None:
    """Many blocks, both spellings of chromosomes, a plain VCF without genotypes."""
    rows = [f"chr{1 + number % 22} {1000 + number}" for number in range(5000)] + ["GL000220.1 5", "MT 7", "chrX 9"]
    text = make.vcf(*rows)
    assert len(make.bgzf(text)) > 2 * 3000
    assert zlib.crc32(text)
    spool.put(make.tarball(make.files(text)))
    assert spool.settle() == ["done"]
    spool.put(make.tarball({"s.vcf": make.vcf(samples=())}), "in/demo-000002-somatic.tar.gz")
    assert spool.settle() == ["done"]


def test_cpsr_takes_one_sample_column_pcgr_takes_more(spool: Any, make: Any) -> None:
    data = make.tarball(make.files(make.vcf(samples=("T", "N"))))
    spool.put(data)
    assert spool.settle() == ["done"]
    key = "in/demo-000001-normal.tar.gz"
    spool.put(data, key)
    assert spool.settle() == ["failed"]
    assert "2 samples; allowed for a normal (CPSR): one" in spool.report(key)["reason"]
