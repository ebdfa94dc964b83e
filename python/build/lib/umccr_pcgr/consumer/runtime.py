"""Running the tool: a command in isolation, with its output in a file, a time limit, and an early end on request."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from umccr_pcgr.samples.model import StopReason

BUNDLE, VEP, INPUTS, OUTPUTS = (
    "/mnt/bundle",
    "/mnt/.vep",
    "/mnt/pcgr_inputs",
    "/mnt/pcgr_outputs",
)  # as PCGR documents them
WORK_PREFIX = "attempt-"  # of folders in work_dir; the consumer wipes them when it starts
POLL_SECONDS = 0.2  # between checks of a running tool
COMMAND_SECONDS = 120  # of one command other than a run; removing a busy container may take a while
_LOGGED = re.compile(r"(?:^| - )(DEBUG|INFO|WARNING|ERROR|CRITICAL) -(?: (.*))?$")  # a line of PCGR's log
OUTPUT_SHOWN = 300  # characters of a program's own error output, which may have several lines


@dataclass(frozen=True)
class Run:
    """How a run ended: ``code`` is the exit code, ``stopped`` why we killed it, ``overtime`` that its time was up."""

    code: int
    stopped: str | None = None
    overtime: bool = False


@dataclass(frozen=True)
class Job:
    """One run: where the files are on this host, and the tool's command as seen inside.

    `outputs` and `log` lie in a folder of the attempt's own, in which a runtime may leave more; the caller wipes it.
    """

    attempt: str
    argv: Sequence[str]
    inputs: Path
    outputs: Path
    log: Path


class Runtime(Protocol):
    """A way to run the tool."""

    def check(self) -> None:
        """Ensure that a run could start now; Transient if not."""

    def clear(self) -> list[str]:
        """Kill what earlier attempts on this host left running; returns their names, ``pcgr-<attempt>``."""

    def run(self, job: Job, timeout: float, stop: StopReason) -> Run:
        """Run to the end, or for `timeout` seconds, or until `stop` gives a reason; nothing of it runs afterwards."""


def supervise(
    argv: Sequence[str],
    log: Path,
    timeout: float,
    stop: StopReason,
    kill: Callable[[subprocess.Popen[bytes]], None],
    *,
    env: Mapping[str, str] | None = None,
) -> Run:
    """Run `argv` with both outputs in `log`; `kill` must end it, and whatever else belongs to it."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=env
        )
    deadline = time.monotonic() + timeout
    try:
        while True:
            try:
                return Run(process.wait(POLL_SECONDS), stopped=stop())
            except subprocess.TimeoutExpired:
                pass
            if reason := stop():
                return Run(-1, stopped=reason)
            if time.monotonic() > deadline:
                return Run(-1, overtime=True)
    finally:
        if process.poll() is None:
            kill(process)
            process.wait()


def log_tail(path: Path, lines: int = 40, width: int = 500) -> tuple[str, ...]:
    """Return the last `lines` lines of a log, each cut at `width` characters; empty when there is no log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - lines * width * 4))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ()
    return tuple(line[:width] for line in text.splitlines()[-lines:])


def error_line(lines: Iterable[str]) -> str | None:
    """Return the line of a log that says what failed, or None.

    PCGR logs an error as three lines, of which only the middle one has a text behind `` - ERROR - `` (its function
    ``error_message``); the last such text counts. What is not from its log (argparse, R, a shell) has the word somewhere.
    """
    logged, others = None, None
    for line in map(str.strip, lines):
        match = _LOGGED.search(line)
        if match and match[1] in ("ERROR", "CRITICAL") and (match[2] or "").strip():
            logged = line
        elif not match and "error" in line.lower():
            others = line
    return logged or others


def last_line(lines: Iterable[str]) -> str:
    """Return the last line with a text; a line of PCGR's log may have none."""
    last = "no output"
    for line in map(str.strip, lines):
        match = _LOGGED.search(line)
        if line and not (match and not (match[2] or "").strip()):
            last = line
    return last
