"""The molecule scenarios, each wholly: check mode on the clean machine, converge, idempotence, check again, the look from outside.

They use the docker daemon that answers; where none does, one of their own is started, and ended.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness
from harness import containers

pytestmark = pytest.mark.slow

SCENARIOS = sorted(path.parent.name for path in harness.ROOT.glob("molecule/*/molecule.yml"))
MACHINE = r"^pcgr-{scenario} +: .*changed=(\d+)"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of docker's clients."""
    if subprocess.run(["docker", "version"], check=False, capture_output=True).returncode == 0:
        yield dict(os.environ)
        return
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        pytest.skip("no docker daemon answers, and none can be started: that needs root and the package docker.io")
    folder = tmp_path_factory.mktemp("dockerd")
    environment = {**os.environ, "DOCKER_HOST": f"unix://{folder}/socket"}
    options = [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid"]
    # Each scenario has its network; without a bridge of its own, this daemon is in no other's way.
    options += [f"--host={environment['DOCKER_HOST']}", "--bridge=none"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", "dockerd", *options], stdout=log, stderr=log)
    try:
        for _unused in range(60):
            if subprocess.run(["docker", "version"], check=False, capture_output=True, env=environment).returncode == 0:
                break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.5)
        yield environment
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)  # gigabytes


def stages(output: list[tuple[float, str]], end: float) -> list[tuple[str, float, str]]:
    """Name, seconds and text of each stage of a run, whose lines came at the times given."""
    found: list[tuple[str, float, list[str]]] = []
    for when, line in output:
        if begins := re.match(r"INFO +\[\S+ > (\w+)\] Executing$", line):
            found.append((begins[1], when, []))
        elif found:
            found[-1][2].append(line)
    ends = [when for _unused, when, _unused in found[1:]] + [end]
    return [(name, until - when, "\n".join(text)) for (name, when, text), until in zip(found, ends, strict=True)]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario: str, daemon: dict[str, str]) -> None:
    if scenario.startswith("ubuntu") and not containers.UBUNTU_KEYS.is_file():
        pytest.skip(f"{containers.UBUNTU_KEYS} is not here (package ubuntu-keyring, which Ubuntu has)")
    command = [Path(sys.executable).parent / "molecule", "test", "--scenario-name", scenario]
    environment = {**daemon, "NO_COLOR": "1", "COLUMNS": "160"}
    output: list[tuple[float, str]] = []
    with subprocess.Popen(
        command, cwd=harness.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            output.append((time.monotonic(), line.rstrip("\n")))
    said = "\n".join(line for _unused, line in output)
    assert process.returncode == 0, said
    ran = stages(output, time.monotonic())
    print(f"{scenario}:", ", ".join(f"{name} {seconds:.0f} s" for name, seconds, _unused in ran))
    first = {name: seconds for name, seconds, _unused in ran}
    print(
        f"{scenario}: the second run of the site play took {first['idempotence'] / first['converge']:.2f} of the first"
    )

    def changes(text: str) -> int:
        return int(re.findall(MACHINE.format(scenario=scenario), text, flags=re.MULTILINE)[-1])

    before, after = (changes(text) for name, _unused, text in ran if name == "check")
    converged = changes(next(text for name, _unused, text in ran if name == "converge"))
    assert converged > 0
    assert before > 0  # check mode on the machine as it was predicts; it does not only skip
    assert after == 0
    assert re.search(r"\d+ passed", said)
