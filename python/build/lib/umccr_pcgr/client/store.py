"""What `pcgr-submit` and `pcgr-status` share: the bucket or spool seen from outside, and the state of a sample in it."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

import boto3
from boto3.exceptions import RetriesExceededError
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, ResponseStreamingError
from botocore.exceptions import ConnectionError as NotConnected

from umccr_pcgr.client.cli import check_endpoint_variables, shown
from umccr_pcgr.samples.documents import FailureReport, ProgressNote, json_object
from umccr_pcgr.samples.labels import from_labels, relation
from umccr_pcgr.samples.model import State, identity_of
from umccr_pcgr.samples.naming import Role, Sample, classify

SINGLE_PUT_MAX = 5 << 30  # bytes that S3 takes in one PutObject
LOOKERS = 16  # parallel requests for the details of many samples
CHUNK = 1 << 20
# What S3 and compatible stores answer when they want to be asked again, beside every answer from 500 on.
BUSY = frozenset({"RequestTimeout", "RequestTimeTooSkewed", "SlowDown", "Throttling", "ThrottlingException"})
# What the kernel reports of a network file system whose server is away.
AWAY = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH})

Progress = Callable[[int], None]  # takes the number of bytes done so far


class Refused(Exception):
    """The user asked for something that cannot be done; the text is one line. Exit code 2."""


class Unreachable(Refused):
    """The bucket or spool does not answer; the same request may succeed later."""


class MaybeStored(Exception):
    """The connection was lost while a sample was sent; the text is one line that says what to do. Exit code 3."""


class Exists(Refused):
    """There is an input of that name already."""


@dataclass(frozen=True)
class Entry:
    """One object; ``modified`` is in UTC. ``identity`` is as in the labels of results, None where the store has none."""

    key: str
    modified: datetime
    identity: str | None = None
    labels: Mapping[str, str] | None = None
    claimed: bool = False  # an input claimed by a consumer, where the store shows it


@dataclass(frozen=True)
class Status:
    """The state of a sample's newest input."""

    sample: Sample
    state: State
    since: datetime
    address: str | None = None
    reason: str | None = None
    host: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "sample": self.sample.name,
            "key": self.sample.input_key,
            "state": self.state,
            "since": self.since.isoformat(),
            "address": self.address,
            "reason": self.reason,
            "host": self.host,
        }


class Place(Protocol):
    """Where samples are put and results come back."""

    def address(self, key: str) -> str:
        """How a person names the object."""

    def entries(self, prefix: str) -> list[tuple[Sample, Role, Entry]]:
        """All objects of samples below `prefix`."""

    def entry(self, sample: Sample, role: Role) -> Entry | None:
        """One object with its labels, or None."""

    def document(self, key: str) -> dict[str, Any]:
        """The JSON object stored at `key`; empty when it is gone or is none."""

    def put(self, path: Path, sample: Sample, *, force: bool, progress: Progress) -> Entry:
        """Store an input; Exists when there is one already and not `force`."""

    def download(self, sample: Sample, folder: Path) -> Path:
        """Copy the result into `folder`; returns its path there."""


@contextmanager
def aws_errors(what: str) -> Iterator[None]:
    """Turn what boto3 raises into Refused with one line that begins with `what`."""
    try:
        yield
    except ClientError as error:
        found = error.response["Error"]
        code = int(error.response["ResponseMetadata"].get("HTTPStatusCode", 0))
        later = code >= 500 or code == 429 or found.get("Code") in BUSY
        text = f"{what}: {found.get('Message') or 'refused'} ({found.get('Code')})"
        raise (Unreachable if later else Refused)(text) from error
    except (NotConnected, HTTPClientError, ResponseStreamingError, RetriesExceededError) as error:
        raise Unreachable(f"{what}: {' '.join(str(error).split())}") from error
    except (BotoCoreError, ValueError) as error:  # ValueError: a bucket's or an address's form
        raise Refused(f"{what}: {' '.join(str(error).split())}") from error


@contextmanager
def disk_errors(what: Path) -> Iterator[None]:
    """Turn what the file system raises into Refused with one line, Unreachable where its server is away."""
    try:
        yield
    except OSError as error:
        raise (Unreachable if error.errno in AWAY else Refused)(shown(error, what)) from error


class _Reader(io.BufferedReader):
    """A file that reports how far it was read (botocore reads it once for the signature, once to send it)."""

    def __init__(self, path: Path, progress: Progress) -> None:
        super().__init__(io.FileIO(path))
        self._progress = progress

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._progress(self.tell())
        return data


class Bucket:
    """A bucket of S3 or of anything that speaks its language."""

    def __init__(self, name: str, endpoint_url: str | None) -> None:
        self._name = name
        check_endpoint_variables(os.environ, Refused)
        with aws_errors(f"bucket {name}"):
            self._s3 = boto3.client("s3", endpoint_url=endpoint_url)
            self._s3.head_bucket(Bucket=name)

    def address(self, key: str) -> str:
        """Return the object's address, s3://bucket/key."""
        return f"s3://{self._name}/{key}"

    def entries(self, prefix: str) -> list[tuple[Sample, Role, Entry]]:
        """Return all objects of samples below `prefix`, without identities and labels."""
        found = []
        with aws_errors(self.address(prefix)):
            for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._name, Prefix=prefix):
                for item in page.get("Contents", []):
                    if of := classify(item["Key"]):
                        found.append((*of, Entry(item["Key"], item["LastModified"])))
        return found

    def entry(self, sample: Sample, role: Role) -> Entry | None:
        """Return one object with its labels, or None."""
        key = sample.key(role)
        with aws_errors(self.address(key)):
            try:
                head = self._s3.head_object(Bucket=self._name, Key=key)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return None
                raise
        return Entry(key, head["LastModified"], _identity(head), head["Metadata"])

    def document(self, key: str) -> dict[str, Any]:
        """Return the JSON object stored at `key`; empty when it is gone or is none."""
        with aws_errors(self.address(key)):
            try:
                body = self._s3.get_object(Bucket=self._name, Key=key)["Body"].read()
            except self._s3.exceptions.NoSuchKey:
                return {}
        return json_object(body)

    def put(self, path: Path, sample: Sample, *, force: bool, progress: Progress) -> Entry:
        """Store an input; Exists when there is one already and not `force`, MaybeStored when the connection is lost."""
        if path.stat().st_size > SINGLE_PUT_MAX:
            raise Refused(
                f"{path}: found {path.stat().st_size} bytes; allowed: {SINGLE_PUT_MAX} (S3's limit for one upload)"
            )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        condition: dict[str, Any] = {} if force else {"IfNoneMatch": "*"}
        try:
            return self._put(path, sample, digest.hexdigest(), progress, condition)
        except Unreachable as lost:
            raise MaybeStored(
                f"{lost}; it is not known whether {sample.name} was stored: send it again with --number {sample.number}, "
                "which is refused if it was"
            ) from lost

    def _put(self, path: Path, sample: Sample, digest: str, progress: Progress, condition: Mapping[str, Any]) -> Entry:
        key = sample.input_key
        with aws_errors(self.address(key)), _Reader(path, progress) as body:
            try:
                answer = self._s3.put_object(
                    Bucket=self._name,
                    Key=key,
                    Body=body,
                    ChecksumAlgorithm="SHA256",
                    ChecksumSHA256=base64.b64encode(bytes.fromhex(digest)).decode(),
                    Metadata={"sha256": digest},
                    ContentType="application/gzip",
                    **condition,
                )
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
                    if entry := self._stored_before(error, sample, digest):
                        return entry
                    raise Exists(f"{self.address(key)} is there already; --force replaces it") from None
                raise
        return self._stored(answer, sample)

    def _stored(self, answer: Mapping[str, Any], sample: Sample) -> Entry:
        """The input that was just stored; from the answer itself where the store does not let us look or is unreachable again."""
        try:
            if found := self.entry(sample, "input"):
                return found
        except Refused:
            pass
        else:
            raise Refused(f"{self.address(sample.input_key)}: removed right after it was stored")
        date = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return Entry(sample.input_key, date.astimezone(UTC), _identity(answer))

    def _stored_before(self, error: ClientError, sample: Sample, digest: str) -> Entry | None:
        """The input that an earlier try of the same request stored, whose answer was lost; None if another one is there."""
        if not error.response["ResponseMetadata"].get("RetryAttempts"):
            return None
        found = self.entry(sample, "input")
        return found if found and (found.labels or {}).get("sha256") == digest else None

    def download(self, sample: Sample, folder: Path) -> Path:
        """Copy the result into `folder`; returns its path there."""
        key = sample.result_key
        with aws_errors(self.address(key)), complete_file(folder / key.rpartition("/")[2]) as path:
            self._s3.download_file(self._name, key, str(path))
        return folder / key.rpartition("/")[2]


def _identity(answer: Mapping[str, Any]) -> str:
    """Which version of an object an answer of S3 is about, as in the labels of results."""
    version = answer.get("VersionId")
    return identity_of(version if version != "null" else None, answer["ETag"].strip('"'))


@contextmanager
def complete_file(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a hidden file beside `target` that takes its name only when the block ends well; FileExistsError unless `replace`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.fchmod(handle, 0o640)
    os.close(handle)
    fresh = Path(name)
    try:
        yield fresh
        if replace:
            fresh.replace(target)
        else:
            os.link(fresh, target)
    finally:
        fresh.unlink(missing_ok=True)


def is_of(found: Entry, source: Entry, is_current: Callable[[], bool]) -> bool:
    """Return whether a result or report is of the input `source` or of a newer one, not of an older version.

    Its labels say so, as they do for the consumer (:func:`umccr_pcgr.samples.labels.relation`, also for `is_current`); a store's own
    time decides where they do not. A listing does not say which version of a second it shows: any version of that second counts.
    """
    labelled = from_labels(found.labels or {}, "")
    if labelled.last_modified is None and (labelled.identity is None or labelled.identity != source.identity):
        return found.modified >= source.modified
    return (
        relation(labelled, source.identity, source.modified, lambda: bool(source.identity) and is_current()) != "older"
    )


def status_of(place: Place, sample: Sample, objects: Mapping[Role, Entry]) -> Status | None:
    """Return the state of the newest input among `objects` (the sample's, without labels); None when there is no input."""
    source = objects.get("input")
    if not source:
        return None

    def is_current() -> bool:
        now = place.entry(sample, "input")
        return now is not None and now.identity == source.identity

    def labelled(role: Role) -> Entry | None:
        found = place.entry(sample, role) if role in objects else None
        return found if found and is_of(found, source, is_current) else None

    if result := labelled("result"):
        return Status(sample, "done", result.modified, address=place.address(sample.result_key))
    failed, running = labelled("failed"), objects.get("running")
    report = FailureReport.read(place.document(sample.failed_key) if failed else {})
    reason, host = report.reason, report.host
    if failed and report.permanent:  # nothing runs this input after that; a note left behind says nothing
        return Status(sample, "failed", failed.modified, place.address(sample.failed_key), reason, host)
    if running and running.modified >= max(source.modified, failed.modified if failed else source.modified):
        note = ProgressNote.read(place.document(sample.running_key))
        return Status(sample, "running", note.started or running.modified, host=note.host)
    if source.claimed:
        return Status(sample, "running", source.modified)
    return Status(sample, "queued", source.modified, None, f"will be tried again: {reason}" if failed else None, host)


def follow(place: Place, sample: Sample, source: Entry) -> Status:
    """Return the state of the input `source` that was just stored."""
    found: dict[Role, Entry] = {"input": source}
    roles: tuple[Role, ...] = ("result", "failed", "running")
    for role in roles:
        if entry := place.entry(sample, role):
            found[role] = entry
    return status_of(place, sample, found) or Status(sample, "queued", source.modified)


def statuses(place: Place, prefix: str) -> list[Status]:
    """Return the states of all samples below `prefix`, the latest change first."""
    objects: dict[Sample, dict[Role, Entry]] = {}
    for sample, role, entry in place.entries(prefix):
        there = objects.setdefault(sample, {}).get(role)
        if not there or entry.modified >= there.modified:
            objects[sample][role] = entry
    with ThreadPoolExecutor(LOOKERS) as pool:
        found: Iterable[Status | None] = pool.map(lambda item: status_of(place, *item), objects.items())
        return sorted((status for status in found if status), key=lambda status: status.since, reverse=True)
