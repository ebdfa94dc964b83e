"""Running the tool: a command in a container, with its output in a file, a time limit, and an end when told to stop."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .config import Image, Settings
from .model import StopReason, Transient

LABEL = "umccr.pcgr.attempt"
BUNDLE, VEP, INPUTS, OUTPUTS = (
    "/mnt/bundle",
    "/mnt/.vep",
    "/mnt/pcgr_inputs",
    "/mnt/pcgr_outputs",
)  # as PCGR documents them
LOOK_SECONDS = 0.2  # between looks at a running tool
COMMAND_SECONDS = 120  # of one docker command other than run; removing a busy container may take a while
DAEMON_FAILED = 125  # exit code of `docker run` when docker itself failed (docker's documentation)
SAID = 300  # characters of docker's own complaint, which comes in several lines
NOT_STARTED = (126, 127)  # the command in the image cannot be run, or is not there


@dataclass(frozen=True)
class Run:
    """How a run ended: ``code`` is the exit code, ``stopped`` why it was killed by us, ``overtime`` that its time was up."""

    code: int
    stopped: str | None = None
    overtime: bool = False


@dataclass(frozen=True)
class Job:
    """One run: where the files are on this machine, and the tool's command as seen inside."""

    attempt: str
    argv: Sequence[str]
    inputs: Path
    outputs: Path
    log: Path


class Runtime(Protocol):
    """What can run the tool."""

    def check(self) -> None:
        """Transient unless a run could start now."""

    def clear(self) -> list[str]:
        """Kill what earlier attempts on this machine left running; returns their names."""

    def run(self, job: Job, timeout: float, stop: StopReason) -> Run:
        """Run to the end, or for `timeout` seconds, or until `stop` gives a reason; nothing of it runs afterwards."""


def supervise(
    argv: Sequence[str], log: Path, timeout: float, stop: StopReason, kill: Callable[[subprocess.Popen[bytes]], None]
) -> Run:
    """Run `argv` with both outputs in `log`; `kill` must end it, and whatever else belongs to it."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    deadline = time.monotonic() + timeout
    try:
        while True:
            try:
                return Run(process.wait(LOOK_SECONDS), stopped=stop())
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


class DockerRuntime:
    """Docker by its command line; containers are named and labelled with the attempt, so that none is ever lost."""

    def __init__(self, settings: Settings, image: Image, user: str, docker: str = "docker") -> None:
        self._settings = settings
        self._image = image
        self._user = user
        self._docker = docker

    def command(self, job: Job) -> list[str]:
        """The whole command line of a run."""
        settings, limits = self._settings, self._settings.limits
        return [
            *(self._docker, "run", "--rm", "--name", f"pcgr-{job.attempt}", "--label", f"{LABEL}={job.attempt}"),
            *("--network", "none", "--user", self._user, "--read-only", "--tmpfs", "/tmp"),  # noqa: S108  (the container's)
            *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
            *("--pids-limit", str(limits.pids), "--memory", limits.memory, "--cpus", str(limits.cpus)),
            # quarto writes its cache below the home folder otherwise, which a user without one has not got
            *("-e", "HOME=/tmp", "-e", "XDG_CACHE_HOME=/tmp/quarto"),
            *("-v", f"{settings.refdata_dir}:{BUNDLE}:ro", "-v", f"{settings.vep_dir}:{VEP}:ro"),
            *("-v", f"{job.inputs}:{INPUTS}:ro", "-v", f"{job.outputs}:{OUTPUTS}"),
            self._image.image,
            *job.argv,
        ]

    def _call(self, *arguments: str) -> str:
        try:
            done = subprocess.run(
                [self._docker, *arguments], check=False, capture_output=True, text=True, timeout=COMMAND_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Transient("runtime", f"docker {arguments[0]}: {error}") from None
        if done.returncode:
            raise Transient("runtime", f"docker {arguments[0]}: {' '.join(done.stderr.split())}")
        return done.stdout

    def check(self) -> None:
        self._call("image", "inspect", "--format", "{{.Id}}", self._image.image)

    def clear(self) -> list[str]:
        names = self._call("ps", "--all", "--filter", f"label={LABEL}", "--format", "{{.Names}}").split()
        if names:
            self._call("rm", "--force", *names)
        return names

    def run(self, job: Job, timeout: float, stop: StopReason) -> Run:
        def kill(process: subprocess.Popen[bytes]) -> None:
            # twice: the container may come into being between the first look and the end of `docker run`
            self._remove(job.attempt)
            process.kill()
            process.wait()
            self._remove(job.attempt)

        try:
            result = supervise(self.command(job), job.log, timeout, stop, kill)
        except OSError as error:
            raise Transient("runtime", f"docker run: {error}") from None
        if not result.stopped and not result.overtime and result.code in (DAEMON_FAILED, *NOT_STARTED):
            self._remove(job.attempt)
            said = " ".join(" ".join(log_tail(job.log)).split())[:SAID]
            raise Transient("runtime", f"docker run ended with exit code {result.code}: {said}")
        return result

    def _remove(self, attempt: str) -> None:
        try:
            self._call("rm", "--force", f"pcgr-{attempt}")
        except Transient as error:
            if "No such container" not in str(error):
                raise


def log_tail(path: Path, lines: int = 40, width: int = 500) -> tuple[str, ...]:
    """The last `lines` lines of a log, each cut at `width` characters; empty when there is no log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - lines * width * 4))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ()
    return tuple(line[:width] for line in text.splitlines()[-lines:])
