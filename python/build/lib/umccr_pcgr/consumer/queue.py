"""The interfaces of queue and store. Each has two backends, ``sqs`` and ``spool``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from umccr_pcgr.samples.model import Claim, InputRef, InputVersion, Outcome, Published, StopReason


class Queue(Protocol):
    """At-least-once delivery with a lease: a claimed message is hidden from others for ``visibility`` seconds.

    Every method may raise :class:`~.model.Transient`.
    """

    visibility: float
    max_receives: int | None  # None: a message is delivered without limit

    def claim(self, wait: float) -> Claim | None:
        """Take one message, waiting up to `wait` seconds for it; None when there is none."""

    def extend(self, claim: Claim) -> None:
        """Hide the message for ``visibility`` more seconds; LeaseLost when another worker has it."""

    def release(self, claim: Claim, delay: float) -> None:
        """Return the message; it is delivered again after `delay` seconds (0: at once)."""

    def finish(self, claim: Claim, outcome: Outcome) -> None:
        """Remove the message: its inputs are reported."""

    def unfinished(self) -> int:
        """Count the messages that wait, are delayed or are claimed by any worker (may be approximate)."""


class Store(Protocol):
    """Objects with conditional writes. Every method may raise :class:`~.model.Transient`."""

    echoes: bool  # whether an event source may report published objects as if they were inputs

    def head(self, ref: InputRef) -> InputVersion | None:
        """Return the version that `ref` names (the newest when it names none); None when it does not exist any more."""

    def is_current(self, version: InputVersion) -> bool:
        """Return whether `version` is what its key holds now."""

    def fetch(self, version: InputVersion, target: Path, stop: StopReason) -> str:
        """Copy exactly `version` into the new file `target`, verified; returns its sha256 (hex)."""

    def published(self, bucket: str, key: str) -> Published | None:
        """Return the result or report at `key`, or None."""

    def put_if(self, bucket: str, key: str, path: Path, labels: Mapping[str, str], tag: str | None) -> None:
        """Store the file if `key` is free (`tag` None) or still holds the object `tag`; else Conflict.

        `labels` are those of :func:`umccr_pcgr.samples.labels.labels`.
        """

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Store without condition (progress notes only)."""

    def delete(self, bucket: str, key: str) -> None:
        """Remove `key` if it is there."""
