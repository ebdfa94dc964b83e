#!/usr/bin/python
# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Manage one tagged EC2 instance."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ec2_instance
short_description: Manage one tagged EC2 instance
version_added: 1.0.0
description:
  - "Launches an instance, on demand or spot, unless one with the tag C(umccr.pcgr: <name>) exists; then that one is returned unchanged,
    or started if it was stopped."
  - The instance terminates when it powers itself off, so it needs no right to terminate itself. Its metadata service requires tokens (IMDSv2).
  - M(amazon.aws.ec2_instance) has no spot option, and M(amazon.aws.ec2_spot_instance) uses a request that AWS calls legacy.
author: University of Melbourne Centre for Cancer Research (@umccr)
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
  platform: {support: full, platforms: posix}
options:
  state:
    description:
      - V(absent) terminates all instances with the tag.
      - V(found) returns the instance if it exists, launches none, and updates O(log).
    type: str
    choices: [present, absent, found]
    default: present
  image: {description: Machine image to launch from., type: str}
  instance_type: {description: Instance type., type: str}
  spot: {description: "Launch a spot instance that is never stopped or hibernated, at most at the on-demand price.", type: bool, default: false}
  pools:
    description:
      - With O(spot), the pools to launch from. An EC2 Fleet chooses the pool that has most capacity at a good price
        (allocation strategy C(price-capacity-optimized)), and O(instance_type) is ignored.
    type: list
    elements: dict
    default: []
    suboptions:
      type: {description: Instance type., type: str, required: true}
      zone: {description: Availability zone. Ignored with O(subnet)., type: str, required: true}
  fallback_type: {description: "Instance type to launch on demand when none of O(pools) has capacity. Unset, the module fails.", type: str}
  log:
    description: File on the controller that records each launch, interruption and termination, one JSON object a line. Unset, nothing is recorded.
    type: path
  notes_bucket:
    description:
      - Bucket in whose folder C(machines/) the instances leave notes. Each reported sample and each interruption that O(log) lacks is added to it.
    type: str
  key_name: {description: Key pair., type: str}
  security_group_ids: {description: Security groups., type: list, elements: str, default: []}
  subnet: {description: "Subnet. Unset, AWS chooses one of the default network.", type: str}
  instance_profile: {description: Name of the instance profile., type: str}
  volume_gb: {description: Size of the root volume in GB. Required with O(state=present)., type: int}
  data_volume_gb:
    description:
      - Size in GB of a second volume, which is deleted with the instance. Unset, it exists only with O(data_snapshot) and has the size of
        the snapshot.
    type: int
  data_snapshot: {description: Snapshot to create the second volume from., type: str}
  wait_seconds: {description: Seconds to wait until the instance runs and has an address., type: int, default: 300}
extends_documentation_fragment:
  - umccr.pcgr.attributes
  - umccr.pcgr.aws
  - umccr.pcgr.aws.tagged
"""

EXAMPLES = r"""
- name: Launch a spot instance
  umccr.pcgr.ec2_instance:
    name: pcgr
    image: ami-0123456789abcdef0
    instance_type: m5.xlarge
    volume_gb: 120
    spot: true
"""

RETURN = r"""
instance:
  description: The instance; empty when there is none.
  type: dict
  returned: always
  contains:
    id: {description: Instance id., type: str, returned: success}
    address: {description: "Public address, or the private one.", type: str, returned: success}
    type: {description: Instance type., type: str, returned: success}
    zone: {description: Availability zone., type: str, returned: success}
    spot: {description: Whether it is a spot instance., type: bool, returned: success}
    image: {description: Machine image it was launched from., type: str, returned: success}
    data_volume: {description: "Id of the second volume; null when there is none.", type: str, returned: success}
fallback_reason: {description: "Why the instance is on demand although spot was requested; null otherwise.", type: str, returned: always}
usd_per_hour: {description: "Price of the instance in US dollars per hour, without volumes; null when it is unknown.", type: float, returned: always}
terminated: {description: Ids of the instances that were terminated., type: list, elements: str, returned: always}
"""

import time
import uuid
from datetime import datetime, timezone
from typing import Any

try:
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:
    pass  # AnsibleAWSModule reports it

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule
from ansible_collections.umccr.pcgr.plugins.module_utils._aws_client import (
    TAG,
    TAGGED_ARGUMENTS,
    resource_tags,
    retrying,
    tag_filter,
    tag_list,
)
from ansible_collections.umccr.pcgr.plugins.module_utils._spot import launch as spot_launch
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.log import SpotError
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.price_list import (
    PRICE_LIST_REGION,
    listed_price,
    price_filters,
)

# Every instance type accepts this name; the operating system names its disks differently.
DATA_DEVICE = "/dev/sdf"
# Seconds during which EC2 may not yet know a new instance profile.
PROFILE_DELAY = 60


class InstanceError(Exception):
    """There is no such instance, or no single one; the text is one line."""


def find(ec2: Any, name: str) -> list[dict[str, Any]]:
    """Instances with the tag that are neither terminated nor shutting down."""
    filters = [
        tag_filter(name),
        {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]},
    ]
    pages = ec2.get_paginator("describe_instances").paginate(Filters=filters)
    return [instance for page in pages for group in page["Reservations"] for instance in group["Instances"]]


def root_device(ec2: Any, image: str) -> str:
    """Device name of the image's root volume; raises InstanceError when the image does not exist."""
    try:
        found = ec2.describe_images(ImageIds=[image])["Images"]
    except ClientError as error:
        if not error.response["Error"]["Code"].startswith("InvalidAMIID"):
            raise
        found = []
    if not found:
        raise InstanceError(f"image {image} does not exist in this region, or this account may not use it")
    return str(found[0].get("RootDeviceName") or "/dev/xvda")


def request(ec2: Any, params: dict[str, Any]) -> dict[str, Any]:
    """The arguments of RunInstances."""
    tags = tag_list(resource_tags(params["name"]) | {"Name": params["name"]})
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
        # One hop: containers cannot reach the instance's credentials.
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
    """Launch an instance; waits until EC2 knows a new instance profile. Returns its id, and why it is on demand although spot was requested."""
    arguments = request(ec2, params)
    token = uuid.uuid4().hex  # with it, a repeated call launches no second instance
    end = time.monotonic() + PROFILE_DELAY
    while True:
        try:
            if params["spot"] and params["pools"]:
                (tag,) = tag_list(resource_tags(params["name"]))
                return spot_launch.fleet(ec2, arguments, params["pools"], tag), None
            return str(ec2.run_instances(**arguments, ClientToken=token)["Instances"][0]["InstanceId"]), None
        except (ClientError, spot_launch.NoCapacity) as error:
            if "iamInstanceProfile" not in str(error) or time.monotonic() > end:
                if isinstance(error, ClientError) or not params["fallback_type"]:
                    raise
                on_demand = params | {"spot": False, "pools": [], "instance_type": params["fallback_type"]}
                return launch(ec2, on_demand)[0], str(error)
        time.sleep(3)


def wait(ec2: Any, name: str, instance: str, seconds: int) -> dict[str, Any]:
    """Wait until the instance runs and has an address; raises InstanceError when it terminates instead or time is up."""
    end = time.monotonic() + seconds
    while True:
        found = look_up(ec2, instance)
        state = found["State"]["Name"]
        if state == "running" and address(found):
            return found
        if state in ("shutting-down", "terminated"):
            reason = (
                found.get("StateReason", {}).get("Message") or found.get("StateTransitionReason") or "no reason given"
            )
            raise InstanceError(f"instance {name} ({instance}) terminated while it was starting: {reason}")
        if time.monotonic() > end:
            raise InstanceError(f"instance {name} ({instance}) is still {state} after {seconds} seconds")
        time.sleep(1)


def look_up(ec2: Any, instance: str) -> dict[str, Any]:
    """An instance as EC2 describes it; one that was just launched may be unknown there for a moment and is pending."""
    try:
        return dict(ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0])
    except ClientError as error:
        if error.response["Error"]["Code"] != "InvalidInstanceID.NotFound":
            raise
        return {"State": {"Name": "pending"}}


def address(instance: dict[str, Any]) -> str:
    """Public address, or the private one where there is no public one."""
    return str(instance.get("PublicIpAddress") or instance.get("PrivateIpAddress") or "")


def describe(instance: dict[str, Any]) -> dict[str, Any]:
    """The instance as the module returns it."""
    return {
        "id": instance["InstanceId"],
        "address": address(instance),
        "type": instance["InstanceType"],
        "zone": instance["Placement"]["AvailabilityZone"],
        "spot": instance.get("InstanceLifecycle") == "spot",
        "image": instance["ImageId"],
        "data_volume": {
            device["DeviceName"]: device["Ebs"]["VolumeId"] for device in instance.get("BlockDeviceMappings", [])
        }.get(DATA_DEVICE),
    }


def result(
    *,
    changed: bool,
    instance: dict[str, Any] | None = None,
    usd_per_hour: float | None = None,
    terminated: list[str] | None = None,
    fallback_reason: str | None = None,
) -> dict[str, Any]:
    """What the module returns, whatever the state."""
    return {
        "changed": changed,
        "instance": instance or {},
        "usd_per_hour": usd_per_hour,
        "terminated": terminated or [],
        "fallback_reason": fallback_reason,
    }


def price(module: AnsibleAWSModule, ec2: Any, instance: dict[str, Any]) -> float | None:
    """US dollars per hour: the current spot price, or the price list's; None when AWS does not answer (a right is missing, a look-alike)."""
    try:
        if instance["spot"]:
            history = ec2.describe_spot_price_history(
                InstanceTypes=[instance["type"]],
                AvailabilityZone=instance["zone"],
                ProductDescriptions=["Linux/UNIX"],
                StartTime=datetime.now(timezone.utc),
            )["SpotPriceHistory"]
            return float(history[0]["SpotPrice"]) if history else None
        # Not retried: nobody waits for a price.
        quick = Config(connect_timeout=3, read_timeout=5, retries={"max_attempts": 1})
        pricing = module.client("pricing", region=PRICE_LIST_REGION, config=quick)
        filters = price_filters(instance["type"], module.region)
        products = pricing.get_products(ServiceCode="AmazonEC2", Filters=filters, MaxResults=1)["PriceList"]
        return listed_price(products[0]) or None
    except Exception:  # the price is for information only: whatever is missing, the instance runs
        return None


def present(module: AnsibleAWSModule, ec2: Any) -> dict[str, Any]:
    """Find or launch the instance; what the module returns."""
    params = module.params
    found = find(ec2, params["name"])
    if len(found) > 1:
        raise InstanceError(
            f"name: found {len(found)} instances tagged {TAG}={params['name']} "
            f"({', '.join(instance['InstanceId'] for instance in found)}), allowed one"
        )
    stopped = [instance["InstanceId"] for instance in found if instance["State"]["Name"] in ("stopping", "stopped")]
    changed = not found or bool(stopped)
    if module.check_mode and changed:
        return result(changed=True)
    if stopped:
        if found[0]["State"]["Name"] == "stopping":
            ec2.get_waiter("instance_stopped").wait(InstanceIds=stopped)
        ec2.start_instances(InstanceIds=stopped)
    instance_id, fallback_reason = (found[0]["InstanceId"], None) if found else launch(ec2, params)
    instance = describe(wait(ec2, params["name"], instance_id, params["wait_seconds"]))
    usd_per_hour = price(module, ec2, instance)
    if params["log"] and not found:
        spot_launch.record_launch(params["log"], instance, params["name"], usd_per_hour)
    return result(changed=changed, instance=instance, usd_per_hour=usd_per_hour, fallback_reason=fallback_reason)


def look(module: AnsibleAWSModule, ec2: Any) -> dict[str, Any]:
    """The instance if there is one; what the module returns."""
    found = find(ec2, module.params["name"])
    return result(changed=False, instance=describe(found[0]) if found else None)


def update_log(module: AnsibleAWSModule, ec2: Any) -> None:
    """Bring the log up to date. The notes come first: an instance whose interruption is among them is not looked up again."""
    params = module.params
    if params["log"] and not module.check_mode:
        if params["notes_bucket"]:
            for refusal in spot_launch.collect_notes(retrying(module, "s3"), params["notes_bucket"], params["log"]):
                module.warn(refusal)
        spot_launch.reconcile(ec2, params["log"], params["name"])


def absent(module: AnsibleAWSModule, ec2: Any) -> dict[str, Any]:
    """Terminate every instance with the tag and wait until they are; what the module returns."""
    terminated = [instance["InstanceId"] for instance in find(ec2, module.params["name"])]
    if terminated and not module.check_mode:
        ec2.terminate_instances(InstanceIds=terminated)
        wait_terminated(ec2, terminated, module.params["wait_seconds"])
    update_log(module, ec2)
    return result(changed=bool(terminated), terminated=terminated)


def wait_terminated(ec2: Any, instances: list[str], seconds: int) -> None:
    """Wait until the instances are terminated; raises InstanceError when time is up."""
    end = time.monotonic() + seconds
    while True:
        groups = ec2.describe_instances(InstanceIds=instances)["Reservations"]
        left = [
            one["InstanceId"] for group in groups for one in group["Instances"] if one["State"]["Name"] != "terminated"
        ]
        if not left:
            return
        if time.monotonic() > end:
            raise InstanceError(f"not terminated after {seconds} seconds: {', '.join(left)}")
        time.sleep(1)


def main() -> None:
    """Entry point of the module."""
    module = AnsibleAWSModule(
        argument_spec={
            **TAGGED_ARGUMENTS,
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
    ec2 = retrying(module, "ec2")
    try:
        update_log(module, ec2)
        answer = {"present": present, "absent": absent, "found": look}[module.params["state"]](module, ec2)
    except (InstanceError, SpotError, spot_launch.NoCapacity) as error:
        module.fail_json(msg=str(error))
    except (BotoCoreError, ClientError) as error:
        module.fail_json_aws(error, msg=f"instance {module.params['name']}")
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
