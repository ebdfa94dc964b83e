#!/usr/bin/python
# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Manage a set of small text files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: config_files
short_description: Manage a set of small text files
version_added: 1.0.0
description:
  - Makes the listed text files hold exactly the given content, owner and mode, and removes files that must not be there.
  - One run instead of one per file. On slow or far machines each module run costs seconds, and a service easily needs half a dozen small files.
  - A file is replaced by a rename, so that a reader sees the old or the new content. Missing parent folders are made, owned by root, mode V(0755).
author: University of Melbourne Centre for Cancer Research (@umccr)
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
  idempotent: {support: full}
  platform: {support: full, platforms: linux}
options:
  files:
    description: The files, by absolute path.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Absolute path of the file., type: path, required: true}
      content: {description: The whole content. A newline is added at the end when it lacks one., type: str, required: true}
      mode: {description: Permissions as an octal string., type: str, default: "0644"}
      owner: {description: Owner's name., type: str, default: root}
      group: {description: Group's name., type: str, default: root}
  absent:
    description: Absolute paths of files or symbolic links that must not exist.
    type: list
    elements: path
    default: []
extends_documentation_fragment:
  - umccr.pcgr.attributes
"""

EXAMPLES = r"""
- name: Write a unit and remove an old one
  umccr.pcgr.config_files:
    files:
      - path: /etc/systemd/system/example.service
        content: "{{ lookup('ansible.builtin.template', 'example.service.j2') }}"
    absent: [/etc/systemd/system/older.service]
"""

RETURN = r"""
changed_paths:
  description: Paths that were (or, in check mode, would be) written, given another owner or mode, or removed.
  type: list
  elements: str
  returned: always
"""

import grp
import os
import pwd
import stat
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.umccr.pcgr.plugins.module_utils._state import write_file


def ids(module: AnsibleModule, path: str, owner: str, group: str) -> tuple[int, int] | None:
    """Return (uid, gid) of the named owner and group; None in check mode when another task has yet to make them."""
    try:
        return pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid
    except KeyError:
        if module.check_mode:
            return None
        module.fail_json(msg=f"{path}: owner {owner} or group {group} does not exist on this machine")
        raise  # fail_json has left


def read(path: str) -> str | None:
    """Return the text at `path`, or None when there is no regular file."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None
        with open(path, encoding="utf-8", errors="surrogateescape") as handle:
            return handle.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def apply_file(module: AnsibleModule, item: dict[str, Any]) -> dict[str, str] | None:
    """Make one file as asked; return its diff, or None when nothing differed."""
    path, content = item["path"], item["content"]
    if not os.path.isabs(path):
        module.fail_json(msg=f"{path}: not an absolute path")
    if not content.endswith("\n"):
        content += "\n"
    try:
        mode = int(item["mode"], 8)
    except ValueError:
        module.fail_json(msg=f"{path}: mode {item['mode']} is not an octal number such as 0644")
    if os.path.isdir(path) and not os.path.islink(path):
        module.fail_json(msg=f"{path}: is a folder, a file is wanted")
    owner = ids(module, path, item["owner"], item["group"])
    before = read(path)
    if before is not None:
        status = os.lstat(path)
        if before == content and (status.st_uid, status.st_gid) == owner and stat.S_IMODE(status.st_mode) == mode:
            return None
    if owner and not module.check_mode:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        write_file(path, content.encode(errors="surrogateescape"), mode=mode, owner=owner)
    return {"before_header": path, "after_header": path, "before": before or "", "after": content}


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    "mode": {"type": "str", "default": "0644"},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                },
            },
            "absent": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    paths, diffs = [], []
    try:
        for item in module.params["files"]:
            diff = apply_file(module, item)
            if diff is not None:
                paths.append(item["path"])
                diffs.append(diff)
        for path in module.params["absent"]:
            if os.path.lexists(path):
                paths.append(path)
                diffs.append({"before_header": path, "after_header": path, "before": read(path) or "", "after": ""})
                if not module.check_mode:
                    os.unlink(path)
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(changed=bool(paths), changed_paths=paths, diff=diffs)


if __name__ == "__main__":
    main()
