"""Shows what became of the samples, which machines are there, and what the queue holds.

    scripts/status --bucket B            one look
    scripts/status --bucket B --watch    until interrupted
    scripts/status --spool DIR --json    for programs (with --watch: one line per look)

Derived from the names in the bucket and the notes of the machines only; an old version's result or failure does not count.
Exit codes: 0 shown, 2 refused, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

try:
    import boto3
    from rich.console import Console, Group
    from rich.live import Live
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from umccr_pcgr.client import store as pcgr_client
except ImportError as error:
    sys.exit(f"status: {error}; run make, then . .venv/bin/activate")

TAG = "umccr.pcgr"  # every machine of the playbooks carries it
COLOURS: dict[pcgr_client.State, str] = {"queued": "yellow", "running": "cyan", "done": "green", "failed": "red"}
MACHINE_COLOURS = {"running": "green", "terminated": "dim", "stopped": "dim"}
COUNTS = {
    "visible": "ApproximateNumberOfMessages",
    "in_flight": "ApproximateNumberOfMessagesNotVisible",
    "delayed": "ApproximateNumberOfMessagesDelayed",
}


@dataclass(frozen=True)
class Machine:
    """One EC2 instance of ours."""

    name: str
    identifier: str
    state: str
    kind: str
    launched: datetime
    address: str | None

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "id": self.identifier,
            "state": self.state,
            "type": self.kind,
            "launched": self.launched.isoformat(),
            "address": self.address,
        }


@dataclass(frozen=True)
class View:
    """One look. `machines` and `queue` are None where there are none to look at, text where looking was refused."""

    samples: list[pcgr_client.Status]
    machines: list[Machine] | str | None
    queue: dict[str, int] | str | None
    moment: datetime

    def as_json(self) -> dict[str, Any]:
        machines = self.machines
        return {
            "time": self.moment.isoformat(timespec="seconds"),
            "samples": [sample.as_json() for sample in self.samples],
            "machines": [machine.as_json() for machine in machines] if isinstance(machines, list) else machines,
            "queue": self.queue,
        }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--bucket", help="the bucket")
    place.add_argument("--spool", type=Path, metavar="DIR", help="the spool folder (holds inbox/)")
    parser.add_argument("--prefix", default="", metavar="P", help="only what begins so, e.g. inbox/ or demo-")
    parser.add_argument("--queue", default="pcgr", help="name of the queue (default: pcgr)")
    parser.add_argument("--endpoint-url", metavar="URL", help="not AWS but this address (also: AWS_ENDPOINT_URL)")
    parser.add_argument("--limit", type=int, default=30, metavar="N", help="rows of samples shown (default: 30)")
    parser.add_argument("--watch", action="store_true", help="look again and again")
    parser.add_argument("--interval", type=float, default=5, metavar="SECONDS", help="of --watch (default: 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object per look, all samples")
    return parser.parse_args()


class Watcher:
    """Takes looks at one place."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._prefix: str = arguments.prefix
        self._queue: str = arguments.queue
        self._cloud = bool(arguments.bucket)
        self._place: pcgr_client.Place
        if self._cloud:
            self._place = pcgr_client.Bucket(arguments.bucket, arguments.endpoint_url)
            with pcgr_client.aws_errors("EC2"):
                self._ec2 = boto3.client("ec2", endpoint_url=arguments.endpoint_url)
                self._sqs: Any = boto3.client("sqs", endpoint_url=arguments.endpoint_url)
        else:
            self._place = pcgr_client.Spool(arguments.spool)

    def look(self) -> View:
        samples = pcgr_client.statuses(self._place, self._prefix)
        machines: list[Machine] | str | None = None
        queue: dict[str, int] | str | None = None
        if self._cloud:  # whoever may see the bucket need not see machines and queues
            try:
                machines = self._machines()
            except pcgr_client.Refused as refusal:
                machines = str(refusal)
            try:
                queue = self._counts()
            except pcgr_client.Refused as refusal:
                queue = str(refusal)
        return View(samples, machines, queue, datetime.now(UTC))

    def _machines(self) -> list[Machine]:
        found = []
        with pcgr_client.aws_errors("machines"):
            pages = self._ec2.get_paginator("describe_instances").paginate(
                Filters=[{"Name": "tag-key", "Values": [TAG]}]
            )
            for instance in (item for page in pages for group in page["Reservations"] for item in group["Instances"]):
                tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
                found.append(
                    Machine(
                        tags[TAG],
                        instance["InstanceId"],
                        instance["State"]["Name"],
                        instance["InstanceType"],
                        instance["LaunchTime"],
                        instance.get("PublicIpAddress") or instance.get("PrivateIpAddress"),
                    )
                )
        return sorted(found, key=lambda machine: machine.launched, reverse=True)

    def _counts(self) -> dict[str, int]:
        with pcgr_client.aws_errors(f"queue {self._queue}"):
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


def ago(moment: datetime, now: datetime) -> str:
    """How long ago, in the largest unit that fits: 8 s, 5 min, 3 h, 12 d."""
    seconds = max(0, int((now - moment).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def render(view: View, limit: int) -> Group:
    """The look as tables."""
    counts = Counter(sample.state for sample in view.samples)
    summary = ", ".join(f"[{colour}]{counts[state]} {state}[/]" for state, colour in COLOURS.items() if counts[state])
    parts: list[Any] = [Text.from_markup(f"[bold]Samples[/]  {summary or '[dim]none[/]'}")]
    if view.samples:
        parts.append(sample_table(view, limit))
    if (hidden := len(view.samples) - limit) > 0:
        parts.append(Text.from_markup(f"[dim]  … and {hidden} older ones (--limit)[/]"))
    if view.machines is not None:
        parts += ["", *machine_part(view)]
    if view.queue is not None:
        parts += ["", Text.from_markup(f"[bold]Queue[/]  {queue_text(view.queue)}")]
    return Group(*parts)


def grid() -> Table:
    return Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)


def sample_table(view: View, limit: int) -> Table:
    table = grid()
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(overflow="fold")
    for sample in view.samples[:limit]:
        told = sample.reason or (f"on {sample.host}" if sample.host else "") or sample.address or ""
        table.add_row(
            f"  {sample.sample.prefix}{sample.sample.name}",
            Text(sample.state, style=COLOURS[sample.state]),
            Text(ago(sample.since, view.moment), style="dim"),
            Text(told, style="dim" if sample.state == "queued" else ""),
        )
    return table


def machine_part(view: View) -> list[Any]:
    if isinstance(view.machines, str):
        return [Text.from_markup(f"[bold]Machines[/]  [dim]{escape(view.machines)}[/]")]
    title = "[bold]Machines[/]" if view.machines else "[bold]Machines[/]  [dim]none[/]"
    table = grid()
    for machine in view.machines or []:
        table.add_row(
            f"  {machine.name}",
            machine.identifier,
            Text(machine.state, style=MACHINE_COLOURS.get(machine.state, "yellow")),
            Text(ago(machine.launched, view.moment), style="dim"),
            machine.kind,
            machine.address or "",
        )
    return [Text.from_markup(title), *([table] if view.machines else [])]


def queue_text(queue: dict[str, int] | str) -> str:
    if isinstance(queue, str):
        return f"[dim]{escape(queue)}[/]"
    text = f"{queue['visible']} waiting, {queue['in_flight']} in flight"
    text += f", {queue['delayed']} delayed" if queue["delayed"] else ""
    if dead := queue.get("dead_letters", 0):
        text += f", [red]{dead} dead letter{'s' * (dead > 1)}[/]"
    return text


def watch(watcher: Watcher, arguments: argparse.Namespace, console: Console) -> None:
    """Draw on the terminal until interrupted; a look that fails (the network, say) is shown, and the next one tried."""
    with Live(render(watcher.look(), arguments.limit), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(arguments.interval)
            try:
                drawn: Group | Text = render(watcher.look(), arguments.limit)
            except pcgr_client.Refused as refusal:
                drawn = Text(str(refusal), style="red")
            live.update(drawn, refresh=True)


def run(arguments: argparse.Namespace, console: Console) -> None:
    watcher = Watcher(arguments)
    if arguments.watch and console.is_terminal and not arguments.json:
        watch(watcher, arguments, console)
    while True:
        view = watcher.look()
        if arguments.json:
            print(json.dumps(view.as_json()), flush=True)
        else:
            console.print(render(view, arguments.limit))
        if not arguments.watch:
            return
        time.sleep(arguments.interval)


def main() -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a pipe has no width of its own; lines there should not be folded
    try:
        run(arguments, console)
    except pcgr_client.Refused as refusal:
        print(f"status: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
