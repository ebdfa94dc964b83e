"""Write CHANGELOG.rst: the releases, and before the first one what it would hold.

    cd tests && ../.venv/bin/python -m support.changelog

antsibull-changelog renders releases only. Until there is one, the text is what a release would give, made in a temporary copy
and headed "Unreleased": neither changelogs/changelog.yaml nor a fragment is touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from support import ROOT

NAME = "CHANGELOG.rst"
_VERSION = "1.0.0"  # of the release in the temporary copy; its number is not shown
_PARTS = (
    "changelogs",
    "galaxy.yml",
    "meta",
    "playbooks",
    "plugins",
    "roles",
)  # plugins and roles that a release adds are listed


def run(folder: Path, *arguments: str) -> None:
    """Run antsibull-changelog in a folder; CalledProcessError with its output on stderr when it fails."""
    programs = Path(sys.executable).parent  # also holds the ansible-doc that it calls
    answer = subprocess.run(
        [programs / "antsibull-changelog", *arguments],
        cwd=folder,
        env=os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        print(answer.stdout + answer.stderr, file=sys.stderr)
        answer.check_returncode()


def rendered(root: Path = ROOT) -> str:
    """Return the changelog of the project in `root`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in _PARTS:
            source = root / part
            shutil.copytree(
                source, folder / part, ignore=shutil.ignore_patterns("__pycache__")
            ) if source.is_dir() else shutil.copy(source, folder / part)
        released = yaml.safe_load((folder / "changelogs/changelog.yaml").read_text(encoding="utf-8"))["releases"]
        if released:
            run(folder, "generate")
        else:
            run(folder, "release", "--version", _VERSION, "--date", "2000-01-01")
        text = (folder / NAME).read_text(encoding="utf-8")
    return text if released else unreleased(text)


def unreleased(text: str) -> str:
    """Return the rendered text with the heading `Unreleased` in place of the version."""
    heading = f"v{_VERSION}"
    old, new = (f"\n{title}\n{'=' * len(title)}\n" for title in (heading, "Unreleased"))
    if text.count(old) != 1:
        raise ValueError(f"{NAME}: found {text.count(old)} headings {heading!r}, allowed one")
    return text.replace(old, new)


def main() -> int:
    """Write CHANGELOG.rst; returns the exit code."""
    (ROOT / NAME).write_text(rendered(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
