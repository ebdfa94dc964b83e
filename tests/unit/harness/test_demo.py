"""What the demo says of what it left behind, and what the bootstrap does without root or with an old Python."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import pytest
from moto import mock_aws

from support import ROOT


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("demo_script", str(ROOT / "scripts/demo"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("demo_script", loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    return module


def test_a_process_of_the_region_is_found_and_others_are_not(demo: Any, tmp_path: Path) -> None:
    # the shell's word tells that the program with this command line runs: before, the process is a copy of this one
    program = ["sh", "-c", "echo; read line", str(tmp_path)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        found = demo.leftover_processes(tmp_path)
        process.kill()
    assert len(found) == 1
    assert demo.leftover_processes(tmp_path) == []


@mock_aws
def test_messages_left_are_counted_by_queue(demo: Any) -> None:
    session = boto3.Session("test", "test", region_name="ap-southeast-2")
    sqs = session.client("sqs")
    url = sqs.create_queue(QueueName="pcgr")["QueueUrl"]
    assert demo.leftover_messages(session) == {}
    sqs.send_message(QueueUrl=url, MessageBody="x")
    sqs.send_message(QueueUrl=url, MessageBody="y")
    sqs.receive_message(QueueUrl=url)  # one is in flight now, and counts too
    assert demo.leftover_messages(session) == {"pcgr": 2}


def test_an_input_that_is_not_there_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts/demo", "--input", tmp_path / "no.vcf.gz", "--out", tmp_path / "out"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "no.vcf.gz: no such file" in answer.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def checkout() -> Iterator[Path]:
    """As much of the project as the bootstrap reads, where another user may read it (pytest's own folders are private)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("scripts", "bin"):
            (folder / part).mkdir()
        for file in ("scripts/bootstrap", "requirements.txt", "bindep.txt"):
            shutil.copy(ROOT / file, folder / file)
        yield folder


def bootstrap(checkout: Path, dpkg: str, *prefix: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the bootstrap with `dpkg` as the body of dpkg-query."""
    query = checkout / "bin/dpkg-query"
    query.write_text(f"#!/bin/sh\n{dpkg}\n")
    query.chmod(0o755)
    environment = os.environ | {"PATH": f"{checkout}/bin:{os.environ['PATH']}"} | more
    command = [*prefix, "bash", str(checkout / "scripts/bootstrap")]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_without_root_the_missing_packages_are_named(checkout: Path) -> None:
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    answer = bootstrap(checkout, "echo installed git; echo half-installed make", *nobody)
    assert answer.returncode == 1
    assert answer.stderr.startswith("bootstrap: not root: install these packages and run again: make ")
    assert " qemu-utils " in answer.stderr
    assert " git " not in answer.stderr
    assert not (checkout / ".venv").exists()


def test_an_old_python_is_refused(checkout: Path) -> None:
    python = checkout / "bin/oldpython"
    python.write_text("#!/bin/sh\n[ $1 = --version ] && echo Python 3.9.2 && exit\nexit 1\n")
    python.chmod(0o755)
    installed = "while [ $# -gt 0 ]; do echo installed $1; shift; done"
    answer = bootstrap(checkout, installed, PYTHON=str(python))
    assert answer.returncode == 1
    assert "Python 3.9.2; Python 3.11 or newer is needed (set PYTHON=...)" in answer.stderr
