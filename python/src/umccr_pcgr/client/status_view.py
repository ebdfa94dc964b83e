"""One look at samples, machines and queue, as JSON and as tables that fit the terminal."""

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
MACHINE_COLOURS = {"running": "green", "terminated": "dim", "stopped": "dim"}


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
    """One look. `machines` and `queue` are None where there are none to look at, text where looking was refused."""

    samples: list[store.Status]
    machines: list[Machine] | str | None
    queue: dict[str, int] | str | None
    moment: datetime

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        machines = self.machines
        return {
            "time": self.moment.isoformat(timespec="seconds"),
            "samples": [sample.as_json() for sample in self.samples],
            "machines": [machine.as_json() for machine in machines] if isinstance(machines, list) else machines,
            "queue": self.queue,
        }


def ago(moment: datetime, now: datetime) -> str:
    """How long ago, in the largest unit that fits: 8 s, 5 min, 3 h, 12 d."""
    seconds = max(0, int((now - moment).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def render(view: View, limit: int, height: int | None = None) -> Group:
    """Return the look as tables: at most `limit` rows of samples (0: all).

    With a `height` every row is one line, and rows of samples and machines are left out so that machines and queue are seen as well.
    """
    fitted = height is not None
    samples = limit or len(view.samples)
    machines = len(view.machines) if isinstance(view.machines, list) else 0
    if height is not None:
        samples, machines = fit(view, samples, height)
    counts = Counter(sample.state for sample in view.samples)
    summary = ", ".join(f"[{colour}]{counts[state]} {state}[/]" for state, colour in COLOURS.items() if counts[state])
    parts: list[Any] = [_line(f"[bold]Samples[/]  {summary or '[dim]none[/]'}", fitted)]
    if view.samples and samples:
        parts.append(sample_table(view, samples, fitted))
    if (hidden := len(view.samples) - samples) > 0:
        parts.append(_line(f"[dim]  … and {hidden} older ones{'' if fitted else ' (--limit)'}[/]", fitted))
    if view.machines is not None:
        parts += ["", *machine_part(view, machines, fitted)]
    if view.queue is not None:
        parts += ["", _line(f"[bold]Queue[/]  {queue_text(view.queue)}", fitted)]
    return Group(*parts)


def fit(view: View, limit: int, height: int) -> tuple[int, int]:
    """Return how many rows of samples and of machines fit `height` lines; machines get a third of the room if both are many."""
    room = height - 1 - 2 * (view.machines is not None) - 2 * (view.queue is not None)
    machines = len(view.machines) if isinstance(view.machines, list) else 0
    samples = min(limit, len(view.samples))
    wanted = samples + (samples < len(view.samples))  # the line that counts what is left out
    for_machines = min(machines, max(room // 3, min(2, room), room - wanted, 0))
    for_samples = max(room - for_machines, 0)
    return (
        samples if wanted <= for_samples else max(for_samples - 1, 0),
        machines if machines <= for_machines else max(for_machines - 1, 0),
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


def machine_part(view: View, rows: int, fitted: bool) -> list[Any]:
    """Return the first `rows` machines, those that have ended last, under their heading."""
    if isinstance(view.machines, str):
        return [_line(f"[bold]Machines[/]  [dim]{escape(view.machines)}[/]", fitted)]
    machines = sorted(view.machines or [], key=lambda machine: machine.state == "terminated")
    hidden = len(machines) - rows
    left_out = f"[dim]… and {hidden} more[/]" if hidden > 0 else ""
    title = "[bold]Machines[/]  " + ("[dim]none[/]" if not machines else "" if rows else left_out)
    table = grid()
    for _ in range(6):
        table.add_column(no_wrap=fitted)
    for machine in machines[:rows]:
        table.add_row(
            f"  {machine.name}",
            machine.identifier,
            Text(machine.state, style=MACHINE_COLOURS.get(machine.state, "yellow")),
            Text(ago(machine.launched, view.moment), style="dim"),
            machine.kind,
            machine.address or "",
        )
    shown = [_line(title.rstrip(), fitted), *([table] if rows and machines else [])]
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
