"""Input that scripts/submit, scripts/status and scripts/spot_price refuse: one line each, and nothing is done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from support.client_cloud import HEED_INTERRUPTS, ROOT, Cloud, script
from umccr_pcgr.client.spool import Spool
from umccr_pcgr.client.status_view import Instance, View, render
from umccr_pcgr.client.store import Refused, Status, statuses
from umccr_pcgr.samples.naming import Sample

SOMATIC = str(ROOT / "examples/demo-000001-somatic.tar.gz")


def refusal(cloud: Cloud, name: str, *arguments: str | Path, **more: str) -> str:
    """The one line with which a program refuses."""
    done = script(name, *arguments, environment=cloud.environment | more)
    assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
    called = "pcgr-spot" if name == "spot_price" else f"scripts/{name}"
    assert done.stderr.startswith(f"{called}: ") and len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("submit", ["--bucket", "s3://b0b", SOMATIC], "--bucket: found 's3://b0b', allowed the name of a bucket alone (here: b0b)"),
        ("submit", ["--bucket", "b0b/inbox", SOMATIC], "allowed the name of a bucket alone (here: b0b)"),
        ("status", ["--bucket", "s3://"], "--bucket: found 's3://', allowed the name of a bucket alone"),
        ("submit", ["--bucket", "bbb", "--number", "-1", SOMATIC], "--number: found '-1', allowed a whole number from 0 to 999999"),
        ("submit", ["--bucket", "bbb", "--number", "1000000", SOMATIC], "allowed a whole number from 0 to 999999"),
        ("submit", ["--bucket", "bbb", "--number", "one", SOMATIC], "allowed a whole number from 0 to 999999"),
        ("submit", ["--bucket", "bbb", "--prefix", "inbox", SOMATIC], "--prefix: found 'inbox', allowed folders"),
        ("submit", ["--bucket", "bbb", "--prefix", "/inbox/", SOMATIC], "--prefix: found '/inbox/', allowed folders"),
        ("submit", ["--bucket", "bbb", "--wait", "--timeout", "-5", SOMATIC], "--timeout: found '-5', allowed a number of at least 0"),
        ("submit", ["--bucket", "bbb", "--wait", "--timeout", "nan", SOMATIC], "--timeout: found 'nan'"),
        ("submit", [SOMATIC], "one of the arguments --bucket --spool is required"),
        ("status", ["--bucket", "bbb", "--interval", "-1"], "--interval: found '-1', allowed a number above 0"),
        ("status", ["--bucket", "bbb", "--interval", "0"], "--interval: found '0', allowed a number above 0"),
        ("status", ["--bucket", "bbb", "--interval", "inf"], "--interval: found 'inf'"),
        ("status", ["--bucket", "bbb", "--limit", "-1"], "--limit: found '-1', allowed a whole number of at least 0"),
        ("spot_price", ["--top", "-1"], "--top: found '-1', allowed a whole number of at least 0"),
    ],
)  # fmt: skip
def test_arguments_out_of_range(cloud: Cloud, name: str, arguments: list[str], reason: str) -> None:
    assert reason in refusal(cloud, name, *arguments)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:4610", "localhost", "ftp://x", "http://", "http://x:99999", "http://a b"]
)
def test_addresses_that_are_none(cloud: Cloud, address: str) -> None:
    for name in ("submit", "status"):
        file = [SOMATIC] if name == "submit" else []
        line = refusal(cloud, name, "--bucket", cloud.bucket, "--endpoint-url", address, *file)
        assert f"--endpoint-url: found {address!r}, allowed an address such as http://" in line
        line = refusal(cloud, name, "--bucket", cloud.bucket, *file, AWS_ENDPOINT_URL=address)
        assert f"AWS_ENDPOINT_URL: found {address!r}, allowed an address such as http://" in line
    line = refusal(cloud, "spot_price", "-r", "ap-southeast-2", "-t", "m5.large", AWS_ENDPOINT_URL_EC2=address)
    assert f"AWS_ENDPOINT_URL_EC2: found {address!r}" in line


def test_folders_in_place_of_files(cloud: Cloud, tmp_path: Path) -> None:
    vcf = tmp_path / "patient.vcf"
    vcf.write_text("")
    for name in ("folder.tar.gz", "folder.vcf", "folder"):
        (tmp_path / name).mkdir()
        line = refusal_after_output(cloud, "--bucket", cloud.bucket, tmp_path / name)
        assert f"{tmp_path / name}: found a folder, allowed a file" in line
    for option in ("--cna", "--fusions", "--expression", "--config"):
        line = refusal_after_output(cloud, "--bucket", cloud.bucket, vcf, option, tmp_path)
        assert f"{option}: {tmp_path}: found a folder, allowed a file" in line


def test_a_region_unlike_any_other_gets_no_silly_hint(cloud: Cloud) -> None:
    line = refusal(cloud, "spot_price", "-r", "nosuch-region")
    assert "did you mean" not in line and "allowed: af-south-1" in line and "ap-southeast-2" in line
    assert "did you mean ap-southeast-" in refusal(cloud, "spot_price", "-r", "ap-southeast-99")


def test_options_that_the_release_does_not_take_are_not_sent(cloud: Cloud, tmp_path: Path) -> None:
    vcf = tmp_path / "patient.vcf"
    vcf.write_text(
        "##fileformat=VCFv4.2\n##contig=<ID=chr1,length=248956422>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        "chr1\t1000\t.\tG\tT\t.\tPASS\t.\n"
    )
    where = ("--bucket", cloud.bucket, vcf)
    line = refusal_after_output(cloud, *where, "--set", "tumour_site=6")
    assert "--set tumour_site=6: pcgr.tumour_site: found an unknown key; did you mean tumor_site" in line
    line = refusal_after_output(cloud, *where, "--set", "tumor_site=99")
    assert "--set tumor_site=99: pcgr.tumor_site: found 99, allowed a whole number, at least 0 and at most 30" in line
    line = refusal_after_output(cloud, *where, "--set", "sex=MALE", "--set", "tumor_site=18")
    assert "pcgr.tumor_site: found 18, allowed anything but" in line
    config = tmp_path / "own.toml"
    config.write_text("[pcgr]\nassay = 'exome'\n")
    assert f"{config}: pcgr.assay: found exome" in refusal_after_output(cloud, *where, "--config", config)
    config.write_text("[cpsr]\npanel_id = '99'\n")
    line = refusal_after_output(cloud, *where, "--config", config, "--type", "normal")
    assert f"{config}: cpsr.panel_id: found 99" in line
    assert "--release: " in refusal_after_output(cloud, *where, "--release", "9.9.9")
    assert "allowed a release that reports samples" in refusal_after_output(cloud, *where, "--release", "0.9.2")
    assert cloud.keys() == []


def test_another_release_has_other_options(cloud: Cloud, tmp_path: Path) -> None:
    vcf = tmp_path / "patient.vcf"
    vcf.write_text(
        "##fileformat=VCFv4.2\n##contig=<ID=chr1,length=248956422>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        "chr1\t1000\t.\tG\tT\t.\tPASS\t.\n"
    )
    where = ("--bucket", cloud.bucket, vcf, "--set", "cna_overlap_pct=60")
    assert "did you mean cna_transcript_overlap_pct" in refusal_after_output(cloud, *where, "--release", "2.3.2")
    done = script("submit", *where, "--release", "2.0.3", environment=cloud.environment)
    assert (done.returncode, cloud.keys()) == (0, ["patient-000001-somatic.tar.gz"]), done.stderr


def refusal_after_output(cloud: Cloud, *arguments: str | Path) -> str:
    """The line of a refusal that comes when the file has been read already."""
    done = script("submit", *arguments, environment=cloud.environment)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


# ---- the end of the program


@pytest.mark.parametrize("mode", ["--json", "--limit=3"])
def test_status_ends_quietly_when_its_reader_goes(cloud: Cloud, mode: str) -> None:
    command = f"{sys.executable} {ROOT}/scripts/status --bucket {cloud.bucket} {mode} --watch --interval 0.05"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -1"],
        env=cloud.environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_status_ends_on_a_signal_without_a_traceback(cloud: Cloud, number: int, code: int) -> None:
    command = [*HEED_INTERRUPTS, sys.executable, ROOT / "scripts/status", "--bucket", cloud.bucket, "--json", "--watch"]
    with subprocess.Popen(
        command, env=cloud.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(30) == code
        assert process.stderr.read().count("\n") == 1


# ---- a spool that may not be read


@contextmanager
def unprivileged() -> Iterator[None]:
    """As a user to whom permissions apply."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def spool() -> Iterator[Path]:
    """A spool where other users may look; pytest's own folders are private."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for folder in ("inbox/lab", "claimed", "done", "failed"):
            (root / folder).mkdir(parents=True)
        root.chmod(0o755)
        (root / "inbox/lab/b-000001-somatic.tar.gz").write_bytes(b"")
        yield root
        for path in root.rglob("*"):
            path.chmod(0o700)


@pytest.mark.parametrize("folder", ["inbox", "inbox/lab", "claimed", "done", "failed"])
def test_a_spool_folder_that_may_not_be_read_is_no_empty_one(spool: Path, folder: str) -> None:
    with unprivileged():
        assert [status.state for status in statuses(Spool(spool), "")] == ["queued"]
    (spool / folder).chmod(0)
    with unprivileged(), pytest.raises(Refused, match=rf"{spool / folder}: Permission denied|{spool}: no spool"):
        statuses(Spool(spool), "")


def test_claims_of_the_consumers_user_are_known_by_their_notes(spool: Path) -> None:
    claim = spool / "claimed/0000000000000001.1.00112233445566aa"
    claim.mkdir()
    (claim / "key").write_text("lab/b-000001-somatic.tar.gz")
    (spool / "inbox/lab/b-000001-somatic.tar.gz").rename(claim / "input")
    (spool / "claimed/lab").mkdir()
    (spool / "claimed/lab/b-000001-somatic-running.json").write_text('{"host": "worker-1"}')
    claim.chmod(0)
    with unprivileged():
        (found,) = statuses(Spool(spool), "")
    assert (found.sample.name, found.state, found.host) == ("b-000001-somatic", "running", "worker-1")


# ---- what fits a terminal

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def lines(
    samples: int, instances: int, height: int, width: int = 80, queue: dict[str, int] | str | None = None
) -> list[str]:
    found = [
        Status(Sample("a-long-folder/", "batch", number, "somatic"), "failed", NOON, reason="a long reason " * 20)
        for number in range(samples)
    ]
    ours = [
        Instance(
            f"pcgr-{number}",
            f"i-{number:017x}",
            "terminated" if number % 2 else "running",
            "m5.xlarge",
            NOON,
            "192.0.2.1",
        )
        for number in range(instances)
    ]
    view = View(found, ours, queue or {"visible": 190, "in_flight": 2, "delayed": 0}, NOON)
    console = Console(width=width, height=height, color_system=None)
    with console.capture() as capture:
        console.print(render(view, 1000, height))
    return capture.get().splitlines()


@pytest.mark.parametrize("height", [10, 24, 50])
@pytest.mark.parametrize("instances", [0, 2, 3, 60])
@pytest.mark.parametrize("samples", [0, 3, 15, 200])
def test_watched_rows_fit_and_instances_and_queue_are_seen(samples: int, instances: int, height: int) -> None:
    found = lines(samples, instances, height)
    assert len(found) <= height
    assert any(line.startswith("Instances") for line in found)
    assert found[-1].startswith("Queue  190 waiting, 2 in flight")
    rows = sum("batch-" in line for line in found)
    ours = sum("pcgr-" in line for line in found)
    assert ours >= min(instances, 1)
    if rows < samples:
        assert any(f"… and {samples - rows} older ones" in line for line in found)
        assert len(found) == height or instances > ours
    if ours < instances:
        assert any(f"… and {instances - ours} more" in line for line in found)


def test_running_instances_are_seen_before_ended_ones() -> None:
    shown = [line for line in lines(200, 20, 24) if "pcgr-" in line]
    assert shown and all("running" in line for line in shown)


def test_a_long_refusal_takes_one_line() -> None:
    found = lines(200, 2, 24, queue="queue pcgr: not allowed to " + "see it " * 40)
    assert len(found) == 24 and found[-1].startswith("Queue  queue pcgr: not allowed")


def test_status_watch_at_a_terminal_of_24_lines(cloud: Cloud) -> None:
    for number in range(200):
        cloud.put(f"b-{number:06d}-somatic.tar.gz", b"")
    master, slave = os.openpty()
    subprocess.run(["stty", "rows", "24", "cols", "80"], stdin=slave, check=True)
    command = [
        *HEED_INTERRUPTS,
        sys.executable,
        ROOT / "scripts/status",
        "--bucket",
        cloud.bucket,
        "--watch",
        "--interval",
        "60",
    ]
    environment = cloud.environment | {"TERM": "xterm"}
    with subprocess.Popen(command, env=environment, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        text, end = "", time.monotonic() + 30
        while "Queue" not in text and time.monotonic() < end:
            text += os.read(master, 65536).decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    os.close(master)
    assert "Instances" in text and "older ones" in text and "200 queued" in text
