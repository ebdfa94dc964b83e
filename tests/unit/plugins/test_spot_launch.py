"""aws_spot auto: the lookup's choice, the fleet that launches from it, and the log that both share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.evidence import Evidence, add_log
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.log import (
    SpotError,
    append,
    instance_runs,
    interruptions_in_a_row,
    parse_time,
    read_log,
    spent_on_demand,
    stamp,
)
from moto import mock_aws

from support import ROOT
from support.module_runner import load, run
from umccr_pcgr.consumer.config import QueueSettings
from umccr_pcgr.consumer.notes import Notes
from umccr_pcgr.consumer.sqs import S3Store

REGION = "ap-southeast-2"
NOW = "2026-11-23T00:00:00Z"
POOLS = [{"type": "m6i.xlarge", "zone": f"{REGION}b"}, {"type": "m5.xlarge", "zone": f"{REGION}a"}]


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setattr(load("modules.ec2_instance").time, "sleep", lambda _seconds: None)
    with mock_aws():
        yield


def ec2() -> Any:
    return boto3.client("ec2", region_name=REGION)


def managed(**more: Any) -> dict[str, Any]:
    image = ec2().describe_images()["Images"][0]["ImageId"]
    return run(
        "ec2_instance",
        **(
            {
                "name": "demo",
                "region": REGION,
                "image": image,
                "instance_type": "c5.large",
                "volume_gb": 20,
                "spot": True,
            }
            | more
        ),
    )


def events(path: Path) -> list[tuple[str, str]]:
    return [(event["event"], event["machine"]) for event in map(json.loads, path.read_text().splitlines())]


# ---- the fleet


def test_an_instance_comes_from_the_pools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    launch = load("module_utils._spot.launch")
    plain = launch.fleet

    class Client:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def create_fleet(self, **arguments: Any) -> Any:
            asked.append(arguments)
            return self.inner.create_fleet(**arguments)

    monkeypatch.setattr(launch, "fleet", lambda client, *more: plain(Client(client), *more))
    log = tmp_path / "state/spot.jsonl"
    answer = managed(pools=POOLS, log=str(log))
    assert (answer["instance"]["type"], answer["instance"]["spot"]) == ("m6i.xlarge", True), answer
    [arguments] = asked
    assert arguments["SpotOptions"]["AllocationStrategy"] == "price-capacity-optimized"
    assert arguments["Type"] == "instant"
    assert arguments["LaunchTemplateConfigs"][0]["Overrides"] == [
        {"InstanceType": pool["type"], "AvailabilityZone": pool["zone"]} for pool in POOLS
    ]
    assert ec2().describe_launch_templates()["LaunchTemplates"] == []
    [launched] = read_log(str(log))
    assert (launched["market"], launched["type"], launched["name"]) == ("spot", "m6i.xlarge", "demo")
    assert launched["usd_per_hour"] == answer["usd_per_hour"] > 0
    assert managed(pools=POOLS, log=str(log))["changed"] is False
    assert [kind for kind, _machine in events(log)] == ["launched", "seen"]


def test_what_a_fleet_is_asked_for() -> None:
    launch = load("module_utils._spot.launch")

    class Client:
        def create_launch_template(self, **arguments: Any) -> Any:
            self.template = arguments["LaunchTemplateData"]
            self.deleted = ""
            return {"LaunchTemplate": {"LaunchTemplateId": "lt-1"}}

        def create_fleet(self, **arguments: Any) -> Any:
            self.asked = arguments
            self.overrides = arguments["LaunchTemplateConfigs"][0]["Overrides"]
            return {"Instances": [{"InstanceIds": ["i-1"]}]}

        def delete_launch_template(self, LaunchTemplateId: str) -> None:
            self.deleted = LaunchTemplateId

    client, tag = Client(), {"Key": "k", "Value": "v"}
    arguments = {"ImageId": "ami", "MinCount": 1, "MaxCount": 1, "InstanceType": "t", "SubnetId": "subnet-1"}
    assert launch.fleet(client, arguments, [*POOLS, POOLS[0] | {"zone": "other"}], tag) == "i-1"
    assert client.template == {"ImageId": "ami"}
    assert client.overrides == [{"InstanceType": pool["type"], "SubnetId": "subnet-1"} for pool in POOLS]
    assert client.asked["TargetCapacitySpecification"]["TotalTargetCapacity"] == 1
    assert client.asked["SpotOptions"]["InstanceInterruptionBehavior"] == "terminate"
    launch.fleet(client, {}, [{"type": f"t{number}", "zone": "z"} for number in range(400)], tag)
    assert len(client.overrides) == 300  # more are refused
    client.create_fleet = lambda **_unused: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        launch.fleet(client, {}, POOLS, tag)
    assert client.deleted == "lt-1"


def test_no_capacity_is_told_or_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import botocore.client

    plain = botocore.client.BaseClient._make_api_call

    def refuse(self: Any, operation: str, arguments: Any) -> Any:
        if operation == "CreateFleet":
            return {
                "Instances": [],
                "Errors": [{"ErrorCode": "InsufficientInstanceCapacity", "ErrorMessage": "none left"}],
            }
        return plain(self, operation, arguments)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", refuse)
    failed = managed(pools=POOLS)
    assert failed["msg"] == "no spot instance in any of 2 pools: InsufficientInstanceCapacity: none left"
    assert ec2().describe_launch_templates()["LaunchTemplates"] == []
    log = tmp_path / "spot.jsonl"
    answer = managed(pools=POOLS, fallback_type="r5.xlarge", log=str(log))
    assert (answer["instance"]["type"], answer["instance"]["spot"]) == ("r5.xlarge", False)
    assert answer["fallback_reason"] == failed["msg"]
    assert read_log(str(log))[0]["market"] == "on-demand"


def test_the_log_learns_what_became_of_instances(tmp_path: Path) -> None:
    log = tmp_path / "spot.jsonl"
    ours = managed(pools=POOLS, log=str(log))["instance"]["id"]
    append(
        str(log), "launched", parse_time(NOW), machine="i-gone", type="m5.xlarge", zone="z", market="spot", name="demo"
    )
    append(
        str(log),
        "launched",
        parse_time(NOW),
        machine="i-other",
        type="m5.xlarge",
        zone="z",
        market="spot",
        name="other",
    )
    run("ec2_instance", name="demo", region=REGION, state="absent", log=str(log), check=True)
    assert len(events(log)) == 3
    run("ec2_instance", name="demo", region=REGION, state="absent", log=str(log))
    assert events(log)[3:] == [("ended", "i-gone"), ("seen", ours), ("ended", ours)]
    assert run("ec2_instance", name="demo", region=REGION, state="found", log=str(log))["instance"] == {}
    assert len(events(log)) == 6


def test_an_interruption_is_told_from_an_end() -> None:
    launch = load("module_utils._spot.launch")

    class Client:
        reason = "Server.SpotInstanceTermination"
        state = "terminated"
        when = "Server.SpotInstanceTermination (2026-11-22 10:00:00 GMT)"

        def describe_instances(self, **_unused: Any) -> Any:
            state = {"State": {"Name": self.state}, "StateReason": {"Code": self.reason}}
            found = state | {"StateTransitionReason": self.when}
            return {"Reservations": [{"Instances": [found]}]}

    def reconciled(path: Path, reason: str) -> dict[str, Any]:
        append(
            str(path),
            "launched",
            parse_time("2026-11-22T08:00:00Z"),
            machine="i-1",
            type="t",
            zone="z",
            market="spot",
            name="demo",
        )
        Client.reason = reason
        launch.reconcile(Client(), str(path), "demo")
        return read_log(str(path))[-1]

    with tempfile.TemporaryDirectory() as folder:
        lost = reconciled(Path(folder) / "a", "Server.SpotInstanceTermination")
        assert (lost["event"], lost["time"]) == ("interrupted", parse_time("2026-11-22T10:00:00Z"))
        assert reconciled(Path(folder) / "b", "Client.InstanceInitiatedShutdown")["event"] == "ended"
        Client.state, Client.when = "shutting-down", "without a time"
        began = time.time()
        ended = reconciled(Path(folder) / "c", "Client.InstanceInitiatedShutdown")
        assert ended["event"] == "ended"
        assert ended["time"] > began - 1  # the log has milliseconds


def test_a_launch_is_logged_with_market_and_price(tmp_path: Path) -> None:
    launch, log = load("module_utils._spot.launch"), str(tmp_path / "log")
    for spot, price in ((True, 0.5), (False, None)):
        launch.record_launch(log, {"id": "i", "type": "t", "zone": "z", "spot": spot}, "demo", price)
    found = [(one["market"], one["usd_per_hour"], one["zone"]) for one in read_log(log)]
    assert found == [("spot", 0.5, "z"), ("on-demand", None, "z")]


def test_only_own_instances_that_may_live_are_looked_at(tmp_path: Path) -> None:
    log, seen, asked = str(tmp_path / "log"), round(time.time()) - 60, []
    for name, event in (("demo", "seen"), ("demo", "ended"), ("other", "seen")):
        machine = f"{name}-{event}"
        append(log, "launched", seen - 60, machine=machine, type="t", zone="z", market="spot", name=name)
        append(log, event, seen, machine=machine)

    class Client:
        def describe_instances(self, Filters: Any) -> Any:
            asked.extend(one["Values"] for one in Filters)
            return {"Reservations": []}

    load("module_utils._spot.launch").reconcile(Client(), log, "demo")
    assert asked == [["demo-seen"]]
    last = json.loads(Path(log).read_text().splitlines()[-1])  # until when it was last seen
    assert last == {"time": stamp(seen), "event": "ended", "machine": "demo-seen", "unknown": True}


# ---- notes of the machines

BUCKET = "samples"
OURS, GONE = "i-0123456789abcdef0", "i-0000000000000000a"


@pytest.fixture
def s3() -> Any:
    found = boto3.client("s3", region_name=REGION)
    found.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    return found


def consumer(machine: str) -> Notes:
    """The consumer's own writer of notes."""
    return Notes(S3Store(QueueSettings("sqs", name="demo", region=REGION)), BUCKET, lambda: machine)


def launched(path: Path, machine: str, hours_ago: float) -> None:
    moment = datetime.now(UTC).timestamp() - hours_ago * 3600
    append(str(path), "launched", moment, machine=machine, type="m5.xlarge", zone="z", market="spot", name="demo")


def look(path: Path, **more: Any) -> dict[str, Any]:
    return run("ec2_instance", name="demo", region=REGION, state="found", log=str(path), notes_bucket=BUCKET, **more)


def test_the_log_gets_what_instances_have_noted_once(tmp_path: Path, s3: Any) -> None:
    log = tmp_path / "log"
    launched(log, OURS, 2)
    consumer(OURS).sample("0123456789abcdef", 5040)
    consumer("i-0b").sample("0123456789abcdef", 1800)  # one that was not launched from here
    consumer(GONE).interrupted()
    s3.put_object(Bucket=BUCKET, Key="demo-000001-somatic-output.tar.gz", Body=b"")
    look(log, check=True)
    assert len(events(log)) == 1
    for _unused in range(2):
        look(log)
        assert sorted(events(log)[1:4]) == [("interrupted", GONE), ("sample", OURS), ("sample", "i-0b")]
        assert events(log)[4:] == [("ended", OURS)]  # AWS does not know it
    [sample] = [event for event in read_log(str(log)) if (event["event"], event["machine"]) == ("sample", OURS)]
    assert sample["hours"] == 1.4
    assert set(sample) == {"time", "event", "machine", "attempt", "hours"}
    evidence = Evidence()
    add_log(evidence, read_log(str(log)), [], str(log))
    assert sorted(evidence.sample_hours) == [0.5, 1.4]
    consumer(OURS).sample("0123456789abcdee", 60)  # later than the end was written
    look(log)
    assert len(events(log)) == 6


def test_no_bucket_no_notes(tmp_path: Path) -> None:
    launched(tmp_path / "log", OURS, 2)
    assert look(tmp_path / "log")["instance"] == {}
    assert events(tmp_path / "log")[1:] == [("ended", OURS)]


@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        ("0a", b"x", "found 'x', allowed an object"),
        ("0b", b"[" * 5000, "allowed an object"),
        ("0c", b'{"time": "2026-11-23T00:00:00Z", "event": "sample", "machine": "i-0f", "hours": 1}', "sample of i-0f"),
        ("0e", b'{"time": "2026-11-23T00:00:00Z", "event": "interrupted", "machine": "%s"}' % OURS.encode(), "interrupted of"),
        ("interrupted", b'{"time": "2026-11-23T00:00:00Z", "event": "ended", "machine": "%s"}' % OURS.encode(), "ended of"),
        ("0f", b'{"time": "2026-11-23T00:00:00Z", "event": "sample", "machine": "%s", "hours": Infinity}' % OURS.encode(), "hours"),
    ],
)  # fmt: skip
def test_a_bad_note_is_told_and_left_out(tmp_path: Path, s3: Any, name: str, body: bytes, told: str) -> None:
    log, key = tmp_path / "log", f"machines/{OURS}/{name}.json"
    s3.put_object(Bucket=BUCKET, Key=key, Body=body)
    s3.put_object(Bucket=BUCKET, Key=f"machines/{OURS}/readme.txt", Body=b"x")  # no note at all
    consumer("i-0b").sample("0f", 60)
    [refusal] = load("module_utils._spot.launch").collect_notes(s3, BUCKET, str(log))
    assert refusal.startswith(f"s3://{BUCKET}/{key}: ")
    assert told in refusal
    assert key in json.dumps(look(log)["warnings"])
    assert events(log) == [("sample", "i-0b")]


def test_an_interruption_counts_once_whoever_tells_first(
    tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, now = load("module_utils._spot.launch"), datetime.now(UTC)

    class Client:
        def describe_instances(self, **_unused: Any) -> Any:
            state = {"State": {"Name": "terminated"}, "StateReason": {"Code": launch.INTERRUPTED}}
            reason = f"Server.SpotInstanceTermination ({now:%Y-%m-%d %H:%M:%S} GMT)"
            return {"Reservations": [{"Instances": [state | {"StateTransitionReason": reason}]}]}

    notes, log = consumer(OURS), tmp_path / "log"

    def note() -> None:
        launch.collect_notes(s3, BUCKET, str(log))

    def reconcile() -> None:
        launch.reconcile(Client(), str(log), "demo")

    for steps in ((note, reconcile), (reconcile, note), (note, reconcile, note, reconcile)):
        log.unlink(missing_ok=True)
        launched(log, OURS, 1)
        notes.interrupted()
        for step in steps:
            step()
        assert [kind for kind, _unused in events(log)] == ["launched", "interrupted"], steps
        later = now.timestamp() + 60
        assert interruptions_in_a_row(instance_runs(read_log(str(log)), later), "demo", later) == 1


def test_a_loss_that_only_the_machine_has_told_of_counts(tmp_path: Path, s3: Any) -> None:
    """AWS forgets a machine an hour after its end."""
    for told, count in ((False, 0), (True, 1)):
        log = tmp_path / str(told)
        launched(log, OURS, 5)
        if told:
            consumer(OURS).interrupted()
        look(log)
        now = datetime.now(UTC).timestamp() + 1
        assert interruptions_in_a_row(instance_runs(read_log(str(log)), now), "demo", now) == count


# ---- the log


def write(path: Path, *ends: str, market: str = "spot") -> None:
    """Machines of an hour each, the newest last, that ended so."""
    for number, end in enumerate(ends):
        start = parse_time(NOW) - (len(ends) - number) * 2 * 3600
        append(
            str(path),
            "launched",
            start,
            machine=f"i-{number}",
            type="m5.xlarge",
            zone="z",
            market=market,
            name="demo",
            usd_per_hour=0.2,
        )
        append(str(path), end, start + 3600, machine=f"i-{number}")


def test_losses_in_a_row_and_money_spent(tmp_path: Path) -> None:
    now = parse_time(NOW)
    for ends, count in (
        (["interrupted"] * 3, 3),
        (["interrupted", "ended", "interrupted"], 1),
        (["interrupted", "ended"], 0),
    ):
        path = tmp_path / "-".join(ends)
        write(path, *ends)
        found = instance_runs(read_log(str(path)), now)
        assert interruptions_in_a_row(found, "demo", now) == count
        assert (
            interruptions_in_a_row(found, "other", now) == interruptions_in_a_row(found, "demo", now + 48 * 3600) == 0
        )
        assert spent_on_demand(found, "demo", now) == 0
    path = tmp_path / "demand"
    write(path, "ended", "seen", market="on-demand")
    path.write_text(path.read_text() + "\n")
    assert instance_runs(read_log(str(path)), now - 24 * 3600) == []
    found = instance_runs(read_log(str(path)), now)
    assert spent_on_demand(found, "demo", now) == pytest.approx(0.2 * (1 + 2))  # the second still runs
    assert spent_on_demand(found, "demo", now + 31 * 24 * 3600) == pytest.approx(0.2 * 30 * 24)
    assert interruptions_in_a_row(found, "demo", now) == 0
    assert spent_on_demand(found, "other", now) == 0
    unpriced = [run_._replace(usd_per_hour=None) for run_ in found]
    assert spent_on_demand(unpriced, "demo", now, {"m5.xlarge": 0.1}) == pytest.approx(0.1 * (1 + 2))
    # A machine on demand is no spot machine that was lost; after its end nothing changes that.
    taken = [run_._replace(interrupted=True) for run_ in found]
    assert interruptions_in_a_row(taken, "demo", now) == 0
    path = tmp_path / "over"
    write(path, "interrupted")
    append(str(path), "seen", now, machine="i-0")
    [run_] = instance_runs(read_log(str(path)), now)
    assert (run_.interrupted, run_.over, run_.hours) == (True, True, 1)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("x", "line 2: found 'x'"),
        ('{"event": "ended", "machine": "i"}', "line 2"),
        ('{"time": "2026-11-23T00:00:00Z", "event": "born", "machine": "i"}', "line 2"),
        (
            '{"time": "2026-11-23T00:00:00Z", "event": "launched", "machine": "i", "type": "t", "zone": "z", "market": "grey"}',
            "market: found 'grey'",
        ),
        ('{"time": "2026-11-23T00:00:00Z", "event": "sample", "machine": "i", "hours": 0}', "hours: found 0"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "log"
    append(str(path), "seen", parse_time(NOW), machine="i")
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(SpotError, match=told):
        read_log(str(path))


def test_a_log_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"\xff")
    with pytest.raises(SpotError, match="log: cannot be read"):
        read_log(str(tmp_path / "log"))


def test_times_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX-9")
        time.tzset()
        assert parse_time("2026-11-23T00:00:00") == parse_time(NOW)  # one without zone is UTC, wherever we are
    time.tzset()
    assert stamp(1.9996) == "1970-01-01T00:00:02.000Z"


# ---- the lookup


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    prices = [
        {
            "AvailabilityZone": f"{REGION}{zone}",
            "InstanceType": f"{family}.xlarge",
            "ProductDescription": "Linux/UNIX",
            "SpotPrice": price,
            "Timestamp": "2026-06-01T00:00:00Z",
        }
        for family, price in (("m5", "0.08"), ("m6i", "0.09"), ("r5", "0.10"))
        for zone in "ab"
    ]
    (tmp_path / "prices.json").write_text(json.dumps(prices))
    (tmp_path / "demand.json").write_text(json.dumps({"m5.xlarge": 0.24, "m6i.xlarge": 0.25, "r5.xlarge": 0.30}))
    return {
        "history": [str(tmp_path / "prices.json")],
        "on_demand": str(tmp_path / "demand.json"),
        "log": str(tmp_path / "log"),
        "now": NOW,
    }


def ansible(*types: str, **options: Any) -> str:
    """Output of a playbook's expression, by the real program."""
    arguments = [repr(kind) for kind in types] + [f"{name}={value!r}" for name, value in options.items()]
    message = "{{ lookup('umccr.pcgr.spot', " + ", ".join(arguments) + ") }}"
    command = [
        Path(sys.executable).with_name("ansible"),
        "localhost",
        "-m",
        "debug",
        "-a",
        json.dumps({"msg": message}),
    ]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300, env=os.environ | {"COLUMNS": "500"}
    ).stdout


def choice(*types: str, **options: Any) -> dict[str, Any]:
    out = ansible(*types, **options)
    assert "SUCCESS" in out, out
    found: dict[str, Any] = yaml.safe_load(out[out.index("=>") + 2 :])["msg"]
    return found


def test_the_lookup_picks_a_set_and_says_why(files: dict[str, Any]) -> None:
    found = choice(regions=[REGION], **files)
    assert (found["spot"], found["on_demand_type"], found["maximum_price"]) == (True, None, None)
    assert {(pool["type"], pool["zone"]) for pool in found["pools"]} == {
        (f"{f}.xlarge", f"{REGION}{z}") for f in ("m5", "m6i", "r5") for z in "ab"
    }
    assert found["why"][0].startswith(
        "6 spot pools of 3 types in 2 zones; best m5.xlarge in ap-southeast-2a, 0.0800 US dollars per hour, 33% of"
    )
    assert found["why"][-1] == "never on demand: no budget for it"
    assert {row["type"] for row in choice("m5.xlarge", **files)["rows"]} == {"m5.xlarge"}


def test_on_demand_after_losses_within_the_budget(files: dict[str, Any]) -> None:
    write(Path(files["log"]), "interrupted", "interrupted")
    budget = {"name": "demo", "losses": 2, "budget_usd": 10.0, "budget_hours": 24.0}
    found = choice(**files, **budget)
    assert (found["spot"], found["on_demand_type"]) == (False, "m5.xlarge")
    assert "interrupted 2 times in a row" in " ".join(found["why"])
    for other in ({"losses": 3}, {"name": "someone else"}):
        found = choice(**files, **(budget | other))
        assert (found["spot"], found["on_demand_type"]) == (True, "m5.xlarge")
    found = choice(**files, **(budget | {"budget_usd": 5.0}))
    assert (found["spot"], found["on_demand_type"]) == (True, None)
    assert (
        found["why"][-1]
        == "not on demand: m5.xlarge for 24 h would cost 5.76 US dollars on demand, 0.00 of 5.00 spent in 30 days"
    )


def test_the_lookup_refuses_in_one_line(files: dict[str, Any]) -> None:
    out = ansible("x9.large", **files)
    assert "FAILED" in out
    assert "no price of type x9.large; the history has m5.xlarge, m6i.xlarge, r5.xlarge" in out
    assert "now: Invalid isoformat string" in ansible(**(files | {"now": "yesterday"}))
