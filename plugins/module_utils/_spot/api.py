# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What AWS answers about spot: price history of several regions at once, zones, types, on-demand prices, placement scores."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ProfileNotFound
except ImportError as missing:
    IMPORT_ERROR: ImportError | None = missing
else:
    IMPORT_ERROR = None

from .evidence import Evidence, add_types
from .log import SpotError
from .price_list import PRICE_LIST_REGION, listed_price, price_filters

DAYS_KEPT = 90  # of price history, by AWS
SYSTEMS = {"Linux/UNIX": "Linux", "SUSE Linux": "SUSE", "Windows": "Windows", "Red Hat Enterprise Linux": "RHEL"}
DENIED = ("UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "UnauthorizedAccess")
THROTTLED = (
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "MaxConfigLimitExceeded",
)
PARALLEL = 8
ATTEMPTS = 8
# For calls beside the prices: the choice can be made without their answers, so they time out early.
COURTESY_SECONDS = 10

Progress = Callable[[str, int], None]


class Account:
    """Clients of one profile. Throttled requests are retried with jittered backoff, eight attempts in all unless ``AWS_MAX_ATTEMPTS`` says."""

    def __init__(self, profile: str | None = None) -> None:
        if IMPORT_ERROR is not None:
            raise SpotError(f"the Python library {IMPORT_ERROR.name} is missing (needed: boto3)")
        try:
            self._session = boto3.Session(profile_name=profile)
        except ProfileNotFound:
            raise SpotError(
                f"--profile: found {profile!r}, allowed: {', '.join(boto3.Session().available_profiles)}"
            ) from None
        retries: Any = {"mode": "standard"}
        if "AWS_MAX_ATTEMPTS" not in os.environ:
            retries["total_max_attempts"] = ATTEMPTS
        self._config = Config(retries=retries, user_agent_extra="umccr.pcgr/spot")

    def regions(self) -> list[str]:
        """The regions that boto3 knows."""
        names = (
            self._session.get_available_regions("ec2", partition_name=part)
            for part in self._session.get_available_partitions()
        )
        return sorted(name for part in names for name in part)

    def check(self, regions: list[str]) -> None:
        """``SpotError`` for a region that does not exist."""
        known = self.regions()
        for region in regions:
            if region not in known:
                close = difflib.get_close_matches(region, known, 3)
                hint = f"did you mean {' or '.join(close)}?" if close else f"allowed: {', '.join(known)}"
                raise SpotError(f"--region: found {region!r}, no such region; {hint}")

    def client(self, service: str, region: str) -> Any:
        """A client of a service; made here, one after the other, since a session is not for several threads."""
        made: Callable[..., Any] = self._session.client
        config = (
            self._config
            if service == "ec2"
            else self._config.merge(
                Config(
                    connect_timeout=COURTESY_SECONDS, read_timeout=COURTESY_SECONDS, retries={"total_max_attempts": 2}
                )
            )
        )
        return made(service, region_name=region, config=config)


@contextmanager
def errors(call: str, region: str) -> Iterator[None]:
    """Turns what AWS refuses into a ``SpotError`` of one line."""
    try:
        yield
    except ClientError as error:
        code, text = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
        if code in DENIED:
            raise SpotError(f"{region}: not allowed to call {call}; the credentials need this right") from error
        if code in THROTTLED:
            raise SpotError(
                f"{region}: AWS throttles {call} ({code}), also after repeated tries; try again later"
            ) from error
        if code in (
            "AuthFailure",
            "OptInRequired",
            "InvalidClientTokenId",
            "UnrecognizedClientException",
            "ExpiredToken",
        ):
            raise SpotError(
                f"{region}: AWS does not accept the credentials ({code}): wrong, expired, or the region is not enabled"
            ) from error
        raise SpotError(f"{region}: {call}: {code}: {' '.join(text.split())}") from error
    except NoCredentialsError as error:
        raise SpotError(
            "no AWS credentials: set a profile or AWS_ACCESS_KEY_ID, or give --history FILE, which needs none"
        ) from error
    except BotoCoreError as error:
        raise SpotError(f"{region}: {call}: {' '.join(str(error).split())}") from error


def price_history(
    account: Account,
    regions: list[str],
    *,
    types: list[str],
    product: str,
    start: float,
    end: float,
    progress: Progress | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Price records of each region from ``start`` to ``end`` (seconds since 1970), all pages, fetched side by side.

    The first record of a pool may be older than ``start``: it is the price that was in force then.
    """
    arguments: dict[str, Any] = {"ProductDescriptions": [product], "StartTime": _time(start), "EndTime": _time(end)}
    if types:
        arguments["InstanceTypes"] = types
    clients = {region: account.client("ec2", region) for region in regions}

    def fetch(region: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        with errors("ec2:DescribeSpotPriceHistory", region):
            for page in clients[region].get_paginator("describe_spot_price_history").paginate(**arguments):
                found += page["SpotPriceHistory"]
                if progress:
                    progress(region, len(found))
        return found

    with ThreadPoolExecutor(min(PARALLEL, len(regions))) as pool:
        return dict(zip(regions, pool.map(fetch, regions), strict=True))


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


def add_zones(evidence: Evidence, account: Account, region: str) -> None:
    """All zones of a region, with the ids that are the same in every account."""
    with errors("ec2:DescribeAvailabilityZones", region):
        for zone in account.client("ec2", region).describe_availability_zones()["AvailabilityZones"]:
            if zone.get("ZoneType", "availability-zone") == "availability-zone":
                evidence.zones[zone["ZoneName"]] = zone.get("ZoneId", "")


def add_sizes(evidence: Evidence, account: Account, region: str, types: list[str]) -> None:
    """vCPUs, memory, processor and disk of the types that a region offers as spot instances."""
    arguments: dict[str, Any] = {"Filters": [{"Name": "supported-usage-class", "Values": ["spot"]}]}
    if types:
        arguments["InstanceTypes"] = types
    with errors("ec2:DescribeInstanceTypes", region):
        pages = account.client("ec2", region).get_paginator("describe_instance_types").paginate(**arguments)
        add_types(evidence, [entry for page in pages for entry in page["InstanceTypes"]], "DescribeInstanceTypes now")


def add_price_list(evidence: Evidence, client: Any, region: str, kind: str, product: str) -> None:
    """On-demand price of a type in a region; ``client`` is one of the service ``pricing``."""
    filters = price_filters(kind, region, SYSTEMS.get(product, "Linux"))
    with errors("pricing:GetProducts", PRICE_LIST_REGION):
        for entry in client.get_products(ServiceCode="AmazonEC2", Filters=filters)["PriceList"]:
            if price := listed_price(entry):
                evidence.on_demand[region, kind] = price
                evidence.sources["on-demand price"] = "AWS price list now"


def add_placement_scores(evidence: Evidence, account: Account, region: str, types: list[str], machines: int) -> None:
    """Placement scores (1 to 10) of a region's zones for so many instances of any of the types."""
    with errors("ec2:GetSpotPlacementScores", region):
        answer = account.client("ec2", region).get_spot_placement_scores(
            InstanceTypes=types,
            TargetCapacity=machines,
            TargetCapacityUnitType="units",
            SingleAvailabilityZone=True,
            RegionNames=[region],
        )
    for entry in answer["SpotPlacementScores"]:
        evidence.scores[entry.get("AvailabilityZoneId") or entry["Region"]] = int(entry["Score"])
    evidence.sources["placement score"] = f"GetSpotPlacementScores now, for {machines} of {len(types)} types"
