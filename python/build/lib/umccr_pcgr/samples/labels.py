"""What a published object says about itself, and how it compares with a version of the input.

A result or a failure report carries four labels (user metadata in S3: lower-case names, ASCII values). A spool has no metadata;
there the same labels follow from the object's own JSON document.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Literal

from .clock import iso, parse_iso
from .model import InputVersion, Published, identity_of

INPUT = "pcgr-input"  # identity of the input version
MODIFIED = "pcgr-input-modified"  # when that version was stored, as clock.iso writes it; empty if unknown
ATTEMPT = "pcgr-attempt"
FINAL = "pcgr-final"  # "no" for the report of a failure that may pass

Relation = Literal["same", "older", "newer"]


def labels(version: InputVersion, attempt: str, *, final: bool) -> dict[str, str]:
    """Return the labels of an object that `attempt` publishes for an input version."""
    return {
        INPUT: version.identity,
        MODIFIED: iso(version.last_modified) or "",
        ATTEMPT: attempt,
        FINAL: "yes" if final else "no",
    }


def from_labels(found: Mapping[str, str], tag: str) -> Published:
    """Return what labels say, the inverse of :func:`labels`; identity and time are None where they say nothing."""
    return Published(
        tag,
        found.get(INPUT),
        parse_iso(found.get(MODIFIED)),
        found.get(ATTEMPT),
        final=found.get(FINAL) != "no",
    )


def labels_in(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels that follow from a result's provenance or a failure report; empty if it names no input version."""
    source = document.get("input")
    if not isinstance(source, dict) or not source.get("version_id"):
        return {}
    return {
        INPUT: identity_of(str(source["version_id"]), None),
        MODIFIED: str(source.get("last_modified") or ""),
        ATTEMPT: str(document.get("attempt") or ""),
        FINAL: "yes" if document.get("permanent", True) else "no",
    }


def relation(
    published: Published, identity: str | None, last_modified: datetime | None, is_current: Callable[[], bool]
) -> Relation:
    """Return whether a published object is of the given input version, of an older or of a newer one.

    `last_modified` is None for an input that no longer exists. `is_current` is called for a tie only: S3 counts whole seconds, and
    of two versions of one second the newer one is what the key holds now.
    """
    if identity is not None and published.identity == identity:
        return "same"
    if last_modified is None:  # nothing says that the input was newer
        return "newer"
    if published.last_modified is None or published.last_modified < last_modified:
        return "older"
    if published.last_modified > last_modified:
        return "newer"
    return "older" if is_current() else "newer"
