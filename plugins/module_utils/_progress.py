# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell who looks how far a long work is, and leave much work to be begun apart from the connection."""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.umccr.pcgr.plugins.module_utils._state import replace

LARGE = 1e9  # bytes; less is there before anyone wonders
PROGRESS = ".runtime.progress"
TELL_SECONDS = 1.0  # between two reports


def put_off(module: AnsibleModule, size: float | None, path: str) -> None:
    """End the module where it is asked to (option `defer`) and `size` bytes to bring are many, or unknown.

    The action plugin then runs it again, apart from the connection, and looks at `path`, the file that tells the progress.
    """
    if module.params["defer"] and (size is None or size >= LARGE):
        module.exit_json(changed=False, deferred=path)


class Progress:
    """While entered, each second the file at `path` says how far the work is; it is removed at the end.

    `done` of `size` (None: unknown) are counted in `unit`; with the unit "", they are the bytes that `came` counts.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._ended = threading.Event()
        self._counting = threading.Lock()
        self._writer = threading.Thread(target=self._write, daemon=True)
        self.begin("")

    def begin(self, part: str, size: int | None = None, unit: str = "", done: int = 0) -> None:
        """From now on it is about `part`."""
        self._fetched, self._begun = 0, time.monotonic()
        self.part, self.size, self.unit, self.done = part, size, unit, done

    def came(self, count: int) -> None:
        """Take note of `count` more bytes; threads may call this."""
        with self._counting:
            self._fetched += count
            if not self.unit:
                self.done += count

    def __enter__(self) -> Progress:
        os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
        self._writer.start()
        return self

    def __exit__(self, *_unused: object) -> None:
        self._ended.set()
        self._writer.join()
        with suppress(OSError):
            os.unlink(self.path)

    def _write(self) -> None:
        while not self._ended.wait(TELL_SECONDS):
            about: dict[str, Any] = {"part": self.part, "done": self.done, "size": self.size, "unit": self.unit}
            about |= {"fetched": self._fetched, "seconds": time.monotonic() - self._begun}
            with suppress(OSError):  # a full disk is told by the work
                replace(self.path, json.dumps(about).encode())
