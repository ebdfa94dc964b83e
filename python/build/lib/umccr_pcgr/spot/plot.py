"""Draws a spot choice: how the best types' prices went, zone by zone, and what the pools cost against their odds."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import numpy as np
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.choice import Choice, Request, Row
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.history import HOUR, History
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.log import SpotError
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

FORMS = (".png", ".svg", ".pdf")
COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"]  # Okabe and Ito: told apart by everybody
INK, FAINT = "#24292f", "#8c959f"
SHOWN = 2  # types whose prices are drawn


def check(path: str) -> None:
    """``SpotError`` when no picture can be written there."""
    if Path(path).suffix not in FORMS:
        raise SpotError(f"--plot: found {path!r}, allowed a name that ends in {', '.join(FORMS)}")
    if not Path(path).resolve().parent.is_dir():
        raise SpotError(f"--plot: {Path(path).resolve().parent}: no such folder")


def draw(choice: Choice, histories: list[History], request: Request, path: str) -> None:
    """Write the picture."""
    kinds = list(dict.fromkeys(row.pool.type for row in choice.rows))[:SHOWN]
    style: dict[Any, Any] = {"font.size": 9, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
                             "svg.hashsalt": "umccr.pcgr", "svg.fonttype": "path"}  # fmt: skip
    with plt.rc_context(style):
        figure = plt.figure(figsize=(10, 4.6), layout="constrained")
        grid = figure.add_gridspec(len(kinds), 2, width_ratios=[1.25, 1])
        first: Axes | None = None
        for place, kind in enumerate(kinds):
            axes = figure.add_subplot(grid[place, 0], sharex=first)
            first = first or axes
            prices(axes, kind, choice, histories, request, last=place == len(kinds) - 1)
        frontier(figure.add_subplot(grid[:, 1]), choice, request)
        figure.text(
            0.0,
            -0.02,
            "; ".join(f"{name}: {source}" for name, source in choice.sources.items()),
            fontsize=7,
            color=FAINT,
            va="top",
        )
        meta: dict[str, Any] = {"Date": None} if path.endswith((".svg", ".pdf")) else {}
        meta = {"CreationDate": None} if path.endswith(".pdf") else meta
        figure.savefig(path, dpi=160, bbox_inches="tight", metadata=meta)
        plt.close(figure)


def when(seconds: float) -> Any:
    """A moment as matplotlib takes it; its types do not say so."""
    return datetime.fromtimestamp(seconds, UTC)


def prices(axes: Axes, kind: str, choice: Choice, histories: list[History], request: Request, *, last: bool) -> None:
    """Steps of one type's price in its zones, with the on-demand price and the cap."""
    start = choice.now - request.days * 24 * HOUR
    pools = sorted(row.pool.zone for row in choice.rows if row.pool.type == kind)
    for history in histories:
        for index, pool in enumerate(history.pools):
            if pool.type != kind or pool.zone not in pools or pool.product != request.product:
                continue
            time, price = history.series(index)
            inside = slice(
                max(int(np.searchsorted(time, start, side="right")) - 1, 0),
                int(np.searchsorted(time, choice.now, side="right")),
            )
            moments = [when(max(moment, start)) for moment in time[inside]] + [when(choice.now)]
            colour = COLOURS[pools.index(pool.zone) % len(COLOURS)]
            axes.step(
                moments, [*price[inside], price[inside][-1]], where="post", color=colour, linewidth=1.3, label=pool.zone
            )
    best = next(row for row in choice.rows if row.pool.type == kind)
    for value, name, dash in ((best.on_demand, "on demand", "--"), (request.cap, "cap", ":")):
        if value is not None:
            axes.axhline(value, color=INK, linewidth=1, linestyle=dash)
            axes.annotate(name, (0.995, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.15)
    axes.set_xlim(when(start if best.days > request.days - 1 else choice.now - best.days * 24 * HOUR), when(choice.now))
    axes.set_title(kind, loc="left", fontsize=10, fontweight="bold")
    axes.set_ylabel("US dollars per hour")
    axes.xaxis.set_major_formatter(mdates.ConciseDateFormatter(mdates.AutoDateLocator()))  # type: ignore[no-untyped-call]
    axes.tick_params(labelbottom=last)
    axes.legend(
        loc="lower left", ncols=min(len(pools), 4), fontsize=7.5, frameon=False, handlelength=1.2, columnspacing=1.2
    )
    plain(axes)


def frontier(axes: Axes, choice: Choice, request: Request) -> None:
    """Expected cost per sample against the odds; the line joins the pools that none beats in both."""
    deadline = choice.work.deadline is not None
    rows = [row for row in choice.rows if row.uninterrupted]
    axes.set_xlabel("expected US dollars per sample")
    if not rows:
        shown = choice.rows[:15]
        axes.barh(
            [f"{row.pool.type} {row.pool.zone}" for row in shown][::-1],
            [row.cost.mean for row in shown][::-1],
            color=COLOURS[0],
        )
        axes.set_title("Cost; nothing is known about interruptions", loc="left", fontsize=10, fontweight="bold")
        axes.tick_params(axis="y", labelsize=7)
        plain(axes)
        return

    def odds(row: Row) -> Any:
        return row.by_deadline if deadline else row.uninterrupted

    chosen = set(choice.pools)
    for inside, colour, name in ((False, FAINT, "other pools"), (True, COLOURS[0], "recommended set")):
        group = [row for row in rows if (row.pool in chosen) is inside]
        if group:
            middle = np.array([odds(row).mean for row in group])
            spread = [
                np.maximum(middle - [odds(row).low for row in group], 0),
                np.maximum(np.array([odds(row).high for row in group]) - middle, 0),
            ]
            axes.errorbar(
                [row.cost.mean for row in group],
                middle,
                yerr=spread,
                fmt="o",
                color=colour,
                markersize=5,
                elinewidth=0.7,
                alpha=0.85,
                label=name,
            )
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.cost.mean, -odds(row).mean)):
        if not best or odds(row).mean > odds(best[-1]).mean:
            best.append(row)
    axes.plot(
        [row.cost.mean for row in best],
        [odds(row).mean for row in best],
        color=COLOURS[5],
        linewidth=1.5,
        zorder=3,
        label="none is cheaper and safer",
    )
    labelled: list[Row] = [best[0], best[-1]] if len(best) > 1 else best
    for place, row in enumerate(labelled):
        at, away = (odds(row).low, -13) if place == 0 else (odds(row).mean, 9)
        label = f"{row.pool.type}, {row.pool.zone[-2:]}"
        axes.annotate(label, (row.cost.mean, at), xytext=(0, away), textcoords="offset points", fontsize=8, ha="center")
    demands = [row.on_demand for row in rows if row.on_demand]
    if demands:
        work = choice.work
        cost = min(demands) * (work.hours / work.side_by_side + work.overhead * work.machines / work.samples)
        axes.axvline(cost, color=INK, linewidth=1, linestyle="--")
        axes.annotate(
            "on demand",
            (cost, 0.98),
            xycoords=("data", "axes fraction"),
            rotation=90,
            ha="right",
            va="top",
            fontsize=8,
        )
    axes.axhline(request.target, color=FAINT, linewidth=0.8, linestyle=":")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:.0%}" if value <= 1 else ""))
    axes.set_ylabel(
        f"odds: all samples within {choice.work.deadline:g} h"
        if deadline
        else f"odds: a sample of {choice.work.hours:g} h is not interrupted"
    )
    axes.set_title("Cost against odds, 90 % intervals", loc="left", fontsize=10, fontweight="bold")
    axes.margins(x=0.16, y=0.12)
    axes.legend(loc="lower right", bbox_to_anchor=(0.84, 0.02), fontsize=8, frameon=False)
    plain(axes)


def plain(axes: Axes) -> None:
    """Remove the frame's upper and right edges."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eaeef2", linewidth=0.8)
    axes.set_axisbelow(True)
