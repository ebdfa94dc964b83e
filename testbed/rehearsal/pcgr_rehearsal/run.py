"""The two workflows, with the steps, order and exit codes of PCGR and CPSR."""

from __future__ import annotations

import argparse
import random
import string
import sys
import time
from pathlib import Path
from typing import Any

from . import GENCODE, HTML_LIMIT, NOTICE, VEP, arguments, files, options
from .console import Log, SubStepFailed, rule, sub_step
from .files import Places


def main(command: str, argv: list[str] | None = None) -> int:
    """Run `pcgr` or `cpsr`; return the exit code, which as in PCGR is 0 even if a sub-step failed."""
    args = options.parse(command, sys.argv[1:] if argv is None else argv)
    print(f"\n*** {NOTICE} ***\n", flush=True)
    try:
        (_pcgr if command == "pcgr" else _cpsr)(args)
    except SubStepFailed as failure:
        if str(failure):
            print(failure, flush=True)
    return 0


class _Temporary:
    """Temporary files next to the outputs, with a random name; they stay if the run fails."""

    def __init__(self, places: Places) -> None:
        # not a secret; PCGR too draws 15 letters and digits
        self.stem = f"{places.prefix}.{''.join(random.choices(string.ascii_lowercase + string.digits, k=15))}"

    def path(self, suffix: str) -> Path:
        """Return the path of the temporary file with a suffix."""
        return Path(f"{self.stem}.{suffix}")

    def remove(self) -> None:
        """Remove all temporary files of the run."""
        folder, name = Path(self.stem).parent, Path(self.stem).name
        for path in folder.iterdir():
            if path.name.startswith(f"{name}."):
                path.unlink()


def _fail_on_request(calls: Any, step: str) -> None:
    if calls.fault == step:
        raise SubStepFailed(f"{step}: failed, as the VCF requests (##rehearsal_fault)")
    if calls.fault == "traceback" and step == "vep":
        raise RuntimeError("a traceback in the driver, as the VCF requests (##rehearsal_fault)")


def _pcgr(args: argparse.Namespace) -> None:
    arguments.check_pcgr(args)
    if args.oncokb_api_token:
        Log("pcgr-create-config").warn("Could not retrieve OncoKB version info: the rehearsal never uses the network")
    places = files.check_pcgr(args)
    metadata = files.check_metadata(args, "pcgr", places.refdata)
    summary, temporary = _pcgr_input(args, places)
    _pcgr_settings(args)
    maf = places.output("oncokb_input.maf")
    if args.input_vcf is not None:
        _annotate(args, "pcgr", places, temporary, summary)
    from . import outputs

    outputs.write_pcgr_tables(args, places, summary)
    for what, given in (
        ("CNA", args.input_cna),
        ("RNA FUSION", args.input_rna_fusion),
        ("EXPRESSION", args.input_rna_expression),
    ):
        state = "rehearsed: the file is copied and counted" if given else "OMITTED (no data available)"
        Log("pcgr-annotate").info(f"PCGR - {what} ANALYSIS SECTION - {state}")
    rule()
    written = {
        path.name.removeprefix(f"{Path(places.prefix).name}."): str(path) for path in places.output_dir.iterdir()
    }
    written = {name: path for name, path in sorted(written.items()) if path.startswith(f"{places.prefix}.")}
    conf = outputs.configuration(args, "pcgr", places, metadata, written)
    outputs.write_yaml(places.output("conf.yaml"), conf)
    if not args.no_reporting:
        log = Log("pcgr-writer")
        log.info("PCGR - REPORT GENERATION SECTION: Generation of output files - REHEARSAL report")
        if args.input_vcf is not None and not summary.passed:
            log.info("There are n = 0 PASS variants in the input VCF - skipping report generation")
        else:
            with sub_step():
                _report(args, "pcgr", places, summary)
            maf.unlink(missing_ok=True)
        log.info("Finished PCGR!")
        rule()
    temporary.remove()
    conf["conf"]["oncokb"]["api_token"] = None  # PCGR removes it only now, so a failed report leaves it in the file
    outputs.write_yaml(places.output("conf.yaml"), conf)
    print(flush=True)


def _pcgr_input(args: argparse.Namespace, places: Places) -> tuple[Any, _Temporary]:
    from . import summary, tables, vcf

    log = Log("pcgr-validate-input-arguments")
    rule()
    log.info("PCGR - INPUT VALIDATION SECTION: Validate input data and options")
    temporary = _Temporary(places)
    with sub_step():
        calls = vcf.Calls("", [])
        if args.input_vcf is not None:
            calls = vcf.validate(args, "pcgr", places.refdata)
            vcf.write(temporary.path("ready.vcf.gz"), calls.header, "pcgr", calls.variants)
        if args.pon_vcf is not None:
            vcf.check_panel_of_normals(args.pon_vcf)
        result = summary.Summary(calls, [], [])
        if args.input_cna is not None:
            result.segments = tables.copy_numbers(args.input_cna)
        if args.input_cpsr is not None:
            result.germline = tables.germline(args.input_cpsr, args.genome_assembly)
        if args.input_rna_fusion is not None:
            result.fusions = tables.fusions(args.input_rna_fusion)
        if args.input_rna_expression is not None:
            result.expression = tables.expression(args.input_rna_expression)
    log.info("Finished pcgr-validate-input-arguments")
    rule()
    return result, temporary


def _pcgr_settings(args: argparse.Namespace) -> None:
    log = Log("pcgr-settings")
    log.info("--- Personal Cancer Genome Reporter workflow ----")
    log.info(f"Sample name: {args.sample_id}")
    log.info(f"Genome assembly: {args.genome_assembly}")
    for what, path in (
        ("somatic SNVs/InDels", args.input_vcf),
        ("somatic copy number alterations", args.input_cna),
        ("tumor RNA fusion transcripts", args.input_rna_fusion),
        ("tumor RNA expression", args.input_rna_expression),
        ("germline SNVs/InDels (CPSR)", args.input_cpsr),
    ):
        log.info(f"Molecular input data - {what}: {'OFF' if path is None else 'ON'}")
    rule()


def _annotate(args: argparse.Namespace, command: str, places: Places, temporary: _Temporary, summary: Any) -> None:
    """Run the four annotation steps: annotate nothing, but write the files in PCGR's order."""
    from . import outputs, vcf
    from . import summary as figures

    calls = summary.calls
    log = Log(f"{command}-vep")
    log.info(f"VEP: rehearsed release {VEP}, GENCODE {GENCODE[args.genome_assembly]}, no annotation is made")
    time.sleep(calls.seconds)
    _fail_on_request(calls, "vep")
    vcf.write(temporary.path("vep.vcf.gz"), calls.header, command, calls.variants)
    log.info(f"Finished {command}-vep")
    rule()
    if command == "pcgr":
        _fail_on_request(calls, "vcf2maf")
        outputs.write_maf(places.output("maf"), args, calls.variants)
        outputs.write_maf(places.output("oncokb_input.maf"), args, calls.variants)
        Log("pcgr-vcf2maf").info("Finished pcgr-vep-vcf2maf")
        rule()
    _fail_on_request(calls, "vcfanno")
    Log(f"{command}-vcfanno").info(f"Finished {command}-vcfanno")
    rule()
    log = Log(f"{command}-summarise", sub_step=True)
    _fail_on_request(calls, "summarise")
    summary.passed = [variant for variant in calls.variants if variant.passed]
    if not summary.passed:
        log.refuse("No remaining PASS variants found in query VCF - exiting STEP 3")
    if calls.fault == "empty_variant_set":
        summary.passed = []
    vcf.write(places.output("vcf.gz"), calls.header, command, calls.variants)
    vcf.write(places.output("pass.vcf.gz"), calls.header, command, summary.passed)
    summary.reported = figures.reported(args, summary.passed) if command == "pcgr" else summary.passed
    outputs.write_tsv(places.output("pass.tsv.gz"), *outputs.variant_table(args, summary.passed))
    log.info(f"Finished {command}-summarise")
    rule()


def _report(args: argparse.Namespace, command: str, places: Places, summary: Any) -> None:
    from . import outputs, report

    _fail_on_request(summary.calls, "report")
    if command == "pcgr":
        outputs.write_report_tables(args, places, summary)
    else:
        from .tables import GERMLINE

        outputs.write_tsv(places.output("classification.tsv.gz"), GERMLINE, outputs.germline_rows(args, summary))
    report.write_workbook(places.output("xlsx"), args, command, summary)
    if args.no_html:
        return
    if len(summary.passed) >= HTML_LIMIT:
        Log(f"{command}-writer").note(f"{len(summary.passed)} variants: no HTML from {HTML_LIMIT} on")
        return
    report.write_html(places.output("html"), args, command, summary)


def _cpsr(args: argparse.Namespace) -> None:
    arguments.check_cpsr(args)
    places = files.check_cpsr(args)
    from . import outputs, summary, vcf

    log = Log("cpsr-validate-input-arguments")
    log.info("CPSR - STEP 0: Validate input data")
    if args.custom_list and args.custom_list_name == "None":
        log.warn("No custom list name provided, use argument '--custom_list_name'")
    temporary = _Temporary(places)
    with sub_step():
        calls = vcf.validate(args, "cpsr", places.refdata)
        vcf.write(temporary.path("ready.vcf.gz"), calls.header, "cpsr", calls.variants)
    if args.custom_list:
        lines = ("\t".join(map(str, region)) for region in calls.regions)
        places.output("custom_panel.bed").write_text("\n".join(lines) + "\n")
    log.info("Finished cpsr-validate-input-arguments")
    rule()
    log = Log("cpsr-settings")
    log.info("--- Cancer Predisposition Sequencing Reporter workflow ----")
    log.info(f"Sample name: {args.sample_id}")
    log.info(f"Genome assembly: {args.genome_assembly}")
    rule()
    metadata = files.check_metadata(args, "cpsr", places.refdata)
    names = {"fname_mut_vcf": str(places.output("vcf.gz")), "fname_mut_tsv": str(places.output("pass.tsv.gz"))}
    outputs.write_yaml(places.output("conf.yaml"), outputs.configuration(args, "cpsr", places, metadata, names))
    result = summary.Summary(calls, [], [])
    _annotate(args, "cpsr", places, temporary, result)
    if not args.no_reporting:
        log = Log("cpsr-writer")
        log.info("CPSR - STEP 4: Generation of output files - REHEARSAL report")
        with sub_step():
            _report(args, "cpsr", places, result)
        log.info("Finished CPSR!")
        rule()
    temporary.remove()
    print(flush=True)
