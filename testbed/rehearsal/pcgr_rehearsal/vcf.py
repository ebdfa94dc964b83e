"""Read a VCF with PCGR's validation sub-step: one `Variant` per alternative allele."""

from __future__ import annotations

import argparse
import csv
import gzip
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pysam

from . import CHROMOSOMES, NOTICE
from .arguments import UNSET
from .console import Log, SubStepFailed

RESERVED = frozenset(
    [
        "AA",
        "AC",
        "AF",
        "AN",
        "BQ",
        "CIGAR",
        "DB",
        "DP",
        "END",
        "H2",
        "H3",
        "MQ",
        "MQ0",
        "NS",
        "SB",
        "SOMATIC",
        "VALIDATED",
        "1000G",
        "GT",
        "FT",
        "GL",
        "GLE",
        "GQ",
        "PL",
        "HQ",
        "PS",
        "PQ",
        "EC",
    ]
)
_GENE_TAG = re.compile("(?i)(.*_)?(gene|symbol)")  # an INFO tag that names a gene: GENE, SYMBOL, HOTSPOT_GENE, ...
# Steps that fail if a header line of the VCF requests it, such as ##rehearsal_fault=vep; ##rehearsal_seconds=20 prolongs a run
FAULTS = ("validation", "vep", "vcf2maf", "vcfanno", "summarise", "empty_variant_set", "report", "traceback")
_ORDER = {name: index for index, name in enumerate(CHROMOSOMES)}


@dataclass(slots=True)
class Variant:
    """One alternative allele. `fields` are the columns of its VCF line (8, or more with genotypes)."""

    fields: list[str]
    depth: int | None
    fraction: float | None
    control_depth: int | None
    control_fraction: float | None
    gene: str | None

    @property
    def identity(self) -> str:
        """Chromosome, position, reference and alternative allele, joined by `_`."""
        return "_".join((self.fields[0], self.fields[1], self.fields[3], self.fields[4]))

    @property
    def passed(self) -> bool:
        """Whether the variant has passed the caller's filters, or none was applied."""
        return self.fields[6] in ("PASS", ".")

    @property
    def kind(self) -> str:
        """The kind of the variant, see `kind_of`."""
        return kind_of(self.fields[3], self.fields[4])

    @property
    def alternative_depth(self) -> int | None:
        """The number of reads with the allele: depth times fraction, rounded, as PCGR computes it."""
        return None if self.depth is None or self.fraction is None else round(self.depth * self.fraction)

    def info(self) -> dict[str, str]:
        """Return the INFO field as tag -> value, empty for flags."""
        return _info(self.fields[7])


@dataclass
class Calls:
    """A validated VCF: its header as text, and its variants on the kept chromosomes, sorted."""

    header: str
    samples: list[str]
    variants: list[Variant] = field(default_factory=list)
    dropped: int = 0  # records on other chromosomes, or without an alternative allele
    multiallelic: int = 0
    homozygous_reference: int = 0
    regions: list[tuple[str, int, int]] = field(
        default_factory=list
    )  # of cpsr's panels: chromosome, start (0-based), end
    fault: str | None = None
    seconds: float = 0.0


def kind_of(reference: str, alternative: str) -> str:
    """Return SNV, MNV, insertion, deletion, indel or other (symbolic alleles, breakends, `*`)."""
    if not re.fullmatch("[ACGTNacgtn]+", reference) or not re.fullmatch("[ACGTNacgtn]+", alternative):
        return "other"
    if len(reference) == len(alternative):
        return "SNV" if len(reference) == 1 else "MNV"
    if alternative.startswith(reference):
        return "insertion"
    return "deletion" if reference.startswith(alternative) else "indel"


def validate(args: argparse.Namespace, command: str, refdata: Path) -> Calls:
    """Check the VCF as PCGR's validation script does, and read it. Raises `SubStepFailed` for what it refuses."""
    log = Log(f"{command}-validate-input-arguments", sub_step=True)
    try:
        with pysam.VariantFile(args.input_vcf) as stream:
            calls = Calls(str(stream.header), list(stream.header.samples))
            calls.fault, calls.seconds = _requested_fault(calls.header)
            _check_tags(args, command, stream.header, refdata, log)
            if command == "cpsr" and len(calls.samples) > 1:
                log.refuse(
                    f"Query VCF contains more than one sample column ({', '.join(calls.samples)}) - cpsr expects one"
                )
            _read(args, command, stream, calls, log)
    except (OSError, ValueError) as error:  # what htslib cannot read
        raise SubStepFailed(f"{args.input_vcf}: {error}") from error
    if command == "cpsr":
        _restrict(args, refdata, calls, log)
    if not calls.variants:
        where = "the selected cancer predisposition geneset" if command == "cpsr" else "autosomal/sex chromosomes"
        log.info(f"Input VCF contains NO valid variants on {where} after VCF cleaning - quitting workflow")
        raise SubStepFailed
    if calls.fault == "validation":
        log.refuse("the VCF requests a failing validation (##rehearsal_fault)")
    return calls


def write(path: Path, header: str, command: str, variants: Iterable[Variant]) -> None:
    """Write a bgzipped, indexed VCF, without genotype columns for pcgr, with them for cpsr."""
    lines = []
    for line in header.splitlines():
        if command == "pcgr" and line.startswith("##FORMAT="):
            continue
        kept = re.sub("^##contig=<ID=chr", "##contig=<ID=", line)
        lines.append("\t".join(kept.split("\t")[:8]) if command == "pcgr" and line.startswith("#CHROM") else kept)
    added = (
        f'##rehearsal="{NOTICE}"',
        '##INFO=<ID=VAR_ID,Number=1,Type=String,Description="Chromosome, position, reference and alternative allele">',
        '##INFO=<ID=VARIANT_CLASS,Number=1,Type=String,Description="Kind of variant, from the lengths of its alleles">',
    )
    lines[-1:-1] = [line for line in added if line not in lines]
    with pysam.BGZFile(str(path), "wb", None) as stream:
        stream.write(("\n".join(lines) + "\n").encode())
        for variant in variants:
            fields = variant.fields.copy()
            known = "" if fields[7] == "." else f"{fields[7]};"
            fields[7] = f"{known}VAR_ID={variant.identity};VARIANT_CLASS={variant.kind}"
            stream.write(("\t".join(fields) + "\n").encode())
    pysam.tabix_index(str(path), preset="vcf", force=True)


def reserved_by_workflow(refdata: Path, command: str) -> set[str]:
    """Return the INFO tags that the workflow itself would add, from the bundle's tables."""
    tags: set[str] = set()
    for name, scope in (("vcf_infotags_other.tsv", command), ("vcf_infotags_vep.tsv", "vep")):
        path = refdata / name
        if path.exists():  # PCGR tolerates their absence
            with path.open() as stream:
                tags |= {row["tag"] for row in csv.DictReader(stream, delimiter="\t") if scope in row["category"]}
    tracks = [*(f"variant/vcf/{name}" for name in ("clinvar", "tcga", "gwas", "dbnsfp"))]
    if command == "cpsr":
        tracks += [f"variant/vcf/{name}" for name in ("dbmts", "gnomad_non_cancer")]
    tracks += [f"misc/bed/{name}" for name in ("simplerepeat", "winmsk", "rmsk", "gerp")]
    tracks += ["gene/bed/gene_transcript_xref"]
    for track in tracks:
        path = refdata / track / f"{Path(track).name}.vcfanno.vcf_info_tags.txt"
        if not path.exists():
            raise SubStepFailed(f"vcfanno configuration file ({path}) does not exist")
        tags |= set(re.findall(r"^##INFO=<ID=([^,]+)", path.read_text(), re.MULTILINE))
    return tags


def check_panel_of_normals(path: str) -> None:
    """Refuse a panel of normals that does not declare the INFO flag PANEL_OF_NORMALS."""
    log = Log("pcgr-validate-input-arguments", sub_step=True)
    with pysam.VariantFile(path) as stream:
        known = stream.header.info
        if "PANEL_OF_NORMALS" not in known or known["PANEL_OF_NORMALS"].type != "Flag":
            log.refuse("INFO flag 'PANEL_OF_NORMALS' is missing from the panel-of-normals VCF header")
    log.info("Found 'PANEL_OF_NORMALS' INFO flag in panel-of-normals VCF header")


def _requested_fault(header: str) -> tuple[str | None, float]:
    fault = re.search("^##rehearsal_fault=(.*)$", header, re.MULTILINE)
    seconds = re.search(r"^##rehearsal_seconds=(\d+)$", header, re.MULTILINE)
    if fault and fault[1] not in FAULTS:
        raise SubStepFailed(f"##rehearsal_fault={fault[1]} is unknown; allowed: {', '.join(FAULTS)}")
    return fault[1] if fault else None, float(seconds[1]) if seconds else 0.0


def _check_tags(args: argparse.Namespace, command: str, header: Any, refdata: Path, log: Log) -> None:
    log.info("Checking if existing INFO tags of input VCF file coincide with PCGR/CPSR INFO tags")
    for tag in sorted(reserved_by_workflow(refdata, command) & set(header.info)):
        log.refuse(f"INFO tag {tag} in the input VCF coincides with a VCF annotation tag produced by PCGR/CPSR")
    if args.retained_info_tags != "None":
        for tag in args.retained_info_tags.split(","):
            if tag not in header.info:
                log.refuse(f"Retained INFO tag '{tag}' not found among INFO tags in input VCF")
    if command == "cpsr":
        return
    wanted = {
        "tumor_dp_tag": "Integer",
        "control_dp_tag": "Integer",
        "tumor_af_tag": "Float",
        "control_af_tag": "Float",
        "call_conf_tag": "String",
    }
    for name in wanted:
        if getattr(args, name) in RESERVED:
            log.refuse(
                f"Custom INFO tag ({name}) needs another name - '{getattr(args, name)}' is reserved in the VCF format"
            )
    for name, kind in wanted.items():
        tag = getattr(args, name)
        if tag == UNSET:
            continue
        if tag not in header.info:
            log.note(f"Could not find the specified {name} ('{tag}') in INFO column of input VCF")
        elif header.info[tag].type != kind:
            log.refuse(
                f"INFO tag {tag} ({name}) has Type={header.info[tag].type} in the input VCF, should be Type={kind}"
            )
    for side in ("tumor", "control"):
        if (getattr(args, f"{side}_dp_tag") in header.info) != (getattr(args, f"{side}_af_tag") in header.info):
            log.note(f"BOTH '{side}_dp_tag' AND '{side}_af_tag' are needed for use in the report")


def _read(args: argparse.Namespace, command: str, stream: Any, calls: Calls, log: Log) -> None:
    log.info("Extracting variants on autosomal/sex chromosomes only (1-22,X,Y)")
    numbers = {name: str(tag.number) for name, tag in stream.header.info.items()}
    formats = {name: str(tag.number) for name, tag in stream.header.formats.items()}
    gene_tag = next(filter(_GENE_TAG.fullmatch, numbers), "")
    chromosome, position, finished = "", 0, set()
    for record in stream:
        if record.chrom != chromosome:
            if record.chrom in finished:
                raise SubStepFailed(f"chromosome blocks not continuous at {record.chrom}:{record.pos}")
            finished.add(chromosome)
            chromosome, position = record.chrom, 0
        if record.pos < position:
            raise SubStepFailed(f"unsorted positions on sequence {chromosome}: {position} followed by {record.pos}")
        position = record.pos
        fields = str(record).rstrip("\n").split("\t")
        fields[0] = fields[0].removeprefix("chr")
        if fields[0] not in _ORDER or fields[4] == ".":
            calls.dropped += 1
            continue
        calls.multiallelic += "," in fields[4]
        for single in _decompose(fields if command == "cpsr" else fields[:8], numbers, formats):
            if command == "cpsr" and len(single) > 9 and set(re.split("[/|]", _genotype(single))) == {"0"}:
                calls.homozygous_reference += 1
                continue
            calls.variants.append(_variant(args, command, single, gene_tag))
    calls.variants.sort(key=lambda variant: (_ORDER[variant.fields[0]], int(variant.fields[1])))
    if calls.multiallelic:
        log.note(f"There were {calls.multiallelic} multiallelic site(s) detected; they are decomposed")
    if calls.homozygous_reference:
        log.note(f"Filtered out {calls.homozygous_reference} allele(s) with a homozygous-reference genotype (0/0)")
    if command == "pcgr":
        for tag in (args.tumor_af_tag, args.tumor_dp_tag):
            missing = next((v for v in calls.variants if tag in numbers and tag not in v.info()), None)
            if missing:
                log.note(
                    f"Found at least one record ({missing.identity}) without a value of '{tag}' - filtering not possible"
                )


def _decompose(fields: list[str], info: dict[str, str], formats: dict[str, str]) -> Iterator[list[str]]:
    alternatives = fields[4].split(",")
    if len(alternatives) == 1:
        yield fields
        return
    for index, alternative in enumerate(alternatives):
        single = fields.copy()
        single[4] = alternative
        items = []
        for item in fields[7].split(";"):
            key, equals, value = item.partition("=")
            items.append(f"{key}{equals}{_share(value, info.get(key), index, len(alternatives))}")
        single[7] = ";".join(items)
        if len(fields) > 9:
            keys = fields[8].split(":")
            for column in range(9, len(fields)):
                values = fields[column].split(":")
                for place, value in enumerate(values):
                    if keys[place] == "GT":
                        values[place] = re.sub(r"\d+", partial(_allele, mine=index + 1), value)
                    else:
                        values[place] = _share(value, formats.get(keys[place]), index, len(alternatives))
                single[column] = ":".join(values)
        yield single


def _share(value: str, number: str | None, index: int, count: int) -> str:
    """Return the part of a per-allele value that belongs to one alternative (Number=A: its own; R: also the reference's)."""
    parts = value.split(",")
    if number == "A" and len(parts) == count:
        return parts[index]
    if number == "R" and len(parts) == count + 1:
        return f"{parts[0]},{parts[index + 1]}"
    return value


def _allele(found: re.Match[str], mine: int) -> str:
    return "1" if int(found[0]) == mine else "0" if found[0] == "0" else "."


def _genotype(fields: list[str]) -> str:
    keys = fields[8].split(":")
    return fields[9].split(":")[keys.index("GT")] if "GT" in keys else "."


def genotype(variant: Variant) -> str:
    """Return `heterozygous`, `homozygous`, or `undefined` (no genotype column, or no call)."""
    if len(variant.fields) < 10:
        return "undefined"
    alleles = set(re.split("[/|]", _genotype(variant.fields)))
    if alleles == {"1"}:
        return "homozygous"
    return "heterozygous" if "1" in alleles else "undefined"


def _info(text: str) -> dict[str, str]:
    return dict(item.partition("=")[::2] for item in text.split(";"))


def _number(info: dict[str, str], tag: str) -> float | None:
    try:
        return float(info[tag].split(",")[0])
    except (KeyError, ValueError):
        return None


def _variant(args: argparse.Namespace, command: str, fields: list[str], gene_tag: str) -> Variant:
    info = _info(fields[7])
    gene = info.get(gene_tag, "").strip(".") or None
    if command == "cpsr":
        return Variant(fields, None, None, _depth_of_sample(fields), None, gene)
    depth, control = _number(info, args.tumor_dp_tag), _number(info, args.control_dp_tag)
    return Variant(
        fields,
        None if depth is None else int(depth),
        _number(info, args.tumor_af_tag),
        None if control is None else int(control),
        _number(info, args.control_af_tag),
        gene,
    )


def _depth_of_sample(fields: list[str]) -> int | None:
    if len(fields) < 10:
        return None
    values = dict(zip(fields[8].split(":"), fields[9].split(":"), strict=False))
    return int(values["DP"]) if values.get("DP", "").isdigit() else None


def _restrict(args: argparse.Namespace, refdata: Path, calls: Calls, log: Log) -> None:
    """Keep the variants that overlap the chosen panels (BED of the bundle), or the genes of the custom list."""
    panels = ["0"] if args.custom_list else sorted(set(args.panel_id.split(",")))
    wanted = _custom_genes(args, refdata, log) if args.custom_list else None
    regions = calls.regions
    for panel in panels:
        green = ".GREEN" if args.diagnostic_grade_only and panel != "0" else ""
        path = refdata / "gene" / "bed" / "gene_virtual_panel" / f"{panel}{green}.bed.gz"
        if not path.is_file() or not path.stat().st_size:
            raise SubStepFailed(f"File {path} does not exist or has zero size")
        with gzip.open(path, "rt") as stream:
            for line in stream:
                chromosome, begin, end, name = line.rstrip("\n").split("\t")[:4]
                if wanted is None or any(gene in name for gene in wanted):
                    regions.append((chromosome, int(begin), int(end)))
    log.info(f"Limiting variant set to cancer predisposition loci (virtual panel id(s): {', '.join(panels)})")
    kept = []
    for variant in calls.variants:
        start = int(variant.fields[1]) - 1
        stop = start + len(variant.fields[3])
        if any(variant.fields[0] == name and start < last and stop > first for name, first, last in regions):
            kept.append(variant)
    calls.variants = kept


def _custom_genes(args: argparse.Namespace, refdata: Path, log: Log) -> set[str]:
    genes = [line.strip() for line in Path(args.custom_list).read_text().splitlines()]
    for gene in genes:
        if not re.fullmatch("ENSG[0-9]+", gene):
            log.refuse(f"Custom list of genes: '{gene}' is not an Ensembl gene identifier")
    with gzip.open(refdata / "gene" / "tsv" / "gene_virtual_panel" / "gene_virtual_panel.tsv.gz", "rt") as stream:
        known = {row["ensembl_gene_id"] for row in csv.DictReader(stream, delimiter="\t") if row["id"] == "0"}
    for gene in genes:
        if gene not in known:
            log.note(f"Ignoring custom-provided gene identifier ({gene}) NOT found in CPSR superpanel (panel 0)")
    if not known & set(genes):
        log.info("NO valid gene identifiers from panel 0 in custom-provided genelist - exiting")
        raise SubStepFailed
    return known & set(genes)
