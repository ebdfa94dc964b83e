# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""AWS's price list: the filters of a query, and the price in its answer. Standard library only."""

from __future__ import annotations

import json

PRICE_LIST_REGION = "us-east-1"  # where the price list of all regions is served


def price_filters(kind: str, region: str, system: str = "Linux") -> list[dict[str, str]]:
    """Filters of GetProducts for a plain on-demand instance of an instance type."""
    wanted = {
        "instanceType": kind,
        "regionCode": region,
        "operatingSystem": system,
        "preInstalledSw": "NA",
        "tenancy": "Shared",
        "capacitystatus": "Used",
    }
    return [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]


def listed_price(product: str) -> float:
    """US dollars per hour from an entry of the price list (JSON as GetProducts gives it); 0 when it has none."""
    for term in json.loads(product)["terms"].get("OnDemand", {}).values():
        for dimension in term["priceDimensions"].values():
            return float(dimension["pricePerUnit"].get("USD", 0))
    return 0.0
