"""The program `pcgr-submit` (in a checkout `scripts/submit`)."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path

from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from umccr_pcgr.client import cli, spool, store, submission, wait
from umccr_pcgr.samples.documents import FailureReport
from umccr_pcgr.samples.naming import NUMBER_MAX, NameRefused, Sample

NOT_FETCHED = 3
DESCRIPTION = """Send a sample to a bucket or a spool folder: a ready tarball, or a VCF that is packed into one.

    %(prog)s --bucket B tumour.vcf.gz --cna tumour.cna.tsv --set tumor_site=6
    %(prog)s --bucket B demo-000001-somatic.tar.gz --wait --out reports
    %(prog)s --bucket B --fetch demo-000001-somatic --out reports
    %(prog)s --spool /var/spool/pcgr blood.vcf --type normal

Exit codes: 0 sent (with --wait or --fetch: the result is there), 1 the sample failed, 2 refused, nothing was sent,
3 the sample is stored (or may be: the line says so) but its result was not fetched; --fetch does that later,
130 interrupted, 129 or 143 ended by SIGHUP or SIGTERM, 141 the reader of the output went away.
"""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line; refuse what does not go together."""
    parser = cli.Parser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", nargs="?", help="FILE.tar.gz, FILE.vcf.gz or FILE.vcf")
    destination = parser.add_argument_group("destination")
    place = destination.add_mutually_exclusive_group(required=True)
    place.add_argument("--bucket", type=cli.bucket, help="the bucket")
    place.add_argument("--spool", type=Path, metavar="DIR", help="the spool folder (holds inbox/)")
    destination.add_argument(
        "--prefix",
        type=submission.prefix,
        default="",
        metavar="P/",
        help="folder in the bucket or inbox, e.g. inbox/",
    )
    destination.add_argument(
        "--endpoint-url",
        type=cli.endpoint,
        metavar="URL",
        help="another endpoint than AWS (also: AWS_ENDPOINT_URL)",
    )
    destination.add_argument("--force", action="store_true", help="replace an input of the same name")
    name = parser.add_argument_group("name of the sample (a ready tarball has one)")
    name.add_argument("--batch", help="first part (default: the VCF's name)")
    name.add_argument(
        "--number", type=cli.whole(0, NUMBER_MAX), metavar="N", help="second part (default: the next free one)"
    )
    name.add_argument("--type", choices=["somatic", "normal"], help="somatic: PCGR (default), normal: CPSR")
    sample = parser.add_argument_group("options for a VCF")
    sample.add_argument("--assembly", choices=["grch37", "grch38"], help="default: read from the VCF's header")
    sample.add_argument("--cna", type=Path, metavar="F", help="copy-number segments (.tsv)")
    sample.add_argument("--fusions", type=Path, metavar="F", help="RNA fusions (.tsv)")
    sample.add_argument("--expression", type=Path, metavar="F", help="RNA expression (.tsv, .tsv.gz)")
    sample.add_argument("--config", type=Path, metavar="F", help="TOML file with the tool's options")
    sample.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="one of the tool's options"
    )
    sample.add_argument(
        "--release", default="newest", metavar="R", help="PCGR release whose options are checked (default: newest)"
    )
    result = parser.add_argument_group("result")
    result.add_argument("--wait", action="store_true", help="wait for the result and fetch it")
    result.add_argument(
        "--fetch", metavar="NAME", help="instead of FILE: wait for the result of a sample sent earlier and fetch it"
    )
    result.add_argument("--out", type=Path, metavar="DIR", help="folder for the result (default: .)")
    result.add_argument("--unpack", action="store_true", help="also unpack the result in that folder")
    result.add_argument(
        "--timeout", type=cli.seconds(zero=True), metavar="SECONDS", help="limit of --wait or --fetch (default: none)"
    )
    arguments = parser.parse_args()
    check_together(parser, arguments)
    return arguments


def check_together(parser: cli.Parser, arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together; none is ignored silently."""
    fetching = ("fetch", "bucket", "spool", "prefix", "endpoint_url", "out", "unpack", "timeout", "wait", "release")
    if arguments.fetch is None:
        if arguments.file is None:
            parser.error("FILE is missing; allowed: FILE.tar.gz, FILE.vcf.gz or FILE.vcf, or --fetch NAME")
        if not arguments.wait:
            for option in ("out", "timeout", "unpack"):
                if getattr(arguments, option) not in (None, False):
                    parser.error(f"--{option}: goes with --wait or --fetch")
        return
    for option, value in vars(arguments).items():
        if option not in fetching and value not in (None, False, []):
            shown = {"file": "FILE", "settings": "--set"}.get(option, f"--{option}")
            parser.error(f"--fetch: does not go with {shown}: the sample was sent before")


def request_of(arguments: argparse.Namespace) -> submission.Submission:
    """Return what the user asks to be sent."""
    kinds = ("cna", "fusions", "expression")
    return submission.Submission(
        arguments.file,
        arguments.prefix,
        arguments.batch,
        arguments.number,
        arguments.type,
        arguments.assembly,
        {kind: getattr(arguments, kind) for kind in kinds if getattr(arguments, kind)},
        arguments.config,
        arguments.settings,
        arguments.release,
    )


def send(place: store.Place, arguments: argparse.Namespace, console: cli.Console) -> tuple[Sample, store.Entry]:
    """Pack or check the file, show what is sent, and send it."""
    request = request_of(arguments)
    # The folder holds a patient's variants; it is removed however this process ends, except by SIGKILL
    with tempfile.TemporaryDirectory(prefix="pcgr-submit-") as folder:
        console.print(f"[bold]{escape(arguments.file.name)}[/]")
        prepared = submission.prepare(request, Path(folder))
        for note in prepared.notes:
            console.print(f"  [dim]{escape(note)}[/]")
        width = max(len(name) for name, _unused in prepared.members)
        for name, size in prepared.members:
            console.print(f"  {name:<{width}}  [dim]{decimal(size):>10}[/]")
        columns = (TextColumn("  {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

            def progress(sample: Sample) -> store.Progress:
                task = bars.add_task(sample.name, total=prepared.tarball.stat().st_size)
                return lambda done: bars.update(task, completed=done)

            return submission.send(place, request, prepared, arguments.force, progress)


def fetch(
    place: store.Place,
    sample: Sample,
    source: store.Entry,
    arguments: argparse.Namespace,
    console: cli.Console,
) -> int:
    """Wait for the result of this very input and fetch it; returns the exit code."""
    start, last = time.monotonic(), ""
    with console.status("waiting") as spinner:

        def show(text: str) -> None:
            nonlocal last
            if text != last and not console.is_terminal:
                console.print(text, markup=False)
            last = text
            spinner.update(f"{escape(text)}  [dim]{time.monotonic() - start:.0f} s[/]")

        status = wait.wait(place, sample, source, show, timeout=arguments.timeout)
        if status.state == "failed":
            return failed(place, status, console)
        path = wait.fetch(place, sample, arguments.out or Path(), unpack=arguments.unpack)
    console.print(f"[green]✔[/] {path} [dim]{time.monotonic() - start:.0f} s[/]")
    return 0


def failed(place: store.Place, status: store.Status, console: cli.Console) -> int:
    """Print why a sample failed; returns the exit code."""
    try:
        tail = FailureReport.read(place.document(status.sample.failed_key)).log_tail
    except store.Refused:
        tail = ()
    console.print(f"[red]✘[/] {status.sample.name} failed: {escape(status.reason or 'no reason given')}")
    for line in tail:
        console.print(f"  {line}", style="dim", markup=False)
    console.print(f"  {status.address}")
    return 1


def fetch_command(arguments: argparse.Namespace, sample: Sample) -> str:
    """Return the command that fetches the sample's result later."""
    command = [
        cli.program_name(),
        *(["--bucket", arguments.bucket] if arguments.bucket else ["--spool", str(arguments.spool)]),
    ]
    command += ["--endpoint-url", arguments.endpoint_url] if arguments.endpoint_url else []
    command += ["--fetch", sample.prefix + sample.name]
    command += ["--out", str(arguments.out)] if arguments.out else []
    return shlex.join([*command, *(["--unpack"] if arguments.unpack else [])])


def run() -> int:
    """Do what the command line says; returns the exit code."""
    arguments = parse_arguments()
    console = cli.Console(highlight=False, soft_wrap=True)
    if arguments.wait or arguments.fetch:
        wait.check_folder(arguments.out or Path())
    place: store.Place = (
        store.Bucket(arguments.bucket, arguments.endpoint_url) if arguments.bucket else spool.Spool(arguments.spool)
    )
    if arguments.fetch:
        sample, source = wait.sent_sample(place, arguments.fetch, arguments.prefix)
    else:
        try:
            sample, source = send(place, arguments, console)
        except store.MaybeStored as lost:
            print(f"{cli.program_name()}: {lost}", file=sys.stderr)
            return NOT_FETCHED
        console.print(f"[green]✔[/] {place.address(sample.input_key)}")
        console.print(f"  result: {place.address(sample.result_key)}")
        if not arguments.wait:
            return 0
    later = f"the sample is stored; fetch its result with: {fetch_command(arguments, sample)}"
    try:
        return fetch(place, sample, source, arguments, console)
    except wait.NotFetched as reason:
        print(f"{cli.program_name()}: {reason}; {later}", file=sys.stderr)
        return NOT_FETCHED
    except KeyboardInterrupt:
        print(f"{cli.program_name()}: {later}", file=sys.stderr)
        raise


def main() -> int:
    """Entry point of `pcgr-submit`; returns the exit code."""
    return cli.run(cli.program_name(), run, (store.Refused, NameRefused))
