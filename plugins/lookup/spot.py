# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lookup plugin: chooses spot pools to launch from."""

from __future__ import annotations

DOCUMENTATION = r"""
name: spot
author: University of Melbourne Centre for Cancer Research (@umccr)
short_description: Choose spot pools to launch from
version_added: "1.0.0"
description:
  - Ranks spot pools by the odds of finishing a sample and by its cost, and picks a diversified set for an EC2 Fleet. The command C(pcgr-spot) does the same.
  - Only prices are required. The answer names the evidence it rests on.
options:
  _terms:
    description: Instance types. Without any, all types that have O(vcpus), O(memory_gib) and O(disk_gb).
    type: list
    elements: str
  regions: {description: AWS regions to look in., type: list, elements: str, default: []}
  product: {description: Product description., type: str, default: Linux/UNIX}
  vcpus: {description: Minimum number of vCPUs., type: int, default: 0}
  memory_gib: {description: Minimum memory in GiB., type: float, default: 0}
  disk_gb: {description: Minimum local disk in GB., type: float, default: 0}
  history:
    description: Files of prices, in the form of C(aws ec2 describe-spot-price-history). Without any, AWS is asked.
    type: list
    elements: path
    default: []
  on_demand: {description: File of on-demand prices., type: path}
  advisor: {description: The Spot Instance Advisor's C(spot-advisor-data.json)., type: path}
  types_file: {description: Output of C(aws ec2 describe-instance-types)., type: path}
  scores: {description: Output of C(aws ec2 get-spot-placement-scores)., type: path}
  log: {description: Our own log of launches and interruptions; it may not exist yet., type: path}
  profile: {description: Profile of the AWS configuration., type: str}
  sample_hours: {description: "Hours that a sample takes. Unset, as in the log; else one.", type: float}
  name: {description: Name of the instance in the log., type: str, default: pcgr}
  losses: {description: Interruptions in a row within a day after which an instance is launched on demand., type: int, default: 2}
  budget_usd: {description: "US dollars that on-demand instances of this name may cost in 30 days; 0: never on demand.", type: float, default: 0}
  budget_hours: {description: Hours for which the cost of an on-demand instance is budgeted before it is launched., type: float, default: 24}
  now: {description: "Moment of evaluation, ISO 8601. Unset, now.", type: str}
requirements:
  - numpy
  - msgspec
  - boto3 (unless O(history) is given)
notes:
  - If no choice is possible, the lookup fails with one line that says why.
"""

EXAMPLES = r"""
- name: Choose where to launch
  ansible.builtin.set_fact:
    choice: "{{ lookup('umccr.pcgr.spot', regions=['ap-southeast-2'], vcpus=4, memory_gib=16) }}"

- name: Choose among three types by recorded prices, without an account
  ansible.builtin.set_fact:
    choice: "{{ lookup('umccr.pcgr.spot', 'm5.xlarge', 'm6i.xlarge', 'r5.xlarge', history=['prices.json']) }}"
"""

RETURN = r"""
_raw:
  description: One mapping.
  type: list
  elements: dict
  contains:
    spot: {description: Whether to launch on spot., type: bool}
    pools: {description: "The set, as mappings with type, zone and zone_id.", type: list, elements: dict}
    on_demand_type: {description: Type to launch on demand; null when the budget does not allow it., type: str}
    maximum_price: {description: "Maximum price to ask for; null, since a cap only adds interruptions.", type: float}
    why: {description: "What was decided and what it rests on, a line each.", type: list, elements: str}
    rows: {description: "The ranked pools, best first, with prices, odds and costs.", type: list, elements: dict}
    sources: {description: Where the figures are from and of when., type: dict}
"""

import time
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase
from ansible_collections.umccr.pcgr.plugins.module_utils._spot import advice as spot
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.choice import Request
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.history import plain_product
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.log import SpotError, parse_time

FILES = ("on_demand", "advisor", "types_file", "scores", "log", "profile")


class LookupModule(LookupBase):  # type: ignore[misc]  # ansible-core ships no types
    """``lookup('umccr.pcgr.spot', *types, **options)``."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        """Return the choice as one mapping; ``AnsibleError`` of one line when there is none."""
        self.set_options(var_options=variables, direct=kwargs)
        get = self.get_option
        request = Request(
            types=tuple(map(str, terms)),
            regions=tuple(get("regions")),
            product=plain_product(get("product")),
            vcpus=get("vcpus"),
            memory_gib=get("memory_gib"),
            disk_gb=get("disk_gb"),
            sample_hours=get("sample_hours"),
        )
        inputs = spot.Inputs(histories=tuple(get("history")), **{name: get(name) for name in FILES})
        budget = spot.Budget(get("name"), get("losses"), get("budget_usd"), get("budget_hours"))
        try:
            now = parse_time(get("now")) if get("now") else time.time()
            choice, found = spot.decide(inputs, request, now)
            market = spot.market(choice, found.evidence, budget, now)
        except ValueError as error:
            raise AnsibleError(str(error) if isinstance(error, SpotError) else f"now: {error}") from error
        content = choice.as_json()
        return [
            {
                "spot": market.spot,
                "pools": content["set"],
                "on_demand_type": market.on_demand_type,
                "maximum_price": content["maximum_price"],
                "why": market.why,
                "rows": content["rows"],
                "sources": content["sources"],
            }
        ]
