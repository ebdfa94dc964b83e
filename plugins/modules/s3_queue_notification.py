#!/usr/bin/python
# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Send S3 event notifications to an SQS queue."""

from __future__ import annotations

DOCUMENTATION = r"""
module: s3_queue_notification
short_description: Send S3 event notifications to an SQS queue
version_added: 1.0.0
description:
  - Configures, in one call, a notification per suffix for objects created in a bucket. Other notifications of the bucket are kept.
  - M(community.aws.s3_bucket_notification) configures one suffix per run, and writes names of filter rules that look-alikes of S3 refuse.
author: University of Melbourne Centre for Cancer Research (@umccr)
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
  idempotent: {support: full}
  platform: {support: full, platforms: posix}
options:
  bucket: {description: Name of the bucket., type: str, required: true}
  queue_arn: {description: ARN of the queue. Required with O(state=present)., type: str}
  suffixes: {description: Suffixes of object names. Required with O(state=present)., type: list, elements: str, default: []}
  id_prefix: {description: Prefix of the ids of our notifications; all others are kept., type: str, default: umccr-pcgr}
  state: {description: V(absent) removes our notifications., type: str, choices: [present, absent], default: present}
extends_documentation_fragment:
  - umccr.pcgr.attributes
  - umccr.pcgr.aws
"""

EXAMPLES = r"""
- name: Send notifications about samples to a queue
  umccr.pcgr.s3_queue_notification:
    bucket: example
    queue_arn: arn:aws:sqs:ap-southeast-2:123456789012:pcgr
    suffixes: [-somatic.tar.gz, -normal.tar.gz]
"""

RETURN = r"""
notifications: {description: Ids of our notifications., type: list, elements: str, returned: always}
"""

import json
import re
from typing import Any

try:
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:
    ClientError = BotoCoreError = OSError  # type: ignore[assignment,misc]  # AnsibleAWSModule reports what is missing

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule
from ansible_collections.umccr.pcgr.plugins.module_utils._aws_client import retrying

EVENTS = ["s3:ObjectCreated:*"]


def wanted(params: dict[str, Any]) -> list[dict[str, Any]]:
    """Our notifications as the API takes them."""
    if params["state"] == "absent":
        return []
    return [
        {
            "Id": params["id_prefix"] + re.sub(r"[^a-z]+", "-", suffix.split(".")[0]),
            "QueueArn": params["queue_arn"],
            "Events": EVENTS,
            "Filter": {"Key": {"FilterRules": [{"Name": "suffix", "Value": suffix}]}},
        }
        for suffix in params["suffixes"]
    ]


def comparable(notifications: list[dict[str, Any]]) -> list[str]:
    """The notifications in a form that is equal when they mean the same; S3 answers with capitals and empty prefixes."""
    return sorted(json.dumps(item, sort_keys=True) for item in readable(notifications).items())


def readable(notifications: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By id, the queue, the events and the filter of each notification, as a person compares them."""
    found = {}
    for item in notifications:
        rules = item.get("Filter", {}).get("Key", {}).get("FilterRules", [])
        kept = {rule["Name"].lower(): rule["Value"] for rule in rules if rule.get("Value")}
        found[item.get("Id", "")] = {"queue": item["QueueArn"], "events": sorted(item["Events"]), "filter": kept}
    return found


def main() -> None:
    """Entry point of the module."""
    module = AnsibleAWSModule(
        argument_spec={
            "bucket": {"type": "str", "required": True},
            "queue_arn": {"type": "str"},
            "suffixes": {"type": "list", "elements": "str", "default": []},
            "id_prefix": {"type": "str", "default": "umccr-pcgr"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ["queue_arn", "suffixes"])],
        supports_check_mode=True,
    )
    params, s3 = module.params, retrying(module, "s3")
    try:
        answer = s3.get_bucket_notification_configuration(Bucket=params["bucket"])
        answer.pop("ResponseMetadata", None)
        queues = answer.get("QueueConfigurations", [])
        ours = [item for item in queues if item.get("Id", "").startswith(params["id_prefix"])]
        target = wanted(params)
        changed = comparable(ours) != comparable(target)
        if changed and not module.check_mode:
            answer["QueueConfigurations"] = [item for item in queues if item not in ours] + target
            s3.put_bucket_notification_configuration(Bucket=params["bucket"], NotificationConfiguration=answer)
    except (BotoCoreError, ClientError) as error:
        module.fail_json_aws(error, msg=f"notifications of bucket {params['bucket']}")
    result = {"changed": changed, "notifications": [item["Id"] for item in target]}
    if module._diff:
        result["diff"] = {"before": readable(ours), "after": readable(target)}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
