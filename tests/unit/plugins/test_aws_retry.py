"""The AWS modules repeat what AWS throttles, and treat what AWS does not know yet as pending."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.client
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from support.module_runner import load, run

REGION = "ap-southeast-2"
INSTANCE = {"name": "demo", "region": REGION, "instance_type": "m5.xlarge", "volume_gb": 20}
POOLS = [{"type": "m6i.xlarge", "zone": f"{REGION}b"}, {"type": "m5.xlarge", "zone": f"{REGION}a"}]


def refusal(code: str, operation: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "slower"}, "ResponseMetadata": {}}, operation)  # type: ignore[typeddict-item]


class Throttle:
    """Answers the first `times` calls of each operation with an error of `code`; counts all calls."""

    def __init__(self, plain: Any) -> None:
        self.plain, self.times, self.code = plain, 0, "RequestLimitExceeded"
        self.calls: Counter[str] = Counter()
        self.tokens: dict[str, set[str]] = {}

    def start(self, times: int, code: str = "RequestLimitExceeded") -> None:
        self.calls.clear()
        self.times, self.code = times, code

    def __call__(self, client: Any, operation: str, arguments: dict[str, Any]) -> Any:
        self.calls[operation] += 1
        self.tokens.setdefault(operation, set()).add(arguments.get("ClientToken", ""))
        if self.calls[operation] <= self.times:
            raise refusal(self.code, operation)
        return self.plain(client, operation, arguments)


@pytest.fixture
def throttle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Throttle]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setattr(load("modules.ec2_instance").time, "sleep", lambda _seconds: None)
    found = Throttle(botocore.client.BaseClient._make_api_call)

    def call(client: Any, operation: str, arguments: dict[str, Any]) -> Any:  # a method, as an object would not be
        return found(client, operation, arguments)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", call)
    with mock_aws():
        yield found


def image() -> str:
    found: str = boto3.client("ec2", region_name=REGION).describe_images()["Images"][0]["ImageId"]
    return found


@pytest.mark.parametrize("code", ["RequestLimitExceeded", "SlowDown"])
@pytest.mark.parametrize("pools", [[], POOLS])
def test_ec2_instance_repeats_every_throttled_call(
    throttle: Throttle, tmp_path: Path, code: str, pools: list[dict[str, str]]
) -> None:
    boto3.client("s3", region_name=REGION).create_bucket(
        Bucket="notes", CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    more = {"log": str(tmp_path / "log"), "notes_bucket": "notes"}
    arguments = INSTANCE | more | {"image": image(), "spot": True, "pools": pools}
    throttle.start(2, code)
    first = run("ec2_instance", **arguments)
    assert first.get("changed") is True, first
    assert first["usd_per_hour"]
    launch = "CreateFleet" if pools else "RunInstances"
    assert throttle.calls[launch] == 3
    assert (
        len(throttle.tokens[launch]) == 1 and "" not in throttle.tokens[launch]
    )  # AWS launches one, however often asked
    ec2 = boto3.client("ec2", region_name=REGION)
    throttle.start(0)
    ec2.stop_instances(InstanceIds=[first["instance"]["id"]])
    throttle.start(2, code)
    again = run("ec2_instance", **arguments)
    assert (again.get("changed"), again["instance"]["id"]) == (True, first["instance"]["id"])
    throttle.start(2, code)
    ended = run("ec2_instance", name="demo", region=REGION, state="absent", **more)
    assert ended.get("terminated") == [first["instance"]["id"]], ended


def test_the_other_modules_repeat_every_throttled_call(throttle: Throttle) -> None:
    place = {"LocationConstraint": REGION}
    boto3.client("s3", region_name=REGION).create_bucket(Bucket="demo", CreateBucketConfiguration=place)  # type: ignore[arg-type]
    url = boto3.client("sqs", region_name=REGION).create_queue(QueueName="demo")["QueueUrl"]
    assert url
    arn = f"arn:aws:sqs:{REGION}:123456789012:demo"
    boto3.client("iam").create_role(RoleName="demo", AssumeRolePolicyDocument="{}")
    boto3.client("iam").create_instance_profile(InstanceProfileName="demo")
    throttle.start(2)
    answer = run("s3_queue_notification", bucket="demo", region=REGION, queue_arn=arn, suffixes=["x"])
    assert answer.get("changed") is True, answer
    assert throttle.calls["PutBucketNotificationConfiguration"] == 3
    throttle.start(2)
    named = {"bucket": "demo", "queues": ["demo"], "role": "demo", "instance_profile": "demo", "key_name": "demo"}
    answer = run("aws_owned_info", name="demo", region=REGION, security_group="demo", **named)
    assert answer.get("foreign") == ["bucket demo", "queue demo", "role demo", "instance profile demo"], answer
    assert throttle.calls["GetCallerIdentity"] == 3


def test_what_is_throttled_for_long_is_one_error(throttle: Throttle) -> None:
    throttle.start(1000)
    answer = run("aws_owned_info", name="demo", region=REGION)
    assert answer["failed"] and "RequestLimitExceeded" in answer["msg"]
    assert throttle.calls["GetCallerIdentity"] == 8


def test_what_is_refused_is_not_repeated(throttle: Throttle) -> None:
    throttle.start(1000, "UnauthorizedOperation")
    assert run("aws_owned_info", name="demo", region=REGION)["failed"]
    assert throttle.calls["GetCallerIdentity"] == 1


def test_an_instance_that_ec2_does_not_know_yet_is_pending(throttle: Throttle, monkeypatch: pytest.MonkeyPatch) -> None:
    module, unknown = load("modules.ec2_instance"), iter([True, True])

    class Client:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def describe_instances(self, **arguments: Any) -> Any:
            if "InstanceIds" in arguments and next(unknown, False):
                raise refusal("InvalidInstanceID.NotFound", "DescribeInstances")
            return self.inner.describe_instances(**arguments)

    plain = module.retrying
    monkeypatch.setattr(module, "retrying", lambda *arguments: Client(plain(*arguments)))
    answer = run("ec2_instance", **INSTANCE, image=image())
    assert answer.get("changed") is True, answer
    assert next(unknown, None) is None
