"""Plugin for version 1 of the ``aws`` command: AWS_ENDPOINT_URL counts for every service.

That version puts the addresses of AWS in place for SQS, EMR, RDS and AWS Health, unless ``--endpoint-url`` is given, whatever
the environment and the configuration file say. This gives ``--endpoint-url`` before it looks.
"""

from __future__ import annotations

import os
from typing import Any


def awscli_initialize(cli: Any) -> None:
    """Called by the ``aws`` command at its start."""
    cli.register_first("before-building-argument-table-parser", set_endpoint_url)


def set_endpoint_url(parsed_globals: Any, **_: Any) -> None:
    """Behave as if the user had given ``--endpoint-url`` with the value of AWS_ENDPOINT_URL."""
    if parsed_globals.endpoint_url is None:
        parsed_globals.endpoint_url = os.environ.get("AWS_ENDPOINT_URL")
