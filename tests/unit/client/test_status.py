"""pcgr-status: the states that follow from keys and notes in a bucket or spool, the instances, and the queue."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from support import ROOT
from support.client_cloud import Cloud, script
from umccr_pcgr.client.store import Bucket, Entry, follow, is_of
from umccr_pcgr.samples.naming import Sample, parse

ONE = parse("demo-000001-somatic.tar.gz")
TWO = parse("inbox/demo-000002-normal.tar.gz")


def status(cloud: Cloud, *arguments: str | Path) -> str:
    done = script("status", "--bucket", cloud.bucket, *arguments, environment=cloud.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def look(cloud: Cloud, *arguments: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(status(cloud, "--json", *arguments))
    return found


def states(cloud: Cloud, *arguments: str | Path) -> dict[str, str]:
    return {sample["key"]: sample["state"] for sample in look(cloud, *arguments)["samples"]}


def test_every_state_is_told_from_keys_and_notes(cloud: Cloud) -> None:
    samples = [Sample("", "demo", number, "somatic") for number in range(1, 6)]
    for sample in samples:
        cloud.put(sample.input_key, b"input")
    cloud.put("notes.txt", b"not a sample")
    cloud.put("demo-000009-somatic-output.tar.gz", b"a result whose input is gone")
    _queued, running, done, failed, retried = samples
    cloud.run(running)
    cloud.run(done)  # a worker that died after publishing left its note
    cloud.publish(done, b"result")
    cloud.fail(failed, "tumor_site: found 99, allowed: 0 to 30")
    cloud.fail(retried, "docker was away", permanent=False)
    found = {sample["sample"][5:11]: sample for sample in look(cloud)["samples"]}
    assert {number: sample["state"] for number, sample in found.items()} == {
        "000001": "queued", "000002": "running", "000003": "done", "000004": "failed", "000005": "queued",
    }  # fmt: skip
    assert found["000002"]["host"] == "worker-1"
    assert found["000003"]["address"] == f"s3://{cloud.bucket}/demo-000003-somatic-output.tar.gz"
    assert found["000004"]["reason"] == "tumor_site: found 99, allowed: 0 to 30"
    assert found["000004"]["address"] == f"s3://{cloud.bucket}/demo-000004-somatic-failed.json"
    assert found["000005"]["reason"] == "will be tried again: docker was away"


@pytest.mark.parametrize("versioned", [True, False])
def test_what_belongs_to_an_older_version_does_not_count(cloud: Cloud, versioned: bool) -> None:
    if versioned:
        cloud.versioned()
    for sample in (ONE, TWO):
        cloud.put(sample.input_key, b"first")
    cloud.publish(ONE, b"result of the first")
    cloud.fail(TWO, "the first was bad")
    cloud.run(TWO)
    assert states(cloud) == {ONE.input_key: "done", TWO.input_key: "failed"}
    time.sleep(1.1)  # a bucket counts whole seconds
    older = {sample: cloud.input_version(sample) for sample in (ONE, TWO)}
    for sample in (ONE, TWO):
        cloud.put(sample.input_key, b"second")
    assert states(cloud) == {ONE.input_key: "queued", TWO.input_key: "queued"}
    cloud.publish(ONE, b"of the first, after the second came", of=older[ONE])
    cloud.fail(TWO, "of the first, after the second came", of=older[TWO])
    assert states(cloud) == {ONE.input_key: "queued", TWO.input_key: "queued"}
    cloud.publish(ONE, b"of the second")
    cloud.fail(TWO, "the second is bad as well")
    assert states(cloud) == {ONE.input_key: "done", TWO.input_key: "failed"}


def test_a_new_attempt_shows_as_running_again(cloud: Cloud) -> None:
    cloud.put(ONE.input_key, b"input")
    cloud.fail(ONE, "docker was away", permanent=False)
    assert states(cloud) == {ONE.input_key: "queued"}
    time.sleep(1.1)  # a bucket counts whole seconds
    cloud.run(ONE)
    assert states(cloud) == {ONE.input_key: "running"}


def test_prefix_limits_what_is_looked_at(cloud: Cloud) -> None:
    for sample in (ONE, TWO):
        cloud.put(sample.input_key, b"input")
    assert states(cloud, "--prefix", "inbox/") == {TWO.input_key: "queued"}
    assert "  … and 1 older ones (--limit)" in status(cloud, "--limit", "1")


def test_more_than_one_page_of_keys(cloud: Cloud) -> None:
    for number in range(1, 1003):  # a listing's page holds 1000
        cloud.put(f"b-{number:06d}-somatic.tar.gz", b"")
    assert len(look(cloud)["samples"]) == 1002


def test_instances_and_queue_counts(cloud: Cloud) -> None:
    ec2, sqs = cloud.client("ec2"), cloud.client("sqs")
    image = ec2.describe_images()["Images"][0]["ImageId"]
    launch = {"ImageId": image, "MinCount": 1, "MaxCount": 1, "InstanceType": "m5.large"}
    tags = [{"Key": "umccr.pcgr", "Value": cloud.bucket}]
    ours = ec2.run_instances(**launch, TagSpecifications=[{"ResourceType": "instance", "Tags": tags}])
    ec2.run_instances(**launch)  # not ours
    dead = sqs.create_queue(QueueName=f"{cloud.bucket}-dead")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": "3"})
    queue = sqs.create_queue(QueueName=cloud.bucket, Attributes={"RedrivePolicy": policy})["QueueUrl"]
    for url in (queue, queue, queue, dead):
        sqs.send_message(QueueUrl=url, MessageBody="{}")
    sqs.receive_message(QueueUrl=queue)

    found = look(cloud, "--queue", cloud.bucket)
    assert found["queue"] == {"visible": 2, "in_flight": 1, "delayed": 0, "dead_letters": 1}
    instances = [instance for instance in found["machines"] if instance["name"] == cloud.bucket]
    assert [instance["id"] for instance in instances] == [ours["Instances"][0]["InstanceId"]]
    assert len(found["machines"]) == 1
    assert (instances[0]["state"], instances[0]["type"]) == ("running", "m5.large")

    text = status(cloud, "--queue", cloud.bucket)
    assert "2 waiting, 1 in flight, 1 dead letter" in text
    assert re.search(rf"{cloud.bucket} +{instances[0]['id']} +running +\d+ s +m5.large", text)


def test_a_missing_queue_does_not_hide_the_samples(cloud: Cloud) -> None:
    cloud.put(ONE.input_key, b"input")
    found = look(cloud, "--queue", "not-created")
    assert [sample["state"] for sample in found["samples"]] == ["queued"]
    assert found["queue"].startswith("queue not-created: ")


def test_text_for_pipes_has_whole_lines_and_no_colours(cloud: Cloud) -> None:
    cloud.put(ONE.input_key, b"input")
    reason = "settings.toml: tumor_site: found [99], allowed: a whole number from 0 to 30 as in the list of sites"
    cloud.fail(ONE, reason)
    text = status(cloud)
    assert f"failed  0 s  {reason}" in re.sub(r"\d+ s", "0 s", text)
    assert "Samples  1 failed" in text and "\x1b" not in text


def test_missing_bucket_is_one_line(cloud: Cloud) -> None:
    done = script("status", "--bucket", "no-such-bucket-here", environment=cloud.environment)
    assert (done.returncode, done.stderr) == (2, "scripts/status: bucket no-such-bucket-here: Not Found (404)\n")


def test_watch_prints_one_object_per_look(cloud: Cloud) -> None:
    command = [sys.executable, ROOT / "scripts/status", "--bucket", cloud.bucket]
    command += ["--json", "--watch", "--interval", "0.1"]
    with subprocess.Popen(command, env=cloud.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["samples"] == []
        cloud.put(ONE.input_key, b"input")
        while not (samples := json.loads(process.stdout.readline())["samples"]):
            pass
        process.terminate()
    assert samples[0]["state"] == "queued"


def test_spool_folder_mode(cloud: Cloud, tmp_path: Path) -> None:
    for folder in ("inbox/lab", "claimed/0000000000000001.1.00112233445566aa", "done", "failed"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "inbox/lab/b-000001-somatic.tar.gz").write_bytes(b"")
    claim = tmp_path / "claimed/0000000000000001.1.00112233445566aa"
    (claim / "key").write_text("b-000002-somatic.tar.gz")
    (claim / "input").write_bytes(b"")
    (tmp_path / "done/b-000003-somatic.tar.gz").write_bytes(b"")
    (tmp_path / "done/b-000003-somatic-output.tar.gz").write_bytes(b"")
    (tmp_path / "failed/b-000004-normal.tar.gz").write_bytes(b"")
    (tmp_path / "failed/b-000004-normal-failed.json").write_text('{"reason": "no VCF", "permanent": true}')
    (tmp_path / "done/b-000005-normal-output.tar.gz").write_bytes(b"")
    os.utime(tmp_path / "done/b-000005-normal-output.tar.gz", (0, 0))  # of an input that was here before
    (tmp_path / "inbox/b-000005-normal.tar.gz").write_bytes(b"")
    done = script("status", "--spool", tmp_path, "--json", environment=cloud.environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {sample["key"]: sample["state"] for sample in found["samples"]} == {
        "lab/b-000001-somatic.tar.gz": "queued",
        "b-000002-somatic.tar.gz": "running",
        "b-000003-somatic.tar.gz": "done",
        "b-000004-normal.tar.gz": "failed",
        "b-000005-normal.tar.gz": "queued",
    }
    assert (found["machines"], found["queue"]) == (None, None)
    reasons = {sample["key"]: sample["reason"] for sample in found["samples"]}
    assert reasons["b-000004-normal.tar.gz"] == "no VCF"
    done = script("status", "--spool", tmp_path / "nowhere", environment=cloud.environment)
    assert done.returncode == 2 and "no spool; allowed: a folder that holds inbox/" in done.stderr


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
INPUT = Entry("k", NOON, "version:b")


@pytest.mark.parametrize(
    ("labels", "modified", "counts"),
    [
        ({"pcgr-input": "version:b", "pcgr-input-modified": "2026-01-01T11:00:00+00:00"}, NOON, True),
        ({"pcgr-input": "version:a", "pcgr-input-modified": "2026-01-01T12:00:00+00:00"}, NOON, False),  # same second
        ({"pcgr-input": "version:c", "pcgr-input-modified": "2026-01-01T12:00:01Z"}, NOON, True),  # a newer one
        ({"pcgr-input": "version:a", "pcgr-input-modified": "2026-01-01T11:59:59Z"}, NOON + timedelta(1), False),
        ({}, NOON, True),
        ({}, NOON - timedelta(seconds=1), False),
        (None, NOON + timedelta(seconds=1), True),
    ],
)
def test_which_input_a_result_is_of(labels: dict[str, str] | None, modified: datetime, counts: bool) -> None:
    assert is_of(Entry("r", modified, labels=labels), INPUT, lambda: True) is counts


def test_of_two_inputs_of_one_second_the_stored_one_is_the_newer(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result of the version that the key holds now counts for the other one, too, which it replaced."""
    cloud.versioned()
    found = []
    for body in (b"first", b"second"):
        cloud.put(ONE.input_key, body)
        found.append(replace(cloud.input_version(ONE), last_modified=NOON))
    first, second = (Entry(ONE.input_key, NOON, version.identity) for version in found)
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    bucket = Bucket(cloud.bucket, None)
    cloud.publish(ONE, b"result of the second", of=found[1])
    assert (follow(bucket, ONE, first).state, follow(bucket, ONE, second).state) == ("done", "done")
    cloud.publish(ONE, b"result of the first", of=found[0])
    assert (follow(bucket, ONE, first).state, follow(bucket, ONE, second).state) == ("done", "queued")
