"""The tool in a container of a docker daemon."""

from __future__ import annotations

import subprocess

from umccr_pcgr.samples.model import StopReason, Transient

from .config import Image, Settings
from .runtime import BUNDLE, COMMAND_SECONDS, INPUTS, OUTPUT_SHOWN, OUTPUTS, VEP, Job, Run, log_tail, supervise

LABEL = "umccr.pcgr.attempt"
DAEMON_FAILED = 125  # exit code of `docker run` when docker itself failed (docker's documentation)
NOT_STARTED = (126, 127)  # the command in the image cannot be run, or is not there


class DockerRuntime:
    """Docker by its command line; containers are named and labelled with the attempt, so that none is left behind unnoticed."""

    def __init__(self, settings: Settings, image: Image, user: str, docker: str = "docker") -> None:
        self._settings = settings
        self._image = image
        self._user = user
        self._docker = docker

    def command(self, job: Job) -> list[str]:
        """Return the whole command line of a run."""
        settings, limits = self._settings, self._settings.limits
        return [
            *(self._docker, "run", "--rm", "--name", f"pcgr-{job.attempt}", "--label", f"{LABEL}={job.attempt}"),
            *("--network", "none", "--user", self._user, "--read-only", "--tmpfs", "/tmp"),  # noqa: S108  (the container's)
            *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
            *("--pids-limit", str(limits.pids), "--memory", limits.memory, "--cpus", str(limits.cpus)),
            # quarto writes its cache below the home folder otherwise, which the user may not have
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
        """Ensure that the daemon answers and has the image; Transient if not."""
        self._call("image", "inspect", "--format", "{{.Id}}", self._image.image)

    def clear(self) -> list[str]:
        """Remove all containers of attempts; returns their names."""
        names = self._call("ps", "--all", "--filter", f"label={LABEL}", "--format", "{{.Names}}").split()
        if names:
            self._call("rm", "--force", *names)
        return names

    def run(self, job: Job, timeout: float, stop: StopReason) -> Run:
        """Run a job in a container, which is removed afterwards."""

        def kill(process: subprocess.Popen[bytes]) -> None:
            # twice: the container may be created between the first removal and the end of `docker run`
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
            output = " ".join(" ".join(log_tail(job.log)).split())[:OUTPUT_SHOWN]
            raise Transient("runtime", f"docker run ended with exit code {result.code}: {output}")
        return result

    def _remove(self, attempt: str) -> None:
        try:
            self._call("rm", "--force", f"pcgr-{attempt}")
        except Transient as error:
            if "No such container" not in str(error):
                raise
