"""How good the advice would have been: walk forward, decide with what was known, score by what came.

Synthetic worlds with known truth, always; with --history FILE recorded prices (they know nothing of interruptions, so only costs
are scored), with --traces DIR recorded availability (files {"metadata": {"gap_seconds": s}, "data": [1, 0, ...]}, one per pool).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.choice import Request, choose
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.estimate import CLASSES, OWN_WEIGHT, Hazard, Work
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.evidence import Evidence
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.history import (
    HOUR,
    History,
    Pool,
    hours_since_above,
    price_at,
    spans,
)
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.log import InstanceRun, SpotError
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.reader import read_history
from rich.console import Console
from rich.progress import track
from rich.table import Table

DAYS, WARM_UP = 60, 14  # of a world; decisions begin after the warm-up
SAMPLE, DEADLINE, OVERHEAD, LOSSES = 3.0, 5.0, 0.25, 3  # hours, and interruptions after which a sample runs on demand
STEP = 8.0  # hours between decisions: no two overlap
ZONES, KINDS = 3, 8
BOOTSTRAPS = 1000
CLOSE = 0.01  # probabilities are kept so far from 0 and 1 for the log loss


@dataclass
class World:
    """Prices, and for each pool the hours at which an instance running there is interrupted."""

    name: str
    history: History
    interruptions: list[np.ndarray]
    evidence: Evidence
    seen: History | None = None  # what strategies get to see, when it is not all


def price_steps(chance: np.random.Generator, base: float, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Changes about twice a day that wander around ``base``, as recorded prices of 2021 do."""
    times = np.sort(chance.uniform(0, DAYS * 24, DAYS * 2))
    levels = np.clip(np.cumsum(chance.normal(0, spread / 6, len(times))), -spread, spread)
    return np.append(-24.0, times), np.round(base * np.append(1.0, 1 + levels), 6)


def world(name: str, seed: int) -> World:
    """One of WORLDS."""
    chance = np.random.default_rng([seed, WORLDS.index(name)])
    hours = DAYS * 24
    outages = (
        [np.sort(chance.uniform(0, hours, chance.poisson(hours / 120))) for _unused in range(ZONES)]
        if name == "zone outages"
        else None
    )
    pools, times, prices, interruptions, evidence = [], [], [], [], Evidence()
    for kind in range(KINDS):
        demand = float(chance.uniform(0.18, 0.30))
        rate_of_kind = math.exp(chance.uniform(math.log(0.002), math.log(0.12)))
        evidence.on_demand["ap-southeast-2", f"f{kind}.xlarge"] = demand
        for zone in range(ZONES):
            rate = rate_of_kind * math.exp(chance.normal(0, 0.5))
            base = demand * float(chance.uniform(0.30, 0.50))
            time, price = price_steps(chance, base, 0.0 if name == "flat price, capacity lost" else 0.05)
            lost = np.sort(chance.uniform(0, hours, chance.poisson(rate * hours)))
            if name == "regime change":  # half-way every pool gets another's rate
                other = math.exp(chance.uniform(math.log(0.002), math.log(0.12)))
                lost = np.append(
                    lost[lost < hours / 2], np.sort(chance.uniform(hours / 2, hours, chance.poisson(other * hours / 2)))
                )
            elif name == "spiky prices":  # instances are interrupted when the price passes the cap, and only then
                begins = np.sort(chance.uniform(0, hours, chance.poisson(rate * hours)))
                ends = begins + chance.exponential(2.0, len(begins))
                time = np.concatenate((time, begins, ends))
                price = np.concatenate((price, np.full(len(begins), demand * 3), np.full(len(ends), base)))
                order = np.argsort(time)
                time, price, lost = time[order], price[order], begins
            elif outages:
                lost = np.sort(np.concatenate((lost, outages[zone])))
            pools.append(Pool(f"ap-southeast-2{'abc'[zone]}", f"f{kind}.xlarge", "Linux/UNIX"))
            times.append(time * HOUR)
            prices.append(price)
            interruptions.append(lost)
        middle = 1 - math.exp(
            -rate_of_kind * 24
        )  # the class is of the type, over all zones, and knows the first half only
        evidence.classes["ap-southeast-2", f"f{kind}.xlarge"] = min(
            CLASSES, key=lambda label: abs(CLASSES[label] - middle)
        )
    bounds = np.append(0, np.cumsum([len(time) for time in times]))
    history = History(pools, bounds, np.concatenate(times), np.concatenate(prices), {})
    found = World(name, history, interruptions, evidence)
    if name == "missing and late data":
        keep = chance.random(len(history.time)) > 0.5
        keep[bounds[:-1]] = True
        late = history.time + 6 * HOUR  # half of the records never come, the others six hours late
        counts = np.append(0, np.cumsum([keep[a:b].sum() for a, b in itertools.pairwise(bounds)]))
        found.seen = History(pools, counts, late[keep], history.price[keep], {})
        for key in list(evidence.classes)[::2]:
            del evidence.classes[key]
    return found


WORLDS = ["calm", "spiky prices", "flat price, capacity lost", "regime change", "zone outages", "missing and late data"]

# ---- strategies: which pool at a moment (hours), and the odds that a sample survives there; None is on demand

Pick = tuple[int | None, float | None]


@dataclass
class State:
    """What a strategy may look at: the history up to now, and the runs of its own instances."""

    world: World
    chance: np.random.Generator
    runs: list[InstanceRun] = field(default_factory=list)

    @property
    def history(self) -> History:
        """The prices that strategies may see."""
        return self.world.seen or self.world.history

    def now_prices(self, now: float) -> np.ndarray:
        """The price in force of each pool at a moment (hours); infinite where unknown."""
        found = [price_at(*self.history.series(index), now * HOUR) for index in range(len(self.history.pools))]
        return np.array([math.inf if price is None else price for price in found])

    def demand(self, index: int) -> float:
        """On-demand price of a pool's type; infinite where unknown."""
        pool = self.history.pools[index]
        return self.world.evidence.on_demand.get((pool.region, pool.type), math.inf)


def at_random(state: State, now: float) -> Pick:
    """Any pool with a known price."""
    return int(state.chance.choice(np.flatnonzero(np.isfinite(state.now_prices(now))))), None


def cheapest_now(state: State, now: float) -> Pick:
    """The pool with the lowest price at the moment."""
    return int(np.argmin(state.now_prices(now))), None


def lowest_mean(state: State, now: float) -> Pick:
    """The pool with the lowest mean price of the last 30 days."""

    def mean(index: int) -> float:
        seconds, price = spans(*state.history.series(index), (now - 24 * 30) * HOUR, now * HOUR)
        return float(seconds @ price / seconds.sum()) if len(price) and seconds.sum() else math.inf

    return min(range(len(state.history.pools)), key=mean), None


def predecessor(state: State, now: float) -> Pick:
    """Longest time since the price was above the bid (on demand), in a week; the first of equals, as the script prints them."""

    def since(index: int) -> float:
        cap = state.demand(index)
        found = hours_since_above(*state.history.series(index), cap, start=(now - 168) * HOUR, now=now * HOUR)
        return -1.0 if found is None else found

    best = max(range(len(state.history.pools)), key=since)
    return best, 1 - CLOSE if since(best) >= SAMPLE else CLOSE


def on_demand(_state: State, _now: float) -> Pick:
    """Never spot."""
    return None, None


def class_only(state: State, now: float) -> Pick:
    """The best interruption class; the cheapest pool of it."""
    order = list(CLASSES)
    prices = state.now_prices(now)

    def key(index: int) -> tuple[int, float]:
        pool = state.history.pools[index]
        label = state.world.evidence.classes.get((pool.region, pool.type))
        return (order.index(label) if label else len(order)), float(prices[index])

    best = min(range(len(prices)), key=key)
    pool = state.history.pools[best]
    label = state.world.evidence.classes.get((pool.region, pool.type))
    return best, None if label is None else (1 - CLASSES[label]) ** (SAMPLE / 24)


def ours(state: State, now: float, *, log: bool = True, classes: bool = True) -> Pick:
    """The first row of this project's ranking, with or without our own log and the interruption classes."""
    evidence = Evidence(
        on_demand=state.world.evidence.on_demand, classes=state.world.evidence.classes if classes else {}
    )
    evidence.runs = state.runs if log else []
    request = Request(
        sample_hours=SAMPLE,
        work=Work(SAMPLE, overhead=OVERHEAD, losses=LOSSES),
        days=30,
        product=state.history.pools[0].product,
    )
    best = choose([state.history], evidence, request, now * HOUR).rows[0]
    index = next(i for i, pool in enumerate(state.history.pools) if pool[:3] == best.pool[:3])
    return index, best.uninterrupted.mean if best.uninterrupted else None


STRATEGIES: dict[str, Callable[[State, float], Pick]] = {
    "random pool": at_random,
    "cheapest now": cheapest_now,
    "lowest mean": lowest_mean,
    "predecessor": predecessor,
    "always on demand": on_demand,
    "class only": class_only,
    "spot_price, prices only": lambda state, now: ours(state, now, log=False, classes=False),
    "spot_price, no log": lambda state, now: ours(state, now, log=False),
    "spot_price": ours,
}


@dataclass
class Outcome:
    """Of one sample: dollars, hours until done, spot hours that came to nothing, regret in dollars, forecasts and what came."""

    cost: float
    hours: float
    wasted: float
    regret: float
    forecasts: list[tuple[float, bool]]


def spot_cost(history: History, index: int, start: float, hours: float) -> float:
    """US dollars for hours on a pool from a start (hours) on."""
    seconds, price = spans(*history.series(index), start * HOUR, (start + hours) * HOUR)
    return float(seconds @ price) / HOUR


def next_interruption(world_: World, index: int, now: float) -> float:
    """Hour of the first interruption in a pool after a moment; infinite if there is none."""
    lost = world_.interruptions[index]
    place = int(np.searchsorted(lost, now, side="right"))
    return float(lost[place]) if place < len(lost) else math.inf


def play(state: State, strategy: Callable[[State, float], Pick], start: float) -> Outcome:
    """Run one sample by a strategy; what it learns goes into ``state.runs``."""
    world_, now, cost, wasted = state.world, start, 0.0, 0.0
    forecasts: list[tuple[float, bool]] = []
    cheapest = min(v for v in world_.evidence.on_demand.values()) if world_.evidence.on_demand else math.inf
    for attempt in range(LOSSES + 1):
        index, odds = strategy(state, now) if attempt < LOSSES else (None, None)
        need = OVERHEAD + SAMPLE
        if index is None:
            cost += need * cheapest
            now += need
            break
        lost = next_interruption(world_, index, now)
        ran = min(lost - now, need)
        cost += spot_cost(world_.history, index, now, ran)
        if odds is not None:
            forecasts.append((odds, lost - now > SAMPLE))
        pool = world_.history.pools[index]
        state.runs.append(
            InstanceRun(
                "",
                "",
                pool.type,
                pool.zone,
                "spot",
                now * HOUR,
                (now + ran) * HOUR,
                ran < need,
                over=True,
                usd_per_hour=None,
            )
        )
        now += ran
        if ran >= need:
            break
        wasted += ran
    pools = range(len(world_.history.pools))
    safe = [index for index in pools if next_interruption(world_, index, start) > start + OVERHEAD + SAMPLE]
    best = min(
        [spot_cost(world_.history, index, start, OVERHEAD + SAMPLE) for index in safe]
        + [(OVERHEAD + SAMPLE) * cheapest]
    )
    return Outcome(cost, now - start, wasted, cost - best, forecasts)


def walk(world_: World, name: str, seed: int) -> list[Outcome]:
    """All samples of a world by one strategy, in order of time."""
    state = State(world_, np.random.default_rng([seed, 99]))
    return [play(state, STRATEGIES[name], start) for start in np.arange(WARM_UP * 24, DAYS * 24 - 24, STEP)]


# ---- scores


def interval(
    values: np.ndarray, groups: np.ndarray, score: Callable[[np.ndarray], float]
) -> tuple[float, float, float]:
    """A score with its 90 % interval: whole groups (days of a world) are drawn, since what happens in one belongs together."""
    chance = np.random.default_rng(5)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    draws = []
    for _unused in range(BOOTSTRAPS):
        chosen = np.concatenate([members[index] for index in chance.integers(0, len(members), len(members))])
        draws.append(score(values[chosen]))
    low, high = np.quantile(draws, [0.05, 0.95])
    return score(values), float(low), float(high)


def mean(values: np.ndarray) -> float:
    """The mean as a plain number."""
    return float(np.mean(values))


def formatted(found: tuple[float, float, float], form: str) -> str:
    """A score with half the width of its interval."""
    return f"{found[0]:{form}} ±{(found[2] - found[1]) / 2:{form}}"


def summarise(outcomes: dict[tuple[str, int], list[Outcome]]) -> dict[str, Any]:
    """The scores of one strategy in one world; ``outcomes`` by (world, seed)."""
    rows = [
        (f"{seed}-{int(i * STEP / 24)}", outcome)
        for (_w, seed), found in outcomes.items()
        for i, outcome in enumerate(found)
    ]
    groups = np.array([group for group, _outcome in rows])
    scores: dict[str, Any] = {}
    for name, get in (
        ("cost", lambda o: o.cost),
        ("late", lambda o: float(o.hours > DEADLINE)),
        ("wasted", lambda o: o.wasted),
        ("regret", lambda o: o.regret),
    ):
        scores[name] = interval(np.array([get(outcome) for _group, outcome in rows]), groups, mean)
    pairs = [(group, p, came) for group, outcome in rows for p, came in outcome.forecasts]
    if pairs:
        odds, came = np.array([p for _g, p, _c in pairs]), np.array([float(c) for _g, _p, c in pairs])
        scores["brier"] = interval((odds - came) ** 2, np.array([g for g, _p, _c in pairs]), mean)
        kept = np.clip(odds, CLOSE, 1 - CLOSE)
        scores["log_loss"] = float(np.mean(-came * np.log(kept) - (1 - came) * np.log(1 - kept)))
        scores["forecasts"] = [(float(p), bool(c)) for p, c in zip(odds, came, strict=True)]
    return scores


def reliability(forecasts: list[tuple[float, bool]]) -> list[tuple[str, int, float, float]]:
    """Bins of forecasts: range, how many, mean forecast, share that came true."""
    rows = []
    for low, high in ((0, 0.5), (0.5, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 0.95), (0.95, 1.01)):
        inside = [(p, c) for p, c in forecasts if low <= p < high]
        if inside:
            rows.append(
                (
                    f"{low:.2f} to {min(high, 1):.2f}",
                    len(inside),
                    float(np.mean([p for p, _unused in inside])),
                    float(np.mean([c for _unused, c in inside])),
                )
            )
    return rows


# ---- recorded availability


def traces(folder: Path) -> dict[str, Any]:
    """Forecast of "an instance that runs there now runs in an hour" for the second half of each recording, learnt from the first."""
    pools = {}
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text())
            pools[path.stem] = (np.array(content["data"]) > 0, round(3600 / content["metadata"]["gap_seconds"]))
        except (ValueError, KeyError, TypeError) as error:
            raise SpotError(f"{path}: is no recording of availability: {error}") from None
    if not pools:
        raise SpotError(f"{folder}: no *.json")

    def counts(up: np.ndarray, ahead: int) -> tuple[int, float]:
        """Losses, and hours up."""
        return int(np.sum(up[:-1] & ~up[1:])), float(up.sum()) / ahead

    halves = {name: (up[: len(up) // 2], up[len(up) // 2 :], ahead) for name, (up, ahead) in pools.items()}
    early = {name: counts(first, ahead) for name, (first, _second, ahead) in halves.items()}
    lost, hours = (sum(values) for values in zip(*early.values(), strict=True))
    constant = math.exp(-lost / max(hours, 1e-9))
    found: dict[str, Any] = {"pools": len(pools), "starts": 0, "own": [], "constant": [], "always": []}
    for name, (_first, second, ahead) in halves.items():
        own = Hazard(OWN_WEIGHT, OWN_WEIGHT * hours / (lost + OWN_WEIGHT)).updated(*early[name]).survival(1.0).mean
        for start in range(0, len(second) - ahead, ahead):  # blocks that do not overlap
            if second[start]:
                came = float(np.all(second[start : start + ahead + 1]))
                found["starts"] += 1
                for forecast, odds in (("own", own), ("constant", constant), ("always", 1.0)):
                    found[forecast].append((name, start * 1.0 / ahead // 24, (odds - came) ** 2))
    return found


# ---- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand."""
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="worlds of each kind (default: 3)")
    parser.add_argument("--history", metavar="FILE", help="recorded prices, as describe-spot-price-history gives them")
    parser.add_argument(
        "--on-demand", type=float, metavar="USD", help="with --history: the on-demand price of its types"
    )
    parser.add_argument("--traces", type=Path, metavar="DIR", help="recorded availability")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(arguments: argparse.Namespace) -> None:
    """Run and print the back-test."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 100
    jobs = [(kind, name, seed) for kind in WORLDS for name in STRATEGIES for seed in range(arguments.seeds)]
    outcomes: dict[tuple[str, str], dict[tuple[str, int], list[Outcome]]] = {}
    worlds = {(kind, seed): world(kind, seed) for kind in WORLDS for seed in range(arguments.seeds)}
    for kind, name, seed in track(
        jobs,
        "walking forward",
        console=Console(stderr=True),
        transient=True,
        disable=not Console(stderr=True).is_terminal,
    ):
        outcomes.setdefault((kind, name), {})[kind, seed] = walk(worlds[kind, seed], name, seed)
    scores = {key: summarise(found) for key, found in outcomes.items()}
    recorded = recorded_prices(arguments.history, arguments.on_demand) if arguments.history else None
    seen = traces(arguments.traces) if arguments.traces else None
    if arguments.json:
        print(
            json.dumps(
                {
                    "synthetic": [
                        {"world": world_, "strategy": name, **found} for (world_, name), found in scores.items()
                    ],
                    "recorded": recorded and {name: summarise(found) for name, found in recorded.items()},
                }
            )
        )
        return
    console.print(
        f"A sample of {SAMPLE:g} h every {STEP:g} h, late after {DEADLINE:g} h; on demand after {LOSSES} interruptions. {arguments.seeds} synthetic worlds "
        f"of each kind, {ZONES * KINDS} pools, days {WARM_UP} to {DAYS}. Means with 90 % intervals (bootstrap over days)."
    )
    for kind in WORLDS:
        console.print(score_table(f"{kind} (synthetic)", {name: scores[kind, name] for name in STRATEGIES}))
    if recorded:
        console.print(
            score_table(
                f"{arguments.history} (recorded prices; interruptions unknown)",
                {name: summarise(found) for name, found in recorded.items()},
            )
        )
    table = plain_table(
        "Reliability of spot_price: odds that a sample survives", "forecast", "of them", "mean forecast", "came true"
    )
    every = [pair for kind in WORLDS for pair in scores[kind, "spot_price"].get("forecasts", [])]
    for bin_, count, forecast, came in reliability(every):
        table.add_row(bin_, str(count), f"{forecast:.3f}", f"{came:.3f}")
    console.print(table)
    if seen:
        console.print(
            f"\nRecorded availability, {seen['pools']} pools, {seen['starts']} starts in the second halves: "
            "still there after an hour? Brier score (0 is perfect)"
        )
        for source, what in (
            ("own", "own record of each pool"),
            ("constant", "one rate for all"),
            ("always", "always survives"),
        ):
            values = np.array([value for _name, _day, value in seen[source]])
            groups = np.array([f"{name}-{day}" for name, day, _value in seen[source]])
            console.print(f"  {what:26}{formatted(interval(values, groups, mean), '.3f')}")


def recorded_prices(path: str, demand: float | None) -> dict[str, dict[tuple[str, int], list[Outcome]]]:
    """Outcomes on recorded prices, in which nothing is ever taken away: only costs mean something."""
    found = read_history(path)
    begin = float(min(found.time[found.bounds[:-1]]))
    history = History(found.pools, found.bounds, found.time - begin, found.price, {})
    evidence = Evidence()
    if demand:
        evidence.on_demand = {(pool.region, pool.type): demand for pool in found.pools}
    known = World(path, history, [np.empty(0) for _unused in found.pools], evidence)
    last = float(history.time.max()) / HOUR
    starts = np.arange(WARM_UP * 24, last - 24, STEP)
    if not len(starts):
        raise SpotError(f"{path}: {last / 24:.1f} days of prices, at least {WARM_UP + 2} are needed")
    outcomes: dict[str, dict[tuple[str, int], list[Outcome]]] = {}
    for name, strategy in STRATEGIES.items():
        if (name == "always on demand" and not demand) or name in ("class only", "spot_price, no log", "spot_price"):
            continue
        state = State(known, np.random.default_rng(1))
        outcomes[name] = {(path, 0): [play(state, strategy, start) for start in starts]}
    return outcomes


def score_table(title: str, scores: dict[str, dict[str, Any]]) -> Table:
    """The scores of all strategies as a table."""
    table = plain_table(title, "", "$ per sample", "late", "wasted h", "regret $", "Brier", "log loss")
    for name, score in scores.items():
        cells = [name, formatted(score["cost"], ".3f"), f"{score['late'][0]:.1%}", f"{score['wasted'][0]:.2f}"]
        cells += [f"{score['regret'][0]:.3f}", formatted(score["brier"], ".3f") if "brier" in score else "–"]
        cells += [f"{score['log_loss']:.3f}" if "log_loss" in score else "–"]
        table.add_row(*cells, style="bold" if name == "spot_price" else "")
    return table


def plain_table(title: str, *heads: str) -> Table:
    """A table without a frame."""
    table = Table(
        box=None, title=f"\n{title}", title_justify="left", title_style="bold", padding=(0, 2, 0, 0), pad_edge=False
    )
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left", no_wrap=True)
    return table
