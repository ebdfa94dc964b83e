# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Spot choice from end to end: gathers the evidence, from files or from AWS, and ranks. Serves the command and the lookup."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from . import api
from .choice import Choice, Request, choose, meets
from .evidence import Evidence, add_advisor, add_log, add_on_demand, add_scores, add_types, read_json
from .history import HOUR, History, from_records, price_at
from .log import SpotError, instance_runs, interruptions_in_a_row, read_log, spent_on_demand
from .price_list import PRICE_LIST_REGION
from .reader import read_history

DEFAULT_SIZE = (4, 16)  # vCPUs and GiB asked for when nothing is said; PCGR wants about 8 GB for a whole-genome sample
LARGEST = 4  # times the vCPUs asked for: larger types are not fetched
MOST_LISTED = 60  # types whose on-demand price is looked up


@dataclass(frozen=True)
class Inputs:
    """Where to look. ``histories`` are files; without one, AWS is asked. All others are files and may be None."""

    histories: tuple[str, ...] = ()
    on_demand: str | None = None
    advisor: str | None = None
    advisor_date: str | None = None
    scores: str | None = None
    types_file: str | None = None
    log: str | None = None
    profile: str | None = None
    placement_scores: bool = False


@dataclass
class Gathered:
    """What was found, ready to rank."""

    histories: list[History]
    evidence: Evidence
    request: Request
    notes: list[str]


def gather(inputs: Inputs, request: Request, now: float, progress: api.Progress | None = None) -> Gathered:
    """Read the files or ask AWS; ``SpotError`` of one line when something needed is missing."""
    found = Gathered([], Evidence(), request, [])
    evidence = found.evidence
    if inputs.types_file:
        entries = read_json(inputs.types_file, "output of aws ec2 describe-instance-types")
        add_types(
            evidence, entries.get("InstanceTypes", []) if isinstance(entries, dict) else entries, inputs.types_file
        )
    if inputs.advisor:
        add_advisor(evidence, inputs.advisor, inputs.advisor_date, request.product)
    if inputs.scores:
        add_scores(evidence, inputs.scores)
    if inputs.log:
        events = read_log(inputs.log)
        add_log(evidence, events, instance_runs(events, now), inputs.log)
    if inputs.histories:
        found.histories = [read_history(path) for path in inputs.histories]
        evidence.sources["price"] = ", ".join(inputs.histories)
    else:
        _ask(found, inputs, now, progress)
    if inputs.on_demand:
        regions = {pool.region for history in found.histories for pool in history.pools} | set(request.regions)
        add_on_demand(evidence, inputs.on_demand, sorted(regions))
    return found


def decide(
    inputs: Inputs, request: Request, now: float, progress: api.Progress | None = None
) -> tuple[Choice, Gathered]:
    """The choice, and what it was made from."""
    found = gather(inputs, request, now, progress)
    choice = choose(found.histories, found.evidence, found.request, now)
    choice.notes = found.notes + choice.notes
    return choice, found


@dataclass(frozen=True)
class Budget:
    """When an instance of ``name`` is launched on demand: after so many ``interruptions`` in a row within a day, as long as the
    on-demand instances of that name cost less than ``usd`` in 30 days, this one for ``hours`` included."""

    name: str
    interruptions: int
    usd: float
    hours: float


@dataclass(frozen=True)
class Market:
    """Where to launch: on ``spot`` or not, the type for on demand (None: not allowed or not known), and why."""

    spot: bool
    on_demand_type: str | None
    why: list[str]


def market(choice: Choice, evidence: Evidence, budget: Budget, now: float) -> Market:
    """Spot or on demand, by our own log and the budget."""
    interruptions = interruptions_in_a_row(evidence.runs, budget.name, now)
    best = choice.rows[0]
    share = f", {best.share:.0%} of on demand" if best.share else ""
    why = [
        f"{len(choice.pools)} spot pools of {len({pool.type for pool in choice.pools})} types in "
        f"{len({pool.zone for pool in choice.pools})} zones; best {best.pool.type} in {best.pool.zone}, {best.price:.4f} US dollars per hour"
        f"{share}, rests on {', '.join(best.rests_on)}",
        *choice.notes,
        f"interrupted {interruptions} times in a row within a day; on demand after {budget.interruptions}",
    ]
    known = [(row.on_demand, row.pool.type) for row in choice.rows if row.on_demand]
    if not budget.usd:
        return Market(True, None, [*why, "never on demand: no budget for it"])
    if not known:
        return Market(True, None, [*why, "never on demand: its price is not known"])
    price, kind = min(known)
    spent = spent_on_demand(evidence.runs, budget.name, now, {of: dollars for dollars, of in known})
    cost = price * budget.hours
    what = f"{kind} for {budget.hours:g} h would cost {cost:.2f} US dollars on demand, {spent:.2f} of {budget.usd:.2f} spent in 30 days"
    if spent + cost > budget.usd:
        return Market(True, None, [*why, f"not on demand: {what}"])
    return Market(
        interruptions < budget.interruptions and bool(choice.pools), kind, [*why, f"on demand is in the budget: {what}"]
    )


def _ask(found: Gathered, inputs: Inputs, now: float, progress: api.Progress | None) -> None:
    request, evidence = found.request, found.evidence
    regions = list(request.regions)
    if not regions:
        raise SpotError("--region is missing (or give --history FILE)")
    account = api.Account(inputs.profile)
    account.check(regions)
    if not request.types:
        if not (request.vcpus or request.memory_gib or request.disk_gb):
            request = replace(request, vcpus=DEFAULT_SIZE[0], memory_gib=DEFAULT_SIZE[1])
            found.notes.append(
                f"no types and no size named: at least {request.vcpus} vCPUs and {request.memory_gib:g} GiB taken"
            )
        for region in regions:
            api.add_sizes(evidence, account, region, [])
        most = LARGEST * request.vcpus or 1 << 20
        names = tuple(
            kind
            for kind, specs in evidence.specs.items()
            if meets(request, kind, evidence.specs) and specs.vcpus <= most
        )
        if not names:
            raise SpotError(
                f"no type has {request.vcpus} vCPUs, {request.memory_gib:g} GiB and {request.disk_gb:g} GB of local disk"
            )
        request = replace(request, types=names)
    found.request = request
    for region in regions:
        api.add_zones(evidence, account, region)
    start = now - request.days * 24 * HOUR
    records = api.price_history(
        account, regions, types=list(request.types), product=request.product, start=start, end=now, progress=progress
    )
    found.histories = [from_records(records[region]) for region in regions]
    evidence.sources["price"] = f"DescribeSpotPriceHistory now, {sum(map(len, records.values()))} records"
    if not inputs.on_demand:
        _price_lists(found, account, regions, now)
    if inputs.placement_scores:
        for region in regions:
            try:
                api.add_placement_scores(evidence, account, region, list(request.types), request.work.machines)
            except SpotError as error:
                found.notes.append(f"no placement scores: {error}")


def _price_lists(found: Gathered, account: api.Account, regions: list[str], now: float) -> None:
    """On-demand prices of the cheapest types. Without the right to ask, the choice is made without them, and says so."""
    jobs: list[tuple[str, str]] = []
    for region, history in zip(regions, found.histories, strict=True):
        cheapest: dict[str, float] = {}
        for index, pool in enumerate(history.pools):
            price = price_at(*history.series(index), now)
            if price is not None:
                cheapest[pool.type] = min(price, cheapest.get(pool.type, price))
        jobs += [(region, kind) for kind in sorted(cheapest, key=cheapest.__getitem__)[:MOST_LISTED]]
    if not jobs:
        return

    def ask(job: tuple[str, str]) -> None:
        api.add_price_list(found.evidence, client, job[0], job[1], found.request.product)

    client: Any = account.client("pricing", PRICE_LIST_REGION)
    try:
        ask(jobs[0])  # a missing right is met once, not sixty times
        with ThreadPoolExecutor(api.PARALLEL) as askers:
            list(askers.map(ask, jobs[1:]))
    except SpotError as error:
        found.notes.append(f"no on-demand prices: {error}")
