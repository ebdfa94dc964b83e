"""Run the project's tests in legs: `make test` runs the standard ones, `make test-all` all of them or those named.

A leg is a part of the tests that can run alone: a command with a time and an outcome. The outcome of a pytest leg comes from
pytest's report, so a leg is skipped, not passed, if none of its tests can run on this host. Output goes to `LOGS`; the last
line of stdout is a JSON object with the figures of the table.
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
STOP_SECONDS = 180.0  # time for a leg to terminate its instances when the run is interrupted
TAIL_LINES = 120  # of the log, printed if a leg fails

Outcome = Literal["passed", "failed", "skipped", "interrupted"]
STYLES: dict[Outcome, str] = {"passed": "green", "failed": "red", "skipped": "yellow", "interrupted": "red"}

# Legs of the lane "first" run one by one before all others, because they use all processors. The other two lanes run in parallel,
# each one leg at a time: an instance keeps two processors busy, so instances of two legs would only slow each other down, and
# Docker daemons would compete for networks.
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
    """The result of a leg; ``note`` is the reason for a skip, the first failed test, or the slowest test."""

    leg: Leg
    outcome: Outcome
    seconds: float
    tests: int = 0
    failed: int = 0
    skipped: int = 0
    note: str = ""


def test_file(name: str) -> str:
    """Return the path of an integration test's file, as an argument of pytest."""
    return f"tests/integration/test_{name}.py"


def molecule_legs(root: Path = ROOT) -> list[Leg]:
    """Return a leg for each molecule scenario, described by the first comment in its file."""
    found = []
    for path in sorted(root.glob("molecule/*/molecule.yml")):
        name = path.parent.name
        comment = next(line for line in path.read_text().splitlines() if line.startswith("# "))
        tests = (f"{test_file('molecule')}::test_scenario[{name}]", "-rP")
        leg = Leg(f"molecule-{name}", comment.removeprefix("# "), "host", tests, standard=name == "default")
        found.append(leg)
    return found


# In the order of each lane. On two cores without KVM, `make test` takes at most 40 minutes with empty caches, 25 otherwise.
LEGS = [
    Leg("lint", "Linters, type checkers, and the artifact as Galaxy takes it", "first", command=("make", "lint"), standard=True),
    Leg("sanity", "ansible-test sanity", "first", command=("make", "sanity"), standard=True),
    Leg("fast", "Unit and contract tests", "first", ("-n", "auto", "-m", "not slow and not plays"), standard=True),
    Leg("plays", "Playbooks against a simulated AWS; the API of the local region", "first", ("-n", "auto", "-m", "plays"), standard=True),
    Leg(
        "instance",
        "aws.yml provisions an instance, which reports good and bad samples and terminates itself",
        "instances",
        (test_file("pipeline"),),
        standard=True,
    ),
    Leg("localcloud", "Guests of the local region see what clients requested", "instances", (test_file("localcloud"),), standard=True),
    Leg("spot-auto", "aws_spot: auto chooses, launches, falls back", "instances", (test_file("spot_auto"),), standard=True),
    Leg("artifact", "Galaxy's artifact and the wheel, from an empty folder, report a sample", "instances", (test_file("artifact"),)),
    Leg("base-image", "The base image of the local region boots like a stock cloud image", "instances", (test_file("base_image"),)),
    Leg("data-volume-instance", "Data volumes on an instance, reboots included", "instances", (test_file("data_volume_instance"),)),
    # Not standard even if Packer is already built: `make test` must be the same everywhere, and building Packer takes minutes.
    Leg("packer", "Packer's amazon plugin bakes in the local region", "instances", (test_file("packer"),)),
    Leg("rehearsal", "The rehearsal image, built and run", "host", (test_file("rehearsal_image"),), standard=True),
    *sorted(molecule_legs(), key=lambda leg: not leg.standard),
    Leg(
        "registry",
        "Images pulled from a registry that works, returns wrong data or does not respond",
        "host",
        (test_file("runtime_registry"),),
        standard=True,
    ),
    Leg("runtime-role", "Role runtime with conda and Apptainer", "host", (test_file("runtime_role"),)),
    Leg("data-volume", "Data volumes on loop devices", "host", (test_file("data_volume"),)),
    Leg("kill-sweep", "Installations killed at any moment", "host", ("-m", "slow", "tests/unit")),
]  # fmt: skip


def main(arguments: Sequence[str] | None = None, legs: Sequence[Leg] = LEGS) -> int:
    """Run the requested legs; return 0, 1 if one failed, 2 for an unknown leg, 130 if interrupted."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("legs", nargs="*", metavar="LEG", help="run these legs only")
    parser.add_argument("--standard", action="store_true", help="run only the legs that prove each main flow once")
    options = parser.parse_args(arguments)
    known = [leg.name for leg in legs]
    if unknown := [name for name in options.legs if name not in known]:
        print(f"LEG: found {' '.join(unknown)}, allowed {' '.join(known)}", file=sys.stderr)
        return 2
    chosen = [
        leg for leg in legs if leg.name in options.legs or (not options.legs and (leg.standard or not options.standard))
    ]
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=140)
    return Run(console).run_all(chosen)


@dataclass
class Run:
    """A run of several legs: its results so far, and the legs in progress."""

    console: Console
    logs: Path = LOGS
    required: bool = bool(os.environ.get("CI"))  # otherwise nobody would notice a leg of `make test` that CI cannot run
    results: list[Result] = field(default_factory=list)
    running: dict[str, tuple[Leg, subprocess.Popen[bytes]]] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run_all(self, legs: Sequence[Leg]) -> int:
        """Run the legs, print the table and the JSON line; return the exit code."""
        self.logs.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        # Set explicitly, because background jobs of a script ignore these signals.
        before = {number: signal.signal(number, self.stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self.run_lane([leg for leg in legs if leg.lane == "first"], echo=True)
            lanes = [some for lane in ("instances", "host") if (some := [leg for leg in legs if leg.lane == lane])]
            threads = [threading.Thread(target=self.run_lane, args=(some, len(lanes) == 1)) for some in lanes]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.report(legs, time.monotonic() - started)

    def stop(self, number: int, _frame: FrameType | None) -> None:
        """Interrupt the running legs, which terminate their instances, and start no further leg."""
        if not self.stopped.is_set():
            self.stopped.set()
            self.console.print("[red]interrupted[/]: ending the running legs")
        for leg, process in list(self.running.values()):
            interrupt(leg, process)
        threading.Thread(target=self.kill, args=(list(self.running.values()),), daemon=True).start()

    def kill(self, running: Iterable[tuple[Leg, subprocess.Popen[bytes]]]) -> None:
        """Kill the legs that have not ended after STOP_SECONDS."""
        end = time.monotonic() + STOP_SECONDS
        for _leg, process in running:
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.1)
            if process.poll() is None:
                process.kill()

    def run_lane(self, legs: Iterable[Leg], echo: bool) -> None:
        """Run legs one after the other."""
        for leg in legs:
            if self.stopped.is_set():
                return
            self.console.print(f"{time.strftime('%H:%M:%S')} {leg.name}: {leg.proves}", markup=False)
            result = self.run_leg(leg, echo)
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
        """Return the file with the output of a leg."""
        return self.logs / f"{leg.name}.log"

    def run_leg(self, leg: Leg, echo: bool) -> Result:
        """Run one leg with its output in its log and, with ``echo``, on the terminal."""
        report = self.logs / f"{leg.name}.xml"
        report.unlink(missing_ok=True)
        pytest = (sys.executable, "-m", "pytest", "--durations=25", "--durations-min=1", f"--junit-xml={report}")
        command = (*pytest, *leg.tests) if leg.tests else leg.command
        started = time.monotonic()
        # A file instead of a pipe for the output: a process that a test leaves running must not block this one.
        with self.log(leg).open("wb") as log:
            # The leg gets a session of its own, so that Ctrl-C reaches it only once, through `stop`. It ends with this process.
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "INT" if leg.tests else "TERM", *command],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.running[leg.name] = (leg, process)
            if self.stopped.is_set():  # stopped after run_lane checked
                interrupt(leg, process)
            ended = False
            with self.log(leg).open(encoding="utf-8", errors="replace") as written:
                while not ended:
                    ended = process.poll() is not None  # checked before reading, so that no output is missed
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
        """Print the table and the JSON line; return the exit code."""
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
        return int(any(self.fails_the_run(result) for result in results))

    def fails_the_run(self, result: Result) -> bool:
        """Whether a result fails the run."""
        return result.outcome == "failed" or (self.required and result.leg.standard and result.outcome == "skipped")


def interrupt(leg: Leg, process: subprocess.Popen[bytes]) -> None:
    """Send a leg the signal to end; pytest tears down only after SIGINT."""
    process.send_signal(signal.SIGINT if leg.tests else signal.SIGTERM)


def judge(leg: Leg, code: int, seconds: float, report: Path) -> Result:
    """Return the result of a leg from its exit code and, for pytest, from its report in JUnit's format."""
    if not leg.tests:
        return Result(leg, "failed" if code else "passed", seconds)
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314  (written by our own pytest)
    except (OSError, ElementTree.ParseError):
        return Result(leg, "failed", seconds, note=f"pytest ended with code {code} and left no report")
    skips = [skip for case in cases if (skip := case.find("skipped")) is not None]
    counts = {"tests": len(cases), "skipped": len(skips)}
    broken = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    if code:  # also if no test was selected
        note = f"{broken[0].get('name')}, {len(broken)} in all" if broken else f"pytest ended with code {code}"
        return Result(leg, "failed", seconds, **counts, failed=len(broken), note=note)
    if len(skips) == len(cases):
        return Result(leg, "skipped", seconds, **counts, note=str(skips[0].get("message")))
    slowest = max(cases, key=lambda case: float(case.get("time", 0)))
    note = f"slowest: {slowest.get('name')}, {duration(float(slowest.get('time', 0)))}"
    return Result(leg, "passed", seconds, **counts, note=note)


def duration(seconds: float) -> str:
    """Format a duration as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


if __name__ == "__main__":
    sys.exit(main())
