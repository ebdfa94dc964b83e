# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ranks spot pools by odds and cost, and picks the diversified set to launch from."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from .estimate import (
    ENOUGH,
    Hazard,
    Interval,
    Work,
    batch_odds,
    cost_per_sample,
    kaplan_meier,
    prior,
    wilson,
)
from .evidence import Evidence, Specs, architecture
from .history import HOUR, History, Pool, quantiles, spans, windows_below
from .log import SpotError, stamp

FAMILIES = 3  # least number of instance families in the set
ASSUMED_HOURS = 1.0  # of a sample when neither the user nor our own log says
NO_CAP = (
    "none: unset, the cap is the on-demand price; a lower one wins no capacity and only adds interruptions "
    "(AWS advises against it)"
)
NO_CAPACITY = "price only: nothing here says how often instances are interrupted; a price history cannot (interruption is about capacity)"


@dataclass(frozen=True)
class Request:
    """What is requested. ``types`` empty: every type that meets ``vcpus``, ``memory_gib`` and ``disk_gb``."""

    types: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    product: str = "Linux/UNIX"
    architecture: str = "x86_64"  # PCGR's container image is built for it
    vcpus: int = 0
    memory_gib: float = 0
    disk_gb: float = 0
    sample_hours: float | None = None
    work: Work = field(default_factory=lambda: Work(hours=ASSUMED_HOURS))  # its hours are replaced
    target: float = 0.9  # odds from which a pool counts as feasible
    days: float = 90
    cap: float | None = None
    set_types: int = 10


@dataclass
class Row:
    """One pool. Prices are US dollars per hour over the window, odds are probabilities, intervals hold 90 %."""

    pool: Pool
    price: float
    mean: float
    p50: float
    p95: float
    changes: int
    days: float
    on_demand: float | None
    share: float | None
    interruption_class: str | None
    score: int | None
    own_hours: float
    own_interruptions: int
    hazard: Interval | None
    uninterrupted: Interval | None
    by_deadline: Interval | None
    below_cap: Interval | None
    windows: int
    cost: Interval
    rests_on: list[str]
    feasible: bool | None

    def as_json(self) -> dict[str, Any]:
        """The row as plain data; intervals become mappings."""
        found = {
            **self.pool._asdict(),
            "region": self.pool.region,
            **{k: v for k, v in asdict(self).items() if k != "pool"},
        }
        return {k: v._asdict() if isinstance(v, Interval) else v for k, v in found.items()}


@dataclass
class Choice:
    """Ranked rows, the recommended set, and what to say about both."""

    rows: list[Row]
    pools: list[Pool]
    maximum_price: float | None
    work: Work
    sample_from: str
    now: float
    sources: dict[str, str]
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The choice as plain data."""
        return {
            "now": stamp(self.now),
            "work": {**self.work._asdict(), "hours_from": self.sample_from},
            "sources": self.sources,
            "rows": [{"rank": rank, **row.as_json()} for rank, row in enumerate(self.rows, 1)],
            "set": [{"type": pool.type, "zone": pool.zone, "zone_id": pool.zone_id} for pool in self.pools],
            "maximum_price": self.maximum_price,
            "maximum_price_because": NO_CAP if self.maximum_price is None else "as asked",
            "notes": self.notes,
        }


def meets(request: Request, kind: str, specs: dict[str, Specs]) -> bool:
    """Whether a type is among those requested, or meets the requirements; one of unknown size meets none."""
    known = specs.get(kind)
    if (known.architecture if known else architecture(kind)) != request.architecture:
        return False
    if request.types and kind not in request.types:
        return False
    if not (request.vcpus or request.memory_gib or request.disk_gb):
        return True
    if known is None:
        return False
    enough = [known.vcpus >= request.vcpus, known.memory_gib >= request.memory_gib]
    enough.append((known.disk_gb or 0) >= request.disk_gb)
    return all(enough)


def choose(histories: list[History], evidence: Evidence, request: Request, now: float) -> Choice:
    """Rank all pools that meet the request and pick the set; ``SpotError`` when none does."""
    work, sample_from = _work(evidence, request)
    spot_hours, interruptions = _own(evidence, None, None)
    rows = []
    for history in histories:
        for index, pool in enumerate(history.pools):
            if pool.product != request.product or not meets(request, pool.type, evidence.specs):
                continue
            if request.regions and pool.region and pool.region not in request.regions:
                continue
            row = _row(history, index, evidence, request, work, now=now, prior_own=(spot_hours, interruptions))
            if row is not None:
                rows.append(row)
    if not rows:
        raise SpotError(_nothing(histories, request))
    rows.sort(key=lambda row: (row.feasible is False, row.cost.mean, -(row.score or 0)))
    choice = Choice(rows, [], request.cap, work, sample_from, now, evidence.sources)
    _pick(choice, evidence, request)
    _notes(choice, evidence, request)
    return choice


def _nothing(histories: list[History], request: Request) -> str:
    pools = {pool for history in histories for pool in history.pools}
    if not pools:
        return "the price history is empty: no such type or product in these regions, or no price in the window"
    for name, wanted, found in (
        ("product", {request.product}, {pool.product for pool in pools}),
        ("type", set(request.types), {pool.type for pool in pools}),
        ("region", set(request.regions), {pool.region for pool in pools}),
    ):
        if wanted and not wanted & found:
            some = sorted(found)[:6]
            return f"no price of {name} {', '.join(sorted(wanted))}; the history has {', '.join(some)}{', …' * (len(found) > 6)}"
    if request.vcpus or request.memory_gib or request.disk_gb:
        return (
            f"no type with {request.vcpus} vCPUs, {request.memory_gib:g} GiB and {request.disk_gb:g} GB of local disk ({request.architecture}) "
            "is known in the history; sizes come from --types-file, --advisor or the API"
        )
    return f"no price of such a pool ({request.architecture}) at that moment"


def _work(evidence: Evidence, request: Request) -> tuple[Work, str]:
    if request.sample_hours:
        return request.work._replace(hours=request.sample_hours), "given"
    if evidence.sample_hours:
        hours = statistics.median(evidence.sample_hours)
        return request.work._replace(hours=hours), f"median of {len(evidence.sample_hours)} samples in our own log"
    return request.work._replace(hours=ASSUMED_HOURS), "assumed"


def _own(evidence: Evidence, kind: str | None, zone: str | None) -> tuple[float, int]:
    """Hours and interruptions of our own spot instances, of one pool or of all."""
    found = [
        run for run in evidence.runs if run.market == "spot" and (kind is None or (run.type, run.zone) == (kind, zone))
    ]
    return sum(run.hours for run in found), sum(run.interrupted for run in found)


def _row(
    history: History,
    index: int,
    evidence: Evidence,
    request: Request,
    work: Work,
    *,
    now: float,
    prior_own: tuple[float, int],
) -> Row | None:
    pool = history.pools[index]
    time, price = history.series(index)
    start = now - request.days * 24 * HOUR
    seconds, prices = spans(time, price, start, now)
    if not len(prices):
        return None
    p50, p95 = quantiles(seconds, prices, 0.5, 0.95)
    known = float(seconds.sum())
    mean = float(seconds @ prices) / known if known else float(prices[-1])
    region = pool.region or next(iter(request.regions), "")
    on_demand = evidence.on_demand.get((region, pool.type))
    label = evidence.classes.get((region, pool.type))
    score = evidence.scores.get(pool.zone_id or evidence.zones.get(pool.zone, ""), evidence.scores.get(region))
    own_hours, own_interruptions = _own(evidence, pool.type, pool.zone)
    hazard = prior(label, *prior_own)
    rests_on = [f"price {known / HOUR / 24:.0f} d"]
    if hazard is not None:
        hazard = hazard.updated(own_interruptions, own_hours)
        rests_on += [f"class {label}"] if label else ["all our instances"]
    if own_hours:
        rests_on.append(f"own {own_hours:.0f} h, {own_interruptions} interrupted")
    if on_demand is None:
        rests_on.append("no on-demand price")
    uninterrupted = _survival(evidence, pool, hazard, own_interruptions, work.hours)
    by_deadline = batch_odds(hazard, work) if hazard and work.deadline is not None else None
    odds = by_deadline or uninterrupted
    block = work.deadline or work.hours
    stayed, windows = (
        windows_below(time, price, request.cap, block, start=start, now=now) if request.cap is not None else (0, 0)
    )
    return Row(
        pool._replace(zone_id=pool.zone_id or evidence.zones.get(pool.zone, "")),
        float(prices[-1]), mean, p50, p95,
        changes=len(prices) - 1,
        days=known / HOUR / 24,
        on_demand=on_demand,
        share=float(prices[-1]) / on_demand if on_demand else None,
        interruption_class=label,
        score=score,
        own_hours=own_hours,
        own_interruptions=own_interruptions,
        hazard=hazard.interval() if hazard else None,
        uninterrupted=uninterrupted,
        by_deadline=by_deadline,
        below_cap=wilson(stayed, windows),
        windows=windows,
        cost=cost_per_sample(hazard, work, mean, on_demand, p95),
        rests_on=rests_on,
        feasible=None if odds is None else odds.mean >= request.target,
    )  # fmt: skip


def _survival(
    evidence: Evidence, pool: Pool, hazard: Hazard | None, interruptions: int, hours: float
) -> Interval | None:
    if interruptions >= ENOUGH:
        mine = [run for run in evidence.runs if run.market == "spot" and (run.type, run.zone) == (pool.type, pool.zone)]
        if max(run.hours for run in mine) >= hours:
            return kaplan_meier([run.hours for run in mine], [run.interrupted for run in mine], hours)
    return hazard.survival(hours) if hazard else None


def _pick(choice: Choice, evidence: Evidence, request: Request) -> None:
    """The set: whole types in order of rank, all their zones, until there are enough; the last ones make room for missing families.

    A pool is left out only when on demand beats it: dearer than the cheapest on-demand price, and not safer.
    """
    demands = [row.on_demand for row in choice.rows if row.on_demand]
    limit = min(demands) if demands else None
    good = [row for row in choice.rows if limit is None or row.price < limit]
    if request.cap is not None:
        good = [row for row in good if row.price <= request.cap]
    kinds = list(dict.fromkeys(row.pool.type for row in good))
    chosen = kinds[: request.set_types]
    first = request.set_types
    for kind in kinds[first:]:
        families = [one.partition(".")[0] for one in chosen]
        if len(set(families)) >= min(FAMILIES, len(chosen)):
            break
        if kind.partition(".")[0] not in families:
            double = max(index for index, family in enumerate(families) if families.count(family) > 1)
            del chosen[double]
            chosen.append(kind)
    choice.pools = [row.pool for row in good if row.pool.type in chosen]


def _notes(choice: Choice, evidence: Evidence, request: Request) -> None:
    notes = choice.notes
    if all(row.hazard is None for row in choice.rows):
        notes.append(NO_CAPACITY)
    families = {pool.family for pool in choice.pools}
    if not choice.pools:
        notes.append("no set: every pool costs more than on demand, or more than the cap")
    elif len(families) < FAMILIES:
        notes.append(
            f"the set has {len(families)} of at least {FAMILIES} instance families: name more types, or requirements"
        )
    seen = {row.pool.zone for row in choice.rows}
    empty = sorted(zone for zone in evidence.zones if zone not in seen)
    if empty:
        notes.append(f"no price in {', '.join(empty)}: these types are not offered there")
    left = seen - {pool.zone for pool in choice.pools}
    if choice.pools and left:
        notes.append(f"not in the set: {', '.join(sorted(left))}, where on demand or the cap beats every pool")
    if not evidence.on_demand:
        notes.append(
            "no on-demand price: shares of it, and costs after the last interruption, are unknown (counted at the spot price)"
        )
    if choice.sample_from == "assumed":
        notes.append(f"a sample is assumed to take {choice.work.hours:g} h; say --sample-hours")
    if request.cap is not None:
        lost = sum(row.below_cap is not None and row.below_cap.mean < 1 for row in choice.rows)
        notes.append(
            f"the cap would have terminated instances in {lost} of {len(choice.rows)} pools at times when no cap would have"
        )
