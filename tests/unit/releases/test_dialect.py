"""From a sample's TOML to the command line, by the dialects of the real releases."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from ansible_collections.umccr.pcgr.plugins.module_utils import _release as releases
from hypothesis import given, settings
from hypothesis import strategies as st

from umccr_pcgr.samples.dialect import ConfigError, Inputs, arguments, assembly_of

IN = "/mnt/pcgr_inputs"
VCF = Inputs(vcf=f"{IN}/a.vcf.gz", cna=None, fusion=None, expression=None)
ALL = replace(VCF, cna=f"{IN}/a.cna.tsv", fusion=f"{IN}/a.fusions.tsv", expression=f"{IN}/a.expression.tsv")
USABLE = [name for name in releases.list_releases() if name not in ("2.3.0",)]


@cache
def dialect(release: str) -> Any:
    """The dialect as the target gets it: through JSON."""
    return json.loads(json.dumps(releases.load_release(release)["dialect"]))


def argv(
    toml: str = "", *, release: str = "2.3.2", command: Any = "pcgr", inputs: Inputs = VCF, **changes: str
) -> list[str]:
    given = {
        "sample_id": "demo-000001-somatic",
        "assembly": "grch38",
        "refdata_dir": "/mnt/bundle",
        "vep_dir": "/mnt/.vep",
        "output_dir": "/mnt/pcgr_outputs",
    }
    return arguments(dialect(release), command, tomllib.loads(toml), inputs=inputs, **{**given, **changes})  # type: ignore[arg-type]


def refused(toml: str, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        argv(toml, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pairs(items: list[str]) -> set[tuple[str, ...]]:
    """Options with their values, without regard to their order."""
    groups: list[list[str]] = []
    for item in items[1:]:
        if item.startswith("--"):
            groups.append([item])
        else:
            groups[-1].append(item)
    return {tuple(group) for group in groups}


SOMATIC = {
    ("--refdata_dir", "/mnt/bundle"),
    ("--output_dir", "/mnt/pcgr_outputs"),
    ("--genome_assembly", "grch38"),
    ("--sample_id", "demo-000001-somatic"),
    ("--input_vcf", f"{IN}/a.vcf.gz"),
    ("--vep_dir", "/mnt/.vep"),
}


def test_a_sample_without_toml() -> None:
    assert argv()[0] == "pcgr"
    assert pairs(argv()) == SOMATIC
    assert pairs(argv(inputs=ALL)) - SOMATIC == {
        ("--input_cna", f"{IN}/a.cna.tsv"),
        ("--input_rna_fusion", f"{IN}/a.fusions.tsv"),
        ("--input_rna_expression", f"{IN}/a.expression.tsv"),
    }


def test_a_normal_sample_gets_the_panel_of_all_genes_unless_it_names_its_own() -> None:
    assert argv(command="cpsr")[0] == "cpsr"
    assert pairs(argv(command="cpsr")) == SOMATIC | {("--panel_id", "0")}
    assert ("--panel_id", "3,17") in pairs(argv("[cpsr]\npanel_id = [3, 17]", command="cpsr"))
    assert ("--panel_id", "5") in pairs(argv("[cpsr]\npanel_id = 5", command="cpsr"))


def test_options_of_the_release() -> None:
    toml = """
        genome_assembly = "grch38"
        [pcgr]
        tumor_dp_tag = "TDP"
        tumor_af_tag = "TVAF"
        call_conf_tag = "TAL"
        tumor_af_min = 0.00001
        tumor_site = 9
        estimate_tmb = true
        estimate_signatures = false
        retained_info_tags = ["TAL", "TCGA_CODE"]
    """
    assert pairs(argv(toml)) - SOMATIC == {
        ("--tumor_dp_tag", "TDP"),
        ("--tumor_af_tag", "TVAF"),
        ("--call_conf_tag", "TAL"),
        ("--tumor_af_min", "0.00001"),
        ("--tumor_site", "9"),
        ("--estimate_tmb",),
        ("--retained_info_tags", "TAL,TCGA_CODE"),
    }


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("0.5.3", "pcgr.py --input_vcf {IN}/a.vcf.gz /mnt/bundle /mnt/pcgr_outputs {IN}/a.toml demo-000001-somatic"),
        (
            "0.8.4",
            "pcgr.py --input_vcf {IN}/a.vcf.gz /mnt/bundle /mnt/pcgr_outputs grch38 {IN}/a.toml demo-000001-somatic",
        ),
    ],
)
def test_the_oldest_releases_take_their_arguments_by_position(release: str, expected: str) -> None:
    items = argv("[msi]\nmsi = true", release=release, inputs=replace(VCF, configuration=f"{IN}/a.toml"))
    assert " ".join(items) == expected.format(IN=IN)


def test_up_to_0_9_1_the_toml_is_the_tools_own_file() -> None:
    toml = "[allelic_support]\ntumor_dp_tag = 'TDP'\n[pcgr]\ntumor_site = 6"
    items = pairs(argv(toml, release="0.9.1", inputs=replace(VCF, configuration=f"{IN}/a.toml")))
    assert {("--conf", f"{IN}/a.toml"), ("--tumor_site", "6"), ("--pcgr_dir", "/mnt/bundle")} <= items
    assert not any(item[0] == "--tumor_dp_tag" for item in items)
    assert ("--conf", "/mnt/bundle/data/grch37/pcgr_configuration_default.toml") in pairs(
        argv(release="0.9.1", assembly="grch37")
    )
    assert "did you mean tumor_dp_tag" in refused("[allelic_support]\ntumor_dp_tga = ''", release="0.9.1")
    assert "[msi]" in refused("[msi]\nmsi = true", release="0.9.1")


@pytest.mark.parametrize(
    ("release", "toml", "option"),
    [
        ("2.2.3", "sex = 'MALE'", "sex"),  # came with 2.2.4
        ("2.2.4", "tumor_ad_min = 3", "tumor_ad_min"),  # came with 2.2.5
        ("2.2.5", "cna_threshold_mode = 'relative'", "cna_threshold_mode"),  # came with 2.3.0
        ("2.3.2", "n_copy_gain = 6", "n_copy_gain"),  # went with 2.3.0
        ("1.4.1", "estimate_msi = true", "estimate_msi"),  # estimate_msi_status until 2.0.0
        ("0.9.2", "vep_gencode_all = true", "vep_gencode_all"),  # came with 1.0.0
    ],
)
def test_an_option_of_another_release_is_refused(release: str, toml: str, option: str) -> None:
    assert f"pcgr.{option}: found an unknown key" in refused(f"[pcgr]\n{toml}", release=release)


@pytest.mark.parametrize(
    ("release", "command", "named"),
    [("2.3.2", "pcgr", True), ("2.3.2", "cpsr", True), ("1.2.0", "pcgr", True), ("1.1.0", "pcgr", False)],
)
def test_the_prefix_of_the_r_packages_is_named_where_the_release_knows_the_option(
    release: str, command: str, named: bool
) -> None:
    items = argv(release=release, command=command, pcgrr_conda="/opt/pcgr-runtime/0/envs/pcgrr")
    assert (("--pcgrr_conda", "/opt/pcgr-runtime/0/envs/pcgrr") in pairs(items)) is named
    assert "--pcgrr_conda" not in argv(release=release, command=command)  # control: an image has its own


def test_inside_its_container_1_0_must_not_look_for_docker() -> None:
    assert "--no_docker" in argv(release="1.0.3")
    assert "--no_docker" not in argv(release="1.1.0")


@pytest.mark.parametrize("release", USABLE)
def test_every_release_makes_a_command_line(release: str) -> None:
    for command in dialect(release)["commands"]:
        items = argv(release=release, command=command)
        assert items[0] == dialect(release)["commands"][command]["executable"]
        assert f"{IN}/a.vcf.gz" in items


# option, smallest, largest good value, bad values; from the checks of PCGR 2.3.2 for single values
LIMITS: list[tuple[str, Any, Any, list[Any]]] = [
    ("tumor_site", 0, 30, [-1, 31, 1.0, True, "6"]),
    ("tumor_purity", 0.01, 1, [0, 1.01, float("nan"), float("inf"), "0.5", True]),
    ("tumor_ploidy", 0.1, 100, [0, -1, float("inf")]),
    ("effective_target_size_mb", 0, 34, [-0.1, 34.1]),
    ("gnomad_popmax_af_tolerated", 0, 1, [-0.1, 1.1]),
    ("min_mutations_signatures", 100, 10**6, [99]),
    ("prevalence_reference_signatures", 0, 20, [-0.1, 20.1]),
    ("vep_n_forks", 1, 8, [0, 9]),
    ("vep_buffer_size", 50, 30000, [49, 30001]),
    ("cna_amp_threshold_absolute", 3, 20, [2, 21]),
    ("cna_amp_threshold_relative", 1.5, 10, [1.4, 10.1]),
    ("cna_gain_threshold_absolute", 2, 4, [1]),
    ("cna_gain_threshold_relative", 1, 2.4, [0.9]),
    ("cna_del_threshold_absolute", 1, 2, [0]),
    ("cna_del_threshold_relative", 0.1, 0.9, [0, 1]),
    ("cna_transcript_overlap_pct", 0.1, 100, [0, 100.1]),
    ("sex", "FEMALE", "UNKNOWN", ["male", 1]),
    ("assay", "WGS", "TARGETED", ["wes"]),
    ("tumor_dp_tag", "TDP", "X_1.b", ["DP", "1000G", "_NA_", "a b", "x;y", "", "$(x)", 3]),
    ("oncokb_oncotree_code", "BRCA", "COAD", ["a;b", "a b", ""]),
    ("retained_info_tags", "A", "A,B", ["A;B", "A, B", "A,", [], ["A", 1.5], [True]]),
    ("expression_sim_db", "tcga", "depmap,tcga", ["gtex", "tcga,tcga", ""]),
    ("vep_pick_order", "length,mane_select,mane_plus_clinical,canonical,biotype,ccds,rank,tsl,appris",
     ["mane_select", "mane_plus_clinical", "canonical", "biotype", "ccds", "rank", "tsl", "appris", "length"],
     ["canonical", "mane_select,mane_plus_clinical,canonical,biotype,ccds,rank,tsl,appris,length,length"]),
    ("tumor_only", True, False, [1, "true", 0]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "low", "high", "bad"), LIMITS, ids=[limit[0] for limit in LIMITS])
def test_limits_of_single_values(name: str, low: Any, high: Any, bad: list[Any]) -> None:
    def build(value: Any) -> list[str]:
        return arguments(
            dialect("2.3.2"), "pcgr", {"pcgr": {name: value}}, sample_id="abc", assembly="grch38",
            inputs=VCF, refdata_dir="/b", vep_dir="/v", output_dir="/o",
        )  # fmt: skip

    for value in (low, high):
        assert (f"--{name}" in build(value)) is (value is not False)
    for value in bad:
        with pytest.raises(ConfigError, match=rf"^pcgr\.{name}: found .*, allowed "):
            build(value)


@pytest.mark.parametrize("owned", ["output_dir", "refdata_dir", "vep_dir", "sample_id", "genome_assembly", "input_vcf", "input_cna",
                                   "input_cpsr", "pon_vcf", "force_overwrite", "oncokb_api_token",
                                   "pcgrr_conda", "debug", "no_reporting", "no_html"])  # fmt: skip
def test_what_the_consumer_owns_a_sample_cannot_set(owned: str) -> None:
    assert f"pcgr.{owned}: found x, allowed nothing: the consumer sets this option" == refused(f"[pcgr]\n{owned} = 'x'")


# what to give, what must change to make it good (None: taking away the last line is enough), the key the message begins with
TAGS = "tumor_dp_tag = 'T'\ntumor_af_tag = 'V'\ncontrol_dp_tag = 'C'\ncontrol_af_tag = 'W'\n"
RULES = [
    ("", "tumor_dp_min = 10", "tumor_dp_tag"),
    ("", "tumor_af_min = 0.1", "tumor_af_tag"),
    ("", "tumor_ad_min = 2", "tumor_af_tag"),
    ("", "control_dp_min = 10", "control_dp_tag"),
    ("", "control_af_max = 0.1", "control_af_tag"),
    ("", "control_ad_max = 1", "control_af_tag"),
    ("", "estimate_msi = true", "estimate_tmb"),
    ("assay = 'WGS'\n", "estimate_msi = true", "estimate_tmb"),
    ("", "oncokb_exclusive = true", "oncokb_api_token"),
    ("control_dp_tag = 'C'\n", "tumor_only = true", "control_dp_tag"),
    ("control_af_tag = 'C'\n", "tumor_only = true", "control_af_tag"),
    ("tumor_only = true\n", "exclude_likely_hom_germline = true", "tumor_af_tag"),
    ("tumor_only = true\n", "exclude_likely_het_germline = true", "tumor_af_tag"),
    ("sex = 'MALE'\n", "tumor_site = 18", "tumor_site"),
    ("sex = 'MALE'\n", "tumor_site = 29", "tumor_site"),
    ("sex = 'MALE'\n", "tumor_site = 30", "tumor_site"),
    ("sex = 'FEMALE'\n", "tumor_site = 23", "tumor_site"),
    ("sex = 'FEMALE'\n", "tumor_site = 26", "tumor_site"),
    (TAGS + "tumor_dp_min = 10\n", "tumor_ad_min = 11", "tumor_ad_min"),
    (TAGS + "control_dp_min = 10\n", "control_ad_max = 11", "control_ad_max"),
    (TAGS + "tumor_dp_min = 10\n", "tmb_dp_min = 9", "tmb_dp_min"),
    (TAGS + "tumor_af_min = 0.1\n", "tmb_af_min = 0.09", "tmb_af_min"),
    (TAGS + "tumor_ad_min = 4\n", "tmb_ad_min = 3", "tmb_ad_min"),
    ("tmb_dp_min = 10\n", "tmb_ad_min = 11", "tmb_ad_min"),
    (TAGS + "tumor_dp_min = 10\ntumor_ad_min = 4\n", "tmb_ad_min = 5", "tmb_dp_min"),
]
CNA_RULES = [
    ("", "tumor_ploidy = 0.5", "tumor_ploidy"),
    ("", "tumor_ploidy = 8.5", "tumor_ploidy"),
    ("", "tumor_ploidy = 3", "cna_gain_threshold_absolute"),
    ("cna_gain_threshold_absolute = 4\n", "cna_amp_threshold_absolute = 4", "cna_gain_threshold_absolute"),
    ("cna_del_threshold_absolute = 2\n", "cna_gain_threshold_absolute = 2", "cna_del_threshold_absolute"),
    ("cna_del_threshold_absolute = 2\n", "tumor_ploidy = 1.9", "cna_del_threshold_absolute"),
    ("cna_gain_threshold_absolute = 4\n", "tumor_ploidy = 5", "cna_amp_threshold_absolute"),
    ("cna_threshold_mode = 'combined'\n", "tumor_ploidy = 3", "cna_gain_threshold_absolute"),
    ("cna_threshold_mode = 'relative'\n", "cna_amp_threshold_relative = 1.5", "cna_gain_threshold_relative"),
    ("cna_threshold_mode = 'combined'\n", "cna_amp_threshold_relative = 1.5", "cna_gain_threshold_relative"),
]


@pytest.mark.parametrize(("before", "last", "key"), RULES)
def test_options_that_do_not_go_together(before: str, last: str, key: str) -> None:
    assert refused(f"[pcgr]\n{before}{last}").startswith(f"pcgr.{key}: found ")
    assert argv(f"[pcgr]\n{before}")  # without the last line it is good


@pytest.mark.parametrize(("before", "last", "key"), CNA_RULES)
def test_copy_number_thresholds_are_looked_at_when_there_are_segments(before: str, last: str, key: str) -> None:
    assert refused(f"[pcgr]\n{before}{last}", inputs=ALL).startswith(f"pcgr.{key}: found ")
    assert argv(f"[pcgr]\n{before}", inputs=ALL)
    assert argv(f"[pcgr]\n{before}{last}")


@pytest.mark.parametrize(
    "toml",
    [
        "estimate_msi = true\nestimate_tmb = true",
        "exclude_likely_hom_germline = true\nexclude_likely_het_germline = true",
        TAGS + "tumor_dp_min = 10\ntumor_ad_min = 10\ncontrol_dp_min = 5\ncontrol_ad_max = 5",
        TAGS
        + "tumor_dp_min = 10\ntumor_ad_min = 4\ntumor_af_min = 0.1\ntmb_dp_min = 10\ntmb_ad_min = 4\ntmb_af_min = 0.1",
        TAGS + "tmb_dp_min = 10\ntmb_ad_min = 10",
        TAGS + "tumor_dp_min = 10\ntmb_ad_min = 4",
        TAGS + "tumor_ad_min = 4\ntmb_ad_min = 4",
        "sex = 'MALE'\ntumor_site = 23",
        "sex = 'FEMALE'\ntumor_site = 18",
        "tumor_site = 18",
        "tumor_site = 26",
        "tumor_ploidy = 1",
        "cna_threshold_mode = 'relative'\ntumor_ploidy = 8",
        "cna_amp_threshold_relative = 1.5",
    ],
)
def test_options_that_just_go_together(toml: str) -> None:
    assert argv(f"[pcgr]\n{toml}", inputs=ALL)


@pytest.mark.parametrize("without", ["tumor_only = true", "assay = 'TARGETED'"])
def test_where_the_tool_drops_msi_by_itself_it_needs_no_tmb(without: str) -> None:
    assert "--estimate_msi" in argv(f"[pcgr]\nestimate_msi = true\n{without}")


@pytest.mark.parametrize("release", ["2.0.3", "2.2.5", "2.3.2"])
def test_a_tmb_fraction_of_zero_is_no_floor(release: str) -> None:
    assert "--tmb_af_min" in argv("[pcgr]\ntumor_af_tag = 'V'\ntumor_af_min = 0.1\ntmb_af_min = 0", release=release)


def test_absolute_thresholds_do_not_matter_in_relative_mode() -> None:
    assert argv("[pcgr]\ncna_threshold_mode = 'relative'\ntumor_ploidy = 3", inputs=ALL)


LEGACY = """
[tumor_only]
vcf_tumor_only = true
maf_onekg_eur = 0.002
maf_gnomad_nfe = 0.005
maf_gnomad_fin = 0.005
exclude_dbsnp_nonclinical = true
[allelic_support]
tumor_dp_tag = "TDP"
tumor_af_tag = "_na"
normal_dp_tag = ""
tumor_dp_min = 0
control_af_max = 1.0
[mutational_burden]
mutational_burden = true
target_size_mb = 30
tmb_low_limit = 5
[cna]
logR_gain = 0.8
cna_overlap_pct = 60
[msi]
msi = true
[mutational_signatures]
mutsignatures = true
mutsignatures_mutation_limit = 150
mutsignatures_cutoff = 0.06
[tumor_type]
Breast_Cancer_NOS = true
Bone_Cancer_NOS = false
[visual]
report_theme = "default"
[custom_tags]
custom_tags = "A,B"
[other]
list_noncoding = false
n_vcfanno_proc = 2
n_vep_forks = 3
vep_pick_order = "canonical,appris,biotype,ccds,rank,tsl,length,mane"
vep_skip_intergenic = true
vcf2maf = false
"""


def test_the_old_toml_means_the_same_today() -> None:
    assert pairs(argv(LEGACY)) - SOMATIC == {
        ("--tumor_only",),
        ("--gnomad_popmax_af_tolerated", "0.005"),
        ("--exclude_dbsnp_nonsomatic",),
        ("--tumor_dp_tag", "TDP"),
        ("--estimate_tmb",),
        ("--effective_target_size_mb", "30"),
        ("--cna_transcript_overlap_pct", "60"),
        ("--estimate_msi",),
        ("--estimate_signatures",),
        ("--min_mutations_signatures", "150"),
        ("--tumor_site", "6"),
        ("--retained_info_tags", "A,B"),
        ("--ignore_noncoding",),
        ("--vcfanno_n_proc", "2"),
        ("--vep_n_forks", "3"),
        ("--vep_no_intergenic",),
    }


def test_the_old_toml_means_what_each_release_calls_it() -> None:
    items = pairs(argv(LEGACY, release="1.4.1"))
    assert {
        ("--estimate_msi_status",),
        ("--target_size_mb", "30"),
        ("--logr_gain", "0.8"),
        ("--maf_onekg_eur", "0.002"),
    } <= items
    assert ("--show_noncoding",) not in items
    assert ("--vcf2maf",) in pairs(argv("[other]\nvcf2maf = true", release="2.2.5"))


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[cna]\nlogR_gain = 0.5", "cna.logR_gain: found 0.5, which has no equivalent: "),
        ("[tumor_only]\nmaf_onekg_eur = 0.05", "tumor_only.maf_onekg_eur: found 0.05, which has no equivalent: "),
        ("[tumor_type]\nMesothelioma = true", "tumor_type.Mesothelioma: found true, which has no equivalent: "),
        (
            "[tumor_only]\nmaf_gnomad_nfe = 0.1\nmaf_gnomad_fin = 0.2",
            "tumor_only.maf_gnomad_fin: found 0.2, but tumor_only.maf_gnomad_nfe says 0.1",
        ),
        ("[tumor_type]\nBreast_Cancer_NOS = true\nBone_Cancer_NOS = true", "both mean tumor_site"),
        ("[tumor_type]\ntype = 'Brest_Cancer_NOS'", "did you mean Breast_Cancer_NOS"),
        ("[tumor_type]\ntype = ['a']", "tumor_type.type: found ['a']"),
        ("[pcgr]\ntumor_site = 5\n[tumor_type]\nBreast_Cancer_NOS = true", "both mean tumor_site"),
        ("[msi]\nmsi = true", "pcgr.estimate_tmb: found false, allowed true with msi.msi = true"),
        ("[msi]\nmsi = 1", "msi.msi: found 1, allowed true or false"),
        ("[other]\nlist_noncoding = 'no'", "other.list_noncoding: found no, allowed true or false"),
        ("[other]\nn_vep_forks = 12", "other.n_vep_forks: found 12, allowed a whole number, at least 1 and at most 8"),
        (
            "[allelic_support]\ntumor_dp_min = false",
            "allelic_support.tumor_dp_min: found false, allowed a whole number",
        ),
        (
            "[mutational_signatures]\nmutsignatures_mutation_limit = 50",
            "found 50, allowed a whole number, at least 100",
        ),
        ("[other]\nn_vep_fork = 2", "other.n_vep_fork: found an unknown key; did you mean n_vep_forks"),
    ],
)
def test_what_the_old_toml_cannot_mean_today(toml: str, says: str) -> None:
    assert says in refused(toml)


@pytest.mark.parametrize(
    ("toml", "says", "changes"),
    [
        ("[pgcr]\nsex = 'MALE'", "[pgcr]: found an unknown section; did you mean pcgr?", {}),
        ("[pcgr]\ntumor_dp_tga = 'x'", "pcgr.tumor_dp_tga: found an unknown key; did you mean tumor_dp_tag", {}),
        ("tumor_site = 3", "tumor_site: found 3 outside a table", {}),
        ("[pcgr]\nsex = 'MALE'", "[pcgr]: found an unknown section; allowed: cpsr", {"command": "cpsr"}),
        ("[msi]\nmsi = true", "[msi]: found an unknown section; allowed: cpsr", {"command": "cpsr"}),
        ("[cpsr]\npanel_id = [0, 3]", "cpsr.panel_id: found 0,3, allowed text", {"command": "cpsr"}),
        ("[cpsr]\npanel_id = 44", "cpsr.panel_id: found 44, allowed text", {"command": "cpsr"}),
        (
            "[cpsr]\nmax_af_gnomad = 0.05",
            "cpsr.max_af_gnomad: found 0.05, allowed a number, more than 0.05 and at most 1",
            {"command": "cpsr"},
        ),
        ("[cpsr]\nvcfanno_n_proc = 16", "at least 1 and at most 15", {"command": "cpsr"}),
        (
            "",
            "input cna: found /mnt/pcgr_inputs/a.cna.tsv, allowed none: cpsr of dialect 2.3",
            {"command": "cpsr", "inputs": ALL},
        ),
        ("", "input fusion: found ", {"release": "2.2.5", "inputs": ALL}),
        ("", "command: found cpsr, allowed pcgr (dialect 0.9.2)", {"command": "cpsr", "release": "0.9.2"}),
        ("", "pcgr: found no input file, allowed at least one of input_vcf", {"inputs": replace(VCF, vcf=None)}),
        ("", "input_vcf: found nothing", {"inputs": replace(VCF, vcf=None), "release": "2.2.5"}),
        ("", "sample_id: found ab, allowed text", {"sample_id": "ab"}),
        ("", "sample_id: found ", {"sample_id": "x" * 41}),
        ("", "sample_id: found ", {"sample_id": "x" * 36, "release": "1.4.1"}),
        ("", "sample_id: found ", {"sample_id": "a;reboot"}),
        ("", "refdata_dir: found '/mnt/my bundle', allowed an absolute path", {"refdata_dir": "/mnt/my bundle"}),
        ("", "output_dir: found ", {"output_dir": "/mnt/$(id)"}),
        ("", "genome_assembly: found hg38, allowed grch37 or grch38", {"assembly": "hg38"}),
    ],
)
def test_refusals_name_the_place_and_what_is_allowed(toml: str, says: str, changes: dict[str, Any]) -> None:
    assert says in refused(toml, **changes)


def test_assembly_of_a_sample() -> None:
    assert assembly_of({}, "grch38", ["grch38"]) == "grch38"
    assert assembly_of({"genome_assembly": "grch37"}, "grch38", ["grch38", "grch37"]) == "grch37"
    for found in ("grch37", "hg38", 38, ["grch38"]):
        with pytest.raises(ConfigError, match=r"genome_assembly: found .*, allowed grch38"):
            assembly_of({"genome_assembly": found}, "grch38", ["grch38"])


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes()
KEYS = st.text(max_size=8) | st.sampled_from(
    [*dialect("2.3.2")["commands"]["pcgr"]["options"], *dialect("2.3.2")["legacy"], "pcgr", "cpsr"]
    + [key for section in dialect("2.3.2")["legacy"].values() for key in section]
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(KEYS, SCALARS, max_size=3)


@settings(max_examples=400)
@given(
    config=st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=4), max_size=4),
    command=st.sampled_from(["pcgr", "cpsr"]),
)
def test_no_configuration_breaks_it_or_slips_a_word_in(config: dict[str, Any], command: Any) -> None:
    try:
        items = arguments(
            dialect("2.3.2"), command, config, sample_id="demo-000001-x", assembly="grch38", inputs=VCF,
            refdata_dir="/mnt/bundle", vep_dir="/mnt/.vep", output_dir="/mnt/out",
        )  # fmt: skip
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1
    else:
        options = dialect("2.3.2")["commands"][command]["options"]
        for item in items[1:]:
            assert (
                (item[2:] in options) if item.startswith("--") else not set(item) & set(" \t\n;|&$`'\"<>()*?\\!#~{}[]")
            )


def values_of(option: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values inside the stated limits of a number."""
    low, high = option.get("min", option.get("above", -1000)), option.get("max", option.get("below", 1000))
    if option["type"] == "int":
        return st.integers(low, high)
    return st.floats(low, high, exclude_min="above" in option, exclude_max="below" in option)


NUMBERS = [
    (release, command, name, option)
    for release in ("0.9.1", "1.4.1", "2.0.3", "2.2.5", "2.3.2")
    for command, spec in dialect(release)["commands"].items()
    for name, option in spec["options"].items()
    if option["type"] in ("int", "float")
    and not any(name in rule["require"] or name in rule.get("when", {}) for rule in spec.get("rules", []))
]


@given(data=st.data(), number=st.sampled_from(NUMBERS))
def test_a_number_inside_its_limits_arrives_unchanged(
    data: st.DataObject, number: tuple[str, Any, str, dict[str, Any]]
) -> None:
    release, command, name, option = number
    value = data.draw(values_of(option))
    items = arguments(
        dialect(release), command, {command: {name: value}}, sample_id="demo-000001-x", assembly="grch38", inputs=VCF,
        refdata_dir="/mnt/bundle", vep_dir="/mnt/.vep", output_dir="/mnt/out",
    )  # fmt: skip
    text = items[items.index(f"--{name}") + 1]
    assert float(text) == value
    assert "e" not in text
