"""scripts/submit after the sample was sent: lost connections, results fetched later, folders and signals."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from support.client_cloud import HEED_INTERRUPTS, ROOT, Cloud, script
from umccr_pcgr.samples.naming import Sample, parse

SOMATIC = ROOT / "examples/demo-000001-somatic.tar.gz"
ONE = parse(SOMATIC.name)


def submit(cloud: Cloud, *arguments: str | Path, rc: int = 0) -> subprocess.CompletedProcess[str]:
    done = script("submit", "--bucket", cloud.bucket, *arguments, environment=cloud.environment)
    assert done.returncode == rc, done.stdout + done.stderr
    return done


def program(cloud: Cloud, *arguments: str | Path, **more: str) -> subprocess.Popen[str]:
    command = [*HEED_INTERRUPTS, sys.executable, ROOT / "scripts/submit", "--bucket", cloud.bucket, *arguments]
    return subprocess.Popen(
        command, env=cloud.environment | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )


def until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(line)
        if text in line:
            return line
    raise AssertionError(f"{text!r} was never printed; exit code {process.wait()}; printed: {''.join(said)}")


def eventually(condition: Callable[[], bool], limit: float = 20) -> bool:
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def result(name: str, text: bytes = b"report") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        member = tarfile.TarInfo(f"{name}/{name}.html")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    return out.getvalue()


# ---- lost connections


class Restartable:
    """A simulated AWS that can stop and start again at the same address; its contents stay."""

    def __init__(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.server.start()
        self.host, self.port = self.server.get_host_and_port()

    def stop(self) -> None:
        self.server.stop()

    def start(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()


@pytest.fixture
def away() -> Iterator[Restartable]:
    found = Restartable()
    yield found
    found.stop()


def test_wait_outlives_a_lost_connection(away: Restartable, tmp_path: Path) -> None:
    cloud = Cloud(f"http://{away.host}:{away.port}")
    with program(cloud, "--wait", "--out", tmp_path, SOMATIC, AWS_MAX_ATTEMPTS="1") as process:
        until(process, "queued")
        away.stop()
        until(process, "trying again")
        away.start()
        cloud.publish(ONE, b"result")
        until(process, "demo-000001-somatic-output.tar.gz")
        assert process.wait(30) == 0
    assert (tmp_path / "demo-000001-somatic-output.tar.gz").read_bytes() == b"result"


def test_a_connection_that_stays_lost_is_no_refusal(away: Restartable, tmp_path: Path) -> None:
    cloud = Cloud(f"http://{away.host}:{away.port}")
    arguments = ("--wait", "--timeout", "6", "--out", tmp_path, SOMATIC)
    with program(cloud, *arguments, AWS_MAX_ATTEMPTS="1") as process:
        until(process, "queued")
        away.stop()
        line = until(process, "the sample is stored; fetch its result with: ")
        assert process.wait(30) == 3
    away.start()
    command = line.partition("fetch its result with: ")[2].split()
    cloud.publish(ONE, b"result")
    done = subprocess.run(
        [sys.executable, *command], env=cloud.environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo-000001-somatic-output.tar.gz").read_bytes() == b"result"


def test_a_refusal_after_sending_says_that_the_sample_is_stored(cloud: Cloud, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with program(cloud, "--wait", "--out", out, SOMATIC) as process:
        until(process, "queued")
        (out / "demo-000001-somatic-output.tar.gz").mkdir()  # the result cannot take its name
        cloud.publish(ONE, b"result")
        assert "Is a directory" in until(process, "the sample is stored; fetch its result with: ")
        assert process.wait(30) == 3


class Away:
    """A bucket that never answers; counts the looks."""

    looks = 0

    def entry(self, *_unused: Any) -> None:
        from umccr_pcgr.client.store import Unreachable

        self.looks += 1
        raise Unreachable("bucket b: no answer")


def test_a_store_that_stays_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from umccr_pcgr.client import wait as pcgr_wait
    from umccr_pcgr.client.store import Entry

    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(pcgr_wait.time, "monotonic", lambda: now)
    monkeypatch.setattr(pcgr_wait.time, "sleep", sleep)
    away, shown = Away(), []
    source = Entry(ONE.input_key, datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(pcgr_wait.NotFetched, match=r"^bucket b: no answer$"):
        pcgr_wait.wait(away, ONE, source, shown.append, timeout=None, silence=600)  # type: ignore[arg-type]
    assert 600 < now <= 600 + pcgr_wait.PAUSE_MAX
    assert away.looks < 30  # pauses grow
    assert set(shown) == {"bucket b: no answer; trying again"}


@pytest.mark.parametrize(("same", "stored"), [(True, True), (False, False)])
def test_an_upload_whose_answer_was_lost_is_not_taken_for_another_sample(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, same: bool, stored: bool
) -> None:
    """S3 refuses the second try of a conditional request whose first try it has carried out."""
    from umccr_pcgr.client.store import Bucket, Exists

    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    bucket = Bucket(cloud.bucket, None)
    real = bucket._s3.put_object

    def lost(**arguments: Any) -> None:
        arguments["Body"] = arguments["Body"].read()
        real(**(arguments if same else arguments | {"Metadata": {"sha256": "0" * 64}}))
        metadata = {"HTTPStatusCode": 412, "RetryAttempts": 1}
        raise ClientError({"Error": {"Code": "PreconditionFailed"}, "ResponseMetadata": metadata}, "PutObject")  # type: ignore[typeddict-item]

    monkeypatch.setattr(bucket._s3, "put_object", lost)
    if stored:
        assert bucket.put(SOMATIC, ONE, force=False, progress=lambda _unused: None).key == ONE.input_key
    else:
        with pytest.raises(Exists):
            bucket.put(SOMATIC, ONE, force=False, progress=lambda _unused: None)


def test_a_connection_lost_while_sending_is_reported_as_unknown(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ReadTimeoutError

    from umccr_pcgr.client.store import Bucket, MaybeStored

    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    bucket = Bucket(cloud.bucket, None)

    def lost(**_unused: Any) -> None:
        raise ReadTimeoutError(endpoint_url="http://x")

    monkeypatch.setattr(bucket._s3, "put_object", lost)
    with pytest.raises(
        MaybeStored, match="not known whether demo-000001-somatic was stored: send it again with --number 1"
    ):
        bucket.put(SOMATIC, ONE, force=False, progress=lambda _unused: None)


def test_who_may_write_but_not_look_has_sent_all_the_same(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    from umccr_pcgr.client.store import Bucket

    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    bucket = Bucket(cloud.bucket, None)

    def denied(**_unused: Any) -> None:
        metadata = {"HTTPStatusCode": 403}
        raise ClientError({"Error": {"Code": "403"}, "ResponseMetadata": metadata}, "HeadObject")  # type: ignore[typeddict-item]

    monkeypatch.setattr(bucket._s3, "head_object", denied)
    stored = bucket.put(SOMATIC, ONE, force=False, progress=lambda _unused: None)
    assert stored.identity == f"etag:{cloud.input_version(ONE).etag}"


# ---- fetching later


@pytest.mark.parametrize("form", ["{name}", "{input}", "{result}", "s3://{bucket}/{input}"])
def test_fetch_takes_a_name_a_key_or_an_address(cloud: Cloud, tmp_path: Path, form: str) -> None:
    sample = parse("inbox/demo-000001-somatic.tar.gz")
    cloud.put(sample.input_key, SOMATIC.read_bytes())
    report = result(sample.name)
    cloud.publish(sample, report)
    names = {"name": sample.prefix + sample.name, "input": sample.input_key, "result": sample.result_key}
    submit(cloud, "--fetch", form.format(bucket=cloud.bucket, **names), "--out", tmp_path / "new", "--unpack")
    assert (tmp_path / "new/demo-000001-somatic/demo-000001-somatic.html").read_bytes() == b"report"
    assert (tmp_path / "new/demo-000001-somatic-output.tar.gz").read_bytes() == report


def test_fetch_waits_for_the_newest_input_and_reports_a_failure(cloud: Cloud, tmp_path: Path) -> None:
    cloud.put(ONE.input_key, b"input")
    with program(cloud, "--fetch", ONE.name, "--out", tmp_path) as process:
        until(process, "queued")
        cloud.fail(ONE, "no VCF")
        until(process, "failed: no VCF")
        assert process.wait(30) == 1


def test_fetch_from_a_spool(cloud: Cloud, tmp_path: Path) -> None:
    for folder in ("inbox", "claimed", "done/lab", "failed"):
        (tmp_path / "spool" / folder).mkdir(parents=True)
    for ending in (".tar.gz", "-output.tar.gz"):
        (tmp_path / f"spool/done/lab/b-000001-somatic{ending}").write_bytes(b"of the spool")
    arguments = ("--spool", tmp_path / "spool", "--fetch", "b-000001-somatic", "--prefix", "lab/", "--out", tmp_path)
    done = script("submit", *arguments, environment=cloud.environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "b-000001-somatic-output.tar.gz").read_bytes() == b"of the spool"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--fetch", "demo-000099-somatic"], "demo-000099-somatic.tar.gz: no such sample"),
        (["--fetch", "report"], "allowed the name of a sample such as demo-000001-somatic, or its address"),
        (["--fetch", "demo-000001-somatic", SOMATIC], "--fetch: does not go with FILE"),
        (["--fetch", "demo-000001-somatic", "--set", "a=1"], "--fetch: does not go with --set"),
        (["--fetch", "demo-000001-somatic", "--force"], "--fetch: does not go with --force"),
        ([], "FILE is missing"),
        ([SOMATIC, "--out", "x"], "--out: goes with --wait or --fetch"),
        ([SOMATIC, "--unpack"], "--unpack: goes with --wait or --fetch"),
        ([SOMATIC, "--timeout", "3"], "--timeout: goes with --wait or --fetch"),
    ],
)
def test_what_does_not_go_together_is_refused(cloud: Cloud, arguments: list[str | Path], reason: str) -> None:
    done = submit(cloud, *arguments, rc=2)
    assert reason in done.stderr and len(done.stderr.splitlines()) == 1
    assert cloud.keys() == []


# ---- the folder for the result


@pytest.mark.parametrize("place", ["file", "below a file", "kernel"])
def test_a_folder_that_cannot_be_written_is_refused_before_sending(cloud: Cloud, tmp_path: Path, place: str) -> None:
    file = tmp_path / "taken"
    file.write_bytes(b"")
    out = {"file": file, "below a file": file / "out", "kernel": Path("/proc/self/net")}[place]
    done = submit(cloud, SOMATIC, "--wait", "--out", out, rc=2)
    assert done.stderr.startswith(f"scripts/submit: --out: {out}: ") and len(done.stderr.splitlines()) == 1
    assert cloud.keys() == []


# ---- signals


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)],
    ids=str,
)
def test_a_signal_while_packing_leaves_no_patient_data(cloud: Cloud, tmp_path: Path, number: int, code: int) -> None:
    big = tmp_path / "patient.vcf"
    with big.open("w") as out:
        out.write(
            "##fileformat=VCFv4.2\n##contig=<ID=chr1,length=248956422>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        )
        out.writelines(f"chr1\t{position}\t.\tG\tT\t.\tPASS\t.\n" for position in range(1, 2_000_000))
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    with program(cloud, big, TMPDIR=str(scratch)) as process:
        assert eventually(lambda: any(scratch.glob("pcgr-submit-*/members/*.vcf")))
        process.send_signal(number)
        assert process.stdout
        said = process.stdout.read()
        assert process.wait(30) == code
    assert list(scratch.iterdir()) == []
    assert (
        said.splitlines()[-1] in ("scripts/submit: terminated", "scripts/submit: interrupted")
        and "Traceback" not in said
    )
    assert cloud.keys() == []


def test_an_interrupted_wait_says_how_to_fetch(cloud: Cloud, tmp_path: Path) -> None:
    with program(cloud, "--wait", "--out", tmp_path, SOMATIC) as process:
        until(process, "queued")
        process.send_signal(signal.SIGINT)
        assert f"--fetch {ONE.name} --out {tmp_path}" in until(process, "the sample is stored")
        assert process.wait(30) == 130


def test_what_nohup_ignores_stays_ignored(cloud: Cloud) -> None:
    command = f"trap '' HUP; exec {sys.executable} {ROOT}/scripts/submit --bucket {cloud.bucket} --wait {SOMATIC}"
    with subprocess.Popen(
        ["bash", "-c", command],
        env=cloud.environment,
        stdout=subprocess.PIPE,
        text=True,
        cwd=os.environ.get("TMPDIR", "/tmp"),
    ) as process:
        until(process, "queued")
        process.send_signal(signal.SIGHUP)
        cloud.fail(Sample("", "demo", 1, "somatic"), "still here")
        until(process, "failed: still here")
        assert process.wait(30) == 1


def test_the_reader_that_goes_away_is_no_traceback(cloud: Cloud) -> None:
    command = f"set -o pipefail; {sys.executable} {ROOT}/scripts/submit --bucket {cloud.bucket} --wait {SOMATIC} | true"
    done = subprocess.run(["bash", "-c", command], env=cloud.environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")
