"""Messages of the queue: which objects were created?

Understood: S3's own notifications (all records, keys url-encoded), the same wrapped by SNS, EventBridge's
"Object Created" (keys plain), and S3's test message, which names no object.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote_plus

from .model import InputRef

SHOWN = 120  # characters of a message that may appear in an error line


class EventRefused(ValueError):
    """A message that cannot be understood; one line saying what was found and what is allowed."""


def parse(body: str) -> tuple[InputRef, ...]:
    """Return the created objects that a message names, none for S3's test message and for removals; EventRefused for anything else."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        raise EventRefused(f"message {body[:SHOWN]!r}: not JSON; allowed: an S3 or EventBridge event") from None
    if not isinstance(event, dict):
        raise EventRefused(f"message {body[:SHOWN]!r}: not an object; allowed: an S3 or EventBridge event")
    if event.get("Event") == "s3:TestEvent":
        return ()
    if event.get("Type") == "Notification" and isinstance(event.get("Message"), str) and "Records" not in event:
        return parse(event["Message"])
    if "detail-type" in event:
        return _eventbridge(event)
    records = event.get("Records")
    if not isinstance(records, list):
        raise EventRefused(f"message {body[:SHOWN]!r}: no 'Records' list; allowed: an S3 or EventBridge event")
    found = (_record(number, record) for number, record in enumerate(records))
    return tuple(dict.fromkeys(ref for ref in found if ref))  # an object that is named twice counts once


def _eventbridge(event: dict[str, Any]) -> tuple[InputRef, ...]:
    if event["detail-type"] != "Object Created":
        return ()
    detail = event.get("detail")
    ref = _ref("detail", detail, "version-id", "etag", decode=False)
    return (ref,)


def _record(number: int, record: Any) -> InputRef | None:
    where = f"Records[{number}]"
    if not isinstance(record, dict):
        raise EventRefused(f"{where}: found {str(record)[:SHOWN]!r}, allowed: an object")
    name = record.get("eventName")
    if not isinstance(name, str):
        raise EventRefused(f"{where}.eventName: found {name!r}, allowed: text such as ObjectCreated:Put")
    if not name.removeprefix("s3:").startswith("ObjectCreated:"):
        return None
    return _ref(f"{where}.s3", record.get("s3"), "versionId", "eTag", decode=True)


def _ref(where: str, table: Any, version: str, etag: str, *, decode: bool) -> InputRef:
    def text(value: Any, field: str) -> str:
        if not isinstance(value, str) or not value or "\0" in value:
            raise EventRefused(f"{where}.{field}: found {str(value)[:SHOWN]!r}, allowed: text")
        return value

    def inner(name: str) -> dict[str, Any]:
        value = table.get(name) if isinstance(table, dict) else None
        if not isinstance(value, dict):
            raise EventRefused(f"{where}.{name}: found {str(value)[:SHOWN]!r}, allowed: an object")
        return value

    bucket, created = text(inner("bucket").get("name"), "bucket.name"), inner("object")
    key = text(created.get("key"), "object.key")
    size = created.get("size")
    version_id = created.get(version)
    return InputRef(
        bucket,
        unquote_plus(key) if decode else key,
        version_id if isinstance(version_id, str) and version_id not in ("", "null") else None,
        str(created[etag]).strip('"') if created.get(etag) else None,
        size if isinstance(size, int) else None,
    )
