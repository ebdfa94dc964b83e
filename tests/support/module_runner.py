"""Run this collection's modules in this process, as Ansible would on a target."""

from __future__ import annotations

import importlib
import io
import json
import sys
from contextlib import redirect_stdout, suppress
from typing import Any
from unittest.mock import patch

import pytest
from ansible.module_utils import _internal
from ansible.module_utils.testing import patch_module_args

from support import ROOT


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


def command(name: str, /, *, check: bool = False, **arguments: Any) -> list[str]:
    """Command line that does as `run`, in a process of its own, and prints the answer as JSON."""
    asked = json.dumps({"name": name, "check": check, "arguments": arguments})
    return ["env", f"PYTHONPATH={ROOT / 'tests'}", sys.executable, "-m", "support.module_runner", asked]


def record_progress(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every state of a module's progress from now on, whether or not it is written to its file in that moment."""
    told: list[dict[str, Any]] = []

    def take_note(progress: Any, name: str, value: Any) -> None:
        object.__setattr__(progress, name, value)
        if name == "done":  # set last
            about = {key: getattr(progress, key) for key in ("path", "part", "size", "unit", "done")}
            told.append(about | {"fetched": progress._fetched})

    monkeypatch.setattr(load("module_utils._progress").Progress, "__setattr__", take_note)
    return told


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(run(asked["name"], check=asked["check"], **asked["arguments"])))
