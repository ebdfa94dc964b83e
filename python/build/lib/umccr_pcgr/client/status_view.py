"""One view of samples, instances and queue, as JSON and as tables that fit the terminal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from umccr_pcgr.client import store
from umccr_pcgr.samples.model import State

COLOURS: dict[State, str] = {"queued": "yellow", "running": "cyan", "done": "green", "failed": "red"}
INSTANCE_COLOURS = {"running": "green", "terminated": "dim", "stopped": "dim"}


@dataclass(frozen=True)
class Instance:
    """One EC2 instance of ours."""

    name: str
    identifier: str
    state: str
    kind: str
    launched: datetime
    address: str | None

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
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
    """One view. `instances` and `queue` are None where there are none, a text where they may not be read."""

    samples: list[store.Status]
    instances: list[Instance] | str | None
    queue: dict[str, int] | str | None
    moment: datetime

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        instances = self.instances
        return {
            "time": self.moment.isoformat(timespec="seconds"),
            "samples": [sample.as_json() for sample in self.samples],
            "machines": [instance.as_json() for instance in instances] if isinstance(instances, list) else instances,
            "queue": self.queue,
        }


def ago(moment: datetime, now: datetime) -> str:
    """Return how long ago, in the largest unit that fits: 8 s, 5 min, 3 h, 12 d."""
    seconds = max(0, int((now - moment).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def render(view: View, limit: int, height: int | None = None) -> Group:
    """Return the view as tables: at most `limit` rows of samples (0: all).

    With a `height` every row is one line, and rows of samples and instances are left out so that instances and queue remain visible.
    """
    fitted = height is not None
    samples = limit or len(view.samples)
    instances = len(view.instances) if isinstance(view.instances, list) else 0
    if height is not None:
        samples, instances = fit(view, samples, height)
    counts = Counter(sample.state for sample in view.samples)
    summary = ", ".join(f"[{colour}]{counts[state]} {state}[/]" for state, colour in COLOURS.items() if counts[state])
    parts: list[Any] = [_line(f"[bold]Samples[/]  {summary or '[dim]none[/]'}", fitted)]
    if view.samples and samples:
        parts.append(sample_table(view, samples, fitted))
    if (hidden := len(view.samples) - samples) > 0:
        parts.append(_line(f"[dim]  … and {hidden} older ones{'' if fitted else ' (--limit)'}[/]", fitted))
    if view.instances is not None:
        parts += ["", *instance_part(view, instances, fitted)]
    if view.queue is not None:
        parts += ["", _line(f"[bold]Queue[/]  {queue_text(view.queue)}", fitted)]
    return Group(*parts)


def fit(view: View, limit: int, height: int) -> tuple[int, int]:
    """Return how many rows of samples and of instances fit `height` lines; instances get a third of the room if both are many."""
    room = height - 1 - 2 * (view.instances is not None) - 2 * (view.queue is not None)
    instances = len(view.instances) if isinstance(view.instances, list) else 0
    samples = min(limit, len(view.samples))
    wanted = samples + (samples < len(view.samples))  # the line that counts what is left out
    for_instances = min(instances, max(room // 3, min(2, room), room - wanted, 0))
    for_samples = max(room - for_instances, 0)
    return (
        samples if wanted <= for_samples else max(for_samples - 1, 0),
        instances if instances <= for_instances else max(for_instances - 1, 0),
    )


def _line(markup: str, fitted: bool) -> Text:
    text = Text.from_markup(markup)
    if fitted:
        text.no_wrap, text.overflow = True, "ellipsis"
    return text


def grid() -> Table:
    """Return an empty table without lines."""
    return Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)


def sample_table(view: View, rows: int, fitted: bool) -> Table:
    """Return the newest `rows` samples; what is long is folded, or cut if `fitted`."""
    table = grid()
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(overflow="ellipsis" if fitted else "fold", no_wrap=fitted)
    for sample in view.samples[:rows]:
        about = sample.reason or (f"on {sample.host}" if sample.host else "") or sample.address or ""
        table.add_row(
            f"  {sample.sample.prefix}{sample.sample.name}",
            Text(sample.state, style=COLOURS[sample.state]),
            Text(ago(sample.since, view.moment), style="dim"),
            Text(about, style="dim" if sample.state == "queued" else ""),
        )
    return table


def instance_part(view: View, rows: int, fitted: bool) -> list[Any]:
    """Return the first `rows` instances, those that have ended last, under their heading."""
    if isinstance(view.instances, str):
        return [_line(f"[bold]Instances[/]  [dim]{escape(view.instances)}[/]", fitted)]
    instances = sorted(view.instances or [], key=lambda instance: instance.state == "terminated")
    hidden = len(instances) - rows
    left_out = f"[dim]… and {hidden} more[/]" if hidden > 0 else ""
    title = "[bold]Instances[/]  " + ("[dim]none[/]" if not instances else "" if rows else left_out)
    table = grid()
    for _unused in range(6):
        table.add_column(no_wrap=fitted)
    for instance in instances[:rows]:
        table.add_row(
            f"  {instance.name}",
            instance.identifier,
            Text(instance.state, style=INSTANCE_COLOURS.get(instance.state, "yellow")),
            Text(ago(instance.launched, view.moment), style="dim"),
            instance.kind,
            instance.address or "",
        )
    shown = [_line(title.rstrip(), fitted), *([table] if rows and instances else [])]
    return [*shown, *([_line(f"  {left_out}", fitted)] if rows and left_out else [])]


def queue_text(queue: dict[str, int] | str) -> str:
    """Return the queue's counts as markup."""
    if isinstance(queue, str):
        return f"[dim]{escape(queue)}[/]"
    text = f"{queue['visible']} waiting, {queue['in_flight']} in flight"
    text += f", {queue['delayed']} delayed" if queue["delayed"] else ""
    if dead := queue.get("dead_letters", 0):
        text += f", [red]{dead} dead letter{'s' * (dead > 1)}[/]"
    return text
