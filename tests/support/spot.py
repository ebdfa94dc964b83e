"""Small price histories and what goes with them, and the spot command run on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

NOW = "2026-11-23T00:00:00Z"


ZONES = ("ap-southeast-2a", "ap-southeast-2b", "ap-southeast-2c")


PRICES = {"m5.xlarge": 0.08, "m6i.xlarge": 0.09, "c5.xlarge": 0.07, "r5.xlarge": 0.11, "m6g.xlarge": 0.01}


def spot_price(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `scripts/spot_price` with a clean environment."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    keep |= {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    }
    command = [sys.executable, ROOT / "scripts/spot_price", *arguments]
    return subprocess.run(command, env=keep | environment, capture_output=True, text=True, check=False, timeout=120)


def shown(*arguments: str | Path) -> str:
    """What the command prints when it succeeds."""
    done = spot_price(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments: str | Path, **environment: str) -> str:
    """The one line with which the command refuses."""
    done = spot_price(*arguments, **environment)
    assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
    assert done.stderr.startswith("pcgr-spot: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def change(zone: str, kind: str, price: float, at: str, product: str = "Linux/UNIX") -> dict[str, str]:
    """One price record as the AWS command line writes it."""
    return {
        "AvailabilityZone": zone,
        "InstanceType": kind,
        "ProductDescription": product,
        "SpotPrice": f"{price:.6f}",
        "Timestamp": at,
    }


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """A file of price records of several pools."""
    path = tmp_path / "history.json"
    found = [
        change(zone, kind, price * (1 + place / 100), "2026-06-01T00:00:00Z")
        for kind, price in PRICES.items()
        for place, zone in enumerate(ZONES)
    ]
    path.write_text(json.dumps({"SpotPriceHistory": found}))
    return path


@pytest.fixture
def advisor(tmp_path: Path) -> Path:
    """A file like AWS's interruption classes."""
    path = tmp_path / "advisor.json"
    classes = {"m5.xlarge": 4, "m6i.xlarge": 0, "c5.xlarge": 2, "r5.xlarge": 1}
    sizes = {
        "m5.xlarge": (4, 16),
        "m6i.xlarge": (4, 16),
        "c5.xlarge": (4, 8),
        "r5.xlarge": (4, 32),
        "m6g.xlarge": (4, 16),
    }
    content = {
        "instance_types": {kind: {"cores": cores, "ram_gb": memory} for kind, (cores, memory) in sizes.items()},
        "spot_advisor": {
            "ap-southeast-2": {"Linux": {kind: {"s": 70, "r": number} for kind, number in classes.items()}}
        },
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def demand(tmp_path: Path) -> Path:
    """A file of on-demand prices."""
    path = tmp_path / "demand.json"
    path.write_text(json.dumps({"m5.xlarge": 0.24, "m6i.xlarge": 0.25, "c5.xlarge": 0.22, "r5.xlarge": 0.30}))
    return path
