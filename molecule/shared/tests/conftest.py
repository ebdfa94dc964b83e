"""What the machine was asked to be: the scenario's variables over the roles' own defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = Path(__file__).resolve().parents[3] / "roles"


@pytest.fixture(scope="module")
def asked(host: Any) -> Callable[[str], Any]:
    """`asked("consumer_user")`: the value that the machine was made with."""
    settings: dict[str, Any] = {"pcgr_root": "/mnt/pcgr", "pcgr_assemblies": ["grch38"]}
    for role in ("base", "docker", "databundle", "runtime", "consumer"):
        settings |= yaml.safe_load((ROLES / role / "defaults/main.yml").read_text())
    settings |= host.ansible.get_variables()
    return settings.__getitem__
