#!/usr/bin/python
# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check settings for AWS before the first call to it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: aws_preflight
short_description: Check settings for AWS before the first call to it
version_added: 1.0.0
description:
  - Checks the settings of the roles P(umccr.pcgr.aws#role) and P(umccr.pcgr.intake#role), finds the region, and returns both in their normal form.
  - Makes no call to AWS. A setting that is refused is named with what was found and what is allowed.
  - Run it on the controller, with the Python that Ansible runs with, because it looks at files and libraries there.
author: University of Melbourne Centre for Cancer Research (@umccr)
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
  platform: {support: full, platforms: posix}
options:
  settings:
    description: Settings by name, such as C(aws_ssh_cidr). Those left out are not checked.
    type: dict
    required: true
extends_documentation_fragment:
  - umccr.pcgr.attributes
  - umccr.pcgr.aws
"""

EXAMPLES = r"""
- name: Check two settings and find the region
  umccr.pcgr.aws_preflight:
    settings:
      aws_spot: "true"
      aws_ssh_cidr: 203.0.113.7
"""

RETURN = r"""
region:
  description: The region, from O(region), the environment or the profile.
  type: str
  returned: success
settings:
  description: The settings in their normal form, such as a boolean for V("true").
  type: dict
  returned: success
"""

import os
from contextlib import suppress

with suppress(ImportError):  # AnsibleAWSModule reports it
    from botocore.session import Session

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule
from ansible_collections.umccr.pcgr.plugins.module_utils._aws import SettingError, check, check_region


def unknown_profile(profile: str | None) -> str | None:
    """The requested profile if it does not exist, else None."""
    wanted = profile or os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")
    return wanted if wanted and wanted not in Session().available_profiles else None


def main() -> None:
    """Entry point of the module."""
    module = AnsibleAWSModule(argument_spec={"settings": {"type": "dict", "required": True}}, supports_check_mode=True)
    settings, faults = check(module.params["settings"])
    region, profile = module.region, unknown_profile(module.params["profile"])
    if profile:
        faults.insert(0, f"AWS profile: found {profile!r}, which does not exist, allowed one of the AWS configuration")
    else:
        try:
            check_region(region)
        except SettingError as error:
            faults.insert(0, f"aws_region: {error}")
    if faults:
        module.fail_json(msg="; ".join(faults))
    module.exit_json(changed=False, region=region, settings=settings)


if __name__ == "__main__":
    main()
