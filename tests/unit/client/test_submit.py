"""scripts/submit: what it packs, what it refuses, where it puts the sample, and what it waits for."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pysam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import ROOT
from support.client_cloud import Cloud, script
from umccr_pcgr.client.pack import toml_text
from umccr_pcgr.samples.naming import Sample, parse

SOMATIC = ROOT / "examples/demo-000001-somatic.tar.gz"
NORMAL = ROOT / "examples/demo-000002-normal.tar.gz"
REAL = Path(os.environ.get("PCGR_EXAMPLES", "/nowhere"))

HEADER = """\
##fileformat=VCFv4.2
##contig=<ID=chr1,length=248956422>
##INFO=<ID=TDP,Number=1,Type=Integer,Description="depth">
##INFO=<ID=TVAF,Number=1,Type=String,Description="fraction, of a type that PCGR does not take">
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS1
"""
RECORDS = [f"chr1\t{position}\t.\tG\tT\t.\tPASS\tTDP=30\tGT\t0/1\n" for position in (1000, 2000)]
VCF = HEADER + "".join(RECORDS)


def submit(cloud: Cloud, *arguments: str | Path, rc: int = 0) -> subprocess.CompletedProcess[str]:
    done = script("submit", "--bucket", cloud.bucket, *arguments, environment=cloud.environment)
    assert done.returncode == rc, done.stdout + done.stderr
    if rc == 2:
        assert len(done.stderr.splitlines()) == 1, done.stderr
    return done


def refused(cloud: Cloud, *arguments: str | Path) -> str:
    """The one line that says why; nothing may have been sent."""
    before = cloud.keys()
    line = submit(cloud, *arguments, rc=2).stderr
    assert cloud.keys() == before
    assert line.startswith("scripts/submit: ")
    return line


def members(body: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


@pytest.fixture
def vcf(tmp_path: Path) -> Path:
    path = tmp_path / "patient.vcf"
    path.write_text(VCF)
    return path


def test_ready_tarball_is_sent_unchanged_with_its_checksum(cloud: Cloud) -> None:
    done = submit(cloud, SOMATIC, "--prefix", "inbox/")
    assert f"✔ s3://{cloud.bucket}/inbox/{SOMATIC.name}" in done.stdout
    assert f"result: s3://{cloud.bucket}/inbox/demo-000001-somatic-output.tar.gz" in done.stdout
    assert "demo-000001-somatic.cna.tsv" in done.stdout
    assert cloud.body(f"inbox/{SOMATIC.name}") == SOMATIC.read_bytes()
    head = cloud.s3.head_object(Bucket=cloud.bucket, Key=f"inbox/{SOMATIC.name}", ChecksumMode="ENABLED")
    digest = hashlib.sha256(SOMATIC.read_bytes())
    assert head["ChecksumSHA256"] == base64.b64encode(digest.digest()).decode()
    assert head["Metadata"]["sha256"] == digest.hexdigest()


def test_existing_input_is_replaced_only_by_force(cloud: Cloud) -> None:
    cloud.put(SOMATIC.name, b"other")
    assert "is there already; --force replaces it" in refused(cloud, SOMATIC)
    assert cloud.body(SOMATIC.name) == b"other"
    submit(cloud, SOMATIC, "--force")
    assert cloud.body(SOMATIC.name) == SOMATIC.read_bytes()


@pytest.mark.parametrize("form", ["plain", "gzip", "bgzip"])
def test_vcf_is_packed_whatever_its_form(cloud: Cloud, tmp_path: Path, form: str) -> None:
    path = tmp_path / ("patient.vcf" if form == "plain" else "patient.vcf.gz")
    if form == "bgzip":
        (tmp_path / "plain").write_text(VCF)
        pysam.tabix_compress(str(tmp_path / "plain"), str(path))
    else:
        path.write_bytes(VCF.encode() if form == "plain" else gzip.compress(VCF.encode()))
    done = submit(cloud, path, "--set", "tumor_site=6", "--set", "sex=FEMALE", "--set", "estimate_tmb=true")
    assert cloud.keys() == ["patient-000001-somatic.tar.gz"]
    found = members(cloud.body("patient-000001-somatic.tar.gz"))
    assert sorted(found) == ["patient.toml", "patient.vcf.gz", "patient.vcf.gz.tbi"]
    assert gzip.decompress(found["patient.vcf.gz"]).decode() == VCF
    for name, data in found.items():
        (tmp_path / name).write_bytes(data)
    with pysam.VariantFile(str(tmp_path / "patient.vcf.gz")) as packed:
        assert [record.pos for record in packed.fetch("chr1", 1500, 2500)] == [2000]
    assert tomllib.loads(found["patient.toml"].decode()) == {
        "genome_assembly": "grch38",
        "pcgr": {"tumor_site": 6, "sex": "FEMALE", "estimate_tmb": True, "tumor_dp_tag": "TDP"},
    }
    assert "INFO tag TVAF not used for tumor_af_tag: it is String, needed: Float" in done.stdout


def test_same_files_make_the_same_tarball(cloud: Cloud, vcf: Path) -> None:
    submit(cloud, vcf)
    submit(cloud, vcf)
    first, second = (cloud.body(f"patient-00000{number}-somatic.tar.gz") for number in (1, 2))
    assert first == second


def test_number_is_one_more_than_any_left_in_the_batch(cloud: Cloud, vcf: Path) -> None:
    cloud.put("patient-000004-somatic.tar.gz", b"")
    cloud.put("patient-000007-normal-output.tar.gz", b"")  # its input is gone; its number is not free
    cloud.put("patient-2-000050-somatic.tar.gz", b"")  # another batch
    cloud.put("inbox/patient-000060-somatic.tar.gz", b"")  # another folder
    submit(cloud, vcf)
    assert "patient-000008-somatic.tar.gz" in set(cloud.keys())
    submit(cloud, vcf, "--number", "20", "--batch", "b", "--prefix", "x/")
    assert "x/b-000020-somatic.tar.gz" in set(cloud.keys())


def test_tables_go_along_and_packed_ones_are_unpacked(cloud: Cloud, vcf: Path, tmp_path: Path) -> None:
    cna = tmp_path / "segments.txt"
    cna.write_text("Chromosome\tStart\tEnd\tnMajor\tnMinor\n1\t1\t1000\t2\t0\n")
    expression = tmp_path / "rna.tsv.gz"
    expression.write_bytes(gzip.compress(b"TargetID\tTPM\nTP53\t12.5\n"))
    fusions = tmp_path / "fusions.tsv"
    fusions.write_text("FusionGene\tLeftBreakpoint\tRightBreakpoint\tSplitReads\n")
    submit(cloud, vcf, "--cna", cna, "--expression", expression, "--fusions", fusions)
    found = members(cloud.body("patient-000001-somatic.tar.gz"))
    assert found["patient.cna.tsv"] == cna.read_bytes()
    assert found["patient.fusions.tsv"] == fusions.read_bytes()
    assert found["patient.expression.tsv"] == b"TargetID\tTPM\nTP53\t12.5\n"


def test_normal_sample_gets_a_panel_and_no_tumor_tags(cloud: Cloud, vcf: Path, tmp_path: Path) -> None:
    submit(cloud, vcf, "--type", "normal")
    found = members(cloud.body("patient-000001-normal.tar.gz"))
    assert tomllib.loads(found["patient.toml"].decode())["cpsr"] == {"panel_id": "0"}
    config = tmp_path / "own.toml"
    config.write_text('[cpsr]\npanel_id = "3,5"\n')
    submit(cloud, vcf, "--type", "normal", "--config", config, "--set", "max_af_gnomad=0.5")
    found = members(cloud.body("patient-000002-normal.tar.gz"))
    assert tomllib.loads(found["patient.toml"].decode())["cpsr"] == {"panel_id": "3,5", "max_af_gnomad": 0.5}


def test_assembly_is_told_from_the_positions_where_the_header_is_silent(cloud: Cloud, tmp_path: Path) -> None:
    bare = VCF.replace("##contig=<ID=chr1,length=248956422>\n", "").replace(
        "##fileformat=VCFv4.2\n", "##fileformat=VCFv4.2\n##contig=<ID=chr1>\n"
    )
    silent = tmp_path / "silent.vcf"
    silent.write_text(bare)
    assert "assembly not stated" in submit(cloud, silent).stdout
    assert "genome_assembly" not in tomllib.loads(
        members(cloud.body("silent-000001-somatic.tar.gz"))["silent.toml"].decode()
    )
    telling = tmp_path / "telling.vcf"
    telling.write_text(bare.replace("chr1\t2000", "chr1\t249000000"))  # GRCh38's chromosome 1 ends at 248,956,422
    submit(cloud, telling)
    found = tomllib.loads(members(cloud.body("telling-000001-somatic.tar.gz"))["telling.toml"].decode())
    assert found["genome_assembly"] == "grch37"


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        (VCF, ["--assembly", "grch37"], "chromosome 1 248956422 bases, that of GRCh38"),
        (HEADER + RECORDS[1] + RECORDS[0], [], "not sorted by position"),
        (HEADER, [], "no variants on the chromosomes"),
        ("hello\n", [], "line 1: found 'hello'"),
        (VCF.replace("\tS1\n", "\tS1\tS2\n").replace("0/1\n", "0/1\t0/0\n"), ["--type", "normal"], "2 samples"),
        (VCF, ["--set", "tumor_site"], "--set tumor_site: allowed: key=value"),
        (VCF, ["--set", "$(id)=1"], "--set $(id)=1: allowed: key=value"),
        (VCF, ["--batch", "a b"], "starting with a letter or digit"),
        (VCF, ["--batch", "b" * 40], "found 55 characters; allowed: at most 40"),
        (VCF, ["--config", "/nowhere.toml"], "--config: /nowhere.toml: no such file"),
        (VCF, ["--cna", "/nowhere.tsv"], "--cna: /nowhere.tsv: no such file"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(
    cloud: Cloud, tmp_path: Path, content: str, arguments: list[str], said: str
) -> None:
    path = tmp_path / "patient.vcf"
    path.write_text(content)
    assert said in refused(cloud, path, *arguments)


def test_refusals_name_the_users_file_not_a_copy(cloud: Cloud, tmp_path: Path) -> None:
    broken = tmp_path / "patient.vcf.gz"
    broken.write_bytes(gzip.compress(VCF.encode())[:-12])
    assert f"{broken}: damaged gzip file" in refused(cloud, broken)
    broken.write_bytes(gzip.compress(b"hello\n"))
    assert refused(cloud, broken).startswith(f"scripts/submit: {broken}: line 1: found 'hello'")
    table = tmp_path / "cna.tsv"
    table.write_text("Chromosome\tStart\tEnd\tSegment_Mean\n")
    good = tmp_path / "good.vcf"
    good.write_text(VCF)
    line = refused(cloud, good, "--cna", table)
    assert f"{table}: line 1: column nMajor is missing: found 'Chromosome, Start, End, Segment_Mean'" in line
    assert "my sample" in refused(cloud, Path(shutil.copy(good, tmp_path / "my sample.vcf")))


def test_files_that_are_no_sample_are_refused(cloud: Cloud, tmp_path: Path) -> None:
    assert "no such file" in refused(cloud, tmp_path / "missing.vcf")
    other = tmp_path / "reads.bam"
    other.write_bytes(b"")
    assert "allowed: a tarball *.tar.gz, or a VCF" in refused(cloud, other)
    wrong = Path(shutil.copy(SOMATIC, tmp_path / "sample.tar.gz"))
    assert "allowed: <batch>-<6 digits>-somatic.tar.gz" in refused(cloud, wrong)
    submit(cloud, wrong, "--batch", "b", "--number", "3", "--type", "somatic")
    assert cloud.keys() == ["b-000003-somatic.tar.gz"]
    assert "ready tarball and is sent as it is" in refused(cloud, SOMATIC, "--set", "tumor_site=1")


def test_tarball_that_the_consumer_would_refuse_is_not_sent(cloud: Cloud, tmp_path: Path) -> None:
    path = tmp_path / "demo-000001-somatic.tar.gz"

    def repack(files: dict[str, bytes]) -> None:
        with tarfile.open(path, "w:gz") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))

    good = members(SOMATIC.read_bytes())
    repack(good)
    submit(cloud, path, "--prefix", "good/")  # what follows is refused for its contents, not for the repacking
    repack(good | {"README.md": b""})
    assert f"{path}: member 'README.md': not a file of a sample" in refused(cloud, path)
    repack({name: data for name, data in good.items() if not name.endswith(".tbi")})
    assert f"{path}: demo-000001-somatic.vcf.gz: its index demo-000001-somatic.vcf.gz.tbi is missing" in refused(
        cloud, path
    )
    repack(good | {"demo-000001-somatic.toml": b'genome_assembly = "grch37"'})
    assert "chromosome 1 248956422 bases, that of GRCh38" in refused(cloud, path)
    repack(good | {"demo-000001-somatic.toml": b'genome_assembly = "hg38"'})
    assert "genome_assembly: found 'hg38'; allowed: grch37, grch38" in refused(cloud, path)
    path.write_bytes(SOMATIC.read_bytes()[:2000])
    assert "truncated" in refused(cloud, path)


def test_missing_bucket_or_region_is_one_line(cloud: Cloud) -> None:
    done = script("submit", "--bucket", "no-such-bucket-here", SOMATIC, environment=cloud.environment)
    assert (done.returncode, done.stderr) == (2, "scripts/submit: bucket no-such-bucket-here: Not Found (404)\n")
    silent = {name: value for name, value in cloud.environment.items() if name != "AWS_ENDPOINT_URL"}
    closed = "http://127.0.0.1:9"  # discard: nothing listens
    done = script("submit", "--bucket", "b" * 4, "--endpoint-url", closed, SOMATIC, environment=silent)
    assert done.returncode == 2 and "Could not connect" in done.stderr and len(done.stderr.splitlines()) == 1


def waiting(cloud: Cloud, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, ROOT / "scripts/submit", "--bucket", cloud.bucket, "--wait", *arguments]
    return subprocess.Popen(command, env=cloud.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"{text!r} was never printed; exit code {process.wait()}")


@pytest.mark.parametrize("versioned", [True, False])
def test_wait_takes_the_result_of_this_very_input(cloud: Cloud, tmp_path: Path, versioned: bool) -> None:
    sample = parse(SOMATIC.name)
    if versioned:
        cloud.versioned()
    cloud.put(sample.input_key, b"an older input")
    older = cloud.input_version(sample)
    with waiting(cloud, "--force", "--out", tmp_path / "new", SOMATIC) as process:
        until(process, "queued")
        cloud.publish(sample, b"of the older input", of=older)
        cloud.fail(sample, "of the older input", of=older)
        cloud.run(sample)
        until(process, "running on worker-1")
        cloud.publish(sample, b"the result")
        until(process, "demo-000001-somatic-output.tar.gz")
        assert process.wait(30) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["demo-000001-somatic-output.tar.gz"]
    assert (tmp_path / "new" / "demo-000001-somatic-output.tar.gz").read_bytes() == b"the result"


def test_wait_tells_of_a_failure_only_when_it_is_final(cloud: Cloud) -> None:
    sample = parse(NORMAL.name)
    with waiting(cloud, NORMAL) as process:
        until(process, "queued")
        cloud.fail(sample, "docker was away", permanent=False)
        until(process, "will be tried again: docker was away")
        cloud.fail(sample, "panel_id: found [99]")
        until(process, "✘ demo-000002-normal failed: panel_id: found [99]")
        until(process, "last words [of] the tool")
        assert process.wait(30) == 1


def test_wait_ends_at_the_timeout(cloud: Cloud) -> None:
    done = submit(cloud, SOMATIC, "--wait", "--timeout", "0", rc=3)
    assert "no result after 0 s; last seen: queued; the sample is stored" in done.stderr


def test_spool_folder_takes_samples_and_gives_results(cloud: Cloud, vcf: Path, tmp_path: Path) -> None:
    spool = tmp_path / "spool"

    def run(*arguments: str | Path, rc: int = 0) -> str:
        done = script("submit", "--spool", spool, *arguments, environment=cloud.environment)
        assert done.returncode == rc, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "no spool; allowed: a folder that holds inbox/" in run(vcf, rc=2)
    for folder in ("inbox", "claimed", "done", "failed"):
        (spool / folder).mkdir(parents=True)
    run(vcf, "--prefix", "lab/")
    assert [path.name for path in (spool / "inbox/lab").iterdir()] == ["patient-000001-somatic.tar.gz"]
    (spool / "done/lab").mkdir()
    (spool / "inbox/lab/patient-000001-somatic.tar.gz").rename(spool / "done/lab/patient-000001-somatic.tar.gz")
    assert "in the spool" in run(vcf, "--prefix", "lab/", "--number", "1", rc=2)
    run(vcf, "--prefix", "lab/")
    assert (spool / "inbox/lab/patient-000002-somatic.tar.gz").is_file()
    (spool / "done/lab/patient-000003-somatic-output.tar.gz").write_bytes(b"result")
    os.utime(spool / "done/lab/patient-000003-somatic-output.tar.gz", (4102444800, 4102444800))  # newer than any input
    out = tmp_path / "out"
    run(vcf, "--prefix", "lab/", "--number", "3", "--wait", "--out", out)
    assert (out / "patient-000003-somatic-output.tar.gz").read_bytes() == b"result"


def test_without_the_environment_a_hint_is_printed(tmp_path: Path) -> None:
    for name in ("submit", "status"):
        done = subprocess.run(
            [sys.executable, "-S", "-I", ROOT / "scripts" / name],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.strip().endswith("run make, then . .venv/bin/activate")


KEYS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)
SCALARS = (
    st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(exclude_categories=("Cs",)))
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(SCALARS, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


@settings(deadline=None)  # the host may be busy with others
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_toml_written_is_toml_read(document: dict[str, object]) -> None:
    assert tomllib.loads(toml_text(document)) == document


@pytest.mark.skipif(not REAL.is_dir(), reason="PCGR_EXAMPLES names no folder of PCGR's own examples")
@pytest.mark.parametrize("assembly", ["grch37", "grch38"])
def test_pcgrs_own_example_packs(cloud: Cloud, assembly: str) -> None:
    submit(
        cloud, REAL / f"T001-BRCA.{assembly}.vcf.gz", "--cna", REAL / f"T001-BRCA.{assembly}.cna.tsv",
        "--fusions", REAL / f"T001-BRCA.{assembly}.fusions.tsv", "--expression", REAL / "T001-BRCA.gene_expression.tsv.gz",
        "--set", "tumor_site=6", "--batch", "T001-BRCA", "--assembly", assembly,
    )  # fmt: skip
    sample = Sample("", "T001-BRCA", 1, "somatic")
    found = members(cloud.body(sample.input_key))
    assert len(gzip.decompress(found["T001-BRCA.vcf.gz"]).splitlines()) > 196
    assert tomllib.loads(found["T001-BRCA.toml"].decode()) == {
        "genome_assembly": assembly,
        "pcgr": {"tumor_site": 6, "tumor_dp_tag": "TDP", "tumor_af_tag": "TVAF", "call_conf_tag": "TAL"},
    }
