"""The legs of the tests: which ones exist, their outcomes, and how an interrupted run ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness import legs
from harness.legs import Leg, Run
from support import ROOT

Make = Callable[..., Leg]


@pytest.fixture
def leg(tmp_path: Path) -> Make:
    """Return a function that creates a pytest leg from the source of its tests."""

    def make(name: str, text: str, **more: Any) -> Leg:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "test_it.py").write_text(textwrap.dedent(text))
        (folder / "pytest.ini").write_text("[pytest]\n")
        tests = ("-c", str(folder / "pytest.ini"), "-p", "no:cacheprovider", str(folder))
        return Leg(name, "something", **{"lane": "host", "tests": tests} | more)

    return make


def run(folder: Path, *chosen: Leg) -> tuple[int, dict[str, Any], list[legs.Result]]:
    """Run legs; return the exit code, outcomes by leg, and the results."""
    out = folder / "console"
    with out.open("w") as file:
        made = Run(Console(file=file, width=140), logs=folder / "logs", required=False)
        code = made.run_all(chosen)
    return code, {result.leg.name: result.outcome for result in made.results}, made.results


@pytest.mark.parametrize("name", ["packr", "molecule-nosuch"])
def test_unknown_leg_is_refused_in_one_line(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert legs.main([name, "lint"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith(f"LEG: found {name}, allowed lint sanity fast plays instance ")


def test_each_outcome(leg: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [
        leg("good", "def test_one(): pass"),
        leg("bad", "def test_one(): pass\ndef test_two(): assert False"),
        leg("absent", "import pytest\ndef test_one(): pytest.skip('no QEMU')"),
        leg("partly", "import pytest\ndef test_one(): pytest.skip('no QEMU')\ndef test_two(): pass"),
        leg("nothing", "def check(): pass"),
        leg("setup", "import pytest\n@pytest.fixture\ndef x(): raise OSError\ndef test_one(x): pass"),
        Leg("command", "something", "first", command=("sh", "-c", "exit 3")),
    ]
    code, outcomes, results = run(tmp_path, *chosen)
    assert code == 1
    assert outcomes == {
        "command": "failed", "good": "passed", "bad": "failed", "absent": "skipped", "partly": "passed", "nothing": "failed",
        "setup": "failed",
    }  # fmt: skip
    notes = {result.leg.name: result.note for result in results}
    assert notes["absent"] == "no QEMU"
    assert notes["bad"] == "test_two, 1 in all"
    assert notes["good"].startswith("slowest: test_one")
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {row["leg"]: row["outcome"] for row in last["legs"]} == outcomes
    assert [row["skipped"] for row in last["legs"] if row["leg"] == "partly"] == [1]
    shown = (tmp_path / "console").read_text()
    assert "assert False" in shown  # the reason of the failure is shown, not only logged
    assert "absent" in shown


def test_skipped_leg_fails_only_where_it_must_run(leg: Make, tmp_path: Path) -> None:
    text = "import pytest\ndef test_one(): pytest.skip('no QEMU')"
    code, _outcomes, results = run(tmp_path, leg("standard", text, standard=True), leg("other", text))
    assert code == 0
    strict = Run(Console(), required=True)
    assert {result.leg.name: strict.fails_the_run(result) for result in results} == {"standard": True, "other": False}


def test_lanes_run_in_parallel_after_the_first_lane(tmp_path: Path) -> None:
    def meet(mine: str, other: str) -> tuple[str, ...]:
        script = (
            f"[ -e first ] && touch {mine} && for i in $(seq 100); do [ -e {other} ] && exit; sleep 0.1; done; exit 1"
        )
        return ("sh", "-c", f"cd {tmp_path} && {script}")

    chosen = [
        Leg("a", "something", "host", command=meet("a", "b")),
        Leg("b", "something", "instances", command=meet("b", "a")),
        Leg("first", "something", "first", command=("touch", str(tmp_path / "first"))),
    ]
    assert run(tmp_path, *chosen)[1] == {"first": "passed", "a": "passed", "b": "passed"}


def test_process_left_running_does_not_block_the_run(tmp_path: Path) -> None:
    left = tmp_path / "pid"
    started = time.monotonic()
    try:
        assert run(tmp_path, Leg("a", "something", "host", command=("sh", "-c", f"sleep 60 & echo $! >{left}")))[0] == 0
        assert time.monotonic() - started < 30
    finally:
        os.kill(int(left.read_text()), signal.SIGKILL)


RUNNER = """
import sys
from pathlib import Path
from rich.console import Console
from harness.legs import Leg, Run
folder = Path(sys.argv[1])
legs = [Leg("long", "something", "host", ("-c", "/dev/null", "-p", "no:cacheprovider", str(folder / "test_long.py"))),
        Leg("next", "something", "host", command=("touch", str(folder / "next")))]
sys.exit(Run(Console(), logs=folder).run_all(legs))
"""
LONG = """
import os, pathlib, time, pytest
folder = pathlib.Path(__file__).parent
@pytest.fixture
def instance():
    (folder / "pid").write_text(str(os.getpid()))
    (folder / "up").touch()
    yield
    (folder / "down").touch()
def test_long(instance):
    time.sleep(60)
"""


def is_running(pid: int) -> bool:
    """Whether a process exists that is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_run_tears_down_its_legs(tmp_path: Path, number: int) -> None:
    """The run may have been started in any way: here as a background job of a script, which ignores SIGINT."""
    (tmp_path / "test_long.py").write_text(LONG)
    ignoring = ["env", "--ignore-signal=INT"]
    command = [*ignoring, sys.executable, "-c", RUNNER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            wait((tmp_path / "up").exists)
            process.send_signal(number)
            assert process.wait(30) == (-number if number == signal.SIGKILL else 130)
        finally:
            process.kill()
    pid = int((tmp_path / "pid").read_text())
    wait(lambda: not is_running(pid))
    assert (tmp_path / "down").exists()
    assert not (tmp_path / "next.log").exists()  # it was never started


def wait(done: Callable[[], bool]) -> None:
    """Wait until ``done`` is true, 30 seconds at most."""
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def covers(some: Leg, node: str) -> bool:
    """Whether a leg's arguments select a test."""
    return any(node.startswith(f"{name}{mark}") or node == name for name in some.tests for mark in ("::", "/"))


def unassigned(nodes: list[str], known: list[Leg]) -> list[str]:
    """Return the tests that are not in exactly one leg."""
    return [node for node in nodes if sum(covers(some, node) for some in known) != 1]


def test_every_slow_test_is_in_one_leg() -> None:
    files = [
        path for path in ROOT.glob("tests/**/test_*.py") if "mark.slow" in path.read_text() and path != Path(__file__)
    ]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q", "-m", "slow", *files]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    nodes = [line for line in done.stdout.splitlines() if "::" in line]
    assert len(nodes) > 50
    assert unassigned(nodes, legs.LEGS) == []
    without = [some for some in legs.LEGS if some.name != "molecule-upgrade"]
    assert unassigned(nodes, without) == [
        "tests/integration/test_molecule.py::test_scenario[upgrade]"
    ]  # negative control
    empty = [some.name for some in legs.LEGS if some.lane != "first" and not any(covers(some, node) for node in nodes)]
    assert empty == []
    assert set(ROOT.glob("tests/integration/test_*.py")) <= set(files)
