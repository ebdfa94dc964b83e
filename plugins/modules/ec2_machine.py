#!/usr/bin/python
# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Manage one tagged EC2 instance."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ec2_machine
short_description: Manage one tagged EC2 instance
version_added: 1.0.0
description:
  - "Launches an instance unless one with the tag C(umccr.pcgr: <name>) is there already; then that one is returned as it is."
  - The machine terminates when it powers itself off, so it needs no right to end itself, and its metadata service asks for tokens (IMDSv2).
  - M(amazon.aws.ec2_instance) has no spot option, and M(amazon.aws.ec2_spot_instance) uses a request that AWS calls legacy.
author: University of Melbourne Centre for Cancer Research (@umccr)
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
  platform: {support: full, platforms: posix}
options:
  name: {description: "Value of the tag, and the instance's name.", type: str, required: true}
  state:
    description:
      - V(absent) terminates all instances with the tag.
      - V(found) returns the instance if there is one, launches none, and brings O(log) up to date.
    type: str
    choices: [present, absent, found]
    default: present
  image: {description: Image to launch from., type: str}
  instance_type: {description: Instance type., type: str}
  spot: {description: "Launch as a spot instance that is never stopped or hibernated, at most at the on-demand price.", type: bool, default: false}
  pools:
    description:
      - With O(spot), where the machine may come from. An EC2 Fleet takes it from the pool that has most room at a good price
        (allocation strategy C(price-capacity-optimized)), and O(instance_type) is not used.
    type: list
    elements: dict
    default: []
    suboptions:
      type: {description: Instance type., type: str, required: true}
      zone: {description: Availability zone. Not used with O(subnet)., type: str, required: true}
  fallback_type: {description: "Instance type launched on demand when none of O(pools) has a machine. Unset, that is a failure.", type: str}
  log:
    description: File on the controller that gets a line for each launch, interruption and end, one JSON object each. Unset, none is written.
    type: path
  notes_bucket:
    description:
      - Bucket with the notes of machines, in its folder C(machines/). O(log) gets a line for each reported sample and each interruption
        in them that it has not yet.
    type: str
  key_name: {description: Key pair., type: str}
  security_group_ids: {description: Security groups., type: list, elements: str, default: []}
  subnet: {description: "Subnet. Unset, AWS chooses one of the default network.", type: str}
  instance_profile: {description: Name of the instance profile., type: str}
  volume_gb: {description: Size of the root volume. Needed for O(state=present)., type: int}
  data_volume_gb:
    description: Size of a second volume, which ends with the machine. Unset, there is one only with O(data_snapshot), of the snapshot's size.
    type: int
  data_snapshot: {description: Snapshot that the second volume is made from., type: str}
  wait_seconds: {description: How long to wait for the machine to run and have an address., type: int, default: 300}
extends_documentation_fragment:
  - umccr.pcgr.attributes
  - umccr.pcgr.aws
"""

EXAMPLES = r"""
- name: Launch a spot machine
  umccr.pcgr.ec2_machine:
    name: pcgr
    image: ami-0123456789abcdef0
    instance_type: m5.xlarge
    volume_gb: 120
    spot: true
"""

RETURN = r"""
machine:
  description: The machine; empty when there is none.
  type: dict
  returned: always
  contains:
    id: {description: Instance id., type: str, returned: success}
    address: {description: "Public address, or the private one.", type: str, returned: success}
    type: {description: Instance type., type: str, returned: success}
    zone: {description: Availability zone., type: str, returned: success}
    spot: {description: Whether it is a spot instance., type: bool, returned: success}
    image: {description: Image it was launched from., type: str, returned: success}
    data_volume: {description: "Id of its second volume; null when it has none.", type: str, returned: success}
fell_back: {description: Why the machine is on demand although spot was asked for; null when it is not., type: str, returned: always}
usd_per_hour: {description: "Price of the machine in US dollars per hour, without disk; null when it cannot be found out.", type: float, returned: always}
ended: {description: Ids of the instances that were terminated., type: list, elements: str, returned: always}
"""

import time
from datetime import datetime, timezone
from typing import Any

try:
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:
    pass  # AnsibleAWSModule tells

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule
from ansible_collections.umccr.pcgr.plugins.module_utils import spot_launch
from ansible_collections.umccr.pcgr.plugins.module_utils.price_list import (
    PRICE_LIST_REGION,
    listed_price,
    price_filters,
)
from ansible_collections.umccr.pcgr.plugins.module_utils.spot_log import SpotError

TAG = "umccr.pcgr"
# A name that every instance type takes; the machine's system names disks its own way.
DATA_DEVICE = "/dev/sdf"
# Seconds for which a new instance profile may be unknown to EC2, which takes it over with a delay.
PROFILE_DELAY = 60


class MachineError(Exception):
    """The machine cannot be had; the text is one line."""


def find(ec2: Any, name: str) -> list[dict[str, Any]]:
    """Instances with the tag that have not ended and are not about to."""
    filters = [
        {"Name": f"tag:{TAG}", "Values": [name]},
        {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]},
    ]
    pages = ec2.get_paginator("describe_instances").paginate(Filters=filters)
    return [machine for page in pages for group in page["Reservations"] for machine in group["Instances"]]


def root_device(ec2: Any, image: str) -> str:
    """Device name of the image's root volume; raises MachineError when the image does not exist."""
    try:
        found = ec2.describe_images(ImageIds=[image])["Images"]
    except ClientError as error:
        if not error.response["Error"]["Code"].startswith("InvalidAMIID"):
            raise
        found = []
    if not found:
        raise MachineError(f"image {image} does not exist in this region, or this account may not use it")
    return str(found[0].get("RootDeviceName") or "/dev/xvda")


def request(ec2: Any, params: dict[str, Any]) -> dict[str, Any]:
    """The arguments of RunInstances."""
    tags = [{"Key": TAG, "Value": params["name"]}, {"Key": "Name", "Value": params["name"]}]
    common = {"DeleteOnTermination": True, "VolumeType": "gp3", "Encrypted": True}
    volumes = {root_device(ec2, params["image"]): common | {"VolumeSize": params["volume_gb"]}}
    data = {"VolumeSize": params["data_volume_gb"], "SnapshotId": params["data_snapshot"]}
    if any(data.values()):
        volumes[DATA_DEVICE] = common | {key: value for key, value in data.items() if value}
    arguments: dict[str, Any] = {
        "ImageId": params["image"],
        "InstanceType": params["instance_type"],
        "MinCount": 1,
        "MaxCount": 1,
        "InstanceInitiatedShutdownBehavior": "terminate",
        # One hop: containers cannot reach the machine's credentials.
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled"},
        "BlockDeviceMappings": [{"DeviceName": device, "Ebs": volume} for device, volume in volumes.items()],
        "TagSpecifications": [{"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")],
    }
    if params["spot"]:
        options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
        arguments["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}
    if params["key_name"]:
        arguments["KeyName"] = params["key_name"]
    if params["security_group_ids"]:
        arguments["SecurityGroupIds"] = params["security_group_ids"]
    if params["subnet"]:
        arguments["SubnetId"] = params["subnet"]
    if params["instance_profile"]:
        arguments["IamInstanceProfile"] = {"Name": params["instance_profile"]}
    return arguments


def launch(ec2: Any, params: dict[str, Any]) -> tuple[str, str | None]:
    """Launch the machine; waits for a fresh instance profile to become known. Returns its id, and why it is not spot although asked."""
    arguments = request(ec2, params)
    end = time.monotonic() + PROFILE_DELAY
    while True:
        try:
            if params["spot"] and params["pools"]:
                return spot_launch.fleet(ec2, arguments, params["pools"], {"Key": TAG, "Value": params["name"]}), None
            return str(ec2.run_instances(**arguments)["Instances"][0]["InstanceId"]), None
        except (ClientError, spot_launch.NoCapacity) as error:
            if "iamInstanceProfile" not in str(error) or time.monotonic() > end:
                if isinstance(error, ClientError) or not params["fallback_type"]:
                    raise
                on_demand = params | {"spot": False, "pools": [], "instance_type": params["fallback_type"]}
                return launch(ec2, on_demand)[0], str(error)
        time.sleep(3)


def wait(ec2: Any, name: str, instance: str, seconds: int) -> dict[str, Any]:
    """Wait until the machine runs and has an address; raises MachineError when it ends instead or time is up."""
    end = time.monotonic() + seconds
    while True:
        found = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
        state = found["State"]["Name"]
        if state == "running" and address(found):
            return dict(found)
        if state in ("shutting-down", "terminated"):
            reason = (
                found.get("StateReason", {}).get("Message") or found.get("StateTransitionReason") or "no reason given"
            )
            raise MachineError(f"machine {name} ({instance}) ended while it was starting: {reason}")
        if time.monotonic() > end:
            raise MachineError(f"machine {name} ({instance}) is still {state} after {seconds} seconds")
        time.sleep(1)


def address(machine: dict[str, Any]) -> str:
    """Public address, or the private one where there is no public one."""
    return str(machine.get("PublicIpAddress") or machine.get("PrivateIpAddress") or "")


def describe(machine: dict[str, Any]) -> dict[str, Any]:
    """The machine as the module returns it."""
    return {
        "id": machine["InstanceId"],
        "address": address(machine),
        "type": machine["InstanceType"],
        "zone": machine["Placement"]["AvailabilityZone"],
        "spot": machine.get("InstanceLifecycle") == "spot",
        "image": machine["ImageId"],
        "data_volume": {
            device["DeviceName"]: device["Ebs"]["VolumeId"] for device in machine.get("BlockDeviceMappings", [])
        }.get(DATA_DEVICE),
    }


def price(module: AnsibleAWSModule, ec2: Any, machine: dict[str, Any]) -> float | None:
    """US dollars per hour: the spot price now, or the price list's; None when AWS does not tell (a right is missing, a look-alike)."""
    try:
        if machine["spot"]:
            history = ec2.describe_spot_price_history(
                InstanceTypes=[machine["type"]],
                AvailabilityZone=machine["zone"],
                ProductDescriptions=["Linux/UNIX"],
                StartTime=datetime.now(timezone.utc),
            )["SpotPriceHistory"]
            return float(history[0]["SpotPrice"]) if history else None
        quick = Config(connect_timeout=3, read_timeout=5, retries={"max_attempts": 1})
        pricing = module.client("pricing", region=PRICE_LIST_REGION, config=quick)
        filters = price_filters(machine["type"], module.region)
        products = pricing.get_products(ServiceCode="AmazonEC2", Filters=filters, MaxResults=1)["PriceList"]
        return listed_price(products[0]) or None
    except Exception:  # a price is a courtesy: whatever is missing, the machine is there
        return None


def present(module: AnsibleAWSModule, ec2: Any) -> dict[str, Any]:
    """Find or launch the machine; what the module returns."""
    params = module.params
    found = find(ec2, params["name"])
    if len(found) > 1:
        raise MachineError(
            f"{len(found)} machines are tagged {TAG}: {params['name']} ({', '.join(m['InstanceId'] for m in found)}); one is expected"
        )
    stopped = [machine["InstanceId"] for machine in found if machine["State"]["Name"] in ("stopping", "stopped")]
    changed = not found or bool(stopped)
    if module.check_mode and changed:
        return {"changed": True, "machine": {}, "usd_per_hour": None, "ended": [], "fell_back": None}
    if stopped:
        if found[0]["State"]["Name"] == "stopping":
            ec2.get_waiter("instance_stopped").wait(InstanceIds=stopped)
        ec2.start_instances(InstanceIds=stopped)
    instance, fell_back = (found[0]["InstanceId"], None) if found else launch(ec2, params)
    machine = describe(wait(ec2, params["name"], instance, params["wait_seconds"]))
    answer = {"changed": changed, "machine": machine, "usd_per_hour": price(module, ec2, machine), "ended": []}
    if params["log"] and not found:
        spot_launch.launched(params["log"], machine, params["name"], answer["usd_per_hour"])
    return answer | {"fell_back": fell_back}


def look(module: AnsibleAWSModule, ec2: Any) -> dict[str, Any]:
    """The machine if there is one; what the module returns."""
    found = find(ec2, module.params["name"])
    machine = describe(found[0]) if found else {}
    return {"changed": False, "machine": machine, "usd_per_hour": None, "ended": [], "fell_back": None}


def settle(module: AnsibleAWSModule, ec2: Any) -> None:
    """Bring the log up to date. The notes come first: a machine whose notice is among them is not looked up again."""
    params = module.params
    if params["log"] and not module.check_mode:
        if params["notes_bucket"]:
            for refusal in spot_launch.gather(module.client("s3"), params["notes_bucket"], params["log"]):
                module.warn(refusal)
        spot_launch.settle(ec2, params["log"], params["name"])


def absent(module: AnsibleAWSModule, ec2: Any) -> dict[str, Any]:
    """Terminate every machine with the tag and wait until they have ended; what the module returns."""
    ended = [machine["InstanceId"] for machine in find(ec2, module.params["name"])]
    if ended and not module.check_mode:
        ec2.terminate_instances(InstanceIds=ended)
        wait_ended(ec2, ended, module.params["wait_seconds"])
    settle(module, ec2)
    return {"changed": bool(ended), "machine": {}, "usd_per_hour": None, "ended": ended, "fell_back": None}


def wait_ended(ec2: Any, instances: list[str], seconds: int) -> None:
    """Wait until the instances have ended; raises MachineError when time is up."""
    end = time.monotonic() + seconds
    while True:
        groups = ec2.describe_instances(InstanceIds=instances)["Reservations"]
        left = [m["InstanceId"] for group in groups for m in group["Instances"] if m["State"]["Name"] != "terminated"]
        if not left:
            return
        if time.monotonic() > end:
            raise MachineError(f"not ended after {seconds} seconds: {', '.join(left)}")
        time.sleep(1)


def main() -> None:
    """Entry point of the module."""
    module = AnsibleAWSModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent", "found"], "default": "present"},
            "image": {"type": "str"},
            "instance_type": {"type": "str"},
            "spot": {"type": "bool", "default": False},
            "pools": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"type": {"type": "str", "required": True}, "zone": {"type": "str", "required": True}},
            },
            "fallback_type": {"type": "str"},
            "log": {"type": "path"},
            "notes_bucket": {"type": "str"},
            "key_name": {"type": "str", "no_log": False},
            "security_group_ids": {"type": "list", "elements": "str", "default": []},
            "subnet": {"type": "str"},
            "instance_profile": {"type": "str"},
            "volume_gb": {"type": "int"},
            "data_volume_gb": {"type": "int"},
            "data_snapshot": {"type": "str"},
            "wait_seconds": {"type": "int", "default": 300},
        },
        required_if=[("state", "present", ["image", "instance_type", "volume_gb"])],
        supports_check_mode=True,
    )
    ec2 = module.client("ec2")
    try:
        settle(module, ec2)
        answer = {"present": present, "absent": absent, "found": look}[module.params["state"]](module, ec2)
    except (MachineError, SpotError, spot_launch.NoCapacity) as error:
        module.fail_json(msg=str(error))
    except (BotoCoreError, ClientError) as error:
        module.fail_json_aws(error, msg=f"machine {module.params['name']}")
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
