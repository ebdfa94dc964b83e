"""Write the miniature data bundle and VEP cache: the files that PCGR 2.3.2 checks at its start, and nothing clinical.

With the seven metadata tables, the phenotype table, the version file and the VEP folders, the real `pcgr` 2.3.2 reaches its
input validation. With the tag tables it passes validation, then stops because the assembly's FASTA file is missing.
The "genes" of the panels are whole chromosomes: ENSG00000000017 is chromosome 17; X and Y are 23 and 24.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

from rehearsal.pcgr_rehearsal import BUNDLE, CHROMOSOMES, METADATA, NOTICE, SITES, VEP, VEP_ASSEMBLY
from rehearsal.pcgr_rehearsal.arguments import PANELS

LONGEST = 300_000_000  # bases; above the length of any human chromosome (chromosome 1: 249 million)

# INFO tags that PCGR adds itself, so it refuses a VCF that has one: a few of each source
_OTHER = ("VAR_ID", "VARIANT_CLASS", "ONCOGENICITY", "MUTATION_HOTSPOT", "TSG", "ONCOGENE", "VEP_ALL_CSQ")
_VEP = ("Consequence", "IMPACT", "SYMBOL", "Gene", "Feature", "BIOTYPE", "EXON", "HGVSc", "HGVSp", "CSQ")
_TRACKS = {
    "variant/vcf/clinvar": "CLINVAR_MSID",
    "variant/vcf/tcga": "TCGA_FREQUENCY",
    "variant/vcf/gwas": "GWAS_HIT",
    "variant/vcf/dbnsfp": "DBNSFP",
    "variant/vcf/dbmts": "DBMTS",
    "variant/vcf/gnomad_non_cancer": "NON_CANCER_AF_GLOBAL",
    "misc/bed/simplerepeat": "SIMPLEREPEATS_HIT",
    "misc/bed/winmsk": "WINMASKER_HIT",
    "misc/bed/rmsk": "RMSK_HIT",
    "misc/bed/gerp": "GERP_SCORE",
    "gene/bed/gene_transcript_xref": "GENE_TRANSCRIPT_XREF",
}
_PANEL_COLUMNS = [
    "id",
    "ensembl_gene_id",
    "symbol",
    "gepa_moi",
    "gepa_mod",
    "gepa_panel_version",
    "gepa_confidence_level",
    "gepa_panel_url",
    "gepa_panel_name",
    "gepa_panel_id",
    "gepa_phenotype",
    "genome_build",
    "gepa_penetrance",
]

_CPG_COLUMNS = (
    "cpg_source",
    "ensembl_gene_id",
    "symbol",
    "cpg_moi",
    "cpg_mod",
    "cpg_phenotypes",
    "cpg_cancer_cui",
    "cpg_syndrome_cui",
)


def write_bundle(folder: Path) -> None:
    """Write `data/grch37` and `data/grch38` below `folder`."""
    for assembly in VEP_ASSEMBLY:
        _write_assembly(folder / "data" / assembly, assembly)


def write_vep(folder: Path) -> None:
    """Write the empty cache folders, with a README in each so that archives keep them."""
    for name in VEP_ASSEMBLY.values():
        _text(folder / "homo_sapiens" / f"{VEP}_{name}" / "README", f"{NOTICE}: an empty VEP cache.\n")


def _write_assembly(base: Path, assembly: str) -> None:
    _text(base / ".PCGR_BUNDLE_VERSION", f"{BUNDLE}\n{NOTICE}\n")
    for kind in METADATA:
        row = ("rehearsal", "rehearsal", NOTICE, BUNDLE, ".", ".")
        columns = (
            "source",
            "source_abbreviation",
            "source_description",
            "source_version",
            "source_url",
            "source_license",
        )
        _text(base / ".METADATA" / "tsv" / f"{kind}_metadata.tsv", _lines([columns, row]))
    sites = [("primary_site", "do_id", "do_name"), *((site, ".", site) for site in SITES[1:]), (".", ".", NOTICE)]
    _packed(base / "phenotype" / "tsv" / "phenotype_onco.tsv.gz", _lines(sites))
    head = ("tag", "number", "type", "description", "category")
    _text(
        base / "vcf_infotags_other.tsv", _lines([head, *((tag, ".", "String", NOTICE, "pcgr,cpsr") for tag in _OTHER)])
    )
    _text(base / "vcf_infotags_vep.tsv", _lines([head, *((tag, ".", "String", NOTICE, "vep") for tag in _VEP)]))
    for track, tag in _TRACKS.items():
        line = f'##INFO=<ID={tag},Number=.,Type=String,Description="{NOTICE}">\n'
        _text(base / track / f"{Path(track).name}.vcfanno.vcf_info_tags.txt", line)
    _panels(base, assembly)
    _cpg(base)


def _panels(base: Path, assembly: str) -> None:
    genes = [(name, f"ENSG{number:011d}") for number, name in enumerate(CHROMOSOMES, start=1)]
    rows: list[tuple[str, ...]] = [tuple(_PANEL_COLUMNS)]
    for panel in range(PANELS + 1):
        chosen = (
            genes if panel == 0 else genes[:22]
        )  # numbered panels leave out X and Y, so that a sample can miss them
        label = f"REHEARSAL panel {panel}"
        rows += [
            (str(panel), gene, f"REHEARSAL_CHR{name}", ".", ".", "1", "3", ".", label, str(panel), ".", assembly, ".")
            for name, gene in chosen
        ]
        bed = _lines([(name, "0", str(LONGEST), f"{gene}:GE_PANEL_{panel}:") for name, gene in chosen])
        for green in ("", ".GREEN") if panel else ("",):
            _packed(base / "gene" / "bed" / "gene_virtual_panel" / f"{panel}{green}.bed.gz", bed)
    _packed(base / "gene" / "tsv" / "gene_virtual_panel" / "gene_virtual_panel.tsv.gz", _lines(rows))


def _cpg(base: Path) -> None:
    """Write one stand-in gene each for cpsr's --secondary_findings and --pgx_findings."""
    sources = ("ACMG_SF", "CPIC_PGX_ONCOLOGY")
    rows = [(source, "ENSG00000000001", "REHEARSAL_CHR1", ".", ".", ".", ".", ".") for source in sources]
    _packed(base / "gene" / "tsv" / "gene_cpg" / "gene_cpg.tsv.gz", _lines([_CPG_COLUMNS, *rows]))


def _lines(rows: Sequence[tuple[str, ...]]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _packed(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
