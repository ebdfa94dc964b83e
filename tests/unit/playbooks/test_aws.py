"""The playbooks for AWS on this machine, against a look-alike of AWS on the loopback interface; no instance boots."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from support import ROOT

pytestmark = pytest.mark.plays

REGION = "eu-west-2"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8mcPyIvKCkSqs1NmTKuGDvLdHjSyxmYR7ZQ3uvGe5J someone\n"
BUCKET = f"pcgr-123456789012-{REGION}"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test-id", "AWS_SECRET_ACCESS_KEY": "test-secret"}


class Account:
    """An empty account of the look-alike, and the playbooks run in it."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        self.endpoint, self.folder = endpoint, folder
        folder.joinpath("key.pub").write_text(KEY)
        self.image = self.client("ec2").describe_images()["Images"][0]["ImageId"]
        # Nothing listens there, so a connection to the instance fails at once.
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.closed_port = probe.getsockname()[1]

    def client(self, service: str) -> Any:
        make: Any = boto3.client
        return make(
            service,
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id="x",
            aws_secret_access_key="y",
        )

    def play(
        self,
        name: str,
        *,
        region: str | None = REGION,
        endpoint: str | None = None,
        extra: tuple[str, ...] = (),
        **settings: Any,
    ) -> Any:
        """Run a playbook; connections that are meant for the instance go to a closed port of this machine."""
        variables = {
            "aws_image": self.image,
            "aws_ssh_cidr": "127.0.0.0/8",
            "aws_public_key_file": str(self.folder / "key.pub"),
            "aws_guest_endpoint_url": self.endpoint,
            "aws_ssh_port": self.closed_port,
            "aws_wait_seconds": 2,
            "ansible_host": "127.0.0.1",
            "pcgr_release": "rehearsal",
        } | settings
        path = ROOT / "playbooks" / name  # a path of its own stays as it is
        command = [Path(sys.executable).with_name("ansible-playbook"), path, "-e", json.dumps(variables)]
        return subprocess.run(
            [*command, *extra],
            cwd=ROOT,
            env=self.environment(region, endpoint),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def environment(self, region: str | None, endpoint: str | None = None) -> dict[str, str]:
        """Variables by which the clients reach the look-alike, and nothing else."""
        found = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")} | CREDENTIALS
        found |= {"AWS_ENDPOINT_URL": endpoint or self.endpoint, "AWS_EC2_METADATA_DISABLED": "true"}
        found |= {"AWS_CONFIG_FILE": str(self.folder / "config"), "ANSIBLE_NOCOLOR": "1"}
        return found | ({"AWS_REGION": region} if region else {})

    def inventory(self) -> dict[str, Any]:
        """What inventory/aws_ec2.yml lists in the region."""
        text = (ROOT / "inventory/aws_ec2.yml").read_text()
        path = self.folder / "aws_ec2.yml"
        path.write_text(text.replace("# regions: [eu-west-2]", f"regions: [{REGION}]"))
        command = [Path(sys.executable).with_name("ansible-inventory"), "-i", path, "--list"]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment(REGION), capture_output=True, text=True, check=True
        )
        listed: dict[str, Any] = json.loads(done.stdout)
        return listed

    def existing(self) -> dict[str, list[str]]:
        """What the account has, beside what every account has."""
        ec2, iam = self.client("ec2"), self.client("iam")
        instances = [one for group in ec2.describe_instances()["Reservations"] for one in group["Instances"]]
        return {
            "instances": [one["InstanceId"] for one in instances if one["State"]["Name"] != "terminated"],
            "keys": [one["KeyName"] for one in ec2.describe_key_pairs()["KeyPairs"]],
            "groups": [
                one["GroupId"]
                for one in ec2.describe_security_groups()["SecurityGroups"]
                if one["GroupName"] != "default"
            ],
            "roles": [one["RoleName"] for one in iam.list_roles()["Roles"]],
            "profiles": [one["InstanceProfileName"] for one in iam.list_instance_profiles()["InstanceProfiles"]],
            "queues": self.client("sqs").list_queues().get("QueueUrls", []),
            "buckets": [one["Name"] for one in self.client("s3").list_buckets()["Buckets"]],
        }


@pytest.fixture
def account(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Account]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        reset = urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset).close()
        yield Account(endpoint, tmp_path)
    finally:
        server.stop()


def lines(done: Any) -> str:
    """The output with breaks and indents of the terminal taken out."""
    return " ".join((done.stdout + done.stderr).split())


NOTHING: dict[str, list[str]] = {
    kind: [] for kind in ("instances", "keys", "groups", "roles", "profiles", "queues", "buckets")
}


# ---- refusals before anything is created


BAD_SETTINGS = {
    "aws_ssh_cidr": "0.0.0.0/0",
    "aws_public_key_file": "/nonexistent/id.pub",
    "aws_volume_gb": "big",
}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pcgr_release": "9.9.9"}, ["pcgr_release: ", "release: found '9.9.9', no such file"]),
        ({"pcgr_release": "0.9.2"}, ["its command starts docker itself"]),
        ({"pcgr_release": "1.4.1", "runtime_kind": "conda"}, ["no conda lock files are known"]),
        ({"pcgr_assemblies": ["hg19"]}, ["pcgr_assemblies: found hg19, allowed grch37, grch38"]),
        (BAD_SETTINGS, ["aws_ssh_from_anywhere", "found no file /nonexistent/id.pub", "aws_volume_gb: found 'big'"]),
        ({"intake_max_receives": 0}, ["intake_max_receives: found 0, allowed "]),
    ],
)
def test_a_refusal_precedes_every_call(account: Account, settings: dict[str, Any], said: list[str]) -> None:
    done = account.play("aws.yml", endpoint="http://127.0.0.1:1", **settings)  # a call would fail with other words
    assert done.returncode != 0
    for text in said:
        assert text in lines(done), done.stdout
    assert "caused by" not in lines(done)  # one line, not a chain of them


def test_no_region_is_assumed(account: Account) -> None:
    for name in ("aws.yml", "aws_teardown.yml"):
        done = account.play(name, region=None)
        assert done.returncode != 0
        assert "aws_region: found none, allowed a region such as" in lines(done), done.stdout
    assert account.existing() == NOTHING


# ---- what belongs to others


def test_bucket_queue_role_and_profile_of_others_are_refused_and_stay(account: Account) -> None:
    iam = account.client("iam")
    iam.create_role(RoleName="pcgr-machine", AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName="pcgr-machine")
    account.client("sqs").create_queue(QueueName="pcgr-dead")
    place = {"LocationConstraint": REGION}
    account.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration=place)
    refused_and_kept(
        account,
        [f"bucket {BUCKET}, queue pcgr-dead, role pcgr-machine, instance profile pcgr-machine, which exists already"],
    )


def test_key_pair_and_group_of_others_are_refused_and_stay(account: Account) -> None:
    ec2 = account.client("ec2")
    ec2.create_security_group(GroupName="pcgr", Description="of others")
    ec2.import_key_pair(KeyName="pcgr", PublicKeyMaterial=KEY.encode())
    refused_and_kept(
        account, ["found the key pair pcgr, which exists already", "found the security group pcgr in vpc-"]
    )


def test_a_group_of_others_in_the_subnets_network_is_refused_and_stays(account: Account) -> None:
    ec2 = account.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.1.0/24")["Subnet"]["SubnetId"]
    ec2.create_security_group(GroupName="pcgr", Description="of others", VpcId=vpc)
    refused_and_kept(account, [f"found the security group pcgr in {vpc}"], aws_subnet=subnet)


def refused_and_kept(account: Account, said: list[str], **settings: Any) -> None:
    """Neither playbook changes what the account has; the one that creates says why it stops."""
    before = account.existing(), account.client("ec2").describe_security_groups()["SecurityGroups"]
    done = account.play("aws.yml", **settings)
    assert done.returncode != 0
    for text in [*said, "is not tagged umccr.pcgr=pcgr"]:
        assert text in lines(done), done.stdout
    assert (account.existing(), account.client("ec2").describe_security_groups()["SecurityGroups"]) == before
    done = account.play("aws_teardown.yml", **settings)
    assert done.returncode == 0, done.stdout
    assert (account.existing(), account.client("ec2").describe_security_groups()["SecurityGroups"]) == before


# ---- a launch, what fails after it, and the undoing


def test_launch_failure_and_teardown(account: Account) -> None:
    done = account.play("aws.yml", extra=("-e", "aws_spot=true"), aws_ssh_cidr="2001:db8::7")
    said = lines(done)
    found = account.existing()
    (instance,) = found["instances"]
    assert done.returncode != 0  # nothing listens where SSH should
    assert f"Instance {instance} (" in said and "keeps running and is billed" in said, done.stdout
    assert "umccr.pcgr.aws_teardown -e aws_name=pcgr -e aws_region=eu-west-2" in said
    assert found | {"instances": [], "groups": []} == {
        "instances": [],
        "groups": [],
        "keys": ["pcgr"],
        "roles": ["pcgr-machine"],
        "profiles": ["pcgr-machine"],
        "queues": found["queues"],
        "buckets": [BUCKET],
    }
    assert len(found["queues"]) == 2
    ec2 = account.client("ec2")
    (details,) = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"]
    assert details["InstanceLifecycle"] == "spot"
    (group,) = ec2.describe_security_groups(GroupIds=found["groups"])["SecurityGroups"]
    (rule,) = group["IpPermissions"]
    assert [one["CidrIpv6"] for one in rule["Ipv6Ranges"]] == ["2001:db8::7/128"]
    listed = account.inventory()["_meta"]["hostvars"][instance]
    given = {name: listed[f"consumer_{name}"] for name in ("queue_region", "queue_name")}
    assert {name: value["__ansible_unsafe"] for name, value in given.items()} == {
        "queue_region": REGION,
        "queue_name": "pcgr",
    }
    assert (listed["consumer_poweroff_when_drained"], listed["consumer_max_age_hours"]) == (True, 24)
    # A stranger's group in another network neither hides ours nor is touched.
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    theirs = ec2.create_security_group(GroupName="pcgr", Description="of others", VpcId=vpc)["GroupId"]
    done = account.play("aws_teardown.yml")
    assert done.returncode == 0, done.stdout
    assert account.existing() == NOTHING | {"groups": [theirs]}


def test_what_the_instance_is_given(account: Account, tmp_path: Path) -> None:
    """Role aws alone: it powers its instances off, which no other host's settings do; a fault beside a running instance names it."""
    settings = "[hostvars[item].consumer_poweroff_when_drained, hostvars[item].consumer_max_age_hours]"
    report = {
        "ansible.builtin.debug": {"msg": "given {{ " + settings + " | to_json }}"},
        "loop": "{{ groups.pcgr_aws }}",
    }
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars": {"ansible_python_interpreter": "{{ ansible_playbook_python }}", "aws_instance_profile": None},
        "roles": ["umccr.pcgr.aws"],
        "tasks": [report],
    }
    path = tmp_path / "play.yml"
    path.write_text(json.dumps([play]))
    done = account.play(str(path))
    assert "given [true, 24]" in lines(done), done.stdout
    done = account.play(str(path), extra=("-e", "aws_poweroff_when_drained=no", "-e", "aws_max_age_hours=48"))
    assert "given [false, 48]" in lines(done), done.stdout
    (instance,) = account.existing()["instances"]
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "umccr.pcgr", "Value": "pcgr"}]}]
    account.client("ec2").run_instances(ImageId=account.image, MinCount=1, MaxCount=1, TagSpecifications=tags)
    done = account.play(str(path))
    assert done.returncode != 0
    assert "found 2 instances tagged umccr.pcgr=pcgr" in lines(done)
    assert f"Instance {instance} (" in lines(done) and "keeps running and is billed" in lines(done), done.stdout


def test_auto_launches_from_the_chosen_pools(account: Account, tmp_path: Path) -> None:
    """Role aws alone, with the facts that it publishes for whoever comes after it."""
    change = {"ProductDescription": "Linux/UNIX", "SpotPrice": "0.08", "Timestamp": "2026-01-01T00:00:00Z"}
    prices = [change | {"InstanceType": "m5.xlarge", "AvailabilityZone": f"{REGION}{zone}"} for zone in "ab"]
    (tmp_path / "prices.json").write_text(json.dumps({"SpotPriceHistory": prices}))
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars": {"ansible_python_interpreter": "{{ ansible_playbook_python }}", "aws_instance_profile": None},
        "roles": ["umccr.pcgr.aws"],
        "tasks": [
            {"ansible.builtin.debug": {"msg": "published {{ aws_instance | to_json }} end"}},
            {"ansible.builtin.import_role": {"name": "umccr.pcgr.aws", "tasks_from": "summary"}},
        ],
    }
    path, log = tmp_path / "play.yml", tmp_path / "spot.jsonl"
    path.write_text(json.dumps([play]))
    settings = {
        "aws_spot": "auto",
        "aws_spot_types": ["m5.xlarge"],
        "aws_spot_history": [str(tmp_path / "prices.json")],
        "aws_spot_on_demand": str(tmp_path / "demand.json"),
        "aws_spot_log": str(log),
    }
    (tmp_path / "demand.json").write_text('{"m5.xlarge": 0.24}')
    done = account.play(str(path), **settings)
    assert done.returncode == 0, done.stdout
    (instance,) = account.existing()["instances"]
    assert f'"id": "{instance}"' in lines(done).replace("\\", "") and f'"bucket": "{BUCKET}"' in lines(done).replace(
        "\\", ""
    )
    assert f"Instance: {instance}, m5.xlarge spot in {REGION}" in lines(done), done.stdout
    assert "2 spot pools of 1 types in 2 zones" in lines(done)
    assert [json.loads(line)["event"] for line in log.read_text().splitlines()] == ["launched"]


# ---- hosts of one's own


def test_site_refuses_before_it_changes_anything(account: Account) -> None:
    notice = "The refrigerator keeps running."
    done = account.play(
        "site.yml",
        extra=("--check",),  # this machine stays as it is even if nothing is refused
        pcgr_hosts="localhost",
        ansible_become=False,
        pcgr_assemblies=["hg19"],
        pcgr_failure_notice=notice,
    )
    assert done.returncode != 0
    assert "pcgr_assemblies: found hg19" in lines(done)
    assert notice in lines(done)
    assert "changed=0" in lines(done)
