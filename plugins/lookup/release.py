# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lookup plugin: one PCGR release as the collection knows it."""

from __future__ import annotations

DOCUMENTATION = r"""
name: release
author: University of Melbourne Centre for Cancer Research (@umccr)
short_description: Look up a PCGR release
version_added: "1.0.0"
description:
  - Reads a file of the collection's C(releases) folder, checks it, and returns it with the release's dialect,
    which says how its command line reads.
  - This is the only source of versions, addresses, sizes and checksums for the roles.
options:
  _terms:
    description:
      - Names of releases, such as V(2.3.2).
      - V(newest) stands for the newest supported release, and so does a call without a name.
    type: list
    elements: str
  directory:
    description: Folder of release files to read instead of the collection's own.
    type: path
  explain:
    description: Return in place of each release why it cannot be used, in one line, or an empty text if it can.
    type: bool
    default: false
requirements:
  - PyYAML
  - jsonschema
notes:
  - A release that is unknown, refused or described by a broken file is an error of one line.
"""

EXAMPLES = r"""
- name: Read one release
  ansible.builtin.set_fact:
    pcgr: "{{ lookup('umccr.pcgr.release', '2.3.2') }}"

- name: Show the container image of the newest supported release
  ansible.builtin.debug:
    msg: "{{ lookup('umccr.pcgr.release', 'newest').image.reference }}"

- name: Refuse a release that cannot be used
  ansible.builtin.assert:
    that: lookup('umccr.pcgr.release', '2.3.2', explain=true) == ''
    fail_msg: "{{ lookup('umccr.pcgr.release', '2.3.2', explain=true) }}"

- name: Show which reference bundles two releases need
  ansible.builtin.debug:
    msg: "{{ query('umccr.pcgr.release', '2.2.5', '2.3.2') | map(attribute='bundle.date') }}"
"""

RETURN = r"""
_raw:
  description: One mapping for each name, shaped like the release's file, with the whole dialect in C(dialect). With O(explain), one text.
  type: list
  elements: raw
  sample:
    - release: "2.3.2"
      date: "2026-08-10"
      status: supported
      assemblies: [grch37, grch38]
      dialect: {name: "2.3"}
"""

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase
from ansible_collections.umccr.pcgr.plugins.module_utils._release import (
    NEWEST,
    ReleaseError,
    load_release,
)


class LookupModule(LookupBase):  # type: ignore[misc]  # ansible-core ships no types
    """``lookup('umccr.pcgr.release', name)``."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[Any]:
        """Return one release for each name in ``terms``; ``AnsibleError`` of one line if one cannot be used."""
        self.set_options(var_options=variables, direct=kwargs)
        directory = self.get_option("directory")
        if self.get_option("explain"):
            return [_fault(str(term), directory) for term in terms or [NEWEST]]
        try:
            return [load_release(str(term), Path(directory) if directory else None) for term in terms or [NEWEST]]
        except ReleaseError as error:
            raise AnsibleError(str(error)) from error


def _fault(name: str, directory: str | None) -> str:
    """Why a release cannot be used, in one line; empty if it can."""
    try:
        load_release(name, Path(directory) if directory else None)
    except ReleaseError as error:
        return str(error)
    return ""
