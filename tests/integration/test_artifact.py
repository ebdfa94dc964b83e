"""What a user of Galaxy and PyPI gets: from an empty folder, with the built artifact and wheel alone, a sample is reported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import harness
from support import ROOT, gates

if TYPE_CHECKING:
    from support.region import Region

pytestmark = pytest.mark.slow

NAME = "pcgr-artifact"
REPORT_SECONDS = 600


@dataclass(frozen=True)
class User:
    """A person's empty working folder, and the programs and collections installed for them."""

    folder: Path
    programs: Path
    environment: dict[str, str]

    def run(self, name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run one of the installed programs in the working folder."""
        command = [self.programs / name, *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def user(region: Region, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    folder = tmp_path_factory.mktemp("user")
    for name in ("work", "home"):
        (folder / name).mkdir()
    venv.create(folder / "venv", with_pip=True, symlinks=True)
    programs = folder / "venv/bin"
    # From a copy: setuptools leaves a folder of built files beside its sources.
    shutil.copytree(ROOT / "python", folder / "source")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            folder,
            folder / "source",
        ],
        check=True,
    )
    (wheel,) = folder.glob("umccr_pcgr-*.whl")
    subprocess.run([programs / "pip", "install", "--quiet", f"{wheel}[client,spot]"], check=True)
    environment = region.environment | {
        "HOME": str(folder / "home"),
        "PATH": f"{programs}:{region.environment['PATH']}",
        "ANSIBLE_COLLECTIONS_PATH": str(folder / "collections"),
    }
    made = User(folder / "work", programs, environment)
    # The collections that ours depends on, as `ansible-galaxy collection install` would fetch them from Galaxy.
    gates.link_dependencies(folder / "collections")
    installed = made.run("ansible-galaxy", "collection", "install", "--offline", "--no-deps", gates.build())
    assert installed.returncode == 0, installed.stdout + installed.stderr
    yield made
    shutil.rmtree(folder / "venv")


def settings(region: Region) -> list[str]:
    """Options of the playbooks: the local region's variables, the key pair, names of this test."""
    more: dict[str, Any] = {"aws_name": NAME, "aws_bucket": NAME, "consumer_idle_seconds": 0}
    return ["-e", f"@{harness.REGION_VARIABLES}", "-e", json.dumps(region.variables | more)]


def test_the_playbook_provisions_and_the_commands_report(region: Region, user: User) -> None:
    played = user.run("ansible-playbook", "umccr.pcgr.aws", *settings(region))
    assert played.returncode == 0, played.stdout[-4000:] + played.stderr
    # What it prints at the end is a command that this user has.
    assert "umccr.pcgr.aws_teardown" in played.stdout
    assert "playbooks/" not in played.stdout.rpartition("Report the instance")[2]
    sample = ROOT / "examples/demo-000001-somatic.tar.gz"
    sent = user.run("pcgr-submit", "--bucket", NAME, "--release", "newest", sample)
    assert sent.returncode == 0, sent.stderr
    fetched = user.run(
        "pcgr-submit", "--bucket", NAME, "--fetch", "demo-000001-somatic", "--timeout", str(REPORT_SECONDS), "--unpack"
    )
    assert fetched.returncode == 0, fetched.stderr
    assert list(user.folder.rglob("*.html"))
    shown = user.run("pcgr-status", "--bucket", NAME, "--json")
    assert shown.returncode == 0, shown.stderr
    assert [sample["state"] for sample in json.loads(shown.stdout)["samples"]] == ["done"]


def test_the_spot_command_finds_the_installed_collection(user: User) -> None:
    examples = ROOT / "examples/spot"
    shown = user.run("pcgr-spot", "--now", "2026-11-23T00:00:00Z", "--history", examples / "prices.json")
    assert shown.returncode == 0, shown.stderr
    assert ".xlarge" in shown.stdout


def test_the_teardown_removes_what_was_made(region: Region, user: User) -> None:
    played = user.run("ansible-playbook", "umccr.pcgr.aws_teardown", *settings(region))
    assert played.returncode == 0, played.stdout[-4000:] + played.stderr
    reservations = region.client("ec2").describe_instances()["Reservations"]
    states = {instance["State"]["Name"] for reservation in reservations for instance in reservation["Instances"]}
    assert states == {"terminated"}
