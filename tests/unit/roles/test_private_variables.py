"""Roles for AWS and the playbooks: variables that begin with __ belong to one role and stay there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support import ROOT

PRIVATE = re.compile(r"(?<![A-Za-z0-9_])__([a-z0-9]+)_[a-z0-9_]*")


def foreign(folder: Path, owner: str | None) -> list[str]:
    """Private variables in a folder's files that are not those of `owner`, each with its place."""
    return [
        f"{path.relative_to(folder)}: {found[0]}"
        for path in sorted([*folder.rglob("*.yml"), *folder.rglob("*.j2")])
        for found in PRIVATE.finditer(path.read_text())
        if found[1] != owner
    ]


@pytest.mark.parametrize("name", ["aws", "intake"])
def test_roles_read_only_their_own_private_variables(name: str) -> None:
    assert foreign(ROOT / "roles" / name, name) == []


def test_playbooks_have_no_private_variables() -> None:
    assert foreign(ROOT / "playbooks", None) == []


def test_a_foreign_variable_is_found(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/main.yml").write_text("a: '{{ __own_x }} {{ x__own }} {{ __other_y.z }}'\n")
    assert foreign(tmp_path, "own") == ["tasks/main.yml: __other_y"]
