"""A running region as the tests of instances see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import region as harness


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
        return harness.client(self.environment, service)
