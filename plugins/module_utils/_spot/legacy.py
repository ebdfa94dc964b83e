# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hours since the spot price was last above a bid: the question of ``get_spot_duration.py``, answered right.

The old script took the time of the last change *to* a price above the bid, whether or not that price held on, and left out the
price that was in force when the window began. ``exact`` does so too, for comparison.
"""

from __future__ import annotations

from .history import HOUR, History, hours_since_above
from .log import SpotError

HEADER = "Duration\tInstance Type\tAvailability Zone"
PRODUCTS = [
    "Linux/UNIX",
    "SUSE Linux",
    "Windows",
    "Linux/UNIX (Amazon VPC)",
    "SUSE Linux (Amazon VPC)",
    "Windows (Amazon VPC)",
]
Row = tuple[float, str, str]


def parse_bids(text: str) -> list[tuple[str, float]]:
    """``c4.large:0.08,m5.large:0.05`` as pairs; ``SpotError`` for anything else."""
    found = []
    for bid in text.split(","):
        kind, colon, price = (part.strip() for part in bid.partition(":"))
        try:
            value = float(price)
        except ValueError:
            value = -1.0
        if not (kind and colon and 0 < value < 1e6):
            raise SpotError(f"--bids: found {bid!r}, allowed TYPE:US_DOLLARS, as in c4.large:0.08")
        found.append((kind, value))
    return found


def durations(history: History, bids: list[tuple[str, float]], *, hours: float, now: float) -> list[Row]:
    """Rows (hours, type, zone) for each bid and zone whose price is known at ``now``."""
    start = now - hours * HOUR
    rows = []
    for index, pool in enumerate(history.pools):
        time, price = history.series(index)
        for bid in (bid for kind, bid in bids if kind == pool.type):
            since = hours_since_above(time, price, bid, start=start, now=now)
            if since is not None:
                rows.append((since, pool.type, pool.zone))
    return rows


def exact_durations(history: History, bids: list[tuple[str, float]], *, hours: float, now: float) -> list[Row]:
    """The same rows by the old script's arithmetic; of two bids for a type the last counts."""
    start = float(int(now - hours * HOUR))
    rows = []
    for index, pool in enumerate(history.pools):
        time, price = history.series(index)
        bid = dict(bids).get(pool.type)
        if bid is None or not (time <= now).any():
            continue
        changes = time[(price > bid) & (time > start) & (time <= now)]
        last = float(changes[-1]) if len(changes) else start
        rows.append(((now - last) / HOUR, pool.type, pool.zone))
    return rows


def order(rows: list[Row], *, exact: bool) -> list[Row]:
    """Shortest first; ``exact``: as the old script did, longest first."""
    return sorted(rows, key=lambda row: (-row[0] if exact else row[0], row[1:]))


def render(rows: list[Row]) -> str:
    """Header and rows as the old script printed them."""
    return "\n".join([HEADER, *(f"{hours:.1f}\t{kind}\t{zone}" for hours, kind, zone in rows)])
