# SPDX-License-Identifier: MIT
"""Runs the module databundle; where there is much to fetch, apart from the connection, and with its progress on the screen."""

from __future__ import annotations

import json
import shlex
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.umccr.pcgr.plugins.module_utils.unpack import PROGRESS

LARGE = 1.0  # GB; less is there before anyone wonders
LONGEST = 7 * 24 * 3600  # seconds for one run; a slow line takes days for both assemblies
LOOK_SECONDS = 5
STALLED_SECONDS = 900  # the module itself gives up earlier, after six attempts of a minute
OF_THE_JOB = {"ansible_job_id", "results_file", "started", "finished"}  # in the wrapper's answers, not in the module's
# Between two lines on the screen.
STEP_PERCENT = 5
STEP_SECONDS = 60

display = Display()


def large(arguments: dict[str, Any]) -> bool:
    """Whether an archive of the release is known to be large."""
    release = arguments.get("release") or {}
    wanted = arguments.get("assemblies") or []
    archives = [
        release.get(part, {}).get("archives", {}).get(name) or {} for part in ("bundle", "vep") for name in wanted
    ]
    return any((entry.get("approx_gb") or (entry.get("bytes") or 0) / 1e9) >= LARGE for entry in archives)


class Screen:
    """Turns what the module writes about its progress into a line now and then."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.changed_at = time.monotonic()
        self._last: dict[str, Any] = {}
        self._shown: tuple[str, float, float] = ("", -STEP_PERCENT, 0.0)  # part, percent, time

    def show(self, text: str) -> None:
        """Take note of the progress file's contents."""
        try:
            now = json.loads(text)
        except ValueError:
            return
        if now != self._last:
            self.changed_at, self._last = time.monotonic(), now
        part, percent, at = self._shown
        size = now["size"] or 0
        reached = 100 * now["done"] / size if size else 0.0
        if now["part"] == part and reached < percent + STEP_PERCENT and time.monotonic() < at + STEP_SECONDS:
            return
        self._shown = (now["part"], reached, time.monotonic())
        speed = now["fetched"] / max(now["seconds"], 0.1)
        minutes, seconds = divmod(int((size - now["done"]) / speed) if size and speed else 0, 60)
        left = f", {minutes}:{seconds:02} min left" if size and speed else ""
        share = f"{reached:3.0f} % of {size / 1e9:.1f} GB" if size else f"{now['done'] / 1e9:.1f} GB"
        display.display(f"  [{self.host}] {now['part']}: {share}, {speed / 1e6:.0f} MB/s{left}")


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """Action of the task ``umccr.pcgr.databundle``."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        super().run(tmp, task_vars)
        if self._task.check_mode or not large(self._task.args):
            return dict(self._execute_module(task_vars=task_vars))
        self._task.check_mode = True
        predicted = dict(self._execute_module(task_vars=task_vars))
        self._task.check_mode = False
        if predicted.get("failed") or not predicted.get("changed"):
            return predicted
        return self._apart(task_vars or {})

    def _apart(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Start the module so that it does not end with the connection, and look after it until it has ended."""
        self._task.async_val = LONGEST
        job = self._execute_module(task_vars=task_vars, wrap_async=True)
        self._task.async_val = 0
        if not job.get("ansible_job_id"):
            return dict(job)
        screen = Screen(str(task_vars.get("inventory_hostname", self._play_context.remote_addr)))
        answer = shlex.quote(job["results_file"])
        progress = shlex.quote(f"{self._task.args['root']}/{PROGRESS}")
        while True:
            time.sleep(LOOK_SECONDS)
            try:
                told = self._low_level_execute_command(f"cat {answer}; echo; cat {progress} 2>/dev/null || true")
            except AnsibleConnectionFailure:
                told = {"stdout_lines": []}  # the work goes on without us; perhaps the line comes back
            # The wrapper writes one line when it starts; the module's answer takes its place.
            first, *rest = [line for line in told["stdout_lines"] if line.strip()] or [""]
            if first and not json.loads(first).get("started"):
                break
            screen.show("".join(rest))
            if time.monotonic() > screen.changed_at + STALLED_SECONDS:
                return {
                    "failed": True,
                    "msg": f"no progress for {STALLED_SECONDS // 60} minutes; the next run goes on from there",
                }
        asked = {"jid": job["ansible_job_id"], "_async_dir": self.get_shell_option("async_dir", "~/.ansible_async")}
        result, _ = (
            self._execute_module("ansible.builtin.async_status", asked | {"mode": mode}, task_vars=task_vars)
            for mode in ("status", "cleanup")
        )
        return {key: value for key, value in result.items() if key not in OF_THE_JOB}
