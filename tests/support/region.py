"""The running region that tests of instances share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness


@dataclass(frozen=True)
class Region:
    """A running region: the clients' environment, a folder for files, a key pair, the settings for aws.yml."""

    environment: dict[str, str]
    folder: Path
    key: Path
    variables: dict[str, Any]

    @property
    def log(self) -> Path:
        """The log of all steps in the region."""
        return self.folder / "log"

    def client(self, service: str) -> Any:
        """Return a boto3 client of a service in the region."""
        return harness.client(self.environment, service)
