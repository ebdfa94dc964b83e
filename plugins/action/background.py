# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a module that installs data or a runtime; run a large transfer in the background, with its progress on the screen.

``meta/runtime.yml`` names the modules. Each runs with C(defer) first: it does what is small, or answers where its progress will be.
"""

from __future__ import annotations

import json
import shlex
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

LONGEST = 7 * 24 * 3600  # seconds for one run; a slow line takes days for both assemblies
POLL_SECONDS = 5
STALLED_SECONDS = 900  # the module itself gives up earlier, after six attempts of a minute
JOB_KEYS = {"ansible_job_id", "results_file", "started", "finished"}  # in the wrapper's answers, not in the module's
# Between two lines on the screen.
STEP_PERCENT = 5
STEP_SECONDS = 60

display = Display()


def minutes(seconds: float) -> str:
    """`seconds` as M:SS."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02} min"


class Screen:
    """Print the module's progress as a line now and then."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.changed_at = time.monotonic()
        self._last: dict[str, Any] = {}
        self._shown: tuple[str, float, float] = ("", -STEP_PERCENT, 0.0)  # part, percent, time

    def show(self, text: str) -> None:
        """Read the progress file's contents and print a line if one is due."""
        try:
            now = json.loads(text)
        except ValueError:
            return
        if now != self._last:
            self.changed_at, self._last = time.monotonic(), now
        part, percent, at = self._shown
        done, size, unit, speed = (
            now["done"],
            now["size"] or 0,
            now.get("unit"),
            now["fetched"] / max(now["seconds"], 0.1),
        )
        reached = 100 * done / size if size else 0.0
        if now["part"] == part and reached < percent + STEP_PERCENT and time.monotonic() < at + STEP_SECONDS:
            return
        self._shown = (now["part"], reached, time.monotonic())
        if size:
            shown = [f"{done} of {size} {unit}" if unit else f"{reached:3.0f} % of {size / 1e9:.1f} GB"]
        else:
            shown = [f"{done / 1e9:.1f} GB"] if done else []
        if speed:
            shown.append(f"{speed / 1e6:.0f} MB/s")
        shown.append(
            f"{minutes((size - done) / speed)} left" if size and speed and not unit else minutes(now["seconds"])
        )
        display.display(f"  [{self.host}] {now['part']}: {', '.join(shown)}")


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """Action of the tasks that may transfer much."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        super().run(tmp, task_vars)
        result = dict(self._execute_module(module_args=self._task.args | {"defer": True}, task_vars=task_vars))
        return self._run_in_background(result["deferred"], task_vars or {}) if "deferred" in result else result

    def _run_in_background(self, progress: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Start the module so that it outlives the connection, and follow it until it has ended."""
        self._task.async_val = LONGEST
        job = self._execute_module(task_vars=task_vars, wrap_async=True)
        self._task.async_val = 0
        if not job.get("ansible_job_id"):
            return dict(job)
        screen = Screen(str(task_vars.get("inventory_hostname", self._play_context.remote_addr)))
        answer, progress = shlex.quote(job["results_file"]), shlex.quote(progress)
        while True:
            time.sleep(POLL_SECONDS)
            try:
                answered = self._low_level_execute_command(f"cat {answer}; echo; cat {progress} 2>/dev/null || true")
            except AnsibleConnectionFailure:
                answered = {"stdout_lines": []}  # the module continues on the host; the connection may recover
            # The wrapper writes one line when it starts; the module's answer takes its place.
            first, *rest = [line for line in answered["stdout_lines"] if line.strip()] or [""]
            if first and not json.loads(first).get("started"):
                break
            screen.show("".join(rest))
            if time.monotonic() > screen.changed_at + STALLED_SECONDS:
                return {
                    "failed": True,
                    "msg": f"no progress for {STALLED_SECONDS // 60} minutes; the next run goes on from there",
                }
        asked = {"jid": job["ansible_job_id"], "_async_dir": self.get_shell_option("async_dir", "~/.ansible_async")}
        result, _unused = (
            self._execute_module("ansible.builtin.async_status", asked | {"mode": mode}, task_vars=task_vars)
            for mode in ("status", "cleanup")
        )
        return {key: value for key, value in result.items() if key not in JOB_KEYS}
