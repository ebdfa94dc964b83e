"""What scripts/submit and scripts/status share: the bucket or spool seen from outside, and what became of a sample in it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from umccr_pcgr.samples.naming import Role, Sample, classify

SINGLE_PUT_MAX = 5 << 30  # bytes that S3 takes in one PutObject
LOOKERS = 16  # parallel requests for the details of many samples
CHUNK = 1 << 20

Progress = Callable[[int], None]  # told the number of bytes done so far
State = Literal["queued", "running", "done", "failed"]


class Refused(Exception):
    """The user asked for something that cannot be done; the text is one line. Exit code 2."""


class Exists(Refused):
    """There is an input of that name already."""


@dataclass(frozen=True)
class Entry:
    """One object; ``modified`` is in UTC. ``identity`` is as in the labels of results, None where the store has none."""

    key: str
    modified: datetime
    identity: str | None = None
    labels: Mapping[str, str] | None = None
    claimed: bool = False  # an input in the hands of a machine, where the store shows it


@dataclass(frozen=True)
class Status:
    """What became of a sample's newest input."""

    sample: Sample
    state: State
    since: datetime
    address: str | None = None
    reason: str | None = None
    host: str | None = None

    def as_json(self) -> dict[str, Any]:
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
        raise Refused(f"{what}: {found.get('Message') or 'refused'} ({found.get('Code')})") from error
    except BotoCoreError as error:
        raise Refused(f"{what}: {' '.join(str(error).split())}") from error


class _Reader(io.BufferedReader):
    """A file that tells how far it was read (botocore reads it once for the signature, once to send it)."""

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
        with aws_errors(f"bucket {name}"):
            self._s3 = boto3.client("s3", endpoint_url=endpoint_url)
            self._s3.head_bucket(Bucket=name)

    def address(self, key: str) -> str:
        return f"s3://{self._name}/{key}"

    def entries(self, prefix: str) -> list[tuple[Sample, Role, Entry]]:
        found = []
        with aws_errors(self.address(prefix)):
            for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._name, Prefix=prefix):
                for item in page.get("Contents", []):
                    if of := classify(item["Key"]):
                        found.append((*of, Entry(item["Key"], item["LastModified"])))
        return found

    def entry(self, sample: Sample, role: Role) -> Entry | None:
        key = sample.key(role)
        with aws_errors(self.address(key)):
            try:
                head = self._s3.head_object(Bucket=self._name, Key=key)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return None
                raise
        version = head.get("VersionId")
        identity = f"version:{version}" if version and version != "null" else f"etag:{head['ETag'].strip(chr(34))}"
        return Entry(key, head["LastModified"], identity, head["Metadata"])

    def document(self, key: str) -> dict[str, Any]:
        with aws_errors(self.address(key)):
            try:
                body = self._s3.get_object(Bucket=self._name, Key=key)["Body"].read()
            except self._s3.exceptions.NoSuchKey:
                return {}
        return _json_object(body)

    def put(self, path: Path, sample: Sample, *, force: bool, progress: Progress) -> Entry:
        key = sample.input_key
        if path.stat().st_size > SINGLE_PUT_MAX:
            raise Refused(
                f"{path}: found {path.stat().st_size} bytes; allowed: {SINGLE_PUT_MAX} (S3's limit for one upload)"
            )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        condition: dict[str, Any] = {} if force else {"IfNoneMatch": "*"}
        with aws_errors(self.address(key)), _Reader(path, progress) as body:
            try:
                self._s3.put_object(
                    Bucket=self._name,
                    Key=key,
                    Body=body,
                    ChecksumAlgorithm="SHA256",
                    ChecksumSHA256=base64.b64encode(digest.digest()).decode(),
                    Metadata={"sha256": digest.hexdigest()},
                    ContentType="application/gzip",
                    **condition,
                )
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
                    raise Exists(f"{self.address(key)} is there already; --force replaces it") from None
                raise
        return self.entry(sample, "input") or _gone(self.address(key))

    def download(self, sample: Sample, folder: Path) -> Path:
        key = sample.result_key
        with aws_errors(self.address(key)), _whole(folder / key.rpartition("/")[2]) as path:
            self._s3.download_file(self._name, key, str(path))
        return folder / key.rpartition("/")[2]


class Spool:
    """A spool folder (see the consumer's spool.py): inbox/ claimed/ done/ failed/."""

    _FOLDERS: Mapping[Role, str] = {"input": "inbox", "result": "done", "failed": "failed", "running": "claimed"}

    def __init__(self, root: Path) -> None:
        if not (root / "inbox").is_dir():
            raise Refused(f"{root}: no spool; allowed: a folder that holds inbox/")
        self._root = root

    def _path(self, key: str) -> Path:
        of = classify(key)
        return self._root / (self._FOLDERS[of[1]] if of else "inbox") / key

    def address(self, key: str) -> str:
        return str(self._path(key))

    def _files(self) -> Iterator[tuple[str, Path, bool]]:
        """Every file as (key, path, whether a machine holds it)."""
        for folder in ("inbox", "done", "failed"):
            for path in (self._root / folder).rglob("*.*"):
                yield path.relative_to(self._root / folder).as_posix(), path, False
        for path in (self._root / "claimed").rglob("*"):
            if path.name == "key":
                with suppress(OSError):  # the machine may be done with it by now
                    yield path.read_text(encoding="utf-8"), path.with_name("input"), True
            else:
                yield path.relative_to(self._root / "claimed").as_posix(), path, False

    def entries(self, prefix: str) -> list[tuple[Sample, Role, Entry]]:
        found = []
        for key, path, claimed in self._files():
            of = classify(key)
            if of and key.startswith(prefix):
                with suppress(FileNotFoundError):
                    found.append((*of, Entry(key, _modified(path), claimed=claimed)))
        return found

    def entry(self, sample: Sample, role: Role) -> Entry | None:
        key = sample.key(role)
        if role != "input":
            with suppress(FileNotFoundError):
                return Entry(key, _modified(self._path(key)))
            return None
        found = [entry for of, what, entry in self.entries(key) if (of, what) == (sample, role)]
        return max(found, key=lambda entry: entry.modified, default=None)

    def document(self, key: str) -> dict[str, Any]:
        try:
            return _json_object(self._path(key).read_bytes())
        except FileNotFoundError:
            return {}

    def put(self, path: Path, sample: Sample, *, force: bool, progress: Progress) -> Entry:
        target = self._path(sample.input_key)
        if not force and self.entry(sample, "input"):
            raise Exists(f"{sample.name} is in the spool {self._root} already; --force sends it again")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _whole(target, replace=force) as fresh, path.open("rb") as source, fresh.open("wb") as out:
                while chunk := source.read(CHUNK):
                    out.write(chunk)
                    progress(out.tell())
        except FileExistsError:
            raise Exists(f"{target} is there already; --force replaces it") from None
        except OSError as error:
            raise Refused(f"{error.filename or target}: {error.strerror}") from None
        return Entry(sample.input_key, _modified(target))

    def download(self, sample: Sample, folder: Path) -> Path:
        source = self._path(sample.result_key)
        with _whole(folder / source.name) as path:
            shutil.copyfile(source, path)
        return folder / source.name


def _modified(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _gone(address: str) -> Entry:
    raise Refused(f"{address}: removed by somebody right after it was stored")


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


@contextmanager
def _whole(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """A hidden file beside `target` that takes its name only when the block ends well; FileExistsError unless `replace`."""
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


def is_of(found: Entry, source: Entry) -> bool:
    """Whether a result or report is of the input `source` or of a newer one, not of an older version.

    It says so itself (the consumer's labels: identity, and time of the input); a store's own time decides where it does not.
    """
    labels = found.labels or {}
    if source.identity and labels.get("pcgr-input") == source.identity:
        return True
    try:
        stated = datetime.fromisoformat(labels.get("pcgr-input-modified", ""))
    except ValueError:
        return found.modified >= source.modified
    if source.identity and stated == source.modified:  # S3 counts whole seconds: another version of the same second
        return False
    return stated >= source.modified


def status_of(place: Place, sample: Sample, objects: Mapping[Role, Entry]) -> Status | None:
    """What became of the newest input among `objects` (the sample's, without labels); None when there is no input."""
    source = objects.get("input")
    if not source:
        return None

    def labelled(role: Role) -> Entry | None:
        found = place.entry(sample, role) if role in objects else None
        return found if found and is_of(found, source) else None

    if result := labelled("result"):
        return Status(sample, "done", result.modified, address=place.address(sample.result_key))
    failed, running = labelled("failed"), objects.get("running")
    report = place.document(sample.failed_key) if failed else {}
    reason, host = _text(report.get("reason")), _text(report.get("host"))
    if failed and report.get("permanent", True):  # nothing runs this input after that; a note left behind says nothing
        return Status(sample, "failed", failed.modified, place.address(sample.failed_key), reason, host)
    if running and running.modified >= max(source.modified, failed.modified if failed else source.modified):
        note = place.document(sample.running_key)
        return Status(sample, "running", _time(note.get("started")) or running.modified, host=_text(note.get("host")))
    if source.claimed:
        return Status(sample, "running", source.modified)
    return Status(sample, "queued", source.modified, None, f"will be tried again: {reason}" if failed else None, host)


def follow(place: Place, sample: Sample, source: Entry) -> Status:
    """What became of the input `source` that was just stored."""
    found: dict[Role, Entry] = {"input": source}
    roles: tuple[Role, ...] = ("result", "failed", "running")
    for role in roles:
        if entry := place.entry(sample, role):
            found[role] = entry
    return status_of(place, sample, found) or Status(sample, "queued", source.modified)


def statuses(place: Place, prefix: str) -> list[Status]:
    """All samples below `prefix`, the latest change first."""
    objects: dict[Sample, dict[Role, Entry]] = {}
    for sample, role, entry in place.entries(prefix):
        there = objects.setdefault(sample, {}).get(role)
        if not there or entry.modified >= there.modified:
            objects[sample][role] = entry
    with ThreadPoolExecutor(LOOKERS) as pool:
        found: Iterable[Status | None] = pool.map(lambda item: status_of(place, *item), objects.items())
        return sorted((status for status in found if status), key=lambda status: status.since, reverse=True)


def _text(value: object) -> str | None:
    return None if value is None else " ".join(str(value).split())


def _time(value: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
