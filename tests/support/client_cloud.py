"""For tests of the commands: S3, SQS and EC2 simulated on loopback, the real scripts as programs, and the consumer's part by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

from support import ROOT
from umccr_pcgr.samples.labels import labels
from umccr_pcgr.samples.model import InputVersion
from umccr_pcgr.samples.naming import Sample

REGION = "ap-southeast-2"
# A shell starts jobs in the background with SIGINT ignored, and the scripts respect that; with this before it a program does not.
HEED_INTERRUPTS = ("env", "--default-signal=INT")


class Cloud:
    """One test's bucket; `environment` is that of a user's shell."""

    def __init__(self, endpoint: str) -> None:
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self.environment: dict[str, str] = {
            **keep,
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
        self.s3: Any = self.client("s3")
        self.bucket = f"samples-{uuid.uuid4().hex[:12]}"
        self.s3.create_bucket(Bucket=self.bucket, CreateBucketConfiguration={"LocationConstraint": REGION})

    def client(self, service: str) -> Any:
        """Return a boto3 client of the service."""
        return boto3.client(
            service,
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def versioned(self) -> None:
        """Switch versioning of the bucket on."""
        self.s3.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"})

    def keys(self) -> list[str]:
        """Return all keys in the bucket."""
        return [item["Key"] for item in self.s3.list_objects_v2(Bucket=self.bucket).get("Contents", [])]

    def body(self, key: str) -> bytes:
        """Return the content of an object."""
        found: bytes = self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return found

    def put(self, key: str, body: bytes, metadata: Mapping[str, str] | None = None) -> None:
        """Store an object."""
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=body, Metadata=dict(metadata or {}))

    def input_version(self, sample: Sample) -> InputVersion:
        """Return the newest version of a sample's input."""
        head = self.s3.head_object(Bucket=self.bucket, Key=sample.input_key)
        version, etag = head.get("VersionId"), head["ETag"].strip('"')
        return InputVersion(self.bucket, sample.input_key, version, etag, head["ContentLength"], head["LastModified"])

    def publish(self, sample: Sample, body: bytes, *, of: InputVersion | None = None) -> None:
        """Publish a result, labelled with the input version it is of (default: the newest)."""
        self.put(sample.result_key, body, labels(of or self.input_version(sample), "a1", final=True))

    def fail(self, sample: Sample, reason: str, *, permanent: bool = True, of: InputVersion | None = None) -> None:
        """Publish a failure report."""
        report = {
            "reason": reason,
            "permanent": permanent,
            "host": "worker-1",
            "log_tail": ["last words [of] the tool"],
        }
        version = of or self.input_version(sample)
        self.put(sample.failed_key, json.dumps(report).encode(), labels(version, "a1", final=permanent))

    def run(self, sample: Sample) -> None:
        """Store a progress note."""
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self.put(sample.running_key, json.dumps({"host": "worker-1", "started": started}).encode())


@contextmanager
def region() -> Iterator[str]:
    """Yield the endpoint, which answers while the block runs."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def script(
    name: str, *arguments: str | Path, environment: Mapping[str, str], timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run scripts/<name> from the checkout, as a user would."""
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / name, *arguments],
        env=dict(environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
