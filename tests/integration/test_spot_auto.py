"""aws_spot: auto in the local region: the set, the fleet, the words, the log; on demand after a loss, within the budget only.

The guests are one boot sector: what is asked here is answered before a system is up. The tests run in the order they stand in.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.log import append, read_log

import harness
from support.localcloud import settings
from support.region import Region
from umccr_pcgr.consumer.config import QueueSettings
from umccr_pcgr.consumer.notes import Notes
from umccr_pcgr.consumer.sqs import S3Store

pytestmark = pytest.mark.slow

NAME = "pcgr-spot"
ZONES = [f"ap-southeast-2{letter}" for letter in "abc"]
SPOT = {"m5.xlarge": 0.08, "m6i.xlarge": 0.09, "r5.xlarge": 0.10}  # US dollars per hour, made up
SIZES = {
    "m5.xlarge": (4, 16),
    "m6i.xlarge": (4, 16),
    "r5.xlarge": (4, 32),
    "m5.large": (2, 8),
}  # vCPUs, GiB; the last is too small
ON_DEMAND = {"m5.xlarge": 0.24, "m6i.xlarge": 0.25, "r5.xlarge": 0.30}


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    """A region whose machines start at once, with files of prices beside it."""
    folder = tmp_path_factory.mktemp("region")
    prices = [
        {
            "AvailabilityZone": zone,
            "InstanceType": kind,
            "ProductDescription": "Linux/UNIX",
            "SpotPrice": str(price),
            "Timestamp": f"{datetime.now(UTC) - timedelta(days=40):%Y-%m-%dT%H:%M:%SZ}",
        }
        for kind, price in (SPOT | {"m5.large": 0.04}).items()
        for zone in ZONES
    ]
    (folder / "prices.json").write_text(json.dumps({"SpotPriceHistory": prices}))
    advisor = {
        "spot_advisor": {"ap-southeast-2": {"Linux": {kind: {"s": 67, "r": 1} for kind in SIZES}}},
        "instance_types": {kind: {"cores": cores, "ram_gb": memory} for kind, (cores, memory) in SIZES.items()},
    }
    (folder / "advisor.json").write_text(json.dumps(advisor))
    (folder / "demand.json").write_text(json.dumps(ON_DEMAND))
    key = harness.make_key(folder / "key")
    harness.MIRROR.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings(folder).items():
            patch.setenv(name, value)
        with harness.local_region(folder / "cloud", folder / "log") as environment:
            patch.setenv("AWS_ENDPOINT_URL", environment["AWS_ENDPOINT_URL"])  # for the consumer's part, played here
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.setenv(name, environment[name])
            more = {
                "aws_name": NAME,
                "aws_bucket": NAME,
                "aws_volume_gb": 1,
                "aws_spot": "auto",
                "aws_spot_vcpus": 4,
                "aws_spot_memory_gib": 16,
                "aws_spot_advisor": str(folder / "advisor.json"),
                "aws_spot_history": [str(folder / "prices.json")],
                "aws_spot_on_demand": str(folder / "demand.json"),
                "aws_spot_log": str(folder / "spot.jsonl"),
                "aws_spot_losses": 1,
                "aws_spot_budget_usd": 6,
            }
            yield Region(environment, folder, key, harness.key_variables(key) | more)


def play(region: Region, name: str, *options: str, **variables: Any) -> str:
    """Run a playbook as far as the controller goes; what it said."""
    before = region.log.stat().st_size
    tasks = harness.run_playbook(
        name, region.variables | variables, region.environment, region.log, "--limit", "localhost", *options
    )
    for task in tasks:
        print(task)
    return region.log.read_text()[before:]


def machines(region: Region) -> list[dict[str, Any]]:
    """Ours that run."""
    answer = region.client("ec2").describe_instances(
        Filters=[{"Name": "tag:umccr.pcgr", "Values": [NAME]}, {"Name": "instance-state-name", "Values": ["running"]}]
    )
    return [instance for group in answer["Reservations"] for instance in group["Instances"]]


def log(region: Region) -> list[dict[str, Any]]:
    return read_log(str(region.folder / "spot.jsonl"))


def events(region: Region) -> list[str]:
    return [event["event"] for event in log(region)]


def until_ended(region: Region, instance: str) -> dict[str, Any]:
    end = time.monotonic() + 60
    while True:
        answer = region.client("ec2").describe_instances(InstanceIds=[instance])
        found: dict[str, Any] = answer["Reservations"][0]["Instances"][0]
        if found["State"]["Name"] == "terminated":
            return found
        assert time.monotonic() < end
        time.sleep(0.2)


def decision(said: str) -> list[str]:
    """The lines of the task that says what was decided."""
    found = re.search(r"msg:\n((?: +.*\n)+?)\n", said[said.index("Say where the machine is launched, and why") :])
    assert found
    return [" ".join(line.split()).strip("'") for line in re.split(r"(?:^|\n) +- ", found[1])][1:]


def test_auto_picks_a_set_launches_from_it_and_says_why(region: Region) -> None:
    said = play(region, "aws.yml")
    assert decision(said) == [
        "spot",
        "9 spot pools of 3 types in 3 zones; best m5.xlarge in ap-southeast-2a, 0.0800 US dollars per hour, 33% of on demand, "
        "rests on price 40 d, class 5-10%",
        "a sample is assumed to take 1 h; say --sample-hours",
        "interrupted 0 times in a row within a day; on demand after 1",
        "on demand is in the budget: m5.xlarge for 24 h would cost 5.76 US dollars on demand, 0.00 of 6.00 spent in 30 days",
    ]
    [machine] = machines(region)
    assert (machine["InstanceLifecycle"], machine["InstanceType"]) == ("spot", "m5.xlarge")
    [fleet] = region.client("ec2").describe_fleets()["Fleets"]
    assert fleet["SpotOptions"]["AllocationStrategy"] == "price-capacity-optimized"
    overrides = fleet["LaunchTemplateConfigs"][0]["Overrides"]
    pools = {(one["InstanceType"], one["AvailabilityZone"]) for one in overrides}
    assert pools == {(kind, zone) for kind in SPOT for zone in ZONES}
    [event] = log(region)
    assert {name: event[name] for name in ("event", "machine", "type", "zone", "market", "name")} == {
        "event": "launched",
        "machine": machine["InstanceId"],
        "type": "m5.xlarge",
        "zone": machine["Placement"]["AvailabilityZone"],
        "market": "spot",
        "name": NAME,
    }


def test_a_machine_that_is_there_is_kept(region: Region) -> None:
    before = machines(region)
    said = play(region, "aws.yml", "--tags", "aws")
    assert "changed=0 " in said
    assert "pools of" not in said  # nothing is decided
    assert machines(region) == before
    assert events(region)[1:].count("seen") == len(events(region)) - 1 > 0


def test_after_a_loss_it_is_on_demand_within_the_budget(region: Region) -> None:
    [lost] = machines(region)
    store = S3Store(QueueSettings("sqs", name=NAME, region=ZONES[0][:-1]))
    notes = Notes(store, NAME, lambda: str(lost["InstanceId"]))  # the part of the machine, which is none
    notes.sample("0123456789abcdef", 5400)
    notes.interrupted()
    command = [sys.executable, "-m", "localcloud", "interrupt", lost["InstanceId"], "--seconds", "0"]
    subprocess.run(command, cwd=harness.ROOT, env=region.environment, check=True)
    assert until_ended(region, lost["InstanceId"])["StateReason"]["Code"] == "Server.SpotInstanceTermination"

    said = play(region, "aws.yml", "--tags", "aws")
    words = decision(said)
    assert words[0] == "on demand: m5.xlarge"
    assert words[1].startswith(
        "9 spot pools of 3 types in 3 zones; best m5.xlarge in ap-southeast-2b, "
    )  # it has learnt
    assert words[-2:] == [
        "interrupted 1 times in a row within a day; on demand after 1",
        "on demand is in the budget: m5.xlarge for 24 h would cost 5.76 US dollars on demand, 0.00 of 6.00 spent in 30 days",
    ]
    [machine] = machines(region)
    assert ("InstanceLifecycle" in machine, machine["InstanceType"]) == (False, "m5.xlarge")
    assert (events(region).count("interrupted"), events(region).count("sample")) == (1, 1)  # EC2 tells of the loss too
    assert (log(region)[-1]["event"], log(region)[-1]["market"]) == ("launched", "on-demand")
    table = subprocess.run(
        [
            *(
                sys.executable,
                harness.ROOT / "scripts/spot_price",
                "--history",
                region.variables["aws_spot_history"][0],
            ),
            *("--log", region.variables["aws_spot_log"], "--samples", "2"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert table.stdout.startswith("2 samples of 1.5 h (median of 1 samples in our own log)")


def test_beyond_the_budget_it_is_spot_in_spite_of_the_loss(region: Region) -> None:
    [machine] = machines(region)
    region.client("ec2").terminate_instances(InstanceIds=[machine["InstanceId"]])
    until_ended(region, machine["InstanceId"])
    path, ago = str(region.folder / "spot.jsonl"), datetime.now(UTC).timestamp() - 5 * 24 * 3600
    life = {"machine": "i-0a", "type": "m5.xlarge", "zone": ZONES[0], "market": "on-demand", "name": NAME}
    append(path, "launched", ago, **life)
    append(path, "ended", ago + 2 * 3600, machine="i-0a")

    words = decision(play(region, "aws.yml", "--tags", "aws"))
    assert words[0] == "spot"
    assert words[-2:] == [
        "interrupted 1 times in a row within a day; on demand after 1",
        "not on demand: m5.xlarge for 24 h would cost 5.76 US dollars on demand, 0.48 of 6.00 spent in 30 days",
    ]
    [machine] = machines(region)
    assert (machine["InstanceLifecycle"], log(region)[-1]["market"]) == ("spot", "spot")


def test_teardown_ends_the_machine_and_the_log_knows(region: Region) -> None:
    [machine] = machines(region)
    assert "Nothing is left." in play(region, "aws_teardown.yml", intake_delete_data=True)
    assert machines(region) == []
    assert (events(region).count("interrupted"), events(region).count("sample")) == (
        1,
        1,
    )  # the notes were there at each run
    assert ("ended", machine["InstanceId"]) in [(event["event"], event["machine"]) for event in log(region)]
