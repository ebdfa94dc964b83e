"""Ranking spot prices: scripts/spot_price's library beside the loop of the predecessor's script, on the same JSON.

Both read the file and are timed from opening it to the last figure, each run in a fresh process, in turns. The predecessor's loop
is that of get_spot_duration.py: json.load, time.strptime for each record, a dictionary; ours ranks all pools by price with
time-weighted quantiles on top. The last line is the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

NOW = "2026-11-23T00:00:00"
TYPES = [f"{family}{generation}.{size}" for family in "cmr" for generation in ("5", "5a", "6i", "6a", "7i", "7a") for size in
         ("large", "xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge", "24xlarge")]  # fmt: skip
ZONES = ["ap-southeast-2a", "ap-southeast-2b", "ap-southeast-2c"]

PREDECESSOR = """
import calendar, json, time
with open(path) as file:
    found = json.load(file)
last = {}
for record in found["SpotPriceHistory"]:
    now = calendar.timegm(time.strptime(record["Timestamp"], "%Y-%m-%dT%H:%M:%S.%fZ"))
    key = (record["InstanceType"], record["AvailabilityZone"])
    before = last.get(key)
    if before is None:
        last[key] = before = start
    if float(record["SpotPrice"]) > 0.06 and now > before:
        last[key] = now
for key in sorted(last, key=lambda key: (last[key], key)):
    "%.1f" % ((moment - last[key]) / 3600)
"""
OURS = """
choice = choose([read_history(path)], Evidence(), Request(), moment)
"""
CHILD = """
import sys, time
{imports}
path, moment = {path!r}, {moment!r}
start = moment - 90 * 86400
began, busy = time.perf_counter(), time.process_time()
{work}
# The highest since this program began; the one of getrusage is the parent's when that was higher.
peak = next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.perf_counter() - began, time.process_time() - busy, peak)
"""
IMPORTS = """
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.choice import Request, choose
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.evidence import Evidence
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.reader import read_history
from support import ROOT
"""


def make_history(path: Path, records: int, indent: bool) -> None:
    """A file as the AWS command line writes it: newest first, 90 days, all pools mixed."""
    chance = np.random.default_rng(1)
    pools = [(zone, kind) for zone in ZONES for kind in TYPES]
    pool = chance.integers(0, len(pools), records)
    price = chance.uniform(0.02, 2, len(pools))[pool] * chance.uniform(0.95, 1.05, records)
    end = int(np.datetime64(NOW, "s").astype(int))
    stamps = np.datetime_as_string(
        np.sort(chance.integers(end - 90 * 86400, end, records))[::-1].astype("datetime64[s]")
    )
    with path.open("w", encoding="ascii") as file:
        file.write('{"SpotPriceHistory": [')
        for index in range(records):
            zone, kind = pools[pool[index]]
            record = {
                "AvailabilityZone": zone,
                "InstanceType": kind,
                "ProductDescription": "Linux/UNIX",
                "SpotPrice": f"{price[index]:.6f}",
                "Timestamp": f"{stamps[index]}.000Z",
            }
            file.write((", " if index else "") + json.dumps(record, indent=4 if indent else None))
        file.write("]}")


def run(imports: str, work: str, path: Path) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak MB of one run in a process of its own."""
    moment = float(np.datetime64(NOW, "s").astype(int))
    code = CHILD.format(imports=imports, work=work, path=str(path), moment=moment)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    wall, busy, peak = map(float, done.stdout.split())
    return wall, busy, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--indent", action="store_true", help="records over several lines, as the aws command prints them"
    )
    arguments = parser.parse_args()
    console = Console()
    figures: dict[str, list[tuple[float, float, float]]] = {"predecessor's loop": [], "spot_price": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "history.json"
        console.print(f"making {arguments.records:,} records ...")
        make_history(path, arguments.records, arguments.indent)
        size = path.stat().st_size
        for _unused in range(arguments.runs):
            figures["predecessor's loop"].append(run("", PREDECESSOR, path))
            figures["spot_price"].append(run(IMPORTS, OURS, path))
    table = Table(
        "",
        "seconds (median)",
        "best",
        "processor seconds",
        "peak MB",
        title=f"{arguments.records:,} records, {size / 1e6:.0f} MB of JSON",
    )
    medians = {}
    for name, runs in figures.items():
        wall, busy, peak = (statistics.median(values) for values in zip(*runs, strict=True))
        medians[name] = (wall, busy, peak)
        table.add_row(name, f"{wall:.2f}", f"{min(one[0] for one in runs):.2f}", f"{busy:.2f}", f"{peak:.0f}")
    console.print(table)
    old, new = list(medians.values())
    ratio, busy_ratio = old[0] / new[0], old[1] / new[1]
    console.print(f"{ratio:.1f} times as fast ({busy_ratio:.1f} by processor time)")
    print(
        json.dumps(
            {
                "records": arguments.records,
                "seconds": round(new[0], 3),
                "predecessor_seconds": round(old[0], 3),
                "processor_seconds": round(new[1], 3),
                "predecessor_processor_seconds": round(old[1], 3),
                "speedup_over_predecessor": round(ratio, 1),
                "processor_speedup_over_predecessor": round(busy_ratio, 1),
                "peak_mb": round(new[2]),
                "runs": arguments.runs,
                "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            }
        )
    )


if __name__ == "__main__":
    main()
