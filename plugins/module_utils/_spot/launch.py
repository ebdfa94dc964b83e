# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Launches one spot instance from many pools by an EC2 Fleet, and keeps the log of our instances. Needs only a boto3 client."""

from __future__ import annotations

import re
import uuid
from datetime import datetime, timezone
from typing import Any

from ansible_collections.umccr.pcgr.plugins.module_utils._spot.log import (
    SpotError,
    append,
    instance_runs,
    parse_event,
    read_log,
)

MOST_POOLS = 300  # overrides of a fleet
NOTES = "machines/"  # folder of the bucket; umccr_pcgr.samples has the same, and a test holds them together
NOTE = re.compile(NOTES + r"(i-[0-9a-f]+)/([0-9a-z]+)\.json")
NOTE_BYTES = 4096  # ten times the size of a note
INTERRUPTED = "Server.SpotInstanceTermination"  # state reason of an interrupted instance


class NoCapacity(Exception):
    """No pool has capacity; the text is one line with the reason that AWS gives."""


def fleet(ec2: Any, arguments: dict[str, Any], pools: list[dict[str, str]], tag: dict[str, str]) -> str:
    """Launch one spot instance with the arguments of RunInstances from the best of the pools; returns its id.

    AWS chooses by capacity first, then price. The launch template that a fleet needs is removed afterwards. Raises ``NoCapacity``.
    """
    omitted = ("MinCount", "MaxCount", "InstanceType", "InstanceMarketOptions", "SubnetId")
    template = {key: value for key, value in arguments.items() if key not in omitted}
    place = {"SubnetId": arguments["SubnetId"]} if "SubnetId" in arguments else None
    overrides = [{"InstanceType": pool["type"], **(place or {"AvailabilityZone": pool["zone"]})} for pool in pools]
    overrides = [one for index, one in enumerate(overrides) if one not in overrides[:index]][:MOST_POOLS]
    token = uuid.uuid4().hex  # with it, a repeated call creates nothing twice
    name = f"{tag['Value']}-{token[:12]}"
    tags = [{"ResourceType": "launch-template", "Tags": [tag]}]
    made = ec2.create_launch_template(
        LaunchTemplateName=name, LaunchTemplateData=template, TagSpecifications=tags, ClientToken=token
    )
    source = {"LaunchTemplateId": made["LaunchTemplate"]["LaunchTemplateId"], "Version": "$Latest"}
    try:
        answer = ec2.create_fleet(
            Type="instant",
            ClientToken=token,
            LaunchTemplateConfigs=[{"LaunchTemplateSpecification": source, "Overrides": overrides}],
            TargetCapacitySpecification={"TotalTargetCapacity": 1, "DefaultTargetCapacityType": "spot"},
            SpotOptions={"AllocationStrategy": "price-capacity-optimized", "InstanceInterruptionBehavior": "terminate"},
        )
    finally:
        ec2.delete_launch_template(LaunchTemplateId=source["LaunchTemplateId"])
    instances = [instance for group in answer.get("Instances", []) for instance in group["InstanceIds"]]
    if not instances:
        reasons = {f"{error.get('ErrorCode')}: {error.get('ErrorMessage')}" for error in answer.get("Errors", [])}
        raise NoCapacity(
            f"no spot instance in any of {len(overrides)} pools: {'; '.join(sorted(reasons)) or 'AWS gives no reason'}"
        )
    return str(instances[0])


def collect_notes(s3: Any, bucket: str, path: str) -> list[str]:
    """Add to the log the notes in the bucket that it lacks; returns a line for each note that is refused.

    Each interruption has one line in the log, whether the instance or EC2 reported it first.
    """
    known = {(str(event["machine"]), str(event.get("attempt", event["event"]))) for event in read_log(path)}
    refused = []
    try:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=NOTES)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    except s3.exceptions.NoSuchBucket:
        keys = []
    for key in keys:
        found = NOTE.fullmatch(key)
        if not found or found.groups() in known:
            continue
        instance, name = found.groups()
        where = f"s3://{bucket}/{key}"
        body = s3.get_object(Bucket=bucket, Key=key)["Body"].read(NOTE_BYTES)
        try:
            event = parse_event(body.decode("utf-8", "replace"), where)
        except SpotError as error:
            refused.append(f"{error}; the note is ignored")
            continue
        about = {"attempt": name, "hours": event.get("hours")} if name != "interrupted" else {}
        if (event["machine"], event["event"]) != (instance, "sample" if about else "interrupted"):
            refused.append(f"{where}: found {event['event']} of {event['machine']}; the note is ignored")
            continue
        append(path, event["event"], event["time"], machine=instance, **about)
    return refused


def reconcile(ec2: Any, path: str, name: str) -> None:
    """Reconcile the log with EC2: record the state of each instance that runs according to the log.

    EC2 forgets terminated instances after about an hour. One that it no longer knows counts until it was last seen.
    """
    now = datetime.now(timezone.utc).timestamp()
    for run in instance_runs(read_log(path), now):
        if run.over or run.name != name:
            continue
        # A filter, unlike an id, may match nothing.
        groups = ec2.describe_instances(Filters=[{"Name": "instance-id", "Values": [run.instance]}])["Reservations"]
        instance = next((one for group in groups for one in group["Instances"]), None)
        if instance is None:
            append(path, "ended", run.until, machine=run.instance, unknown=True)
        elif instance["State"]["Name"] in ("shutting-down", "terminated"):
            interrupted = instance.get("StateReason", {}).get("Code") == INTERRUPTED
            append(path, "interrupted" if interrupted else "ended", _ended(instance, now), machine=run.instance)
        else:
            append(path, "seen", now, machine=run.instance)


def _ended(instance: dict[str, Any], now: float) -> float:
    """When an instance terminated, from its transition reason, such as ``... (2026-11-23 01:02:03 GMT)``; else now."""
    text = instance.get("StateTransitionReason", "").rpartition("(")[2]
    try:
        moment = datetime.strptime(text, "%Y-%m-%d %H:%M:%S GMT)").replace(tzinfo=timezone.utc)
    except ValueError:
        return now
    return moment.timestamp()


def record_launch(path: str, instance: dict[str, Any], name: str, usd_per_hour: float | None) -> None:
    """Add the launch of an instance (as the module ec2_instance returns it) to the log."""
    append(
        path,
        "launched",
        datetime.now(timezone.utc).timestamp(),
        machine=instance["id"],
        type=instance["type"],
        zone=instance["zone"],
        market="spot" if instance["spot"] else "on-demand",
        name=name,
        usd_per_hour=usd_per_hour,
    )
