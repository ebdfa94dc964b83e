"""Commands that need neither a cloud nor a root user run as the pages show them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT
from support.markdown import Shown, commands

BIN = Path(sys.executable).parent
SPOT = [shown for shown in commands(ROOT / "docs/spot.md") if shown.words[0] == "pcgr-spot"]
OFFLINE = [shown for shown in SPOT if "--history" in shown.words]


def run(shown: Shown, folder: Path, *more: str) -> str:
    """Run a shown command in a folder and return its output."""
    answer = subprocess.run(
        [BIN / shown.words[0], *shown.words[1:], *more],
        cwd=folder,
        env=os.environ | {"COLUMNS": "200", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout + answer.stderr


def test_the_readmes_command_for_a_server_of_ones_own_finds_it() -> None:
    (shown,) = [
        shown for shown in commands(ROOT / "README.md") if shown.words[:2] == ("ansible-playbook", "playbooks/site.yml")
    ]
    output = run(shown, ROOT, "--list-hosts")
    assert "hosts (1):\n      server.example.org" in output
    assert "no hosts matched" not in output


def test_the_readmes_inventory_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(all:\n.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "hosts.yml").write_text(text)
    shown = Shown(
        "README.md", ("ansible-playbook", "playbooks/site.yml", "-i", str(tmp_path / "hosts.yml"), "--list-hosts")
    )
    assert "hosts (2):" in run(shown, ROOT)


def test_there_are_spot_examples_without_an_account() -> None:
    assert len(OFFLINE) == 2


@pytest.mark.parametrize("shown", OFFLINE, ids=lambda shown: shown.words[-1])
def test_the_spot_examples_run(shown: Shown, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    output = run(shown, tmp_path)
    assert re.search(r"1\* +\S+\.xlarge +ap-southeast-2", output), output
    assert ("--plot" in shown.words) is (tmp_path / "out.png").exists()


def test_the_output_that_the_spot_page_shows_is_that_of_its_first_command(tmp_path: Path) -> None:
    """The page leaves two columns and most rows out."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    output = run(OFFLINE[0], tmp_path)
    (page,) = re.findall(
        r"```text\n(10 samples of .*?)```", (ROOT / "docs/spot.md").read_text(encoding="utf-8"), re.DOTALL
    )
    rows = [line.split() for line in output.splitlines()]
    for line in filter(None, page.splitlines()):
        words = line.split()
        assert any(set(words) <= set(row) for row in rows), line


def test_every_file_that_the_spot_examples_read_is_shipped_or_fetched() -> None:
    fetched = {Path(shown.words[-1]).name for shown in commands(ROOT / "docs/spot.md") if shown.words[0] == "curl"}
    for shown in SPOT:
        for option, value in zip(shown.words, shown.words[1:], strict=False):
            if option in ("--history", "--advisor", "--on-demand"):
                assert (ROOT / value).is_file() or value in fetched, value


def test_the_spot_example_files_are_what_the_script_makes() -> None:
    answer = subprocess.run(
        [sys.executable, ROOT / "examples/spot/make.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stderr) == (0, "")
