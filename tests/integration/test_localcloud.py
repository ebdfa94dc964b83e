"""Real guests in a local region: what a Debian inside sees of what its clients outside ask for. Three boots, minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from support import ROOT

pytestmark = pytest.mark.slow

PROGRAMS = Path(sys.executable).parent
BOOT_SECONDS = 900.0  # about 30 s on two idle cores under emulation, many minutes on crowded ones
METADATA = """\
token=$(curl -sf -X PUT http://169.254.169.254/latest/api/token -H 'X-aws-ec2-metadata-token-ttl-seconds: 60')
curl -sf -H "X-aws-ec2-metadata-token: $token" http://169.254.169.254/latest/"$1"
"""
TRUST = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}}]}


class Lab:
    """A region with a key pair and an instance profile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"LOCALCLOUD_DIR": str(folder / "state")}
        self.cli("up", "--serve", str(folder))
        lines = self.cli("env").splitlines()
        self.environment |= dict(line.removeprefix("export ").split("=", 1) for line in lines)
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "ap-southeast-2"}
        self.session = boto3.Session(**keys)
        self.ec2 = self.client("ec2")
        self.key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        self.ec2.import_key_pair(KeyName="lab", PublicKeyMaterial=self.key.with_suffix(".pub").read_bytes())
        iam = self.client("iam")
        iam.create_role(RoleName="worker", AssumeRolePolicyDocument=json.dumps(TRUST))
        iam.create_instance_profile(InstanceProfileName="worker")
        iam.add_role_to_instance_profile(InstanceProfileName="worker", RoleName="worker")

    def client(self, service: str) -> Any:
        return self.session.client(service, endpoint_url=self.environment["AWS_ENDPOINT_URL"])

    def cli(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "localcloud", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    def ssh(self, instance_id: str, script: str, *arguments: str) -> str:
        """Output of a shell script run inside; raises when it fails."""
        address = self.instance(instance_id)["PublicIpAddress"]
        command = ["ssh", "-q", "-i", self.key, "-p", "2222", "-o", "StrictHostKeyChecking=no", "-o", "ConnectTimeout=10",
                   "-o", "UserKnownHostsFile=/dev/null", f"admin@{address}", "sh", "-seu", "--", *arguments]  # fmt: skip
        return subprocess.run(command, input=script, check=True, stdout=subprocess.PIPE, text=True).stdout

    def metadata(self, instance_id: str, path: str) -> str:
        return self.ssh(instance_id, METADATA, path)

    def instance(self, instance_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][
            0
        ]
        return found

    def becomes(self, instance_id: str, state: str) -> bool:
        return wait_for(lambda: self.instance(instance_id)["State"]["Name"] == state, BOOT_SECONDS)

    def up(self, instance_id: str) -> bool:
        """Whether the guest comes to run our commands, cloud-init having ended."""
        return wait_for(lambda: "ready" in self._try(instance_id), BOOT_SECONDS)

    def _try(self, instance_id: str) -> str:
        try:
            return self.ssh(instance_id, "cloud-init status --wait > /dev/null && echo ready")
        except (subprocess.CalledProcessError, KeyError):
            return ""


def wait_for(done: Callable[[], Any], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if done():
            return True
        time.sleep(1)
    return False


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "on-the-mirror").write_text("from the mirror")
    lab = Lab(folder)
    yield lab
    lab.cli("down")


@pytest.fixture(scope="module")
def machine(lab: Lab) -> str:
    """An instance launched by the real aws command, its guest up."""
    user_data = lab.folder / "user-data"
    user_data.write_text("#!/bin/sh\necho from user data > /var/tmp/user-data\n")
    options = {
        "--image-id": lab.environment["LOCALCLOUD_AMI"], "--instance-type": "t3.medium", "--key-name": "lab",
        "--user-data": f"file://{user_data}", "--iam-instance-profile": "Name=worker",
        "--instance-initiated-shutdown-behavior": "terminate", "--metadata-options": "InstanceMetadataTags=enabled",
        "--tag-specifications": "ResourceType=instance,Tags=[{Key=Name,Value=first}]",
    }  # fmt: skip
    command = [PROGRAMS / "aws", "ec2", "run-instances", *(word for option in options.items() for word in option)]
    done = subprocess.run(command, env=lab.environment, check=True, stdout=subprocess.PIPE)
    instance_id = str(json.loads(done.stdout)["Instances"][0]["InstanceId"])
    assert lab.up(instance_id)
    return instance_id


@pytest.fixture(scope="module")
def twin(lab: Lab, machine: str) -> str:
    """A spot instance of an image made from the running machine, after a file was written there."""
    lab.ssh(machine, "echo before > /var/tmp/kept; sync")
    image_id = lab.ec2.create_image(InstanceId=machine, Name="of-a-running-machine", NoReboot=True)["ImageId"]
    lab.ec2.get_waiter("image_available").wait(ImageIds=[image_id], WaiterConfig={"Delay": 1, "MaxAttempts": 120})
    lab.ssh(machine, "echo after > /var/tmp/kept; sync")
    launched = lab.ec2.run_instances(
        ImageId=image_id, InstanceType="t3.medium", KeyName="lab", MinCount=1, MaxCount=1,
        InstanceMarketOptions={"MarketType": "spot"},
    )  # fmt: skip
    instance_id = str(launched["Instances"][0]["InstanceId"])
    # Two guests at once boot slower than one after the other on two cores; the first has rest meanwhile.
    assert lab.up(instance_id)
    return instance_id


def test_guest_ran_its_user_data(lab: Lab, machine: str) -> None:
    assert lab.ssh(machine, "cat /var/tmp/user-data") == "from user data\n"


def test_guest_knows_who_it_is(lab: Lab, machine: str) -> None:
    assert lab.metadata(machine, "meta-data/instance-id") == machine
    assert lab.metadata(machine, "meta-data/tags/instance/Name") == "first"
    assert lab.metadata(machine, "meta-data/public-ipv4") == lab.instance(machine)["PublicIpAddress"]
    status = lab.ec2.describe_instance_status(InstanceIds=[machine])["InstanceStatuses"][0]["InstanceStatus"]["Status"]
    assert status == "ok"


def test_guest_has_the_credentials_of_its_role(lab: Lab, machine: str) -> None:
    found = json.loads(lab.metadata(machine, "meta-data/iam/security-credentials/worker"))
    keys = {"aws_access_key_id": found["AccessKeyId"], "aws_secret_access_key": found["SecretAccessKey"]}
    sts = boto3.client("sts", endpoint_url=lab.environment["AWS_ENDPOINT_URL"], region_name="ap-southeast-2",
                       aws_session_token=found["Token"], **keys)  # fmt: skip
    assert sts.get_caller_identity()["Arn"].endswith(f":assumed-role/worker/{machine}")


def test_guest_reaches_api_and_mirror(lab: Lab, machine: str) -> None:
    mirror = f"curl -sf {lab.environment['LOCALCLOUD_MIRROR_URL']}/on-the-mirror"
    assert lab.ssh(machine, mirror) == "from the mirror"
    lab.client("s3").create_bucket(
        Bucket="open", ACL="public-read", CreateBucketConfiguration={"LocationConstraint": "ap-southeast-2"}
    )
    lab.client("s3").put_object(Bucket="open", Key="key", Body=b"from S3", ACL="public-read")
    bucket = f"curl -sf {lab.environment['LOCALCLOUD_GUEST_ENDPOINT_URL']}/open/key"
    assert lab.ssh(machine, bucket) == "from S3"


def test_volume_comes_while_the_machine_runs_and_goes_with_its_bytes(lab: Lab, machine: str) -> None:
    volume_id = lab.ec2.create_volume(Size=1, AvailabilityZone="ap-southeast-2a")["VolumeId"]
    lab.ec2.attach_volume(VolumeId=volume_id, InstanceId=machine, Device="/dev/sdf")
    device = f"/dev/disk/by-id/virtio-{volume_id.replace('-', '')}"
    write = f"for i in $(seq 60); do [ -e {device} ] && break; sleep 1; done; printf written | sudo dd of={device} conv=fsync"
    lab.ssh(machine, write)
    lab.ec2.detach_volume(VolumeId=volume_id)
    lab.ec2.get_waiter("volume_available").wait(VolumeIds=[volume_id], WaiterConfig={"Delay": 1, "MaxAttempts": 120})
    assert lab.ssh(machine, f"test -e {device} || echo gone") == "gone\n"
    snapshot_id = lab.ec2.create_snapshot(VolumeId=volume_id)["SnapshotId"]
    lab.ec2.get_waiter("snapshot_completed").wait(
        SnapshotIds=[snapshot_id], WaiterConfig={"Delay": 1, "MaxAttempts": 120}
    )
    ebs = lab.client("ebs")
    (block,) = ebs.list_snapshot_blocks(SnapshotId=snapshot_id)["Blocks"]
    data = ebs.get_snapshot_block(
        SnapshotId=snapshot_id, BlockIndex=block["BlockIndex"], BlockToken=block["BlockToken"]
    )
    assert data["BlockData"].read().rstrip(b"\0") == b"written"


def test_image_of_a_running_machine_boots_with_what_was_synced(lab: Lab, twin: str) -> None:
    assert lab.ssh(twin, "cat /var/tmp/kept") == "before\n"
    assert lab.metadata(twin, "meta-data/instance-id") == twin


def test_interruption_is_seen_inside_before_it_happens(lab: Lab, twin: str) -> None:
    lab.cli("rebalance", twin)
    lab.cli("interrupt", twin, "--seconds", "20")
    notice = json.loads(lab.metadata(twin, "meta-data/spot/instance-action"))
    assert notice["action"] == "terminate"
    assert "noticeTime" in lab.metadata(twin, "meta-data/events/recommendations/rebalance")
    assert lab.instance(twin)["State"]["Name"] == "running"
    assert lab.becomes(twin, "terminated")
    assert lab.instance(twin)["StateReason"]["Code"] == "Server.SpotInstanceTermination"


def test_stopped_machine_keeps_its_disk(lab: Lab, machine: str, twin: str) -> None:
    started = time.monotonic()
    lab.ec2.stop_instances(InstanceIds=[machine])
    assert lab.becomes(machine, "stopped")
    assert time.monotonic() - started < 55, "it shut down by itself, before the power was cut at 60 s"
    lab.ec2.start_instances(InstanceIds=[machine])
    assert lab.up(machine)
    assert lab.ssh(machine, "cat /var/tmp/kept") == "after\n"


def test_guest_that_powers_off_ends_its_instance(lab: Lab, machine: str) -> None:
    lab.ssh(machine, "sudo systemd-run --on-active=1 systemctl poweroff")
    assert lab.becomes(machine, "terminated")
    assert lab.instance(machine)["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    assert "Power" in lab.ec2.get_console_output(InstanceId=machine)["Output"]
