"""Role runtime, run by Ansible on this machine in a mount namespace of its own: nothing of it is left here."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support import ROOT
from support.conda_channel import PREFIX, lock, package
from umccr_pcgr.consumer.config import read_image
from umccr_pcgr.consumer.runtime import Job
from umccr_pcgr.consumer.sandbox import CondaRuntime

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root"),
]


def converge(tmp_path: Path, *arguments: str, **variables: Any) -> tuple[str, str]:
    """Run the role; what Ansible printed, and the record afterwards."""
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "roles": ["umccr.pcgr.runtime"],
        "vars": {
            "runtime_packages": [],
            "runtime_path": str(tmp_path / "opt"),
            "ansible_python_interpreter": str(ROOT / ".venv/bin/python"),
            **variables,
        },
    }
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    (tmp_path / "etc").mkdir(exist_ok=True)
    (tmp_path / "overlay").mkdir(exist_ok=True)
    # What is written to /etc lands in a folder of this test.
    script = 'mount -t overlay -o "lowerdir=/etc,upperdir=$1,workdir=$2" etc /etc && shift 2 && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "-", str(tmp_path / "etc"), str(tmp_path / "overlay")]
    playbook = [str(Path(sys.executable).parent / "ansible-playbook"), str(tmp_path / "play.yml")]
    done = subprocess.run(
        [*command, *playbook, *arguments],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, done.stderr)  # pytest shows it when a test fails
    record = tmp_path / "etc/pcgr/runtime.json"
    return done.stdout, record.read_text() if record.exists() else ""


def changes(output: str) -> int:
    recap = output.rpartition("PLAY RECAP")[2]
    assert "failed=0" in recap
    return int(recap.partition("changed=")[2].split()[0])


def test_conda(tmp_path: Path) -> None:
    """Prediction, installation with the linker from its locked requirements, the consumer's own run, and nothing to do the second time."""
    channel = tmp_path / "channels/forge"
    script = f"#!/bin/sh\necho pcgr of {PREFIX}\n"
    lines = {
        "pcgr": [package(channel, "pcgr", {"bin/pcgr": script.encode()}, noarch="generic")],
        "pcgrr": [package(channel, "r-pcgrr", {"lib/R/library/pcgrr/DESCRIPTION": b"Package: pcgrr\n"})],
    }
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    locks = {}
    for name, some in lines.items():
        text = lock("https://channels.example.org", some)
        (mirror / f"{name}.lock").write_text(text)
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        locks[name] = {"file": f"{name}.lock", "url": None, "sha256": sha256}
    variables = {
        "runtime_kind": "conda",
        "runtime_conda_locks": locks,
        "runtime_mirror_url": f"file://{mirror}",
        "runtime_conda_mirror_url": f"file://{channel.parent}",
    }
    output, record = converge(tmp_path, "--check", **variables)
    assert changes(output) == 2
    assert record == ""
    assert not (tmp_path / "opt").exists()
    output, record = converge(tmp_path, **variables)
    assert changes(output) == 2
    prefix = json.loads(record)["prefixes"]["pcgr"]
    for name in ("refdata", "vep", "work", "inputs", "outputs"):
        (tmp_path / name).mkdir()
    settings = SimpleNamespace(**{f"{name}_dir": tmp_path / name for name in ("refdata", "vep", "work")})
    runtime = CondaRuntime(settings, read_image(tmp_path / "etc/pcgr/runtime.json"))
    runtime.check()
    job = Job("attempt", ["pcgr"], tmp_path / "inputs", tmp_path / "outputs", tmp_path / "log")
    assert runtime.run(job, 60, lambda: None).code == 0
    assert job.log.read_text() == f"pcgr of {prefix}\n"
    output, _record = converge(tmp_path, **variables)
    assert changes(output) == 0


def test_apptainer(tmp_path: Path) -> None:
    content = b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + b"SIF_MAGIC\0"
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/pcgr.sif").write_bytes(content)
    (tmp_path / "mirror/SHA256SUMS").write_text(f"{hashlib.sha256(content).hexdigest()}  pcgr.sif\n")
    variables = {
        "runtime_kind": "apptainer",
        "runtime_sif_archive": "pcgr.sif",
        "runtime_mirror_url": f"file://{tmp_path}/mirror",
    }
    output, record = converge(tmp_path, **variables)
    assert "the command apptainer is not on this host" in output
    assert record == ""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/apptainer").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin/apptainer").chmod(0o755)
    output, record = converge(tmp_path, **variables)
    assert changes(output) == 1
    assert Path(json.loads(record)["image"]).read_bytes() == content
    output, _record = converge(tmp_path, **variables)
    assert changes(output) == 0


def test_release_without_lock_files(tmp_path: Path) -> None:
    output, _record = converge(tmp_path, runtime_kind="conda", pcgr_release="1.4.1")
    assert "release 1.4.1: no conda lock files are known" in output
