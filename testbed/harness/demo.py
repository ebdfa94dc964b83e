"""Run the complete pipeline on this host: start a region, provision an instance in it, turn a sample into a report.

Exit codes: 0 the report is there and nothing was left behind, 1 a step failed, 2 refused before anything was started,
130 interrupted, 129 or 143 ended by SIGHUP or SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import boto3
from rich.markup import escape
from rich.table import Table

import harness
from umccr_pcgr.client import cli, submission, wait
from umccr_pcgr.client.store import Refused
from umccr_pcgr.samples.naming import NameRefused

EXAMPLE = harness.ROOT / "examples/demo-000001-somatic.tar.gz"
NAME = "pcgr-demo"
IDLE_SECONDS = 5  # a real consumer waits longer; here no second sample follows
RESULT_SECONDS = 600  # for one sample; the example takes about half a minute without KVM


class Steps:
    """Show the steps as they run, and record how long each takes."""

    def __init__(self, console: cli.Console) -> None:
        self.console = console
        self.seconds: list[tuple[str, float]] = []

    @contextmanager
    def step(self, title: str) -> Iterator[harness.Progress]:
        """Show one step: a live line on a terminal, elsewhere a line at its start and end."""
        start = time.monotonic()
        number = len(self.seconds) + 1
        with self.console.status(f"[bold]{number}. {title}[/]") as status:
            if not self.console.is_terminal:
                self.console.print(f"{number}. {title} ...")

            def progress(text: str) -> None:
                took = time.monotonic() - start
                status.update(f"[bold]{number}. {title}[/] [dim]{took:4.0f} s  {text[:90]}[/]")

            yield progress
        self.seconds.append((title, time.monotonic() - start))
        self.console.print(f"[green]✔[/] {number}. {title} [dim]{self.seconds[-1][1]:.0f} s[/]")

    def table(self) -> Table:
        """Return a table of the steps with their seconds and the total."""
        table = Table("step", "seconds", show_footer=True)
        table.columns[0].footer = "total"
        table.columns[1].footer = f"{sum(seconds for _unused, seconds in self.seconds):.0f}"
        table.columns[1].justify = "right"
        for title, seconds in self.seconds:
            table.add_row(title, f"{seconds:.0f}")
        return table


def wait_until_terminated(session: boto3.Session, progress: harness.Progress, limit: float) -> None:
    """Wait until every instance of the region is terminated; raises StepError after `limit` seconds."""
    ec2 = session.client("ec2")
    end = time.monotonic() + limit
    while True:
        states = {
            instance["InstanceId"]: instance["State"]["Name"]
            for reservation in ec2.describe_instances()["Reservations"]
            for instance in reservation["Instances"]
        }
        if set(states.values()) <= {"terminated"}:
            return
        progress(", ".join(f"{name} {state}" for name, state in states.items()))
        if time.monotonic() > end:
            raise harness.StepError(f"instances still there after {limit:.0f} s: {states}")
        time.sleep(1)


def leftover_messages(session: boto3.Session) -> dict[str, int]:
    """Return the number of messages still in the region, in flight or not, by queue."""
    sqs = session.client("sqs")
    left = {}
    for url in sqs.list_queues().get("QueueUrls", []):
        counts = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        if count := sum(int(value) for key, value in counts.items() if key.startswith("ApproximateNumberOfMessages")):
            left[url.rpartition("/")[2]] = count
    return left


def leftover_processes(directory: Path) -> list[str]:
    """Return the command lines of processes that still name the region's folder."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = cmdline.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in text:
            found.append(text[:120])
    return found


def run() -> int:
    """Run the demo with the options of the command line; return the exit code."""
    parser = cli.Parser(prog="demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=EXAMPLE, help="a sample tarball or a VCF (default: the example)")
    parser.add_argument("--cna", type=Path, help="allele-specific copy-number table for a VCF")
    parser.add_argument("--out", type=Path, default=harness.ROOT / "demo", help="report, log and throwaway key go here")
    parser.add_argument("--assembly", choices=["grch37", "grch38"], default="grch38")
    arguments = parser.parse_args()
    check_input(arguments)
    log = arguments.out / "demo.log"
    log.unlink(missing_ok=True)
    console = cli.Console(highlight=False)
    console.print(f"Every detail goes to [bold]{log}[/]", soft_wrap=True)
    steps = Steps(console)
    try:
        report = run_pipeline(arguments, log, steps)
    except harness.StepError as error:
        console.print(f"[red]✘[/] {escape(str(error))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("[red]✘[/] interrupted; the region and its instances have ended")
        raise
    console.print(steps.table())
    console.print(f"Report: [bold]{report}[/]", soft_wrap=True)
    return 0


def check_input(arguments: argparse.Namespace) -> None:
    """Refuse bad input now, not minutes later when the instance is up; create the folder --out."""
    ready = arguments.input.name.endswith(submission.TARBALL)
    tables = {"cna": arguments.cna} if arguments.cna else {}
    wanted = submission.Submission(
        arguments.input, assembly=None if ready else arguments.assembly, tables=tables, release="rehearsal"
    )
    with tempfile.TemporaryDirectory(prefix="pcgr-demo-") as folder:
        submission.prepare(wanted, Path(folder))
    wait.check_folder(arguments.out)


def run_pipeline(arguments: argparse.Namespace, log: Path, steps: Steps) -> Path:
    """Run the steps; return the path of the report."""
    directory = arguments.out / "region"
    with steps.step("prepare images (built once, then cached)") as progress:
        harness.prepare_images(log, progress)
        key = harness.make_key(arguments.out / "key")
    with ExitStack() as stack:
        with steps.step("start a region"):
            environment = stack.enter_context(harness.local_region(directory, log))
            os.environ.update(environment)
            session = boto3.Session()
        variables = harness.key_variables(key) | {
            "aws_name": NAME,
            "aws_bucket": NAME,
            "pcgr_assemblies": [arguments.assembly],
            "consumer_idle_seconds": IDLE_SECONDS,
        }
        with steps.step("launch an instance and provision it (playbooks/aws.yml)") as progress:
            for count, task in enumerate(harness.run_playbook("aws.yml", variables, environment, log), 1):
                progress(f"task {count}: {task}")
        with steps.step("upload the sample and wait for the result") as progress:
            result = submit(arguments, environment, log, progress)
        with steps.step("wait until the instance has terminated itself") as progress:
            wait_until_terminated(session, progress, limit=IDLE_SECONDS + 180)
        if left := leftover_messages(session):
            raise harness.StepError(f"messages left in the region's queues: {left}")
        with steps.step("end the region"):
            stack.close()
    if processes := leftover_processes(directory):
        raise harness.StepError(f"processes left of the region: {processes}")
    return result


def submit(arguments: argparse.Namespace, environment: dict[str, str], log: Path, progress: harness.Progress) -> Path:
    """Submit the sample with scripts/submit, wait, unpack the result; return the path of the HTML report."""
    command: list[str | Path] = [
        sys.executable,
        harness.ROOT / "scripts/submit",
        "--bucket",
        NAME,
        "--wait",
        "--unpack",
    ]
    command += ["--force", "--timeout", str(RESULT_SECONDS), "--out", arguments.out, "--release", "rehearsal"]
    if not arguments.input.name.endswith(".tar.gz"):
        command += ["--assembly", arguments.assembly]
    command += ["--cna", arguments.cna] if arguments.cna else []
    for line in harness.follow([*command, arguments.input], log, what="reporting the sample", env=environment):
        progress(line)
    result = max(arguments.out.glob("*-output.tar.gz"), key=lambda path: path.stat().st_mtime)
    folder: Path = arguments.out / result.name.removesuffix("-output.tar.gz")
    reports = sorted(folder.glob("*.html"))
    if not reports:
        raise harness.StepError(f"{result} holds no HTML report")
    return reports[0]


def main() -> int:
    """Entry point of scripts/demo; return the exit code."""
    return cli.run("demo", run, (Refused, NameRefused))
