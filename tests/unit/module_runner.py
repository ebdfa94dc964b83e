"""Run this collection's modules in this process, as Ansible would on a target."""

from __future__ import annotations

import importlib
import io
import json
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from ansible.module_utils import _internal
from ansible.module_utils.testing import patch_module_args

ROOT = Path(__file__).resolve().parents[2]
# Where scripts/bootstrap links this checkout as umccr.pcgr.
TREE = ROOT / ".venv/collections"
if str(TREE) not in sys.path:
    sys.path.insert(0, str(TREE))


def load(name: str) -> Any:
    """The Python module at `plugins/NAME`, e.g. "modules.databundle"."""
    return importlib.import_module(f"ansible_collections.umccr.pcgr.plugins.{name}")


def run(name: str, /, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
    """Run module `name` with `arguments`; its answer, with `failed` set when it failed."""
    module = load(f"modules.{name}")
    out = io.StringIO()
    # A test that has used a lookup has made this process a controller, which shows warnings in place of returning them.
    on_a_target = patch.object(_internal, "is_controller", new=False)
    checked = patch_module_args(arguments | {"_ansible_check_mode": check})
    with on_a_target, checked, redirect_stdout(out), suppress(SystemExit):
        module.main()
    answer: dict[str, Any] = json.loads(out.getvalue())
    return answer


def record_progress(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every state of a module's progress from now on, whether or not it is written to its file in that moment."""
    told: list[dict[str, Any]] = []

    def take_note(progress: Any, name: str, value: Any) -> None:
        object.__setattr__(progress, name, value)
        if name == "done":  # set last
            about = {key: getattr(progress, key) for key in ("path", "part", "size", "unit", "done")}
            told.append(about | {"fetched": progress._fetched})

    monkeypatch.setattr(load("module_utils.progress").Progress, "__setattr__", take_note)
    return told
