"""A look-alike of S3, SQS and EC2 for each file of tests, and a bucket in it for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.client_cloud import Cloud, region


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The URL of the look-alike."""
    with region() as url:
        yield url


@pytest.fixture
def cloud(endpoint: str) -> Cloud:
    """A bucket, and what a user's shell would hold to reach it."""
    return Cloud(endpoint)
