"""The tables that a run writes: PCGR's file names, with content counted from the input."""

from __future__ import annotations

import argparse
import gzip
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import BUNDLE, CPSR_VERSION, NOTICE, PCGR_VERSION, SITES, VEP, VEP_ASSEMBLY
from .files import Places
from .summary import Summary
from .tables import GERMLINE
from .vcf import Variant, genotype


def write_tsv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, gzipped if its name ends in .gz. Like PCGR, write no file without rows."""
    lines = ["\t".join("." if value in (None, "") else str(value) for value in row) for row in rows]
    if not lines:
        return
    data = ("\n".join(["\t".join(columns), *lines]) + "\n").encode()
    if path.suffix == ".gz":
        buffer = io.BytesIO()
        with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as stream:
            stream.write(data)
        data = buffer.getvalue()
    path.write_bytes(data)


def variant_table(args: argparse.Namespace, variants: Sequence[Variant]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of a variant list, with columns of INFO tags only if the options retain them."""
    retained = [] if args.retained_info_tags == "None" else args.retained_info_tags.split(",")
    columns = ["SAMPLE_ID", "CHROM", "POS", "REF", "ALT", "FILTER", "VAR_ID", "VARIANT_CLASS", "SYMBOL"]
    support = ["DP_TUMOR", "VAF_TUMOR", "AD_TUMOR", "DP_CONTROL", "VAF_CONTROL"]
    rows = []
    for variant in variants:
        chromosome, position, _unused, reference, alternative, _unused, filters = variant.fields[:7]
        row: list[Any] = [args.sample_id, chromosome, int(position), reference, alternative, filters]
        row += [variant.identity, variant.kind, variant.gene]
        row += [
            variant.depth,
            variant.fraction,
            variant.alternative_depth,
            variant.control_depth,
            variant.control_fraction,
        ]
        if retained:
            info = variant.info()
            row += [info.get(tag) for tag in retained]
        rows.append(row)
    return [*columns, *support, *retained], rows


def write_maf(path: Path, args: argparse.Namespace, variants: Sequence[Variant]) -> None:
    """Write a MAF of all variants, because vcf2maf runs before any filter: coordinates, alleles and counts, uninterpreted."""
    columns = [
        "Hugo_Symbol",
        "NCBI_Build",
        "Chromosome",
        "Start_Position",
        "End_Position",
        "Strand",
        "Variant_Type",
        "Reference_Allele",
        "Tumor_Seq_Allele1",
        "Tumor_Seq_Allele2",
        "Tumor_Sample_Barcode",
        "t_depth",
        "t_ref_count",
        "t_alt_count",
        "FILTER",
        "VAR_ID",
    ]
    lines = ["#version 2.4", f"#{NOTICE}", "\t".join(columns)]
    for variant in variants:
        start, end, reference, alternative, kind = _maf_alleles(variant)
        alternates = variant.alternative_depth
        references = None if alternates is None or variant.depth is None else variant.depth - alternates
        row = [variant.gene or "Unknown", VEP_ASSEMBLY[args.genome_assembly], variant.fields[0], start, end, "+", kind]
        row += [reference, reference, alternative, args.sample_id, variant.depth, references, alternates]
        row += [variant.fields[6], variant.identity]
        lines.append("\t".join("" if value is None else str(value) for value in row))
    path.write_text("\n".join(lines) + "\n")


def _maf_alleles(variant: Variant) -> tuple[int, int, str, str, str]:
    start, reference, alternative = int(variant.fields[1]), variant.fields[3], variant.fields[4]
    if variant.kind == "insertion" and len(reference) == 1:
        return start, start + 1, "-", alternative[1:], "INS"
    if variant.kind == "deletion" and len(alternative) == 1:
        return start + 1, start + len(reference) - 1, reference[1:], "-", "DEL"
    kind = {"SNV": "SNP", "MNV": "DNP" if len(reference) == 2 else "TNP" if len(reference) == 3 else "ONP"}
    default = "INS" if len(alternative) > len(reference) else "DEL"
    return start, start + len(reference) - 1, reference, alternative, kind.get(variant.kind, default)


def tmb_rows(args: argparse.Namespace, summary: Summary) -> list[list[Any]]:
    """Return mutations per Mb over all PASS variants that meet the TMB thresholds: the rehearsal knows no consequences."""
    lower = (
        ("depth", float(args.tmb_dp_min or 0)),
        ("fraction", float(args.tmb_af_min or 0)),
        ("alternative_depth", float(args.tmb_ad_min or 0)),
    )
    count = sum(
        all(getattr(variant, name) is None or getattr(variant, name) >= bound for name, bound in lower)
        for variant in summary.passed
    )
    size = args.effective_target_size_mb
    rate = round(count / size, 4) if size else None
    row: list[Any] = [args.sample_id, len(summary.passed), "REHEARSAL_all_variants", ".", size]
    return [[*row, args.tmb_dp_min or 0, args.tmb_af_min or 0, count, rate, "mutations/Mb"]]


TMB = [
    "SAMPLE_ID",
    "N_SOMATIC_VARIANTS",
    "TMB_MEASURE",
    "TMB_CSQ_REGEX",
    "TMB_TARGET_SIZE_MB",
    "TMB_DP_MIN",
    "TMB_AF_MIN",
    "TMB_N_VARIANTS",
    "TMB_ESTIMATE",
    "TMB_UNIT",
]


def write_pcgr_tables(args: argparse.Namespace, places: Places, summary: Summary) -> None:
    """Write the tables of the annotation steps after the VCF: TMB, expression, copy numbers, fusions."""
    if args.input_vcf is not None and args.estimate_tmb:
        write_tsv(places.output("tmb.tsv"), TMB, tmb_rows(args, summary))
    rows = [(row["TargetID"], row["TPM"]) for row in summary.expression]
    write_tsv(places.output("expression.tsv.gz"), ("TargetID", "TPM"), rows)
    segments = segment_rows(args, summary)
    write_tsv(places.output("cna_segment.tsv.gz"), SEGMENT, segments)
    write_tsv(
        places.output("cna_gene_ann.tsv.gz"), (*SEGMENT, "SYMBOL", "N_VARIANTS"), _segment_genes(summary, segments)
    )
    fusions = [[args.sample_id, *(row.get(name) for name in FUSION[1:])] for row in summary.fusions]
    write_tsv(places.output("rna_fusion.tsv.gz"), FUSION, fusions)


def write_report_tables(args: argparse.Namespace, places: Places, summary: Summary) -> None:
    """Write the tables of PCGR's report step: filtered variants, base changes, filtered fusions."""
    if args.input_vcf is not None:
        write_tsv(places.output("snv_indel_ann.tsv.gz"), *variant_table(args, summary.reported))
        if args.tumor_only:
            write_tsv(places.output("snv_indel_unfiltered_ann.tsv.gz"), *variant_table(args, summary.passed))
        changes = summary.substitutions()
        if args.estimate_signatures and sum(changes.values()) >= args.min_mutations_signatures:
            rows = [(args.sample_id, change, count) for change, count in changes.items()]
            write_tsv(places.output("msigs.tsv.gz"), ("SAMPLE_ID", "SUBSTITUTION", "N_VARIANTS"), rows)
    kept = [row for row in summary.fusions if int(row["SplitReads"]) >= args.fusion_min_split_reads]
    fusions = [[args.sample_id, *(row.get(name) for name in FUSION[1:])] for row in kept]
    write_tsv(places.output("fusion_ann.tsv.gz"), FUSION, fusions)


SEGMENT = ("SAMPLE_ID", "CHROM", "SEGMENT_START", "SEGMENT_END", "CN_MAJOR", "CN_MINOR", "CN_TOTAL")
FUSION = ("SAMPLE_ID", "FusionGene", "LeftBreakpoint", "RightBreakpoint", "SplitReads", "Score")


def segment_rows(args: argparse.Namespace, summary: Summary) -> list[list[Any]]:
    """Return the segments with rounded copy numbers."""
    rows = []
    for row in summary.segments:
        major, minor = round(float(row["nMajor"])), round(float(row["nMinor"]))
        place = [row["Chromosome"].removeprefix("chr"), int(row["Start"]), int(row["End"])]
        rows.append([args.sample_id, *place, major, minor, major + minor])
    return rows


def _segment_genes(summary: Summary, segments: list[list[Any]]) -> list[list[Any]]:
    """Return the genes that the VCF itself names for variants inside a segment; no rows without such names."""
    named = [variant for variant in summary.reported if variant.gene]
    rows = []
    for segment in segments:
        genes: dict[str, int] = {}
        for variant in named:
            if variant.fields[0] == segment[1] and segment[2] <= int(variant.fields[1]) <= segment[3]:
                genes[str(variant.gene)] = genes.get(str(variant.gene), 0) + 1
        rows += [[*segment, gene, count] for gene, count in sorted(genes.items())]
    return rows


def germline_rows(args: argparse.Namespace, summary: Summary) -> list[list[Any]]:
    """Return cpsr's classification table: all columns, filled if known from counts or genotypes, else None."""
    rows = []
    for variant in summary.passed:
        chromosome, position, name, reference, alternative = variant.fields[:5]
        known = {
            "SAMPLE_ID": args.sample_id,
            "VAR_ID": variant.identity,
            "GENOMIC_CHANGE": f"{chromosome}:g.{position}{reference}>{alternative}",
            "VARIANT_CLASS": variant.kind,
            "GENOTYPE": genotype(variant),
            "DP_CONTROL": variant.control_depth,
            "SYMBOL": variant.gene,
            "DBSNP_RSID": name if name.startswith("rs") else None,
        }
        rows.append([known.get(column) for column in GERMLINE])
    return rows


def configuration(
    args: argparse.Namespace, command: str, places: Places, metadata: list[dict[str, str]], files: dict[str, str]
) -> dict[str, Any]:
    """Return the content of .conf.yaml: PCGR's top-level keys, the options as given, and the notice."""
    options = {name: value for name, value in vars(args).items() if name != "oncokb_api_token"}
    conf: dict[str, Any] = {"options": options}
    if command == "pcgr":
        conf["oncokb"] = {"api_token": args.oncokb_api_token}
        conf["sample_properties"] = {"site": SITES[args.tumor_site], "sex": args.sex}
        mode = "Tumor-Only" if args.tumor_only else "Tumor-Control"
        conf["assay_properties"] = {"type": args.assay, "mode": mode}
    return {
        "rehearsal": NOTICE,
        "sample_id": args.sample_id,
        "workflow": command.upper(),
        "genome_assembly": args.genome_assembly,
        "output_dir": str(places.output_dir),
        "output_prefix": places.prefix,
        "software": {"pcgr_version": PCGR_VERSION, "cpsr_version": PCGR_VERSION if command == "pcgr" else CPSR_VERSION},
        "reference_data": {
            "version": BUNDLE,
            "path": str(places.refdata),
            "vep": VEP,
            "source_metadata": metadata,
        },
        "molecular_data": files,
        "conf": conf,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_yaml(path: Path, data: dict[str, Any]) -> None:
    """Write .conf.yaml, with the notice in its first line too."""
    import yaml

    path.write_text(f"# {NOTICE}\n{yaml.safe_dump(data)}")
