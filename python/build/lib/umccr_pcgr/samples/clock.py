"""The clock for leases, and times as text."""

from __future__ import annotations

import re
import time
from datetime import datetime, timezone


def now() -> float:
    """Seconds that also count while the host is suspended (CLOCK_BOOTTIME): a suspended worker must see its lease run out."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def utc() -> datetime:
    """The time of day in UTC."""
    return datetime.now(timezone.utc)


def iso(moment: datetime | None) -> str | None:
    """ISO 8601 in UTC with microseconds, e.g. ``2026-11-23T03:27:00.000000Z``; sorts as text."""
    return None if moment is None else moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_iso(text: str | None) -> datetime | None:
    """The inverse of :func:`iso`, also for other forms of ISO 8601 with a time zone; None for anything else."""
    try:
        # Python 3.10 does not know "Z".
        moment = datetime.fromisoformat(re.sub("Z$", "+00:00", text or ""))
    except ValueError:
        return None
    return moment.astimezone(timezone.utc) if moment.tzinfo else None
