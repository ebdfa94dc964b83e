"""Plugin for version 1 of the ``aws`` command that applies AWS_ENDPOINT_URL to every service.

Without ``--endpoint-url``, that version sends requests to SQS, EMR, RDS and AWS Health to the addresses of AWS and ignores
the environment and the configuration file. The plugin therefore sets ``--endpoint-url`` early.
"""

from __future__ import annotations

import os
from typing import Any


def awscli_initialize(cli: Any) -> None:
    """Register the plugin; the ``aws`` command calls this at its start."""
    cli.register_first("before-building-argument-table-parser", set_endpoint_url)


def set_endpoint_url(parsed_globals: Any, **_unused: Any) -> None:
    """Set ``--endpoint-url`` to AWS_ENDPOINT_URL unless the user has set it."""
    if parsed_globals.endpoint_url is None:
        parsed_globals.endpoint_url = os.environ.get("AWS_ENDPOINT_URL")
