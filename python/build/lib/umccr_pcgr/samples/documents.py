"""JSON documents beside a sample: the failure report, the progress note, and the input that each of them names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from .clock import iso, parse_iso
from .model import InputVersion


def as_json(document: Mapping[str, Any]) -> bytes:
    """Return JSON as people like to read it, with a final newline."""
    return (json.dumps(document, indent=2) + "\n").encode()


def json_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in `data`; empty if it is none."""
    try:
        document = json.loads(data)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def input_fields(version: InputVersion, sha256: str | None) -> dict[str, Any]:
    """Return how a document names the input version; `sha256` (hex) is None until the input was fetched."""
    return {
        "bucket": version.bucket,
        "key": version.key,
        "version_id": version.version_id,
        "etag": version.etag,
        "bytes": version.size,
        "sha256": sha256,
        "last_modified": iso(version.last_modified),
    }


@dataclass(frozen=True)
class FailureReport:
    """Why an attempt failed, as others read it; ``reason`` is one line."""

    reason: str | None
    host: str | None
    permanent: bool
    log_tail: tuple[str, ...]

    @staticmethod
    def document(
        sample: str,
        source: Mapping[str, Any],
        *,
        reason: str,
        stage: str,
        attempt: str,
        host: str,
        time: datetime,
        permanent: bool,
        log_tail: tuple[str, ...],
    ) -> dict[str, Any]:
        """Return a report as it is published; `source` is what :func:`input_fields` returns."""
        return {
            "sample": sample,
            "input": dict(source),
            "reason": reason,
            "stage": stage,
            "attempt": attempt,
            "host": host,
            "time": iso(time),
            "permanent": permanent,
            "log_tail": list(log_tail),
        }

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> FailureReport:
        """Read a published report; what it does not say is None, and a failure is permanent unless it says otherwise."""
        tail = document.get("log_tail")
        return cls(
            _line(document.get("reason")),
            _line(document.get("host")),
            bool(document.get("permanent", True)),
            tuple(str(line) for line in tail) if isinstance(tail, list) else (),
        )


@dataclass(frozen=True)
class ProgressNote:
    """Who works on a sample since when, as others read it."""

    host: str | None
    started: datetime | None

    @staticmethod
    def document(
        sample: str, source: Mapping[str, Any], *, attempt: str, host: str, started: datetime
    ) -> dict[str, Any]:
        """Return a note as it is stored; `source` is what :func:`input_fields` returns."""
        return {"sample": sample, "input": dict(source), "attempt": attempt, "host": host, "started": iso(started)}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> ProgressNote:
        """Read a stored note; what it does not say is None."""
        return cls(_line(document.get("host")), _time(document.get("started")))


def _line(value: object) -> str | None:
    return None if value is None else " ".join(str(value).split())


def _time(value: object) -> datetime | None:
    if found := parse_iso(str(value)):
        return found
    try:
        return datetime.fromisoformat(str(value)).replace(tzinfo=timezone.utc)
    except ValueError:
        return None
