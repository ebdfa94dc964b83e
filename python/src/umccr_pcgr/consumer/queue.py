"""The two interfaces behind which a cloud or a folder lies. Two backends each: ``sqs`` and ``spool``."""

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
    max_receives: int | None  # None: nothing ever gives up on a message

    def claim(self, wait: float) -> Claim | None:
        """Take one message, waiting up to `wait` seconds for it; None when there is none."""

    def extend(self, claim: Claim) -> None:
        """Hide the message for ``visibility`` more seconds; LeaseLost when it is not ours any more."""

    def release(self, claim: Claim, delay: float) -> None:
        """Give the message back; it comes again after `delay` seconds (0: at once)."""

    def finish(self, claim: Claim, outcome: Outcome) -> None:
        """The message is dealt with for good."""

    def unfinished(self) -> int:
        """How many messages wait, are delayed or are in the hands of any worker (may be approximate)."""


class Store(Protocol):
    """Objects with conditional writes. Every method may raise :class:`~.model.Transient`."""

    echoes: bool  # whether an event source may show what was published as if it were an input

    def head(self, ref: InputRef) -> InputVersion | None:
        """The version `ref` names (the newest when it names none); None when it does not exist any more."""

    def is_current(self, version: InputVersion) -> bool:
        """Whether `version` is what its key holds now."""

    def fetch(self, version: InputVersion, target: Path, stop: StopReason) -> str:
        """Copy exactly `version` into the new file `target`, verified; returns its sha256 (hex)."""

    def published(self, bucket: str, key: str) -> Published | None:
        """The result or report at `key`, or None."""

    def put_if(self, bucket: str, key: str, path: Path, labels: Mapping[str, str], tag: str | None) -> None:
        """Store the file if `key` is free (`tag` None) or still holds the object `tag`; else Conflict.

        `labels` are those of :func:`umccr_pcgr.samples.labels.labels`.
        """

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Store without condition (progress notes only)."""

    def delete(self, bucket: str, key: str) -> None:
        """Remove `key` if it is there."""
