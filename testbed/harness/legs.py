"""The tests of the project in legs: `make test` runs the standard ones, `make test-all` all of them or those named.

A leg is one part of the tests that can run alone: a command, its time and its outcome. The outcome of a leg of pytest comes
from what pytest reports, so a leg none of whose tests could run here is skipped, not passed. Output goes to `LOGS`; the last line
of stdout is one JSON object with the figures of the table.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal
from xml.etree import ElementTree

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.process import ROOT

LOGS = ROOT / ".cache/tests"
STOP_SECONDS = 180.0  # what a leg may take to end its instances when the run is interrupted
TAIL_LINES = 120  # of the log of a leg that failed

Outcome = Literal["passed", "failed", "skipped", "interrupted"]
STYLES: dict[Outcome, str] = {"passed": "green", "failed": "red", "skipped": "yellow", "interrupted": "red"}

# Legs of "first" run alone and one after the other: they use all processors. The others run in two lanes at the same time, each
# lane one leg after the other: an instance keeps two processors busy, so two instances of different legs would only slow each
# other; Docker daemons would compete for networks.
Lane = Literal["first", "instances", "host"]


@dataclass(frozen=True)
class Leg:
    """``name`` as in ``LEG=``, what it ``proves``, its ``lane``, and either pytest's arguments (``tests``) or a ``command``.

    ``standard`` legs are those of ``make test``: each main flow once.
    """

    name: str
    proves: str
    lane: Lane
    tests: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    standard: bool = False


@dataclass
class Result:
    """What became of a leg; ``note`` is the reason of a skip, the first failed test, or the slowest test."""

    leg: Leg
    outcome: Outcome
    seconds: float
    tests: int = 0
    failed: int = 0
    skipped: int = 0
    note: str = ""


def file(name: str) -> str:
    """Path of an integration test's file, as pytest takes it."""
    return f"tests/integration/test_{name}.py"


def molecule_legs(root: Path = ROOT) -> list[Leg]:
    """One leg for each scenario; what it proves is the comment on top of its file."""
    found = []
    for path in sorted(root.glob("molecule/*/molecule.yml")):
        name = path.parent.name
        comment = next(line for line in path.read_text().splitlines() if line.startswith("# "))
        tests = (f"{file('molecule')}::test_scenario[{name}]", "-rP")
        leg = Leg(f"molecule-{name}", comment.removeprefix("# "), "host", tests, standard=name == "default")
        found.append(leg)
    return found


# The order is the order in a lane. `make test` keeps to 40 minutes with nothing cached and 25 otherwise, on two cores without KVM.
LEGS = [
    Leg("lint", "Linters and type checkers", "first", command=("make", "lint"), standard=True),
    Leg("fast", "Unit and contract tests", "first", ("-n", "auto", "-m", "not slow"), standard=True),
    Leg(
        "instance",
        "aws.yml provisions an instance, which reports good and bad samples and ends itself",
        "instances",
        (file("pipeline"),),
        standard=True,
    ),
    Leg("localcloud", "The local region's guests see what clients ask for", "instances", (file("localcloud"),), standard=True),
    Leg("spot-auto", "aws_spot: auto chooses, launches, falls back", "instances", (file("spot_auto"),), standard=True),
    Leg("base-image", "The local region's disk boots as a stock cloud image", "instances", (file("base_image"),)),
    Leg("data-volume-instance", "Data volumes on an instance, reboots included", "instances", (file("data_volume_instance"),)),
    # Not standard even where Packer is built already: the same tests must mean the same everywhere, and building it takes minutes.
    Leg("packer", "Packer's amazon plugin bakes in the local region", "instances", (file("packer"),)),
    Leg("rehearsal", "The rehearsal image, built and run", "host", (file("rehearsal_image"),), standard=True),
    *sorted(molecule_legs(), key=lambda leg: not leg.standard),
    Leg(
        "registry",
        "Images pulled from a registry that works, lies or is dead",
        "host",
        (file("runtime_registry"),),
        standard=True,
    ),
    Leg("runtime-role", "Role runtime with conda and Apptainer", "host", (file("runtime_role"),)),
    Leg("data-volume", "Data volumes on loop devices", "host", (file("data_volume"),)),
    Leg("kill-sweep", "Installations killed at any moment", "host", ("-m", "slow", "tests/unit")),
]  # fmt: skip


def main(arguments: Sequence[str] | None = None, legs: Sequence[Leg] = LEGS) -> int:
    """Run the legs asked for; returns 0, 1 when one failed, 2 for an unknown leg, 130 when interrupted."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("legs", nargs="*", metavar="LEG", help="run these legs only")
    parser.add_argument("--standard", action="store_true", help="run the legs that prove each main flow once")
    asked = parser.parse_args(arguments)
    known = [leg.name for leg in legs]
    if unknown := [name for name in asked.legs if name not in known]:
        print(f"LEG: found {' '.join(unknown)}, allowed {' '.join(known)}", file=sys.stderr)
        return 2
    chosen = [
        leg for leg in legs if leg.name in asked.legs or (not asked.legs and (leg.standard or not asked.standard))
    ]
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=140)
    return Run(console).all(chosen)


@dataclass
class Run:
    """A run of some legs: its results so far, and what is running."""

    console: Console
    logs: Path = LOGS
    required: bool = bool(os.environ.get("CI"))  # a leg of `make test` that CI cannot run would go unnoticed for ever
    results: list[Result] = field(default_factory=list)
    running: dict[str, tuple[Leg, subprocess.Popen[bytes]]] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)

    def all(self, legs: Sequence[Leg]) -> int:
        """Run the legs, print the table and the JSON line; returns the exit code."""
        self.logs.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        # Explicitly, as these signals are ignored in jobs that a script started in the background.
        before = {number: signal.signal(number, self.stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self.lane([leg for leg in legs if leg.lane == "first"], echo=True)
            lanes = [some for lane in ("instances", "host") if (some := [leg for leg in legs if leg.lane == lane])]
            threads = [threading.Thread(target=self.lane, args=(some, len(lanes) == 1)) for some in lanes]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.report(legs, time.monotonic() - started)

    def stop(self, number: int, _frame: FrameType | None) -> None:
        """Ask what is running to end, its instances with it, and start nothing more."""
        if not self.stopped.is_set():
            self.stopped.set()
            self.console.print("[red]interrupted[/]: ending what is running")
        for leg, process in list(self.running.values()):
            end(leg, process)
        threading.Thread(target=self.kill, args=(list(self.running.values()),), daemon=True).start()

    def kill(self, running: Iterable[tuple[Leg, subprocess.Popen[bytes]]]) -> None:
        """Kill what has not ended after STOP_SECONDS."""
        end = time.monotonic() + STOP_SECONDS
        for _leg, process in running:
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.1)
            if process.poll() is None:
                process.kill()

    def lane(self, legs: Iterable[Leg], echo: bool) -> None:
        """Run legs one after the other."""
        for leg in legs:
            if self.stopped.is_set():
                return
            self.console.print(f"{time.strftime('%H:%M:%S')} {leg.name}: {leg.proves}", markup=False)
            result = self.leg(leg, echo)
            self.results.append(result)
            if result.outcome == "failed" and not echo:
                self.console.print(
                    "\n".join(self.log(leg).read_text(errors="replace").splitlines()[-TAIL_LINES:]), markup=False
                )
            style = STYLES[result.outcome]
            self.console.print(
                f"{time.strftime('%H:%M:%S')} {leg.name}: [{style}]{result.outcome}[/] after {duration(result.seconds)}"
            )

    def log(self, leg: Leg) -> Path:
        """File with the output of a leg."""
        return self.logs / f"{leg.name}.log"

    def leg(self, leg: Leg, echo: bool) -> Result:
        """Run one leg, its output to its log and, with ``echo``, to the terminal."""
        report = self.logs / f"{leg.name}.xml"
        report.unlink(missing_ok=True)
        pytest = (sys.executable, "-m", "pytest", "--durations=25", "--durations-min=1", f"--junit-xml={report}")
        command = (*pytest, *leg.tests) if leg.tests else leg.command
        started = time.monotonic()
        # The output goes to a file, not through a pipe: a process that a test left running cannot keep this one waiting.
        with self.log(leg).open("wb") as log:
            # A session of its own: Ctrl-C reaches it through `stop` only, once. It does not outlive this process.
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "INT" if leg.tests else "TERM", *command],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.running[leg.name] = (leg, process)
            if self.stopped.is_set():  # since the lane looked
                end(leg, process)
            ended = False
            with self.log(leg).open(encoding="utf-8", errors="replace") as written:
                while not ended:
                    ended = process.poll() is not None  # before reading, so that nothing is missed
                    if echo and (text := written.read()):
                        self.console.out(text, end="", highlight=False)
                    if not ended:
                        time.sleep(0.1)
            del self.running[leg.name]
        code = process.returncode
        result = judge(leg, code, time.monotonic() - started, report)
        if self.stopped.is_set() and result.outcome == "failed":
            result.outcome = "interrupted"
        return result

    def report(self, legs: Sequence[Leg], seconds: float) -> int:
        """Print the table and the JSON line; returns the exit code."""
        table = Table("leg", "outcome", "time", "tests", "skipped", "note", title="Tests by leg", title_justify="left")
        results = sorted(self.results, key=lambda result: legs.index(result.leg))
        for result in results:
            outcome = f"[{STYLES[result.outcome]}]{result.outcome}[/]"
            counts = [str(count or "") for count in (result.tests, result.skipped)]
            table.add_row(result.leg.name, outcome, duration(result.seconds), *counts, escape(result.note))
        table.add_section()
        table.add_row(
            "all", "", duration(seconds), str(sum(result.tests for result in results)), "", f"logs: {self.logs}"
        )
        self.console.print(table)
        rows = [
            {"leg": result.leg.name, "outcome": result.outcome, "seconds": round(result.seconds, 1), "tests": result.tests,
             "skipped": result.skipped, "note": result.note}
            for result in results
        ]  # fmt: skip
        tests, failed, skipped = (
            sum(getattr(result, name) for result in results) for name in ("tests", "failed", "skipped")
        )
        print(f"{tests - failed - skipped} passed, {failed} failed, {skipped} skipped")
        print(json.dumps({"seconds": round(seconds, 1), "legs": rows}), flush=True)
        if self.stopped.is_set():
            return 130
        return int(any(self.is_bad(result) for result in results))

    def is_bad(self, result: Result) -> bool:
        """Whether a result fails the run."""
        return result.outcome == "failed" or (self.required and result.leg.standard and result.outcome == "skipped")


def end(leg: Leg, process: subprocess.Popen[bytes]) -> None:
    """Ask a leg to end; pytest tears down after SIGINT only."""
    process.send_signal(signal.SIGINT if leg.tests else signal.SIGTERM)


def judge(leg: Leg, code: int, seconds: float, report: Path) -> Result:
    """The result of a leg that ended with an exit code and, if it is one of pytest, left a report in JUnit's format."""
    if not leg.tests:
        return Result(leg, "failed" if code else "passed", seconds)
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314  (written by our own pytest)
    except (OSError, ElementTree.ParseError):
        return Result(leg, "failed", seconds, note=f"pytest ended with code {code} and left no report")
    skips = [skip for case in cases if (skip := case.find("skipped")) is not None]
    counts = {"tests": len(cases), "skipped": len(skips)}
    broken = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    if code:  # also where no test was selected
        note = f"{broken[0].get('name')}, {len(broken)} in all" if broken else f"pytest ended with code {code}"
        return Result(leg, "failed", seconds, **counts, failed=len(broken), note=note)
    if len(skips) == len(cases):
        return Result(leg, "skipped", seconds, **counts, note=str(skips[0].get("message")))
    slowest = max(cases, key=lambda case: float(case.get("time", 0)))
    note = f"slowest: {slowest.get('name')}, {duration(float(slowest.get('time', 0)))}"
    return Result(leg, "passed", seconds, **counts, note=note)


def duration(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


if __name__ == "__main__":
    sys.exit(main())
