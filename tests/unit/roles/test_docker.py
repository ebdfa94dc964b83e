"""Role docker refuses what the engine would not start with; check mode on this machine, nothing is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT


def configure(folder: Path, mirrors: list[str]) -> subprocess.CompletedProcess[str]:
    tasks = [{"ansible.builtin.import_role": {"name": "umccr.pcgr.docker", "tasks_from": "configure"}}]
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
    play["vars"] = {"docker_registry_mirrors": mirrors, "ansible_python_interpreter": sys.executable}
    (folder / "play.json").write_text(json.dumps([play]))
    command = [Path(sys.executable).parent / "ansible-playbook", "--check", "-i", "localhost,", folder / "play.json"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("mirror", ["https://m.example.org/path", "m.example.org", "http://m/?q", "ftp://m"])
def test_a_mirror_that_the_engine_does_not_take_is_refused_by_name(tmp_path: Path, mirror: str) -> None:
    done = configure(tmp_path, ["https://good.example.org", mirror])
    assert done.returncode == 2
    assert f"docker_registry_mirrors: found {mirror}; allowed are" in " ".join(
        done.stdout.split() + done.stderr.split()
    )


def test_mirrors_that_it_takes_are_taken(tmp_path: Path) -> None:
    done = configure(tmp_path, ["https://good.example.org", "http://127.0.0.1:5000/"])
    assert "failed=0" in done.stdout, done.stdout
