# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a spot choice rests on beside price history: price list, interruption classes, placement scores, types. All may be missing."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, NamedTuple

from .log import InstanceRun, SpotError

CLASS_LABELS = ("<5%", "5-10%", "10-15%", "15-20%", ">20%")  # by the number that the advisor's file uses
ADVISOR_SYSTEMS = {"Windows": "Windows"}  # product to the advisor's system; all others count as Linux


class Specs(NamedTuple):
    """What an instance of a type has; ``disk_gb`` is its local disk (None: not known)."""

    vcpus: int
    memory_gib: float
    architecture: str
    disk_gb: float | None = None


@dataclass
class Evidence:
    """All that is known beside the prices; ``sources`` says for each kind where it is from and of when."""

    on_demand: dict[tuple[str, str], float] = field(default_factory=dict)  # (region, type) to US dollars per hour
    classes: dict[tuple[str, str], str] = field(default_factory=dict)  # (region, type) to CLASS_LABELS
    scores: dict[str, int] = field(default_factory=dict)  # zone id, or region, to 1..10
    specs: dict[str, Specs] = field(default_factory=dict)
    runs: list[InstanceRun] = field(default_factory=list)
    sample_hours: list[float] = field(default_factory=list)
    zones: dict[str, str] = field(default_factory=dict)  # zone to zone id, of all zones of the regions
    sources: dict[str, str] = field(default_factory=dict)


def architecture(kind: str) -> str:
    """Processor of an instance type by its name: a ``g`` after the generation is Graviton, as in ``m6gd.large``."""
    return "arm64" if re.match(r"(a1|[a-z]+\d+[a-z]*g[a-z]*)\.", kind) else "x86_64"


def read_json(path: str, what: str) -> Any:
    """A JSON file; ``SpotError`` says that it is no ``what``."""
    try:
        with open(path, "rb") as file:
            return json.load(file)
    except OSError as error:
        raise SpotError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise SpotError(f"{path}: is no {what}: {error}") from None


def file_date(path: str) -> str:
    """Day of a file's last change, which stands for the date of its contents."""
    return f"{datetime.fromtimestamp(os.stat(path).st_mtime, timezone.utc):%Y-%m-%d}"


def add_on_demand(evidence: Evidence, path: str, regions: list[str]) -> None:
    """Prices from ``{"m5.large": 0.12}`` or, for several regions, ``{"ap-southeast-2": {"m5.large": 0.12}}``."""
    content = read_json(path, "list of on-demand prices")
    try:
        for name, value in content.items():
            prices = value if isinstance(value, dict) else {name: value}
            for region in [name] if isinstance(value, dict) else regions:
                for kind, price in prices.items():
                    if not 0 < float(price) < 1e6:
                        raise SpotError(f"{path}: {kind}: found {price!r}, allowed US dollars per hour")
                    evidence.on_demand[region, kind] = float(price)
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(error, SpotError):
            raise
        raise SpotError(f'{path}: allowed {{"TYPE": US_DOLLARS}} or {{"REGION": {{"TYPE": US_DOLLARS}}}}') from None
    evidence.sources["on-demand price"] = f"{os.path.basename(path)} of {file_date(path)}"


def add_advisor(evidence: Evidence, path: str, date: str | None, product: str) -> None:
    """Interruption classes, and vCPUs and memory of the types, from the Spot Instance Advisor's ``spot-advisor-data.json``."""
    content = read_json(path, "file of the Spot Instance Advisor")
    system = ADVISOR_SYSTEMS.get(product, "Linux")
    try:
        for region, systems in content["spot_advisor"].items():
            for kind, entry in systems.get(system, {}).items():
                evidence.classes[region, kind] = CLASS_LABELS[int(entry["r"])]
        for kind, entry in content.get("instance_types", {}).items():
            specs = Specs(int(entry["cores"]), float(entry["ram_gb"]), architecture(kind))
            evidence.specs.setdefault(kind, specs)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise SpotError(f"{path}: is no file of the Spot Instance Advisor: {type(error).__name__} {error}") from None
    evidence.sources["interruption class"] = f"{os.path.basename(path)} of {date or file_date(path)}"


def add_scores(evidence: Evidence, path: str) -> None:
    """Placement scores from the output of ``aws ec2 get-spot-placement-scores``."""
    content = read_json(path, "list of placement scores")
    try:
        for entry in content["SpotPlacementScores"]:
            evidence.scores[entry.get("AvailabilityZoneId") or entry["Region"]] = int(entry["Score"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise SpotError(f"{path}: is no output of aws ec2 get-spot-placement-scores") from None
    evidence.sources["placement score"] = f"{os.path.basename(path)} of {file_date(path)}"


def add_types(evidence: Evidence, entries: list[dict[str, Any]], source: str) -> None:
    """vCPUs, memory, processor and local disk of types, in the form of ``aws ec2 describe-instance-types``."""
    try:
        for entry in entries:
            architectures = entry.get("ProcessorInfo", {}).get("SupportedArchitectures") or [
                architecture(entry["InstanceType"])
            ]
            evidence.specs[entry["InstanceType"]] = Specs(
                int(entry["VCpuInfo"]["DefaultVCpus"]),
                entry["MemoryInfo"]["SizeInMiB"] / 1024,
                "x86_64" if "x86_64" in architectures else architectures[0],
                float(entry.get("InstanceStorageInfo", {}).get("TotalSizeInGB", 0)),
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SpotError(
            f"{source}: is no output of aws ec2 describe-instance-types: {type(error).__name__} {error}"
        ) from None
    evidence.sources["types"] = source


def add_log(evidence: Evidence, events: list[dict[str, Any]], found: list[InstanceRun], path: str) -> None:
    """Instances and samples of our own log."""
    evidence.runs += found
    evidence.sample_hours += [float(event["hours"]) for event in events if event["event"] == "sample"]
    hours = sum(run.hours for run in found if run.market == "spot")
    lost = sum(run.interrupted for run in found)
    evidence.sources["own log"] = f"{os.path.basename(path)}: {hours:.1f} spot instance-hours, {lost} interruptions"
