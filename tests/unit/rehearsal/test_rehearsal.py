"""The rehearsal tool: options, refusals in PCGR's order, misleading exit codes, correct outputs."""

from __future__ import annotations

import csv
import gzip
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import openpyxl
import pysam
import pytest
import yaml

from rehearsal import bundle
from rehearsal.pcgr_rehearsal import NOTICE, options, report, vcf
from rehearsal.pcgr_rehearsal.run import main
from support import ROOT

TAGS = {"tumor_dp_tag": "TDP", "tumor_af_tag": "TVAF", "control_dp_tag": "CDP", "control_af_tag": "CVAF"}
HEADER = """\
##fileformat=VCFv4.2
##FILTER=<ID=LowQual,Description="low">
##contig=<ID=chr1,length=248956422>
##contig=<ID=chr17,length=83257441>
##contig=<ID=chrX,length=156040895>
##contig=<ID=chrM,length=16569>
##INFO=<ID=TDP,Number=1,Type=Integer,Description="depth">
##INFO=<ID=TVAF,Number=A,Type=Float,Description="fraction">
##INFO=<ID=CDP,Number=1,Type=Integer,Description="depth">
##INFO=<ID=CVAF,Number=1,Type=Float,Description="fraction">
##INFO=<ID=TAL,Number=.,Type=String,Description="callers">
##INFO=<ID=MY_GENE,Number=1,Type=String,Description="gene">
##FORMAT=<ID=GT,Number=1,Type=String,Description="genotype">
##FORMAT=<ID=DP,Number=1,Type=Integer,Description="depth">
##FORMAT=<ID=AD,Number=R,Type=Integer,Description="depths">
"""
RECORDS = (
    "chr1\t100\t.\tA\tG\t.\tPASS\tTDP=100;TVAF=0.5;CDP=80;CVAF=0.0;MY_GENE=ONE\tGT:DP:AD\t0/1:30:15,15",
    "chr1\t200\trs7\tC\tT,CA\t.\t.\tTDP=50;TVAF=0.2,0.04;CDP=80;CVAF=0.0\tGT:DP:AD\t1/2:30:2,14,14",
    "chr1\t300\t.\tCAG\tC\t.\tLowQual\tTDP=10;TVAF=0.1\tGT:DP:AD\t1/1:20:0,20",
    "chr17\t400\t.\tCC\tTT\t.\tPASS\tTDP=40;TVAF=0.3;CDP=9;CVAF=0.1;MY_GENE=ONE\tGT:DP:AD\t0/0:20:20,0",
    "chrX\t500\t.\tG\tA\t.\tPASS\tTDP=60;TVAF=0.45;MY_GENE=TWO\tGT:DP:AD\t0/1:22:10,12",
    "chrM\t600\t.\tG\tA\t.\tPASS\tTDP=60;TVAF=0.4\tGT:DP:AD\t0/1:22:10,12",
)


def make_vcf(
    folder: Path, records: tuple[str, ...] = RECORDS, extra: str = "", samples: str = "S", name: str = "in.vcf"
) -> str:
    """Write a VCF; return its path."""
    columns = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t" + samples + "\n"
    path = folder / name
    path.write_text(HEADER + extra + columns + "".join(f"{record}\n" for record in records))
    return str(path)


def make_cna(folder: Path, name: str = "in.cna.tsv") -> str:
    """Write a copy number table; return its path."""
    path = folder / name
    path.write_text(
        "Chromosome\tStart\tEnd\tnMajor\tnMinor\n1\t50\t1049\t1\t1\n1\t2000\t2999\t1.8\t0\n17\t1\t1000\t6\t0\n"
    )
    return str(path)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature bundle and the empty VEP cache."""
    folder = tmp_path_factory.mktemp("reference")
    bundle.write_bundle(folder)
    bundle.write_vep(folder / "vep")
    return folder


class Tool:
    """Runs commands in this process; keeps the log of the last one."""

    def __init__(self, folder: Path, reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.out, self.capsys = folder, folder / "out", capsys
        self.base: dict[str, Any] = {
            "input_vcf": make_vcf(folder),
            "refdata_dir": str(reference),
            "vep_dir": str(reference / "vep"),
            "output_dir": str(self.out),
            "genome_assembly": "grch38",
            "sample_id": "sample-1",
        }
        self.log = ""

    def run(self, command: str = "pcgr", **given: Any) -> int:
        """Run a command with changed options; return its exit code."""
        argv = []
        for name, value in (self.base | given).items():
            if value is True:
                argv.append(f"--{name}")
            elif value is not None:
                argv.append(f"--{name}={value}")
        return self.raw(command, argv)

    def raw(self, command: str, argv: list[str]) -> int:
        """Run a command with these arguments; return its exit code."""
        self.capsys.readouterr()
        try:
            code = main(command, argv)
        except SystemExit as end:
            code = int(end.code or 0)
        self.log = "".join(self.capsys.readouterr())
        return code

    def path(self, suffix: str, command: str = "pcgr") -> Path:
        """Return the path of an output."""
        return self.out / f"sample-1.{command}.grch38.{suffix}"

    def rows(self, suffix: str, command: str = "pcgr") -> list[dict[str, str]]:
        """Read an output table."""
        path = self.path(suffix, command)
        with gzip.open(path, "rt") if suffix.endswith("gz") else path.open() as stream:
            return list(csv.DictReader(stream, delimiter="\t"))

    def names(self) -> set[str]:
        """Return the suffixes of all outputs of pcgr."""
        return {path.name.removeprefix("sample-1.pcgr.grch38.") for path in self.out.iterdir()}


@pytest.fixture
def tool(tmp_path: Path, reference: Path, capsys: pytest.CaptureFixture[str]) -> Tool:
    """A tool with a folder of its own."""
    return Tool(tmp_path, reference, capsys)


# ------------------------------------------------------------------------------------------------ options


def test_version(tool: Tool) -> None:
    assert (tool.raw("pcgr", ["--version"]), tool.log) == (0, "pcgr 2.3.2\n")
    assert (tool.raw("cpsr", ["--version"]), tool.log) == (0, "cpsr 2.3.0\n")


@pytest.mark.parametrize(
    "given",
    [{"nonsense": "1"}, {"genome_assembly": "hg19"}, {"sample_id": None}, {"tumor_site": "x"}, {"assay": "wgs"}],
)
def test_wrong_usage_exits_with_2(tool: Tool, given: dict[str, Any]) -> None:
    assert tool.run(**given) == 2
    assert not tool.out.exists()


def test_options_of_other_commands_and_releases_exit_with_2(tool: Tool) -> None:
    assert tool.run(panel_id="0") == 2
    assert tool.run(n_copy_gain="6") == 2  # of 2.2
    assert tool.run("cpsr", panel_id="0", classify_all=True) == 2  # removed in cpsr 2.3


def test_options_may_be_abbreviated(tool: Tool) -> None:
    assert tool.run(input_vcf=None, input_v=tool.base["input_vcf"]) == 0


def test_defaults_are_those_of_pcgr() -> None:
    required = ["--refdata_dir=r", "--output_dir=o", "--genome_assembly=grch37", "--sample_id=abc"]
    args = options.parse("pcgr", required)
    assert (args.assay, args.sex, args.tumor_site, args.vep_n_forks, args.vep_buffer_size) == (
        "WES",
        "UNKNOWN",
        0,
        4,
        500,
    )
    assert (args.cna_amp_threshold_absolute, args.tumor_dp_tag, args.gnomad_popmax_af_tolerated) == (5, "_NA_", 0.001)
    cpsr = options.parse("cpsr", [*required, "--input_vcf=v", "--vep_dir=w"])
    assert (cpsr.panel_id, cpsr.max_af_gnomad, cpsr.clinvar_trust_level) == ("-1", 0.9, 0)


# ------------------------------------------------------------------------------------------------ refusals

# In PCGR's order: (changed options, options that must stay unset for the rule to apply, part of the message)
RULES: list[tuple[dict[str, Any], set[str], str]] = [
    ({"refdata_dir": "/nowhere"}, set(), "'--refdata_dir' does not exist"),
    ({"input_vcf": "/nowhere.vcf"}, set(), "'--input_vcf' = /nowhere.vcf) does not exist"),
    ({"vep_dir": None}, set(), "'--vep_dir' is required"),
    ({"sample_id": "ab"}, set(), "3 to 40 characters"),
    ({"expression_sim_db": "tcga,other"}, set(), "expression_sim_db"),
    ({"oncokb_api_token": "secret"}, set(), "UUID form"),
    ({"oncokb_exclusive": True}, {"oncokb_api_token"}, "'--oncokb_exclusive' needs"),
    ({"tumor_site": 31}, set(), "within [0, 30]"),
    ({"tumor_purity": 0}, set(), "within (0, 1]"),
    ({"tumor_ploidy": 0}, set(), "'--tumor_ploidy' = 0.0 must be > 0"),
    ({"tumor_dp_min": 5}, {"tumor_dp_tag"}, "requires '--tumor_dp_tag'"),
    ({"tumor_ad_min": 5}, {"tumor_af_tag"}, "requires '--tumor_af_tag'"),
    ({"control_dp_min": 5}, {"control_dp_tag"}, "requires '--control_dp_tag'"),
    ({"control_af_max": 0.1}, {"control_af_tag"}, "requires '--control_af_tag'"),
    ({**TAGS, "tumor_dp_min": 0}, set(), "'--tumor_dp_min' = 0 must be > 0"),
    ({**TAGS, "tumor_af_min": 1.5}, set(), "'--tumor_af_min' = 1.5 must be within [0, 1]"),
    ({**TAGS, "control_dp_min": 0}, set(), "'--control_dp_min' = 0 must be > 0"),
    ({**TAGS, "tumor_ad_min": 0}, set(), "'--tumor_ad_min' = 0"),
    ({**TAGS, "control_af_max": 2}, set(), "'--control_af_max' = 2.0"),
    ({**TAGS, "control_ad_max": -1}, set(), "'--control_ad_max' = -1"),
    ({"tmb_dp_min": 0}, set(), "'--tmb_dp_min' = 0 must be > 0"),
    ({"tmb_ad_min": 0}, set(), "'--tmb_ad_min' = 0 must be > 0"),
    ({"tmb_af_min": 2}, set(), "'--tmb_af_min' = 2"),
    ({"effective_target_size_mb": 34.5}, set(), "within [0, 34.0]"),
    ({"min_mutations_signatures": 99}, set(), "must be >= 100"),
    ({"prevalence_reference_signatures": 21}, set(), "within [0, 20]"),
    ({"estimate_msi": True}, {"estimate_tmb", "tumor_only"}, "requires '--estimate_tmb'"),
    ({"tumor_only": True, "control_dp_tag": "CDP"}, set(), "does not allow '--control_dp_tag'"),
    ({"tumor_only": True, "exclude_likely_het_germline": True}, {"tumor_af_tag"}, "requires '--tumor_af_tag'"),
    ({"tumor_only": True, "gnomad_popmax_af_tolerated": 2}, set(), "gnomad_popmax_af_tolerated"),
    ({"vep_n_forks": 9}, set(), "'--vep_n_forks' = 9 must be within [1, 8]"),
    ({"vep_buffer_size": 49}, set(), "within [50, 30000]"),
    ({"vep_pick_order": "rank,tsl"}, set(), "vep_pick_order"),
    ({"tumor_ploidy": 9}, set(), "within [1.0, 8.0]"),
    ({"cna_amp_threshold_absolute": 21}, set(), "within [3, 20]"),
    ({"tumor_ploidy": 5.5}, set(), "must exceed the ploidy"),
    ({"cna_gain_threshold_absolute": 1}, set(), "must be > 1"),
    ({"cna_gain_threshold_absolute": 5}, {"cna_amp_threshold_absolute"}, "below the amplification threshold"),
    ({"cna_del_threshold_absolute": 0}, set(), "'--cna_del_threshold_absolute' = 0 must be >= 1"),
    ({"cna_del_threshold_absolute": 3}, {"cna_gain_threshold_absolute"}, "below the gain threshold"),
    ({"cna_threshold_mode": "relative", "cna_amp_threshold_relative": 11}, set(), "within [1.5, 10]"),
    ({"cna_threshold_mode": "relative", "cna_gain_threshold_relative": 3}, {"cna_amp_threshold_relative"}, "below the amplification one"),
    ({"cna_threshold_mode": "relative", "cna_del_threshold_relative": 1}, set(), "within (0, 1)"),
    ({"cna_transcript_overlap_pct": 0}, set(), "within (0, 100]"),
    ({"sex": "MALE", "tumor_site": 18}, set(), "does not go with '--sex' MALE"),
    ({"pon_vcf": "/nowhere.vcf.gz"}, set(), "/nowhere.vcf.gz does not exist or has zero size"),
    ({"input_rna_fusion": "/nowhere.tsv"}, set(), "/nowhere.tsv does not exist or has zero size"),
    ({"input_rna_expression": "/nowhere.txt"}, set(), "/nowhere.txt does not exist or has zero size"),
    ({"input_cpsr": "/nowhere.tsv.gz"}, set(), "(/nowhere.tsv.gz) does not exist"),
    ({"vep_dir": "/nowhere"}, set(), "VEP directory ('/nowhere') does not exist"),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule[2])
def test_each_rule_refuses_with_1(tool: Tool, rule: tuple[dict[str, Any], set[str], str]) -> None:
    given, _unused, message = rule
    assert tool.run(input_cna=make_cna(tool.folder), **given) == 1
    errors = [line for line in tool.log.splitlines() if " - ERROR - " in line]
    assert len(errors) == 3
    assert message in errors[1]
    assert not tool.out.exists()


def _together() -> list[Any]:
    pairs = []
    for place, (first, absent, message) in enumerate(RULES):
        for second, _unused, _unused in RULES[place + 1 :]:
            clash = any(first[name] != second[name] for name in first.keys() & second.keys())
            if clash or absent & second.keys() or ("cna_threshold_mode" in second and "absolute" in str(first)):
                continue
            pairs.append(pytest.param(first | second, message, id=f"{message} / {list(second)[-1]}"))
            break  # the next rule that can be broken at the same time
    return pairs


@pytest.mark.parametrize(("given", "message"), _together())
def test_earlier_of_two_violated_rules_is_reported(tool: Tool, given: dict[str, Any], message: str) -> None:
    assert tool.run(input_cna=make_cna(tool.folder), **given) == 1
    assert message in tool.log


def test_an_input_is_required(tool: Tool) -> None:
    assert tool.run(input_vcf=None) == 1
    assert "At least one molecular input" in tool.log


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("input_vcf", "in.bcf", "(.vcf or .vcf.gz)"),
        ("input_vcf", "in.vcf.gz", "Tabix file"),
        ("pon_vcf", "pon.vcf", "(.vcf.gz)"),
        ("pon_vcf", "pon.vcf.gz", "Tabix file"),
        ("input_cna", "in.cna.tsv.gz", "(.tsv or .txt)"),
        ("input_rna_fusion", "fusions.csv", "(.tsv or .txt)"),
        ("input_rna_expression", "expression.tsv.gz", "(.tsv or .txt)"),
        ("input_cpsr", "a.cpsr.grch38.classification.tsv", "(.tsv.gz)"),
        ("input_cpsr", "a.cpsr.grch38.classification.tsv.gz", "--input_cpsr_yaml"),
    ],
)
def test_names_of_input_files(tool: Tool, option: str, name: str, message: str) -> None:
    (tool.folder / name).write_text("something")
    assert tool.run(**{option: tool.folder / name}) == 1
    assert message in tool.log


def test_thresholds_that_depend_on_each_other(tool: Tool) -> None:
    assert tool.run(**TAGS, tumor_dp_min=10, tumor_ad_min=11) == 1
    assert tool.run(**TAGS, tumor_dp_min=10, tmb_dp_min=9) == 1
    assert tool.run(**TAGS, tumor_af_min=0.1, tmb_af_min=0.05) == 1
    assert tool.run(**TAGS, tumor_ad_min=5, tmb_ad_min=4) == 1
    assert (
        tool.run(
            **TAGS, tumor_dp_min=10, tumor_ad_min=10, tmb_dp_min=10, tmb_ad_min=10, tumor_af_min=0.1, tmb_af_min=0.1
        )
        == 0
    )


@pytest.mark.parametrize(
    "suffix", ["vcf.gz", "pass.tsv.gz", "html", "conf.yaml", "maf", "tmb.tsv", "rna_fusion.tsv.gz"]
)
def test_existing_output_is_refused_unless_forced(tool: Tool, suffix: str) -> None:
    tool.out.mkdir()
    tool.path(suffix).write_text("earlier")
    assert tool.run() == 1
    assert "already exist" in tool.log
    assert tool.path(suffix).read_text() == "earlier"
    assert tool.run(force_overwrite=True) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--panel_id"),
        ({"panel_id": "0", "custom_list": "/x"}, "together"),
        ({"panel_id": "44"}, "range 0 - 43"),
        ({"panel_id": "0,5"}, "range 1 - 43"),
        ({"panel_id": "5,x"}, "'x' is not an integer"),
        ({"panel_id": "0", "max_af_gnomad": 0.05}, "max_af_gnomad"),
        ({"panel_id": "0", "vcfanno_n_proc": 16}, "within [1, 15]"),
        ({"panel_id": "0", "vep_n_forks": 0}, "within [1, 8]"),
    ],
)
def test_rules_of_cpsr(tool: Tool, given: dict[str, Any], message: str) -> None:
    assert tool.run("cpsr", **given) == 1
    assert message in tool.log


# --------------------------------------------------------------------------------- bundle and VEP cache


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("data/grch38/.PCGR_BUNDLE_VERSION", "Could not find file"),
        ("data/grch38", "Data directory for the specified genome assembly"),
        ("data", "Data directory ("),
        ("vep/homo_sapiens/115_GRCh38", "115_GRCh38') does not exist"),
    ],
)
def test_missing_parts_of_the_reference(tool: Tool, damage: str, message: str) -> None:
    mine = tool.folder / "reference"
    bundle.write_bundle(mine)
    bundle.write_vep(mine / "vep")
    (mine / damage).rename(mine / "moved")
    assert tool.run(refdata_dir=mine, vep_dir=mine / "vep") == 1
    assert message in tool.log


def test_version_of_the_bundle(tool: Tool) -> None:
    mine = tool.folder / "reference"
    bundle.write_bundle(mine)
    version = mine / "data" / "grch38" / ".PCGR_BUNDLE_VERSION"
    version.write_text("20250314\n")
    assert tool.run(refdata_dir=mine) == 1
    assert "not compliant" in tool.log
    version.write_text("built\nfrom x20260620y\n")  # PCGR searches for the text anywhere in a line
    assert tool.run(refdata_dir=mine) == 0


@pytest.mark.parametrize("name", [".METADATA/tsv/drug_metadata.tsv", "phenotype/tsv/phenotype_onco.tsv.gz"])
def test_missing_metadata_exits_with_1_and_a_traceback(tool: Tool, name: str) -> None:
    mine = tool.folder / "reference"
    bundle.write_bundle(mine)
    (mine / "data" / "grch38" / name).write_text("")
    call = "import sys; from rehearsal.pcgr_rehearsal.run import main; sys.exit(main('pcgr'))"
    argv = [f"--{key}={value}" for key, value in (tool.base | {"refdata_dir": mine}).items()]
    result = subprocess.run([sys.executable, "-c", call, *argv], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")
    assert "AttributeError" in result.stderr
    assert name in result.stderr


def test_text_that_is_not_a_number_raises(tool: Tool) -> None:
    for given in ({}, {"input_vcf": None, "input_cna": make_cna(tool.folder)}):
        with pytest.raises(ValueError, match="invalid literal"):
            tool.run(tmb_dp_min="x", **given)


# ------------------------------------------------------------------- failing sub-steps exit with 0


def failed_quietly(tool: Tool, code: int, command: str = "pcgr") -> bool:
    """Whether a run exited with 0 without a closing line and report."""
    return code == 0 and f"Finished {command.upper()}!" not in tool.log and not tool.path("xlsx", command).exists()


@pytest.mark.parametrize(
    ("extra", "given", "message"),
    [
        ('##INFO=<ID=IMPACT,Number=1,Type=String,Description="x">\n', {}, "INFO tag IMPACT"),
        ("", {"retained_info_tags": "TAL,NOPE"}, "'NOPE' not found"),
        ("", {"tumor_dp_tag": "DP"}, "'DP' is reserved"),
        ("", {"tumor_dp_tag": "TVAF"}, "Type=Float in the input VCF, should be Type=Integer"),
        ("", {"tumor_af_tag": "TDP"}, "should be Type=Float"),
        ("", {"call_conf_tag": "TDP"}, "should be Type=String"),
        ("##rehearsal_fault=nonsense\n", {}, "rehearsal_fault=nonsense is unknown"),
    ],
)
def test_refused_vcf_exits_with_0(tool: Tool, extra: str, given: dict[str, str], message: str) -> None:
    code = tool.run(input_vcf=make_vcf(tool.folder, extra=extra), **given)
    assert failed_quietly(tool, code)
    assert message in tool.log


def test_absent_tag_only_warns(tool: Tool) -> None:
    assert tool.run(tumor_af_tag="TAF") == 0
    assert "Could not find the specified tumor_af_tag ('TAF')" in tool.log
    assert "Finished PCGR!" in tool.log


@pytest.mark.parametrize(
    "records",
    [
        (RECORDS[1], RECORDS[0]),  # unsorted
        (RECORDS[0], RECORDS[3], RECORDS[2]),  # a chromosome in two blocks
        (RECORDS[5],),  # nothing on the kept chromosomes
        (RECORDS[0], "chr1\tx\t.\tA"),  # not a VCF line
    ],
)
def test_unusable_records_exit_with_0(tool: Tool, records: tuple[str, ...]) -> None:
    assert failed_quietly(tool, tool.run(input_vcf=make_vcf(tool.folder, records)))


def test_file_that_is_not_a_vcf_exits_with_0(tool: Tool) -> None:
    path = tool.folder / "text.vcf"
    path.write_text("hello\n")
    assert failed_quietly(tool, tool.run(input_vcf=path))


def test_no_pass_variants_leave_a_maf_and_temporary_files(tool: Tool) -> None:
    vcf_path = make_vcf(tool.folder, (RECORDS[2],))
    code = tool.run(input_vcf=vcf_path, input_cna=make_cna(tool.folder))
    assert failed_quietly(tool, code)
    assert "No remaining PASS variants" in tool.log
    assert "maf" in tool.names()
    assert not {"html", "conf.yaml", "cna_segment.tsv.gz", "vcf.gz"} & tool.names()
    assert any(re.fullmatch(r"[a-z0-9]{15}\.ready\.vcf\.gz", name) for name in tool.names())


@pytest.mark.parametrize(
    ("step", "conf"),
    [
        ("validation", False),
        ("vep", False),
        ("vcf2maf", False),
        ("vcfanno", False),
        ("summarise", False),
        ("report", True),
    ],
)
def test_every_sub_step_can_fail_with_exit_code_0(tool: Tool, step: str, conf: bool) -> None:
    code = tool.run(input_vcf=make_vcf(tool.folder, extra=f"##rehearsal_fault={step}\n"))
    assert failed_quietly(tool, code)
    assert tool.path("conf.yaml").exists() is conf


def test_unexpected_error_of_the_report_exits_with_0_too(tool: Tool) -> None:
    tool.path("xlsx").mkdir(parents=True)
    assert tool.run(force_overwrite=True) == 0
    assert "IsADirectoryError" in tool.log
    assert "Finished PCGR!" not in tool.log


def test_traceback_of_the_driver_is_not_a_failed_sub_step(tool: Tool) -> None:
    with pytest.raises(RuntimeError, match="traceback in the driver"):
        tool.run(input_vcf=make_vcf(tool.folder, extra="##rehearsal_fault=traceback\n"))


def test_run_takes_as_long_as_the_vcf_requests(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    assert tool.run(input_vcf=make_vcf(tool.folder, extra="##rehearsal_seconds=20\n")) == 0
    assert slept == [20]


def test_closing_line_without_report_when_the_variant_set_is_empty(tool: Tool) -> None:
    assert tool.run(input_vcf=make_vcf(tool.folder, extra="##rehearsal_fault=empty_variant_set\n")) == 0
    assert "Finished PCGR!" in tool.log
    assert not {"html", "xlsx"} & tool.names()


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("input_cna", "Chromosome\tStart\tEnd\tnMajor\n1\t1\t2\t1\n", "nMinor"),
        ("input_cna", "Chromosome\tStart\tEnd\tnMajor\tnMinor\n1\t9\t2\t1\t1\n", "greater than 'End' (1:9-2)"),
        ("input_cna", "Chromosome\tStart\tEnd\tnMajor\tnMinor\n1\t0\t2\t1\t1\n", "below 1"),
        ("input_cna", "Chromosome\tStart\tEnd\tnMajor\tnMinor\n1\t1.5\t2\t1\t1\n", "non-int"),
        ("input_cna", "Chromosome\tStart\tEnd\tnMajor\tnMinor\n", "is empty"),
        (
            "input_rna_fusion",
            "FusionGene\tLeftBreakpoint\tRightBreakpoint\tSplitReads\nA-B\t1:1\t2:2\t3\n",
            "separator",
        ),
        (
            "input_rna_fusion",
            "FusionGene\tLeftBreakpoint\tRightBreakpoint\tSplitReads\nA--B\t1\t2:2\t3\n",
            "LeftBreakpoint",
        ),
        (
            "input_rna_fusion",
            "FusionGene\tLeftBreakpoint\tRightBreakpoint\tSplitReads\nA--B\t1:1\t2:2\t-3\n",
            "SplitReads",
        ),
        ("input_rna_expression", "TargetID\tTPM\nTP53\t-1\n", "number >= 0"),
        ("input_rna_expression", "TargetID\tCount\nTP53\t1\n", "TPM"),
    ],
)
def test_refused_table_exits_with_0(tool: Tool, option: str, text: str, message: str) -> None:
    path = tool.folder / "table.tsv"
    path.write_text(text)
    assert failed_quietly(tool, tool.run(**{option: path}))
    assert message in tool.log


def test_panel_of_normals_needs_its_flag(tool: Tool) -> None:
    for flag, ends_well in (("", False), ('##INFO=<ID=PANEL_OF_NORMALS,Number=0,Type=Flag,Description="x">\n', True)):
        path = pysam.tabix_index(make_vcf(tool.folder, extra=flag, name="pon.vcf"), preset="vcf", force=True)
        code = tool.run(pon_vcf=path, force_overwrite=True)
        assert code == 0
        assert ("Finished PCGR!" in tool.log) is ends_well


# ------------------------------------------------------------------------------------ outputs of a successful run


def test_outputs_of_pcgr(tool: Tool) -> None:
    fusions = tool.folder / "fusions.tsv"
    fusions.write_text(
        "FusionGene\tLeftBreakpoint\tRightBreakpoint\tSplitReads\nA--B\t1:1\t2:2\t30\nC::D\t3:1\tchr4:2\t2\n"
    )
    expression = tool.folder / "expression.tsv"
    expression.write_text("TargetID\tTPM\nTP53\t1.5\n")
    more = {"input_rna_fusion": fusions, "input_rna_expression": expression, "estimate_tmb": True, "tumor_only": True}
    tags = {"tumor_dp_tag": "TDP", "tumor_af_tag": "TVAF", "retained_info_tags": "TAL"}
    assert tool.run(input_cna=make_cna(tool.folder), tumor_af_min=0.1, **more, **tags) == 0
    lines = tool.log.splitlines()
    assert lines[1] == f"*** {NOTICE} ***"
    assert [line for line in lines if line.endswith("Finished PCGR!")]
    tables = (
        "cna_segment",
        "cna_gene_ann",
        "rna_fusion",
        "fusion_ann",
        "expression",
        "pass",
        "snv_indel_ann",
        "snv_indel_unfiltered_ann",
    )
    vcfs = {"vcf.gz", "vcf.gz.tbi", "pass.vcf.gz", "pass.vcf.gz.tbi"}
    others = {"html", "xlsx", "conf.yaml", "maf", "tmb.tsv"}
    assert tool.names() == vcfs | others | {f"{name}.tsv.gz" for name in tables}

    with pysam.VariantFile(str(tool.path("vcf.gz"))) as stream:
        assert list(stream.header.samples) == []
        read = [(r.chrom, r.pos, r.ref, r.alts[0], r.info["VARIANT_CLASS"]) for r in stream.fetch("1")]
    expected = [
        ("1", 100, "A", "G", "SNV"),
        ("1", 200, "C", "T", "SNV"),
        ("1", 200, "C", "CA", "insertion"),
        ("1", 300, "CAG", "C", "deletion"),
    ]
    assert read == expected
    rows = tool.rows("pass.tsv.gz")
    assert [(r["VAR_ID"], r["VARIANT_CLASS"], r["DP_TUMOR"], r["VAF_TUMOR"], r["AD_TUMOR"]) for r in rows] == [
        ("1_100_A_G", "SNV", "100", "0.5", "50"),
        ("1_200_C_T", "SNV", "50", "0.2", "10"),
        ("1_200_C_CA", "insertion", "50", "0.04", "2"),
        ("17_400_CC_TT", "MNV", "40", "0.3", "12"),
        ("X_500_G_A", "SNV", "60", "0.45", "27"),
    ]
    assert len(tool.rows("snv_indel_ann.tsv.gz")) == 4  # one is below tumor_af_min
    assert len(tool.rows("snv_indel_unfiltered_ann.tsv.gz")) == 5
    assert [(r["TMB_N_VARIANTS"], r["TMB_ESTIMATE"]) for r in tool.rows("tmb.tsv")] == [("5", str(round(5 / 34, 4)))]
    assert [r["CN_TOTAL"] for r in tool.rows("cna_segment.tsv.gz")] == ["2", "2", "6"]
    assert [(r["SYMBOL"], r["N_VARIANTS"], r["CHROM"]) for r in tool.rows("cna_gene_ann.tsv.gz")] == [
        ("ONE", "1", "1"),
        ("ONE", "1", "17"),
    ]
    assert (len(tool.rows("rna_fusion.tsv.gz")), len(tool.rows("fusion_ann.tsv.gz"))) == (2, 1)
    maf = tool.path("maf").read_text().splitlines()
    assert maf[1] == f"#{NOTICE}"
    assert [tuple(line.split("\t")[i] for i in (3, 4, 6, 7, 9)) for line in maf[3:7]] == [
        ("100", "100", "SNP", "A", "G"),
        ("200", "200", "SNP", "C", "T"),
        ("200", "201", "INS", "-", "A"),
        ("301", "302", "DEL", "AG", "-"),
    ]


def test_configuration_is_marked_and_holds_no_token(tool: Tool) -> None:
    token = "c3f8a1d2-7b4e-49c0-85f1-2e6d0a9b3c7e"
    assert tool.run(oncokb_api_token=token) == 0
    text = tool.path("conf.yaml").read_text()
    assert text.startswith(f"# {NOTICE}\n")
    data = yaml.safe_load(text)
    assert (data["software"]["pcgr_version"], data["reference_data"]["version"]) == ("2.3.2", "20260620")
    assert not [path.name for path in tool.out.iterdir() if token.encode() in path.read_bytes()]
    failing = make_vcf(tool.folder, extra="##rehearsal_fault=report\n")
    assert tool.run(oncokb_api_token=token, force_overwrite=True, input_vcf=failing) == 0
    assert token in tool.path("conf.yaml").read_text()  # PCGR leaves it there too


def test_workbook_is_marked_on_every_sheet(tool: Tool) -> None:
    assert tool.run(input_cna=make_cna(tool.folder), estimate_tmb=True) == 0
    book = openpyxl.load_workbook(tool.path("xlsx"))
    assert book.sheetnames == ["SETTINGS", "DATA_VERSIONS", "SAMPLE_ASSAY", "SOMATIC_SNV_INDEL", "TMB", "SOMATIC_CNA"]
    assert {sheet["A1"].value for sheet in book} == {NOTICE}
    assert [row[6] for row in book["SOMATIC_CNA"].iter_rows(min_row=3, values_only=True)] == [2, 2, 6]


def test_page_is_marked_and_correct_and_loads_nothing(tool: Tool) -> None:
    evil = RECORDS[0].replace("MY_GENE=ONE", "MY_GENE=<b>&x")
    assert tool.run(input_vcf=make_vcf(tool.folder, (evil, *RECORDS[1:])), **TAGS) == 0
    page = tool.path("html").read_text()
    assert page.count(NOTICE) >= 3
    assert not re.search(r"<script|<link|<img|@import|src=|url\(", page)
    assert {
        url for url in re.findall(r"https?://[^\s\"'<]+", page) if "w3.org" not in url and "pygal" not in url
    } == set()
    assert "<b>&x" not in page
    assert "<li>&lt;b&gt;&amp;x <b>1</b></li>" in page
    assert "<tr><td>SNV</td><td class=n>3</td><td class=n>3</td></tr>" in page
    assert "<tr><td>LowQual</td><td class=n>1</td></tr>" in page
    assert page.count("<svg") == 2
    assert "median allele fraction" in page


def test_report_flags(tool: Tool) -> None:
    assert tool.run(no_html=True) == 0
    assert ("Finished PCGR!" in tool.log, tool.path("html").exists(), tool.path("xlsx").exists()) == (True, False, True)
    assert tool.run(no_reporting=True, sample_id="other") == 0
    assert "Finished PCGR!" not in tool.log
    assert not list(tool.out.glob("other*.xlsx"))


def test_without_a_vcf(tool: Tool) -> None:
    assert tool.run(input_vcf=None, vep_dir=None, input_cna=make_cna(tool.folder)) == 0
    assert "Finished PCGR!" in tool.log
    assert tool.names() == {"html", "xlsx", "conf.yaml", "cna_segment.tsv.gz"}


def test_signature_table_counts_base_changes(tool: Tool) -> None:
    changes = ("A\tG", "G\tA", "C\tT", "C\tG", "T\tG")  # T>C, C>T, C>T, C>G, T>G
    records = tuple(f"chr1\t{10 + i}\t.\t{changes[i % 5]}\t.\tPASS\t.\tGT\t0/1" for i in range(100))
    assert (
        tool.run(input_vcf=make_vcf(tool.folder, records), estimate_signatures=True, min_mutations_signatures=100) == 0
    )
    counts = {row["SUBSTITUTION"]: int(row["N_VARIANTS"]) for row in tool.rows("msigs.tsv.gz")}
    assert counts == {"C>A": 0, "C>G": 20, "C>T": 40, "T>A": 0, "T>C": 20, "T>G": 20}


def test_outputs_of_cpsr_and_their_use_by_pcgr(tool: Tool) -> None:
    assert tool.run("cpsr", panel_id="0") == 0
    assert "Finished CPSR!" in tool.log
    names = {path.name.removeprefix("sample-1.cpsr.grch38.") for path in tool.out.iterdir()}
    vcfs = {"vcf.gz", "vcf.gz.tbi", "pass.vcf.gz", "pass.vcf.gz.tbi", "pass.tsv.gz"}
    assert names == vcfs | {"html", "xlsx", "conf.yaml", "classification.tsv.gz"}
    rows = tool.rows("classification.tsv.gz", "cpsr")
    assert [(r["VAR_ID"], r["GENOTYPE"], r["DBSNP_RSID"]) for r in rows] == [
        ("1_100_A_G", "heterozygous", "."),
        ("1_200_C_T", "heterozygous", "rs7"),
        ("1_200_C_CA", "heterozygous", "rs7"),
        ("X_500_G_A", "heterozygous", "."),
    ]  # without 0/0 and LowQual
    with pysam.VariantFile(str(tool.path("vcf.gz", "cpsr"))) as stream:
        assert [tuple(r.samples[0]["AD"]) for r in stream.fetch("1", 199, 200)] == [(2, 14), (2, 14)]
    classified = {
        "input_cpsr": tool.path("classification.tsv.gz", "cpsr"),
        "input_cpsr_yaml": tool.path("conf.yaml", "cpsr"),
    }
    assert tool.run(**classified) == 0
    assert openpyxl.load_workbook(tool.path("xlsx"))["GERMLINE_SNV_INDEL"].max_row == 2 + len(rows)


def test_cpsr_sample_columns_and_panels(tool: Tool) -> None:
    two = tuple(record + "\t0/1:1:1,1" for record in RECORDS)
    assert failed_quietly(
        tool, tool.run("cpsr", panel_id="0", input_vcf=make_vcf(tool.folder, two, samples="A\tB")), "cpsr"
    )
    assert "more than one sample column (A, B)" in tool.log
    only_x = make_vcf(tool.folder, (RECORDS[4],))
    assert failed_quietly(tool, tool.run("cpsr", panel_id="5", input_vcf=only_x), "cpsr")
    assert "NO valid variants" in tool.log
    reference_only = make_vcf(tool.folder, (RECORDS[3],))
    assert failed_quietly(tool, tool.run("cpsr", panel_id="0", input_vcf=reference_only), "cpsr")


def test_cpsr_custom_list_of_genes(tool: Tool) -> None:
    genes = tool.folder / "genes.txt"
    genes.write_text(
        "ENSG00000000023\nENSG00000999999\n"
    )  # chromosome X of the rehearsal's bundle, and an unknown gene
    assert tool.run("cpsr", custom_list=genes, custom_list_name="mine") == 0
    assert "ENSG00000999999) NOT found" in tool.log
    assert [row["VAR_ID"] for row in tool.rows("classification.tsv.gz", "cpsr")] == ["X_500_G_A"]
    assert tool.path("custom_panel.bed", "cpsr").read_text().startswith("X\t0\t")
    genes.write_text("BRCA1\n")
    assert failed_quietly(tool, tool.run("cpsr", custom_list=genes, sample_id="sample-2"), "other")


def test_kinds_of_variants() -> None:
    pairs = ("A G", "AC GT", "A AT", "AT A", "AT GCC", "A <DEL>", "A *", "a g")
    kinds = [vcf.kind_of(*pair.split()) for pair in pairs]
    assert kinds == ["SNV", "MNV", "insertion", "deletion", "indel", "other", "other", "SNV"]


def test_axis_marks_are_whole_numbers() -> None:
    assert report._ticks(1) == [0, 1]
    assert report._ticks(5) == [0, 1, 2, 3, 4, 5]
    assert report._ticks(330) == [0, 100, 200, 300, 400]


@pytest.mark.skipif("PCGR_EXAMPLES" not in os.environ, reason="PCGR_EXAMPLES names no folder with PCGR's examples")
@pytest.mark.parametrize("name", ["T001-BRCA", "T001-COAD"])
def test_examples_of_pcgr(tool: Tool, name: str) -> None:
    stem = Path(os.environ["PCGR_EXAMPLES"]) / f"{name}.grch38"
    tags = {"tumor_dp_tag": "TDP", "tumor_af_tag": "TVAF", "call_conf_tag": "TAL"}
    assert (
        tool.run(
            input_vcf=f"{stem}.vcf.gz", input_cna=f"{stem}.cna.tsv", input_rna_fusion=f"{stem}.fusions.tsv", **tags
        )
        == 0
    )
    assert "Finished PCGR!" in tool.log
    with gzip.open(f"{stem}.vcf.gz", "rt") as stream:
        assert len(tool.rows("pass.tsv.gz")) == sum(not line.startswith("#") for line in stream)
