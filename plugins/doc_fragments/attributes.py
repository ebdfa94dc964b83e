# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation fragment: what the attributes of modules mean."""

from __future__ import annotations


class ModuleDocFragment:
    """Attributes that every module declares; a module adds ``support`` and, where needed, ``details``."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in check mode and report what would change, without changing anything.
  diff_mode:
    description: Returns the difference of what changed, or would change in check mode.
  idempotent:
    description: A second run with the same options changes nothing, unless something else has changed the target in between.
  platform:
    description: Operating systems that the module runs on.
"""
