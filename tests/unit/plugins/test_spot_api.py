"""scripts/spot_price and AWS: a server on loopback that answers as EC2 does, in pages, for several regions, and refuses as it does."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs

import pytest
from ansible_collections.umccr.pcgr.plugins.module_utils._spot import api as spot_api
from ansible_collections.umccr.pcgr.plugins.module_utils._spot import record as spot_record
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.evidence import Evidence
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.log import SpotError, parse_time
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.price_list import listed_price, price_filters
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from support.spot import NOW, spot_price

REGION, OTHER = "ap-southeast-2", "us-east-1"
PAGE = 2
PRODUCT = "Linux/UNIX"
Change = tuple[str, str, str, str]  # zone, type, price, time


class Aws(BaseHTTPRequestHandler):
    """EC2's query protocol and the price list's JSON, for what spot_price asks."""

    changes: ClassVar[dict[str, list[Change]]] = {}
    refusals: ClassVar[dict[tuple[str, str], tuple[int, str]]] = {}  # (action, region) to status and code
    asked: ClassVar[list[tuple[str, str, dict[str, str]]]] = []
    waiting: ClassVar[threading.Barrier | None] = None

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        region = re.findall(r"/\d{8}/([a-z0-9-]+)/", self.headers["Authorization"])[0]
        if target := self.headers.get("X-Amz-Target"):
            self._answer(200, self._products(json.loads(body)) if "GetProducts" in target else "{}")
            return
        query = {name: values[0] for name, values in parse_qs(body).items()}
        action = query["Action"]
        self.asked.append((action, region, query))
        if refusal := self.refusals.get((action, region)):
            status, code = refusal
            self._answer(
                status,
                f"<Response><Errors><Error><Code>{code}</Code><Message>no\nway</Message></Error></Errors></Response>",
            )
            return
        self._answer(200, f"<{action}Response>{getattr(self, f'_{action}')(region, query)}</{action}Response>")

    def _DescribeSpotPriceHistory(self, region: str, query: dict[str, str]) -> str:
        if self.waiting and "NextToken" not in query:
            self.waiting.wait(timeout=30)  # all regions are asked at the same time, or the test fails here
        types = {value for name, value in query.items() if name.startswith("InstanceType.")}
        start, end = parse_time(query["StartTime"]), parse_time(query["EndTime"])
        found = []
        for zone, kind, price, at in sorted(self.changes.get(region, []), key=lambda change: change[3], reverse=True):
            later = [
                c for c in self.changes[region] if c[:2] == (zone, kind) and parse_time(at) < parse_time(c[3]) <= start
            ]
            if (not types or kind in types) and parse_time(at) <= end and not later:
                found.append(
                    f"<item><instanceType>{kind}</instanceType><productDescription>{PRODUCT}</productDescription><spotPrice>{price}</spotPrice>"
                    f"<timestamp>{at}</timestamp><availabilityZone>{zone}</availabilityZone></item>"
                )
        first = int(query.get("NextToken", 0))
        token = str(first + PAGE) if first + PAGE < len(found) else ""
        return f"<spotPriceHistorySet>{''.join(found[first : first + PAGE])}</spotPriceHistorySet><nextToken>{token}</nextToken>"

    def _DescribeAvailabilityZones(self, region: str, _query: dict[str, str]) -> str:
        zones = "".join(
            f"<item><zoneName>{region}{letter}</zoneName><zoneId>id-az{index}</zoneId></item>"
            for index, letter in enumerate("abc")
        )
        return f"<availabilityZoneInfo>{zones}</availabilityZoneInfo>"

    def _DescribeInstanceTypes(self, _region: str, _query: dict[str, str]) -> str:
        def entry(kind: str, vcpus: int, gib: int, processor: str, disk: int) -> str:
            return (
                f"<item><instanceType>{kind}</instanceType><vCpuInfo><defaultVCpus>{vcpus}</defaultVCpus></vCpuInfo>"
                f"<memoryInfo><sizeInMiB>{gib * 1024}</sizeInMiB></memoryInfo>"
                f"<instanceStorageInfo><totalSizeInGB>{disk}</totalSizeInGB></instanceStorageInfo>"
                f"<processorInfo><supportedArchitectures><item>{processor}</item></supportedArchitectures></processorInfo></item>"
            )

        types = [("m5.xlarge", 4, 16, "x86_64", 0), ("m5d.xlarge", 4, 16, "x86_64", 150), ("m6g.xlarge", 4, 16, "arm64", 0),
                 ("c5.large", 2, 4, "x86_64", 0)]  # fmt: skip
        return f"<instanceTypeSet>{''.join(entry(*one) for one in types)}</instanceTypeSet>"

    def _GetSpotPlacementScores(self, region: str, _query: dict[str, str]) -> str:
        item = f"<item><region>{region}</region><availabilityZoneId>id-az1</availabilityZoneId><score>7</score></item>"
        return f"<spotPlacementScoreSet>{item}</spotPlacementScoreSet>"

    @staticmethod
    def _products(query: dict[str, Any]) -> str:
        fields = {one["Field"]: one["Value"] for one in query["Filters"]}
        price = {"m5.xlarge": "0.24", "m5d.xlarge": "0.28"}.get(fields["instanceType"])
        term = {"terms": {"OnDemand": {"t": {"priceDimensions": {"d": {"pricePerUnit": {"USD": price}}}}}}}
        return json.dumps({"PriceList": [json.dumps(term)] if price and fields["regionCode"] == REGION else []})

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_unused: object) -> None:
        pass


@pytest.fixture
def aws() -> Iterator[dict[str, str]]:
    """The environment of somebody who uses the server."""
    Aws.changes, Aws.refusals, Aws.asked, Aws.waiting = {}, {}, [], None
    server = ThreadingHTTPServer(("127.0.0.1", 0), Aws)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_MAX_ATTEMPTS": "1",
    }
    server.shutdown()
    thread.join()
    server.server_close()


def changes(region: str = REGION, *kinds: str) -> list[Change]:
    return [
        (f"{region}{zone}", kind, f"{(8 + step) / 100:.6f}", f"2026-11-{day:02}T00:00:00.000Z")
        for kind in kinds or ("m5.xlarge",)
        for zone in "ab"
        for step, day in enumerate((1, 10, 20))
    ]


def ranked(aws: dict[str, str], *arguments: str) -> dict[str, Any]:
    done = spot_price("--now", NOW, "--format", "json", *arguments, **aws)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_all_pages_are_read_and_empty_zones_told(aws: dict[str, str]) -> None:
    Aws.changes = {REGION: changes()}
    found = ranked(aws, "-r", REGION, "-t", "m5.xlarge")
    assert [(row["zone"], row["zone_id"], row["changes"]) for row in found["rows"]] == [
        (f"{REGION}a", "id-az0", 2),
        (f"{REGION}b", "id-az1", 2),
    ]
    assert found["rows"][0]["share"] == pytest.approx(0.10 / 0.24)
    assert found["rows"][0]["on_demand"] == 0.24
    assert any(f"no price in {REGION}c" in note for note in found["notes"])
    assert (
        sum(action == "DescribeSpotPriceHistory" for action, _region, _query in Aws.asked) == 3
    )  # six records, two a page


def test_regions_are_asked_side_by_side(aws: dict[str, str]) -> None:
    Aws.changes = {REGION: changes(), OTHER: changes(OTHER)}
    Aws.waiting = threading.Barrier(2)
    found = ranked(aws, "-r", f"{REGION},{OTHER}", "-t", "m5.xlarge", "--placement-scores")
    assert {row["region"] for row in found["rows"]} == {REGION, OTHER}
    assert {row["zone"]: row["score"] for row in found["rows"]}[f"{REGION}b"] == 7


def test_requirements_choose_the_types(aws: dict[str, str]) -> None:
    Aws.changes = {REGION: changes(REGION, "m5.xlarge", "m5d.xlarge", "m6g.xlarge", "c5.large")}
    assert {row["type"] for row in ranked(aws, "-r", REGION)["rows"]} == {"m5.xlarge", "m5d.xlarge"}
    sizes, prices = (
        next(query for action, _region, query in Aws.asked if action == wanted)
        for wanted in ("DescribeInstanceTypes", "DescribeSpotPriceHistory")
    )
    assert (sizes["Filter.1.Name"], sizes["Filter.1.Value.1"]) == ("supported-usage-class", "spot")
    assert prices["ProductDescription.1"] == PRODUCT
    assert {value for name, value in prices.items() if name.startswith("InstanceType.")} == {"m5.xlarge", "m5d.xlarge"}
    assert {row["type"] for row in ranked(aws, "-r", REGION, "--disk-gb", "100")["rows"]} == {"m5d.xlarge"}


def test_legacy_asks_for_the_window_and_gets_the_price_before_it(aws: dict[str, str]) -> None:
    Aws.changes = {REGION: [(f"{REGION}a", "c4.large", "0.100000", "2026-10-01T00:00:00.000Z")]}
    done = spot_price("--mode", "legacy", "-r", REGION, "-p", PRODUCT, "-b", "c4.large:0.06", "--now", NOW, **aws)
    assert done.stdout.splitlines()[1:] == [f"0.0\tc4.large\t{REGION}a"], done.stderr
    assert f"no price known in {REGION}b, {REGION}c" in done.stderr
    query = next(query for action, _region, query in Aws.asked if action == "DescribeSpotPriceHistory")
    assert parse_time(query["EndTime"]) - parse_time(query["StartTime"]) == 168 * 3600


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (403, "UnauthorizedOperation", f"{REGION}: not allowed to call ec2:DescribeSpotPriceHistory"),
        (503, "RequestLimitExceeded", f"{REGION}: AWS throttles ec2:DescribeSpotPriceHistory (RequestLimitExceeded)"),
        (401, "AuthFailure", "AWS does not accept the credentials (AuthFailure)"),
        (400, "InvalidParameterValue", "ec2:DescribeSpotPriceHistory: InvalidParameterValue: no way"),
    ],
)
@pytest.mark.parametrize(
    "mode", [["-t", "m5.xlarge"], ["--mode", "legacy", "-p", PRODUCT, "-b", "m5.xlarge:0.1"], ["record"]]
)
def test_what_aws_refuses_is_one_line(
    aws: dict[str, str], tmp_path: Path, mode: list[str], status: int, code: str, told: str
) -> None:
    Aws.refusals = {("DescribeSpotPriceHistory", REGION): (status, code)}
    file = [str(tmp_path / "prices.json")] if mode == ["record"] else []
    done = spot_price(*mode, *file, "-r", REGION, **aws)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pcgr-spot: ") and done.stderr.count("\n") == 1
    assert told in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_one_line(aws: dict[str, str]) -> None:
    done = spot_price("-r", REGION, "-t", "m5.xlarge", **(aws | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Could not connect" in done.stderr


def test_throttled_requests_are_tried_again(aws: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    Aws.refusals = {("DescribeSpotPriceHistory", REGION): (503, "RequestLimitExceeded")}
    spot_price("-r", REGION, "-t", "m5.xlarge", **(aws | {"AWS_MAX_ATTEMPTS": "3"}))
    assert sum(action == "DescribeSpotPriceHistory" for action, _region, _query in Aws.asked) == 3


# ---- clients and answers, in process


def test_how_often_and_how_long_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def attempts(service: str) -> tuple[int, str | None, float]:
        config = spot_api.Account().client(service, REGION).meta.config
        assert config.user_agent_extra == "umccr.pcgr/spot"
        return config.retries["total_max_attempts"], config.retries.get("mode"), config.read_timeout

    monkeypatch.delenv("AWS_MAX_ATTEMPTS", raising=False)
    assert attempts("ec2") == (8, "standard", 60)
    assert attempts("pricing")[::2] == (2, 10)  # asked beside the prices: nobody waits long
    assert spot_api.Account().client("pricing", REGION).meta.config.connect_timeout == 10
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    assert attempts("ec2") == (3, "standard", 60)


def test_every_refusal_is_told_apart() -> None:
    def told(error: Exception) -> str:
        with pytest.raises(SpotError) as caught, spot_api.errors("ec2:Call", "here"):
            raise error
        return str(caught.value)

    for codes, text in (
        (("UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "UnauthorizedAccess"), "here: not allowed to call ec2:Call"),
        (("RequestLimitExceeded", "Throttling", "ThrottlingException", "TooManyRequestsException", "MaxConfigLimitExceeded"), "here: AWS throttles ec2:Call"),
        (("AuthFailure", "OptInRequired", "InvalidClientTokenId", "UnrecognizedClientException", "ExpiredToken"), "here: AWS does not accept the credentials"),
        (("Other",), "here: ec2:Call: Other: "),
    ):  # fmt: skip
        for code in codes:
            assert told(ClientError({"Error": {"Code": code}}, "Call")).startswith(text)
    assert told(NoCredentialsError()).startswith("no AWS credentials")

    class Torn(BotoCoreError):
        fmt = "two\n lines"

    assert told(Torn()) == "here: ec2:Call: two lines"


class Fake(spot_api.Account):
    """An account whose one client answers what is given, and keeps what it was asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.asked = answers, []

    def client(self, service: str, region: str) -> Any:
        return self

    def __getattr__(self, call: str) -> Any:
        return lambda **arguments: self.asked.append(arguments) or self.answers[call]

    def get_paginator(self, call: str) -> Any:
        self.call = call
        return self

    def paginate(self, **arguments: Any) -> Any:
        self.asked.append(arguments)
        return self.answers[self.call]


def test_pages_report_progress_and_leave_types_out_when_none_are_named() -> None:
    fake = Fake(describe_spot_price_history=[{"SpotPriceHistory": [{}, {}]}, {"SpotPriceHistory": [{}]}])
    told: list[tuple[str, int]] = []
    more: dict[str, Any] = {"product": PRODUCT, "start": 0, "end": 1}
    spot_api.price_history(fake, [REGION], types=[], progress=lambda *one: told.append(one), **more)
    assert told == [(REGION, 2), (REGION, 3)]
    spot_api.price_history(fake, [REGION], types=["t"], **more)
    assert [one.get("InstanceTypes") for one in fake.asked] == [None, ["t"]]


def test_zones_and_sizes() -> None:
    zones = [{"ZoneName": "a"}, {"ZoneName": "b", "ZoneId": "id", "ZoneType": "availability-zone"}, {"ZoneName": "c", "ZoneType": "local-zone"}]  # fmt: skip
    evidence = Evidence()
    fake = Fake(describe_availability_zones={"AvailabilityZones": zones}, describe_instance_types=[])
    spot_api.add_zones(evidence, fake, REGION)
    assert evidence.zones == {"a": "", "b": "id"}
    spot_api.add_sizes(evidence, fake, REGION, ["t"])
    assert fake.asked[-1]["InstanceTypes"] == ["t"]


def test_placement_scores_are_of_zones_or_of_the_region() -> None:
    scores = [{"Region": REGION, "AvailabilityZoneId": "id", "Score": 7}, {"Region": OTHER, "Score": 3}]
    evidence, fake = Evidence(), Fake(get_spot_placement_scores={"SpotPlacementScores": scores})
    spot_api.add_placement_scores(evidence, fake, REGION, ["t", "u"], 5)
    assert evidence.scores == {"id": 7, OTHER: 3}
    assert evidence.sources == {"placement score": "GetSpotPlacementScores now, for 5 of 2 types"}
    assert fake.asked == [{"InstanceTypes": ["t", "u"], "TargetCapacity": 5, "TargetCapacityUnitType": "units",
                           "SingleAvailabilityZone": True, "RegionNames": [REGION]}]  # fmt: skip


@pytest.mark.parametrize(
    ("product", "system"),
    [("Linux/UNIX", "Linux"), ("SUSE Linux", "SUSE"), ("Windows", "Windows"), ("Red Hat Enterprise Linux", "RHEL"), ("?", "Linux")],
)  # fmt: skip
def test_the_price_list_is_asked_for_a_plain_machine(product: str, system: str) -> None:
    def entry(**dollars: str) -> str:
        return json.dumps({"terms": {"OnDemand": {"t": {"priceDimensions": {"d": {"pricePerUnit": dollars}}}}}})

    evidence = Evidence()
    spot_api.add_price_list(evidence, Fake(get_products={"PriceList": [entry(CNY="9")]}), REGION, "t", product)
    assert (evidence.on_demand, evidence.sources, listed_price('{"terms": {}}')) == ({}, {}, 0)
    fake = Fake(get_products={"PriceList": [entry(USD="0.5")]})
    spot_api.add_price_list(evidence, fake, REGION, "t", product)
    assert evidence.on_demand == {(REGION, "t"): 0.5}
    assert evidence.sources == {"on-demand price": "AWS price list now"}
    assert fake.asked == [{"ServiceCode": "AmazonEC2", "Filters": price_filters("t", REGION, system)}]
    wanted = {one["Field"]: one["Value"] for one in fake.asked[0]["Filters"] if one["Type"] == "TERM_MATCH"}
    assert wanted == {"instanceType": "t", "regionCode": REGION, "operatingSystem": system, "preInstalledSw": "NA",
                      "tenancy": "Shared", "capacitystatus": "Used"}  # fmt: skip


# ---- record


def record(aws: dict[str, str], path: Path, now: str, *more: str) -> str:
    done = spot_price("record", path, "-r", REGION, "--now", now, *more, **aws)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_record_appends_without_gaps_or_repeats(aws: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    Aws.changes = {REGION: changes()}
    assert "4 new prices, 4 in all" in record(aws, path, "2026-11-15T00:00:00Z")
    assert "2 new prices, 6 in all" in record(aws, path, NOW)
    assert "0 new prices, 6 in all" in record(aws, path, NOW)
    content = json.loads(path.read_text())
    stored = {
        (one["AvailabilityZone"], one["InstanceType"], one["SpotPrice"], one["Timestamp"])
        for one in content["SpotPriceHistory"]
    }
    assert stored == set(changes())
    assert len(content["SpotPriceHistory"]) == 6
    times = [one["Timestamp"] for one in content["SpotPriceHistory"]]
    assert times == sorted(times, reverse=True)
    assert path.stat().st_mode & 0o777 == 0o644
    assert content["Recorded"] == [
        {
            "Region": REGION,
            "ProductDescription": PRODUCT,
            "From": "2026-08-17T00:00:00.000Z",
            "To": "2026-11-23T00:00:00.000Z",
        }
    ]
    starts = [
        query["StartTime"]
        for action, _region, query in Aws.asked
        if action == "DescribeSpotPriceHistory" and "NextToken" not in query
    ]
    assert [parse_time(start) for start in starts[1:]] == [parse_time("2026-11-15T00:00:00Z"), parse_time(NOW)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["prices.json"]


def test_record_refuses_what_would_leave_a_gap(aws: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    Aws.changes = {REGION: changes()}
    record(aws, path, "2026-11-15T00:00:00Z")
    before = path.read_bytes()
    for more, told in (
        (["--now", "2027-06-01T00:00:00Z"], "AWS keeps 90 days"),
        (["-t", "m5.xlarge", "--now", NOW], "use another file"),
    ):
        done = spot_price("record", path, "-r", REGION, *more, **aws)
        assert done.returncode == 2
        assert told in done.stderr and done.stderr.count("\n") == 1
    assert path.read_bytes() == before


def test_record_refuses_a_file_of_unknown_extent_and_a_folder_that_is_not_there(
    aws: dict[str, str], tmp_path: Path
) -> None:
    Aws.changes = {REGION: changes()}
    names = ("AvailabilityZone", "InstanceType", "SpotPrice", "Timestamp")
    plain = [dict(zip(names, one, strict=True)) | {"ProductDescription": PRODUCT} for one in changes()]
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    for name, told in (("plain.json", "was not written by record"), ("none/prices.json", "cannot be written")):
        done = spot_price("record", tmp_path / name, "-r", REGION, "--now", NOW, **aws)
        assert done.returncode == 2
        assert told in done.stderr and done.stderr.count("\n") == 1
    with pytest.raises(TypeError):
        spot_record._write(str(tmp_path / "fresh.json"), {"no": object()})
    assert [entry.name for entry in tmp_path.iterdir()] == ["plain.json"]


def test_record_keeps_regions_apart(aws: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    Aws.changes = {REGION: changes(), OTHER: changes(OTHER)}
    record(aws, path, "2026-11-15T00:00:00Z", "-t", "m5.xlarge")
    done = spot_price("record", path, "-r", OTHER, "--now", NOW, **aws)
    assert "6 new prices, 10 in all" in done.stdout, done.stderr
    assert "2 new prices, 12 in all" in record(aws, path, NOW, "-t", "m5.xlarge")
    spans = {one["Region"]: one for one in json.loads(path.read_text())["Recorded"]}
    assert len(json.loads(path.read_text())["Recorded"]) == 2
    assert [spans[region].get("InstanceTypes") for region in (REGION, OTHER)] == [["m5.xlarge"], None]


def test_a_recorded_file_is_ranked(aws: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    Aws.changes = {REGION: changes()}
    record(aws, path, NOW)
    done = spot_price("--history", path, "--now", NOW, "--format", "json")
    assert [row["changes"] for row in json.loads(done.stdout)["rows"]] == [2, 2]
