"""Exactly one result per input version: conditional writes, and what to do when somebody was there first.

The queue is never the proof of ownership. A result says which input version it is of; it is written only where there is none,
or over the one of an older version that was just looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from umccr_pcgr.samples.clock import iso, parse_iso
from umccr_pcgr.samples.model import Conflict, InputVersion, Published, Transient

from .queue import Store

Standing = Literal["free", "replaceable", "same", "newer"]
Verdict = Literal["published", "duplicate", "superseded"]
LOOKS = 8  # every conflict means that somebody else made progress on the same key; eight in a row is no race any more


def labels(version: InputVersion, attempt: str, *, final: bool) -> dict[str, str]:
    """What a published object says about itself (S3 user metadata: lower-case names, ASCII values)."""
    return {
        "pcgr-input": version.identity,
        "pcgr-input-modified": iso(version.last_modified) or "",
        "pcgr-attempt": attempt,
        "pcgr-final": "yes" if final else "no",
    }


def from_labels(found: Mapping[str, str], tag: str) -> Published:
    """The inverse of :func:`labels`; an object without them is of an unknown, older version."""
    return Published(
        tag,
        found.get("pcgr-input"),
        parse_iso(found.get("pcgr-input-modified")),
        found.get("pcgr-attempt"),
        final=found.get("pcgr-final") != "no",
    )


def standing(store: Store, there: Published | None, version: InputVersion) -> Standing:
    """How an object that is already published stands to an input version."""
    if there is None:
        return "free"
    if there.identity == version.identity:
        return "same" if there.final else "replaceable"
    if version.last_modified is None:  # the input is gone: nothing says that it was newer
        return "newer"
    if there.last_modified is None or there.last_modified < version.last_modified:
        return "replaceable"
    if there.last_modified > version.last_modified:
        return "newer"
    # S3 gives whole seconds: of two versions of one second, the one that the key holds now is the newer
    return "replaceable" if store.is_current(version) else "newer"


def publish(store: Store, key: str, path: Path, version: InputVersion, attempt: str, *, final: bool = True) -> Verdict:
    """Store `path` at `key` unless a result of the same or a newer input version is there already.

    "duplicate": the same version's result is there (drop our own); "superseded": a newer version's.
    Raises Transient when the store fails or the key never comes to rest.
    """

    def once() -> Verdict:
        there = store.published(version.bucket, key)
        stands = standing(store, there, version)
        if stands == "same":
            # our own write, whose answer was lost on the way
            return "published" if there and there.attempt == attempt else "duplicate"
        if stands == "newer":
            return "superseded"
        store.put_if(version.bucket, key, path, labels(version, attempt, final=final), there.tag if there else None)
        return "published"

    looks = Retrying(
        retry=retry_if_exception_type(Conflict),
        stop=stop_after_attempt(LOOKS),
        wait=wait_random_exponential(multiplier=0.05, max=2),
        reraise=True,
    )
    try:
        return looks(once)
    except Conflict as error:
        raise Transient("publish", f"{key}: {error} ({LOOKS} times in a row)") from None
