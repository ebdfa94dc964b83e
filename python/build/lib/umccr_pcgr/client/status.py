"""The program `pcgr-status` (in a checkout `scripts/status`)."""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
from rich.console import Group
from rich.live import Live
from rich.text import Text

from umccr_pcgr.client import cli, spool, store
from umccr_pcgr.client.status_view import Instance, View, render

TAG = "umccr.pcgr"  # every instance of the playbooks carries it
DESCRIPTION = """Show the state of the samples, of the instances and of the queue.

    %(prog)s --bucket B            once
    %(prog)s --bucket B --watch    until interrupted
    %(prog)s --spool DIR --json    for programs (with --watch: one line per poll)

Derived from the names in the bucket and the notes of the consumers only; an old version's result or failure does not count.
Exit codes: 0 shown, 2 refused, 130 interrupted, 129 or 143 ended by SIGHUP or SIGTERM.
"""
COUNTS = {
    "visible": "ApproximateNumberOfMessages",
    "in_flight": "ApproximateNumberOfMessagesNotVisible",
    "delayed": "ApproximateNumberOfMessagesDelayed",
}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--bucket", type=cli.bucket, help="the bucket")
    place.add_argument("--spool", type=Path, metavar="DIR", help="the spool folder (holds inbox/)")
    parser.add_argument("--prefix", default="", metavar="P", help="only keys with this prefix, e.g. inbox/ or demo-")
    parser.add_argument("--queue", default="pcgr", help="name of the queue (default: pcgr)")
    parser.add_argument(
        "--endpoint-url",
        type=cli.endpoint,
        metavar="URL",
        help="another endpoint than AWS (also: AWS_ENDPOINT_URL)",
    )
    parser.add_argument(
        "--limit", type=cli.whole(0), default=30, metavar="N", help="rows of samples shown, 0: all (default: 30)"
    )
    parser.add_argument("--watch", action="store_true", help="poll until interrupted")
    parser.add_argument("--interval", type=cli.seconds(), default=5, metavar="SECONDS", help="of --watch (default: 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object per poll, all samples")
    return parser.parse_args()


class Watcher:
    """Polls one place."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._prefix: str = arguments.prefix
        self._queue: str = arguments.queue
        self._cloud = bool(arguments.bucket)
        self._place: store.Place
        if self._cloud:
            self._place = store.Bucket(arguments.bucket, arguments.endpoint_url)
            with store.aws_errors("EC2"):
                self._ec2 = boto3.client("ec2", endpoint_url=arguments.endpoint_url)
                self._sqs: Any = boto3.client("sqs", endpoint_url=arguments.endpoint_url)
        else:
            self._place = spool.Spool(arguments.spool)

    def poll(self) -> View:
        """Poll once."""
        samples = store.statuses(self._place, self._prefix)
        instances: list[Instance] | str | None = None
        queue: dict[str, int] | str | None = None
        if self._cloud:  # access to the bucket does not include instances and queues
            try:
                instances = self._instances()
            except store.Refused as refusal:
                instances = str(refusal)
            try:
                queue = self._counts()
            except store.Refused as refusal:
                queue = str(refusal)
        return View(samples, instances, queue, datetime.now(UTC))

    def _instances(self) -> list[Instance]:
        found = []
        with store.aws_errors("instances"):
            pages = self._ec2.get_paginator("describe_instances").paginate(
                Filters=[{"Name": "tag-key", "Values": [TAG]}]
            )
            for instance in (item for page in pages for group in page["Reservations"] for item in group["Instances"]):
                tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
                found.append(
                    Instance(
                        tags[TAG],
                        instance["InstanceId"],
                        instance["State"]["Name"],
                        instance["InstanceType"],
                        instance["LaunchTime"],
                        instance.get("PublicIpAddress") or instance.get("PrivateIpAddress"),
                    )
                )
        return sorted(found, key=lambda instance: instance.launched, reverse=True)

    def _counts(self) -> dict[str, int]:
        with store.aws_errors(f"queue {self._queue}"):
            url = self._sqs.get_queue_url(QueueName=self._queue)["QueueUrl"]
            names = [*COUNTS.values(), "RedrivePolicy"]
            found = self._sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
            counts = {name: int(found[attribute]) for name, attribute in COUNTS.items()}
            if policy := found.get("RedrivePolicy"):
                dead = json.loads(policy)["deadLetterTargetArn"].rpartition(":")[2]
                url = self._sqs.get_queue_url(QueueName=dead)["QueueUrl"]
                attributes = self._sqs.get_queue_attributes(QueueUrl=url, AttributeNames=[COUNTS["visible"]])
                counts["dead_letters"] = int(attributes["Attributes"][COUNTS["visible"]])
        return counts


def watch(watcher: Watcher, arguments: argparse.Namespace, console: cli.Console) -> None:
    """Draw on the terminal until interrupted; a poll that fails (the network, say) is shown, and the next one follows."""

    def draw(view: View) -> Group:
        return render(view, arguments.limit, console.height)

    with Live(draw(watcher.poll()), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(arguments.interval)
            try:
                drawn: Group | Text = draw(watcher.poll())
            except store.Refused as refusal:
                drawn = Text(str(refusal), style="red")
            live.update(drawn, refresh=True)


def run() -> int:
    """Do what the command line says; returns the exit code."""
    arguments = parse_arguments()
    console = cli.Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a pipe has no width of its own; its lines should not be folded
    watcher = Watcher(arguments)
    if arguments.watch and console.is_terminal and not arguments.json:
        watch(watcher, arguments, console)
    while True:
        view = watcher.poll()
        if arguments.json:
            print(json.dumps(view.as_json()), flush=True)
        else:
            console.print(render(view, arguments.limit))
        if not arguments.watch:
            return 0
        time.sleep(arguments.interval)


def main() -> int:
    """Entry point of `pcgr-status`; returns the exit code."""
    # A reader of the first line only (head -1) is satisfied
    return cli.run(cli.program_name(), run, (store.Refused,), closed=0)
