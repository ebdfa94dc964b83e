# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the AWS modules share: the tag of our resources, clients that retry, and common arguments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ansible_collections.amazon.aws.plugins.module_utils.retries import AWSRetry

# Key of the tag that every resource of this collection carries. Its value is the name that the site chose (aws_name).
TAG = "umccr.pcgr"

# Argument of every module that knows resources by the tag; documented in the fragment umccr.pcgr.aws.tagged.
TAGGED_ARGUMENTS: dict[str, dict[str, Any]] = {"name": {"type": "str", "required": True}}

# Beside RequestLimitExceeded and the like, which AWSRetry knows: what S3, SQS and STS answer when they throttle.
THROTTLED = ["SlowDown", "ThrottlingException", "RequestThrottled", "OverLimit"]
RETRY = AWSRetry.jittered_backoff(retries=8, delay=1, max_delay=20, catch_extra_error_codes=THROTTLED)


class RetryingClient:
    """A boto3 client whose every call is retried with jittered backoff when AWS throttles it or answers with an internal error.

    A call that creates something needs a client token of its own, since AWS may have done what it answered with an error.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return RETRY(found) if callable(found) else found

    def get_paginator(self, operation: str) -> RetryingPaginator:
        """A paginator that begins again when one of its pages is throttled."""
        return RetryingPaginator(self._client.get_paginator(operation))

    def get_waiter(self, name: str) -> RetryingWaiter:
        """A waiter that begins again when one of its questions is throttled."""
        return RetryingWaiter(self._client.get_waiter(name))


class RetryingPaginator:
    """The paginator of a `RetryingClient`."""

    def __init__(self, paginator: Any) -> None:
        self._paginator = paginator

    def paginate(self, **arguments: Any) -> Iterator[dict[str, Any]]:
        """All pages as one."""
        yield RETRY(lambda: self._paginator.paginate(**arguments).build_full_result())()


class RetryingWaiter:
    """The waiter of a `RetryingClient`."""

    def __init__(self, waiter: Any) -> None:
        self._waiter = waiter

    def wait(self, **arguments: Any) -> None:
        """Return when the state is reached; raises WaiterError when it is not."""
        RETRY(self._waiter.wait)(**arguments)


def retrying(module: Any, service: str) -> Any:
    """A client of an AWS service for a module (AnsibleAWSModule) that retries what is throttled."""
    return RetryingClient(module.client(service))


def resource_tags(name: str) -> dict[str, str]:
    """The tag of the resources of a name, as Ansible's modules take tags."""
    return {TAG: name}


def tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    """Tags as the API of EC2 takes them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def tag_filter(name: str) -> dict[str, Any]:
    """Filter of EC2's Describe calls for resources that carry our tag with the value `name`."""
    return {"Name": f"tag:{TAG}", "Values": [name]}
