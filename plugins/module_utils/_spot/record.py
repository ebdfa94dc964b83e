# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A price history that grows: what was fetched is stored, and appended to without gaps or repeats.

The file is in the form of ``aws ec2 describe-spot-price-history``, with one member more: ``Recorded`` lists for each region and
product (and types, when not all) the time that is covered without a gap.
"""

from __future__ import annotations

import json
import os
from typing import Any

from ansible_collections.umccr.pcgr.plugins.module_utils._state import write_file

from .api import DAYS_KEPT, Account, Progress, price_history
from .history import HOUR, History, from_records
from .log import SpotError, parse_time, stamp
from .reader import read_history


def record(
    path: str,
    account: Account,
    region: str,
    *,
    types: list[str],
    product: str,
    now: float,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Fetch what is new in a region and merge it into the file; returns the number of records before and after.

    ``SpotError`` when the file ends so long ago that AWS no longer has what came next, or covers other types.
    """
    old = read_history(path) if os.path.exists(path) else None
    spans = list(old.extra.get("Recorded", [])) if old else []
    mine = [span for span in spans if (span["Region"], span["ProductDescription"]) == (region, product)]
    kept = now - DAYS_KEPT * 24 * HOUR
    start = kept
    if mine:
        if sorted(mine[0].get("InstanceTypes", [])) != sorted(types):
            raise SpotError(
                f"{path}: holds {_types(mine[0].get('InstanceTypes', []))} of {region}, asked for {_types(types)}; use another file"
            )
        start = parse_time(mine[0]["To"])
        if start < kept:
            raise SpotError(
                f"{path}: ends at {mine[0]['To']}, and AWS keeps {DAYS_KEPT} days: the time between is lost; use another file"
            )
    elif old and any(pool.region == region and pool.product == product for pool in old.pools):
        raise SpotError(
            f"{path}: has prices of {region}, but was not written by record: no telling what is missing; use another file"
        )
    fetched = price_history(account, [region], types=types, product=product, start=start, end=now, progress=progress)[
        region
    ]
    span = {"Region": region, "ProductDescription": product, **({"InstanceTypes": sorted(types)} if types else {})}
    span |= {"From": mine[0]["From"] if mine else stamp(start), "To": stamp(now)}
    spans = [other for other in spans if other not in mine] + [span]
    records = merge(old, fetched)
    _write(path, {"SpotPriceHistory": records, "Recorded": spans})
    return (len(old.time) if old else 0), len(records)


def _types(types: list[str]) -> str:
    return ", ".join(sorted(types)) or "all types"


def merge(old: History | None, fetched: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The records of both without repeats, newest first."""
    found = {tuple(record.values()): record for record in (old.records() if old else [])}
    for record in from_records(fetched).records():
        found.setdefault(tuple(record.values()), record)
    return sorted(found.values(), key=lambda record: record["Timestamp"], reverse=True)


def _write(path: str, content: dict[str, Any]) -> None:
    """Replace the file in one step, so that it is whole whatever happens."""
    try:
        write_file(os.path.abspath(path), json.dumps(content).encode())
    except OSError as error:
        raise SpotError(f"{path}: cannot be written: {error.strerror}") from error
