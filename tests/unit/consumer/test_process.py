"""The consumer as a process, as systemd starts it, with a stand-in for the docker command: signals, kills, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import ROOT

SOURCE = ROOT / "python/src"
PROGRAM = "import sys; from umccr_pcgr.consumer.cli import main; sys.exit(main(sys.argv[1:]))"
# One file per container. `run` finds its outputs in the mount and leaves what a good run leaves, after the seconds in `delay`.
DOCKER = r"""#!/bin/sh
home=$(dirname "$0")
case "$1" in
  run)
    name=$(echo "$*" | head -1 | sed 's/.*--name \([^ ]*\).*/\1/')
    outputs=$(echo "$*" | head -1 | sed 's/.* -v \([^ ]*\):\/mnt\/pcgr_outputs .*/\1/')
    echo "$name" >> "$home/started"
    touch "$home/containers/$name"
    sleep "$(cat "$home/delay")"
    for end in .conf.yaml .xlsx .html; do echo x > "$outputs/demo-000001-somatic.pcgr.grch38$end"; done
    echo "Finished PCGR!"
    rm "$home/containers/$name" ;;
  ps) ls "$home/containers" ;;
  rm) shift 2; for name; do rm "$home/containers/$name" || { echo "No such container" >&2; exit 1; }; done ;;
esac
"""


class Host:
    """A target host in a folder, and its consumer."""

    def __init__(self, folder: Path, spool: Any) -> None:
        self.folder = folder
        self.spool = spool
        self.bin = folder / "bin"
        (self.bin / "containers").mkdir(parents=True)
        (self.bin / "docker").write_text(DOCKER)
        (self.bin / "docker").chmod(0o755)
        self.delay("0")
        for path in ("bundle/data/grch38", "vep/homo_sapiens", "work", "log", "state"):
            (folder / path).mkdir(parents=True)
        (folder / "release.json").write_text(json.dumps(spool.context().release))
        (folder / "runtime.json").write_text(json.dumps({"kind": "docker", "image": "sha256:" + "0" * 64}))
        self.settings = folder / "consumer.toml"
        self.settings.write_text(f"""
release_file = "{folder}/release.json"
runtime_file = "{folder}/runtime.json"
refdata_dir = "{folder}/bundle"
vep_dir = "{folder}/vep"
work_dir = "{folder}/work"
log_dir = "{folder}/log"
state_dir = "{folder}/state"
assemblies = ["grch38"]
idle_seconds = 1
drained_file = "{folder}/run/drained"
[queue]
kind = "spool"
spool_dir = "{spool.root}"
visibility_seconds = 2
[limits]
free_bytes = 0
""")
        self.processes: list[subprocess.Popen[str]] = []

    def delay(self, seconds: str) -> None:
        (self.bin / "delay").write_text(seconds)

    def start(self, *options: str, **more: str) -> subprocess.Popen[str]:
        environment = os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}", "AWS_EC2_METADATA_DISABLED": "true"}
        environment |= more
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "--config", self.settings, *options],
            env=environment | {"PYTHONPATH": str(SOURCE)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def put(self, data: bytes) -> None:
        """Dated back, since files of the last seconds may still be being written."""
        self.spool.put(data)
        os.utime(self.spool.root / "inbox" / "in" / "demo-000001-somatic.tar.gz", (1, 1))

    def containers(self) -> list[str]:
        return [path.name for path in (self.bin / "containers").iterdir()]


@pytest.fixture
def host(tmp_path: Path, spool: Any) -> Iterator[Host]:
    made = Host(tmp_path / "host", spool)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def until(condition: Callable[[], Any], limit: float = 20) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_sample_then_drained(host: Host, make: Any) -> None:
    host.put(make.tarball())
    process = host.start()
    output, _unused = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert (host.folder / "run" / "drained").exists()
    assert host.spool.result()
    assert "sample=demo-000001-somatic" in output
    assert "Traceback" not in output


def test_sigterm_kills_the_container_and_returns_the_message(host: Host, make: Any) -> None:
    host.delay("20")
    host.put(make.tarball())
    process = host.start()
    until(host.containers)
    process.send_signal(signal.SIGTERM)
    output, _unused = process.communicate(timeout=10)
    assert process.returncode == 0, output
    assert host.containers() == []
    assert not (host.folder / "run" / "drained").exists()
    host.spool.visibility = 2.0  # as in the settings file: visible at once, not after two more seconds
    assert host.spool.queue().claim(0).receives == 2
    assert list((host.folder / "work").iterdir()) == []
    assert "attempt stopped: SIGTERM" in output


def test_after_kill_9_the_next_start_clears_up_and_finishes(host: Host, make: Any) -> None:
    host.delay("20")
    host.put(make.tarball())
    process = host.start()
    until(host.containers)
    process.kill()
    process.wait()
    assert len(host.containers()) == 1  # control: it lives on without the consumer, as docker's containers do
    assert list((host.folder / "work").iterdir()) != []

    host.delay("0")
    second = host.start()
    output, _unused = second.communicate(timeout=40)
    assert second.returncode == 0, output
    assert "killed the leftover run pcgr-" in output
    assert "wiping the leftover folder" in output
    assert host.containers() == []
    assert list((host.folder / "work").iterdir()) == []
    assert host.spool.result()
    assert len((host.bin / "started").read_text().split()) == 2
    assert not list((host.spool.root / "claimed").rglob("*running.json"))


def test_once_takes_one(host: Host, make: Any) -> None:
    process = host.start("--once")
    assert process.communicate(timeout=20)[0].strip().endswith("once: nothing to do")
    host.put(make.tarball())
    process = host.start("--once")
    output, _unused = process.communicate(timeout=20)
    assert process.returncode == 0, output
    assert host.spool.result()


def test_check_says_ready_or_what_is_missing(host: Host) -> None:
    process = host.start("--check")
    assert process.communicate(timeout=20)[0].strip() == "ready: PCGR rehearsal, grch38, queue spool"
    assert process.returncode == 0
    (host.folder / "bundle/data/grch38").rmdir()
    process = host.start("--check")
    output, _unused = process.communicate(timeout=20)
    assert process.returncode == 1
    assert output == f"pcgr-consumer: {host.folder}/bundle/data/grch38: no such folder; assemblies names grch38\n"


def test_smoke_says_what_failed_and_leaves_nothing(host: Host) -> None:
    """The stand-in for docker answers none of the questions."""
    process = host.start("--smoke")
    output, _unused = process.communicate(timeout=20)
    assert process.returncode == 1
    lines = output.splitlines()
    assert lines[0] == "ok      runtime: docker sha256:" + "0" * 64
    assert lines[1].startswith("failed  pcgr --version: no answer")
    assert {line[:8] for line in lines[1:]} == {"failed  "}
    assert list((host.folder / "work").iterdir()) == []
    assert list((host.folder / "state").iterdir()) == []


def test_a_smoke_that_is_stopped_leaves_nothing(host: Host) -> None:
    host.delay("20")
    process = host.start("--smoke")
    until(host.containers)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 1
    assert host.containers() == []
    assert list((host.folder / "work").iterdir()) == []


def test_a_wrong_setting_is_one_line(host: Host) -> None:
    host.settings.write_text(host.settings.read_text().replace("idle_seconds", "idel_seconds"))
    process = host.start()
    output, _unused = process.communicate(timeout=20)
    assert process.returncode == 1
    assert output.count("\n") == 1
    assert "idel_seconds: unknown key" in output


def test_two_consumers_on_one_host_are_refused(host: Host, make: Any) -> None:
    """The second would kill the first one's container at its start."""
    host.delay("20")
    host.put(make.tarball())
    host.start()
    until(host.containers)
    second = host.start()
    output, _unused = second.communicate(timeout=20)
    assert second.returncode == 1
    assert output.endswith("state/lock: another consumer runs on this host\n")
    assert len(host.containers()) == 1


def test_an_ec2_instance_notes_its_samples_and_its_interruption(
    host: Host, make: Any, cloud: Any, metadata: Any
) -> None:
    sqs = f'''kind = "sqs"
name = "{cloud.queue_settings.name}"
region = "{cloud.queue_settings.region}"
endpoint_url = "{cloud.queue_settings.endpoint_url}"
notes_bucket = "{cloud.bucket}"'''
    spool = f'kind = "spool"\nspool_dir = "{host.spool.root}"'
    host.settings.write_text(host.settings.read_text().replace(spool, sqs))

    def notes() -> dict[str, dict[str, Any]]:
        keys = [
            entry["Key"]
            for entry in cloud.s3.list_objects_v2(Bucket=cloud.bucket, Prefix="machines/").get("Contents", [])
        ]
        return {key: json.loads(cloud.read(key)) for key in keys}

    address = f"http://127.0.0.1:{metadata.server_port}"
    process = host.start(AWS_EC2_METADATA_DISABLED="false", AWS_EC2_METADATA_SERVICE_ENDPOINT=address)
    cloud.put(make.tarball())
    until(notes)
    assert [note["event"] for note in notes().values()] == ["sample"]
    host.delay("20")
    cloud.put(make.tarball(), "in/demo-000002-somatic.tar.gz")
    until(host.containers)
    metadata.notice = b'{"action": "terminate", "time": "2026-11-23T05:00:00Z"}'
    output, _unused = process.communicate(timeout=20)
    assert process.returncode == 0, output
    assert host.containers() == []
    last = notes()["machines/i-0123456789abcdef0/interrupted.json"]
    assert (last["event"], last["machine"]) == ("interrupted", "i-0123456789abcdef0")
    assert len(notes()) == 2
