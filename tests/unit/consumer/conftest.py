"""The consumer's harness: settings in a folder, a scripted tool in place of the container, and either backend behind one interface."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from support import ROOT
from support.samples import KEY, Make, ScriptedRuntime, release
from umccr_pcgr.consumer import sqs, worker
from umccr_pcgr.consumer.attempt import Context
from umccr_pcgr.consumer.cli import runtime_of
from umccr_pcgr.consumer.config import Image, QueueSettings, Settings
from umccr_pcgr.consumer.runtime import Job, Run, Runtime
from umccr_pcgr.consumer.spool_queue import SpoolQueue
from umccr_pcgr.consumer.spool_store import SpoolStore
from umccr_pcgr.samples.limits import Limits

REGION = "ap-southeast-2"
PACE = worker.Pace(wait=0, pause=0.05, backoff=0.05, backoff_max=1)


@pytest.fixture
def make() -> type[Make]:
    """Return the builders of inputs."""
    return Make


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give boto3 credentials that the simulated services take, for one test: others run in this process too."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """Yield the endpoint of a simulated S3 and SQS."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class Backend:
    """One interface for tests of either backend: put a sample, read what is published. Subclasses know where."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("work", "log", "state"):
            (folder / name).mkdir()
        self.runtime = ScriptedRuntime()
        self.release = "rehearsal"
        self.settings = Settings(
            release_file=folder / "release.json",
            runtime_file=folder / "runtime.json",
            refdata_dir=folder / "bundle",
            vep_dir=folder / "vep",
            work_dir=folder / "work",
            log_dir=folder / "log",
            state_dir=folder / "state",
            assemblies=("grch38", "grch37"),
            drained_file=folder / "run" / "drained",
            queue=QueueSettings("spool"),
            limits=Limits(free_bytes=0, unpacked_bytes=64 << 20),
            idle_seconds=0.4,  # type: ignore[arg-type]  # shorter than the settings file allows
            timeout_seconds=20,
        )

    def context(self, **changes: Any) -> Context:
        """Return the context of attempts, with settings changed."""
        image = Image("docker", "sha256:" + "0" * 64, "umccr/pcgr-rehearsal:2.3.2", None)
        settings = replace(self.settings, **changes)
        return Context(settings, release(self.release), image, self.runtime, self.store(), host="test")

    def worker(self, **changes: Any) -> worker.Worker:
        """Return a worker that does not wait."""
        return worker.Worker(self.context(**changes), self.queue(), PACE)

    def settle(self, limit: float = 20, **changes: Any) -> list[str | None]:
        """Handle messages until none is left; returns how each ended."""
        worked, ends, deadline = self.worker(**changes), [], time.monotonic() + limit
        queue = self.queue()
        while queue.unfinished():
            assert time.monotonic() < deadline, ends
            if end := worked.once():
                ends.append(end)
        return ends

    def report(self, key: str = KEY) -> dict[str, Any] | None:
        """Return the failure report of a sample, or None."""
        data = self.read(key.removesuffix(".tar.gz") + "-failed.json")
        return None if data is None else json.loads(data)

    def result(self, key: str = KEY) -> dict[str, bytes] | None:
        """The members of the result, by name within its one folder, in the archive's order."""
        data = self.read(key.removesuffix(".tar.gz") + "-output.tar.gz")
        if data is None:
            return None
        name = key.rpartition("/")[2].removesuffix(".tar.gz")
        found = {}
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                folder, _unused, inner = member.name.partition("/")
                assert folder == name
                assert member.isreg()
                file = archive.extractfile(member)
                assert file
                found[inner] = file.read()
        return found

    def clean(self) -> bool:
        """No work folder left, and no progress note."""
        return (
            not list(self.settings.work_dir.iterdir())
            and self.read(KEY.removesuffix(".tar.gz") + "-running.json") is None
        )


class SpoolBackend(Backend):
    """A spool in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.root = folder / "spool"
        self.visibility = 10.0
        self.max_receives = 5
        self.queue()

    def queue(self) -> SpoolQueue:
        """Return a queue as a worker sees it."""
        return SpoolQueue(self.root, visibility=self.visibility, max_receives=self.max_receives, settle=0)

    def store(self) -> SpoolStore:
        """Return a store as a worker sees it."""
        return SpoolStore(self.root)

    def put(self, data: bytes, key: str = KEY) -> None:
        """Put a file into the inbox."""
        path = self.root / "inbox" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def read(self, key: str) -> bytes | None:
        """Return what is published at a key, or None."""
        for place in ("done", "failed", "claimed"):
            if (path := self.root / place / key).is_file():
                return path.read_bytes()
        return None

    def dead(self) -> list[str]:
        """Return the names of the tarballs in failed/."""
        return [path.name for path in (self.root / "failed").rglob("*.tar.gz")]


class SqsBackend(Backend):
    """A bucket and a queue with a dead-letter queue."""

    def __init__(
        self, folder: Path, endpoint: str, *, visibility: int = 10, receives: int = 5, versioned: bool = False
    ) -> None:
        super().__init__(folder)
        name = f"q{uuid.uuid4().hex[:12]}"
        self.s3: Any = boto3.client("s3", region_name=REGION, endpoint_url=endpoint)
        self.sqs: Any = boto3.client("sqs", region_name=REGION, endpoint_url=endpoint)
        self.bucket = name
        self.s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        if versioned:
            self.s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        self.dlq = self.sqs.create_queue(QueueName=f"{name}-dead")["QueueUrl"]
        arn = self.sqs.get_queue_attributes(QueueUrl=self.dlq, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": receives})
        attributes = {"VisibilityTimeout": str(visibility), "RedrivePolicy": policy}
        self.url = self.sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
        self.queue_settings = QueueSettings("sqs", name=name, region=REGION, endpoint_url=endpoint)
        self.settings = replace(self.settings, queue=self.queue_settings)

    def queue(self) -> sqs.SqsQueue:
        """Return a queue as a worker sees it."""
        return sqs.SqsQueue(self.queue_settings)

    def store(self) -> sqs.S3Store:
        """Return a store as a worker sees it."""
        return sqs.S3Store(self.queue_settings)

    def put(self, data: bytes, key: str = KEY) -> None:
        """Store an object and send its event."""
        answer = self.s3.put_object(Bucket=self.bucket, Key=key, Body=data)
        self.notify(key, answer.get("VersionId"))

    def event(self, key: str, version: str | None = None) -> dict[str, Any]:
        """Return the record of an event."""
        thing = {"key": key} | ({"versionId": version} if version else {})
        return {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": self.bucket}, "object": thing}}

    def notify(self, key: str = KEY, version: str | None = None) -> None:
        """Send the event of an object."""
        self.send(json.dumps({"Records": [self.event(key, version)]}))

    def send(self, body: str) -> None:
        """Send a message."""
        self.sqs.send_message(QueueUrl=self.url, MessageBody=body)

    def read(self, key: str) -> bytes | None:
        """Return an object's content, or None."""
        try:
            return bytes(self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read())
        except self.s3.exceptions.NoSuchKey:
            return None

    def dead(self) -> list[str]:
        """Return the messages in the dead-letter queue."""
        answer = self.sqs.receive_message(QueueUrl=self.dlq, MaxNumberOfMessages=10)
        return [message["Body"] for message in answer.get("Messages", [])]


@pytest.fixture
def spool(tmp_path: Path) -> SpoolBackend:
    """Return a spool."""
    (tmp_path / "spool-backend").mkdir()
    return SpoolBackend(tmp_path / "spool-backend")


@pytest.fixture
def cloud(tmp_path: Path, endpoint: str) -> SqsBackend:
    """Return a bucket and a queue."""
    return SqsBackend(tmp_path, endpoint)


@pytest.fixture
def make_cloud(tmp_path: Path, endpoint: str) -> Callable[..., SqsBackend]:
    """Return a function that creates a bucket and a queue with options."""
    return lambda **options: SqsBackend(tmp_path, endpoint, **options)


@pytest.fixture(params=["spool", "sqs"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """Both backends in turn, in a folder whose name looks like a part of an output's name."""
    folder = tmp_path / "x.pcgr.y"
    folder.mkdir()
    return SpoolBackend(folder) if request.param == "spool" else SqsBackend(folder, request.getfixturevalue("endpoint"))


class Metadata(ThreadingHTTPServer):
    """An instance metadata service that requires tokens; `notice` appears when set, with `refuse` it gives no tokens, as in other clouds."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.identity = b"i-0123456789abcdef0"
        self.notice: bytes | None = None
        self.refuse = False
        self.tokens = 0
        self.expire = False
        self.looks = 0


class Answer(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Metadata

    def log_message(self, *_unused: object) -> None:
        """Print nothing."""

    def _send(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        """Return a new token."""
        if self.server.refuse or not self.headers.get("X-aws-ec2-metadata-token-ttl-seconds"):
            return self._send(405)
        self.server.tokens += 1
        return self._send(200, b"token-%d" % self.server.tokens)

    def do_GET(self) -> None:
        """Return an item of metadata to whoever has the newest token."""
        self.server.looks += 1
        if self.server.expire:
            self.server.expire = False
            return self._send(401)
        if self.headers.get("X-aws-ec2-metadata-token") != f"token-{self.server.tokens}":
            return self._send(401)
        known = {"instance-id": self.server.identity, "spot/instance-action": self.server.notice}
        found = known.get(self.path.removeprefix("/latest/meta-data/"))
        return self._send(404) if found is None else self._send(200, found)


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    """Yield a metadata service."""
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    server = Metadata()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


STAND_IN = ROOT / "tests/support/stand_in.py"
KINDS = ("docker", "apptainer", "conda")
# The tool as the smoke test sees it: version, usage, and the check of the bundle.
ANSWERS = """#!/bin/sh
case "$*" in
  --version) echo "{command} {version}" ;;
  "") echo "{command}: error: the following arguments are required: --sample_id" >&2; exit 2 ;;
  *grch36*) echo "{command}: error: argument --genome_assembly: invalid choice: 'grch36'" >&2; exit 2 ;;
  *) for assembly in grch37 grch38; do case "$*" in *$assembly*)
       [ -e /mnt/bundle/data/$assembly ] || {{ echo "ERROR - no bundle of $assembly"; echo "ERROR - "; exit 1; }} ;; esac; done
     echo "{command} - STEP 0: Validate input data and options"; echo "ERROR: no variants" ;;
esac
"""


@dataclass
class Site:
    """A host with one kind of runtime; a test may break `image`."""

    kind: str
    folder: Path
    settings: Settings
    image: Image
    program: Path  # what the consumer calls
    bin: Path  # the tool's commands

    @property
    def runtime(self) -> Runtime:
        """Return the runtime of the host."""
        return runtime_of(self.settings, self.image)

    def job(self, script: str, *, attempt: str = "a1") -> Job:
        """A job that runs a shell script of the image's shell."""
        return self.command("sh", "-c", script, attempt=attempt)

    def command(self, *argv: str, attempt: str = "a1") -> Job:
        """Return a job that runs a command."""
        work = self.settings.work_dir / f"attempt-{attempt}"
        for name in ("inputs", "outputs"):
            (work / name).mkdir(parents=True, exist_ok=True)
        (work / "inputs" / "in.vcf").write_text("sample\n")
        return Job(attempt, argv, work / "inputs", work / "outputs", work / "pcgr.log")

    def run(self, script: str, timeout: float = 30) -> tuple[Run, str]:
        """Run a script; returns how the run ended and its log."""
        job = self.job(script)
        result = self.runtime.run(job, timeout, lambda: None)
        return result, job.log.read_text()


@pytest.fixture(params=KINDS)
def site(request: pytest.FixtureRequest, spool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return a host for each kind of runtime."""
    assert shutil.which("bwrap"), "bubblewrap is missing (bindep.txt)"
    kind = request.param
    programs, tree = tmp_path / "programs", tmp_path / "opt" / ("0" * 16)
    for folder in (programs, programs / "images", programs / "containers"):
        folder.mkdir()
    for name in ("docker", "apptainer"):
        (programs / name).symlink_to(STAND_IN)
    (programs / "bwrap").symlink_to(str(shutil.which("bwrap")))
    prefixes = {name: str(tree / "envs" / name) for name in ("pcgr", "pcgrr")}
    bins = [Path(prefix, "bin") for prefix in prefixes.values()] if kind == "conda" else [tree / "bin"]
    for folder in bins:
        folder.mkdir(parents=True)
    for command, version in (("pcgr", "2.3.2"), ("cpsr", "2.3.0")):
        (bins[0] / command).write_text(ANSWERS.format(command=command, version=version))
        (bins[0] / command).chmod(0o755)
    if kind == "docker":
        image = Image("docker", "0" * 64)
        (programs / "images" / image.image).write_text(str(tree))
    elif kind == "apptainer":
        image = Image("apptainer", f"{tree}.sif", sha256="0" * 64)
        Path(image.image).write_text(str(tree))
    else:
        image = Image("conda", str(tree), prefixes=prefixes, locks=dict.fromkeys(prefixes, "0" * 64))
    for folder in (spool.settings.refdata_dir, spool.settings.vep_dir):
        folder.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    program = programs / {"conda": "bwrap"}.get(kind, kind)
    return Site(kind, tmp_path, spool.settings, image, program, bins[0])
