"""Writes the notes of an instance (:mod:`umccr_pcgr.samples.notes`) to the bucket."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from umccr_pcgr.samples.documents import as_json
from umccr_pcgr.samples.model import Transient
from umccr_pcgr.samples.notes import INTERRUPTED, interruption_note, note_key, sample_note

from .queue import Store

log = logging.getLogger(__name__)


class Notes:
    """Writes notes to a bucket; none while the instance's id is not known. A note is a courtesy: if it fails, that is only logged."""

    def __init__(self, store: Store, bucket: str, instance: Callable[[], str]) -> None:
        """`instance` returns the instance id, "" while it is not known."""
        self._store = store
        self._bucket = bucket
        self._instance = instance

    def sample(self, attempt: str, seconds: float) -> None:
        """Note that an attempt published its result, so many seconds after it began."""
        if instance := self._instance():
            self._write(instance, attempt, sample_note(instance, attempt, seconds))

    def interrupted(self) -> None:
        """Note that EC2 announced the interruption of this instance."""
        if instance := self._instance():
            self._write(instance, INTERRUPTED, interruption_note(instance))

    def _write(self, instance: str, name: str, note: Mapping[str, Any]) -> None:
        try:
            self._store.put(self._bucket, note_key(instance, name), as_json(note))
        except Transient as error:
            log.warning("cannot leave the note %s: %s", name, error)
