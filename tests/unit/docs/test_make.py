"""What the Makefile, the inventory and the examples promise, run as they are shown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_the_inventorys_example_server_is_found(tmp_path: Path) -> None:
    text = (ROOT / "inventory/hosts.yml").read_text(encoding="utf-8")
    head, example = text.split("      hosts: {}\n")
    lines = [line.replace("# ", "", 1) for line in example.splitlines()[1:]]
    (tmp_path / "hosts.yml").write_text(head + "      hosts:\n" + "\n".join(lines) + "\n")
    command = ["ansible-playbook", "playbooks/site.yml", "-i", str(tmp_path / "hosts.yml"), "--list-hosts"]
    answer = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "hosts (1):\n      server.example.org" in answer.stdout


def test_spot_example_files_are_what_the_script_makes() -> None:
    answer = subprocess.run(
        [sys.executable, ROOT / "examples/spot/make.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [[], ["NAME=nosuch"], ["NAME=server"], ["NAME=spot site"]])
def test_make_bench_without_a_bench_lists_them(arguments: list[str]) -> None:
    answer = subprocess.run(["make", "bench", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 2 and answer.stdout == ""
    first = answer.stderr.splitlines()[0]
    found = arguments[0].partition("=")[2] if arguments else ""
    names = sorted(path.stem for path in (ROOT / "tests/bench").glob("*.py") if path.stem != "server")
    assert first == f"make bench: NAME: found '{found}', allowed one of: {' '.join(names)}"


def test_ci_runs_with_the_python_of_the_users() -> None:
    """`make` and .ci/run leave the choice to scripts/bootstrap."""
    for name in ("Makefile", ".ci/run"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"^[^#]*\bPYTHON\s*[:?]?=|python3", text, re.M), name
