# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Report the progress of a long transfer in a file, and defer a transfer that is to run in the background."""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.umccr.pcgr.plugins.module_utils._state import write_file

LARGE = 1e9  # bytes; a smaller transfer ends before anyone asks about it
REPORT_SECONDS = 1.0  # between two reports
PROGRESS = ".umccr.pcgr.progress"  # the file of reports, in the folder whose lock the transfer holds


def progress_file(folder: str) -> str:
    """Return the path of the file that holds the progress of what is installed in `folder`."""
    return os.path.join(folder, PROGRESS)


def defer(module: AnsibleModule, size: float | None, path: str) -> None:
    """End the module if it is asked to defer (option `defer`) and `size` bytes to fetch are many, or unknown (None).

    The action plugin then runs the module again in the background, and reads the progress from the file at `path`.
    """
    if module.params["defer"] and (size is None or size >= LARGE):
        module.exit_json(changed=False, deferred=path)


class Progress:
    """Write the progress to the file at `path` each second while entered, and remove the file at the end.

    `done` of `size` (None: unknown) are counted in `unit`; with the unit "", they are the bytes that `count` adds up.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._ended = threading.Event()
        self._counting = threading.Lock()
        self._writer = threading.Thread(target=self._write, daemon=True)
        self.begin("")

    def begin(self, part: str, size: int | None = None, unit: str = "", done: int = 0) -> None:
        """Report on `part` from now on."""
        self._fetched, self._begun = 0, time.monotonic()
        self.part, self.size, self.unit, self.done = part, size, unit, done

    def count(self, received: int) -> None:
        """Add `received` bytes; threads may call this."""
        with self._counting:
            self._fetched += received
            if not self.unit:
                self.done += received

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
        while not self._ended.wait(REPORT_SECONDS):
            about: dict[str, Any] = {"part": self.part, "done": self.done, "size": self.size, "unit": self.unit}
            about |= {"fetched": self._fetched, "seconds": time.monotonic() - self._begun}
            with suppress(OSError):  # a full disk is an error of the transfer itself
                write_file(self.path, json.dumps(about).encode(), durable=False)
