# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our own record of spot instances: one JSON object per line, appended by whoever sees an event. Standard library only.

``{"time": "2026-11-23T00:00:00Z", "event": "launched", "machine": "i-1", "type": "m5.xlarge", "zone": "ap-southeast-2a",
"market": "spot", "name": "pcgr", "usd_per_hour": 0.08}``, later ``{"time": …, "event": "interrupted", "machine": "i-1"}`` (by
AWS), ``"ended"`` (by itself or by us) or ``"seen"`` (running, so that an instance of unknown end counts up to there), and
``{"time": …, "event": "sample", "machine": "i-1", "hours": 1.4, "attempt": "0f3c…"}`` for a sample reported (``attempt`` is in the
result's provenance; nothing here names a sample).
"""

from __future__ import annotations

import json
import os
import re
from datetime import datetime, timezone
from typing import Any, NamedTuple

HOUR = 3600.0
EVENTS = {
    "launched": ("machine", "type", "zone", "market"),
    "interrupted": ("machine",),
    "ended": ("machine",),
    "seen": ("machine",),
    "sample": ("machine", "hours"),
}
MARKETS = ("spot", "on-demand")


class SpotError(ValueError):
    """A spot choice cannot be made; the text is one line: what was found where, and what is allowed."""


class InstanceRun(NamedTuple):
    """One instance of ours from its launch on: until when it is known to have run (seconds since 1970), and whether it was interrupted."""

    instance: str
    name: str
    type: str
    zone: str
    market: str
    started: float
    until: float
    interrupted: bool
    over: bool
    usd_per_hour: float | None

    @property
    def hours(self) -> float:
        """Hours that it is known to have run."""
        return max(self.until - self.started, 0) / HOUR


def parse_time(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 time (``Z``, fractions and offsets allowed); one without zone is UTC. Else ``ValueError``."""
    moment = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text.strip()))
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def stamp(time: float) -> str:
    """ISO 8601 as the AWS API writes it, with milliseconds."""
    moment = datetime.fromtimestamp(round(time, 3), timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"


def read_log(path: str) -> list[dict[str, Any]]:
    """The events of a log, oldest first, with ``time`` in seconds; none when there is no file yet. ``SpotError`` names a bad line."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise SpotError(f"{path}: cannot be read: {error}") from error
    events = [parse_event(line, f"{path}: line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    return sorted(events, key=lambda event: event["time"])


def parse_event(line: str, where: str) -> dict[str, Any]:
    """An event with ``time`` in seconds; ``SpotError`` begins with ``where``."""
    try:
        event = json.loads(line)
        kind = event["event"]
        event["time"] = parse_time(event["time"])
        missing = [field for field in EVENTS[kind] if field not in event]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        allowed = ", ".join(EVENTS)
        raise SpotError(f"{where}: found {line[:80]!r}, allowed an object with time and event ({allowed})") from None
    if missing:
        raise SpotError(f"{where}: {kind}: {missing[0]} is missing")
    if kind == "launched" and event["market"] not in MARKETS:
        raise SpotError(f"{where}: market: found {event['market']!r}, allowed {' or '.join(MARKETS)}")
    if kind == "sample" and not (isinstance(event["hours"], (int, float)) and 0 < event["hours"] < float("inf")):
        raise SpotError(f"{where}: hours: found {event['hours']!r}, allowed a number above 0")
    return dict(event)


def append(path: str, event: str, time: float, **fields: Any) -> None:
    """Append an event in one write, so that writers at the same time do not mix their lines."""
    line = json.dumps({"time": stamp(time), "event": event, **fields}) + "\n"
    folder = os.path.dirname(path)
    if folder:
        os.makedirs(folder, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def instance_runs(events: list[dict[str, Any]], now: float) -> list[InstanceRun]:
    """The instances of a log, in order of launch. One without an end counts to the last event that names it."""
    found: dict[str, InstanceRun] = {}
    for event in events:
        instance = str(event["machine"])
        if event["time"] > now:
            continue
        if event["event"] == "launched":
            found[instance] = InstanceRun(
                instance,
                str(event.get("name", "")),
                str(event["type"]),
                str(event["zone"]),
                str(event["market"]),
                event["time"],
                event["time"],
                interrupted=False,
                over=False,
                usd_per_hour=event.get("usd_per_hour"),
            )
        elif instance in found and not found[instance].over:
            interrupted, over = event["event"] == "interrupted", event["event"] in ("interrupted", "ended")
            found[instance] = found[instance]._replace(until=event["time"], interrupted=interrupted, over=over)
    return list(found.values())


def interruptions_in_a_row(found: list[InstanceRun], name: str, now: float, hours: float = 24) -> int:
    """How many of the newest spot instances of a name were interrupted in a row within the last hours."""
    count = 0
    for run in reversed([run for run in found if run.name == name and run.market == "spot"]):
        if not run.interrupted or run.until < now - hours * HOUR:
            break
        count += 1
    return count


def spent_on_demand(
    found: list[InstanceRun], name: str, now: float, prices: dict[str, float] | None = None, days: float = 30
) -> float:
    """US dollars that on-demand instances of a name have cost in the last days; one that has not ended counts to now.

    ``prices`` (by type) stand in where the log has none.
    """
    total = 0.0
    for run in found:
        price = run.usd_per_hour or (prices or {}).get(run.type)
        if run.name == name and run.market == "on-demand" and price:
            end = run.until if run.over else now
            total += max(end - max(run.started, now - days * 24 * HOUR), 0) / HOUR * price
    return total
