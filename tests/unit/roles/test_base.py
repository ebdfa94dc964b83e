"""Role base before it changes anything: which systems it takes, and what it calls packages there.

No machine is needed: each host of the play is this one, become by a `sudo` that only puts another `cat` on the PATH.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import ROOT

LIST = "supported are debian 12, debian 13, ubuntu 22.04, ubuntu 24.04"
# The fields that tell, as each system's own file has them.
SYSTEMS = {
    "debian-12": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n',
    "debian-13": 'VERSION_ID="13"\nID=debian\n',
    "ubuntu-22": 'VERSION_ID="22.04"\nID=ubuntu\nID_LIKE=debian\n',
    "ubuntu-24": 'VERSION_ID="24.04"\r\nID=ubuntu\r\nID_LIKE=debian\r\n',  # as over a terminal
    "debian-11": 'VERSION_ID="11"\nID=debian\n',
    "debian-testing": "ID=debian\n",
    "ubuntu-20": 'VERSION_ID="20.04"\nID=ubuntu\nID_LIKE=debian\n',
    "mint": 'ID=linuxmint\nID_LIKE="ubuntu debian"\nVERSION_ID="22"\n',
    "rocky": 'ID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.4"\n',
    "amazon": 'ID="amzn"\nVERSION_ID="2023"\nPLATFORM_ID="platform:al2023"\n',
    "alpine": "ID=alpine\nVERSION_ID=3.20.1\n",
    "silent": "",
}
REFUSED = {
    "debian-11": "debian 11",
    "debian-testing": "debian of no version",
    "ubuntu-20": "ubuntu 20.04",
    "mint": "linuxmint 22",
    "rocky": "rocky 9.4",
    "amazon": "amzn 2023",
    "alpine": "alpine 3.20.1",
    "silent": "an unknown system of no version",
}


def play(folder: Path, packages: list[str]) -> dict[str, dict[str, Any]]:
    """Run the role's first tasks on a host per system; each host's task results by task name."""
    hosts = {}
    for name, text in SYSTEMS.items():
        programs = folder / name
        programs.mkdir()
        (programs / "os-release").write_text(text, newline="")
        for program, script in {
            "cat": f"exec /bin/cat {programs}/os-release",
            "sudo": f'while [ "$1" != /bin/sh ]; do shift; done; PATH={programs}:/usr/bin:/bin exec "$@"',
        }.items():
            (programs / program).write_text(f"#!/bin/sh\n{script}\n")
            (programs / program).chmod(0o755)
        hosts[name] = {"ansible_become_exe": str(programs / "sudo")}
    role = {"name": "umccr.pcgr.base", "tasks_from": "preflight"}
    tasks = [
        {"ansible.builtin.import_role": role},
        {"ansible.builtin.debug": {"var": "__base_wanted"}, "name": "Say what is wanted"},
    ]
    book = {"hosts": "all", "connection": "local", "gather_facts": False, "vars": {"base_packages": packages}}
    book |= {"become": True, "tasks": tasks}
    (folder / "inventory.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    (folder / "play.json").write_text(json.dumps([book]))
    answer = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", folder / "inventory.json", folder / "play.json"],
        cwd=ROOT,
        env=os.environ | {"ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", "ANSIBLE_BECOME_ALLOW_SAME_USER": "True"},
        capture_output=True,
        text=True,
        check=False,
    )
    results: dict[str, dict[str, Any]] = {name: {} for name in SYSTEMS}
    for one in json.loads(answer.stdout[answer.stdout.index("{") :])["plays"]:
        for task in one["tasks"]:
            for host, result in task["hosts"].items():
                results[host][task["task"]["name"].rpartition(" : ")[2]] = result
    return results


REFUSE = "Refuse systems that are not supported"


@pytest.fixture(scope="module")
def preflight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return play(tmp_path_factory.mktemp("preflight"), ["docker.io", "jq", "tabix"])


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name not in REFUSED])
def test_supported_systems_are_taken(preflight: dict[str, dict[str, Any]], name: str) -> None:
    assert not preflight[name][REFUSE].get("failed")


@pytest.mark.parametrize("name", REFUSED)
def test_other_systems_are_refused_at_once_with_the_list(preflight: dict[str, dict[str, Any]], name: str) -> None:
    assert preflight[name][REFUSE]["msg"] == f"{REFUSED[name]} is not supported; {LIST}"
    tasks = [task for task in preflight[name] if not task.startswith("Validating arguments")]
    assert tasks == ["Read which system the host runs", REFUSE]


def test_packages_have_the_names_of_their_system(preflight: dict[str, dict[str, Any]]) -> None:
    plain = {"docker.io", "jq", "tabix"}
    wanted = {
        name: set(preflight[name]["Say what is wanted"]["__base_wanted"]) for name in SYSTEMS if name not in REFUSED
    }
    assert wanted == {
        "debian-12": plain,
        "debian-13": plain | {"docker-cli"},  # else there is an engine, and nothing to speak to it with
        "ubuntu-22": plain,
        "ubuntu-24": plain,
    }
