"""Shows a spot choice: as a table for people, as JSON, CSV or TSV for programs, and in words (--explain)."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from ansible_collections.umccr.pcgr.plugins.module_utils._spot.choice import NO_CAP, Choice, Row
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.estimate import CLASS_HOURS, ENOUGH, Interval
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

WIDE = 110  # columns of a terminal from which all figures fit


def percent(value: float) -> str:
    """A probability without pretending: 99.95 % is not 100 %."""
    if value in (0.0, 1.0):
        return f"{value:.0%}"
    text = f"{value:.1%}" if value >= 0.985 or value < 0.015 else f"{value:.0%}"
    return {"100.0%": ">99.9%", "0.0%": "<0.1%"}.get(text, text)


def span(found: Interval | None) -> str:
    """A probability with its interval."""
    return f"{percent(found.mean)} ({percent(found.low)}–{percent(found.high)})" if found else "unknown"


def dollars(value: float) -> str:
    """US dollars with four decimals below one dollar, else three."""
    return f"{value:.4f}" if value < 1 else f"{value:.3f}"


def table(choice: Choice, top: int, width: int) -> Table:
    """The ranked pools; a narrow terminal gets fewer columns."""
    wide = width >= WIDE
    found = Table(box=None, padding=(0, 2 if wide else 1, 0, 0), pad_edge=False, header_style="bold")
    rows = choice.rows[:top] if top else choice.rows
    deadline = choice.work.deadline is not None
    scored = wide and any(row.score for row in rows)
    capped = any(row.below_cap for row in rows)
    odds = any(row.uninterrupted for row in rows)
    heads = ["", "type", "zone", "$/h now", *(["p50", "p95"] if wide else []), "of o.d."]
    heads += ["score"] if scored else []
    heads += ([f"in {choice.work.deadline:g} h" if deadline else "sample survives"]) if odds else []
    heads += ["below cap"] if capped else []
    heads += ["$/sample"] + (["rests on"] if wide else [])
    for head in heads:
        found.add_column(
            head, no_wrap=head not in {"rests on"}, justify="left" if head in {"type", "zone", "rests on"} else "right"
        )
    chosen = set(choice.pools)
    for rank, row in enumerate(rows, 1):
        pool = row.pool
        cells: list[Any] = [Text(f"{rank}{'*' if pool in chosen else ' '}", style="green" if pool in chosen else "dim")]
        cells += [pool.type, pool.zone, dollars(row.price)]
        cells += [Text(dollars(row.p50), style="dim"), Text(dollars(row.p95), style="dim")] if wide else []
        cells += ["–" if row.share is None else f"{row.share:.0%}"]
        cells += [str(row.score or "–")] if scored else []
        cells += (
            [
                Text(
                    span(row.by_deadline if deadline else row.uninterrupted),
                    style="red" if row.feasible is False else "",
                )
            ]
            if odds
            else []
        )
        cells += [span(row.below_cap)] if capped else []
        cells += [dollars(row.cost.mean)] + ([Text(", ".join(row.rests_on), style="dim")] if wide else [])
        found.add_row(*cells)
    return found


def render(choice: Choice, top: int, width: int) -> Group:
    """All that a person is shown."""
    work = choice.work
    what = f"{work.samples} sample{'s' * (work.samples > 1)} of {work.hours:g} h ({choice.sample_from})"
    what += f" on {work.machines} machine{'s' * (work.machines > 1)}" + (
        f", {work.side_by_side} at a time" if work.side_by_side > 1 else ""
    )
    what += f", within {work.deadline:g} h" if work.deadline is not None else ""
    parts: list[Any] = [Text(what, style="bold"), "", table(choice, top, width)]
    if top and len(choice.rows) > top:
        parts.append(Text(f"… and {len(choice.rows) - top} more (--top 0 shows all)", style="dim"))
    parts += ["", line("Set (*)", set_text(choice))]
    parts.append(line("Maximum price", dollars(choice.maximum_price) if choice.maximum_price is not None else NO_CAP))
    parts.append(line("Sources", "; ".join(f"{name}: {source}" for name, source in choice.sources.items())))
    parts += [line("Note", note) for note in choice.notes]
    return Group(*parts)


def line(head: str, text: str) -> Table:
    """A labelled line whose text is folded beside the label."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(f"{head}:", text)
    return grid


def set_text(choice: Choice) -> str:
    """The set by type, with the zones of each."""
    if not choice.pools:
        return "none"
    kinds: dict[str, list[str]] = {}
    for pool in choice.pools:
        kinds.setdefault(pool.type, []).append(pool.zone)
    regions = {pool.region for pool in choice.pools}
    short = len(regions) == 1
    region = next(iter(regions))
    names = [
        f"{kind} ({' '.join(sorted(zone.removeprefix(region) if short and region else zone for zone in zones))})"
        for kind, zones in kinds.items()
    ]
    return f"{', '.join(names)}{f' in {region}' if short and region else ''}; allocate with price-capacity-optimized"


def explain(choice: Choice) -> str:
    """How the figures come about, in words, with the best pool as example."""
    work, row = choice.work, choice.rows[0]
    parts = [
        "How to read this",
        f"  Prices are weighted by the time they were in force; {row.pool.type} in {row.pool.zone} changed {row.changes} times in "
        f"{row.days:.0f} days: now {dollars(row.price)}, half of the time at most {dollars(row.p50)}, 95 % of it at most {dollars(row.p95)}.",
    ]
    if row.hazard:
        parts.append(
            f"  Interruptions: {row.hazard.mean:.2g} per instance-hour expected (90 %: {row.hazard.low:.2g} to {row.hazard.high:.2g}), from "
            + ", ".join(row.rests_on[1:])
            + f". A class is read as a share of instances interrupted within {CLASS_HOURS:.0f} h (AWS does not say in what time; between a day "
            "and a month), and weighs a quarter of an interruption; our own instances' hours and interruptions are added "
            f"(from {ENOUGH} interruptions in a pool on: its own survival curve, Kaplan-Meier)."
        )
        parts.append(
            f"  A sample of {work.hours:g} h is begun again after each interruption, {work.overhead:g} h later, and runs on demand after "
            f"{work.losses} interruptions: cost {dollars(row.cost.mean)} expected, {dollars(row.cost.low)} (few interruptions) to "
            f"{dollars(row.cost.high)} (many, at the p95 price)."
        )
    else:
        parts.append(
            "  Nothing is known about interruptions: costs are those of an undisturbed run, and no odds are given. --advisor and --log bring them."
        )
    if work.deadline is not None:
        parts.append(
            "  Odds of the deadline are simulated over the distribution of the interruption rate; the interval is its 5th to 95th percentile."
        )
    parts.append(
        "  Order: pools that meet --target first, then expected cost per sample, then placement score. * marks the set to launch from:"
    )
    parts.append(
        "  many pools, since one instance is interrupted with its pool; a pool is left out only where on demand is cheaper."
    )
    return "\n".join(parts)


def flat(choice: Choice, top: int) -> tuple[list[str], list[list[Any]]]:
    """Header and rows for CSV and TSV; intervals become three columns."""
    header = [
        "rank",
        "in_set",
        "region",
        "zone",
        "zone_id",
        "type",
        "product",
        "usd_per_hour",
        "mean",
        "p50",
        "p95",
        "changes",
        "days",
    ]
    header += ["on_demand", "share", "interruption_class", "score", "own_hours", "own_interruptions"]
    names = ("hazard", "uninterrupted", "by_deadline", "below_cap", "cost")
    header += [f"{name}{end}" for name in names for end in ("", "_low", "_high")] + ["feasible", "rests_on"]

    def cells(rank: int, row: Row) -> list[Any]:
        pool = row.pool
        found: list[Any] = [
            rank,
            int(pool in choice.pools),
            pool.region,
            pool.zone,
            pool.zone_id,
            pool.type,
            pool.product,
        ]
        found += [row.price, row.mean, row.p50, row.p95, row.changes, round(row.days, 2), row.on_demand, row.share]
        found += [row.interruption_class, row.score, row.own_hours, row.own_interruptions]
        for name in names:
            found += list(getattr(row, name) or (None, None, None))
        return [*found, "" if row.feasible is None else int(row.feasible), "; ".join(row.rests_on)]

    rows = choice.rows[:top] if top else choice.rows
    return header, [cells(rank, row) for rank, row in enumerate(rows, 1)]


def show(choice: Choice, form: str, top: int, console: Console) -> None:
    """Print in one of the formats table, json, csv, tsv."""
    if form == "table":
        console.print(render(choice, top, console.width))
    elif form == "json":
        content = choice.as_json()
        content["rows"] = content["rows"][:top] if top else content["rows"]
        print(json.dumps(content, indent=2))
    else:
        out = io.StringIO()
        header, rows = flat(choice, top)
        writer = csv.writer(out, delimiter="," if form == "csv" else "\t", lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        print(out.getvalue(), end="")
