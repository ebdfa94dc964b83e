"""Commands that README.md, docs/spot.md and the Makefile show, run as they are shown."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def commands(document: str, start: str) -> list[list[str]]:
    """The shell commands of a document that begin with `start`, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith(start)]
    return [shlex.split(line, comments=True) for line in lines]


def test_the_readmes_command_for_an_own_server_finds_it() -> None:
    (command,) = commands("README.md", "ansible-playbook playbooks/site.yml")
    answer = subprocess.run(
        [*command, "--list-hosts"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert "hosts (1):\n      server.example.org" in answer.stdout
    assert "no hosts matched" not in answer.stdout + answer.stderr


def test_the_inventorys_example_server_is_found(tmp_path: Path) -> None:
    text = (ROOT / "inventory/hosts.yml").read_text(encoding="utf-8")
    head, example = text.split("      hosts: {}\n")
    lines = [line.replace("# ", "", 1) for line in example.splitlines()[1:]]
    (tmp_path / "hosts.yml").write_text(head + "      hosts:\n" + "\n".join(lines) + "\n")
    command = ["ansible-playbook", "playbooks/site.yml", "-i", str(tmp_path / "hosts.yml"), "--list-hosts"]
    answer = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "hosts (1):\n      server.example.org" in answer.stdout


OFFLINE = [command for command in commands("docs/spot.md", "scripts/spot_price") if "--history" in command]


def test_there_are_spot_examples_that_need_no_account() -> None:
    assert len(OFFLINE) == 2


@pytest.mark.parametrize("command", OFFLINE, ids=lambda command: command[-1])
def test_the_spot_examples_run(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    answer = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert re.search(r"1\* +\S+\.xlarge +ap-southeast-2", answer.stdout), answer.stdout
    assert ("--plot" in command) is (tmp_path / "out.png").exists()


def test_every_file_that_the_spot_examples_read_is_shipped_or_fetched() -> None:
    blocks = (ROOT / "docs/spot.md").read_text(encoding="utf-8")
    for command in commands("docs/spot.md", "scripts/spot_price"):
        for option, value in itertools.pairwise(command):
            if option in ("--history", "--advisor", "--on-demand"):
                assert (ROOT / value).is_file() or re.search(
                    rf"^curl -O https://\S+/{re.escape(value)}\b", blocks, re.M
                ), value


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
