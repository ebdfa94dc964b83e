"""The whole site play on a machine that has only booted, and once more: what a run costs that has nothing to do.

Machines are virtual ones in the local region; data and image are the rehearsal's, a few megabytes, so the first run is
short: with real data the second one's share is far smaller. The last line is the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from databundle import machine
from rich.console import Console
from rich.table import Table

import harness


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="machines, each new (default: 3)")
    arguments = parser.parse_args()
    console = Console(width=110)
    console.print(f"machine: {machine()}")
    console.print(f"runs: {arguments.runs}, each on a new machine")
    folder = Path(tempfile.mkdtemp(prefix="pcgr-bench-"))
    log = folder / "log"
    seconds: dict[str, list[float]] = {"first": [], "second": []}
    with console.status("images ...") as status:
        harness.prepare_images(log, status.update)
        key = harness.make_key(folder / "key")
        with harness.local_region(folder / "cloud", log) as environment:
            settings = harness.key_variables(key) | {"consumer_queue_name": "pcgr"}
            for number in range(arguments.runs):
                inventory = folder / f"{number}.json"
                status.update(f"machine {number + 1} of {arguments.runs} boots")
                with harness.plain_instance(environment, key, inventory):
                    for which, found in seconds.items():
                        start = time.monotonic()
                        for task in harness.run_playbook("site.yml", settings, environment, log, "-i", str(inventory)):
                            status.update(f"machine {number + 1} of {arguments.runs}, {which} run: {task}")
                        found.append(time.monotonic() - start)
                changed = re.findall(r"changed=(\d+)", log.read_text().rpartition("PLAY RECAP")[2])
                if changed != ["0"]:
                    raise SystemExit(f"the second run changed {changed}; the whole output is in {log}")
    table = Table("run", "median s", "from", "to")
    for which, found in seconds.items():
        table.add_row(which, *(f"{figure:.1f}" for figure in (statistics.median(found), min(found), max(found))))
    console.print(table)
    medians = {f"{which}_seconds": round(statistics.median(found), 1) for which, found in seconds.items()}
    share = statistics.median(seconds["second"]) / statistics.median(seconds["first"])
    console.print(f"second of first: {share:.3f}; 0 changed")
    print(json.dumps({"machine": machine(), "runs": arguments.runs, **medians, "second_of_first": round(share, 3)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
