"""What may import what (docs/design.md, layout): imports point downwards, and each module has one name."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import ROOT

COLLECTION = "ansible_collections.umccr.pcgr"
# Part of the project -> the parts of the project that it may import, itself aside.
ALLOWED: dict[str, set[str]] = {
    "plugins": set(),
    "samples": set(),
    "consumer": {"samples"},
    # Options of samples are checked against the releases that the collection knows.
    "client": {"samples", "python", "plugins"},
    "spot": {"client", "python", "plugins"},
    "python": {"plugins"},
    "conda_link": set(),
    "rehearsal": {"localcloud"},
    "localcloud": set(),
    "harness": {"localcloud", "rehearsal", "client", "samples"},
    "scripts": {"client", "spot", "harness"},
}
FOLDERS = {
    "plugins": "plugins",
    **{name: f"python/src/umccr_pcgr/{name}" for name in ("samples", "consumer", "client", "spot")},
    "python": "python/src/umccr_pcgr",
    "conda_link": "roles/runtime/files/pcgr_conda_link/src",
    **{name: f"testbed/{name}" for name in ("rehearsal", "localcloud", "harness")},
    "scripts": "scripts",
}


def sources(part: str) -> list[Path]:
    """The Python files of a part; programs in scripts/ have no ending."""
    folder = ROOT / FOLDERS[part]
    if part == "scripts":
        return [
            path
            for path in folder.iterdir()
            if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env python3")
        ]
    return sorted(folder.glob("*.py") if part == "python" else folder.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Absolute names of the modules that a file imports, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def part_of(module: str) -> str | None:
    """The part of the project that a module belongs to, None if unrelated."""
    first, _dot, rest = module.partition(".")
    if module.startswith(f"{COLLECTION}."):
        return "plugins"
    if first == "umccr_pcgr":
        second = rest.partition(".")[0]
        if second in ("", "__version__"):  # the version is everybody's
            return None
        return second if second in ALLOWED else "python"
    return first if first in ("rehearsal", "localcloud", "harness", "tests", "support") else None


def misplaced(part: str, path: Path) -> list[str]:
    """Imports of a file that its part may not have."""
    parts = {module: part_of(module) for module in imported(path)}
    return [f"{path.name}: {module}" for module, of in parts.items() if of not in (None, part, *ALLOWED[part])]


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_downwards(part: str) -> None:
    files = sources(part)
    assert files
    assert [found for path in files for found in misplaced(part, path)] == []


def test_an_upward_import_is_found(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("import json\n\ndef late():\n    from umccr_pcgr.consumer import worker\n    return worker, json\n")
    assert misplaced("samples", path) == ["module.py: umccr_pcgr.consumer", "module.py: umccr_pcgr.consumer.worker"]
    assert misplaced("consumer", path) == []


def test_samples_need_the_standard_library_only() -> None:
    """Python 3.10 has no TOML parser; tomli is the same one."""
    firsts = {module.partition(".")[0] for path in sources("samples") for module in imported(path)}
    assert firsts - sys.stdlib_module_names - {"umccr_pcgr", "tomli"} == set()


@pytest.mark.parametrize("folder", ["plugins", "python", "testbed", "tests", "scripts", "examples", "molecule"])
def test_no_module_has_a_second_name(folder: str) -> None:
    """A module imported by its path in the checkout would exist twice, with two classes of each error."""
    for path in (ROOT / folder).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        names = [module for module in imported(path) if module.partition(".")[0] in ("plugins", "tests")]
        assert names == [], path
        # Programs that run elsewhere (an image, a stand-in of a program) have no installation to find.
        if "sys.path.insert(" in text or "sys.path[" in text:
            assert path.relative_to(ROOT).as_posix() in {
                "testbed/rehearsal/layer.py",
                "tests/unit/plugins/test_background.py",
                "tests/unit/plugins/test_runtime_conda.py",
                "tests/unit/test_layout.py",
            }, path


def test_no_test_imports_a_test() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        names = [module for module in imported(path) if any(part.startswith("test_") for part in module.split("."))]
        # Functions of the project may have such names; files of tests may not be imported.
        assert [name for name in names if name.partition(".")[0] in ("tests", "unit", "integration")] == [], path
