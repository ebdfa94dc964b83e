"""The checks of files and folders that `pcgr` and `cpsr` 2.3.2 make before anything runs; a failed one exits with code 1."""

from __future__ import annotations

import argparse
import csv
import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import BUNDLE, METADATA, SITES, VEP, VEP_ASSEMBLY
from .console import Log

FIRST = ("vcf.gz", "pass.vcf.gz", "pass.tsv.gz", "html", "xlsx", "conf.yaml")
PCGR_MORE = (
    "cna_gene.tsv.gz",
    "cna_segment.tsv.gz",
    "expression.tsv.gz",
    "expression_outliers.tsv.gz",
    "snv_indel_ann.tsv.gz",
    "expression_similarity.tsv.gz",
    "maf",
    "tmb.tsv",
    "msigs.tsv.gz",
    "rna_fusion.tsv.gz",
)
CPSR_MORE = ("classification.tsv.gz",)


@dataclass(frozen=True)
class Places:
    """Where a run reads and writes: `prefix` is the output folder plus ``<sample>.<command>.<assembly>``."""

    refdata: Path
    output_dir: Path
    prefix: str

    def output(self, suffix: str) -> Path:
        """Return the path of the output with a suffix such as ``vcf.gz``."""
        return Path(f"{self.prefix}.{suffix}")


def check_pcgr(args: argparse.Namespace) -> Places:
    """Check in pcgr's order: input files, VEP folder, bundle, then the outputs that must not exist yet."""
    log = Log("pcgr-check-files")
    if args.pon_vcf is not None:
        _filled(args.pon_vcf, log)
        _suffix(args.pon_vcf, (".vcf.gz",), "Panel of normals VCF file", log)
        _index(args.pon_vcf, log)
        if args.input_vcf is None:
            log.warn("Ignoring the panel of normals: --input_vcf missing")
            args.pon_vcf = None
    if args.input_vcf is not None:
        _filled(args.input_vcf, log)
        _suffix(args.input_vcf, (".vcf", ".vcf.gz"), "VCF input file", log)
        if args.input_vcf.endswith(".vcf.gz"):
            _index(args.input_vcf, log)
    tables = (
        ("input_cna", "CNA segment input file"),
        ("input_rna_fusion", "RNA fusion variants file"),
        ("input_rna_expression", "RNA gene expression file"),
    )
    for name, what in tables:
        path = getattr(args, name)
        if path is not None:
            _filled(path, log)
            _suffix(path, (".tsv", ".txt"), what, log)
    if args.input_cpsr is not None:
        if not Path(args.input_cpsr).exists():
            log.refuse(f"Input file ({args.input_cpsr}) does not exist")
        _suffix(args.input_cpsr, (".tsv.gz",), "File with CPSR-classified germline calls", log)
        if args.input_cpsr_yaml is None:
            log.refuse("Input file with CPSR configuration settings (--input_cpsr_yaml) is missing")
        _filled(args.input_cpsr_yaml, log)
    if args.input_vcf is not None:
        _vep(args, log)
    refdata = _bundle(args, log)
    return _outputs(args, "pcgr", refdata)


def check_cpsr(args: argparse.Namespace) -> Places:
    """Check in cpsr's order: create the output folder, then gene list, VCF, existing VCF output, VEP folder, bundle, outputs."""
    log = Log("cpsr-validate-input-arguments-b")
    output_dir = _make(args.output_dir)
    if args.custom_list is not None:
        _filled(args.custom_list, log)
    _filled(args.input_vcf, log)
    _suffix(args.input_vcf, (".vcf", ".vcf.gz"), "VCF input file", log)
    if (
        args.input_vcf.endswith(".vcf.gz") and not Path(f"{args.input_vcf}.tbi").exists()
    ):  # unlike in pcgr, the index may be empty
        _no_index(args.input_vcf, log)
    vcf = output_dir / f"{args.sample_id}.cpsr.{args.genome_assembly}.vcf.gz"
    if vcf.exists() and not args.force_overwrite:
        _taken(vcf, log)
    _vep(args, log)
    refdata = _bundle(args, log)
    return _outputs(args, "cpsr", refdata)


def check_metadata(args: argparse.Namespace, command: str, refdata: Path) -> list[dict[str, str]]:
    """Read the tables that PCGR reads for its configuration; return the rows about data sources.

    Raises AttributeError for a missing or empty file and KeyError for a missing column, because PCGR ends with exactly
    these tracebacks (exit code 1): its error call has its arguments swapped.
    """
    rows: list[dict[str, str]] = []
    for kind in METADATA:
        path = refdata / ".METADATA" / "tsv" / f"{kind}_metadata.tsv"
        rows += [{**row, "source_type": kind} for row in _table(path, "source_abbreviation")]
    sites = _table(refdata / "phenotype" / "tsv" / "phenotype_onco.tsv.gz", "primary_site")
    if (
        command == "pcgr"
        and args.tumor_site
        and not any(row["primary_site"] == SITES[args.tumor_site] for row in sites)
    ):
        Log("pcgr-write-yaml").note(f"No phenotype of the bundle names the site '{SITES[args.tumor_site]}'")
    if command == "cpsr":
        panels = _table(refdata / "gene" / "tsv" / "gene_virtual_panel" / "gene_virtual_panel.tsv.gz", "id")
        if args.panel_id != "-1" and not any(row["id"] in args.panel_id.split(",") for row in panels):
            raise IndexError("list index out of range")  # PCGR reads the first gene of the panel
        if args.secondary_findings or args.pgx_findings:
            _table(refdata / "gene" / "tsv" / "gene_cpg" / "gene_cpg.tsv.gz", "cpg_source")
    return rows


def _table(path: Path, column: str) -> list[dict[str, str]]:
    if not path.is_file() or not path.stat().st_size:
        raise AttributeError(
            f"'NoneType' object has no attribute 'error' (file {path} does not exist or has zero size)"
        )
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as stream:
        reader: csv.DictReader[Any] = csv.DictReader(stream, delimiter="\t")
        if column not in (reader.fieldnames or ()):
            raise KeyError(column)
        return [dict(row) for row in reader]


def _filled(path: str, log: Log) -> None:
    if not Path(path).is_file() or not Path(path).stat().st_size:
        log.refuse(f"File {Path(path).absolute()} does not exist or has zero size")


def _suffix(path: str, allowed: tuple[str, ...], what: str, log: Log) -> None:
    if not path.endswith(allowed):
        log.refuse(
            f"{what} ({Path(path).absolute()}) does not have the correct file extension ({' or '.join(allowed)})"
        )


def _no_index(path: str, log: Log) -> None:
    log.refuse(f"Tabix file (i.e. '.gz.tbi') is not present for the bgzipped VCF input file ({path})")


def _index(path: str, log: Log) -> None:
    index = Path(f"{path}.tbi")
    if not index.exists():
        _no_index(path, log)
    if not index.is_file() or not index.stat().st_size:
        raise AttributeError(
            f"'NoneType' object has no attribute 'error' (file {index} does not exist or has zero size)"
        )


def _vep(args: argparse.Namespace, log: Log) -> None:
    base = Path(args.vep_dir).absolute()
    for folder in (base, base / "homo_sapiens", base / "homo_sapiens" / f"{VEP}_{VEP_ASSEMBLY[args.genome_assembly]}"):
        if not folder.is_dir():
            log.refuse(f"VEP directory ('{folder}') does not exist")


def _bundle(args: argparse.Namespace, log: Log) -> Path:
    base = Path(args.refdata_dir).absolute()
    if not base.is_dir():
        log.refuse(f"Base directory ({base}) does not exist")
    if not (base / "data").is_dir():
        log.refuse(f"Data directory ({base / 'data'}) does not exist")
    refdata = base / "data" / str(args.genome_assembly)
    if not refdata.is_dir():
        log.refuse(f"Data directory for the specified genome assembly ({refdata}) does not exist")
    version = refdata / ".PCGR_BUNDLE_VERSION"
    if not version.exists():
        log.refuse(f"Could not find file ('{version}') in the PCGR reference data directory - exiting.")
    if BUNDLE not in version.read_text():
        log.refuse(
            f"The PCGR reference bundle is not compliant with the software version - {version} must name {BUNDLE}"
        )
    return refdata


def _make(folder: str) -> Path:
    path = Path(folder).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def _taken(path: Path, log: Log) -> None:
    log.refuse(
        f"Output files (e.g. {path}) already exist - please specify different sample_id or add option --force_overwrite"
    )


def _outputs(args: argparse.Namespace, command: str, refdata: Path) -> Places:
    log = Log("define-output-files")
    output_dir = _make(args.output_dir)
    places = Places(refdata, output_dir, str(output_dir / f"{args.sample_id}.{command}.{args.genome_assembly}"))
    for suffix in (*FIRST, *(PCGR_MORE if command == "pcgr" else CPSR_MORE)):
        path = places.output(suffix)
        if path.exists() and not args.force_overwrite:
            _taken(path, log)
    return places
