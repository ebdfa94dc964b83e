"""The demo: what it finds left behind, what it refuses; the bootstrap without root or with an old Python."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

import harness
from harness import demo
from support import ROOT


def test_only_processes_of_the_region_are_found(tmp_path: Path) -> None:
    # the shell's output proves that it runs: before exec, the process still has the command line of this one
    program = ["sh", "-c", "echo; read line", str(tmp_path)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        found = demo.leftover_processes(tmp_path)
        process.kill()
    assert len(found) == 1
    assert demo.leftover_processes(tmp_path) == []


@mock_aws
def test_messages_left_are_counted_by_queue() -> None:
    session = boto3.Session("test", "test", region_name="ap-southeast-2")
    sqs = session.client("sqs")
    url = sqs.create_queue(QueueName="pcgr")["QueueUrl"]
    assert demo.leftover_messages(session) == {}
    sqs.send_message(QueueUrl=url, MessageBody="x")
    sqs.send_message(QueueUrl=url, MessageBody="y")
    sqs.receive_message(QueueUrl=url)  # one is in flight now, and counts too
    assert demo.leftover_messages(session) == {"pcgr": 2}


def test_missing_input_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts/demo", "--input", tmp_path / "no.vcf.gz", "--out", tmp_path / "out"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "no.vcf.gz: no such file" in answer.stderr
    assert not (tmp_path / "out").exists()


def demo_refusal(tmp_path: Path, *arguments: str | Path) -> str:
    """Return the line with which the demo refuses before it starts anything."""
    out = () if "--out" in arguments else ("--out", tmp_path / "out")
    command = [sys.executable, ROOT / "scripts/demo", *out, *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:  # it was not refused: kill everything that it has started
            os.killpg(process.pid, signal.SIGTERM)
            raise
    assert (process.returncode, output) == (2, ""), output + errors
    assert errors.startswith("demo: ") and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()
    return errors


def test_what_submit_would_refuse_is_refused_before_the_first_step(tmp_path: Path) -> None:
    reads, vcf = tmp_path / "reads.bam", tmp_path / "patient.vcf"
    reads.write_bytes(b"BAM")
    assert "allowed: a tarball *.tar.gz, or a VCF" in demo_refusal(tmp_path, "--input", reads)
    vcf.write_text("hello\n")
    assert f"{vcf}: line 1: found 'hello'" in demo_refusal(tmp_path, "--input", vcf)
    table = tmp_path / "cna.tsv"
    table.write_text("Chromosome\tStart\n")
    assert "ready tarball" in demo_refusal(tmp_path, "--cna", table)
    assert "found a folder, allowed a file" in demo_refusal(tmp_path, "--input", tmp_path)
    assert "--out: " in demo_refusal(tmp_path, "--out", reads)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("submit: reads.bam: not a sample\n  at the end\n", "submit: reads.bam: not a sample"),
        (
            "fatal: [i-1]: FAILED! =>\n    changed: false\n    msg: no space left\nPLAY RECAP\ni-1 : ok=3 failed=1\n",
            "no space left",
        ),
        ("[ERROR]: couldn't resolve module\n", "[ERROR]: couldn't resolve module"),
        ("Traceback\n  File x\nbotocore.exceptions.ClientError: denied\n", "botocore.exceptions.ClientError: denied"),
    ],
)
def test_reason_of_a_failed_step_is_shown(tmp_path: Path, output: str, reason: str) -> None:
    command = [sys.executable, "-c", "import sys; print(sys.argv[1], end=''); sys.exit(2)", output]
    with pytest.raises(harness.StepError) as failure:
        harness.run(command, tmp_path / "log", what="the step")
    assert str(failure.value).startswith(f"the step failed (exit code 2): {reason}; the whole output is in ")


def test_step_that_fails_silently_names_its_log(tmp_path: Path) -> None:
    with pytest.raises(harness.StepError, match=r"^the step failed \(exit code 1\); the whole output is in "):
        harness.run(["false"], tmp_path / "log", what="the step")


@pytest.fixture
def checkout() -> Iterator[Path]:
    """The files that the bootstrap reads, in a folder that other users may read (pytest's own folders are private)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("scripts", "bin", "python", "testbed"):
            (folder / part).mkdir()
        for file in (
            "scripts/bootstrap",
            "requirements.txt",
            "bindep.txt",
            "python/pyproject.toml",
            "testbed/pyproject.toml",
        ):
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


def test_old_python_is_refused(checkout: Path) -> None:
    python = checkout / "bin/oldpython"
    python.write_text("#!/bin/sh\n[ $1 = --version ] && echo Python 3.9.2 && exit\nexit 1\n")
    python.chmod(0o755)
    installed = "while [ $# -gt 0 ]; do echo installed $1; shift; done"
    answer = bootstrap(checkout, installed, PYTHON=str(python))
    assert answer.returncode == 1
    assert "Python 3.9.2; Python 3.11 or newer is needed (set PYTHON=...)" in answer.stderr


INSTALLED = "while [ $# -gt 0 ]; do echo installed $1; shift; done"


def test_missing_python_is_reported_in_one_line(checkout: Path) -> None:
    answer = bootstrap(checkout, INSTALLED, PYTHON="nosuchpython")
    assert answer.returncode == 1
    assert answer.stderr == "bootstrap: PYTHON: found 'nosuchpython', no such program; allowed: Python 3.11 or newer\n"


def test_the_systems_python_takes_precedence_over_the_path(checkout: Path) -> None:
    """CI hosts have a newer one on their path than users."""
    other = checkout / "bin/python3"
    other.write_text(f'#!/bin/sh\necho used >>{checkout}/other\nexec {sys.executable} "$@"\n')
    other.chmod(0o755)
    system = Path("/usr/bin/python3")
    command = [system, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    good = system.exists() and subprocess.run(command, check=False).returncode == 0
    (checkout / "testbed/pyproject.toml").unlink()  # the bootstrap ends there, before it installs anything
    answer = bootstrap(checkout, INSTALLED)
    assert answer.returncode != 0 and "pyproject.toml" in answer.stderr
    assert (checkout / "other").exists() is not good


def test_environment_of_another_python_is_created_again(checkout: Path) -> None:
    """Two interpreters of one version in two places; pip is a stand-in that only keeps count."""
    for name in ("one", "two"):
        python = checkout / f"bin/{name}"
        python.write_text(
            '#!/bin/sh\ncase "$1$2" in --version) echo Python 3.11.2;; -mvenv) rm -rf .venv; mkdir -p .venv/bin;'
            " printf '#!/bin/sh\\n' >.venv/bin/pip; chmod +x .venv/bin/pip; echo made >>made;;"
            f" *base_prefix*) echo 3.11.2 /opt/{name};; esac\n"
        )
        python.chmod(0o755)
    counts = []
    for name in ("one", "one", "two"):
        answer = bootstrap(checkout, INSTALLED, PYTHON=str(checkout / f"bin/{name}"))
        assert answer.returncode == 0, answer.stderr
        counts.append((checkout / "made").read_text().count("made"))
    assert counts == [1, 1, 2]
