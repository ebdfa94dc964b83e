"""The container's command line, its end in every case, and the watch for spot notices."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from umccr_pcgr.consumer import imds
from umccr_pcgr.consumer.config import Image
from umccr_pcgr.consumer.docker import DockerRuntime
from umccr_pcgr.consumer.runtime import Job, error_line, last_line, log_tail, supervise
from umccr_pcgr.samples.model import Transient

# Stands in for docker: says what it was called with, keeps one file per container, and runs as the file `mode` says.
DOCKER = r"""#!/bin/sh
home=$(dirname "$0")
echo "$*" >> "$home/calls"
mode=$(cat "$home/mode" 2>/dev/null)
case "$1" in
  run)
    name=$(echo "$*" | sed 's/.*--name \([^ ]*\).*/\1/')
    echo $$ > "$home/containers/$name"
    [ "$mode" = daemon ] && { echo "docker: Cannot connect to the Docker daemon" >&2; exit 125; }
    [ "$mode" = hang ] && sleep 60
    echo said; echo complained >&2
    rm "$home/containers/$name"; exit 3 ;;
  ps) ls "$home/containers" ;;
  rm) shift 2; for name; do
        [ -f "$home/containers/$name" ] || { echo "Error: No such container: $name" >&2; exit 1; }
        rm "$home/containers/$name"; done ;;
  image) [ "$mode" = daemon ] && { echo "Cannot connect" >&2; exit 1; }; echo sha256:1 ;;
esac
"""


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    path = tmp_path / "bin" / "docker"
    (path.parent / "containers").mkdir(parents=True)
    path.write_text(DOCKER)
    path.chmod(0o755)
    return path


@pytest.fixture
def runtime(spool: Any, docker: Path) -> DockerRuntime:
    return DockerRuntime(spool.settings, Image("docker", "sha256:abc", None, None), "998:997", str(docker))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("a1", ["pcgr", "--sample_id", "s"], tmp_path / "in", tmp_path / "out", tmp_path / "pcgr.log")


def test_the_command_line_of_a_run(runtime: DockerRuntime, job: Job, spool: Any, docker: Path) -> None:
    settings = spool.settings
    assert runtime.command(job) == [
        *(str(docker), "run", "--rm", "--name", "pcgr-a1", "--label", "umccr.pcgr.attempt=a1", "--network", "none"),
        *("--user", "998:997", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"),
        *("--security-opt", "no-new-privileges", "--pids-limit", "512", "--memory", "6g", "--cpus", "2"),
        *("-e", "HOME=/tmp", "-e", "XDG_CACHE_HOME=/tmp/quarto"),
        *("-v", f"{settings.refdata_dir}:/mnt/bundle:ro", "-v", f"{settings.vep_dir}:/mnt/.vep:ro"),
        *("-v", f"{job.inputs}:/mnt/pcgr_inputs:ro", "-v", f"{job.outputs}:/mnt/pcgr_outputs"),
        *("sha256:abc", "pcgr", "--sample_id", "s"),
    ]


def test_both_outputs_are_logged_and_the_exit_code_is_told(runtime: DockerRuntime, job: Job) -> None:
    result = runtime.run(job, 10, lambda: None)
    assert (result.code, result.stopped, result.overtime) == (3, None, False)
    assert sorted(job.log.read_text().split()) == ["complained", "said"]


@pytest.mark.parametrize("why", ["stop", "overtime"])
def test_a_run_that_must_end_takes_its_container_with_it(
    runtime: DockerRuntime, job: Job, docker: Path, why: str
) -> None:
    (docker.parent / "mode").write_text("hang")
    started = time.monotonic()
    result = runtime.run(job, 0.5 if why == "overtime" else 30, lambda: "enough" if why == "stop" else None)
    assert time.monotonic() - started < 10
    assert (result.stopped, result.overtime) == (("enough", False) if why == "stop" else (None, True))
    assert list((docker.parent / "containers").iterdir()) == []
    assert "rm --force pcgr-a1" in (docker.parent / "calls").read_text()


def test_a_daemon_that_fails_is_no_fault_of_the_sample(runtime: DockerRuntime, job: Job, docker: Path) -> None:
    (docker.parent / "mode").write_text("daemon")
    with pytest.raises(Transient, match="exit code 125: docker: Cannot connect to the Docker daemon"):
        runtime.run(job, 10, lambda: None)
    with pytest.raises(Transient, match="docker image: Cannot connect"):
        runtime.check()


def test_a_missing_docker_is_no_fault_of_the_sample(spool: Any, job: Job) -> None:
    runtime = DockerRuntime(spool.settings, Image("docker", "i", None, None), "1:1", "/nonexistent/docker")
    with pytest.raises(Transient, match="docker run: "):
        runtime.run(job, 10, lambda: None)
    with pytest.raises(Transient, match="docker image: "):
        runtime.check()


def test_leftover_containers_are_removed(runtime: DockerRuntime, docker: Path) -> None:
    assert runtime.clear() == []
    for name in ("pcgr-1", "pcgr-2"):
        (docker.parent / "containers" / name).touch()
    assert runtime.clear() == ["pcgr-1", "pcgr-2"]
    assert list((docker.parent / "containers").iterdir()) == []
    assert "ps --all --filter label=umccr.pcgr.attempt --format" in (docker.parent / "calls").read_text()


def test_supervision_ends_what_it_started_even_when_it_is_broken_off(tmp_path: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def kill(process: subprocess.Popen[bytes]) -> None:
        started.append(process)
        process.kill()

    def breaks() -> str | None:
        raise RuntimeError("a fault in a callback")

    with pytest.raises(RuntimeError):
        supervise(["sleep", "60"], tmp_path / "log", 30, breaks, kill)
    assert started[0].returncode == -9


def test_the_tail_of_a_log_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert log_tail(path) == ()
    path.write_bytes(b"\n".join(b"%d" % number for number in range(200_000)) + b"\n" + b"x" * 9000 + b"\xff\n")
    tail = log_tail(path)
    assert len(tail) == 40
    assert tail[0] == "199961"
    assert len(tail[-1]) == 500


STAMP = "2025-01-01 10:00:00 - pcgr-main"


@pytest.mark.parametrize(
    ("lines", "error", "last"),
    [
        ([], None, "no output"),
        (["", "  "], None, "no output"),
        (["one", "two", ""], None, "two"),
        # as PCGR's error_message logs: an empty line, the text, an empty line
        (
            [f"{STAMP} - ERROR - ", f"{STAMP} - ERROR - no such site", f"{STAMP} - ERROR - "],
            f"{STAMP} - ERROR - no such site",
            f"{STAMP} - ERROR - no such site",
        ),
        # of two errors the last; what is logged behind it is no error
        (
            [f"{STAMP} - ERROR - first", f"{STAMP} - ERROR - second", f"{STAMP} - INFO - closing", ""],
            f"{STAMP} - ERROR - second",
            f"{STAMP} - INFO - closing",
        ),
        # an error without a text is none
        ([f"{STAMP} - INFO - begins", f"{STAMP} - ERROR -", ""], None, f"{STAMP} - INFO - begins"),
        # PCGR's own words come before those of others; an INFO line that mentions errors is none
        (
            ["Error in library(pcgrr)", f"{STAMP} - ERROR - R failed ", "Execution halted"],
            f"{STAMP} - ERROR - R failed",
            "Execution halted",
        ),
        ([f"{STAMP} - INFO - no error", "Error in f(): x", "Execution halted"], "Error in f(): x", "Execution halted"),
        ([f"{STAMP} - INFO - no error"], None, f"{STAMP} - INFO - no error"),
        (["a text - with dashes -"], None, "a text - with dashes -"),
    ],
)
def test_what_a_log_says_of_its_end(lines: list[str], error: str | None, last: str) -> None:
    assert error_line(lines) == error
    assert last_line(lines) == last


# --- spot notices -------------------------------------------------------------------------------------------------------


def watch(server: Any) -> tuple[imds.InterruptionWatch, list[str]]:
    notices: list[str] = []
    watching = imds.InterruptionWatch(notices.append, address=f"http://127.0.0.1:{server.server_port}", poll=0.05)
    watching.start()
    return watching, notices


def until(condition: Any, limit: float = 5) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_spot_notice_is_told_once(metadata: Any) -> None:
    watching, notices = watch(metadata)
    until(lambda: metadata.looks >= 2)
    assert watching.instance == "i-0123456789abcdef0"
    assert notices == []  # control: no notice, no stop
    metadata.expire = True  # and the token is renewed when it has run out
    until(lambda: metadata.tokens == 2)
    metadata.notice = json.dumps({"action": "terminate", "time": "2026-11-23T05:00:00Z"}).encode()
    until(lambda: notices)
    watching.close()
    assert notices == ["EC2 will terminate this instance at 2026-11-23T05:00:00Z"]


@pytest.mark.parametrize("notice", [b"nonsense", b"[]", b"{}"])
def test_a_strange_notice_is_none(metadata: Any, notice: bytes) -> None:
    metadata.notice = notice
    watching, notices = watch(metadata)
    until(lambda: metadata.looks >= 3)
    watching.close()
    assert notices == []


def test_off_ec2_the_watch_ends_by_itself(metadata: Any) -> None:
    metadata.refuse = True
    watching, notices = watch(metadata)
    watching._thread.join(5)
    assert not watching._thread.is_alive()
    assert (metadata.looks, notices, watching.instance) == (0, [], "")
    watching.close()


@pytest.mark.parametrize("strange", [b"i-fake", b"i-0/../x", b""])
def test_a_strange_instance_id_is_none(metadata: Any, strange: bytes) -> None:
    metadata.identity = strange
    watching, _unused = watch(metadata)
    until(lambda: metadata.looks >= 3)
    metadata.identity = b"i-0a"  # control, and asked for again
    until(lambda: watching.instance)
    watching.close()
    assert watching.instance == "i-0a"


def test_the_watch_can_be_switched_off(metadata: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    watching, _unused = watch(metadata)
    time.sleep(0.2)
    watching.close()
    assert (metadata.tokens, metadata.looks) == (0, 0)


def test_a_notice_hands_the_running_sample_back(metadata: Any, spool: Any, make: Any) -> None:
    spool.runtime.modes = ["hang"]
    spool.put(make.tarball())
    worker = spool.worker()
    watching = imds.InterruptionWatch(worker.stop, address=f"http://127.0.0.1:{metadata.server_port}", poll=0.05)

    def notice(job: Job) -> None:
        metadata.notice = b'{"action": "terminate", "time": "2026-11-23T05:00:00Z"}'

    spool.runtime.on_run = notice
    watching.start()
    started = time.monotonic()
    assert worker.run() == "stopped"
    assert time.monotonic() - started < 5
    watching.close()
    assert list(spool.settings.work_dir.iterdir()) == []
    assert spool.queue().claim(0).receives == 2
