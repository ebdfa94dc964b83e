#!/usr/bin/env python3
"""Make the spot example: invented prices, on-demand prices and interruption classes in the formats of AWS.

`make.py` writes the files next to itself; `make.py --check` verifies that they match what it makes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

HERE = Path(__file__).resolve().parent
REGION = "ap-southeast-2"
END = datetime(2026, 11, 23, tzinfo=UTC)
DAYS = 30  # of prices; one change a day for each pool
# Instance type -> on-demand price (US dollars per hour), interruption class (0: below 5 %, 4: above 20 %), vCPUs, memory (GiB).
TYPES = {
    "m5.xlarge": (0.24, 4, 4, 16),
    "m6i.xlarge": (0.24, 1, 4, 16),
    "c6i.xlarge": (0.222, 2, 4, 8),
    "r5.xlarge": (0.302, 0, 4, 32),
}


def files() -> dict[str, object]:
    """Return the content of each file by its name."""
    dice = random.Random(1)  # noqa: S311  (an example, no secret)
    prices = []
    for kind, (demand, *_unused) in TYPES.items():
        for zone in "abc":
            price = demand * dice.uniform(0.3, 0.4)
            for day in range(DAYS):
                price = min(max(price * dice.uniform(0.96, 1.04), demand * 0.25), demand)
                moment = END - timedelta(days=DAYS - day, minutes=-dice.randrange(600))
                prices.append(
                    {
                        "AvailabilityZone": f"{REGION}{zone}",
                        "InstanceType": kind,
                        "ProductDescription": "Linux/UNIX",
                        "SpotPrice": f"{price:.6f}",
                        "Timestamp": f"{moment:%Y-%m-%dT%H:%M:%SZ}",
                    }
                )
    classes = {
        kind: {"s": 100 - round(100 * 0.35), "r": number} for kind, (_unused, number, _unused, _unused) in TYPES.items()
    }
    sizes = {kind: {"cores": cores, "ram_gb": memory} for kind, (_unused, _unused, cores, memory) in TYPES.items()}
    return {
        "prices.json": {"SpotPriceHistory": prices},
        "on-demand.json": {kind: demand for kind, (demand, *_unused) in TYPES.items()},
        "spot-advisor-data.json": {"instance_types": sizes, "spot_advisor": {REGION: {"Linux": classes}}},
    }


def main() -> int:
    """Write or check the files; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file differs")
    arguments = parser.parse_args()
    code = 0
    for name, content in files().items():
        path, text = HERE / name, json.dumps(content, indent=1) + "\n"
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{path}: is not what make.py makes; run examples/spot/make.py", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
