"""The example samples: the committed tarballs are what make.py makes, and their variants are what they say."""

from __future__ import annotations

import csv
import gzip
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pysam
import pytest

from umccr_pcgr.client.archive import extract
from umccr_pcgr.samples.naming import parse

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
TARBALLS = sorted(EXAMPLES.glob("*.tar.gz"))
REAL = Path(os.environ.get("PCGR_EXAMPLES", "/nowhere"))


def make(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / "make.py", *arguments], capture_output=True, text=True, check=False
    )


def table() -> list[dict[str, str]]:
    with (EXAMPLES / "variants.tsv").open(newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def test_committed_tarballs_are_what_the_script_makes() -> None:
    done = make("--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_check_names_a_tarball_that_differs(tmp_path: Path) -> None:
    first, second = (Path(shutil.copy(path, tmp_path)) for path in TARBALLS)
    first.write_bytes(gzip.compress(gzip.decompress(first.read_bytes()).replace(b"tumor_site = 0", b"tumor_site = 6")))
    second.unlink()
    done = make("--check", "--out", tmp_path)
    assert done.returncode == 1
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == [
        "is not what make.py makes; run examples/make.py",
        "is missing; run examples/make.py",
    ]


def test_two_runs_make_the_same_bytes(tmp_path: Path) -> None:
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        assert make("--out", tmp_path / run).returncode == 0
    for path in TARBALLS:
        assert (tmp_path / "one" / path.name).read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize("path", TARBALLS, ids=lambda path: path.name)
def test_tarball_holds_the_table_and_a_working_index(path: Path, tmp_path: Path) -> None:
    sample = parse(path.name)
    with tarfile.open(path) as archive:
        members = {member.name for member in archive.getmembers()}
    extract(path, tmp_path)
    somatic = {f"{sample.name}.cna.tsv"} if sample.kind == "somatic" else set()
    assert members == {f"{sample.name}.{ending}" for ending in ("vcf.gz", "vcf.gz.tbi", "toml")} | somatic
    wanted = [row for row in table() if row["sample"] == sample.name]
    with pysam.VariantFile(str(tmp_path / f"{sample.name}.vcf.gz")) as vcf:
        assert list(vcf.header.samples) == [sample.name]
        for row in wanted:
            position = int(row["pos"])
            assert position < vcf.header.contigs[row["chrom"]].length
            hits = [
                record for record in vcf.fetch(row["chrom"], position - 1, position) if record.alts == (row["alt"],)
            ]
            assert [(hit.pos, hit.ref, hit.info["HOTSPOT_GENE"]) for hit in hits] == [
                (position, row["ref"], row["gene"])
            ]
        assert sum(1 for _unused in vcf.fetch()) == len(wanted)


def test_copy_number_segments_tile_every_chromosome(tmp_path: Path) -> None:
    extract(EXAMPLES / "demo-000001-somatic.tar.gz", tmp_path)
    with pysam.VariantFile(str(tmp_path / "demo-000001-somatic.vcf.gz")) as vcf:
        lengths = {name.removeprefix("chr"): contig.length for name, contig in vcf.header.contigs.items()}
    ends: dict[str, int] = {}
    with (tmp_path / "demo-000001-somatic.cna.tsv").open(newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            assert int(row["Start"]) == ends.get(row["Chromosome"], 0) + 1 <= int(row["End"])
            ends[row["Chromosome"]] = int(row["End"])
    assert ends == lengths


def test_table_names_a_source_and_a_cross_check_for_every_variant() -> None:
    rows = table()
    assert len({(row["sample"], row["chrom"], row["pos"], row["alt"]) for row in rows}) == len(rows) == 74
    for row in rows:
        assert row["source"] and row["note"] and row["ref"] != row["alt"]
        assert set(row["ref"] + row["alt"]) <= set("ACGT")


@pytest.mark.skipif(not REAL.is_dir(), reason="PCGR_EXAMPLES names no folder of PCGR's own examples")
def test_variants_of_pcgrs_own_examples_agree() -> None:
    ours = {(row["chrom"].removeprefix("chr"), row["pos"]): row["ref"] for row in table()}
    shared = 0
    for path in REAL.glob("*.grch38.vcf.gz"):
        with gzip.open(path, "rt") as lines:
            for fields in (line.split("\t") for line in lines if not line.startswith("#")):
                if (fields[0], fields[1]) in ours:
                    assert ours[fields[0], fields[1]] == fields[3]
                    shared += 1
    assert shared >= 3  # BRAF V600E, PIK3CA H1047R, TP53 V272M
