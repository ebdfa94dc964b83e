"""Run the commands of a step: output in a log, and one line that says why a command failed."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

Progress = Callable[[str], None]


class StepError(RuntimeError):
    """A step of the pipeline failed; the text is one line for the user."""


def run(command: list[str | Path], log: Path, *, what: str, env: Mapping[str, str] | None = None) -> None:
    """Run `command` with its output in `log`; raises StepError, which names the log, if it fails."""
    for _unused in follow(command, log, what=what, env=env):
        pass


def follow(command: list[str | Path], log: Path, *, what: str, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run `command` and yield its output lines, which are also appended to `log`; raises StepError if it fails.

    `what` names the step in the error, such as "building the image".
    """
    with (
        log.open("a", encoding="utf-8") as out,
        subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=dict(env or os.environ),
            text=True,
            errors="replace",
        ) as process,
    ):
        assert process.stdout  # noqa: S101  (PIPE above)
        reason = ""
        try:
            for line in process.stdout:
                out.write(line)
                out.flush()
                reason = latest_error(reason, line)
                yield line.rstrip("\n")
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise StepError(
            f"{what} failed (exit code {process.returncode}){f': {reason}' if reason else ''}; the whole output is in {log}"
        )


# How programs and Ansible start the line that says why they failed. The last line of a play is a table of counts.
_ERROR = re.compile(r"\s*(msg: |fatal: |\[?ERROR|(?:(?:\S*/)?scripts/|pcgr-)?[a-z_]+: |✘)\s*(?P<reason>\S.*)")
_TRACE = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt)\b.*")


def latest_error(before: str, line: str) -> str:
    """Return the error that `line` reports, as one short line, or `before`, the latest one so far, if it reports none."""
    text = line.strip()
    if match := _ERROR.match(line):
        return match["reason"].strip("\"'") if match[1] == "msg: " else text
    return text if _TRACE.fullmatch(text) else before
