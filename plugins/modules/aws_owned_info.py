#!/usr/bin/python
# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Report which AWS resources carry our tag."""

from __future__ import annotations

DOCUMENTATION = r"""
module: aws_owned_info
short_description: Report which AWS resources carry our tag
version_added: 1.0.0
description:
  - Reports of the named bucket, queues, role, instance profile, key pair and security group whether each exists and carries the tag
    C(umccr.pcgr) with the value O(name), and lists the instances that carry it.
  - Roles refuse to take over resources that exist without the tag, and teardown removes only those that carry it.
author: University of Melbourne Centre for Cancer Research (@umccr)
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
  platform: {support: full, platforms: posix}
options:
  bucket:
    description: Bucket to examine. Unset, C(pcgr-<account>-<region>).
    type: str
  queues:
    description: Queues to examine.
    type: list
    elements: str
    default: []
  role:
    description: Role to examine.
    type: str
  instance_profile:
    description: Instance profile to examine.
    type: str
  key_name:
    description: Key pair to examine.
    type: str
  security_group:
    description: Name of the security group to examine, in one network only.
    type: str
  subnet:
    description: Subnet in whose network (VPC) the security group is looked up.
    type: str
  vpc:
    description: Network (VPC) in which the security group is looked up. Unset, that of O(subnet), else the default one.
    type: str
extends_documentation_fragment:
  - umccr.pcgr.attributes
  - umccr.pcgr.aws
  - umccr.pcgr.aws.tagged
"""

EXAMPLES = r"""
- name: Find our resources
  umccr.pcgr.aws_owned_info:
    name: pcgr
    queues: [pcgr, pcgr-dead]
    role: pcgr-machine
"""

RETURN = r"""
tags: {description: Tag of our resources as a mapping of key and value., type: dict, returned: always}
account: {description: Number of the account., type: str, returned: always}
partition: {description: "First part of ARNs, such as V(aws).", type: str, returned: always}
bucket: {description: Name of the bucket., type: str, returned: always}
resources:
  description: By kind and name, C(exists), C(ours); for the bucket also C(empty), for others C(id) where there is one.
  type: dict
  returned: always
vpc: {description: "Network in which the security group was looked up; null when there is none.", type: str, returned: always}
default_vpc: {description: "Default network of the region; null when there is none.", type: str, returned: always}
our_security_groups:
  description: Ids of all security groups of that name, in any network, that carry the tag with the wanted value.
  type: list
  elements: str
  returned: always
foreign: {description: "Resources that exist without the tag, one text each.", type: list, elements: str, returned: always}
instances: {description: "Our instances that are not terminated, with C(id) and C(state).", type: list, elements: dict, returned: always}
"""

from typing import Any

try:
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:
    ClientError = BotoCoreError = OSError  # type: ignore[assignment,misc]  # AnsibleAWSModule reports what is missing

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule
from ansible_collections.umccr.pcgr.plugins.module_utils._aws_client import (
    TAG,
    TAGGED_ARGUMENTS,
    resource_tags,
    retrying,
    tag_filter,
)

NOT_THERE = {"exists": False, "ours": False}


class NetworkError(Exception):
    """The requested network does not exist or is not that of the subnet; the text is one line."""


def tag_of(tags: list[dict[str, str]] | None) -> str | None:
    """Value of our tag in a list of Key and Value."""
    return next((tag["Value"] for tag in tags or [] if tag["Key"] == TAG), None)


def absent(error: Any, *codes: str) -> bool:
    """True when a ClientError means that the resource does not exist."""
    return error.response["Error"]["Code"] in codes


def bucket_state(s3: Any, name: str, wanted: str) -> dict[str, Any]:
    """State of a bucket; one of another account exists and is not ours."""
    try:
        s3.head_bucket(Bucket=name)
    except ClientError as error:
        if absent(error, "404", "NoSuchBucket"):
            return dict(NOT_THERE)
        if absent(error, "403"):
            return {"exists": True, "ours": False, "empty": False}
        raise
    try:
        tags = s3.get_bucket_tagging(Bucket=name)["TagSet"]
    except ClientError as error:
        if not absent(error, "NoSuchTagSet"):
            raise
        tags = []
    found = s3.list_object_versions(Bucket=name, MaxKeys=1)
    empty = not (found.get("Versions") or found.get("DeleteMarkers"))
    return {"exists": True, "ours": tag_of(tags) == wanted, "empty": empty}


def queue_state(sqs: Any, name: str, wanted: str) -> dict[str, Any]:
    """State of a queue."""
    try:
        url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
    except ClientError as error:
        if absent(error, "AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"):
            return dict(NOT_THERE)
        raise
    return {"exists": True, "ours": sqs.list_queue_tags(QueueUrl=url).get("Tags", {}).get(TAG) == wanted, "id": url}


def role_state(iam: Any, name: str, wanted: str) -> dict[str, Any]:
    """State of a role."""
    try:
        role = iam.get_role(RoleName=name)["Role"]
    except ClientError as error:
        if absent(error, "NoSuchEntity"):
            return dict(NOT_THERE)
        raise
    return {"exists": True, "ours": tag_of(iam.list_role_tags(RoleName=name)["Tags"]) == wanted, "id": role["Arn"]}


def key_state(ec2: Any, name: str, wanted: str) -> dict[str, Any]:
    """State of a key pair."""
    found = ec2.describe_key_pairs(Filters=[{"Name": "key-name", "Values": [name]}])["KeyPairs"]
    if not found:
        return dict(NOT_THERE)
    return {"exists": True, "ours": tag_of(found[0].get("Tags")) == wanted, "id": found[0]["KeyPairId"]}


def profile_state(iam: Any, name: str, wanted: str) -> dict[str, Any]:
    """State of an instance profile."""
    try:
        profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    except ClientError as error:
        if absent(error, "NoSuchEntity"):
            return dict(NOT_THERE)
        raise
    return {"exists": True, "ours": tag_of(profile.get("Tags")) == wanted, "id": profile["Arn"]}


def network(ec2: Any, subnet: str | None, vpc: str | None) -> str | None:
    """The network (VPC) that an instance would be in; None when none is named and there is no default one. Raises NetworkError."""
    if subnet:
        try:
            found = str(ec2.describe_subnets(SubnetIds=[subnet])["Subnets"][0]["VpcId"])
        except ClientError as error:
            if not absent(error, "InvalidSubnetID.NotFound", "InvalidSubnetID.Malformed"):
                raise
            raise NetworkError(f"subnet {subnet} does not exist in this region") from None
        if vpc and vpc != found:
            raise NetworkError(f"subnet {subnet} is in {found}, not in {vpc}; name the subnet alone, or one of {vpc}")
        return found
    if vpc:
        return vpc
    return default_network(ec2)


def default_network(ec2: Any) -> str | None:
    """The default network (VPC) of the region; None when there is none."""
    found = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    return str(found[0]["VpcId"]) if found else None


def groups(ec2: Any, name: str) -> list[dict[str, Any]]:
    """All security groups of a name, at most one in each network."""
    pages = ec2.get_paginator("describe_security_groups").paginate(Filters=[{"Name": "group-name", "Values": [name]}])
    return [group for page in pages for group in page["SecurityGroups"]]


def group_state(found: list[dict[str, Any]], vpc: str | None, wanted: str) -> dict[str, Any]:
    """State of the security group in a network. What other networks have under that name does not count."""
    for group in found:
        if group.get("VpcId") == vpc:
            return {"exists": True, "ours": tag_of(group.get("Tags")) == wanted, "id": group["GroupId"]}
    return dict(NOT_THERE)


def instances(ec2: Any, wanted: str) -> list[dict[str, str]]:
    """Our instances that are not terminated."""
    filters = [
        tag_filter(wanted),
        {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped", "shutting-down"]},
    ]
    pages = ec2.get_paginator("describe_instances").paginate(Filters=filters)
    return [
        {"id": instance["InstanceId"], "state": instance["State"]["Name"]}
        for page in pages
        for reservation in page["Reservations"]
        for instance in reservation["Instances"]
    ]


def examine(module: AnsibleAWSModule) -> dict[str, Any]:
    """Everything that the module returns."""
    params, wanted = module.params, module.params["name"]
    identity = retrying(module, "sts").get_caller_identity()
    account, partition = identity["Account"], identity["Arn"].split(":")[1]
    bucket = params["bucket"] or f"pcgr-{account}-{module.region}"
    ec2, sqs = retrying(module, "ec2"), retrying(module, "sqs")
    found: dict[str, dict[str, Any]] = {"bucket": {bucket: bucket_state(retrying(module, "s3"), bucket, wanted)}}
    found["queue"] = {name: queue_state(sqs, name, wanted) for name in params["queues"]}
    if params["role"]:
        found["role"] = {params["role"]: role_state(retrying(module, "iam"), params["role"], wanted)}
    if params["instance_profile"]:
        profile = params["instance_profile"]
        found["instance profile"] = {profile: profile_state(retrying(module, "iam"), profile, wanted)}
    if params["key_name"]:
        found["key pair"] = {params["key_name"]: key_state(ec2, params["key_name"], wanted)}
    vpc, ours = None, []
    if params["security_group"]:
        vpc = network(ec2, params["subnet"], params["vpc"])
        named = groups(ec2, params["security_group"])
        found["security group"] = {params["security_group"]: group_state(named, vpc, wanted)}
        ours = [group["GroupId"] for group in named if tag_of(group.get("Tags")) == wanted]
    foreign = [
        f"{kind} {name}"
        for kind, group in found.items()
        for name, state in group.items()
        if state["exists"] and not state["ours"]
    ]
    return {
        "tags": resource_tags(wanted),
        "account": account,
        "partition": partition,
        "bucket": bucket,
        "resources": found,
        "vpc": vpc,
        "default_vpc": default_network(ec2),
        "our_security_groups": ours,
        "foreign": foreign,
        "instances": instances(ec2, wanted),
    }


def main() -> None:
    """Entry point of the module."""
    module = AnsibleAWSModule(
        argument_spec={
            **TAGGED_ARGUMENTS,
            "bucket": {"type": "str"},
            "queues": {"type": "list", "elements": "str", "default": []},
            "role": {"type": "str"},
            "instance_profile": {"type": "str"},
            "key_name": {"type": "str", "no_log": False},
            "security_group": {"type": "str"},
            "subnet": {"type": "str"},
            "vpc": {"type": "str"},
        },
        supports_check_mode=True,
    )
    if not module.region:
        module.fail_json(
            msg="no region is set; set aws_region, AWS_REGION, AWS_DEFAULT_REGION or a region in the AWS profile"
        )
    try:
        answer = examine(module)
    except NetworkError as error:
        module.fail_json(msg=str(error))
    except (BotoCoreError, ClientError) as error:
        module.fail_json_aws(error, msg="examining the account")
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
