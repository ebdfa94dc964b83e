"""The corpus of bad inputs: each is refused with one clear line, leaves nothing behind, and never reaches the tool."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pcgr_consumer import unpack
from pcgr_consumer.model import Permanent


def special(kind: bytes, name: str, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def gnu_sparse(make: Any) -> bytes:
    """A tar whose member is sparse by pax records: a regular file by its type, a gigabyte of holes by its records."""
    info = tarfile.TarInfo("s.vcf")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 30)}
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)
    return raw.getvalue()


def header_of(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def huge_extension(make: Any) -> bytes:
    """A pax record block that says it is 7 GB long, as much as the limit allows in all."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 7 << 30
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


def swapped_contigs(make: Any) -> bytes:
    return make.tarball(make.files(make.vcf(assembly="grch37")))


def past_the_end(make: Any) -> bytes:
    # chromosome 1 ends at 248956422 in GRCh38 and at 249250621 in GRCh37
    return make.tarball(make.files(make.vcf("1 100", "1 249000000", assembly=None)))


CORPUS: dict[str, tuple[Callable[[Any], bytes], str]] = {
    "empty object": (lambda m: b"", "in/demo-000001-somatic.tar.gz: the object is empty (0 bytes)"),
    "not gzip": (lambda m: b"plain text", "damaged gzip: Not a gzipped file"),
    "truncated gzip": (
        lambda m: m.tarball(m.files(s__toml=bytes(range(256)) * 40))[:-20],
        "truncated gzip: the file ends before",
    ),
    "gzip with a wrong checksum": (lambda m: m.tarball()[:-8] + bytes(8), "damaged gzip: CRC check failed"),
    "gzip of something else": (lambda m: gzip.compress(b"x" * 5000), "not a tar archive"),
    "cut inside the tar": (lambda m: gzip.compress(gzip.decompress(m.tarball())[:700]), "truncated tar archive"),
    "cut at the end of a member": (
        lambda m: gzip.compress(header_of("s.vcf", 512) + b"a" * 512),
        "truncated tar archive",
    ),
    "damaged second header": (
        lambda m: gzip.compress(header_of("s.vcf", 512) + b"a" * 512 + b"\1" * 512 + bytes(1024)),
        "damaged tar header",
    ),
    "data after the end": (
        lambda m: gzip.compress(header_of("s.vcf", 0) + bytes(1024) + header_of("t.toml", 0)),
        "data after the end of the tar",
    ),
    "no files": (lambda m: m.tarball({}), "the archive holds no files"),
    "no VCF": (
        lambda m: m.tarball({"a.toml": b""}),
        "found no VCF; allowed: exactly one *.vcf.gz with its *.vcf.gz.tbi",
    ),
    "two VCFs": (
        lambda m: m.tarball({"a.vcf": m.vcf(), "b.vcf": m.vcf()}),
        "found 2 VCFs (a.vcf,b.vcf); allowed: exactly one",
    ),
    "two tables": (lambda m: m.tarball(m.files(a__cna__tsv=b"", b__cna__tsv=b"")), "found 2 files *.cna.tsv"),
    "no index": (lambda m: m.tarball({"s.vcf.gz": m.bgzf(m.vcf())}), "s.vcf.gz: its index s.vcf.gz.tbi is missing"),
    "index of another file": (
        lambda m: m.tarball({"s.vcf.gz": m.bgzf(m.vcf()), "t.vcf.gz.tbi": m.TBI}),
        "t.vcf.gz.tbi: there is no t.vcf.gz to it",
    ),
    "empty index": (lambda m: m.tarball(m.files() | {"s.vcf.gz.tbi": b""}), "s.vcf.gz.tbi: found an empty file"),
    "wrong index": (
        lambda m: m.tarball(m.files() | {"s.vcf.gz.tbi": gzip.compress(b"CSI\1")}),
        "s.vcf.gz.tbi: found a file beginning b'CSI",
    ),
    "gzip instead of bgzip": (
        lambda m: m.tarball(m.files() | {"s.vcf.gz": gzip.compress(m.vcf())}),
        "s.vcf.gz: packed with gzip; allowed: bgzip",
    ),
    "VCF cut at a block": (
        lambda m: m.tarball(m.files() | {"s.vcf.gz": m.bgzf(m.vcf())[:-28]}),
        "s.vcf.gz: truncated gzip: bgzip's end block is missing",
    ),
    "VCF cut in a block": (
        lambda m: m.tarball(m.files() | {"s.vcf.gz": m.bgzf(m.vcf())[:-90]}),
        "s.vcf.gz: truncated gzip: bgzip's end block is missing",
    ),
    "VCF with a damaged block": (
        lambda m: m.tarball(m.files() | {"s.vcf.gz": m.bgzf(m.vcf())[:-36] + bytes(8) + m.bgzf(b"")[-28:]}),
        "s.vcf.gz: damaged gzip: CRC check failed",
    ),
    "VCF not packed": (lambda m: m.tarball(m.files() | {"s.vcf.gz": m.vcf()}), "s.vcf.gz: not a gzip file"),
    "not a VCF": (
        lambda m: m.tarball({"s.vcf": b"hello\n"}),
        "s.vcf: line 1: found 'hello', allowed: ##fileformat=VCFv4.2 or newer",
    ),
    "old VCF": (lambda m: m.tarball({"s.vcf": m.vcf(version="3.3")}), "found '##fileformat=VCFv3.3'"),
    "empty VCF": (lambda m: m.tarball({"s.vcf": b""}), "s.vcf: empty file"),
    "only a header": (
        lambda m: m.tarball({"s.vcf": b"##fileformat=VCFv4.2\n##x\n"}),
        "the file ends within its header",
    ),
    "blanks for tabs": (
        lambda m: m.tarball({"s.vcf": b"##fileformat=VCFv4.2\n#CHROM POS ID\n"}),
        "found the columns '#CHROM POS ID'",
    ),
    "cut in a line": (lambda m: m.tarball({"s.vcf": m.vcf()[:-30]}), "s.vcf: line 28: ... columns, the header has 10"),
    "no number": (lambda m: m.tarball({"s.vcf": m.vcf("1 x1")}), "line 27: POS b'x1', allowed: a whole number"),
    "no variants": (lambda m: m.tarball({"s.vcf": m.vcf("MT 5")}), "no variants on the chromosomes 1-22, X and Y"),
    "other assembly by contigs": (swapped_contigs, "that of GRCh37; the sample is to be reported as GRCh38"),
    "no assembly by contigs": (
        lambda m: m.tarball(m.files(m.vcf(assembly=None, head="##contig=<ID=1,length=248387328>\n"))),
        "of neither assembly",
    ),
    "other assembly by positions": (
        past_the_end,
        "line 4: position 1:249000000 is beyond ... GRCh38 (248956422) ... it fits GRCh37 (249250621)",
    ),
    "bad TOML": (lambda m: m.tarball(m.files(s__toml=b"[pcgr]\nx = \n")), "s.toml: not valid TOML: ... line 2"),
    "TOML not UTF-8": (lambda m: m.tarball(m.files(s__toml=b"\xff\xfe")), "s.toml: not valid TOML: "),
    "unknown TOML key": (
        lambda m: m.tarball(m.files(s__toml=b"[pcgr]\ntumour_site = 3\n")),
        "s.toml: ... tumour_site ... tumor_site",
    ),
    "assembly not installed": (
        lambda m: m.tarball(m.files(s__toml=b'genome_assembly = "mm10"\n')),
        "s.toml: genome_assembly ... mm10",
    ),
    "strange file": (
        lambda m: m.tarball(m.files(run__sh=b"")),
        "member 'run.sh': not a file of a sample; allowed: *.vcf.gz.tbi",
    ),
    "member with ../": (lambda m: m.tarball({"../escape.vcf": b"x"}), "member '../escape.vcf': allowed: names of"),
    "absolute member": (lambda m: m.tarball({"/tmp/escape.vcf": b"x"}), "member '/tmp/escape.vcf': allowed: names of"),
    "member in a folder": (lambda m: m.tarball({"a/s.vcf": b"x"}), "member 'a/s.vcf': allowed: names of"),
    "option for a name": (lambda m: m.tarball({"-s.vcf": b"x"}), "member '-s.vcf': allowed: names of"),
    "line break in a name": (lambda m: m.tarball({"a\nb.vcf": b"x"}), r"member 'a\nb.vcf': allowed: names of"),
    "folder": (lambda m: m.tarball({}, special(tarfile.DIRTYPE, "s.vcf")), "member 's.vcf': is a folder"),
    "symlink": (
        lambda m: m.tarball({}, special(tarfile.SYMTYPE, "s.vcf", "/etc/passwd")),
        "member 's.vcf': is a symbolic link",
    ),
    "hard link": (
        lambda m: m.tarball({}, special(tarfile.LNKTYPE, "s.vcf", "/etc/passwd")),
        "member 's.vcf': is a hard link",
    ),
    "device file": (
        lambda m: m.tarball({}, special(tarfile.CHRTYPE, "s.vcf")),
        "member 's.vcf': is a character device",
    ),
    "named pipe": (lambda m: m.tarball({}, special(tarfile.FIFOTYPE, "s.vcf")), "member 's.vcf': is a named pipe"),
    "sparse file": (
        lambda m: m.tarball({}, special(tarfile.GNUTYPE_SPARSE, "s.vcf")),
        "member 's.vcf': is a sparse file",
    ),
    "sparse by records": (gnu_sparse, "an extension record sets 'GNU.sparse"),
    "huge extension record": (huge_extension, "an extension record of 7516192768 bytes; allowed: 65536"),
    "renamed by records": (lambda m: m.tarball({"ü" * 60 + ".vcf": b"x"}), "an extension record sets 'path'"),
    "twice the same": (
        lambda m: gzip.compress(header_of("s.vcf", 0) * 2 + bytes(1024)),
        "member 's.vcf': is in the archive twice",
    ),
    "too many members": (
        lambda m: m.tarball({f"{number}.toml": b"" for number in range(17)}),
        "member '16.toml': more than 16 files",
    ),
    "large TOML": (
        lambda m: m.tarball({"s.toml": bytes((64 << 10) + 1)}),
        "member 's.toml': has 65537 bytes; allowed: 65536",
    ),
    "member larger than all": (
        lambda m: gzip.compress(header_of("s.vcf", 65 << 20)),
        "member 's.vcf': has 68157440 bytes; allowed: 67108864",
    ),
    "bomb by ratio": (lambda m: m.tarball({"s.vcf": bytes(40 << 20)}), "unpacks to more than 200 times its size"),
    "bomb by size": (
        lambda m: m.tarball({f"{name}.vcf": bytes(33 << 20) for name in "ab"}, level=0),
        "unpacks to more than 67108864 bytes",
    ),
    "bomb inside the VCF": (
        lambda m: m.tarball(m.files() | {"s.vcf.gz": m.bgzf(m.vcf(*["1 5"] * 200_000))}, level=0),
        "s.vcf.gz: unpacks to more than 200 times",
    ),
    "endless line": (
        lambda m: m.tarball({"s.vcf": m.vcf() + b"x" * (17 << 20)}, level=0),
        "s.vcf: line 29: longer than 16777216 bytes",
    ),
}


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
def test_a_name_off_the_convention_is_refused(world: Any, make: Any, key: str) -> None:
    world.put(make.tarball(), key)
    assert world.settle() == ["failed"]
    report = world.report(key)
    assert report["stage"] == "name"
    assert "somatic.tar.gz" in report["reason"]
    assert world.runtime.jobs == []


def test_a_machine_that_refused_a_sample_is_marked_too(spool: Any, make: Any) -> None:
    """In a spool folder the bytes were on this machine before anyone looked at their name."""
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
