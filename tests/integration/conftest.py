"""One local region for the tests that need machines; images are built once and cached as for the demo."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts/lib"))
import road


@dataclass(frozen=True)
class Region:
    """A running region: the clients' environment, a folder for files, a key pair, the settings for aws.yml."""

    environment: dict[str, str]
    folder: Path
    key: Path
    variables: dict[str, Any]

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def client(self, service: str) -> Any:
        return road.client(self.environment, service)


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    folder = tmp_path_factory.mktemp("region")
    log = folder / "log"
    road.prepare_images(log, print)
    key = road.make_key(folder / "key")
    with road.region(folder / "cloud", log) as environment:
        yield Region(environment, folder, key, road.key_variables(key))
