"""The action of data and runtimes: what is much is brought apart from the connection, its progress shown; the answer is the module's."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support import ROOT
from support.conda_channel import SOURCE, lock, package
from support.docker_stand_in import DOCKER, ID

pytestmark = pytest.mark.plays

DATE = "20260620"
PACE = 4_000_000  # bytes a second from the server
SIZE = 60_000_000  # bytes; 15 s at that pace, three looks


@contextmanager
def slow_server(folder: Path) -> Iterator[str]:
    """Address of a slow server of the files in `folder`."""
    command = [sys.executable, ROOT / "tests/bench/server.py", folder, str(PACE), str(PACE)]
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address of a slow server with an archive, and the archive's checksum."""
    folder = tmp_path_factory.mktemp("mirror")
    with tarfile.open(folder / "bundle.tgz", "w:gz", compresslevel=1) as tar:
        for name, body in {".PCGR_BUNDLE_VERSION": DATE.encode(), "big": random.Random(1).randbytes(SIZE)}.items():
            info = tarfile.TarInfo(f"data/grch38/{name}")
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    with slow_server(folder) as url:
        yield url, hashlib.sha256((folder / "bundle.tgz").read_bytes()).hexdigest()


def play(
    tmp_path: Path, tasks: dict[str, dict[str, Any]], *options: str, path: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the modules `tasks` with their arguments."""
    listed = [{"name": name, f"umccr.pcgr.{name}": arguments} for name, arguments in tasks.items()]
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": listed}]))
    environment = os.environ | {"ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_ASYNC_DIR": str(tmp_path / "async")}
    environment["PATH"] = f"{path}:{environment['PATH']}"
    return subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), *options, tmp_path / "play.yml"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


def bundle(tmp_path: Path, url: str, sha256: str) -> dict[str, dict[str, Any]]:
    entry: dict[str, Any] = {"file": "bundle.tgz", "url": f"{url}/bundle.tgz", "sha256": sha256, "approx_gb": 7.1}
    release = {
        "release": "test",
        "assemblies": ["grch38"],
        "bundle": {
            "date": DATE,
            "version_file": "data/{assembly}/.PCGR_BUNDLE_VERSION",
            "version_text": DATE,
            "archives": {"grch38": entry},
        },
        "vep": {"release": 0, "location": "none", "archives": {}},
    }
    arguments = {"root": str(tmp_path / "root"), "release": release, "assemblies": ["grch38"]}
    arguments["checksums"] = str(tmp_path / "checksums.json")
    return {"databundle": arguments}


def test_progress_is_shown_and_the_answer_is_the_modules(tmp_path: Path, mirror: tuple[str, str]) -> None:
    tasks = bundle(tmp_path, *mirror)
    predicted = play(tmp_path, tasks, "--check")
    assert "changed=1" in predicted.stdout, predicted.stdout + predicted.stderr
    assert not (tmp_path / "root").exists()

    first = play(tmp_path, tasks)
    assert "changed=1" in first.stdout, first.stdout + first.stderr
    shown = re.findall(
        rf"\[localhost\] bundle {DATE} grch38: +(\d+) % of 0\.1 GB, (\d+) MB/s, 0:\d\d min left", first.stdout
    )
    assert shown, first.stdout
    assert all(0 < int(percent) <= 100 and 1 <= int(speed) <= 8 for percent, speed in shown)
    assert (tmp_path / f"root/bundles/{DATE}/data/grch38/big").stat().st_size == SIZE
    assert not (tmp_path / "root/.umccr.pcgr.progress").exists()
    assert not list((tmp_path / "async").glob("j*"))

    second = play(tmp_path, tasks)
    assert "changed=0" in second.stdout, second.stdout + second.stderr
    assert "MB/s" not in second.stdout


def test_its_failure_is_the_modules_too(tmp_path: Path, mirror: tuple[str, str]) -> None:
    answer = play(tmp_path, bundle(tmp_path, mirror[0], "0" * 64))
    assert answer.returncode == 2
    assert f"expected {'0' * 64}" in answer.stdout + answer.stderr
    assert not list((tmp_path / "root").iterdir())


def test_runtimes_are_shown_and_cost_one_call_when_they_are_there(tmp_path: Path) -> None:
    """An image of unknown size and conda packages. What is there already is asked for once, and so is a prediction."""
    (tmp_path / "bin").mkdir()
    for name, content in {"images": "{}", "driver": "overlay2", "registry": ID, "slow": "4"}.items():
        (tmp_path / "bin" / name).write_text(content)
    linker = f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(SOURCE)!r})\n"
    linker += "from pcgr_conda_link.cli import main\nmain()\n"
    for name, content in {"docker": DOCKER, "link": linker}.items():
        (tmp_path / "bin" / name).write_text(content)
        (tmp_path / "bin" / name).chmod(0o755)
    folder = tmp_path / "channel"
    lines = [package(folder, name, {"data": random.Random(name).randbytes(SIZE // 3)}) for name in ("r-one", "r-two")]
    (tmp_path / "pcgr.lock").write_text(text := lock("https://channels.example.org", lines))
    locks = {"pcgr": {"file": "pcgr.lock", "sha256": hashlib.sha256(text.encode()).hexdigest()}}
    kept = {"path": str(tmp_path / "opt")}
    reference = "127.0.0.1:9/umccr/tool:1"  # the discard port; nothing listens there
    with slow_server(folder / "linux-64") as url:
        conda = {"locks": locks, "mirror_url": f"file://{tmp_path}", "conda_mirror_url": url}
        conda |= {"linker": str(tmp_path / "bin/link"), "record": str(tmp_path / "conda.json"), "connections": 1}
        image = {"reference": reference, "record": str(tmp_path / "image.json"), "scratch": str(tmp_path)}
        image |= {"checksums": str(tmp_path / "lib/checksums.json")}
        tasks = {"runtime_image": image | kept, "runtime_conda": conda | kept}

        predicted = play(tmp_path, tasks, "--check", "-vvv", path=str(tmp_path / "bin"))
        assert "changed=2" in predicted.stdout, predicted.stdout + predicted.stderr
        assert predicted.stdout.count("Using module file") == len(tasks)

        first = play(tmp_path, tasks, path=str(tmp_path / "bin"))
        assert "changed=2" in first.stdout, first.stdout + first.stderr
        assert re.search(rf"\[localhost\] {reference}: [0-2] of 3 layers, 0:\d\d min\n", first.stdout), first.stdout
        told = re.search(r"\[localhost\] conda packages: [01] of 2 packages, (\d+) MB/s, 0:\d\d min\n", first.stdout)
        assert told, first.stdout
        assert 1 <= int(told[1]) <= 8
        assert not list(tmp_path.rglob("*.progress"))

        second = play(tmp_path, tasks, "-vvv", path=str(tmp_path / "bin"))
        assert "changed=0" in second.stdout, second.stdout + second.stderr
        assert second.stdout.count("Using module file") == len(tasks)
