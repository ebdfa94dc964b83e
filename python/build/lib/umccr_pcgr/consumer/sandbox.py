"""The tool without a daemon: conda environments in namespaces of bubblewrap, or an Apptainer image.

Both run as children of the consumer and as its user, in namespaces of their own. Their memory, processors and processes are
limited by the consumer's own unit: an unprivileged user may not create control groups. Killing the first process
of a process namespace kills all that is in it, so that it is enough to find that process again, by a mark in its environment.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from umccr_pcgr.samples.model import StopReason, Transient

from .config import Image, Settings
from .runtime import (
    BUNDLE,
    COMMAND_SECONDS,
    INPUTS,
    OUTPUT_SHOWN,
    OUTPUTS,
    VEP,
    WORK_PREFIX,
    Job,
    Run,
    log_tail,
    supervise,
)

MARK = "UMCCR_PCGR_ATTEMPT"  # its value: the consumer's work folder, a slash, the attempt
MARKED = re.compile(rb"(?:^|\0)" + MARK.encode() + rb"=([^\0]*)/([0-9a-z]+)(?:\0|$)")
GONE_SECONDS = 30.0  # for killed processes to be gone; one in the middle of disk work takes a moment
HOME = {"HOME": "/tmp", "XDG_CACHE_HOME": "/tmp/quarto"}  # noqa: S108  (private to the run); quarto fails without them


def running(work_dir: Path) -> dict[int, str]:
    """Return process id -> attempt, of this user's processes that carry the mark of the consumer that works in `work_dir`."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            match = MARKED.search(path.read_bytes())
        except OSError:  # another user's, or gone
            continue
        if match and match[1] == os.fsencode(work_dir):
            found[int(path.parent.name)] = match[2].decode()
    return found


def kill_marked(work_dir: Path, attempt: str | None = None) -> set[str]:
    """Kill the processes of `attempt`, or of all attempts, until none is left; returns the attempts that had any."""
    killed: set[str] = set()
    deadline = time.monotonic() + GONE_SECONDS
    while left := {pid: name for pid, name in running(work_dir).items() if attempt in (None, name)}:
        killed.update(left.values())
        if time.monotonic() > deadline:
            raise Transient("runtime", f"processes {sorted(left)} of earlier runs cannot be killed")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return killed


class Sandbox:
    """What both have in common; a subclass knows its program's command line."""

    program: str

    def __init__(self, settings: Settings, image: Image) -> None:
        self._settings = settings
        self._image = image

    def command(self, job: Job) -> list[str]:
        """Return the whole command line of a run."""
        raise NotImplementedError

    def needs(self) -> list[Path]:
        """Return what must exist of the runtime."""
        return [Path(self._image.image)]

    def not_started(self, code: int, last: str) -> bool:
        """Return whether the program itself failed, not the tool; `last` is the log's last line."""
        raise NotImplementedError

    def _environment(self, attempt: str) -> dict[str, str]:
        """Return the program's environment: without the consumer's own, which may hold credentials."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return kept | self._mark(attempt)

    def _mark(self, attempt: str) -> dict[str, str]:
        return {MARK: f"{self._settings.work_dir}/{attempt}"}

    def _mounts(self, job: Job) -> list[tuple[Path, str, bool]]:
        """Return (folder on the host, folder inside, writable)."""
        return [
            (self._settings.refdata_dir, BUNDLE, False),
            (self._settings.vep_dir, VEP, False),
            (job.inputs, INPUTS, False),
            (job.outputs, OUTPUTS, True),
        ]

    def check(self) -> None:
        """Ensure that the runtime is installed and may create namespaces; Transient if not."""
        if not shutil.which(self.program):
            raise Transient("runtime", f"{self.program}: no such program on this host")
        for path in self.needs():
            if not path.exists():
                raise Transient("runtime", f"{path}: no such file; the runtime is not installed")
        # whether this user may create namespaces is known only after trying
        with tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=self._settings.work_dir) as name:
            job = Job("check", ["true"], Path(name), Path(name), Path(name, "log"))
            result = self.run(job, COMMAND_SECONDS, lambda: None)
            if result.code:
                raise Transient("runtime", f"{self.program}: the command true ended with {result.code}")

    def clear(self) -> list[str]:
        """Kill the runs of all attempts; returns their names."""
        return sorted(f"pcgr-{attempt}" for attempt in kill_marked(self._settings.work_dir))

    def run(self, job: Job, timeout: float, stop: StopReason) -> Run:
        """Run a job; all its processes are killed afterwards."""

        def kill(process: subprocess.Popen[bytes]) -> None:
            os.killpg(process.pid, signal.SIGKILL)

        try:
            result = supervise(self.command(job), job.log, timeout, stop, kill, env=self._environment(job.attempt))
        except OSError as error:
            raise Transient("runtime", f"{self.program}: {error}") from None
        finally:
            kill_marked(self._settings.work_dir, job.attempt)
        last = "".join(log_tail(job.log, lines=1))
        if not result.stopped and not result.overtime and self.not_started(result.code, last):
            raise Transient("runtime", f"{self.program} ended with exit code {result.code}: {last[:OUTPUT_SHOWN]}")
        return result


class CondaRuntime(Sandbox):
    """Conda environments under bubblewrap, which shows the run the host's programs and libraries and little else."""

    program = "bwrap"
    # a user's and a group's name, shared libraries, the time zone: needed by programs
    FILES = ("passwd", "group", "nsswitch.conf", "ld.so.cache", "localtime", "alternatives")

    def needs(self) -> list[Path]:
        """Return the folders of both environments."""
        return [Path(prefix) for prefix in self._image.prefixes.values()]

    def command(self, job: Job) -> list[str]:
        """Return the command line of bubblewrap."""
        pcgr = self._image.prefixes["pcgr"]
        environment = {**HOME, "PATH": f"{pcgr}/bin:/usr/bin:/bin", "CONDA_PREFIX": pcgr, **self._mark(job.attempt)}
        command = [
            *(self.program, "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
            *("--die-with-parent", "--cap-drop", "ALL", "--clearenv"),
            *("--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),  # noqa: S108
        ]
        for name in ("bin", "sbin", "lib", "lib64"):
            command += ["--symlink", f"usr/{name}", f"/{name}"]
        for name in self.FILES:
            command += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        command += ["--ro-bind", self._image.image, self._image.image]
        for here, inside, writable in self._mounts(job):
            command += ["--bind" if writable else "--ro-bind", str(here), inside]
        for name, value in environment.items():
            command += ["--setenv", name, value]
        return [*command, "--remount-ro", "/", "--chdir", "/tmp", "--", *job.argv]  # noqa: S108

    def not_started(self, code: int, last: str) -> bool:
        """Return whether bubblewrap itself failed."""
        return code == 1 and last.startswith("bwrap: ")


class ApptainerRuntime(Sandbox):
    """A SIF file. Its /tmp is a folder beside the outputs: Apptainer's own is 64 MiB by default."""

    program = "apptainer"

    def command(self, job: Job) -> list[str]:
        """Return the command line of Apptainer."""
        command = [
            # --userns: without the setuid helper, also where it is installed; the only network that it then allows is none
            *(
                self.program,
                "--quiet",
                "exec",
                "--userns",
                "--containall",
                "--cleanenv",
                "--no-home",
                "--writable-tmpfs",
            ),
            *("--net", "--network", "none", "--workdir", str(job.log.parent)),
        ]
        for here, inside, writable in self._mounts(job):
            command += ["--bind", f"{here}:{inside}" + ("" if writable else ":ro")]
        for name, value in (HOME | self._mark(job.attempt)).items():
            if name != "HOME":  # Apptainer refuses to set it
                command += ["--env", f"{name}={value}"]
        return [*command, self._image.image, *job.argv]

    def not_started(self, code: int, last: str) -> bool:
        """Return whether Apptainer itself failed."""
        return code == 255 and "FATAL:" in last
