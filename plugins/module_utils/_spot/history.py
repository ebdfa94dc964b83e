# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Spot prices over time: a step function for each pool.

A record says that a pool's price changed at a moment; it holds until the pool's next record. So the last record before a window
belongs to the window, and a pool is above a price for as long as the record that says so is its newest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

try:
    import numpy as np
    from numpy.typing import NDArray
except ImportError as missing:
    IMPORT_ERROR: ImportError | None = missing
else:
    IMPORT_ERROR = None

from .log import SpotError, parse_time, stamp

HOUR = 3600.0


class Pool(NamedTuple):
    """What has a spot price of its own: instances of one type in one zone, for one product."""

    zone: str
    type: str
    product: str
    zone_id: str = ""

    @property
    def region(self) -> str:
        """The zone's region; empty when the zone is named by its id."""
        found = re.match(r"[a-z]{2}(-[a-z]+)+-\d+", self.zone)
        return found[0] if found else ""

    @property
    def family(self) -> str:
        """What comes before the dot of the type, such as ``m5``."""
        return self.type.partition(".")[0]


@dataclass(frozen=True)
class History:
    """Prices of pools: those of ``pools[i]`` are ``[bounds[i]:bounds[i + 1]]`` of ``time`` (seconds since 1970 UTC, ascending)
    and ``price`` (US dollars per hour from that moment on). ``extra`` is what the file holds beside the records."""

    pools: list[Pool]
    bounds: NDArray[np.int64]
    time: NDArray[np.float64]
    price: NDArray[np.float64]
    extra: dict[str, Any]

    def series(self, index: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Times and prices of ``pools[index]``."""
        part = slice(self.bounds[index], self.bounds[index + 1])
        return self.time[part], self.price[part]

    def records(self) -> list[dict[str, str]]:
        """All records as the API gives them, newest first."""
        found = []
        for index, pool in enumerate(self.pools):
            for time, price in zip(*self.series(index), strict=True):
                record = {"AvailabilityZone": pool.zone}
                if pool.zone_id:
                    record["AvailabilityZoneId"] = pool.zone_id
                record |= {"InstanceType": pool.type, "ProductDescription": pool.product, "SpotPrice": f"{price:.6f}"}
                found.append((time, record | {"Timestamp": stamp(float(time))}))
        return [record for _time, record in sorted(found, key=lambda item: item[0], reverse=True)]


def require_numpy() -> None:
    """``SpotError`` when numpy is missing."""
    if IMPORT_ERROR is not None:
        raise SpotError(f"the Python library {IMPORT_ERROR.name} is missing (needed: numpy and msgspec)")


def plain_product(product: str) -> str:
    """The product without ``(Amazon VPC)``, which says nothing since all instances are in a VPC."""
    return product.removesuffix(" (Amazon VPC)")


def only(history: History, regions: list[str], product: str) -> History:
    """The part of a history that is of these regions (empty: all; a pool whose zone does not tell counts) and this product."""
    keep = [
        index
        for index, pool in enumerate(history.pools)
        if pool.product == product and (not regions or not pool.region or pool.region in regions)
    ]
    parts = [history.series(index) for index in keep]
    bounds = np.append(0, np.cumsum([len(time) for time, _price in parts], dtype=np.int64))
    empty = np.empty(0)
    time = np.concatenate([time for time, _price in parts] or [empty])
    price = np.concatenate([price for _time, price in parts] or [empty])
    return History([history.pools[index] for index in keep], bounds, time, price, history.extra)


def from_records(records: list[dict[str, Any]], extra: dict[str, Any] | None = None) -> History:
    """The history of records as boto3 gives them (``Timestamp``: a datetime or text); ``ValueError`` for one that is none."""
    require_numpy()
    codes: dict[Pool, int] = {}
    code, time, price = [], [], []
    for record in records:
        product = plain_product(record["ProductDescription"])
        pool = Pool(record["AvailabilityZone"], record["InstanceType"], product, record.get("AvailabilityZoneId") or "")
        moment = record["Timestamp"]
        time.append(moment.timestamp() if isinstance(moment, datetime) else parse_time(moment))
        price.append(parse_price(record["SpotPrice"]))
        code.append(codes.setdefault(pool, len(codes)))
    return group(list(codes), np.array(code, np.int64), np.array(time, float), np.array(price, float), extra or {})


def parse_price(text: str) -> float:
    """US dollars per hour; ``ValueError`` for what is no price."""
    price = float(text)
    if not 0 <= price < 1e6:
        raise ValueError(f"found the price {text!r}, allowed US dollars per hour")
    return price


def group(
    pools: list[Pool],
    code: NDArray[Any],
    time: NDArray[np.float64],
    price: NDArray[np.float64],
    extra: dict[str, Any],
) -> History:
    """The history of records given as columns, sorted by pool and time.

    Of a pool's records of one moment the last counts, or the first if the newest come first.
    """
    names = sorted(range(len(pools)), key=pools.__getitem__)
    ranks = np.empty(len(pools), np.int16 if len(pools) < 1 << 15 else np.int64)  # numpy sorts 16 bits by radix
    ranks[names] = np.arange(len(pools))
    code = ranks[code]
    if len(time) and time[0] >= time[-1]:
        code, time, price = code[::-1], time[::-1], price[::-1]
    order = np.argsort(code, kind="stable")
    bounds = np.append(0, np.cumsum(np.bincount(code, minlength=len(pools))))
    sorted_time = time[order]
    back = np.flatnonzero(sorted_time[1:] < sorted_time[:-1]) + 1
    if not np.all(np.isin(back, bounds)):
        order = np.lexsort((time, code))
        sorted_time = time[order]
    price = price[order]
    again = np.flatnonzero(sorted_time[1:] == sorted_time[:-1])
    again = again[
        ~np.isin(again + 1, bounds)
    ]  # followed by another change of the same pool at the same moment: never in force
    if len(again):
        bounds = bounds - np.searchsorted(again, bounds)
        sorted_time, price = np.delete(sorted_time, again), np.delete(price, again)
    return History([pools[index] for index in names], bounds, sorted_time, price, extra)


def price_at(time: NDArray[np.float64], price: NDArray[np.float64], moment: float) -> float | None:
    """The price in force at a moment; None before the first record."""
    index = int(np.searchsorted(time, moment, side="right"))
    return float(price[index - 1]) if index else None


def hours_since_above(
    time: NDArray[np.float64], price: NDArray[np.float64], cap: float, *, start: float, now: float
) -> float | None:
    """Hours since the price was last above ``cap``: 0.0 while it is, at most the window, None when nothing is known at ``now``.

    A price equal to the cap is not above it.
    """
    index = int(np.searchsorted(time, now, side="right"))
    if not index:
        return None
    above = np.flatnonzero(price[:index] > cap)
    if not len(above):
        return (now - start) / HOUR
    if above[-1] == index - 1:
        return 0.0
    return float(now - max(time[above[-1] + 1], start)) / HOUR


def spans(
    time: NDArray[np.float64], price: NDArray[np.float64], start: float, now: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds that each price was in force within the window, and the prices; empty when none is known there."""
    first = max(int(np.searchsorted(time, start, side="right")) - 1, 0)
    last = int(np.searchsorted(time, now, side="right"))
    edges = np.append(np.maximum(time[first:last], start), now)
    return np.diff(edges), price[first:last]


def quantiles(seconds: NDArray[np.float64], price: NDArray[np.float64], *shares: float) -> list[float]:
    """For each share the lowest price that was not exceeded in at least this share of the time."""
    if not np.any(seconds > 0):
        return [float(price[-1])] * len(shares)
    order = np.argsort(price)
    order = order[seconds[order] > 0]
    held = np.cumsum(seconds[order])
    index = np.searchsorted(held, np.array(shares) * held[-1] * (1 - 1e-12))
    return [float(value) for value in price[order][np.minimum(index, len(order) - 1)]]


def windows_below(
    time: NDArray[np.float64], price: NDArray[np.float64], cap: float, hours: float, *, start: float, now: float
) -> tuple[int, int]:
    """Of the blocks of ``hours`` that end at ``now``, do not overlap and begin with a price not above ``cap``: in how many it
    stayed so, and how many there are."""
    starts = now - hours * HOUR * np.arange(int((now - start) / (hours * HOUR)), 0, -1)
    stayed = begun = 0
    for block in starts:
        known = price_at(time, price, block)
        if known is None or known > cap:
            continue
        begun += 1
        first = np.searchsorted(time, block, side="right")
        end = np.searchsorted(time, block + hours * HOUR, side="left")
        stayed += not np.any(price[first:end] > cap)
    return stayed, begun
