#!/usr/bin/python
# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install a Python application into a virtual environment."""

from __future__ import annotations

DOCUMENTATION = r"""
module: python_app
short_description: Install a Python application into a virtual environment
version_added: 1.0.0
description:
  - Installs a wheel and a hashed requirements list into a virtual environment with one run of pip, which checks every file's hash.
  - A stamp in the environment, written last, names what is installed. When wheel, list and Python are the same, nothing is run.
author: University of Melbourne Centre for Cancer Research (@umccr)
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
  idempotent: {support: full}
  platform: {support: full, platforms: linux}
options:
  path:
    description: Folder of the virtual environment.
    type: path
    required: true
  wheel:
    description: The application's wheel, as the lookup P(umccr.pcgr.pure_wheel#lookup) returns it.
    type: dict
    required: true
    suboptions:
      name: {description: File name., type: str, required: true}
      content: {description: The file in base64., type: str, required: true}
      sha256: {description: Its checksum., type: str, required: true}
  requirements:
    description: The whole text of the requirements list; each line needs a C(--hash).
    type: str
    required: true
  find_links:
    description: Address or folder with wheels, used instead of the package index.
    type: str
  trusted_host:
    description: Host name to be spoken to over plain HTTP without complaint. The hashes are checked all the same.
    type: str
  python:
    description: The interpreter to build on.
    type: path
    default: /usr/bin/python3
extends_documentation_fragment:
  - umccr.pcgr.attributes
"""

EXAMPLES = r"""
- name: Install an application
  umccr.pcgr.python_app:
    path: /opt/app
    wheel: "{{ lookup('umccr.pcgr.pure_wheel', 'app') }}"
    requirements: "{{ lookup('ansible.builtin.file', 'requirements.txt') }}"
"""

RETURN = r"""
installed:
  description: What the stamp says.
  type: dict
  returned: always
"""

import base64
import glob
import hashlib
import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.umccr.pcgr.plugins.module_utils._state import STAMP, read_json, write_json

# Where the package python3-pip-whl of Debian and Ubuntu puts pip.
SYSTEM_PIP = "/usr/share/python-wheels/pip-*.whl"


def install(module: AnsibleModule, fresh: bool) -> None:
    """Make the environment (anew when `fresh`) and let pip install; fails with pip's last line of complaint.

    Where the system brings pip as a wheel, pip runs from there: an environment without pip is made in half the time, and holds less.
    """
    params = module.params
    path = params["path"]
    system_pip = sorted(glob.glob(SYSTEM_PIP))[-1:]
    if fresh:
        bare = ["--without-pip"] if system_pip else []
        run(module, [params["python"], "-m", "venv", "--clear", *bare, path], "making the virtual environment")
    with tempfile.TemporaryDirectory() as folder:
        wheel = os.path.join(folder, os.path.basename(params["wheel"]["name"]))
        with open(wheel, "wb") as out:
            out.write(base64.b64decode(params["wheel"]["content"]))
        listing = os.path.join(folder, "requirements.txt")
        with open(listing, "w", encoding="utf-8") as handle:
            handle.write(f"{params['requirements'].rstrip()}\n{wheel} --hash=sha256:{params['wheel']['sha256']}\n")
        command = [os.path.join(path, "bin/python"), *([f"{system_pip[0]}/pip"] if system_pip else ["-m", "pip"])]
        command += [
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-cache-dir",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
            "--requirement",
            listing,
        ]
        if params["find_links"]:
            command += ["--no-index", "--find-links", params["find_links"]]
        if params["trusted_host"]:
            command += ["--trusted-host", params["trusted_host"]]
        run(module, command, "installing")


def run(module: AnsibleModule, command: list[str], what: str) -> None:
    """Run `command`; fail the module with its last line when it fails."""
    code, out, err = module.run_command(command, environ_update={"PYTHONNOUSERSITE": "1", "PIP_USER": "0"})
    if code:
        lines = [line for line in (err + "\n" + out).splitlines() if line.strip()]
        complaint = next((line for line in lines if "ERROR" in line), lines[-1] if lines else f"exit code {code}")
        module.fail_json(
            msg=f"{module.params['path']}: {what} failed: {complaint.strip()}", command=command, stderr=err, stdout=out
        )


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "wheel": {
                "type": "dict",
                "required": True,
                "options": {key: {"type": "str", "required": True} for key in ("name", "content", "sha256")},
            },
            "requirements": {"type": "str", "required": True},
            "find_links": {"type": "str"},
            "trusted_host": {"type": "str"},
            "python": {"type": "path", "default": "/usr/bin/python3"},
        },
        supports_check_mode=True,
    )
    params = module.params
    wanted = {
        "wheel": params["wheel"]["name"],
        "wheel_sha256": params["wheel"]["sha256"],
        "requirements_sha256": hashlib.sha256(params["requirements"].encode()).hexdigest(),
        "python": os.path.realpath(params["python"]),
    }
    stamp = os.path.join(params["path"], STAMP)
    before = read_json(stamp)
    changed = before != wanted
    if changed and not module.check_mode:
        if before:
            os.unlink(stamp)  # the next run notices an interruption from here on
        install(module, fresh=not before or before.get("python") != wanted["python"])
        write_json(stamp, wanted)
    module.exit_json(changed=changed, installed=wanted, diff={"before": before, "after": wanted})


if __name__ == "__main__":
    main()
