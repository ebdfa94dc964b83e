# -*- coding: utf-8 -*-
# Copyright: University of Melbourne Centre for Cancer Research
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation that the AWS modules share."""

from __future__ import annotations


class ModuleDocFragment:
    """Fragments C(umccr.pcgr.aws) and C(umccr.pcgr.aws.tagged)."""

    # Every AWS module.
    DOCUMENTATION = r"""
attributes:
  action_group:
    description: Takes the defaults of the action group C(group/umccr.pcgr.aws), which also covers the AWS modules of C(amazon.aws) and C(community.aws).
    support: full
    membership: umccr.pcgr.aws
notes:
  - A call that AWS throttles is repeated, at growing and random intervals.
"""

    # Modules that know resources by our tag.
    TAGGED = r"""
options:
  name:
    description: Value of the tag C(umccr.pcgr) of the resources.
    type: str
    required: true
"""
