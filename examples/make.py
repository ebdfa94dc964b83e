#!/usr/bin/env python3
"""Make the two example tarballs from variants.tsv: the same content every time, without a reference genome.

examples/make.py           write the tarballs next to this script
examples/make.py --check   exit with 0 if the committed tarballs match what this script makes, else with 1
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
try:
    import pysam

    from umccr_pcgr.samples.genome import LENGTHS
except ImportError as error:
    sys.exit(f"make.py: {error}; run make, then . .venv/bin/activate")

SOMATIC = "demo-000001-somatic"
NORMAL = "demo-000002-normal"

CHROMOSOMES = LENGTHS["grch38"]

# Invented segments: (chromosome, start, end, major copies, minor copies); the rest of the genome is 1 + 1. Each holds the
# gene named in the comment; positions of genes are from Ensembl (GRCh38).
SEGMENTS = [
    ("7", 54_900_001, 55_500_000, 6, 1),  # gain with EGFR (55,019,017-55,211,628)
    ("8", 127_000_001, 128_500_000, 8, 1),  # amplification with MYC (127,735,434-127,742,951)
    ("9", 21_500_001, 22_500_000, 0, 0),  # homozygous deletion of CDKN2A (21,967,752-21,995,301)
    ("10", 80_000_001, 95_000_000, 1, 0),  # loss of one PTEN (87,862,638-87,971,930)
    ("11", 69_500_001, 70_000_000, 5, 1),  # amplification with CCND1 (69,641,156-69,654,474)
    ("13", 48_000_001, 49_000_000, 1, 0),  # loss of one RB1 (48,303,751-48,481,890)
    ("17", 1, 22_000_000, 1, 0),  # loss of one TP53 (7,661,779-7,687,550)
    ("17", 39_300_001, 40_000_000, 12, 1),  # amplification with ERBB2 (39,688,094-39,728,658)
]

SOMATIC_TOML = """\
# Options of PCGR for this sample; names as on PCGR's command line, without the dashes.
genome_assembly = "grch38"

[pcgr]
tumor_site = 0                   # 0 = any
assay = "WES"
effective_target_size_mb = 34.0
tumor_dp_tag = "TDP"
tumor_af_tag = "TVAF"
call_conf_tag = "TAL"
estimate_tmb = true
"""
NORMAL_TOML = """\
# Options of CPSR for this sample; names as on CPSR's command line, without the dashes.
genome_assembly = "grch38"

[cpsr]
panel_id = "0"                   # 0 = all genes of the superpanel
"""

GENE_INFO = '##INFO=<ID=HOTSPOT_GENE,Number=1,Type=String,Description="Gene symbol, as in examples/variants.tsv">'
TUMOR_INFO = [
    '##INFO=<ID=TDP,Number=1,Type=Integer,Description="Sequencing depth at the variant, tumor (made up)">',
    '##INFO=<ID=TVAF,Number=1,Type=Float,Description="Allelic fraction of the variant, tumor (made up)">',
    '##INFO=<ID=TAL,Number=.,Type=String,Description="Callers of the variant (made up)">',
]


@dataclass(frozen=True)
class Variant:
    """One line of variants.tsv; `pos` is 1-based on GRCh38."""

    gene: str
    chrom: str
    pos: int
    ref: str
    alt: str
    rsid: str

    @property
    def rank(self) -> tuple[int, int, str]:
        """The sort key of the record in a VCF."""
        return list(CHROMOSOMES).index(self.chrom.removeprefix("chr")), self.pos, self.alt

    def number(self, what: str, low: int, high: int) -> int:
        """Return an invented number between `low` and `high` that is always the same for this variant."""
        digest = hashlib.sha256(f"{what} {self.chrom} {self.pos} {self.alt}".encode()).digest()
        return low + int.from_bytes(digest[:4]) % (high - low + 1)


def variants(sample: str) -> list[Variant]:
    """Return the sample's variants in the order of a VCF."""
    with (HERE / "variants.tsv").open(encoding="utf-8", newline="") as lines:
        found = [
            Variant(row["gene"], row["chrom"], int(row["pos"]), row["ref"], row["alt"], row["rsid"] or ".")
            for row in csv.DictReader(lines, delimiter="\t")
            if row["sample"] == sample
        ]
    return sorted(found, key=lambda variant: variant.rank)


def vcf(sample: str) -> Iterator[str]:
    """Yield the lines of the sample's VCF, without line ends."""
    somatic = sample == SOMATIC
    yield "##fileformat=VCFv4.2"
    yield "##source=umccr.pcgr examples/make.py: public variants put together, no patient"
    yield '##FILTER=<ID=PASS,Description="All filters passed">'
    for name, length in CHROMOSOMES.items():
        yield f"##contig=<ID=chr{name},length={length},assembly=GRCh38>"
    yield GENE_INFO
    if somatic:
        yield from TUMOR_INFO
    yield '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">'
    yield "\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", sample])
    for variant in variants(sample):
        info = f"HOTSPOT_GENE={variant.gene}"
        if somatic:
            depth, fraction = variant.number("depth", 60, 400), variant.number("fraction", 5, 60) / 100
            info += f";TDP={depth};TVAF={fraction:.2f};TAL=mutect2,strelka2"
        place = [variant.chrom, str(variant.pos), variant.rsid, variant.ref, variant.alt]
        yield "\t".join([*place, ".", "PASS", info, "GT", "0/1"])


def copy_numbers() -> Iterator[str]:
    """Yield the lines of the CNA table: SEGMENTS, and 1 + 1 copies between them."""
    yield "\t".join(["Chromosome", "Start", "End", "nMajor", "nMinor"])
    for chromosome, length in CHROMOSOMES.items():
        start = 1
        for _unused, first, last, major, minor in (segment for segment in SEGMENTS if segment[0] == chromosome):
            if start < first:
                yield f"{chromosome}\t{start}\t{first - 1}\t1\t1"
            yield f"{chromosome}\t{first}\t{last}\t{major}\t{minor}"
            start = last + 1
        yield f"{chromosome}\t{start}\t{length}\t1\t1"


def text(lines: Iterator[str]) -> bytes:
    """Join lines to the content of a file."""
    return "".join(f"{line}\n" for line in lines).encode()


def indexed(sample: str) -> dict[str, bytes]:
    """Return the sample's VCF as BGZF and its tabix index, file name -> content."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / f"{sample}.vcf"
        plain.write_bytes(text(vcf(sample)))
        path = plain.with_name(f"{plain.name}.gz")
        pysam.tabix_compress(str(plain), str(path))
        pysam.tabix_index(str(path), preset="vcf", force=True)
        return {file.name: file.read_bytes() for file in (path, path.with_name(f"{path.name}.tbi"))}


def contents(sample: str) -> dict[str, bytes]:
    """Return the members of the tarball, file name -> content."""
    files = indexed(sample)
    if sample == SOMATIC:
        files[f"{sample}.cna.tsv"] = text(copy_numbers())
    files[f"{sample}.toml"] = (SOMATIC_TOML if sample == SOMATIC else NORMAL_TOML).encode()
    return files


def pack(files: dict[str, bytes]) -> bytes:
    """Return a tar without owners and times."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def differs(path: Path, made: bytes) -> str | None:
    """Return why the tarball at `path` differs from `made`, or None. Compares uncompressed: gzip differs between zlib builds."""
    try:
        return None if gzip.decompress(path.read_bytes()) == made else "is not what make.py makes"
    except FileNotFoundError:
        return "is missing"
    except (OSError, EOFError) as error:
        return f"is no gzip file ({error})"


def main() -> int:
    """Write or check the tarballs; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the tarballs (default: next to this script)")
    arguments = parser.parse_args()
    wrong = 0
    for sample in (SOMATIC, NORMAL):
        path = arguments.out / f"{sample}.tar.gz"
        made = pack(contents(sample))
        if not arguments.check:
            path.write_bytes(gzip.compress(made, mtime=0))
        elif reason := differs(path, made):
            print(f"{path}: {reason}; run examples/make.py", file=sys.stderr)
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main())
