"""The quality gates find what they are there for: each of them sees a small collection with one fault."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import ROOT

HEADER = """\
# Copyright: the authors of this test
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = '''
name: one
author: Somebody (@somebody)
short_description: Return one
version_added: 1.0.0
description: Returns one.
options:
  width: {description: "Digits, at least.", type: int, default: 1}
'''

EXAMPLES = '''
- ansible.builtin.debug:
    msg: "{{ lookup('umccr.pcgr.one') }}"
'''

RETURN = '''
_raw:
  description: One.
  type: list
  elements: int
'''

from ansible.plugins.lookup import LookupBase


class LookupModule(LookupBase):
    def run(self, terms, variables=None, **kwargs):
        return [1]
"""
PLAY = """\
---
- name: Show one
  hosts: localhost
  gather_facts: false
  tasks:
    - name: Show one
      ansible.builtin.debug:
        msg: "{{ lookup('umccr.pcgr.one') }}"
"""
GALAXY = """\
---
namespace: umccr
name: pcgr
version: 1.0.0
readme: README.md
authors: [Somebody]
description: One.
license: [MIT]
tags: [tools]
dependencies: {}
repository: https://example.org/one
documentation: https://example.org/one
homepage: https://example.org/one
issues: https://example.org/one
build_ignore: [.*]
"""


@pytest.fixture
def gates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The gates, looking at a small sound collection in a repository of its own."""
    spec = importlib.util.spec_from_file_location("gates", ROOT / "tests/support/gates.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    root, work = tmp_path / "root", tmp_path / "work"
    work.mkdir()
    files = {
        "galaxy.yml": GALAXY,
        "README.md": "# One\n",
        "meta/runtime.yml": '---\nrequires_ansible: ">=2.18.0"\n',
        "changelogs/changelog.yaml": "---\nancestor: null\nreleases: {}\n",
        "playbooks/show.yml": PLAY,
        "plugins/lookup/one.py": HEADER,
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    source = work / "source" / "ansible_collections" / "umccr" / "pcgr"
    for name, value in {"ROOT": root, "WORK": work, "SOURCE": source}.items():
        monkeypatch.setattr(module, name, value)
    # The defaults of the copy name the checkout.
    copy = module.copy_source
    monkeypatch.setattr(module, "copy_source", lambda: copy(root, source))
    return module


def edit(gates: Any, name: str, old: str, new: str) -> None:
    """Put one fault into the small collection."""
    path = gates.ROOT / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def shebang(gates: Any) -> None:
    """Run one sanity test that needs no environment of its own."""
    gates.sanity(["shebang"])


FAULTS: dict[str, tuple[Callable[[Any], None], str, str, str, str]] = {
    "a description ends at a comma": (
        lambda gates: gates.docs(),
        "plugins/lookup/one.py",
        '"Digits, at least."',
        "Digits, at least.",
        "Extra inputs are not permitted",
    ),
    "documentation is no YAML": (
        lambda gates: gates.smoke(),
        "plugins/lookup/one.py",
        "description: Returns one.",
        "description: Returns: one.",
        "one",
    ),
    "a playbook calls an unknown module": (
        lambda gates: gates.smoke(),
        "playbooks/show.yml",
        "ansible.builtin.debug:",
        "umccr.pcgr.two:",
        "umccr.pcgr.two",
    ),
    "a pre-release is below 1.0.0": (
        lambda gates: gates.importer(),
        "galaxy.yml",
        "version: 1.0.0",
        "version: 1.0.0-dev.1",
        "1.0.0 or greater",
    ),
    "a line is too long": (
        lambda gates: gates.importer(),
        "plugins/lookup/one.py",
        "return [1]",
        f"return [1]  # {'long ' * 40}",
        "E501",
    ),
    "a plugin is executable": (
        shebang,
        "plugins/lookup/one.py",
        "# Copyright",
        "#!/usr/bin/env python3\n# Copyright",
        "unexpected non-module shebang",
    ),
}


def test_the_gates_pass_a_sound_collection(gates: Any) -> None:
    gates.docs()
    gates.smoke()
    gates.importer()
    shebang(gates)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_gate_finds_the_fault(gates: Any, fault: str) -> None:
    gate, name, old, new, message = FAULTS[fault]
    edit(gates, name, old, new)
    with pytest.raises(gates.GateError, match=message):
        gate(gates)


def test_the_copy_holds_the_tracked_files_and_nothing_else(gates: Any) -> None:
    (gates.ROOT / ".gitignore").write_text("stray\n")
    (gates.ROOT / "stray").touch()
    copy = gates.copy_source()
    assert (copy / "galaxy.yml").read_text() == GALAXY
    assert not (copy / "stray").exists()
    (gates.ROOT / "playbooks/show.yml").unlink()
    (gates.ROOT / "README.md").write_text("# Two\n")
    copy = gates.copy_source()
    assert not (copy / "playbooks").exists()
    assert (copy / "README.md").read_text() == "# Two\n"


def test_documentation_of_every_kind_of_content_is_read(gates: Any) -> None:
    role = gates.ROOT / "roles/two/meta/argument_specs.yml"
    role.parent.mkdir(parents=True)
    role.touch()
    module = gates.ROOT / "plugins/modules/three.py"
    module.parent.mkdir(parents=True)
    module.touch()
    assert gates.documented(gates.ROOT) == {
        "lookup": ["umccr.pcgr.one"],
        "module": ["umccr.pcgr.three"],
        "role": ["umccr.pcgr.two"],
    }


def test_a_sanity_run_without_files_is_a_failure(gates: Any) -> None:
    (gates.ROOT / ".gitignore").write_text("*\n")
    with pytest.raises(gates.GateError, match="found none to test"):
        gates.sanity(["no-assert"])
