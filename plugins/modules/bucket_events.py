#!/usr/bin/python
# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Send S3 event notifications to an SQS queue."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bucket_events
short_description: Send S3 event notifications to an SQS queue
version_added: 1.0.0
description:
  - Sets, in one call, a notification per suffix for objects created in a bucket. Notifications of others on the bucket are kept.
  - M(community.aws.s3_bucket_notification) sets one suffix per run, and writes names of filter rules that look-alikes of S3 refuse.
author: University of Melbourne Centre for Cancer Research (@umccr)
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
  platform: {support: full, platforms: posix}
options:
  bucket: {description: Name of the bucket., type: str, required: true}
  queue_arn: {description: ARN of the queue. Needed for O(state=present)., type: str}
  suffixes: {description: Ends of object names. Needed for O(state=present)., type: list, elements: str, default: []}
  id_prefix: {description: Start of the ids of our notifications; all others are kept., type: str, default: umccr-pcgr}
  state: {description: V(absent) removes our notifications., type: str, choices: [present, absent], default: present}
extends_documentation_fragment:
  - umccr.pcgr.attributes
  - umccr.pcgr.aws
"""

EXAMPLES = r"""
- name: Tell a queue about samples
  umccr.pcgr.bucket_events:
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
    ClientError = BotoCoreError = OSError  # type: ignore[assignment,misc]  # AnsibleAWSModule tells what is missing

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule

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
    texts = []
    for item in notifications:
        rules = item.get("Filter", {}).get("Key", {}).get("FilterRules", [])
        kept = sorted([rule["Name"].lower(), rule["Value"]] for rule in rules if rule.get("Value"))
        texts.append(json.dumps([item.get("Id"), item["QueueArn"], sorted(item["Events"]), kept]))
    return sorted(texts)


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
    params, s3 = module.params, module.client("s3")
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
    module.exit_json(changed=changed, notifications=[item["Id"] for item in target])


if __name__ == "__main__":
    main()
