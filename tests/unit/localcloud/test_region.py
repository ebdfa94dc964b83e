"""A region with its real API, files and QEMU processes, but guests of one boot sector instead of an operating system.

The sector prints a line on the serial console, then waits or powers off, so that a guest affects its instance within a
second or two.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import pty
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.exceptions import ClientError

from localcloud.volumes import BLOCK
from support import ROOT
from support.localcloud import WAIT, sector, settings

pytestmark = pytest.mark.plays

POWER_OFF = b"\xba\x04\x06\xb8\x00\x20\xef" + WAIT  # out 0x604, 0x2000: QEMU's ACPI power-off
ZONE = "ap-southeast-2a"
STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Client:
    """A started region and a client of it."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.environment = settings(folder)
        command = [sys.executable, "-m", "localcloud", "serve-region", "--base", str(folder / "base.raw")]
        command += ["--port", "0", "--serve", str(folder)]
        self.folder = folder
        self.process = subprocess.Popen(command, cwd=ROOT, env=self.environment)
        try:
            assert wait_for(lambda: "MIRROR" in self.cli("env").stdout, 120)
        except BaseException:
            self.end()
            raise
        lines = dict(line.removeprefix("export ").split("=", 1) for line in self.cli("env").stdout.splitlines())
        self.ami, self.url = lines["LOCALCLOUD_AMI"], lines["AWS_ENDPOINT_URL"]
        self.mirror = lines["LOCALCLOUD_MIRROR_URL"].replace("169.254.0.2", "127.0.0.1")

    def end(self) -> None:
        """Kill the region in whatever state it is; the kernel kills its virtual machines."""
        self.process.kill()
        self.process.wait()

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of localcloud for this region."""
        command = [sys.executable, "-m", "localcloud", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)

    def aws(self, service: str = "ec2") -> Any:
        """Return a boto3 client of a service of the region."""
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
        return boto3.client(service, endpoint_url=self.url, region_name="ap-southeast-2", **keys)

    def run(self, **options: Any) -> str:
        """Launch an instance; return its id."""
        options = {"ImageId": self.ami, "InstanceType": "t3.small", "MinCount": 1, "MaxCount": 1} | options
        return str(self.aws().run_instances(**options)["Instances"][0]["InstanceId"])

    def instance(self, instance_id: str) -> dict[str, Any]:
        """Return the description of an instance."""
        found: dict[str, Any] = self.aws().describe_instances(InstanceIds=[instance_id])["Reservations"][0][
            "Instances"
        ][0]
        return found

    def becomes(self, instance_id: str, state: str) -> bool:
        """Whether an instance reaches a state within 20 seconds."""
        return wait_for(lambda: self.instance(instance_id)["State"]["Name"] == state, 20)

    def virtual_machines(self) -> list[int]:
        """Return the process ids of this region's virtual machines."""
        return [number for number in processes(str(self.state)) if number != self.process.pid]


def processes(text: str) -> list[int]:
    """Return the ids of a region's processes whose command line contains ``text``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command and ("qemu" in command or "serve-region" in command):
            found.append(int(folder.name))
    return found


def wait_for(done: Callable[[], Any], seconds: float) -> bool:
    """Whether ``done`` becomes true within ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if done():
            return True
        time.sleep(0.1)
    return False


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """Kill the processes that a failed test leaves of a region in its folder."""
    yield
    for pid in processes(str(tmp_path)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: not processes(str(tmp_path)), 10)


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A region that the tests of this module share; it must end cleanly."""
    client = Client(tmp_path_factory.mktemp("region"))
    try:
        yield client
        client.process.terminate()
        assert client.process.wait(20) == 0
        assert client.virtual_machines() == []
    finally:
        client.end()


def put_snapshot(region: Client, data: bytes, gib: int = 1) -> str:
    """Write a snapshot block by block; return its id."""
    ebs = region.aws("ebs")
    snapshot_id = ebs.start_snapshot(VolumeSize=gib)["SnapshotId"]
    for index in range(0, len(data), BLOCK):
        block = data[index : index + BLOCK].ljust(BLOCK, b"\0")
        ebs.put_snapshot_block(
            SnapshotId=snapshot_id, BlockIndex=index // BLOCK, BlockData=block, DataLength=BLOCK,
            Checksum=checksum(block), ChecksumAlgorithm="SHA256",
        )  # fmt: skip
    ebs.complete_snapshot(SnapshotId=snapshot_id, ChangedBlocksCount=-(-len(data) // BLOCK))
    return str(snapshot_id)


def checksum(data: bytes) -> str:
    """Return the SHA256 checksum in the form of the EBS direct APIs."""
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def register(region: Client, snapshot_id: str, name: str) -> str:
    """Register a snapshot as an image; return the id of the image."""
    devices = [{"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot_id}}]
    return str(
        region.aws().register_image(Name=name, RootDeviceName="/dev/xvda", BlockDeviceMappings=devices)["ImageId"]
    )


def refused(code: str) -> Any:
    """Expect an API call to fail with an error code."""
    return pytest.raises(ClientError, match=rf"\({code}\)")


def test_states_follow_the_virtual_machine(region: Client) -> None:
    before = len(region.virtual_machines())
    instance_id = region.run()
    assert region.becomes(instance_id, "running")
    assert len(region.virtual_machines()) == before + 1
    described = region.instance(instance_id)
    assert described["PublicIpAddress"].startswith("127.100.")
    assert described["PublicDnsName"] == described["PublicIpAddress"]
    assert described["MetadataOptions"]["HttpTokens"] == "required"
    volume_id = described["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]

    region.aws().stop_instances(InstanceIds=[instance_id])
    assert region.instance(instance_id)["State"]["Name"] == "stopping", "the guest ignores the power button"
    assert region.becomes(instance_id, "stopped")
    assert len(region.virtual_machines()) == before
    assert region.instance(instance_id)["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    with refused("IncorrectInstanceState"):
        region.aws().reboot_instances(InstanceIds=[instance_id])

    region.aws().start_instances(InstanceIds=[instance_id])
    assert region.becomes(instance_id, "running")
    region.aws().terminate_instances(InstanceIds=[instance_id])
    assert region.instance(instance_id)["State"]["Name"] == "shutting-down"
    assert region.becomes(instance_id, "terminated")
    assert len(region.virtual_machines()) == before
    with refused("InvalidVolume.NotFound"):
        region.aws().describe_volumes(VolumeIds=[volume_id])
    assert not list(region.state.glob(f"volumes/{volume_id}*"))
    with refused("IncorrectInstanceState"):
        region.aws().start_instances(InstanceIds=[instance_id])


@pytest.mark.parametrize(("behaviour", "end"), [("stop", "stopped"), ("terminate", "terminated")])
def test_image_written_block_by_block_boots_and_the_guest_ends_the_instance(
    region: Client, behaviour: str, end: str
) -> None:
    image_id = register(region, put_snapshot(region, sector(f"booted to {behaviour}", POWER_OFF)), f"off-{behaviour}")
    instance_id = region.run(ImageId=image_id, InstanceInitiatedShutdownBehavior=behaviour)
    assert region.becomes(instance_id, end)
    output = region.aws().get_console_output(InstanceId=instance_id)["Output"]
    assert output == f"booted to {behaviour}\r\n"
    assert region.instance(instance_id)["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    assert region.instance(instance_id)["StateTransitionReason"]


def test_written_blocks_are_checked_and_read_back(region: Client) -> None:
    ebs = region.aws("ebs")
    data = os.urandom(3 * BLOCK)
    snapshot_id = put_snapshot(region, data)
    listed = ebs.list_snapshot_blocks(SnapshotId=snapshot_id)
    assert listed["BlockSize"] == BLOCK
    assert [block["BlockIndex"] for block in listed["Blocks"]] == [0, 1, 2]
    answer = ebs.get_snapshot_block(SnapshotId=snapshot_id, BlockIndex=1, BlockToken=listed["Blocks"][1]["BlockToken"])
    assert answer["BlockData"].read() == data[BLOCK : 2 * BLOCK]
    assert answer["Checksum"] == checksum(data[BLOCK : 2 * BLOCK])
    other = put_snapshot(region, data[:BLOCK] + bytes(BLOCK) + data[2 * BLOCK :])
    changed = ebs.list_changed_blocks(FirstSnapshotId=snapshot_id, SecondSnapshotId=other)["ChangedBlocks"]
    assert [block["BlockIndex"] for block in changed] == [1]
    pending = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    with refused("ValidationException"):
        ebs.put_snapshot_block(
            SnapshotId=pending, BlockIndex=0, BlockData=b"x" * BLOCK, DataLength=BLOCK, Checksum=checksum(b"y"),
            ChecksumAlgorithm="SHA256",
        )  # fmt: skip
    with refused("IncorrectState"):
        register(region, pending, "of-a-pending-snapshot")
    with refused("ResourceNotFoundException"):
        ebs.list_snapshot_blocks(SnapshotId="snap-00000000000000000")


def test_image_of_an_instance_has_all_its_volumes(region: Client) -> None:
    devices = [
        {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 9}},
        {"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 1}},
    ]
    instance_id = region.run(BlockDeviceMappings=devices)
    assert region.becomes(instance_id, "running")
    ec2 = region.aws()
    image_id = ec2.create_image(InstanceId=instance_id, Name="whole", NoReboot=True)["ImageId"]
    ec2.get_waiter("image_available").wait(ImageIds=[image_id], WaiterConfig={"Delay": 1, "MaxAttempts": 30})
    mappings = ec2.describe_images(ImageIds=[image_id])["Images"][0]["BlockDeviceMappings"]
    assert [(m["DeviceName"], m["Ebs"]["VolumeSize"]) for m in mappings] == [("/dev/xvda", 9), ("/dev/sdb", 1)]
    root = region.state / "snapshots" / f"{mappings[0]['Ebs']['SnapshotId']}.raw"
    with root.open("rb") as file:
        assert file.read(512) == sector("waiting", WAIT)
    assert root.stat().st_blocks * 512 < 1 << 22, "a snapshot of 9 GiB with one MiB in it is a small file"
    with refused("InvalidSnapshot.InUse"):
        ec2.delete_snapshot(SnapshotId=mappings[0]["Ebs"]["SnapshotId"])
    with refused("InvalidAMIName.Duplicate"):
        ec2.create_image(InstanceId=instance_id, Name="whole", NoReboot=True)
    copied = ec2.copy_image(SourceImageId=image_id, SourceRegion="ap-southeast-2", Name="copy")["ImageId"]
    ec2.deregister_image(ImageId=image_id)
    for mapping in mappings:
        ec2.delete_snapshot(SnapshotId=mapping["Ebs"]["SnapshotId"])
    with refused("InvalidAMIID.NotFound"):
        region.run(ImageId=image_id)
    second = region.run(ImageId=copied)
    assert region.becomes(second, "running")
    assert wait_for(lambda: "waiting" in ec2.get_console_output(InstanceId=second)["Output"], 10)
    ec2.terminate_instances(InstanceIds=[instance_id, second])
    assert region.becomes(instance_id, "terminated")
    assert region.becomes(second, "terminated")


def test_image_with_reboot_waits_until_the_guest_is_down(region: Client) -> None:
    instance_id = region.run()
    assert region.becomes(instance_id, "running")
    ec2 = region.aws()
    image_id = ec2.create_image(InstanceId=instance_id, Name="with-reboot")["ImageId"]
    assert ec2.describe_images(ImageIds=[image_id])["Images"][0]["State"] == "pending"
    ec2.get_waiter("image_available").wait(ImageIds=[image_id], WaiterConfig={"Delay": 1, "MaxAttempts": 30})
    printed = "waiting\r\nwaiting"  # it booted a second time
    assert wait_for(lambda: printed in ec2.get_console_output(InstanceId=instance_id)["Output"], 10)
    assert region.instance(instance_id)["State"]["Name"] == "running"
    ec2.terminate_instances(InstanceIds=[instance_id])
    assert region.becomes(instance_id, "terminated")


def test_volumes_are_attached_and_detached(region: Client) -> None:
    ec2 = region.aws()
    instance_id = region.run()
    assert region.becomes(instance_id, "running")
    volume_id = ec2.create_volume(Size=1, AvailabilityZone=ZONE)["VolumeId"]
    ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdf")
    with refused("VolumeInUse"):
        ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdg")

    def attachment() -> str:
        return str(ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"][0]["Attachments"][0]["State"])

    assert wait_for(lambda: attachment() == "attached", 10)
    ec2.detach_volume(VolumeId=volume_id)
    assert attachment() == "detaching", "a guest without a driver does not release it"
    ec2.stop_instances(InstanceIds=[instance_id])
    ec2.get_waiter("volume_available").wait(VolumeIds=[volume_id], WaiterConfig={"Delay": 1, "MaxAttempts": 20})
    snapshot_id = ec2.create_snapshot(VolumeId=volume_id)["SnapshotId"]
    ec2.delete_volume(VolumeId=volume_id)
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot_id], WaiterConfig={"Delay": 1, "MaxAttempts": 20})
    assert wait_for(lambda: not list(region.state.glob(f"volumes/{volume_id}*")), 10)
    ec2.terminate_instances(InstanceIds=[instance_id])
    assert region.becomes(instance_id, "terminated")


def test_what_aws_refuses_is_refused(region: Client) -> None:
    before = region.aws().describe_instances()["Reservations"]
    volumes = region.aws().describe_volumes()["Volumes"]
    with refused("InvalidParameterDependency"):  # found when the other volume has been created
        region.run(BlockDeviceMappings=[{"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 4, "VolumeType": "io1"}}])
    with refused("InvalidAMIID.NotFound"):
        region.run(ImageId="ami-00000000000000000")
    with refused("InvalidKeyPair.NotFound"):
        region.run(KeyName="nobody")
    with refused("InvalidInstanceType.NotFound"):
        region.run(InstanceType="t9.enormous")
    with refused("InvalidSnapshot.NotFound"):
        region.aws().create_volume(SnapshotId="snap-00000000000000000", AvailabilityZone=ZONE)
    with refused("InvalidSnapshot.NotFound"):
        register(region, "snap-00000000000000000", "of-nothing")
    with refused("InvalidBlockDeviceMapping"):
        region.aws().register_image(Name="rootless", RootDeviceName="/dev/xvda")
    assert region.aws().describe_instances()["Reservations"] == before, "nothing incomplete is left"
    assert region.aws().describe_volumes()["Volumes"] == volumes


def test_one_client_token_is_one_instance(region: Client) -> None:
    first, second = (region.run(ClientToken="once") for _unused in range(2))
    assert first == second
    region.aws().terminate_instances(InstanceIds=[first])
    assert region.becomes(first, "terminated")


def test_spot_instance_is_interrupted(region: Client) -> None:
    ec2 = region.aws()
    instance_id = region.run(InstanceMarketOptions={"MarketType": "spot"})
    assert region.becomes(instance_id, "running")
    described = region.instance(instance_id)
    assert described["InstanceLifecycle"] == "spot"
    requests = ec2.describe_spot_instance_requests(SpotInstanceRequestIds=[described["SpotInstanceRequestId"]])
    assert requests["SpotInstanceRequests"][0]["InstanceId"] == instance_id
    assert region.cli("interrupt", instance_id, "--seconds", "1").returncode == 0
    assert region.becomes(instance_id, "terminated")
    assert region.instance(instance_id)["StateReason"]["Code"] == "Server.SpotInstanceTermination"
    again = ec2.describe_spot_instance_requests(SpotInstanceRequestIds=[described["SpotInstanceRequestId"]])
    assert again["SpotInstanceRequests"][0]["State"] == "closed"


def test_instances_of_spot_requests_and_fleets_are_like_others(region: Client) -> None:
    """They have a public address, and everything that their launch template specifies."""
    ec2 = region.aws()
    spec = {"ImageId": region.ami, "InstanceType": "t3.small"}
    request = ec2.request_spot_instances(LaunchSpecification=spec)["SpotInstanceRequests"][0]["SpotInstanceRequestId"]

    def requested() -> Any:
        found = ec2.describe_spot_instance_requests(SpotInstanceRequestIds=[request])["SpotInstanceRequests"][0]
        return found.get("InstanceId")

    assert wait_for(requested, 30)
    disk = {"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 2, "DeleteOnTermination": True}}
    tags = {"ResourceType": "instance", "Tags": [{"Key": "from", "Value": "template"}]}
    data = spec | {"BlockDeviceMappings": [disk], "TagSpecifications": [tags]}
    template = ec2.create_launch_template(LaunchTemplateName="fleet", LaunchTemplateData=data)["LaunchTemplate"]
    source = {"LaunchTemplateId": template["LaunchTemplateId"], "Version": "1"}
    fleet = ec2.create_fleet(
        Type="instant",
        LaunchTemplateConfigs=[{"LaunchTemplateSpecification": source}],
        TargetCapacitySpecification={"TotalTargetCapacity": 1, "DefaultTargetCapacityType": "spot"},
    )
    launched = fleet["Instances"][0]["InstanceIds"][0]
    instances = [region.instance(requested()), region.instance(launched)]
    assert all(instance["PublicIpAddress"].startswith("127.100.") for instance in instances)
    assert {mapping["DeviceName"] for mapping in instances[1]["BlockDeviceMappings"]} == {"/dev/xvda", "/dev/sdb"}
    ec2.terminate_instances(InstanceIds=[instance["InstanceId"] for instance in instances])


def test_only_running_spot_instances_are_interrupted(region: Client) -> None:
    instance_id = region.run()
    assert region.becomes(instance_id, "running")
    refusal = region.cli("interrupt", instance_id)
    assert refusal.returncode == 1
    assert (
        refusal.stderr
        == f"localcloud: {instance_id}: found an on-demand instance, only spot instances are interrupted\n"
    )
    region.aws().terminate_instances(InstanceIds=[instance_id])
    assert region.becomes(instance_id, "terminated")
    assert region.cli("rebalance", instance_id).returncode == 1


def test_address_with_a_listener_is_not_assigned(region: Client) -> None:
    first = region.run()
    assert region.becomes(first, "running")
    network, last = region.instance(first)["PublicIpAddress"].rsplit(".", 1)
    following = f"{network}.{int(last) + 1}"
    with socket.create_server((following, 2222)):
        second = region.run()
        assert region.becomes(second, "running")
        assert region.instance(second)["PublicIpAddress"] != following
    region.aws().terminate_instances(InstanceIds=[first, second])
    assert region.becomes(first, "terminated")
    assert region.becomes(second, "terminated")


def test_virtual_machine_that_dies_is_an_internal_error(region: Client) -> None:
    before = set(region.virtual_machines())
    instance_id = region.run()
    assert region.becomes(instance_id, "running")
    (victim,) = set(region.virtual_machines()) - before
    os.kill(victim, signal.SIGKILL)
    assert region.becomes(instance_id, "stopped")
    assert region.instance(instance_id)["StateReason"]["Code"] == "Server.InternalError"
    region.aws().terminate_instances(InstanceIds=[instance_id])
    assert region.becomes(instance_id, "terminated")


def test_filters_for_debians_images_find_the_base_image(region: Client) -> None:
    filters = [{"Name": "name", "Values": ["debian-12-amd64-*"]}, {"Name": "architecture", "Values": ["x86_64"]}]
    images = region.aws().describe_images(Owners=["136693071363"], Filters=filters)["Images"]
    assert [image["RootDeviceName"] for image in images] == ["/dev/xvda"]
    assert region.aws().describe_images(ImageIds=[region.ami])["Images"][0]["Name"] == "debian-12-localcloud"


def test_mirror_serves_ranges_and_nothing_above_its_folder(region: Client) -> None:
    request = urllib.request.Request(f"{region.mirror}/base.raw", headers={"Range": "bytes=510-511"})
    with urllib.request.urlopen(request) as answer:
        assert (answer.status, answer.read()) == (206, b"\x55\xaa")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{region.mirror}/../../../../../../etc/passwd")


def test_second_region_is_refused_and_up_says_so(region: Client) -> None:
    again = region.cli("up")
    assert (again.returncode, again.stdout.splitlines()[0]) == (0, "localcloud: the region is running already")
    refusal = region.cli("run", "--", "true")
    assert refusal.returncode == 1
    assert "found a running region there" in refusal.stderr


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """A region for one test."""
    started = Client(tmp_path)
    yield started
    started.end()


def test_killed_region_leaves_no_process_and_the_next_cleans_up(client: Client) -> None:
    instance_id = client.run()
    assert client.becomes(instance_id, "running")
    (machine,) = client.virtual_machines()
    client.process.kill()
    client.process.wait()
    assert wait_for(lambda: not Path(f"/proc/{machine}").exists(), 5)
    assert client.cli("env").returncode == 1
    assert list((client.state / "volumes").iterdir())
    assert client.cli("down").returncode == 0
    assert sorted(path.name for path in client.state.iterdir()) == ["lock"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_region_ends_on_each_signal_even_if_it_was_started_with_it_ignored(
    tmp_path: Path, ignored: None, number: signal.Signals
) -> None:
    client = Client(tmp_path)
    try:
        assert signals(client.process.pid, "SigIgn") & (1 << (number - 1)) == 0
        client.process.send_signal(number)
        assert client.process.wait(20) == 0
    finally:
        client.end()


@pytest.fixture
def ignored() -> Iterator[None]:
    """Ignore SIGINT, SIGTERM and SIGHUP, which children inherit, as in a background job of a script."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOP}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def signals(pid: int, field: str) -> int:
    """Return a set of signals of a process as a bit mask (proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1], 16)


LAUNCH = """\
import boto3, os, sys, time
ec2 = boto3.client("ec2")
ec2.run_instances(ImageId=os.environ["LOCALCLOUD_AMI"], InstanceType="t3.small", MinCount=1, MaxCount=1)
while ec2.describe_instances()["Reservations"][0]["Instances"][0]["State"]["Name"] != "running":
    time.sleep(0.1)
print("running", flush=True)
"""


class RunCommands:
    """Starts `run` commands with a program that launches an instance and then executes ``then``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def __call__(self, then: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "localcloud", "run", "--port", "0", "--", sys.executable, "-c", LAUNCH + then]
        process = subprocess.Popen(
            command, cwd=ROOT, env=settings(self.folder), stdout=subprocess.PIPE, text=True, start_new_session=True
        )  # fmt: skip
        self.started.append(process)
        return process

    def end(self) -> None:
        """Kill all that is left: the program is in the process group of `run`, and the region ends with it."""
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def run_command(tmp_path: Path) -> Iterator[RunCommands]:
    """Start `run` commands, and kill what is left of them after the test."""
    runs = RunCommands(tmp_path)
    yield runs
    runs.end()
    assert wait_for(lambda: not processes(str(tmp_path)), 10)


def test_run_starts_a_region_for_the_command_and_ends_it(tmp_path: Path, run_command: RunCommands) -> None:
    process = run_command("sys.exit(7)")
    assert process.communicate(timeout=120)[0] == "running\n"
    assert process.returncode == 7
    assert processes(str(tmp_path)) == []
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["lock", "region.log"]


def assert_nothing_left_after(tmp_path: Path, process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to a `run` with a running instance, and check that nothing is left."""
    assert process.stdout
    assert process.stdout.readline() == "running\n"
    assert processes(str(tmp_path)), "the region has no process that could be left behind"
    # Ctrl-C reaches the command too
    (os.killpg if number in (signal.SIGINT, signal.SIGKILL) else os.kill)(process.pid, number)
    assert process.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
    assert wait_for(lambda: not processes(str(tmp_path)), 10)
    subprocess.run([sys.executable, "-m", "localcloud", "down"], cwd=ROOT, env=settings(tmp_path), check=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_interrupted_or_killed_run_leaves_no_process(
    tmp_path: Path, run_command: RunCommands, number: signal.Signals
) -> None:
    assert_nothing_left_after(tmp_path, run_command("time.sleep(600)"), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_run_ends_on_each_signal_even_if_it_was_started_with_it_ignored(
    tmp_path: Path, ignored: None, run_command: RunCommands, number: signal.Signals
) -> None:
    assert_nothing_left_after(tmp_path, run_command("time.sleep(600)"), number)


def test_run_forwards_a_signal_that_only_it_received(run_command: RunCommands) -> None:
    process = run_command(
        "import signal; signal.signal(signal.SIGINT, lambda *_: sys.exit(9)); print('waiting', flush=True); time.sleep(600)"
    )
    assert process.stdout
    assert [process.stdout.readline() for _unused in range(2)] == ["running\n", "waiting\n"]
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 9


def test_ctrl_c_reaches_the_command_once(tmp_path: Path) -> None:
    """The terminal sends it to both; if `run` forwarded it too, it would interrupt the command's own shutdown."""
    count = "import signal, time\nseen = []\nsignal.signal(signal.SIGINT, lambda *_: seen.append(1))\nprint('waiting', flush=True)"
    count += "\nwhile not seen: time.sleep(0.1)\ntime.sleep(1)\nprint('seen', len(seen), flush=True)"
    command = [sys.executable, "-m", "localcloud", "run", "--port", "0", "--", sys.executable, "-c", count]
    keyboard, terminal = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command], cwd=ROOT, env=settings(tmp_path), stdin=terminal,
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout
        assert process.stdout.readline() == "waiting\n"
        os.write(keyboard, b"\x03")
        assert process.stdout.readline() == "seen 1\n"
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(keyboard)  # closes the terminal, which ends the processes left on it
        os.close(terminal)


def test_up_and_down(tmp_path: Path) -> None:
    environment = settings(tmp_path)

    def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "localcloud", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    try:
        assert cli("up", "--port", "0").returncode == 0
        assert "export AWS_ENDPOINT_URL=http://127.0.0.1:" in cli("env").stdout
        assert cli("status").stdout.splitlines()[1:] == ["no instances"]
    finally:
        assert cli("down").returncode == 0
    refusal = cli("env")
    assert (refusal.returncode, refusal.stdout) == (1, "")
    assert refusal.stderr.startswith(f"localcloud: {tmp_path}/state: found no running region")


def test_wrong_settings_are_reported_in_one_line(tmp_path: Path) -> None:
    environment = settings(tmp_path) | {"LOCALCLOUD_VCPUS": "many"}
    command = [sys.executable, "-m", "localcloud", "up"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "localcloud: LOCALCLOUD_VCPUS: found 'many', allowed is a whole number from 1\n"


def test_status_truncates_nothing(region: Client) -> None:
    """Ids and commands can be copied however narrow the terminal is."""
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "a-machine-with-quite-a-long-name-in-it"}]}]
    instance_id = region.run(TagSpecifications=tags, InstanceMarketOptions={"MarketType": "spot"})
    assert region.becomes(instance_id, "running")
    region.environment["COLUMNS"] = "40"
    lines = region.cli("status").stdout.splitlines()
    (number,) = (number for number, line in enumerate(lines) if line.startswith(instance_id))
    assert lines[number].split()[1:4] == ["running", "t3.small", "spot"]
    assert lines[number].endswith("a-machine-with-quite-a-long-name-in-it")
    assert lines[number + 1] == f"  ssh -p 2222 admin@{region.instance(instance_id)['PublicIpAddress']}"
    region.aws().terminate_instances(InstanceIds=[instance_id])
    assert region.becomes(instance_id, "terminated")


USAGE = {
    ("up", "--port", "99999"): "--port: found 99999, allowed 0 to 65535",
    ("up", "--port", "-1"): "--port: found -1, allowed 0 to 65535",
    ("run", "--port", "x", "--", "true"): "--port: found x, allowed 0 to 65535",
    ("interrupt", "i-1", "--seconds", "-3"): "--seconds: found -3, allowed 0 to 86400",
    ("interrupt", "i-1", "--seconds", "nan"): "--seconds: found nan, allowed 0 to 86400",
    ("interrupt", "i-1", "--seconds", "1e9"): "--seconds: found 1e9, allowed 0 to 86400",
    ("interrupt", "i-1", "--seconds", "soon"): "--seconds: found soon, allowed 0 to 86400",
}


@pytest.mark.parametrize("arguments", USAGE)
def test_wrong_usage_is_reported_in_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "localcloud", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=settings(tmp_path), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, f"localcloud: {USAGE[arguments]}\n")
    assert not (tmp_path / "state").exists()


def test_run_of_a_missing_program_starts_no_region(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "localcloud", "run", "--", "no-such-program"]
    done = subprocess.run(command, cwd=ROOT, env=settings(tmp_path), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "localcloud: run: no-such-program: found no such program\n")
    assert not (tmp_path / "state").exists()


def test_up_with_options_that_the_running_region_does_not_have_is_refused(region: Client) -> None:
    port = urlsplit(region.url).port
    for options in (("--port", str(port)), ("--port", "0"), ("--serve", str(region.folder))):
        assert region.cli("up", *options).returncode == 0
    for options, found in (("--port", "4"), str(port)), (("--serve", "/"), str(region.folder)):
        done = region.cli("up", *options)
        end = "end it by: python -m localcloud down"
        line = f"localcloud: {options[0]}: found {options[1]}, the region is running with {found}; {end}\n"
        assert (done.returncode, done.stderr) == (1, line)


def test_interruption_in_the_past_is_refused_by_the_region_too(region: Client) -> None:
    request = urllib.request.Request(f"{region.url}/_localcloud/interrupt", b'{"instance_id": "i-1", "seconds": -3}')
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.read() == b"seconds: found -3.0, allowed 0 to 86400"
