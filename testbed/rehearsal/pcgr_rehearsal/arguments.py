"""The rules that `pcgr` and `cpsr` 2.3.2 apply to their options, in their order; a violation exits with code 1."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from . import EXOME_MB, SITES
from .console import Log
from .options import EXPRESSION_DATABASES, PICK_ORDER

PANELS = 43  # Genomics England panels are numbered 1-43; 0 is CPSR's own
UNSET = "_NA_"


def check_pcgr(args: argparse.Namespace) -> None:
    """Apply pcgr's rules, and adjust `args` where pcgr does so silently or with a warning."""
    log = Log("pcgr-verify-args")
    log.info("PCGR - VERIFY ARGUMENTS SECTION: Verifying input arguments and configuring workflow")
    _required(args, log)
    _expression(args, log)
    _oncokb(args, log)
    _sample(args, log)
    if args.input_vcf is not None:
        _allelic_support(args, log)
        _tmb(args, log)
        _assay(args, log)
        _tumor_only(args, log)
        if args.estimate_signatures and args.assay == "TARGETED":
            log.warn("--estimate_signatures is not optimal for TARGETED assays - interpret with caution")
        _vep(args, log)
    if args.fusion_min_split_reads < 2:
        log.warn(f"--fusion_min_split_reads = {args.fusion_min_split_reads} is below 2 - set to 2")
        args.fusion_min_split_reads = 2
    if args.input_cna is not None:
        _cna(args, log)
    log.info("Finished pcgr-verify_args")
    _sex(args, Log("pcgr-create-config"))
    for name, kind in (("tmb_dp_min", int), ("tmb_af_min", float), ("tmb_ad_min", int)):
        kind(
            getattr(args, name) or 0
        )  # read as numbers even without a VCF; other text ends with a ValueError, as in pcgr


def check_cpsr(args: argparse.Namespace) -> None:
    """Apply cpsr's rules, and adjust `args` where cpsr does so with a warning."""
    log = Log("cpsr-validate-input-arguments-a")
    _required(args, log)
    if args.panel_id == "-1" and not args.custom_list:
        log.refuse("Give virtual panel identifier(s) with --panel_id, or genes of panel 0 with --custom_list")
    if args.custom_list and args.panel_id != "-1":
        log.refuse("Option --panel_id cannot be used together with --custom_list")
    if not 0.05 < args.max_af_gnomad <= 1:
        log.refuse(f"--max_af_gnomad = {args.max_af_gnomad} must be above 0.05 and at most 1")
    if not 1 <= args.vcfanno_n_proc <= 15:
        log.refuse(f"--vcfanno_n_proc = {args.vcfanno_n_proc} must be within [1, 15]")
    if not args.custom_list:
        _panels(args.panel_id, log)
    if (args.custom_list or args.panel_id == "0") and args.diagnostic_grade_only:
        log.warn("--diagnostic_grade_only applies only to Genomics England panels - turned off")
        args.diagnostic_grade_only = False
    _vep(args, log)


def _panels(text: str, log: Log) -> None:
    several = "," in text
    for panel in text.split(","):
        if not panel.isdigit():
            log.refuse(f"--panel_id = {text}: '{panel}' is not an integer")
        if not (1 if several else 0) <= int(panel) <= PANELS:
            allowed = f"1 - {PANELS} when several are given" if several else f"0 - {PANELS}"
            log.refuse(f"--panel_id = {text}: '{panel}' must be in the range {allowed}")


def _required(args: argparse.Namespace, log: Log) -> None:
    if not Path(args.refdata_dir).is_dir():
        log.refuse(f"Required argument '--refdata_dir' does not exist ({args.refdata_dir}).")
    inputs = ("input_vcf", "input_cna", "input_rna_fusion", "input_rna_expression")
    if all(getattr(args, name, None) is None for name in inputs):
        log.refuse("At least one molecular input file must be provided: " + ", ".join(f"--{name}" for name in inputs))
    if args.input_vcf is not None and not Path(args.input_vcf).exists():
        log.refuse(f"Input VCF file ('--input_vcf' = {args.input_vcf}) does not exist.")
    if args.input_vcf is not None and args.vep_dir is None:
        log.refuse("Argument '--vep_dir' is required when '--input_vcf' is provided.")
    if not 3 <= len(args.sample_id) <= 40:
        log.refuse(f"'--sample_id' = {args.sample_id} must be 3 to 40 characters long, it has {len(args.sample_id)}")


def _expression(args: argparse.Namespace, log: Log) -> None:
    if args.expression_sim and args.input_rna_expression is None:
        log.warn("--expression_sim needs --input_rna_expression - turned off")
        args.expression_sim = False
    if not all(name in EXPRESSION_DATABASES for name in args.expression_sim_db.split(",")):
        log.refuse(
            f"'--expression_sim_db' = {args.expression_sim_db}: allowed, comma-separated: {' '.join(EXPRESSION_DATABASES)}"
        )


def _oncokb(args: argparse.Namespace, log: Log) -> None:
    uuid = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    if args.oncokb_api_token is not None and not re.fullmatch(uuid, args.oncokb_api_token, re.IGNORECASE):
        log.refuse("OncoKB API token ('--oncokb_api_token') is not in UUID form")
    if args.oncokb_exclusive and args.oncokb_api_token is None:
        log.refuse("'--oncokb_exclusive' needs '--oncokb_api_token'")
    if args.oncokb_maf_query_all and args.assay == "WGS":
        log.warn("'--oncokb_maf_query_all' is meant for TARGETED/WES assays; run times for WGS may be long")


def _sample(args: argparse.Namespace, log: Log) -> None:
    if not 0 <= args.tumor_site < len(SITES):
        log.refuse(f"'--tumor_site' = {args.tumor_site} must be within [0, {len(SITES) - 1}]")
    if args.tumor_purity is not None and not 0 < args.tumor_purity <= 1:
        log.refuse(f"'--tumor_purity' = {args.tumor_purity} must be within (0, 1]")
    if args.tumor_ploidy is not None and not args.tumor_ploidy > 0:
        log.refuse(f"'--tumor_ploidy' = {args.tumor_ploidy} must be > 0")


def _allelic_support(args: argparse.Namespace, log: Log) -> None:
    for side, bounds in (("tumor", ("dp_min", "af_min", "ad_min")), ("control", ("dp_min", "af_max", "ad_max"))):
        for bound in bounds:
            tag = "dp" if bound == "dp_min" else "af"  # a bound on allelic depth requires the tag of the fraction
            name = f"{side}_{bound}"
            if getattr(args, name) is not None and getattr(args, f"{side}_{tag}_tag") == UNSET:
                log.refuse(f"'--{name}' = {getattr(args, name)} requires '--{side}_{tag}_tag' to be set")
    _depth(args, "tumor_dp_min", log)
    _fraction(args, "tumor_af_min", log)
    _depth(args, "control_dp_min", log)
    _allelic_depth(args, "tumor_ad_min", 1, "tumor_dp_min", log)
    _fraction(args, "control_af_max", log)
    _allelic_depth(args, "control_ad_max", 0, "control_dp_min", log)


def _depth(args: argparse.Namespace, name: str, log: Log) -> None:
    value = getattr(args, name)
    if value is not None and value <= 0:
        log.refuse(f"'--{name}' = {value} must be > 0")


def _fraction(args: argparse.Namespace, name: str, log: Log) -> None:
    value = getattr(args, name)
    if value is not None and not 0 <= value <= 1:
        log.refuse(f"'--{name}' = {value} must be within [0, 1]")


def _allelic_depth(args: argparse.Namespace, name: str, least: int, depth: str, log: Log) -> None:
    value, limit = getattr(args, name), getattr(args, depth)
    if value is not None and (value < least or (limit is not None and value > limit)):
        log.refuse(f"'--{name}' = {value} must be >= {least} and not above '--{depth}' = {limit}")


def _tmb(args: argparse.Namespace, log: Log) -> None:
    # int() and float() raise where PCGR's do: for text that is not a number, and for tmb_ad_min with only tumor_dp_min set
    if args.tmb_dp_min is not None:
        if int(args.tmb_dp_min) <= 0:
            log.refuse(f"'--tmb_dp_min' = {args.tmb_dp_min} must be > 0")
        if args.tumor_dp_min is not None and int(args.tmb_dp_min) < args.tumor_dp_min:
            log.refuse(f"'--tmb_dp_min' = {args.tmb_dp_min} must not be below '--tumor_dp_min' = {args.tumor_dp_min}")
    if args.tmb_ad_min is not None:
        if int(args.tmb_ad_min) <= 0:
            log.refuse(f"'--tmb_ad_min' = {args.tmb_ad_min} must be > 0")
        if args.tumor_ad_min is not None:
            if int(args.tmb_ad_min) < args.tumor_ad_min:
                log.refuse(
                    f"'--tmb_ad_min' = {args.tmb_ad_min} must not be below '--tumor_ad_min' = {args.tumor_ad_min}"
                )
            if args.tumor_dp_min is not None and int(args.tmb_ad_min) > int(args.tmb_dp_min):
                log.refuse(f"'--tmb_ad_min' = {args.tmb_ad_min} must not be above '--tmb_dp_min' = {args.tmb_dp_min}")
    if args.tmb_af_min is not None:
        if not 0 <= float(args.tmb_af_min) <= 1:
            log.refuse(f"'--tmb_af_min' = {args.tmb_af_min} must be within [0, 1]")
        if args.tumor_af_min is not None and 0 < float(args.tmb_af_min) < args.tumor_af_min:
            log.refuse(f"'--tmb_af_min' = {args.tmb_af_min} must not be below '--tumor_af_min' = {args.tumor_af_min}")


def _assay(args: argparse.Namespace, log: Log) -> None:
    size = args.effective_target_size_mb
    if not 0 <= size <= EXOME_MB:
        log.refuse(f"'--effective_target_size_mb' = {size} must be within [0, {EXOME_MB}]")
    if size < 1:
        log.warn(f"'--effective_target_size_mb' = {size}: above 1 Mb for a robust mutational burden")
    if size < EXOME_MB and args.assay != "TARGETED":
        log.warn(f"'--effective_target_size_mb' = {size} is below the default for WES/WGS ({EXOME_MB})")
    if args.estimate_msi and (args.assay == "TARGETED" or args.tumor_only):
        log.warn("MSI classification needs a WGS/WES tumor-control assay - turned off")
        args.estimate_msi = False
    if args.min_mutations_signatures < 100:
        log.refuse(f"'--min_mutations_signatures' = {args.min_mutations_signatures} must be >= 100")
    if args.min_mutations_signatures < 200:
        log.warn(f"'--min_mutations_signatures' = {args.min_mutations_signatures} is below the recommended 200")
    if not 0 <= args.prevalence_reference_signatures <= 20:
        log.refuse(
            f"'--prevalence_reference_signatures' = {args.prevalence_reference_signatures} must be within [0, 20]"
        )
    if args.estimate_msi and not args.estimate_tmb:
        log.refuse("'--estimate_msi' requires '--estimate_tmb'")


def _tumor_only(args: argparse.Namespace, log: Log) -> None:
    if not args.tumor_only:
        return
    for tag in ("control_dp_tag", "control_af_tag"):
        if getattr(args, tag) != UNSET:
            log.refuse(f"Option '--tumor_only' does not allow '--{tag}' to be set ({getattr(args, tag)})")
    for name in ("exclude_likely_het_germline", "exclude_likely_hom_germline"):
        if getattr(args, name) and args.tumor_af_tag == UNSET:
            log.refuse(f"Option '--{name}' requires '--tumor_af_tag' to be set")
    if args.exclude_pon and args.pon_vcf is None:
        log.warn("'--exclude_pon' without '--pon_vcf' - turned off")
        args.exclude_pon = False
    for name in ("estimate_tmb", "estimate_signatures"):
        if getattr(args, name):
            log.warn(f"'--{name}' is suboptimal in tumor-only mode - interpret with caution")
    if not 0 <= args.gnomad_popmax_af_tolerated <= 1:
        log.refuse(f"'--gnomad_popmax_af_tolerated' = {args.gnomad_popmax_af_tolerated} must be within [0, 1]")


def _vep(args: argparse.Namespace, log: Log) -> None:
    for name, least, most in (("vep_n_forks", 1, 8), ("vep_buffer_size", 50, 30000)):
        if not least <= getattr(args, name) <= most:
            log.refuse(f"'--{name}' = {getattr(args, name)} must be within [{least}, {most}]")
    if sum(name in PICK_ORDER for name in args.vep_pick_order.split(",")) != len(PICK_ORDER):
        log.refuse(f"'--vep_pick_order' = {args.vep_pick_order} must hold all of: {' '.join(PICK_ORDER)}")


def _cna(args: argparse.Namespace, log: Log) -> None:
    ploidy = args.tumor_ploidy
    if ploidy is not None and not 1.0 <= ploidy <= 8.0:
        log.refuse(f"'--tumor_ploidy' = {ploidy} must be within [1.0, 8.0]")
    if args.cna_threshold_mode != "relative":
        amp, gain, loss = (getattr(args, f"cna_{kind}_threshold_absolute") for kind in ("amp", "gain", "del"))
        if not 3 <= amp <= 20:
            log.refuse(f"'--cna_amp_threshold_absolute' = {amp} must be within [3, 20]")
        if ploidy is not None and amp <= ploidy:
            log.refuse(f"'--cna_amp_threshold_absolute' = {amp} must exceed the ploidy ({ploidy})")
        if gain <= 1:
            log.refuse(f"'--cna_gain_threshold_absolute' = {gain} must be > 1")
        if ploidy is not None and gain <= ploidy:
            log.refuse(f"'--cna_gain_threshold_absolute' = {gain} must exceed the ploidy ({ploidy})")
        if gain >= amp:
            log.refuse(f"'--cna_gain_threshold_absolute' = {gain} must be below the amplification threshold ({amp})")
        if loss < 1:
            log.refuse(f"'--cna_del_threshold_absolute' = {loss} must be >= 1")
        if loss >= gain:
            log.refuse(f"'--cna_del_threshold_absolute' = {loss} must be below the gain threshold ({gain})")
        if ploidy is not None and loss > ploidy:
            log.refuse(f"'--cna_del_threshold_absolute' = {loss} must not exceed the ploidy ({ploidy})")
    if args.cna_threshold_mode != "absolute":
        amp, gain, loss = (getattr(args, f"cna_{kind}_threshold_relative") for kind in ("amp", "gain", "del"))
        if not 1.5 <= amp <= 10:
            log.refuse(f"'--cna_amp_threshold_relative' = {amp} must be within [1.5, 10]")
        if not 1 <= gain < amp:
            log.refuse(f"'--cna_gain_threshold_relative' = {gain} must be >= 1 and below the amplification one ({amp})")
        if not 0 < loss < 1:
            log.refuse(f"'--cna_del_threshold_relative' = {loss} must be within (0, 1)")
    if not 0 < args.cna_transcript_overlap_pct <= 100:
        log.refuse(f"'--cna_transcript_overlap_pct' = {args.cna_transcript_overlap_pct} must be within (0, 100]")


def _sex(args: argparse.Namespace, log: Log) -> None:
    site = SITES[args.tumor_site]
    if args.sex == "MALE" and args.tumor_site == 6:
        log.warn(f"Tumor site '{site}' is typically observed in females - check '--sex'")
    if (args.sex == "MALE" and args.tumor_site in (18, 29, 30)) or (
        args.sex == "FEMALE" and args.tumor_site in (23, 26)
    ):
        log.refuse(f"Tumor site '{site}' does not go with '--sex' {args.sex}")
