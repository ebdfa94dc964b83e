"""Read the tab-separated inputs with PCGR's validation; what it refuses raises `SubStepFailed`."""

from __future__ import annotations

import csv
import gzip
import re
from pathlib import Path

from .console import Log

Row = dict[str, str]

# Columns that pcgr requires in cpsr's table (2.3.2, pcgr_vars.py); the rehearsal of cpsr writes the same ones
GERMLINE = [
    "SAMPLE_ID",
    "VAR_ID",
    "GENOMIC_CHANGE",
    "VARIANT_CLASS",
    "GENOTYPE",
    "ALTERATION",
    "DP_CONTROL",
    "ASSERTION_AUTHORITY",
    "ASSERTION_RATIONALE",
    "GENENAME",
    "ENTREZGENE",
    "ENSEMBL_GENE_ID",
    "ENSEMBL_TRANSCRIPT_ID",
    "HGVSc",
    "HGVSc_RefSeq",
    "HGVSp",
    "CONSEQUENCE",
    "CDS_CHANGE",
    "SYMBOL",
    "CODING_STATUS",
    "PFAM_DOMAIN",
    "PFAM_DOMAIN_NAME",
    "PROTEIN_CHANGE",
    "LOSS_OF_FUNCTION",
    "NULL_VARIANT",
    "DBSNP_RSID",
    "CLINVAR_MSID",
    "CLINVAR_CLASSIFICATION",
    "CLINVAR_VARIANT_ORIGIN",
    "CLINVAR_PHENOTYPE",
    "CLINVAR_CONFLICTED",
    "CLINVAR_GOLD_STARS",
    "CPSR_CLASSIFICATION",
    "CPSR_PATHOGENICITY_SCORE",
    "ACMG_CODE",
    "CLASSIFICATION",
]
_LOG = Log("pcgr-validate-input-arguments", sub_step=True)
_BREAKPOINT = re.compile(r"(chr)?([1-9]|1[0-9]|2[0-2]|X|Y|MT):\d+")
_SYMBOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _rows(path: str, what: str, columns: tuple[str, ...]) -> list[Row]:
    with Path(path).open(newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t")
        missing = sorted(set(columns) - set(reader.fieldnames or ()))
        if missing:
            _LOG.refuse(f"{what} ({path}) is missing required column(s): {', '.join(missing)}")
        rows = list(reader)
    if not rows:
        _LOG.refuse(f"{what} is empty")
    return rows


def _parses_as(value: str | None, kind: type[int] | type[float]) -> bool:
    try:
        kind(value or "")
    except ValueError:
        return False
    return True


def copy_numbers(path: str) -> list[Row]:
    """Read allele-specific segments: Chromosome, Start, End (1-based), nMajor, nMinor."""
    rows = _rows(path, "Copy number segment file", ("Chromosome", "Start", "End", "nMajor", "nMinor"))
    for column, kind in (("Start", int), ("End", int), ("nMajor", float), ("nMinor", float)):
        if not all(_parses_as(row[column], kind) for row in rows):
            _LOG.refuse(f'Copy number segment file contains non-{kind.__name__} values for column: "{column}"')
    for row in rows:
        where = f"{row['Chromosome']}:{row['Start']}-{row['End']}"
        if int(row["End"]) < int(row["Start"]):
            _LOG.refuse(f"Detected wrongly formatted chromosomal segment - 'Start' is greater than 'End' ({where})")
        if int(row["Start"]) < 1:
            _LOG.refuse(f"Detected wrongly formatted chromosomal segment - 'Start' is below 1 ({where})")
    _LOG.info(f"Copy number segment file ('{Path(path).name}') adheres to the correct format")
    return rows


def fusions(path: str) -> list[Row]:
    """Read RNA fusions: FusionGene (A--B or A::B), LeftBreakpoint, RightBreakpoint, SplitReads, optionally Score."""
    rows = _rows(path, "RNA fusion file", ("FusionGene", "LeftBreakpoint", "RightBreakpoint", "SplitReads"))
    empty = 0
    for row in rows:
        name = row["FusionGene"]
        if not _parses_as(row["SplitReads"], int) or int(row["SplitReads"]) < 0:
            _LOG.refuse(f"'SplitReads' of '{name}' is {row['SplitReads']}, must be an integer >= 0")
        if "Score" in row and not _parses_as(row["Score"], float):
            _LOG.refuse(f"Optional 'Score' of '{name}' is {row['Score']}, must be a number")
        if "--" not in name and "::" not in name:
            _LOG.refuse(f"RNA fusion gene '{name}' missing mandatory '--' or '::' separator")
        genes = name.split("--" if "--" in name else "::")
        if len(genes) != 2:
            _LOG.refuse(f"RNA fusion gene '{name}' does not have exactly two parts")
        for gene in genes:
            if gene in ("", "v"):
                empty += 1
            elif not _SYMBOL.fullmatch(gene) or gene.isdigit():
                _LOG.refuse(f"Invalid gene symbol '{gene}' in fusion '{name}'")
        for column in ("LeftBreakpoint", "RightBreakpoint"):
            if not _BREAKPOINT.fullmatch(row[column] or ""):
                _LOG.refuse(f"Invalid {column}: '{row[column]}' - expected <chrom>:<position>")
    if empty:
        _LOG.warn(f"Found {empty} empty/missing fusion partner(s)")
    _LOG.info(f"RNA fusion file ('{Path(path).name}') adheres to the correct format")
    return rows


def expression(path: str) -> list[Row]:
    """Read bulk expression: TargetID, TPM (>= 0)."""
    rows = _rows(path, "Bulk-RNA expression file", ("TargetID", "TPM"))
    for row in rows:
        if not (_parses_as(row["TPM"], float) and float(row["TPM"]) >= 0):
            _LOG.refuse(f"'TPM' of {row['TargetID']} is {row['TPM']}, must be a number >= 0")
    _LOG.info(f"RNA expression file ('{Path(path).name}') adheres to the correct format")
    return rows


def germline(path: str, assembly: str) -> list[Row]:
    """Read the classified variants that cpsr wrote."""
    if not path.endswith(f"cpsr.{assembly}.classification.tsv.gz"):
        _LOG.refuse(
            f"Germline variants file ({path}) does not adhere to the correct naming format - wrong build or file type"
        )
    with gzip.open(path, "rt", newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t")
        for column in GERMLINE:
            if column not in (reader.fieldnames or ()):
                _LOG.refuse(f"Germline variants file ({path}) is missing required column: {column}")
        rows = list(reader)
    _LOG.info(f"Germline variants file ('{Path(path).name}') adheres to the correct format")
    return rows
