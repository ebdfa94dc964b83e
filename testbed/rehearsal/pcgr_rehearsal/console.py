"""Log lines on stdout in PCGR's format, and the ways in which a run ends early."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn


class SubStepFailed(Exception):
    """A sub-step failed. PCGR prints its output and then exits with code 0, which callers must not take for success.

    The text is what remains to be printed; it is empty if the log has reported the failure.
    """


@dataclass(frozen=True)
class Log:
    """One named log, with lines such as ``2026-01-31 12:00:00 - pcgr-vep - INFO - text`` on stdout.

    On a refusal, logs of a sub-step (``sub_step=True``) raise `SubStepFailed`; others exit with code 1.
    """

    name: str
    sub_step: bool = False

    def _line(self, level: str, text: str) -> None:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} - {self.name} - {level} - {text}", flush=True)

    def info(self, text: str) -> None:
        """Log a line of information."""
        self._line("INFO", text)

    def warn(self, text: str) -> None:
        """Log a warning between two empty lines, as PCGR does."""
        for part in ("", text, ""):
            self._line("WARNING", part)

    def note(self, text: str) -> None:
        """Log a warning without the empty lines around it."""
        self._line("WARNING", text)

    def refuse(self, text: str) -> NoReturn:
        """Log an error and end the run: raise SubStepFailed in a sub-step, else exit with code 1."""
        for part in ("", text, ""):
            self._line("ERROR", part)
        if self.sub_step:
            raise SubStepFailed
        sys.exit(1)


@contextmanager
def sub_step() -> Iterator[None]:
    """Turn any exception inside the block into a failed sub-step: print its traceback, keep exit code 0."""
    try:
        yield
    except SubStepFailed:
        raise
    except Exception as error:
        import traceback

        traceback.print_exc(file=sys.stdout)
        raise SubStepFailed from error


def rule() -> None:
    """Print the line of dashes between two sections of the log."""
    print("----", flush=True)
