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
  - Looks at the named bucket, queues, role, key pair and security group, and at all instances, and tells of each whether it exists and
    carries the tag C(umccr.pcgr) with the wanted value.
  - Roles refuse to take over what exists without the tag, and teardown removes only what carries it.
author: University of Melbourne Centre for Cancer Research (@umccr)
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
  platform: {support: full, platforms: posix}
options:
  name:
    description: Wanted value of the tag.
    type: str
    required: true
  bucket:
    description: Bucket to look at. Unset, the name is made from account and region, C(pcgr-<account>-<region>).
    type: str
  queues:
    description: Queues to look at.
    type: list
    elements: str
    default: []
  role:
    description: Role to look at.
    type: str
  key_name:
    description: Key pair to look at.
    type: str
  security_group:
    description: Name of the security group to look at.
    type: str
extends_documentation_fragment:
  - umccr.pcgr.attributes
  - umccr.pcgr.aws
"""

EXAMPLES = r"""
- name: Look at what belongs to us
  umccr.pcgr.aws_owned_info:
    name: pcgr
    queues: [pcgr, pcgr-dead]
    role: pcgr-machine
"""

RETURN = r"""
account: {description: Number of the account., type: str, returned: always}
partition: {description: "First part of ARNs, such as V(aws).", type: str, returned: always}
bucket: {description: Name of the bucket., type: str, returned: always}
resources:
  description: By kind and name, C(exists), C(ours); for the bucket also C(empty), for others C(id) where there is one.
  type: dict
  returned: always
foreign: {description: "Resources that exist without the tag, one text each.", type: list, elements: str, returned: always}
instances: {description: "Our instances that have not ended, with C(id) and C(state).", type: list, elements: dict, returned: always}
"""

from typing import Any

try:
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:
    ClientError = BotoCoreError = OSError  # type: ignore[assignment,misc]  # AnsibleAWSModule tells what is missing

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule

TAG = "umccr.pcgr"
NOT_THERE = {"exists": False, "ours": False}


def tag_of(tags: list[dict[str, str]] | None) -> str | None:
    """Value of our tag in a list of Key and Value."""
    return next((tag["Value"] for tag in tags or [] if tag["Key"] == TAG), None)


def absent(error: Any, *codes: str) -> bool:
    """True when a ClientError says that the thing does not exist."""
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


def group_state(ec2: Any, name: str, wanted: str) -> dict[str, Any]:
    """State of a security group: ours when any of that name, in any network, is."""
    found = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [name]}])["SecurityGroups"]
    if not found:
        return dict(NOT_THERE)
    best = max(found, key=lambda group: tag_of(group.get("Tags")) == wanted)
    return {"exists": True, "ours": tag_of(best.get("Tags")) == wanted, "id": best["GroupId"]}


def instances(ec2: Any, wanted: str) -> list[dict[str, str]]:
    """Our instances that have not ended."""
    filters = [
        {"Name": f"tag:{TAG}", "Values": [wanted]},
        {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped", "shutting-down"]},
    ]
    pages = ec2.get_paginator("describe_instances").paginate(Filters=filters)
    return [
        {"id": machine["InstanceId"], "state": machine["State"]["Name"]}
        for page in pages
        for reservation in page["Reservations"]
        for machine in reservation["Instances"]
    ]


def look(module: AnsibleAWSModule) -> dict[str, Any]:
    """Everything the module returns."""
    params, wanted = module.params, module.params["name"]
    identity = module.client("sts").get_caller_identity()
    account, partition = identity["Account"], identity["Arn"].split(":")[1]
    bucket = params["bucket"] or f"pcgr-{account}-{module.region}"
    ec2, sqs = module.client("ec2"), module.client("sqs")
    found: dict[str, dict[str, Any]] = {"bucket": {bucket: bucket_state(module.client("s3"), bucket, wanted)}}
    found["queue"] = {name: queue_state(sqs, name, wanted) for name in params["queues"]}
    if params["role"]:
        found["role"] = {params["role"]: role_state(module.client("iam"), params["role"], wanted)}
    if params["key_name"]:
        found["key pair"] = {params["key_name"]: key_state(ec2, params["key_name"], wanted)}
    if params["security_group"]:
        found["security group"] = {params["security_group"]: group_state(ec2, params["security_group"], wanted)}
    foreign = [
        f"{kind} {name}"
        for kind, group in found.items()
        for name, state in group.items()
        if state["exists"] and not state["ours"]
    ]
    return {
        "account": account,
        "partition": partition,
        "bucket": bucket,
        "resources": found,
        "foreign": foreign,
        "instances": instances(ec2, wanted),
    }


def main() -> None:
    """Entry point of the module."""
    module = AnsibleAWSModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "bucket": {"type": "str"},
            "queues": {"type": "list", "elements": "str", "default": []},
            "role": {"type": "str"},
            "key_name": {"type": "str", "no_log": False},
            "security_group": {"type": "str"},
        },
        supports_check_mode=True,
    )
    if not module.region:
        module.fail_json(msg="no region is set; set aws_region or AWS_DEFAULT_REGION")
    try:
        answer = look(module)
    except (BotoCoreError, ClientError) as error:
        module.fail_json_aws(error, msg="looking at the account")
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
