#!/usr/bin/python
# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Remove reference data that no release needs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: databundle_prune
short_description: Remove reference data that no release needs
version_added: 1.0.0
description:
  - Removes the folders that M(umccr.pcgr.databundle) has put in place and that none of the given releases needs.
  - Folders without its stamp were put there by someone else, and stay.
  - A folder goes out of the way by one rename, before it is deleted.
author: University of Melbourne Centre for Cancer Research (@umccr)
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
  platform: {support: full, platforms: linux}
options:
  root:
    description: The folder that M(umccr.pcgr.databundle) brings data to.
    type: path
    required: true
  releases:
    description: Releases whose data stay, as the lookup P(umccr.pcgr.release#lookup) returns them.
    type: list
    elements: dict
    required: true
  assemblies:
    description: Genome assemblies whose data stay.
    type: list
    elements: str
    required: true
extends_documentation_fragment:
  - umccr.pcgr.attributes
"""

EXAMPLES = r"""
- name: Remove the data of all other releases
  umccr.pcgr.databundle_prune:
    root: /mnt/pcgr
    releases: "{{ query('umccr.pcgr.release', '2.3.2') }}"
    assemblies: [grch38]
"""

RETURN = r"""
removed:
  description: The folders that were removed.
  type: list
  elements: str
  returned: always
"""

import glob
import os
import shutil
import tempfile
from contextlib import suppress

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.umccr.pcgr.plugins.module_utils._refdata.parts import (
    STAGING,
    DatabundleError,
    plan,
)
from ansible_collections.umccr.pcgr.plugins.module_utils._state import STAMP, BusyError, exclusive_lock

# Where plan() puts parts: bundles/<date>/data/<assembly>, vep/<release>/homo_sapiens/<cache>.
GONE = f"{STAGING}gone-"  # what begins so, the module databundle removes too
PLACES = ("bundles/*/data/*", "vep/*/homo_sapiens/*")


def unneeded(module: AnsibleModule) -> list[str]:
    """Stamped folders that no release needs; raises DatabundleError."""
    root, releases = module.params["root"], module.params["releases"]
    if not releases:
        raise DatabundleError("releases: found none, allowed is at least one; all data would be removed")
    needed = {
        part.folder(root)
        for release in releases
        for part in plan(release, [name for name in module.params["assemblies"] if name in release["assemblies"]])
    }
    found = {folder for place in PLACES for folder in glob.glob(os.path.join(glob.escape(root), place))}
    return sorted(folder for folder in found - needed if os.path.isfile(os.path.join(folder, STAMP)))


def left_over(root: str) -> list[str]:
    """What a removal that was cut has left."""
    return glob.glob(os.path.join(glob.escape(root), f"{GONE}*"))


def remove(folder: str, root: str) -> None:
    """Rename the folder out of the way, then delete it."""
    gone = tempfile.mkdtemp(prefix=GONE, dir=root)
    os.rename(folder, os.path.join(gone, "gone"))
    for parent in (os.path.dirname(folder), os.path.dirname(os.path.dirname(folder))):
        with suppress(OSError):  # other data are there
            os.rmdir(parent)
    shutil.rmtree(gone)


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "releases": {"type": "list", "elements": "dict", "required": True},
            "assemblies": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        folders = unneeded(module)
        root = module.params["root"]
        if (folders or left_over(root)) and not module.check_mode:
            with exclusive_lock(root):
                for folder in left_over(root):
                    shutil.rmtree(folder)
                for folder in folders:
                    remove(folder, root)
    except (BusyError, DatabundleError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or module.params['root']}: {error.strerror or error}")
    module.exit_json(changed=bool(folders), removed=folders)


if __name__ == "__main__":
    main()
