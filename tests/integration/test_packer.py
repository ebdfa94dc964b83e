"""Packer's own amazon plugin bakes in a local region, unchanged. Two boots, minutes; Packer is built on first use."""

from __future__ import annotations

import json
import shlex
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import harness

if TYPE_CHECKING:
    from support.region import Region

pytestmark = pytest.mark.slow

TEMPLATE = Path(__file__).parent / "packer/client.pkr.hcl"
MARKER = uuid.uuid4().hex


class Packer:
    """The packer command with the environment of a region, and the settings of the template for it."""

    def __init__(self, region: Region, folder: Path) -> None:
        self.folder = folder
        lines = subprocess.run(
            [harness.ROOT / "packer/toolchain/build"], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        tools = dict(word.split("=", 1) for word in shlex.split(lines) if word != "export")
        own = {"PACKER_CONFIG_DIR": str(folder), "TMPDIR": str(folder), "PACKER_NO_COLOR": "1"}
        self.environment = region.environment | tools | own
        self.manifest = folder / "manifest.json"
        self.variables = {
            "source_ami": region.environment["LOCALCLOUD_AMI"], "ssh_port": region.environment["LOCALCLOUD_SSH_PORT"],
            "marker": MARKER, "manifest": str(self.manifest),
        }  # fmt: skip

    def __call__(self, *arguments: str) -> str:
        """Output of a packer command; fails with all of it."""
        done = subprocess.run(
            ["packer", *arguments], check=False, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def on_template(self, command: str, *options: str, **variables: str) -> str:
        settings = (f"-var={name}={value}" for name, value in (self.variables | variables).items())
        return self(command, *options, *settings, str(TEMPLATE))

    def build(self, source: str, **variables: str) -> str:
        """Id of the image that a source of the template makes."""
        print(self.on_template("build", f"-only={source}.client", **variables))
        manifest = json.loads(self.manifest.read_text())
        (built,) = (made for made in manifest["builds"] if made["packer_run_uuid"] == manifest["last_run_uuid"])
        return str(built["artifact_id"].split(":")[1])


@pytest.fixture(scope="module")
def packer(region: Region, tmp_path_factory: pytest.TempPathFactory) -> Packer:
    return Packer(region, tmp_path_factory.mktemp("packer"))


@pytest.fixture(scope="module")
def baked(packer: Packer) -> str:
    """The image of a machine on which a file was written."""
    return packer.build("amazon-ebs")


@pytest.fixture(scope="module")
def copied(packer: Packer, baked: str) -> str:
    """The image of a disk to which a machine of the first image copied that file."""
    return packer.build("amazon-ebssurrogate", source_ami=baked)


def image(region: Region, image_id: str) -> dict[str, Any]:
    found: dict[str, Any] = region.client("ec2").describe_images(ImageIds=[image_id])["Images"][0]
    return found


def root_snapshot(found: dict[str, Any]) -> str:
    (device,) = found["BlockDeviceMappings"]
    assert device["DeviceName"] == found["RootDeviceName"]
    return str(device["Ebs"]["SnapshotId"])


def tags(found: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in found.get("Tags", [])}


def test_template_is_valid_with_the_plugin_that_is_there(packer: Packer) -> None:
    # `init` says what it installs; the plugin built here leaves it nothing to do.
    assert packer("init", str(TEMPLATE)) == ""
    assert "is valid" in packer.on_template("validate")


def test_image_of_a_machine(region: Region, baked: str) -> None:
    made = image(region, baked)
    assert (made["Name"], made["State"], made["ImdsSupport"]) == ("client-ebs", "available", "v2.0")
    assert (made["DeprecationTime"][:4], made["DeregistrationProtection"]) == ("2034", "enabled-without-cooldown")
    assert not made["Public"]
    assert tags(made) == {"Name": "client", "Source": region.environment["LOCALCLOUD_AMI"]}
    snapshot = region.client("ec2").describe_snapshots(SnapshotIds=[root_snapshot(made)])["Snapshots"][0]
    assert snapshot["State"] == "completed"
    assert tags(snapshot) == tags(made) | {"Part": "root"}


def test_image_of_a_second_disk(region: Region, baked: str, copied: str) -> None:
    made = image(region, copied)
    assert (made["Name"], made["State"], made["ImdsSupport"]) == ("client-surrogate", "available", "v2.0")
    assert made["RootDeviceName"] == "/dev/xvda"
    assert tags(made) == {"Name": "client", "Source": baked}


def test_first_image_boots_with_what_was_written(region: Region, copied: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    read_snapshot(region, root_snapshot(image(region, copied)), disk)
    read: list[str | Path] = ["/usr/sbin/debugfs", "-R", "cat /marker", disk]
    assert subprocess.run(read, check=True, capture_output=True, text=True).stdout == f"{MARKER}\n"


def read_snapshot(region: Region, snapshot_id: str, disk: Path) -> None:
    """Copy a snapshot into a raw disk file by the EBS direct APIs."""
    ebs = region.client("ebs")
    listed = ebs.list_snapshot_blocks(SnapshotId=snapshot_id)
    with disk.open("wb") as file:
        file.truncate(listed["VolumeSize"] << 30)
        for block in listed["Blocks"]:
            index = block["BlockIndex"]
            got = ebs.get_snapshot_block(SnapshotId=snapshot_id, BlockIndex=index, BlockToken=block["BlockToken"])
            file.seek(index * listed["BlockSize"])
            file.write(got["BlockData"].read())


def test_builds_leave_nothing_but_their_images(region: Region, baked: str, copied: str) -> None:
    ec2 = region.client("ec2")
    instances = [one for group in ec2.describe_instances()["Reservations"] for one in group["Instances"]]
    assert [(tags(one)["Name"], one["State"]["Name"]) for one in instances] == [("builder", "terminated")] * 2
    assert ec2.describe_volumes()["Volumes"] == []
    assert ec2.describe_key_pairs()["KeyPairs"] == []
    assert {group["GroupName"] for group in ec2.describe_security_groups()["SecurityGroups"]} == {"default"}
    images = ec2.describe_images(Owners=["self"])["Images"]
    snapshots = ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]
    assert {made["SnapshotId"] for made in snapshots} == {root_snapshot(one) for one in images}
