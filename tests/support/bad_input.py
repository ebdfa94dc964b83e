"""Tarballs that must be refused, by their fault."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from typing import Any


def special(kind: bytes, name: str, link: str = "") -> tarfile.TarInfo:
    """Return a member of another kind than a regular file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def gnu_sparse(make: Any) -> bytes:
    """Return a tar whose member is sparse by pax records: a regular file by its type, a gigabyte of holes by its records."""
    info = tarfile.TarInfo("s.vcf")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 30)}
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)
    return raw.getvalue()


def header_of(name: str, size: int) -> bytes:
    """Return the tar header of a regular file."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def huge_extension(make: Any) -> bytes:
    """Return a pax record block that says it is 7 GB long, as much as the limit allows in all."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 7 << 30
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


def swapped_contigs(make: Any) -> bytes:
    """Return a sample whose header has the chromosome lengths of GRCh37."""
    return make.tarball(make.files(make.vcf(assembly="grch37")))


def past_the_end(make: Any) -> bytes:
    """Return a sample with a position beyond the end of its chromosome in GRCh38."""
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
