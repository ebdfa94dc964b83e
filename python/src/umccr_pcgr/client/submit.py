"""Sends a sample: a ready tarball, or a VCF that is packed into one, to a bucket or a spool folder.

    scripts/submit --bucket B tumour.vcf.gz --cna tumour.cna.tsv --set tumor_site=6
    scripts/submit --bucket B examples/demo-000001-somatic.tar.gz --wait --out reports
    scripts/submit --spool /var/spool/pcgr blood.vcf --type normal

Exit codes: 0 sent (with --wait: the result is there), 1 the sample failed, 2 refused, 130 interrupted.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

try:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from umccr_pcgr.client import pack as pcgr_pack
    from umccr_pcgr.client import store as pcgr_client
    from umccr_pcgr.samples.naming import NUMBER_MAX, Kind, NameRefused, Sample, parse
except ImportError as error:
    sys.exit(f"submit: {error}; run make, then . .venv/bin/activate")

POLL_SECONDS = 2  # a report takes minutes; a HEAD request costs next to nothing
TARBALL = ".tar.gz"
TRIES = 20  # numbers that others may take from under us while we look for a free one


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="submit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="FILE.tar.gz, FILE.vcf.gz or FILE.vcf")
    where = parser.add_argument_group("where to")
    place = where.add_mutually_exclusive_group(required=True)
    place.add_argument("--bucket", help="the bucket")
    place.add_argument("--spool", type=Path, metavar="DIR", help="the spool folder (holds inbox/)")
    where.add_argument("--prefix", default="", metavar="P/", help="folder in the bucket or inbox, e.g. inbox/")
    where.add_argument("--endpoint-url", metavar="URL", help="not AWS but this address (also: AWS_ENDPOINT_URL)")
    where.add_argument("--force", action="store_true", help="replace an input of the same name")
    name = parser.add_argument_group("the sample's name (a ready tarball has one)")
    name.add_argument("--batch", help="first part (default: the VCF's name)")
    name.add_argument("--number", type=int, metavar="N", help="second part (default: the next free one)")
    name.add_argument("--type", choices=["somatic", "normal"], help="somatic: PCGR (default), normal: CPSR")
    sample = parser.add_argument_group("what goes with a VCF")
    sample.add_argument("--assembly", choices=["grch37", "grch38"], help="default: told from the VCF's header")
    sample.add_argument("--cna", type=Path, metavar="F", help="copy-number segments (.tsv)")
    sample.add_argument("--fusions", type=Path, metavar="F", help="RNA fusions (.tsv)")
    sample.add_argument("--expression", type=Path, metavar="F", help="RNA expression (.tsv, .tsv.gz)")
    sample.add_argument("--config", type=Path, metavar="F", help="TOML file with the tool's options")
    sample.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="one option of the tool"
    )
    after = parser.add_argument_group("afterwards")
    after.add_argument("--wait", action="store_true", help="until the result is there, and fetch it")
    after.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="folder for the result (default: .)")
    after.add_argument("--timeout", type=float, metavar="SECONDS", help="of --wait (default: none)")
    return parser.parse_args()


def prepare(arguments: argparse.Namespace, folder: Path, console: Console) -> tuple[Path, Sample]:
    """The tarball, ready to send and looked at, and its name (numbered 0 where the number is still to be found)."""
    ready = arguments.file.name.endswith(TARBALL)
    if not arguments.file.is_file():
        raise pcgr_client.Refused(f"{arguments.file}: no such file")
    if ready:
        tarball, sample = arguments.file, ready_name(arguments)
    else:
        base = pcgr_pack.stem(arguments.file)
        try:
            kind: Kind = arguments.type or "somatic"
            sample = Sample(arguments.prefix, arguments.batch or base, arguments.number or 0, kind)
        except NameRefused as refusal:
            hint = "" if arguments.batch else "; --batch gives the sample another name"
            raise pcgr_client.Refused(f"{refusal}{hint}") from None
        tables = {kind: getattr(arguments, kind) for kind in pcgr_pack.COLUMNS if getattr(arguments, kind)}
        wish = pcgr_pack.Wish(
            arguments.file, sample.kind, arguments.assembly, tables, arguments.config, arguments.settings
        )
        tarball = folder / "sample.tar.gz"
        (folder / "members").mkdir()
        for note in pcgr_pack.pack(wish, sample.batch, folder / "members", tarball):
            console.print(f"  [dim]{escape(note)}[/]")
    members = pcgr_pack.look(tarball, sample.kind, arguments.assembly, folder / "look")
    width = max(len(name) for name, _ in members)
    for name, size in members:
        console.print(f"  {name:<{width}}  [dim]{decimal(size):>10}[/]")
    return tarball, sample


def ready_name(arguments: argparse.Namespace) -> Sample:
    """A ready tarball's name, with what the user wants otherwise; nothing else may be asked of it."""
    for option in ("cna", "fusions", "expression", "config", "settings"):
        if getattr(arguments, option):
            shown = "set" if option == "settings" else option
            raise pcgr_client.Refused(
                f"--{shown}: {arguments.file} is a ready tarball and is sent as it is; allowed: with a VCF"
            )
    wanted = (arguments.batch, arguments.number, arguments.type)
    if None not in wanted:
        return Sample(arguments.prefix, *wanted)
    found = parse(arguments.file.name)
    kind: Kind = arguments.type or found.kind
    number = found.number if arguments.number is None else arguments.number
    return Sample(arguments.prefix, arguments.batch or found.batch, number, kind)


def send(
    place: pcgr_client.Place, arguments: argparse.Namespace, tarball: Path, sample: Sample, console: Console
) -> tuple[Sample, pcgr_client.Entry]:
    """Store the tarball under its name; finds a free number first when the user left that to us."""
    find_number = arguments.number is None and tarball != arguments.file
    for _ in range(TRIES):
        if find_number:
            sample = numbered(sample, next_number(place, sample))
        try:
            return sample, upload(place, tarball, sample, arguments.force, console)
        except pcgr_client.Exists:
            if not find_number:
                raise
    raise pcgr_client.Refused(f"{sample.batch}: others took the next free number {TRIES} times; --number chooses one")


def numbered(sample: Sample, number: int) -> Sample:
    return Sample(sample.prefix, sample.batch, number, sample.kind)


def next_number(place: pcgr_client.Place, sample: Sample) -> int:
    """One more than the highest number of the batch, whatever is left of those samples."""
    start = f"{sample.prefix}{sample.batch}-"
    used = [of.number for of, _, _ in place.entries(start) if (of.prefix, of.batch) == (sample.prefix, sample.batch)]
    if (number := max(used, default=0) + 1) > NUMBER_MAX:
        raise pcgr_client.Refused(
            f"{sample.batch}: number {NUMBER_MAX} is taken; --batch or --number chooses another name"
        )
    return number


def upload(place: pcgr_client.Place, tarball: Path, sample: Sample, force: bool, console: Console) -> pcgr_client.Entry:
    columns = (TextColumn("  {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(sample.name, total=tarball.stat().st_size)
        return place.put(tarball, sample, force=force, progress=lambda done: progress.update(task, completed=done))


def wait(
    place: pcgr_client.Place, sample: Sample, source: pcgr_client.Entry, arguments: argparse.Namespace, console: Console
) -> int:
    """Until the result of this very input is there, or its failure is final; returns the exit code."""
    start, told = time.monotonic(), ""
    with console.status("waiting") as spinner:
        while True:
            status = pcgr_client.follow(place, sample, source)
            text = status.state + (f" on {status.host}" if status.host else "")
            if status.state == "done":
                break
            if status.state == "failed":
                return failed(place, status, console)
            text += f" ({status.reason})" if status.reason else ""
            if text != told and not console.is_terminal:
                console.print(text)
            told = text
            spinner.update(f"{text}  [dim]{time.monotonic() - start:.0f} s[/]")
            if arguments.timeout is not None and time.monotonic() - start > arguments.timeout:
                console.print(f"[red]✘[/] no result after {arguments.timeout:.0f} s; last seen: {text}")
                return 1
            time.sleep(POLL_SECONDS)
    path = place.download(sample, arguments.out)
    console.print(f"[green]✔[/] {path} [dim]{time.monotonic() - start:.0f} s[/]")
    return 0


def failed(place: pcgr_client.Place, status: pcgr_client.Status, console: Console) -> int:
    report = place.document(status.sample.failed_key)
    console.print(f"[red]✘[/] {status.sample.name} failed: {escape(status.reason or 'no reason given')}")
    tail = report.get("log_tail")
    for line in tail if isinstance(tail, list) else []:
        console.print(f"  {line}", style="dim", markup=False)
    console.print(f"  {status.address}")
    return 1


def run(arguments: argparse.Namespace, console: Console) -> int:
    place: pcgr_client.Place = (
        pcgr_client.Bucket(arguments.bucket, arguments.endpoint_url)
        if arguments.bucket
        else pcgr_client.Spool(arguments.spool)
    )
    with tempfile.TemporaryDirectory(prefix="pcgr-submit-") as folder:
        console.print(f"[bold]{escape(arguments.file.name)}[/]")
        tarball, sample = prepare(arguments, Path(folder), console)
        shutil.rmtree(Path(folder) / "look")
        sample, source = send(place, arguments, tarball, sample, console)
    console.print(f"[green]✔[/] {place.address(sample.input_key)}")
    console.print(f"  result: {place.address(sample.result_key)}")
    return wait(place, sample, source, arguments, console) if arguments.wait else 0


def main() -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments()
    console = Console(highlight=False, soft_wrap=True)
    try:
        return run(arguments, console)
    except (pcgr_client.Refused, NameRefused) as refusal:
        print(f"submit: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("submit: interrupted", file=sys.stderr)
        return 130
