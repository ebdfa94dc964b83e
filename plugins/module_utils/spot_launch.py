# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One spot machine from many pools by an EC2 Fleet, and the record of what became of ours. Needs boto3's client only."""

from __future__ import annotations

import re
import uuid
from datetime import datetime, timezone
from typing import Any

from ansible_collections.umccr.pcgr.plugins.module_utils.spot_log import SpotError, append, lives, parse_event, read_log

MOST_POOLS = 300  # overrides of a fleet
NOTES = "machines/"  # folder of the bucket; the consumer's naming.py has the same
NOTE = re.compile(NOTES + r"(i-[0-9a-f]+)/([0-9a-z]+)\.json")
NOTE_BYTES = 4096  # ten times what one has
INTERRUPTED = "Server.SpotInstanceTermination"  # state reason of a machine that was taken away


class NoCapacity(Exception):
    """No pool has a machine; the text is one line with what AWS said."""


def fleet(ec2: Any, arguments: dict[str, Any], pools: list[dict[str, str]], tag: dict[str, str]) -> str:
    """Launch one spot machine with the arguments of RunInstances from the best of the pools; returns its id.

    AWS chooses by capacity first, then price. The launch template that a fleet needs is removed again. Raises ``NoCapacity``.
    """
    left_out = ("MinCount", "MaxCount", "InstanceType", "InstanceMarketOptions", "SubnetId")
    template = {key: value for key, value in arguments.items() if key not in left_out}
    place = {"SubnetId": arguments["SubnetId"]} if "SubnetId" in arguments else None
    overrides = [{"InstanceType": pool["type"], **(place or {"AvailabilityZone": pool["zone"]})} for pool in pools]
    overrides = [one for index, one in enumerate(overrides) if one not in overrides[:index]][:MOST_POOLS]
    name = f"{tag['Value']}-{uuid.uuid4().hex[:12]}"
    tags = [{"ResourceType": "launch-template", "Tags": [tag]}]
    made = ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=template, TagSpecifications=tags)
    source = {"LaunchTemplateId": made["LaunchTemplate"]["LaunchTemplateId"], "Version": "$Latest"}
    try:
        answer = ec2.create_fleet(
            Type="instant",
            LaunchTemplateConfigs=[{"LaunchTemplateSpecification": source, "Overrides": overrides}],
            TargetCapacitySpecification={"TotalTargetCapacity": 1, "DefaultTargetCapacityType": "spot"},
            SpotOptions={"AllocationStrategy": "price-capacity-optimized", "InstanceInterruptionBehavior": "terminate"},
        )
    finally:
        ec2.delete_launch_template(LaunchTemplateId=source["LaunchTemplateId"])
    machines = [machine for group in answer.get("Instances", []) for machine in group["InstanceIds"]]
    if not machines:
        said = {f"{error.get('ErrorCode')}: {error.get('ErrorMessage')}" for error in answer.get("Errors", [])}
        raise NoCapacity(
            f"no spot machine in any of {len(overrides)} pools: {'; '.join(sorted(said)) or 'AWS gives no reason'}"
        )
    return str(machines[0])


def gather(s3: Any, bucket: str, path: str) -> list[str]:
    """Write to the log what machines have noted in the bucket and the log has not yet; returns a line for each note refused.

    Of each interruption there is one line, whoever told it first, the machine or EC2.
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
        machine, name = found.groups()
        where = f"s3://{bucket}/{key}"
        body = s3.get_object(Bucket=bucket, Key=key)["Body"].read(NOTE_BYTES)
        try:
            event = parse_event(body.decode("utf-8", "replace"), where)
        except SpotError as error:
            refused.append(f"{error}; the note is left out")
            continue
        about = {"attempt": name, "hours": event.get("hours")} if name != "interrupted" else {}
        if (event["machine"], event["event"]) != (machine, "sample" if about else "interrupted"):
            refused.append(f"{where}: found {event['event']} of {event['machine']}; the note is left out")
            continue
        append(path, event["event"], event["time"], machine=machine, **about)
    return refused


def settle(ec2: Any, path: str, name: str) -> None:
    """Look what became of the machines that the log has as alive, and write it there.

    AWS forgets ended machines after about an hour. One that it no longer knows counts until it was last seen.
    """
    now = datetime.now(timezone.utc).timestamp()
    for life in lives(read_log(path), now):
        if life.over or life.name != name:
            continue
        # A filter, unlike an id, may match nothing.
        groups = ec2.describe_instances(Filters=[{"Name": "instance-id", "Values": [life.machine]}])["Reservations"]
        machine = next((machine for group in groups for machine in group["Instances"]), None)
        if machine is None:
            append(path, "ended", life.until, machine=life.machine, unknown=True)
        elif machine["State"]["Name"] in ("shutting-down", "terminated"):
            lost = machine.get("StateReason", {}).get("Code") == INTERRUPTED
            append(path, "interrupted" if lost else "ended", _ended(machine, now), machine=life.machine)
        else:
            append(path, "seen", now, machine=life.machine)


def _ended(machine: dict[str, Any], now: float) -> float:
    """When a machine ended, from its transition reason, such as ``... (2026-11-23 01:02:03 GMT)``; else now."""
    text = machine.get("StateTransitionReason", "").rpartition("(")[2]
    try:
        moment = datetime.strptime(text, "%Y-%m-%d %H:%M:%S GMT)").replace(tzinfo=timezone.utc)
    except ValueError:
        return now
    return moment.timestamp()


def launched(path: str, machine: dict[str, Any], name: str, usd_per_hour: float | None) -> None:
    """Write the launch of a machine (as M(ec2_machine) returns it) to the log."""
    append(
        path,
        "launched",
        datetime.now(timezone.utc).timestamp(),
        machine=machine["id"],
        type=machine["type"],
        zone=machine["zone"],
        market="spot" if machine["spot"] else "on-demand",
        name=name,
        usd_per_hour=usd_per_hour,
    )
