"""Exactly one result per input version: conditional writes, and what to do when another worker was first.

The queue is never the proof of ownership. A result says which input version it is of; it is written only where there is none,
or over that of an older version that was just read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from umccr_pcgr.samples.labels import labels, relation
from umccr_pcgr.samples.model import Conflict, InputVersion, Published, Transient

from .queue import Store

Standing = Literal["free", "replaceable", "same", "newer"]
Verdict = Literal["published", "duplicate", "superseded"]
ATTEMPTS_MAX = (
    8  # every conflict means that another worker made progress on the same key; eight in a row are no race any more
)


def standing(store: Store, published: Published | None, version: InputVersion) -> Standing:
    """Return whether the name is free for a result of an input version, can be replaced, or is taken by the same or a newer version."""
    if published is None:
        return "free"
    match relation(published, version.identity, version.last_modified, lambda: store.is_current(version)):
        case "same":
            return "same" if published.final else "replaceable"
        case "older":
            return "replaceable"
        case "newer":
            return "newer"


def publish(store: Store, key: str, path: Path, version: InputVersion, attempt: str, *, final: bool = True) -> Verdict:
    """Store `path` at `key` unless a result of the same or a newer input version is there already.

    "duplicate": the same version's result is there (drop our own); "superseded": a newer version's.
    Raises Transient when the store fails or the key keeps changing.
    """

    def once() -> Verdict:
        there = store.published(version.bucket, key)
        stands = standing(store, there, version)
        if stands == "same":
            # our own write, whose answer was lost
            return "published" if there and there.attempt == attempt else "duplicate"
        if stands == "newer":
            return "superseded"
        store.put_if(version.bucket, key, path, labels(version, attempt, final=final), there.tag if there else None)
        return "published"

    attempts = Retrying(
        retry=retry_if_exception_type(Conflict),
        stop=stop_after_attempt(ATTEMPTS_MAX),
        wait=wait_random_exponential(multiplier=0.05, max=2),
        reraise=True,
    )
    try:
        return attempts(once)
    except Conflict as error:
        raise Transient("publish", f"{key}: {error} ({ATTEMPTS_MAX} times in a row)") from None
