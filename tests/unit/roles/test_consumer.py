"""What the consumer's unit may do, by kind of runtime; and the release that the role refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import ROOT

ROLE = ROOT / "roles/consumer"
KINDS = ("docker", "conda", "apptainer")
# Each of them mounts something over a part of /proc, and then the kernel lets no user namespace have a /proc of its own.
OVER_PROC = {"ProtectKernelTunables=yes", "ProtectKernelLogs=yes", "ProtectHostname=yes"}


def play(folder: Path, tasks: list[dict[str, Any]], **play: Any) -> subprocess.CompletedProcess[str]:
    """Run `tasks` on this machine."""
    path = folder / "play.yml"
    path.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks, **play}]))
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", "-c", "local", path]
    command += ["-e", f"ansible_python_interpreter={sys.executable}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The lines of the unit, by kind of runtime."""
    folder = tmp_path_factory.mktemp("units")
    source = ROLE / "templates/etc/systemd/system/pcgr-consumer.service.j2"
    tasks = [
        {
            "ansible.builtin.template": {"src": str(source), "dest": f"{folder}/{kind}", "mode": "0644"},
            "vars": {"consumer_runtime_kind": kind},
        }
        for kind in KINDS
    ]
    done = play(folder, tasks, vars_files=[str(ROLE / "defaults/main.yml"), str(ROLE / "vars/main.yml")])
    assert done.returncode == 0, done.stdout
    return {kind: (folder / kind).read_text().splitlines() for kind in KINDS}


def test_only_docker_needs_docker(units: dict[str, list[str]]) -> None:
    for kind, lines in units.items():
        assert ("SupplementaryGroups=docker" in lines) is (kind == "docker")
        assert ("Requires=docker.service" in lines) is (kind == "docker")
        assert ("RestrictNamespaces=yes" in lines) is (kind == "docker")
        assert ("DeviceAllow=/dev/fuse rw" in lines) is (kind == "apptainer")
        assert ("PrivateDevices=yes" in lines) is (kind != "apptainer")
        assert {"NoNewPrivileges=yes", "CapabilityBoundingSet=", "ProtectSystem=strict", "ProtectProc=invisible"} < set(
            lines
        )


def test_who_makes_namespaces_sees_all_of_proc_and_is_bounded(units: dict[str, list[str]]) -> None:
    assert set(units["docker"]) > OVER_PROC
    for kind in ("conda", "apptainer"):
        assert not OVER_PROC & set(units[kind])
        assert {"MemoryMax=6G", "CPUQuota=200%", "TasksMax=512", "OOMPolicy=continue"} < set(units[kind])


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, set()),
        ({"consumer_max_age_hours": 24}, set()),
        ({"consumer_poweroff_when_drained": True}, {"pcgr-drained.path"}),
        (
            {"consumer_poweroff_when_drained": True, "consumer_max_age_hours": 24},
            {"pcgr-drained.path", "pcgr-max-age.timer"},
        ),
    ],
)
def test_a_host_is_powered_off_only_when_asked_for(tmp_path: Path, settings: dict[str, Any], wanted: set[str]) -> None:
    source = ROLE / "templates/etc/systemd/system/pcgr-consumer.service.j2"
    task = {"ansible.builtin.template": {"src": str(source), "dest": f"{tmp_path}/unit", "mode": "0644"}}
    files = [str(ROLE / "defaults/main.yml"), str(ROLE / "vars/main.yml")]
    done = play(tmp_path, [task | {"vars": settings}], vars_files=files)
    assert done.returncode == 0, done.stdout
    (wants,) = [line for line in (tmp_path / "unit").read_text().splitlines() if line.startswith("Wants=")]
    assert set(wants.partition("=")[2].split()) - {"network-online.target"} == wanted


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({}, True),
        ({"consumer_queue_kind": "spool"}, False),
        ({"consumer_queue_region": "eu-west-2"}, False),
        ({"aws_region": "eu-west-2"}, False),
    ],
)
def test_no_region_of_a_queue_is_assumed(tmp_path: Path, settings: dict[str, Any], refused: bool) -> None:
    role = {"name": "umccr.pcgr.consumer", "tasks_from": "queue"}
    done = play(tmp_path, [{"ansible.builtin.include_role": role}], vars=settings)
    assert (done.returncode != 0) is refused, done.stdout
    assert ("consumer_queue_region: found none, allowed " in " ".join(done.stdout.split())) is refused


@pytest.mark.parametrize("kind", KINDS)
def test_systemd_knows_every_setting(units: dict[str, list[str]], tmp_path: Path, kind: str) -> None:
    elsewhere = ("Requires=", "After=", "Wants=", "ExecStart=")
    text = "\n".join(line for line in units[kind] if not line.startswith(elsewhere))
    text = text.replace("[Service]", "[Service]\nExecStart=/bin/true")
    unit = tmp_path / "pcgr-consumer.service"
    for content, said in ((text, ""), (text.replace("ProtectClock=", "ProtectClocks="), "ProtectClocks")):
        unit.write_text(content)
        done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
        assert done.stderr == "" if not said else said in done.stderr  # the second: negative control


@pytest.mark.parametrize(("release", "refused"), [("0.9.2", True), ("1.0.0", False)])
def test_a_release_whose_samples_cannot_be_reported_is_refused_first(
    tmp_path: Path, release: str, refused: bool
) -> None:
    role = {"name": "umccr.pcgr.consumer", "tasks_from": "preflight"}
    done = play(tmp_path, [{"ansible.builtin.include_role": role}], vars={"pcgr_release": release})
    assert (done.returncode != 0) is refused, done.stdout
    assert ("its command starts docker itself" in " ".join(done.stdout.split())) is refused
