# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lookup plugin: a wheel of a pure Python package, built without a build tool."""

from __future__ import annotations

DOCUMENTATION = r"""
name: pure_wheel
short_description: Build a wheel from a pure Python package without a build tool
version_added: "1.0.0"
description:
  - Packs a pure Python package with a C(src) folder and a C(pyproject.toml) as a wheel. Python 3.11 is needed on the controller, a package index is not.
  - The same sources give the same bytes, so the wheel's checksum says whether anything has changed.
author: University of Melbourne Centre for Cancer Research (@umccr)
options:
  _terms:
    description: Folder with C(pyproject.toml), and the package below C(src).
    type: list
    elements: path
    required: true
  packages:
    description:
      - Subpackages to include, e.g. V(umccr_pcgr.samples). Without it, everything below C(src) is included.
      - The C(__init__.py) and C(py.typed) of their parents are always included.
    type: list
    elements: str
    default: []
  extra:
    description: Optional dependencies of the project that become dependencies of the wheel.
    type: str
  scripts:
    description: Console commands to include. Without it, all of them are.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Install the consumer
  umccr.pcgr.python_app:
    path: /opt/pcgr-consumer
    wheel: >-
      {{ lookup('umccr.pcgr.pure_wheel', 'python', packages=['umccr_pcgr.samples', 'umccr_pcgr.consumer'],
                extra='consumer', scripts=['pcgr-consumer']) }}
    requirements: "{{ lookup('ansible.builtin.file', 'requirements.txt') }}"
"""

RETURN = r"""
_raw:
  description: The wheel's file name, its content in base64, and its SHA-256.
  type: list
  elements: dict
  sample:
    - {name: umccr_pcgr-1.0.0-py3-none-any.whl, content: UEsDBBQ, sha256: 0123abcd}
"""

import base64
import hashlib
import io
import json
import re
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

# The earliest time a zip archive can hold: times must not make a difference.
EPOCH = (1980, 1, 1, 0, 0, 0)


class PackageError(Exception):
    """The folder is not a package this can pack; the text is one line."""


def package_files(source: Path, packages: Sequence[str]) -> dict[str, bytes]:
    """Content by path in the wheel: everything below `src`, or `packages` alone; compiled files are left out.

    Raises PackageError for a package that is not there.
    """
    src = source / "src"
    files = {
        path.relative_to(src).as_posix(): path.read_bytes()
        for path in sorted(src.rglob("*"))
        if path.is_file() and not any(part == "__pycache__" or part.endswith(".egg-info") for part in path.parts)
    }
    if not packages:
        return files
    folders = [package.replace(".", "/") for package in packages]
    for folder in folders:
        if f"{folder}/__init__.py" not in files:
            raise PackageError(f"{source}: no src/{folder}/__init__.py")
    starts = tuple(f"{folder}/" for folder in folders)
    parents = {parent for folder in folders for parent in _parents(folder)}
    tops = {f"{parent}/{top}" for parent in parents for top in ("__init__.py", "py.typed")}
    return {name: content for name, content in files.items() if name in tops or name.startswith(starts)}


def _parents(folder: str) -> list[str]:
    """`a/b/c` -> `a`, `a/b`."""
    parts = folder.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def version(project: dict[str, Any], files: dict[str, bytes], package: str) -> str:
    """The version in pyproject.toml, or `__version__` of the package."""
    if "version" in project:
        return str(project["version"])
    match = re.search(
        r"""^__version__\s*(?::\s*\w+\s*)?=\s*["']([^"']+)["']""",
        files[f"{package}/__init__.py"].decode(),
        re.MULTILINE,
    )
    if not match:
        raise PackageError(f"{package}/__init__.py: no __version__")
    return match[1]


def project_of(source: Path, extra: str | None, scripts: Sequence[str]) -> dict[str, Any]:
    """The project's metadata with the dependencies of `extra` and only `scripts` (all when empty); raises PackageError."""
    project: dict[str, Any] = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras, commands = project.pop("optional-dependencies", {}), project.get("scripts", {})
    if extra and extra not in extras:
        raise PackageError(f"{source}/pyproject.toml: extra: found {extra!r}, allowed {', '.join(extras) or 'none'}")
    for name in scripts:
        if name not in commands:
            raise PackageError(f"{source}/pyproject.toml: scripts: found {name!r}, allowed {', '.join(commands)}")
    project["dependencies"] = [*project.get("dependencies", []), *(extras[extra] if extra else [])]
    project["scripts"] = {name: commands[name] for name in scripts or commands}
    return project


def build(
    source: Path, packages: Sequence[str] = (), extra: str | None = None, scripts: Sequence[str] = ()
) -> tuple[str, bytes]:
    """File name and content of the wheel of the package in `source`; raises PackageError."""
    project = project_of(source, extra, scripts)
    files = package_files(source, packages)
    package = project["name"].replace("-", "_")
    if f"{package}/__init__.py" not in files:
        raise PackageError(f"{source}: no src/{package}/__init__.py")
    # pip takes two wheels of one version for the same, so the version says what is in it.
    sources = "".join(f"{name} {digest(content)}\n" for name, content in files.items())
    settings = json.dumps(project, sort_keys=True)
    number = f"{version(project, files, package)}+{hashlib.sha256((sources + settings).encode()).hexdigest()[:12]}"
    info = f"{package}-{number}.dist-info"
    metadata = [
        "Metadata-Version: 2.1",
        f"Name: {project['name']}",
        f"Version: {number}",
        *([f"Requires-Python: {project['requires-python']}"] if "requires-python" in project else []),
        *(f"Requires-Dist: {item}" for item in project.get("dependencies", [])),
    ]
    commands = [f"{name} = {target}" for name, target in sorted(project["scripts"].items())]
    files[f"{info}/METADATA"] = ("\n".join(metadata) + "\n").encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: umccr.pcgr\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    if commands:
        files[f"{info}/entry_points.txt"] = ("\n".join(["[console_scripts]", *commands]) + "\n").encode()
    record = [f"{name},sha256={digest(content)},{len(content)}\n" for name, content in files.items()]
    files[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"]).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return f"{package}-{number}-py3-none-any.whl", out.getvalue()


def digest(content: bytes) -> str:
    """SHA-256 as a wheel's RECORD spells it."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def wheel(source: Path, **options: Any) -> dict[str, str]:
    """What `build` makes, as the lookup returns it: name, content in base64, SHA-256 in hex; raises AnsibleError."""
    try:
        name, content = build(source, **options)
    except PackageError as error:
        raise AnsibleError(str(error)) from error
    except (OSError, KeyError, ValueError) as error:
        raise AnsibleError(f"{source}: cannot be packed: {type(error).__name__}: {error}") from error
    return {
        "name": name,
        "content": base64.b64encode(content).decode(),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


class LookupModule(LookupBase):  # type: ignore[misc]  # ansible-core ships no types
    """``lookup('umccr.pcgr.pure_wheel', folder)``."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        """Return one wheel for each folder in ``terms``; ``AnsibleError`` of one line if one cannot be packed."""
        self.set_options(var_options=variables, direct=kwargs)
        options = {name: self.get_option(name) for name in ("packages", "extra", "scripts")}
        return [wheel(Path(term), **options) for term in terms]
