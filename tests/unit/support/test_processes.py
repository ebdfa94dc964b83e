"""A test run behaves as in the foreground whichever signals it ignores at its start, and leaves no process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import ROOT, processes

IGNORED = "trap '' INT HUP TERM QUIT; exec \"$@\""
LEAVES = """\
import subprocess
from pathlib import Path

def test_that_fails():
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    daemon = subprocess.Popen(["sh", "-c", "setsid sleep 601 & echo $!"], stdout=subprocess.PIPE, text=True)
    Path({pids!r}).write_text(f"{{process.pid}} {{daemon.stdout.readline()}}")
    assert False
"""
WAITS = """\
import time
from pathlib import Path

def test_that_waits():
    Path({started!r}).touch()
    time.sleep(60)
"""
STATES = """\
import subprocess

def test_of_children():
    line = subprocess.check_output(["grep", "SigIgn", "/proc/self/status"], text=True)
    assert int(line.split()[1], 16) & 0b100_0000_0000_0111 == 0, line
"""


def run(folder: Path, test: str, *options: str) -> subprocess.Popen[str]:
    """Run a test file with this project's conftest.py, started by a shell that ignores signals."""
    (folder / "test_inner.py").write_text(test)
    command = ["sh", "-c", IGNORED, "sh", sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml")]
    command += [
        "--rootdir",
        str(ROOT),
        "--confcutdir",
        str(folder),
        "-p",
        "conftest",
        "--basetemp",
        str(folder / "tmp"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, *options, str(folder)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip


def is_alive(pid: str) -> bool:
    """Whether a process exists that is not a zombie: the init process decides when those vanish."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["alone", "with-workers"])
def test_failed_test_leaves_no_process(tmp_path: Path, options: tuple[str, ...]) -> None:
    process = run(tmp_path, LEAVES.format(pids=str(tmp_path / "pids")), *options)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1, output
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["alone", "with-workers"])
def test_children_start_with_default_signals(tmp_path: Path, options: tuple[str, ...]) -> None:
    process = run(tmp_path, STATES, *options)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output


def test_ctrl_c_ends_the_run(tmp_path: Path) -> None:
    process = run(tmp_path, WAITS.format(started=str(tmp_path / "started")))
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    assert re.search(r"^!+ KeyboardInterrupt !+$", output, flags=re.MULTILINE)


def test_processes_of_another_run_are_left_alone() -> None:
    with subprocess.Popen(["sleep", "600"], env=os.environ | {processes.MARK: "another"}) as process:
        assert processes.kill_marked("a third") == []
        assert process.poll() is None
        assert processes.kill_marked("another") == ["sleep 600 "]
    assert process.returncode == -signal.SIGKILL
