"""Lookup pure_wheel and module python_app: same sources, same bytes; installed once; a wrong hash or a cut is noticed."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleError

from support import ROOT
from support.module_runner import load, run

PROJECT = """
[project]
name = "tiny-app"
requires-python = ">=3.10"
dynamic = ["version"]
[project.scripts]
tiny-app = "tiny_app.cli:main"
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    package = folder / "src/tiny_app"
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT)
    (package / "__init__.py").write_text('"""Tiny."""\n\n__version__ = "1.2"\n')
    (package / "cli.py").write_text("def main():\n    print('tiny runs')\n")
    return folder


def pack(source: Path) -> dict[str, Any]:
    wheel: dict[str, Any] = load("lookup.pure_wheel").wheel(source)
    return wheel


def test_same_sources_same_bytes(source: Path) -> None:
    first = pack(source)
    (source / "src/tiny_app/__pycache__").mkdir()
    (source / "src/tiny_app/__pycache__/x.pyc").write_bytes(b"x")
    (source / "src/tiny_app/cli.py").touch()
    assert pack(source) == first
    (source / "src/tiny_app/cli.py").write_text("def main():\n    print('other')\n")
    assert pack(source)["sha256"] != first["sha256"]


def test_wheel_says_what_it_is(source: Path) -> None:
    answer = pack(source)
    match = re.fullmatch(r"tiny_app-(1\.2\+[0-9a-f]{12})-py3-none-any\.whl", answer["name"])
    assert match
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(answer["content"]))) as wheel:
        metadata = wheel.read(f"tiny_app-{match[1]}.dist-info/METADATA").decode()
        assert f"Version: {match[1]}" in metadata
        assert "Requires-Python: >=3.10" in metadata
        assert "tiny-app = tiny_app.cli:main" in wheel.read(f"tiny_app-{match[1]}.dist-info/entry_points.txt").decode()


def test_folder_without_a_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnsibleError, match=f"{tmp_path}: cannot be packed"):
        pack(tmp_path)


def install(path: Path, packed: dict[str, Any], **more: Any) -> dict[str, Any]:
    arguments = {"path": str(path), "wheel": packed, "requirements": "\n"}
    return run("python_app", **(arguments | {"find_links": str(path.parent), "python": sys.executable} | more))


def test_installed_once_and_again_after_a_change(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "env"
    wheel = pack(source)
    assert install(path, wheel, check=True)["changed"] is True
    assert not path.exists()
    assert install(path, wheel)["changed"] is True
    assert subprocess.run([path / "bin/tiny-app"], capture_output=True, text=True, check=True).stdout == "tiny runs\n"
    again = install(path, wheel)
    assert (again["changed"], again["diff"]["before"]) == (False, again["diff"]["after"])
    (source / "src/tiny_app/cli.py").write_text("def main():\n    print('newer')\n")
    newer = install(path, pack(source))
    assert (newer["changed"], newer["diff"]["before"]) == (True, again["installed"])
    assert newer["diff"]["after"] == newer["installed"] != again["installed"]
    assert subprocess.run([path / "bin/tiny-app"], capture_output=True, text=True, check=True).stdout == "newer\n"


def test_what_has_no_right_hash_is_refused_and_not_taken_for_installed(source: Path, tmp_path: Path) -> None:
    path, wheel = tmp_path / "env", pack(source)
    for wrong in ({"wheel": wheel | {"sha256": "0" * 64}}, {"requirements": "tiny-dependency==1\n"}):
        answer = install(path, wheel, **wrong)
        assert answer["failed"]
        assert "hash" in answer["msg"].lower()
        assert "\n" not in answer["msg"]
        assert not (path / ".umccr.pcgr.json").exists()
    assert install(path, wheel)["changed"] is True


def test_wheel_of_some_packages(source: Path) -> None:
    """Subpackages with their parents, one extra's dependencies, one command."""
    for name in ("one", "two"):
        (source / f"src/tiny_app/{name}").mkdir()
        (source / f"src/tiny_app/{name}/__init__.py").write_text(f'"""{name}"""\n')
    (source / "pyproject.toml").write_text(
        PROJECT
        + 'other = "tiny_app.two:main"\n\n[project.optional-dependencies]\nmore = ["rich>=13"]\nrest = ["numpy"]\n'
    )
    options = {"packages": ["tiny_app.one"], "extra": "more", "scripts": ["tiny-app"]}
    answer = load("lookup.pure_wheel").wheel(source, **options)
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(answer["content"]))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (info,) = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
        metadata, commands = (wheel.read(f"{info}/{name}").decode() for name in ("METADATA", "entry_points.txt"))
    assert names == {"tiny_app/__init__.py", "tiny_app/one/__init__.py"}
    assert "Requires-Dist: rich>=13" in metadata
    assert "numpy" not in metadata
    assert commands == "[console_scripts]\ntiny-app = tiny_app.cli:main\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packages": ["tiny_app.nosuch"]}, "no src/tiny_app/nosuch/__init__.py"),
        ({"extra": "nosuch"}, "extra: found 'nosuch', allowed none"),
        ({"scripts": ["nosuch"]}, "scripts: found 'nosuch', allowed tiny-app"),
    ],
)
def test_wheel_of_what_is_not_there_is_refused(source: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AnsibleError, match=re.escape(message)):
        load("lookup.pure_wheel").wheel(source, **options)


def test_the_wheel_of_a_target_holds_samples_and_consumer_only() -> None:
    """As roles/consumer asks for it; nothing in it imports what is not in it."""
    options = {"packages": ["umccr_pcgr.samples", "umccr_pcgr.consumer"], "extra": "consumer"}
    answer = load("lookup.pure_wheel").wheel(ROOT / "python", scripts=["pcgr-consumer"], **options)
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(answer["content"]))) as wheel:
        sources = {name: wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".py")}
    assert {name.split("/")[1] for name in sources} == {"__init__.py", "consumer", "samples"}
    assert not [name for name, text in sources.items() if re.search(r"umccr_pcgr\.(client|spot)|ansible", text)]
