"""The command lines of `pcgr` and `cpsr` 2.3.2, as data.

argparse behaves as in PCGR on purpose: options can be abbreviated, a wrong option exits with code 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Final

from . import CPSR_VERSION, PCGR_VERSION

PICK_ORDER: Final = (
    "mane_select",
    "mane_plus_clinical",
    "canonical",
    "biotype",
    "ccds",
    "rank",
    "tsl",
    "appris",
    "length",
)
EXPRESSION_DATABASES: Final = ("tcga", "depmap", "treehouse")
ASSEMBLIES: Final = ("grch37", "grch38")

# Option -> (type, default). A tuple as type lists choices, bool is a flag.
Option = tuple[Any, Any]

SHARED: Final[dict[str, Option]] = {
    "retained_info_tags": (str, "None"),
    "ignore_noncoding": (bool, False),
    "vcfanno_n_proc": (int, 4),
    "vep_n_forks": (int, 4),
    "vep_buffer_size": (int, 500),
    "vep_pick_order": (str, ",".join(PICK_ORDER)),
    "vep_no_intergenic": (bool, False),
    "vep_gencode_basic": (bool, False),
    "force_overwrite": (bool, False),
    "no_reporting": (bool, False),
    "no_html": (bool, False),
    "debug": (bool, False),
    "pcgrr_conda": (str, "pcgrr"),
}

PCGR: Final[dict[str, Option]] = {
    "input_vcf": (str, None),
    "input_cna": (str, None),
    "input_rna_fusion": (str, None),
    "input_rna_expression": (str, None),
    "input_cpsr": (str, None),
    "input_cpsr_yaml": (str, None),
    "cpsr_ignore_vus": (bool, False),
    "vep_dir": (str, None),
    "sex": (("FEMALE", "MALE", "UNKNOWN"), "UNKNOWN"),
    "tumor_site": (int, 0),
    "tumor_purity": (float, None),
    "tumor_ploidy": (float, None),
    "assay": (("WGS", "WES", "TARGETED"), "WES"),
    "effective_target_size_mb": (float, 34),
    "tumor_only": (bool, False),
    "pon_vcf": (str, None),
    "tumor_dp_tag": (str, "_NA_"),
    "tumor_af_tag": (str, "_NA_"),
    "control_dp_tag": (str, "_NA_"),
    "control_af_tag": (str, "_NA_"),
    "call_conf_tag": (str, "_NA_"),
    "tumor_dp_min": (int, None),
    "tumor_ad_min": (int, None),
    "tumor_af_min": (float, None),
    "control_dp_min": (int, None),
    "control_ad_max": (int, None),
    "control_af_max": (float, None),
    "gnomad_popmax_af_tolerated": (float, 0.001),
    "exclude_pon": (bool, False),
    "exclude_likely_hom_germline": (bool, False),
    "exclude_likely_het_germline": (bool, False),
    "exclude_clinvar_germline": (bool, False),
    "exclude_dbsnp_nonsomatic": (bool, False),
    "exclude_nonexonic": (bool, False),
    "estimate_tmb": (bool, False),
    "tmb_display": (("coding_and_silent", "coding_non_silent", "missense_only"), "coding_and_silent"),
    # PCGR gives these three no type: text that is not a number ends with a traceback (exit code 1), not with usage (2)
    "tmb_dp_min": (str, None),
    "tmb_af_min": (str, None),
    "tmb_ad_min": (str, None),
    "estimate_msi": (bool, False),
    "estimate_signatures": (bool, False),
    "min_mutations_signatures": (int, 200),
    "all_reference_signatures": (bool, False),
    "include_artefact_signatures": (bool, False),
    "prevalence_reference_signatures": (float, 0.1),
    "cna_threshold_mode": (("absolute", "relative", "combined"), "absolute"),
    "cna_amp_threshold_absolute": (int, 5),
    "cna_amp_threshold_relative": (float, 2.5),
    "cna_gain_threshold_absolute": (int, 3),
    "cna_gain_threshold_relative": (float, 1.5),
    "cna_del_threshold_absolute": (int, 1),
    "cna_del_threshold_relative": (float, 0.5),
    "cna_transcript_overlap_pct": (float, 50),
    "fusion_min_split_reads": (int, 3),
    "expression_sim": (bool, False),
    "expression_sim_db": (str, ",".join(EXPRESSION_DATABASES)),
    "vep_regulatory": (bool, False),
    "oncokb_api_token": (str, None),
    "oncokb_oncotree_code": (str, None),
    "oncokb_exclusive": (bool, False),
    "oncokb_maf_query_all": (bool, False),
    **SHARED,
}

CPSR: Final[dict[str, Option]] = {
    "panel_id": (str, "-1"),
    "custom_list": (str, None),
    "custom_list_name": (str, "None"),
    "diagnostic_grade_only": (bool, False),
    "secondary_findings": (bool, False),
    "pgx_findings": (bool, False),
    "gwas_findings": (bool, False),
    "max_af_gnomad": (float, 0.9),
    "clinvar_trust_level": ((0, 1, 2, 3, 4), 0),
    "clinvar_report_noncancer": (bool, False),
    **SHARED,
}

REQUIRED: Final = ("refdata_dir", "output_dir", "genome_assembly", "sample_id")


def parser(command: str) -> argparse.ArgumentParser:
    """Return the argument parser of `pcgr` or `cpsr`."""
    result = argparse.ArgumentParser(prog=command, description="Rehearsal of PCGR/CPSR; not for clinical use.")
    version = f"pcgr {PCGR_VERSION}" if command == "pcgr" else f"cpsr {CPSR_VERSION}"
    result.add_argument("--version", action="version", version=version)
    required = REQUIRED if command == "pcgr" else (*REQUIRED, "input_vcf", "vep_dir")
    for name in required:
        choices = ASSEMBLIES if name == "genome_assembly" else None
        result.add_argument(f"--{name}", required=True, choices=choices)
    for name, (kind, default) in (PCGR if command == "pcgr" else CPSR).items():
        if kind is bool:
            result.add_argument(f"--{name}", action="store_true")
        elif isinstance(kind, tuple):
            result.add_argument(f"--{name}", type=type(kind[0]), choices=kind, default=default)
        else:
            result.add_argument(f"--{name}", type=kind, default=default)
    return result


def parse(command: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options; wrong usage exits with code 2, --version and --help with 0."""
    return parser(command).parse_args(arguments)
