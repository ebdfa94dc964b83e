"""Chooses spot capacity for samples, and says how sure that is.

    pcgr-spot -r ap-southeast-2                          ask AWS, rank pools
    pcgr-spot --history prices.json --advisor advisor.json --on-demand od.json --deadline 12
    pcgr-spot --mode legacy -r R -p Linux/UNIX -b m5.large:0.06    as get_spot_duration.py
    pcgr-spot record prices.json -r ap-southeast-2       store prices, add to them later
    pcgr-spot backtest                                   how good the advice would have been

Exit codes: 0 shown, 2 refused (one line says why), 130 interrupted, 129 or 143 ended by SIGHUP or SIGTERM. Details: docs/spot.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ansible_collections.umccr.pcgr.plugins.module_utils._spot import advice as spot
from ansible_collections.umccr.pcgr.plugins.module_utils._spot import api as spot_api
from ansible_collections.umccr.pcgr.plugins.module_utils._spot import history as spot_history
from ansible_collections.umccr.pcgr.plugins.module_utils._spot import legacy as spot_legacy
from ansible_collections.umccr.pcgr.plugins.module_utils._spot import record as spot_record
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.choice import Request
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.estimate import Work
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.evidence import Evidence
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.history import HOUR
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.log import SpotError, parse_time
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.reader import read_history
from rich.progress import Progress, SpinnerColumn, TextColumn

from umccr_pcgr.client import cli as pcgr_cli
from umccr_pcgr.spot import output as spot_output


def moment(text: str) -> float:
    """Argument type: an ISO 8601 time as seconds since 1970."""
    try:
        return parse_time(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, allowed an ISO 8601 time such as 2026-11-23T00:00:00Z"
        ) from None


def above_zero(kind: Callable[[str], float]) -> Callable[[str], float]:
    """Argument type: a number above 0, of the given kind."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = -1
        if not 0 < value < 1e9:
            raise argparse.ArgumentTypeError(f"found {text!r}, allowed a {'whole ' * (kind is int)}number above 0")
        return value

    return parse


def names(text: str) -> list[str]:
    """Argument type: names separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


number, count = above_zero(float), above_zero(int)


def common(parser: argparse._ActionsContainer) -> None:
    """Add the options that ranking and recording share."""
    parser.add_argument("-r", "--region", type=names, action="extend", default=[], metavar="R[,R]", help="AWS regions")
    parser.add_argument("-p", "--product-description", metavar="P", help="product (default: Linux/UNIX)")
    parser.add_argument(
        "-t", "--types", type=names, action="extend", default=[], metavar="T[,T]", help="instance types"
    )
    parser.add_argument("--now", type=moment, metavar="TIME", help="moment of evaluation (default: now)")
    parser.add_argument("--profile", metavar="NAME", help="profile of the AWS configuration")


def rank_parser() -> argparse.ArgumentParser:
    """The parser of the command without a subcommand."""
    parser = pcgr_cli.Parser(
        prog="pcgr-spot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        usage=argparse.SUPPRESS,
    )
    what = parser.add_argument_group("what to look at")
    common(what)
    what.add_argument("--vcpus", type=count, default=0, metavar="N", help="instead of types: at least so many,")
    what.add_argument("--memory-gib", type=number, default=0, metavar="G", help="... so much memory")
    what.add_argument("--disk-gb", type=number, default=0, metavar="G", help="... and local disk")
    what.add_argument("--days", type=number, default=90, metavar="D", help="window of prices (default: 90)")
    known = parser.add_argument_group("what is known (files; each may be missing, and the output says so)")
    known.add_argument(
        "--history",
        action="append",
        default=[],
        metavar="FILE",
        help="prices, as describe-spot-price-history gives them; no account needed",
    )
    known.add_argument("--on-demand", metavar="FILE", help='on-demand prices: {"m5.large": 0.12}')
    known.add_argument("--advisor", metavar="FILE", help="spot-advisor-data.json: interruption classes, sizes")
    known.add_argument("--advisor-date", metavar="DAY", help="its date (default: the file's)")
    known.add_argument("--scores", metavar="FILE", help="output of get-spot-placement-scores")
    known.add_argument("--placement-scores", action="store_true", help="ask AWS for them")
    known.add_argument("--types-file", metavar="FILE", help="output of describe-instance-types")
    known.add_argument("--log", metavar="FILE", help="own launches and interruptions (aws_spot_log)")
    work = parser.add_argument_group("the work")
    work.add_argument("--sample-hours", type=number, metavar="H", help="of one sample (default: from the log, else 1)")
    work.add_argument("--samples", type=count, default=1, metavar="N")
    work.add_argument("--machines", type=count, default=1, metavar="N")
    work.add_argument("--side-by-side", type=count, default=1, metavar="N", help="samples at a time on an instance")
    work.add_argument("--deadline", type=number, metavar="H", help="all samples done within so many hours")
    work.add_argument("--overhead", type=number, default=0.25, metavar="H", help="until a fresh instance works (0.25)")
    work.add_argument("--losses", type=count, default=3, metavar="K", help="then a sample runs on demand (3)")
    work.add_argument("--target", type=number, default=0.9, metavar="P", help="odds that are good enough (0.9)")
    work.add_argument("--max-price", type=number, metavar="USD", help="a cap, to see what it would do (default: none)")
    shown = parser.add_argument_group("output")
    shown.add_argument("--format", choices=["table", "json", "csv", "tsv"], default="table")
    shown.add_argument("--top", type=pcgr_cli.whole(0), default=20, metavar="N", help="rows shown, 0: all (20)")
    shown.add_argument("--plot", metavar="FILE", help="picture (png, svg, pdf): prices, cost against odds")
    shown.add_argument("--explain", action="store_true", help="say how the figures come about")
    shown.add_argument("-h", "--help", action="help", help="show this")
    old = parser.add_argument_group("--mode legacy: hours since the price was last above a bid")
    old.add_argument("--mode", choices=["rank", "legacy"], default="rank")
    old.add_argument("-b", "--bids", metavar="T:USD[,T:USD]")
    old.add_argument("--hours", type=count, default=168, metavar="H", help="window (default: 168)")
    old.add_argument("--exact", action="store_true", help="the old script's arithmetic, for comparison")
    return parser


def run(argv: list[str]) -> int:
    """Do what the command line says; returns the exit code."""
    if argv[:1] == ["record"]:
        run_record(argv[1:])
    elif argv[:1] == ["backtest"]:
        run_backtest(argv[1:])
    else:
        arguments = rank_parser().parse_args(argv)
        pcgr_cli.check_endpoint_variables(os.environ, SpotError)
        (run_legacy if arguments.mode == "legacy" else run_rank)(arguments)
    return 0


@contextmanager
def fetching(console: pcgr_cli.Console) -> Iterator[spot_api.Progress]:
    """Shows on stderr how many records have come from each region."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.completed:,} prices"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress_bar:
        tasks: dict[str, int] = {}

        def show_count(region: str, so_far: int) -> None:
            if region not in tasks:
                tasks[region] = int(progress_bar.add_task(region, total=None))
            progress_bar.update(tasks[region], completed=so_far)  # type: ignore[arg-type]

        yield show_count


def run_rank(arguments: argparse.Namespace) -> None:
    """Rank pools and show the choice."""
    if arguments.bids or arguments.exact:
        raise SpotError("--bids and --exact go with --mode legacy")
    work = Work(
        arguments.sample_hours or 1.0,
        arguments.samples,
        arguments.machines,
        arguments.side_by_side,
        arguments.overhead,
        arguments.losses,
        arguments.deadline,
    )
    product = spot_history.plain_product(arguments.product_description or "Linux/UNIX")
    request = Request(tuple(arguments.types), tuple(arguments.region), product, "x86_64", arguments.vcpus, arguments.memory_gib, arguments.disk_gb,
                      arguments.sample_hours, work, arguments.target, arguments.days, arguments.max_price)  # fmt: skip
    inputs = spot.Inputs(tuple(arguments.history), arguments.on_demand, arguments.advisor, arguments.advisor_date, arguments.scores,
                         arguments.types_file, arguments.log, arguments.profile, arguments.placement_scores)  # fmt: skip
    if arguments.plot:
        from umccr_pcgr.spot import plot as spot_plot

        spot_plot.check(arguments.plot)
    with fetching(pcgr_cli.Console(stderr=True)) as show_count:
        choice, found = spot.decide(inputs, request, arguments.now or time.time(), show_count)
    console = pcgr_cli.Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160  # a pipe has no width of its own
    spot_output.show(choice, arguments.format, arguments.top, console)
    if arguments.explain:
        print(spot_output.explain(choice), file=sys.stdout if arguments.format == "table" else sys.stderr)
    if arguments.plot:
        spot_plot.draw(choice, found.histories, found.request, arguments.plot)


def run_legacy(arguments: argparse.Namespace) -> None:
    """Show the hours since the price was last above a bid."""
    for name, value in (("--product-description", arguments.product_description), ("--bids", arguments.bids)):
        if not value:
            raise SpotError(
                f"{name} is missing" + (f"; allowed: {', '.join(spot_legacy.PRODUCTS)}" if "product" in name else "")
            )
    if arguments.product_description not in spot_legacy.PRODUCTS:
        raise SpotError(
            f"--product-description: found {arguments.product_description!r}, allowed: {', '.join(spot_legacy.PRODUCTS)}"
        )
    bids = spot_legacy.parse_bids(arguments.bids)
    product = spot_history.plain_product(arguments.product_description)
    now = arguments.now or time.time()
    types = list(dict.fromkeys(kind for kind, _bid in bids))
    zones: set[str] = set()
    if arguments.history:
        histories = [read_history(path) for path in arguments.history]
    elif len(arguments.region) == 1:
        account = spot_api.Account(arguments.profile)
        account.check(arguments.region)
        evidence = Evidence()
        spot_api.add_zones(evidence, account, arguments.region[0])
        zones = set(evidence.zones)
        start = now - arguments.hours * HOUR
        with fetching(pcgr_cli.Console(stderr=True)) as show_count:
            records = spot_api.price_history(
                account,
                arguments.region,
                types=types,
                product=arguments.product_description,
                start=start,
                end=now,
                progress=show_count,
            )
        histories = [spot_history.from_records(found) for found in records.values()]
    else:
        raise SpotError("--mode legacy takes one --region (or --history FILE)")
    histories = [spot_history.only(history, arguments.region, product) for history in histories]
    rows = []
    for history in histories:
        count_hours = spot_legacy.exact_durations if arguments.exact else spot_legacy.durations
        rows += count_hours(history, bids, hours=arguments.hours, now=now)
        zones |= {pool.zone for pool in history.pools}
    print(spot_legacy.render(spot_legacy.order(rows, exact=arguments.exact)))
    for kind in types:
        missing = zones - {zone for _hours, of, zone in rows if of == kind}
        if missing:
            print(f"pcgr-spot: {kind}: no price known in {', '.join(sorted(missing))}", file=sys.stderr)
        if not arguments.exact and len(prices := [bid for of, bid in bids if of == kind]) > 1:
            print(
                f"pcgr-spot: {kind}: {len(prices)} bids; in each zone the longer time is the higher bid's",
                file=sys.stderr,
            )
    print(
        f"pcgr-spot: hours end at the window's {arguments.hours} and say nothing about capacity, which is what interrupts machines",
        file=sys.stderr,
    )


def run_record(argv: list[str]) -> None:
    """Store prices in a file, or add the new ones."""
    parser = pcgr_cli.Parser(
        prog="pcgr-spot record",
        description="Stores spot prices in FILE; run again, it adds what is new, without gaps or repeats (AWS keeps 90 days).",
    )
    parser.add_argument("file", metavar="FILE")
    common(parser)
    arguments = parser.parse_args(argv)
    pcgr_cli.check_endpoint_variables(os.environ, SpotError)
    if not arguments.region:
        raise SpotError("--region is missing")
    account = spot_api.Account(arguments.profile)
    account.check(arguments.region)
    product = spot_history.plain_product(arguments.product_description or "Linux/UNIX")
    with fetching(pcgr_cli.Console(stderr=True)) as show_count:
        for region in arguments.region:
            before, after = spot_record.record(
                arguments.file,
                account,
                region,
                types=arguments.types,
                product=product,
                now=arguments.now or time.time(),
                progress=show_count,
            )
            print(f"{arguments.file}: {region}: {after - before:,} new prices, {after:,} in all")


def run_backtest(argv: list[str]) -> None:
    """Compare the advice with simple strategies on synthetic and recorded markets."""
    from umccr_pcgr.spot import backtest as spot_backtest

    parser = pcgr_cli.Parser(
        prog="pcgr-spot backtest",
        description=spot_backtest.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    spot_backtest.add_arguments(parser)
    spot_backtest.run(parser.parse_args(argv))


def main() -> int:
    """Entry point of `pcgr-spot`; returns the exit code."""
    return pcgr_cli.run("pcgr-spot", lambda: run(sys.argv[1:]), (SpotError,), closed=0)
