"""The cloud backend: a queue of S3 events in SQS, objects in S3; any endpoint that is compatible with both."""

from __future__ import annotations

import base64
import errno
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from umccr_pcgr.samples import clock, events
from umccr_pcgr.samples.labels import from_labels
from umccr_pcgr.samples.model import (
    Claim,
    Conflict,
    InputRef,
    InputVersion,
    LeaseLost,
    Outcome,
    Published,
    Stopped,
    StopReason,
    Transient,
)

from .config import QueueSettings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient

INVISIBLE_MAX = 12 * 3600  # seconds from the receive, all extensions together (SQS, ChangeMessageVisibility)
ANSWER_MAX = 1.0  # seconds: the lease runs from when the answer left SQS, about this long before it is read
WAIT_MAX = 20  # seconds of a long poll (SQS)
PUT_MAX = 5 << 30  # bytes of one PutObject (S3)
CHUNK = 1 << 20
_GONE = {
    "404",
    "NoSuchKey",
    "NoSuchVersion",
    "NotFound",
    "MethodNotAllowed",
    "405",
}  # 405: the version is a delete marker
_CONFLICT = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict", "OperationAborted"}
_LOST = {
    "ReceiptHandleIsInvalid",
    "MessageNotInflight",
    "InvalidParameterValue",
    "AWS.SimpleQueueService.MessageNotInflight",
    "AWS.SimpleQueueService.NonExistentQueue",
}


def client_config() -> Config:
    """Time limits and retries of every call; checksums only where asked for, because not every compatible store knows the newer ones."""
    return Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 4},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def _calling(stage: str, what: str) -> Iterator[None]:
    """Turn every failure of a call into Transient: missing permissions are a mistake, too, and may be fixed."""
    try:
        yield
    except ClientError as error:
        raise Transient(
            stage, f"{what}: {_code(error)}: {error.response.get('Error', {}).get('Message', '')}"
        ) from error
    except (BotoCoreError, HTTPClientError) as error:
        raise Transient(stage, f"{what}: {error}") from error


class SqsQueue:
    """An SQS queue; raises Transient at once when there is none (never creates one)."""

    def __init__(self, settings: QueueSettings) -> None:
        self._sqs: SQSClient = boto3.client(
            "sqs", region_name=settings.region, endpoint_url=settings.endpoint_url, config=client_config()
        )
        name = settings.name or ""
        with _calling("queue", f"queue {name}"):
            self._url = self._sqs.get_queue_url(QueueName=name)["QueueUrl"]
        found = self._attributes("VisibilityTimeout", "RedrivePolicy")
        self._own_visibility = settings.visibility_seconds
        self.visibility = float(settings.visibility_seconds or found["VisibilityTimeout"])
        limit = re.search(r'"maxReceiveCount"\s*:\s*"?(\d+)', found.get("RedrivePolicy", ""))
        self.max_receives = int(limit[1]) if limit else None

    def _attributes(self, *names: str) -> dict[str, str]:
        with _calling("queue", "queue attributes"):
            answer = self._sqs.get_queue_attributes(QueueUrl=self._url, AttributeNames=list(names))  # type: ignore[arg-type]
        return {str(name): value for name, value in answer.get("Attributes", {}).items()}

    def claim(self, wait: float) -> Claim | None:
        """Receive one message by a long poll."""
        options: dict[str, Any] = {"VisibilityTimeout": self._own_visibility} if self._own_visibility else {}
        asked = clock.now()
        with _calling("queue", "receive"):
            answer = self._sqs.receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=1,
                WaitTimeSeconds=int(min(wait, WAIT_MAX)),
                AttributeNames=["ApproximateReceiveCount"],
                **options,
            )
        received = max(asked, clock.now() - ANSWER_MAX)
        for message in answer.get("Messages", []):
            handle, receives = (
                message["ReceiptHandle"],
                int(message.get("Attributes", {}).get("ApproximateReceiveCount", 1)),
            )
            try:
                return Claim(handle, events.parse(message["Body"]), receives, received)
            except events.EventRefused as error:
                return Claim(handle, (), receives, received, refusal=str(error))
        return None

    def extend(self, claim: Claim) -> None:
        """Hide the message longer, 12 hours at most in all."""
        left = INVISIBLE_MAX - (clock.now() - claim.received) - 1
        if left < 1:
            raise LeaseLost("the message was hidden for 12 hours, longer is not possible")
        self._change(claim, int(min(self.visibility, left)))

    def release(self, claim: Claim, delay: float) -> None:
        """Let the message become visible after `delay` seconds."""
        left = INVISIBLE_MAX - (clock.now() - claim.received) - 1
        self._change(claim, max(0, int(min(delay, left))))

    def _change(self, claim: Claim, seconds: int) -> None:
        with _calling("queue", "visibility"):
            try:
                self._sqs.change_message_visibility(
                    QueueUrl=self._url, ReceiptHandle=claim.handle, VisibilityTimeout=seconds
                )
            except ClientError as error:
                if _code(error) in _LOST:
                    raise LeaseLost(f"the queue says {_code(error)}") from None
                raise

    def finish(self, claim: Claim, outcome: Outcome) -> None:
        """Delete the message."""
        del outcome  # the report is in the store; the queue only deletes
        with _calling("queue", "delete message"):
            self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=claim.handle)

    def unfinished(self) -> int:
        """Count visible, hidden and delayed messages, as approximately as SQS does."""
        names = (
            "ApproximateNumberOfMessages",
            "ApproximateNumberOfMessagesNotVisible",
            "ApproximateNumberOfMessagesDelayed",
        )
        return sum(int(value) for value in self._attributes(*names).values())


class S3Store:
    """Objects in S3 with conditional writes (If-None-Match, If-Match)."""

    echoes = True  # the bucket's notifications may have no filter

    def __init__(self, settings: QueueSettings) -> None:
        self._s3: S3Client = boto3.client(
            "s3", region_name=settings.region, endpoint_url=settings.endpoint_url, config=client_config()
        )

    def head(self, ref: InputRef) -> InputVersion | None:
        """Return the version that `ref` names, or the newest; None when it is gone."""
        exact = {"VersionId": ref.version_id} if ref.version_id else {}
        with _calling("fetch", f"head {ref.key}"):
            try:
                found = self._s3.head_object(Bucket=ref.bucket, Key=ref.key, **exact)  # type: ignore[arg-type]
            except ClientError as error:
                if _code(error) in _GONE:
                    return None
                raise
        version_id, etag = found.get("VersionId"), found["ETag"].strip('"')
        # the etag is the MD5 of the bytes unless the object was uploaded in parts or is encrypted with a key of KMS or of the client
        plain = (
            re.fullmatch("[0-9a-f]{32}", etag)
            and found.get("ServerSideEncryption", "AES256") == "AES256"
            and not found.get("SSECustomerAlgorithm")
        )
        return InputVersion(
            ref.bucket,
            ref.key,
            version_id if version_id not in (None, "", "null") else None,
            etag,
            found["ContentLength"],
            found["LastModified"],
            etag if plain else None,
        )

    def is_current(self, version: InputVersion) -> bool:
        """Return whether the key holds this version now."""
        now = self.head(InputRef(version.bucket, version.key))
        return now is not None and now.identity == version.identity

    def fetch(self, version: InputVersion, target: Path, stop: StopReason) -> str:
        """Download exactly this version in up to three attempts; returns its sha256 (hex)."""
        tries = Retrying(
            retry=retry_if_exception_type(Transient),
            stop=stop_after_attempt(3),
            wait=wait_random_exponential(multiplier=0.2, max=5),
            reraise=True,
        )
        return tries(self._fetch_once, version, target, stop)

    def _fetch_once(self, version: InputVersion, target: Path, stop: StopReason) -> str:
        exact = {"VersionId": version.version_id} if version.version_id else {"IfMatch": f'"{version.etag}"'}
        sha256, md5, count = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
        with _calling("fetch", f"fetch {version.key}"):
            body = self._s3.get_object(Bucket=version.bucket, Key=version.key, **exact)["Body"]  # type: ignore[arg-type]
            with body, target.open("wb") as file:
                for chunk in body.iter_chunks(CHUNK):
                    if reason := stop():
                        raise Stopped(reason)
                    file.write(chunk)
                    sha256.update(chunk)
                    md5.update(chunk)
                    count += len(chunk)
        if count != version.size:
            raise Transient("fetch", f"{version.key}: got {count} bytes of {version.size}")
        if version.md5 and md5.hexdigest() != version.md5:
            raise Transient("fetch", f"{version.key}: the received bytes do not match the object's etag")
        return sha256.hexdigest()

    def published(self, bucket: str, key: str) -> Published | None:
        """Return what the labels of the object at `key` say, or None."""
        with _calling("publish", f"head {key}"):
            try:
                found = self._s3.head_object(Bucket=bucket, Key=key)
            except ClientError as error:
                if _code(error) in _GONE:
                    return None
                raise
        return from_labels(found.get("Metadata", {}), found["ETag"])

    def put_if(self, bucket: str, key: str, path: Path, labels: Mapping[str, str], tag: str | None) -> None:
        """Store by a conditional PutObject; OSError for more than S3 takes at once."""
        if path.stat().st_size > PUT_MAX:
            raise OSError(errno.EFBIG, f"the result has more than {PUT_MAX} bytes")
        condition = {"IfMatch": tag} if tag else {"IfNoneMatch": "*"}
        with path.open("rb") as file:
            md5 = hashlib.md5(usedforsecurity=False)
            while chunk := file.read(CHUNK):
                md5.update(chunk)
            file.seek(0)
            with _calling("publish", f"store {key}"):
                try:
                    self._s3.put_object(
                        Bucket=bucket,
                        Key=key,
                        Body=file,
                        ContentMD5=base64.b64encode(md5.digest()).decode(),
                        ContentType="application/json" if key.endswith(".json") else "application/gzip",
                        Metadata=dict(labels),
                        **condition,  # type: ignore[arg-type]
                    )
                except ClientError as error:
                    if _code(error) in _CONFLICT or (tag and _code(error) in _GONE):
                        raise Conflict(f"another worker changed it ({_code(error)})") from None
                    raise

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Store a progress note."""
        with _calling("progress", f"store {key}"):
            self._s3.put_object(Bucket=bucket, Key=key, Body=content, ContentType="application/json")

    def delete(self, bucket: str, key: str) -> None:
        """Delete the object; of a versioned bucket, its newest version."""
        with _calling("progress", f"delete {key}"):
            self._s3.delete_object(Bucket=bucket, Key=key)
