"""One local region for the tests that need machines; images are built once and cached as for the demo."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import harness
from support.region import Region


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    folder = tmp_path_factory.mktemp("region")
    log = folder / "log"
    harness.prepare_images(log, print)
    key = harness.make_key(folder / "key")
    with harness.local_region(folder / "cloud", log) as environment:
        yield Region(environment, folder, key, harness.key_variables(key))
