"""Notes that an instance leaves in the bucket about itself: how long samples took, and that EC2 interrupts it.

Each note is an object of its own and a line of the log of spot instances (``docs/spot.md``). None names a sample. The spot library
of the collection's plugins reads them; it cannot import this module, so a test holds the two together.
"""

from __future__ import annotations

import re
from typing import Any

from .clock import iso, utc

FOLDER = "machines/"  # in the bucket
INTERRUPTED = "interrupted"  # name and event of the note about an interruption
_KEY = re.compile(re.escape(FOLDER) + r"i-[0-9a-f]+/[0-9a-z]+\.json")


def note_key(instance: str, name: str) -> str:
    """Return the key of an instance's note; `instance` is its id, `name` an attempt's id or "interrupted"."""
    return f"{FOLDER}{instance}/{name}.json"


def is_note(key: str) -> bool:
    """Return whether a key is that of an instance's note."""
    return _KEY.fullmatch(key) is not None


def sample_note(instance: str, attempt: str, seconds: float) -> dict[str, Any]:
    """Return the note that an attempt published its result `seconds` after it began; ``hours`` has four digits."""
    return _note(instance, event="sample", hours=float(f"{seconds / 3600:.4g}"), attempt=attempt)


def interruption_note(instance: str) -> dict[str, Any]:
    """Return the note that EC2 announced the interruption of the instance."""
    return _note(instance, event=INTERRUPTED)


def _note(instance: str, **fields: Any) -> dict[str, Any]:
    return {"time": iso(utc()), "machine": instance, **fields}
