"""What only the machine itself knows and others learn after its end: how long samples took, and that it was taken away.

Each note is a line of the log of spot machines (``docs/spot.md``) and an object of its own in the bucket. None names a sample.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from umccr_pcgr.samples import clock
from umccr_pcgr.samples.model import Transient
from umccr_pcgr.samples.naming import note_key

from .pack import as_json
from .queue import Store

log = logging.getLogger(__name__)


class Notes:
    """Writes notes to a bucket; none while the machine's id is not known. A note is a courtesy: that it fails is only logged."""

    def __init__(self, store: Store, bucket: str, machine: Callable[[], str]) -> None:
        """`machine` gives the instance id, "" while it is not known."""
        self._store = store
        self._bucket = bucket
        self._machine = machine

    def sample(self, attempt: str, seconds: float) -> None:
        """An attempt has published its result, so many seconds after it began."""
        self._write(attempt, event="sample", hours=float(f"{seconds / 3600:.4g}"), attempt=attempt)

    def interrupted(self) -> None:
        """EC2 has said that it takes this machine away."""
        self._write("interrupted", event="interrupted")

    def _write(self, name: str, **fields: Any) -> None:
        if not (machine := self._machine()):
            return
        note = {"time": clock.iso(clock.utc()), "machine": machine, **fields}
        try:
            self._store.put(self._bucket, note_key(machine, name), as_json(note))
        except Transient as error:
            log.warning("cannot leave the note %s: %s", name, error)
