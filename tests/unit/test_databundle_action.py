"""The action of databundle: a large archive is brought apart from the connection, its progress shown; the answer is the module's."""

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
from pathlib import Path
from typing import Any

import pytest

from tests.unit.module_runner import ROOT

DATE = "20260620"
PACE = 4_000_000  # bytes a second from the server
SIZE = 60_000_000  # bytes; 15 s at that pace, three looks


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address of a slow server with an archive, and the archive's checksum."""
    folder = tmp_path_factory.mktemp("mirror")
    with tarfile.open(folder / "bundle.tgz", "w:gz", compresslevel=1) as tar:
        for name, body in {".PCGR_BUNDLE_VERSION": DATE.encode(), "big": random.Random(1).randbytes(SIZE)}.items():
            info = tarfile.TarInfo(f"data/grch38/{name}")
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    command = [sys.executable, ROOT / "tests/bench/server.py", folder, str(PACE), str(PACE)]
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        port = process.stdout.readline().strip()
        yield f"http://127.0.0.1:{port}", hashlib.sha256((folder / "bundle.tgz").read_bytes()).hexdigest()
        process.terminate()


def play(tmp_path: Path, url: str, sha256: str, *options: str) -> subprocess.CompletedProcess[str]:
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
    task = {"name": "Bring", "umccr.pcgr.databundle": arguments}
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": [task]}]))
    environment = os.environ | {"ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_ASYNC_DIR": str(tmp_path / "async")}
    return subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), *options, tmp_path / "play.yml"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


def test_progress_is_shown_and_the_answer_is_the_modules(tmp_path: Path, mirror: tuple[str, str]) -> None:
    predicted = play(tmp_path, *mirror, "--check")
    assert "changed=1" in predicted.stdout, predicted.stdout + predicted.stderr
    assert not (tmp_path / "root").exists()

    first = play(tmp_path, *mirror)
    assert "changed=1" in first.stdout, first.stdout + first.stderr
    shown = re.findall(
        rf"\[localhost\] bundle {DATE} grch38: +(\d+) % of 0\.1 GB, (\d+) MB/s, 0:\d\d min left", first.stdout
    )
    assert shown, first.stdout
    assert all(0 < int(percent) <= 100 and 1 <= int(speed) <= 8 for percent, speed in shown)
    assert (tmp_path / f"root/bundles/{DATE}/data/grch38/big").stat().st_size == SIZE
    assert not (tmp_path / "root/.databundle.progress").exists()
    assert not list((tmp_path / "async").glob("j*"))

    second = play(tmp_path, *mirror)
    assert "changed=0" in second.stdout, second.stdout + second.stderr
    assert "MB/s" not in second.stdout


def test_its_failure_is_the_modules_too(tmp_path: Path, mirror: tuple[str, str]) -> None:
    answer = play(tmp_path, mirror[0], "0" * 64)
    assert answer.returncode == 2
    assert f"expected {'0' * 64}" in answer.stdout + answer.stderr
    assert not list((tmp_path / "root").iterdir())
