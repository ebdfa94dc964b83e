"""Run playbooks of this collection in a local region."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.process import ROOT, follow

REGION_VARIABLES = ROOT / "testbed/localcloud/vars.yml"


def key_variables(key: Path) -> dict[str, Any]:
    """Return the variables of `aws.yml` for a key pair created by make_key. REGION_VARIABLES holds those of the region."""
    return {"aws_public_key_file": f"{key}.pub", "aws_private_key_file": str(key)}


def run_playbook(
    name: str, variables: Mapping[str, Any], environment: Mapping[str, str], log: Path, *options: str
) -> Iterator[str]:
    """Run a playbook in a local region and yield the name of each task as it starts; raises StepError.

    `options` are further arguments of ansible-playbook.
    """
    command: list[str | Path] = [
        Path(sys.executable).parent / "ansible-playbook",
        f"playbooks/{name}",
        "-e",
        f"@{REGION_VARIABLES}",
        "-e",
        json.dumps(variables),
    ]
    timed = {
        **environment,
        "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks",
    }  # the log shows the seconds of each task
    for line in follow([*command, *options], log, what=f"playbook {name}", env=timed):
        if match := re.match(r"(?:TASK|RUNNING HANDLER) \[(.+?)\]", line):
            yield match[1]
