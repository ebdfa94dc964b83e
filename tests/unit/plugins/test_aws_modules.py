"""Modules aws_owned_info, ec2_instance and s3_queue_notification against a look-alike of AWS."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws

from support import ROOT
from support.module_runner import load, run
from umccr_pcgr.client import status

REGION = "ap-southeast-2"
SUFFIXES = ["-somatic.tar.gz", "-normal.tar.gz"]


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setattr(load("modules.ec2_instance").time, "sleep", lambda _seconds: None)
    with mock_aws():
        yield


def ec2() -> Any:
    return boto3.client("ec2", region_name=REGION)


def image() -> str:
    found: str = ec2().describe_images()["Images"][0]["ImageId"]
    return found


def managed(**more: Any) -> dict[str, Any]:
    return run(
        "ec2_instance",
        **({"name": "demo", "region": REGION, "image": image(), "instance_type": "m5.xlarge", "volume_gb": 20} | more),
    )


def described(answer: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = ec2().describe_instances(InstanceIds=[answer["instance"]["id"]])["Reservations"][0][
        "Instances"
    ][0]
    return found


def test_instance_is_launched_once_and_found_again() -> None:
    first = managed()
    assert first["changed"] is True, first
    second = managed()
    assert second["changed"] is False
    assert second["instance"] == first["instance"]


def test_instance_terminates_itself_and_guards_its_credentials() -> None:
    found = managed(spot=True, volume_gb=50)
    attribute = ec2().describe_instance_attribute(
        InstanceId=found["instance"]["id"], Attribute="instanceInitiatedShutdownBehavior"
    )
    assert attribute["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate"
    options = described(found)["MetadataOptions"]
    assert (options["HttpTokens"], options["HttpPutResponseHopLimit"]) == ("required", 1)
    assert described(found)["InstanceLifecycle"] == "spot"
    assert found["instance"]["spot"] is True
    volume = ec2().describe_volumes()["Volumes"][0]
    assert (volume["Size"], volume["Encrypted"]) == (50, True)


def test_data_volume_is_blank_or_of_a_snapshot_and_is_deleted_with_the_instance() -> None:
    assert managed(name="none")["instance"]["data_volume"] is None
    blank = managed(name="blank", data_volume_gb=7)
    (volume,) = ec2().describe_volumes(VolumeIds=[blank["instance"]["data_volume"]])["Volumes"]
    assert (volume["Size"], volume["Encrypted"], volume["VolumeType"]) == (7, True, "gp3")
    assert all(device["Ebs"]["DeleteOnTermination"] for device in described(blank)["BlockDeviceMappings"])
    assert managed(name="blank")["instance"] == blank["instance"]
    snapshot = ec2().create_snapshot(VolumeId=volume["VolumeId"])["SnapshotId"]
    filled = managed(name="filled", data_snapshot=snapshot)
    (volume,) = ec2().describe_volumes(VolumeIds=[filled["instance"]["data_volume"]])["Volumes"]
    assert (volume["Size"], volume["SnapshotId"]) == (7, snapshot)


def test_on_demand_is_not_spot() -> None:
    assert managed()["instance"]["spot"] is False


def test_stopped_instance_is_started() -> None:
    first = managed()
    ec2().stop_instances(InstanceIds=[first["instance"]["id"]])
    again = managed()
    assert again["changed"] is True
    assert again["instance"]["id"] == first["instance"]["id"]


def test_terminated_instance_is_replaced() -> None:
    first = managed()
    ec2().terminate_instances(InstanceIds=[first["instance"]["id"]])
    assert managed()["instance"]["id"] != first["instance"]["id"]


def test_instance_of_another_name_is_not_touched() -> None:
    other = managed(name="other")
    answer = managed(name="demo", state="absent")
    assert answer["changed"] is False
    assert described(other)["State"]["Name"] == "running"
    assert managed(name="other", state="absent")["terminated"] == [other["instance"]["id"]]


def test_two_instances_are_not_guessed_between() -> None:
    first = managed()
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "umccr.pcgr", "Value": "demo"}]}]
    ec2().run_instances(ImageId=image(), MinCount=1, MaxCount=1, TagSpecifications=tags)
    answer = managed()
    assert answer["failed"]
    assert first["instance"]["id"] in answer["msg"]


def test_check_mode_launches_nothing() -> None:
    answer = managed(check=True)
    assert answer["changed"] is True
    assert ec2().describe_instances()["Reservations"] == []


def test_unknown_image_is_one_line() -> None:
    answer = managed(image="ami-00000000000000000")
    assert answer["failed"]
    assert "ami-00000000000000000" in answer["msg"]


def owned(**more: Any) -> dict[str, Any]:
    return run("aws_owned_info", **({"name": "demo", "region": REGION} | more))


def test_nothing_is_there() -> None:
    answer = owned(queues=["demo"], role="demo-machine", key_name="demo", security_group="demo")
    assert answer["foreign"] == []
    assert answer["bucket"] == f"pcgr-{answer['account']}-{REGION}"
    assert not any(state["exists"] for group in answer["resources"].values() for state in group.values())


@pytest.mark.parametrize("value", ["demo", "someone-else", None])
def test_ours_and_others_are_told_apart(value: str | None) -> None:
    tags = [{"Key": "umccr.pcgr", "Value": value}] if value else [{"Key": "Name", "Value": "demo"}]
    plain = {tag["Key"]: tag["Value"] for tag in tags}
    s3 = boto3.client("s3", region_name=REGION)
    s3.create_bucket(Bucket="demo-bucket", CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_bucket_tagging(Bucket="demo-bucket", Tagging={"TagSet": tags})
    boto3.client("sqs", region_name=REGION).create_queue(QueueName="demo", tags=plain)
    boto3.client("iam").create_role(RoleName="demo-machine", AssumeRolePolicyDocument="{}", Tags=tags)
    boto3.client("iam").create_instance_profile(InstanceProfileName="demo-machine", Tags=tags)
    for kind, make in {
        "key-pair": lambda spec: ec2().create_key_pair(KeyName="demo", TagSpecifications=spec),
        "security-group": lambda spec: ec2().create_security_group(
            GroupName="demo", Description="x", TagSpecifications=spec
        ),
    }.items():
        make([{"ResourceType": kind, "Tags": tags}])
    answer = owned(
        bucket="demo-bucket",
        queues=["demo"],
        role="demo-machine",
        instance_profile="demo-machine",
        key_name="demo",
        security_group="demo",
    )
    states = [state for group in answer["resources"].values() for state in group.values()]
    assert len(states) == 6
    assert all(state["exists"] for state in states)
    assert {state["ours"] for state in states} == {value == "demo"}
    assert len(answer["foreign"]) == (0 if value == "demo" else 6)


def group_of(vpc: str, value: str | None) -> str:
    """A security group called demo in a network; with our tag when there is a value."""
    tags = [{"Key": "umccr.pcgr", "Value": value}] if value else [{"Key": "Name", "Value": "demo"}]
    made = ec2().create_security_group(
        GroupName="demo",
        Description="x",
        VpcId=vpc,
        TagSpecifications=[{"ResourceType": "security-group", "Tags": tags}],
    )
    return str(made["GroupId"])


@pytest.fixture
def networks() -> tuple[str, str, str]:
    """The default network, another one, and a subnet of the other one."""
    (default,) = (vpc["VpcId"] for vpc in ec2().describe_vpcs()["Vpcs"])
    other = ec2().create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2().create_subnet(VpcId=other, CidrBlock="10.9.1.0/24")["Subnet"]["SubnetId"]
    return default, other, subnet


@pytest.mark.parametrize("by", ["subnet", "vpc"])
def test_our_group_elsewhere_does_not_hide_a_strangers_group(networks: tuple[str, str, str], by: str) -> None:
    default, other, subnet = networks
    ours, theirs = group_of(default, "demo"), group_of(other, None)
    answer = owned(security_group="demo", **{by: subnet if by == "subnet" else other})
    assert answer["vpc"] == other
    assert answer["resources"]["security group"]["demo"] == {"exists": True, "ours": False, "id": theirs}
    assert answer["foreign"] == ["security group demo"]
    assert answer["our_security_groups"] == [ours]


def test_a_strangers_group_elsewhere_does_not_count(networks: tuple[str, str, str]) -> None:
    default, other, _subnet = networks
    group_of(other, None)
    answer = owned(security_group="demo")
    assert answer["vpc"] == default
    assert (answer["foreign"], answer["our_security_groups"]) == ([], [])
    ours = group_of(default, "demo")
    assert owned(security_group="demo")["resources"]["security group"]["demo"]["id"] == ours


def test_a_network_that_cannot_be_is_one_line(networks: tuple[str, str, str]) -> None:
    default, _other, subnet = networks
    for more, said in (
        ({"subnet": "subnet-0123abcd"}, "subnet-0123abcd"),
        ({"subnet": subnet, "vpc": default}, default),
    ):
        answer = owned(security_group="demo", **more)
        assert answer["failed"] and said in answer["msg"] and "\n" not in answer["msg"]


def test_no_default_network_is_no_error() -> None:
    for group in ec2().describe_subnets()["Subnets"]:
        ec2().delete_subnet(SubnetId=group["SubnetId"])
    (vpc,) = ec2().describe_vpcs()["Vpcs"]
    ec2().delete_vpc(VpcId=vpc["VpcId"])
    answer = owned(security_group="demo")
    assert (answer["vpc"], answer["foreign"]) == (None, [])


def test_bucket_with_a_hidden_version_is_not_empty() -> None:
    s3 = boto3.client("s3", region_name=REGION)
    s3.create_bucket(Bucket="demo-bucket", CreateBucketConfiguration={"LocationConstraint": REGION})
    assert owned(bucket="demo-bucket")["resources"]["bucket"]["demo-bucket"]["empty"] is True
    s3.put_bucket_versioning(Bucket="demo-bucket", VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket="demo-bucket", Key="x", Body=b"x")
    s3.delete_object(Bucket="demo-bucket", Key="x")
    assert owned(bucket="demo-bucket")["resources"]["bucket"]["demo-bucket"]["empty"] is False


@pytest.fixture
def queue_arn() -> str:
    boto3.client("s3", region_name=REGION).create_bucket(
        Bucket="demo-bucket", CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    sqs = boto3.client("sqs", region_name=REGION)
    url = sqs.create_queue(QueueName="demo")["QueueUrl"]
    arn: str = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    return arn


def notifications() -> list[dict[str, Any]]:
    answer = boto3.client("s3", region_name=REGION).get_bucket_notification_configuration(Bucket="demo-bucket")
    found: list[dict[str, Any]] = answer.get("QueueConfigurations", [])
    return found


def events(arn: str, *, check: bool = False, **more: Any) -> dict[str, Any]:
    arguments = {"bucket": "demo-bucket", "region": REGION, "queue_arn": arn, "suffixes": SUFFIXES} | more
    return run("s3_queue_notification", check=check, **arguments)


def test_events_are_set_once_beside_those_of_others(queue_arn: str) -> None:
    s3 = boto3.client("s3", region_name=REGION)
    theirs = {"Id": "theirs", "QueueArn": queue_arn, "Events": ["s3:ObjectCreated:Put"]}
    s3.put_bucket_notification_configuration(
        Bucket="demo-bucket", NotificationConfiguration={"QueueConfigurations": [theirs]}
    )
    assert events(queue_arn, check=True)["changed"] is True
    assert len(notifications()) == 1
    assert events(queue_arn)["changed"] is True
    assert len(notifications()) == 3
    assert events(queue_arn)["changed"] is False
    assert events(queue_arn, state="absent")["changed"] is True
    assert [item["Id"] for item in notifications()] == ["theirs"]


def test_only_samples_reach_the_queue(queue_arn: str) -> None:
    events(queue_arn)
    s3 = boto3.client("s3", region_name=REGION)
    for key in ("in/a-000001-somatic.tar.gz", "b-000002-normal.tar.gz", "in/a-000001-somatic-output.tar.gz", "x.json"):
        s3.put_object(Bucket="demo-bucket", Key=key, Body=b"x")
    sqs = boto3.client("sqs", region_name=REGION)
    found = sqs.receive_message(QueueUrl=sqs.get_queue_url(QueueName="demo")["QueueUrl"], MaxNumberOfMessages=10)
    keys = {
        record["s3"]["object"]["key"]
        for message in found["Messages"]
        for record in json.loads(message["Body"]).get("Records", [])
    }
    assert {key.rpartition("%2F")[2].rpartition("/")[2] for key in keys} == {
        "a-000001-somatic.tar.gz",
        "b-000002-normal.tar.gz",
    }


def test_answers_of_s3_that_mean_the_same_are_no_change() -> None:
    module = load("modules.s3_queue_notification")
    mine = {
        "Id": "i",
        "QueueArn": "a",
        "Events": ["e"],
        "Filter": {"Key": {"FilterRules": [{"Name": "suffix", "Value": "x"}]}},
    }
    rules = [{"Name": "Prefix", "Value": ""}, {"Name": "Suffix", "Value": "x"}]
    theirs = mine | {"Filter": {"Key": {"FilterRules": rules}}}
    assert module.comparable([mine]) == module.comparable([theirs])
    assert module.comparable([mine]) != module.comparable([mine | {"Events": ["f"]}])


def test_price_list_entry() -> None:
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": "0.2400000000"}}
    product = {"terms": {"OnDemand": {"A.B": {"priceDimensions": {"A.B.C": dimension}}}}}
    assert load("modules.ec2_instance").listed_price(json.dumps(product)) == 0.24


def test_events_show_their_difference(queue_arn: str) -> None:
    queue = {"queue": queue_arn, "events": ["s3:ObjectCreated:*"], "filter": {"suffix": "-somatic.tar.gz"}}
    wanted = {"umccr-pcgr-somatic": queue}
    assert "diff" not in events(queue_arn, check=True)
    asked = {"suffixes": ["-somatic.tar.gz"], "_ansible_diff": True}
    for check in (True, False):
        assert events(queue_arn, check=check, **asked)["diff"] == {"before": {}, "after": wanted}
    assert events(queue_arn, **asked)["diff"] == {"before": wanted, "after": wanted}
    assert events(queue_arn, state="absent", **asked)["diff"] == {"before": wanted, "after": {}}


def test_the_tag_is_the_same_wherever_it_is_named() -> None:
    """The inventory cannot import it, and the client must work without the collection."""
    tag = load("module_utils._aws_client").TAG
    assert owned()["tags"] == {tag: "demo"}
    assert tag == status.TAG
    inventory = yaml.safe_load((ROOT / "inventory/aws_ec2.yml").read_text())
    assert inventory["filters"]["tag-key"] == tag
    assert inventory["compose"]["aws_name"] == f"tags['{tag}']"
    for path in [
        *ROOT.glob("roles/*/tasks/*.yml"),
        *ROOT.glob("roles/*/vars/*.yml"),
        *ROOT.glob("plugins/modules/*.py"),
    ]:
        literal = re.compile(rf"""['"]{re.escape(tag)}['"]|{re.escape(tag)}=""")
        assert not literal.search(path.read_text()), path


def test_the_action_group_has_every_aws_module() -> None:
    *ours, extended = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["action_groups"]["aws"]
    modules = [path for path in ROOT.glob("plugins/modules/*.py") if "AnsibleAWSModule" in path.read_text()]
    assert sorted(ours) == sorted(path.stem for path in modules)
    assert extended == {"metadata": {"extend_group": ["amazon.aws.aws", "community.aws.aws"]}}
    for path in modules:
        assert "  - umccr.pcgr.aws\n" in path.read_text(), f"{path.name}: does not document the group"
