"""The last thing that this machine does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

testinfra_hosts = ["ansible://pcgr"]


def test_the_machine_ends_itself_when_nothing_is_left(host: Any, asked: Callable[[str], Any]) -> None:
    name = host.backend.host
    end = time.monotonic() + asked("consumer_idle_seconds") + 60
    while time.monotonic() < end:
        command = ["docker", "inspect", "--format", "{{ .State.Status }} {{ .State.ExitCode }}", name]
        state = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        if state != ["running", "0"]:
            break
        time.sleep(1)
    assert state[0] == "exited"
