"""What passes between the parts of the consumer: data without behaviour, and the ways in which work can end early."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

# Returns why the work must stop at once (lease lost, shutdown), or None while it may go on.
StopReason = Callable[[], "str | None"]
State = Literal["queued", "running", "done", "failed"]  # of a sample
Outcome = Literal["done", "failed"]  # of a message


class ConsumerError(Exception):
    """One line for a person; the base of everything the consumer raises on purpose."""


class Permanent(ConsumerError):
    """Trying again cannot help (bad input, the tool says no): reported as failed, and the message is deleted."""

    def __init__(self, stage: str, reason: str, log_tail: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.stage = stage
        self.log_tail = log_tail


class Transient(ConsumerError):
    """The environment failed (network, store, queue, docker, disk): the message stays and is delivered again later."""

    def __init__(self, stage: str, reason: str, log_tail: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.stage = stage
        self.log_tail = log_tail


class Stopped(ConsumerError):
    """The attempt must stop (shutdown, interruption notice); nothing is wrong with the sample."""


class LeaseLost(ConsumerError):
    """The message may already belong to another worker: kill, discard, touch nothing that is shared."""


class Conflict(ConsumerError):
    """A conditional write did not find what it expected; read again and decide anew."""


@dataclass(frozen=True)
class InputRef:
    """What an event says about an object; only bucket and key are certain."""

    bucket: str
    key: str
    version_id: str | None = None
    etag: str | None = None
    size: int | None = None


def identity_of(version_id: str | None, etag: str | None) -> str:
    """Return the version id where the store has versions, else the etag, which identifies the bytes."""
    return f"version:{version_id}" if version_id else f"etag:{etag}"


@dataclass(frozen=True)
class InputVersion:
    """One version of an input object as the store knows it; ``size`` in bytes, ``last_modified`` in UTC.

    ``last_modified`` is None only for an object that no longer exists.
    """

    bucket: str
    key: str
    version_id: str | None
    etag: str | None
    size: int
    last_modified: datetime | None
    md5: str | None = None  # hex, where the etag is known to be one

    @property
    def identity(self) -> str:
        """What names exactly this version, see :func:`identity_of`."""
        return identity_of(self.version_id, self.etag)


@dataclass(frozen=True)
class Published:
    """A result or failure report that is there already, and which input version it is of.

    ``tag`` names exactly this stored object (for compare-and-swap). ``identity`` and ``last_modified`` are None when the
    object does not say, because another program stored it. ``final`` is False for a report of a failure that may pass.
    """

    tag: str
    identity: str | None
    last_modified: datetime | None
    attempt: str | None
    final: bool = True


@dataclass(frozen=True)
class Claim:
    """One message taken from the queue; ``receives`` counts from 1, ``received`` is a reading of :func:`clock.now`.

    ``refusal`` says why the message cannot be understood; ``exhausted`` that it was delivered too often already.
    """

    handle: str
    jobs: tuple[InputRef, ...]
    receives: int
    received: float
    refusal: str | None = None
    exhausted: bool = False
