"""The spot command finds the collection where Ansible would, and says how to install it where it is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from support import ROOT


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder of collections that holds this one, as `ansible-galaxy collection install -p` leaves it."""
    target = tmp_path / "collections/ansible_collections/umccr/pcgr"
    shutil.copytree(ROOT / "plugins", target / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "meta", target / "meta")
    (target / "MANIFEST.json").write_text('{"collection_info": {"version": "1.0.0"}}')
    return tmp_path / "collections"


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A Python environment with the libraries of this one, but not with the link to this checkout's collection."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    (ours,) = (Path(sys.prefix) / "lib").glob("python*/site-packages")
    for entry in ours.iterdir():
        if entry.name != "ansible_collections":
            (site / entry.name).symlink_to(entry)
    return tmp_path / "venv/bin/python"


def spot(python: Path, folder: Path, collections: Path) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": os.environ["PATH"], "HOME": str(folder), "ANSIBLE_COLLECTIONS_PATH": str(collections)}
    command = [python, "-c", "from umccr_pcgr.spot.cli import main; main()", "--help"]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_found_where_ansible_finds_it(environment: Path, installed: Path, tmp_path: Path) -> None:
    done = spot(environment, tmp_path, installed)
    assert done.returncode == 0, done.stderr
    assert "Chooses spot capacity" in done.stdout


def test_not_installed_is_one_line(environment: Path, tmp_path: Path) -> None:
    done = spot(environment, tmp_path, tmp_path / "nowhere")
    assert done.returncode == 1
    assert "ansible-galaxy collection install umccr.pcgr" in done.stderr.strip().splitlines()[-1]
