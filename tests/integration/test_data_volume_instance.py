"""Data volumes on real machines: a blank EBS volume is filled and grows, is exported, and its snapshot serves the next machine.

The tests share one region and run in the order they stand in; test_pipeline.py has the consumer on such a volume.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import testinfra

import harness

if TYPE_CHECKING:
    from support.region import Region

pytestmark = pytest.mark.slow

NAME = "pcgr-volume"
STAMP = "bundles/20260620/data/grch38/.umccr.pcgr.json"


def play(region: Region, name: str, *options: str, **variables: Any) -> tuple[int, str]:
    """Run a playbook without what reports samples; the changes on the machine, and all it said."""
    before = region.log.stat().st_size if region.log.exists() else 0
    settings = region.variables | {"aws_name": NAME, "aws_bucket": NAME} | variables
    less = ["--skip-tags", "docker,runtime,consumer"]
    for task in harness.run_playbook(name, settings, region.environment, region.log, *less, *options):
        print(task)
    said = region.log.read_text()[before:]
    changed = re.search(r"(?m)^(?!localhost)\S+ +: ok=\d+ +changed=(\d+)", said.rpartition("PLAY RECAP")[2])
    return int(changed[1]) if changed else 0, said


def running(region: Region) -> dict[str, Any]:
    filters = [
        {"Name": "tag:umccr.pcgr", "Values": [NAME]},
        {"Name": "instance-state-name", "Values": ["running"]},
    ]
    (reservation,) = region.client("ec2").describe_instances(Filters=filters)["Reservations"]
    found: dict[str, Any] = reservation["Instances"][0]
    return found


def data_volume(region: Region) -> str:
    devices = {device["DeviceName"]: device["Ebs"]["VolumeId"] for device in running(region)["BlockDeviceMappings"]}
    return str(devices["/dev/sdf"])


def host(region: Region) -> Any:
    """The machine seen from outside, as root."""
    return testinfra.get_host(
        f"ssh://admin@{running(region)['PublicIpAddress']}:{region.environment['LOCALCLOUD_SSH_PORT']}?sudo=True",
        ssh_identity_file=str(region.key),
        ssh_extra_args="-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=10",
    )


def mounts(region: Region, place: str) -> dict[str, str]:
    found = json.loads(host(region).check_output("findmnt --json --list --output TARGET,FSTYPE,VFS-OPTIONS"))
    return {
        entry["target"]: f"{entry['fstype']} {entry['vfs-options'].partition(',')[0]}"
        for entry in found["filesystems"]
        if entry["target"].startswith(place)
    }


def reboot(region: Region) -> None:
    """Reboot, and wait until all that starts at boot has started."""
    machine = host(region)
    before = machine.check_output("cat /proc/sys/kernel/random/boot_id")
    machine.run("systemctl --no-block reboot")
    end = time.monotonic() + 900
    while time.monotonic() < end:
        time.sleep(5)
        with suppress(RuntimeError):  # SSH does not answer
            if host(region).check_output("cat /proc/sys/kernel/random/boot_id") != before:
                host(region).run("systemctl is-system-running --wait")
                return
    raise AssertionError("not back after 900 seconds")


def test_a_blank_volume_is_filled_and_grows(region: Region) -> None:
    play(region, "aws.yml", aws_data_volume_gb=1)
    assert mounts(region, "/mnt/pcgr") == {"/mnt/pcgr": "ext4 rw"}
    name = f"/dev/disk/by-id/virtio-{data_volume(region).replace('-', '')}"
    assert name in host(region).check_output("cat /etc/fstab")
    assert host(region).file(f"/mnt/pcgr/{STAMP}").is_file
    region.client("ec2").modify_volume(VolumeId=data_volume(region), Size=2)
    changed, _unused = play(region, "aws.yml", aws_data_volume_gb=2)
    assert changed == 1
    assert int(host(region).check_output("stat -f -c %b /mnt/pcgr")) * 4096 > 1.8 * 2**30


def test_an_export_is_only_mounted(region: Region) -> None:
    """The machine exports its data to itself, and shows them at another place."""
    machine = host(region)
    machine.check_output("apt-get install --quiet=2 --no-install-recommends nfs-kernel-server >/dev/null 2>&1")
    machine.check_output("echo '/mnt/pcgr 127.0.0.1(ro,fsid=1,no_subtree_check)' >/etc/exports && exportfs -ra")
    inventory = region.folder / "inventory.json"
    port = int(region.environment["LOCALCLOUD_SSH_PORT"])
    harness.write_inventory(inventory, running(region)["PublicIpAddress"], port, region.key)
    export = {"base_data_source": "127.0.0.1:/mnt/pcgr", "base_data_readonly": True, "pcgr_root": "/srv/pcgr"}
    _unused, said = play(region, "site.yml", "-i", str(inventory), **export)
    assert "changed: [" not in said.partition("Ensure the reference data are installed")[2].partition("TASK [")[0]
    assert play(region, "site.yml", "-i", str(inventory), **export)[0] == 0
    found = mounts(region, "/srv/pcgr")
    assert set(found) == {f"/srv/pcgr/{name}" for name in (".volume", "bundles", "vep")}
    assert set(found.values()) == {"nfs4 ro"}
    assert machine.file(f"/srv/pcgr/{STAMP}").is_file


def test_a_snapshot_serves_the_next_machine(region: Region) -> None:
    """Taken of a volume in use, as a snapshot may be: its journal is not empty."""
    ec2 = region.client("ec2")
    host(region).check_output("sync")
    snapshot = ec2.create_snapshot(VolumeId=data_volume(region))["SnapshotId"]
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot])
    first = running(region)["InstanceId"]
    ec2.terminate_instances(InstanceIds=[first])
    ec2.get_waiter("instance_terminated").wait(InstanceIds=[first])
    _unused, said = play(region, "aws.yml", aws_data_snapshot=snapshot)
    brought = said.partition("umccr.pcgr.databundle : Ensure the reference data are installed")[2].partition("TASK [")[
        0
    ]
    assert "ok: [" in brought
    assert "changed: [" not in brought
    reboot(region)
    assert mounts(region, "/mnt/pcgr") == {f"/mnt/pcgr/{name}": "ext4 ro" for name in (".volume", "bundles", "vep")}
    machine = host(region)
    assert machine.file(f"/mnt/pcgr/{STAMP}").is_file
    assert machine.check_output("stat -c '%U %a' /mnt/pcgr/work") == "pcgr 700"


def test_without_its_volume_the_machine_boots(region: Region) -> None:
    host(region).check_output("sed -i s/%s/vol00000000000000000/ /etc/fstab", data_volume(region).replace("-", ""))
    reboot(region)
    assert mounts(region, "/mnt/pcgr") == {}
    assert host(region).file("/mnt/pcgr/work").is_directory
