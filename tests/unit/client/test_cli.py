"""What the programs call themselves: the name by which the user has called them, also in commands to copy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT
from umccr_pcgr.client import cli

INSTALLED = Path(sys.executable).parent


@pytest.mark.parametrize(
    ("typed", "folder", "path", "expected"),
    [
        ("bin/pcgr-submit", ".", "bin", "pcgr-submit"),  # found through PATH
        ("{here}/bin/pcgr-submit", "other", "bin", "pcgr-submit"),
        ("{here}/bin/pcgr-submit", ".", "other", "bin/pcgr-submit"),
        ("{here}/bin/pcgr-submit", "bin", "other", "./pcgr-submit"),
        ("{here}/bin/pcgr-submit", "other", "other", "{here}/bin/pcgr-submit"),
        ("./bin/pcgr-submit", ".", "other", "./bin/pcgr-submit"),
        ("../bin/pcgr-submit", "other", "other", "../bin/pcgr-submit"),
        ("{here}/bin/pcgr-submit", ".", "impostor", "bin/pcgr-submit"),  # PATH has another program of that name
        ("-c", ".", "bin", "-c"),
    ],
)
def test_a_program_is_called_as_the_user_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, folder: str, path: str, expected: str
) -> None:
    here = tmp_path / "a folder"
    for name in ("bin", "other", "impostor"):
        (here / name).mkdir(parents=True)
    for name in ("bin", "impostor"):
        (here / name / "pcgr-submit").write_text("")
        (here / name / "pcgr-submit").chmod(0o755)
    monkeypatch.chdir(here / folder)
    monkeypatch.setenv("PATH", str(here / path))
    monkeypatch.setattr(sys, "argv", [typed.format(here=here)])
    assert cli.program_name() == expected.format(here=here)


@pytest.mark.parametrize("name", ["submit", "status"])
@pytest.mark.parametrize("option", ["--help", "--nonsense"])
def test_help_and_refusals_use_that_name(tmp_path: Path, name: str, option: str) -> None:
    environment = {"PATH": f"{INSTALLED}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    for command, folder in ((f"pcgr-{name}", tmp_path), (f"scripts/{name}", ROOT)):
        done = subprocess.run(
            ["sh", "-c", f"{command} {option}"],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if option == "--help":
            assert done.stdout.startswith(f"usage: {command} [")
            assert f"    {command} --bucket B" in done.stdout
            assert "%(" not in done.stdout
        else:
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr.startswith(f"{command}: ")
