"""The tool's voice: log lines on stdout in PCGR's form, and the ways a run ends early."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn


class SubStepFailed(Exception):
    """A sub-step ended in error. PCGR prints its output and then exits 0: the lie that callers must see through.

    The text is what remains to be printed; empty when the log has said it.
    """


@dataclass(frozen=True)
class Log:
    """One named log, e.g. ``2026-01-31 12:00:00 - pcgr-vep - INFO - text`` on stdout.

    Logs of a sub-step (``sub_step=True``) raise `SubStepFailed` where the others leave with exit code 1.
    """

    name: str
    sub_step: bool = False

    def _line(self, level: str, text: str) -> None:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} - {self.name} - {level} - {text}", flush=True)

    def info(self, text: str) -> None:
        self._line("INFO", text)

    def warn(self, text: str) -> None:
        for part in ("", text, ""):
            self._line("WARNING", part)

    def note(self, text: str) -> None:
        """A warning without the empty lines around it."""
        self._line("WARNING", text)

    def refuse(self, text: str) -> NoReturn:
        for part in ("", text, ""):
            self._line("ERROR", part)
        if self.sub_step:
            raise SubStepFailed
        sys.exit(1)


@contextmanager
def sub_step() -> Iterator[None]:
    """Whatever goes wrong inside is a failed sub-step: its traceback is printed, the exit code stays 0."""
    try:
        yield
    except SubStepFailed:
        raise
    except Exception as error:
        import traceback

        traceback.print_exc(file=sys.stdout)
        raise SubStepFailed from error


def rule() -> None:
    """The line of dashes between two sections of the log."""
    print("----", flush=True)
